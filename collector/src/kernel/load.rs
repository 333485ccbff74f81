//! Passes the offsets in, attaches what this kernel takes and says why it refused the rest.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use aya::maps::{MapData, RingBuf};
use clap::ValueEnum;
use collector_ebpf::offsets::Offsets;
use collector_ebpf::{kfunc, maps, programs};
use thiserror::Error;

use super::btf::{Btf, BtfError, Kind};
use super::object::{Made, Object, ObjectError};
use super::offsets::{self, OffsetsError};
use super::requests::{RequestProbes, RequestTable};
use super::sampler::{self, Parts, SHARED, Samplers};
use super::schedule::{Probe, ScheduleTable, Scheduler};
use super::slots::SlotTable;
use super::support::{OLDEST_LINUX, Support};
use super::sys::{self, KernelFile, RunBy};
use super::syscalls;
use super::tags::Tags;
use super::tasks::PassMemory;
use super::waterfall::WaterfallTable;
use crate::heap;
use crate::procfs::ProcfsError;
use crate::snapshot::Feature;

/// The object that `cargo xtask build-ebpf` made; aligned, because it is parsed in place.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../collector-ebpf/prebuilt/collector.bpf.o");

/// Why there is no eBPF here.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Rights, BTF or namespace; see [`Support::obstacle`].
    #[error("{reason}")]
    Unsupported {
        /// What is in the way.
        reason: String,
        /// What would remove it.
        remedy: String,
    },
    /// The kernel's types cannot be read.
    #[error("reading {path}: {error}")]
    Read {
        /// Where they should be.
        path: String,
        /// Why not.
        error: std::io::Error,
    },
    /// What was read is not usable.
    #[error("the kernel's types: {0}")]
    Btf(#[from] BtfError),
    /// A field is missing.
    #[error(transparent)]
    Offsets(#[from] OffsetsError),
    /// The kernel has no such tracepoint or iterator.
    #[error("this kernel has no {0}")]
    NoTarget(String),
    /// The kernel refused a map or a program.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel took a program, but does not let it run.
    #[error("attaching {program}: {error}")]
    Attach {
        /// Which.
        program: &'static str,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// As many rates are sampled as can be.
    #[error("as many rates are sampled as can be at a time")]
    NoEventsLeft,
    /// There is no counter of cycles that can be sampled by.
    #[error("cycles cannot be counted here: {0}")]
    NoCycles(std::io::Error),
    /// Counters may not interrupt that often.
    #[error("the kernel takes no more than {limit} samples a second by cycles, and {hz} are asked for")]
    TooOften {
        /// What was asked for.
        hz: u32,
        /// `kernel.perf_event_max_sample_rate`
        limit: u32,
    },
    /// Others have all counters of a CPU that count cycles.
    #[error("no counter of cycles is free, on one CPU at least")]
    CountersTaken,
    /// `/proc`, where processes are made sure of.
    #[error(transparent)]
    Procfs(#[from] ProcfsError),
    /// How long its tick is cannot be read.
    #[error("the length of the kernel's tick: {0}")]
    Tick(nix::Error),
    /// Memory that we share with the programs could not be mapped.
    #[error("mapping shared arrays: {0}")]
    Shared(std::io::Error),
}

impl LoadError {
    /// What it means that events of cycles could not be opened.
    pub(super) fn of_cycles(error: std::io::Error, hz: u32) -> Self {
        let limit = || {
            let text = std::fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate").ok()?;
            text.trim().parse().ok().filter(|limit| hz > *limit)
        };
        match error.kind() {
            ErrorKind::InvalidInput => {
                limit().map_or(Self::NoCycles(error), |limit| Self::TooOften { hz, limit })
            }
            _ => Self::NoCycles(error),
        }
    }

    /// What would bring eBPF, in the user's words.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unsupported { remedy, .. } => remedy.clone(),
            Self::Read { .. } | Self::Btf(_) | Self::Offsets(_) | Self::NoTarget(_) => {
                format!("use a kernel whose BTF describes itself (Linux {OLDEST_LINUX} or newer)")
            }
            Self::Procfs(_) => "mount /proc, or say where it is (--path.procfs)".into(),
            Self::NoEventsLeft => "ask again later, or for the same rate".into(),
            Self::NoCycles(error) if error.kind() == ErrorKind::PermissionDenied => {
                "CAP_PERFMON; on Debian kernel.perf_event_paranoid below 3".into()
            }
            Self::NoCycles(_) => {
                "leave event= out; virtual machines can count cycles if their host lets them (`perf stat -e cycles true` tells)".into()
            }
            Self::TooOften { .. } => {
                "a lower hz=, or a higher kernel.perf_event_max_sample_rate, which the kernel lowers where interrupts take long".into()
            }
            Self::CountersTaken => {
                "leave event= out, or ask again when others have ended: the kernel's watchdog (kernel.nmi_watchdog=1) and events that are `pinned` keep theirs".into()
            }
            Self::Object(_) | Self::Tick(_) | Self::Attach { .. } | Self::Shared(_) => {
                format!("use Linux {OLDEST_LINUX} or newer; if it is, the message above is worth a report")
            }
        }
    }
}

/// A program that runs as long as this is kept.
pub(super) struct Attached {
    pub(super) name: &'static str,
    pub(super) program: OwnedFd,
    pub(super) link: OwnedFd,
}

/// The program that reads the figures of tracked processes.
pub(super) enum Tracked {
    /// Run by us once for a pass. 6.10+.
    Walk(OwnedFd),
    /// Run for each task when its iterator is read.
    Iterator(Attached),
}

/// Everything that stays open while we watch. Dropping it detaches all.
pub(super) struct Loaded {
    pub(super) tracepoints: Vec<Attached>,
    pub(super) tracked: Tracked,
    pub(super) all_processes: Attached,
    pub(super) events: RingBuf<MapData>,
    pub(super) counters: MapData,
    pub(super) tags: Tags,
    pub(super) slots: SlotTable,
    /// The scheduler probes, loaded and not attached; `None` where the kernel refuses one of them.
    pub(super) scheduler: Option<Scheduler>,
    /// The probes of requests, loaded and not attached; `None` where the kernel lacks what they need.
    pub(super) requests: Option<RequestProbes>,
    /// `None` where the kernel refuses it.
    pub(super) stacks: Option<Attached>,
    pub(super) schedule: ScheduleTable,
    pub(super) waterfalls: WaterfallTable,
    pub(super) pass: PassMemory,
    /// What profiles are made with; `None` where the kernel lacks what they need.
    pub(super) samplers: Option<Samplers>,
    pub(super) features: Vec<Feature>,
}

/// Program, tracepoint, needed for anything to make sense, feature name, what is lost without it.
const TRACEPOINTS: [(&str, &str, bool, &str, &str); 6] = [
    (programs::FORK, "sched_process_fork", true, "lifecycle_events", ""),
    (programs::EXIT, "sched_process_exit", true, "lifecycle_events", ""),
    (programs::FREE, "sched_process_free", true, "lifecycle_events", ""),
    (
        programs::EXEC,
        "sched_process_exec",
        false,
        "exec_events",
        "a worker that runs another program is not noticed",
    ),
    (programs::RENAME, "task_rename", false, "rename_events", "a change of name is not noticed"),
    (programs::SIGNAL, "signal_generate", false, "signal_sender", "who sent a fatal signal is not known"),
];

/// The scheduler probes: all of them or none.
const SCHEDULER: [(&str, &str); 3] = [
    (programs::SWITCH, "sched_switch"),
    (programs::WAKEUP, "sched_wakeup"),
    (programs::WAKEUP_NEW, "sched_wakeup_new"),
];

/// The probes of requests: all of them or none.
const SOCKETS: [(&str, &str); 3] = [
    (programs::RECEIVED, "sock_recv_length"),
    (programs::SENT, "sock_send_length"),
    (programs::CONNECTION_STATE, "inet_sock_set_state"),
];

/// The others: all of them or none.
const SYSCALLS: [(&str, &str); 2] =
    [(programs::SYSCALL_RETURNED, "sys_exit"), (programs::CONNECTION_STATE, "inet_sock_set_state")];

/// What requests are followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RequestsBy {
    /// What the kernel tells of each socket. Needs Linux 6.3.
    Sockets,
    /// What system calls return, of all threads of the host; also on pipes.
    Syscalls,
}

pub(super) fn load(support: &Support, requests_by: RequestsBy) -> Result<Loaded, LoadError> {
    if let Some((reason, remedy)) = support.obstacle() {
        return Err(LoadError::Unsupported { reason, remedy });
    }
    let file = KernelFile::open(&support.btf_path)
        .map_err(|error| LoadError::Read { path: support.btf_path.display().to_string(), error })?;
    let btf = Btf::parse(file.bytes())?;
    let targets = Targets::find(&btf);
    let offsets = offsets::resolve(&btf, targets.function(kfunc::RDONLY_CAST))?;
    drop(btf);
    drop(file);

    let constants = Constants::new(&offsets)?;
    let made = |name: &str| if maps::OF_PROFILES.contains(&name) { Made::Not } else { Made::New(None) };
    let mut object =
        Object::open(OBJECT, constants.globals(), &constants.offsets, &targets.kernel_functions, made)?;
    let mut features = Vec::new();
    let mut tracepoints = Vec::with_capacity(TRACEPOINTS.len());
    for ((program, tracepoint, required, feature, without), target) in
        TRACEPOINTS.into_iter().zip(targets.tracepoints)
    {
        match attach(&object, program, tracepoint, target) {
            Ok(attached) => {
                tracepoints.push(attached);
                if features.last().is_none_or(|f: &Feature| f.name != feature) {
                    features.push(enabled(feature));
                }
            }
            Err(error) if required => return Err(error),
            Err(error) => features.push(Feature {
                name: feature,
                enabled: false,
                reason: format!("{without}: {error}"),
                remedy: format!("a kernel with the tracepoint {tracepoint}"),
            }),
        }
    }
    let all_processes = iterator(&object, programs::ALL_PROCESSES, targets.task_iterator)?;
    features.push(enabled("task_iterator"));
    let stacks = match iterator(&object, programs::TASK_STACKS, targets.task_iterator) {
        Ok(stacks) => {
            features.push(enabled("kernel_stacks"));
            Some(stacks)
        }
        Err(error) => {
            features.push(Feature {
                name: "kernel_stacks",
                enabled: false,
                reason: format!(
                    "where in the kernel a stuck worker waits is known by its wait channel alone: {error}"
                ),
                remedy: "another kernel build".into(),
            });
            None
        }
    };
    let scheduler = match scheduler(&object, &targets) {
        Ok(probes) => {
            features.push(enabled("scheduler_probes"));
            Some(probes)
        }
        Err(error) => {
            features.push(Feature {
                name: "scheduler_probes",
                enabled: false,
                reason: format!("run-queue wait, time on CPU and off CPU by reason are unknown: {error}"),
                remedy: "a kernel with the tracepoints sched_switch and sched_wakeup".into(),
            });
            None
        }
    };
    let requests = match scheduler.as_ref().map(|_| requests(&object, &targets, requests_by, &offsets)) {
        Some(Ok(probes)) => {
            features.push(enabled("requests"));
            Some(probes)
        }
        Some(Err(error)) => {
            features.push(Feature {
                name: "requests",
                enabled: false,
                reason: format!("requests of workers, and how long they take, are unknown: {error}"),
                remedy: match requests_by {
                    RequestsBy::Sockets => {
                        "Linux 6.3 or newer; or --probes.requests=syscalls, at some 0.1 µs for each system call of the host"
                    }
                    RequestsBy::Syscalls => "another kernel build",
                }
                .into(),
            });
            None
        }
        None => None,
    };
    let (tracked, feature) = tracked(&object, &targets)?;
    features.push(feature);
    let absent = offsets::absent(&offsets);
    for (feature, field, loss) in [
        ("resident_memory", "mm_rss_first", "resident memory of workers is unknown"),
        ("run_delay", "task_run_delay", "run-queue wait is unknown (CONFIG_SCHED_INFO)"),
        ("storage_io", "task_read_bytes", "storage reads and writes are unknown (CONFIG_TASK_IO_ACCOUNTING)"),
        (
            "blocked_syscall",
            "regs_syscall",
            "the reasons to be off CPU are only guessed from the task's state",
        ),
        ("oom_kill", "signal_oom_mm", "victims of the OOM killer are counted as killed by a signal"),
    ] {
        features.push(if absent.contains(&field) {
            Feature {
                name: feature,
                enabled: false,
                reason: loss.into(),
                remedy: "another kernel build".into(),
            }
        } else {
            enabled(feature)
        });
    }

    let (samplers, feature) = samplers(&object, constants, &targets, &offsets)?;
    features.push(feature);
    let (slots, control) = (object.take_map_data(maps::SLOTS)?, object.take_map_data(maps::CONTROL)?);
    let slots =
        SlotTable::new(slots, control, object.take_map_data(maps::FREE_SLOTS)?).map_err(LoadError::Shared)?;
    let schedule = ScheduleTable::new(
        object.take_map_data(maps::THREADS)?,
        object.take_map_data(maps::TIMES)?,
        object.take_map_data(maps::CHUNKS)?,
        object.take_map_data(maps::FREE_CHUNKS)?,
        RequestTable::new(object.take_map_data(maps::CONNECTIONS)?, object.take_map_data(maps::REQUESTS)?)
            .map_err(LoadError::Shared)?,
    )
    .map_err(LoadError::Shared)?;
    let waterfalls =
        WaterfallTable::new(object.take_map_data(maps::SLOWEST_REQUESTS)?).map_err(LoadError::Shared)?;
    let (pass, told) = (object.take_map_data(maps::PASS)?, object.take_map_data(maps::TOLD)?);
    let pass = PassMemory::new(pass, told, object.take_map_data(maps::ROWS)?).map_err(LoadError::Shared)?;
    // Where the kernel refuses it tags are reached under pidfds, which shows nowhere but in the cost of a start.
    let access_tag = targets.function(kfunc::TASK_FROM_PID).and_then(|_| {
        let loaded = object.load(programs::ACCESS_TAG, RunBy::Us);
        loaded.inspect_err(|error| tracing::debug!(%error, "tags are reached under pidfds")).ok()
    });
    let tags = Tags::new(object.take_map_data(maps::TAGS)?, access_tag)
        .map_err(|error| ObjectError::Map { map: maps::TAGS.into(), error: error.to_string() })?;
    let loaded = Loaded {
        scheduler,
        requests,
        stacks,
        schedule,
        waterfalls,
        tracepoints,
        tracked,
        all_processes,
        events: object.take_map(maps::EVENTS, RingBuf::try_from)?,
        counters: object.take_map_data(maps::COUNTERS)?,
        tags,
        slots,
        pass,
        samplers,
        features,
    };
    drop(object);
    heap::trim();
    sys::let_go_of_pages(OBJECT);
    Ok(loaded)
}

/// What the programs take as constant.
pub(super) struct Constants {
    pub(super) offsets: [u32; Offsets::COUNT],
    reasons: [u8; collector_ebpf::schedule::SYSCALLS],
    sent_bytes: [u8; collector_ebpf::schedule::SYSCALLS],
    moves: [u8; collector_ebpf::schedule::SYSCALLS],
    tick_ns: [u8; size_of::<u64>()],
}

impl Constants {
    fn new(offsets: &Offsets) -> Result<Self, LoadError> {
        Ok(Self {
            offsets: offsets.named().map(|(_, offset)| offset),
            reasons: syscalls::reasons(),
            sent_bytes: syscalls::sent_bytes(),
            moves: syscalls::moves(),
            tick_ns: tick_ns().map_err(LoadError::Tick)?.to_ne_bytes(),
        })
    }

    /// By name of the global, and whether it has to be there.
    pub(super) fn globals(&self) -> HashMap<&str, (&[u8], bool)> {
        HashMap::from([
            ("SYSCALL_REASONS", (&self.reasons[..], true)),
            ("SYSCALL_BYTES", (&self.sent_bytes[..], true)),
            ("SYSCALL_MOVES", (&self.moves[..], true)),
            ("TICK_NS", (&self.tick_ns[..], true)),
        ])
    }
}

/// Length of the kernel's tick, ns: the clock that it alone moves is as coarse (clock_getres(2)).
fn tick_ns() -> nix::Result<u64> {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(std::time::Duration::from(tick).as_nanos() as u64)
}

/// BTF ids of what programs attach to.
struct Targets {
    tracepoints: [Option<u32>; TRACEPOINTS.len()],
    scheduler: [Option<u32>; SCHEDULER.len()],
    sockets: [Option<u32>; SOCKETS.len()],
    syscalls: [Option<u32>; SYSCALLS.len()],
    task_iterator: Option<u32>,
    kernel_functions: [Option<u32>; kfunc::NAMES.len()],
}

impl Targets {
    fn find(btf: &Btf<'_>) -> Self {
        let names = TRACEPOINTS.map(|(_, tracepoint, ..)| format!("btf_trace_{tracepoint}"));
        let tracepoints = btf.find(std::array::from_fn(|i| (Kind::Typedef, names[i].as_str())));
        let names = SCHEDULER.map(|(_, tracepoint)| format!("btf_trace_{tracepoint}"));
        let scheduler = btf.find(std::array::from_fn(|i| (Kind::Typedef, names[i].as_str())));
        let names = SOCKETS.map(|(_, tracepoint)| format!("btf_trace_{tracepoint}"));
        let sockets = btf.find(std::array::from_fn(|i| (Kind::Typedef, names[i].as_str())));
        let names = SYSCALLS.map(|(_, tracepoint)| format!("btf_trace_{tracepoint}"));
        let syscalls = btf.find(std::array::from_fn(|i| (Kind::Typedef, names[i].as_str())));
        let [task_iterator] = btf.find([(Kind::Function, "bpf_iter_task")]);
        let kernel_functions = btf.find(kfunc::NAMES.map(|name| (Kind::Function, name)));
        Self { tracepoints, scheduler, sockets, syscalls, task_iterator, kernel_functions }
    }

    /// BTF id of one of the kernel's functions.
    fn function(&self, number: u32) -> Option<u32> {
        self.kernel_functions.get((number - kfunc::FIRST) as usize).copied().flatten()
    }
}

/// The better way to read figures that this kernel takes.
fn tracked(object: &Object, targets: &Targets) -> Result<(Tracked, Feature), LoadError> {
    let refused = match targets.function(kfunc::ITER_TASK_NEW) {
        Some(_) => match object.load(programs::TRACKED_PROCESSES, RunBy::Us) {
            Ok(program) => return Ok((Tracked::Walk(program), enabled("task_walk"))),
            Err(error) => error.to_string(),
        },
        None => "this kernel has no functions for it".into(),
    };
    let iterator = iterator(object, programs::TRACKED_TASKS, targets.task_iterator)?;
    let feature = Feature {
        name: "task_walk",
        enabled: false,
        reason: format!("figures are read through iter/task, which costs about twice as much: {refused}"),
        remedy: "Linux 6.10 or newer".into(),
    };
    Ok((Tracked::Iterator(iterator), feature))
}

fn scheduler(object: &Object, targets: &Targets) -> Result<Scheduler, LoadError> {
    let probes = probes(object, SCHEDULER, targets.scheduler)?;
    let follow = iterator(object, programs::FOLLOW_TASKS, targets.task_iterator)?;
    Ok(Scheduler { probes, follow })
}

fn requests(
    object: &Object,
    targets: &Targets,
    by: RequestsBy,
    offsets: &Offsets,
) -> Result<RequestProbes, LoadError> {
    let absent = offsets::absent(offsets);
    let needed = [
        "sock_family",
        "sock_type",
        "sock_shutdown",
        "sock_error",
        "sock_queued",
        "sock_sndbuf",
        "sock_wmem_alloc",
        "socket_flags",
        "tcp_bytes_sent",
        "sock_max_ack_backlog",
        "sock_socket",
        "socket_sock",
        "socket_inode",
        "inode_number",
        "sock_hash",
        "sock_port",
        "sock_protocol",
        "tcp_nonagle",
        "regs_syscall",
        "regs_second",
    ];
    let needed_by_syscalls =
        ["file_private_data", "inode_mode", "regs_argument", "regs_third", "regs_fourth"];
    let more = if by == RequestsBy::Syscalls { &needed_by_syscalls[..] } else { &[] };
    if let Some(field) = needed.iter().chain(more).find(|field| absent.contains(*field)) {
        return Err(LoadError::NoTarget(format!("field {field}")));
    }
    let probes = match by {
        RequestsBy::Sockets => probes(object, SOCKETS, targets.sockets)?,
        RequestsBy::Syscalls => probes(object, SYSCALLS, targets.syscalls)?,
    };
    Ok(RequestProbes { probes, finish: object.load(programs::FINISH_REQUEST, RunBy::Us)? })
}

/// What samplers are loaded with. Whether the kernel takes them shows when one is.
fn samplers(
    object: &Object,
    constants: Constants,
    targets: &Targets,
    offsets: &Offsets,
) -> Result<(Option<Samplers>, Feature), LoadError> {
    let absent = offsets::absent(offsets);
    let needed = ["mm_start_code", "mm_start_brk", "regs_ip", "regs_sp", "regs_bp"];
    if let Some(field) = needed.into_iter().find(|field| absent.contains(field)) {
        let feature = Feature {
            name: "profiles",
            enabled: false,
            reason: format!("workers cannot be profiled: this kernel has no field {field}"),
            remedy: "x86_64, and a kernel whose BTF has it".into(),
        };
        return Ok((None, feature));
    }
    let shared = SHARED.into_iter().map(|name| Ok((name, object.map_again(name)?)));
    let shared = shared.collect::<Result<_, ObjectError>>()?;
    let [switch, wakeup, _] = targets.scheduler;
    let tracepoints = [("sched_switch", switch), ("sched_wakeup", wakeup)];
    let kernel_functions = targets.kernel_functions;
    let (events, refused) = sampler::open_events();
    let feature = match &refused {
        None => enabled("profiles"),
        Some(error) => Feature {
            name: "profiles",
            enabled: false,
            reason: format!("what workers run on CPUs cannot be sampled, but waits can: {error}"),
            remedy:
                "CAP_PERFMON; on Debian CAP_SYS_ADMIN at the start, or kernel.perf_event_paranoid below 3"
                    .into(),
        },
    };
    let task_iterator = targets.task_iterator;
    let events = Mutex::new(events);
    let parts = Parts { constants, kernel_functions, tracepoints, task_iterator, shared, events };
    Ok((Some(Samplers::new(parts)), feature))
}

/// Loads programs of tracepoints, by name, without attaching them.
fn probes<const N: usize>(
    object: &Object,
    probes: [(&'static str, &str); N],
    targets: [Option<u32>; N],
) -> Result<Vec<Probe>, LoadError> {
    let load = |((name, tracepoint), target): ((_, &str), Option<u32>)| {
        let target = target.ok_or_else(|| LoadError::NoTarget(format!("tracepoint {tracepoint}")))?;
        Ok(Probe { name, program: object.load(name, RunBy::Tracepoint(target))?, link: None })
    };
    probes.into_iter().zip(targets).map(load).collect()
}

fn enabled(name: &'static str) -> Feature {
    Feature { name, enabled: true, reason: String::new(), remedy: String::new() }
}

fn attach(
    object: &Object,
    name: &'static str,
    tracepoint: &str,
    target: Option<u32>,
) -> Result<Attached, LoadError> {
    let target = target.ok_or_else(|| LoadError::NoTarget(format!("tracepoint {tracepoint}")))?;
    let program = object.load(name, RunBy::Tracepoint(target))?;
    let link = sys::tracepoint_attach(program.as_fd())
        .map_err(|error| LoadError::Attach { program: name, error })?;
    Ok(Attached { name, program, link })
}

pub(super) fn iterator(
    object: &Object,
    name: &'static str,
    target: Option<u32>,
) -> Result<Attached, LoadError> {
    let target = target.ok_or_else(|| LoadError::NoTarget("task iterator".into()))?;
    let program = object.load(name, RunBy::Iterator(target))?;
    let link =
        sys::iterator_link(program.as_fd()).map_err(|error| LoadError::Attach { program: name, error })?;
    Ok(Attached { name, program, link })
}
