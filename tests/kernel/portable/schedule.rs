//! Where the time of threads goes: reasons, sums, and counts of switches, on every kernel.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cgroup::Cgroup;
use crate::support::{Collector, Workload, eventually, pool_of, worker};
use crate::trace::Trace;

/// A file that a worker writes what it measured to.
pub(crate) fn answer_file(what: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("waits-{}-{what}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// A worker that waits as `behaviour` says until it has written its file, and what it wrote.
pub(crate) fn waited(master: &mut Workload, behaviour: &str, file: &Path) -> (Pid, Vec<u64>) {
    measured(master, &format!("wait {behaviour} {}", file.display()), file)
}

/// A worker that does as `behaviour` says until it has written its file, and what it wrote.
pub(crate) fn measured(master: &mut Workload, behaviour: &str, file: &Path) -> (Pid, Vec<u64>) {
    let pid = master.spawn(behaviour);
    let text = eventually(&format!("{behaviour} is done"), || std::fs::read_to_string(file).ok());
    let _ = std::fs::remove_file(file);
    (pid, text.lines().map(|line| line.parse().unwrap()).collect())
}

/// A worker's part of the pool, once it was read while it slept at its end.
pub(crate) fn at_rest(collector: &Collector, master: Pid, pid: Pid) -> Value {
    let mut last = Value::Null;
    eventually("the worker is at rest", || {
        let stats = collector.stats();
        let schedule = worker(pool_of(&stats, master)?, pid)?.get("schedule")?.clone();
        let still = schedule["quantiles"] == last["quantiles"]
            && schedule["seconds"]["on_cpu"] == last["seconds"]["on_cpu"]
            && schedule["followed_seconds"] != last["followed_seconds"];
        last = schedule;
        still.then(|| last.clone())
    })
}

fn seconds(of: &Value) -> impl Iterator<Item = (&str, f64)> {
    of["seconds"].as_object().unwrap().iter().map(|(kind, s)| (kind.as_str(), s.as_f64().unwrap()))
}

fn start() -> (Workload, Collector) {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    // However slow the machine is.
    let collector = Collector::start(&["--source=ebpf", "--probes.overhead-budget=0"]);
    collector.pool_of(master.pid(), 2);
    (master, collector)
}

#[test]
fn every_wait_has_its_reason() {
    let (mut master, collector) = start();
    // A file of its own on a file system that knows direct reads, where there is one. Long enough that it does not matter
    // if the host holds the guest up for a few milliseconds while it waits for storage.
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/waits-data");
    let on_disk = std::fs::write(&data, vec![1u8; 32 << 20]).is_ok();
    let disk = format!("disk {}", data.display());
    let mut behaviours = vec!["lock", "sleep", "poll", "pipe", "network", "child"];
    if on_disk {
        behaviours.push(&disk);
    }
    for behaviour in behaviours {
        let kind = behaviour.split(' ').next().unwrap();
        let trace = (kind == "disk").then(Trace::start);
        let (pid, waits) = waited(&mut master, behaviour, &answer_file(kind));
        let waits = trace.map_or(waits, |trace| trace.disk_waits(pid));
        let schedule = at_rest(&collector, master.pid(), pid);
        let truth: f64 = waits.iter().sum::<u64>() as f64 / 1e9;
        // It sleeps when it has done.
        let blocked = |(of, _): &(&str, f64)| !["on_cpu", "runnable"].contains(of);
        let off_cpu = seconds(&schedule).filter(blocked).filter(|(of, _)| kind == "sleep" || *of != "sleep");
        let off_cpu: f64 = off_cpu.map(|(_, s)| s).sum();
        let ours = schedule["seconds"][kind].as_f64().unwrap();
        assert!(ours >= off_cpu * 0.99, "{kind}: {ours} of {off_cpu} s: {schedule}");
        assert!(ours >= truth * 0.9, "{kind}: {ours} s, waited {truth} s: {schedule}");
    }
    let _ = std::fs::remove_file(&data);
}

#[test]
fn time_adds_up_to_the_life_of_all_threads() {
    let (mut master, collector) = start();
    let busy = master.spawn("threads 3 900");
    let stopped = master.spawn("sleep");
    collector.pool_of(master.pid(), 4);
    kill(stopped, Signal::SIGSTOP).unwrap();
    let read = || {
        let stats = collector.stats();
        let at = stats["uptime_seconds"].as_f64()?;
        let pool = pool_of(&stats, master.pid())?.clone();
        (worker(&pool, busy)?["schedule"]["seconds"]["on_cpu"].as_f64()? > 2.6).then_some((at, pool))
    };
    let (before, first) = eventually("the threads have burnt what they should", read);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    kill(stopped, Signal::SIGCONT).unwrap();
    let (after, pool) = eventually("another reading", || read().filter(|(at, _)| *at > before + 2.0));
    let followed = |pool: &Value| pool["schedule"]["followed_seconds"].as_f64().unwrap();
    // Two sleepers, the stopped one, and one with four threads.
    let (grown, wall) = (followed(&pool) - followed(&first), 7.0 * (after - before));
    assert!((grown - wall).abs() <= wall * 0.01, "{grown} s of threads' lives in {wall} s");
    for schedule in std::iter::once(&pool).chain(pool["workers"].as_array().unwrap()).map(|p| &p["schedule"])
    {
        let sum: f64 = seconds(schedule).map(|(_, s)| s).sum();
        let followed = schedule["followed_seconds"].as_f64().unwrap();
        assert!((sum - followed).abs() <= 0.001 + followed * 1e-4, "{sum} of {followed} s: {schedule}");
    }
    let stopped = worker(&pool, stopped).unwrap()["schedule"]["seconds"]["stopped"].as_f64().unwrap();
    assert!(stopped > 2.0, "{stopped}");
}

#[test]
fn every_slice_on_the_cpu_is_counted() {
    let (mut master, collector) = start();
    let (pid, _) = waited(&mut master, "pingpong 20000", &answer_file("pingpong"));
    let schedule = at_rest(&collector, master.pid(), pid);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let switches: u64 = status
        .lines()
        .filter(|line| line.contains("ctxt_switches"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    let slices = schedule["quantiles"]["on_cpu_seconds"]["start"]["count"].as_u64().unwrap();
    assert!(switches >= 20_000, "{switches}");
    assert!(
        slices.abs_diff(switches) as f64 <= switches as f64 * 0.001,
        "{slices} slices, {switches} switches"
    );
}

#[test]
fn in_a_storm_nobody_waits_longer_than_all_have_lived() {
    let (mut master, collector) = start();
    let before = std::time::Instant::now();
    master.ask("storm 3000 100");
    let wall = before.elapsed().as_secs_f64();
    let pool = eventually("all have ended", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        (pool["exits_total"].as_u64()? >= 3000 && pool["awaiting_final_cpu"] == 0).then(|| pool.clone())
    });
    let workers = pool["workers"].as_array().unwrap();
    let idle = |of: &dyn Fn(&Value) -> f64| workers.iter().map(|w| of(&w["schedule"])).sum::<f64>();
    let all = |schedule: &Value| seconds(schedule).map(|(_, s)| s).sum::<f64>();
    let storm = all(&pool["schedule"]) - idle(&all);
    // The master lets 64 run at a time.
    assert!(storm <= wall * 66.0, "{storm} s in {wall} s");
    let burnt = pool["schedule"]["seconds"]["on_cpu"].as_f64().unwrap();
    assert!(burnt >= 3000.0 * 100e-6, "{burnt}");
    let slices = pool["quantiles"]["on_cpu_seconds"]["start"]["count"].as_u64().unwrap();
    assert!(slices >= 3000, "{slices}");
    let coverage = pool["quantiles"]["on_cpu_seconds"]["start"]["coverage"].as_f64().unwrap();
    let discarded = (slices as f64 / coverage).round() as u64 - slices;
    assert!(discarded <= collector.unseen_switches(), "{discarded}");
}

/// They leave their CPUs in any order, and the slot goes to another worker when the last has.
#[test]
fn threads_that_end_together_leave_nothing_to_the_next_worker() {
    const THREADS: u64 = 4;
    let (mut master, collector) = start();
    let before = std::time::Instant::now();
    master.ask(&format!("storm_of_threads 1500 50 {THREADS}"));
    let wall = before.elapsed().as_secs_f64();
    let pool = eventually("all have ended", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        (pool["exits_total"].as_u64()? >= 1500 && pool["awaiting_final_cpu"] == 0).then(|| pool.clone())
    });
    let since = before.elapsed().as_secs_f64();
    let schedule = &pool["schedule"];
    let followed = schedule["followed_seconds"].as_f64().unwrap();
    // Besides, those that were there before.
    let most = wall * 66.0 * (THREADS + 1) as f64
        + (since + 60.0) * pool["workers"].as_array().unwrap().len() as f64;
    assert!(followed <= most, "{followed} s, at most {most}");
    let residual = schedule["residual_seconds"].as_f64().unwrap();
    assert!(residual.abs() < 1e-6, "{residual} s of {followed} are in no kind of time");
    assert_eq!(collector.metric("collector_losses_total{reason=\"thread_not_followed\"}"), Some(0.0));
}

/// Waits until the pool's workers have been read, and gives the pool and the collector's own figures.
fn watched(collector: &Collector, master: Pid) -> (Value, Value) {
    collector.pool_of(master, 2);
    let stats = collector.stats();
    (pool_of(&stats, master).unwrap().clone(), stats["collector"].clone())
}

fn configured(scheduler: &str) -> PathBuf {
    let path = answer_file(&format!("{scheduler}.yml"));
    std::fs::write(&path, format!("scheduler: {scheduler}\n")).unwrap();
    path
}

#[test]
fn a_pool_gets_what_it_asks_for() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("burn 300");
    for (scheduler, has_times, has_lengths) in
        [("none", false, false), ("counters", true, false), ("histograms", true, true)]
    {
        let file = configured(scheduler);
        let collector = Collector::start(&["--source=ebpf", &format!("--config.file={}", file.display())]);
        watched(&collector, master.pid());
        let (pid, _) = waited(&mut master, "sleep", &answer_file(scheduler));
        let pool = eventually("the sleeper has slept", || {
            let stats = collector.stats();
            let pool = pool_of(&stats, master.pid())?.clone();
            let slept = worker(&pool, pid)?["schedule"]["seconds"]["sleep"].as_f64().unwrap_or(0.0);
            (!has_times || slept > 0.8).then_some(pool)
        });
        let _ = std::fs::remove_file(&file);
        assert_eq!(pool.get("schedule").is_some(), has_times, "{scheduler}: {pool}");
        assert_eq!(pool["quantiles"].get("on_cpu_seconds").is_some(), has_lengths, "{scheduler}: {pool}");
        let threads = collector.stats()["collector"]["cost"]["maps"]["threads"]["entries"].as_u64().unwrap();
        assert_eq!(threads > 0, has_times, "{scheduler}: {threads} threads are followed");
        kill(pid, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn probes_that_cost_more_than_they_may_step_back_and_say_so() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf", "--probes.overhead-budget=0.001"]);
    let (_, own) = watched(&collector, master.pid());
    assert_eq!(own["cost"]["scheduler_probes"]["recording"], "histograms");
    let file = answer_file("busy");
    let busy = master.spawn(&format!("wait pingpong 100000000 {}", file.display()));
    let recording = |wanted: &str| {
        eventually(&format!("recording is {wanted}"), || {
            let stats = collector.stats();
            (stats["collector"]["cost"]["scheduler_probes"]["recording"] == wanted).then_some(stats)
        })
    };
    recording("counters");
    assert_eq!(collector.metric("collector_degraded{step=\"no_histograms\"}"), Some(1.0));
    assert_eq!(collector.metric("collector_degraded{step=\"no_probes\"}"), Some(0.0));
    let stats = recording("none");
    assert_eq!(collector.metric("collector_degraded{step=\"no_probes\"}"), Some(1.0));
    assert!(stats["collector"]["cost"]["scheduler_probes"]["cpu_ratio"].as_f64().unwrap() > 1e-5);
    assert!(collector.log().contains("the budget is 0.001 %"), "{}", collector.log());
    kill(busy, Signal::SIGKILL).unwrap();
}

#[test]
fn a_frozen_worker_is_stopped() {
    let (mut master, collector) = start();
    let cgroup = Cgroup::new("frozen");
    let idle = master.spawn(&format!("touch-in {} 1", cgroup.procs().display()));
    let busy = master.spawn(&format!("burn-in {} 600000", cgroup.procs().display()));
    let seconds_of = |pid: Pid, kind: &str| {
        let stats = collector.stats();
        worker(pool_of(&stats, master.pid())?, pid)?["schedule"]["seconds"][kind].as_f64()
    };
    eventually("both do what they do", || {
        (seconds_of(busy, "on_cpu")? > 0.2 && seconds_of(idle, "sleep")? > 0.2).then_some(())
    });
    cgroup.freeze(true);
    for pid in [idle, busy] {
        eventually("it is frozen", || (seconds_of(pid, "stopped")? > 2.0).then_some(()));
    }
    let before = [seconds_of(idle, "sleep"), seconds_of(busy, "on_cpu"), seconds_of(busy, "pagefault")];
    let stopped = seconds_of(busy, "stopped").unwrap();
    eventually("time goes on", || (seconds_of(busy, "stopped")? > stopped + 1.0).then_some(()));
    let after = [seconds_of(idle, "sleep"), seconds_of(busy, "on_cpu"), seconds_of(busy, "pagefault")];
    assert_eq!(before, after);
    cgroup.freeze(false);
    let on_cpu = seconds_of(busy, "on_cpu").unwrap();
    eventually("it goes on", || (seconds_of(busy, "on_cpu")? > on_cpu).then_some(()));
}
