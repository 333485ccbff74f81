//! The waterfalls of pools, read from the arrays that the programs write.

use std::io;
use std::sync::atomic::{Ordering, fence};

use aya::maps::MapData;
use collector_ebpf::limits::MAX_WATERFALLS;
use collector_ebpf::schedule::Times;
use collector_ebpf::waterfall::{STRETCHES, Slowest, UNRECORDED, index_of, slowest_of};

use super::schedule::ScheduleTable;
use super::shared::Shared;
use crate::input::{SlowRequest, WaterfallReading};
use crate::units::monotonic_ns;

/// A program writes for less than a microsecond; after so many attempts it is read in the next round.
const ATTEMPTS: usize = 16;

/// Which pool has which waterfall, and what was read of it.
pub(super) struct WaterfallTable {
    slowest: Shared<Slowest>,
    /// By number less one.
    pools: [Option<Read>; MAX_WATERFALLS],
    reading: WaterfallReading,
}

/// A pool, and what was last read of its waterfall.
#[derive(Clone, Copy)]
struct Read {
    pool: u32,
    times: Times,
    changes: [u32; STRETCHES],
}

impl WaterfallTable {
    pub(super) fn new(slowest: MapData) -> io::Result<Self> {
        Ok(Self {
            slowest: Shared::map(slowest, MAX_WATERFALLS * STRETCHES)?,
            pools: [None; MAX_WATERFALLS],
            reading: WaterfallReading::default(),
        })
    }

    /// The number of a pool's waterfall, which it gets if it has none; 0 if there is none left.
    pub(super) fn number_of(&mut self, pool: u32, schedule: &mut ScheduleTable) -> u32 {
        let its = |place: &Option<Read>| place.is_some_and(|read| read.pool == pool);
        let Some(index) =
            self.pools.iter().position(its).or_else(|| self.pools.iter().position(Option::is_none))
        else {
            return 0;
        };
        let number = index as u32 + 1;
        if let Some(place) = self.pools.get_mut(index).filter(|place| place.is_none()) {
            *place = Some(Read { pool, times: Times::default(), changes: [0; STRETCHES] });
            schedule.clear_waterfall(index_of(number));
            for stretch in 0..STRETCHES as u64 {
                self.slowest.set(slowest_of(number, stretch) as usize, Slowest::default());
            }
        }
        number
    }

    /// A pool is no more; its number is another's to have.
    pub(super) fn forget(&mut self, pool: u32) {
        for place in &mut self.pools {
            place.take_if(|read| read.pool == pool);
        }
    }

    /// Tells what is new in each.
    pub(super) fn read(&mut self, schedule: &ScheduleTable, tell: &mut dyn FnMut(u32, &WaterfallReading)) {
        for (number, place) in (1..).zip(&mut self.pools) {
            let Some(before) = place else { continue };
            // First the sums: what is in them is in the histograms by now.
            let Some(times) = closed(schedule, index_of(number)) else { continue };
            let reading = &mut self.reading;
            // A request is counted before it is kept: one that was counted last time may be new here.
            reading.slowest.clear();
            for (stretch, changes) in (0..).zip(&mut before.changes) {
                let Some(slowest) = stable(&self.slowest, slowest_of(number, stretch)) else { continue };
                if std::mem::replace(changes, slowest.changes) != slowest.changes {
                    let length = slowest.length as usize;
                    let requests = slowest.requests.iter().take(length).map(request);
                    reading.slowest.push((slowest.stretch, requests.collect()));
                }
            }
            let then = std::mem::replace(&mut before.times, times);
            if times.requests == then.requests && reading.slowest.is_empty() {
                continue;
            }
            reading.at_ns = monotonic_ns();
            reading.requests = times.requests[0].wrapping_sub(then.requests[0]);
            reading.duration_ns = times.lived_ns.wrapping_sub(then.lived_ns);
            reading.time_ns =
                std::array::from_fn(|kind| times.ended_ns[kind].wrapping_sub(then.ended_ns[kind]));
            // A request that was not recorded is in no histogram, whatever kinds it was in.
            let unrecorded = times.requests[UNRECORDED].wrapping_sub(then.requests[UNRECORDED]);
            reading.discarded = std::array::from_fn(|kind| {
                times.discarded[kind].wrapping_sub(then.discarded[kind]).wrapping_add(unrecorded)
            });
            reading.intervals.clear();
            schedule.take(index_of(number), &mut reading.intervals);
            tell(before.pool, reading);
        }
    }
}

/// The sums of a waterfall while no program adds a request to them, so that they close.
fn closed(schedule: &ScheduleTable, index: u32) -> Option<Times> {
    (0..ATTEMPTS).find_map(|_| {
        let before = schedule.times(index)?;
        fence(Ordering::Acquire);
        let after = schedule.times(index)?;
        fence(Ordering::Acquire);
        let still = [before, after].iter().all(|times| times.in_flight == 0);
        (still && before.requests == after.requests).then_some(before)
    })
}

/// A copy that no program has changed meanwhile.
fn stable(array: &Shared<Slowest>, index: u32) -> Option<Slowest> {
    (0..ATTEMPTS).find_map(|_| {
        let before = array.get(index as usize)?;
        fence(Ordering::Acquire);
        let after = array.get(index as usize)?;
        (before.changes == after.changes && before.changes.is_multiple_of(2)).then_some(before)
    })
}

fn request(slow: &collector_ebpf::waterfall::SlowRequest) -> SlowRequest {
    SlowRequest {
        begin_ns: slow.begin_ns,
        duration_ns: slow.duration_ns,
        pid: slow.pid,
        tid: slow.tid,
        outcome: slow.outcome,
        time_ns: slow.time_ns,
    }
}

impl std::fmt::Debug for WaterfallTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaterfallTable").finish_non_exhaustive()
    }
}
