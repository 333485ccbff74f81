//! Lengths of waits against what the waiting threads measured themselves.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::portable::cgroup::{Begins, agrees_with_the_cgroup};
use crate::portable::schedule::{answer_file, at_rest, measured, waited};
use crate::servers::directory_with;
use crate::support::{Collector, Workload, eventually, pool_of, worker};
use crate::trace::Trace;

/// Shorter waits are not noticed by those who wait.
const SHORTEST_NS: u64 = 20_000;

/// Within 2 % or 10 µs, whichever is more.
pub(crate) fn slack(seconds: f64) -> f64 {
    (seconds * 0.02).max(10e-6)
}

/// The recorded values are those that the worker measured and a few others of the same kind, from before and after. A
/// quantile of all is then between two of those that were measured: as many ranks apart as there are others.
pub(crate) fn check(what: &str, windows: &Value, truth: Vec<u64>) {
    check_within(slack, what, windows, truth);
}

/// The same, against who measures with less care, or something else in part.
pub(crate) fn check_within(slack: fn(f64) -> f64, what: &str, windows: &Value, mut truth: Vec<u64>) {
    // On a busy machine a timer can expire before the thread that set it gets to sleep.
    truth.retain(|ns| *ns >= SHORTEST_NS);
    check_between(slack, what, windows, truth.clone(), truth);
}

/// The same where of each is known how long it took at least, and at most.
pub(crate) fn check_between(
    slack: fn(f64) -> f64,
    what: &str,
    windows: &Value,
    mut truth: Vec<u64>,
    mut most: Vec<u64>,
) {
    assert_eq!(truth.len(), most.len(), "{what}");
    truth.sort_unstable();
    most.sort_unstable();
    let count = windows["start"]["count"].as_u64().unwrap_or(0) as usize;
    assert!(truth.len() > 50, "{what}: {} are not enough", truth.len());
    assert!(count >= truth.len(), "{what}: {count} recorded, {} measured", truth.len());
    let others = count - truth.len();
    assert!(others <= truth.len() / 10, "{what}: {count} recorded, {} measured", truth.len());
    for (name, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        let rank = (share * count as f64).ceil() as usize - 1;
        let at = |truth: &[u64], rank: usize| truth[rank.min(truth.len() - 1)] as f64 / 1e9;
        // One more to either side: two that are nearly the same may change places.
        let (low, high) = (at(&truth, rank.saturating_sub(others + 1)), at(&most, rank + 1));
        let ours = windows["start"][name].as_f64().unwrap();
        println!(
            "{what} {name}: {:.1} µs, measured {:.1} to {:.1} µs ({} of {count})",
            ours * 1e6,
            low * 1e6,
            high * 1e6,
            truth.len()
        );
        assert!(ours >= low - slack(low) && ours <= high + slack(high), "{what} {name}: {ours} s: {windows}");
    }
}

#[test]
fn waits_are_as_long_as_the_waiting_measured() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf", "--probes.overhead-budget=0"]);
    collector.pool_of(master.pid(), 2);
    for kind in ["lock", "sleep", "poll", "pipe", "network", "child"] {
        let (schedule, truth) = collector.with_all_seen(|| {
            let (pid, truth) = waited(&mut master, kind, &answer_file(kind));
            (at_rest(&collector, master.pid(), pid), truth)
        });
        check(kind, &schedule["quantiles"]["off_cpu_seconds"][kind], truth);
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/waits-data-long");
    std::fs::write(&data, vec![1u8; 64 << 20]).unwrap();
    let (schedule, truth) = collector.with_all_seen(|| {
        let trace = Trace::start();
        let (pid, _) = waited(&mut master, &format!("disk {}", data.display()), &answer_file("disk"));
        let truth = trace.disk_waits(pid);
        (at_rest(&collector, master.pid(), pid), truth)
    });
    let _ = std::fs::remove_file(&data);
    check("disk", &schedule["quantiles"]["off_cpu_seconds"]["disk"], truth);
}

#[test]
fn spans_are_as_long_as_the_worker_measured() {
    const SPANS: usize = 300;
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf", "--probes.overhead-budget=0"]);
    collector.pool_of(master.pid(), 2);
    let file = answer_file("spans");
    let (pid, truth) = measured(&mut master, &format!("spans {SPANS} {}", file.display()), &file);
    let work = eventually("it was read", || {
        let stats = collector.stats();
        let work = worker(pool_of(&stats, master.pid())?, pid)?.get("work")?.clone();
        (work["spans"] == SPANS).then_some(work)
    });
    assert_eq!(work["span_seconds"]["start"]["coverage"], 1.0);
    check("spans", &work["span_seconds"], truth[6..].to_vec());
}

#[test]
fn threads_that_share_a_cpu_wait_for_it_as_long_as_they_notice() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf", "--probes.overhead-budget=0"]);
    collector.pool_of(master.pid(), 2);
    let (schedule, truth) = collector.with_all_seen(|| {
        let (pid, truth) = waited(&mut master, "runnable 3", &answer_file("runnable"));
        (at_rest(&collector, master.pid(), pid), truth)
    });
    check("runnable", &schedule["quantiles"]["run_queue_wait_seconds"], truth);
    // Three threads on one CPU wait two thirds of the time.
    let seconds = |kind: &str| schedule["seconds"][kind].as_f64().unwrap();
    assert!(seconds("runnable") > 1.5 * seconds("on_cpu"), "{schedule}");
}

#[test]
fn a_pool_that_is_busy_from_the_begin_agrees_with_its_cgroup() {
    agrees_with_the_cgroup("ebpf", true, Begins::Busy);
}

/// Each of the two pools counts other waits as such for work.
#[test]
fn a_worker_that_has_workers_of_its_own_waits_where_its_own_pool_says() {
    let directory = directory_with(&[("outer.sh", "exec >/dev/null 2>&1\nsleep 60 & sleep 60 & wait\n")]);
    // Other shells have children, too.
    let shell = directory.path().join("outer");
    std::fs::copy("/bin/sh", &shell).unwrap();
    let config = directory.path().join("collector.yml");
    let write = |outer: &str| {
        let inner = "{name: inner, parent: {comm: outer}, idle_in: [poll], scheduler: counters, work: spans}";
        let outer = format!("{{name: outer, parent: {{comm: workload}}, idle_in: [{outer}]}}");
        std::fs::write(&config, format!("pools: [{inner}, {outer}]")).unwrap();
    };
    // The shell waits for signals; what it has begun sleeps.
    write("sleep");
    let mut master = Workload::start();
    let options = ["--source=ebpf", "--probes.overhead-budget=0"];
    let collector =
        Collector::start(&[&options[..], &[&format!("--config.file={}", config.display())]].concat());
    let pid =
        master.spawn(&format!("exec {} {}", shell.display(), directory.path().join("outer.sh").display()));
    let states = || -> Option<[Vec<String>; 2]> {
        let stats = collector.stats();
        let of = |name: &str| {
            let pool = stats["pools"].as_array()?.iter().find(|pool| pool["name"] == name)?;
            let workers = pool["workers"].as_array()?.iter();
            Some(workers.map(|worker| worker["state"].as_str().unwrap().to_owned()).collect())
        };
        Some([of("outer")?, of("inner")?])
    };
    let waits = |state: &str| matches!(state, "ready" | "idle");
    for (outer, waiting) in [("sleep", true), ("pipe", false), ("sleep, pipe", true)] {
        write(outer);
        kill(collector.pid(), Signal::SIGHUP).unwrap();
        eventually("both are in their states", || {
            let [outer, inner] = states()?;
            (outer.len() == 1 && inner.len() == 2).then_some(())?;
            (waits(&outer[0]) == waiting && !inner.iter().any(|state| waits(state))).then_some(())
        });
    }
    // Its children are orphans then, and to be ended one by one.
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in children.split_whitespace().map(|child| child.parse().unwrap()).chain([pid.as_raw()]) {
        kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    }
}
