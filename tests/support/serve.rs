//! A worker that answers over sockets as it is asked to, and measures how long that takes: the ground truth of requests.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::time::ClockId;

use crate::waits::{Call, answer, now, thread_cpu_ns, wait_asleep, wait_in_lock, waited_for_cpu};

/// A connection of either family.
trait Stream: Read + Write + AsRawFd {}
impl<T: Read + Write + AsRawFd> Stream for T {}

/// Takes connections one after the other, at a path or at a port of the loopback interface, and does on each what it says
/// until it ends.
pub(crate) fn serve(address: &str, file: &str) {
    let mut took = Vec::new();
    if address.starts_with('/') {
        let listener = UnixListener::bind(address).expect("a path that is free");
        for stream in listener.incoming() {
            converse(&mut stream.expect("a connection"), file, &mut took);
        }
    } else {
        let listener = TcpListener::bind(address).expect("a port that is free");
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            converse(&mut stream, file, &mut took);
        }
    }
}

/// The same, but for half a second it has something else to do, when it listens already.
pub(crate) fn serve_late(address: &str, file: &str) {
    let listener = TcpListener::bind(address).expect("a port that is free");
    let until_ns = thread_cpu_ns() + 500_000_000;
    while thread_cpu_ns() < until_ns {}
    for stream in listener.incoming() {
        converse(&mut stream.expect("a connection"), file, &mut Vec::new());
    }
}

/// The same, each connection in a thread of its own.
pub(crate) fn serve_in_threads(address: &str, file: &str) {
    let took = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind(address).expect("a port that is free");
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let (took, file) = (Arc::clone(&took), file.to_owned());
        std::thread::spawn(move || {
            let mut own = Vec::new();
            converse(&mut stream, &file, &mut own);
            let mut took = took.lock().expect("no panic holds it");
            took.append(&mut own);
            answer(&file, &took);
        });
    }
}

/// Each request is a line, in as many parts as it comes: words, with a time in ms first.
fn converse(stream: &mut dyn Stream, file: &str, took: &mut Vec<u64>) {
    let descriptor = stream.as_raw_fd();
    loop {
        let Some((text, begin)) = line(stream) else { return };
        let mut sent = begin;
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |word: &str| -> u64 { word.parse().expect("a number") };
        let pause = |word: &str| std::thread::sleep(Duration::from_millis(number(word)));
        let mut kept_ns = 0;
        let mut send = |bytes: &mut dyn FnMut(&mut dyn Stream)| {
            let before_ns = waited_for_cpu();
            bytes(stream);
            sent = Instant::now();
            // Who is woken up by an answer may take the CPU of who has sent it: that is after the answer.
            kept_ns = waited_for_cpu() - before_ns;
        };
        // The client may be gone.
        let mut say = |text: &str| send(&mut |stream| _ = stream.write_all(text.as_bytes()));
        match words[..] {
            ["http", ms, status] => {
                pause(ms);
                say(&format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n"));
            }
            // What is told of it is how long it took until its answer was to be sent, and when that was done.
            ["stamped", ms] => {
                pause(ms);
                took.push(begin.elapsed().as_nanos() as u64);
                say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                took.push(now(ClockId::CLOCK_MONOTONIC));
                continue;
            }
            ["plain", ms] => {
                pause(ms);
                say("pong\n");
            }
            // The head at once, the rest later.
            ["stream", ms] => {
                say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
                pause(ms);
                say("ok");
            }
            ["continue", ms] => {
                say("HTTP/1.1 100 Continue\r\n\r\n");
                pause(ms);
                say("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
            }
            // Two answers to what came as one.
            ["both", ms] => {
                say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                pause(ms);
                say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
            }
            // Nothing of it leaves before all of it is there: the head first and then the rest, all at once, or two answers.
            ["corked", ms, parts] => {
                cork(descriptor, true);
                match parts {
                    "file" => {
                        say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
                        pause(ms);
                        say("ok");
                    }
                    "alone" => {
                        pause(ms);
                        say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                    }
                    _ => {
                        say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                        pause(ms);
                        say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                    }
                }
                cork(descriptor, false);
            }
            // So long on a CPU, asleep and in a lock. What it was is told in this order, after the first what was charged to it as
            // time on a CPU in the calls that blocked, and last how long it waited for a CPU. What was none of these it was on a
            // CPU, also if the hypervisor stole it: no clock of a thread has that.
            ["mix", cpu, sleep, lock] => {
                let before_ns = waited_for_cpu();
                let until_ns = thread_cpu_ns() + cpu.parse::<u64>().expect("a time") * 1_000_000;
                while thread_cpu_ns() < until_ns {}
                let ms = |word: &str| Duration::from_millis(word.parse().expect("a time"));
                let calls = [wait_asleep(ms(sleep)), wait_in_lock(ms(lock))];
                let waited_ns = waited_for_cpu() - before_ns;
                say("mixed\n");
                let passed_ns = begin.elapsed().as_nanos() as u64;
                // Who is woken up by the answer may take the CPU, which is not part of the request.
                let all = |of: fn(&Call) -> u64| calls.iter().map(of).sum::<u64>();
                let waited_outside_ns = waited_for_cpu() - before_ns - all(|call| call.waited_ns);
                took.push(passed_ns.saturating_sub(all(|call| call.passed_ns) + waited_outside_ns));
                took.push(all(|call| call.used_ns));
                took.extend(calls.map(|call| call.blocked_ns));
                took.push(waited_ns);
                continue;
            }
            // More than a connection holds, by so many calls.
            ["flood", kib, calls] => {
                let part = "x".repeat(number(kib) as usize * 1024);
                (0..number(calls)).for_each(|_| say(&part));
            }
            ["sendfile", kib] => send(&mut |_| send_file(descriptor, number(kib) as usize * 1024)),
            ["splice", kib] => send(&mut |_| splice(descriptor, number(kib) as usize * 1024)),
            ["close", ms] => {
                pause(ms);
                return;
            }
            ["tell"] => answer(file, took),
            _ => panic!("unknown request {text:?}"),
        }
        took.push(((sent - begin).as_nanos() as u64).saturating_sub(kept_ns));
    }
}

/// A line, and when its first byte was received.
fn line(stream: &mut dyn Stream) -> Option<(String, Instant)> {
    let mut buffer = [0; 4096];
    let mut text = Vec::new();
    let mut begin = None;
    while !text.ends_with(b"\n") {
        let length = stream.read(&mut buffer).unwrap_or(0);
        begin.get_or_insert_with(Instant::now);
        if length == 0 {
            return None;
        }
        text.extend_from_slice(&buffer[..length]);
    }
    Some((String::from_utf8_lossy(&text).into_owned(), begin?))
}

/// Holds back what is sent, or lets it go.
fn cork(descriptor: RawFd, on: bool) {
    // SAFETY: open as long as its stream, which our caller has.
    let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
    socket2::SockRef::from(&socket).set_tcp_cork(on).expect("a TCP socket");
}

/// Zeros of a file, without a byte of them in this process.
fn send_file(to: RawFd, length: usize) {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(length as u64).expect("room");
    let mut sent = 0;
    while sent < length {
        // SAFETY: no pointers.
        let more = unsafe { libc::sendfile(to, file.as_raw_fd(), std::ptr::null_mut(), length - sent) };
        sent += usize::try_from(more).expect("it is sent");
    }
}

/// The same by way of a pipe.
fn splice(to: RawFd, length: usize) {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(length as u64).expect("room");
    let (near, far) = nix::unistd::pipe().expect("a pipe");
    let null = std::ptr::null_mut;
    let splice = |from: RawFd, to: RawFd, length: usize| {
        // SAFETY: no pointers.
        let moved = unsafe { libc::splice(from, null(), to, null(), length, 0) };
        usize::try_from(moved).expect("it is moved")
    };
    let mut sent = 0;
    while sent < length {
        let mut held = splice(file.as_raw_fd(), far.as_raw_fd(), length - sent);
        sent += held;
        while held > 0 {
            held -= splice(near.as_raw_fd(), to, held);
        }
    }
}
