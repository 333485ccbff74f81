//! Requests against what the servers themselves counted and measured.

mod accept;
mod hostile;
mod jsonrpc;
mod nginx;
mod node;
mod php;
mod postgresql;
mod python;
mod queue;
mod quiet;
mod reload;
pub(crate) mod serve;
mod sockets;
mod tls;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Collector, eventually, pool_of};

pub(crate) const OPTIONS: [&str; 2] = ["--source=ebpf", "--probes.overhead-budget=0"];

/// Seconds after which nothing is found any more of what has ended: an answer is complete after two, the end of a UNIX
/// connection is noticed after another one.
const SETTLED: f64 = 3.5;

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = eventually("it listens", || TcpStream::connect(address).ok());
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads an answer of HTTP/1 that says how long it is. Returns its status and its body.
fn answer(stream: &mut impl Read) -> (u16, String) {
    let mut text = Vec::new();
    loop {
        let mut buffer = [0; 16384];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..length]);
        let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
            continue;
        };
        let head = str::from_utf8(&text[..end]).unwrap().to_ascii_lowercase();
        let length =
            head.split("content-length: ").nth(1).unwrap_or_else(|| panic!("how long is it? {head}"));
        let body: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        if text.len() >= end + body {
            assert_eq!(text.len(), end + body, "more than one answer");
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            return (status, String::from_utf8(text.split_off(end)).unwrap());
        }
    }
}

/// Asks over a connection that stays open.
pub(crate) fn get(stream: &mut (impl Read + Write), path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let (status, body) = answer(stream);
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// What clients got and measured.
struct Answers {
    /// How many of the answers had which body, which is the pid of who gave it.
    by_pid: BTreeMap<i64, u64>,
    /// From before a client asked until it had its answer, ns: each request took less.
    waited_ns: Vec<u64>,
}

/// Asks over so many connections at a time and so often on each, for what `path` says of the turn.
fn load(address: &str, connections: u64, times: u64, path: impl Fn(u64) -> String + Sync) -> Answers {
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections)
            .map(|client| {
                let path = &path;
                scope.spawn(move || {
                    let mut stream = connect(address);
                    let ask = |turn| {
                        let path = path(client * times + turn);
                        let begin = Instant::now();
                        (get(&mut stream, &path), begin.elapsed().as_nanos() as u64)
                    };
                    (0..times).map(ask).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    let mut by_pid = BTreeMap::new();
    for (body, _) in &answers {
        *by_pid.entry(body.trim().parse().unwrap()).or_default() += 1;
    }
    Answers { by_pid, waited_ns: answers.into_iter().map(|(_, ns)| ns).collect() }
}

/// How many ms an answer is to take: two humps and a long tail.
fn pauses(turn: u64) -> u64 {
    match turn % 20 {
        0..12 => 10,
        12..18 => 30,
        _ => 60 + turn / 10,
    }
}

/// Within 5 % or 200 µs, whichever is more: a server's own measurement leaves out what it does before it looks at the
/// clock and after.
pub(crate) fn within_what_logs_say(seconds: f64) -> f64 {
    (seconds * 0.05).max(200e-6)
}

/// A pool, once there were so many requests in all, none is in flight, and nothing comes after them.
fn answered(collector: &Collector, master: Pid, count: u64) -> Value {
    let mut since = None;
    let mut last = Value::Null;
    let found = || {
        let stats = collector.stats();
        let uptime = stats["uptime_seconds"].as_f64()?;
        let pool = pool_of(&stats, master)?.clone();
        last = pool.get("requests")?.clone();
        if last["total"] != count || last["in_flight"] != 0 {
            assert!(since.is_none(), "there were {count} requests, and then: {last}");
            assert!(last["total"].as_u64() <= Some(count), "there are more than {count} requests: {last}");
            return None;
        }
        (uptime > *since.get_or_insert(uptime) + SETTLED).then_some(pool)
    };
    eventually(&format!("there were {count} requests"), found)
}

/// The system call that a process is blocked in.
fn blocked_in(pid: Pid) -> Option<i64> {
    std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?.split(' ').next()?.parse().ok()
}

/// Counts that are not zero.
fn outcomes(requests: &Value) -> BTreeMap<&str, u64> {
    let counts = requests["by_outcome"].as_object().unwrap();
    counts
        .iter()
        .map(|(name, count)| (name.as_str(), count.as_u64().unwrap()))
        .filter(|(_, n)| *n > 0)
        .collect()
}

/// Each worker has answered as many as its clients have got from it.
fn check_each_worker(pool: &Value, by_pid: &BTreeMap<i64, u64>) {
    let each: BTreeMap<i64, u64> = pool["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| (worker["pid"].as_i64().unwrap(), worker["requests"]["total"].as_u64().unwrap()))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(&each, by_pid, "{pool}");
}

/// Numbers that a server has written to its log, one a line, once there are so many.
pub(crate) fn logged(path: &Path, count: usize) -> Vec<u64> {
    eventually(&format!("{} has {count} lines", path.display()), || {
        let text = std::fs::read_to_string(path).ok()?;
        (text.lines().count() >= count)
            .then(|| text.lines().map(|line| line.trim().parse().unwrap()).collect())
    })
}
