//! Chooses where facts come from: eBPF, or `/proc` when this host does not let us.

use std::path::Path;

use anyhow::{Context, bail};
use caps::{CapSet, Capability};

use crate::config::cli::SourceChoice;
use crate::input::Source;
use crate::kernel::support::Support;
use crate::kernel::{KernelSource, RequestsBy, Samplers};
use crate::procfs::{self, ProcfsSource};
use crate::snapshot::Feature;
use crate::units::HostFacts;

/// A source that works.
pub struct Opened {
    /// The source.
    pub source: Box<dyn Source + Send>,
    /// What stood in the way of a better one.
    pub obstacles: Vec<Feature>,
    /// What profiles are made with; `None` where they cannot be.
    pub samplers: Option<Samplers>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("source", &self.source.name()).finish_non_exhaustive()
    }
}

/// Opens the source that was asked for. With `auto` a refused eBPF is named as a feature that is off.
pub fn open(
    choice: SourceChoice,
    requests: RequestsBy,
    support: &Support,
    root: &Path,
    host: HostFacts,
) -> anyhow::Result<Opened> {
    if !root.join("self/stat").exists() {
        bail!(
            "{} is no mounted /proc (it has no self/stat): --path.procfs says where one is",
            root.display()
        );
    }
    let mut opened = open_source(choice, requests, support, root, host)?;
    opened.obstacles.extend([foreign_programs(), procfs::cgroup::feature(), procfs::sockets::feature(root)]);
    Ok(opened)
}

/// Whether we can tell what processes of other users run: their executables, which takes the right to trace them
/// (proc_pid_exe(5)).
fn foreign_programs() -> Feature {
    let readable = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_PTRACE).unwrap_or(false);
    let told = |text: &str| if readable { String::new() } else { text.to_owned() };
    Feature {
        name: "foreign_programs",
        enabled: readable,
        reason: told(
            "pools of other users are not found without configuration: what they run cannot be read",
        ),
        remedy: told("root or CAP_SYS_PTRACE; or rules by comm, cmdline or user"),
    }
}

fn open_source(
    choice: SourceChoice,
    requests: RequestsBy,
    support: &Support,
    root: &Path,
    host: HostFacts,
) -> anyhow::Result<Opened> {
    let ebpf = Feature { name: "ebpf", enabled: true, reason: String::new(), remedy: String::new() };
    let off = |reason: String, remedy: String| Feature { enabled: false, reason, remedy, ..ebpf.clone() };
    let by_procfs = |obstacle: Feature| {
        let source = ProcfsSource::open(root, host, procfs::Config::default())
            .with_context(|| format!("reading processes from {}", root.display()))?;
        Ok(Opened { source: Box::new(source), obstacles: vec![obstacle], samplers: None })
    };
    if choice == SourceChoice::Procfs {
        return by_procfs(off("switched off by --source=procfs".into(), "--source=auto".into()));
    }
    match KernelSource::open(support, requests, root, host) {
        Ok(source) => {
            let samplers = source.samplers();
            Ok(Opened { source: Box::new(source), obstacles: vec![ebpf], samplers })
        }
        Err(error) if choice == SourceChoice::Ebpf => {
            bail!("eBPF does not work here: {error}\nwhat would help: {}", error.remedy())
        }
        Err(error) => by_procfs(off(error.to_string(), error.remedy())),
    }
}
