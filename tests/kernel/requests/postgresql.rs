//! PostgreSQL, where whoever is asked lives as long as the connection.

use std::path::Path;

use super::{OPTIONS, answered, outcomes, within_what_logs_say};
use crate::schedule::check_within;
use crate::servers::postgresql::Cluster;
use crate::support::{Collector, eventually};

/// What the server has logged: connections, and how long each statement took, ns.
fn log(path: &Path) -> (u64, Vec<u64>) {
    let text = std::fs::read_to_string(path).unwrap();
    let connections = text.lines().filter(|line| line.contains("connection authorized")).count();
    // Of the parts of the extended protocol those that run a statement.
    let run = text.lines().filter(|line| line.contains(" ms  statement:") || line.contains(" ms  execute"));
    let took = run.map(|line| {
        let ms = line.split("duration: ").nth(1).unwrap().split(' ').next().unwrap();
        (ms.parse::<f64>().unwrap() * 1e6) as u64
    });
    (connections as u64, took.collect())
}

/// Each query is a request: a message, or several that are sent together and answered together. So is the greeting of a
/// connection, which the server answers when it knows who is there; and its goodbye, which asks for nothing.
#[test]
fn each_query_of_a_pool_of_connections_is_a_request() {
    const CONNECTIONS: u64 = 6;
    const TIMES: u64 = 80;
    let cluster = Cluster::new();
    let script = "\\set ms random_exponential(2, 150, 6)\nselect pg_sleep(:ms / 1000.0);\n";
    std::fs::write(cluster.directory.path().join("script.sql"), script).unwrap();
    let server = cluster.start(&[
        "logging_collector=on",
        "log_directory=..",
        "log_filename=log",
        "log_connections=on",
        "log_min_duration_statement=0",
        "log_line_prefix=",
    ]);
    cluster.wait_ready();
    let collector = Collector::start(&OPTIONS);
    eventually("the server is known", || {
        let stats = collector.stats();
        crate::support::pool_of(&stats, server.pid()).map(|_| ())
    });
    let path = cluster.directory.path().join("log");
    let (connections_before, before) = log(&path);
    for protocol in ["simple", "extended"] {
        let (clients, times) = (CONNECTIONS.to_string(), TIMES.to_string());
        let output = cluster
            .command("pgbench")
            .args(["-n", "-f", "script.sql", "-M", protocol, "-c", &clients, "-t", &times, "postgres"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (connections, took) = log(&path);
    let connections = connections - connections_before;
    let took = took[before.len()..].to_vec();
    assert_eq!(took.len() as u64, 2 * CONNECTIONS * TIMES, "one statement each");
    assert!((2 * CONNECTIONS..=2 * CONNECTIONS + 2).contains(&connections), "pgbench may look around first");
    let asked = took.len() as u64 + connections;
    // What ends a session asks for nothing.
    let pool = answered(&collector, server.pid(), asked);
    assert_eq!(outcomes(&pool["requests"]), [("ok", asked)].into());
    check_within(
        within_what_logs_say,
        "postgresql",
        &pool["quantiles"]["request_duration_seconds"]["ok"],
        took,
    );
}
