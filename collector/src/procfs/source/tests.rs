use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::*;
use crate::input::ExitStatus;
use crate::procfs::connector::Event;
use crate::units::CpuTime;

/// Polling, because whether the connector may be used depends on who runs the tests; with events made by hand.
fn source(kept_descriptors: usize) -> ProcfsSource {
    let config = Config { kept_descriptors, connector: false };
    let mut source =
        ProcfsSource::open(Path::new("/proc"), HostFacts::of_this_host(), config).expect("/proc is mounted");
    source.list(&mut |_| {});
    source
}

struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Sleeper {
    fn new() -> Self {
        let child = Self(Command::new("sleep").arg("60").spawn().expect("sleep runs"));
        // The spawning returns in the middle of the exec, before name and arguments are set.
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::fs::read(format!("/proc/{}/cmdline", child.0.id())).expect("it lives").is_empty() {
            assert!(Instant::now() < deadline, "it does not begin");
        }
        child
    }

    fn key(&self) -> ProcessKey {
        key_of(self.0.id())
    }
}

fn key_of(pid: Pid) -> ProcessKey {
    let root = Root::open(Path::new("/proc")).expect("/proc is mounted");
    key(&root.stat(pid, &mut Buffer::default()).expect("it lives"))
}

fn pass(source: &mut ProcfsSource) -> Vec<Input> {
    let mut inputs = Vec::new();
    source.pass(&mut |input| inputs.push(input));
    assert!(matches!(inputs.last(), Some(Input::PassComplete { .. })), "a pass ends so");
    inputs
}

fn sample_of(inputs: &[Input], process: ProcessKey) -> Option<input::Sample> {
    inputs.iter().find_map(|input| match input {
        Input::Sample(sample) if sample.process == process => Some(*sample),
        _ => None,
    })
}

/// The figures that hold after each of these passes.
fn figures<const N: usize>(source: &mut ProcfsSource, process: ProcessKey) -> [Option<input::Sample>; N] {
    let mut figures = None;
    [(); N].map(|()| {
        let inputs = pass(source);
        let told = sample_of(&inputs, process);
        let same = |input: &Input| matches!(input, Input::Unchanged { process: p, .. } if *p == process);
        assert!(told.is_none() || !inputs.iter().any(same), "one or the other");
        figures = told.or(figures.filter(|_| inputs.iter().any(same)));
        figures
    })
}

/// Passes until one says what is looked for.
fn until<T>(source: &mut ProcfsSource, mut find: impl FnMut(&Input) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(found) = pass(source).iter().find_map(&mut find) {
            return found;
        }
        #[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it did not come in time");
}

fn exit_of(process: ProcessKey) -> impl FnMut(&Input) -> Option<input::Exit> {
    move |input| match input {
        Input::Exit(exit) if exit.process == process => Some(*exit),
        _ => None,
    }
}

fn check_figures(kept_descriptors: usize) {
    let child = Sleeper::new();
    let mut source = source(kept_descriptors);
    assert_eq!(source.track(child.key(), 1, Role::Worker), None, "there are no records here");
    // Asleep when the first reading has the same CPU as the second.
    let deadline = Instant::now() + Duration::from_secs(20);
    let (first, second) = loop {
        // A role anew, so that all figures are told.
        source.track(child.key(), 1, Role::Worker);
        let [Some(first), Some(second)] = figures(&mut source, child.key()) else { panic!("it is tracked") };
        if first.cpu == second.cpu && second.state == input::TaskState::Sleeping {
            break (first, second);
        }
        assert!(Instant::now() < deadline, "sleep does not sleep");
    };
    assert_eq!(second.threads, 1);
    assert!(second.cpu.total_ns() > 0);
    assert!(second.run_delay_ns.is_some());
    assert!(second.minor_faults > 0);
    assert_eq!((second.read_bytes, second.written_bytes), (first.read_bytes, first.written_bytes));
    assert!(second.read_bytes.is_some(), "it is ours, so we may see it");
    let rss = second.rss.expect("it lives");
    assert!(rss.anonymous_bytes.is_some_and(|bytes| bytes <= rss.total_bytes));
    assert_eq!(second.voluntary_switches, None, "missing is not zero");
    let expected = if kept_descriptors >= FILES { FILES } else { 0 };
    assert_eq!(source.descriptors(), expected);
    source.untrack(child.key(), Role::Worker);
    assert_eq!(source.descriptors(), 0);
    assert!(sample_of(&pass(&mut source), child.key()).is_none());
}

#[test]
fn figures_through_kept_descriptors() {
    check_figures(64);
}

#[test]
fn figures_without_a_descriptor_to_keep() {
    check_figures(0);
}

#[test]
fn agrees_with_what_the_kernel_accounts_to_us() {
    let mut source = source(64);
    let own = key_of(std::process::id());
    source.track(own, 1, Role::Worker);
    let usage = || {
        let usage =
            nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("always allowed");
        let nanos = |t: nix::sys::time::TimeVal| (t.tv_sec() * 1_000_000 + t.tv_usec()) as u64 * 1000;
        nanos(usage.user_time()) + nanos(usage.system_time())
    };
    let mut previous = 0;
    for _ in 0..10 {
        // Threads that come and go: what they used stays with the process.
        std::thread::spawn(|| {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(20) {}
        })
        .join()
        .expect("it ends");
        let before = usage();
        let sample = sample_of(&pass(&mut source), own).expect("we live");
        let after = usage();
        let total = sample.cpu.total_ns();
        // Two ticks short at most, and what runs on another CPU is accounted by its tick (10 ms at most).
        assert!(total + 30_000_000 >= before, "{total} is far below {before}");
        assert!(total <= after + 10_000_000, "{total} is above {after}");
        assert!(total >= previous, "it went back");
        assert_eq!(sample.run_delay_ns, None, "unknown with more than one thread");
        previous = total;
    }
}

#[test]
fn an_end_is_told_once_and_then_the_reaping() {
    let mut child = Sleeper::new();
    let process = child.key();
    let mut source = source(64);
    source.track(process, 1, Role::Worker);
    pass(&mut source);
    child.0.kill().expect("it is ours");
    // Not waited for, so it stays as a zombie and its stat tells how it ended.
    let exit = until(&mut source, exit_of(process));
    assert_eq!(exit.status, ExitStatus::Signal { signal: 9, core_dumped: false });
    let cpu = exit.cpu.expect("a zombie still shows it");
    let inputs = pass(&mut source);
    assert!(inputs.iter().find_map(exit_of(process)).is_none(), "once");
    let zombie = sample_of(&inputs, process).expect("it is there until it is reaped");
    assert_eq!((zombie.state, zombie.rss), (input::TaskState::Zombie, None));
    child.0.wait().expect("it ended");
    let reap = until(&mut source, |input| match input {
        Input::Reap(reap) if reap.process == process => Some(*reap),
        _ => None,
    });
    assert_eq!(reap.cpu, Some(cpu));
    assert_eq!(source.descriptors(), 0);
    assert!(sample_of(&pass(&mut source), process).is_none());
}

#[test]
fn one_that_vanished_is_told_with_what_is_known() {
    let mut child = Sleeper::new();
    let process = child.key();
    let mut source = source(64);
    source.track(process, 1, Role::Worker);
    pass(&mut source);
    child.0.kill().expect("it is ours");
    child.0.wait().expect("it ended");
    let inputs = pass(&mut source);
    let exit = inputs.iter().find_map(exit_of(process)).expect("it is gone");
    assert_eq!((exit.status, exit.cpu), (ExitStatus::Unknown, None));
    assert!(
        inputs
            .iter()
            .any(|i| matches!(i, Input::Reap(reap) if reap.process == process && reap.cpu.is_none()))
    );
    assert_eq!(source.descriptors(), 0);
}

#[test]
fn one_that_was_never_there_is_gone() {
    let own = key_of(std::process::id());
    let other = ProcessKey::from_ticks(own.pid, own.start_ticks() + 1);
    let mut source = source(64);
    source.track(other, 1, Role::Worker);
    assert!(pass(&mut source).iter().find_map(exit_of(other)).is_some());
}

#[test]
fn children_of_a_master_are_followed() {
    let mut source = source(64);
    source.track(key_of(std::process::id()), 7, Role::Master);
    pass(&mut source);
    let child = Sleeper::new();
    let process = child.key();
    let inputs = pass(&mut source);
    let fork = inputs.iter().find_map(|input| match input {
        Input::Fork(fork) if fork.child == process => Some(*fork),
        _ => None,
    });
    let fork = fork.expect("it is new");
    assert_eq!((fork.pool, fork.parent, fork.record), (Some(7), std::process::id(), None));
    assert!(fork.at_ns <= monotonic_ns());
    assert!(sample_of(&inputs, process).is_some(), "in the same pass");
}

#[test]
fn polling_tells_of_strangers_too() {
    let mut source = source(64);
    let mut child = Sleeper::new();
    let process = child.key();
    let forked = pass(&mut source)
        .iter()
        .any(|input| matches!(input, Input::Fork(fork) if fork.child == process && fork.pool.is_none()));
    assert!(forked);
    assert!(
        pass(&mut source).iter().all(|i| !matches!(i, Input::Fork(fork) if fork.child == process)),
        "once"
    );
    child.0.kill().expect("it is ours");
    child.0.wait().expect("it ended");
    assert!(pass(&mut source).iter().find_map(exit_of(process)).is_some());
}

/// What the connector would say, given by hand.
fn told(source: &mut ProcfsSource, event: Event) -> Vec<Input> {
    let mut inputs = Vec::new();
    let boot_minus_monotonic = boot_minus_monotonic();
    source.event(event, boot_minus_monotonic, &mut |input| inputs.push(input));
    inputs
}

#[test]
fn events_follow_a_child_from_fork_to_end() {
    let mut source = source(64);
    let own = std::process::id();
    source.track(key_of(own), 7, Role::Master);
    let mut child = Sleeper::new();
    let process = child.key();
    let fork = Event::Fork { parent: own, child: process.pid, at_ns: monotonic_ns() };
    assert!(
        matches!(told(&mut source, fork)[..], [Input::Fork(fork)] if fork.pool == Some(7) && fork.child == process)
    );
    let exec = Event::Exec { process: process.pid, at_ns: monotonic_ns() };
    assert!(matches!(told(&mut source, exec)[..], [Input::Exec(exec)] if exec.comm.as_bytes() == b"sleep"));
    let exit = |main, status| Event::Exit { process: process.pid, main, status, at_ns: monotonic_ns() };
    assert!(told(&mut source, exit(false, 0)).is_empty(), "a thread's end is not the process's");
    assert!(told(&mut source, exit(true, 0)).is_empty(), "it lives: an exec by a thread looks like this");
    child.0.kill().expect("it is ours");
    child.0.wait().expect("it ended");
    let inputs = told(&mut source, exit(true, 9));
    let [Input::Exit(end), Input::Reap(reap)] = inputs[..] else { panic!("{inputs:?}") };
    assert_eq!((end.process, reap.process), (process, process));
    assert_eq!(end.status, ExitStatus::Signal { signal: 9, core_dumped: false });
    assert_eq!(source.descriptors(), 0);
}

#[test]
fn a_worker_that_died_before_we_looked_still_counts() {
    let mut source = source(64);
    let own = std::process::id();
    let mut child = Sleeper::new();
    let pid = child.0.id();
    child.0.kill().expect("it is ours");
    child.0.wait().expect("it ended");
    let fork = Event::Fork { parent: own, child: pid, at_ns: monotonic_ns() };
    assert!(told(&mut source, fork).is_empty(), "of a stranger nothing is known");
    source.track(key_of(own), 7, Role::Master);
    let inputs = told(&mut source, fork);
    let [Input::Fork(fork)] = inputs[..] else { panic!("{inputs:?}") };
    assert_eq!((fork.child.pid, fork.pool), (pid, Some(7)));
    let inputs =
        told(&mut source, Event::Exit { process: pid, main: true, status: 0x0300, at_ns: monotonic_ns() });
    let [Input::Exit(exit), Input::Reap(_)] = inputs[..] else { panic!("{inputs:?}") };
    assert_eq!((exit.process, exit.status, exit.cpu), (fork.child, ExitStatus::Code(3), None));
    let lost = source.losses();
    assert!(lost.contains(&("process_gone_before_read", 2)), "{lost:?}");
}

/// A proc root made of files.
fn made_of(files: &[(&str, &str)]) -> (tempfile::TempDir, ProcfsSource) {
    let root = tempfile::tempdir().expect("a place for files");
    std::fs::create_dir(root.path().join("42")).expect("made");
    for (name, text) in files {
        std::fs::write(root.path().join("42").join(name), text).expect("written");
    }
    let host = HostFacts { page_size: 4096, cpus: 1 };
    let source = ProcfsSource::open(root.path(), host, Config::default()).expect("it is a directory");
    (root, source)
}

const MADE: ProcessKey = ProcessKey::from_ticks(42, 4242);
const STAT: &str = "42 (web) S 1 42 42 0 -1 4194560 111 222 5 6 70 80 9 10 20 0 1 0 4242 8192000 500 \
    18446744073709551615 4096 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

#[test]
fn what_the_kernel_does_not_tell_is_absent() {
    let (_root, mut source) = made_of(&[("stat", STAT), ("schedstat", "0 0 0\n")]);
    assert!(source.features().iter().any(|f| f.name == "lifecycle_events" && !f.enabled));
    source.track(MADE, 1, Role::Worker);
    for sample in figures::<2>(&mut source, MADE) {
        let sample = sample.expect("it is there");
        assert_eq!(sample.cpu, CpuTime { user_ns: 700_000_000, system_ns: 800_000_000 });
        let rss = sample.rss.expect("it has memory");
        assert_eq!((rss.total_bytes, rss.anonymous_bytes), (500 * 4096, None));
        assert_eq!((sample.run_delay_ns, sample.read_bytes, sample.written_bytes), (None, None, None));
    }
    assert!(source.features().iter().any(|f| f.name == "storage_io" && !f.enabled));
}

#[test]
fn everything_there_is_is_told() {
    let (root, mut source) = made_of(&[
        ("stat", STAT),
        ("statm", "2000 600 100 1 0 300 0\n"),
        ("schedstat", "1512345678 77 9\n"),
        ("io", "rchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\n"),
    ]);
    source.track(MADE, 1, Role::Worker);
    let sample = sample_of(&pass(&mut source), MADE).expect("it is there");
    assert_eq!(sample.cpu.total_ns(), 1_512_345_678);
    assert_eq!(
        (sample.run_delay_ns, sample.read_bytes, sample.written_bytes),
        (Some(77), Some(4096), Some(8192))
    );
    let rss = sample.rss.expect("it has memory");
    assert_eq!((rss.total_bytes, rss.anonymous_bytes), (600 * 4096, Some(500 * 4096)));
    // A pass in which nothing happened has nothing to tell, but that it is still so.
    let inputs = pass(&mut source);
    assert!(inputs.iter().any(|i| matches!(i, Input::Unchanged { process: MADE, .. })), "{inputs:?}");
    // Unless somebody new wants to know.
    source.track(MADE, 1, Role::Master);
    assert!(sample_of(&pass(&mut source), MADE).is_some());
    // It did not run since, but its memory was taken away: seen within four passes.
    write(&root, "statm", "2000 550 100 1 0 300 0\n");
    let inputs: Vec<Input> = (0..4).flat_map(|_| pass(&mut source)).collect();
    let sample = sample_of(&inputs, MADE).expect("it is told");
    assert_eq!(sample.rss.map(|rss| rss.total_bytes), Some(550 * 4096));
    // It ran, and `stat` shows that memory came: seen at once.
    write(&root, "statm", "2000 560 100 1 0 300 0\n");
    write(&root, "stat", &STAT.replace(" 111 ", " 112 ").replace(" 500 ", " 510 "));
    write(&root, "schedstat", "1512345679 77 10\n");
    let sample = sample_of(&pass(&mut source), MADE).expect("it is there");
    assert_eq!(sample.rss.map(|rss| rss.total_bytes), Some(560 * 4096));
    assert_eq!(sample.minor_faults, 112);
}

fn write(root: &tempfile::TempDir, name: &str, text: &str) {
    std::fs::write(root.path().join("42").join(name), text).expect("written");
}

/// A process that runs in every pass: how old memory that `stat` does not show may be, and how old storage traffic.
#[test]
fn what_is_skipped_is_never_older_than_four_passes() {
    let io = |bytes: u64| format!("read_bytes: {bytes}\nwrite_bytes: 0\n");
    let statm = |pages: u64| format!("2000 {pages} 100 1 0 300 0\n");
    let (root, mut source) = made_of(&[
        ("stat", STAT),
        ("statm", &statm(600)),
        ("schedstat", "1512345678 77 9\n"),
        ("io", &io(0)),
    ]);
    source.track(MADE, 1, Role::Worker);
    let mut ran = 9;
    let mut next = |source: &mut ProcfsSource| {
        ran += 1;
        write(&root, "schedstat", &format!("1512345678 77 {ran}\n"));
        let sample = sample_of(&pass(source), MADE).expect("it ran");
        (sample.rss.map_or(0, |rss| rss.total_bytes / 4096), sample.read_bytes.unwrap_or(0))
    };
    // Whenever it changes, between whichever two passes.
    for round in 0..12 {
        let quiet = round;
        for _ in 0..quiet {
            next(&mut source);
        }
        write(&root, "statm", &statm(700 + round));
        write(&root, "io", &io(1000 + round));
        let seen: Vec<_> = (0..4).map(|_| next(&mut source)).collect();
        assert_eq!(seen[3], (700 + round, 1000 + round), "after {quiet} quiet passes: {seen:?}");
    }
    // Once each reading brings news, none is skipped.
    let mut seen = Vec::new();
    for bytes in 5000..5010 {
        write(&root, "io", &io(bytes));
        seen.push(next(&mut source).1);
    }
    assert!(seen[3..].iter().copied().eq(5003..5010), "{seen:?}");
}

/// It ran once with traffic that the pass skipped, and never again.
#[test]
fn what_was_skipped_is_read_though_it_does_not_run_any_more() {
    let io = |bytes: u64| format!("read_bytes: {bytes}\nwrite_bytes: 0\n");
    let (root, mut source) = made_of(&[("stat", STAT), ("schedstat", "1512345678 77 9\n"), ("io", &io(0))]);
    source.track(MADE, 1, Role::Worker);
    for ran in 10..14 {
        pass(&mut source);
        write(&root, "schedstat", &format!("1512345678 77 {ran}\n"));
    }
    write(&root, "io", &io(4096));
    let inputs: Vec<Input> = (0..4).flat_map(|_| pass(&mut source)).collect();
    let mut told = inputs.iter().filter_map(|input| match input {
        Input::Sample(sample) => sample.read_bytes,
        _ => None,
    });
    assert_eq!(told.next_back(), Some(4096));
}

/// Polling finds the zombie; nothing comes after it.
#[test]
fn a_zombie_shows_all_that_it_read() {
    let io = |bytes: u64| format!("read_bytes: {bytes}\nwrite_bytes: 0\n");
    let (root, mut source) = made_of(&[("stat", STAT), ("schedstat", "1512345678 77 9\n"), ("io", &io(0))]);
    source.track(MADE, 1, Role::Worker);
    for ran in 10..16 {
        pass(&mut source);
        write(&root, "schedstat", &format!("1512345678 77 {ran}\n"));
    }
    write(&root, "io", &io(4096));
    write(&root, "stat", &STAT.replace(") S ", ") Z "));
    let sample = sample_of(&pass(&mut source), MADE).expect("it is there");
    assert_eq!(sample.read_bytes, Some(4096));
}

#[test]
fn nonsense_is_counted_and_is_no_end() {
    let (root, mut source) = made_of(&[("stat", STAT), ("schedstat", "1 2\n")]);
    source.track(MADE, 1, Role::Worker);
    let inputs = pass(&mut source);
    assert!(sample_of(&inputs, MADE).is_none() && inputs.iter().find_map(exit_of(MADE)).is_none());
    assert!(source.losses().contains(&("file_malformed", 1)), "{:?}", source.losses());
    std::fs::write(root.path().join("42/stat"), "42 (web").expect("written");
    let inputs = pass(&mut source);
    assert!(sample_of(&inputs, MADE).is_none() && inputs.iter().find_map(exit_of(MADE)).is_none());
}

#[test]
fn polling_says_why_and_what_would_help() {
    let features = source(64).features();
    let lifecycle = features.iter().find(|f| f.name == "lifecycle_events").expect("listed");
    assert!(!lifecycle.enabled && !lifecycle.reason.is_empty() && !lifecycle.remedy.is_empty());
    let full = features.iter().filter(|f| !f.enabled);
    assert!(full.clone().all(|f| !f.reason.is_empty()), "{:?}", full.collect::<Vec<_>>());
}

#[test]
fn lists_ourselves_as_the_kernel_does() {
    let mut source = source(64);
    let mut found = None;
    source.list(&mut |listed| {
        if listed.process.pid == std::process::id() {
            found = Some(listed);
        }
    });
    let listed = found.expect("we live");
    assert_eq!(listed.process, key_of(std::process::id()));
    assert_eq!(listed.parent, nix::unistd::getppid().as_raw().cast_unsigned());
    assert!(!listed.kernel_thread && !listed.zombie);
}
