//! Workers that are asked on their standard input and answer on their standard output.

use nix::sys::signal::{Signal, kill};

use super::{OPTIONS, answered, check_each_worker, logged, outcomes, pauses, within_what_logs_say};
use crate::schedule::check_within;
use crate::servers::{Server, command_in, directory_with};
use crate::support::{Collector, eventually};

/// Answers each call after so many ms as it says, and writes for how many ns it was at it to a file.
const WORKER: &str = "\
import json, os, sys, time

log = os.open('took.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
source, sink = sys.stdin.buffer, sys.stdout.buffer
while True:
    head = source.readline()
    if not head:
        break
    begin = time.monotonic_ns()
    source.readline()
    call = json.loads(source.read(int(head.split()[1])))
    time.sleep(call['params'][0] / 1000)
    body = json.dumps({'jsonrpc': '2.0', 'id': call['id'], 'result': os.getpid()}).encode()
    sink.write(b'Content-Length: %d\\r\\n\\r\\n' % len(body))
    # The head of every other answer goes by itself.
    if call['id'] % 2:
        sink.flush()
    sink.write(body)
    sink.flush()
    os.write(log, b'%d\\n' % (time.monotonic_ns() - begin))
";

/// Starts two workers on pipes and one on pairs of sockets, as Node does; when it is told to, calls each as often as it is
/// to, all at the same time, and writes whom it has got each answer from.
const EDITOR: &str = "\
import json, signal, socket, subprocess, sys, threading

def start(pairs):
    if not pairs:
        worker = subprocess.Popen([sys.executable, 'worker.py'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return worker.stdin, worker.stdout
    (ask, stdin), (answers, stdout) = socket.socketpair(), socket.socketpair()
    subprocess.Popen([sys.executable, 'worker.py'], stdin=stdin, stdout=stdout)
    return ask.makefile('wb'), answers.makefile('rb')

def call(sink, source, pauses):
    for number, pause in enumerate(pauses):
        body = json.dumps({'jsonrpc': '2.0', 'id': number, 'method': 'wait', 'params': [pause]}).encode()
        sink.write(b'Content-Length: %d\\r\\n\\r\\n' % len(body) + body)
        sink.flush()
        length = int(source.readline().split()[1])
        source.readline()
        answer = json.loads(source.read(length))
        assert answer['id'] == number
        with lock:
            print(answer['result'], file=open('answers.log', 'a'))

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
workers = [start(False), start(False), start(True)]
signal.sigwait([signal.SIGUSR1])
lock = threading.Lock()
pauses = [int(pause) for pause in sys.argv[1:]]
callers = [threading.Thread(target=call, args=(*worker, pauses)) for worker in workers]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
signal.sigwait([signal.SIGUSR1])
";

#[test]
fn workers_on_pipes_answer_as_many_calls_as_they_got_and_take_as_long() {
    const CALLS: usize = 120;
    let directory = directory_with(&[("editor.py", EDITOR), ("worker.py", WORKER)]);
    let collector = Collector::start(&[&OPTIONS[..], &["--probes.requests=syscalls"]].concat());
    let pauses: Vec<String> = (0..CALLS as u64).map(|turn| pauses(turn).to_string()).collect();
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["editor.py"]);
    let editor = Server::start_ended_by(Signal::SIGKILL, command.args(pauses));
    let pool = collector.pool_of(editor.pid(), 3);
    // Whoever gets work before it has ever waited for any is still starting.
    eventually("all wait for calls", || {
        let pool = collector.pool_of(editor.pid(), 3);
        (pool["ready"].as_u64()? + pool["idle"].as_u64()? == 3).then_some(())
    });
    assert_eq!(pool["requests"]["total"], 0, "{pool}");
    kill(editor.pid(), Signal::SIGUSR1).unwrap();
    let whom = logged(&directory.path().join("answers.log"), 3 * CALLS);
    let mut answers = std::collections::BTreeMap::new();
    for pid in whom {
        *answers.entry(pid.cast_signed()).or_default() += 1;
    }
    let pool = answered(&collector, editor.pid(), 3 * CALLS as u64);
    assert_eq!(outcomes(&pool["requests"]), [("ok", 3 * CALLS as u64)].into());
    check_each_worker(&pool, &answers);
    let truth = logged(&directory.path().join("took.log"), 3 * CALLS);
    let windows = &pool["quantiles"]["request_duration_seconds"]["ok"];
    check_within(within_what_logs_say, "calls", windows, truth);
    let waterfall = &pool["requests"]["waterfall"];
    assert_eq!(waterfall["residual_seconds"], 0.0);
    let (all, unseen) = (3 * CALLS as u64, collector.unseen_switches());
    let split = waterfall["requests"].as_u64().unwrap();
    assert!(split <= all && all - split <= unseen, "{unseen} switches unseen: {waterfall}");
    let seconds = |turn| super::pauses(turn) as f64 / 1e3;
    let slept = waterfall["seconds"]["sleep"].as_f64().unwrap();
    let asked = 3.0 * (0..CALLS as u64).map(seconds).sum::<f64>();
    let least = asked - (all - split) as f64 * seconds(CALLS as u64 - 1);
    assert!((least..asked * 1.05).contains(&slept), "{slept} s of {asked} s asleep: {waterfall}");
}
