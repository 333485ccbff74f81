//! SIGHUP: a good file takes effect, a bad one changes nothing and is reported.

use nix::sys::signal::{Signal, kill};

use crate::support::{Collector, Workload, eventually};

#[test]
fn a_good_file_takes_effect_and_a_bad_one_does_not() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("collector.yml");
    std::fs::write(&path, "zero_config: false\npools: [{name: first, match: {comm: workload}}]\n").unwrap();
    let collector = Collector::start(&["--source=procfs", &format!("--config.file={}", path.display())]);
    let names = || -> Vec<String> {
        let summary = collector.json("/api/v1/summary");
        let pools = summary["pools"].as_array().unwrap();
        pools.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(), ["first"]);

    std::fs::write(
        &path,
        "zero_config: false\npools: [{name: second, match: {comm: workload}}, {name: empty, match: {comm: nobody}}]\n",
    )
    .unwrap();
    kill(collector.pid(), Signal::SIGHUP).unwrap();
    eventually("the new pools are there", || (names() == ["empty", "second"]).then_some(()));
    let pool = collector.json("/api/v1/pools/empty");
    assert_eq!((&pool["total"], &pool["rss_bytes"]), (&0.into(), &0.into()), "an empty pool shows zeros");
    eventually("the workers moved", || {
        let pool = collector.json("/api/v1/pools/second");
        (pool["workers"].as_array()?.iter().filter(|w| w["parent"] == master.pid().as_raw()).count() == 2)
            .then_some(())
    });
    assert_eq!(collector.metric("collector_config_last_reload_successful"), Some(1.0));

    let shows = |family: &str| collector.text("/metrics", "text/plain").contains(&format!("\n{family}{{"));
    assert!(shows("worker_threads") && !shows("worker_page_faults_total"), "the default");
    let details = "zero_config: false\nmetrics: {collect: [pools, worker_details, collector]}\npools: [{name: second, match: {comm: workload}}]\n";
    std::fs::write(&path, details).unwrap();
    kill(collector.pid(), Signal::SIGHUP).unwrap();
    eventually("other series are there", || {
        (!shows("worker_threads") && shows("worker_page_faults_total")).then_some(())
    });

    std::fs::write(&path, "pools: [{name: third}]\n").unwrap();
    kill(collector.pid(), Signal::SIGHUP).unwrap();
    eventually("the failure shows", || {
        (collector.metric("collector_config_last_reload_successful")? == 0.0).then_some(())
    });
    assert_eq!(names(), ["second"]);
    assert!(!shows("worker_threads"), "a refused file changes nothing");
    assert!(collector.log().contains("pools[0] (third)"), "the log says why:\n{}", collector.log());
}
