//! How many connections wait where a pool listens, against connections that the test itself makes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::support::{Collector, Workload, eventually, pool_of};

/// An address that was free a moment ago.
fn free(ip: &str) -> SocketAddr {
    TcpListener::bind(format!("{ip}:0")).unwrap().local_addr().unwrap()
}

/// A place where workers listen.
struct Place {
    address: String,
    backlog: u64,
    /// Workers that do.
    sockets: u64,
    connect: Box<dyn Fn() -> Box<dyn std::any::Any>>,
}

impl Place {
    fn tcp(address: SocketAddr, backlog: u64, sockets: u64) -> Self {
        let connect = Box::new(move || Box::new(TcpStream::connect(address).unwrap()) as _);
        Self { address: address.to_string(), backlog, sockets, connect }
    }
}

fn connections_that_wait_are_shown(source: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let go = directory.path().join("go");
    let name = format!("collector-test-{source}-{}", std::process::id());
    let somaxconn: u64 =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let mut places = vec![
        Place::tcp(free("127.0.0.1"), 7, 1),
        Place::tcp(free("127.0.0.1"), 64, 3),
        Place::tcp(free("127.0.0.1"), somaxconn + 1000, 1),
        Place {
            address: format!("unix:{}", path.display()),
            backlog: 9,
            sockets: 1,
            connect: Box::new(move || Box::new(UnixStream::connect(&path).unwrap())),
        },
        Place {
            address: format!("unix:@{name}"),
            backlog: 5,
            sockets: 1,
            connect: Box::new(move || {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
                Box::new(UnixStream::connect_addr(&address).unwrap())
            }),
        },
    ];
    match TcpListener::bind("[::1]:0") {
        Ok(_) => places.push(Place::tcp(free("[::1]"), 11, 1)),
        Err(error) => println!("left out: no IPv6: {error}"),
    }

    let mut master = Workload::start();
    for place in &places {
        for _ in 0..place.sockets {
            master.spawn(&format!("listen {} {} {}", place.address, place.backlog, go.display()));
        }
    }
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let _waits = TcpStream::connect(foreign.local_addr().unwrap()).unwrap();
    let collector = Collector::start(&[&format!("--source={source}")]);
    let its_master = master.pid();
    let expect = |lengths: &[u64]| {
        let mut expected: Vec<(String, u64, u64, u64)> = places
            .iter()
            .zip(lengths)
            .map(|(place, length)| {
                let limit = place.backlog.min(somaxconn) * place.sockets;
                (place.address.clone(), place.sockets, *length, limit)
            })
            .collect();
        expected.sort();
        let mut shown = Vec::new();
        eventually(&format!("{expected:?} is shown"), || {
            let stats = collector.stats();
            let queues = pool_of(&stats, its_master)?.get("accept_queues").cloned();
            let number = |queue: &Value, name: &str| queue[name].as_u64().unwrap();
            let queue = |queue: &Value| {
                let address = queue["address"].as_str().unwrap().to_owned();
                (address, number(queue, "sockets"), number(queue, "length"), number(queue, "limit"))
            };
            shown = queues?.as_array()?.iter().map(queue).collect();
            shown.sort();
            (shown == expected).then_some(())
        });
        expected
    };
    expect(&vec![0; places.len()]);
    // As many as there is room for, one more included, and fewer; of several sockets the kernel chooses one each time.
    let counts = [8, 20, 3, 10, 1, 12];
    let lengths = &counts[..places.len()];
    let waiting: Vec<_> = places
        .iter()
        .zip(lengths)
        .flat_map(|(place, count)| (0..*count).map(|_| (place.connect)()))
        .collect();
    let shown = expect(lengths);

    let stats = collector.stats();
    let pool = pool_of(&stats, its_master).unwrap()["name"].as_str().unwrap();
    for (address, _, length, limit) in shown {
        let series =
            |of: &str| format!("worker_pool_accept_queue_{of}{{pool=\"{pool}\",address=\"{address}\"}}");
        assert_eq!(collector.metric(&series("length")), Some(length as f64), "{address}");
        assert_eq!(collector.metric(&series("limit")), Some(limit as f64), "{address}");
    }
    let text = collector.text("/metrics", "text/plain");
    for stranger in [foreign.local_addr().unwrap().to_string(), collector.address().to_owned()] {
        assert!(!text.contains(&format!("address=\"{stranger}\"")), "{stranger} is no pool's");
    }

    std::fs::write(&go, "").unwrap();
    expect(&vec![0; places.len()]);
    drop(waiting);
}

#[test]
fn connections_that_wait_to_be_accepted_are_shown() {
    connections_that_wait_are_shown("ebpf");
}

#[test]
fn connections_that_wait_are_shown_without_bpf() {
    connections_that_wait_are_shown("procfs");
}
