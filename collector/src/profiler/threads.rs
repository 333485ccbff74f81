//! Where all threads of workers are now.
//!
//! The kernel tells where each is, and with which registers it goes on; its stack is read of its memory a moment later, and
//! followed here. It may have gone on meanwhile: what does not fit is left out.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use collector_ebpf::python::Python;
use collector_ebpf::task::{THREAD_HAS_REGISTERS, THREAD_ON_CPU, ThreadRow};
use collector_ebpf::unwind::Frame;

use super::naming::{self, Interpreters};
use super::work::Work;
use super::workers::Workers;
use super::{CaptureError, Whom};
use crate::kernel::Frames;
use crate::procfs::doing::call_name;
use crate::profile::fold::Folder;
use crate::profile::modules::{ModuleId, ProcessMaps};
use crate::profile::threads::{Dump, Thread};
use crate::profile::unwind::{Unwound, Window, unwind};
use crate::profile::{Kind, Labels, Profile, python};
use crate::units::{NANOS_PER_TICK, ProcessKey, unix_ns};

/// Threads that are told of at a time.
const MAX_THREADS: usize = 2048;

/// A process whose threads are looked at.
struct Process {
    key: ProcessKey,
    maps: Option<Arc<ProcessMaps>>,
    memory: Option<File>,
    python: Python,
}

impl Work {
    /// All threads of workers, as far as they are wanted and there is room for them.
    pub(super) fn threads(&mut self, whom: &Whom) -> Result<Dump, CaptureError> {
        self.idle_since = None;
        let threads = match self.threads.take() {
            Some(threads) => threads,
            None => self.samplers.threads()?,
        };
        let threads = self.threads.insert(threads);
        let started_unix_ns = unix_ns();
        let workers = Workers::of(self.snapshots.borrow().as_deref());
        let (mut found, mut beyond) = (Vec::new(), 0);
        threads.read(&mut |row| {
            let labels = workers.labels_of(row, state(row));
            if !whom.has(&labels.pool, labels.slot.map(|(slot, _)| slot), row.pid) {
                return;
            }
            if found.len() < MAX_THREADS { found.push((labels, *row)) } else { beyond += 1 }
        })?;
        found.sort_by(|(a, _), (b, _)| {
            let order = |labels: &Labels| (labels.slot, labels.pid, labels.tid);
            a.pool.cmp(&b.pool).then_with(|| order(a).cmp(&order(b)))
        });
        let kernel: Vec<u64> =
            found.iter().flat_map(|(_, row)| kernel_frames(row)).map(|address| address - 1).collect();
        naming::learn_kernel(&kernel, &mut self.names, &self.samplers, &mut self.symbols);
        let symbols = self.symbols.kernel(&kernel).into_iter();
        let functions = symbols.map(|found| found.lines.first().map(|line| Arc::clone(&line.name)));
        let functions: HashMap<u64, Option<Arc<str>>> = kernel.into_iter().zip(functions).collect();
        let mut folder = Folder::default();
        let mut interpreters = Interpreters::default();
        let mut told = Vec::with_capacity(found.len());
        let mut last: Option<Process> = None;
        for (labels, row) in found {
            let key = ProcessKey::from_ticks(row.pid, row.start_ns / NANOS_PER_TICK);
            let process = match last.take() {
                Some(process) if process.key == key => process,
                _ => self.look_at(key),
            };
            let thread = self.add(&row, labels, &process, &mut interpreters, &mut folder);
            let innermost = wait_address(&row).and_then(|address| functions.get(&address)?.clone());
            told.push(Thread { wait_channel: innermost, ..thread });
            last = Some(process);
        }
        folder.add_lost(beyond);
        let named = naming::named(folder.places(), &interpreters, &mut self.readers, &mut self.symbols);
        self.untidy = true;
        let profile = Profile { started_unix_ns, ..folder.finish(Kind::Threads, named) };
        Ok(Dump { profile, threads: told })
    }

    fn look_at(&mut self, key: ProcessKey) -> Process {
        let maps = self.readers.modules.refresh(key).ok();
        let python = maps.as_ref().map(|maps| self.readers.python_in(maps)).unwrap_or_default();
        Process { key, maps, memory: self.readers.memory(key), python }
    }

    /// Adds a thread. What its stack does not tell of it, but for the function that it waits in.
    fn add(
        &mut self,
        row: &ThreadRow,
        labels: Labels,
        process: &Process,
        interpreters: &mut Interpreters,
        folder: &mut Folder<ModuleId>,
    ) -> Thread {
        let kernel = kernel_frames(row);
        let has_registers = row.flags & THREAD_HAS_REGISTERS != 0;
        let mut python = Vec::new();
        // What has no stack is not one that was cut off.
        let no_stack = Unwound { complete: true, ..Unwound::default() };
        let (unwound, no_user_frames) = match (&process.maps, &process.memory) {
            _ if row.flags & THREAD_ON_CPU != 0 => {
                (no_stack, Some("it is on a CPU, and does not stop to be looked at"))
            }
            _ if !has_registers => (no_stack, Some("it is a thread of the kernel's")),
            (Some(maps), Some(memory)) if !maps.mapped().is_empty() => {
                let first = Frame { ip: row.ip, sp: row.sp, bp: row.bp, has_called: false };
                let mut window = Window::new(memory);
                let readers = &mut self.readers;
                let unwound = unwind(first, |pc| readers.rule_at(maps, pc), |address| window.read(address));
                if process.python.interpreters != 0 {
                    python = python::frames(&process.python, row.thread_id, memory);
                }
                let none = unwound.frames.is_empty().then_some("it went on before its stack was read");
                (unwound, none)
            }
            _ => (Unwound::default(), Some("its process has ended, or its memory cannot be read")),
        };
        let frames = Frames { kernel, user: &unwound.frames, python: &python };
        let maps = process.maps.as_deref();
        let places = self.readers.places(process.key, maps, frames, false, interpreters);
        folder.add(labels, places.into_iter(), !unwound.complete, 1, 0);
        Thread {
            wait_channel: None,
            syscall: syscall(row).map(|number| call_name(number).into()),
            no_kernel_frames: no_kernel_frames(row),
            no_user_frames: no_user_frames.map(Into::into),
        }
    }
}

fn kernel_frames(row: &ThreadRow) -> &[u64] {
    let frames = usize::try_from(row.frames).unwrap_or(0).min(row.addresses.len());
    // None of them is 0; whoever takes one off it relies on that.
    let frames = row.addresses[..frames].iter().position(|address| *address == 0).unwrap_or(frames);
    &row.addresses[..frames]
}

/// Why there are none; `None` if there are, or that is as it should be.
fn no_kernel_frames(row: &ThreadRow) -> Option<Arc<str>> {
    match row.frames {
        0 if row.flags & THREAD_ON_CPU == 0 => Some("the kernel tells none".into()),
        0.. => None,
        error => {
            let error = std::io::Error::from_raw_os_error(error.saturating_neg());
            Some(format!("the kernel tells none: {error}").into())
        }
    }
}

/// Of one that waits: where it called the scheduler.
fn wait_address(row: &ThreadRow) -> Option<u64> {
    let waits = row.flags & THREAD_ON_CPU == 0 && row.state != 0;
    kernel_frames(row).first().filter(|_| waits).map(|address| address - 1)
}

/// The number of the system call that it is in.
fn syscall(row: &ThreadRow) -> Option<usize> {
    let has_registers = row.flags & THREAD_HAS_REGISTERS != 0;
    usize::try_from(row.syscall).ok().filter(|_| has_registers)
}

/// In the words of `fs/proc/array.c` for the bits of `include/linux/sched.h`. That does not tell apart who has a CPU and who waits
/// for one.
fn state(row: &ThreadRow) -> &'static str {
    const INTERRUPTIBLE: u32 = 0x1;
    const UNINTERRUPTIBLE: u32 = 0x2;
    const STOPPED: u32 = 0x4;
    const TRACED: u32 = 0x8;
    const EXIT_DEAD: u32 = 0x10;
    const EXIT_ZOMBIE: u32 = 0x20;
    const PARKED: u32 = 0x40;
    const DEAD: u32 = 0x80;
    const NOLOAD: u32 = 0x400;
    let has = |bits: u32| row.state & bits != 0;
    match row.exit_state {
        exit if exit & EXIT_ZOMBIE != 0 => "zombie",
        exit if exit & EXIT_DEAD != 0 => "dead",
        _ if row.flags & THREAD_ON_CPU != 0 => "running",
        _ if row.state == 0 => "runnable",
        _ if has(INTERRUPTIBLE) => "sleeping",
        _ if has(STOPPED) => "stopped",
        _ if has(TRACED) => "tracing stop",
        _ if has(UNINTERRUPTIBLE) && has(NOLOAD) => "idle",
        _ if has(PARKED) => "parked",
        _ if has(DEAD) => "dead",
        // Also what is frozen, or waits for a lock of a real-time kernel.
        _ => "disk sleep",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(flags: u32, state: u32, exit_state: u32) -> ThreadRow {
        ThreadRow {
            pid: 1,
            tid: 1,
            start_ns: 0,
            pool: 0,
            flags,
            state,
            exit_state,
            ip: 0,
            sp: 0,
            bp: 0,
            thread_id: 0,
            comm: [0; 16],
            syscall: 0,
            frames: 0,
            addresses: [0; collector_ebpf::task::THREAD_FRAMES],
        }
    }

    #[test]
    fn states_have_the_words_of_the_kernel() {
        let check = |flags, bits, exit_state, expected| {
            assert_eq!(state(&row(flags, bits, exit_state)), expected);
        };
        check(THREAD_ON_CPU, 0, 0, "running");
        check(0, 0, 0, "runnable");
        // About to wait, and not there yet.
        check(THREAD_ON_CPU, 1, 0, "running");
        check(0, 0x1, 0, "sleeping");
        check(0, 0x2, 0, "disk sleep");
        check(0, 0x102, 0, "disk sleep");
        check(0, 0x402, 0, "idle");
        check(0, 0x104, 0, "stopped");
        check(0, 0x108, 0, "tracing stop");
        check(0, 0x8000, 0, "disk sleep");
        check(0, 0x80, 0x20, "zombie");
        check(0, 0x80, 0x10, "dead");
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_made_up() {
        let refused = ThreadRow { frames: -95, ..row(0, 1, 0) };
        assert!(kernel_frames(&refused).is_empty());
        assert!(no_kernel_frames(&refused).unwrap().contains("not supported"));
        assert_eq!(no_kernel_frames(&row(0, 1, 0)).as_deref(), Some("the kernel tells none"));
        assert_eq!(no_kernel_frames(&row(THREAD_ON_CPU, 0, 0)), None);
        assert_eq!(syscall(&row(0, 1, 0)), None);
        let sleeping = ThreadRow { frames: 1000, syscall: 35, ..row(THREAD_HAS_REGISTERS, 1, 0) };
        assert_eq!((kernel_frames(&sleeping), syscall(&sleeping)), (&[][..], Some(35)));
        assert_eq!(syscall(&ThreadRow { syscall: -1, ..sleeping }), None);
    }
}
