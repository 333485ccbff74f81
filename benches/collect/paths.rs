//! Ways to read CPU and memory of many processes, called in this process: ours, two libraries, and the floor.

use std::collections::HashSet;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use collector::input::{Input, Role, Source};
use collector::kernel::support::Support;
use collector::kernel::{KernelSource, RequestsBy};
use collector::procfs::{self, ProcfsSource};
use collector::units::HostFacts;
use nix::sys::resource::{Resource, getrlimit};
use nix::time::ClockId;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use crate::programs::cpu_of;
use crate::workers::{Activity, Workers};

/// One way, and what it took per process in each round.
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    rounds: Vec<Duration>,
    processes: usize,
}

impl Measured {
    /// The median round, microseconds for each process.
    pub(crate) fn us_per_process(&self) -> f64 {
        let mut rounds = self.rounds.clone();
        rounds.sort_unstable();
        rounds[rounds.len() / 2].as_secs_f64() * 1e6 / self.processes as f64
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Others have read since, so what is read has left the caches, as it does in a second of real life.
    Others,
    /// The same way has just read: nobody has run since, and caches are warm.
    Itself,
    Activity(Activity),
}

/// Reads all; returns how many it read.
type Read = Box<dyn FnMut() -> anyhow::Result<usize>>;

struct Way<'a> {
    name: &'static str,
    before: Before,
    open: Box<dyn Fn() -> anyhow::Result<Read> + 'a>,
}

pub(crate) const EBPF: &str = "eBPF, none ran";
pub(crate) const EBPF_WARM: &str = "eBPF, none ran, again at once";
pub(crate) const EBPF_RAN: &str = "eBPF, all ran";
pub(crate) const PROCFS_IDLE: &str = "/proc, none ran";
pub(crate) const PROCFS_RAN: &str = "/proc, all ran";
pub(crate) const PROCFS_FAULTED: &str = "/proc, all ran and faulted";
pub(crate) const PROCFS_CRATE: &str = "procfs crate";
pub(crate) const SYSINFO: &str = "sysinfo";
pub(crate) const PREAD: &str = "pread of kept stat";

/// Descriptors that all ways keep for one process, about.
const KEPT: u64 = 16;

/// Measures all ways, so many rounds: in turn, or one way after the other when the descriptors they keep are more than
/// we may have.
pub(crate) fn measure(workers: &Workers, rounds: usize) -> anyhow::Result<Vec<Measured>> {
    let pids = &workers.numbers();
    let host = HostFacts::of_this_host();
    let support = &Support::probe(Path::new("/sys"));
    let kernel = move || {
        let source = KernelSource::open(support, RequestsBy::Sockets, Path::new("/proc"), host)
            .context("eBPF does not work here")?;
        pass_of(source, pids)
    };
    let procfs =
        move || pass_of(ProcfsSource::open(Path::new("/proc"), host, procfs::Config::default())?, pids);
    let ways = [
        Way { name: EBPF, before: Before::Others, open: Box::new(kernel) },
        Way { name: EBPF_WARM, before: Before::Itself, open: Box::new(kernel) },
        Way { name: EBPF_RAN, before: Before::Activity(Activity::Runs), open: Box::new(kernel) },
        Way { name: PROCFS_IDLE, before: Before::Itself, open: Box::new(procfs) },
        Way { name: PROCFS_CRATE, before: Before::Others, open: Box::new(|| procfs_crate(pids)) },
        Way { name: SYSINFO, before: Before::Others, open: Box::new(|| sysinfo_crate(pids)) },
        Way { name: PREAD, before: Before::Others, open: Box::new(|| kept_stat(pids)) },
        Way { name: PROCFS_RAN, before: Before::Activity(Activity::Runs), open: Box::new(procfs) },
        Way { name: PROCFS_FAULTED, before: Before::Activity(Activity::Faults), open: Box::new(procfs) },
    ];
    let fits = pids.len() as u64 * KEPT < getrlimit(Resource::RLIMIT_NOFILE)?.0;
    let groups = ways.chunks(if fits { ways.len() } else { 1 });
    let mut measured = Vec::new();
    for group in groups {
        measured.extend(interleaved(group, workers, rounds)?);
    }
    Ok(measured)
}

fn interleaved(ways: &[Way<'_>], workers: &Workers, rounds: usize) -> anyhow::Result<Vec<Measured>> {
    let count = workers.pids.len();
    let mut open = Vec::new();
    for way in ways {
        let measured = Measured { name: way.name, rounds: Vec::new(), processes: count };
        open.push((way.before, (way.open)()?, measured));
    }
    for round in 0..=rounds {
        for (before, read, measured) in &mut open {
            match before {
                Before::Others => {}
                Before::Itself => {
                    read()?;
                }
                Before::Activity(activity) => {
                    // What the workers did for other ways is behind it.
                    read()?;
                    workers.wake(*activity)?;
                    until_quiet(workers)?;
                }
            }
            let cpu = cpu_of(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
            let found = read()?;
            let took = cpu_of(ClockId::CLOCK_PROCESS_CPUTIME_ID)? - cpu;
            // What one process costs does not change with one that was missed, and the reason was told.
            ensure!(found * 1000 >= count * 999, "{} read {found} of {count} processes", measured.name);
            // The first round opens what is kept.
            if round > 0 {
                measured.rounds.push(took);
            }
        }
    }
    Ok(open.into_iter().map(|(_, _, measured)| measured).collect())
}

/// Waits until every worker waits again. The last one woken is the last to run on its CPU, but there are several.
fn until_quiet(workers: &Workers) -> anyhow::Result<()> {
    for pid in &workers.pids {
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')) {
                break;
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// A pass of one of our sources over these processes.
fn pass_of(mut source: impl Source + 'static, pids: &[u32]) -> anyhow::Result<Read> {
    let wanted: HashSet<u32> = pids.iter().copied().collect();
    let mut found = Vec::new();
    source.list(&mut |listed| {
        if wanted.contains(&listed.process.pid) {
            found.push(listed.process);
        }
    });
    ensure!(found.len() == pids.len(), "{}: {} of {} are listed", source.name(), found.len(), pids.len());
    let expected = found.len();
    for process in found {
        source.track(process, 1, Role::Worker);
    }
    Ok(Box::new(move || {
        let (mut read, mut without_memory, mut complete) = (0, 0, false);
        source.pass(&mut |input| match input {
            Input::Unchanged { .. } => read += 1,
            Input::Sample(sample) => {
                black_box(&sample);
                read += 1;
                without_memory += usize::from(sample.rss.is_none());
            }
            Input::PassComplete { .. } => complete = true,
            _ => {}
        });
        ensure!(complete, "the pass failed");
        if read != expected {
            eprintln!(
                "{}: {read} of {expected} processes in a pass; losses {:?}",
                source.name(),
                source.losses()
            );
        }
        ensure!(without_memory == 0, "{without_memory} of {read} processes without a figure of memory");
        Ok(read)
    }))
}

/// The files that our source reads, by the crate; with its process directories kept open, which favours it.
fn procfs_crate(pids: &[u32]) -> anyhow::Result<Read> {
    let open = |pid: &u32| ::procfs::process::Process::new(pid.cast_signed());
    let processes = pids.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(move || {
        for process in &processes {
            black_box((process.stat()?, process.statm()?, process.schedstat()?, process.io()?));
        }
        Ok(processes.len())
    }))
}

fn sysinfo_crate(pids: &[u32]) -> anyhow::Result<Read> {
    let mut system = System::new()?;
    let pids: Vec<sysinfo::Pid> = pids.iter().map(|pid| sysinfo::Pid::from_u32(*pid)).collect();
    let wanted = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
    Ok(Box::new(move || {
        Ok(system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, wanted))
    }))
}

/// The least that reading CPU from `/proc` can cost: no open, no close, nothing parsed.
pub(crate) fn kept_stat(pids: &[u32]) -> anyhow::Result<Read> {
    let open = |pid: &u32| File::open(format!("/proc/{pid}/stat"));
    let files = pids.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut buffer = [0; 1024];
    Ok(Box::new(move || {
        for file in &files {
            black_box(file.read_at(&mut buffer, 0)?);
        }
        Ok(files.len())
    }))
}
