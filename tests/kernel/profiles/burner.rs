//! Programs that burn 10, 20 and 70 % of their time in functions of these names, and tell how much of it they really did.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::{Pprof, compare, cpu_seconds, in_pool, spent};
use crate::servers::{Server, command_in, compile, directory_with};

/// In C. Each function measures itself, and writes it down every so often.
const C: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long sink;
static unsigned long spent[3];

static unsigned long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ul + t.tv_nsec;
}

__attribute__((noinline)) static void burn(unsigned long rounds) {
    for (unsigned long i = 0; i < rounds; i++) sink += i;
}

__attribute__((noinline)) static void tenth(unsigned long n) { burn(n); sink++; }
__attribute__((noinline)) static void fifth(unsigned long n) { burn(2 * n); sink++; }
__attribute__((noinline)) static void most(unsigned long n) { burn(7 * n); sink++; }

int main(int argc, char **argv) {
    void (*parts[3])(unsigned long) = {tenth, fifth, most};
    for (unsigned long turn = 1;; turn++) {
        for (int i = 0; i < 3; i++) {
            unsigned long before = now();
            parts[i](ROUNDS);
            spent[i] += now() - before;
        }
        if (turn % 64 == 0) {
            char line[100];
            int length = snprintf(line, sizeof line, "%20lu %20lu %20lu\n", spent[0], spent[1], spent[2]);
            int file = open(argv[1], O_WRONLY | O_CREAT, 0600);
            if (pwrite(file, line, length, 0) != length) return 1;
            close(file);
        }
    }
}
"#;

/// Samples a second: in ten seconds 20,000, of which a share of 70 % varies by 0.3 % (standard deviation of a binomial
/// distribution).
const HZ: u32 = 1999;

/// Profiles a burner and compares the shares of its parts.
fn check(name: &str, command: &mut Command, file: &Path, functions: [&str; 3]) -> Pprof {
    let _burner = Server::start_ended_by(Signal::SIGKILL, command);
    let collector = in_pool(file.parent().unwrap(), name);
    let before = spent(file);
    let profile = Pprof::take(&collector, &format!("profile?pool={name}&seconds=10&hz={HZ}"));
    let after = spent(file);
    let spent: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    println!(
        "{}{}",
        profile.text(&["-comments"]),
        profile.text(&["-top", "-sample_index=samples", "-nodecount=8"])
    );
    compare(&profile.top(&[]), &functions, &spent);
    profile
}

/// Compiled with these options.
fn check_c(options: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let options: Vec<&str> = options.iter().copied().chain(["-O2", "-g", "-DROUNDS=200000"]).collect();
    let program = compile(directory.path(), "burner", C, &options);
    let file = directory.path().join("spent");
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[file.to_str().unwrap()]);
    let profile = check("burner", &mut command, &file, ["tenth", "fifth", "most"]);
    let top = profile.top(&[]);
    let (_, main) = top["main"];
    assert!(main >= 99.0, "main has {main} % of the samples: {top:?}");
    let raw = profile.raw();
    assert!(raw.contains("burner.c"), "lines are known: {raw}");
    assert!(raw.contains("cpu/nanoseconds"), "{raw}");
}

#[test]
fn a_program_without_frame_pointers_is_profiled_as_it_spends_its_time() {
    check_c(&["-fomit-frame-pointer"]);
}

#[test]
fn a_program_with_frame_pointers_is_profiled_as_it_spends_its_time() {
    check_c(&["-fno-omit-frame-pointer"]);
}

/// The same in Rust.
const RUST: &str = r#"
use std::hint::black_box;
use std::time::Instant;

#[inline(never)]
fn burn(rounds: u64) -> u64 {
    (0..rounds).fold(0, |sum, i| black_box(sum + i))
}

#[inline(never)]
fn tenth(n: u64) -> u64 {
    burn(n) + 1
}

#[inline(never)]
fn fifth(n: u64) -> u64 {
    burn(2 * n) + 1
}

#[inline(never)]
fn most(n: u64) -> u64 {
    burn(7 * n) + 1
}

fn main() {
    let file = std::env::args().nth(1).unwrap();
    let mut spent = [0; 3];
    for turn in 1u64.. {
        for (part, spent) in [tenth, fifth, most].iter().zip(&mut spent) {
            let before = Instant::now();
            black_box(part(black_box(200_000)));
            *spent += before.elapsed().as_nanos();
        }
        if turn % 64 == 0 {
            std::fs::write(&file, format!("{:20} {:20} {:20}", spent[0], spent[1], spent[2])).unwrap();
        }
    }
}
"#;

#[test]
fn a_rust_program_is_profiled_as_it_spends_its_time() {
    let directory = directory_with(&[("burner.rs", RUST)]);
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let mut compiler = command_in(directory.path(), &rustc, &["-O", "-g", "burner.rs"]);
    assert!(compiler.status().expect("rustc is there").success());
    let file = directory.path().join("spent");
    let program = directory.path().join("burner");
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[file.to_str().unwrap()]);
    let profile = check("burner", &mut command, &file, ["burner::tenth", "burner::fifth", "burner::most"]);
    let (_, main) = profile.top(&[])["burner::main"];
    assert!(main >= 99.0, "main has {main} %");
}

/// The same in JavaScript. Its functions stay functions: none is compiled into its caller.
const JAVASCRIPT: &str = "
const fs = require('fs');
let sink = 0;
function burn(rounds) { for (let i = 0; i < rounds; i++) sink = (sink + i) | 0; return sink; }
function tenth(n) { return burn(n) + 1; }
function fifth(n) { return burn(2 * n) + 1; }
function most(n) { return burn(7 * n) + 1; }
const spent = [0, 0, 0], parts = [tenth, fifth, most];
for (let turn = 1; ; turn++) {
    parts.forEach((part, i) => {
        const before = process.hrtime.bigint();
        part(200000);
        spent[i] += Number(process.hrtime.bigint() - before);
    });
    if (turn % 64 === 0) {
        fs.writeFileSync('new', spent.join(' '));
        fs.renameSync('new', 'spent');
    }
}
";

#[test]
fn functions_that_node_compiles_are_profiled_by_their_names() {
    let directory = directory_with(&[("burner.js", JAVASCRIPT)]);
    let options = ["--perf-basic-prof", "--max-inlined-bytecode-size=0", "burner.js"];
    let mut command = command_in(directory.path(), "node", &options);
    let file = directory.path().join("spent");
    let burner = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let map = std::path::PathBuf::from(format!("/tmp/perf-{}.map", burner.pid()));
    let collector = in_pool(directory.path(), "node");
    let before = spent(&file);
    let profile = Pprof::take(&collector, &format!("profile?pool=node&seconds=10&hz={HZ}"));
    let after = spent(&file);
    let spent: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    // A name says how a function was compiled, and where it is: `JS:*tenth /…/burner.js:5:15`.
    let shares = ["tenth", "fifth", "most"].map(|function| {
        let top = profile.top(&["-focus", &format!("^JS:.{function} ")]);
        (function.to_owned(), (0.0, top.values().map(|(flat, _)| flat).sum()))
    });
    compare(&shares.into(), &["tenth", "fifth", "most"], &spent);
    drop(burner);
    std::fs::remove_file(map).unwrap();
}

/// In step with 99 samples a second: 60, 30 and 10 % of each hundredth of a second, less 1 %.
const IN_STEP: &str = r#"
#include <time.h>

static unsigned long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ul + t.tv_nsec;
}

__attribute__((noinline)) static int first(unsigned long until) { while (now() < until); return 1; }
__attribute__((noinline)) static int second(unsigned long until) { while (now() < until); return 2; }
__attribute__((noinline)) static int third(unsigned long until) { while (now() < until); return 3; }

int main(void) {
    volatile int sink;
    for (unsigned long begin = now();; begin += 10101010) {
        sink = first(begin + 6060606);
        sink = second(begin + 9090909);
        sink = third(begin + 10101010);
    }
}
"#;

#[test]
fn a_program_in_step_with_the_samples_has_its_true_shares() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "instep", IN_STEP, &["-O2", "-fomit-frame-pointer"]);
    let _server = Server::start_ended_by(
        Signal::SIGKILL,
        &mut command_in(directory.path(), program.to_str().unwrap(), &[]),
    );
    let collector = in_pool(directory.path(), "instep");
    let top = Pprof::take(&collector, "profile?pool=instep&seconds=20&hz=99").top(&[]);
    for (function, truth) in [("first", 60.0), ("second", 30.0), ("third", 10.0)] {
        let (_, share) = top.get(function).copied().unwrap_or_default();
        println!("{function}: {share} % of {truth} %");
        // 1,980 samples: a share of 60 % varies by 1.1 % (standard deviation). In step it would be another by 10 and more.
        assert!((share - truth).abs() <= 4.0, "{function}: {share} %: {top:?}");
    }
}

#[test]
fn a_program_whose_file_is_gone_is_profiled_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "burner", C, &["-O2", "-DROUNDS=200000"]);
    let file = directory.path().join("spent");
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[file.to_str().unwrap()]);
    let _burner = Server::start_ended_by(Signal::SIGKILL, &mut command);
    spent(&file);
    std::fs::remove_file(program).unwrap();
    let collector = in_pool(directory.path(), "burner");
    let top = Pprof::take(&collector, &format!("profile?pool=burner&seconds=1&hz={HZ}")).top(&[]);
    let (_, main) = top.get("main").copied().unwrap_or_default();
    assert!(main >= 99.0 && top.contains_key("most"), "{top:?}");
}

/// The same in Python.
const PYTHON: &str = "
import os, sys, time

def burn(rounds):
    total = 0
    for i in range(rounds):
        total += i
    return total

def tenth(n): return burn(n) + 1
def fifth(n): return burn(2 * n) + 1

class Most:
    def most(self, n):
        return max(n, key=lambda n: burn(7 * n))

spent, parts = [0, 0, 0], [tenth, fifth, lambda n: Most().most([n])]
turn = 0
while True:
    turn += 1
    for i, part in enumerate(parts):
        before = time.thread_time_ns()
        part(10000)
        spent[i] += time.thread_time_ns() - before
    if turn % 16 == 0:
        with open('new', 'w') as file:
            file.write('%d %d %d' % tuple(spent))
        os.rename('new', 'spent')
";

#[test]
fn functions_that_python_interprets_are_profiled_by_their_names() {
    let directory = directory_with(&[("burner.py", PYTHON)]);
    let file = directory.path().join("spent");
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["burner.py"]);
    let _burner = Server::start_ended_by(Signal::SIGKILL, &mut command);
    spent(&file);
    let comm = "python3";
    let collector = in_pool(directory.path(), comm);
    let before = spent(&file);
    let profile = Pprof::take(&collector, &format!("profile?pool={comm}&seconds=10&hz={HZ}"));
    let after = spent(&file);
    let spent: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    let top = profile.top(&[]);
    compare(&top, &["tenth", "fifth", "Most.most"], &spent);
    // In the order in which they call each other, through a function of C.
    let folded =
        collector.text(&format!("/debug/pprof/profile?pool={comm}&seconds=1&format=folded&hz={HZ}"), "*/*");
    assert!(
        folded.contains(";<module>;<lambda>;Most.most;")
            && folded.contains(";Most.most.<locals>.<lambda>;burn"),
        "{folded}"
    );
    assert!(profile.raw().contains("burner.py"));
}

/// It computes and sleeps in turn, some ms each, on a CPU that is idle meanwhile.
const PAUSES: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <time.h>

static volatile unsigned long sink;

static long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

int main(void) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    for (;;) {
        long until_ns = now_ns() + rand() % 4000000;
        while (now_ns() < until_ns) for (int turn = 0; turn < 100; turn++) sink += turn;
        struct timespec pause = {0, rand() % 6000000};
        nanosleep(&pause, 0);
    }
}
"#;

/// Where a CPU is idle events come late, or not at all: that time is not of who runs next.
#[test]
fn a_program_that_pauses_is_profiled_for_as_long_as_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "pauses", PAUSES, &["-O1"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let worker = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "pauses");
    Pprof::take(&collector, "profile?pool=pauses&seconds=1&hz=999");
    let (began, before) = (std::time::Instant::now(), cpu_seconds(worker.pid()));
    let profile = Pprof::take(&collector, "profile?pool=pauses&seconds=10&hz=999");
    let (lasted_s, used_s) = (began.elapsed().as_secs_f64(), cpu_seconds(worker.pid()) - before);
    let (duration_s, sampled_s) = profile.duration_and_total_s();
    println!("sampled {sampled_s} s of {duration_s}, used {used_s} s of {lasted_s}");
    // 4,000 samples of some 2,000 turns vary by 1 %, and what it used before and after the capture is not in it.
    let (least, most) = (used_s - (lasted_s - duration_s), used_s);
    assert!(
        (least * 0.96..=most * 1.04).contains(&sampled_s),
        "sampled {sampled_s} s, used {least} to {most} s"
    );
}
