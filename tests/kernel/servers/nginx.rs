//! nginx.

use std::process::Command;

use nix::sys::signal::{Signal, kill};

use super::{Server, directory_with, free_port, has_child, pids, settled, slots};
use crate::support::{Collector, eventually, pool_of};

#[test]
fn nginx_with_four_workers_and_its_reload() {
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("nginx.conf");
    let text = format!(
        "worker_processes 4;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{1}; return 200; }} }}\n",
        directory.path().display(),
        free_port()
    );
    std::fs::write(&configuration, text).unwrap();
    let collector = Collector::start(&["--source=ebpf"]);
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(&configuration).args(["-g", "daemon off;"]);
    let nginx = Server::start(&mut command);
    let pool = collector.pool_of(nginx.pid(), 4);
    assert_eq!(pool["name"], "nginx");
    assert_eq!(pool["origin"], "recognized:nginx");
    assert_eq!((&pool["configured_size"], &pool["size"]), (&4.into(), &4.into()));
    assert_eq!(slots(&pool), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    let spawned_at_start = pool["spawns_total"].as_u64().unwrap();
    assert_eq!(spawned_at_start, 4, "they came while we looked");

    // The new workers come before the old ones go, so they take the next slots; the reload after that takes the
    // first ones again.
    let mut before = pids(&pool);
    for (round, expected) in [(1, [(4, 1), (5, 1), (6, 1), (7, 1)]), (2, [(0, 2), (1, 2), (2, 2), (3, 2)])] {
        kill(nginx.pid(), Signal::SIGHUP).unwrap();
        let pool = eventually("four new workers have taken over", || {
            let stats = collector.stats();
            let pool = pool_of(&stats, nginx.pid())?;
            let new = pids(pool);
            (new.len() == 4 && !new.iter().any(|pid| before.contains(pid))).then(|| pool.clone())
        });
        assert_eq!(slots(&pool), expected);
        assert_eq!(pool["spawns_total"], spawned_at_start + 4 * round);
        assert_eq!(pool["totals"]["exits"]["success"], 4 * round, "the old ones ended by themselves");
        before = pids(&pool);
    }
    assert_eq!(pool["masters"].as_array().unwrap().len(), 1);
}

#[test]
fn nginx_with_a_cache_counts_no_cache_manager() {
    let directory = directory_with(&[]);
    let text = format!(
        "worker_processes 3;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\n\
         http {{ access_log off; proxy_cache_path {0}/cache keys_zone=one:1m;\n\
         server {{ listen 127.0.0.1:{1}; location / {{ proxy_cache one; proxy_pass http://127.0.0.1:9; }} }} }}\n",
        directory.path().display(),
        free_port()
    );
    let configuration = directory.path().join("nginx.conf");
    std::fs::write(&configuration, text).unwrap();
    let collector = Collector::start(&["--source=ebpf"]);
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(&configuration).args(["-g", "daemon off;"]);
    let nginx = Server::start(&mut command);
    let pool = settled(&collector, nginx.pid(), 3);
    assert_eq!(pool["configured_size"], 3);
    assert!(has_child(nginx.pid(), &pool, |_, line| line.starts_with("nginx: cache manager process")));
}

/// The master listens, and its workers with it: all have the same sockets.
#[test]
fn connections_wait_in_the_accept_queues_of_a_stopped_nginx() {
    let directory = directory_with(&[]);
    let (shared, each) = (free_port(), free_port());
    let text = format!(
        "worker_processes 3;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\nhttp {{ access_log off; \
         server {{ listen 127.0.0.1:{shared} backlog=33; listen unix:{0}/socket; return 200; }} \
         server {{ listen 127.0.0.1:{each} reuseport backlog=20; return 200; }} }}\n",
        directory.path().display(),
    );
    let configuration = directory.path().join("nginx.conf");
    std::fs::write(&configuration, text).unwrap();
    let collector = Collector::start(&["--source=ebpf"]);
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(&configuration).args(["-g", "daemon off;"]);
    let nginx = Server::start(&mut command);
    let pool = settled(&collector, nginx.pid(), 3);
    let workers = pids(&pool);
    let signal = |signal| {
        workers.iter().for_each(|pid| kill(nix::unistd::Pid::from_raw(*pid as i32), signal).unwrap());
    };
    let queues = |lengths: [u64; 3]| {
        eventually(&format!("{lengths:?} wait"), || {
            let stats = collector.stats();
            let queues = pool_of(&stats, nginx.pid())?.get("accept_queues")?.as_array()?.clone();
            let queue = |address: String| queues.iter().find(|queue| queue["address"] == address);
            let shown = [
                queue(format!("127.0.0.1:{shared}"))?,
                queue(format!("unix:{}/socket", directory.path().display()))?,
                queue(format!("127.0.0.1:{each}"))?,
            ];
            assert_eq!(queues.len(), shown.len());
            assert_eq!(shown.map(|queue| queue["sockets"].as_u64().unwrap()), [1, 1, 3]);
            // 511 is what nginx asks for by itself.
            assert_eq!(shown.map(|queue| queue["limit"].as_u64().unwrap()), [33, 511, 60]);
            (shown.map(|queue| queue["length"].as_u64().unwrap()) == lengths).then_some(())
        });
    };
    queues([0, 0, 0]);
    signal(Signal::SIGSTOP);
    let connect = |port| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _waiting = (
        [(); 7].map(|()| connect(shared)),
        [(); 3].map(|()| std::os::unix::net::UnixStream::connect(directory.path().join("socket")).unwrap()),
        [(); 5].map(|()| connect(each)),
    );
    queues([7, 3, 5]);
    signal(Signal::SIGCONT);
    queues([0, 0, 0]);
}
