//! Loads the embedded object, passes the offsets in, attaches what this kernel takes and says why it refused the
//! rest.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Map, MapData, PerCpuArray, Queue, RingBuf};
use aya::programs::{BtfTracePoint, Iter, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use collector_ebpf::{maps, programs};
use thiserror::Error;

use super::offsets::{self, OffsetsError};
use super::slots::SlotTable;
use super::support::{Support, VMLINUX_BTF};
use super::sys;
use crate::snapshot::Feature;

/// The object that `cargo xtask build-ebpf` made; aligned, because it is parsed in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../collector-ebpf/prebuilt/collector.bpf.o");

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
    /// BTF could not be read.
    #[error("reading {VMLINUX_BTF}: {0}")]
    Btf(String),
    /// A field is missing.
    #[error(transparent)]
    Offsets(#[from] OffsetsError),
    /// The kernel refused a map.
    #[error("loading the BPF object: {0}")]
    Object(#[from] aya::EbpfError),
    /// A program that nothing works without was refused.
    #[error("program {program}: {error}")]
    Program {
        /// Which.
        program: &'static str,
        /// What the kernel said, the end of the verifier's log included.
        error: String,
    },
    /// A map is not what the object promised.
    #[error("map {map}: {error}")]
    Map {
        /// Which.
        map: &'static str,
        /// What went wrong.
        error: String,
    },
}

impl LoadError {
    /// What would bring eBPF, in the user's words.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unsupported { remedy, .. } => remedy.clone(),
            Self::Btf(_) | Self::Offsets(_) => {
                "use a kernel whose BTF describes itself (Linux 5.14 or newer)".into()
            }
            Self::Object(_) | Self::Program { .. } | Self::Map { .. } => {
                "use Linux 5.14 or newer; if it is, the message above is worth a report".into()
            }
        }
    }
}

/// Everything that stays open while we watch. Dropping it detaches all.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) events: RingBuf<MapData>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) tags: MapData,
    pub(super) slots: SlotTable,
    pub(super) tracked_tasks: OwnedFd,
    pub(super) all_processes: OwnedFd,
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

pub(super) fn load(support: &Support) -> Result<Loaded, LoadError> {
    if let Some((reason, remedy)) = support.obstacle() {
        return Err(LoadError::Unsupported { reason, remedy });
    }
    let btf_bytes = std::fs::read(VMLINUX_BTF).map_err(|e| LoadError::Btf(e.to_string()))?;
    let offsets = offsets::resolve(&btf_bytes)?;
    let btf =
        Btf::parse(&btf_bytes, aya::Endianness::default()).map_err(|e| LoadError::Btf(e.to_string()))?;
    drop(btf_bytes);

    let words: Vec<u32> = offsets.named().iter().map(|(_, offset)| *offset).collect();
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .allow_unsupported_maps()
        .override_global("OFFSETS", words.as_slice(), true)
        .load(OBJECT)?;

    let mut features = Vec::new();
    for (program, tracepoint, required, feature, without) in TRACEPOINTS {
        match attach(&mut ebpf, program, tracepoint, &btf) {
            Ok(()) => {
                if features.last().is_none_or(|f: &Feature| f.name != feature) {
                    features.push(enabled(feature));
                }
            }
            Err(error) if required => return Err(LoadError::Program { program, error: describe(&error) }),
            Err(error) => features.push(Feature {
                name: feature,
                enabled: false,
                reason: format!("{without}: {}", describe(&error)),
                remedy: format!("a kernel with the tracepoint {tracepoint}"),
            }),
        }
    }
    let tracked_tasks = iterator(&mut ebpf, programs::TRACKED_TASKS, &btf)?;
    let all_processes = iterator(&mut ebpf, programs::ALL_PROCESSES, &btf)?;
    features.push(enabled("task_iterator"));
    let absent = offsets::absent(&offsets);
    for (feature, field, loss) in [
        ("resident_memory", "mm_rss_first", "resident memory of workers is unknown"),
        ("run_delay", "task_run_delay", "run-queue wait is unknown (CONFIG_SCHED_INFO)"),
        ("storage_io", "task_read_bytes", "storage reads and writes are unknown (CONFIG_TASK_IO_ACCOUNTING)"),
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

    Ok(Loaded {
        events: map(&mut ebpf, maps::EVENTS, RingBuf::try_from)?,
        counters: map(&mut ebpf, maps::COUNTERS, PerCpuArray::try_from)?,
        tags: match ebpf.take_map(maps::TAGS) {
            Some(Map::Unsupported(data)) => data,
            _ => return Err(LoadError::Map { map: maps::TAGS, error: "not a task storage map".into() }),
        },
        slots: {
            let free = map(&mut ebpf, maps::FREE_SLOTS, Queue::try_from)?;
            match ebpf.take_map(maps::SLOTS) {
                Some(Map::Array(data)) => SlotTable::new(data, free)
                    .map_err(|e| LoadError::Map { map: maps::SLOTS, error: e.to_string() })?,
                _ => return Err(LoadError::Map { map: maps::SLOTS, error: "not an array".into() }),
            }
        },
        ebpf,
        tracked_tasks,
        all_processes,
        features,
    })
}

fn enabled(name: &'static str) -> Feature {
    Feature { name, enabled: true, reason: String::new(), remedy: String::new() }
}

fn map<T>(
    ebpf: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(Map) -> Result<T, aya::maps::MapError>,
) -> Result<T, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Map { map: name, error: "not in the object".into() })?;
    convert(map).map_err(|e| LoadError::Map { map: name, error: e.to_string() })
}

fn attach(ebpf: &mut Ebpf, name: &str, tracepoint: &str, btf: &Btf) -> Result<(), ProgramError> {
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(tracepoint, btf)?;
    program.attach()?;
    Ok(())
}

fn iterator(ebpf: &mut Ebpf, name: &'static str, btf: &Btf) -> Result<OwnedFd, LoadError> {
    let error = |error: String| LoadError::Program { program: name, error };
    let program = ebpf.program_mut(name).ok_or_else(|| error("not in the object".into()))?;
    let program: &mut Iter = program.try_into().map_err(|e: ProgramError| error(describe(&e)))?;
    program.load("task", btf).map_err(|e| error(describe(&e)))?;
    let fd = program.fd().map_err(|e| error(describe(&e)))?;
    sys::iterator_link(fd.as_fd()).map_err(|e| error(e.to_string()))
}

/// The error with its causes, and of a verifier's log the end, where the reason stands.
fn describe(error: &ProgramError) -> String {
    const TAIL: usize = 600;
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    if text.len() > 3 * TAIL {
        let head: String = text.chars().take(TAIL).collect();
        let tail: Vec<char> = text.chars().rev().take(2 * TAIL).collect();
        text = format!("{head} […] {}", tail.into_iter().rev().collect::<String>());
    }
    text
}
