//! What the scheduler probes have counted, read from the arrays that they write.

mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use aya::maps::MapData;
use collector_ebpf::limits::{MAX_CHUNKS, MAX_SLOTS, MAX_WATERFALLS, THREAD_SETS};
use collector_ebpf::request::ABORTED;
use collector_ebpf::schedule::{
    CHUNK_WORDS, Chunk, DIRECTORIES, FRESH, IN_FLIGHT, KINDS, LET_GO, ON_CPU, ON_CPU_REQUEST, REQUEST,
    THREAD_BUSY, Thread, ThreadSet, Times, WAYS, measure_and_row_of, shift_of,
};

use super::free_list::FreeList;
use super::load::Attached;
use super::requests::RequestTable;
use super::shared::Shared;
use super::sys;
use crate::input::{Interval, ScheduleReading};
use crate::units::monotonic_ns;

/// A worker's threads change what they do while we read; after so many attempts the figures stay as they were.
const ATTEMPTS: usize = 16;

/// Looks who is followed that readings between two rounds may ask for; each goes through all places there are.
const LOOKS: usize = 16;

/// After this time a program has ended that ran when an entry was taken from it, ns.
const PROGRAMS_END_NS: u64 = 20_000;

/// A scheduler probe. It runs while it has a link.
pub(super) struct Probe {
    pub(super) name: &'static str,
    pub(super) program: OwnedFd,
    pub(super) link: Option<OwnedFd>,
}

/// The programs that follow threads.
pub(super) struct Scheduler {
    pub(super) probes: Vec<Probe>,
    /// Iterates over all tasks, and begins to follow those that are not followed yet.
    pub(super) follow: Attached,
}

impl Scheduler {
    /// Begins to follow who is tracked and not followed. True if somebody moved meanwhile and is to be looked at once
    /// more.
    pub(super) fn follow_all(&self) -> io::Result<bool> {
        let mut iterator = sys::iterator_open(self.follow.link.as_fd())?;
        let mut again = false;
        // To its end, which is where the last task is.
        loop {
            match iterator.read(&mut [0; 256]) {
                Ok(0) => return Ok(again),
                Ok(_) => again = true,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The arrays of the scheduler probes.
pub(super) struct ScheduleTable {
    threads: Shared<ThreadSet>,
    times: Shared<Times>,
    chunks: Shared<Chunk>,
    free_chunks: FreeList<MAX_CHUNKS>,
    requests: RequestTable,
    /// Slots that had a place in that table when they were last read.
    serving: BTreeSet<u32>,
    /// Slots of workers that are to be followed otherwise than they were, and what their pool wants now, until all that is
    /// kept of them says so.
    rewished: BTreeMap<u32, u32>,
    /// Slots with another number of threads than at the look before: what a thread in a lock waits for depends on whether it
    /// is alone.
    regrouped: BTreeSet<u32>,
    /// Slot and index of each thread that was followed at the last look, sorted.
    followed: Vec<(u32, u32)>,
    /// [`Control::follow_changes`](collector_ebpf::slot::Control::follow_changes) before the last look; `None` before the
    /// first.
    looked_at: Option<u32>,
    /// Slots that had threads at the last look but one, and none at the last.
    left: Vec<u32>,
    /// Looks between two rounds that readings may ask for, when threads have come or gone.
    looks_left: usize,
    /// By slot, as far as any was read.
    seen: Vec<Seen>,
}

/// What was seen of a slot when it was last read.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    /// What its threads were doing: if it is the same now, nothing has ended since.
    signature: u64,
    /// [`Times::lived_ns`]: if it is the same, no thread has come and gone either.
    lived_ns: u64,
    /// Requests that have ended, of all outcomes: they can end while its threads do not move.
    requests: u32,
    /// Bytes received and sent: so can this change.
    bytes: u64,
}

impl Seen {
    fn of(signature: u64, times: &Times) -> Self {
        let requests = times.ended_requests().into_iter().fold(0, u32::wrapping_add);
        let bytes = times.received_bytes.wrapping_add(times.sent_bytes);
        Self { signature, lived_ns: times.lived_ns, requests, bytes }
    }
}

impl ScheduleTable {
    pub(super) fn new(
        threads: MapData,
        times: MapData,
        chunks: MapData,
        free_chunks: MapData,
        requests: RequestTable,
    ) -> io::Result<Self> {
        Ok(Self {
            threads: Shared::map(threads, THREAD_SETS)?,
            times: Shared::map(times, MAX_SLOTS + MAX_WATERFALLS)?,
            chunks: Shared::map(chunks, MAX_CHUNKS)?,
            free_chunks: FreeList::new(free_chunks)?,
            requests,
            serving: BTreeSet::new(),
            rewished: BTreeMap::new(),
            regrouped: BTreeSet::new(),
            followed: Vec::new(),
            looked_at: None,
            left: Vec::new(),
            looks_left: LOOKS,
            seen: Vec::new(),
        })
    }

    /// Adds the slots whose threads have moved since they were last read. `changes` tells whether it has to be looked
    /// who is followed; threads that come later are in the next look.
    pub(super) fn moved(&mut self, changes: u32, slots: &mut Vec<u32>) {
        if self.looked_at != Some(changes) {
            self.looked_at = Some(changes);
            self.look();
        }
        self.looks_left = LOOKS;
        self.apply_wishes();
        slots.append(&mut self.left);
        for threads in self.followed.chunk_by(same_slot) {
            let Some((slot, _)) = threads.first() else { continue };
            let before = self.seen.get(*slot as usize).map_or(0, |seen| seen.signature);
            if self.signature(threads, *slot) != Some(before) || self.serving.contains(slot) {
                slots.push(*slot);
            }
        }
    }

    fn look(&mut self) {
        let before = std::mem::take(&mut self.followed);
        for (set, first) in (0..THREAD_SETS).zip((0u32..).step_by(WAYS)) {
            let Some(set) = self.threads.get(set) else { break };
            let followed =
                set.threads.iter().zip(first..).filter(|(thread, _)| !matches!(thread.tid, 0 | LET_GO));
            self.followed.extend(followed.map(|(thread, index)| (Thread::slot_of(thread.place), index)));
        }
        self.followed.sort_unstable();
        self.threads.let_go_of_all_but(self.followed.iter().map(|(_, index)| *index as usize / WAYS));
        for threads in before.chunk_by(same_slot) {
            if let Some((slot, _)) = threads.first()
                && self.threads_of(*slot).is_empty()
            {
                self.left.push(*slot);
            }
        }
        for threads in self.followed.chunk_by(same_slot) {
            let Some((slot, _)) = threads.first() else { continue };
            let (before, now) = (threads_in(&before, *slot).len(), threads.len());
            if before != now && before.max(now) > 1 {
                self.regrouped.insert(*slot);
            }
        }
    }

    /// A slot has moved, for whoever asks, since it was last read.
    pub(super) fn unsee(&mut self, slot: u32) {
        if let Some(seen) = self.seen.get_mut(slot as usize) {
            *seen = Seen::default();
        }
    }

    /// Threads that were followed at the last look.
    pub(super) fn followed(&self) -> u64 {
        self.followed.len() as u64
    }

    /// Those of one slot.
    fn threads_of(&self, slot: u32) -> &[(u32, u32)] {
        threads_in(&self.followed, slot)
    }

    fn thread(&self, index: u32) -> Option<Thread> {
        let set = self.threads.at(index as usize / WAYS)?;
        // SAFETY: an element of the set; a pointer into the mapping.
        let thread = unsafe { &raw const (*set).threads[index as usize % WAYS] };
        // SAFETY: valid and aligned; the kernel may write at the same time, hence volatile; all fields are integers.
        Some(unsafe { thread.read_volatile() })
    }

    /// Of a slot, or a waterfall.
    pub(super) fn times(&self, slot: u32) -> Option<Times> {
        let times = self.times.at(usize::try_from(slot).ok()?)?;
        // SAFETY: a pointer into the mapping; as in `thread`.
        Some(unsafe { times.read_volatile() })
    }

    /// Reads one slot: time by kind until now, and, into `out.intervals`, what was recorded since the last reading.
    /// `Some(false)` if the threads would not hold still, `None` if they have not moved since, or none was ever followed. Adds
    /// to `on_cpu` what belongs to the waterfall of the slot's pool.
    pub(super) fn read(
        &mut self,
        slot: u32,
        now: fn() -> u64,
        out: &mut ScheduleReading,
        on_cpu: &mut OnCpuRequests,
    ) -> Option<bool> {
        let index = usize::try_from(slot).ok()?;
        let times = self.times(slot)?;
        let threads = self.threads_of(slot);
        if threads.is_empty() && times.lived_ns == 0 && times.followed == 0 {
            return None;
        }
        let now_seen = self.signature(threads, slot).map(|signature| Seen::of(signature, &times));
        if now_seen.is_some() && now_seen.as_ref() == self.seen.get(index) {
            return None;
        }
        on_cpu.discarded += self.take_on_cpu_discarded(slot);
        let attempts = |table: &Self, out: &mut ScheduleReading| {
            (0..ATTEMPTS).find_map(|_| table.read_times(table.threads_of(slot), slot, now, out))
        };
        let mut read = attempts(self, out);
        if read.is_none() && self.looks_left > 0 {
            // Threads have come since the last look.
            self.looks_left -= 1;
            self.look();
            read = attempts(self, out);
        }
        self.take(slot, &mut out.intervals);
        on_cpu.take(&mut out.intervals);
        let on_cpu_ns = self.word64(slot, offset_of!(Times, on_cpu_ns));
        on_cpu.duration_ns += on_cpu_ns.map_or(0, |sum| sum.swap(0, Ordering::Relaxed));
        if times.open > 0 {
            self.serving.insert(slot);
        } else {
            self.serving.remove(&slot);
        }
        if self.seen.len() <= index && index < MAX_SLOTS {
            self.seen.resize_with(index + 1, Seen::default);
        }
        *self.seen.get_mut(index)? = read.unwrap_or_default();
        Some(read.is_some())
    }

    /// What the threads of a slot are doing and since when, folded; `None` while one changes. Never 0.
    fn signature(&self, threads: &[(u32, u32)], slot: u32) -> Option<u64> {
        // FNV-1a, by words.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for (_, index) in threads {
            let thread = self.thread(*index)?;
            if !is_of(thread, slot) {
                continue;
            }
            if thread.since_ns == 0 {
                return None;
            }
            for word in [u64::from(thread.tid) << 32 | u64::from(thread.place), thread.since_ns] {
                hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        Some(hash | 1)
    }

    /// The programs set `since_ns` to 0, add the interval that ends to the slot's times, and then begin the next. So if
    /// a thread shows the same interval before and after its slot's times were read, the interval is not in them. That no
    /// thread is missing is known by their number.
    fn read_times(
        &self,
        threads: &[(u32, u32)],
        slot: u32,
        now: fn() -> u64,
        out: &mut ScheduleReading,
    ) -> Option<Seen> {
        let signature = self.signature(threads, slot)?;
        // Else one that came and went while the times were copied could be in some of them.
        let before = self.times(slot)?;
        let at_ns = now();
        let mut open_ns = [0u64; KINDS];
        out.open = [0; KINDS];
        out.living = 0;
        for (_, index) in threads {
            let thread = self.thread(*index)?;
            if !is_of(thread, slot) {
                continue;
            }
            out.living += 1;
            let kind = Thread::kind_of(thread.place) as usize;
            if let (Some(open), Some(count)) = (open_ns.get_mut(kind), out.open.get_mut(kind)) {
                // Wrapping: the interval may have begun after the clock was read.
                *open = open.wrapping_add(at_ns.wrapping_sub(thread.since_ns));
                *count += 1;
            }
        }
        fence(Ordering::Acquire);
        let times = self.times(slot)?;
        fence(Ordering::Acquire);
        if self.signature(threads, slot)? != signature
            || times.followed != out.living
            || times.lived_ns != before.lived_ns
            || (times.busy, times.work) != (before.busy, before.work)
        {
            return None;
        }
        out.at_ns = at_ns;
        out.lived_ns = times.lived_ns.wrapping_add(at_ns.wrapping_mul(u64::from(out.living)));
        out.discarded = std::array::from_fn(|measure| times.discarded[measure]);
        out.busy = Times::reasons_of(times.busy).cast_signed() > 0;
        out.work = times.work;
        if out.busy {
            let until_ns = if out.living > 0 { at_ns } else { times.work.end_ns };
            out.work.busy_ns = out.work.busy_ns.wrapping_add(until_ns);
        }
        out.requests = times.ended_requests();
        out.in_flight = Times::in_flight_of(times.busy);
        out.first_request_ns = times.first_request_ns;
        (out.received_bytes, out.sent_bytes) = (times.received_bytes, times.sent_bytes);
        for ((time, ended), open) in out.time_ns.iter_mut().zip(times.ended_ns).zip(open_ns) {
            *time = ended.wrapping_add(open);
        }
        Some(Seen::of(signature, &times))
    }

    /// Takes the counts of a slot's histograms. Nothing that is counted at the same moment is lost: it is in this
    /// taking or in the next.
    pub(super) fn take(&self, slot: u32, out: &mut Vec<Interval>) {
        let Some(times) = self.times(slot) else { return };
        for directory in 0..DIRECTORIES as u32 {
            let number = number_in(times.directories[(directory / 2) as usize], directory);
            for index in FRESH..CHUNK_WORDS {
                let Some(fresh) = self.word(number, index) else { break };
                if fresh.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let bits = fresh.swap(0, Ordering::AcqRel);
                let first = (index - FRESH) as u32 * 32;
                for entry in (first..).take(32).filter(|entry| bits >> (entry - first) & 1 != 0) {
                    self.take_chunk(number, directory, entry, out);
                }
            }
        }
    }

    fn take_chunk(&self, directory_number: u32, directory: u32, entry: u32, out: &mut Vec<Interval>) {
        let Some(numbers) = self.word(directory_number, (entry / 2) as usize) else { return };
        let number = number_in(numbers.load(Ordering::Relaxed), entry);
        let (measure, row) = measure_and_row_of(directory, entry);
        for within in 0..CHUNK_WORDS {
            let Some(count) = self.word(number, within) else { return };
            if count.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let count = count.swap(0, Ordering::Relaxed);
            let bucket = row as usize * CHUNK_WORDS + within;
            out.push(Interval { measure: measure as u8, bucket: bucket as u16, count });
        }
    }

    /// Makes values of requests whose thread did not leave its CPU, and that are in no histogram, such of all requests.
    /// Returns how many.
    fn take_on_cpu_discarded(&self, slot: u32) -> u32 {
        let discarded = |measure: u32| {
            self.word32(slot, offset_of!(Times, discarded) + measure as usize * size_of::<u32>())
        };
        let moved = (0..ABORTED).filter_map(|outcome| {
            let (from, to) = discarded(ON_CPU_REQUEST + outcome).zip(discarded(REQUEST + outcome))?;
            if from.load(Ordering::Relaxed) == 0 {
                return None;
            }
            let count = from.swap(0, Ordering::Relaxed);
            to.fetch_add(count, Ordering::Relaxed);
            Some(count)
        });
        moved.sum()
    }

    /// A word of a chunk. `None` for number 0.
    fn word(&self, number: u32, index: usize) -> Option<&AtomicU32> {
        let chunk = self.chunks.at(number.checked_sub(1)? as usize)?;
        // SAFETY: an element of the chunk; a pointer into the mapping.
        let word = unsafe { &raw mut (*chunk).words[index] };
        // SAFETY: mapped, aligned, as long as `self`; the programs change it by atomic instructions.
        Some(unsafe { AtomicU32::from_ptr(word) })
    }

    /// Stops to follow the threads of a worker that lives on, or of all. What they did until `now_ns` counts, or, without
    /// it, what they did before what they are said to be doing.
    ///
    /// A program that has found an entry goes on to write to it. So an entry is first made one that nobody finds and
    /// nobody gets, and free only when such programs have ended.
    ///
    /// Returns how many requests of theirs were in flight, of which it will not be known how long they took.
    pub(super) fn forget(&mut self, slot: Option<u32>, now_ns: Option<u64>) -> u64 {
        let its = |index: &usize| {
            let seen = self.thread(*index as u32)?;
            let wanted = !matches!(seen.tid, 0 | LET_GO)
                && slot.is_none_or(|slot| slot == Thread::slot_of(seen.place));
            let tid = self.tid(*index).filter(|_| wanted)?;
            tid.compare_exchange(seen.tid, LET_GO, Ordering::SeqCst, Ordering::Relaxed).ok()
        };
        let let_go: Vec<usize> = (0..THREAD_SETS * WAYS).filter(|index| its(index).is_some()).collect();
        self.look_no_more_at(slot);
        if let_go.is_empty() && self.serving.is_empty() {
            return 0;
        }
        wait_for_programs_to_end();
        for index in let_go {
            if let Some(thread) = self.thread(index as u32) {
                let now_ns = now_ns.unwrap_or(thread.since_ns);
                self.close(Thread::slot_of(thread.place), thread, now_ns.max(thread.since_ns));
            }
            if let Some(tid) = self.tid(index) {
                tid.store(0, Ordering::Release);
            }
        }
        let mut forgotten = 0;
        self.requests.forget(slot, |slot, in_flight| {
            forgotten += u64::from(in_flight);
            self.close_request(slot, in_flight, now_ns);
        });
        forgotten
    }

    /// The next look must not take the threads of a slot, or of all, for those of who has it then.
    fn look_no_more_at(&mut self, slot: Option<u32>) {
        let left = self.followed.extract_if(.., |(its, _)| slot.is_none_or(|slot| slot == *its));
        self.left.extend(left.map(|(slot, _)| slot));
        self.left.dedup();
    }

    /// A request is followed no more.
    fn close_request(&self, slot: u32, in_flight: bool, now_ns: Option<u64>) {
        self.word32(slot, offset_of!(Times, open)).map(|open| open.fetch_sub(1, Ordering::SeqCst));
        if in_flight
            && self.is_busy_no_more(slot, IN_FLIGHT)
            && let Some((busy_ns, now_ns)) = self.word64(slot, offset_of!(Times, work.busy_ns)).zip(now_ns)
        {
            busy_ns.fetch_add(now_ns, Ordering::Relaxed);
        }
    }

    /// One thing less keeps a slot's worker busy. True if it was the last one.
    fn is_busy_no_more(&self, slot: u32, less: u64) -> bool {
        let busy = self.word64(slot, offset_of!(Times, busy));
        busy.is_some_and(|busy| Times::reasons_of(busy.fetch_sub(less, Ordering::SeqCst)) == 1)
    }

    /// Requests with a place in the table.
    pub(super) fn open_requests(&self) -> u64 {
        if self.serving.is_empty() { 0 } else { self.requests.count() }
    }

    /// When the last thread of a slot ended that has requests in the table.
    pub(super) fn ended_serving(&self, slot: u32) -> Option<u64> {
        let times = self.times(slot).filter(|times| times.followed == 0 && times.open > 0)?;
        Some(times.work.end_ns)
    }

    /// The table of requests in progress, and whether there are any.
    pub(super) fn requests(&mut self) -> (&mut RequestTable, bool) {
        (&mut self.requests, !self.serving.is_empty())
    }

    fn word32(&self, slot: u32, offset: usize) -> Option<&AtomicU32> {
        // SAFETY: callers name a field of that type: mapped, aligned, as long as `self`; the programs change it by atomic
        // instructions.
        self.field(slot, offset).map(|field| unsafe { AtomicU32::from_ptr(field.cast()) })
    }

    fn word64(&self, slot: u32, offset: usize) -> Option<&AtomicU64> {
        // SAFETY: as above.
        self.field(slot, offset).map(|field| unsafe { AtomicU64::from_ptr(field.cast()) })
    }

    /// Whose an entry is.
    fn tid(&self, index: usize) -> Option<&AtomicU32> {
        let set = self.threads.at(index / WAYS)?;
        // SAFETY: an element of the set; a pointer into the mapping.
        let tid = unsafe { &raw mut (*set).threads[index % WAYS].tid };
        // SAFETY: mapped, aligned, as long as `self`; the programs change it by atomic instructions.
        Some(unsafe { AtomicU32::from_ptr(tid) })
    }

    /// Accounts for what a thread was doing when it was last followed.
    fn close(&self, slot: u32, thread: Thread, now_ns: u64) {
        let word32 = |offset: usize| self.word32(slot, offset);
        let word64 = |offset: usize| self.word64(slot, offset);
        let add = |offset: usize, ns: u64| {
            word64(offset).map(|word| word.fetch_add(ns, Ordering::Relaxed));
        };
        if let Some(end_ns) = word64(offset_of!(Times, work.end_ns)) {
            end_ns.store(now_ns, Ordering::Relaxed);
        }
        if thread.place & THREAD_BUSY != 0 && self.is_busy_no_more(slot, 1) {
            add(offset_of!(Times, work.busy_ns), now_ns);
        }
        add(offset_of!(Times, lived_ns), now_ns);
        let kind = Thread::kind_of(thread.place) as usize;
        if kind < KINDS && thread.since_ns != 0 {
            let open_ns = now_ns.saturating_sub(thread.since_ns);
            add(offset_of!(Times, ended_ns) + kind * size_of::<u64>(), open_ns);
        }
        word32(offset_of!(Times, followed)).map(|followed| followed.fetch_sub(1, Ordering::SeqCst));
    }

    /// A field of the times of a slot, by its offset in [`Times`].
    fn field(&self, slot: u32, offset: usize) -> Option<*mut u8> {
        Some(self.times.at(slot as usize)?.cast::<u8>().wrapping_add(offset))
    }

    /// Makes a slot ready for another worker. Its counts were taken; it keeps its chunks.
    pub(super) fn clear(&mut self, slot: u32, now_ns: u64) {
        if self.times(slot).is_some_and(|times| times.followed != 0) {
            // Let go of before all its threads have ended: they must not write to what is another's.
            self.forget(Some(slot), Some(now_ns));
        }
        self.look_no_more_at(Some(slot));
        self.rewished.remove(&slot);
        self.regrouped.remove(&slot);
        let Some(before) = self.times(slot) else { return };
        if before.open > 0 {
            self.requests.forget(Some(slot), |_, _| {});
        }
        self.serving.remove(&slot);
        self.times.set(slot as usize, Times { directories: before.directories, ..Times::default() });
        self.unsee(slot);
    }

    /// Makes a waterfall another pool's. It keeps its chunks.
    pub(super) fn clear_waterfall(&mut self, index: u32, ticket: u32) {
        self.take(index, &mut Vec::new());
        if let Some(Times { directories, .. }) = self.times(index) {
            self.times.set(index as usize, Times { directories, parks: ticket, ..Times::default() });
        }
    }

    /// Gives the chunks of a slot that has no worker back to all.
    pub(super) fn reclaim(&mut self, slot: u32) {
        let Some(mut times) = self.times(slot) else { return };
        let directories = std::mem::take(&mut times.directories);
        self.times.set(slot as usize, times);
        for number in directories.into_iter().flat_map(halves) {
            for index in 0..CHUNK_WORDS {
                let Some(word) = self.word(number, index) else { break };
                let word = word.swap(0, Ordering::AcqRel);
                if index < FRESH {
                    halves(word).into_iter().for_each(|number| self.give_back(number));
                }
            }
            self.give_back(number);
        }
    }

    fn give_back(&mut self, number: u32) {
        if let Some(index) = number.checked_sub(1) {
            self.free_chunks.give(index);
        }
    }
}

/// Requests whose thread did not leave its CPU: what they add to the waterfall of their pool.
#[derive(Debug, Default)]
pub(super) struct OnCpuRequests {
    pub(super) duration_ns: u64,
    /// Of these, their durations are in no histogram.
    pub(super) discarded: u32,
    /// Of the others, as values of [`ON_CPU`].
    pub(super) intervals: Vec<Interval>,
}

impl OnCpuRequests {
    /// Makes those in `intervals` ones of all requests.
    fn take(&mut self, intervals: &mut [Interval]) {
        for interval in intervals {
            if let Some(outcome) = u32::from(interval.measure).checked_sub(ON_CPU_REQUEST) {
                interval.measure = (REQUEST + outcome) as u8;
                self.intervals.push(Interval { measure: ON_CPU as u8, ..*interval });
            }
        }
    }
}

/// Of two threads that are followed, by slot and index.
fn same_slot((slot, _): &(u32, u32), (next, _): &(u32, u32)) -> bool {
    slot == next
}

/// Those of one slot, of threads in the order of slots.
fn threads_in(all: &[(u32, u32)], slot: u32) -> &[(u32, u32)] {
    let rest = &all[all.partition_point(|(other, _)| *other < slot)..];
    &rest[..rest.partition_point(|(other, _)| *other == slot)]
}

/// The entry is that of a thread of this slot.
fn is_of(thread: Thread, slot: u32) -> bool {
    !matches!(thread.tid, 0 | LET_GO) && Thread::slot_of(thread.place) == slot
}

/// Programs that had read an entry before have long ended after that: they run without interruption, for less than a
/// microsecond.
fn wait_for_programs_to_end() {
    let begin_ns = monotonic_ns();
    while monotonic_ns().saturating_sub(begin_ns) < PROGRAMS_END_NS {
        std::hint::spin_loop();
    }
    fence(Ordering::Acquire);
}

/// The chunk number at a place, in its word.
fn number_in(word: u32, place: u32) -> u32 {
    word >> shift_of(place) & 0xffff
}

/// The two chunk numbers in a word.
fn halves(word: u32) -> [u32; 2] {
    [word & 0xffff, word >> 16]
}

impl std::fmt::Debug for ScheduleTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScheduleTable").field("followed", &self.followed.len()).finish_non_exhaustive()
    }
}
