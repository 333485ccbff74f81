//! Messages that ask for nothing, by whichever call they are read, and workers whose helpers in the kernel have nothing to do.

use std::io::{Read, Write};

use nix::sys::signal::Signal;

use super::{OPTIONS, SETTLED, connect, outcomes};
use crate::servers::{Server, command_in, compile, directory_with, free_port};
use crate::support::{Collector, eventually};

/// Answers the first message of a connection, which says how all later ones are read; these have no answer.
const SERVER: &str = "\
import os, select, socket, sys

def read(how, connection):
    if how == b'recv': return connection.recv(4096)
    if how == b'recvmsg': return connection.recvmsg(4096)[0]
    return os.readv(connection.fileno(), [bytearray(4096)])

listener = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=512)
known, poll = {}, select.poll()
poll.register(listener, select.POLLIN)
while True:
    for descriptor, _ in poll.poll():
        if descriptor == listener.fileno():
            connection = listener.accept()[0]
            known[connection.fileno()] = [connection, None]
            poll.register(connection, select.POLLIN)
            continue
        connection, how = known[descriptor]
        if how is None:
            known[descriptor][1] = connection.recv(64)
            connection.send(b'ok')
        elif not read(how, connection):
            poll.unregister(descriptor)
            del known[descriptor]
            connection.close()
";

/// What is said, and what it is.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let frame = |kind: u8, flags: u8, content: &[u8]| {
        let mut frame = vec![0, 0, content.len() as u8, kind, flags, 0, 0, 0, 0];
        frame.extend_from_slice(content);
        frame
    };
    let record = |kind: u8, length: usize| {
        let mut record = vec![kind, 3, 3, 0, length as u8];
        record.extend(std::iter::repeat_n(0xa5, length));
        record
    };
    let pong = |length: usize| {
        let mut pong = vec![0x8a, 0x80 | length as u8];
        pong.extend(std::iter::repeat_n(0x5a, 4 + length));
        pong
    };
    let (settings, ping) = (frame(4, 1, &[]), frame(6, 1, b"12345678"));
    let (window, reset) = (frame(8, 0, &[0, 0, 1, 0]), frame(3, 0, &[0, 0, 0, 8]));
    vec![
        ("the end of a PostgreSQL session", b"X\0\0\0\x04".to_vec()),
        ("an answer to settings of HTTP/2", settings.clone()),
        ("an answer to a ping", ping.clone()),
        ("a reset and a window update", [reset, window.clone()].concat()),
        ("an answer to settings and a window update", [settings.clone(), window.clone()].concat()),
        ("an answer to settings and two window updates", [settings, window.clone(), window.clone()].concat()),
        ("three window updates", window.repeat(3)),
        ("a window update and an answer to a ping", [window, ping].concat()),
        ("an empty pong", pong(0)),
        ("a pong of 4 bytes", pong(4)),
        ("a pong of 8 bytes", pong(8)),
        ("a pong of 16 bytes", pong(16)),
        ("an alert of TLS", record(21, 2)),
        ("an alert of TLS 1.3", record(23, 19)),
        ("the end of a resumed handshake, AES-GCM", [vec![20, 3, 3, 0, 1, 1], record(22, 40)].concat()),
        ("the end of a resumed handshake, ChaCha20", [vec![20, 3, 3, 0, 1, 1], record(22, 32)].concat()),
        ("an empty pong under TLS 1.3", record(23, 6 + 17)),
        ("an answer to settings and a window update under TLS 1.2", record(23, 22 + 24)),
    ]
}

#[test]
fn messages_that_ask_for_nothing_are_no_requests_however_they_are_read() {
    let config = "pools: [{name: quiet, match: {cmdline: 'quiet\\.py'}}]\n";
    let directory = directory_with(&[("quiet.py", SERVER), ("collector.yml", config)]);
    let config = format!("--config.file={}", directory.path().join("collector.yml").display());
    let collector = Collector::start(&[&OPTIONS[..], &[&config]].concat());
    let port = free_port().to_string();
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["quiet.py", &port]);
    let _server = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let pool =
        || Some(collector.stats()["pools"].as_array()?.iter().find(|pool| pool["name"] == "quiet")?.clone());
    // The first connection is there for the server to be followed when the others come.
    drop(connect(&format!("127.0.0.1:{port}")));
    eventually("the server is a worker that waits", || {
        let pool = pool()?;
        (pool["ready"] == 1 || pool["idle"] == 1).then_some(())
    });
    let mut connections = Vec::new();
    for how in ["recv", "readv", "recvmsg"] {
        for (what, message) in messages() {
            let mut connection = connect(&format!("127.0.0.1:{port}"));
            connection.write_all(how.as_bytes()).unwrap();
            connection.read_exact(&mut [0; 2]).unwrap();
            connection.write_all(&message).unwrap();
            connections.push((format!("{what}, by {how}"), connection));
        }
    }
    let count = connections.len() as u64;
    let settled = |in_flight: &str| {
        let mut since = None;
        eventually(in_flight, || {
            let stats = collector.stats();
            let requests = pool()?["requests"].clone();
            let uptime = stats["uptime_seconds"].as_f64()?;
            if requests["total"].as_u64()? < count {
                return None;
            }
            (uptime > *since.get_or_insert(uptime) + SETTLED).then_some(requests)
        })
    };
    let requests = settled("all is counted while the connections are open");
    println!("{:?}, {} in flight", outcomes(&requests), requests["in_flight"]);
    assert_eq!(requests["in_flight"], 0, "{requests}");
    drop(connections);
    let requests = settled("all is counted when they are closed");
    assert_eq!(requests["total"], count, "{requests}");
    assert!(!outcomes(&requests).contains_key("aborted"), "{requests}");
    assert_eq!(pool().unwrap()["idle"], 1);
}

/// Has the kernel look at a queue of it, and waits for what never comes.
const RING: &str = r"
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <poll.h>
#include <unistd.h>

int main(void) {
    struct io_uring_params parameters = {.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 10};
    if (syscall(SYS_io_uring_setup, 8, &parameters) < 0) return 1;
    for (;;) poll(0, 0, 1000);
}
";

#[test]
fn a_worker_whose_ring_has_a_thread_in_the_kernel_is_idle_when_both_wait() {
    let config = "pools: [{name: rings, match: {comm: ring}}]\n";
    let directory = directory_with(&[("collector.yml", config)]);
    let program = compile(directory.path(), "ring", RING, &[]);
    let config = format!("--config.file={}", directory.path().join("collector.yml").display());
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let server = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let tasks = format!("/proc/{}/task", server.pid());
    eventually("the kernel has made the thread", || {
        (std::fs::read_dir(&tasks).ok()?.count() == 2).then_some(())
    });
    let collector = Collector::start(&[&OPTIONS[..], &[&config]].concat());
    let state = || {
        let stats = collector.stats();
        let pool = stats["pools"].as_array()?.iter().find(|pool| pool["name"] == "rings")?.clone();
        Some(pool["workers"][0].clone())
    };
    eventually("it is idle", || (state()?["state"] == "idle").then_some(()));
    // It wakes once a second and waits again.
    let worker = eventually("it has been seen for a while", || {
        let worker = state()?;
        let seconds = &worker["work"]["state_seconds"];
        (seconds["active"].as_f64()? + seconds["idle"].as_f64()? > 4.0).then_some(worker)
    });
    let active = worker["work"]["state_seconds"]["active"].as_f64().unwrap();
    assert!(active < 0.2, "it was active for {active} s: {worker}");
}
