//! One pool: its slots, its totals and its distributions.
//!
//! Totals only ever grow: each reading of a worker adds what it used since the last one, and its end adds the rest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::flags::Limits;
use super::matcher::Work;
use super::runs::{Outcome, Runs};
use crate::histogram::{Scale, Windowed};
use crate::input::{ExitStatus, Sample, Wishes};
use crate::snapshot::{self, ExitCounts, FlagCounts, StateCounts};
use crate::units::{CpuTime, ProcessKey};

/// Number of a pool; never used twice in one run.
pub type PoolId = u32;

/// Share of one CPU; bounds for workers that have up to a few threads.
const CPU_UTILIZATION: Scale = Scale {
    per_unit: 1e6,
    bounds: &[
        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 4.0, 8.0,
    ],
    ceiling: 4096.0,
};

/// Bytes, by powers of two from 1 MiB to 16 GiB.
const WORKER_RSS: Scale = Scale {
    per_unit: 1.0,
    bounds: &[
        1048576.0,
        2097152.0,
        4194304.0,
        8388608.0,
        16777216.0,
        33554432.0,
        67108864.0,
        134217728.0,
        268435456.0,
        536870912.0,
        1073741824.0,
        2147483648.0,
        4294967296.0,
        8589934592.0,
        17179869184.0,
    ],
    ceiling: (1u64 << 50) as f64,
};

/// Seconds, from a millisecond to a day.
const LIFETIME: Scale = Scale {
    per_unit: 1e6,
    bounds: &[
        0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0,
        14400.0, 86400.0,
    ],
    ceiling: 3.2e9,
};

/// Slots whose view is kept in one piece: small enough to be made anew when one worker changes, large enough that a pool
/// of a thousand is a handful.
pub(super) const VIEW_SLOTS: usize = 32;

/// What readers are shown of the workers in [`VIEW_SLOTS`] slots, kept until one of them changes.
#[derive(Debug)]
pub(super) struct View {
    /// Workers that were to be shown at most.
    pub(super) room: usize,
    pub(super) workers: Arc<[snapshot::Worker]>,
    /// All of them, also those that are not shown.
    pub(super) states: StateCounts,
    pub(super) flags: FlagCounts,
    /// Resident bytes, and of how many workers.
    pub(super) rss: (u64, u32),
}

/// Readings that say the same one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct Same {
    rss_bytes: u64,
    times: u32,
}

/// A numbered place that workers hold one after another.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    generation: u32,
    holder: Option<ProcessKey>,
}

/// A pool.
#[derive(Debug)]
pub struct Pool {
    /// Number.
    pub id: PoolId,
    /// Unique name.
    pub name: Arc<str>,
    /// `config`, `recognized:…` or `zero-config`.
    pub origin: Arc<str>,
    /// Built-in program name, for recognized masters.
    pub program: Option<&'static str>,
    /// What its master serves: so do workers that say nothing themselves.
    pub app: Option<Arc<str>>,
    /// Size the pool is configured to have.
    pub configured_size: Option<u32>,
    /// Nanoseconds between readings.
    pub interval_ns: u64,
    /// What it wants to know of the scheduler.
    pub wishes: Wishes,
    /// When its masters' tags last came to say so, if they had said something else, `CLOCK_MONOTONIC` ns; [`u64::MAX`] until
    /// they do. Who was forked before has the old tag.
    pub masters_tagged_ns: u64,
    /// How long its workers may be in one state.
    pub limits: Limits,
    /// The same when flags were last given.
    pub limits_applied: Limits,
    /// Workers that were given a flag since start.
    pub flagged: FlagCounts,
    /// The scheduler is watched for it.
    pub watched: bool,
    /// When its workers are read next, `CLOCK_MONOTONIC` ns.
    pub due_ns: u64,
    /// The pass that runs now is for this pool, too.
    pub due: bool,
    /// Processes that fork its workers.
    pub masters: Vec<ProcessKey>,
    /// Workers that ended and are not reaped.
    pub unreaped: u32,
    /// Workers forked since start.
    pub spawns: u64,
    /// Workers that left since start.
    pub exits: ExitCounts,
    /// CPU used while watched.
    pub cpu: CpuTime,
    /// CPU that its masters used while they were, ns, those that have ended included.
    pub masters_cpu_ns: u64,
    /// Run-queue wait while watched; `None` until one was readable.
    pub run_delay_ns: Option<u64>,
    /// Storage reads while watched.
    pub read_bytes: Option<u64>,
    /// Storage writes while watched.
    pub written_bytes: Option<u64>,
    /// CPU per interval as a share of one CPU.
    pub cpu_utilization: Windowed,
    /// Resident bytes per worker and interval.
    pub worker_rss: Windowed,
    /// Age at the end.
    pub lifetime: Windowed,
    /// Its workers' lives as runs, where its rule says that they are its work.
    pub runs: Option<Box<Runs>>,
    /// Since when it has had neither worker nor master, `CLOCK_MONOTONIC` ns.
    pub empty_since_ns: Option<u64>,
    places: Vec<Place>,
    free: BinaryHeap<Reverse<u32>>,
    living: u32,
    /// By slot, [`VIEW_SLOTS`] in each.
    pub(super) views: Vec<Option<View>>,
    /// Intervals without CPU that are not in the distribution yet.
    idle: u32,
    /// The same of resident memory.
    same: Same,
}

impl Pool {
    /// An empty pool.
    pub fn new(id: PoolId, name: Arc<str>, origin: Arc<str>, interval_ns: u64, now_ns: u64) -> Self {
        Self {
            id,
            name,
            origin,
            program: None,
            app: None,
            configured_size: None,
            interval_ns,
            wishes: Wishes::default(),
            masters_tagged_ns: 0,
            limits: Limits::default(),
            limits_applied: Limits::default(),
            flagged: FlagCounts::default(),
            watched: false,
            due_ns: now_ns,
            due: false,
            masters: Vec::new(),
            unreaped: 0,
            spawns: 0,
            exits: ExitCounts::default(),
            cpu: CpuTime::default(),
            masters_cpu_ns: 0,
            run_delay_ns: None,
            read_bytes: None,
            written_bytes: None,
            cpu_utilization: Windowed::new(CPU_UTILIZATION, now_ns),
            worker_rss: Windowed::new(WORKER_RSS, now_ns),
            lifetime: Windowed::new(LIFETIME, now_ns),
            runs: None,
            empty_since_ns: Some(now_ns),
            places: Vec::new(),
            free: BinaryHeap::new(),
            living: 0,
            views: Vec::new(),
            idle: 0,
            same: Same::default(),
        }
    }

    /// A worker used nothing in an interval that is long enough to count.
    pub(super) fn add_idle(&mut self) {
        self.idle += 1;
    }

    /// A worker that rests has so much resident memory. In a pool of like workers one figure often follows its equal.
    pub(super) fn add_resting_memory(&mut self, rss_bytes: u64) {
        if self.same.rss_bytes != rss_bytes {
            self.worker_rss.record_n(self.same.rss_bytes as f64, self.same.times);
            self.same = Same { rss_bytes, times: 0 };
        }
        self.same.times += 1;
    }

    /// Puts into the distributions what was told of those that rest.
    pub(super) fn settle(&mut self) {
        self.cpu_utilization.record_n(0.0, std::mem::take(&mut self.idle));
        let same = std::mem::take(&mut self.same);
        self.worker_rss.record_n(same.rss_bytes as f64, same.times);
    }

    /// What is shown of the worker in this slot has changed.
    pub(super) fn touch(&mut self, slot: u32) {
        if let Some(view) = self.views.get_mut(slot as usize / VIEW_SLOTS) {
            *view = None;
        }
    }

    /// A rule has the name of this pool: what was found out about it counts no longer.
    pub fn claimed_by_rule(&mut self) {
        if &*self.origin != "config" {
            self.origin = "config".into();
            (self.program, self.app, self.configured_size) = (None, None, None);
        }
    }

    /// Living workers.
    pub fn living(&self) -> u32 {
        self.living
    }

    /// Gives a worker the lowest free slot: `(slot, generation)`, the generation counting from 1.
    pub fn seat(&mut self, worker: ProcessKey) -> (u32, u32) {
        let slot = self.free.pop().map_or_else(
            || {
                self.places.push(Place::default());
                self.places.len() as u32 - 1
            },
            |Reverse(slot)| slot,
        );
        let place = &mut self.places[slot as usize];
        place.generation = place.generation.saturating_add(1);
        place.holder = Some(worker);
        let generation = place.generation;
        self.living += 1;
        self.empty_since_ns = None;
        self.touch(slot);
        (slot, generation)
    }

    /// Takes the slot back.
    pub fn vacate(&mut self, slot: u32, now_ns: u64) {
        if let Some(place) = self.places.get_mut(slot as usize)
            && place.holder.take().is_some()
        {
            self.free.push(Reverse(slot));
            self.living -= 1;
            self.touch(slot);
            self.note_emptiness(now_ns);
        }
    }

    /// Starts the clock of retention when nobody is left.
    pub fn note_emptiness(&mut self, now_ns: u64) {
        if self.living == 0 && self.masters.is_empty() && self.empty_since_ns.is_none() {
            self.empty_since_ns = Some(now_ns);
        }
    }

    /// Holders by slot.
    pub fn holders(&self) -> impl Iterator<Item = (u32, ProcessKey)> + '_ {
        self.places.iter().zip(0u32..).filter_map(|(place, slot)| Some((slot, place.holder?)))
    }

    /// The same in pieces of so many slots.
    pub(super) fn holders_by(
        &self,
        slots: usize,
    ) -> impl Iterator<Item = impl Iterator<Item = (u32, ProcessKey)>> + '_ {
        let pieces = self.places.chunks(slots).zip((0..).step_by(slots));
        pieces.map(|(places, first)| {
            places.iter().zip(first..).filter_map(|(place, slot)| Some((slot, place.holder?)))
        })
    }

    /// Counts an end by reason.
    pub fn count_exit(&mut self, status: ExitStatus, oom_killed: Option<bool>) {
        let counter = match Outcome::of(status, oom_killed) {
            Outcome::Success => &mut self.exits.success,
            Outcome::Error => &mut self.exits.error,
            Outcome::Signal => &mut self.exits.signal,
            Outcome::Oom => &mut self.exits.oom,
            Outcome::Unknown => &mut self.exits.unknown,
        };
        *counter += 1;
    }

    /// Its work is measured so from now on. What was counted of work that is measured already stays.
    pub fn measure(&mut self, work: Option<Work>, now_ns: u64, now_unix_ns: u64) {
        match work {
            Some(Work::Runs) if self.runs.is_none() => {
                self.runs = Some(Box::new(Runs::new(now_ns, now_unix_ns)))
            }
            Some(Work::Runs) => {}
            Some(Work::Requests | Work::Spans) | None => self.runs = None,
        }
    }

    /// Adds what a worker used between two accounts.
    pub fn add_cpu(&mut self, before: CpuTime, after: CpuTime) {
        self.cpu.user_ns += after.user_ns.saturating_sub(before.user_ns);
        self.cpu.system_ns += after.system_ns.saturating_sub(before.system_ns);
    }

    /// Adds the other cumulative figures; `before` is `None` for a worker born under our eyes.
    pub fn add_totals(&mut self, before: Option<&Sample>, after: &Sample) {
        let add = |sum: &mut Option<u64>, of: fn(&Sample) -> Option<u64>| {
            if let Some(after) = of(after) {
                // What was unreadable before is counted from here on.
                let before = before.map_or(0, |before| of(before).unwrap_or(after));
                *sum = Some(sum.unwrap_or(0) + after.saturating_sub(before));
            }
        };
        add(&mut self.run_delay_ns, |s| s.run_delay_ns);
        add(&mut self.read_bytes, |s| s.read_bytes);
        add(&mut self.written_bytes, |s| s.written_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn pool() -> Pool {
        Pool::new(1, "web".into(), "config".into(), 1, 0)
    }

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_ns: 1 }
    }

    #[test]
    fn a_successor_takes_the_lowest_slot_and_the_next_generation() {
        let mut pool = pool();
        assert_eq!([pool.seat(key(1)), pool.seat(key(2)), pool.seat(key(3))], [(0, 1), (1, 1), (2, 1)]);
        pool.vacate(1, 0);
        pool.vacate(0, 0);
        assert_eq!([pool.seat(key(4)), pool.seat(key(5)), pool.seat(key(6))], [(0, 2), (1, 2), (3, 1)]);
        assert_eq!(pool.living(), 4);
    }

    proptest! {
        #[test]
        fn slots_are_unique_and_never_more_than_the_peak(steps in proptest::collection::vec(any::<bool>(), 1..200)) {
            let mut pool = pool();
            let mut seated: HashMap<u32, u32> = HashMap::new();
            let (mut next, mut peak) = (1, 0);
            for arrive in steps {
                if arrive {
                    let (slot, _) = pool.seat(key(next));
                    prop_assert!(seated.insert(slot, next).is_none(), "slot {slot} given twice");
                    next += 1;
                } else if let Some(slot) = seated.keys().next().copied() {
                    seated.remove(&slot);
                    pool.vacate(slot, 0);
                    pool.vacate(slot, 0);
                }
                peak = peak.max(seated.len());
                prop_assert_eq!(pool.living() as usize, seated.len());
                prop_assert_eq!(pool.places.len(), peak);
            }
        }
    }
}
