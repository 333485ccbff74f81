//! Every task of the host at once: the figures of tracked processes, or the identity of all.
//!
//! A pass costs what it reads: a second after the last one nothing of a sleeping process is in any cache. So what has
//! not run is known by three cache lines of its `task_struct` and the place where its figures were told, and one bit
//! says that they still hold.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_get_task_stack, bpf_seq_write};
use collector_ebpf::limits::PASS_ROWS;
use collector_ebpf::offsets::ABSENT;
use collector_ebpf::task::{
    MEMORY_PASSES, NEVER, Pass, RSS_KINDS, RowHeader, STACK_FRAMES, StackRow, TASK_HAS_MEMORY,
    TASK_HAS_PLACE, TASK_KERNEL_THREAD, TASK_MAIN_THREAD, TASK_WHOLE_PROCESS, TaskRow, Told, place_of,
};

use crate::kernel::{
    Registers, Signal, Task, clear, cleared, now, offset, read, read_if_present, unforeseen,
};
use crate::schedule::Followed;
use crate::{CONTROL, PASS, ROWS, TOLD, schedule, walk};

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    seq: *mut c_void,
}

/// `struct bpf_iter__task`
#[repr(C)]
pub(crate) struct IterTask {
    meta: *const Meta,
    pub(crate) task: *const u8,
}

/// False if the buffer is full: the kernel empties it and calls the program for the same task again. Rows are records
/// without padding.
#[inline(always)]
pub(crate) fn write<T>(ctx: &IterTask, row: &T) -> bool {
    // SAFETY: `meta` and `seq` are never null in an iterator program; the row is initialised and without padding.
    unsafe {
        bpf_seq_write((*ctx.meta).seq.cast(), core::ptr::from_ref(row).cast(), size_of::<T>() as u32) == 0
    }
}

/// Fills in who a thread is. The verifier goes through what follows once for each branch that it remembers, so there
/// are few.
#[inline(always)]
fn identity(row: &mut TaskRow, task: Task, leader: Task, signal: Signal) {
    const { assert!(TASK_KERNEL_THREAD == 1) };
    let flags: u32 = read!(task.0, task_flags);
    let kernel_thread = (flags / PF_KTHREAD) & TASK_KERNEL_THREAD;
    row.header = RowHeader { pid: task.pid(), flags: kernel_thread, start_ns: leader.start_ns() };
    row.tid = task.tid();
    row.state = read!(task.0, task_state);
    let live: i32 = read!(signal.0, signal_live);
    // A main thread that ended before the others waits for them; the process lives.
    row.exit_state = if live > 0 { 0 } else { read!(task.0, task_exit_state) };
}

/// Adds what only a main thread tells.
#[inline(always)]
fn main_identity(row: &mut TaskRow, task: Task, parent: u32) {
    row.header.flags |= TASK_MAIN_THREAD;
    row.parent = parent;
    // SAFETY: as long, and as far into the row as two words are aligned.
    unsafe { task.copy_comm(&raw mut row.comm) };
}

/// Gives [`read!`] the type to read.
#[inline(always)]
fn u64_of(value: u64) -> u64 {
    value
}

/// One row per process, with who it is and nothing else: at start and after losses.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn all_processes(ctx: &IterTask) -> i32 {
    if ctx.task.is_null() {
        return 0;
    }
    let task = Task(ctx.task);
    if task.tid() != task.pid() {
        return 0;
    }
    Registers::find_out(task);
    let mut row = MaybeUninit::uninit();
    let row = cleared(&mut row);
    identity(row, task, task, task.signal());
    main_identity(row, task, task.parent_pid());
    write(ctx, row);
    0
}

/// Begins to follow the threads of workers that lived before they were tracked, or before the scheduler probes were
/// attached. Writes a byte for each that has to be looked at once more.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn follow_tasks(ctx: &IterTask) -> i32 {
    if ctx.task.is_null() {
        return 0;
    }
    let task = Task(ctx.task);
    if let Some(tag) = task.leader().tag()
        && !schedule::follow_found(task, Followed::by(tag), now())
    {
        // SAFETY: `meta` and `seq` are never null in an iterator program; one byte of ours.
        unsafe { bpf_seq_write((*ctx.meta).seq.cast(), [1u8].as_ptr().cast(), 1) };
    }
    0
}

/// One row per thread of the process that user space asks for: where in the kernel it is.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn task_stacks(ctx: &IterTask) -> i32 {
    let Some(control) = CONTROL.get_ptr(0) else { return 0 };
    if ctx.task.is_null() {
        return 0;
    }
    let task = Task(ctx.task);
    // SAFETY: a valid pointer into the array; user space sets it.
    if task.pid() != unsafe { (*control).stacks_of } {
        return 0;
    }
    let mut row = MaybeUninit::uninit();
    let row: &mut StackRow = cleared(&mut row);
    row.tid = task.tid();
    const SIZE: u32 = (STACK_FRAMES * size_of::<u64>()) as u32;
    // SAFETY: the task is alive while the iterator is at it, and the buffer is as long as it is said to be.
    let length =
        unsafe { bpf_get_task_stack(task.0.cast_mut().cast(), row.addresses.as_mut_ptr().cast(), SIZE, 0) };
    if length > 0 {
        row.frames = length as u32 / size_of::<u64>() as u32;
    }
    write(ctx, row);
    0
}

/// One row per tracked process, with all its threads, in memory that user space has mapped: run once for a pass.
///
/// The section is not its kind, which aya-obj does not know: the loader loads it as `BPF_PROG_TYPE_SYSCALL`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn tracked_processes(_ctx: *mut c_void) -> i32 {
    let Some(pass) = PASS.get_ptr_mut(0) else { return 0 };
    walk::processes(|task| tell(task, pass) != 0);
    0
}

/// Tells of one process, if it is tracked. Zero if there is no room for more.
///
/// A function of its own, because the verifier goes through a loop until nothing new is on the stack: what is here is
/// gone with each turn.
#[inline(never)]
fn tell(task: Task, pass: *mut Pass) -> u64 {
    let (Some(mut place), Some(control)) = (Place::of(task, pass), CONTROL.get_ptr(0)) else { return 1 };
    if place.holds(task) {
        return 1;
    }
    place.differs = unforeseen(place.differs, control);
    let Some(tag) = task.tag() else { return 1 };
    let tag = tag.as_ptr();
    // SAFETY: the tag lives as long as its task; volatile, because user space may write to it.
    let slot = unsafe { (&raw const (*tag).slot).read_volatile() };
    // SAFETY: valid pointers; nobody else writes these while the program runs.
    let (told_in, this_pass, number) = unsafe { ((*tag).told_in, (*pass).number, (*pass).rows) };
    if told_in == this_pass {
        return 1;
    }
    let Some(row) = (if number < PASS_ROWS as u32 { ROWS.get_ptr_mut(number) } else { None }) else {
        // SAFETY: as above.
        unsafe { (*pass).full = 1 };
        return 0;
    };
    // SAFETY: a pointer into the array, checked by the verifier; user space reads it after the run.
    let row = unsafe {
        clear(row);
        &mut *row
    };
    let mut rest = Rest::of(task);
    rest.arrival_ns = unforeseen(rest.arrival_ns, control);
    main_figures(row, task, slot, &rest);
    if row.threads > 1 {
        walk::threads(task, |thread| {
            if thread.tid() != task.pid() {
                add_thread(row, thread);
                if row.header.flags & TASK_HAS_MEMORY == 0 {
                    memory_of_other_into(row, thread);
                }
            }
            true
        });
    }
    row.header.flags |= TASK_WHOLE_PROCESS | place.flag();
    // SAFETY: as above.
    unsafe {
        (*pass).rows = number + 1;
        (*tag).told_in = this_pass;
    }
    place.told(row, &rest);
    1
}

/// The same for kernels that cannot walk over tasks in a program: one row per thread. Rows of one process add up: the
/// main thread's holds what the threads that are gone have left in `signal_struct`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn tracked_tasks(ctx: &IterTask) -> i32 {
    if ctx.task.is_null() {
        return 0;
    }
    let task = Task(ctx.task);
    let mut row = MaybeUninit::uninit();
    let row = cleared(&mut row);
    if task.tid() != task.pid() {
        let leader = task.leader();
        let Some(tag) = leader.tag() else { return 0 };
        // SAFETY: as in `tell`.
        let slot = unsafe { (&raw const (*tag.as_ptr()).slot).read_volatile() };
        identity(row, task, leader, task.signal());
        row.slot = slot;
        add_thread(row, task);
        memory_into(row, task);
        write(ctx, row);
        return 0;
    }
    let Some(pass) = PASS.get_ptr_mut(0) else { return 0 };
    let Some(place) = Place::of(task, pass) else { return 0 };
    if place.holds(task) {
        return 0;
    }
    let Some(tag) = task.tag() else { return 0 };
    // SAFETY: as in `tell`.
    let slot = unsafe { (&raw const (*tag.as_ptr()).slot).read_volatile() };
    let rest = Rest::of(task);
    main_figures(row, task, slot, &rest);
    if row.threads <= 1 {
        row.header.flags |= TASK_WHOLE_PROCESS;
    }
    row.header.flags |= place.flag();
    if write(ctx, row) {
        place.told(row, &rest);
    }
    0
}

/// What shows whether a thread has run.
struct Rest {
    arrival_ns: u64,
    switches: u64,
}

impl Rest {
    /// To be read before the figures. It was off its CPU after it had come to it for the last time that is known here:
    /// as long as it comes to none again, the figures read from now on hold.
    #[inline(always)]
    fn of(task: Task) -> Self {
        let rest = Self::now(task);
        compiler_fence(Ordering::SeqCst);
        let on_cpu: u32 = read_if_present!(task.0, task_on_cpu);
        compiler_fence(Ordering::SeqCst);
        if on_cpu == 0 { rest } else { Self { arrival_ns: NEVER, ..rest } }
    }

    #[inline(always)]
    fn now(task: Task) -> Self {
        Self {
            arrival_ns: read_if_present!(task.0, task_last_arrival),
            switches: u64_of(read!(task.0, task_nvcsw)) + u64_of(read!(task.0, task_nivcsw)),
        }
    }
}

/// The place of a process among what was told.
struct Place {
    pass: *mut Pass,
    told: *mut Told,
    index: usize,
    /// Zero if what is there was told of this process.
    differs: u64,
}

impl Place {
    #[inline(always)]
    fn of(task: Task, pass: *mut Pass) -> Option<Self> {
        let pid = task.pid();
        let index = place_of(pid);
        let told = TOLD.get_ptr_mut(index as u32)?;
        // SAFETY: a pointer into the array, checked by the verifier.
        let differs = unsafe { u64::from((*told).pid ^ pid) | ((*told).start_ns ^ task.start_ns()) };
        Some(Self { pass, told, index, differs })
    }

    /// The word of [`Pass::unchanged`] with the bit of this place, and the bit.
    #[inline(always)]
    fn unchanged_bit(&self) -> (*mut u64, u64) {
        // SAFETY: a field inside the array, and in bounds: an index is below the number of places.
        let word = unsafe { (&raw mut (*self.pass).unchanged).cast::<u64>().add(self.index / 64) };
        (word, 1 << (self.index % 64))
    }

    /// What is there was told in this pass, of whomever.
    #[inline(always)]
    fn told_in_this_pass(&self) -> bool {
        // SAFETY: pointers into the arrays; user space writes the number between runs.
        unsafe { (*self.told).pass == (*self.pass).number }
    }

    /// What was told of this process still holds (then it is said here), or was told in this pass.
    #[inline(always)]
    fn holds(&self, task: Task) -> bool {
        if self.differs != 0 {
            return false;
        }
        // SAFETY: a valid pointer; user space writes it between runs.
        let tell_all = unsafe { (*self.pass).tell_all } != 0;
        if !tell_all && self.has_not_run(task) && (!self.memory_is_due() || self.has_the_memory(task)) {
            if !self.told_in_this_pass() {
                let (word, bit) = self.unchanged_bit();
                // SAFETY: a valid pointer into the array; nobody else writes while the program runs.
                unsafe { *word |= bit };
            }
            return true;
        }
        self.told_in_this_pass()
    }

    #[inline(always)]
    fn has_not_run(&self, task: Task) -> bool {
        let now = Rest::now(task);
        // SAFETY: a valid pointer into the array.
        let (arrival_ns, switches) = unsafe { ((*self.told).arrival_ns, (*self.told).switches) };
        if now.arrival_ns != arrival_ns || now.switches != switches {
            return false;
        }
        if offset!(task_last_arrival) == ABSENT || offset!(task_on_cpu) == ABSENT {
            // Less is known: it has not left a CPU, and if it sleeps it has come to none.
            let state: u32 = read!(task.0, task_state);
            return state != 0;
        }
        true
    }

    #[inline(always)]
    fn memory_is_due(&self) -> bool {
        // SAFETY: a valid pointer; user space writes it between passes.
        let number = unsafe { (*self.pass).number };
        (number.wrapping_add(self.index as u32)) % MEMORY_PASSES == 0
    }

    #[inline(always)]
    fn has_the_memory(&self, task: Task) -> bool {
        let now = resident(task.mm()).unwrap_or_default();
        // SAFETY: a valid pointer into the array.
        let told = unsafe { &(*self.told).rss_pages };
        now[0] == told[0] && now[1] == told[1] && now[2] == told[2] && now[3] == told[3]
    }

    /// For the row: whether the place is this process's from now on, or is another's in this pass.
    #[inline(always)]
    fn flag(&self) -> u32 {
        let (word, bit) = self.unchanged_bit();
        // SAFETY: a valid pointer into the array.
        let speaks_of_another = unsafe { *word & bit != 0 };
        if self.differs == 0 || !(speaks_of_another || self.told_in_this_pass()) { TASK_HAS_PLACE } else { 0 }
    }

    /// Remembers what was told, if there is a place for it.
    #[inline(always)]
    fn told(&self, row: &TaskRow, rest: &Rest) {
        if row.header.flags & TASK_HAS_PLACE == 0 {
            return;
        }
        let told = Told {
            pid: row.header.pid,
            // SAFETY: a valid pointer into the array.
            pass: unsafe { (*self.pass).number },
            start_ns: row.header.start_ns,
            arrival_ns: if row.threads <= 1 { rest.arrival_ns } else { NEVER },
            switches: rest.switches,
            rss_pages: row.rss_pages,
        };
        // SAFETY: a valid pointer into the array; nobody else writes while the program runs.
        unsafe { *self.told = told };
    }
}

/// Fills in who a main thread is, what it has used, and what the dead ones of its process have used.
#[inline(always)]
fn main_figures(row: &mut TaskRow, task: Task, slot: u32, _read_before: &Rest) {
    let (parent, signal) = (task.parent_pid(), task.signal());
    identity(row, task, task, signal);
    main_identity(row, task, parent);
    row.slot = slot;
    add_thread(row, task);
    row.threads = read!(signal.0, signal_nr_threads);
    let dead = signal.dead_cpu();
    row.runtime_ns += dead.runtime_ns;
    row.user_ns += dead.user_ns;
    row.system_ns += dead.system_ns;
    row.minor_faults += u64_of(read!(signal.0, signal_min_flt));
    row.major_faults += u64_of(read!(signal.0, signal_maj_flt));
    row.voluntary_switches += u64_of(read!(signal.0, signal_nvcsw));
    row.involuntary_switches += u64_of(read!(signal.0, signal_nivcsw));
    if offset!(signal_read_bytes) != ABSENT {
        row.read_bytes += u64_of(read!(signal.0, signal_read_bytes));
        row.written_bytes += u64_of(read!(signal.0, signal_write_bytes));
    }
    memory_into(row, task);
}

/// Adds what one thread has used.
#[inline(always)]
fn add_thread(row: &mut TaskRow, task: Task) {
    let cpu = task.cpu();
    row.runtime_ns += cpu.runtime_ns;
    row.user_ns += cpu.user_ns;
    row.system_ns += cpu.system_ns;
    row.minor_faults += u64_of(read!(task.0, task_min_flt));
    row.major_faults += u64_of(read!(task.0, task_maj_flt));
    row.voluntary_switches += u64_of(read!(task.0, task_nvcsw));
    row.involuntary_switches += u64_of(read!(task.0, task_nivcsw));
    row.run_delay_ns += u64_of(read_if_present!(task.0, task_run_delay));
    row.read_bytes += u64_of(read_if_present!(task.0, task_read_bytes));
    row.written_bytes += u64_of(read_if_present!(task.0, task_write_bytes));
}

#[inline(always)]
fn memory_into(row: &mut TaskRow, task: Task) {
    if let Some(pages) = resident(task.mm()) {
        row.header.flags |= TASK_HAS_MEMORY;
        row.rss_pages = pages;
    }
}

/// The same for a thread that is not the main one, for the seldom case that the main thread has ended: through helpers,
/// because a pointer of the kernel in a loop is dear to verify.
#[inline(always)]
fn memory_of_other_into(row: &mut TaskRow, thread: Task) {
    let (first, stride) = (offset!(mm_rss_first) as usize, offset!(mm_rss_stride) as usize);
    if first == ABSENT as usize {
        return;
    }
    let field = thread.0.wrapping_add(offset!(task_mm) as usize);
    // SAFETY: the helper checks the address; any bits are a valid address.
    let mm = unsafe { bpf_probe_read_kernel(field.cast::<u64>()) };
    let Ok(mm @ 1..) = mm else { return };
    for (kind, pages) in row.rss_pages.iter_mut().enumerate() {
        let counter = (mm as usize + first + kind * stride) as *const i64;
        // SAFETY: as above; integers have no invalid bit patterns.
        *pages = unsafe { bpf_probe_read_kernel(counter) }.unwrap_or_default();
    }
    row.header.flags |= TASK_HAS_MEMORY;
}

/// Reads the address space without holding it: a task that ends at this moment may give zeros (a load from memory
/// that is gone), never a fault.
#[inline(always)]
fn resident(mm: *const u8) -> Option<[i64; RSS_KINDS]> {
    if offset!(mm_rss_first) == ABSENT || mm.is_null() {
        return None;
    }
    let first = offset!(mm_rss_first) as usize;
    let stride = offset!(mm_rss_stride) as usize;
    if stride == size_of::<u64>() {
        // Before 6.2 the counters are `atomic_long_t`, a typedef, and the verifier does not look through a typedef
        // for the elements of an array. The branch is dead elsewhere, so no helper is asked for there.
        // SAFETY: the helper checks the address; integers have no invalid bit patterns.
        return Some(unsafe { bpf_probe_read_kernel(mm.add(first).cast()) }.unwrap_or_default());
    }
    // Unrolled by hand: each address must be the base plus one constant for the verifier.
    // SAFETY: as for every field, checked against the BTF of `mm_struct`.
    Some(unsafe {
        [
            *mm.add(first).cast(),
            *mm.add(first + stride).cast(),
            *mm.add(first + 2 * stride).cast(),
            *mm.add(first + 3 * stride).cast(),
        ]
    })
}
