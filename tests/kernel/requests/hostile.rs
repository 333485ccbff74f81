//! Clients that mean no good, or have a bad line.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::Value;

use super::serve::{ask, asked, serving};
use super::{SETTLED, blocked_in, connect};
use crate::servers::free_port;
use crate::support::{Collector, eventually, pool_of, worker};

/// What is shown of a worker.
fn shown(collector: &Collector, master: Pid, pid: Pid) -> Option<Value> {
    Some(worker(pool_of(&collector.stats(), master)?, pid)?.clone())
}

/// Closes a connection as one that has failed: the other side gets a reset.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// What the worker measured of its requests, ns.
fn told(stream: &mut impl Write, file: &std::path::Path) -> Vec<u64> {
    stream.write_all(b"tell\n").unwrap();
    let text = eventually("it has told", || std::fs::read_to_string(file).ok());
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The only request of this outcome took as long as the worker says.
fn check_only(requests: &Value, outcome: &str, truth_ns: u64) {
    let window = &requests["duration_seconds"][outcome]["start"];
    let (longest, truth) = (window["max"].as_f64().unwrap(), truth_ns as f64 / 1e9);
    assert_eq!(window["count"], 1, "{requests}");
    assert!((longest / truth - 1.0).abs() < 0.02, "{longest} s, measured {truth} s");
}

#[test]
fn a_client_that_sends_a_byte_a_second_has_one_long_request() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, file) = serving(&address);
    let mut stream = connect(&address);
    for byte in b"plain 5" {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let worker = shown(&collector, master.pid(), pid).unwrap();
        let requests = &worker["requests"];
        assert_eq!((&requests["in_flight"], &requests["total"]), (&1.into(), &0.into()), "{worker}");
        assert_eq!(worker["state"], "active", "{worker}");
    }
    ask(&mut stream, "\n", "pong\n");
    let truth = told(&mut stream, &file);
    assert!(truth[0] > 7_000_000_000, "{truth:?}");
    drop(stream);
    let requests = asked(&collector, master.pid(), pid, &[("ok", 1), ("aborted", 1)]);
    check_only(&requests, "ok", truth[0]);
}

#[test]
fn requests_of_connections_that_are_reset_are_counted_once() {
    const TIMES: u64 = 20;
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(&address);
    // Before the worker has even taken the connection: it talks to another one.
    let mut first = connect(&address);
    ask(&mut first, "plain 0\n", "pong\n");
    for _ in 0..TIMES {
        let mut stream = connect(&address);
        stream.write_all(b"plain 0\n").unwrap();
        reset(stream);
    }
    drop(first);
    asked(&collector, master.pid(), pid, &[("ok", 1), ("aborted", TIMES)]);
    // While the worker is at it: in flight no more from then on.
    for turn in 1..=3 {
        let mut stream = connect(&address);
        stream.write_all(b"plain 3000\n").unwrap();
        eventually("it is in flight", || {
            (shown(&collector, master.pid(), pid)?["requests"]["in_flight"] == 1).then_some(())
        });
        reset(stream);
        asked(&collector, master.pid(), pid, &[("ok", 1), ("aborted", TIMES + turn)]);
    }
    // After its answer, read or not. A client is quicker now and then than the call that sends to it.
    let does = |call: i64| eventually("it has sent", || (blocked_in(pid)? == call).then_some(()));
    for turn in 0..TIMES {
        let mut stream = connect(&address);
        if turn % 2 == 0 {
            ask(&mut stream, "plain 0\n", "pong\n");
        } else {
            stream.write_all(b"plain 0\n").unwrap();
            stream.peek(&mut [0]).unwrap();
        }
        does(libc::SYS_recvfrom);
        reset(stream);
    }
    // After a part of it.
    let mut stream = connect(&address);
    stream.write_all(b"stream 300\n").unwrap();
    assert_ne!(stream.read(&mut [0; 16]).unwrap(), 0);
    does(libc::SYS_clock_nanosleep);
    reset(stream);
    let last = [("ok", 1 + TIMES), ("2xx", 1), ("aborted", TIMES + 3)];
    asked(&collector, master.pid(), pid, &last);
    // It has done with all of them.
    ask(&mut connect(&address), "plain 0\n", "pong\n");
    asked(&collector, master.pid(), pid, &[("ok", 2 + TIMES), ("2xx", 1), ("aborted", TIMES + 3)]);
}

/// An answer is longer than what its connection holds; its client reads all of it in the end.
fn goes_on_until_it_is_read<'a, S: Read + Write>(
    address: &'a str,
    connect: impl Fn(&'a str) -> std::io::Result<S>,
    request: &str,
    begun: bool,
) {
    let (master, collector, pid, file) = serving(address);
    let mut stream = eventually("it listens", || connect(address).ok());
    stream.write_all(request.as_bytes()).unwrap();
    let uptime = || collector.stats()["uptime_seconds"].as_f64().unwrap();
    eventually("it waits for room", || blocked_in(pid).filter(|call| SENDS.contains(call)));
    let since = uptime();
    eventually("it has waited for long", || (uptime() > since + SETTLED).then_some(()));
    let worker = shown(&collector, master.pid(), pid).unwrap();
    let requests = &worker["requests"];
    assert_eq!((&worker["state"], &requests["total"]), (&"active".into(), &0.into()), "{worker}");
    assert_eq!(requests["in_flight"], u64::from(!begun), "{worker}");
    stream.read_exact(&mut vec![0; 32 << 20]).unwrap();
    let truth = told(&mut stream, &file);
    assert!(truth[0] as f64 / 1e9 > SETTLED, "{truth:?}");
    drop(stream);
    let requests = asked(&collector, master.pid(), pid, &[("ok", 1), ("aborted", 1)]);
    check_only(&requests, "ok", truth[0]);
}

/// What a worker sends by.
const SENDS: [i64; 2] = [libc::SYS_sendto, libc::SYS_write];

/// Until the call that sends it comes back nobody knows that a part of it has gone.
#[test]
fn an_answer_by_one_call_goes_on_until_it_is_read() {
    let address = format!("127.0.0.1:{}", free_port());
    goes_on_until_it_is_read(&address, TcpStream::connect, "flood 32768 1\n", false);
}

#[test]
fn an_answer_by_many_calls_goes_on_until_it_is_read() {
    let address = format!("127.0.0.1:{}", free_port());
    goes_on_until_it_is_read(&address, TcpStream::connect, "flood 64 512\n", true);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    goes_on_until_it_is_read(path.to_str().unwrap(), UnixStream::connect, "flood 64 512\n", true);
}

#[test]
fn an_answer_that_nobody_ever_reads_is_counted_once() {
    for (request, outcome) in [("flood 32768 1\n", "aborted"), ("flood 64 512\n", "ok")] {
        let address = format!("127.0.0.1:{}", free_port());
        let (master, collector, pid, _) = serving(&address);
        let mut stream = connect(&address);
        stream.write_all(request.as_bytes()).unwrap();
        eventually("it waits for room", || (blocked_in(pid)? == libc::SYS_sendto).then_some(()));
        drop(stream);
        asked(&collector, master.pid(), pid, &[(outcome, 1)]);
        // It has done with it.
        ask(&mut connect(&address), "http 0 200\n", "\r\n\r\n");
        asked(&collector, master.pid(), pid, &[(outcome, 1), ("2xx", 1)]);
    }
}

/// No byte of them is in the process that sends them.
#[test]
fn answers_by_sendfile_and_splice_are_answers() {
    const TIMES: usize = 20;
    const KIB: usize = 300;
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, file) = serving(&address);
    let mut stream = connect(&address);
    for how in ["sendfile", "splice"] {
        for _ in 0..TIMES {
            stream.write_all(format!("{how} {KIB}\n").as_bytes()).unwrap();
            stream.read_exact(&mut vec![0; KIB * 1024]).unwrap();
        }
    }
    assert_eq!(told(&mut stream, &file).len(), 2 * TIMES);
    drop(stream);
    let requests = asked(&collector, master.pid(), pid, &[("ok", 2 * TIMES as u64), ("aborted", 1)]);
    assert_eq!(requests["transmit_bytes"], 2 * TIMES * KIB * 1024, "{requests}");
}
