//! What made a request slow, as it is found afterwards: from the list of the slowest, and from the example in the histogram.

use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::Pprof;
use crate::requests::connect;
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually, pool_of};

/// Waits a little for each request, and long for some.
const WSGI: &str = "\
import select, time

def look_up():
    time.sleep(0.002)

def wait_for_the_database():
    time.sleep(0.08)

def wait_for_an_answer():
    select.select([], [], [], 0.08)

def app(environ, start_response):
    if environ['PATH_INFO'] == '/slow':
        wait_for_the_database()
    elif environ['PATH_INFO'] == '/poll':
        wait_for_an_answer()
    else:
        look_up()
    start_response('200 OK', [('Content-Length', '2')])
    return [b'ok']
";

const FAST: u32 = 400;
const SLOW: usize = 3;

fn ask(bind: &str, path: &str) {
    let mut stream = connect(bind);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

/// The slowest of the last minute that waited for this, once there are enough: one that came before the one before had ended is
/// in no list.
fn slowest(collector: &Collector, master: Pid, kind: &str, ask: impl Fn()) -> Vec<Value> {
    eventually("slow ones are listed", || {
        ask();
        let stats = collector.stats();
        let pool = pool_of(&stats, master)?;
        let mut answer = collector
            .request(&format!("/api/v1/pools/{}/slow", pool["name"].as_str()?), &[])
            .ok()
            .filter(|answer| answer.status() == 200)?;
        let listed: Value = answer.body_mut().read_json().ok()?;
        let listed = listed["slowest"]["1m"].as_array()?.clone();
        let waited = |request: &&Value| request["seconds"][kind].as_f64().is_some_and(|s| s >= 0.08);
        let slow: Vec<Value> = listed.iter().filter(waited).take(SLOW).cloned().collect();
        (slow.len() == SLOW).then_some(slow)
    })
}

#[test]
fn a_slow_request_leads_to_the_stack_that_it_waited_at() {
    let directory = directory_with(&[("app.py", WSGI)]);
    let bind = format!("127.0.0.1:{}", free_port());
    let collector =
        Collector::start(&["--source=ebpf", "--probes.overhead-budget=0", "--profiles.continuous-hz=19"]);
    let mut command = command_in(directory.path(), "/usr/bin/gunicorn", &["-w", "2", "-b", &bind, "app:app"]);
    let gunicorn = Server::start_ended_by(Signal::SIGQUIT, &mut command);
    collector.pool_of(gunicorn.pid(), 2);
    let pool = || pool_of(&collector.stats(), gunicorn.pid()).unwrap().clone();
    // Its usual waits are known when the slow ones come.
    for _ in 0..FAST {
        ask(&bind, "/");
    }
    let of_sleep = || pool()["quantiles"]["off_cpu_seconds"]["sleep"]["1m"]["count"].clone();
    eventually("its waits are known", || (of_sleep().as_u64()? >= u64::from(FAST) * 9 / 10).then_some(()));
    // The shortest wait that is long is known anew with each time that is kept.
    let name = pool()["name"].as_str().unwrap().to_owned();
    eventually("usual waits are not kept", || {
        let from = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        (0..50).for_each(|_| ask(&bind, "/"));
        let asked = format!("/debug/pprof/offcpu?pool={name}&from={from:.3}&debug=1");
        let text = collector.request(&asked, &[]).ok()?.body_mut().read_to_string().ok()?;
        (text.matches("look_up").count() <= 5 && text.starts_with("--- ")).then_some(())
    });
    // Where it waits for work too, which is no long wait.
    let slept = slowest(&collector, gunicorn.pid(), "sleep", || {
        ["/slow", "/"].iter().for_each(|path| ask(&bind, path))
    });
    let polled = slowest(&collector, gunicorn.pid(), "poll", || {
        ["/poll", "/"].iter().for_each(|path| ask(&bind, path))
    });
    let slept = slept.iter().map(|request| (request, "sleep", "wait_for_the_database"));
    let polled = polled.iter().map(|request| (request, "poll", "wait_for_an_answer"));
    for (request, kind, function) in slept.chain(polled) {
        let (pid, tid) = (&request["pid"], &request["tid"]);
        let profile = request["profile"].as_str().unwrap_or_else(|| panic!("no profile: {request}"));
        assert!(profile.starts_with(&format!("/debug/pprof/offcpu?pid={pid}&tid={tid}&from=")), "{profile}");
        let what = profile.strip_prefix("/debug/pprof/").unwrap();
        let pprof = Pprof::take(&collector, what);
        // The one wait of it that was long, and no other.
        let counts = pprof.counts();
        let count = |function: &str| counts.get(function).copied().unwrap_or_default();
        assert_eq!(count(function), 1.0, "{counts:?} of {request}");
        assert_eq!(count("SyncWorker.wait"), 0.0, "{counts:?} of {request}");
        assert_eq!(count("look_up"), 0.0, "{counts:?} of {request}");
        // Samples:
        // contentions/count delay/nanoseconds
        //           1   80088181: 1 2 3
        let raw = pprof.raw();
        let row = raw.lines().skip_while(|line| !line.starts_with("contentions/count")).nth(1).unwrap();
        let waited_ns = row.split([' ', ':']).filter(|word| !word.is_empty()).nth(1).unwrap();
        let waited_s = waited_ns.parse::<f64>().unwrap() / 1e9;
        let slept_s = request["seconds"][kind].as_f64().unwrap();
        println!("{waited_s} s in its profile, it was in {kind} for {slept_s} s");
        // Two programs read the clock one after the other.
        assert!((waited_s - slept_s).abs() < 0.001, "{waited_s} s, {kind} for {slept_s} s");
        assert!(raw.contains("end_timestamp_ns"), "{raw}");
    }
    // Whoever comes from the histogram finds the same.
    let accept = [("accept", "application/openmetrics-text")];
    let text = collector.request("/metrics", &accept).unwrap().body_mut().read_to_string().unwrap();
    let buckets =
        text.lines().filter(|line| line.starts_with("worker_pool_request_duration_seconds_bucket{"));
    // …} 12 # {profile="…"} 0.080502488 1795928366.513589429
    let examples =
        buckets.filter_map(|line| line.split_once(" # {profile=\"/debug/pprof/")?.1.split_once("\"} "));
    let is_slow = |(_, value): &(&str, &str)| value.split(' ').next().unwrap().parse::<f64>().unwrap() > 0.08;
    let (what, _) =
        examples.clone().find(is_slow).unwrap_or_else(|| panic!("{:?}", examples.collect::<Vec<_>>()));
    let counts = Pprof::take(&collector, what).counts();
    let of = |function: &str| counts.get(function).copied().unwrap_or_default();
    assert_eq!(of("wait_for_the_database") + of("wait_for_an_answer"), 1.0, "{counts:?} of {what}");
    let cost = |series: &str| collector.metric(&format!("collector_profile_{series}"));
    assert_eq!(cost("captures_total"), Some(0.0), "all of it was there already");
    assert!(cost("kept_bytes") > Some(0.0) && cost("cpu_seconds_total") > Some(0.0));
}
