//! The collector, profiled by itself while it is kept busy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use super::{Pprof, cpu_seconds, in_pool};
use crate::servers::{Server, command_in, compile};
use crate::support::Collector;

/// Has nothing to do.
const C: &str = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";

struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
        // Also when it panics: the other one is waited for.
        let _stopped = Stopped(&stop);
        run()
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

    // The thread that answers, which is named as the program is. The one that makes profiles has little to do before their end.
    let (begin, before) = (Instant::now(), cpu_seconds(pid));
    let profile =
        while_it_is_busy(&collector, || Pprof::take(&collector, "profile?target=self&seconds=10&hz=999"));
    let (lasted_s, used) = (begin.elapsed().as_secs_f64(), cpu_seconds(pid) - before);
    let (duration_s, sampled_s) = profile.duration_and_total_s();
    println!("sampled {sampled_s} s of {duration_s}, used {used:.3} s of {lasted_s:.3}");
    assert!((9.9..=11.0).contains(&duration_s), "it lasts for {duration_s} s");
    // What it used meanwhile was at most in this time, and at least what was not in the rest. Samples of 1 ms: of a second of CPU time they are
    // 1,000, which vary by 3 % (standard deviation).
    let (least, most) = (used - (lasted_s - duration_s), used);
    assert!(
        (least * 0.9 - 0.05..=most * 1.1 + 0.05).contains(&sampled_s),
        "sampled {sampled_s} s, used {least} to {most} s"
    );

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
