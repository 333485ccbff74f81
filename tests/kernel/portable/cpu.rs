//! CPU against `/proc/PID/stat`, and what a spinning worker shows.

use std::time::{Duration, Instant};

use crate::support::{Collector, Workload, eventually, pool_of, stat_field, stolen_seconds, worker};

/// `utime + stime`, in seconds; ticks of 1/100 s on every architecture we run on.
fn proc_cpu_seconds(pid: nix::unistd::Pid) -> f64 {
    (stat_field(pid, 14).unwrap() + stat_field(pid, 15).unwrap()) as f64 / 100.0
}

#[test]
fn ten_seconds_of_cpu_agree_with_proc_within_a_tick_and_a_thousandth() {
    let mut master = Workload::start();
    let collector = Collector::start(&["--source=ebpf"]);
    let workers = [
        master.spawn("duty 60 10000"),
        master.spawn("duty 30 10000"),
        master.spawn("duty 5 10000"),
        master.spawn("threads 3 900"),
    ];
    collector.pool_of(master.pid(), 4);
    let idle = |pid| {
        let before = proc_cpu_seconds(pid);
        std::thread::sleep(Duration::from_millis(1500));
        proc_cpu_seconds(pid) == before
    };
    // Compared when they have come to rest: readings of a moving figure are of two moments.
    eventually("they have done their ten seconds", || workers.iter().all(|pid| idle(*pid)).then_some(()));
    let stats = collector.stats();
    let pool = pool_of(&stats, master.pid()).unwrap();
    for pid in workers {
        let cpu = &worker(pool, pid).unwrap()["cpu"];
        let ours = cpu["user_seconds"].as_f64().unwrap() + cpu["system_seconds"].as_f64().unwrap();
        let truth = proc_cpu_seconds(pid);
        assert!(truth > 0.3, "{pid} worked: {truth}");
        // Two figures, each rounded down to a tick.
        assert!((ours - truth).abs() <= 0.02 + truth * 0.001, "{pid}: {ours} s, /proc says {truth} s");
    }
}

#[test]
fn a_worker_that_spins_shows_a_whole_core_in_every_interval() {
    let mut master = Workload::start();
    master.spawn("sleep");
    // Longer than the test; it ends with its master.
    let spins = master.spawn("burn 600000");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let mut seen = 0;
    let mut last = (0.0, 0.0, 0.0);
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        let stats = collector.stats();
        let Some(spinner) = worker(pool_of(&stats, master.pid()).unwrap(), spins) else { continue };
        let at = stats["uptime_seconds"].as_f64().unwrap();
        let Some(share) = spinner["cpu"]["utilization"].as_f64() else { continue };
        if at == last.0 {
            continue;
        }
        // On a machine with other work it may have to wait; what it waited is known, too.
        let waited = spinner["run_delay_seconds"].as_f64().unwrap();
        let known = (waited - last.1) / (at - last.0);
        // So is what the kernel knows to be no time of this machine. It counts it in ticks; the test is late by 0.1 s.
        let stolen_seconds = stolen_seconds();
        let stolen = (stolen_seconds - last.2) / (at - last.0);
        if last.0 > 0.0 {
            seen += 1;
            // The kernel brings a running task's account up to date at its tick (at most 10 ms).
            assert!(share <= 1.02, "more than a core: {share}");
            assert!(
                share + known + stolen >= 0.97,
                "{share} on a CPU, {known} waiting for one, and {stolen} stolen"
            );
        }
        last = (at, waited, stolen_seconds);
    }
    assert!(seen >= 4, "only {seen} intervals were seen");
}
