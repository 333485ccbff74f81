//! Who is a worker, in which slot and generation, whatever it does to its name and program.

use nix::sys::signal::{Signal, kill};

use crate::support::{Collector, Workload, eventually, pool_of, worker};

#[test]
fn a_pool_is_found_and_a_successor_takes_the_slot() {
    let mut master = Workload::start();
    let first = [master.spawn("sleep"), master.spawn("sleep")];
    let collector = Collector::start(&["--source=ebpf"]);
    let pool = collector.pool_of(master.pid(), 2);
    assert_eq!(pool["origin"], "zero-config");
    assert_eq!(pool["spawns_total"], 0, "they lived before we looked");
    for pid in first {
        assert_eq!(worker(&pool, pid).unwrap()["generation"], 1);
    }

    let third = master.spawn("sleep");
    let pool = collector.pool_of(master.pid(), 3);
    assert_eq!(pool["spawns_total"], 1);
    assert_eq!(worker(&pool, third).unwrap()["slot"], 2);

    let slot = worker(&pool, first[0]).unwrap()["slot"].clone();
    kill(first[0], Signal::SIGKILL).unwrap();
    let certificate = collector.certificate(first[0]);
    assert_eq!(certificate["slot"], slot);
    let successor = master.spawn("sleep");
    let pool = eventually("the successor is read", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        worker(pool, successor)?.get("cpu")?;
        Some(pool.clone())
    });
    let found = worker(&pool, successor).unwrap();
    assert_eq!((&found["slot"], &found["generation"]), (&slot, &2.into()));
    assert_eq!(pool["total"], 3);
}

#[test]
fn a_worker_that_runs_another_program_leaves_and_is_counted() {
    let mut master = Workload::start();
    let (stays, _) = (master.spawn("sleep"), master.spawn("sleep"));
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    for behaviour in ["exec /bin/sleep 1000", "thread-exec /bin/sleep 1000"] {
        let before = collector.pool_of(master.pid(), 2)["totals"]["exits"]["reclassified"].as_u64().unwrap();
        let changed = master.spawn(behaviour);
        let pool = eventually("it left the pool", || {
            let stats = collector.stats();
            let pool = pool_of(&stats, master.pid())?;
            (pool["totals"]["exits"]["reclassified"] == before + 1).then(|| pool.clone())
        });
        assert!(worker(&pool, changed).is_none(), "{behaviour}");
        assert!(worker(&pool, stays).is_some());
        kill(changed, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn hostile_names_reach_no_format() {
    let mut master = Workload::start();
    master.spawn("sleep");
    // `a"b\c`, a newline, `{}`, an escape and a byte that no UTF-8 has.
    let hostile = master.spawn("name 6122625c630a7b7d1bff");
    let collector = Collector::start(&["--source=ebpf"]);
    let pool = collector.pool_of(master.pid(), 2);
    assert_eq!(worker(&pool, hostile).unwrap()["comm"], "a\"b\\c\n{}\u{1b}\u{fffd}");
    let text = collector.text("/metrics", "text/plain");
    let line = text
        .lines()
        .find(|l| l.starts_with("worker_info{") && l.contains(&format!("pid=\"{hostile}\"")))
        .expect("it has a line of its own");
    assert!(line.contains(r#"comm="a\"b\\c\n{}"#), "{line}");

    // Another name under way.
    let renamed = master.spawn("name 6e6577");
    eventually("the new name shows", || {
        let stats = collector.stats();
        (worker(pool_of(&stats, master.pid())?, renamed)?["comm"] == "new").then_some(())
    });
}

#[test]
fn a_pid_that_returns_within_one_interval_is_another_worker() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let first = master.spawn("exit 7");
    eventually("the first can be reaped", || (master.ask("reap") == "1").then_some(()));
    let last_pid = std::path::Path::new("/proc/sys/kernel/ns_last_pid");
    let mut others = Vec::new();
    let again = eventually("the pid comes back", || {
        std::fs::write(last_pid, (first.as_raw() - 1).to_string()).expect("root may choose the next pid");
        let pid = master.spawn("exit 9");
        if pid == first {
            return Some(pid);
        }
        others.push(pid);
        None
    });
    let certificates = eventually("both have ended", || {
        let exits = collector.json("/api/v1/exits");
        let of_pid: Vec<_> =
            exits["exits"].as_array()?.iter().filter(|e| e["pid"] == again.as_raw()).cloned().collect();
        (of_pid.len() == 2).then_some(of_pid)
    });
    // Newest first.
    assert_eq!((&certificates[0]["exit_code"], &certificates[1]["exit_code"]), (&9.into(), &7.into()));
    assert_ne!(certificates[0]["id"], certificates[1]["id"]);
}

#[test]
fn workers_outlive_their_master() {
    let mut master = Workload::start();
    let orphans = [master.spawn("orphan sleep"), master.spawn("orphan sleep")];
    let collector = Collector::start(&["--source=ebpf"]);
    let name = collector.pool_of(master.pid(), 2)["name"].as_str().unwrap().to_owned();
    master.tell("exit");
    let path = format!("/api/v1/pools/{name}");
    let pool = eventually("the pool has no master", || {
        let pool = collector.json(&path);
        pool["masters"].as_array()?.is_empty().then_some(pool)
    });
    assert_eq!(pool["total"], 2);
    for orphan in orphans {
        assert!(worker(&pool, orphan).is_some());
        kill(orphan, Signal::SIGKILL).unwrap();
        assert_eq!(collector.certificate(orphan)["signal"]["name"], "SIGKILL");
    }
    eventually("the pool is empty", || (collector.json(&path)["total"] == 0).then_some(()));
}

#[test]
fn a_worker_that_forks_workers_of_its_own_is_both() {
    // Two masters of one program make a pool of their parent, which is this test.
    let mut masters = [Workload::start(), Workload::start()];
    for master in &mut masters {
        master.spawn("sleep");
        master.spawn("sleep");
    }
    let collector = Collector::start(&["--source=ebpf"]);
    for master in &mut masters {
        let pool = collector.pool_of(master.pid(), 2);
        let child = master.spawn("exit 3");
        let certificate = collector.certificate(child);
        assert_eq!((&certificate["pool"], &certificate["exit_code"]), (&pool["name"], &3.into()));
    }
    let ours = collector.pool_of(nix::unistd::Pid::this(), 2);
    for master in &masters {
        assert!(worker(&ours, master.pid()).is_some(), "{ours}");
    }
}
