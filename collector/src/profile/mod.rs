//! Profiles: how often, or for how long, threads of workers were found at which stack; and where they all are at one moment.
//!
//! The types here are plain data, what [`crate::render`] turns into bytes; they know nothing of how it was gathered.
//! [`modules`] says what code processes have mapped, [`symbols`] what is at an address of it.

mod debug_file;
mod elf;
pub mod fold;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub mod heap;
mod image;
pub mod merge;
pub mod modules;
mod names;
pub mod perf_map;
pub mod python;
pub mod rules;
pub mod symbols;
pub mod tables;
pub mod threads;
pub mod unwind;

use std::sync::Arc;

/// [`Labels::state`] of who runs.
pub const ON_CPU: &str = "on_cpu";

/// [`Labels::state`] of who waits for a CPU.
pub const RUNNABLE: &str = "runnable";

/// Path of the mapping that is the kernel.
pub const KERNEL: &str = "[kernel.kallsyms]";

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Samples of what runs on CPUs, one every [`Profile::period_ns`] of CPU time; a sample stands for that time.
    OnCpu,
    /// The same by counters of cycles: one every [`Profile::period_ns`] of them; [`Sample::value_ns`] is how many it stands for.
    Cycles,
    /// Waits off CPU: how many, and for how long altogether.
    OffCpu,
    /// Waits in a run queue for a CPU: how many, and for how long altogether.
    RunQueue,
    /// All of these, told apart by [`Labels::state`].
    Wall,
    /// Threads at one moment, each once: how many, whatever they do.
    Threads,
    /// Memory of this process: how many blocks, and their bytes ([`heap`]).
    Heap,
}

/// One profile. Indices are into the tables of the same profile.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What was measured.
    pub kind: Kind,
    /// When it began, nanoseconds since the Unix epoch.
    pub started_unix_ns: u64,
    /// How long it was measured.
    pub duration_ns: u64,
    /// CPU time from a sample to the next, on average. Of [`Kind::OnCpu`] and [`Kind::Wall`]; of [`Kind::Cycles`] cycles; else 0.
    pub period_ns: u64,
    /// Files, and what else code is in.
    pub mappings: Vec<Mapping>,
    /// Functions by name.
    pub functions: Vec<Function>,
    /// Places in code.
    pub locations: Vec<Location>,
    /// Who was measured.
    pub labels: Vec<Labels>,
    /// The samples, each of another stack or of other labels than all others.
    pub samples: Vec<Sample>,
    /// What its reader must know of it: how many samples were cut off or lost.
    pub losses: Losses,
}

/// What of a profile is not whole. Numbers of samples (of waits, for those that measure waits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Samples in the profile.
    pub samples: u64,
    /// Of these, samples whose stack ends before its outermost frame, as nothing told how to go on.
    pub truncated: u64,
    /// Not in the profile: there was no room.
    pub lost: u64,
    /// Waits that were not looked at, long or not, as there were too many.
    pub passed_over: u64,
}

/// A segment of a file that holds code, of all processes that have mapped it; or the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Lowest address of it. Addresses are those of the file (virtual addresses of ELF), not of a process, so that
    /// workers whose libraries are at different places share them. Of the kernel, its own.
    pub start: u64,
    /// The first address that is not of it any more.
    pub limit: u64,
    /// Where in the file it begins, bytes.
    pub file_offset: u64,
    /// Path as its processes see it, or a name in brackets: `[kernel.kallsyms]`, `[vdso]`. Any bytes but for those that
    /// are no UTF-8, which are replaced.
    pub path: Arc<str>,
    /// Hexadecimal; empty if there is none.
    pub build_id: String,
    /// Functions, files and lines of its locations were looked up, as far as there are any.
    pub symbolized: bool,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// For humans: demangled.
    pub name: Arc<str>,
    /// As in the symbol table.
    pub system_name: Arc<str>,
    /// Source file; empty if it is not known.
    pub file: Arc<str>,
    /// Line of its begin; 0 if it is not known.
    pub start_line: u32,
}

/// A place in code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Index of the mapping; `None` for code that is in no file, and for functions of an interpreter.
    pub mapping: Option<u32>,
    /// Of the mapping if there is one, else of the process; 0 if it has none. Of a call, not of what follows it.
    pub address: u64,
    /// Functions that it is in, the innermost of those that were inlined first. Empty if they are not known.
    pub lines: Vec<Line>,
}

/// A line of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// Index of the function.
    pub function: u32,
    /// In its source file; 0 if it is not known.
    pub line: u32,
}

/// Who was measured, as what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Name of the worker's pool.
    pub pool: Arc<str>,
    /// Slot and generation of the worker; `None` if it had none.
    pub slot: Option<(u32, u64)>,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Name of the thread. Any bytes but for those that are no UTF-8, which are replaced.
    pub thread: Arc<str>,
    /// `on_cpu`, `runnable` or `blocked`; of [`Kind::Threads`] in the words of `/proc/PID/status`.
    pub state: &'static str,
    /// Why it was blocked, in the words of `worker_pool_off_cpu_seconds`; `None` if it was not.
    pub reason: Option<&'static str>,
    /// When it was over, nanoseconds since the Unix epoch, of a wait that is told alone.
    pub ended_unix_ns: Option<u64>,
}

/// Samples with the same stack and labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Indices of locations, the innermost frame first. Kernel before user.
    pub stack: Vec<u32>,
    /// Index of the labels.
    pub labels: u32,
    /// How many.
    pub count: u64,
    /// CPU time or waiting time, altogether; of [`Kind::Cycles`] cycles, of [`Kind::Threads`] 0, of [`Kind::Heap`] bytes.
    pub value_ns: u64,
    /// The stack ends before its outermost frame.
    pub truncated: bool,
}

impl Profile {
    /// With the CPU time, or cycles, of its samples, on average, for [`Self::period_ns`], if it has any. Not what was asked for: periods vary, and
    /// who counts events has none of a CPU that idles.
    #[must_use]
    pub fn with_period_of_samples(mut self) -> Self {
        let is_on_cpu = |sample: &&Sample| {
            self.labels.get(sample.labels as usize).is_some_and(|labels| labels.state == ON_CPU)
        };
        let on_cpu = self.samples.iter().filter(is_on_cpu);
        let (count, ns) =
            on_cpu.fold((0, 0), |(count, ns), sample| (count + sample.count, ns + sample.value_ns));
        self.period_ns = ns.checked_div(count).unwrap_or(self.period_ns);
        self
    }
}
