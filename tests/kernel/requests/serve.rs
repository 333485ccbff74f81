//! A worker of our own that does on each connection what it is told to, and measures it.

use std::io::{Read, Write};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{OPTIONS, blocked_in, connect};
use crate::portable::schedule::answer_file;
use crate::schedule::check;
use crate::servers::free_port;
use crate::support::{Collector, Workload, eventually, pool_of, worker};

/// A pool with a worker that serves at an address, and the file in which it tells what it measured.
pub(super) fn serving(address: &str) -> (Workload, Collector, Pid, std::path::PathBuf) {
    doing(&format!("serve {address}"))
}

/// A pool with a worker of this behaviour, whose last word is the file in which it tells what it measured.
pub(crate) fn doing(behaviour: &str) -> (Workload, Collector, Pid, std::path::PathBuf) {
    doing_before(&OPTIONS, behaviour)
}

/// The same, before a collector with these options.
pub(crate) fn doing_before(
    options: &[&str],
    behaviour: &str,
) -> (Workload, Collector, Pid, std::path::PathBuf) {
    let all = busy_with(options, behaviour);
    // Whoever gets work before it has ever waited for any is still starting.
    eventually("it waits for connections", || (blocked_in(all.2)? == libc::SYS_accept4).then_some(()));
    all
}

/// The same, whatever it does at first.
fn busy_with(options: &[&str], behaviour: &str) -> (Workload, Collector, Pid, std::path::PathBuf) {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(options);
    collector.pool_of(master.pid(), 2);
    let file = answer_file("serve");
    let pid = master.spawn(&format!("{behaviour} {}", file.display()));
    (master, collector, pid, file)
}

/// Sends a request, and waits for an answer that ends so.
pub(crate) fn ask(stream: &mut (impl Read + Write), request: &str, end: &str) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    while !answer.ends_with(end) {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "{request}: closed after {answer:?}");
        answer += std::str::from_utf8(&buffer[..length]).unwrap();
    }
}

/// What a worker was asked, once the outcomes are these.
pub(crate) fn asked(collector: &Collector, master: Pid, pid: Pid, expected: &[(&str, u64)]) -> Value {
    let mut last = Value::Null;
    let found = || {
        last = worker(pool_of(&collector.stats(), master)?, pid)?.get("requests")?.clone();
        let counts = last["by_outcome"].as_object()?;
        let as_expected = counts.iter().all(|(outcome, count)| {
            let expected = expected.iter().find(|(name, _)| name == outcome);
            count.as_u64() == Some(expected.map_or(0, |(_, count)| *count))
        });
        (as_expected && last["in_flight"] == 0).then(|| last.clone())
    };
    eventually(&format!("requests of {pid} are {expected:?}"), found)
}

#[test]
fn requests_take_as_long_as_the_server_measured() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, file) = serving(&address);
    let forked = std::time::Instant::now();
    let mut stream = connect(&address);
    // Nobody asks before; how much longer ago it was forked is the time of one line through a pipe.
    let pause = std::time::Duration::from_millis(300);
    std::thread::sleep(pause);
    let asked_after = forked.elapsed();
    // Two humps and a long tail.
    for turn in 0..400 {
        let ms = match turn % 20 {
            0..12 => 2,
            12..18 => 15,
            _ => 50 + turn / 10,
        };
        ask(&mut stream, &format!("http {ms} 200\n"), "\r\n\r\n");
    }
    stream.write_all(b"tell\n").unwrap();
    let truth: Vec<u64> = eventually("it has told", || std::fs::read_to_string(&file).ok())
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(truth.len(), 400);
    drop(stream);
    let requests = asked(&collector, master.pid(), pid, &[("2xx", 400), ("aborted", 1)]);
    let windows = &requests["duration_seconds"]["2xx"];
    assert_eq!(windows["start"]["coverage"], 1.0);
    check("requests", windows, truth);
    let pool = pool_of(&collector.stats(), master.pid()).unwrap().clone();
    assert_eq!(pool["requests"]["by_outcome"], requests["by_outcome"]);
    assert_eq!(pool["requests"]["imbalance"], 3.0, "one of three has got all: {pool}");
    let first = &pool["quantiles"]["spawn_to_first_request_seconds"]["start"];
    assert_eq!(first["count"], 1, "{pool}");
    let ready = &pool["quantiles"]["spawn_to_ready_seconds"]["start"]["max"];
    let (first, asked_after) = (first["max"].as_f64().unwrap(), asked_after.as_secs_f64());
    assert!((first - asked_after).abs() < asked_after * 0.1, "{first} s, asked after {asked_after} s");
    assert!(ready.as_f64().unwrap() < first, "{pool}");
}

#[test]
fn a_request_in_flight_keeps_its_worker_active() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(&address);
    let mut stream = connect(&address);
    let state = |collector: &Collector| {
        let worker = worker(pool_of(&collector.stats(), master.pid())?, pid)?.clone();
        Some((worker["state"].clone(), worker["requests"]["in_flight"].clone(), worker))
    };
    stream.write_all(b"plain 600000\n").unwrap();
    eventually("it is at it", || state(&collector).filter(|(state, open, _)| state == "active" && open == 1));
    kill(pid, Signal::SIGKILL).unwrap();
    collector.certificate(pid);
    eventually("it was not answered", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        let requests = &pool["requests"];
        (requests["by_outcome"]["aborted"] == 1 && requests["in_flight"] == 0).then_some(())
    });
}

#[test]
fn who_is_asked_before_it_has_ever_waited_is_active() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = busy_with(&OPTIONS, &format!("serve-late {address}"));
    let mut stream = connect(&address);
    stream.write_all(b"plain 600000\n").unwrap();
    let states = eventually("it is asked", || {
        let worker = worker(pool_of(&collector.stats(), master.pid())?, pid)?.clone();
        (worker["requests"]["in_flight"] == 1).then_some(worker)
    });
    assert_eq!(states["state"], "active", "{states}");
    let creating = states["work"]["state_seconds"]["creating"].as_f64().unwrap();
    assert!(creating > 0.5, "{states}");
}
