//! nginx.

use std::process::Command;

use nix::sys::signal::{Signal, kill};

use super::{OPTIONS, answered, connect};
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::Collector;

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
    assert_eq!(outcomes["4xx"].as_u64(), Some(counts[1]));
    // Clients that leave at the end of a run take no answer: nginx finds them gone before it sends (499), or when it
    // does, and then logs the status that it meant to send.
    let (answered, aborted) = (outcomes["2xx"].as_u64().unwrap(), outcomes["aborted"].as_u64().unwrap());
    assert_eq!(answered + aborted, counts[0] + counts[2]);
    assert!(aborted >= counts[2] && counts[0] - answered <= 3 * 16, "{counts:?} {outcomes}");
}
