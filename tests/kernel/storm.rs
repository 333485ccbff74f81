//! Twenty thousand short lives at the full rate of the machine.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::portable::losses::events;
use crate::portable::runs;
use crate::support::{Collector, Workload, eventually, pool_of};

fn cpu_seconds(of: &Value) -> f64 {
    of["cpu"]["user_seconds"].as_f64().unwrap() + of["cpu"]["system_seconds"].as_f64().unwrap()
}

/// But for switches that some kernels hide: those are no loss of ours.
fn nothing_was_lost(stats: &Value) {
    for (reason, count) in stats["collector"]["losses"].as_object().unwrap() {
        assert!(count == 0 || reason == "switch_out_of_order", "{reason}: {count}");
    }
}

#[test]
fn twenty_thousand_children_are_counted_exactly_and_to_the_last_percent_of_cpu() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let (user, system) = master.ask_pair("storm 20000 0");
    let reaped = (user + system) as f64 / 1e6;

    let stats = eventually("all have ended and are accounted for", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        // The kernel lets go of the dead in no particular order; then their last figures come.
        (pool["exits_total"].as_u64()? >= 20_000 && pool["awaiting_final_cpu"] == 0).then_some(stats)
    });
    let pool = pool_of(&stats, master.pid()).unwrap();
    assert_eq!(pool["spawns_total"], 20_000);
    assert_eq!(pool["totals"]["exits"]["success"], 20_000);
    assert_eq!(pool["exits_total"], 20_000);
    assert_eq!(pool["total"], 2);

    // The parent's cutime + cstime is the truth of what they used.
    let idle: f64 = pool["workers"].as_array().unwrap().iter().map(cpu_seconds).sum();
    let ours = cpu_seconds(&pool["totals"]) - idle;
    assert!((ours - reaped).abs() <= reaped * 0.01, "the pool has {ours} s, the parent reaped {reaped} s");

    for event in stats["collector"]["events"].as_array().unwrap() {
        assert_eq!(event["lost"], 0, "{event}");
        assert_eq!(event["counted"], event["delivered"], "{event}");
    }
    nothing_was_lost(&stats);
    println!("20,000 children: the parent reaped {reaped:.3} s of CPU, the pool has {ours:.3} s");
}

#[test]
fn twenty_thousand_runs_are_counted_to_the_last() {
    const STORM: u64 = 20_000;
    let mut runner = runs::Runner::start("--source=ebpf");
    let begun = Instant::now();
    runner.master.ask(&format!("storm {STORM} 0"));
    let counted = runner.runs_once("all runs are counted", |runs| runs["total"].as_u64() >= Some(STORM));
    assert_eq!((&counted["total"], &counted["succeeded"]), (&STORM.into(), &STORM.into()));
    assert_eq!(runner.counted("success"), Some(STORM as f64));
    let window = &counted["last_hour"];
    assert_eq!((window["total"].as_u64(), window["runs"].as_array().map(Vec::len)), (Some(1000), Some(1000)));
    let times: Vec<f64> =
        window["runs"].as_array().unwrap().iter().map(|r| runs::unix_seconds(&r["timestamp"])).collect();
    assert!(times.is_sorted(), "by their end");
    let reaches_back = runs::seconds(&window["window_seconds"]);
    assert!(
        reaches_back < begun.elapsed().as_secs_f64(),
        "not to runs for which it had no room: {reaches_back} s"
    );
    assert!((runs::seconds(&window["runs_per_hour"]) - 1000.0 * 3600.0 / reaches_back).abs() < 1.0);
}

#[test]
fn runs_that_no_event_told_are_in_the_records() {
    /// More than the ring buffer holds.
    const STORM: u64 = 14_000;
    let mut runner = runs::Runner::start("--source=ebpf");
    kill(runner.collector.pid(), Signal::SIGSTOP).unwrap();
    runner.master.ask(&format!("storm {STORM} 0"));
    kill(runner.collector.pid(), Signal::SIGCONT).unwrap();
    let unrecorded = eventually("it has caught up", || {
        let stats = runner.collector.stats();
        let (counted, delivered, lost) = events(&stats, "exit");
        let quiet = counted == delivered + lost && counted >= STORM;
        quiet.then(|| stats["collector"]["losses"]["no_free_slot"].as_u64().unwrap())
    });
    assert!(events(&runner.collector.stats(), "fork").2 > 0, "the buffer was meant to overflow");
    let counted = runner.runs_once("all that had a record are counted", |runs| {
        runs["total"].as_u64() >= Some(STORM - unrecorded)
    });
    assert_eq!((&counted["total"], &counted["unknown"]), (&(STORM - unrecorded).into(), &0.into()));
    assert_eq!(counted["succeeded"], counted["total"]);
}

#[test]
fn a_storm_leaves_the_certificates_of_other_pools() {
    let (mut quiet, mut storm) = (Workload::start(), Workload::start());
    for master in [&mut quiet, &mut storm] {
        master.spawn("sleep");
        master.spawn("sleep");
    }
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(quiet.pid(), 2);
    collector.pool_of(storm.pid(), 2);
    let died = quiet.spawn("exit 3");
    collector.certificate(died);
    // More than are kept.
    storm.ask("storm 3000 0");
    eventually("all have ended", || {
        let stats = collector.stats();
        (pool_of(&stats, storm.pid())?["exits_total"].as_u64()? >= 3000).then_some(())
    });
    assert_eq!(collector.json("/api/v1/exits")["kept"], 1000);
    assert_eq!(collector.certificate(died)["exit_code"], 3);
}

#[test]
fn five_thousand_processes_beside_change_nothing_for_a_pool() {
    let mut crowd = Workload::start();
    for _ in 0..5000 {
        crowd.tell("spawn sleep");
    }
    for _ in 0..5000 {
        crowd.answer();
    }
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("touch 5000000");
    let collector = Collector::start(&["--source=ebpf"]);
    let pool = collector.pool_of(master.pid(), 2);
    assert_eq!(pool["unlisted"], 0);
    assert_eq!(collector.certificate(master.spawn("exit 3"))["exit_code"], 3);

    // The crowd is a pool as well; it has a ceiling of series and says how many are beyond it.
    let stats = collector.stats();
    let pool = pool_of(&stats, crowd.pid()).unwrap();
    assert_eq!(pool["total"], 5000);
    let listed = pool["workers"].as_array().unwrap().len() as u64;
    assert_eq!(listed + pool["unlisted"].as_u64().unwrap(), 5000);
    assert!(listed <= 2000, "{listed}");
    assert!(stats["collector"]["processes"].as_u64().unwrap() > 5000);
    nothing_was_lost(&stats);
}

/// What was last told of a process is kept by its pid, and two can have one place. Who finds it taken is told in full in
/// each pass, once.
#[test]
fn more_processes_that_share_places_than_one_run_tells_are_told_once_in_a_pass() {
    let mut master = Workload::start();
    let mut spawn = |count: usize| {
        for _ in 0..count {
            master.tell("spawn sleep");
        }
        (0..count).map(|_| master.answer().parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    let begin_with = |pid: u64| {
        let path = "/proc/sys/kernel/ns_last_pid";
        // The write is lost if somebody forks at the same moment.
        eventually("pids go on from there", || {
            std::fs::write(path, (pid - 1).to_string()).unwrap();
            let last: u64 = std::fs::read_to_string(path).unwrap().trim().parse().unwrap();
            (pid - 1..pid + 300).contains(&last).then_some(())
        });
    };
    // Two stretches of pids that hardly anybody has, the one as many above the other as there are places, and both low
    // enough for any `pid_max`. A test before may have left thousands that are still ending.
    let places = collector_ebpf::limits::TOLD_PLACES as u64;
    let living = std::fs::read_dir("/proc").unwrap();
    let living: Vec<u64> =
        living.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect();
    let free = |from: &u64| living.iter().filter(|pid| (*from..from + 1800).contains(pid)).count() < 50;
    let base = (1000..14_000).step_by(200).find(|base| free(base) && free(&(base + places))).unwrap();
    begin_with(base);
    let first = spawn(1600);
    let taken: std::collections::HashSet<u64> = first.iter().map(|pid| pid % places).collect();
    begin_with(base + places);
    let (mut workers, mut shared) = (first.len(), 0);
    while shared <= collector_ebpf::limits::PASS_ROWS + 100 {
        assert!(workers < 3400, "only {shared} of {workers} share a place with another");
        let more = spawn(200);
        workers += more.len();
        shared += more.iter().filter(|pid| taken.contains(&(*pid % places))).count();
    }

    let collector = Collector::start(&["--source=ebpf"]);
    let readings =
        |pool: &Value| pool["quantiles"]["cpu_utilization"]["start"]["count"].as_u64().unwrap_or(0) as usize;
    let before = eventually("all were read", || {
        Some(readings(pool_of(&collector.stats(), master.pid())?)).filter(|count| *count >= workers)
    });
    let (stats, after) = eventually("they were read again", || {
        let stats = collector.stats();
        let after = readings(pool_of(&stats, master.pid())?);
        (after > before).then_some((stats, after))
    });
    assert_eq!((after - before) % workers, 0, "from {before} to {after} readings of {workers} workers");
    assert_eq!(stats["collector"]["losses"]["pass_failed"], 0);
}
