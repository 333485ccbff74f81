//! What it costs to watch, beside what others cost: `cargo bench --bench collect`, as root.
//!
//! One run, all programs in turn on the same processes, because the speed of a host drifts and only ratios count. Cost
//! is CPU time, of this process for libraries and of the whole program for exporters; wall time only where a client
//! feels it (requests per second, latency). The result is a table. A missed target fails the run with `--check`;
//! `--quick` is a short run at one size.
#![allow(unsafe_code, reason = "fork(2), death signals and one bpf(2) call; each block argues its case")]
#![allow(
    clippy::disallowed_methods,
    reason = "exporters are asked at intervals, and time has to pass between"
)]
#![allow(missing_docs, reason = "a program")]

mod client;
#[path = "../common/mod.rs"]
mod common;
mod paths;
mod programs;
mod workers;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::ClockId;

use client::{Client, Coding};
use common::statistics::Counting;
use common::table::{Table, Verdict};
use programs::{PEER, PEER_PACKAGE, Program};
use workers::Workers;

const MIB: f64 = (1 << 20) as f64;
const CONNECTIONS: usize = 8;
/// The size for which there are targets.
const JUDGED: usize = 1000;

/// Targets in microseconds were set on a host where reading a kept `stat` takes so long. Hosts differ and drift, so what
/// is judged is the ratio to that reading in the same run.
const ANCHOR_US: f64 = 2.5;
/// The same for JUDGED processes once a second, percent of a core.
const ANCHOR_SHARE: f64 = ANCHOR_US * JUDGED as f64 / 1e6 * 100.0;

#[derive(Clone, Copy)]
struct Plan {
    sizes: &'static [usize],
    rounds: usize,
    scrapes: usize,
    idle: Duration,
    counted: Duration,
    load: Duration,
    /// Age at which resident memory is looked at.
    steady: Duration,
    starts: usize,
    storm: usize,
    check: bool,
    parts: &'static str,
}

const FULL: Plan = Plan {
    sizes: &[100, 1000, 5000],
    rounds: 9,
    scrapes: 6,
    idle: Duration::from_secs(20),
    counted: Duration::from_secs(6),
    load: Duration::from_secs(5),
    steady: Duration::from_secs(35),
    starts: 5,
    storm: 20_000,
    check: false,
    parts: "ABCDEFG",
};

const QUICK: Plan = Plan {
    sizes: &[1000],
    rounds: 5,
    scrapes: 2,
    idle: Duration::from_secs(5),
    counted: Duration::from_secs(3),
    load: Duration::from_secs(2),
    steady: Duration::from_secs(10),
    starts: 3,
    storm: 5000,
    ..FULL
};

fn main() -> anyhow::Result<()> {
    let mut plan = FULL;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == workers::MASTER) {
        return workers::be_master();
    }
    if arguments.iter().any(|a| a == "--quick") {
        plan = QUICK;
    }
    for argument in &arguments {
        match argument.as_str() {
            // The first is what cargo adds.
            "--bench" | "--quick" => {}
            "--check" => plan.check = true,
            other => match other.strip_prefix("--parts=") {
                Some(parts) => plan.parts = parts.to_owned().leak(),
                None => {
                    anyhow::bail!("unknown argument {other}; there are --quick, --check and --parts=ABCDEFG")
                }
            },
        }
    }
    ensure!(nix::unistd::geteuid().is_root(), "run as root: the collector has to load eBPF programs");
    // Several ways keep files of every process at the same time.
    let hard = getrlimit(Resource::RLIMIT_NOFILE)?.1;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    if !std::path::Path::new(PEER).exists() {
        eprintln!(
            "process-exporter is not installed ({PEER}; Debian's package {PEER_PACKAGE} brings it): its figures are left out"
        );
    }

    let mut table = Table::default();
    let wants = |part: char| plan.parts.contains(part);
    if wants('F') {
        starts(&mut table, &plan, None)?;
    }
    let mut workers = Workers::start()?;
    for size in plan.sizes.iter().copied() {
        eprintln!("{size} workers");
        workers.grow_to(size)?;
        if wants('A') {
            collect(&mut table, &plan, &workers)?;
        }
        if size == JUDGED && wants('F') {
            starts(&mut table, &plan, Some(size))?;
        }
        programs_at(&mut table, &plan, &workers)?;
    }
    drop(workers);
    if wants('G') {
        storm(&mut table, &plan)?;
    }
    println!("{}", table.render());
    ensure!(!plan.check || table.missed() == 0, "{} targets missed", table.missed());
    Ok(())
}

fn us(value: f64) -> String {
    format!("{value:.2} µs")
}

fn ms(value: Duration) -> String {
    format!("{:.2} ms", value.as_secs_f64() * 1e3)
}

fn times(value: f64) -> String {
    format!("{value:.0}×")
}

/// Per process and collection, in this process.
fn collect(table: &mut Table, plan: &Plan, workers: &Workers) -> anyhow::Result<()> {
    let size = workers.pids.len();
    let measured = paths::measure(workers, plan.rounds)?;
    let of = |name: &str| {
        measured.iter().find(|m| m.name == name).map_or(f64::NAN, paths::Measured::us_per_process)
    };
    let peers = [paths::PROCFS_CRATE, paths::SYSINFO, paths::PREAD];
    let listed: Vec<String> = peers.iter().map(|name| format!("{name} {:.2}", of(name))).collect();
    let ours = [
        (paths::EBPF, 0.5),
        (paths::EBPF_WARM, 0.5),
        (paths::EBPF_RAN, 0.5),
        (paths::PROCFS_IDLE, 5.0),
        (paths::PROCFS_RAN, 5.0),
        (paths::PROCFS_FAULTED, 5.0),
    ];
    let anchor = of(paths::PREAD);
    for (name, target) in ours {
        let (cost, share) = (of(name), of(name) / anchor);
        let promised = target / ANCHOR_US;
        table.add(
            format!("collect, {size} processes, CPU per process: {name}"),
            us(cost),
            listed.join(", "),
            format!("{share:.2} pread, 1/{:.0} procfs crate", of(paths::PROCFS_CRATE) / cost),
            format!("≤ {promised} pread ({target} µs)"),
            if size == JUDGED { Verdict::at_most(share, promised) } else { Verdict::None },
        );
    }
    Ok(())
}

/// Whole programs on the workers there are.
fn programs_at(table: &mut Table, plan: &Plan, workers: &Workers) -> anyhow::Result<()> {
    let size = workers.pids.len();
    let judged = size == JUDGED;
    let wants =
        |part: char| plan.parts.contains(part) && (judged || part == 'B' || part == 'E' && size > JUDGED);
    if !"BCDE".chars().any(wants) {
        return Ok(());
    }
    let ours = [Program::collector("ebpf")?, Program::collector("procfs")?];
    let peer = Program::peer()?;
    for program in ours.iter().chain(&peer) {
        program.wait_for(size)?;
    }
    if wants('B') {
        scrape(table, plan, size, &ours, peer.as_ref())?;
    }
    if wants('C') {
        idle(table, plan, &ours, workers)?;
    }
    if wants('D') {
        serve(table, plan, &ours, peer.as_ref())?;
    }
    if wants('E') {
        memory(table, plan, size, &ours, peer.as_ref())?;
    }
    Ok(())
}

/// What it costs a collector to be scraped.
#[derive(Default)]
struct Scrapes {
    /// CPU of watching for a second at 1 Hz, which is one collection.
    watching: Duration,
    alone: Vec<Duration>,
    length: usize,
}

/// One cold scrape after a second of rest, each program in turn. The collector collects by itself, once a second, so one
/// collection is added to what the answer costs.
fn scrape(
    table: &mut Table,
    plan: &Plan,
    size: usize,
    ours: &[Program],
    peer: Option<&Program>,
) -> anyhow::Result<()> {
    const APART: Duration = Duration::from_secs(1);
    let count = u32::try_from(plan.scrapes)?;
    for coding in [Coding::Plain, Coding::Gzip] {
        let mut results: Vec<(Client, Scrapes)> = Vec::new();
        for program in ours {
            results.push((program.client()?, Scrapes::default()));
        }
        let mut peers_client = peer.map(Program::client).transpose()?;
        let mut peers_cpu = Duration::ZERO;
        for _ in 0..plan.scrapes {
            let before: Vec<Duration> = ours.iter().map(Program::cpu).collect::<anyhow::Result<_>>()?;
            let began = Instant::now();
            std::thread::sleep(APART);
            for ((program, (client, scrapes)), before) in ours.iter().zip(&mut results).zip(before) {
                let asked = program.cpu()?;
                // A busy host lets us sleep longer.
                scrapes.watching += asked.saturating_sub(before).div_f64(began.elapsed().as_secs_f64());
                let answer = client.get("/metrics", coding)?;
                ensure!(answer.status == 200, "{} answered {}", program.name, answer.status);
                scrapes.alone.push(program.cpu()?.saturating_sub(asked));
                scrapes.length = answer.length;
            }
            if let (Some(peer), Some(client)) = (peer, &mut peers_client) {
                let before = peer.cpu()?;
                let answer = client.get("/metrics", coding)?;
                ensure!(answer.status == 200, "process-exporter answered {}", answer.status);
                peers_cpu += peer.cpu()?.saturating_sub(before);
            }
        }
        let peers = peers_cpu / count;
        for (program, (_, mut scrapes)) in ours.iter().zip(results) {
            let watching = scrapes.watching / count;
            scrapes.alone.sort_unstable();
            let alone = scrapes.alone[scrapes.alone.len() / 2];
            let whole = watching + alone;
            let target = if program.name == "ebpf" { 250.0 } else { 40.0 };
            let ratio = peers.as_secs_f64() / whole.as_secs_f64();
            let judged = size == JUDGED && coding == Coding::Plain && peer.is_some();
            table.add(
                format!(
                    "scrape with its collection, {size} processes, {}, {}: CPU",
                    program.name,
                    coding.name()
                ),
                format!("{} (answer {} for {} KiB)", ms(whole), ms(alone), scrapes.length / 1024),
                peer.map_or("-".into(), |_| format!("process-exporter {}", ms(peers))),
                peer.map_or("-".into(), |_| {
                    format!("{} (answer {})", times(ratio), times(peers.as_secs_f64() / alone.as_secs_f64()))
                }),
                format!("≥ {}", times(target)),
                if judged { Verdict::at_least(ratio, target) } else { Verdict::None },
            );
        }
    }
    Ok(())
}

/// A second of nothing but watching.
fn idle(table: &mut Table, plan: &Plan, ours: &[Program], workers: &Workers) -> anyhow::Result<()> {
    let look = || -> anyhow::Result<Vec<_>> { ours.iter().map(|program| program.metrics()).collect() };
    let cpus = || -> anyhow::Result<Vec<Duration>> { ours.iter().map(Program::cpu).collect() };
    let metrics_before = look()?;
    // What reading CPU alone from `/proc` would cost at the same rhythm, as the anchor.
    let mut anchor = paths::kept_stat(&workers.numbers())?;
    // What the look set off has settled.
    std::thread::sleep(Duration::from_secs(2));
    let (began, before) = (Instant::now(), cpus()?);
    let mut anchor_cpu = Duration::ZERO;
    while began.elapsed() < plan.idle {
        std::thread::sleep(Duration::from_secs(1));
        let before = programs::cpu_of(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        anchor()?;
        anchor_cpu += programs::cpu_of(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before;
    }
    let (took, after) = (began.elapsed(), cpus()?);
    let anchor = anchor_cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
    let metrics_after = look()?;
    for (at, program) in ours.iter().enumerate() {
        let share = (after[at].saturating_sub(before[at])).as_secs_f64() / took.as_secs_f64() * 100.0;
        let time = |metrics: &programs::Metrics| metrics.sum("collector_snapshot_timestamp_seconds");
        let delta = |family| metrics_after[at].sum(family) - metrics_before[at].sum(family);
        let part = |family| delta(family) / (time(&metrics_after[at]) - time(&metrics_before[at])) * 100.0;
        table.add(
            format!("1 Hz, {JUDGED} idle processes, no scrapes, {}: share of a core", program.name),
            format!(
                "{share:.3} % (passes {:.3}, events {:.3})",
                part("collector_pass_cpu_seconds_total"),
                part("collector_event_cpu_seconds_total")
            ),
            format!("pread of kept stat, once a second {anchor:.3} %"),
            format!("{:.2} pread", share / anchor),
            format!("≤ {} pread (0.2 %)", 0.2 / ANCHOR_SHARE),
            Verdict::at_most(share / anchor, 0.2 / ANCHOR_SHARE),
        );
    }
    let Some(ebpf) = ours.iter().find(|program| program.name == "ebpf") else { return Ok(()) };
    let counting = Counting::start()?;
    // Counting has to have begun before the first look, and the first snapshot has to know.
    std::thread::sleep(Duration::from_millis(1500));
    let before = ebpf.metrics()?;
    std::thread::sleep(plan.counted);
    let after = ebpf.metrics()?;
    drop(counting);
    let passes = after.sum("collector_passes_total") - before.sum("collector_passes_total");
    ensure!(passes > 0.0, "no pass while programs were counted");
    let per_pass = |label: &str| {
        let family = "collector_bpf_program_run_seconds_total";
        (after.with(family, label) - before.with(family, label)) / passes * 1e6
    };
    let runs = |label: &str| {
        let family = "collector_bpf_program_runs_total";
        after.with(family, label) - before.with(family, label)
    };
    let figures = ["tracked_processes", "tracked_tasks"];
    let iterators: f64 = figures.iter().map(|program| per_pass(program)).sum();
    table.add(
        format!("BPF run time per pass, {JUDGED} processes (in the figure above, statistics on)"),
        format!(
            "figures {iterators:.0} µs in {:.0} runs, all programs {:.0} µs",
            figures.iter().map(|program| runs(program)).sum::<f64>() / passes,
            per_pass("")
        ),
        "-",
        "-",
        "-",
        Verdict::None,
    );
    Ok(())
}

/// As fast as clients can ask.
fn serve(table: &mut Table, plan: &Plan, ours: &[Program], peer: Option<&Program>) -> anyhow::Result<()> {
    for coding in [Coding::Plain, Coding::Gzip] {
        let peers =
            peer.map(|peer| client::load(peer.address, CONNECTIONS, plan.load, coding)).transpose()?;
        for program in ours {
            let before = program.cpu()?;
            let load = client::load(program.address, CONNECTIONS, plan.load, coding)?;
            let cpu = program.cpu()?.saturating_sub(before).as_secs_f64() / load.latencies.len() as f64;
            let (rate, p99) = (load.per_second(), load.quantile(0.99));
            let what = format!(
                "/metrics, {JUDGED} processes, {CONNECTIONS} connections, {}, {}",
                program.name,
                coding.name()
            );
            table.add(
                format!("{what}: answers per second"),
                format!("{rate:.0}/s ({:.0} µs of CPU each)", cpu * 1e6),
                peers.as_ref().map_or("-".into(), |p| format!("process-exporter {:.1}/s", p.per_second())),
                peers.as_ref().map_or("-".into(), |p| times(rate / p.per_second())),
                "≥ 600/s",
                Verdict::at_least(rate, 600.0),
            );
            let ratio = peers.as_ref().map(|p| p.quantile(0.99).as_secs_f64() / p99.as_secs_f64());
            table.add(
                format!("{what}: p99"),
                format!("{} (p50 {})", ms(p99), ms(load.quantile(0.5))),
                peers.as_ref().map_or("-".into(), |p| {
                    format!("process-exporter {} (p50 {})", ms(p.quantile(0.99)), ms(p.quantile(0.5)))
                }),
                ratio.map_or("-".into(), times),
                "≥ 200×",
                ratio.map_or(Verdict::None, |ratio| Verdict::at_least(ratio, 200.0)),
            );
        }
    }
    Ok(())
}

fn memory(
    table: &mut Table,
    plan: &Plan,
    size: usize,
    ours: &[Program],
    peer: Option<&Program>,
) -> anyhow::Result<()> {
    for program in ours.iter().chain(peer) {
        std::thread::sleep(plan.steady.saturating_sub(program.started.elapsed()));
    }
    for _ in 0..3 {
        for program in ours {
            let mut client = program.client()?;
            for path in ["/metrics", "/api/v1/stats"] {
                client.get(path, Coding::Plain)?;
                client.get(path, Coding::Gzip)?;
            }
        }
        if let Some(peer) = peer {
            peer.client()?.get("/metrics", Coding::Plain)?;
        }
        std::thread::sleep(Duration::from_millis(1100));
    }
    let peers = peer.map(Program::rss_bytes).transpose()?.map(|bytes| bytes as f64 / MIB);
    for program in ours {
        let rss = program.rss_bytes()? as f64 / MIB;
        let maps = program.metrics()?.sum("collector_kernel_map_memory_bytes") / MIB;
        let target = if size == JUDGED { 16.0 } else { 20.0 };
        table.add(
            format!("resident memory, {size} processes, {}", program.name),
            format!("{rss:.1} MiB"),
            peers.map_or("-".into(), |peers| format!("process-exporter {peers:.1} MiB")),
            peers.map_or("-".into(), |peers| format!("{:.1}×", peers / rss)),
            format!("≤ {target} MiB"),
            Verdict::at_most(rss, target),
        );
        if program.name == "ebpf" {
            table.add(
                format!("the same with kernel maps, {size} processes"),
                format!("{:.1} MiB ({maps:.1} MiB of maps)", rss + maps),
                "-",
                "-",
                "≤ 32 MiB",
                if size == JUDGED { Verdict::at_most(rss + maps, 32.0) } else { Verdict::None },
            );
        }
    }
    Ok(())
}

/// From the start of the program to its first answer.
fn starts(table: &mut Table, plan: &Plan, size: Option<usize>) -> anyhow::Result<()> {
    let mut results: [Vec<Duration>; 2] = Default::default();
    for _ in 0..plan.starts {
        for (source, result) in ["ebpf", "procfs"].into_iter().zip(&mut results) {
            result.push(Program::collector(source)?.first_scrape()?);
        }
    }
    for (source, mut result) in ["ebpf", "procfs"].into_iter().zip(results) {
        result.sort_unstable();
        let middle = *result.get(result.len() / 2).context("no start")?;
        let on = size.map_or("the host's own".into(), |size| format!("{size} more"));
        table.add(
            format!("start to first answered scrape, {on} processes, {source}: CPU"),
            format!("{:.1} ms", middle.as_secs_f64() * 1e3),
            "-",
            "-",
            "≤ 60 ms",
            if size.is_none() { Verdict::at_most(middle.as_secs_f64(), 0.06) } else { Verdict::None },
        );
    }
    Ok(())
}

/// Forks as fast as it goes, in a pool that is watched.
fn storm(table: &mut Table, plan: &Plan) -> anyhow::Result<()> {
    const STAY: usize = 4;
    for source in ["ebpf", "procfs"] {
        let mut workers = Workers::start()?;
        workers.grow_to(STAY)?;
        let program = Program::collector(source)?;
        program.wait_for(STAY)?;
        // Young workers are looked at again for a while.
        std::thread::sleep(Duration::from_millis(1500));
        let before = program.metrics()?;
        workers.storm(plan.storm)?;
        std::thread::sleep(Duration::from_millis(2500));
        let after = program.metrics()?;
        let delta = |family| after.sum(family) - before.sum(family);
        let events = delta("collector_events_delivered_total");
        let lost = delta("collector_events_lost_total");
        let label = "kind=\"fork\"";
        let forks = after.with("collector_events_delivered_total", label)
            - before.with("collector_events_delivered_total", label);
        if source == "ebpf" {
            ensure!(forks + lost >= plan.storm as f64, "{forks} forks of {} were told", plan.storm);
        }
        let cost = delta("collector_event_cpu_seconds_total") / events * 1e6;
        table.add(
            format!("fork storm, {} forks, {source}: CPU per event", plan.storm),
            format!("{} ({events:.0} events, {lost:.0} lost)", us(cost)),
            "-",
            "-",
            "≤ 1 µs",
            if source == "ebpf" { Verdict::at_most(cost, 1.0) } else { Verdict::None },
        );
    }
    Ok(())
}
