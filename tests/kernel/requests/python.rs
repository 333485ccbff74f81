//! gunicorn and uvicorn.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{
    OPTIONS, SETTLED, answered, check_each_worker, connect, get, load, logged, outcomes, pauses,
    within_what_logs_say,
};
use crate::schedule::check_within;
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

/// Answers with its pid after so many ms as it is asked for. `/hang` waits for a server at a port of the loopback
/// interface that never says a word, for ever.
const WSGI: &str = "\
import os, socket, time

def app(environ, start_response):
    argument = int(environ['QUERY_STRING'] or 0)
    if environ['PATH_INFO'] == '/hang':
        socket.create_connection(('127.0.0.1', argument)).recv(1)
    while environ['wsgi.input'].read(65536):
        pass
    time.sleep(argument / 1000)
    body = str(os.getpid()).encode()
    start_response('200 OK', [('Content-Length', str(len(body)))])
    return [body]
";

fn gunicorn(directory: &std::path::Path, bind: &str, arguments: &[&str]) -> Server {
    let mut command = command_in(directory, "/usr/bin/gunicorn", &["-w", "2", "-b", bind]);
    Server::start(command.args(arguments).arg("app:app"))
}

#[test]
fn a_gunicorn_worker_is_active_while_it_answers() {
    let directory = directory_with(&[("app.py", WSGI)]);
    let bind = format!("127.0.0.1:{}", free_port());
    let collector = Collector::start(&OPTIONS);
    let gunicorn = gunicorn(directory.path(), &bind, &[]);
    collector.pool_of(gunicorn.pid(), 2);
    let ask = |ms: &str| {
        let mut stream = connect(&bind);
        write!(stream, "GET /?{ms} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream
    };
    let finish = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    };
    for _ in 0..50 {
        finish(ask("10"));
    }
    let long = ask("3000");
    eventually("one is active and one is not", || {
        let pool = pool_of(&collector.stats(), gunicorn.pid())?.clone();
        (pool["active"] == 1 && pool["requests"]["in_flight"] == 1).then_some(())
    });
    finish(long);
    let pool = answered(&collector, gunicorn.pid(), 51);
    let quantiles = &pool["quantiles"]["request_duration_seconds"]["2xx"]["start"];
    let (p50, max) = (quantiles["p50"].as_f64().unwrap(), quantiles["max"].as_f64().unwrap());
    assert!((0.0100..0.0125).contains(&p50) && (3.0..3.06).contains(&max), "{quantiles}");
}

#[test]
fn gunicorn_with_threads_logs_as_many_requests_and_as_long_ones() {
    const CONNECTIONS: u64 = 8;
    const TIMES: u64 = 60;
    let directory = directory_with(&[("app.py", WSGI)]);
    let log = directory.path().join("access.log");
    let bind = format!("127.0.0.1:{}", free_port());
    let collector = Collector::start(&OPTIONS);
    let arguments = ["--worker-class", "gthread", "--threads", "4", "--keep-alive", "30"];
    // Microseconds from when it has read the head of the request to when it has sent the answer.
    let access = ["--access-logfile", "access.log", "--access-logformat", "%(D)s"];
    let gunicorn = gunicorn(directory.path(), &bind, &[&arguments[..], &access].concat());
    collector.pool_of(gunicorn.pid(), 2);
    let answers = load(&bind, CONNECTIONS, TIMES, |turn| format!("/?{}", pauses(turn))).by_pid;
    assert_eq!(answers.values().sum::<u64>(), CONNECTIONS * TIMES);
    let pool = answered(&collector, gunicorn.pid(), CONNECTIONS * TIMES);
    assert_eq!(outcomes(&pool["requests"]), [("2xx", CONNECTIONS * TIMES)].into());
    check_each_worker(&pool, &answers);
    let truth_us = logged(&log, (CONNECTIONS * TIMES) as usize);
    let truth = truth_us.iter().map(|us| us * 1000).collect();
    let windows = &pool["quantiles"]["request_duration_seconds"]["2xx"];
    assert_eq!(windows["start"]["coverage"], 1.0);
    check_within(within_what_logs_say, "gthread", windows, truth);
    // A body that comes in many parts, long after its head and after a pause, belongs to the request.
    let mut stream = connect(&bind);
    let body = vec![b'x'; 1 << 20];
    write!(stream, "POST /?0 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 2 * body.len()).unwrap();
    stream.write_all(&body).unwrap();
    eventually("it waits for the rest", || {
        let pool = pool_of(&collector.stats(), gunicorn.pid())?.clone();
        (pool["requests"]["in_flight"] == 1).then_some(())
    });
    stream.write_all(&body).unwrap();
    super::answer(&mut stream);
    get(&mut stream, "/?0");
    let pool = answered(&collector, gunicorn.pid(), CONNECTIONS * TIMES + 2);
    let received = pool["requests"]["receive_bytes"].as_u64().unwrap();
    assert!(received > 2 * body.len() as u64, "{pool}");
    let longest_us = *logged(&log, (CONNECTIONS * TIMES) as usize + 2).iter().max().unwrap();
    let longest = pool["quantiles"]["request_duration_seconds"]["2xx"]["start"]["max"].as_f64().unwrap();
    let truth = longest_us as f64 / 1e6;
    assert!((longest - truth).abs() <= within_what_logs_say(truth), "{longest} s, logged {truth} s");
}

#[test]
fn a_hung_gunicorn_worker_is_stuck_while_the_other_one_serves() {
    let directory = directory_with(&[("app.py", WSGI), ("collector.yml", "stuck_after: 2s\n")]);
    let bind = format!("127.0.0.1:{}", free_port());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = silent.local_addr().unwrap();
    let config = format!("--config.file={}", directory.path().join("collector.yml").display());
    let collector = Collector::start(&[&OPTIONS[..], &[&config]].concat());
    let gunicorn = gunicorn(directory.path(), &bind, &["--timeout", "12"]);
    collector.pool_of(gunicorn.pid(), 2);
    // Whoever gets work before it has ever waited for any is still starting.
    eventually("both wait for work", || {
        let pool = pool_of(&collector.stats(), gunicorn.pid())?.clone();
        (pool["ready"].as_u64()? + pool["idle"].as_u64()? == 2).then_some(())
    });
    // Whoever is asked that takes no other connection.
    let mut hung = connect(&bind);
    write!(hung, "GET /hang?{} HTTP/1.1\r\nHost: x\r\n\r\n", backend.port()).unwrap();
    let (_open, _) = silent.accept().unwrap();
    let (served, pool) = {
        let mut served = 0;
        let pool = eventually("it is stuck", || {
            get(&mut connect(&bind), "/?1");
            served += 1;
            let pool = pool_of(&collector.stats(), gunicorn.pid())?.clone();
            (pool["stuck"] == 1).then_some(pool)
        });
        (served, pool)
    };
    let workers = pool["workers"].as_array().unwrap();
    let stuck = workers.iter().find(|worker| worker["flag"]["name"] == "stuck").unwrap();
    assert_eq!((&stuck["state"], &stuck["requests"]["in_flight"]), (&"active".into(), &1.into()), "{pool}");
    assert!(workers.iter().all(|worker| worker == stuck || worker["flag"].is_null()), "{pool}");
    let doing = &stuck["flag"]["doing"];
    let thread = &doing["threads"][0];
    assert_eq!((&thread["syscall"], &thread["state"]), (&"recvfrom".into(), &"S".into()), "{doing}");
    let stack = thread["kernel_stack"].as_array().unwrap();
    assert!(stack.iter().any(|frame| frame.as_str().unwrap().starts_with("tcp_recvmsg+")), "{doing}");
    let sockets = doing["sockets"].as_array().unwrap();
    let whom = sockets.iter().find(|socket| socket["remote"] == backend.to_string());
    assert_eq!(whom.unwrap()["state"], "ESTABLISHED", "{doing}");
    // The master ends who has not been heard of for too long.
    let pid = Pid::from_raw(stuck["pid"].as_i64().unwrap() as i32);
    let certificate = collector.certificate(pid);
    assert_eq!(certificate["exit_code"], 1, "{certificate}");
    let pool = answered(&collector, gunicorn.pid(), served + 1);
    assert_eq!(outcomes(&pool["requests"]), [("2xx", served), ("aborted", 1)].into());
    assert!(served > 10, "the other one has answered {served} meanwhile");
}

/// Answers with its pid after so many ms as it is asked for, and writes for how many ns it was at it to a file: from
/// when uvicorn was given what was received. The application is called later, once the loop has received from all other
/// connections that have something.
const ASGI: &str = "\
import asyncio, os, time
from uvicorn.protocols.http.auto import AutoHTTPProtocol

log = os.open('took.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
began = {}
data_received = AutoHTTPProtocol.data_received

def stamped(self, data):
    began[self.client] = time.monotonic_ns()
    data_received(self, data)

AutoHTTPProtocol.data_received = stamped

async def app(scope, receive, send):
    begin = began[scope['client']]
    await asyncio.sleep(int(scope['query_string'] or 0) / 1000)
    body = str(os.getpid()).encode()
    headers = [(b'content-length', str(len(body)).encode())]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})
    os.write(log, b'%d\\n' % (time.monotonic_ns() - begin))
";

#[test]
fn uvicorn_has_many_requests_in_flight_on_one_thread() {
    const CONNECTIONS: u64 = 24;
    const TIMES: u64 = 25;
    let directory = directory_with(&[("app.py", ASGI)]);
    let port = free_port();
    let bind = format!("127.0.0.1:{port}");
    let collector = Collector::start(&OPTIONS);
    let arguments = ["--workers", "2", "--lifespan", "off", "--no-access-log", "--port"];
    let mut command = command_in(directory.path(), "/usr/bin/uvicorn", &arguments);
    let uvicorn = Server::start_ended_by(Signal::SIGTERM, command.args([&port.to_string(), "app:app"]));
    drop(connect(&bind));
    collector.pool_of(uvicorn.pid(), 2);
    let answers = load(&bind, CONNECTIONS, TIMES, |turn| format!("/?{}", pauses(turn))).by_pid;
    let pool = answered(&collector, uvicorn.pid(), CONNECTIONS * TIMES);
    assert_eq!(outcomes(&pool["requests"]), [("2xx", CONNECTIONS * TIMES)].into());
    check_each_worker(&pool, &answers);
    let truth = logged(&directory.path().join("took.log"), (CONNECTIONS * TIMES) as usize);
    check_within(
        within_what_logs_say,
        "uvicorn",
        &pool["quantiles"]["request_duration_seconds"]["2xx"],
        truth,
    );
    // All at once: each is in flight until it is answered, whatever the others do.
    let mut long: Vec<_> = (0..CONNECTIONS).map(|_| connect(&bind)).collect();
    for stream in &mut long {
        write!(stream, "GET /?3000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    let pool = eventually("all are in flight", || {
        let pool = pool_of(&collector.stats(), uvicorn.pid())?.clone();
        (pool["requests"]["in_flight"] == CONNECTIONS).then_some(pool)
    });
    let workers = pool["workers"].as_array().unwrap();
    for worker in workers.iter().filter(|worker| worker["requests"]["in_flight"] != 0) {
        assert_eq!(worker["state"], "active", "{worker}");
    }
    for stream in &mut long {
        super::answer(stream);
    }
    answered(&collector, uvicorn.pid(), CONNECTIONS * (TIMES + 1));
}

/// Answers with so many KiB, by one call of an application that does not wait until there is room for them.
const LONG: &str = "\
async def app(scope, receive, send):
    body = b'x' * (int(scope['query_string']) * 1024)
    headers = [(b'content-length', str(len(body)).encode())]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})
";

/// An event loop sends what there is room for, and waits for more room before it tries again.
#[test]
fn an_answer_of_uvicorn_goes_on_while_its_client_does_not_read() {
    let directory = directory_with(&[("app.py", LONG)]);
    let port = free_port();
    let bind = format!("127.0.0.1:{port}");
    let collector = Collector::start(&OPTIONS);
    let arguments = ["--workers", "2", "--lifespan", "off", "--no-access-log", "--port"];
    let mut command = command_in(directory.path(), "/usr/bin/uvicorn", &arguments);
    let uvicorn = Server::start_ended_by(Signal::SIGTERM, command.args([&port.to_string(), "app:app"]));
    let mut stream = connect(&bind);
    collector.pool_of(uvicorn.pid(), 2);
    let begin = Instant::now();
    write!(stream, "GET /?32768 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    eventually("it sends", || stream.peek(&mut [0]).is_ok_and(|length| length > 0).then_some(()));
    let uptime = || collector.stats()["uptime_seconds"].as_f64().unwrap();
    let since = uptime();
    eventually("it has waited for room for long", || (uptime() > since + SETTLED).then_some(()));
    let pool = pool_of(&collector.stats(), uvicorn.pid()).unwrap().clone();
    assert_eq!(pool["requests"]["total"], 0, "{pool}");
    super::answer(&mut stream);
    let took = begin.elapsed().as_secs_f64();
    let pool = answered(&collector, uvicorn.pid(), 1);
    let window = &pool["quantiles"]["request_duration_seconds"]["2xx"]["start"];
    // A figure is right within 1.6 %.
    assert!((SETTLED..took * 1.02).contains(&window["max"].as_f64().unwrap()), "{took} s: {window}");
}

/// The master takes connections and hands them to its workers in turn, as those of descriptors to be served.
const HANDS_OVER: &str = "\
import os, socket, sys

def work(channel):
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 16, 1)
        if not message:
            break
        with socket.socket(fileno=descriptors[0]) as connection:
            while (text := connection.recv(4096)):
                while not text.endswith(b'\\r\\n\\r\\n'):
                    text += connection.recv(4096)
                body = str(os.getpid()).encode()
                connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s' % (len(body), body))
    os._exit(0)

listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
channels = []
for _ in range(2):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.fork() == 0:
        work(theirs)
    channels.append(ours)
turn = 0
while True:
    connection, _ = listener.accept()
    socket.send_fds(channels[turn % 2], [b'take'], [connection.fileno()])
    connection.close()
    turn += 1
";

/// What the master has accepted belongs to who reads it; and what it says to its workers is no request.
#[test]
fn a_connection_that_was_handed_over_counts_at_its_worker() {
    let directory = directory_with(&[("shop.py", HANDS_OVER)]);
    let port = free_port();
    let bind = format!("127.0.0.1:{port}");
    let collector = Collector::start(&OPTIONS);
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["shop.py", &port.to_string()]);
    let server = Server::start_ended_by(Signal::SIGKILL, &mut command);
    collector.pool_of(server.pid(), 2);
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..20 {
        for (pid, count) in load(&bind, 1, 5, |_| "/".to_owned()).by_pid {
            *answers.entry(pid).or_default() += count;
        }
    }
    assert_eq!(answers.values().copied().collect::<Vec<u64>>(), [50, 50]);
    let pool = answered(&collector, server.pid(), 100);
    assert_eq!(outcomes(&pool["requests"]), [("2xx", 100)].into());
    check_each_worker(&pool, &answers);
}
