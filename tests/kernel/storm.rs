//! Twenty thousand short lives at the full rate of the machine.

use serde_json::Value;

use crate::support::{Collector, Workload, eventually, pool_of};

fn cpu_seconds(of: &Value) -> f64 {
    of["cpu"]["user_seconds"].as_f64().unwrap() + of["cpu"]["system_seconds"].as_f64().unwrap()
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
    for (reason, count) in stats["collector"]["losses"].as_object().unwrap() {
        assert_eq!(count, 0, "{reason}");
    }
    println!("20,000 children: the parent reaped {reaped:.3} s of CPU, the pool has {ours:.3} s");
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
    for (reason, count) in stats["collector"]["losses"].as_object().unwrap() {
        assert_eq!(count, 0, "{reason}");
    }
}
