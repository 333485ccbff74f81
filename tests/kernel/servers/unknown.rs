//! Parents of which nothing is known but their children.

use std::io::Write;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::{Server, command_in, directory_with, settled};
use crate::support::{Collector, eventually, pool_of};

fn check_pool(pool: &Value, name: &str) {
    assert_eq!((&pool["name"], &pool["origin"]), (&name.into(), &"zero-config".into()));
}

/// One that does not end its workers: the group is killed.
fn start(directory: &tempfile::TempDir, program: &str, arguments: &[&str]) -> Server {
    Server::start_ended_by(Signal::SIGKILL, &mut command_in(directory.path(), program, arguments))
}

const PYTHON: &str = "/usr/bin/python3";

#[test]
fn pools_of_python_by_each_way_to_start_a_worker() {
    let script = |method: &str| {
        format!(
            "import multiprocessing, time\nfrom concurrent.futures import ProcessPoolExecutor\n\
             if __name__ == '__main__':\n    \
             context = multiprocessing.get_context('{method}')\n    \
             with ProcessPoolExecutor(3, mp_context=context) as pool:\n        \
             list(pool.map(time.sleep, [600] * 3))\n"
        )
    };
    let (fork, spawn, server) = (script("fork"), script("spawn"), script("forkserver"));
    let directory =
        directory_with(&[("thumbnails.py", &fork), ("mailer.py", &spawn), ("reports.py", &server)]);
    let collector = Collector::start(&["--source=ebpf"]);
    let fork = start(&directory, PYTHON, &["thumbnails.py"]);
    let spawn = start(&directory, PYTHON, &["mailer.py"]);
    let server = start(&directory, PYTHON, &["reports.py"]);
    check_pool(&collector.pool_of(fork.pid(), 3), "thumbnails");
    // Its resource tracker runs the same executable, but other code.
    check_pool(&settled(&collector, spawn.pid(), 3), "mailer");
    let stats = eventually("the fork server has three workers", || {
        let stats = collector.stats();
        let pool = stats["pools"].as_array()?.iter().find(|p| p["name"] == "reports")?;
        (pool["total"] == 3).then_some(stats)
    });
    assert!(pool_of(&stats, server.pid()).is_none(), "the tracker and the fork server are no pool");
}

#[test]
fn workers_of_a_node_cluster() {
    let script = "const cluster = require('cluster');\n\
                  if (cluster.isPrimary) { for (let i = 0; i < 3; i++) cluster.fork(); }\n\
                  else { setInterval(() => {}, 1000); }\n";
    let directory = directory_with(&[("chat.js", script)]);
    let collector = Collector::start(&["--source=ebpf"]);
    let node = start(&directory, "node", &["chat.js"]);
    check_pool(&collector.pool_of(node.pid(), 3), "chat");
}

#[test]
fn a_script_has_a_pool_and_a_prompt_has_none() {
    let directory = directory_with(&[(
        "start.sh",
        "sleep 600 &\nsleep 601 &\nwhile :; do tail -f /dev/null; done &\nwait\n",
    )]);
    let (reader, mut typed) = std::io::pipe().unwrap();
    let mut shell = Command::new("/bin/sh");
    let prompt = Server::start_reading(reader, Signal::SIGKILL, &mut shell);
    writeln!(typed, "sleep 602 &\nsleep 603 &").unwrap();
    let script = start(&directory, "/bin/sh", &["start.sh"]);
    let children = |pid: Pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().count()
    };
    eventually("both have children", || {
        (children(prompt.pid()) == 2 && children(script.pid()) == 3).then_some(())
    });
    let collector = Collector::start(&["--source=ebpf"]);
    let pool = settled(&collector, script.pid(), 2);
    check_pool(&pool, "sleep");
    assert!(pool_of(&collector.stats(), prompt.pid()).is_none(), "what is typed into a shell is no pool");
}
