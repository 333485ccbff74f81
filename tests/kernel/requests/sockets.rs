//! Sockets that are used in unusual ways.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{OPTIONS, SETTLED, answered, connect, outcomes};
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

/// Asks over a connection whose own end has an address, too.
const BOUND_CLIENT: &str = "\
import os, socket, time

if os.fork() and os.fork():
    os.wait()
client = socket.socket(socket.AF_UNIX)
client.bind(f'client-{os.getpid()}')
client.connect('listener')
while True:
    client.sendall(b'question')
    assert client.recv(100)
    time.sleep(0.01)
";

#[test]
fn who_asks_from_a_bound_unix_socket_is_asked_nothing() {
    let directory = directory_with(&[("asking.py", BOUND_CLIENT)]);
    let listener = UnixListener::bind(directory.path().join("listener")).unwrap();
    let collector = Collector::start(&OPTIONS);
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["asking.py"]);
    let master = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let mut streams: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
    // Both connections had a listener when they were made; now each address is one socket's alone.
    drop(listener);
    collector.pool_of(master.pid(), 2);
    for _ in 0..100 {
        for stream in &mut streams {
            assert!(stream.read(&mut [0; 100]).unwrap() > 0);
            stream.write_all(b"answer").unwrap();
        }
    }
    let requests = eventually("what they have received is counted", || {
        let requests = pool_of(&collector.stats(), master.pid())?["requests"].clone();
        (requests["receive_bytes"].as_u64()? >= 500).then_some(requests)
    });
    assert_eq!(
        (&requests["total"], &requests["in_flight"]),
        (&Value::from(0), &Value::from(0)),
        "{requests}"
    );
}

/// Sends the parts of an answer without copying, half a second apart, and reads from the socket what the kernel says of each.
const ZERO_COPY: &str = "\
import os, select, socket, sys, time

SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
if os.fork() and os.fork():
    os.wait()
client, _ = listener.accept()
client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
while client.recv(100):
    for part in range(3):
        client.send(b'x' * 1000, MSG_ZEROCOPY)
        poll = select.poll()
        poll.register(client, 0)
        assert poll.poll(5000)
        client.recvmsg(100, 100, socket.MSG_ERRQUEUE)
        time.sleep(0.5 if part < 2 else 0)
";

#[test]
fn what_the_kernel_says_of_an_answer_does_not_end_it() {
    let directory = directory_with(&[("copies.py", ZERO_COPY)]);
    let port = free_port();
    let collector = Collector::start(&OPTIONS);
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["copies.py", &port.to_string()]);
    let master = Server::start_ended_by(Signal::SIGKILL, &mut command);
    collector.pool_of(master.pid(), 2);
    let mut stream = connect(&format!("127.0.0.1:{port}"));
    for _ in 0..2 {
        stream.write_all(b"question").unwrap();
        stream.read_exact(&mut [0; 3000]).unwrap();
    }
    let pool = answered(&collector, master.pid(), 2);
    assert_eq!(outcomes(&pool["requests"]), [("ok", 2)].into());
    let window = &pool["quantiles"]["request_duration_seconds"]["ok"]["start"];
    let (p50, longest) = (window["p50"].as_f64().unwrap(), window["max"].as_f64().unwrap());
    assert!(p50 >= 0.98 && longest < 1.0 + SETTLED, "{window}");
}
