//! What profiles cost, beside what others cost: `cargo bench --bench profiles`, as root.
//!
//! One run, all ways in turn on the same load: processes that compute, ten calls deep, one on each CPU. Of the sampling
//! program the run time as the kernel counts it, beside the least that a program can do that counts stacks; of the whole
//! what the load lost of its CPU time, and what the thread that reads spent, or the process of another; of what comes after sampling the CPU time
//! until the profile is served. The result is a table. A missed target fails the run with `--check`; `--quick` is a short
//! run, `--part=sample` and the like a part of it.
#![allow(unsafe_code, reason = "bpf(2) and death signals; each block argues its case")]
#![allow(clippy::disallowed_methods, reason = "loads run for a time, and time has to pass")]
#![allow(missing_docs, reason = "a program")]

mod burner;
#[path = "../common/mod.rs"]
mod common;
mod minimal;
mod peers;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use burner::{Burner, Program, cost_of_rounds, cpu_of, cpu_of_thread, share_of_cpus};
use common::median;
use common::plan::Plan;
use common::sidecar::Sidecar;
use common::statistics::Counting;
use common::table::{Table, Verdict};
use minimal::{Minimal, sampler_of, samples_now};
use peers::Peer;

/// What a sample of a program with frame pointers may take, in terms of the minimal program.
const SAMPLE: f64 = 1.15;
/// CPU time of the thread that samples, a second.
const READER: Duration = Duration::from_micros(300);
/// The share of the CPU time of `perf script` that a profile may take after sampling.
const SERVED: f64 = 0.1;
/// The longest until a profile of many processes is served.
const MANY_SERVED: Duration = Duration::from_millis(500);

/// Parts that can be run alone.
const SAMPLES: &str = "sample";
const LOAD: &str = "load";
const AFTER: &str = "served";
const MANY: &str = "many";

/// Samples a second that cost enough to be seen.
const RATES: [u32; 2] = [999, 4999];
/// Samples a second unless asked for otherwise.
const HZ: u32 = 99;
/// Processes of a large pool.
const PROCESSES: usize = 100;

const RULES: &str = "zero_config: false\npools:\n  - name: burners\n    match:\n      comm: burner\n";

/// Rounds of a run, and how long each thing is measured.
struct Rounds {
    number: usize,
    time: Duration,
    /// Of the capture of many processes.
    many: Duration,
}

fn main() -> anyhow::Result<()> {
    let plan = Plan::from_arguments(env!("CARGO_BIN_EXE_collector"), &[SAMPLES, LOAD, AFTER, MANY])?;
    let rounds = if plan.quick {
        Rounds { number: 3, time: Duration::from_secs(2), many: Duration::from_secs(5) }
    } else {
        Rounds { number: 7, time: Duration::from_secs(5), many: Duration::from_secs(30) }
    };
    ensure!(nix::unistd::geteuid().is_root(), "run as root: all of this is about eBPF programs");
    for peer in Peer::ALL {
        ensure!(peer.is_available(), "{} is not installed: {}", peer.name(), peer.package());
    }
    let mut table = Table::default();
    if plan.wants(SAMPLES) {
        for frame_pointers in [true, false] {
            samples(&mut table, &plan, &rounds, frame_pointers)?;
        }
    }
    if plan.wants(LOAD) {
        load(&mut table, &plan, &rounds)?;
    }
    if plan.wants(AFTER) {
        served(&mut table, &plan, &rounds)?;
    }
    if plan.wants(MANY) {
        many(&mut table, &plan, &rounds)?;
    }
    println!("{}", table.render());
    ensure!(!plan.check || table.missed() == 0, "{} targets missed", table.missed());
    Ok(())
}

/// A collector that knows the burners.
fn watch(plan: &Plan, burners: &[Burner]) -> anyhow::Result<Sidecar> {
    let mut sidecar = Sidecar::start(&plan.collector, RULES, &[])?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let size = sidecar.pool().and_then(|pool| pool["size"].as_u64());
        if size == Some(burners.len() as u64) {
            return Ok(sidecar);
        }
        sidecar.alive()?;
        ensure!(Instant::now() < deadline, "{size:?} of {} burners are known", burners.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the collector has its sampling program run.
fn until_it_samples(sidecar: &Sidecar) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    while !samples_now(sidecar.pid())? {
        ensure!(Instant::now() < deadline, "the collector does not sample");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Run time of the sampling program for a sample.
fn samples(table: &mut Table, plan: &Plan, rounds: &Rounds, frame_pointers: bool) -> anyhow::Result<()> {
    const RATE: u32 = 999;
    let program = Program::compile(frame_pointers)?;
    let burners = program.start_on_each_cpu()?;
    let sidecar = watch(plan, &burners)?;
    let _counting = Counting::start()?;
    // Address spaces are read by then.
    sidecar.profile("profile?seconds=1&hz=999")?;
    let (mut ours, mut least) = (Vec::new(), Vec::new());
    for round in 0..rounds.number {
        eprintln!("samples, round {} of {}", round + 1, rounds.number);
        let minimal = Minimal::attach(RATE, &burners)?;
        let path = format!("profile?seconds={}&hz={RATE}", rounds.time.as_secs() + 4);
        let capture = sidecar.begin_profile(&path);
        until_it_samples(&sidecar)?;
        let sampler = || sampler_of(sidecar.pid())?.context("the collector samples no more");
        let before = (sampler()?, minimal.runs()?);
        // Who else runs is quickly done with, and would be in the mean.
        let alone = share_of_cpus(&burners, rounds.time)?;
        ensure!(
            alone > 0.9,
            "the machine is not quiet: {:.0} % of its CPU time is the load's",
            alone * 100.0
        );
        ours.push(sampler()?.ns_since(before.0));
        least.push(minimal.runs()?.ns_since(before.1));
        capture.join().ok().context("a capture ends")??;
    }
    let ratio = median(ours.iter().zip(&least).map(|(ours, least)| ours / least).collect());
    table.add(
        format!("run time of a sample, {} frame pointers", if frame_pointers { "with" } else { "without" }),
        format!("{:.0} ns", median(ours)),
        format!("minimal program {:.0} ns", median(least)),
        format!("{ratio:.2}"),
        if frame_pointers { format!("≤ {SAMPLE}") } else { "-".into() },
        if frame_pointers { Verdict::at_most(ratio, SAMPLE) } else { Verdict::None },
    );
    Ok(())
}

/// What the load loses of its CPU time, and what the thread that samples spends.
fn load(table: &mut Table, plan: &Plan, rounds: &Rounds) -> anyhow::Result<()> {
    let program = Program::compile(true)?;
    let burners = program.start_on_each_cpu()?;
    let sidecar = watch(plan, &burners)?;
    let seconds = rounds.time.as_secs();
    for hz in [HZ, RATES[0], RATES[1]] {
        let mut lost: [Vec<f64>; 2 + Peer::ALL.len()] = Default::default();
        let mut spent = lost.clone();
        for round in 0..rounds.number {
            eprintln!("load at {hz} Hz, round {} of {}", round + 1, rounds.number);
            let alone = cost_of_rounds(&burners, rounds.time)?;
            // Ours, the minimal program, and peers.
            for which in 0..lost.len() {
                let (cost, cpu) = match which {
                    0 => {
                        let capture =
                            sidecar.begin_profile(&format!("profile?seconds={}&hz={hz}", seconds + 4));
                        until_it_samples(&sidecar)?;
                        // Its other threads watch the burners all the while, which is not what this is about.
                        let reader = || cpu_of_thread(sidecar.pid(), "profile");
                        let before = reader()?;
                        let cost = cost_of_rounds(&burners, rounds.time)?;
                        let cpu = reader()? - before;
                        capture.join().ok().context("a capture ends")??;
                        (cost, cpu)
                    }
                    1 => {
                        let _minimal = Minimal::attach(hz, &burners)?;
                        (cost_of_rounds(&burners, rounds.time)?, Duration::ZERO)
                    }
                    peer => {
                        let peer = Peer::ALL[peer - 2].start(hz, &burners)?;
                        let before = cpu_of(peer.pid())?;
                        let cost = cost_of_rounds(&burners, rounds.time)?;
                        (cost, cpu_of(peer.pid())? - before)
                    }
                };
                lost[which].push((cost / alone - 1.0) * 100.0);
                spent[which].push(cpu.as_secs_f64() * 1e3 / rounds.time.as_secs_f64());
            }
        }
        let [ours, minimal, peers @ ..] = lost.map(median);
        let mut others = format!("minimal program {minimal:+.2} %");
        for (peer, lost) in Peer::ALL.into_iter().zip(peers) {
            others += &format!(", {} {lost:+.2} %", peer.name());
        }
        table.add(
            format!("CPU time that {hz} Hz add"),
            format!("{ours:+.2} %"),
            others,
            "",
            "-",
            Verdict::None,
        );
        let [ours, _, peers @ ..] = spent.map(median);
        let others = Peer::ALL.into_iter().zip(peers);
        let others: Vec<_> = others.map(|(peer, ms)| format!("{} {ms:.2} ms", peer.name())).collect();
        let limit = READER.as_secs_f64() * 1e3;
        table.add(
            format!("CPU time of the thread that samples at {hz} Hz, a second"),
            format!("{ours:.2} ms"),
            others.join(", "),
            "",
            format!("≤ {limit} ms"),
            Verdict::at_most(ours, limit),
        );
    }
    Ok(())
}

/// CPU time from the end of sampling to the served profile.
fn served(table: &mut Table, plan: &Plan, rounds: &Rounds) -> anyhow::Result<()> {
    const SECONDS: u64 = 5;
    let program = Program::compile(true)?;
    let burners = program.start_on_each_cpu()?;
    let sidecar = watch(plan, &burners)?;
    let (mut ours, mut script) = (Vec::new(), Vec::new());
    let number = rounds.number.min(3);
    for round in 0..number {
        eprintln!("served, round {} of {number}", round + 1);
        script.push(peers::record_and_script(SECONDS, HZ, &burners)?.as_secs_f64() * 1e3);
        let capture = sidecar.begin_profile(&format!("profile?seconds={SECONDS}&hz={HZ}"));
        std::thread::sleep(Duration::from_secs(SECONDS) - Duration::from_millis(100));
        let before = cpu_of(sidecar.pid())?;
        capture.join().ok().context("a capture ends")??;
        ours.push((cpu_of(sidecar.pid())? - before).as_secs_f64() * 1e3);
    }
    let first = ours.first().copied().unwrap_or(f64::NAN);
    let least = script.iter().copied().fold(f64::INFINITY, f64::min);
    let mut row = |what: &str, ours: f64| {
        table.add(
            format!("CPU time from the last sample to the profile, {SECONDS} s at {HZ} Hz{what}"),
            format!("{ours:.1} ms"),
            format!("perf script {least:.1} ms, without folding"),
            format!("{:.3}", ours / least),
            format!("≤ {SERVED}"),
            Verdict::at_most(ours / least, SERVED),
        );
    };
    row(", for the first time", first);
    row("", median(ours));
    Ok(())
}

/// Time from the last sample to the profile of many processes.
fn many(table: &mut Table, plan: &Plan, rounds: &Rounds) -> anyhow::Result<()> {
    let program = Program::compile(false)?;
    let cpus = std::thread::available_parallelism()?.get();
    let burners: Vec<Burner> =
        (0..PROCESSES).map(|number| program.start(number, number % cpus)).collect::<Result<_, _>>()?;
    let sidecar = watch(plan, &burners)?;
    let mut late = Vec::new();
    // The first one reads what the next one knows.
    for time in [Duration::from_secs(2), rounds.many] {
        let began = Instant::now();
        sidecar.profile(&format!("profile?seconds={}", time.as_secs()))?;
        late.push(began.elapsed().saturating_sub(time));
    }
    let [first, warm] = late[..] else { anyhow::bail!("two captures") };
    table.add(
        format!("time from the end of {} s of {PROCESSES} processes to the profile", rounds.many.as_secs()),
        format!("{} ms", warm.as_millis()),
        format!("for the first time {} ms", first.as_millis()),
        "",
        format!("≤ {} ms", MANY_SERVED.as_millis()),
        Verdict::at_most(warm.as_secs_f64(), MANY_SERVED.as_secs_f64()),
    );
    Ok(())
}
