//! The collector, profiled by itself while it is kept busy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::{Pprof, in_pool};
use crate::servers::{Server, command_in, compile};
use crate::support::{Collector, eventually};

/// Has nothing to do.
const C: &str = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";

/// CPU time of all threads of a process so far, s. Threads that have ended are not in it.
fn cpu_seconds_of_threads(pid: Pid) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    tasks.flatten().filter_map(of).sum::<f64>() / 1e9
}

/// Asks for everything again and again meanwhile.
fn while_it_is_busy<T>(collector: &Collector, run: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                collector.stats();
                collector.text("/metrics", "text/plain");
            }
        });
        let result = run();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn the_collector_is_profiled_as_it_answers() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "idle", C, &["-O2"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let worker = Server::start(&mut command);
    let collector = in_pool(directory.path(), "idle");
    let pid = collector.pid();
    // Files are read and names are looked up for the first one: what that takes is of no second one.
    Pprof::take(&collector, "profile?target=self&seconds=0.1");

    const SECONDS: Duration = Duration::from_secs(10);
    let (profile, used) = while_it_is_busy(&collector, || {
        let before = cpu_seconds_of_threads(pid);
        let (end, mut used) = (Instant::now() + SECONDS, 0.0);
        let profile = thread::scope(|scope| {
            let profile = scope.spawn(|| Pprof::take(&collector, "profile?target=self&seconds=10&hz=999"));
            eventually("it is over", || (Instant::now() >= end).then_some(()));
            used = cpu_seconds_of_threads(pid) - before;
            profile.join().unwrap()
        });
        (profile, used)
    });
    let (duration_s, sampled_s) = profile.duration_and_total_s();
    println!("sampled {sampled_s} s of {duration_s}, used {used:.3} s");
    assert!((9.9..=11.0).contains(&duration_s), "it lasts for {duration_s} s");
    // Samples of 1 ms: of a second of CPU time they are 1,000, which vary by 3 % (standard deviation).
    assert!((sampled_s - used).abs() <= used * 0.15 + 0.05, "sampled {sampled_s} s, used {used} s");

    let top = profile.top(&[]);
    let share = |name: &str| {
        let found = top.iter().filter(|(function, _)| function.contains(name));
        found.map(|(_, (_, cumulative))| *cumulative).fold(0.0, f64::max)
    };
    for name in ["collector::app::run", "collector::http::server::serve"] {
        let share = share(name);
        println!("{name}: {share} %");
        assert!(share >= 50.0, "{}", profile.text(&["-top", "-cum", "-nodecount=30"]));
    }
    let tags = profile.text(&["-tags"]);
    assert!(tags.contains(&pid.to_string()) && tags.contains("collector"), "{tags}");
    assert!(!tags.contains("pool:"), "it is in none: {tags}");
    drop(worker);
}

#[test]
fn what_the_collector_waits_for_is_told_and_its_workers_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "idle", C, &["-O2"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let worker = Server::start(&mut command);
    let collector = in_pool(directory.path(), "idle");
    for what in ["offcpu", "wall"] {
        let profile = Pprof::take(&collector, &format!("{what}?target=self&seconds=3"));
        let counts = profile.raw();
        assert!(counts.contains("collector::"), "{what}: {counts}");
        let tags = profile.text(&["-tags"]);
        assert!(tags.contains("collect") && !tags.contains(&worker.pid().to_string()), "{what}: {tags}");
    }
    // Nor is it in theirs.
    let of_workers = Pprof::take(&collector, "offcpu?seconds=2").text(&["-tags"]);
    assert!(!of_workers.contains(&collector.pid().to_string()), "{of_workers}");
}
