//! The bpf(2) commands and system calls that no library wraps as we need them. The only raw system calls of the crate.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use aya::maps::MapData;
use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_func_info, bpf_insn, bpf_map_info, bpf_map_type, bpf_prog_info,
    bpf_prog_type, bpf_stats_type, perf_event_attr, perf_hw_id, perf_sw_ids, perf_type_id,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::statfs::{SYSFS_MAGIC, fstatfs};

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads a whole initialised `bpf_attr` (and for BPF_OBJ_GET_INFO_BY_FD writes to it); pointers inside it are made by the callers below from borrows that outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Attributes with every byte zero, which the kernel takes as "not given".
fn no_attr() -> bpf_attr {
    // SAFETY: a union of plain integers and arrays of them.
    unsafe { std::mem::zeroed() }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are never negative while borrowed.
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a value of a map.
///
/// # Safety
///
/// `key` and `value` point to as many readable bytes as the map's keys and values have.
unsafe fn map_update(map: BorrowedFd<'_>, key: *const u8, value: *const u8) -> io::Result<()> {
    let mut attr = no_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// What the kernel says a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MapShape {
    kind: u32,
    key_size: usize,
    value_size: usize,
}

impl MapShape {
    fn of(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: plain integers and arrays of them.
        let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
        let mut attr = no_attr();
        attr.info.bpf_fd = raw(map);
        attr.info.info_len = size_of::<bpf_map_info>() as u32;
        attr.info.info = std::ptr::from_mut(&mut info) as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        Ok(Self { kind: info.type_, key_size: info.key_size as usize, value_size: info.value_size as usize })
    }

    fn expect(self, expected: Self) -> io::Result<()> {
        if self == expected {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("the map is {self:?}, not {expected:?}")))
    }
}

/// A type that crosses to the kernel as bytes.
///
/// # Safety
///
/// No byte of it is padding, and every pattern of bits is a valid value.
pub(super) unsafe trait Plain: Copy + Default {}

// SAFETY: integers and arrays of bytes, with explicit padding; the contract crate asserts the size.
unsafe impl Plain for collector_ebpf::slot::Tag {}

// SAFETY: as above.
unsafe impl Plain for collector_ebpf::slot::TagAccess {}

// SAFETY: as above.
unsafe impl Plain for collector_ebpf::request::Finish {}

// SAFETY: as above.
unsafe impl Plain for collector_ebpf::task::Told {}

// SAFETY: as above.
unsafe impl Plain for collector_ebpf::sample::Space {}

// SAFETY: as above.
unsafe impl Plain for [u64; collector_ebpf::sample::LEAST] {}

/// A task storage map: one value for a process, under a pidfd of it.
pub(super) struct TaskStorage<T> {
    map: MapData,
    value: PhantomData<T>,
}

impl<T: Plain> TaskStorage<T> {
    /// What a map with keys of pidfds and values of `T` is.
    const SHAPE: MapShape = MapShape {
        kind: bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as u32,
        key_size: size_of::<RawFd>(),
        value_size: size_of::<T>(),
    };

    /// Refuses a map of another kind, and of values of another size.
    pub(super) fn new(map: MapData) -> io::Result<Self> {
        MapShape::of(map.fd().as_fd())?.expect(Self::SHAPE)?;
        Ok(Self { map, value: PhantomData })
    }

    /// Sets the value of the process behind a pidfd.
    pub(super) fn set(&self, pidfd: BorrowedFd<'_>, value: &T) -> io::Result<()> {
        let key = pidfd.as_raw_fd();
        let (key, value) = (std::ptr::from_ref(&key).cast(), std::ptr::from_ref(value).cast());
        // SAFETY: `new` compared the sizes of both, and no byte of a `Plain` value is uninitialised.
        unsafe { map_update(self.map.fd().as_fd(), key, value) }
    }

    /// Reads it; `None` if the process has none.
    pub(super) fn get(&self, pidfd: BorrowedFd<'_>) -> io::Result<Option<T>> {
        let key = pidfd.as_raw_fd();
        let mut value = T::default();
        let mut attr = no_attr();
        attr.__bindgen_anon_2.map_fd = raw(self.map.fd().as_fd());
        attr.__bindgen_anon_2.key = std::ptr::from_ref(&key) as u64;
        // The kernel writes as many bytes as `new` found the map's values to have, and any are a valid `Plain` value.
        attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_mut(&mut value) as u64;
        match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes it.
    pub(super) fn delete(&self, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let key = pidfd.as_raw_fd();
        let mut attr = no_attr();
        attr.__bindgen_anon_2.map_fd = raw(self.map.fd().as_fd());
        attr.__bindgen_anon_2.key = std::ptr::from_ref(&key) as u64;
        bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
    }
}

/// Sets a value of an array, whose values must be of the size of `T`.
pub(super) fn array_set<T: Plain>(map: BorrowedFd<'_>, index: u32, value: &T) -> io::Result<()> {
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    MapShape::of(map)?.expect(MapShape { kind, key_size: size_of::<u32>(), value_size: size_of::<T>() })?;
    let (key, value) = (std::ptr::from_ref(&index).cast(), std::ptr::from_ref(value).cast());
    // SAFETY: the sizes were compared just now, and no byte of a `Plain` value is uninitialised.
    unsafe { map_update(map, key, value) }
}

/// Reads all values of a per-CPU array, each the sum over the CPUs. `cpus` are those that the kernel could have
/// (`/sys/devices/system/cpu/possible`). One system call. 5.13+.
pub(super) fn per_cpu_sums<const N: usize>(map: BorrowedFd<'_>, cpus: usize) -> io::Result<[u64; N]> {
    let mut keys = [0u32; N];
    let mut values = vec![0u64; N * cpus];
    let mut next = 0u32;
    let mut attr = no_attr();
    attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = u32::try_from(N).map_err(io::Error::other)?;
    attr.batch.map_fd = raw(map);
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // The end was reached.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    let mut sums = [0; N];
    for (key, of_cpus) in keys.iter().zip(values.chunks_exact(cpus)) {
        if let Some(sum) = sums.get_mut(*key as usize) {
            *sum = of_cpus.iter().sum();
        }
    }
    Ok(sums)
}

/// Fills the only value of a global data map, which `data` has to be as long as.
pub(super) fn global_data_set(map: BorrowedFd<'_>, data: &[u8]) -> io::Result<()> {
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    MapShape::of(map)?.expect(MapShape { kind, key_size: size_of::<u32>(), value_size: data.len() })?;
    // SAFETY: the sizes were compared just now.
    unsafe { map_update(map, std::ptr::from_ref(&0u32).cast(), data.as_ptr()) }
}

/// Makes a map read-only for user space, after which the verifier takes its content as constant. 5.2+.
pub(super) fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = no_attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr).map(drop)
}

/// Gives the kernel the types of our own maps.
pub(super) fn btf_load(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    attr.__bindgen_anon_7.btf = btf.as_ptr() as u64;
    attr.__bindgen_anon_7.btf_size = u32::try_from(btf.len()).map_err(io::Error::other)?;
    owned(bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)?)
}

/// How a program comes to run.
#[derive(Clone, Copy)]
pub(super) enum RunBy {
    /// The tracepoint with this BTF id.
    Tracepoint(u32),
    /// Reading the iterator with this BTF id.
    Iterator(u32),
    /// [`program_run`]. 5.14+.
    Us,
    /// [`perf_event_attach`].
    PerfEvent,
}

/// What a program is loaded with.
#[derive(Clone, Copy)]
pub(super) struct Program<'a> {
    pub(super) name: &'a str,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) license: &'a CStr,
    /// Where each of its functions begins, and its type in `types`; programs that hand functions to helpers need it.
    pub(super) functions: &'a [bpf_func_info],
    pub(super) types: BorrowedFd<'a>,
    pub(super) run_by: RunBy,
}

/// `BPF_F_SLEEPABLE` of `include/uapi/linux/bpf.h`: programs that we run have to be loaded so.
const SLEEPABLE: u32 = 1 << 4;

/// Loads a program. The verifier writes its log, with its level at least 1, if there is one to write to.
pub(super) fn program_load(program: Program<'_>, log: Option<&mut [u8]>) -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    // SAFETY: writes to a field of a union of plain integers; the whole was zeroed.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    (load.prog_type, load.expected_attach_type, load.attach_btf_id, load.prog_flags) = match program.run_by {
        RunBy::Tracepoint(id) => {
            (bpf_prog_type::BPF_PROG_TYPE_TRACING as u32, bpf_attach_type::BPF_TRACE_RAW_TP as u32, id, 0)
        }
        RunBy::Iterator(id) => {
            (bpf_prog_type::BPF_PROG_TYPE_TRACING as u32, bpf_attach_type::BPF_TRACE_ITER as u32, id, 0)
        }
        RunBy::Us => (bpf_prog_type::BPF_PROG_TYPE_SYSCALL as u32, 0, 0, SLEEPABLE),
        RunBy::PerfEvent => (bpf_prog_type::BPF_PROG_TYPE_PERF_EVENT as u32, 0, 0, 0),
    };
    load.insns = program.instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(program.instructions.len()).map_err(io::Error::other)?;
    load.license = program.license.as_ptr() as u64;
    if !program.functions.is_empty() {
        load.prog_btf_fd = raw(program.types);
        load.func_info = program.functions.as_ptr() as u64;
        load.func_info_cnt = u32::try_from(program.functions.len()).map_err(io::Error::other)?;
        load.func_info_rec_size = size_of::<bpf_func_info>() as u32;
    }
    let room = load.prog_name.len() - 1;
    for (to, from) in load.prog_name.iter_mut().zip(program.name.bytes().take(room)) {
        *to = from.cast_signed();
    }
    if let Some(log) = log {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
    }
    owned(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?)
}

/// Attaches a BTF-typed tracepoint program, for as long as what it returns lives.
pub(super) fn tracepoint_attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    attr.raw_tracepoint.prog_fd = raw(program);
    owned(bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)?)
}

/// `PERF_FLAG_FD_CLOEXEC` of `include/uapi/linux/perf_event.h`.
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Opens an event that comes on a CPU, whatever runs there, each time so many nanoseconds have passed (perf_event_open(2),
/// `PERF_COUNT_SW_CPU_CLOCK`), once it is enabled.
///
/// What is asked for is time, so this is what is taken unless somebody asks for cycles ([`cycles_open`]): how long a cycle took
/// no sample of a counter says; many guests have none; and the period of a counter cannot be changed meanwhile, so that programs keep in
/// step with it: what is left of a period is lost with each change, and of a CPU that is hardly ever busy that is all. (Of a program
/// that did one thing for a third of each 99th of a second 99 samples a second by the clock found 31 to 36 %, and by the counter of a CPU that
/// is always as fast 1 to 50 %.) The price: with interrupts off nothing is sampled, and what was done meanwhile is found
/// where they are on again.
///
/// Needs CAP_PERFMON, and on Debian CAP_SYS_ADMIN where
/// `kernel.perf_event_paranoid` is 3, as it is by default.
pub(super) fn cpu_clock_open(cpu: u32, period_ns: u64) -> io::Result<OwnedFd> {
    // SAFETY: a struct of plain integers and unions of them; zeros are "not given".
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.type_ = perf_type_id::PERF_TYPE_SOFTWARE as u32;
    attr.config = perf_sw_ids::PERF_COUNT_SW_CPU_CLOCK as u64;
    attr.__bindgen_anon_1.sample_period = period_ns;
    event_open(attr, cpu)
}

/// Opens an event that comes on a CPU, whatever runs there, after so many cycles that there are about `hz` in a second
/// (perf_event_open(2), `PERF_COUNT_HW_CPU_CYCLES`), once it is enabled. The kernel goes by how fast the CPU is, and each event says how
/// many cycles it stands for; the first ones stand for a few. Idle CPUs have none. It interrupts where interrupts are off, too.
///
/// The counter is the event's alone while it is enabled (`pinned`), but for events of this kind that others have opened before: where those
/// have all counters [`perf_event_counts`] is false, and no part of the cycles is told as the whole.
///
/// At most `kernel.perf_event_max_sample_rate` times a second. Needs what [`cpu_clock_open`] does.
pub(super) fn cycles_open(cpu: u32, hz: u32) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.type_ = perf_type_id::PERF_TYPE_HARDWARE as u32;
    attr.config = perf_hw_id::PERF_COUNT_HW_CPU_CYCLES as u64;
    attr.set_freq(1);
    attr.__bindgen_anon_1.sample_freq = hz.into();
    attr.set_pinned(1);
    // What runs in guests is no thread of a worker.
    attr.set_exclude_guest(1);
    event_open(attr, cpu)
}

fn event_open(mut attr: perf_event_attr, cpu: u32) -> io::Result<OwnedFd> {
    attr.size = size_of::<perf_event_attr>() as u32;
    attr.set_disabled(1);
    let cpu = i32::try_from(cpu).map_err(io::Error::other)?;
    let (any, no_group) = (-1, -1);
    // SAFETY: the kernel reads as many bytes of the attributes as they say.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, any, cpu, no_group, PERF_FLAG_FD_CLOEXEC)
    };
    if fd < 0 { Err(io::Error::last_os_error()) } else { owned(fd) }
}

nix::ioctl_none!(perf_event_ioc_enable, b'$', 0);
nix::ioctl_none!(perf_event_ioc_disable, b'$', 1);
nix::ioctl_write_ptr!(perf_event_ioc_period, b'$', 4, u64);

/// Has an event come, or come no more.
pub(super) fn perf_event_enable(event: BorrowedFd<'_>, enable: bool) -> io::Result<()> {
    let event = event.as_raw_fd();
    let request = if enable { perf_event_ioc_enable } else { perf_event_ioc_disable };
    // SAFETY: neither has an argument.
    unsafe { request(event) }?;
    Ok(())
}

/// Changes the period of an event, which begins anew.
pub(super) fn perf_event_set_period(event: BorrowedFd<'_>, period_ns: u64) -> io::Result<()> {
    // SAFETY: the kernel reads 8 bytes.
    unsafe { perf_event_ioc_period(event.as_raw_fd(), &raw const period_ns) }?;
    Ok(())
}

/// An event that was enabled has its counter, or had it until it was disabled. One that is `pinned` and finds none is out of use, and
/// reading it is at its end (perf_event_open(2)).
pub(super) fn perf_event_counts(event: BorrowedFd<'_>) -> io::Result<bool> {
    let mut count = [0; 8];
    Ok(nix::unistd::read(event, &mut count)? > 0)
}

/// Has a program run for each of an event, for as long as what it returns lives. 5.15+.
pub(super) fn perf_event_attach(program: BorrowedFd<'_>, event: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.__bindgen_anon_2.target_fd = raw(event);
    attr.link_create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
    owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// Sets a value of a hash map with keys of 32 bits and values of the size of `T`.
pub(super) fn hash_set<T: Plain>(map: BorrowedFd<'_>, key: u32, value: &T) -> io::Result<()> {
    let kind = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
    MapShape::of(map)?.expect(MapShape { kind, key_size: size_of::<u32>(), value_size: size_of::<T>() })?;
    let (key, value) = (std::ptr::from_ref(&key).cast(), std::ptr::from_ref(value).cast());
    // SAFETY: the sizes were compared just now, and no byte of a `Plain` value is uninitialised.
    unsafe { map_update(map, key, value) }
}

/// Links an iterator program, so that iterators can be opened.
pub(super) fn iterator_link(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// Opens one iteration; reading to the end runs the program for every object once.
pub(super) fn iterator_open(link: BorrowedFd<'_>) -> io::Result<File> {
    let mut attr = no_attr();
    attr.iter_create.link_fd = raw(link);
    Ok(File::from(owned(bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr)?)?))
}

/// Runs a program that was loaded for [`RunBy::Us`], once and now.
pub(super) fn program_run(program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = no_attr();
    attr.test.prog_fd = raw(program);
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
}

/// The same with a context, which the program may read and write.
pub(super) fn program_run_with<T: Plain>(program: BorrowedFd<'_>, context: &mut T) -> io::Result<()> {
    let mut attr = no_attr();
    attr.test.prog_fd = raw(program);
    // The kernel copies it in and out, and refuses to run a program that reaches beyond it; any bytes are a valid
    // `Plain` value.
    attr.test.ctx_in = std::ptr::from_mut(context) as u64;
    attr.test.ctx_size_in = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
}

/// How often a program ran and for how many nanoseconds. Zeros unless the kernel counts (`kernel.bpf_stats_enabled`).
pub(super) fn program_cost(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    // SAFETY: plain integers and arrays of them.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = no_attr();
    attr.info.bpf_fd = raw(program);
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info.run_cnt, info.run_time_ns))
}

/// Has the kernel count runs and run time of all programs, until what this returns is closed. 5.8+, with
/// CAP_SYS_ADMIN.
pub fn run_time_statistics() -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    attr.enable_stats.type_ = bpf_stats_type::BPF_STATS_RUN_TIME as u32;
    owned(bpf(bpf_cmd::BPF_ENABLE_STATS, &mut attr)?)
}

/// pidfd_open(2) of a process (not a thread). 5.3+.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { owned(fd) }
}

/// Waits until every program that runs now has ended: they run without preemption, for which membarrier(2) waits in all
/// of the system (`synchronize_rcu`). Some milliseconds. A kernel without it lets some run on.
pub(super) fn wait_for_running_programs() {
    // SAFETY: plain integers.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

/// A file of the kernel that never changes, mapped where the kernel can (the BTF of vmlinux: 6.16+), else read. Only what
/// is in sysfs is the kernel's: any other file may be cut while it is mapped, and reading beyond its end kills us.
pub(super) enum KernelFile {
    Mapped(NonNull<u8>, std::num::NonZero<usize>),
    Read(Vec<u8>),
}

impl KernelFile {
    pub(super) fn open(path: &std::path::Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        let of_the_kernel = fstatfs(&file).is_ok_and(|found| found.filesystem_type() == SYSFS_MAGIC);
        if let Some(length) = std::num::NonZero::new(length).filter(|_| of_the_kernel) {
            // SAFETY: a fresh private read-only mapping at an address that the kernel chooses.
            let mapped =
                unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, file.as_fd(), 0) };
            if let Ok(address) = mapped {
                return Ok(Self::Mapped(address.cast(), length));
            }
        }
        let mut bytes = Vec::with_capacity(length);
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(Self::Read(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: mapped with this length until `self` is dropped. The file is in sysfs, where only parts of the
            // kernel's image can be mapped, which are neither written nor cut.
            Self::Mapped(address, length) => unsafe {
                std::slice::from_raw_parts(address.as_ptr(), length.get())
            },
            Self::Read(bytes) => bytes,
        }
    }
}

impl Drop for KernelFile {
    fn drop(&mut self) {
        if let Self::Mapped(address, length) = self {
            // SAFETY: the mapping made in `open`, with its length; borrows of it ended with the borrow of `self`.
            let _ = unsafe { munmap(address.cast(), length.get()) };
        }
    }
}

/// Lets the kernel take back the pages of a part of this program that is not read again. If it is, they come back from
/// the file.
pub(super) fn let_go_of_pages(part: &'static [u8]) {
    let Ok(page) = usize::try_from(procfs::page_size()) else { return };
    let begin = (part.as_ptr() as usize).next_multiple_of(page);
    let end = (part.as_ptr() as usize + part.len()) / page * page;
    if let Some(length) = end.checked_sub(begin).filter(|length| *length > 0) {
        // SAFETY: whole pages within a constant, which are mapped from the file and which nobody can have written to.
        // A refusal leaves things as they are.
        unsafe { libc::madvise(begin as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use collector_ebpf::slot::Tag;

    #[test]
    fn a_map_of_other_values_is_refused() {
        let shape = TaskStorage::<Tag>::SHAPE;
        assert!(shape.expect(shape).is_ok());
        for other in [
            MapShape { value_size: shape.value_size + 8, ..shape },
            MapShape { value_size: shape.value_size - 8, ..shape },
            MapShape { key_size: 8, ..shape },
            MapShape { kind: bpf_map_type::BPF_MAP_TYPE_HASH as u32, ..shape },
        ] {
            assert_eq!(other.expect(shape).unwrap_err().kind(), io::ErrorKind::InvalidData, "{other:?}");
        }
    }

    #[test]
    fn a_file_that_can_be_cut_is_not_mapped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinux");
        std::fs::write(&path, [7; 10_000]).unwrap();
        let file = KernelFile::open(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert_eq!(file.bytes(), [7; 10_000]);
    }
}
