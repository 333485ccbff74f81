//! What is said on connections beside requests: TLS, and HTTP/2 in it and in clear text.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{OPTIONS, SETTLED, outcomes};
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

/// Asks for a small page several times and for a large one, all over one connection; says so, and waits until it is told to
/// go on; asks once more and takes its leave.
const CLIENT: &str = "
const fs = require('fs'), http2 = require('http2'), https = require('https');
const [url, version] = process.argv.slice(2);
const session = version === '2' ? http2.connect(url, { rejectUnauthorized: false }) : null;
const agent = new https.Agent({ keepAlive: true, maxSockets: 1, rejectUnauthorized: false });
const ask = path => new Promise((resolve, reject) => {
    let length = 0;
    const read = stream => {
        stream.on('data', part => length += part.length);
        stream.on('end', () => resolve(length));
        stream.on('error', reject);
    };
    if (session) {
        const stream = session.request({ ':path': path });
        read(stream);
        stream.end();
    } else {
        https.get(url + path, { agent }, read).on('error', reject);
    }
});
const told = () => new Promise(resolve => {
    const look = setInterval(() => fs.existsSync('go') && resolve(clearInterval(look)), 20);
});
(async () => {
    for (let turn = 0; turn < 10; turn++) await ask('/small');
    fs.writeFileSync('length', String(await ask('/large')));
    fs.renameSync('length', 'paused');
    await told();
    await ask('/small');
    if (session) session.close(() => fs.writeFileSync('done', ''));
    else { agent.destroy(); fs.writeFileSync('done', ''); }
})();
";

const LARGE: usize = 4 << 20;

/// The pool of the server, once its worker has waited for so long, with nothing in flight, that all it was asked is counted.
fn at_rest(collector: &Collector, server: &Server) -> Value {
    let mut since = None;
    eventually("nothing is asked, and the worker waits", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, server.pid())?.clone();
        let worker = &pool["workers"][0];
        if worker["state"] != "idle" || pool["requests"]["in_flight"] != 0 || pool["requests"]["total"] == 0 {
            since = None;
            return None;
        }
        let active = worker["work"]["state_seconds"]["active"].as_f64()?;
        let uptime = stats["uptime_seconds"].as_f64()?;
        let (from, before) = *since.get_or_insert((uptime, active));
        if active != before {
            since = None;
        }
        (uptime > from + SETTLED).then_some(pool)
    })
}

fn nothing_is_in_flight_on_a_connection_that_rests(listen: &str, scheme: &str, version: &str) -> Value {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = directory_with(&[
        ("small", "small"),
        ("large", &"x".repeat(LARGE)),
        ("client.js", CLIENT),
        ("cert.pem", &certificate.cert.pem()),
        ("key.pem", &certificate.signing_key.serialize_pem()),
    ]);
    let (at, port) = (directory.path().display(), free_port());
    let http = format!(
        "server {{ listen 127.0.0.1:{port} {listen}; root {at}; access_log off;\n\
         ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem; }}"
    );
    let collector = Collector::start(&OPTIONS);
    let nginx = super::nginx::nginx(directory.path(), &http);
    collector.pool_of(nginx.pid(), 1);
    drop(super::connect(&format!("127.0.0.1:{port}")));
    let url = format!("{scheme}://127.0.0.1:{port}");
    let mut command = command_in(directory.path(), "node", &["client.js", &url, version]);
    let _client = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let read =
        eventually("it has what it asked for", || fs::read_to_string(directory.path().join("paused")).ok());
    assert_eq!(read, LARGE.to_string());
    let before = at_rest(&collector, &nginx)["requests"]["total"].clone();
    fs::write(directory.path().join("go"), "").unwrap();
    eventually("it has taken its leave", || directory.path().join("done").exists().then_some(()));
    let pool = at_rest(&collector, &nginx);
    assert!(pool["requests"]["total"].as_u64() > before.as_u64(), "{before}: {pool}");
    let outcomes = outcomes(&pool["requests"]);
    println!("{listen}: {outcomes:?}");
    assert!(!outcomes.contains_key("aborted"), "{outcomes:?}");
    for windows in pool["quantiles"]["request_duration_seconds"].as_object().unwrap().values() {
        let longest = windows["start"]["max"].as_f64().unwrap();
        assert!(longest < 1.0, "the pause belongs to no request: {windows}");
    }
    pool
}

#[test]
fn tls_connections_that_rest_have_nothing_in_flight_and_end_without_a_request() {
    let pool = nothing_is_in_flight_on_a_connection_that_rests("ssl", "https", "1");
    // Each request, and the one message of the client's handshake that is answered; what ends the handshake comes with the
    // first request or is answered by tickets.
    let total = pool["requests"]["total"].as_u64().unwrap();
    assert!((13..=14).contains(&total), "{pool}");
}

#[test]
fn http2_connections_that_rest_have_nothing_in_flight_and_end_without_a_request() {
    nothing_is_in_flight_on_a_connection_that_rests("ssl http2", "https", "2");
    nothing_is_in_flight_on_a_connection_that_rests("http2", "http", "2");
}
