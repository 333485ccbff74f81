//! Requests against what the servers themselves counted and measured.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::portable::schedule::answer_file;
use crate::schedule::check;
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, Workload, eventually, pool_of, worker};

pub(crate) const OPTIONS: [&str; 2] = ["--source=ebpf", "--probes.overhead-budget=0"];

/// A pool with a worker that serves at an address, and the file in which it tells what it measured.
fn serving(address: &str) -> (Workload, Collector, Pid, std::path::PathBuf) {
    doing(&format!("serve {address}"))
}

/// A pool with a worker of this behaviour, whose last word is the file in which it tells what it measured.
pub(crate) fn doing(behaviour: &str) -> (Workload, Collector, Pid, std::path::PathBuf) {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&OPTIONS);
    collector.pool_of(master.pid(), 2);
    let file = answer_file("serve");
    let pid = master.spawn(&format!("{behaviour} {}", file.display()));
    (master, collector, pid, file)
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = eventually("it listens", || TcpStream::connect(address).ok());
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends a request, and waits for an answer that ends so.
pub(crate) fn ask(stream: &mut (impl Read + Write), request: &str, end: &str) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    while !answer.ends_with(end) {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "{request}: closed after {answer:?}");
        answer += std::str::from_utf8(&buffer[..length]).unwrap();
    }
}

/// What a worker was asked, once the outcomes are these.
pub(crate) fn asked(collector: &Collector, master: Pid, pid: Pid, expected: &[(&str, u64)]) -> Value {
    let mut last = Value::Null;
    let found = || {
        last = worker(pool_of(&collector.stats(), master)?, pid)?.get("requests")?.clone();
        let counts = last["by_outcome"].as_object()?;
        let as_expected = counts.iter().all(|(outcome, count)| {
            let expected = expected.iter().find(|(name, _)| name == outcome);
            count.as_u64() == Some(expected.map_or(0, |(_, count)| *count))
        });
        (as_expected && last["in_flight"] == 0).then(|| last.clone())
    };
    eventually(&format!("requests of {pid} are {expected:?}"), found)
}

#[test]
fn requests_take_as_long_as_the_server_measured() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, file) = serving(&address);
    let forked = std::time::Instant::now();
    let mut stream = connect(&address);
    // Nobody asks before; how much longer ago it was forked is the time of one line through a pipe.
    let pause = std::time::Duration::from_millis(300);
    std::thread::sleep(pause);
    let asked_after = forked.elapsed();
    // Two humps and a long tail.
    for turn in 0..400 {
        let ms = match turn % 20 {
            0..13 => 2,
            13..19 => 15,
            _ => 50 + turn / 10,
        };
        ask(&mut stream, &format!("http {ms} 200\n"), "\r\n\r\n");
    }
    stream.write_all(b"tell\n").unwrap();
    let truth: Vec<u64> = eventually("it has told", || std::fs::read_to_string(&file).ok())
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(truth.len(), 400);
    drop(stream);
    let requests = asked(&collector, master.pid(), pid, &[("2xx", 400), ("aborted", 1)]);
    let windows = &requests["duration_seconds"]["2xx"];
    assert_eq!(windows["start"]["coverage"], 1.0);
    check("requests", windows, truth);
    let pool = pool_of(&collector.stats(), master.pid()).unwrap().clone();
    assert_eq!(pool["requests"]["by_outcome"], requests["by_outcome"]);
    assert_eq!(pool["requests"]["imbalance"], 3.0, "one of three has got all: {pool}");
    let first = &pool["quantiles"]["spawn_to_first_request_seconds"]["start"];
    assert_eq!(first["count"], 1, "{pool}");
    let ready = &pool["quantiles"]["spawn_to_ready_seconds"]["start"]["max"];
    let (first, asked_after) = (first["max"].as_f64().unwrap(), asked_after.as_secs_f64());
    assert!((first - asked_after).abs() < asked_after * 0.1, "{first} s, asked after {asked_after} s");
    assert!(ready.as_f64().unwrap() < first, "{pool}");
}

#[test]
fn each_request_has_the_outcome_that_it_had() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(&address);
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

#[test]
fn a_unix_socket_serves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (master, collector, pid, _) = serving(path.to_str().unwrap());
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

#[test]
fn a_request_in_flight_keeps_its_worker_active() {
    let address = format!("127.0.0.1:{}", free_port());
    let (master, collector, pid, _) = serving(&address);
    let mut stream = connect(&address);
    let state = |collector: &Collector| {
        let worker = worker(pool_of(&collector.stats(), master.pid())?, pid)?.clone();
        Some((worker["state"].clone(), worker["requests"]["in_flight"].clone(), worker))
    };
    stream.write_all(b"plain 600000\n").unwrap();
    eventually("it is at it", || state(&collector).filter(|(state, open, _)| state == "active" && open == 1));
    kill(pid, Signal::SIGKILL).unwrap();
    collector.certificate(pid);
    eventually("it was not answered", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        let requests = &pool["requests"];
        (requests["by_outcome"]["aborted"] == 1 && requests["in_flight"] == 0).then_some(())
    });
}

/// A pool's requests by outcome, once there are so many in all and none is in flight.
fn answered(collector: &Collector, master: Pid, count: u64) -> Value {
    let mut last = Value::Null;
    let found = || {
        last = pool_of(&collector.stats(), master)?.get("requests")?.clone();
        (last["total"] == count && last["in_flight"] == 0).then(|| last["by_outcome"].clone())
    };
    eventually(&format!("there were {count} requests"), found)
}

fn wrk(url: &str) {
    let output = Command::new("wrk").args(["-t1", "-c16", "-d2", url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn nginx_logs_as_many_requests_under_load() {
    let (port, upstream) = (free_port(), free_port());
    let directory = directory_with(&[("index.html", "hello\n")]);
    let at = directory.path().display();
    let text = format!(
        "worker_processes 2;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\n\
         http {{ log_format status '$status'; access_log {at}/access.log status buffer=64k flush=1s;\n\
         server {{ listen 127.0.0.1:{port}; root {at};\n\
         location /proxied {{ access_log {at}/proxied.log status; proxy_pass http://127.0.0.1:{upstream}/; }} }}\n\
         server {{ listen 127.0.0.1:{upstream}; access_log {at}/upstream.log status buffer=64k flush=1s;\n\
         return 204; }} }}\n"
    );
    std::fs::write(directory.path().join("nginx.conf"), text).unwrap();
    let collector = Collector::start(&OPTIONS);
    let mut command = command_in(directory.path(), "/usr/sbin/nginx", &["-g", "daemon off;"]);
    command.arg("-c").arg(directory.path().join("nginx.conf"));
    let nginx = Server::start(&mut command);
    collector.pool_of(nginx.pid(), 2);
    drop(connect(&format!("127.0.0.1:{port}")));
    wrk(&format!("http://127.0.0.1:{port}/"));
    wrk(&format!("http://127.0.0.1:{port}/nothing"));
    wrk(&format!("http://127.0.0.1:{port}/proxied"));
    let logged = || {
        // It writes what it has kept when it is told to open its logs anew.
        kill(nginx.pid(), Signal::SIGUSR1).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let mut counts = [0u64; 3];
        for file in ["access.log", "proxied.log", "upstream.log"] {
            let text = std::fs::read_to_string(directory.path().join(file)).unwrap();
            for line in text.lines() {
                match line {
                    "200" | "204" => counts[0] += 1,
                    "404" => counts[1] += 1,
                    "499" | "502" => counts[2] += 1,
                    other => panic!("{file}: {other}"),
                }
            }
        }
        counts
    };
    let counts = logged();
    assert!(counts[0] > 1000 && counts[1] > 1000, "{counts:?}");
    let outcomes = answered(&collector, nginx.pid(), counts.iter().sum());
    println!("nginx logged {counts:?}, seen {outcomes}");
    assert_eq!(outcomes["4xx"].as_u64(), Some(counts[1]));
    // Clients that leave at the end of a run take no answer: nginx finds them gone before it sends (499), or when it
    // does, and then logs the status that it meant to send.
    let (answered, aborted) = (outcomes["2xx"].as_u64().unwrap(), outcomes["aborted"].as_u64().unwrap());
    assert_eq!(answered + aborted, counts[0] + counts[2]);
    assert!(aborted >= counts[2] && counts[0] - answered <= 3 * 16, "{counts:?} {outcomes}");
}

#[test]
fn a_gunicorn_worker_is_active_while_it_answers() {
    let application = "import os, time\n\
        def app(environ, start_response):\n    \
            seconds = float(environ['QUERY_STRING'] or 0)\n    \
            time.sleep(seconds)\n    \
            start_response('200 OK', [('Content-Length', '2')])\n    \
            return [b'ok']\n";
    let directory = directory_with(&[("app.py", application)]);
    let port = free_port();
    let bind = format!("127.0.0.1:{port}");
    let collector = Collector::start(&OPTIONS);
    let mut command = command_in(directory.path(), "gunicorn", &["-w", "2", "-b", &bind, "app:app"]);
    let gunicorn = Server::start(&mut command);
    collector.pool_of(gunicorn.pid(), 2);
    let get = |seconds: &str| {
        let mut stream = connect(&bind);
        write!(stream, "GET /?{seconds} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream
    };
    let finish = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("ok"), "{text}");
    };
    for _ in 0..50 {
        finish(get("0.01"));
    }
    let long = get("3");
    eventually("one is active and one is not", || {
        let pool = pool_of(&collector.stats(), gunicorn.pid())?.clone();
        (pool["active"] == 1 && pool["requests"]["in_flight"] == 1).then_some(())
    });
    finish(long);
    answered(&collector, gunicorn.pid(), 51);
    let pool = pool_of(&collector.stats(), gunicorn.pid()).unwrap().clone();
    let quantiles = &pool["quantiles"]["request_duration_seconds"]["2xx"]["start"];
    let (p50, max) = (quantiles["p50"].as_f64().unwrap(), quantiles["max"].as_f64().unwrap());
    assert!((0.0100..0.0125).contains(&p50) && (3.0..3.06).contains(&max), "{quantiles}");
}
