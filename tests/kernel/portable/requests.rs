//! Requests, by each way in which this kernel lets them be followed.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::time::ClockId;
use nix::unistd::Pid;
use serde_json::Value;

use crate::requests::serve::{ask, asked, doing_before};
use crate::requests::{OPTIONS, connect, logged};
use crate::schedule::{check_between, slack};
use crate::servers::free_port;
use crate::support::{Collector, Workload, collector_command, eventually};

const SOCKETS: &str = "--probes.requests=sockets";
const SYSCALLS: &str = "--probes.requests=syscalls";

fn serving(way: &str, address: &str) -> (Workload, Collector, Pid, PathBuf) {
    doing_before(&[&OPTIONS[..], &[way]].concat(), &format!("serve {address}"))
}

fn each_request_has_the_outcome_that_it_had(way: &str) {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(way, &address);
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

/// A server that corks sends its first part when nothing leaves yet. One that sends nothing but that is found out by the first of its
/// answers, and only of that one it is not known how long it took.
fn what_is_corked_is_sent_with_its_last_part(way: &str) {
    const MS: u64 = 12;
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(way, &address);
    let mut stream = connect(&address);
    let mut corked = |parts: &str, times: u64, end: &str| {
        (0..times).for_each(|_| ask(&mut stream, &format!("corked {MS} {parts}\n"), end));
    };
    corked("file", 5, "ok");
    corked("both", 2, "Not Found\r\nContent-Length: 0\r\n\r\n");
    corked("alone", 6, "\r\n\r\n");
    corked("file", 3, "ok");
    let requests = asked(&collector, master.pid(), pid, &[("2xx", 16), ("4xx", 2)]);
    let known =
        |requests: &Value| requests["duration_seconds"]["2xx"]["start"]["count"].as_u64().unwrap_or(0);
    // A system call that sends is seen when it is done.
    let unknown = u64::from(way == SOCKETS);
    assert_eq!(known(&requests), 16 - unknown, "{requests}");
    let window = &requests["duration_seconds"]["2xx"]["start"];
    assert!(window["p50"].as_f64().unwrap() * 1.02 >= MS as f64 / 1e3, "{requests}");

    // Nobody asks again, and nobody closes the connection.
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(way, &address);
    let mut stream = connect(&address);
    ask(&mut stream, &format!("corked {MS} alone\n"), "\r\n\r\n");
    let requests = asked(&collector, master.pid(), pid, &[("2xx", 1)]);
    assert_eq!(known(&requests), 1 - unknown, "{requests}");
    ask(&mut stream, &format!("corked {MS} alone\n"), "\r\n\r\n");
    drop(stream);
    let requests = asked(&collector, master.pid(), pid, &[("2xx", 2)]);
    assert_eq!(known(&requests), 2 - unknown, "{requests}");
}

fn a_unix_socket_serves_as_well(way: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (master, collector, pid, _) = serving(way, path.to_str().unwrap());
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

fn requests_take_as_long_as_the_server_and_its_client_measured(way: &str) {
    const COUNT: usize = 120;
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, file) = serving(way, &address);
    let mut stream = connect(&address);
    let mut asked_at = Vec::new();
    for turn in 0..COUNT {
        asked_at.push(Duration::from(ClockId::CLOCK_MONOTONIC.now().unwrap()).as_nanos() as u64);
        ask(&mut stream, &format!("stamped {}\n", [3, 12, 12, 30][turn % 4]), "\r\n\r\n");
    }
    stream.write_all(b"tell\n").unwrap();
    let told = logged(&file, COUNT * 2);
    drop(stream);
    let requests = asked(&collector, master.pid(), pid, &[("2xx", COUNT as u64), ("aborted", 1)]);
    // From where the server has it until its answer is to be sent, and from where it is sent until the answer is: whoever takes
    // the CPU between, as on a machine that is emulated somebody does, is in both or in neither.
    let (least, sent_at): (Vec<u64>, Vec<u64>) = told.chunks_exact(2).map(|two| (two[0], two[1])).unzip();
    let most = sent_at.iter().zip(&asked_at).map(|(sent, asked)| sent - asked).collect();
    check_between(slack, way, &requests["duration_seconds"]["2xx"], least, most);
}

/// Ways in which requests can be followed here, as `collector doctor` says.
fn ways() -> Vec<&'static str> {
    let feature = |way: &str| {
        let report = collector_command(&["doctor", "--source=ebpf", "--format=json", way]).output().unwrap();
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        let features = report["features"].as_array().unwrap();
        features.iter().find(|feature| feature["name"] == "requests").unwrap().clone()
    };
    assert_eq!(feature(SYSCALLS)["enabled"], true);
    let sockets = feature(SOCKETS);
    let release = nix::sys::utsname::uname().unwrap();
    let mut version = release.release().to_str().unwrap().split('.').map(|part| part.parse().unwrap_or(0));
    if (version.next(), version.next()) >= (Some(6), Some(3)) {
        assert_eq!(sockets["enabled"], true, "{sockets}");
        return vec![SOCKETS, SYSCALLS];
    }
    assert_eq!(sockets["enabled"], false, "{sockets}");
    assert!(sockets["remedy"].as_str().unwrap().contains(SYSCALLS), "{sockets}");
    vec![SYSCALLS]
}

#[test]
fn requests_are_counted_and_measured_by_each_way_that_this_kernel_has() {
    for way in ways() {
        println!("{way}");
        each_request_has_the_outcome_that_it_had(way);
        what_is_corked_is_sent_with_its_last_part(way);
        a_unix_socket_serves_as_well(way);
        requests_take_as_long_as_the_server_and_its_client_measured(way);
    }
}
