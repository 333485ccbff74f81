//! A worker that answers over sockets as it is asked to, and measures how long that takes: the ground truth of requests.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::waits::{answer, blocked_in_lock, blocked_in_sleep, thread_cpu_ns, waited_for_cpu};

/// A connection of either family.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

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

/// Each request is words, with a time in ms first, as far as one read gets it.
fn converse(stream: &mut dyn Stream, file: &str, took: &mut Vec<u64>) {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).unwrap_or(0);
        let begin = Instant::now();
        let mut sent = begin;
        if length == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&buffer[..length]);
        let words: Vec<&str> = text.split_whitespace().collect();
        let pause = |word: &str| std::thread::sleep(Duration::from_millis(word.parse().expect("a time")));
        let mut kept_ns = 0;
        let mut say = |text: &str| {
            let before_ns = waited_for_cpu();
            // The client may be gone.
            let _ = stream.write_all(text.as_bytes());
            sent = Instant::now();
            // Who is woken up by an answer may take the CPU of who has sent it: that is after the answer.
            kept_ns = waited_for_cpu() - before_ns;
        };
        match words[..] {
            ["http", ms, status] => {
                pause(ms);
                say(&format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n"));
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
            // So long on a CPU, asleep and in a lock; what it was is told in this order, and how long it waited for a CPU.
            ["mix", cpu, sleep, lock] => {
                let (cpu_ns, waited_ns) = (thread_cpu_ns(), waited_for_cpu());
                let until_ns = cpu_ns + cpu.parse::<u64>().expect("a time") * 1_000_000;
                while thread_cpu_ns() < until_ns {}
                let ms = |word: &str| Duration::from_millis(word.parse().expect("a time"));
                let blocked = [blocked_in_sleep(ms(sleep)), blocked_in_lock(ms(lock))];
                let waited_ns = waited_for_cpu() - waited_ns;
                say("mixed\n");
                took.push(thread_cpu_ns() - cpu_ns);
                took.extend(blocked);
                took.push(waited_ns);
                continue;
            }
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
