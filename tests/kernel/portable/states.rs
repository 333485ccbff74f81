//! Who works, who waits for work, and for how long, on every kernel.

use std::mem::offset_of;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use collector_ebpf::limits::{MAX_SLOTS, MAX_WATERFALLS};
use collector_ebpf::maps::TIMES;
use collector_ebpf::schedule::Times;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::schedule::{answer_file, measured};
use crate::support::{Collector, PATIENCE, Workload, eventually, pool_of, worker};

fn start(arguments: &[&str]) -> (Workload, Collector) {
    let mut master = Workload::start();
    master.spawn("park poll");
    master.spawn("sleep");
    // However slow the machine is.
    let collector = Collector::start(&[&["--source=ebpf", "--probes.overhead-budget=0"], arguments].concat());
    collector.pool_of(master.pid(), 2);
    (master, collector)
}

/// A worker as it is shown in a pool, once it is in this state.
fn in_state(collector: &Collector, master: Pid, pid: Pid, state: &str) -> Value {
    let mut last = Value::Null;
    let found = || {
        last = worker(pool_of(&collector.stats(), master)?, pid)?.clone();
        (last["state"] == state).then(|| last.clone())
    };
    eventually(&format!("{pid} is {state}"), found)
}

const STATES: [&str; 4] = ["creating", "ready", "active", "idle"];

fn seconds(of: &Value, state: &str) -> f64 {
    of["work"]["state_seconds"][state].as_f64().unwrap_or_else(|| panic!("{state}: {of}"))
}

#[test]
fn each_worker_is_in_the_state_that_its_waiting_says() {
    let (mut master, collector) = start(&[]);
    let found = collector.pool_of(master.pid(), 2);
    // What they did before nobody knows.
    let states = |pool: &Value| -> Vec<String> {
        let workers = pool["workers"].as_array().unwrap();
        workers.iter().map(|worker| worker["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states(&found), ["idle", "active"], "{found}");
    for worker in found["workers"].as_array().unwrap() {
        // RFC 3339: later is greater.
        assert!(worker["since"].as_str().unwrap() >= worker["started"].as_str().unwrap(), "{worker}");
    }
    let expected = [
        ("park poll", "ready"),
        // A lone thread waits for another process, one of several for the others.
        ("park lock", "creating"),
        ("park locks 2", "ready"),
        ("park pipe", "creating"),
        ("park stdin", "ready"),
        ("burn 60000", "creating"),
    ];
    let pids: Vec<(Pid, &str)> =
        expected.into_iter().map(|(behaviour, state)| (master.spawn(behaviour), state)).collect();
    for (pid, state) in &pids {
        let worker = in_state(&collector, master.pid(), *pid, state);
        assert!(worker["work"]["spans"] == 0, "{worker}");
    }
    let pool = eventually("all are counted", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        (pool["ready"] == 3 && pool["creating"] == 3 && pool["active"] == 1 && pool["idle"] == 1)
            .then_some(pool)
    });
    assert_eq!((&pool["total"], &pool["running"]), (&8.into(), &0.into()), "{pool}");
    assert_eq!(pool["utilization"], 1.0 / 8.0, "{pool}");
    let name = pool["name"].as_str().unwrap();
    assert_eq!(
        collector.metric(&format!("worker_pool_workers{{pool=\"{name}\",state=\"ready\"}}")),
        Some(3.0)
    );
}

/// Its threads are found one after the other, the first of them when it looks like a lone one.
#[test]
fn who_is_found_with_all_its_threads_in_a_lock_waits_for_work() {
    let config = std::env::temp_dir().join(format!("locks-{}.yml", std::process::id()));
    let write = |name: &str, more: &str| {
        std::fs::write(&config, format!("pools: [{{name: {name}, parent: {{comm: workload}}{more}}}]"))
            .unwrap();
    };
    write("ours", "");
    let mut master = Workload::start();
    let pids: Vec<Pid> = (0..4).map(|_| master.spawn("park locks 3")).collect();
    let lone = master.spawn("park lock");
    let threads = |pid: Pid| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    eventually("all have begun", || pids.iter().all(|pid| threads(*pid) == 4).then_some(()));
    let collector = Collector::start(&[
        "--source=ebpf",
        "--probes.overhead-budget=0",
        &format!("--config.file={}", config.display()),
    ]);
    // They are found again where their pool asks for less, or is another: then each gets what another one had.
    for (name, more) in [
        ("ours", ""),
        ("ours", ", work: spans"),
        ("theirs", ""),
        ("theirs", ", scheduler: none"),
        ("theirs", ""),
    ] {
        write(name, more);
        kill(collector.pid(), Signal::SIGHUP).unwrap();
        let waits = if more.ends_with("none") { "running" } else { "idle" };
        eventually("those of several threads wait for work", || {
            let stats = collector.stats();
            let pool = pool_of(&stats, master.pid()).filter(|pool| pool["name"] == name)?;
            let state = |pid: &Pid| worker(pool, *pid)?["state"].as_str();
            let others = if waits == "running" { waits } else { "active" };
            let as_expected =
                state(&lone) == Some(others) && pids.iter().all(|pid| state(pid) == Some(waits));
            as_expected.then_some(())
        });
    }
    let _ = std::fs::remove_file(config);
}

/// It waits for another process then, and has not moved.
#[test]
fn who_is_left_alone_in_a_lock_is_active() {
    let (mut master, collector) = start(&[]);
    let pid = master.spawn("park left");
    in_state(&collector, master.pid(), pid, "ready");
    eventually("it has been active for longer than a wake-up takes", || {
        let worker = in_state(&collector, master.pid(), pid, "active");
        let since = worker["since"].as_str()?.parse::<jiff::Timestamp>().ok()?;
        (jiff::Timestamp::now().duration_since(since).as_secs() >= 1).then_some(())
    });
}

/// Some of so many are born while all are read, before anybody has heard of them, and none of them ever moves again.
#[test]
fn whoever_is_born_at_whatever_moment_has_its_state_and_its_figures() {
    const BORN: usize = 400;
    let config = std::env::temp_dir().join(format!("born-{}.yml", std::process::id()));
    std::fs::write(&config, "interval: 100ms\n").unwrap();
    let (mut master, collector) = start(&[&format!("--config.file={}", config.display())]);
    for _ in 0..BORN {
        master.spawn("park poll");
        // Spread over many readings.
        std::thread::sleep(Duration::from_millis(4));
    }
    eventually("all are ready and have their figures", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        let read = |worker: &&Value| worker["memory"]["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 0);
        let read = pool["workers"].as_array()?.iter().filter(read).count();
        (pool["ready"] == BORN && read == BORN + 2).then_some(())
    });
    let _ = std::fs::remove_file(config);
}

#[test]
fn a_wait_that_a_stop_interrupts_is_as_it_was() {
    let (mut master, collector) = start(&[]);
    let pid = master.spawn("park restarted");
    let of = |worker: &Value, kind: &str| worker["schedule"]["seconds"][kind].as_f64().unwrap();
    in_state(&collector, master.pid(), pid, "ready");
    kill(pid, Signal::SIGSTOP).unwrap();
    let stopped = in_state(&collector, master.pid(), pid, "active");
    kill(pid, Signal::SIGCONT).unwrap();
    let again = in_state(&collector, master.pid(), pid, "idle");
    let later = eventually("it waits on", || {
        let worker = in_state(&collector, master.pid(), pid, "idle");
        (of(&worker, "poll") > of(&again, "poll") + 1.0).then_some(worker)
    });
    assert!(of(&later, "stopped") >= of(&stopped, "stopped"), "{later}");
    let others: f64 = ["sleep", "other", "network", "lock"].map(|kind| of(&later, kind)).iter().sum();
    assert!(others < 0.01, "{later}");
}

#[test]
fn where_a_pool_waits_for_work_can_be_configured() {
    let config = std::env::temp_dir().join(format!("idle-in-{}.yml", std::process::id()));
    let write = |kinds: &str| {
        std::fs::write(
            &config,
            format!("pools: [{{name: ours, parent: {{comm: workload}}, idle_in: [{kinds}]}}]"),
        )
        .unwrap();
    };
    write("pipe, sleep");
    let (mut master, collector) = start(&[&format!("--config.file={}", config.display())]);
    let piped = master.spawn("park pipe");
    in_state(&collector, master.pid(), piped, "ready");
    let polling = master.spawn("park poll");
    in_state(&collector, master.pid(), polling, "creating");
    let slept = |state| {
        eventually("the sleeper's state", || {
            let pool = pool_of(&collector.stats(), master.pid())?.clone();
            (pool["workers"][1]["state"] == state).then_some(())
        })
    };
    // pause(2) is sleep.
    slept("idle");
    write("poll");
    kill(collector.pid(), Signal::SIGHUP).unwrap();
    slept("active");
    // They are followed on, and have not moved: the one has never worked, the other was ready before.
    in_state(&collector, master.pid(), polling, "ready");
    in_state(&collector, master.pid(), piped, "active");
    let pool = pool_of(&collector.stats(), master.pid()).unwrap().clone();
    let births = &pool["quantiles"]["spawn_to_ready_seconds"]["start"];
    assert_eq!(births["count"], 1, "when the one that polls was ready is not known: {pool}");
    let _ = std::fs::remove_file(config);
}

/// Whatever it did while that was no wait for work.
#[test]
fn no_span_is_of_the_time_in_which_other_waits_were_for_work() {
    const BUSY: Duration = Duration::from_secs(4);
    let config = std::env::temp_dir().join(format!("widened-{}.yml", std::process::id()));
    let write = |kinds: &str| {
        let pool = format!("pools: [{{name: ours, parent: {{comm: workload}}, idle_in: [{kinds}]}}]");
        std::fs::write(&config, pool).unwrap();
    };
    write("poll");
    let (mut master, collector) = start(&[&format!("--config.file={}", config.display())]);
    let file = answer_file("widened");
    let pid = master.spawn(&format!("spans 100000 {}", file.display()));
    let spans = || worker(pool_of(&collector.stats(), master.pid())?, pid)?["work"]["spans"].as_u64();
    eventually("it has work, and waits", || spans().filter(|spans| *spans > 10));
    let turned_to = |kinds: &str| {
        write(kinds);
        kill(collector.pid(), Signal::SIGHUP).unwrap();
    };
    turned_to("child");
    eventually("nothing that it does is a wait for work", || {
        let active = in_state(&collector, master.pid(), pid, "active");
        let since = active["since"].as_str()?.parse::<jiff::Timestamp>().ok()?;
        (jiff::Timestamp::now().duration_since(since).as_millis() > BUSY.as_millis() as i128).then_some(())
    });
    let before = spans().unwrap();
    turned_to("poll");
    let work = eventually("it waits for work again", || {
        let work = worker(pool_of(&collector.stats(), master.pid())?, pid)?["work"].clone();
        (work["spans"].as_u64()? > before + 10).then_some(work)
    });
    let longest = work["span_seconds"]["start"]["max"].as_f64().unwrap();
    assert!(longest < BUSY.as_secs_f64(), "{work}");
    let _ = std::fs::remove_file(config);
}

/// As happens where a thread wakes up in the moment in which it is taken to wait, or not to, for which no test can wait.
#[test]
fn a_thread_that_is_counted_twice_makes_nobody_busy_for_ever() {
    let config = std::env::temp_dir().join(format!("counted-{}.yml", std::process::id()));
    let write = |kinds: &str| {
        let pool = format!("{{name: ours, parent: {{comm: workload}}, idle_in: [{kinds}]}}");
        std::fs::write(&config, format!("zero_config: false\npools: [{pool}]")).unwrap();
    };
    write("poll");
    let (master, collector) = start(&[&format!("--config.file={}", config.display())]);
    let first_is = |state: &str| {
        eventually(&format!("the one that polls is {state}"), || {
            let pool = pool_of(&collector.stats(), master.pid())?.clone();
            (pool["workers"][0]["state"] == state).then_some(())
        });
    };
    first_is("idle");
    assert_eq!(count_once_more(&collector), 1, "workers with one thread, which waits for work");
    for (kinds, state) in [("child", "active"), ("poll", "idle")] {
        write(kinds);
        kill(collector.pid(), Signal::SIGHUP).unwrap();
        first_is(state);
    }
    let _ = std::fs::remove_file(config);
}

/// Counts a thread of each worker that has one, and waits, as one that does not. Returns how many these are. Nobody else may
/// be followed that does anything.
fn count_once_more(collector: &Collector) -> usize {
    const SIZE: usize = size_of::<Times>();
    let files = std::fs::read_dir(format!("/proc/{}/fdinfo", collector.pid())).unwrap();
    let mut maps = files.filter_map(|file| {
        let text = std::fs::read_to_string(file.unwrap().path()).ok()?;
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"))?;
        Some(MapData::from_id(id.trim().parse().unwrap()).unwrap())
    });
    let map = maps.find(|map| map.info().unwrap().name_as_str() == Some(TIMES)).unwrap();
    let count = move || {
        // The one value of the map, as of global variables, with all of them.
        let mut map: Array<_, [[u8; SIZE]; MAX_SLOTS + MAX_WATERFALLS]> = Map::Array(map).try_into().unwrap();
        let mut all = map.get(&0, 0).unwrap();
        let (followed, busy) = (offset_of!(Times, followed), offset_of!(Times, busy));
        let mut waiting = 0;
        for times in &mut all {
            if times[followed..][..4] == 1u32.to_ne_bytes() && times[busy..][..8] == 0u64.to_ne_bytes() {
                times[busy..][..8].copy_from_slice(&1u64.to_ne_bytes());
                waiting += 1;
            }
        }
        map.set(0, all, 0).unwrap();
        waiting
    };
    // Of three megabytes.
    std::thread::Builder::new().stack_size(64 << 20).spawn(count).unwrap().join().unwrap()
}

/// Whoever does not move is in other states, too, and its time adds up.
#[test]
fn who_waits_is_active_while_its_life_is_its_work() {
    let config = std::env::temp_dir().join(format!("life-{}.yml", std::process::id()));
    let write = |more: &str| {
        std::fs::write(&config, format!("pools: [{{name: ours, parent: {{comm: workload}}{more}}}]"))
            .unwrap();
    };
    write(", work: spans");
    let (mut master, collector) = start(&[&format!("--config.file={}", config.display())]);
    let pid = master.spawn("park poll");
    let mut shown = in_state(&collector, master.pid(), pid, "ready");
    for (more, state) in [
        (", work: runs", "active"),
        (", work: spans", "ready"),
        (", work: runs, scheduler: counters", "active"),
        ("", "ready"),
    ] {
        write(more);
        kill(collector.pid(), Signal::SIGHUP).unwrap();
        let before = in_state(&collector, master.pid(), pid, state);
        let after = eventually("more time passes, and adds up", || {
            let worker = in_state(&collector, master.pid(), pid, state);
            let sum: f64 = STATES.map(|state| seconds(&worker, state)).iter().sum();
            // Unless the machine stood still between what is read from the kernel and the clock.
            let adds_up = (sum - worker["uptime_seconds"].as_f64()?).abs() < 0.02;
            (seconds(&worker, state) > seconds(&before, state) && adds_up).then_some(worker)
        });
        for other in STATES {
            assert!(seconds(&after, other) >= seconds(&shown, other), "{more}: {shown}, and then {after}");
            if other != state {
                assert_eq!(seconds(&after, other), seconds(&before, other), "{more}: {after}");
            }
        }
        shown = after;
    }
    let _ = std::fs::remove_file(config);
}

#[test]
fn time_in_states_is_that_of_the_worker_and_adds_up() {
    const SPANS: u64 = 100;
    let (mut master, collector) = start(&[]);
    let file = answer_file("spans");
    // Who is not seen to be woken up waits on, until it is seen to do something else.
    let (pid, truth, worker, uptime) = collector.with_all_seen(|| {
        let (pid, truth) = measured(&mut master, &format!("spans {SPANS} {}", file.display()), &file);
        let (worker, uptime) = eventually("the last state was read", || {
            let shown = in_state(&collector, master.pid(), pid, "active");
            let uptime = shown["uptime_seconds"].as_f64().unwrap();
            // Unless the machine stood still between what is read from the kernel and the clock.
            let read = STATES.iter().map(|state| seconds(&shown, state)).sum::<f64>();
            let at_once = (read - uptime).abs() < 0.02;
            (shown["work"]["spans"] == SPANS && at_once).then_some((shown, uptime))
        });
        (pid, truth, worker, uptime)
    });
    let [creating_least, creating_most, ready_least, ready_most, idle_least, idle_most] = truth[..6] else {
        panic!("{truth:?}")
    };
    let spans_ns = truth[6..].iter().sum::<u64>();
    let near = |state: &str, least_ns: u64, most_ns: u64| {
        let ours = seconds(&worker, state);
        let (least, most) = (least_ns as f64 / 1e9, most_ns as f64 / 1e9);
        println!("{state}: {ours} s; {least} to {most} s as the worker measured it");
        assert!(ours >= least && ours <= most, "{state}: {ours} s, not {least} to {most} s: {worker}");
    };
    near("creating", creating_least - 1_000_000, creating_most + 1_000_000);
    near("ready", ready_least - 3_000_000, ready_most + 3_000_000);
    near("idle", idle_least - 3_000_000, idle_most + 3_000_000);
    // It has worked on since.
    let uptime_ns = (uptime * 1e9) as u64;
    near("active", spans_ns * 999 / 1000, uptime_ns + 25_000_000 - creating_least - ready_least - idle_least);

    let sum = |pool: &Value| -> f64 {
        pool["work"]["state_seconds"].as_object().unwrap().values().map(|s| s.as_f64().unwrap()).sum()
    };
    let before = pool_of(&collector.stats(), master.pid()).unwrap().clone();
    let killed = Instant::now();
    kill(pid, Signal::SIGKILL).unwrap();
    // Its life ends where the kernel tells of its exit, its states where its last thread leaves its CPU: between is what it
    // takes to give everything back, which is no more than from here on.
    let stat = format!("/proc/{pid}/stat");
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        assert!(killed.elapsed() < PATIENCE, "{pid} does not end");
    }
    let ending = killed.elapsed().as_secs_f64();
    let certificate = collector.certificate(pid);
    let lived = certificate["lifetime_seconds"].as_f64().unwrap();
    let others = |pool: &Value| -> f64 {
        let workers = pool["workers"].as_array().unwrap().iter();
        workers.filter(|w| w["pid"] != pid.as_raw()).map(sum).sum()
    };
    let after = eventually("its states add up to its life", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        let known = pool["total"].as_u64()? + 1 == before["total"].as_u64()?;
        let more = sum(&pool) - others(&pool) - lived;
        println!("{more} s more than its life, it ended within {ending} s");
        (known && (-0.01..=ending + 0.01).contains(&more)).then_some(pool)
    });
    assert!(
        after["work"]["state_seconds"]["idle"].as_f64() >= before["work"]["state_seconds"]["idle"].as_f64()
    );
}

#[test]
fn lives_too_short_to_be_read_are_in_the_time_of_states() {
    const WORKERS: u64 = 1500;
    let (mut master, collector) = start(&[]);
    master.ask(&format!("storm {WORKERS} 500"));
    let pool = eventually("all have ended", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        (pool["exits_total"].as_u64()? >= WORKERS && pool["awaiting_final_cpu"] == 0).then(|| pool.clone())
    });
    let name = pool["name"].as_str().unwrap();
    let lived = collector.metric(&format!("worker_pool_lifetime_seconds_sum{{pool=\"{name}\"}}")).unwrap();
    let creating = seconds(&pool, "creating");
    // From fork to end, both; the one to the last switch, the other to the last thread's exit.
    assert!((creating / lived - 1.0).abs() < 0.1, "{creating} s of {lived} s");
    assert!(creating > WORKERS as f64 * 500e-6, "{creating}");
    assert_eq!(pool["work"]["spans"], 0, "none of them ever waited for work: {pool}");
}

#[test]
fn who_works_or_waits_for_too_long_is_flagged_and_looked_at() {
    let config = std::env::temp_dir().join(format!("flags-{}.yml", std::process::id()));
    std::fs::write(&config, "stuck_after: 2s\nidle_ttl: 3s\n").unwrap();
    let (mut master, collector) = start(&[&format!("--config.file={}", config.display())]);
    let parent = master.pid();
    let found = |workers: usize| {
        let stats = collector.stats();
        let pool = pool_of(&stats, parent)?;
        (pool["stuck"] == 1 && pool["stale"] == workers).then(|| pool.clone())
    };
    // The one that sleeps works, to us; the one that polls waits.
    let pool = eventually("one is stuck, one is stale", || found(1));
    let workers = pool["workers"].as_array().unwrap();
    let flag = |worker: &Value| worker["flag"]["name"].as_str().map(str::to_owned);
    assert_eq!(
        (flag(&workers[0]).as_deref(), flag(&workers[1]).as_deref()),
        (Some("stale"), Some("stuck")),
        "{pool}"
    );
    let doing = &workers[1]["flag"]["doing"]["threads"][0];
    assert_eq!(doing["syscall"], "pause", "{pool}");
    assert_eq!(doing["state"], "S", "{pool}");
    let stack: Vec<&str> =
        doing["kernel_stack"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    // Where it waits, without the scheduler, and how it came there.
    assert!(stack[0].contains("sys_pause+"), "{stack:?}");
    assert!(stack.iter().any(|frame| frame.starts_with("do_syscall_64+")), "{stack:?}");
    assert!(workers[0]["flag"]["doing"].is_null(), "{pool}");
    let since = |worker: &Value, what: &str| -> jiff::Timestamp {
        let at = if what == "flag" { &worker["flag"]["since"] } else { &worker["since"] };
        at.as_str().unwrap().parse().unwrap()
    };
    for (worker, limit_s) in [(&workers[0], 3), (&workers[1], 2)] {
        let after = since(worker, "flag").duration_since(since(worker, "state"));
        assert_eq!(after.as_secs(), limit_s, "{worker}");
    }
    // One that works in between is neither.
    let file = answer_file("spans");
    let busy = master.spawn(&format!("spans 400 {}", file.display()));
    let ready = master.spawn("park poll");
    let pool = eventually("the new one that waits is stale", || found(2));
    assert_eq!(flag(worker(&pool, ready).unwrap()).as_deref(), Some("stale"));
    assert_eq!(flag(worker(&pool, busy).unwrap()), None, "{pool}");
    let name = pool["name"].as_str().unwrap();
    let count = |series: &str| collector.metric(&format!("{series}{{pool=\"{name}\",flag=\"stale\"}}"));
    assert_eq!(count("worker_pool_flagged_workers"), Some(2.0));
    assert_eq!(count("worker_pool_flag_entries_total"), Some(2.0));
    // It ends, and its parent does not look.
    kill(ready, Signal::SIGKILL).unwrap();
    let pool = eventually("it is defunct", || {
        let pool = pool_of(&collector.stats(), master.pid())?.clone();
        (pool["defunct"] == 1).then_some(pool)
    });
    assert_eq!(pool["defunct_workers"][0]["pid"], ready.as_raw(), "{pool}");
    assert_eq!(pool["flag_entries"]["defunct"], 1, "{pool}");
    assert_eq!(pool["stale"], 1, "{pool}");
    let _ = (std::fs::remove_file(config), std::fs::remove_file(file));
}

/// Whoever runs meanwhile is read anew each time.
#[test]
fn who_is_stuck_and_runs_has_its_flag_once() {
    let config = std::env::temp_dir().join(format!("flagged-{}.yml", std::process::id()));
    std::fs::write(&config, "interval: 100ms\nstuck_after: 1s\n").unwrap();
    let mut master = Workload::start();
    // Born before it is watched it counts as one that was ready.
    let pid = master.spawn("duty 10 600000");
    master.spawn("sleep");
    let config_flag = format!("--config.file={}", config.display());
    let collector = Collector::start(&["--source=ebpf", "--probes.overhead-budget=0", &config_flag]);
    let read = |after_s: f64| {
        eventually("it is stuck, and was looked at", || {
            let pool = pool_of(&collector.stats(), master.pid())?.clone();
            let worker = worker(&pool, pid)?.clone();
            let flagged = pool["stuck"] == 2 && !worker["flag"]["doing"].is_null();
            (flagged && worker["uptime_seconds"].as_f64()? > after_s).then_some((pool, worker))
        })
    };
    let (_, before) = read(0.0);
    let (pool, worker) = read(before["uptime_seconds"].as_f64().unwrap() + 3.0);
    let on_cpu = |worker: &Value| worker["schedule"]["seconds"]["on_cpu"].as_f64().unwrap();
    assert!(on_cpu(&worker) > on_cpu(&before), "{worker}");
    assert_eq!(worker["flag"], before["flag"]);
    assert_eq!(worker["since"], before["since"]);
    assert_eq!(pool["flag_entries"]["stuck"], 2, "{pool}");
    let _ = std::fs::remove_file(config);
}
