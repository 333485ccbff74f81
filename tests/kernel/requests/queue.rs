//! Workers that are asked nothing, but ask: consumers of a queue.

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{OPTIONS, blocked_in, outcomes};
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

/// Takes jobs, which say how many ms they take, from a list, and writes who was at which to a file.
const CONSUMER: &str = "\
import os, sys, time
import redis

def consume():
    queue = redis.Redis(port=int(sys.argv[1]))
    log = os.open('done.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        _, job = queue.blpop('jobs')
        time.sleep(int(job) / 1000)
        os.write(log, b'%d\\n' % os.getpid())

for _ in range(2):
    if os.fork() == 0:
        consume()
os.wait()
";

#[test]
fn consumers_of_a_redis_list_are_asked_nothing_and_have_a_span_for_each_job() {
    const JOBS: u64 = 60;
    let port = free_port();
    let config =
        "pools:\n  - name: consumers\n    match: {cmdline: 'consumer\\.py'}\n    idle_in: [poll, network]\n";
    let directory = directory_with(&[("consumer.py", CONSUMER), ("collector.yml", config)]);
    let arguments = ["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()];
    let mut command = command_in(directory.path(), "/usr/bin/redis-server", &arguments);
    let _redis = Server::start_ended_by(Signal::SIGTERM, &mut command);
    drop(super::connect(&format!("127.0.0.1:{port}")));
    let config = format!("--config.file={}", directory.path().join("collector.yml").display());
    let collector = Collector::start(&[&OPTIONS[..], &[&config]].concat());
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["consumer.py", &port.to_string()]);
    let master = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let pool = collector.pool_of(master.pid(), 2);
    let workers: Vec<Pid> = pool["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| Pid::from_raw(worker["pid"].as_i64().unwrap() as i32))
        .collect();
    let all_wait = || {
        eventually("all wait for jobs", || {
            workers.iter().all(|pid| blocked_in(*pid) == Some(libc::SYS_recvfrom)).then_some(())
        });
    };
    let spans = || pool_of(&collector.stats(), master.pid()).unwrap()["work"]["spans"].as_u64().unwrap();
    all_wait();
    let before = eventually("it is read that they wait", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        (pool["ready"].as_u64()? + pool["idle"].as_u64()? == 2).then(spans)
    });
    let mut queue = super::connect(&format!("127.0.0.1:{port}"));
    let done = directory.path().join("done.log");
    for job in 1..=JOBS {
        super::serve::ask(&mut queue, &format!("RPUSH jobs {}\r\n", job % 5 * 4), "\r\n");
        super::logged(&done, job as usize);
        // Whoever has done one asks for the next, and waits again.
        all_wait();
    }
    let pool = eventually("all jobs are counted", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        (pool["work"]["spans"].as_u64()? >= before + JOBS).then_some(pool)
    });
    assert_eq!(pool["work"]["spans"], before + JOBS, "{pool}");
    // They have opened the connection themselves, and all of it is theirs to ask.
    let requests = &pool["requests"];
    assert_eq!((outcomes(requests), &requests["in_flight"]), ([].into(), &0.into()));
    assert!(requests["receive_bytes"].as_u64().unwrap() > 10 * JOBS, "{requests}");
}
