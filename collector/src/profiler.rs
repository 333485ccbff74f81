//! The profiling thread: takes what is asked for, samples, and answers with profiles; and with where all threads are.
//!
//! A thread of its own, because reading the files of what is profiled and looking up names occupies a CPU. While nobody asks
//! it sleeps, and nothing of it is in the kernel, unless it is to sample all the time and keep what it finds
//! (`continuous`). Captures of the same things at the same rate share their samples.

mod continuous;
mod naming;
mod spaces;
mod threads;
mod workers;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use collector_ebpf::sample::{COMPLETE, NO_ROOM, STATE_ON_CPU, Stack};
use collector_ebpf::schedule::KINDS;
use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use self::continuous::Continuous;
use self::naming::Interpreters;
use self::spaces::{Readers, Spaces};
use self::workers::Workers;
use crate::kernel::{Counts, Frames, LoadError, Names, Sampler, Samplers, Threads, What};
use crate::procfs::ProcfsError;
use crate::procfs::kallsyms::Kallsyms;
use crate::procfs::root::{Buffer, Root};
use crate::profile::fold::Folder;
use crate::profile::modules::{Limits, ModuleId, Modules};
use crate::profile::symbols::{self, Symbols};
use crate::profile::threads::Dump;
use crate::profile::{Kind, Labels, Profile};
use crate::snapshot::Snapshot;
use crate::units::{NANOS_PER_SECOND, NANOS_PER_TICK, Pid, ProcessKey, unix_ns};

/// Captures at a time.
const MAX_CAPTURES: usize = 4;

/// How often the thread looks after what it samples, for processes that it does not know: to be woken up is most of what it
/// costs while it samples.
const TICK: Duration = Duration::from_millis(100);

/// The same after one was met: there may be more, which do not live for long.
const TICK_OF_STRANGERS: Duration = Duration::from_millis(20);

/// The same while nobody waits for what is sampled: a few samples of those who do not live for long are all that there is.
const TICK_OF_NOBODY: Duration = Duration::from_millis(500);

/// How long a period lasts, or as long as ten of it. The next one is another, so that no load keeps in step with the samples:
/// one whose turn is a few periods does for as long as the period lasts. In a simulation of turns of 1 to 8 ms and 1,999 samples
/// a second for ten seconds, one share in a thousand was off by 1.4 points and more when a period lasted for 500 ms; with
/// 200 ms it is 0.8, and 0.7 with samples at random times. To change it has the kernel interrupt each CPU.
const PERIOD_LASTS: Duration = Duration::from_millis(200);

/// A sampler without room for more code is not replaced earlier: there may be more code than there is room for in any.
const REPLACED_AFTER: Duration = Duration::from_secs(300);

/// Periods are shorter or longer than asked for by these parts of a thousand. Not by less: a program in step with what was asked
/// for, as those are that work by a timer, stays in step for long with what is nearly the same.
const JITTER: std::ops::Range<u64> = 60..400;

/// What was read of the files of processes, and a sampler, is kept for so long after the last capture.
const FORGET_AFTER: Duration = Duration::from_secs(120);

/// Whose profile is asked for.
#[derive(Clone, Debug, Default)]
pub struct Whom {
    /// The workers of this pool; those of all, unless given.
    pub pool: Option<String>,
    /// The worker in this slot.
    pub slot: Option<u32>,
    /// The worker with this pid.
    pub pid: Option<Pid>,
}

impl Whom {
    fn has_pool(&self, pool: &str) -> bool {
        self.pool.as_ref().is_none_or(|wanted| *wanted == *pool)
    }

    fn has(&self, pool: &str, slot: Option<u32>, pid: Pid) -> bool {
        self.has_pool(pool)
            && self.slot.is_none_or(|wanted| slot == Some(wanted))
            && self.pid.is_none_or(|wanted| wanted == pid)
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What is to be measured. Not [`Kind::Threads`], which nothing is measured for.
    pub kind: Kind,
    /// Of whom.
    pub whom: Whom,
    /// For how long.
    pub duration: Duration,
    /// Samples a second, of each CPU. Not zero.
    pub hz: u32,
    /// Of waits, those that are as long as that at least, ns, by kind of time ([`crate::input::TIME_KINDS`]).
    pub least_ns: [u64; KINDS],
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
            Kind::Threads => Vec::new(),
        }
    }
}

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// As many as there can be are under way.
    #[error("as many captures, or rates, are under way as can be; ask again when one has ended")]
    Busy,
    /// The kernel refused.
    #[error("the kernel refuses to sample: {0}")]
    Load(LoadError),
    /// Of the time that is asked for nothing is kept. From when to when there is something, nanoseconds since the Unix epoch.
    #[error("nothing is kept of that time; {}", kept(*.0))]
    NotKept(Option<(u64, u64)>),
    /// Counters, or where threads are, could not be read.
    #[error("reading what the kernel tells: {0}")]
    Read(#[from] io::Error),
}

impl From<LoadError> for CaptureError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::NoEventsLeft => Self::Busy,
            other => Self::Load(other),
        }
    }
}

fn kept(from_to: Option<(u64, u64)>) -> String {
    let time = |unix_ns: u64| Timestamp::from_nanosecond(unix_ns.into()).unwrap_or(Timestamp::MAX);
    from_to.map_or_else(
        || {
            let lasts_s = continuous::LASTS.as_secs();
            format!(
                "what is sampled now will be in {lasts_s} s, unless the log says that it cannot be sampled"
            )
        },
        |(from, to)| format!("there is something from {:.0} to {:.0}", time(from), time(to)),
    )
}

type Answer = oneshot::Sender<Result<Profile, CaptureError>>;

/// What the thread is asked for.
enum Request {
    Capture(Wanted, Answer),
    /// What was found between two times, nanoseconds since the Unix epoch.
    Kept {
        from_ns: u64,
        to_ns: u64,
        whom: Whom,
        answer: Answer,
    },
    Threads(Whom, oneshot::Sender<Result<Dump, CaptureError>>),
}

/// Where captures are asked for.
#[derive(Clone, Debug)]
pub struct Profiler {
    requests: mpsc::Sender<Request>,
    keeps: bool,
}

impl Profiler {
    /// A capture, which begins now. It ends early when what this returns is dropped; and that ends without an answer if the
    /// thread has ended.
    pub fn capture(&self, wanted: Wanted) -> oneshot::Receiver<Result<Profile, CaptureError>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Capture(wanted, answer));
        answered
    }

    /// What runs on CPUs is sampled all the time, and kept.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// What was kept of a time, nanoseconds since the Unix epoch, to the ten seconds. As for captures, there is no answer if the
    /// thread has ended.
    pub fn kept(
        &self,
        from_ns: u64,
        to_ns: u64,
        whom: Whom,
    ) -> oneshot::Receiver<Result<Profile, CaptureError>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Kept { from_ns, to_ns, whom, answer });
        answered
    }

    /// What all threads of workers do now. As for captures, there is no answer if the thread has ended.
    pub fn threads(&self, whom: Whom) -> oneshot::Receiver<Result<Dump, CaptureError>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Threads(whom, answer));
        answered
    }
}

/// What the thread is given.
#[derive(Debug)]
pub struct Profiling {
    requests: mpsc::Receiver<Request>,
    samplers: Samplers,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    kallsyms: Kallsyms,
    /// One for each who reads.
    procfs: [Root; 3],
    continuous: Option<Continuous>,
}

/// Both ends. To be made before rights are dropped: whether the kernel shows the addresses of its functions is decided then. What runs
/// on CPUs is sampled all the time if `continuous_hz` says how often.
pub fn new(
    samplers: Samplers,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    procfs: &Path,
    continuous_hz: Option<u32>,
) -> Result<(Profiler, Profiling), ProcfsError> {
    let (sender, requests) = mpsc::channel();
    let roots = [Root::open(procfs)?, Root::open(procfs)?, Root::open(procfs)?];
    let profiling = Profiling {
        requests,
        samplers,
        snapshots,
        kallsyms: Kallsyms::open(procfs),
        procfs: roots,
        continuous: continuous_hz.map(Continuous::new),
    };
    Ok((Profiler { requests: sender, keeps: continuous_hz.is_some() }, profiling))
}

impl Profiling {
    /// Works until all other ends are dropped.
    pub fn run(self) {
        let Self { requests, samplers, snapshots, kallsyms, procfs, continuous } = self;
        let [for_stat, for_maps, for_names] = procfs;
        let mut work = Work {
            samplers,
            snapshots,
            readers: Readers {
                procfs: for_stat,
                buffer: Buffer::default(),
                modules: Modules::new(for_maps, Limits::default()),
                rules: HashMap::new(),
                pythons: HashMap::new(),
            },
            symbols: Symbols::new(symbols::Config::default(), for_names, kallsyms),
            threads: None,
            names: None,
            samplings: Vec::new(),
            captures: Vec::new(),
            continuous,
            untidy: false,
            next_sampling: 0,
            idle_since: None,
            met_strangers: false,
        };
        loop {
            let next = match (work.is_at_work(), work.idle_since) {
                (true, _) => requests.recv_timeout(work.next_look()),
                (false, Some(since)) => requests.recv_timeout(FORGET_AFTER.saturating_sub(since.elapsed())),
                (false, None) => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(Request::Capture(wanted, answer)) => work.begin(wanted, answer),
                Ok(Request::Kept { from_ns, to_ns, whom, answer }) if !answer.is_closed() => {
                    let _ = answer.send(work.kept(from_ns, to_ns, &whom));
                }
                Ok(Request::Threads(whom, answer)) if !answer.is_closed() => {
                    let _ = answer.send(work.threads(&whom));
                }
                Ok(Request::Threads(..) | Request::Kept { .. }) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if !work.is_at_work() => {
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
    /// What tells where threads are, once somebody has asked.
    threads: Option<Threads>,
    /// What names addresses in the kernel.
    names: Option<Names>,
    samplings: Vec<Sampling>,
    captures: Vec<Capture>,
    continuous: Option<Continuous>,
    /// What was read of those who have ended is to go.
    untidy: bool,
    next_sampling: u64,
    /// When the last capture ended.
    idle_since: Option<Instant>,
    /// At the last look.
    met_strangers: bool,
}

/// A sampler, at work or kept for the next capture.
struct Sampling {
    id: u64,
    what: What,
    sampler: Sampler,
    spaces: Spaces,
    loaded: Instant,
    /// It has been started, and stopped if it is not now.
    has_run: bool,
    next_period: Instant,
    periods: u64,
}

/// A capture under way.
struct Capture {
    measuring: Measuring,
    answer: Answer,
}

/// What is being measured.
#[derive(Debug)]
struct Measuring {
    wanted: Wanted,
    began: Instant,
    began_unix_ns: u64,
    /// By the samplings that it is made of.
    before: Vec<(u64, Before)>,
}

/// What had been counted when a capture began.
#[derive(Debug, Default)]
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
        match self.measure(wanted) {
            Ok(measuring) => self.captures.push(Capture { measuring, answer }),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Begins to measure.
    fn measure(&mut self, wanted: Wanted) -> Result<Measuring, CaptureError> {
        let sampled = wanted.sampled();
        // There may be no room for another one beside those that are kept for others.
        self.let_go(|sampling| sampled.contains(&sampling.what) && sampling.is_of_use_again());
        let samplings = sampled.into_iter().map(|what| self.prepare(what, &wanted));
        // All is ready before any begins.
        let ids = samplings.collect::<Result<Vec<u64>, _>>()?;
        let (began, began_unix_ns) = (Instant::now(), unix_ns());
        let before = ids.into_iter().map(|id| Ok((id, self.start(id)?)));
        let before = before.collect::<Result<Vec<_>, CaptureError>>()?;
        Ok(Measuring { wanted, began, began_unix_ns, before })
    }

    /// Lets go of samplings that nothing is measured by, but for those.
    fn let_go(&mut self, but: impl Fn(&Sampling) -> bool) {
        let wanted = self.wanted();
        self.samplings.retain(|sampling| wanted.contains(&sampling.id) || but(sampling));
    }

    /// Something is sampled.
    fn is_at_work(&self) -> bool {
        !self.captures.is_empty() || self.continuous.is_some()
    }

    /// All that is measured.
    fn measuring(&self) -> impl Iterator<Item = &Measuring> {
        let continuous = self.continuous.as_ref().and_then(|continuous| continuous.measuring.as_ref());
        self.captures.iter().map(|capture| &capture.measuring).chain(continuous)
    }

    /// What was kept of a time.
    fn kept(&self, from_ns: u64, to_ns: u64, whom: &Whom) -> Result<Profile, CaptureError> {
        let continuous = self.continuous.as_ref().ok_or(CaptureError::NotKept(None))?;
        continuous.kept.between(from_ns, to_ns, whom)
    }

    /// Keeps what was sampled, when it was for long enough, and goes on. True if nothing is found now that has no name yet.
    fn keep(&mut self) -> bool {
        let Some(mut continuous) = self.continuous.take() else { return true };
        let mut all_named = continuous.measuring.is_none();
        if let Some(mut measuring) = continuous.measuring.take_if(|measuring| measuring.is_over()) {
            let (now, now_unix_ns, mut after) = (Instant::now(), unix_ns(), Vec::new());
            match self.profile(&measuring, now.duration_since(measuring.began), Some(&mut after)) {
                Ok(profile) => {
                    continuous.kept.add(profile, now);
                    (measuring.began, measuring.began_unix_ns, measuring.before) = (now, now_unix_ns, after);
                    let goes_on = |(id, _): &(u64, _)| {
                        self.samplings.iter().any(|sampling| sampling.id == *id && sampling.can_go_on())
                    };
                    continuous.measuring = measuring.before.iter().all(goes_on).then_some(measuring);
                }
                Err(error) => continuous.failed(&error),
            }
            if continuous.measuring.is_none() {
                // It begins anew, or another one does: until then nothing is sampled.
                self.stop_unwanted();
            }
            all_named = true;
            self.untidy |= continuous.is_untidy();
        }
        if let Some(wanted) = continuous.wanted() {
            match self.measure(wanted) {
                Ok(measuring) => continuous.measuring = Some(measuring),
                Err(error) => continuous.failed(&error),
            }
        }
        self.continuous = Some(continuous);
        all_named
    }

    /// Stops samplings that nothing is measured by.
    fn stop_unwanted(&mut self) {
        let wanted = self.wanted();
        let unwanted = self.samplings.iter_mut().filter(|sampling| !wanted.contains(&sampling.id));
        for sampling in unwanted.filter(|sampling| sampling.sampler.is_started()) {
            sampling.sampler.stop();
        }
    }

    /// Lets go of what was read of those who have ended, unless something was found that has no name yet.
    fn tidy(&mut self, all_named: bool) {
        if self.untidy && all_named && self.captures.is_empty() {
            self.untidy = false;
            self.readers.tidy();
            self.symbols.retain(&self.readers.modules);
            crate::heap::trim();
        }
    }

    /// A sampling of this, which knows who is wanted: to load one takes the kernel, which verifies it, longer than all else. Those of
    /// waits are not shared: one that began before a capture would be in it.
    fn prepare(&mut self, what: What, wanted: &Wanted) -> Result<u64, CaptureError> {
        let is_shared = |sampling: &Sampling| {
            sampling.what == what && matches!(what, What::OnCpu { .. }) && sampling.has_room()
        };
        let index = match self.samplings.iter().position(is_shared) {
            Some(index) => index,
            None => {
                self.next_sampling += 1;
                self.samplings.push(Sampling {
                    id: self.next_sampling,
                    what,
                    sampler: self.samplers.load(what, self.readers.rows() * 3 / 2)?,
                    spaces: Spaces::default(),
                    loaded: Instant::now(),
                    has_run: false,
                    next_period: Instant::now(),
                    periods: 0,
                });
                self.samplings.len() - 1
            }
        };
        let mut pids = Vec::new();
        if let Some(snapshot) = self.snapshots.borrow().as_deref() {
            let workers = workers::listed(snapshot);
            let workers =
                workers.filter(|(pool, worker)| wanted.whom.has(pool, Some(worker.slot), worker.pid));
            pids.extend(workers.map(|(_, worker)| worker.pid));
            // Who is forked meanwhile has their address space, until it calls execve(2).
            let pools = snapshot.pools.iter().filter(|pool| wanted.whom.has_pool(&pool.name));
            pids.extend(pools.flat_map(|pool| &pool.masters).map(|master| master.pid));
        }
        let sampling = &mut self.samplings[index];
        for pid in pids {
            sampling.spaces.introduce(pid, &mut self.readers, &mut sampling.sampler);
        }
        Ok(sampling.id)
    }

    /// Begins to sample, unless that is done already. What was counted before.
    fn start(&mut self, id: u64) -> Result<Before, CaptureError> {
        let mut before = Before::default();
        let Some(sampling) = self.samplings.iter_mut().find(|sampling| sampling.id == id) else {
            return Ok(before);
        };
        if sampling.has_run {
            before.counts = sampling.sampler.counts()?;
        }
        if sampling.sampler.is_started() {
            sampling.sampler.read(|stack, _| {
                before.stacks.insert(stack.hash, *stack);
            });
        } else {
            if sampling.has_run {
                sampling.sampler.clear();
            }
            sampling.sampler.start()?;
            sampling.has_run = true;
            sampling.next_period = Instant::now();
        }
        Ok(before)
    }

    /// How long until the next look: until the next capture is over, at most.
    fn next_look(&self) -> Duration {
        let tick = match (self.captures.is_empty(), self.met_strangers) {
            (false, true) => TICK_OF_STRANGERS,
            (false, false) | (true, true) => TICK,
            (true, false) => TICK_OF_NOBODY,
        };
        self.measuring().map(Measuring::left).min().map_or(tick, |left| left.min(tick))
    }

    fn look_after(&mut self) {
        self.met_strangers = false;
        // Those that are kept for the next capture are not at work.
        for sampling in self.samplings.iter_mut().filter(|sampling| sampling.sampler.is_started()) {
            for pid in sampling.sampler.unknown() {
                self.met_strangers = true;
                sampling.spaces.tell(pid, &mut self.readers, &mut sampling.sampler);
            }
            sampling.change_period();
        }
        // Who went away wants nothing any more.
        self.captures.retain(|capture| !capture.answer.is_closed());
        let over: Vec<Capture> =
            self.captures.extract_if(.., |capture| capture.measuring.is_over()).collect();
        let now = Instant::now();
        self.stop_unwanted();
        self.untidy |= !over.is_empty();
        for Capture { measuring, answer } in over {
            let _ = answer.send(self.profile(&measuring, now.duration_since(measuring.began), None));
        }
        let all_named = self.keep();
        self.let_go(Sampling::is_of_use_again);
        self.tidy(all_named);
        if !self.is_at_work() {
            self.idle_since = Some(Instant::now());
        }
    }

    /// Samplings that something is measured by.
    fn wanted(&self) -> Vec<u64> {
        self.measuring().flat_map(|measuring| measuring.before.iter().map(|(id, _)| *id)).collect()
    }

    /// What was found. `after` gets what had been counted by then.
    fn profile(
        &mut self,
        measuring: &Measuring,
        duration: Duration,
        mut after: Option<&mut Vec<(u64, Before)>>,
    ) -> Result<Profile, CaptureError> {
        let workers = Workers::of(self.snapshots.borrow().as_deref());
        let mut folder = Folder::default();
        let mut interpreters = Interpreters::default();
        let mut period_ns = 0;
        for (id, before) in &measuring.before {
            let Some(sampling) = self.samplings.iter().find(|sampling| sampling.id == *id) else { continue };
            let counts = sampling.sampler.counts()?;
            if let What::OnCpu { period_ns: asked_ns } = sampling.what {
                period_ns = asked_ns;
            }
            // All at once, and of frames that made a call what is named: the call.
            let mut kernel = Vec::new();
            sampling.sampler.read(|_, frames| {
                kernel.extend(frames.kernel.iter().flat_map(|address| [*address, address - 1]));
            });
            naming::learn_kernel(&kernel, &mut self.names, &self.samplers, &mut self.symbols);
            folder.add_lost(counts.lost.saturating_sub(before.counts.lost));
            let mut fold = Fold {
                sampling,
                wanted: &measuring.wanted,
                before,
                workers: &workers,
                readers: &self.readers,
                interpreters: &mut interpreters,
            };
            let symbols = &mut self.symbols;
            let mut stacks = HashMap::new();
            sampling.sampler.read(|stack, frames| {
                if after.is_some() {
                    stacks.insert(stack.hash, *stack);
                }
                fold.add(stack, frames, symbols, &mut folder);
            });
            if let Some(after) = &mut after {
                after.push((*id, Before { counts, stacks }));
            }
        }
        let named = naming::named(folder.places(), &interpreters, &mut self.readers, &mut self.symbols);
        let profile = Profile {
            started_unix_ns: measuring.began_unix_ns,
            duration_ns: duration.as_nanos() as u64,
            period_ns,
            ..folder.finish(measuring.wanted.kind, named)
        };
        Ok(profile.with_period_of_samples())
    }

    /// Lets go of all that was read.
    fn forget(&mut self) {
        self.idle_since = None;
        self.samplings.clear();
        self.threads = None;
        self.names = None;
        self.readers.clear();
        self.symbols.clear();
        crate::heap::trim();
    }
}

/// What stacks of one sampling are folded with.
struct Fold<'a> {
    sampling: &'a Sampling,
    wanted: &'a Wanted,
    before: &'a Before,
    workers: &'a Workers,
    readers: &'a Readers,
    interpreters: &'a mut Interpreters,
}

impl Fold<'_> {
    /// Adds a stack, as far as it is wanted and has been found since the measuring began.
    fn add(
        &mut self,
        stack: &Stack,
        frames: Frames<'_>,
        symbols: &mut Symbols,
        folder: &mut Folder<ModuleId>,
    ) {
        let before = self.before.stacks.get(&stack.hash).copied().unwrap_or_default();
        let found = stack.count.saturating_sub(before.count);
        let time_ns = stack.time_ns.saturating_sub(before.time_ns);
        let queued = stack.queued.saturating_sub(before.queued);
        let queued_ns = stack.queued_ns.saturating_sub(before.queued_ns);
        let kind = self.wanted.kind;
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
        if !self.wanted.whom.has(&labels.pool, labels.slot.map(|(slot, _)| slot), stack.pid) {
            return;
        }
        let skipped =
            if stack.state == STATE_ON_CPU { 0 } else { naming::frames_of_ours(frames.kernel, symbols) };
        let frames = Frames { kernel: &frames.kernel[skipped..], ..frames };
        let maps = self.sampling.spaces.maps_of(stack, &self.readers.modules);
        let interrupted = stack.state == STATE_ON_CPU;
        let frames = self.readers.places(key_of(stack), maps, frames, interrupted, self.interpreters);
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
}

impl Measuring {
    /// How long it goes on.
    fn left(&self) -> Duration {
        self.wanted.duration.saturating_sub(self.began.elapsed())
    }

    fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

impl Sampling {
    /// Not much of the room for stacks and address spaces is taken: of those that are not started stacks are forgotten.
    fn has_room(&self) -> bool {
        (!self.sampler.is_started() || self.sampler.has_room_for_stacks()) && self.has_room_for_code()
    }

    fn has_room_for_code(&self) -> bool {
        self.sampler.has_room_for_code() && self.spaces.has_room()
    }

    /// There is room for more, or there was none in another one either, perhaps.
    fn can_go_on(&self) -> bool {
        self.sampler.has_room_for_stacks()
            && (self.has_room_for_code() || self.loaded.elapsed() < REPLACED_AFTER)
    }

    /// Another capture can go on with it.
    fn is_of_use_again(&self) -> bool {
        matches!(self.what, What::OnCpu { .. }) && self.has_run && self.has_room_for_code()
    }

    /// The next period: on both sides of the one that was asked for, evenly (the multiples of the golden ratio modulo 1 fill an
    /// interval without gaps).
    fn change_period(&mut self) {
        const GOLDEN: u64 = 618;
        let What::OnCpu { period_ns: middle } = self.what else { return };
        if Instant::now() < self.next_period {
            return;
        }
        self.periods += 1;
        self.next_period = Instant::now() + PERIOD_LASTS.max(Duration::from_nanos(10 * middle));
        let jitter = JITTER.start + (JITTER.end - JITTER.start) * (self.periods * GOLDEN % 1000) / 1000;
        let parts = if self.periods.is_multiple_of(2) { 1000 + jitter } else { 1000 - jitter };
        let period_ns = middle * parts / 1000;
        if let Err(error) = self.sampler.change_period(period_ns) {
            tracing::debug!(%error, "the period of samples stays as it is");
        }
    }
}

/// As `/proc` has it: to the tick.
fn key_of(stack: &Stack) -> ProcessKey {
    ProcessKey::from_ticks(stack.pid, stack.start_ns / NANOS_PER_TICK)
}
