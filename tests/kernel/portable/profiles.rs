//! Profiles load and count right on every kernel.

use std::time::{Duration, SystemTime};

use crate::support::{Collector, Workload, eventually, stat_field};

/// CPU that a process has used, in seconds: user and system (proc_pid_stat(5)).
fn cpu_seconds(pid: nix::unistd::Pid) -> f64 {
    (stat_field(pid, 14).unwrap() + stat_field(pid, 15).unwrap()) as f64 / 100.0
}

/// How many samples and how many seconds a profile says it has, and how many of them were cut off.
fn header(text: &str) -> (u64, f64, u64) {
    let line = |what: &str| text.lines().find(|line| line.contains(what));
    let number = |line: &str| line.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    let counted = line(" samples, ").or_else(|| line(" waits, ")).unwrap_or_else(|| panic!("{text}"));
    let time = counted.rsplit(' ').next().unwrap();
    // As `Duration` is shown for debugging.
    let units = [("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    let seconds =
        units.iter().find_map(|(unit, factor)| Some(time.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    let truncated = line("truncated").map_or(0, |line| {
        line.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()).unwrap().parse().unwrap()
    });
    (number(counted), seconds.unwrap_or_else(|| panic!("{counted}")), truncated)
}

/// A profile, and by how much what is read rose while it was measured: that begins after it was asked for, and the answer can be there
/// much later.
pub(super) fn profiled(collector: &Collector, path: &str, count: impl Fn() -> f64) -> (String, f64) {
    let (text, read) = std::thread::scope(|scope| {
        let profile = scope.spawn(|| collector.text(path, "*/*"));
        let mut read = Vec::new();
        while !profile.is_finished() {
            read.push((SystemTime::now(), count()));
            std::thread::sleep(Duration::from_millis(10));
        }
        (profile.join().unwrap(), read)
    });
    let line = |begin: &str| {
        text.lines().find_map(|line| line.strip_prefix(begin)).unwrap_or_else(|| panic!("{text}"))
    };
    let began: SystemTime = line("started ").parse::<jiff::Timestamp>().unwrap().into();
    let measured = line("measured for ").strip_suffix('s').and_then(|seconds| seconds.parse().ok());
    let ended = began + Duration::from_secs_f64(measured.unwrap_or_else(|| panic!("{text}")));
    let until = |time: SystemTime| read[read.partition_point(|(at, _)| *at < time).min(read.len() - 1)].1;
    let risen = until(ended) - until(began);
    (text, risen)
}

#[test]
fn samples_stand_for_the_cpu_that_was_used_and_their_stacks_are_whole() {
    let mut master = Workload::start();
    let burner = master.spawn("burn 600000");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let path = format!("/debug/pprof/profile?pid={burner}&seconds=3&hz=499&debug=1");
    let (text, used) = profiled(&collector, &path, || cpu_seconds(burner));
    let (samples, seconds, truncated) = header(&text);
    println!("{samples} samples, {seconds} s, {truncated} truncated; it used {used} s");
    assert!((seconds - used).abs() <= 0.1 * used + 0.02, "{seconds} of {used} s: {text}");
    assert!(samples >= 300, "{text}");
    assert!(truncated * 20 <= samples, "{text}");
}

#[test]
fn waits_are_counted_and_their_stacks_are_whole() {
    let mut master = Workload::start();
    let sleeper = master.spawn("duty 10 600000");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf", "--log.level=debug"]);
    collector.pool_of(master.pid(), 2);
    let text = eventually("it has waited", || {
        let text = collector.text(&format!("/debug/pprof/offcpu?pid={sleeper}&seconds=2&debug=1"), "*/*");
        (header(&text).0 > 20).then_some(text)
    });
    let (waits, seconds, truncated) = header(&text);
    println!("{waits} waits, {seconds} s, {truncated} truncated");
    assert!((1.0..=2.1).contains(&seconds), "{text}");
    assert_eq!(truncated, 0, "{text}");
    assert!(text.contains("reason=\"sleep\"") || text.contains("reason=sleep"), "{text}");
    // Functions of the kernel have names, of which it was asked.
    assert!(text.contains("do_nanosleep"), "{text}");
    assert!(!collector.log().contains("does not name its addresses"), "{}", collector.log());
}

#[test]
fn all_threads_are_told_and_their_stacks_are_whole() {
    let mut master = Workload::start();
    let sleeper = master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let text = eventually("it sleeps", || {
        let text = collector.text(&format!("/debug/pprof/threads?pid={sleeper}"), "*/*");
        text.contains("[sleeping]").then_some(text)
    });
    println!("{text}");
    assert!(text.contains(&format!("\nthread {sleeper} [sleeping]: pool=")), "{text}");
    assert!(text.contains(" wchan=") && text.contains(" syscall=") && text.contains("\n#\t[k] "), "{text}");
    assert!(text.contains("main") && !text.contains("truncated"), "{text}");
}

#[test]
fn who_is_forked_during_a_capture_has_whole_stacks() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let pool = crate::support::pool_of(&collector.stats(), master.pid()).unwrap()["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/debug/pprof/profile?pool={pool}&seconds=3&hz=999&debug=1");
    let text = std::thread::scope(|scope| {
        let profile = scope.spawn(|| collector.text(&path, "*/*"));
        // They end before anybody could have asked what they have mapped. One at a time, and for half of the time, so that whoever
        // makes the profile has a CPU as well.
        while !profile.is_finished() {
            master.spawn("burn-out 20");
            eventually("it has ended", || (master.ask("reap") == "1").then_some(()));
            std::thread::sleep(Duration::from_millis(20));
        }
        profile.join().unwrap()
    });
    let (samples, _, truncated) = header(&text);
    println!("{samples} samples, {truncated} truncated");
    assert!(samples > 300, "{text}");
    assert!(truncated * 20 <= samples, "{text}");
}

#[test]
fn captures_are_limited_and_who_leaves_makes_room() {
    let mut master = Workload::start();
    master.spawn("burn 600000");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let ask = |seconds: u32| {
        use std::io::Write as _;
        let mut stream = std::net::TcpStream::connect(collector.address()).unwrap();
        write!(stream, "GET /debug/pprof/profile?seconds={seconds} HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        stream
    };
    let long: Vec<_> = (0..4).map(|_| ask(200)).collect();
    let status = || collector.request("/debug/pprof/profile?seconds=0.2", &[]).unwrap().status().as_u16();
    eventually("all places are taken", || (status() == 429).then_some(()));
    drop(long);
    eventually("there is room again", || (status() == 200).then_some(()));
}

#[test]
fn a_slow_rate_has_samples_too() {
    let mut master = Workload::start();
    let burner = master.spawn("burn 600000");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    let path = format!("/debug/pprof/profile?pid={burner}&seconds=5&hz=4&debug=1");
    let (text, used) = profiled(&collector, &path, || cpu_seconds(burner));
    let (samples, seconds, _) = header(&text);
    println!("{samples} samples, {seconds} s; it used {used} s");
    assert!(samples >= 10 && seconds >= used * 0.7 - 0.5, "{used} s: {text}");
}
