//! gunicorn.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::{OPTIONS, answered, connect};
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

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
    let pool = answered(&collector, gunicorn.pid(), 51);
    let quantiles = &pool["quantiles"]["request_duration_seconds"]["2xx"]["start"];
    let (p50, max) = (quantiles["p50"].as_f64().unwrap(), quantiles["max"].as_f64().unwrap());
    assert!((0.0100..0.0125).contains(&p50) && (3.0..3.06).contains(&max), "{quantiles}");
}
