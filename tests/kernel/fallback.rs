//! Without eBPF: the process connector tells of every end, and what stands in the way of more has a name.

use crate::support::{Collector, Workload, eventually, pool_of, worker};

#[test]
fn without_the_kernels_types_it_falls_back_and_says_why() {
    let collector = Collector::start(&["--source=auto", "--path.sysfs=/nonexistent"]);
    let stats = collector.stats();
    assert_eq!(stats["source"], "procfs");
    let feature = |name: &str| {
        let features = stats["collector"]["features"].as_array().unwrap();
        features.iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("no feature {name}")).clone()
    };
    let ebpf = feature("ebpf");
    assert_eq!(ebpf["enabled"], false);
    assert!(ebpf["reason"].as_str().unwrap().contains("/nonexistent/kernel/btf/vmlinux"), "{ebpf}");
    assert!(ebpf["remedy"].as_str().unwrap().contains("CONFIG_DEBUG_INFO_BTF"), "{ebpf}");
    assert!(collector.log().contains("/nonexistent/kernel/btf/vmlinux"), "{}", collector.log());
    let text = collector.text("/metrics", "text/plain");
    assert!(text.contains("collector_feature_enabled{feature=\"ebpf\",reason="), "a metric says it, too");
}

#[test]
fn the_connector_tells_how_workers_end() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=procfs"]);
    collector.pool_of(master.pid(), 2);
    assert_eq!(collector.certificate(master.spawn("exit 3"))["exit_code"], 3);
    assert_eq!(collector.certificate(master.spawn("abort"))["signal"]["name"], "SIGABRT");
    assert_eq!(collector.certificate(master.spawn("last-thread 100 5"))["exit_code"], 5);
    let renamed = master.spawn("name 6e6577");
    eventually("the new name shows", || {
        let stats = collector.stats();
        (worker(pool_of(&stats, master.pid())?, renamed)?["comm"] == "new").then_some(())
    });
    let stats = collector.stats();
    let pool = pool_of(&stats, master.pid()).unwrap();
    assert_eq!((&pool["spawns_total"], &pool["exits_total"]), (&4.into(), &3.into()));
    assert_eq!(pool["defunct"], 3, "their master has not reaped them");
    assert_eq!(master.ask("reap"), "3");
    eventually("none is defunct", || {
        let stats = collector.stats();
        (pool_of(&stats, master.pid())?["defunct"] == 0).then_some(())
    });
}

#[test]
fn the_connector_tells_of_every_run() {
    crate::portable::runs::check_every_run("--source=procfs");
}

#[test]
fn a_storm_is_counted_through_the_connector() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=procfs"]);
    collector.pool_of(master.pid(), 2);
    master.ask("storm 2000 0");
    let stats = eventually("all have ended", || {
        let stats = collector.stats();
        (pool_of(&stats, master.pid())?["totals"]["exits"]["success"] == 2000).then_some(stats)
    });
    assert_eq!(pool_of(&stats, master.pid()).unwrap()["spawns_total"], 2000);
}
