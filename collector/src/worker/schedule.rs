//! Where the threads of workers spend their time: by worker and by pool, as totals and as distributions.
//!
//! Kept by kernel record and not by worker: a record is read for the last time when its worker is long off the books,
//! and it knows its pool. Figures of a worker that did nothing since its last reading are not touched at all: a total is
//! kept as what it would have been at time 0, and how many threads add to it ever since (`Running`).

use std::sync::Arc;

use collector_ebpf::schedule::{ACCEPT_WAIT, KINDS, MEASURES, ON_CPU, REQUEST, SPAN, Work};

use crate::histogram::{Scale, Scratch, Shown, Windowed};
use crate::input::{Profile, ScheduleReading, Source, WaterfallReading};
use crate::snapshot::{self, Distribution, Schedule, WorkerState};
use crate::units::{ByProcess, CpuTime, NANOS_PER_SECOND, monotonic_ns};
use crate::worker::conservation::Comparison;
use crate::worker::pool::PoolId;
use crate::worker::requests::{Requests, WorkerRequests};
use crate::worker::state::{self, TIMED};
use crate::worker::utilization::Utilization;
use crate::worker::waterfall::Waterfall;

/// Seconds, from a microsecond to an hour; 1, 2.5 and 5 of each decade. The classic buckets of every kind of time.
const SECONDS: Scale = Scale {
    per_unit: NANOS_PER_SECOND as f64,
    bounds: &[
        1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2,
        0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0,
    ],
    ceiling: 1e9,
};

/// Rounds in which a record that would not hold still is tried once more to be given back. A thread takes a microsecond to
/// leave, but a virtual CPU may be taken away in the middle of it.
const RELEASES_TRIED: u32 = 10;

/// The same for one worker, which is shown by quantiles only.
const WORKER_SECONDS: Scale = Scale { bounds: &[], ..SECONDS };

/// A total that grows by itself: some threads add to it all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Running {
    /// The total less `rate` times the time it was read at, ns, wrapping.
    at_zero: u64,
    /// Threads that add to it.
    rate: u32,
}

impl Running {
    fn new(total_ns: u64, rate: u32, at_ns: u64) -> Self {
        Self { at_zero: total_ns.wrapping_sub(at_ns.wrapping_mul(rate.into())), rate }
    }

    /// The same, from this time on without a thread that adds to it.
    fn stopped(self, at_ns: u64) -> Self {
        Self { at_zero: self.at(at_ns), rate: 0 }
    }

    fn at(self, at_ns: u64) -> u64 {
        self.at_zero.wrapping_add(at_ns.wrapping_mul(self.rate.into()))
    }

    /// Replaces one part of a sum.
    fn replace(&mut self, old: Self, new: Self) {
        self.at_zero = self.at_zero.wrapping_add(new.at_zero).wrapping_sub(old.at_zero);
        self.rate = self.rate.wrapping_add(new.rate).wrapping_sub(old.rate);
    }
}

/// Time by kind, and lifetime of threads, that all grow.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    kinds: [Running; KINDS],
    lived: Running,
    /// Of the worker, in the states of [`TIMED`].
    states: [Running; TIMED.len()],
}

impl Times {
    /// `always` is the state that it is in all its life, where its life is its work.
    fn of(reading: &ScheduleReading, always: Option<WorkerState>) -> Self {
        let mut times = Self::default();
        for (kind, running) in times.kinds.iter_mut().enumerate() {
            *running = Running::new(reading.time_ns[kind], reading.open[kind], reading.at_ns);
        }
        times.lived = Running::new(reading.lived_ns, reading.living, reading.at_ns);
        let alive = reading.living > 0;
        let until_ns = if alive { reading.at_ns } else { reading.work.end_ns };
        let mut state_ns = state::times(&reading.work, until_ns);
        if let Some(always) = always {
            let lived_ns = state_ns.iter().sum();
            state_ns = TIMED.map(|state| if state == always { lived_ns } else { 0 });
        }
        let now = always.unwrap_or_else(|| state::after(&reading.work, reading.busy));
        for ((running, total_ns), state) in times.states.iter_mut().zip(state_ns).zip(TIMED) {
            *running = Running::new(total_ns, u32::from(alive && state == now), reading.at_ns);
        }
        times
    }

    fn stopped(&self, at_ns: u64) -> Self {
        Self {
            kinds: self.kinds.map(|running| running.stopped(at_ns)),
            lived: self.lived.stopped(at_ns),
            states: self.states.map(|running| running.stopped(at_ns)),
        }
    }

    fn replace(&mut self, old: &Self, new: &Self) {
        for ((sum, old), new) in self.kinds.iter_mut().zip(old.kinds).zip(new.kinds) {
            sum.replace(old, new);
        }
        self.lived.replace(old.lived, new.lived);
        for ((sum, old), new) in self.states.iter_mut().zip(old.states).zip(new.states) {
            sum.replace(old, new);
        }
    }
}

/// A worker's distributions by measure; `None` until something was recorded: it has few of them.
type Histograms = [Option<Box<Windowed>>; MEASURES];

/// A pool's distributions by measure; `None` if it wants none.
type PoolHistograms = Option<Box<[Shown; MEASURES]>>;

fn empty_histograms(now_ns: u64) -> Box<[Shown; MEASURES]> {
    Box::new(std::array::from_fn(|_| Shown::new(SECONDS, now_ns)))
}

/// Adds what is new in a reading to the distributions of a pool, and of a worker that is not about to go.
fn record_intervals(
    pool: &mut PoolHistograms,
    mut worker: Option<&mut Histograms>,
    reading: &ScheduleReading,
    discarded: &[u32; MEASURES],
) {
    // Without distributions nothing is discarded from them; intervals may be late ones of a pool that wanted them once.
    let Some(pool) = pool else { return };
    let mut each = |measure: usize, record: &dyn Fn(&mut Windowed)| {
        let of_worker = worker.as_deref_mut().and_then(|worker| {
            let histogram = worker.get_mut(measure)?;
            Some(
                &mut **histogram
                    .get_or_insert_with(|| Box::new(Windowed::new(WORKER_SECONDS, reading.at_ns))),
            )
        });
        let of_pool = pool.get_mut(measure).map(|shown| &mut shown.histogram);
        for histogram in of_pool.into_iter().chain(of_worker) {
            histogram.advance(reading.at_ns);
            record(histogram);
        }
    };
    for interval in &reading.intervals {
        each(interval.measure.into(), &|histogram| histogram.record_bucket(interval.bucket, interval.count));
    }
    for (measure, count) in discarded.iter().enumerate().filter(|(_, count)| **count > 0) {
        each(measure, &|histogram| histogram.discard_many(*count));
    }
}

/// Where the time of one worker went.
#[derive(Clone, Debug, Default)]
pub struct WorkerSchedule {
    pool: PoolId,
    times: Times,
    /// Whether its life was its work when it was last read.
    works_in_runs: Option<bool>,
    /// Time in states that it was in as it was counted before that changed, less what it would be now, ns, wrapping.
    moved_ns: [u64; TIMED.len()],
    spans: u64,
    /// It has been ready.
    ready: bool,
    /// It has been asked.
    asked: bool,
    discarded: [u32; MEASURES],
    /// `None` where nobody watches them.
    requests: Option<WorkerRequests>,
    histograms: Histograms,
}

impl WorkerSchedule {
    /// Time by kind until `at_ns` ([`Schedules::at_ns`] or later), ns.
    pub fn time_ns(&self, at_ns: u64) -> [u64; KINDS] {
        self.times.kinds.map(|running| running.at(at_ns))
    }

    /// How long its threads have been followed until `at_ns`, ns, together.
    pub fn lived_ns(&self, at_ns: u64) -> u64 {
        self.times.lived.at(at_ns)
    }

    /// Time in the states of [`TIMED`] until `at_ns`, ns.
    pub fn state_ns(&self, at_ns: u64) -> [u64; TIMED.len()] {
        // A change that the reading just missed can make a time, as it was counted before, some nanoseconds too long.
        self.times.states.map(|running| running.at(at_ns).cast_signed().max(0).cast_unsigned())
    }

    /// What it was asked; `None` where that is not watched.
    pub fn requests(&self) -> Option<&Requests> {
        self.requests.as_ref().map(WorkerRequests::total)
    }

    /// Spans that have ended.
    pub fn spans(&self) -> u64 {
        self.spans
    }

    /// Values of a measure, in the windows that end at `at_ns`; `None` if none was recorded.
    pub fn distribution(&self, measure: usize, at_ns: u64, scratch: &mut Scratch) -> Option<Distribution> {
        let mut histogram = self.histograms.get(measure)?.as_deref()?.clone();
        histogram.advance(at_ns);
        Some(histogram.distribution(scratch))
    }
}

/// Where the time of a pool's workers went, living and dead.
#[derive(Clone, Debug, Default)]
pub struct PoolSchedule {
    times: Times,
    histograms: PoolHistograms,
    /// What was shown last; totals never fall.
    shown_ns: [u64; KINDS],
    shown_lived_ns: u64,
    shown_state_ns: [u64; TIMED.len()],
    /// Its workers' lives are its work.
    works_in_runs: bool,
    spans: u64,
    /// `None` where nobody watches them.
    requests: Option<Requests>,
    /// They are followed now.
    follows_requests: bool,
    /// `None` where nobody watches requests, it wants no distributions, or there is none left for it.
    waterfall: Option<Box<Waterfall>>,
    no_waterfall_left: bool,
    spawn_to_ready: Option<Shown>,
    /// `None` where nobody watches requests.
    spawn_to_first_request: Option<Shown>,
    utilization: Utilization,
    on_cpu: OnCpu,
    /// Of comparisons that are over, ns.
    unattributed_cpu_ns: u64,
}

/// What the kernel accounted to the workers against their time on a CPU, while the scheduler is watched for them.
#[derive(Clone, Debug, Default)]
enum OnCpu {
    #[default]
    Unwatched,
    /// From the next reading on.
    Wanted,
    /// Their time on a CPU until watching began, ns. The account is read once more before the comparison begins, or what
    /// they used in between would be lacking.
    Begins(u64),
    Watched(Comparison),
}

impl OnCpu {
    /// Takes what the account and what the switches have, ns, read in this order.
    fn take(&mut self, account_ns: u64, on_cpu_ns: u64, at_ns: u64) {
        match self {
            Self::Unwatched => {}
            Self::Wanted => *self = Self::Begins(on_cpu_ns),
            Self::Begins(before_ns) => *self = Self::Watched(Comparison::begin(*before_ns, account_ns)),
            Self::Watched(comparison) => comparison.take(account_ns, on_cpu_ns, 0, at_ns),
        }
    }

    /// What is unattributed, ns.
    fn unattributed_ns(&self) -> u64 {
        match self {
            Self::Watched(comparison) => comparison.unattributed_ns(),
            _ => 0,
        }
    }
}

impl PoolSchedule {
    /// Time by kind until `at_ns`, ns.
    ///
    /// A worker's threads move on between their reading and this moment, so that what was shown can be some
    /// microseconds more than what became of it: then it stays until that is made up for.
    pub fn time_ns(&mut self, at_ns: u64) -> [u64; KINDS] {
        for (shown, running) in self.shown_ns.iter_mut().zip(self.times.kinds) {
            *shown = grown(*shown, running.at(at_ns));
        }
        self.shown_ns
    }

    /// How long its workers' threads have been followed until `at_ns`, ns, together.
    pub fn lived_ns(&mut self, at_ns: u64) -> u64 {
        self.shown_lived_ns = grown(self.shown_lived_ns, self.times.lived.at(at_ns));
        self.shown_lived_ns
    }

    /// What its workers have done until `at_ns`, of so many that there could be.
    fn work(
        &mut self,
        size: u32,
        span_seconds: Option<Arc<Distribution>>,
        at_ns: u64,
        scratch: &mut Scratch,
    ) -> snapshot::Work {
        for (shown, running) in self.shown_state_ns.iter_mut().zip(self.times.states) {
            *shown = grown(*shown, running.at(at_ns));
        }
        let spawn_to_ready = self.spawn_to_ready.get_or_insert_with(|| Shown::new(SECONDS, at_ns));
        let spawn_to_ready_seconds = spawn_to_ready.view(at_ns, scratch);
        let [_, _, active_ns, _] = self.shown_state_ns;
        snapshot::Work {
            state_ns: self.shown_state_ns,
            spans: self.spans,
            span_seconds,
            spawn_to_ready_seconds,
            utilization: self.utilization.take(active_ns, size, at_ns),
        }
    }

    /// A worker has become ready; how long that took is known of those that were born under our eyes.
    fn became_ready(&mut self, work: &Work) {
        let born = work.ready_ns > work.begin_ns;
        if let Some(spawn_to_ready) = self.spawn_to_ready.as_mut().filter(|_| born) {
            spawn_to_ready.histogram.record(seconds(work.ready_ns - work.begin_ns));
        }
    }

    /// A worker has received its first request; how long that took is known of those that were born under our eyes.
    fn was_asked_first(&mut self, work: &Work, first_request_ns: u64) {
        // Who lived before that was taken for one that was ready from the begin.
        let born = work.ready_ns != work.begin_ns;
        if let Some(spawn_to_first_request) = self.spawn_to_first_request.as_mut().filter(|_| born) {
            let after_ns = first_request_ns.saturating_sub(work.begin_ns);
            spawn_to_first_request.histogram.record(seconds(after_ns));
        }
    }

    /// Values by measure, in the windows that end now; `None` if the pool wants none.
    pub fn distributions(
        &mut self,
        now_ns: u64,
        scratch: &mut Scratch,
    ) -> Option<[Arc<Distribution>; MEASURES]> {
        let histograms = self.histograms.as_deref_mut()?;
        Some(histograms.each_mut().map(|histogram| histogram.view(now_ns, scratch)))
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / NANOS_PER_SECOND as f64
}

/// The larger one, where a difference of more than half the range is a negative one.
fn grown(before: u64, now: u64) -> u64 {
    if now.wrapping_sub(before).cast_signed() > 0 { now } else { before }
}

/// How the work of a pool is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watched {
    /// Its workers' lives are its work.
    pub in_runs: bool,
    /// What becomes of its requests.
    pub requests: Following,
}

/// Whether the requests of a pool are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Following {
    /// Nobody wants to know of them.
    #[default]
    Unwanted,
    /// They would be, and cannot be now.
    Wanted,
    /// They are.
    Followed,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Schedules {
    /// By kernel record.
    workers: Vec<Option<Arc<WorkerSchedule>>>,
    pools: ByProcess<PoolId, PoolSchedule>,
    reading: ScheduleReading,
    /// Kept for its memory.
    moved: Vec<u32>,
    /// Records that are to be given back and would not hold still, and how often that may still be tried.
    unreleased: Vec<(u32, u32)>,
    /// Figures are as of this moment, `CLOCK_MONOTONIC` ns.
    at_ns: u64,
}

impl Schedules {
    /// Reads the records of workers whose threads have moved, and of those that have ended since. Those that live are told.
    pub fn read(
        &mut self,
        ended: impl Iterator<Item = u32>,
        source: &mut dyn Source,
        tell: &mut dyn FnMut(&ScheduleReading),
    ) {
        for (record, tries_left) in std::mem::take(&mut self.unreleased) {
            self.try_to_release(record, tries_left, source);
        }
        let mut records = std::mem::take(&mut self.moved);
        records.extend(ended);
        source.moved(&mut records);
        for record in records.drain(..) {
            self.read_one(record, source, tell);
        }
        self.moved = records;
        self.read_waterfalls(source);
        for (id, pool) in &mut self.pools {
            pool.no_waterfall_left = source.refuses_waterfall(*id);
            pool.waterfall.take_if(|_| pool.no_waterfall_left);
        }
        self.at_ns = monotonic_ns();
    }

    /// Reads where the time of requests went, also between two readings of all.
    pub fn read_waterfalls(&mut self, source: &mut dyn Source) {
        source.waterfalls(&mut |pool, reading| self.account_waterfall(pool, reading));
    }

    fn read_one(&mut self, record: u32, source: &mut dyn Source, tell: &mut dyn FnMut(&ScheduleReading)) {
        let Some(consistent) = source.schedule(record, &mut self.reading) else { return };
        let reading = std::mem::take(&mut self.reading);
        self.account(record, &reading, consistent);
        if consistent && reading.living > 0 {
            tell(&reading);
        }
        self.reading = reading;
    }

    /// The scheduler is watched for a pool from now on as far as it wants, if its probes are there, and `ceiling` allows:
    /// what has not happened yet is known not to have happened. What it does not want any more is forgotten; what it may
    /// not have now stays as it was.
    pub fn watch(&mut self, id: PoolId, wanted: Profile, ceiling: Profile, work: Watched, now_ns: u64) {
        if wanted == Profile::None {
            self.pools.remove(&id);
            return;
        }
        if work.requests == Following::Unwanted {
            self.forget_requests(id, now_ns);
        }
        let given = wanted.min(ceiling);
        let followed = work.requests == Following::Followed && given > Profile::None;
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.follows_requests = followed;
        }
        if given == Profile::None {
            if let Some(pool) = self.pools.get_mut(&id) {
                pool.unattributed_cpu_ns =
                    pool.unattributed_cpu_ns.saturating_add(pool.on_cpu.unattributed_ns());
                pool.on_cpu = OnCpu::Unwatched;
            }
            return;
        }
        let pool = self.pools.entry(id).or_default();
        pool.works_in_runs = work.in_runs;
        pool.follows_requests = followed;
        let asked_from_now_on = followed && pool.requests.is_none();
        if followed {
            pool.requests.get_or_insert_default();
            pool.spawn_to_first_request.get_or_insert_with(|| Shown::new(SECONDS, now_ns));
        }
        pool.spawn_to_ready.get_or_insert_with(|| Shown::new(SECONDS, now_ns));
        if matches!(pool.on_cpu, OnCpu::Unwatched) {
            pool.on_cpu = OnCpu::Wanted;
        }
        let mut totals_alone = false;
        if wanted < Profile::Histograms {
            pool.waterfall = None;
            totals_alone = pool.histograms.take().is_some();
        } else if given == Profile::Histograms {
            pool.histograms.get_or_insert_with(|| empty_histograms(now_ns));
            if followed && !pool.no_waterfall_left {
                let before = pool.requests.map_or(0, |requests| requests.count());
                pool.waterfall.get_or_insert_with(|| Box::new(Waterfall::new(SECONDS, now_ns, before)));
            }
        }
        if totals_alone {
            // Nor have its workers any, which are followed on.
            self.workers_of(id).for_each(|worker| worker.histograms = Histograms::default());
        }
        if asked_from_now_on {
            // Whether they were asked before nobody knows.
            self.workers_of(id).for_each(|worker| worker.asked = true);
        }
    }

    /// The workers of a pool wait for work elsewhere than was believed: when those were ready that were not is not known.
    pub fn forget_when_ready(&mut self, id: PoolId) {
        self.workers_of(id).for_each(|worker| worker.ready = true);
    }

    /// Nobody wants to know of the requests of a pool any more: what stays as it was looks as if there were none.
    fn forget_requests(&mut self, id: PoolId, now_ns: u64) {
        let Some(pool) = self.pools.get_mut(&id).filter(|pool| pool.requests.is_some()) else { return };
        (pool.requests, pool.waterfall, pool.spawn_to_first_request) = (None, None, None);
        let durations = pool.histograms.iter_mut().flat_map(|all| all.iter_mut().skip(REQUEST as usize));
        durations.for_each(|durations| *durations = Shown::new(SECONDS, now_ns));
        for worker in self.workers_of(id) {
            worker.requests = None;
            worker.histograms.iter_mut().skip(REQUEST as usize).for_each(|durations| *durations = None);
        }
    }

    fn workers_of(&mut self, id: PoolId) -> impl Iterator<Item = &mut WorkerSchedule> {
        self.workers.iter_mut().flatten().filter(move |worker| worker.pool == id).map(Arc::make_mut)
    }

    /// Adds what is new in a reading to a worker and its pool.
    pub fn account(&mut self, record: u32, reading: &ScheduleReading, consistent: bool) {
        // A record of a pool that wants nothing any more comes late: of its worker nothing is known, which is not zero.
        let Some(pool) = self.pools.get_mut(&reading.pool) else { return };
        let Ok(index) = usize::try_from(record) else { return };
        if self.workers.len() <= index {
            self.workers.resize(index + 1, None);
        }
        let Some(place) = self.workers.get_mut(index) else { return };
        let worker = Arc::make_mut(place.get_or_insert_default());
        let discarded = account(pool, worker, reading, consistent);
        record_intervals(&mut pool.histograms, Some(&mut worker.histograms), reading, &discarded);
        self.at_ns = self.at_ns.max(reading.at_ns);
    }

    /// Adds what is new of the requests of a pool that had their thread to themselves.
    pub fn account_waterfall(&mut self, pool: PoolId, reading: &WaterfallReading) {
        let pool = self.pools.get_mut(&pool);
        if let Some(waterfall) = pool.and_then(|pool| pool.waterfall.as_deref_mut()) {
            waterfall.take(reading);
        }
    }

    /// Takes the last figures of a record, and gives it back; in a later round if a thread is just leaving it: its parent can
    /// reap a process whose last thread is still on its way off the CPU.
    pub fn release(&mut self, record: u32, source: &mut dyn Source) {
        self.try_to_release(record, RELEASES_TRIED, source);
    }

    fn try_to_release(&mut self, record: u32, tries_left: u32, source: &mut dyn Source) {
        let read = source.schedule(record, &mut self.reading);
        if read == Some(false) && tries_left > 0 {
            let pool = self.pools.get_mut(&self.reading.pool);
            if let Some(pool) = pool {
                // What was recorded is taken already.
                record_intervals(&mut pool.histograms, None, &self.reading, &[0; MEASURES]);
            }
            self.unreleased.push((record, tries_left - 1));
            return;
        }
        let place = usize::try_from(record).ok().and_then(|index| self.workers.get_mut(index));
        let mut worker = place.and_then(Option::take).unwrap_or_default();
        if let Some(consistent) = read
            && let Some(pool) = self.pools.get_mut(&self.reading.pool)
        {
            let discarded = account(pool, Arc::make_mut(&mut worker), &self.reading, consistent);
            record_intervals(&mut pool.histograms, None, &self.reading, &discarded);
        }
        let at_ns = self.at_ns.max(if read == Some(true) { self.reading.at_ns } else { 0 });
        self.stop(&worker, at_ns);
        source.release(record);
    }

    /// Nobody adds to the times of a worker any more, also if threads of it were followed when it was last read: nobody
    /// will tell that they ended.
    fn stop(&mut self, worker: &WorkerSchedule, at_ns: u64) {
        if let Some(pool) = self.pools.get_mut(&worker.pool) {
            if let (Some(pool), Some(worker)) = (&mut pool.requests, &worker.requests) {
                worker.leave(pool);
            }
            pool.times.replace(&worker.times, &worker.times.stopped(at_ns));
        }
    }

    /// By kernel record.
    pub fn workers(&self) -> &[Option<Arc<WorkerSchedule>>] {
        &self.workers
    }

    /// The moment that totals are as of, `CLOCK_MONOTONIC` ns: no reading is younger.
    pub fn at_ns(&self) -> u64 {
        self.at_ns
    }

    /// A pool's. `cpu` is what the kernel accounted to its workers since they are known, `size` how many there could be.
    pub fn pool_view(
        &mut self,
        pool: PoolId,
        cpu: CpuTime,
        size: u32,
        scratch: &mut Scratch,
    ) -> Option<Schedule> {
        let at_ns = self.at_ns;
        let pool = self.pools.get_mut(&pool)?;
        let time_ns = pool.time_ns(at_ns);
        // Read after the CPU, so it contains that, but for workers whose times could not be read this time.
        pool.on_cpu.take(cpu.total_ns(), time_ns[ON_CPU as usize], at_ns);
        let measures = pool.distributions(at_ns, scratch);
        let measure = |measure: usize| measures.as_ref().map(|measures| Arc::clone(&measures[measure]));
        let intervals =
            measures.as_ref().map(|measures| std::array::from_fn(|kind| Arc::clone(&measures[kind])));
        let spawn_to_first_request_seconds =
            pool.spawn_to_first_request.as_mut().map(|durations| durations.view(at_ns, scratch));
        let asked = pool.requests.map_or(0, |requests| requests.count());
        let waterfall = pool.waterfall.as_deref_mut().map(|waterfall| waterfall.view(asked, at_ns, scratch));
        let requests = pool.requests.map(|total| snapshot::Requests {
            total,
            followed: pool.follows_requests,
            spawn_to_first_request_seconds: spawn_to_first_request_seconds.unwrap_or_default(),
            waterfall,
            no_waterfall_left: pool.no_waterfall_left,
            accept_wait_seconds: measure(ACCEPT_WAIT as usize),
            seconds: measures.as_ref().map(|measures| {
                std::array::from_fn(|outcome| Arc::clone(&measures[REQUEST as usize + outcome]))
            }),
        });
        Some(Schedule {
            time_ns,
            lived_ns: pool.lived_ns(at_ns),
            unattributed_cpu_ns: pool.unattributed_cpu_ns.saturating_add(pool.on_cpu.unattributed_ns()),
            intervals,
            work: pool.work(size, measure(SPAN as usize), at_ns, scratch),
            requests,
        })
    }

    /// Forgets the pools that are no more, also those that a late record of theirs brought back.
    pub fn retain_pools(&mut self, is_a_pool: impl Fn(PoolId) -> bool) {
        self.pools.retain(|pool, _| is_a_pool(*pool));
    }
}

/// Adds what a worker's times have grown by to its pool's. Returns what was discarded since its last reading, by kind.
fn account(
    pool: &mut PoolSchedule,
    worker: &mut WorkerSchedule,
    reading: &ScheduleReading,
    consistent: bool,
) -> [u32; MEASURES] {
    let mut discarded = [0; MEASURES];
    worker.pool = reading.pool;
    if consistent {
        let by = |in_runs: bool| Times::of(reading, in_runs.then_some(WorkerState::Active));
        let mut times = by(pool.works_in_runs);
        if let Some(in_runs) = worker.works_in_runs.replace(pool.works_in_runs)
            && in_runs != pool.works_in_runs
        {
            // Counted the other way it was in other states all its life; that counts from now on.
            let states = worker.moved_ns.iter_mut().zip(by(in_runs).states).zip(times.states);
            for ((moved, before), after) in states {
                *moved = moved.wrapping_add(before.at(reading.at_ns)).wrapping_sub(after.at(reading.at_ns));
            }
        }
        for (running, moved) in times.states.iter_mut().zip(worker.moved_ns) {
            running.at_zero = running.at_zero.wrapping_add(moved);
        }
        pool.times.replace(&worker.times, &times);
        worker.times = times;
        for ((new, now), before) in discarded.iter_mut().zip(reading.discarded).zip(worker.discarded) {
            *new = now.wrapping_sub(before);
        }
        worker.discarded = reading.discarded;
        if let Some(pool) = &mut pool.requests {
            worker.requests.get_or_insert_default().take(reading, pool);
        }
        let spans = std::mem::replace(&mut worker.spans, reading.work.spans);
        pool.spans += reading.work.spans.wrapping_sub(spans);
        if reading.work.ready_ns != 0 && !std::mem::replace(&mut worker.ready, true) {
            pool.became_ready(&reading.work);
        }
        if reading.first_request_ns != 0 && !std::mem::replace(&mut worker.asked, true) {
            pool.was_asked_first(&reading.work, reading.first_request_ns);
        }
    }
    discarded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Interval;

    #[test]
    fn what_has_not_happened_in_a_watched_pool_is_known() {
        let mut schedules = Schedules::default();
        let view =
            |schedules: &mut Schedules| schedules.pool_view(1, CpuTime::default(), 1, &mut Scratch::new());
        schedules.watch(1, Profile::None, Profile::Histograms, Watched::default(), 0);
        assert!(view(&mut schedules).is_none());
        schedules.watch(1, Profile::Counters, Profile::Histograms, Watched::default(), 0);
        let counters = view(&mut schedules).unwrap();
        assert_eq!((counters.time_ns, counters.lived_ns), ([0; KINDS], 0));
        assert!(counters.intervals.is_none());
        schedules.watch(1, Profile::Histograms, Profile::Histograms, Watched::default(), 0);
        let intervals = view(&mut schedules).unwrap().intervals.unwrap();
        for distribution in intervals {
            assert_eq!((distribution.count, distribution.bounds.len()), (0, SECONDS.bounds.len()));
        }
        // For want of budget it stays, and goes when nobody wants it.
        schedules.watch(1, Profile::Histograms, Profile::None, Watched::default(), 0);
        assert!(view(&mut schedules).unwrap().intervals.is_some());
        schedules.watch(1, Profile::Counters, Profile::Histograms, Watched::default(), 0);
        assert!(view(&mut schedules).unwrap().intervals.is_none());
        schedules.watch(1, Profile::None, Profile::Histograms, Watched::default(), 0);
        assert!(view(&mut schedules).is_none());
    }

    const SECOND: u64 = NANOS_PER_SECOND;

    #[test]
    fn threads_whose_end_was_not_told_add_nothing_after_their_worker() {
        let mut schedules = Schedules::default();
        schedules.watch(1, Profile::Counters, Profile::Histograms, Watched::default(), 0);
        let mut open = [0; KINDS];
        open[ON_CPU as usize] = 1;
        let reading = |at_ns| ScheduleReading { pool: 1, at_ns, open, living: 1, ..Default::default() };
        schedules.account(0, &reading(SECOND), true);
        schedules.account(1, &reading(SECOND), true);
        schedules.at_ns = 3 * SECOND;
        let gone = schedules.workers[0].take().unwrap();
        schedules.stop(&gone, 3 * SECOND);
        schedules.at_ns = 10 * SECOND;
        let view = schedules.pool_view(1, CpuTime::default(), 1, &mut Scratch::new()).unwrap();
        assert_eq!((view.time_ns[ON_CPU as usize], view.lived_ns), (11 * SECOND, 11 * SECOND));
    }

    #[test]
    fn of_a_worker_that_nobody_watches_nothing_is_known() {
        let mut schedules = Schedules::default();
        let reading = ScheduleReading { pool: 1, at_ns: SECOND, living: 1, ..Default::default() };
        schedules.account(0, &reading, true);
        assert!(schedules.workers().iter().all(Option::is_none));
        schedules.watch(1, Profile::Counters, Profile::Histograms, Watched::default(), 0);
        schedules.account(0, &reading, true);
        assert!(schedules.workers()[0].is_some());
    }

    #[test]
    fn only_cpu_that_was_used_while_it_was_watched_can_be_unattributed() {
        let mut schedules = Schedules::default();
        let mut at_ns = 0;
        let mut view = |schedules: &mut Schedules, cpu_s: u64, wanted, ceiling| {
            at_ns += SECOND;
            schedules.watch(1, wanted, ceiling, Watched::default(), at_ns);
            schedules.at_ns = at_ns;
            let cpu = CpuTime { user_ns: cpu_s * SECOND, system_ns: 0 };
            schedules.pool_view(1, cpu, 1, &mut Scratch::new()).map(|view| view.unattributed_cpu_ns / SECOND)
        };
        let (counters, none) = (Profile::Counters, Profile::None);
        // It has used 100 s before, and 10 that no switch shows.
        let shown: Vec<_> = [100, 100, 110, 110, 110, 110]
            .into_iter()
            .map(|cpu| view(&mut schedules, cpu, counters, counters))
            .collect();
        assert_eq!((shown[2], shown[5]), (Some(0), Some(10)));
        // For want of budget nobody watches meanwhile.
        for cpu in [120, 500, 1000] {
            assert_eq!(view(&mut schedules, cpu, counters, none), Some(10));
        }
        for _ in 0..9 {
            assert_eq!(view(&mut schedules, 1000, counters, counters), Some(10));
        }
        assert_eq!(view(&mut schedules, 1000, none, counters), None);
        for _ in 0..9 {
            assert_eq!(view(&mut schedules, 2000, counters, counters), Some(0), "begins anew");
        }
    }

    #[test]
    fn requests_that_nobody_wants_any_more_are_forgotten_and_begin_anew() {
        let mut schedules = Schedules::default();
        let watch = |schedules: &mut Schedules, requests, ceiling| {
            let work = Watched { requests, ..Watched::default() };
            schedules.watch(1, Profile::Histograms, ceiling, work, 0);
            let view = schedules.pool_view(1, CpuTime::default(), 1, &mut Scratch::new()).unwrap();
            view.requests
        };
        watch(&mut schedules, Following::Followed, Profile::Histograms);
        let interval = Interval { measure: REQUEST as u8, bucket: 9, count: 3 };
        let mut reading =
            ScheduleReading { pool: 1, intervals: vec![interval], ..ScheduleReading::default() };
        reading.requests[0] = 3;
        schedules.account(0, &reading, true);
        let asked = |schedules: &Schedules| schedules.workers[0].as_ref().unwrap().requests().is_some();
        // For want of budget, or while there is no worker whose requests could be followed, they stay.
        for (requests, ceiling) in [
            (Following::Followed, Profile::None),
            (Following::Wanted, Profile::None),
            (Following::Wanted, Profile::Histograms),
        ] {
            let shown = watch(&mut schedules, requests, ceiling).unwrap();
            assert_eq!((shown.total.count(), shown.seconds.unwrap()[0].count), (3, 3));
            assert!(!shown.followed, "none is known to be in flight: {requests:?}");
            assert!(shown.waterfall.is_some() && asked(&schedules), "{requests:?}");
        }
        assert!(watch(&mut schedules, Following::Unwanted, Profile::None).is_none());
        assert!(!asked(&schedules));
        let anew = watch(&mut schedules, Following::Followed, Profile::Histograms).unwrap();
        assert_eq!((anew.total.count(), anew.seconds.unwrap()[0].count, anew.followed), (0, 0, true));
    }

    #[test]
    fn a_worker_that_is_followed_on_is_in_other_states_from_now_on() {
        let mut schedules = Schedules::default();
        let watch = |schedules: &mut Schedules, in_runs, at_s: u64| {
            let work = Watched { in_runs, ..Watched::default() };
            schedules.watch(1, Profile::Counters, Profile::Histograms, work, 0);
            // It was ready and idle after a second, and has not been busy since.
            let second = |s: u64| s * SECOND;
            let work = Work {
                begin_ns: SECOND,
                ready_ns: second(2),
                worked_ns: second(2),
                since_ns: second(2),
                busy_ns: SECOND,
                ..Work::default()
            };
            let mut open = [0; KINDS];
            open[ON_CPU as usize] = 1;
            let at_ns = second(at_s);
            let mut time_ns = [0; KINDS];
            time_ns[ON_CPU as usize] = at_ns - SECOND;
            let reading =
                ScheduleReading { pool: 1, at_ns, living: 1, open, time_ns, work, ..Default::default() };
            schedules.account(0, &reading, true);
            let view = schedules.pool_view(1, CpuTime::default(), 1, &mut Scratch::new()).unwrap();
            assert_eq!(view.time_ns[ON_CPU as usize], at_ns - SECOND, "no matter how it is counted");
            let of_worker = schedules.workers[0].as_ref().unwrap().state_ns(at_ns);
            assert_eq!(of_worker, view.work.state_ns, "the pool has no other");
            view.work.state_ns.map(|ns| ns / SECOND)
        };
        assert_eq!(watch(&mut schedules, false, 5), [1, 0, 0, 3]);
        assert_eq!(watch(&mut schedules, true, 7), [1, 0, 0, 5]);
        assert_eq!(watch(&mut schedules, true, 10), [1, 0, 3, 5]);
        assert_eq!(watch(&mut schedules, false, 11), [1, 0, 4, 5]);
        assert_eq!(watch(&mut schedules, false, 13), [1, 0, 4, 7]);
    }

    #[test]
    fn how_long_a_birth_took_is_unknown_where_a_reload_has_made_it_end() {
        let second = |s: u64| s * SECOND;
        let work = |ready_ns| Work { begin_ns: SECOND, ready_ns, ..Work::default() };
        let reading = |work, first_request_ns| ScheduleReading {
            pool: 1,
            at_ns: second(100),
            work,
            first_request_ns,
            ..ScheduleReading::default()
        };
        let watch = |schedules: &mut Schedules, requests| {
            let work = Watched { requests, ..Watched::default() };
            schedules.watch(1, Profile::Counters, Profile::Histograms, work, 0);
        };
        let births = |schedules: &mut Schedules| {
            let view = schedules.pool_view(1, CpuTime::default(), 1, &mut Scratch::new()).unwrap();
            let first = view.requests.map(|requests| requests.spawn_to_first_request_seconds.count);
            (view.work.spawn_to_ready_seconds.count, first)
        };
        let mut schedules = Schedules::default();
        watch(&mut schedules, Following::Unwanted);
        schedules.account(0, &reading(work(0), 0), true);
        schedules.account(1, &reading(work(second(2)), 0), true);
        assert_eq!(births(&mut schedules), (1, None));
        // From now on requests are followed, and work is awaited elsewhere.
        schedules.forget_when_ready(1);
        watch(&mut schedules, Following::Followed);
        schedules.account(0, &reading(work(second(99)), second(99)), true);
        schedules.account(1, &reading(work(second(2)), second(99)), true);
        assert_eq!(births(&mut schedules), (1, Some(0)));
        // Who comes later is known from its begin.
        schedules.account(2, &reading(work(second(98)), second(99)), true);
        assert_eq!(births(&mut schedules), (2, Some(1)));
    }

    #[test]
    fn a_worker_of_a_pool_that_wants_totals_alone_has_no_distribution() {
        let mut schedules = Schedules::default();
        let interval = Interval { measure: ON_CPU as u8, bucket: 9, count: 3 };
        let reading = ScheduleReading { pool: 1, intervals: vec![interval], ..ScheduleReading::default() };
        let of_worker = |schedules: &Schedules| {
            let worker = schedules.workers[0].as_ref().unwrap();
            worker.distribution(ON_CPU as usize, 0, &mut Scratch::new()).map(|shown| shown.count)
        };
        for (wanted, count) in [(Profile::Histograms, Some(3)), (Profile::Counters, None)] {
            schedules.watch(1, wanted, Profile::Histograms, Watched::default(), 0);
            // The second time it is a late one.
            schedules.account(0, &reading, true);
            assert_eq!(of_worker(&schedules), count);
        }
        schedules.watch(1, Profile::Histograms, Profile::Histograms, Watched::default(), 0);
        schedules.account(0, &reading, true);
        assert_eq!(of_worker(&schedules), Some(3), "begins anew");
    }

    #[test]
    fn a_pool_that_wants_totals_alone_has_discarded_no_interval() {
        let mut schedules = Schedules::default();
        schedules.watch(1, Profile::Counters, Profile::Histograms, Watched::default(), 0);
        let reading = ScheduleReading { pool: 1, discarded: [1; MEASURES], ..ScheduleReading::default() };
        schedules.account(0, &reading, true);
        let view = schedules.pool_view(1, CpuTime::default(), 1, &mut Scratch::new());
        assert!(view.unwrap().intervals.is_none());
    }
}
