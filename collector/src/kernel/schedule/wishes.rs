//! What a pool wants to know changes while its workers are followed: their threads and requests are followed on, and what
//! is kept of them is set right in place.
//!
//! The programs read what a worker waits for work in, and what is wanted of its requests, from its [`Times`] each time;
//! only whether histograms are wanted, and whether it is parked, is kept with each thread, which its own CPU writes
//! without atomic instructions. We exchange these flags. A program that had read them before may write over that, so what
//! we did is looked at again: flags in the next round, and the number of threads that keep a worker busy, which has to be
//! that of their flags, as soon as such programs have ended.
//!
//! The same sets right who was judged among another number of threads: found in a lock before the others of its worker, or
//! left there by them.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use collector_ebpf::request::WANTS_REQUESTS;
use collector_ebpf::schedule::{
    KINDS, PARKS_IN_SHARED_LOCK, PROFILE_HISTOGRAMS, THREAD_BUSY, THREAD_HISTOGRAMS, THREAD_PARTIAL, Thread,
    Times, WAYS, parks_in, parks_of, profile_of,
};
use collector_ebpf::waterfall::{ticket_of, with_ticket};

use super::{ATTEMPTS, ScheduleTable, is_of, wait_for_programs_to_end};
use crate::units::{NANOS_PER_SECOND, monotonic_ns};

/// A thread that is parked, or not, by what was so before turns at its next switch. We turn those that were found blocked or have
/// been so for so long already, which do not look as if they were about to, ns.
const BLOCKED_LONG_NS: u64 = NANOS_PER_SECOND;

impl ScheduleTable {
    /// From now on a worker that is followed, or will be, is followed as its pool wants it.
    pub(in crate::kernel) fn set_wishes(&mut self, slot: u32, wishes: u32) {
        let parks = parks_of(wishes);
        self.begin_span_anew(slot, parks);
        self.change_parks(slot, |_| parks);
        self.rewished.insert(slot, wishes);
        self.unsee(slot);
    }

    /// Where there is more that a worker waits for work in, and it is busy by its threads alone, some of what it did until now
    /// may have been such waits: that it has been busy for all of this time can be said no more.
    fn begin_span_anew(&self, slot: u32, parks: u32) {
        let Some(Times { parks: before, busy, work, .. }) = self.times(slot) else { return };
        if waits(parks) & !waits(before) != 0
            && work.ready_ns != 0
            && Times::reasons_of(busy) != 0
            && Times::in_flight_of(busy) == 0
            && let Some(since) = self.word64(slot, offset_of!(Times, work.since_ns))
        {
            let now_ns = monotonic_ns();
            let _ = since.compare_exchange(work.since_ns, now_ns, Ordering::Relaxed, Ordering::Relaxed);
        }
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

    /// Has the threads that were followed at the last look follow the wishes of their pools, as far as they do not; and
    /// judges those in a lock anew whose worker has another number of threads than it had.
    pub(super) fn apply_wishes(&mut self) {
        let mut turned = Vec::new();
        let mut rewished = std::mem::take(&mut self.rewished);
        rewished.retain(|slot, wishes| !self.apply(*slot, *wishes, &mut turned));
        self.rewished = rewished;
        let mut regrouped = std::mem::take(&mut self.regrouped);
        regrouped.retain(|slot| !(self.turn_blocked(*slot, &mut turned) && self.count_busy(*slot)));
        self.regrouped = regrouped;
        if !turned.is_empty() {
            wait_for_programs_to_end();
            turned.into_iter().for_each(|slot| {
                self.count_busy(slot);
            });
        }
    }

    /// True if all was as it should be.
    fn apply(&mut self, slot: u32, wishes: u32, turned: &mut Vec<u32>) -> bool {
        // The ticket is none of what the pool wants, and may be another one by now.
        let wanted = parks_of(wishes);
        let mut applied = self.change_parks(slot, |parks| with_ticket(wanted, ticket_of(parks)));
        let flag = if profile_of(wishes) >= PROFILE_HISTOGRAMS { THREAD_HISTOGRAMS } else { 0 };
        for (_, index) in self.threads_of(slot) {
            let Some(thread) = self.thread(*index).filter(|thread| is_of(*thread, slot)) else { continue };
            let place = thread.place & !THREAD_HISTOGRAMS | flag;
            if place != thread.place {
                applied = false;
                self.exchange_place(*index, thread.place, place);
            }
        }
        self.turn_blocked(slot, turned) && applied && self.count_busy(slot)
    }

    /// Turns those of a slot's threads that have been blocked for long. True if there was none to turn at all.
    fn turn_blocked(&self, slot: u32, turned: &mut Vec<u32>) -> bool {
        let Some(times) = self.times(slot) else { return true };
        let (mut all, mut some) = (true, false);
        for (_, index) in self.threads_of(slot) {
            let Some(thread) = self.thread(*index).filter(|thread| is_of(*thread, slot)) else { continue };
            let kind = Thread::kind_of(thread.place);
            let parked = parks_in(times.parks, kind, || times.followed);
            if kind >= KINDS as u32 || parked == (thread.place & THREAD_BUSY == 0) {
                continue;
            }
            all = false;
            let now_ns = monotonic_ns();
            let blocked_ns = now_ns.saturating_sub(thread.since_ns);
            if thread.since_ns != 0 && (blocked_ns >= BLOCKED_LONG_NS || thread.place & THREAD_PARTIAL != 0) {
                self.turn(slot, *index, thread.place, now_ns);
                some = true;
            }
        }
        turned.extend(some.then_some(slot));
        all
    }

    /// Has a thread that is blocked cease to be parked, or begin to be, as the programs do at a switch.
    fn turn(&self, slot: u32, index: u32, place: u32, now_ns: u64) {
        let turned = place ^ THREAD_BUSY;
        if turned & THREAD_BUSY != 0 {
            self.rise(slot, now_ns);
            if !self.exchange_place(index, place, turned) {
                self.fall(slot, now_ns);
            }
        } else if self.exchange_place(index, place, turned) {
            self.fall(slot, now_ns);
        }
    }

    /// Sees to it that as many things keep a worker busy as threads say that they do and requests are in flight. A thread
    /// that woke up while it was turned may have been counted twice, or not at all. False if that was so, or the threads would not
    /// hold still.
    fn count_busy(&mut self, slot: u32) -> bool {
        let Some(excess) = (0..ATTEMPTS).find_map(|_| self.excess_of_busy(slot)) else { return false };
        let now_ns = monotonic_ns();
        for _ in 0..excess.unsigned_abs() {
            if excess < 0 {
                self.rise(slot, now_ns);
            } else {
                self.fall(slot, now_ns);
            }
        }
        if excess != 0 {
            self.unsee(slot);
        }
        excess == 0
    }

    fn excess_of_busy(&self, slot: u32) -> Option<i32> {
        let threads = self.threads_of(slot);
        let signature = self.signature(threads, slot)?;
        let places = || {
            let all = threads.iter().filter_map(|(_, index)| self.thread(*index));
            all.filter(|thread| is_of(*thread, slot)).map(|thread| thread.place)
        };
        let (followed, busy) = (places().count(), places().filter(|place| place & THREAD_BUSY != 0).count());
        fence(Ordering::Acquire);
        let times = self.times(slot)?;
        fence(Ordering::Acquire);
        let still = self.signature(threads, slot)? == signature && times.followed as usize == followed;
        still.then(|| excess_of(times.busy, busy as i32))
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

    /// True if it was done.
    fn exchange_place(&self, index: u32, from: u32, to: u32) -> bool {
        self.place(index).is_some_and(|place| {
            place.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })
    }

    fn place(&self, index: u32) -> Option<&AtomicU32> {
        let set = self.threads.at(index as usize / WAYS)?;
        // SAFETY: an element of the set; a pointer into the mapping.
        let place = unsafe { &raw mut (*set).threads[index as usize % WAYS].place };
        // SAFETY: mapped, aligned, as long as `self`; the programs write all of it at once.
        Some(unsafe { AtomicU32::from_ptr(place) })
    }
}

/// The kinds of time that are waits for work, of [`Times::parks`].
const fn waits(parks: u32) -> u32 {
    parks & (2 * PARKS_IN_SHARED_LOCK - 1)
}

/// How many more [`Times::busy`] counts than threads that say so and requests in flight. Its low half may be below zero, and has
/// then taken one from the high half.
fn excess_of(busy: u64, threads: i32) -> i32 {
    let all = busy as u32;
    let in_flight = Times::in_flight_of(busy).wrapping_add(all >> 31);
    all.wrapping_sub(in_flight).cast_signed().wrapping_sub(threads)
}

#[cfg(test)]
mod tests {
    use collector_ebpf::schedule::IN_FLIGHT;
    use proptest::prelude::*;

    use super::excess_of;

    proptest! {
        #[test]
        fn what_was_counted_too_often_or_not_at_all_is_found(
            in_flight in 0u64..1000, threads in 0i32..1000, excess in -3i32..4
        ) {
            let counted = in_flight * IN_FLIGHT;
            let busy = counted.wrapping_add_signed(i64::from(threads + excess));
            prop_assert_eq!(excess_of(busy, threads), excess);
        }
    }
}
