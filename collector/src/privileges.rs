//! Gives up the rights that were only needed to attach.

use caps::{CapSet, Capability, CapsHashSet};

/// What is needed as long as we run: bpf(2) on our own maps (before 5.19 every command of it asks for CAP_BPF), reading
/// other users' processes in `/proc`, and the very files that they have mapped (`map_files`).
const KEPT: [Capability; 5] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_CHECKPOINT_RESTORE,
];

/// Drops all other capabilities of this thread, which every thread made later inherits. Returns the names of those
/// that stay.
pub fn drop_all_but_needed() -> Result<Vec<String>, caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|c| permitted.contains(c)).collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    let mut names: Vec<String> = kept.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    Ok(names)
}
