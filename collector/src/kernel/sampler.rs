//! The sampling programs: loaded when somebody asks for a profile, with maps of their own, and attached only while
//! somebody does.
//!
//! Knows nothing of files and names: address spaces, ranges of code and rules are what the caller says they are, stacks
//! are addresses.

use std::cell::Cell;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, RingBuf};
use aya::util::{nr_cpus, online_cpus};
use collector_ebpf::kfunc;
use collector_ebpf::sample::{
    Code, LEAST, MAX_CODE, MAX_FRAMES, MAX_ROWS, MAX_STACKS, MAX_TAILS, MAX_WORDS, READY, Sampled, Sampling,
    Space, Stack, Tail,
};
use collector_ebpf::schedule::KINDS;
use collector_ebpf::unwind::Row;
use collector_ebpf::{maps, programs};

use super::alone;
use super::load::{self, Constants, LoadError, OBJECT};
use super::names::Names;
use super::object::{Made, Object};
use super::shared::Shared;
use super::sys::{self, RunBy};
use super::threads::Threads;
use crate::units::{NANOS_PER_SECOND, monotonic_ns};

/// Rows for which there is room at most, 64 MiB.
const MOST_ROWS: usize = 8 << 20;

/// Loads samplers.
#[derive(Clone, Debug)]
pub struct Samplers(Arc<Parts>);

/// What samplers need of the watching programs.
pub(super) struct Parts {
    pub(super) constants: Constants,
    pub(super) kernel_functions: [Option<u32>; kfunc::NAMES.len()],
    /// `sched_switch` and `sched_wakeup`, with their BTF ids.
    pub(super) tracepoints: [(&'static str, Option<u32>); 2],
    /// The BTF id of the iterator over tasks.
    pub(super) task_iterator: Option<u32>,
    /// Maps of theirs, by name.
    pub(super) shared: Vec<(&'static str, OwnedFd)>,
    /// Sets of events of the clock that no sampler has, one event for each CPU: opened before rights are dropped.
    pub(super) events: Mutex<Vec<Vec<OwnedFd>>>,
}

/// Where tails are sampled all the time, stacks are looked at no more often than once in so many nanoseconds on each CPU, but for a
/// few at once: that is some 0.3 % of it at most, however often workers wait.
const WALKS_APART_NS: u64 = NANOS_PER_SECOND / 1000;

/// Rates that can be sampled at a time: two that are asked for, and one for all the time.
const EVENT_SETS: usize = 3;

/// Opens the events of the clocks of all CPUs, or says why not.
pub(super) fn open_events() -> (Vec<Vec<OwnedFd>>, Option<io::Error>) {
    // Until a sampler says otherwise.
    let set = |_| on_all_cpus(|cpu| sys::cpu_clock_open(cpu, NANOS_PER_SECOND));
    match (0..EVENT_SETS).map(set).collect() {
        Ok(sets) => (sets, None),
        Err(error) => (Vec::new(), Some(error)),
    }
}

fn on_all_cpus(open: impl Fn(u32) -> io::Result<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    online_cpus().map_err(|(_, error)| error)?.into_iter().map(open).collect()
}

/// The events of a sampler, one for each CPU. Dropped, those of the clock are for the next one.
struct Taken {
    parts: Arc<Parts>,
    what: What,
    events: Vec<OwnedFd>,
}

impl Taken {
    fn of(parts: &Arc<Parts>, what: What) -> Result<Self, LoadError> {
        let events = match what {
            What::OnCpu { .. } => parts.free_events().pop().ok_or(LoadError::NoEventsLeft)?,
            // Opened now and closed after the capture: while there is one, however little it does, CPUs that are to be left alone
            // (`nohz_full`) have their ticks, and who asked for a counter for itself before has it.
            What::Cycles { hz } => on_all_cpus(|cpu| sys::cycles_open(cpu, hz))
                .map_err(|error| LoadError::of_cycles(error, hz))?,
            What::OffCpu { .. } | What::Tails => Vec::new(),
        };
        Ok(Self { parts: Arc::clone(parts), what, events })
    }

    fn iter(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.events.iter().map(AsFd::as_fd)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if matches!(self.what, What::OnCpu { .. }) {
            self.parts.free_events().push(std::mem::take(&mut self.events));
        }
    }
}

impl Parts {
    fn free_events(&self) -> MutexGuard<'_, Vec<Vec<OwnedFd>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Maps of the watching programs that the sampling programs read.
pub(super) const SHARED: [&str; 4] = [maps::TAGS, maps::SLOTS, maps::TIMES, maps::CONTROL];

impl Samplers {
    pub(super) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Loads one of each kind, and lets go of it: whether the kernel takes them.
    pub fn try_all(&self) -> Result<(), LoadError> {
        let kinds = [What::OnCpu { period_ns: 1 }, What::OffCpu { least_ns: [0; KINDS] }];
        kinds.into_iter().try_for_each(|what| self.load(what, 0).map(drop))?;
        self.threads().map(drop)
    }

    /// Loads what names addresses in the kernel. 5.14+; without it names are looked for in another way.
    pub fn names(&self) -> Result<Names, LoadError> {
        let Parts { constants, kernel_functions, .. } = &*self.0;
        let made = |name: &str| {
            if name == maps::NAMED || name.starts_with('.') { Made::New(None) } else { Made::Not }
        };
        let mut object =
            Object::open(OBJECT, constants.globals(), &constants.offsets, kernel_functions, made)?;
        let program = object.load(programs::NAME_ADDRESSES, RunBy::Us)?;
        let named = object.take_map_data(maps::NAMED)?;
        drop(object);
        sys::let_go_of_pages(OBJECT);
        Names::new(program, named).map_err(LoadError::Shared)
    }

    /// Loads what tells where all threads of workers are.
    pub fn threads(&self) -> Result<Threads, LoadError> {
        let Parts { constants, kernel_functions, task_iterator, shared, .. } = &*self.0;
        let made = |name: &str| match shared.iter().find(|(shared, _)| *shared == name) {
            Some((_, map)) => Made::Given(map.as_fd()),
            None if name.starts_with('.') => Made::New(None),
            None => Made::Not,
        };
        let object = Object::open(OBJECT, constants.globals(), &constants.offsets, kernel_functions, made)?;
        let iterator = load::iterator(&object, programs::WORKER_THREADS, *task_iterator)?;
        drop(object);
        sys::let_go_of_pages(OBJECT);
        Ok(Threads::new(iterator))
    }

    /// Loads one with room for so many rows of rules, at least.
    pub fn load(&self, what: What, rows: usize) -> Result<Sampler, LoadError> {
        self.load_for(what, rows, false)
    }

    /// The same for one that samples this process and nobody else.
    pub fn load_for_own(&self, what: What, rows: usize) -> Result<Sampler, LoadError> {
        self.load_for(what, rows, true)
    }

    fn load_for(&self, what: What, rows: usize, own: bool) -> Result<Sampler, LoadError> {
        let Parts { constants, kernel_functions, tracepoints, shared, .. } = &*self.0;
        let rows = rows.clamp(MAX_ROWS, MOST_ROWS);
        let made = |name: &str| match shared.iter().find(|(shared, _)| *shared == name) {
            Some(_) if own && name == maps::TAGS => Made::New(None),
            Some(_) if own && name == maps::SLOTS => Made::New(Some(1)),
            Some((_, map)) => Made::Given(map.as_fd()),
            None if name == maps::MODULE_ROWS => Made::New(u32::try_from(rows).ok()),
            None if maps::OF_PROFILES.contains(&name) || name.starts_with('.') => Made::New(None),
            None => Made::Not,
        };
        let events = Taken::of(&self.0, what)?;
        let mut object =
            Object::open(OBJECT, constants.globals(), &constants.offsets, kernel_functions, made)?;
        let programs = match what {
            What::OnCpu { .. } | What::Cycles { .. } => {
                vec![(programs::ON_CPU, object.load(programs::ON_CPU, RunBy::PerfEvent)?)]
            }
            What::OffCpu { .. } | What::Tails => {
                let load = |(program, (name, target)): (&'static str, &(&'static str, Option<u32>))| {
                    let target = target.ok_or_else(|| LoadError::NoTarget(format!("tracepoint {name}")))?;
                    Ok((program, object.load(program, RunBy::Tracepoint(target))?))
                };
                let programs = [programs::OFF_CPU_SWITCH, programs::OFF_CPU_WAKEUP];
                programs.into_iter().zip(tracepoints).map(load).collect::<Result<_, LoadError>>()?
            }
        };
        if own {
            alone::tag_ourselves(object.take_map_data(maps::TAGS)?, object.take_map_data(maps::SLOTS)?)
                .map_err(LoadError::Shared)?;
        }
        let sampler = Sampler {
            what,
            programs,
            links: Vec::new(),
            events,
            sampling: Shared::map(object.take_map_data(maps::SAMPLING)?, 1).map_err(LoadError::Shared)?,
            stacks: Shared::map(object.take_map_data(maps::STACKS)?, MAX_STACKS)
                .map_err(LoadError::Shared)?,
            taken: Cell::new(0),
            words: Shared::map(object.take_map_data(maps::STACK_WORDS)?, MAX_WORDS)
                .map_err(LoadError::Shared)?,
            code: Shared::map(object.take_map_data(maps::CODE)?, MAX_CODE).map_err(LoadError::Shared)?,
            rows: Shared::map(object.take_map_data(maps::MODULE_ROWS)?, rows).map_err(LoadError::Shared)?,
            spaces: object.take_map_data(maps::SPACES)?,
            tails: Shared::map(object.take_map_data(maps::TAILS)?, MAX_TAILS).map_err(LoadError::Shared)?,
            tails_read: 0,
            least_of_pools: object.take_map_data(maps::LEAST_OF_POOLS)?,
            strangers: object.take_map(maps::STRANGERS, RingBuf::try_from)?,
            sampled: object.take_map_data(maps::SAMPLED)?,
            cpus: nr_cpus().map_err(|(_, error)| LoadError::Shared(error))?,
            // 0 is what an unknown space has.
            next_code: 1,
            next_row: 0,
            row_capacity: rows,
        };
        drop(object);
        sys::let_go_of_pages(OBJECT);
        match what {
            What::OnCpu { .. } | What::Cycles { .. } => {}
            What::OffCpu { least_ns } => {
                for (kind, least_ns) in least_ns.into_iter().enumerate() {
                    sampler.say(offset_of!(Sampling, least_ns) + kind * size_of::<u64>(), least_ns);
                }
            }
            What::Tails => {
                for kind in 0..LEAST {
                    sampler.say(offset_of!(Sampling, least_ns) + kind * size_of::<u64>(), u64::MAX);
                }
                sampler.say(offset_of!(Sampling, walks_apart_ns), WALKS_APART_NS);
            }
        }
        Ok(sampler)
    }
}

/// How often what runs is sampled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Period {
    /// From one event of a CPU to the next, ns; 0 of what has none.
    pub ns: u64,
    /// The time that a sample stands for, ns: more, as no event comes in the last part of the time in which there is this period.
    pub sample_ns: u64,
}

/// What is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// What runs on each CPU, once in so many nanoseconds.
    OnCpu {
        /// Not zero.
        period_ns: u64,
    },
    /// The same by the counter of cycles of each CPU: what is counted is how many there were.
    Cycles {
        /// Samples in a second, more or less, of a CPU that is busy. Not zero.
        hz: u32,
    },
    /// What waits, for as long as that at least.
    OffCpu {
        /// Nanoseconds, by kind of time ([`crate::input::TIME_KINDS`]): of being blocked for a reason, and of waiting for a CPU.
        least_ns: [u64; KINDS],
    },
    /// What waits for as long as those do that wait the longest: each wait that is as long as [`Sampler::set_least`] says for its
    /// pool, and none of pools that it was not said of. Not all stacks are looked at where there are very many.
    Tails,
}

impl What {
    /// What runs, by samples; not waits.
    pub fn runs(self) -> bool {
        matches!(self, Self::OnCpu { .. } | Self::Cycles { .. })
    }
}

/// Frames of a stack, the innermost first.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    /// Addresses in the kernel.
    pub kernel: &'a [u64],
    /// Addresses in the program.
    pub user: &'a [u64],
    /// Addresses of code of Python, and [`collector_ebpf::python::ENTRY`].
    pub python: &'a [u64],
}

/// What was counted since the sampler was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples and waits of workers that are nowhere.
    pub lost: u64,
    /// Of [`What::Tails`]: waits whose stack was not looked at, however long they were.
    pub passed_over: u64,
}

/// A loaded sampler. Dropping it is the end of all; its events are for the next one.
pub struct Sampler {
    what: What,
    programs: Vec<(&'static str, OwnedFd)>,
    /// What has them run.
    links: Vec<OwnedFd>,
    /// One for each CPU, if it is they that have the program run.
    events: Taken,
    sampling: Shared<Sampling>,
    stacks: Shared<Stack>,
    /// Places of these that were taken when they were last read.
    taken: Cell<usize>,
    words: Shared<u64>,
    code: Shared<Code>,
    rows: Shared<Row>,
    spaces: MapData,
    tails: Shared<Tail>,
    /// Of [`Sampling::tails`].
    tails_read: u32,
    least_of_pools: MapData,
    strangers: RingBuf<MapData>,
    sampled: MapData,
    cpus: usize,
    next_code: usize,
    next_row: usize,
    row_capacity: usize,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Sampler {
    /// Begins to sample; what runs with this period, if it is by the clock.
    pub fn start(&mut self, period: Period) -> Result<(), LoadError> {
        let started = self.attach(period);
        if started.is_err() {
            self.detach();
        }
        started
    }

    fn attach(&mut self, period: Period) -> Result<(), LoadError> {
        self.say(offset_of!(Sampling, sample_ns), period.sample_ns);
        self.say(offset_of!(Sampling, began_ns), monotonic_ns());
        for (name, program) in &self.programs {
            let refused = |error| LoadError::Attach { program: name, error };
            match self.what {
                What::OnCpu { .. } | What::Cycles { .. } => {
                    for event in self.events.iter() {
                        self.links.push(sys::perf_event_attach(program.as_fd(), event).map_err(refused)?);
                        if matches!(self.what, What::OnCpu { .. }) {
                            sys::perf_event_set_period(event, period.ns).map_err(refused)?;
                        }
                        sys::perf_event_enable(event, true).map_err(refused)?;
                    }
                    if !self.has_counted().map_err(refused)? {
                        return Err(LoadError::CountersTaken);
                    }
                }
                What::OffCpu { .. } | What::Tails => {
                    self.links.push(sys::tracepoint_attach(program.as_fd()).map_err(refused)?)
                }
            }
        }
        Ok(())
    }

    /// Ends sampling. What was counted stays.
    pub fn stop(&mut self) {
        self.detach();
        sys::wait_for_running_programs();
    }

    fn detach(&mut self) {
        for event in self.events.iter() {
            if let Err(error) = sys::perf_event_enable(event, false) {
                tracing::debug!(%error, "an event goes on for nobody");
            }
        }
        self.links.clear();
    }

    /// Tells the programs a number, in a field of 64 bits at this offset.
    fn say(&self, field: usize, number: u64) {
        if let Some(record) = self.sampling.at(0) {
            let field = record.wrapping_byte_add(field).cast::<u64>();
            // SAFETY: a field inside the mapping, aligned, as long as `self`; the programs only read it.
            unsafe { AtomicU64::from_ptr(field) }.store(number, Ordering::Relaxed);
        }
    }

    /// Goes on with another period, on all CPUs, each of which is interrupted for it: a worker may have any of them for itself, and
    /// be in step.
    pub fn change_period(&self, period: Period) -> io::Result<()> {
        self.say(offset_of!(Sampling, sample_ns), period.sample_ns);
        let mut refused = None;
        // One CPU that refuses is no reason for the others to go by the last period.
        for event in self.events.iter() {
            refused = sys::perf_event_set_period(event, period.ns).err().or(refused);
        }
        refused.map_or(Ok(()), Err)
    }

    /// Each CPU has had its counter of cycles since it was started, if that is what it is sampled by.
    pub fn has_counted(&self) -> io::Result<bool> {
        if !matches!(self.what, What::Cycles { .. }) {
            return Ok(true);
        }
        self.events.iter().try_fold(true, |all, event| Ok(all && sys::perf_event_counts(event)?))
    }

    /// What was counted.
    pub fn counts(&self) -> io::Result<Counts> {
        let sums: [u64; Sampled::COUNT] = sys::per_cpu_sums(self.sampled.fd().as_fd(), self.cpus)?;
        let of = |counter: u32| sums.get(counter as usize).copied().unwrap_or(0);
        Ok(Counts {
            lost: of(Sampled::NO_PLACE) + of(Sampled::UNSEEN),
            passed_over: of(Sampled::PASSED_OVER),
        })
    }

    /// It has begun, and has not been stopped.
    pub fn is_started(&self) -> bool {
        !self.links.is_empty()
    }

    /// Not much of the room for stacks was taken when they were last read: each may be in one of a few places, and when half of all are
    /// taken one in three hundred finds none (in a simulation; none in a million when a quarter is).
    pub fn has_room_for_stacks(&self) -> bool {
        let words = self.sampling.get(0).map_or(0, |sampling| sampling.words as usize);
        words < MAX_WORDS / 2 && self.taken.get() < MAX_STACKS / 4
    }

    /// Not much of the room for code is taken.
    pub fn has_room_for_code(&self) -> bool {
        self.next_code < MAX_CODE / 2
    }

    /// Forgets all stacks, of a sampler that is not started.
    pub fn clear(&mut self) {
        for index in 0..MAX_STACKS {
            if self.is_taken(index) {
                self.stacks.set(index, Stack::default());
            }
        }
        if let Some(record) = self.sampling.at(0) {
            let words = record.wrapping_byte_add(offset_of!(Sampling, words)).cast::<u32>();
            // SAFETY: a field inside the mapping, aligned, as long as `self`; no program runs.
            unsafe { AtomicU32::from_ptr(words) }.store(0, Ordering::Relaxed);
        }
        self.taken.set(0);
    }

    /// Adds the rules of a module, ascending. `None` if there is no room for them.
    pub fn add_rows(&mut self, rows: &[Row]) -> Option<u32> {
        let first = self.next_row;
        if rows.len() > self.row_capacity - first {
            return None;
        }
        for (index, row) in rows.iter().enumerate() {
            self.rows.set(first + index, *row);
        }
        self.next_row += rows.len();
        u32::try_from(first).ok()
    }

    /// Adds the code of an address space, ascending. `None` if there is no room for it.
    pub fn add_code(&mut self, code: &[Code]) -> Option<u32> {
        let first = self.next_code;
        if code.len() > MAX_CODE - first {
            return None;
        }
        for (index, code) in code.iter().enumerate() {
            self.code.set(first + index, *code);
        }
        self.next_code += code.len();
        u32::try_from(first).ok()
    }

    /// Says what the address space of a process is.
    pub fn set_space(&self, pid: u32, space: Space) -> io::Result<()> {
        sys::hash_set(self.spaces.fd().as_fd(), pid, &space)
    }

    /// Says how long a wait of a pool is that is told at least, ns, by kind of time. `u64::MAX`: none of this kind is.
    pub fn set_least(&self, pool: u32, least_ns: &[u64; KINDS]) -> io::Result<()> {
        let mut padded = [u64::MAX; LEAST];
        padded[..KINDS].copy_from_slice(least_ns);
        sys::hash_set(self.least_of_pools.fd().as_fd(), pool, &padded)
    }

    /// Calls with the waits that were told since the last call and where their stack is in the table. Returns how many others there
    /// were, which are lost: they were more than there is room for, or one was just being written.
    pub fn tails(&mut self, mut tell: impl FnMut(Tail)) -> u64 {
        let Some(sampling) = self.sampling.get(0) else { return 0 };
        let new = sampling.tails.wrapping_sub(self.tails_read);
        let kept = new.min(MAX_TAILS as u32);
        let mut lost = u64::from(new - kept);
        for number in (0..kept).rev().map(|back| sampling.tails.wrapping_sub(back)) {
            match self.tails.get(number.wrapping_sub(1) as usize % MAX_TAILS) {
                Some(tail) if tail.number == number => tell(tail),
                _ => lost += 1,
            }
        }
        self.tails_read = sampling.tails;
        lost
    }

    /// Processes that were met whose address space is not known, since the last call; each once.
    pub fn strangers(&mut self) -> Vec<u32> {
        let mut pids = Vec::new();
        while let Some(record) = self.strangers.next() {
            pids.extend((*record).try_into().ok().map(u32::from_ne_bytes));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Has the next one told at once: what this returns is readable then.
    pub fn await_strangers(&self) -> BorrowedFd<'_> {
        if let Some(record) = self.sampling.at(0) {
            let waits = record.wrapping_byte_add(offset_of!(Sampling, reader_waits)).cast::<u32>();
            // SAFETY: a field inside the mapping, aligned, as long as `self`; programs reset it.
            unsafe { AtomicU32::from_ptr(waits) }.store(1, Ordering::SeqCst);
        }
        self.strangers.as_fd()
    }

    /// A place for a stack is not free; what is there may not be all there yet. Most are free, and a copy of each was most of
    /// what reading took.
    fn is_taken(&self, index: usize) -> bool {
        self.stacks.at(index).is_some_and(|stack| {
            let hash = stack.wrapping_byte_add(offset_of!(Stack, hash)).cast::<u64>();
            // SAFETY: a field inside the mapping, aligned, as long as `self`; the programs set it atomically.
            unsafe { AtomicU64::from_ptr(hash) }.load(Ordering::Relaxed) != 0
        })
    }

    /// Calls with each stack and its frames.
    pub fn read(&self, mut tell: impl FnMut(&Stack, Frames<'_>)) {
        self.read_some(|_| true, |_, stack, frames| tell(stack, frames));
    }

    /// Calls with the stacks in these places of the table, each with its place and its frames.
    pub fn read_some(&self, is_wanted: impl Fn(u32) -> bool, mut tell: impl FnMut(u32, &Stack, Frames<'_>)) {
        let mut addresses = Vec::new();
        let mut taken = 0;
        for place in (0..MAX_STACKS as u32).filter(|place| self.is_taken(*place as usize)) {
            let stack = self.stacks.get(place as usize).filter(|stack| stack.flags & READY != 0);
            taken += usize::from(stack.is_some());
            let Some(stack) = stack.filter(|_| is_wanted(place)) else { continue };
            let (kernel, user) = (usize::from(stack.kernel_frames), usize::from(stack.user_frames));
            let python = (stack.python_frames as usize).min(MAX_FRAMES);
            let first = stack.first_word as usize;
            addresses.clear();
            addresses.extend((first..first + kernel + user + python).filter_map(|word| self.words.get(word)));
            let (kernel, others) = addresses.split_at(kernel.min(addresses.len()));
            let (user, python) = others.split_at(user.min(others.len()));
            tell(place, &stack, Frames { kernel, user, python });
        }
        self.taken.set(taken);
    }
}
