//! Requests against what the servers themselves counted and measured.

mod nginx;
mod python;
mod serve;

use std::net::TcpStream;

use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Collector, eventually, pool_of};

const OPTIONS: [&str; 2] = ["--source=ebpf", "--probes.overhead-budget=0"];

/// Seconds after which nothing is found any more of what has ended: an answer is complete after two, the end of a UNIX
/// connection is noticed after another one.
const SETTLED: f64 = 3.5;

fn connect(address: &str) -> TcpStream {
    let stream = eventually("it listens", || TcpStream::connect(address).ok());
    stream.set_nodelay(true).unwrap();
    stream
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
