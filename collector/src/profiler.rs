//! The profiling thread: takes what is asked for, samples, and answers with profiles.
//!
//! A thread of its own, because reading the files of what is profiled and looking up names occupies a CPU. While nobody asks
//! it sleeps, and nothing of it is in the kernel. Captures of the same things at the same rate share their samples.

mod naming;
mod spaces;
mod workers;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use collector_ebpf::sample::{COMPLETE, NO_ROOM, STATE_ON_CPU, Stack};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use self::spaces::{Readers, Spaces};
use self::workers::Workers;
use crate::kernel::{Counts, LoadError, Sampler, Samplers, What};
use crate::procfs::ProcfsError;
use crate::procfs::kallsyms::Kallsyms;
use crate::procfs::root::{Buffer, Root};
use crate::profile::fold::{Folder, Place};
use crate::profile::modules::{Limits, Mapped, ModuleId, Modules};
use crate::profile::symbols::{self, Symbols};
use crate::profile::{Kind, Labels, Profile};
use crate::snapshot::Snapshot;
use crate::units::{NANOS_PER_SECOND, NANOS_PER_TICK, Pid, ProcessKey, unix_ns};

/// Captures at a time.
const MAX_CAPTURES: usize = 8;

/// How often the thread looks after what it samples: for processes that it does not know, and captures that end.
const TICK: Duration = Duration::from_millis(20);

/// How long a period lasts. The next one is another, so that no load keeps in step with the samples.
const PERIOD_LASTS: Duration = Duration::from_millis(100);

/// Periods are up to this much shorter or longer than asked for, in parts of a thousand.
const JITTER: u64 = 120;

/// What was read of the files of processes is kept for so long after the last capture.
const FORGET_AFTER: Duration = Duration::from_secs(120);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What is to be measured.
    pub kind: Kind,
    /// Of the workers of this pool; of all, unless given.
    pub pool: Option<String>,
    /// Of the worker in this slot.
    pub slot: Option<u32>,
    /// Of the worker with this pid.
    pub pid: Option<Pid>,
    /// For how long.
    pub duration: Duration,
    /// Samples a second, of each CPU. Not zero.
    pub hz: u32,
    /// Of waits, those that are as long as that at least, ns.
    pub least_ns: u64,
}

impl Wanted {
    /// What has to be sampled for it.
    fn sampled(&self) -> Vec<What> {
        let on_cpu = What::OnCpu { period_ns: NANOS_PER_SECOND / u64::from(self.hz) };
        let off_cpu = What::OffCpu { least_ns: self.least_ns };
        match self.kind {
            Kind::OnCpu => vec![on_cpu],
            Kind::OffCpu | Kind::RunQueue => vec![off_cpu],
            Kind::Wall => vec![on_cpu, off_cpu],
        }
    }

    fn wants_pool(&self, pool: &str) -> bool {
        self.pool.as_ref().is_none_or(|wanted| *wanted == *pool)
    }

    fn wants(&self, pool: &str, slot: Option<u32>, pid: Pid) -> bool {
        self.wants_pool(pool)
            && self.slot.is_none_or(|wanted| slot == Some(wanted))
            && self.pid.is_none_or(|wanted| wanted == pid)
    }
}

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// As many as there can be are under way.
    #[error("{MAX_CAPTURES} captures are under way, which is the most; ask again when one has ended")]
    Busy,
    /// The kernel refused.
    #[error("the kernel refuses to sample: {0}")]
    Load(#[from] LoadError),
    /// Counters could not be read.
    #[error("reading what was counted: {0}")]
    Read(#[from] io::Error),
}

type Answer = oneshot::Sender<Result<Profile, CaptureError>>;

/// Where captures are asked for.
#[derive(Clone, Debug)]
pub struct Profiler {
    wanted: mpsc::Sender<(Wanted, Answer)>,
}

impl Profiler {
    /// A capture, which begins now. It ends early when what this returns is dropped; and that ends without an answer if the
    /// thread has ended.
    pub fn capture(&self, wanted: Wanted) -> oneshot::Receiver<Result<Profile, CaptureError>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.wanted.send((wanted, answer));
        answered
    }
}

/// What the thread is given.
#[derive(Debug)]
pub struct Profiling {
    wanted: mpsc::Receiver<(Wanted, Answer)>,
    samplers: Samplers,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    kallsyms: Kallsyms,
    /// One for each who reads.
    procfs: [Root; 3],
}

/// Both ends. To be made before rights are dropped: whether the kernel shows the addresses of its functions is decided then.
pub fn new(
    samplers: Samplers,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    procfs: &Path,
) -> Result<(Profiler, Profiling), ProcfsError> {
    let (sender, wanted) = mpsc::channel();
    let roots = [Root::open(procfs)?, Root::open(procfs)?, Root::open(procfs)?];
    let profiling =
        Profiling { wanted, samplers, snapshots, kallsyms: Kallsyms::open(procfs), procfs: roots };
    Ok((Profiler { wanted: sender }, profiling))
}

impl Profiling {
    /// Works until all other ends are dropped.
    pub fn run(self) {
        let Self { wanted, samplers, snapshots, kallsyms, procfs: [for_stat, for_maps, for_names] } = self;
        let mut work = Work {
            samplers,
            snapshots,
            readers: Readers {
                procfs: for_stat,
                buffer: Buffer::default(),
                modules: Modules::new(for_maps, Limits::default()),
                rules: HashMap::new(),
            },
            symbols: Symbols::new(symbols::Config::default(), for_names, kallsyms),
            samplings: Vec::new(),
            captures: Vec::new(),
            idle_since: None,
        };
        loop {
            let next = match (work.captures.is_empty(), work.idle_since) {
                (false, _) => wanted.recv_timeout(TICK),
                (true, Some(since)) => wanted.recv_timeout(FORGET_AFTER.saturating_sub(since.elapsed())),
                (true, None) => wanted.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok((wanted, answer)) => work.begin(wanted, answer),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if work.captures.is_empty() => {
                    work.forget();
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            work.look_after();
        }
    }
}

/// What the thread works with.
struct Work {
    samplers: Samplers,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    readers: Readers,
    symbols: Symbols,
    samplings: Vec<Sampling>,
    captures: Vec<Capture>,
    /// When the last capture ended.
    idle_since: Option<Instant>,
}

/// A sampler at work.
struct Sampling {
    what: What,
    sampler: Sampler,
    spaces: Spaces,
    next_period: Instant,
    periods: u64,
}

/// A capture under way.
struct Capture {
    wanted: Wanted,
    answer: Answer,
    began: Instant,
    began_unix_ns: u64,
    /// By what it is made of.
    before: Vec<(What, Before)>,
}

/// What had been counted when a capture began.
#[derive(Default)]
struct Before {
    counts: Counts,
    /// By hash.
    stacks: HashMap<u64, Stack>,
}

impl Work {
    fn begin(&mut self, wanted: Wanted, answer: Answer) {
        self.idle_since = None;
        if self.captures.len() >= MAX_CAPTURES {
            let _ = answer.send(Err(CaptureError::Busy));
            return;
        }
        let (began, began_unix_ns) = (Instant::now(), unix_ns());
        let before = wanted.sampled().into_iter().map(|what| Ok((what, self.sample(what, &wanted)?)));
        match before.collect() {
            Ok(before) => self.captures.push(Capture { wanted, answer, began, began_unix_ns, before }),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Begins to sample, unless that is done already, and sees to it that who is wanted is known. What was counted before.
    fn sample(&mut self, what: What, wanted: &Wanted) -> Result<Before, CaptureError> {
        let known = self.samplings.iter().position(|sampling| sampling.what == what);
        let is_new = known.is_none();
        let mut sampling = match known {
            Some(index) => self.samplings.swap_remove(index),
            None => Sampling {
                what,
                sampler: self.samplers.load(what, self.readers.rows() * 3 / 2)?,
                spaces: Spaces::default(),
                next_period: Instant::now() + PERIOD_LASTS,
                periods: 0,
            },
        };
        let mut pids = Vec::new();
        if let Some(snapshot) = self.snapshots.borrow().as_deref() {
            let workers = workers::listed(snapshot);
            let workers = workers.filter(|(pool, worker)| wanted.wants(pool, Some(worker.slot), worker.pid));
            pids.extend(workers.map(|(_, worker)| worker.pid));
            // Who is forked meanwhile has their address space, until it calls execve(2).
            let pools = snapshot.pools.iter().filter(|pool| wanted.wants_pool(&pool.name));
            pids.extend(pools.flat_map(|pool| &pool.masters).map(|master| master.pid));
        }
        for pid in pids {
            sampling.spaces.tell(pid, &mut self.readers, &mut sampling.sampler);
        }
        let mut before = Before::default();
        if is_new {
            sampling.sampler.start()?;
        } else {
            before.counts = sampling.sampler.counts()?;
            sampling.sampler.read(|stack, _, _| {
                before.stacks.insert(stack.hash, *stack);
            });
        }
        self.samplings.push(sampling);
        Ok(before)
    }

    fn look_after(&mut self) {
        for sampling in &mut self.samplings {
            for pid in sampling.sampler.unknown() {
                sampling.spaces.tell(pid, &mut self.readers, &mut sampling.sampler);
            }
            sampling.change_period();
        }
        // Who went away wants nothing any more.
        self.captures.retain(|capture| !capture.answer.is_closed());
        let now = Instant::now();
        let is_over = |capture: &mut Capture| now.duration_since(capture.began) >= capture.wanted.duration;
        let over: Vec<Capture> = self.captures.extract_if(.., is_over).collect();
        let wanted: Vec<What> =
            self.captures.iter().flat_map(|capture| capture.before.iter().map(|(what, _)| *what)).collect();
        for sampling in self.samplings.iter_mut().filter(|sampling| !wanted.contains(&sampling.what)) {
            sampling.sampler.stop();
        }
        for capture in over {
            let profile = self.profile(&capture, now.duration_since(capture.began));
            let _ = capture.answer.send(profile);
        }
        self.samplings.retain(|sampling| wanted.contains(&sampling.what));
        if self.captures.is_empty() {
            self.idle_since = Some(Instant::now());
        }
    }

    /// What a capture has found.
    fn profile(&mut self, capture: &Capture, duration: Duration) -> Result<Profile, CaptureError> {
        let workers = Workers::of(self.snapshots.borrow().as_deref());
        let mut folder = Folder::default();
        let mut period_ns = 0;
        for (what, before) in &capture.before {
            let Some(sampling) = self.samplings.iter().find(|sampling| sampling.what == *what) else {
                continue;
            };
            let counts = sampling.sampler.counts()?;
            if let What::OnCpu { period_ns: asked_ns } = what {
                let sampled_ns = duration.as_nanos() as u64 * sampling.sampler.sampled_cpus() as u64;
                let fired = counts.fired.saturating_sub(before.counts.fired);
                period_ns = sampled_ns.checked_div(fired).unwrap_or(*asked_ns);
            }
            folder.add_lost(counts.lost.saturating_sub(before.counts.lost));
            let mut fold =
                Fold { sampling, capture, before, workers: &workers, modules: &self.readers.modules };
            let symbols = &mut self.symbols;
            sampling.sampler.read(|stack, kernel, user| fold.add(stack, kernel, user, symbols, &mut folder));
        }
        let named = naming::named(folder.places(), &self.readers.modules, &mut self.symbols);
        Ok(Profile {
            started_unix_ns: capture.began_unix_ns,
            duration_ns: duration.as_nanos() as u64,
            period_ns,
            ..folder.finish(capture.wanted.kind, named)
        })
    }

    /// Lets go of all that was read.
    fn forget(&mut self) {
        self.idle_since = None;
        self.readers.clear();
        self.symbols.clear();
        crate::heap::trim();
    }
}

/// What stacks of one sampling are folded with.
struct Fold<'a> {
    sampling: &'a Sampling,
    capture: &'a Capture,
    before: &'a Before,
    workers: &'a Workers,
    modules: &'a Modules,
}

impl Fold<'_> {
    /// Adds a stack, as far as it is wanted and has been found since the capture began.
    fn add(
        &mut self,
        stack: &Stack,
        kernel: &[u64],
        user: &[u64],
        symbols: &mut Symbols,
        folder: &mut Folder<ModuleId>,
    ) {
        let before = self.before.stacks.get(&stack.hash).copied().unwrap_or_default();
        let found = stack.count.saturating_sub(before.count);
        let time_ns = stack.time_ns.saturating_sub(before.time_ns);
        let queued = stack.queued.saturating_sub(before.queued);
        let queued_ns = stack.queued_ns.saturating_sub(before.queued_ns);
        let kind = self.capture.wanted.kind;
        // A sampling is of one or the other.
        let measured = [
            (kind != Kind::RunQueue).then_some((found, time_ns, false)),
            matches!(kind, Kind::RunQueue | Kind::Wall).then_some((queued, queued_ns, true)),
        ];
        let measured = measured.into_iter().flatten().filter(|(count, ..)| *count > 0);
        let mut measured = measured.peekable();
        if measured.peek().is_none() {
            return;
        }
        let labels = self.workers.labels(stack);
        if !self.capture.wanted.wants(&labels.pool, labels.slot.map(|(slot, _)| slot), stack.pid) {
            return;
        }
        let skipped = if stack.state == STATE_ON_CPU { 0 } else { naming::frames_of_ours(kernel, symbols) };
        let frames = self.frames(stack, &kernel[skipped..], user);
        let truncated = stack.flags & COMPLETE == 0 || stack.flags & NO_ROOM != 0;
        for (count, value_ns, in_queue) in measured {
            let labels = if in_queue {
                Labels { state: "runnable", reason: None, ..labels.clone() }
            } else {
                labels.clone()
            };
            folder.add(labels, frames.iter().copied(), truncated, count, value_ns);
        }
    }

    fn frames(&self, stack: &Stack, kernel: &[u64], user: &[u64]) -> Vec<Place<ModuleId>> {
        let maps = self.sampling.spaces.maps_of(stack, self.modules);
        let process = key_of(stack);
        let place = |address: &u64| match maps.and_then(|maps| maps.find(*address)) {
            Some(Mapped { start, file_offset, module: Some(id), .. }) => {
                let module = self.modules.get(*id);
                let virtual_address =
                    module.and_then(|module| module.address(file_offset + (address - start)));
                virtual_address.map_or(Place::Memory(process, *address), |at| Place::Module(*id, at))
            }
            _ => Place::Memory(process, *address),
        };
        kernel.iter().map(|address| Place::Kernel(*address)).chain(user.iter().map(place)).collect()
    }
}

impl Sampling {
    /// The next period: on both sides of the one that was asked for, evenly (the multiples of the golden ratio modulo 1 fill an
    /// interval without gaps).
    fn change_period(&mut self) {
        const GOLDEN: u64 = 618;
        let What::OnCpu { period_ns: middle } = self.what else { return };
        if Instant::now() < self.next_period {
            return;
        }
        self.periods += 1;
        self.next_period = Instant::now() + PERIOD_LASTS;
        let offset = (500 + self.periods * GOLDEN) % 1000;
        let period_ns = middle - middle * JITTER / 1000 + middle * 2 * JITTER * offset / 1_000_000;
        if let Err(error) = self.sampler.set_period(period_ns) {
            tracing::debug!(%error, "the period of samples stays as it is");
        }
    }
}

/// As `/proc` has it: to the tick.
fn key_of(stack: &Stack) -> ProcessKey {
    ProcessKey::from_ticks(stack.pid, stack.start_ns / NANOS_PER_TICK)
}
