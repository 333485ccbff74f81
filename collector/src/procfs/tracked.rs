//! One tracked process: its kept descriptors, and how its files become one sample.
//!
//! A thread that did not get on a CPU has done nothing. So for a process of one thread `schedstat` is read first, and
//! when neither its run time nor its count of slices moved since the last pass, everything that only running can
//! change (CPU, faults, IO, threads, its end) is as it was and is not read again.
//!
//! Two files are not read each time it ran, because `stat` and what they said before tell whether it is worth while:
//!
//! - `statm` is read when `stat` shows another size or resident set. `stat` is inexact by some pages for each CPU, and
//!   memory is taken from processes that do not run, so otherwise its turn comes.
//! - `io` is read in every pass as long as each reading brings news. When one brought none, its turn comes. (It is best
//!   read seldom anyway: it waits for an exec that is under way in the target, `exec_update_lock` in
//!   `do_io_accounting`.)
//!
//! A turn comes in the fourth pass, and never later than in the first pass after [`SKIPPED_NS`]. What is lost by all
//! this: a process that was woken and has waited for a CPU ever since shows as sleeping until it runs; memory is up to
//! four passes old, by no more than what `stat` does not show; the first storage traffic after a quiet time is counted
//! up to four passes late, and not at all when the process ends and is reaped before.

use std::fs::File;

use super::parse::io::Io;
use super::parse::schedstat::Schedstat;
use super::parse::stat::Stat;
use super::parse::statm::Statm;
use super::root::{Buffer, ProcessDirectory, ReadError, Root};
use crate::input::{Comm, Role, Rss, Sample, TaskState};
use crate::units::{CpuTime, HostFacts, NANOS_PER_TICK, ProcessKey, monotonic_ns};

/// Files of one process, in the order in which they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Stat,
    Schedstat,
    Statm,
    Io,
}

/// Descriptors that a process with kept files holds.
pub(super) const FILES: usize = 4;

const NAMES: [&str; FILES] = ["stat", "schedstat", "statm", "io"];

/// Passes from one reading of a file to the next, when nothing shows that it changed.
const PASSES: u8 = 4;

/// Time after which it is read whatever the number of passes was, ns: passes may be a minute apart. More than four
/// passes take at the usual interval of a second.
pub(super) const SKIPPED_NS: u64 = 4_500_000_000;

/// When a file is read again.
#[derive(Clone, Copy, Debug)]
struct Turn {
    passes: u8,
    by_ns: u64,
}

impl Turn {
    /// In the next pass.
    const NEXT: Self = Self { passes: 1, by_ns: u64::MAX };

    /// In so many passes.
    fn after(passes: u8, now_ns: u64) -> Self {
        Self { passes, by_ns: now_ns.saturating_add(SKIPPED_NS) }
    }

    /// Another pass; true if it is the one.
    fn comes(&mut self, now_ns: u64) -> bool {
        self.passes = self.passes.saturating_sub(1);
        self.passes == 0 || now_ns >= self.by_ns
    }
}

/// Open files of one process.
#[derive(Debug, Default)]
struct Handles {
    /// Held while files may still be opened.
    directory: Option<ProcessDirectory>,
    files: [Option<File>; FILES],
}

/// What remains known when a process did not run.
#[derive(Clone, Copy, Debug)]
struct Figures {
    stat: Stat,
    schedstat: Option<Schedstat>,
    io: Option<Io>,
    io_turn: Turn,
    /// It ran since `io` was read.
    io_owed: bool,
    statm: Option<Statm>,
    statm_turn: Turn,
}

impl Figures {
    /// The memory of the process is another than when this was read.
    fn moved(&self, now: &Stat) -> bool {
        (self.stat.rss, self.stat.vsize) != (now.rss, now.vsize)
    }
}

/// What a pass found.
#[expect(
    clippy::large_enum_variant,
    reason = "handed on at once; a box would be an allocation for each process"
)]
pub(super) enum Reading {
    /// Figures.
    Sample(Sample),
    /// All is as it was told last.
    Unchanged {
        /// When that was found, `CLOCK_MONOTONIC` ns.
        at_ns: u64,
    },
}

/// How far the end of a process has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not ended, as far as we know.
    Alive,
    /// A pass did not find it; the event of its end may still be under way.
    Missed,
    /// Its end was told; it was not reaped.
    Ended,
}

/// A process that is followed.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) key: ProcessKey,
    /// Pool of the workers it forks, for a master.
    pub(super) children: Option<u32>,
    is_worker: bool,
    pub(super) phase: Phase,
    /// Name as last read.
    pub(super) comm: Option<Comm>,
    /// Its main thread ended with this wait status, while others went on.
    pub(super) main_ended: Option<u32>,
    /// Descriptors that are kept. `None` before the first pass (most children of a busy master end before it comes to
    /// them) and for want of descriptors: its files are then opened, read and closed in each pass.
    kept: Option<Handles>,
    /// Files that we may not read, or that do not exist in this kernel. It stays so: a figure that came and went
    /// would be counted twice.
    refused: [bool; FILES],
    /// It has or had more than one thread: `schedstat` does not tell all.
    threaded: bool,
    last: Option<Figures>,
    /// The last figures were told since it got its last role.
    told: bool,
    /// CPU as read after its end.
    pub(super) final_cpu: Option<CpuTime>,
    /// Total of the last sample: the figure never goes back.
    cpu_total_ns: u64,
    /// We may read what only a tracer may, the exit code for one.
    may_trace: bool,
}

/// How many descriptors may be opened to be kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub(super) kept: usize,
    pub(super) limit: usize,
}

impl Tracked {
    pub(super) fn new(key: ProcessKey) -> Self {
        Self {
            key,
            children: None,
            is_worker: false,
            phase: Phase::Alive,
            comm: None,
            main_ended: None,
            kept: None,
            refused: [false; FILES],
            threaded: false,
            last: None,
            told: false,
            final_cpu: None,
            cpu_total_ns: 0,
            may_trace: false,
        }
    }

    /// Adds a role to those it has.
    pub(super) fn add(&mut self, role: Role, pool: u32) {
        self.told = false;
        match role {
            Role::Master => self.children = Some(pool),
            Role::Worker => self.is_worker = true,
        }
    }

    /// Takes a role; true if none is left.
    pub(super) fn take(&mut self, role: Role) -> bool {
        match role {
            Role::Master => self.children = None,
            Role::Worker => self.is_worker = false,
        }
        self.children.is_none() && !self.is_worker
    }

    /// Descriptors that it holds.
    pub(super) fn descriptors(&self) -> usize {
        self.kept.as_ref().map_or(0, Handles::count)
    }

    /// Storage traffic cannot be read.
    pub(super) fn io_refused(&self) -> bool {
        self.refused[Which::Io as usize]
    }

    /// Reads its figures, fully or as far as they can have changed.
    pub(super) fn sample(
        &mut self,
        root: &Root,
        host: HostFacts,
        allowance: &mut Allowance,
        buffer: &mut Buffer,
    ) -> Result<Reading, ReadError> {
        let mut handles = self.reach(root, allowance, buffer)?;
        let result = self.read(&mut handles, host, buffer);
        self.put_back(handles, allowance);
        result
    }

    /// Its `stat` once more, for the last figures of one that ended.
    pub(super) fn last_stat(
        &mut self,
        root: &Root,
        buffer: &mut Buffer,
    ) -> Result<(Stat, CpuTime), ReadError> {
        let kept = self.kept.take();
        let is_kept = kept.is_some();
        let mut handles = match kept {
            Some(handles) => handles,
            None => self.open_checked(root, buffer)?,
        };
        let result = handles.stat(buffer).and_then(|stat| {
            let schedstat = self.schedstat(&mut handles, buffer)?;
            Ok((stat, self.cpu(&stat, schedstat)))
        });
        self.kept = is_kept.then_some(handles);
        result
    }

    /// Closes what a process that ended does not need any more.
    pub(super) fn ended(&mut self, cpu: Option<CpuTime>, allowance: &mut Allowance) {
        self.phase = Phase::Ended;
        self.final_cpu = cpu;
        if let Some(handles) = &mut self.kept {
            for which in [Which::Statm, Which::Io] {
                handles.close(which, allowance);
                self.refused[which as usize] = true;
            }
        }
    }

    /// `stat` as last read in a pass.
    pub(super) fn last_read(&self) -> Option<Stat> {
        self.last.map(|figures| figures.stat)
    }

    /// CPU as last read; `None` before the first reading.
    pub(super) fn cpu_so_far(&self) -> Option<CpuTime> {
        let figures = self.last?;
        Some(CpuTime::from_total(self.cpu_total_ns, figures.stat.utime, figures.stat.stime))
    }

    /// The wait status that `stat` shows, if it does. Without the right it shows 0 as for a success.
    pub(super) fn wait_status(&self, stat: &Stat) -> Option<u32> {
        match stat.exit_code {
            Some(0) if !self.may_trace => None,
            code => code,
        }
    }

    fn reach(
        &mut self,
        root: &Root,
        allowance: &mut Allowance,
        buffer: &mut Buffer,
    ) -> Result<Handles, ReadError> {
        if let Some(handles) = self.kept.take() {
            return Ok(handles);
        }
        let mut handles = self.open_checked(root, buffer)?;
        if allowance.kept + FILES <= allowance.limit && self.open_all(&mut handles).is_ok() {
            handles.directory = None;
            allowance.kept += handles.count();
        }
        Ok(handles)
    }

    /// Keeps what is to be kept; what was opened for one pass closes here.
    fn put_back(&mut self, mut handles: Handles, allowance: &mut Allowance) {
        if handles.directory.is_some() {
            return;
        }
        for which in [Which::Schedstat, Which::Statm, Which::Io] {
            if self.refused[which as usize] {
                handles.close(which, allowance);
            }
        }
        self.kept = Some(handles);
    }

    /// The directory of the process that is meant, its `stat` opened.
    fn open_checked(&self, root: &Root, buffer: &mut Buffer) -> Result<Handles, ReadError> {
        let directory = root.process(self.key.pid)?;
        let mut handles = Handles { directory: Some(directory), files: Default::default() };
        let stat = handles.stat(buffer)?;
        if stat.starttime == self.key.start_ticks() { Ok(handles) } else { Err(ReadError::Gone) }
    }

    fn open_all(&mut self, handles: &mut Handles) -> Result<(), ReadError> {
        for which in [Which::Schedstat, Which::Statm, Which::Io] {
            match handles.open(which) {
                Ok(()) => {}
                // `stat` was there just now: this kernel lacks the file, or the process ended and its `stat` will
                // say so.
                Err(ReadError::Refused(_) | ReadError::Gone) => self.refused[which as usize] = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        handles: &mut Handles,
        host: HostFacts,
        buffer: &mut Buffer,
    ) -> Result<Reading, ReadError> {
        let at_ns = monotonic_ns();
        // Before `stat`: what runs between the two reads is then seen by the next pass.
        let schedstat = self.schedstat(handles, buffer)?;
        let rested = self.last.is_some_and(|last| {
            schedstat.is_some()
                && schedstat == last.schedstat
                && last.stat.num_threads == 1
                && last.stat.task_state() != TaskState::Zombie
        });
        let mut news = !rested || !self.told;
        let mut figures = match self.last {
            Some(last) if rested => last,
            before => {
                let stat = handles.stat(buffer)?;
                self.threaded |= stat.num_threads > 1;
                self.may_trace = stat.may_trace().unwrap_or(self.may_trace);
                match before {
                    Some(before) => {
                        let statm_turn = if before.moved(&stat) { Turn::NEXT } else { before.statm_turn };
                        Figures { stat, schedstat, io_owed: true, statm_turn, ..before }
                    }
                    None => Figures {
                        stat,
                        schedstat,
                        io: None,
                        io_turn: Turn::NEXT,
                        io_owed: true,
                        statm: None,
                        statm_turn: Turn::NEXT,
                    },
                }
            }
        };
        // Processes that were found together take turns.
        let spread = 1 + (self.key.pid % u32::from(PASSES)) as u8;
        // The last figure of one that ended is the whole of it.
        let last = figures.stat.task_state() == TaskState::Zombie;
        if figures.io_owed && (figures.io_turn.comes(at_ns) || last) {
            let io = self.optional(handles, Which::Io, buffer, |text| Io::parse(text).map(Some))?;
            let passes = match figures.io {
                Some(before) if io == Some(before) => PASSES,
                Some(_) => 1,
                None => spread,
            };
            news |= io != figures.io;
            (figures.io, figures.io_turn, figures.io_owed) = (io, Turn::after(passes, at_ns), false);
        }
        if figures.stat.vsize == 0 {
            figures.statm = None;
        } else if figures.statm_turn.comes(at_ns) {
            let statm = self.optional(handles, Which::Statm, buffer, |text| Statm::parse(text).map(Some))?;
            let passes = if self.last.is_some() { PASSES } else { spread };
            news |= statm != figures.statm;
            (figures.statm, figures.statm_turn) = (statm, Turn::after(passes, at_ns));
        }
        self.last = Some(figures);
        self.told = true;
        if !news {
            return Ok(Reading::Unchanged { at_ns });
        }
        let stat = &figures.stat;
        let cpu = self.cpu(stat, schedstat);
        Ok(Reading::Sample(Sample {
            process: self.key,
            cpu,
            rss: rss(stat, figures.statm, host.page_size),
            threads: stat.num_threads,
            minor_faults: stat.minflt,
            major_faults: stat.majflt,
            voluntary_switches: None,
            involuntary_switches: None,
            // Of the main thread only, so it says nothing of a process that ever had others.
            run_delay_ns: schedstat.filter(|_| !self.threaded).map(|s| s.delay_ns),
            read_bytes: figures.io.map(|io| io.read_bytes),
            written_bytes: figures.io.map(|io| io.write_bytes),
            state: stat.task_state(),
            at_ns,
        }))
    }

    /// Both figures are lower bounds of the truth: `stat` counts all threads, rounded down to ticks (each part by
    /// less than one), `schedstat` counts the main thread exactly. So the larger is nearer, exact for a process that
    /// never had a second thread, at most two ticks short otherwise; and it cannot go back when threads come and go.
    fn cpu(&mut self, stat: &Stat, schedstat: Option<Schedstat>) -> CpuTime {
        let ticks = stat.utime.saturating_add(stat.stime).saturating_mul(NANOS_PER_TICK);
        let main = schedstat.map_or(0, |s| s.run_ns);
        self.cpu_total_ns = self.cpu_total_ns.max(ticks).max(main);
        CpuTime::from_total(self.cpu_total_ns, stat.utime, stat.stime)
    }

    fn schedstat(
        &mut self,
        handles: &mut Handles,
        buffer: &mut Buffer,
    ) -> Result<Option<Schedstat>, ReadError> {
        self.optional(handles, Which::Schedstat, buffer, Schedstat::parse)
    }

    /// Reads a file that need not be there. That it is refused is remembered.
    fn optional<T>(
        &mut self,
        handles: &mut Handles,
        which: Which,
        buffer: &mut Buffer,
        parse: impl FnOnce(&[u8]) -> Result<Option<T>, super::parse::ParseError>,
    ) -> Result<Option<T>, ReadError> {
        if self.refused[which as usize] {
            return Ok(None);
        }
        match handles.read(which, buffer).and_then(|text| Ok(parse(text)?)) {
            Ok(parsed) => Ok(parsed),
            Err(ReadError::Refused(_)) => {
                self.refused[which as usize] = true;
                Ok(None)
            }
            // Gone, or this kernel has no such file: `stat` tells which.
            Err(ReadError::Gone) => {
                handles.stat(buffer)?;
                self.refused[which as usize] = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Handles {
    fn count(&self) -> usize {
        self.files.iter().flatten().count()
    }

    fn close(&mut self, which: Which, allowance: &mut Allowance) {
        if self.files[which as usize].take().is_some() {
            allowance.kept = allowance.kept.saturating_sub(1);
        }
    }

    fn open(&mut self, which: Which) -> Result<(), ReadError> {
        let place = &mut self.files[which as usize];
        if place.is_none() {
            let directory = self.directory.as_ref().ok_or(ReadError::Gone)?;
            *place = Some(directory.file(NAMES[which as usize])?);
        }
        Ok(())
    }

    fn read<'b>(&mut self, which: Which, buffer: &'b mut Buffer) -> Result<&'b [u8], ReadError> {
        self.open(which)?;
        match &self.files[which as usize] {
            Some(file) => buffer.read(file),
            None => Err(ReadError::Gone),
        }
    }

    fn stat(&mut self, buffer: &mut Buffer) -> Result<Stat, ReadError> {
        Ok(Stat::parse(self.read(Which::Stat, buffer)?)?)
    }
}

fn rss(stat: &Stat, statm: Option<Statm>, page_size: u64) -> Option<Rss> {
    if stat.vsize == 0 {
        return None;
    }
    let bytes = |pages: u64| pages.saturating_mul(page_size);
    let mut rss = Rss {
        total_bytes: bytes(stat.rss),
        file_bytes: None,
        anonymous_bytes: None,
        shmem_bytes: None,
        swap_bytes: None,
    };
    if let Some(statm) = statm {
        // All zeros: it gave up its address space since `stat` was read.
        if statm.size == 0 {
            return None;
        }
        rss.total_bytes = bytes(statm.resident);
        rss.anonymous_bytes = Some(bytes(statm.resident.saturating_sub(statm.shared)));
    }
    Some(rss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: u64 = 10_000_000;

    fn stat(utime: u64, stime: u64) -> Stat {
        let text = format!("1 (a) S 1 1 1 0 -1 0 0 0 0 0 {utime} {stime} 0 0 20 0 1 0 7 4096 1 0 4096");
        Stat::parse(text.as_bytes()).expect("well formed")
    }

    fn tracked() -> Tracked {
        Tracked::new(ProcessKey::from_ticks(1, 7))
    }

    proptest! {
        /// A process of two threads, as the kernel would print it: never back, never above the truth, at most two
        /// ticks below it.
        #[test]
        fn cpu_is_near_the_truth_and_never_goes_back(
            steps in prop::collection::vec((0..50 * TICK, 0..50 * TICK, 0u64..=100), 1..20),
        ) {
            let mut tracked = tracked();
            let (mut main, mut others, mut before) = (0u64, 0u64, 0u64);
            for (by_main, by_others, user_percent) in steps {
                main += by_main;
                others += by_others;
                let truth = main + others;
                let user = truth / 100 * user_percent;
                let stat = stat(user / TICK, (truth - user) / TICK);
                let schedstat = Some(Schedstat { run_ns: main, delay_ns: 0, slices: 1 });
                let told = tracked.cpu(&stat, schedstat).total_ns();
                prop_assert!(told <= truth && truth - told < 2 * TICK, "{told} for {truth}");
                prop_assert!(told >= before);
                before = told;
            }
        }

        #[test]
        fn any_figures_never_panic(utime in any::<u64>(), stime in any::<u64>(), run_ns in any::<u64>()) {
            let schedstat = Some(Schedstat { run_ns, delay_ns: 0, slices: 1 });
            let _ = tracked().cpu(&stat(utime, stime), schedstat);
        }
    }

    #[test]
    fn a_turn_comes_by_passes_or_by_time() {
        const SECOND: u64 = 1_000_000_000;
        let passes = |between_ns: u64| {
            let mut turn = Turn::after(PASSES, 0);
            (1..).find(|pass| turn.comes(pass * between_ns))
        };
        assert_eq!(passes(SECOND / 10), Some(4));
        assert_eq!(passes(SECOND), Some(4));
        assert_eq!(passes(2 * SECOND), Some(3), "the first after 4.5 s");
        assert_eq!(passes(60 * SECOND), Some(1));
        let mut next = Turn::NEXT;
        assert!(next.comes(0));
    }

    #[test]
    fn an_exec_by_another_thread_does_not_set_the_figure_back() {
        let mut tracked = tracked();
        let schedstat = |run_ns| Some(Schedstat { run_ns, delay_ns: 0, slices: 1 });
        assert_eq!(tracked.cpu(&stat(0, 0), schedstat(9_999_999)).total_ns(), 9_999_999);
        assert_eq!(tracked.cpu(&stat(0, 0), schedstat(1000)).total_ns(), 9_999_999);
    }

    #[test]
    fn a_zero_status_is_believed_only_with_the_right_to_see_it() {
        let mut tracked = tracked();
        let ended = |exit_code| Stat { exit_code, ..stat(0, 0) };
        assert_eq!(tracked.wait_status(&ended(Some(0))), None);
        assert_eq!(tracked.wait_status(&ended(Some(9))), Some(9));
        tracked.may_trace = true;
        assert_eq!(tracked.wait_status(&ended(Some(0))), Some(0));
        assert_eq!(tracked.wait_status(&ended(None)), None);
    }
}
