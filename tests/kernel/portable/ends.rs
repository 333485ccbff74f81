//! How workers end: code, signal, sender, and what they had used until then.

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::support::{Collector, Workload, eventually, pool_of, stat_field};

fn pool_with_two() -> (Workload, Collector) {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    (master, collector)
}

#[test]
fn codes_and_signals_and_who_sent_them() {
    let (mut master, collector) = pool_with_two();

    let failed = collector.certificate(master.spawn("exit 3"));
    assert_eq!((&failed["reason"], &failed["exit_code"]), (&"error".into(), &3.into()));
    assert_eq!(failed.get("signal"), None);

    let finished = collector.certificate(master.spawn("exit 0"));
    assert_eq!((&finished["reason"], &finished["exit_code"]), (&"success".into(), &0.into()));

    let aborts = master.spawn("abort");
    let aborted = collector.certificate(aborts);
    assert_eq!(aborted["signal"]["name"], "SIGABRT");
    assert_eq!(aborted["sender"]["pid"], aborts.as_raw(), "abort(3) sends it to itself");

    let victim = master.spawn("sleep");
    collector.pool_of(master.pid(), 3);
    kill(victim, Signal::SIGTERM).unwrap();
    let killed = collector.certificate(victim);
    assert_eq!((&killed["reason"], &killed["signal"]["number"]), (&"signal".into(), &15.into()));
    assert_eq!(killed["sender"]["pid"], std::process::id());
    assert_eq!(killed["oom_killed"], false);

    let stats = collector.stats();
    let exits = &pool_of(&stats, master.pid()).unwrap()["totals"]["exits"];
    assert_eq!((&exits["success"], &exits["error"], &exits["signal"]), (&1.into(), &1.into(), &2.into()));
}

/// The main thread that was known ends, and the one that takes its place is new to the kernel's book of tags.
#[test]
fn who_runs_another_program_from_a_thread_and_ends_is_accounted_for() {
    let (mut master, collector) = pool_with_two();
    for _ in 0..5 {
        let pid = master.spawn("exec-from-thread 20");
        let certificate = eventually("its CPU is final", || {
            master.ask("reap");
            let certificate = collector.certificate(pid);
            (certificate["cpu_final"] == true).then_some(certificate)
        });
        assert_eq!(certificate["reason"], "success");
        let used = |mode: &str| certificate["cpu"][mode].as_f64().unwrap();
        let used = used("user_seconds") + used("system_seconds");
        assert!(used >= 0.02, "{used} s of 0.02 at least: {certificate}");
    }
    assert_eq!(collector.metric("collector_losses_total{reason=\"final_cpu_unreported\"}"), Some(0.0));
}

/// A memory control group of either version, removed at the end.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(limit_bytes: u64) -> Self {
        let name = format!("collector-test-{}", std::process::id());
        let first = std::path::Path::new("/sys/fs/cgroup/memory");
        let (path, limit) = if first.is_dir() {
            (first.join(name), "memory.limit_in_bytes")
        } else {
            std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").expect("cgroup2 is mounted");
            (std::path::Path::new("/sys/fs/cgroup").join(name), "memory.max")
        };
        std::fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        std::fs::write(path.join(limit), limit_bytes.to_string()).unwrap();
        Self(path)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn victims_of_the_oom_killer_are_told_from_others() {
    let (mut master, collector) = pool_with_two();
    let group = MemoryGroup::new(16 << 20);
    let victim = master.spawn(&format!("touch-in {}/cgroup.procs 200000000", group.0.display()));
    let certificate = collector.certificate(victim);
    assert_eq!((&certificate["reason"], &certificate["oom_killed"]), (&"oom".into(), &true.into()));
    assert_eq!(certificate["signal"]["name"], "SIGKILL");
    assert_eq!(certificate["sender"]["kernel"], true, "nobody sent it: {certificate}");
    let peak = certificate["peak_rss_bytes"].as_u64().unwrap();
    assert!((8 << 20..=17 << 20).contains(&peak), "it came close to its limit: {peak}");
    let stats = collector.stats();
    let exits = &pool_of(&stats, master.pid()).unwrap()["totals"]["exits"];
    assert_eq!((&exits["oom"], &exits["signal"]), (&1.into(), &0.into()));
    eventually("it can be reaped", || (master.ask("reap") == "1").then_some(()));
}

#[test]
fn a_core_dump_is_in_the_certificate() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    assert!(!pattern.starts_with('|'), "cores go to a program here: {pattern}");
    let (mut master, collector) = pool_with_two();
    let directory = tempfile::tempdir().unwrap();
    let dumped = collector.certificate(master.spawn(&format!("dump-core {}", directory.path().display())));
    assert_eq!((&dumped["signal"]["name"], &dumped["core_dumped"]), (&"SIGABRT".into(), &true.into()));
    assert_eq!(collector.certificate(master.spawn("exit 0")).get("core_dumped"), None);
}

#[test]
fn a_process_ends_with_its_last_thread_whichever_that_is() {
    let (mut master, collector) = pool_with_two();
    let pid = master.spawn("last-thread 300 5");
    let certificate = collector.certificate(pid);
    assert_eq!(certificate["exit_code"], 5);
    let lifetime = certificate["lifetime_seconds"].as_f64().unwrap();
    assert!(lifetime >= 0.3, "it ended with its main thread: {lifetime}");
    eventually("it is reaped", || (master.ask("reap") == "1").then_some(()));
    let final_cpu = cpu_seconds(&finally(&collector, pid));
    assert!((0.3..0.4).contains(&final_cpu), "all its threads burnt 0.3 s: {final_cpu}");
}

#[test]
fn an_unreaped_child_is_defunct_until_it_is_reaped() {
    let (mut master, collector) = pool_with_two();
    let parent = master.pid();
    let pid = master.spawn("exit 0");
    collector.certificate(pid);
    let defunct = |expected: u64| {
        let stats = collector.stats();
        let pool = pool_of(&stats, parent)?;
        (pool["defunct"] == expected && pool["total"] == 2).then_some(())
    };
    eventually("one is defunct", || defunct(1));
    assert_eq!(collector.certificate(pid)["cpu_final"], false);
    assert!(stat_field(pid, 4).is_some(), "its parent has not reaped it");
    assert_eq!(master.ask("reap"), "1");
    eventually("none is defunct", || defunct(0));
    assert_eq!(finally(&collector, pid)["cpu_final"], true);
    let stats = collector.stats();
    assert_eq!(pool_of(&stats, master.pid()).unwrap()["exits_total"], 1);
}

#[test]
fn the_dead_are_in_the_totals_as_the_parent_reaped_them() {
    let (mut master, collector) = pool_with_two();
    let (user, system) = master.ask_pair("storm 200 2000");
    let reaped = (user + system) as f64 / 1e6;
    let pool = eventually("all have ended", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        (pool["exits_total"].as_u64()? >= 200 && pool["awaiting_final_cpu"] == 0).then(|| pool.clone())
    });
    assert_eq!(pool["spawns_total"], 200);
    assert_eq!(pool["totals"]["exits"]["success"], 200);
    let idle: f64 = pool["workers"].as_array().unwrap().iter().map(cpu_seconds).sum();
    let total = cpu_seconds(&pool["totals"]);
    let difference = total - reaped;
    assert!(
        difference.abs() <= reaped * 0.01 + idle,
        "the pool has {total} s, its parent reaped {reaped} s, two idle workers had {idle} s"
    );
}

fn finally(collector: &Collector, pid: nix::unistd::Pid) -> Value {
    eventually("its CPU is final", || {
        let certificate = collector.certificate(pid);
        (certificate["cpu_final"] == true).then_some(certificate)
    })
}

fn cpu_seconds(of: &Value) -> f64 {
    of["cpu"]["user_seconds"].as_f64().unwrap() + of["cpu"]["system_seconds"].as_f64().unwrap()
}
