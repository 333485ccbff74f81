//! Workers that make it hard to tell what they run: with thousands of mappings, that become another program, that end at once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Pprof, cpu_seconds, in_pool};
use crate::servers::{Server, command_in, compile};
use crate::support::eventually;

/// Burns in `burn`, and in `compare`, which the C library calls. On SIGUSR1 it maps a page of its own code, as often as it is
/// told, and says so with a file.
const MAPPER: &str = r#"
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

static volatile unsigned long sink;
static volatile sig_atomic_t asked;

static void ask(int signal) { asked = signal; }

__attribute__((noinline)) static void burn(void) {
    for (unsigned long i = 0; i < 2000000; i++) sink += i;
}

__attribute__((noinline)) static int compare(const void *a, const void *b) {
    for (unsigned long i = 0; i < 100000; i++) sink += i;
    return *(const int *)a - *(const int *)b;
}

int main(int argc, char **argv) {
    signal(SIGUSR1, ask);
    for (;;) {
        int numbers[8] = {5, 3, 7, 1, 8, 2, 6, 4};
        burn();
        qsort(numbers, 8, sizeof *numbers, compare);
        if (asked) {
            int file = open("/proc/self/exe", O_RDONLY);
            for (int i = atoi(argv[1]); i > 0; i--)
                if (mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED) return 1;
            asked = 0;
            close(open(argv[2], O_WRONLY | O_CREAT, 0600));
        }
    }
}
"#;

/// More than are kept of a process, `MAX_MAPPED` of `profile::modules`.
const MAPPINGS: usize = 12_000;

/// A line of `/proc/PID/status`, kB.
fn status_kb(pid: Pid, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells");
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

#[test]
fn a_worker_with_thousands_of_mappings_is_profiled_within_bounds() {
    let directory = tempfile::tempdir().unwrap();
    let options = ["-O2", "-g", "-fomit-frame-pointer", "-include", "unistd.h"];
    let program = compile(directory.path(), "mapper", MAPPER, &options);
    let mapped = directory.path().join("mapped");
    let arguments = [&MAPPINGS.to_string(), mapped.to_str().unwrap()];
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &arguments);
    let mapper = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "mapper");
    // What a capture takes is taken before there is anything unusual.
    let few = Pprof::take(&collector, "profile?pool=mapper&seconds=2&hz=999").top(&[]);
    assert!(few["main"].1 >= 99.0 && !few.contains_key("[truncated]"), "{few:?}");
    let before = status_kb(collector.pid(), "VmHWM:");
    kill(mapper.pid(), Signal::SIGUSR1).unwrap();
    eventually("it has mapped", || mapped.exists().then_some(()));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", mapper.pid())).unwrap();
    assert!(maps.lines().filter(|line| line.contains(" r-xp ")).count() >= MAPPINGS);

    // At another rate, so that another sampler is told of it: the last one knows its mappings as they were.
    let profile = Pprof::take(&collector, "profile?pool=mapper&seconds=3&hz=997");
    let after = status_kb(collector.pid(), "VmHWM:");
    println!("memory: {before} kB at most with few mappings, {after} kB with many");
    // 40 bytes of each in three places, and what was read of the files beside.
    assert!(after - before <= 16 << 10, "{before} kB before, {after} kB after");
    // Its own code is below all that it mapped, the C library above, beyond the limit: there, stacks end.
    let top = profile.top(&[]);
    let cumulative = |name: &str| top.get(name).copied().unwrap_or_default().1;
    let share = |name: &str, of: &std::collections::HashMap<String, (f64, f64)>| of[name].1;
    for function in ["burn", "compare"] {
        let (now, then) = (share(function, &top), share(function, &few));
        println!("{function}: {now} %, before {then} %");
        assert!((now - then).abs() <= 5.0, "{function}: {now} %, before {then} %: {top:?}");
    }
    assert!(cumulative("main") >= cumulative("burn"), "{top:?}");
    let told = cumulative("main") + cumulative("[truncated]");
    assert!(told >= 99.0, "{told} % of the stacks lead to main, or say that they do not: {top:?}");
    assert!(profile.raw().contains("samples truncated"), "how many is said: {}", profile.raw());
}

/// Is hardly ever twice at the same address: a function of 2 MB, without a loop in it.
pub(super) const SPREAD: &str = r#"
static volatile unsigned long sink;

__attribute__((noinline)) static unsigned long spread(unsigned long n) {
    __asm__ volatile(".rept 500000\n add $1, %0\n .endr\n" : "+r"(n));
    return n;
}

int main(void) {
    for (;;) sink = spread(sink);
}
"#;

/// As many samples as a capture has room for stacks, and more, one capture after the other.
#[test]
fn stacks_of_one_capture_take_no_room_from_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "spread", SPREAD, &["-O2"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let worker = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "spread");
    let mut stacks = 0;
    // 16,384 places: a table with an eighth of them taken has one for each.
    for _ in 0..12 {
        let before = cpu_seconds(worker.pid());
        let profile = Pprof::take(&collector, "profile?pool=spread&seconds=1&hz=1999");
        let used = cpu_seconds(worker.pid()) - before;
        let comments = profile.text(&["-comments"]);
        assert!(!comments.contains("lost"), "after {stacks} stacks: {comments}");
        let (duration, sampled) = profile.duration_and_total_s();
        println!("{sampled} s in {duration} s; it used {used} s");
        assert!(sampled >= 0.5 * used.min(duration), "{sampled} s of {used} s: {comments}");
        stacks += profile.raw().lines().filter(|line| line.contains("pool:[spread]")).count();
    }
    println!("{stacks} stacks");
    assert!(stacks >= 16_384, "{stacks} stacks are no test of the room for them");
}

/// Burns in functions of a name that it is compiled with. On SIGUSR1 it goes on for two seconds, writes down how much CPU time
/// that took, and becomes the program of its argument, which has the same functions at the same addresses by other names.
const TURNER: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define BURN JOIN(NAME, _burn)
#define PART JOIN(NAME, _part)

static volatile unsigned long sink;
static volatile sig_atomic_t asked;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void ask(int signal) { asked = signal; }

__attribute__((noinline)) static void BURN(void) {
    for (unsigned long i = 0; i < 1000000; i++) sink += i;
}

__attribute__((noinline)) static void PART(void) { BURN(); sink++; }

int main(int argc, char **argv) {
    double since = 0, used = 0;
    signal(SIGUSR1, ask);
    for (;;) {
        PART();
        if (argc > 1 && asked && since == 0) {
            since = now(CLOCK_MONOTONIC);
            used = now(CLOCK_PROCESS_CPUTIME_ID);
        }
        if (since != 0 && now(CLOCK_MONOTONIC) - since > 2) {
            FILE *file = fopen("turned", "w");
            double all = now(CLOCK_PROCESS_CPUTIME_ID);
            fprintf(file, "%.9f %.9f", all - used, all);
            fclose(file);
            return execv(argv[1], (char *[]){argv[1], 0});
        }
    }
}
"#;

/// Samples a second.
const HZ: u32 = 999;

/// Compiled with these names for its functions, each in a directory of its own, so that both programs have the same name.
fn turner(directory: &Path, name: &str) -> PathBuf {
    let directory = directory.join(name);
    std::fs::create_dir(&directory).unwrap();
    let define = format!("-DNAME={name}");
    compile(&directory, "turner", TURNER, &["-O2", "-g", "-fomit-frame-pointer", "-no-pie", &define])
}

#[test]
fn a_worker_that_becomes_another_program_has_the_functions_of_both() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (turner(directory.path(), "alpha"), turner(directory.path(), "omega"));
    let arguments = [second.to_str().unwrap()];
    let mut command = command_in(directory.path(), first.to_str().unwrap(), &arguments);
    let turner = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "turner");
    kill(turner.pid(), Signal::SIGUSR1).unwrap();
    let what = format!("/debug/pprof/profile?pool=turner&seconds=5&hz={HZ}&format=folded");
    let folded = collector.text(&what, "*/*");
    let all = cpu_seconds(turner.pid());
    let turned = std::fs::read_to_string(directory.path().join("turned")).expect("it turned meanwhile");
    let turned: Vec<f64> = turned.split(' ').map(|number| number.parse().unwrap()).collect();

    let (mut alpha, mut omega, mut other) = (0.0, 0.0, 0.0);
    for line in folded.lines().filter(|line| !line.starts_with('#')) {
        let (stack, count) = line.rsplit_once(' ').expect("a stack and a number");
        let count: f64 = count.parse().unwrap();
        match (stack.contains("alpha_"), stack.contains("omega_")) {
            (true, true) => panic!("functions of both programs: {line}"),
            (true, false) => alpha += count,
            (false, true) => omega += count,
            (false, false) => other += count,
        }
    }
    let unknown = other / (alpha + omega + other);
    // No more is found of either than it used. The second one's time is read when the profile is there, which is later. A
    // sample stands for the mean period, and those of the first two seconds are shorter by an eighth than that.
    for (name, samples, used) in [("alpha", alpha, turned[0]), ("omega", omega, all - turned[1])] {
        let seconds = samples / f64::from(HZ);
        println!("{name}: {seconds:.2} s, used {used:.2} s");
        assert!(
            seconds > 0.1 && seconds <= used * 1.25 + 0.05,
            "{name}: {seconds} s, used {used} s: {folded}"
        );
    }
    println!("neither: {unknown:.3}");
    assert!(unknown <= 0.05, "{unknown} of neither program: {folded}");
}

/// Four children at a time, each of which runs the program anew, burns for some milliseconds in `lives`, and ends. One in 16
/// lives for longer than it takes until it is looked at.
const CHURNER: &str = r#"
#include <sys/wait.h>
#include <unistd.h>

static volatile unsigned long sink;

__attribute__((noinline)) static void lives(unsigned long rounds) {
    for (unsigned long i = 0; i < rounds; i++) sink += i;
}

int main(int argc, char **argv) {
    if (argc > 1) {
        lives(*argv[1] == 'l' ? 150000000 : 4000000);
        return 0;
    }
    for (int children = 0;; children++) {
        if (children >= 4) wait(0);
        if (fork() == 0) return execl("/proc/self/exe", "churner", children % 16 ? "short" : "long", (char *)0);
    }
}
"#;

#[test]
fn workers_that_end_at_once_do_not_keep_a_capture_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "churner", CHURNER, &["-O2", "-g", "-fomit-frame-pointer"]);
    let config = directory.path().join("config.yml");
    // The name of a program that is run by that link is the link's.
    let pools = "zero_config: false\npools: [{name: churn, match: {comm: exe}, parent: {comm: churner}}]\n";
    std::fs::write(&config, pools).unwrap();
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let _churner = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let flag = format!("--config.file={}", config.display());
    let collector = crate::support::Collector::start(&[&flag, "--source=ebpf"]);
    let ended = || {
        let stats = collector.stats();
        let pools = stats["pools"].as_array()?;
        pools.iter().find(|pool| pool["name"] == "churn").map(|_| ())
    };
    eventually("there is a pool", ended);
    let begin = Instant::now();
    let profile = Pprof::take(&collector, "profile?pool=churn&seconds=3&hz=999");
    let took = begin.elapsed();
    println!("answered after {took:?}");
    assert!(took < Duration::from_secs(15), "three seconds took {took:?}");
    let top = profile.top(&[]);
    let flat = |name: &str| top.get(name).copied().unwrap_or_default().0;
    let (lives, unknown) = (flat("lives"), flat("<unknown>"));
    println!("in lives: {lives} %, unknown: {unknown} %");
    // Who ends before it is looked at has no functions that could be named, which is said.
    assert!(lives >= 5.0 && lives + unknown >= 50.0, "{top:?}");
    assert!(unknown == 0.0 || profile.raw().contains("samples truncated"), "{}", profile.raw());
    assert!(!collector.log().contains("panicked"), "{}", collector.log());
    // And once more: what was kept of those who have ended is in nobody's way.
    let begin = Instant::now();
    Pprof::take(&collector, "profile?pool=churn&seconds=1&hz=999");
    assert!(begin.elapsed() < Duration::from_secs(15), "a second took {:?}", begin.elapsed());
}

/// Has a child run the program anew, which burns for a tenth of a second and ends; then waits for three of these.
const BRIEF: &str = r#"
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long sink;

__attribute__((noinline)) static void lives(void) {
    struct timespec used = {0, 0};
    while (used.tv_sec == 0 && used.tv_nsec < 100000000) {
        for (int i = 0; i < 100000; i++) sink += i;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) {
        lives();
        return 0;
    }
    for (;;) {
        if (fork() == 0) return execl("/proc/self/exe", "brief", "child", (char *)0);
        wait(0);
        usleep(300000);
    }
}
"#;

/// Of a process that begins in the middle of a capture its callers are known soon after it was first met, while whoever samples
/// sleeps for longer than it lives if nobody wakes it up.
#[test]
fn a_worker_that_begins_in_the_middle_is_known_before_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "brief", BRIEF, &["-O2", "-fomit-frame-pointer"]);
    let config = directory.path().join("config.yml");
    let pools = "zero_config: false\npools: [{name: brief, match: {comm: exe}, parent: {comm: brief}}]\n";
    std::fs::write(&config, pools).unwrap();
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let _parent = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let flag = format!("--config.file={}", config.display());
    let collector = crate::support::Collector::start(&[&flag, "--source=ebpf"]);
    let is_there = || {
        let stats = collector.stats();
        stats["pools"].as_array()?.iter().any(|pool| pool["name"] == "brief").then_some(())
    };
    eventually("there is a pool", is_there);
    // Some come before that: a sample is 2 ms, and the thread has to get a CPU, which takes it longer than they live where the host
    // does not give it one. If nobody wakes it up most come before it in each capture.
    eventually("most of the samples lead to main", || {
        let top = Pprof::take(&collector, "profile?pool=brief&seconds=2&hz=499").top(&[]);
        let cumulative = |name: &str| top.get(name).copied().unwrap_or_default().1;
        println!("to main: {} %, truncated: {} %", cumulative("main"), cumulative("[truncated]"));
        (cumulative("main") >= 50.0).then_some(())
    });
}

/// Its main thread ends when it is told to; another one computes.
const LEADERLESS: &str = r#"
#include <pthread.h>
#include <signal.h>

static volatile unsigned long sink;

static void *compute(void *nothing) {
    for (;;) sink += 1;
}

int main(void) {
    sigset_t signals;
    pthread_t thread;
    int signal;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, 0);
    pthread_create(&thread, 0, compute, 0);
    sigwait(&signals, &signal);
    pthread_exit(0);
}
"#;

/// Its threads show what it has mapped, its own directory of `/proc` does not.
#[test]
fn a_process_whose_main_thread_has_ended_has_whole_stacks() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["-O2", "-g", "-pthread", "-fomit-frame-pointer"];
    let program = compile(directory.path(), "leaderless", LEADERLESS, &flags);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let worker = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "leaderless");
    let share_of_whole = |profile: &Pprof| {
        let top = profile.top(&["-cum"]);
        let share = |name: &str| top.get(name).copied().unwrap_or_default().1;
        (share("compute"), share("[truncated]"))
    };
    let before = share_of_whole(&Pprof::take(&collector, "profile?pool=leaderless&seconds=1&hz=999"));
    kill(worker.pid(), Signal::SIGUSR1).unwrap();
    eventually("its main thread has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", worker.pid())).ok()?;
        stat.contains(") Z ").then_some(())
    });
    // One that knew it before, and one that has never met it otherwise.
    let after = share_of_whole(&Pprof::take(&collector, "profile?pool=leaderless&seconds=1&hz=999"));
    let met = share_of_whole(&Pprof::take(&collector, "profile?pool=leaderless&seconds=1&hz=499"));
    println!("{before:?} before, {after:?} after, {met:?} where it was met then");
    for (whole, truncated) in [before, after, met] {
        assert!(whole > 98.0 && truncated < 1.0, "{whole} % whole, {truncated} % truncated");
    }
}
