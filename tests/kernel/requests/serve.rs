//! A worker of our own that does on each connection what it is told to, and measures it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

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
    let all = busy_with(behaviour);
    // Whoever gets work before it has ever waited for any is still starting.
    eventually("it waits for connections", || (blocked_in(all.2)? == libc::SYS_accept4).then_some(()));
    all
}

/// The same, whatever it does at first.
fn busy_with(behaviour: &str) -> (Workload, Collector, Pid, std::path::PathBuf) {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&OPTIONS);
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
            0..13 => 2,
            13..19 => 15,
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
fn each_request_has_the_outcome_that_it_had() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(&address);
    let mut stream = connect(&address);
    for (status, times) in [("200", 5), ("301", 2), ("404", 3), ("500", 1), ("101", 1)] {
        for _ in 0..times {
            ask(&mut stream, &format!("http 0 {status}\n"), "\r\n\r\n");
        }
    }
    ask(&mut stream, "plain 1\n", "pong\n");
    ask(&mut stream, "stream 40\n", "ok");
    ask(&mut stream, "continue 5\n", "Content-Length: 0\r\n\r\n");
    ask(&mut stream, "both 5\n", "Not Found\r\nContent-Length: 0\r\n\r\n");
    // Closed without an answer, by the worker; and what no answer was waited for is answered all the same.
    stream.write_all(b"close 5\n").unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    let mut gone = connect(&address);
    gone.write_all(b"http 1 200\n").unwrap();
    gone.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    gone.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200"), "{rest:?}");
    // Opened and closed: nothing was asked.
    drop(connect(&address));
    let expected = [("2xx", 9), ("3xx", 2), ("4xx", 4), ("5xx", 1), ("ok", 2), ("aborted", 1)];
    let requests = asked(&collector, master.pid(), pid, &expected);
    // The one that was answered in two parts is as long as both.
    let longest = requests["duration_seconds"]["2xx"]["start"]["max"].as_f64().unwrap();
    assert!((0.040..0.5).contains(&longest), "{requests}");
}

#[test]
fn a_unix_socket_serves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (master, collector, pid, _) = serving(path.to_str().unwrap());
    let connect = || eventually("it listens", || UnixStream::connect(&path).ok());
    let mut stream = connect();
    for _ in 0..10 {
        ask(&mut stream, "http 1 200\n", "\r\n\r\n");
    }
    drop(stream);
    // Nobody tells of the end of these connections, and the next one is likely to be where the last one was in memory.
    for _ in 0..20 {
        let mut stream = connect();
        stream.write_all(b"close 1\n").unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    }
    let mut stream = connect();
    stream.write_all(b"plain 20\n").unwrap();
    drop(stream);
    asked(&collector, master.pid(), pid, &[("2xx", 10), ("aborted", 21)]);
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
    let (master, collector, pid, _) = busy_with(&format!("serve-late {address}"));
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
