//! What ran some time ago, as it was kept, against a program that has done one thing and then another.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Pprof, in_pool_with};
use crate::servers::{Server, command_in, compile};
use crate::support::eventually;

/// Is in one function until it gets a signal, and in another one from there on.
const C: &str = r#"
#include <signal.h>

static volatile sig_atomic_t turned;
static volatile unsigned long sink;

static void turn(int signal) { turned = signal; }

__attribute__((noinline)) static void before(void) { while (!turned) sink++; }
__attribute__((noinline)) static void after(void) { for (;;) sink++; }

int main(void) {
    signal(SIGUSR1, turn);
    before();
    after();
}
"#;

/// As long as what is kept as one.
const KEPT_AS_ONE: Duration = Duration::from_secs(10);

/// Within what is kept as one.
const MOMENT: Duration = Duration::from_millis(100);

fn at(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Time on CPUs, by the kernel.
fn on_cpu(pid: Pid) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn a_time_that_is_over_is_told_by_those_who_have_ended_too() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "turning", C, &["-O2", "-fomit-frame-pointer"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let worker = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool_with(directory.path(), "turning", &["--profiles.continuous-hz=99"]);
    let is_kept = |from: Duration, to: Duration| {
        let asked = format!("/debug/pprof/profile?debug=1&from={}&to={}", at(from), at(to));
        let answer = collector.request(&asked, &[]).expect("it answers");
        (answer.status() == 200).then(unix_now)
    };
    let begun = unix_now();
    let kept = eventually("something is kept", || is_kept(begun, unix_now()));
    let (turned, ran) = (unix_now(), on_cpu(worker.pid()));
    kill(worker.pid(), Signal::SIGUSR1).unwrap();
    // What has begun before is over by then.
    let (from, to) = (turned + KEPT_AS_ONE, turned + KEPT_AS_ONE + MOMENT);
    let ended = eventually("the time after it is kept", || is_kept(from, to));
    let ran_s = (on_cpu(worker.pid()) - ran).as_secs_f64();
    drop(worker);

    let take = |from: Duration, to: Duration| {
        Pprof::take(&collector, &format!("profile?pool=turning&from={}&to={}", at(from), at(to)))
    };
    // In the one that was the first to be kept.
    let earlier = kept - KEPT_AS_ONE / 2;
    let top = take(earlier, earlier + MOMENT).top(&[]);
    let (_, share) = top.get("before").copied().unwrap_or_default();
    assert!(share >= 99.0 && !top.contains_key("after"), "{top:?}");

    // It has ended meanwhile, and was on a CPU for as long as the kernel says.
    let later = take(from, to);
    let top = later.top(&[]);
    let (_, share) = top.get("after").copied().unwrap_or_default();
    assert!(share >= 99.0 && !top.contains_key("before"), "{top:?}");
    let (duration_s, sampled_s) = later.duration_and_total_s();
    assert!((9.9..=12.0).contains(&duration_s), "it lasts for {duration_s} s");
    // What it ran for meanwhile was at most in this time, and at least what was not in the rest of it.
    let rest_s = (ended - turned).as_secs_f64() - duration_s;
    let (least, most) = (ran_s - rest_s, ran_s.min(duration_s));
    println!("sampled for {sampled_s} of {duration_s} s: at least {least:.3}, at most {most:.3}");
    let slack = duration_s / 50.0;
    assert!((least - slack..=most + slack).contains(&sampled_s), "{sampled_s} s, not {least} to {most}");

    // Who asks for a time of which nothing is kept learns of which something is.
    let mut refused = collector.request("/debug/pprof/profile?from=-3h&to=-2h", &[]).unwrap();
    assert_eq!(refused.status(), 404);
    let text = refused.body_mut().read_to_string().unwrap();
    assert!(text.contains("there is something from 20"), "{text}");
}
