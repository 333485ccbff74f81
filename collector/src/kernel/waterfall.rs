//! The waterfalls of pools, read from the arrays that the programs write.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{Ordering, fence};

use aya::maps::MapData;
use collector_ebpf::limits::MAX_WATERFALLS;
use collector_ebpf::schedule::{ON_CPU, Times};
use collector_ebpf::waterfall::{STRETCHES, Slowest, UNRECORDED, index_of, slowest_of, ticket};

use super::schedule::{OnCpuRequests, ScheduleTable};
use super::shared::Shared;
use super::slots::SlotTable;
use crate::input::{SlowRequest, WaterfallReading};
use crate::units::monotonic_ns;

/// A program writes for less than a microsecond; after so many attempts it is read in the next round.
const ATTEMPTS: usize = 16;

/// Which pool has which waterfall, and what was read of it.
pub(super) struct WaterfallTable {
    slowest: Shared<Slowest>,
    /// By number less one.
    pools: [Option<Read>; MAX_WATERFALLS],
    /// How often each was given to a pool.
    turns: [u32; MAX_WATERFALLS],
    /// Pools that were asked when there was none left.
    refused: HashSet<u32>,
    refused_total: u64,
    reading: WaterfallReading,
}

/// A pool, and what was last read of its waterfall.
struct Read {
    pool: u32,
    ticket: u32,
    /// It has been asked something: nobody takes it from the pool any more.
    asked: bool,
    times: Times,
    /// What was read since of its workers.
    on_cpu: OnCpuRequests,
    changes: [u32; STRETCHES],
}

impl WaterfallTable {
    pub(super) fn new(slowest: MapData) -> io::Result<Self> {
        Ok(Self {
            slowest: Shared::map(slowest, MAX_WATERFALLS * STRETCHES)?,
            pools: [const { None }; MAX_WATERFALLS],
            turns: [0; MAX_WATERFALLS],
            refused: HashSet::new(),
            refused_total: 0,
            reading: WaterfallReading::default(),
        })
    }

    /// The ticket of a pool's waterfall; 0 if it has none.
    pub(super) fn ticket_of(&self, pool: u32) -> u32 {
        self.pools.iter().flatten().find(|read| read.pool == pool).map_or(0, |read| read.ticket)
    }

    /// The same of one that was not asked yet as far as is known: it gets one that nobody has, and will have to leave it to
    /// who is asked.
    pub(super) fn lend(&mut self, pool: u32, schedule: &mut ScheduleTable) -> u32 {
        if let ticket @ 1.. = self.ticket_of(pool) {
            return ticket;
        }
        let free = self.pools.iter().position(Option::is_none);
        free.map_or(0, |index| self.give(index, pool, false, schedule))
    }

    /// The same of one that was asked; 0 if all the others that have one were, too.
    pub(super) fn get(&mut self, pool: u32, slots: &SlotTable, schedule: &mut ScheduleTable) -> u32 {
        if let Some(read) = self.pools.iter_mut().flatten().find(|read| read.pool == pool) {
            read.asked = true;
            return read.ticket;
        }
        let asked = |slot: u32| schedule.times(slot).is_some_and(|times| times.first_request_ns != 0);
        let unasked = |(index, place): (usize, &Option<Read>)| {
            let read = place.as_ref().filter(|read| !read.asked)?;
            // Who was asked since it was read has it, too.
            let mut its_slots = slots.in_use().filter(|(_, slot)| slot.pool == read.pool);
            its_slots.all(|(slot, _)| !asked(slot)).then_some(index)
        };
        let free = self.pools.iter().position(Option::is_none);
        let Some(index) = free.or_else(|| self.pools.iter().enumerate().find_map(unasked)) else {
            self.refused_total += u64::from(self.refused.insert(pool));
            return 0;
        };
        self.give(index, pool, true, schedule)
    }

    fn give(&mut self, index: usize, pool: u32, asked: bool, schedule: &mut ScheduleTable) -> u32 {
        let (Some(place), Some(turn)) = (self.pools.get_mut(index), self.turns.get_mut(index)) else {
            return 0;
        };
        *turn = turn.wrapping_add(1);
        let number = index as u32 + 1;
        let ticket = ticket(number, *turn);
        *place = Some(Read {
            pool,
            ticket,
            asked,
            times: Times::default(),
            on_cpu: OnCpuRequests::default(),
            changes: [0; STRETCHES],
        });
        schedule.clear_waterfall(index_of(number), ticket);
        for stretch in 0..STRETCHES as u64 {
            self.slowest.set(slowest_of(number, stretch) as usize, Slowest::default());
        }
        self.refused.remove(&pool);
        ticket
    }

    /// Where that is gathered which the workers of a pool add to its waterfall; `None` if it has none.
    pub(super) fn on_cpu(&mut self, pool: u32) -> Option<&mut OnCpuRequests> {
        self.pools.iter_mut().flatten().find(|read| read.pool == pool).map(|read| &mut read.on_cpu)
    }

    /// A pool is no more, or wants none; its waterfall is another's to have.
    pub(super) fn forget(&mut self, pool: u32) {
        for place in &mut self.pools {
            place.take_if(|read| read.pool == pool);
        }
        self.refused.remove(&pool);
    }

    /// A pool was asked, and has no waterfall because all are taken.
    pub(super) fn refuses(&self, pool: u32) -> bool {
        self.refused.contains(&pool)
    }

    /// How often that has begun.
    pub(super) fn refused_total(&self) -> u64 {
        self.refused_total
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
            let OnCpuRequests { duration_ns, discarded, intervals } = &mut before.on_cpu;
            let (stayed_ns, unrecorded) = (std::mem::take(duration_ns), std::mem::take(discarded));
            let stayed = intervals.iter().map(|interval| interval.count).sum::<u32>() + unrecorded;
            if times.requests == then.requests && reading.slowest.is_empty() && (stayed_ns, stayed) == (0, 0)
            {
                continue;
            }
            reading.at_ns = monotonic_ns();
            reading.requests = times.requests[0].wrapping_sub(then.requests[0]).wrapping_add(stayed);
            reading.duration_ns = times.lived_ns.wrapping_sub(then.lived_ns).wrapping_add(stayed_ns);
            reading.time_ns = std::array::from_fn(|kind| {
                let stayed_ns = if kind == ON_CPU as usize { stayed_ns } else { 0 };
                times.ended_ns[kind].wrapping_sub(then.ended_ns[kind]).wrapping_add(stayed_ns)
            });
            // A request that was not recorded is in no histogram, whatever kinds it was in.
            let unrecorded =
                times.requests[UNRECORDED].wrapping_sub(then.requests[UNRECORDED]).wrapping_add(unrecorded);
            reading.discarded = std::array::from_fn(|kind| {
                times.discarded[kind].wrapping_sub(then.discarded[kind]).wrapping_add(unrecorded)
            });
            reading.intervals.clear();
            reading.intervals.append(intervals);
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
        let still = [before, after].iter().all(|times| times.busy == 0);
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
