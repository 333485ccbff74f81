//! What following requests costs the servers that answer them: `cargo bench --bench requests`, as root.
//!
//! One run, all ways to watch in turn on the same load, because the speed of a host drifts and only what is measured side
//! by side counts: one worker of nginx with a CPU of its own, which answers a small file as fast as it can. The cost of a
//! request is the run time of all BPF programs as the kernel counts it, with what the counting takes itself, and net of an
//! empty program at the same tracepoints. What the server feels is the requests that it answers in a second, and its CPU
//! time for each, with nothing counted, in turns of a twentieth of a second ([`turns`]). The result is a table. A missed
//! target fails the run with `--check`; `--quick` is a short run, `--part=throughput` and the like a part of it.
#![allow(unsafe_code, reason = "bpf(2) and death signals; each block argues its case")]
#![allow(clippy::disallowed_methods, reason = "loads run for a time, and time has to pass")]
#![allow(missing_docs, reason = "a program")]

#[path = "../common/mod.rs"]
mod common;
mod nginx;
mod turns;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;

use common::cost::{self, Cost};
use common::empty::Empty;
use common::median;
use common::plan::Plan;
use common::sidecar::Sidecar;
use common::statistics::Counting;
use common::table::{Table, Verdict};
use nginx::Nginx;
use turns::{Turn, Turns, Watch, Watcher};

/// The most that the programs may run for a request, ns, counting included.
const RUN_TIME_NS: f64 = 3000.0;
/// The share of its throughput that a server may lose.
const LOST: f64 = 0.05;

/// Parts that can be run alone.
const RUN_TIME: &str = "run-time";
const THROUGHPUT: &str = "throughput";
const SYSTEM_CALLS: &str = "system-calls";

/// How long it is asked before it is measured, at least.
const WARM_UP: Duration = Duration::from_secs(1);

/// Where the collector's programs are attached that a request runs.
const TRACEPOINTS: [&str; 6] = [
    cost::SWITCH,
    cost::WAKEUP,
    "sched_wakeup_new",
    "sock_recv_length",
    "sock_send_length",
    "inet_sock_set_state",
];

/// How the worker is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// As by default: requests, the status of each answer, and all histograms.
    Requests,
    /// Without looking into answers.
    NoStatus,
    /// The scheduler alone.
    Spans,
    /// As by default, through system calls.
    Syscalls,
}

impl Which {
    const ALL: [Self; 4] = [Self::Requests, Self::NoStatus, Self::Spans, Self::Syscalls];
    /// Those that have no other tracepoints than [`TRACEPOINTS`].
    const COUNTED: [Self; 3] = [Self::Requests, Self::NoStatus, Self::Spans];

    fn what(self) -> &'static str {
        match self {
            Self::Requests => "everything on",
            Self::NoStatus => "without the status of answers",
            Self::Spans => "no requests, scheduler only",
            Self::Syscalls => "everything on, through system calls",
        }
    }

    fn rules(self) -> String {
        let work = match self {
            Self::Requests | Self::Syscalls => "",
            Self::NoStatus => "    http_status: false\n",
            Self::Spans => "    work: spans\n",
        };
        format!("zero_config: false\npools:\n  - name: web\n    match:\n      comm: nginx\n{work}")
    }

    /// Starts a collector, and waits until it follows the worker.
    fn watch(self, collector: &Path, nginx: &Nginx) -> anyhow::Result<Sidecar> {
        let more: &[_] = if self == Self::Syscalls { &["--probes.requests=syscalls"] } else { &[] };
        let mut sidecar = Sidecar::start(collector, &self.rules(), more)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let followed = |sidecar: &Sidecar| {
            let pool = sidecar.pool()?;
            let known = pool["schedule"]["seconds"]["on_cpu"].as_f64()? > 0.0;
            Some(known && (self == Self::Spans || pool["requests"]["total"].as_u64()? > 0))
        };
        loop {
            nginx.ask(WARM_UP)?;
            if sidecar.cost().is_ok() && followed(&sidecar) == Some(true) {
                return Ok(sidecar);
            }
            sidecar.alive()?;
            ensure!(Instant::now() < deadline, "the worker is not followed: {:?}", sidecar.pool());
        }
    }
}

/// Rounds of a run, and how long each load is measured; and rounds of turns, which are short.
struct Rounds {
    number: usize,
    asked: Duration,
    turns: usize,
}

fn main() -> anyhow::Result<()> {
    let plan = Plan::from_arguments(env!("CARGO_BIN_EXE_collector"), &[RUN_TIME, THROUGHPUT, SYSTEM_CALLS])?;
    let rounds = if plan.quick {
        Rounds { number: 3, asked: Duration::from_secs(1), turns: 20 }
    } else {
        Rounds { number: 9, asked: Duration::from_secs(2), turns: 240 }
    };
    ensure!(nix::unistd::geteuid().is_root(), "run as root: all of this is about eBPF programs");
    ensure!(Nginx::available(), "nginx and wrk are the load: install the Debian packages of these names");
    let mut table = Table::default();
    if plan.wants(RUN_TIME) {
        run_time(&mut table, &plan, &rounds)?;
    }
    if plan.wants(THROUGHPUT) {
        throughput(&mut table, &rounds)?;
    }
    if plan.wants(SYSTEM_CALLS) {
        system_calls(&mut table, &plan, &rounds)?;
    }
    println!("{}", table.render());
    ensure!(!plan.check || table.missed() == 0, "{} targets missed", table.missed());
    Ok(())
}

/// Run time of all programs for a request, ns.
#[derive(Clone, Copy)]
struct RunTime {
    counted: f64,
    net: f64,
}

fn run_time(table: &mut Table, plan: &Plan, rounds: &Rounds) -> anyhow::Result<()> {
    let _counting = Counting::start()?;
    let empty = Empty::attach(&TRACEPOINTS)?;
    let nginx = Nginx::start()?;
    let mut found: [Vec<RunTime>; Which::COUNTED.len()] = Default::default();
    let mut runs = String::new();
    for round in 0..rounds.number {
        eprintln!("run time, round {} of {}", round + 1, rounds.number);
        for (which, found) in Which::COUNTED.into_iter().zip(&mut found) {
            let sidecar = which.watch(&plan.collector, &nginx)?;
            let before = (sidecar.cost()?, empty.cost()?);
            let requests = nginx.ask(rounds.asked)? as f64;
            let (ours, nothing) = (sidecar.cost()?.since(&before.0), empty.cost()?.since(&before.1));
            let (ns, net_ns) = ours.ns_and_net_ns(&nothing);
            found.push(RunTime { counted: ns / requests, net: net_ns / requests });
            if which == Which::Requests {
                runs = told_runs(&ours, &nothing, requests);
            }
        }
    }
    for (which, found) in Which::COUNTED.into_iter().zip(&found) {
        let counted = median(found.iter().map(|time| time.counted).collect());
        let net = median(found.iter().map(|time| time.net).collect());
        let target = which == Which::Requests;
        table.add(
            format!("run time of all programs for a request: {}", which.what()),
            format!("{counted:.0} ns, net {net:.0} ns"),
            format!("empty programs {:.0} ns", counted - net),
            format!("{:.1} empty", counted / (counted - net)),
            if target { format!("≤ {RUN_TIME_NS:.0} ns") } else { "-".into() },
            if target { Verdict::at_most(counted, RUN_TIME_NS) } else { Verdict::None },
        );
    }
    println!("Everything on, runs for a request and ns of each: {runs}");
    Ok(())
}

/// Where the programs ran.
fn told_runs(ours: &Cost, nothing: &Cost, requests: f64) -> String {
    let told = ours.by_tracepoint().into_iter().filter(|(_, runs, _)| *runs > 0).map(|(name, runs, ns)| {
        format!("{name} {:.2} × {ns:.0} (empty {:.0})", runs as f64 / requests, nothing.ns_per_run(name))
    });
    told.collect::<Vec<_>>().join(", ")
}

/// How often all is loaded anew in one measurement, each time with another one first: where in memory programs and tables are
/// changes what they cost by as much as a point of a hundred.
const LOADS: usize = Which::ALL.len();

/// Who watches while it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Collector(Which),
    /// Programs that do nothing: what it costs to be called by the tracepoints of a request at all.
    Empty,
    /// What that seems to cost is what the figures are worth.
    Nobody,
}

impl Who {
    const ALL: [Self; Which::ALL.len() + 2] = {
        let mut all = [Self::Nobody; Which::ALL.len() + 2];
        all[0] = Self::Empty;
        let mut index = 0;
        while index < Which::ALL.len() {
            all[index + 1] = Self::Collector(Which::ALL[index]);
            index += 1;
        }
        all
    };

    fn what(self) -> &'static str {
        match self {
            Self::Collector(which) => which.what(),
            Self::Empty => "programs that do nothing",
            Self::Nobody => "nobody watches",
        }
    }
}

fn throughput(table: &mut Table, rounds: &Rounds) -> anyhow::Result<()> {
    let nginx = Nginx::start()?;
    // The worker has its CPU to itself.
    let mut others = CpuSet::new();
    others.set(1)?;
    let (ourselves, allowed) = (Pid::from_raw(0), sched_getaffinity(Pid::from_raw(0))?);
    sched_setaffinity(ourselves, &others)?;
    let mut found: [Vec<(Turn, Turn)>; Who::ALL.len()] = Default::default();
    {
        let _asked = nginx.ask_on(Duration::from_secs(3600))?;
        let worker = nginx.worker.as_raw().cast_unsigned();
        let loads = if rounds.turns >= 2 * LOADS { LOADS } else { 1 };
        for load in 0..loads {
            let mut order = Which::ALL;
            order.rotate_left(load);
            let mut watches = order
                .into_iter()
                .map(|which| Ok((which, Watch::load(which, worker)?)))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let mut turns = Turns::begin(&nginx)?;
            for round in rounds.turns * load / loads..rounds.turns * (load + 1) / loads {
                if round % 20 == 0 {
                    eprintln!("throughput, turn {} of {}", round + 1, rounds.turns);
                }
                // Another one comes before each in each of six rounds: a multiple of 1 to 6, by a prime.
                const PRIME: usize = Who::ALL.len() + 1;
                const { assert!(PRIME == 7) };
                for position in 1..PRIME {
                    let index = (round % (PRIME - 1) + 1) * position % PRIME - 1;
                    let watcher = match Who::ALL[index] {
                        Who::Nobody => Watcher::Nobody(&mut watches.first_mut().context("one at least")?.1),
                        Who::Empty => Watcher::Empty(&TRACEPOINTS),
                        Who::Collector(which) => {
                            let its = watches.iter_mut().find(|(other, _)| *other == which);
                            Watcher::Collector(&mut its.context("one each")?.1)
                        }
                    };
                    found[index].push(turns.watched(watcher)?);
                }
            }
        }
    }
    sched_setaffinity(ourselves, &allowed)?;
    for (who, found) in Who::ALL.into_iter().zip(&found) {
        let figure = |figure: &dyn Fn(&(Turn, Turn)) -> f64| found.iter().map(figure).collect::<Vec<_>>();
        let rate = figure(&|(watched, alone)| watched.per_second / alone.per_second);
        let cpu = figure(&|(watched, alone)| watched.cpu_us / alone.cpu_us);
        let (target, what) = (who == Who::Collector(Which::Requests), who.what());
        table.add(
            format!("requests a second of a worker of nginx: {what}"),
            format!("{:.0}", median(figure(&|(watched, _)| watched.per_second))),
            format!("unwatched {:.0}", median(figure(&|(_, alone)| alone.per_second))),
            told_change(&rate),
            if target { format!("≥ -{:.0} %", LOST * 100.0) } else { "-".into() },
            if target { Verdict::at_least(median(rate), 1.0 - LOST) } else { Verdict::None },
        );
        table.add(
            format!("CPU time of the worker for a request: {what}"),
            format!("{:.2} µs", median(figure(&|(watched, _)| watched.cpu_us))),
            format!("unwatched {:.2} µs", median(figure(&|(_, alone)| alone.cpu_us))),
            told_change(&cpu),
            "-",
            Verdict::None,
        );
    }
    Ok(())
}

/// The median of ratios as a change, and where that of all possible ones is with a probability of 95 %.
fn told_change(ratios: &[f64]) -> String {
    let mut sorted = ratios.to_vec();
    sorted.sort_by(f64::total_cmp);
    // As many of them are below the true median as a coin falls on one side (order statistics).
    let aside = 0.98 * (sorted.len() as f64).sqrt();
    let middle = sorted.len() as f64 / 2.0;
    let percent = |at: f64| {
        let at = (at.max(0.0) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(at).map_or(f64::NAN, |ratio| (ratio - 1.0) * 100.0)
    };
    format!("{:+.1} % ({:+.1} to {:+.1})", percent(middle), percent(middle - aside), percent(middle + aside))
}

/// What the cheapest system call costs a thread that nobody follows, while system calls are watched.
fn system_calls(table: &mut Table, plan: &Plan, rounds: &Rounds) -> anyhow::Result<()> {
    let nginx = Nginx::start()?;
    let mut found: [Vec<(f64, f64)>; 2] = Default::default();
    for round in 0..rounds.number {
        eprintln!("system calls, round {} of {}", round + 1, rounds.number);
        for (which, found) in [Which::Requests, Which::Syscalls].into_iter().zip(&mut found) {
            let before = system_call_ns()?;
            let watched = {
                let _sidecar = which.watch(&plan.collector, &nginx)?;
                system_call_ns()?
            };
            found.extend([(watched, before), (watched, system_call_ns()?)]);
        }
    }
    for (what, found) in ["sockets", "system calls"].into_iter().zip(&found) {
        let middle = |figure: &dyn Fn(&(f64, f64)) -> f64| median(found.iter().map(figure).collect());
        table.add(
            format!("a system call of a thread that nobody follows, requests through {what}"),
            format!("{:.0} ns", middle(&|(watched, _)| *watched)),
            format!("unwatched {:.0} ns", middle(&|(_, alone)| *alone)),
            format!("{:+.0} ns", middle(&|(watched, alone)| watched - alone)),
            "-",
            Verdict::None,
        );
    }
    Ok(())
}

/// CPU time of getppid(2), ns.
fn system_call_ns() -> anyhow::Result<f64> {
    const CALLS: u32 = 2_000_000;
    let now = || anyhow::Ok(Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?));
    let begin = now()?;
    for _ in 0..CALLS {
        nix::unistd::getppid();
    }
    Ok((now()? - begin).as_nanos() as f64 / f64::from(CALLS))
}
