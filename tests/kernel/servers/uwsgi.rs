//! uWSGI, whose processes look alike as long as nobody asks for titles.

use nix::sys::signal::Signal;

use super::{
    Server, check_name, command_in, directory_with, free_port, has_child, pids, replaces_a_killed_worker,
    settled, slots,
};
use crate::support::{Collector, eventually, pool_of};

const PROGRAM: &str = "/usr/bin/uwsgi-core";
const APP: (&str, &str) =
    ("app.py", "def application(environ, start):\n    start('200 OK', [])\n    return [b'ok']\n");

#[test]
fn uwsgi_with_a_master_and_a_router_that_looks_like_a_worker() {
    let directory = directory_with(&[APP]);
    let address = format!("127.0.0.1:{}", free_port());
    let collector = Collector::start(&["--source=ebpf"]);
    let arguments = ["--plugin", "python3,http", "--master", "--http", &address, "--processes", "3"];
    let mut command = command_in(directory.path(), PROGRAM, &arguments);
    let uwsgi = Server::start_ended_by(Signal::SIGKILL, command.args(["--wsgi-file", "app.py"]));
    let pool = settled(&collector, uwsgi.pid(), 3);
    check_name(&pool, "uwsgi", Some(3));
    assert_eq!(slots(&pool), [(0, 1), (1, 1), (2, 1)]);
    assert!(has_child(uwsgi.pid(), &pool, |comm, _| comm == "uwsgi-core"), "the router");
    replaces_a_killed_worker(&collector, uwsgi.pid(), &pool, 1);
}

#[test]
fn uwsgi_with_titles_and_a_spooler() {
    let directory = directory_with(&[APP, ("spool/.keep", "")]);
    let address = format!("127.0.0.1:{}", free_port());
    let arguments = ["--plugin", "python3,http", "--master", "--http", &address, "--processes", "3"];
    let mut command = command_in(directory.path(), PROGRAM, &arguments);
    let uwsgi = Server::start_ended_by(
        Signal::SIGKILL,
        command.args(["--wsgi-file", "app.py", "--auto-procname", "--spooler", "spool"]),
    );
    let collector = Collector::start(&["--source=ebpf"]);
    let pool = settled(&collector, uwsgi.pid(), 3);
    check_name(&pool, "uwsgi", None);
    for helper in ["uWSGI http 1", "uWSGI spooler"] {
        assert!(has_child(uwsgi.pid(), &pool, |_, line| line.starts_with(helper)), "{helper}");
    }
}

#[test]
fn uwsgi_without_a_master_is_its_own_first_worker() {
    let directory = directory_with(&[APP]);
    let address = format!("127.0.0.1:{}", free_port());
    let collector = Collector::start(&["--source=ebpf"]);
    let arguments = ["--plugin", "python3", "--http-socket", &address, "--processes", "3"];
    let mut command = command_in(directory.path(), PROGRAM, &arguments);
    let uwsgi = Server::start_ended_by(Signal::SIGKILL, command.args(["--wsgi-file", "app.py"]));
    let pool = settled(&collector, uwsgi.pid(), 3);
    check_name(&pool, "uwsgi", Some(3));
    assert!(pids(&pool).contains(&uwsgi.pid().as_raw().into()), "{pool}");
}

#[test]
fn an_emperor_has_vassals_and_no_workers() {
    let vassal = |port: u16| {
        format!(
            "[uwsgi]\nplugin = python3\nhttp-socket = 127.0.0.1:{port}\nprocesses = 3\nmaster = true\n\
             wsgi-file = app.py\n"
        )
    };
    let (one, two) = (vassal(free_port()), vassal(free_port()));
    let app = APP.1;
    let directory = directory_with(&[("v/app.py", app), ("v/one.ini", &one), ("v/two.ini", &two)]);
    let collector = Collector::start(&["--source=ebpf"]);
    let emperor = Server::start(&mut command_in(directory.path(), PROGRAM, &["--emperor", "v"]));
    let pools = eventually("each vassal has its pool", || {
        let stats = collector.stats();
        let pools: Vec<_> =
            stats["pools"].as_array()?.iter().filter(|p| p["origin"] == "recognized:uwsgi").collect();
        let full = pools.iter().filter(|p| p["total"] == 3 && p["configured_size"] == 3).count();
        (pools.len() == 2 && full == 2).then(|| stats.clone())
    });
    assert!(pool_of(&pools, emperor.pid()).is_none(), "the emperor supervises strangers");
}
