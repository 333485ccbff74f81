//! nginx.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};

use super::{OPTIONS, SETTLED, answer, answered, connect, get, outcomes};
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

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
    let outcomes = answered(&collector, nginx.pid(), counts.iter().sum())["requests"]["by_outcome"].clone();
    println!("nginx logged {counts:?}, seen {outcomes}");
    let seen = |outcome: &str| outcomes[outcome].as_u64().unwrap();
    assert_eq!(seen("2xx") + seen("4xx") + seen("aborted"), counts.iter().sum::<u64>());
    // Clients that leave at the end of a run take no answer: nginx finds them gone before it sends (499), or when it
    // does, and then logs the status that it meant to send.
    assert!(seen("aborted") >= counts[2], "{counts:?} {outcomes}");
    // Of the first kind are two of the runs, the one that goes through two servers with as many clients at each.
    for (outcome, logged, clients) in [("2xx", counts[0], 3 * 16), ("4xx", counts[1], 16)] {
        assert!((logged - clients..=logged).contains(&seen(outcome)), "{counts:?} {outcomes}");
    }
}

/// A server with this in its `http` section, and the worker that it has.
pub(super) fn nginx(directory: &std::path::Path, http: &str) -> Server {
    let at = directory.display();
    let text = format!(
        "worker_processes 1;\nworker_rlimit_nofile {FILES};\npid {at}/pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections {FILES}; }}\nhttp {{ keepalive_requests 100000; {http} }}\n"
    );
    std::fs::write(directory.join("nginx.conf"), text).unwrap();
    let mut command = command_in(directory, "/usr/sbin/nginx", &["-g", "daemon off;", "-c"]);
    Server::start(command.arg(directory.join("nginx.conf")))
}

/// Descriptors that a test may need.
const FILES: u64 = 12_000;

/// Bytes that come one by one are one request, from the first one on; and a file that is sent without being read counts to the
/// byte.
#[test]
fn nginx_logs_as_many_bytes_and_as_long_requests() {
    const TIMES: usize = 25;
    let directory = directory_with(&[("index.html", &"x".repeat(3 << 20))]);
    let (at, port) = (directory.path().display(), free_port());
    let log = "log_format figures '$bytes_sent $request_length $request_time'";
    let server = format!("server {{ listen 127.0.0.1:{port}; root {at}; }}");
    let collector = Collector::start(&OPTIONS);
    let nginx =
        nginx(directory.path(), &format!("{log}; sendfile on; access_log {at}/access.log figures; {server}"));
    collector.pool_of(nginx.pid(), 1);
    let mut stream = connect(&format!("127.0.0.1:{port}"));
    for _ in 0..TIMES {
        get(&mut stream, "/");
    }
    for byte in b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(answer(&mut stream).0, 404);
    drop(stream);
    let requests = answered(&collector, nginx.pid(), TIMES as u64 + 1);
    let figures = &requests["requests"];
    assert_eq!(outcomes(figures), [("2xx", TIMES as u64), ("4xx", 1)].into());
    let text = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
    let column = |n: usize| -> Vec<f64> {
        text.lines().map(|line| line.split(' ').nth(n).unwrap().parse().unwrap()).collect()
    };
    assert_eq!(figures["transmit_bytes"].as_f64(), Some(column(0).iter().sum()), "{text}");
    assert_eq!(figures["receive_bytes"].as_f64(), Some(column(1).iter().sum()), "{text}");
    // It looks at its clock once a round, and logs milliseconds.
    let slow = column(2)[TIMES];
    let ours = requests["quantiles"]["request_duration_seconds"]["4xx"]["start"]["max"].as_f64().unwrap();
    assert!(slow > 1.5 && (ours - slow).abs() < 0.002 + slow * 0.016, "{ours} s, logged {slow} s");
}

#[test]
fn an_answer_of_nginx_goes_on_while_its_client_does_not_read() {
    let directory = directory_with(&[]);
    std::fs::File::create(directory.path().join("long")).unwrap().set_len(32 << 20).unwrap();
    let (at, port) = (directory.path().display(), free_port());
    let collector = Collector::start(&OPTIONS);
    let server = format!("server {{ listen 127.0.0.1:{port}; root {at}; }}");
    let log = format!("log_format took '$request_time'; access_log {at}/access.log took");
    let nginx = nginx(directory.path(), &format!("{log}; sendfile on; {server}"));
    collector.pool_of(nginx.pid(), 1);
    let mut stream = connect(&format!("127.0.0.1:{port}"));
    write!(stream, "GET /long HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let uptime = || collector.stats()["uptime_seconds"].as_f64().unwrap();
    let since = uptime();
    eventually("it has waited for room for long", || (uptime() > since + SETTLED).then_some(()));
    let pool = pool_of(&collector.stats(), nginx.pid()).unwrap().clone();
    let requests = &pool["requests"];
    assert_eq!((&requests["total"], &requests["in_flight"]), (&0.into(), &0.into()), "{pool}");
    answer(&mut stream);
    let pool = answered(&collector, nginx.pid(), 1);
    let took = std::fs::read_to_string(directory.path().join("access.log")).unwrap();
    let took: f64 = took.trim().parse().unwrap();
    let ours = pool["quantiles"]["request_duration_seconds"]["2xx"]["start"]["max"].as_f64().unwrap();
    assert!(took > SETTLED && (ours / took - 1.0).abs() < 0.02, "{ours} s, logged {took} s");
}

#[test]
fn ten_thousand_connections_that_idle_beside_a_busy_one_cost_nothing() {
    const IDLE: u64 = 10_000;
    const BUSY: u64 = 3000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let directory = directory_with(&[]);
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let collector = Collector::start(&OPTIONS);
    let server = format!("access_log off; server {{ listen {address} backlog=4096; return 200 ok; }}");
    let nginx = nginx(directory.path(), &server);
    collector.pool_of(nginx.pid(), 1);
    let mut stream = connect(&address);
    let mut ask_often = || (0..BUSY).for_each(|_| _ = get(&mut stream, "/"));
    ask_often();
    let pool = answered(&collector, nginx.pid(), BUSY);
    let series = || -> Vec<String> {
        let text = collector.text("/metrics", "text/plain");
        // Others on the host have pools, too.
        let its = text.lines().filter(|line| line.contains(&format!("{{pool={}", pool["name"])));
        its.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let resident = || -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", collector.pid())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = (series(), resident());
    assert!(!before.0.is_empty());
    // Half of them have said nothing yet.
    let idle: Vec<TcpStream> = (0..IDLE)
        .map(|turn| {
            let mut stream = connect(&address);
            if turn % 2 == 0 {
                get(&mut stream, "/");
            }
            stream
        })
        .collect();
    ask_often();
    let count = 2 * BUSY + IDLE / 2;
    let pool = answered(&collector, nginx.pid(), count);
    assert_eq!(outcomes(&pool["requests"]), [("2xx", count)].into());
    let after = (series(), resident());
    let new: Vec<_> = after.0.iter().filter(|series| !before.0.contains(series)).collect();
    assert!(new.is_empty(), "{new:#?}");
    println!("resident: {} and {} bytes", before.1, after.1);
    assert!(after.1 < before.1 + (1 << 20), "{} and {} bytes are resident", before.1, after.1);
    let metric = |series: &str| collector.metric(series);
    eventually("none has a place", || {
        (metric("collector_map_entries{map=\"requests\"}")? == 0.0).then_some(())
    });
    assert_eq!(metric("collector_losses_total{reason=\"request_not_followed\"}"), Some(0.0));
    // They are all still there, and can ask.
    for mut stream in idle.into_iter().take(100) {
        get(&mut stream, "/");
    }
    answered(&collector, nginx.pid(), count + 100);
}
