//! Waits that are as long as those that make requests slow: each with its stack and when it was over, sampled all the time.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

use collector_ebpf::sample::Tail;
use collector_ebpf::schedule::{KINDS, RUNNABLE};

use super::continuous::{LASTS, TRIED_AGAIN_AFTER};
use super::kept::Kept;
use super::measuring::{in_the_queue, is_truncated, places};
use super::naming::{self, Interpreters};
use super::sampling::Sampling;
use super::work::Work;
use super::workers::Workers;
use super::{CaptureError, Whom};
use crate::kernel::{Counts, What};
use crate::profile::fold::Folder;
use crate::profile::{Kind, Labels, Profile};
use crate::snapshot::{Pool, Snapshot};
use crate::units::{NANOS_PER_SECOND, monotonic_ns, unix_ns};

/// Bytes that they may take.
const MOST_BYTES: usize = 24 << 20;

/// Of one time that is kept, the longest, as many of each pool.
const MOST_WAITS: usize = 1024;

/// No shorter one is kept, however short those of a pool are.
const SHORTEST_NS: u64 = NANOS_PER_SECOND / 10_000;

/// The shortest one of a kind of which it is not known how long others are.
const SHORTEST_UNKNOWN_NS: u64 = NANOS_PER_SECOND / 1000;

/// Whatever others are like, one that is as long as that is long: after an outage those of a second are.
const LONG_NS: u64 = NANOS_PER_SECOND / 10;

/// What of waits is sampled all the time.
#[derive(Debug)]
pub(super) struct Tails {
    pub(super) sampling: Option<Sampling>,
    /// Pools that it was told the limits of.
    limited: HashSet<u32>,
    /// Since the last time that is kept.
    told: Vec<Tail>,
    lost: u64,
    /// What the sampler had counted before.
    counted: Counts,
    began: Instant,
    began_unix_ns: u64,
    pub(super) kept: Kept,
    /// Not before.
    next_try: Instant,
}

impl Tails {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            sampling: None,
            limited: HashSet::new(),
            told: Vec::new(),
            lost: 0,
            counted: Counts::default(),
            began: now,
            began_unix_ns: unix_ns(),
            kept: Kept::new(MOST_BYTES, MOST_WAITS),
            next_try: now,
        }
    }

    /// Takes what was told.
    fn take(&mut self) {
        let Some(sampling) = &mut self.sampling else { return };
        self.lost += sampling.sampler.tails(|tail| self.told.push(tail));
        if self.told.len() > 8 * MOST_WAITS {
            self.leave_the_longest();
        }
    }

    /// It is time to keep what was told.
    pub(super) fn are_due(&self) -> bool {
        self.began.elapsed() >= LASTS
    }

    /// Since when waits are kept, nanoseconds since the Unix epoch.
    pub(super) fn kept_since(&self) -> u64 {
        self.kept.since().unwrap_or(self.began_unix_ns)
    }

    /// Nothing was told that has not been kept, with its names.
    pub(super) fn are_kept(&self) -> bool {
        self.told.is_empty()
    }

    fn leave_the_longest(&mut self) {
        let before = self.told.len();
        if before <= MOST_WAITS {
            return;
        }
        self.told.sort_unstable_by_key(|tail| Reverse(tail.waited_ns));
        let mut of_pools: HashMap<u32, usize> = self.told.iter().map(|tail| (tail.pool, 0)).collect();
        let share = (MOST_WAITS / of_pools.len()).max(1);
        self.told.retain(|tail| {
            let count = of_pools.entry(tail.pool).or_default();
            *count += 1;
            *count <= share
        });
        self.lost += (before - self.told.len()) as u64;
    }

    /// Says how long a wait of each pool has to be.
    fn set_limits(&mut self, snapshot: Option<&Snapshot>) {
        self.limited.clear();
        if let Some(snapshot) = snapshot {
            self.set_limits_of_new(snapshot);
        }
    }

    /// The same of pools of which it was not said.
    pub(super) fn set_limits_of_new(&mut self, snapshot: &Snapshot) {
        let Some(sampling) = &self.sampling else { return };
        for pool in &snapshot.pools {
            if self.limited.insert(pool.number)
                && let Err(error) = sampling.sampler.set_least(pool.number, &least_ns(pool))
            {
                // There is room for so many pools, those that are gone included: another one begins without these.
                tracing::warn!(pool = %pool.name, %error, "no long waits are kept; tried again in a minute");
                self.sampling = None;
                self.next_try = Instant::now() + TRIED_AGAIN_AFTER;
                return;
            }
        }
    }
}

/// The shortest wait of a pool that is kept, by kind: as long as but 1 % of the last minute, or twice as long as half of them,
/// whichever is less (where more than 1 % are slow, p99 is one of these). None of a pool whose waits are not followed: those
/// for work are not told from others there.
fn least_ns(pool: &Pool) -> [u64; KINDS] {
    let Some(schedule) = &pool.schedule else { return [u64::MAX; KINDS] };
    std::array::from_fn(|kind| {
        // The shortest window that has any.
        let window = schedule.intervals.as_ref().and_then(|intervals| intervals[kind].windows.first());
        window.map_or(SHORTEST_UNKNOWN_NS, |window| {
            let long = window.p99.min(2.0 * window.p50);
            ((long * NANOS_PER_SECOND as f64) as u64).clamp(SHORTEST_NS, LONG_NS)
        })
    })
}

impl Work {
    /// Takes what was told of waits, and begins to have them told if nothing does. True if a process was met that was not known.
    pub(super) fn look_after_tails(&mut self, tails: &mut Tails) -> bool {
        if tails.sampling.is_none() && Instant::now() >= tails.next_try {
            match self.sampling_of_tails() {
                Ok(sampling) => {
                    tails.sampling = Some(sampling);
                    (tails.began, tails.began_unix_ns) = (Instant::now(), unix_ns());
                    tails.counted = Counts::default();
                    tails.set_limits(self.snapshots.borrow().as_deref());
                }
                Err(error) => {
                    tracing::warn!(%error, "no long waits are kept; tried again in a minute");
                    tails.next_try = Instant::now() + TRIED_AGAIN_AFTER;
                }
            }
        }
        tails.take();
        let sampling = tails.sampling.as_mut();
        sampling.is_some_and(|sampling| sampling.answer_strangers(&mut self.readers))
    }

    fn sampling_of_tails(&mut self) -> Result<Sampling, CaptureError> {
        let mut sampling = self.load(What::Tails, false)?;
        self.introduce(&mut sampling, &Whom::default());
        sampling.start()?;
        Ok(sampling)
    }

    /// Keeps the waits since the last time that is kept.
    pub(super) fn keep_tails(&mut self, tails: &mut Tails) {
        let now = Instant::now();
        tails.take();
        match self.profile_of_tails(tails) {
            Ok(Some(profile)) => {
                self.account.add_lost_of(&profile);
                tails.kept.add(profile, now);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "waits are not kept");
                tails.sampling = None;
            }
        }
        tails.kept.forget_old(now);
        (tails.began, tails.began_unix_ns, tails.lost) = (now, unix_ns(), 0);
        tails.told.clear();
        tails.set_limits(self.snapshots.borrow().as_deref());
        let Some(sampling) = &mut tails.sampling else { return };
        if !sampling.sampler.has_room_for_stacks() {
            sampling.sampler.stop();
            // Told in the last moment, of stacks that are about to be forgotten.
            let mut late = 0;
            tails.lost += sampling.sampler.tails(|_| late += 1) + late;
            if sampling.start().is_err() {
                tails.sampling = None;
                return;
            }
        }
        if !sampling.can_go_on() {
            tails.sampling = None;
        }
    }

    /// Each wait that was told, as a sample of its own.
    fn profile_of_tails(&mut self, tails: &mut Tails) -> Result<Option<Profile>, CaptureError> {
        tails.leave_the_longest();
        let Some(sampling) = &tails.sampling else { return Ok(None) };
        let counts = sampling.sampler.counts()?;
        let workers = Workers::of(self.snapshots.borrow().as_deref());
        let mut folder = Folder::default();
        folder.add_lost(tails.lost + counts.lost.saturating_sub(tails.counted.lost));
        folder.add_passed_over(counts.passed_over.saturating_sub(tails.counted.passed_over));
        tails.counted = counts;
        let mut by_stack: HashMap<u32, Vec<Tail>> = HashMap::new();
        for tail in &tails.told {
            by_stack.entry(tail.stack).or_default().push(*tail);
        }
        let places_of: HashSet<u32> = by_stack.keys().copied().collect();
        let is_wanted = |place| places_of.contains(&place);
        let sampler = &sampling.sampler;
        naming::learn_kernel_of(sampler, is_wanted, &mut self.names, &self.samplers, &mut self.symbols);
        let unix_minus_monotonic_ns = unix_ns().wrapping_sub(monotonic_ns());
        let mut interpreters = Interpreters::default();
        let (readers, symbols) = (&self.readers, &mut self.symbols);
        sampler.read_some(is_wanted, |place, stack, frames| {
            let frames = places(stack, frames, &sampling.spaces, readers, &mut interpreters, symbols);
            let labels = workers.labels(stack);
            for tail in by_stack.remove(&place).into_iter().flatten() {
                let labels = Labels {
                    ended_unix_ns: Some(tail.end_ns.wrapping_add(unix_minus_monotonic_ns)),
                    ..labels.clone()
                };
                let labels = if tail.kind == RUNNABLE { in_the_queue(labels) } else { labels };
                folder.add(labels, frames.iter().copied(), is_truncated(stack), 1, tail.waited_ns);
            }
        });
        // Their stacks were not all there yet.
        folder.add_lost(by_stack.values().map(|tails| tails.len() as u64).sum());
        let named = naming::named(folder.places(), &interpreters, &mut self.readers, &mut self.symbols);
        Ok(Some(Profile {
            started_unix_ns: tails.began_unix_ns,
            duration_ns: tails.began.elapsed().as_nanos() as u64,
            ..folder.finish(Kind::OffCpu, named)
        }))
    }
}
