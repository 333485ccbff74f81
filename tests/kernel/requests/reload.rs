//! Requests while the configuration changes what is watched.

use std::io::Write;
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::serve::ask;
use super::{OPTIONS, SETTLED, connect};
use crate::portable::schedule::answer_file;
use crate::servers::{directory_with, free_port};
use crate::support::{Collector, Workload, eventually, pool_of};

#[test]
fn what_was_answered_before_a_reload_is_counted_and_what_was_not_is_a_loss() {
    const CONNECTIONS: usize = 40;
    let directory = directory_with(&[]);
    let path = directory.path().join("collector.yml");
    let write = |more: &str| {
        std::fs::write(&path, format!("pools: [{{name: ours, parent: {{comm: workload}}{more}}}]")).unwrap();
    };
    write("");
    let mut master = Workload::start();
    master.spawn("sleep");
    let config = format!("--config.file={}", path.display());
    let collector = Collector::start(&[&OPTIONS[..], &[&config]].concat());
    let address = format!("127.0.0.1:{}", free_port());
    let pid = master.spawn(&format!("serve-in-threads {address} {}", answer_file("reload").display()));
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(&address)).collect();
    // Of the pool: its worker gets a new record, which begins at zero.
    let requests =
        || -> Option<Value> { Some(pool_of(&collector.stats(), master.pid())?["requests"].clone()) };
    let lost = || collector.metric("collector_losses_total{reason=\"request_not_followed\"}").unwrap();
    let uptime = || collector.stats()["uptime_seconds"].as_f64().unwrap();
    let reloads = || collector.metric("collector_config_last_reload_success_timestamp_seconds").unwrap();
    let mut total = 0;
    for more in [", http_status: false", "", ", scheduler: counters", "", ", idle_in: [poll, network]"] {
        write(more);
        let reloaded = reloads();
        for stream in &mut streams {
            ask(stream, "http 0 200\n", "\r\n\r\n");
        }
        total += CONNECTIONS as u64;
        kill(collector.pid(), Signal::SIGHUP).unwrap();
        eventually("it is reloaded", || (reloads() > reloaded).then_some(()));
        let from = uptime();
        eventually("all that will be counted is", || (uptime() > from + SETTLED).then_some(()));
        let requests = requests().unwrap();
        assert_eq!(
            (&requests["total"], &requests["in_flight"]),
            (&total.into(), &0.into()),
            "{more}: {requests}"
        );
        assert_eq!(lost(), 0.0, "{more}");
    }
    // Of one that is in flight it will not be known how long it took.
    streams[0].write_all(b"plain 600000\n").unwrap();
    eventually("it is at it", || (requests()?["in_flight"] == 1).then_some(()));
    write("");
    kill(collector.pid(), Signal::SIGHUP).unwrap();
    eventually("it is a loss", || (lost() == 1.0 && requests()?["in_flight"] == 0).then_some(()));
    assert_eq!(requests().unwrap()["total"], total);
    kill(pid, Signal::SIGKILL).unwrap();
}
