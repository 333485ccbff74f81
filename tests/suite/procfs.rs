//! Watching through `/proc` alone gives the same answers, as far as `/proc` knows them.

use nix::sys::signal::{Signal, kill};

use crate::support::{Collector, Workload, eventually, pool_of, stat_field, worker};

#[test]
fn a_pool_is_found_and_its_workers_are_read() {
    let mut master = Workload::start();
    let workers = [master.spawn("touch 5000000"), master.spawn("burn 500")];
    let collector = Collector::start(&["--source=procfs"]);
    collector.pool_of(master.pid(), 2);
    assert_eq!(collector.stats()["source"], "procfs");
    // The first reading may have come while it was still touching.
    eventually("the memory that was touched shows", || {
        let stats = collector.stats();
        let touched = &worker(pool_of(&stats, master.pid())?, workers[0])?["memory"]["rss_bytes"];
        (touched.as_u64()? > 5_000_000).then_some(())
    });
    eventually("the CPU that was burnt shows", || {
        let stats = collector.stats();
        let cpu = &worker(pool_of(&stats, master.pid())?, workers[1])?["cpu"];
        let ours = cpu["user_seconds"].as_f64()? + cpu["system_seconds"].as_f64()?;
        let ticks = stat_field(workers[1], 14)? + stat_field(workers[1], 15)?;
        (ours > 0.49 && (ours - ticks as f64 / 100.0).abs() <= 0.02).then_some(())
    });
}

#[test]
fn comings_and_goings_are_noticed() {
    let mut master = Workload::start();
    let first = master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=procfs"]);
    collector.pool_of(master.pid(), 2);
    let third = master.spawn("sleep");
    let pool = collector.pool_of(master.pid(), 3);
    assert_eq!(pool["spawns_total"], 1);
    kill(first, Signal::SIGKILL).unwrap();
    assert_eq!(master.ask("reap").parse::<u32>().map(|n| n <= 1), Ok(true));
    let certificate = collector.certificate(first);
    assert_eq!(certificate["pool"], pool["name"]);
    let pool = collector.pool_of(master.pid(), 2);
    assert!(worker(&pool, third).is_some());
    assert_eq!(pool["exits_total"], 1);
}
