//! Whoever samples: how often it wakes up, and how it ends.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hostile::SPREAD;
use super::{Pprof, in_pool, in_pool_of};
use crate::servers::{Server, command_in, compile};
use crate::support::{collector_command, eventually};

/// How often a thread of the collector has gone to sleep.
fn sleeps_of(collector: Pid, name: &str) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{collector}/task")).unwrap();
    let named =
        |at: &Path| std::fs::read_to_string(at.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
    let thread = threads.map(|thread| thread.unwrap().path()).find(|at| named(at)).expect("it has one");
    let status = std::fs::read_to_string(thread.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("the kernel tells").trim().parse().unwrap()
}

/// Each is some 30 µs of CPU time, whatever is done then.
#[test]
fn whoever_samples_sleeps_for_most_of_a_capture_and_for_all_of_the_time_between() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "spread", SPREAD, &["-O2"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let _worker = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "spread");
    Pprof::take(&collector, "profile?pool=spread&seconds=1");
    let before = sleeps_of(collector.pid(), "profile");
    Pprof::take(&collector, "offcpu?pool=spread&seconds=4");
    let waiting = sleeps_of(collector.pid(), "profile");
    Pprof::take(&collector, "profile?pool=spread&seconds=4");
    let running = sleeps_of(collector.pid(), "profile");
    println!(
        "it slept {} times while waits were sampled, {} times otherwise",
        waiting - before,
        running - waiting
    );
    // Twice a second; when it is asked, when it answers, and once for what it had not met.
    assert!(waiting - before <= 16 && running - waiting <= 16, "{before}, {waiting}, {running}");
    let uptime_s = || collector.stats()["uptime_seconds"].as_f64().unwrap();
    let since_s = uptime_s();
    eventually("two seconds have passed", || (uptime_s() > since_s + 2.0).then_some(()));
    let after = sleeps_of(collector.pid(), "profile");
    assert!(after - running <= 1, "it slept {} times while nobody asked", after - running);
}

/// With each sample it is to be known what it has mapped, which nobody may see, and nobody looks for it each time.
#[test]
fn a_process_whose_address_space_cannot_be_read_is_not_looked_at_with_each_sample() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let program = compile(directory.path(), "spread", SPREAD, &["-O2"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let _worker = Server::start_ended_by(Signal::SIGKILL, command.uid(65534).gid(65534));
    let collector = in_pool_of(directory.path(), "spread", |flags| {
        let command = collector_command(flags);
        let mut without = Command::new("setpriv");
        without.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]).arg(command.get_program());
        without.args(command.get_args()).stdin(Stdio::null());
        without
    });
    Pprof::take(&collector, "profile?pool=spread&seconds=1&hz=999");
    let before = sleeps_of(collector.pid(), "profile");
    let profile = Pprof::take(&collector, "profile?pool=spread&seconds=4&hz=999");
    let sleeps = sleeps_of(collector.pid(), "profile") - before;
    let (_, sampled) = profile.duration_and_total_s();
    println!("it slept {sleeps} times, and sampled {sampled} s");
    assert!(sampled > 2.0, "{sampled} s");
    // Nor is a stack said to be whole of which nothing is known.
    let truncated = profile.top(&[]).get("[truncated]").copied().unwrap_or_default().1;
    assert!(truncated > 99.0, "{truncated} %");
    // Twice a second for the period, and then less and less often for the process.
    assert!(sleeps <= 40, "{sleeps}");
}

/// Whoever waits for a capture when the collector is told to end is told so, and keeps it from ending for no longer.
#[test]
fn captures_end_with_the_collector() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "spread", SPREAD, &["-O2"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let _worker = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "spread");
    std::thread::scope(|scope| {
        let captures = ["profile", "offcpu", "wall"].map(|kind| {
            let collector = &collector;
            let path = format!("/debug/pprof/{kind}?pool=spread&seconds=60");
            scope.spawn(move || {
                let mut response = collector.request(&path, &[]).expect("it answers");
                (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
            })
        });
        eventually("all have begun", || {
            let metrics = collector.request("/metrics", &[]).ok()?.body_mut().read_to_string().ok()?;
            metrics.lines().any(|line| line == "collector_profile_captures_total 3").then_some(())
        });
        // Who waits for a place finds one when the others have ended, and gets none.
        for _ in 0..4 {
            let collector = &collector;
            scope.spawn(move || {
                while let Ok(response) = collector.request("/debug/pprof/profile?seconds=59", &[]) {
                    assert_ne!(response.status(), 200);
                }
            });
        }
        kill(collector.pid(), Signal::SIGTERM).unwrap();
        for capture in captures {
            let (status, body) = capture.join().unwrap();
            assert_eq!(status, 503, "{body}");
            assert!(body.contains("shutting down"), "{body}");
        }
    });
    assert!(!collector.log().contains("cut off"), "{}", collector.log());
}
