//! Node.

use nix::sys::signal::Signal;

use super::{OPTIONS, answered, check_each_worker, load, outcomes, pauses, within_what_logs_say};
use crate::schedule::check_within;
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::Collector;

/// The primary takes the connections and hands them to its workers. They answer with their pid after so many ms as they are
/// asked for, and write for how many ns they were at it to a file.
const CLUSTER: &str = "
const cluster = require('cluster'), fs = require('fs'), http = require('http');
if (cluster.isPrimary) {
    for (let i = 0; i < 2; i++) cluster.fork();
} else {
    const log = fs.openSync('took.log', 'a');
    http.createServer((request, response) => {
        const begin = process.hrtime.bigint();
        setTimeout(() => {
            response.end(String(process.pid));
            fs.writeSync(log, `${process.hrtime.bigint() - begin}\\n`);
        }, Number(request.url.slice(2)));
    }).listen(Number(process.argv[2]), '127.0.0.1');
}
";

#[test]
fn workers_of_a_node_cluster_answer_as_many_as_their_clients_got() {
    const CONNECTIONS: u64 = 12;
    const TIMES: u64 = 50;
    let directory = directory_with(&[("chat.js", CLUSTER)]);
    let port = free_port();
    let collector = Collector::start(&OPTIONS);
    let mut command = command_in(directory.path(), "node", &["chat.js", &port.to_string()]);
    let node = Server::start_ended_by(Signal::SIGKILL, &mut command);
    collector.pool_of(node.pid(), 2);
    let answers =
        load(&format!("127.0.0.1:{port}"), CONNECTIONS, TIMES, |turn| format!("/?{}", pauses(turn))).by_pid;
    assert_eq!(answers.len(), 2, "both were asked: {answers:?}");
    let pool = answered(&collector, node.pid(), CONNECTIONS * TIMES);
    assert_eq!(outcomes(&pool["requests"]), [("2xx", CONNECTIONS * TIMES)].into());
    check_each_worker(&pool, &answers);
    let truth = super::logged(&directory.path().join("took.log"), (CONNECTIONS * TIMES) as usize);
    check_within(within_what_logs_say, "node", &pool["quantiles"]["request_duration_seconds"]["2xx"], truth);
}
