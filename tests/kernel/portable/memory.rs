//! Resident memory against `/proc/PID/stat` and `statm`.

use crate::support::{Collector, Workload, eventually, pool_of, stat_field, worker};

#[test]
fn rss_is_what_proc_says_and_lags_no_more_than_documented() {
    let mut master = Workload::start();
    let collector = Collector::start(&["--source=ebpf"]);
    let workers =
        [master.spawn("touch 1000000"), master.spawn("touch 33000000"), master.spawn("touch 120000000")];
    collector.pool_of(master.pid(), 3);
    let page = 4096;
    for (pid, touched) in workers.into_iter().zip([1_000_000u64, 33_000_000, 120_000_000]) {
        // At rest the figure must come to be the kernel's own, to the byte.
        let ours = eventually(&format!("the RSS of {pid} is what /proc/PID/stat says"), || {
            let before = stat_field(pid, 24)? * page;
            let stats = collector.stats();
            let ours = worker(pool_of(&stats, master.pid())?, pid)?["memory"]["rss_bytes"].as_u64()?;
            let after = stat_field(pid, 24)? * page;
            (before == after && ours == after && ours > touched).then_some(ours)
        });
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        let exact: u64 = statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * page;
        let cpus = std::thread::available_parallelism().unwrap().get() as u64;
        // Three kinds of pages, each in a per-CPU counter with a batch of max(32, 2 × CPUs) pages.
        let bound = 3 * cpus * (2 * cpus).max(32) * page;
        assert!(ours.abs_diff(exact) <= bound, "{pid}: {ours}, statm says {exact}, bound {bound}");
    }
    let stats = collector.stats();
    let pool = pool_of(&stats, master.pid()).unwrap();
    let sum: u64 =
        pool["workers"].as_array().unwrap().iter().map(|w| w["memory"]["rss_bytes"].as_u64().unwrap()).sum();
    assert_eq!(pool["rss_bytes"], sum);
    // Quantiles of what was read: those read while they grew are few, so the median of three comes to be the middle one.
    let middle = worker(pool, workers[1]).unwrap()["memory"]["rss_bytes"].as_f64().unwrap();
    eventually("the median is the middle worker's", || {
        let stats = collector.stats();
        let quantiles = &pool_of(&stats, master.pid())?["quantiles"]["worker_rss_bytes"]["1m"];
        let median = quantiles["p50"].as_f64()?;
        ((median - middle).abs() <= middle * 0.016).then_some(())
    });
}
