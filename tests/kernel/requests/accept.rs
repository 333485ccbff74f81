//! How long connections wait to be accepted.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::connect;
use super::serve::{ask, serving};
use crate::servers::free_port;
use crate::support::{eventually, pool_of};

/// The longest tick that Linux can be built with is this long, and two of them may be off.
const TICK: Duration = Duration::from_millis(10);

#[test]
fn connections_wait_to_be_accepted_as_long_as_their_clients_measured() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, _, _) = serving(&address);
    // The worker takes one connection after the other.
    let busy = || -> TcpStream {
        let mut stream = connect(&address);
        ask(&mut stream, "plain 0\n", "pong\n");
        stream
    };
    let mut waits = Vec::new();
    for ms in [0, 60, 120, 500] {
        let first = busy();
        let connected = Instant::now();
        let mut next = TcpStream::connect(&address).unwrap();
        next.write_all(b"plain 0\n").unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        drop(first);
        ask(&mut next, "", "pong\n");
        waits.push(connected.elapsed());
    }
    // One that says nothing for a while has not waited for the worker.
    let mut late = connect(&address);
    std::thread::sleep(Duration::from_millis(200));
    ask(&mut late, "plain 0\n", "pong\n");
    drop(late);
    let window = eventually("all are counted", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        let window = pool["quantiles"]["accept_wait_seconds"]["start"].clone();
        (window["count"] == 8).then_some(window)
    });
    println!("{waits:?}: {window}");
    let agrees = |of: &str, truth: Duration| {
        let ours = window[of].as_f64().unwrap();
        let (least, most) = (truth.saturating_sub(2 * TICK), truth + 2 * TICK);
        let within = least.as_secs_f64() * 0.98..=most.as_secs_f64() * 1.02;
        assert!(within.contains(&ours), "{of}: {truth:?}: {window}");
    };
    // Half of them, the first ones of each pair, have hardly waited.
    agrees("p50", Duration::ZERO);
    agrees("max", waits[3]);
    let name = pool_of(&collector.stats(), master.pid()).unwrap()["name"].as_str().unwrap().to_owned();
    let metric =
        |what: &str| collector.metric(&format!("worker_pool_accept_wait_seconds_{what}{{pool=\"{name}\"}}"));
    // It came after the eight, and may be in a later collection.
    eventually("the late one is counted as left out", || (metric("discarded_total")? == 1.0).then_some(()));
    // Of the eight, one has waited longer than each of these.
    let sum = metric("sum");
    let truth: Duration = waits.iter().sum();
    assert!((sum.unwrap() - truth.as_secs_f64()).abs() < (8 * TICK).as_secs_f64(), "{sum:?} s, {waits:?}");
}
