//! What a pool wants to know changes while its workers are followed: their threads and requests are followed on, and what
//! is kept of them is set right in place.
//!
//! The programs read what a worker waits for work in, and what is wanted of its requests, from its [`Times`] each time;
//! only whether histograms are wanted, and whether it is parked, is kept with each thread, which its own CPU writes
//! without atomic instructions. So what we write may be overwritten by a program that had read before, and it is looked
//! again in the next round.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

use collector_ebpf::request::WANTS_REQUESTS;
use collector_ebpf::schedule::{
    KINDS, PROFILE_HISTOGRAMS, THREAD_BUSY, THREAD_HISTOGRAMS, Thread, Times, WAYS, parks_in, parks_of,
    profile_of,
};
use collector_ebpf::waterfall::{ticket_of, with_ticket};

use super::{ScheduleTable, is_of, wait_for_programs_to_end};
use crate::kernel::sys;
use crate::units::{NANOS_PER_SECOND, monotonic_ns};

/// A thread that is parked, or not, by what its pool wanted before turns at its next switch; one that has been blocked for so
/// long already does not look as if it were about to, ns.
const BLOCKED_LONG_NS: u64 = NANOS_PER_SECOND;

impl ScheduleTable {
    /// From now on a worker that is followed, or will be, is followed as its pool wants it.
    pub(in crate::kernel) fn set_wishes(&mut self, slot: u32, wishes: u32) {
        self.change_parks(slot, |_| parks_of(wishes));
        self.rewished.insert(slot, wishes);
    }

    /// From now on the requests of a slot whose pool wants to know of them are in this waterfall, or in none.
    pub(in crate::kernel) fn set_ticket(&self, slot: u32, ticket: u32) {
        self.change_parks(slot, |parks| match parks & WANTS_REQUESTS {
            0 => parks,
            _ => with_ticket(parks, ticket),
        });
    }

    /// True if they were so already. A program that begins to follow a worker writes what its tag says; if that is at the same
    /// moment, it is set right at the next reading.
    fn change_parks(&self, slot: u32, change: impl Fn(u32) -> u32) -> bool {
        let Some(parks) = self.word32(slot, offset_of!(Times, parks)) else { return true };
        let before = parks.load(Ordering::Relaxed);
        let after = change(before);
        if before != after {
            let _ = parks.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed);
        }
        before == after
    }

    /// Has the threads that were followed at the last look follow the wishes of their pools, as far as they do not.
    pub(super) fn apply_wishes(&mut self) {
        let mut to_turn = Vec::new();
        let mut rewished = std::mem::take(&mut self.rewished);
        let now_ns = monotonic_ns();
        rewished.retain(|slot, wishes| {
            // The ticket is none of what the pool wants, and may be another one by now.
            let wanted = parks_of(*wishes);
            let mut applied = self.change_parks(*slot, |parks| with_ticket(wanted, ticket_of(parks)));
            for (_, index) in self.threads_of(*slot) {
                let Some(thread) = self.thread(*index).filter(|thread| is_of(*thread, *slot)) else {
                    continue;
                };
                let flag = if profile_of(*wishes) >= PROFILE_HISTOGRAMS { THREAD_HISTOGRAMS } else { 0 };
                if thread.place & THREAD_HISTOGRAMS != flag {
                    applied = false;
                    let place = thread.place & !THREAD_HISTOGRAMS | flag;
                    self.place(*index).map(|word| {
                        word.compare_exchange(thread.place, place, Ordering::Relaxed, Ordering::Relaxed)
                    });
                } else if self.turns(*slot, thread).is_some() {
                    applied = false;
                    if thread.since_ns != 0 && now_ns.saturating_sub(thread.since_ns) >= BLOCKED_LONG_NS {
                        to_turn.push((*slot, *index as usize, thread.tid));
                    }
                }
            }
            !applied
        });
        self.rewished = rewished;
        self.turn(&to_turn);
    }

    /// What a thread's place should say in place of what it says of its being parked.
    fn turns(&self, slot: u32, thread: Thread) -> Option<u32> {
        let times = self.times(slot)?;
        let kind = Thread::kind_of(thread.place);
        let parked = parks_in(times.parks, kind, || times.followed);
        let turns = kind < KINDS as u32 && parked == (thread.place & THREAD_BUSY != 0);
        turns.then_some(thread.place ^ THREAD_BUSY)
    }

    /// Has threads that are blocked cease to be parked, or begin to be, as the programs do at a switch. As they may wake up,
    /// nobody finds them meanwhile: what one of them does in those microseconds is seen at its next switch.
    fn turn(&self, threads: &[(u32, usize, u32)]) {
        let withheld: Vec<_> =
            threads.iter().copied().filter(|(_, index, tid)| self.withhold(*index, *tid)).collect();
        if withheld.is_empty() {
            return;
        }
        wait_for_programs_to_end();
        let now_ns = monotonic_ns();
        for (slot, index, tid) in withheld {
            if let Some(thread) = self.thread(index as u32)
                && let Some(place) = self.turns(slot, thread)
            {
                if place & THREAD_BUSY != 0 {
                    self.rise(slot, now_ns);
                } else {
                    self.fall(slot, now_ns);
                }
                self.place(index as u32).map(|word| word.swap(place, Ordering::Relaxed));
            }
            self.tid(index).map(|word| word.swap(tid, Ordering::Release));
            // Its last switch would have passed unseen.
            if sys::thread_is_gone(tid) && self.withhold(index, tid) {
                self.end(index, Some(now_ns));
            }
        }
    }

    /// One more thread keeps a worker busy.
    fn rise(&self, slot: u32, now_ns: u64) {
        let word64 = |offset: usize| self.word64(slot, offset);
        let first = word64(offset_of!(Times, busy))
            .is_some_and(|busy| Times::reasons_of(busy.fetch_add(1, Ordering::SeqCst)) == 0);
        if !first {
            return;
        }
        word64(offset_of!(Times, work.busy_ns)).map(|sum| sum.fetch_sub(now_ns, Ordering::Relaxed));
        word64(offset_of!(Times, work.since_ns)).map(|since| since.swap(now_ns, Ordering::Relaxed));
        let ready = word64(offset_of!(Times, work.ready_ns)).map_or(0, |ready| ready.load(Ordering::Relaxed));
        if ready != 0 {
            self.set_if_zero(slot, offset_of!(Times, work.worked_ns), now_ns);
        }
    }

    /// One less. What it did until now is no span: it did not end.
    fn fall(&self, slot: u32, now_ns: u64) {
        let word64 = |offset: usize| self.word64(slot, offset);
        if self.is_busy_no_more(slot, 1) {
            word64(offset_of!(Times, work.busy_ns)).map(|sum| sum.fetch_add(now_ns, Ordering::Relaxed));
            word64(offset_of!(Times, work.since_ns)).map(|since| since.swap(now_ns, Ordering::Relaxed));
            self.set_if_zero(slot, offset_of!(Times, work.ready_ns), now_ns);
        }
    }

    fn set_if_zero(&self, slot: u32, offset: usize, now_ns: u64) {
        self.word64(slot, offset)
            .map(|word| word.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed));
    }

    fn place(&self, index: u32) -> Option<&AtomicU32> {
        let set = self.threads.at(index as usize / WAYS)?;
        // SAFETY: an element of the set; a pointer into the mapping.
        let place = unsafe { &raw mut (*set).threads[index as usize % WAYS].place };
        // SAFETY: mapped, aligned, as long as `self`; the programs write all of it at once.
        Some(unsafe { AtomicU32::from_ptr(place) })
    }
}
