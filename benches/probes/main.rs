//! What the scheduler probes cost those who are watched, beside the probes of libbpf-tools: `cargo bench --bench probes`,
//! as root.
//!
//! One run, all watchers in turn on the same load (`perf bench sched pipe`: two threads that wake each other), because
//! the speed of a host drifts and only ratios count. The cost of a switch is the run time of BPF programs as the kernel
//! counts it, less that of an empty program which is attached at the same time to the same tracepoints: counting takes
//! some 40 ns a run itself. What the load feels is its own time per operation, with nothing counted. The result is a
//! table. A missed target fails the run with `--check`; `--quick` is a short run.
#![allow(unsafe_code, reason = "bpf(2) and death signals; each block argues its case")]
#![allow(clippy::disallowed_methods, reason = "loads run for a time, and time has to pass")]
#![allow(missing_docs, reason = "a program")]

#[path = "../common/mod.rs"]
mod common;
mod pipe;
mod watcher;

use std::time::Duration;

use anyhow::ensure;

use common::cost;
use common::empty::Empty;
use common::median;
use common::plan::Plan;
use common::statistics::Counting;
use common::table::{Table, Verdict};
use pipe::{Pinning, Pipe};
use watcher::{BENCH, Watcher, Which};

/// Of what `runqlat -P` costs for one histogram, the share that our three may cost.
const SHARE: f64 = 0.4;
/// The most that the switch of a thread that nobody follows may cost, ns.
const UNTRACKED_NS: f64 = 20.0;

/// Rounds of a run, and how long each load is measured.
struct Rounds {
    number: usize,
    counted: Duration,
}

fn main() -> anyhow::Result<()> {
    let plan = Plan::from_arguments(env!("CARGO_BIN_EXE_collector"), &[])?;
    let rounds = if plan.quick {
        Rounds { number: 5, counted: Duration::from_millis(400) }
    } else {
        Rounds { number: 11, counted: Duration::from_millis(800) }
    };
    ensure!(nix::unistd::geteuid().is_root(), "run as root: all of this is about eBPF programs");
    ensure!(Pipe::available(), "`perf bench sched pipe` is the load: install Debian's package linux-perf");
    nix::sys::prctl::set_name(&std::ffi::CString::new(BENCH)?)?;
    let watchers: Vec<Which> = Which::ALL.into_iter().filter(|which| which.available()).collect();
    for which in [Which::Runqlat, Which::Offcputime].into_iter().filter(|which| !which.available()) {
        eprintln!("{} is not installed (Debian's package libbpf-tools brings it) and left out", which.name());
    }
    ensure!(!plan.check || Which::Runqlat.available(), "the target is a share of what runqlat costs");

    let mut table = Table::default();
    run_time(&mut table, &plan, &rounds, &watchers)?;
    for pinning in [Pinning::OneCpu, Pinning::Free] {
        operations(&mut table, &plan, &rounds, &watchers, pinning)?;
    }
    println!("{}", table.render());
    ensure!(!plan.check || table.missed() == 0, "{} targets missed", table.missed());
    Ok(())
}

/// What one round found of one watcher, ns per run, net.
#[derive(Clone, Copy)]
struct Net {
    switch: f64,
    wakeup: f64,
}

impl Net {
    fn cycle(self) -> f64 {
        self.switch + self.wakeup
    }
}

/// Run time per switch cycle: one switch, from one task of the pair to the other, and the wake-up that led to it.
fn run_time(table: &mut Table, plan: &Plan, rounds: &Rounds, watchers: &[Which]) -> anyhow::Result<()> {
    let _counting = Counting::start()?;
    let empty = Empty::attach(&cost::TRACEPOINTS)?;
    let mut found: Vec<Vec<Net>> = vec![Vec::new(); watchers.len()];
    let mut empties = Vec::new();
    for round in 0..rounds.number {
        eprintln!("run time, round {} of {}", round + 1, rounds.number);
        let _pipe = Pipe::start(Pinning::OneCpu)?;
        for (which, found) in watchers.iter().zip(&mut found) {
            let watcher = Watcher::start(*which, &plan.collector)?;
            let before = (watcher.cost()?, empty.cost()?);
            std::thread::sleep(rounds.counted);
            let (ours, nothing) = (watcher.cost()?.since(&before.0), empty.cost()?.since(&before.1));
            found.push(Net {
                switch: ours.net_ns_per_run(cost::SWITCH, &nothing),
                wakeup: ours.net_ns_per_run(cost::WAKEUP, &nothing),
            });
            empties.push(nothing.ns_per_run(cost::SWITCH));
        }
    }
    let of = |which: Which| watchers.iter().position(|w| *w == which).map(|at| found[at].as_slice());
    let middle = |which: Which, figure: fn(Net) -> f64| {
        of(which).map(|found| median(found.iter().map(|net| figure(*net)).collect()))
    };
    let told = |which: Which| {
        let (cycle, switch, wakeup) =
            (middle(which, Net::cycle)?, middle(which, |n| n.switch)?, middle(which, |n| n.wakeup)?);
        Some(format!("{cycle:.0} ns (switch {switch:.0}, wake-up {wakeup:.0})"))
    };
    let peers = |all: &[Which]| {
        let told: Vec<String> =
            all.iter().filter_map(|w| Some(format!("{} {}", w.name(), told(*w)?))).collect();
        if told.is_empty() { "-".into() } else { told.join(", ") }
    };
    // Of figures of the same round, because the host drifts.
    let ratio = |which: Which| {
        let pairs = of(which)?.iter().zip(of(Which::Runqlat)?);
        Some(median(pairs.map(|(ours, theirs)| ours.cycle() / theirs.cycle()).collect()))
    };
    for (which, peer, share) in [
        (Which::Tracked, &[Which::Runqlat, Which::Offcputime][..], Some(SHARE)),
        (Which::Counters, &[Which::Runqlat][..], None),
    ] {
        let Some(ours) = told(which) else { continue };
        let ratio = ratio(which);
        table.add(
            format!("run time per switch cycle, net: {}", which.what()),
            ours,
            peers(peer),
            ratio.map_or("-".into(), |ratio| format!("{ratio:.2} runqlat")),
            share.map_or("-".into(), |share| format!("≤ {share} runqlat")),
            share.zip(ratio).map_or(Verdict::None, |(share, ratio)| Verdict::at_most(ratio, share)),
        );
    }
    if let Some(ours) = told(Which::Untracked) {
        let switch = middle(Which::Untracked, |net| net.switch).unwrap_or(f64::NAN);
        table.add(
            format!("run time per switch cycle, net: {}", Which::Untracked.what()),
            ours,
            "-",
            ratio(Which::Untracked).map_or("-".into(), |ratio| format!("{ratio:.2} runqlat")),
            format!("≤ {UNTRACKED_NS} ns a switch"),
            Verdict::at_most(switch, UNTRACKED_NS),
        );
    }
    table.add(
        "run time of an empty program (taken off above)",
        "-",
        format!("{:.0} ns", median(empties)),
        "-",
        "-",
        Verdict::None,
    );
    Ok(())
}

/// What the pair feels. On one CPU that is CPU time, on several the wait for each other counts, too.
fn operations(
    table: &mut Table,
    plan: &Plan,
    rounds: &Rounds,
    watchers: &[Which],
    pinning: Pinning,
) -> anyhow::Result<()> {
    let mut alone = Vec::new();
    let mut found: Vec<Vec<f64>> = vec![Vec::new(); watchers.len()];
    let measure = |pipe: &Pipe| -> anyhow::Result<f64> {
        let before = pipe.done()?;
        std::thread::sleep(rounds.counted);
        let after = pipe.done()?;
        Ok(match pinning {
            Pinning::OneCpu => after.cpu_us_since(&before),
            Pinning::Free => after.us_since(&before),
        })
    };
    for round in 0..rounds.number {
        eprintln!("{}, round {} of {}", pinning.name(), round + 1, rounds.number);
        let pipe = Pipe::start(pinning)?;
        alone.push(measure(&pipe)?);
        for (which, found) in watchers.iter().zip(&mut found) {
            let _watcher = Watcher::start(*which, &plan.collector)?;
            found.push(measure(&pipe)?);
        }
    }
    // The work is the same each time, and whoever disturbs only adds to it.
    let best = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let base = best(&alone);
    let cell = |values: &[f64]| {
        let own = best(values);
        format!("{own:.2} µs ({:+.0} %)", (own / base - 1.0) * 100.0)
    };
    let peers: Vec<String> = watchers
        .iter()
        .zip(&found)
        .filter(|(which, _)| !which.is_ours())
        .map(|(which, values)| format!("{} {}", which.name(), cell(values)))
        .collect();
    for (which, values) in watchers.iter().zip(&found).filter(|(which, _)| which.is_ours()) {
        table.add(
            format!("operation of a pair {}, {base:.2} µs unwatched: {}", pinning.name(), which.what()),
            cell(values),
            if peers.is_empty() { "-".into() } else { peers.join(", ") },
            "-",
            "-",
            Verdict::None,
        );
    }
    Ok(())
}
