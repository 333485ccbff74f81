//! Kernel objects as the programs see them: a pointer plus one of the [`Offsets`], one load per field.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_LOCAL_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs, bpf_task_storage_get,
};
use collector_ebpf::event::Cpu;
use collector_ebpf::kfunc;
use collector_ebpf::limits::COMM_LEN;
use collector_ebpf::offsets::{ABSENT, PLACEHOLDER};
use collector_ebpf::slot::{Control, Tag};

use crate::{CONTROL, TAGS};

/// An offset, as a constant that the loader sets.
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::placeholder::<
            { core::mem::offset_of!(collector_ebpf::offsets::Offsets, $field) / size_of::<u32>() },
        >()
    };
}

/// What the loader puts in its place is the offset with this number.
#[inline(always)]
pub(crate) fn placeholder<const NUMBER: usize>() -> u32 {
    let offset: u64;
    // SAFETY: an instruction that sets a register.
    unsafe {
        asm!(
            "{offset} = {placeholder} ll",
            offset = out(reg) offset,
            placeholder = const (PLACEHOLDER as u64) << 32 | NUMBER as u64,
            options(pure, nomem, nostack, preserves_flags)
        );
        // Or it would be extended once more.
        core::hint::assert_unchecked(offset <= u32::MAX as u64);
    }
    offset as u32
}

/// Reads a field that the kernel has, or the loader refuses to load what needs it.
macro_rules! read {
    ($base:expr, $field:ident) => {
        {
            let (base, offset): (*const u8, u32) = ($base, $crate::kernel::offset!($field));
            // SAFETY: the base is a pointer from the kernel to the struct that the offset belongs to; the verifier
            // checks the access against the struct's BTF and makes a load from a pointer that may be stale read zero.
            unsafe { *base.add(offset as usize).cast() }
        }
    };
}

/// Reads a field that points to another task, at this place in the program and nowhere else.
///
/// To decide what such a pointer may be used for, the verifier searches all of the kernel's types by name, and again
/// on every path that leads here: about 0.7 ms each (6.18). Volatile, so that the compiler leaves the load before the
/// branches. What is only read from needs no such decision: [`pointee!`].
macro_rules! read_task {
    ($base:expr, $field:ident) => {{
        let (base, offset): (*const u8, u32) = ($base, $crate::kernel::offset!($field));
        // SAFETY: as for `read!`.
        Task(unsafe { core::ptr::read_volatile(base.add(offset as usize).cast::<*const u8>()) })
    }};
}

/// Reads a field that points to a kernel object of which fields are read and nothing else: first as a number, which is
/// then declared to be a pointer to a struct with this BTF id. Before 6.2 it can only be read as what it is.
macro_rules! pointee {
    ($base:expr, $field:ident as $type:ident) => {{
        let (base, offset): (*const u8, u32) = ($base, $crate::kernel::offset!($field));
        if $crate::kernel::offset!($type) == collector_ebpf::offsets::ABSENT {
            // SAFETY: as for `read!`.
            unsafe { core::ptr::read_volatile(base.add(offset as usize).cast::<*const u8>()) }
        } else {
            let address: u64 = $crate::kernel::load_cast(base, offset);
            $crate::kernel::cast(address as *const u8, $crate::kernel::offset!($type))
        }
    }};
}

/// Reads a field that a kernel may lack: zero then.
macro_rules! read_if_present {
    ($base:expr, $field:ident) => {
        if $crate::kernel::offset!($field) == collector_ebpf::offsets::ABSENT {
            0
        } else {
            read!($base, $field)
        }
    };
}

pub(crate) use {offset, read, read_if_present};

/// `struct task_struct *`, trusted or under RCU.
#[derive(Clone, Copy)]
pub(crate) struct Task(pub(crate) *const u8);

impl Task {
    /// The one that runs. Newer kernels make a single instruction of it.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: no precondition.
        Self(unsafe { bpf_get_current_task_btf() } as *const u8)
    }

    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        read!(self.0, task_pid)
    }

    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        read!(self.0, task_tgid)
    }

    #[inline(always)]
    pub(crate) fn start_ns(self) -> u64 {
        read!(self.0, task_start_boottime)
    }

    #[inline(always)]
    pub(crate) fn leader(self) -> Task {
        read_task!(self.0, task_group_leader)
    }

    /// The main thread, of which only fields may be read: nothing holds it if this thread was released.
    #[inline(always)]
    pub(crate) fn leader_to_read(self) -> Task {
        Task(pointee!(self.0, task_group_leader as task_type))
    }

    #[inline(always)]
    pub(crate) fn parent(self) -> Task {
        read_task!(self.0, task_real_parent)
    }

    /// Pid of the parent.
    #[inline(always)]
    pub(crate) fn parent_pid(self) -> u32 {
        if offset!(word_type) == ABSENT {
            return self.parent().pid();
        }
        let parent: u64 = load_cast(self.0, offset!(task_real_parent));
        load_cast(parent as *const u8, offset!(task_tgid))
    }

    #[inline(always)]
    pub(crate) fn signal(self) -> Signal {
        Signal(pointee!(self.0, task_signal as signal_type))
    }

    /// `struct mm_struct *`, null if it has no address space.
    #[inline(always)]
    pub(crate) fn mm(self) -> *const u8 {
        pointee!(self.0, task_mm as mm_type)
    }

    #[inline(always)]
    pub(crate) fn comm(self) -> [u8; COMM_LEN] {
        let words: [u64; 2] = read!(self.0, task_comm);
        // SAFETY: 16 bytes either way, and every bit pattern is a valid byte array.
        unsafe { core::mem::transmute(words) }
    }

    /// Copies the name.
    ///
    /// # Safety
    ///
    /// The pointer is to what may be written, and is aligned for words.
    #[inline(always)]
    pub(crate) unsafe fn copy_comm(self, to: *mut [u8; COMM_LEN]) {
        const { assert!(COMM_LEN == size_of::<[u64; 2]>()) };
        let comm = self.0.wrapping_add(offset!(task_comm) as usize);
        // SAFETY: as for `read!`, and as for us.
        unsafe { copy::<[u64; 2]>(to.cast(), comm.cast()) };
    }

    /// CPU of this thread alone.
    #[inline(always)]
    pub(crate) fn cpu(self) -> Cpu {
        Cpu {
            runtime_ns: read!(self.0, task_sum_exec_runtime),
            user_ns: read!(self.0, task_utime),
            system_ns: read!(self.0, task_stime),
        }
    }

    /// The tag of a main thread. Other CPUs may write to it at the same time.
    #[inline(always)]
    pub(crate) fn tag(self) -> Option<NonNull<Tag>> {
        storage(self, core::ptr::null_mut(), 0)
    }

    /// Gives a main thread a tag.
    #[inline(always)]
    pub(crate) fn set_tag(self, tag: &mut Tag) -> bool {
        storage(self, core::ptr::from_mut(tag).cast(), u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE)).is_some()
    }
}

#[inline(always)]
fn storage(task: Task, value: *mut c_void, flags: u64) -> Option<NonNull<Tag>> {
    // SAFETY: the map's value type is `Tag`; the kernel keeps the value at least until the program ends.
    let tag = unsafe {
        let map = (&raw const TAGS).cast_mut().cast();
        bpf_task_storage_get(map, task.0.cast_mut().cast(), value, flags)
    };
    NonNull::new(tag.cast())
}

/// `struct signal_struct *`: what the threads of a process share.
#[derive(Clone, Copy)]
pub(crate) struct Signal(pub(crate) *const u8);

impl Signal {
    /// CPU of threads that are gone.
    #[inline(always)]
    pub(crate) fn dead_cpu(self) -> Cpu {
        Cpu {
            runtime_ns: read!(self.0, signal_sum_sched_runtime),
            user_ns: read!(self.0, signal_utime),
            system_ns: read!(self.0, signal_stime),
        }
    }
}

/// Declares that an address is of a struct with this BTF id: `bpf_rdonly_cast` of `kernel/bpf/helpers.c` (6.2+), of which
/// no code remains. Loads through it may fail, and are zero then.
#[inline(always)]
pub(crate) fn cast(address: *const u8, type_id: u32) -> *const u8 {
    // SAFETY: as helpers are called; the loader replaces the number.
    let cast = unsafe {
        core::mem::transmute::<usize, unsafe extern "C" fn(*const u8, u64) -> *const u8>(
            kfunc::RDONLY_CAST as usize,
        )
    };
    // SAFETY: it has no precondition.
    unsafe { cast(address, u64::from(type_id)) }
}

/// Reads through a pointer as if it were one that the verifier knows nothing about; zero if the address is wrong. 6.2+.
///
/// Whatever is read, it is declared to be the word that some struct begins with: for a field that is a pointer in its
/// struct, the verifier would search all types by name (see [`read_task!`]).
#[inline(always)]
pub(crate) fn load_cast<T>(base: *const u8, offset: u32) -> T {
    load_as(base, offset, offset!(word_type))
}

/// The same with the BTF id of the struct.
#[inline(always)]
fn load_as<T>(base: *const u8, offset: u32, type_id: u32) -> T {
    const { assert!(size_of::<T>() <= 8) };
    let word = cast(base.wrapping_add(offset as usize), type_id);
    // SAFETY: the verifier makes it a load that may fail; what is read here are integers.
    unsafe { word.cast::<T>().read_volatile() }
}

/// Reads an integer at an address that the verifier knows nothing about; zero if the address is wrong. Where no number
/// can be declared to be a pointer (before 6.2), each read is a call.
#[inline(always)]
pub(crate) fn peek<T: Default>(base: u64, offset: u32) -> T {
    let base = base as *const u8;
    let word = offset!(word_type);
    if word != ABSENT {
        return load_as(base, offset, word);
    }
    // SAFETY: the helper checks the address; what is read here are integers.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast()) }.unwrap_or_default()
}

#[inline(always)]
fn registers_of(task: Task) -> *const u8 {
    // SAFETY: a trusted task.
    (unsafe { bpf_task_pt_regs(task.0.cast_mut().cast()) }) as *const u8
}

/// The registers of a thread that were saved when it entered the kernel: a `struct pt_regs`.
#[derive(Clone, Copy)]
pub(crate) struct Registers(*const u8);

impl Registers {
    #[inline(always)]
    pub(crate) fn of(task: Task) -> Option<Self> {
        if offset!(task_stack) == ABSENT {
            return Some(Self(registers_of(task)));
        }
        // SAFETY: a valid pointer into the array.
        let at = unsafe { (*CONTROL.get_ptr(0)?).registers_at };
        let stack: u64 = read!(task.0, task_stack);
        (at != 0).then_some(Self(stack.wrapping_add(u64::from(at)) as *const u8))
    }

    /// They are at the same place of all stacks, of which only the kernel's helper knows: it is asked about any one task,
    /// before any is followed, and not each time.
    #[inline(always)]
    pub(crate) fn find_out(task: Task) {
        let Some(control) = CONTROL.get_ptr_mut(0) else { return };
        // SAFETY: a pointer into the array.
        let at = unsafe { &raw mut (*control).registers_at };
        // SAFETY: an aligned integer of the map.
        if offset!(task_stack) == ABSENT || unsafe { at.read_volatile() } != 0 {
            return;
        }
        // A number, which a load by its type is not on all kernels.
        let stack: u64 = load_cast(task.0, offset!(task_stack));
        // What is read from a map is a number to the verifier, and not a pointer.
        // SAFETY: as above, and for this program alone to write.
        unsafe {
            at.write_volatile(registers_of(task) as u32);
            at.write_volatile(at.read_volatile().wrapping_sub(stack as u32));
        }
    }

    /// A field, by its offset.
    #[inline(always)]
    pub(crate) fn get<T: Copy>(self, offset: u32) -> T {
        if offset!(task_stack) == ABSENT {
            // SAFETY: as for `read!`.
            return unsafe { *self.0.add(offset as usize).cast() };
        }
        load_cast(self.0, offset)
    }
}

/// The `struct file` of a descriptor of a task; 0 if it has none. The kernel takes an `unsigned int`.
#[inline(always)]
pub(crate) fn file_of(task: u64, descriptor: u32) -> u64 {
    let files: u64 = peek(task, offset!(task_files));
    let table: u64 = peek(files, offset!(files_fdt));
    let length: u32 = peek(table, offset!(fdtable_max_fds));
    if descriptor >= length {
        return 0;
    }
    let descriptors: u64 = peek(table, offset!(fdtable_fd));
    peek(descriptors.wrapping_add(u64::from(descriptor) * 8), 0)
}

/// The inode of a file, or 0, and its mode.
#[inline(always)]
pub(crate) fn inode_of(file: u64) -> (u64, u16) {
    let inode: u64 = peek(file, offset!(file_inode));
    (inode, peek(inode, offset!(inode_mode)))
}

/// File type bits of `i_mode` (inode(7)).
pub(crate) const S_IFMT: u16 = 0o170_000;
pub(crate) const S_IFSOCK: u16 = 0o140_000;
pub(crate) const S_IFIFO: u16 = 0o010_000;

/// Descriptors of the standard input and output.
pub(crate) const STDIN: u32 = 0;
pub(crate) const STDOUT: u32 = 1;

/// Makes a value all zero, word by word. An assignment of more than a few words is a call of `memset`, which goes byte by
/// byte, and so does the verifier.
///
/// # Safety
///
/// The pointer is to a value that may be written, and for which all bits zero are valid.
#[inline(always)]
pub(crate) unsafe fn clear<T>(value: *mut T) {
    // Volatile, or the compiler makes a call of it again.
    each_word::<T>(
        // SAFETY: inside the value, as `each_word` says.
        |at| unsafe { value.cast::<u64>().add(at).write_volatile(0) },
        // SAFETY: as above.
        |at| unsafe { value.cast::<u32>().add(at).write_volatile(0) },
    );
}

/// Copies a value, word by word, for the same reason.
///
/// # Safety
///
/// The pointers are to a value that may be written, and to one that may be read; programs may write to it at the same time.
#[inline(always)]
pub(crate) unsafe fn copy<T>(to: *mut T, from: *const T) {
    each_word::<T>(
        // SAFETY: inside both values, as `each_word` says.
        |at| unsafe { to.cast::<u64>().add(at).write_volatile(from.cast::<u64>().add(at).read_volatile()) },
        // SAFETY: as above.
        |at| unsafe { to.cast::<u32>().add(at).write_volatile(from.cast::<u32>().add(at).read_volatile()) },
    );
}

/// Calls with the numbers of the words that a type has, which are as long as it is aligned.
#[inline(always)]
fn each_word<T>(mut long: impl FnMut(usize), mut short: impl FnMut(usize)) {
    const { assert!(align_of::<T>() >= 4 && size_of::<T>().is_multiple_of(align_of::<T>())) };
    if align_of::<T>() >= 8 {
        (0..size_of::<T>() / 8).for_each(&mut long);
    } else {
        (0..size_of::<T>() / 4).for_each(&mut short);
    }
}

/// Makes room that is not initialized a value of zeros, where it is: to move one is a copy.
#[inline(always)]
pub(crate) fn cleared<T: Copy>(room: &mut MaybeUninit<T>) -> &mut T {
    // SAFETY: the values that programs make are integers and arrays of them.
    unsafe { clear(room.as_mut_ptr()) };
    // SAFETY: every byte was written.
    unsafe { room.assume_init_mut() }
}

/// `CLOCK_MONOTONIC`, ns.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// A value that the verifier knows nothing about, so that it does not go through all that follows once for each way that
/// led to one.
#[inline(always)]
pub(crate) fn unforeseen(value: u64, control: *const Control) -> u64 {
    // SAFETY: a valid pointer into the array; volatile, because it is always zero.
    let zero = unsafe { (&raw const (*control).zero).read_volatile() };
    // Or the compiler would put it off until the value is used.
    opaque(value ^ zero)
}

/// A value of which the compiler knows nothing, in a register: what it has found out of it before, or finds out after, is not
/// told of the one by the other. [`core::hint::black_box`] does that in memory.
#[inline(always)]
pub(crate) fn opaque(mut value: u64) -> u64 {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}

/// Sum of two accounts.
#[inline(always)]
pub(crate) fn add(a: Cpu, b: Cpu) -> Cpu {
    Cpu {
        runtime_ns: a.runtime_ns + b.runtime_ns,
        user_ns: a.user_ns + b.user_ns,
        system_ns: a.system_ns + b.system_ns,
    }
}
