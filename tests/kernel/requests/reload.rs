//! Requests while the configuration changes what is watched.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::serve::ask;
use super::{OPTIONS, answered, check_each_worker, connect, get, load, outcomes};
use crate::portable::schedule::answer_file;
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, Workload, eventually, pool_of, worker};

/// While its clients never stop to ask, over connections that stay and over new ones.
#[test]
fn a_busy_server_is_followed_on_whatever_changes_of_what_is_watched() {
    /// Each shows by whether durations are there.
    const CHANGES: [(&str, bool); 6] = [
        (", scheduler: counters", false),
        ("", true),
        (", scheduler: counters, idle_in: [network]", false),
        (", http_status: false", true),
        (", scheduler: counters", false),
        (", idle_in: [poll, network]", true),
    ];
    const ROUNDS: usize = 3;
    let port = free_port();
    let directory = directory_with(&[]);
    let path = directory.path().join("collector.yml");
    let write = |more: &str| {
        let pools = format!("pools: [{{name: ours, parent: {{comm: nginx}}{more}}}]");
        std::fs::write(&path, format!("interval: 100ms\n{pools}\n")).unwrap();
    };
    // Threads that begin to be followed without histograms get them later.
    write(CHANGES[0].0);
    let collector =
        Collector::start(&[&OPTIONS[..], &[&format!("--config.file={}", path.display())]].concat());
    let at = directory.path().display();
    let text = format!(
        "worker_processes 3;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\nhttp {{ access_log off;\n\
         keepalive_requests 1000000; server {{ listen 127.0.0.1:{port}; return 200 $pid; }} }}\n"
    );
    std::fs::write(directory.path().join("nginx.conf"), text).unwrap();
    let mut command = command_in(directory.path(), "/usr/sbin/nginx", &["-g", "daemon off;", "-c"]);
    let nginx = Server::start(command.arg(directory.path().join("nginx.conf")));
    collector.pool_of(nginx.pid(), 3);
    let pool = || Some(pool_of(&collector.stats(), nginx.pid())?.clone());
    let address = format!("127.0.0.1:{port}");
    let enough = AtomicBool::new(false);
    let ask_on = |kept: bool| {
        let mut by_pid = BTreeMap::<i64, u64>::new();
        let mut stream = connect(&address);
        while !enough.load(Ordering::Relaxed) {
            *by_pid.entry(get(&mut stream, "/").trim().parse().unwrap()).or_default() += 1;
            if !kept {
                stream = connect(&address);
            }
        }
        by_pid
    };
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6).map(|client| scope.spawn(move || ask_on(client % 2 == 0))).collect();
        let mut before = pool().unwrap();
        for (more, durations) in CHANGES.iter().cycle().take(CHANGES.len() * ROUNDS) {
            write(more);
            kill(collector.pid(), Signal::SIGHUP).unwrap();
            let total = |pool: &Value| pool["requests"]["total"].as_u64().unwrap();
            before = eventually("it is watched otherwise, and goes on to serve", || {
                let pool = pool()?;
                let shown = !pool["quantiles"]["request_duration_seconds"].is_null();
                (shown == *durations && total(&pool) > total(&before) + 100).then_some(pool)
            });
        }
        enough.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    let mut by_pid = BTreeMap::new();
    for (pid, count) in answers.into_iter().flatten() {
        *by_pid.entry(pid).or_default() += count;
    }
    let count = by_pid.values().sum();
    let before = answered(&collector, nginx.pid(), count);
    println!("{count} requests: {}", before["requests"]);
    assert_eq!(before["requests"]["by_outcome"]["aborted"], 0, "{before}");
    check_each_worker(&before, &by_pid);
    for loss in ["request_not_followed", "request_undecided", "thread_not_followed"] {
        assert_eq!(
            collector.metric(&format!("collector_losses_total{{reason=\"{loss}\"}}")),
            Some(0.0),
            "{loss}"
        );
    }
    eventually("all of them wait for work", || (pool()?["idle"] == 3).then_some(()));
    // All of their threads have distributions again, and go on to have them.
    let durations = |pool: &Value| {
        pool["quantiles"]["request_duration_seconds"]["2xx"]["start"]["count"].as_u64().unwrap()
    };
    let more = load(&address, 6, 200, |_| "/".to_owned()).by_pid.values().sum::<u64>();
    let after = answered(&collector, nginx.pid(), count + more);
    assert_eq!(durations(&after), durations(&before) + more, "{after}");
}

#[test]
fn what_is_in_flight_is_counted_unless_requests_are_wanted_no_more() {
    const CONNECTIONS: usize = 40;
    let directory = directory_with(&[]);
    let path = directory.path().join("collector.yml");
    let write = |more: &str| {
        let pools = format!("pools: [{{name: ours, parent: {{comm: workload}}{more}}}]");
        std::fs::write(&path, format!("interval: 100ms\n{pools}\n")).unwrap();
    };
    write("");
    let mut master = Workload::start();
    master.spawn("sleep");
    let config = format!("--config.file={}", path.display());
    let collector = Collector::start(&[&OPTIONS[..], &[&config]].concat());
    let address = format!("127.0.0.1:{}", free_port());
    let pid = master.spawn(&format!("serve-in-threads {address} {}", answer_file("reload").display()));
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(&address)).collect();
    let requests =
        || -> Option<Value> { Some(pool_of(&collector.stats(), master.pid())?["requests"].clone()) };
    let lost = || collector.metric("collector_losses_total{reason=\"request_not_followed\"}").unwrap();
    let reloads = || collector.metric("collector_config_last_reload_success_timestamp_seconds").unwrap();
    let reload = |more: &str| {
        write(more);
        let reloaded = reloads();
        kill(collector.pid(), Signal::SIGHUP).unwrap();
        eventually("it is reloaded", || (reloads() > reloaded).then_some(()));
    };
    let waits = || -> Option<bool> {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        let worker = worker(&pool, pid)?;
        Some(matches!(worker["state"].as_str()?, "ready" | "idle"))
    };
    let mut total = 0;
    let (mut by_status, mut looked_at) = (0, true);
    // Its threads wait in reads of connections that stay open.
    for (more, status, waiting) in [
        (", http_status: false", false, false),
        (", scheduler: counters", true, false),
        (", idle_in: [poll, network]", true, true),
        ("", true, false),
        (", idle_in: [poll, network], http_status: false", false, true),
    ] {
        // One is in flight meanwhile.
        streams[0].write_all(b"http 2500 200\n").unwrap();
        eventually("it is at it", || (requests()?["in_flight"] == 1).then_some(()));
        for stream in &mut streams[1..] {
            ask(stream, "http 0 200\n", "\r\n\r\n");
        }
        reload(more);
        for stream in &mut streams[1..] {
            ask(stream, "http 0 200\n", "\r\n\r\n");
        }
        ask(&mut streams[0], "", "\r\n\r\n");
        let (before, after) = (CONNECTIONS as u64 - 1, CONNECTIONS as u64);
        total += before + after;
        by_status += if looked_at { before } else { 0 } + if status { after } else { 0 };
        looked_at = status;
        eventually("they wait, or not, where the pool says", || (waits()? == waiting).then_some(()));
        let pool = answered(&collector, master.pid(), total);
        let outcomes = outcomes(&pool["requests"]);
        assert_eq!(outcomes.get("2xx"), Some(&by_status), "{more}: {pool}");
        assert_eq!(outcomes.get("aborted"), None, "{more}: {pool}");
        assert_eq!(lost(), 0.0, "{more}");
    }
    // Of one that is in flight it will not be known how long it took.
    streams[0].write_all(b"plain 600000\n").unwrap();
    eventually("it is at it", || (requests()?["in_flight"] == 1).then_some(()));
    reload(", work: spans");
    eventually("it is a loss", || (lost() == 1.0 && requests()?.is_null()).then_some(()));
    for stream in &mut streams[1..] {
        ask(stream, "http 0 200\n", "\r\n\r\n");
    }
    reload("");
    for stream in &mut streams[1..] {
        ask(stream, "http 0 200\n", "\r\n\r\n");
    }
    answered(&collector, master.pid(), CONNECTIONS as u64 - 1);
    kill(pid, Signal::SIGKILL).unwrap();
}
