//! Where in the kernel the threads of a process are, by name.
//!
//! For a worker that became stuck, so it may cost what a pass may not: all tasks are gone through, and addresses that
//! were not met before are looked up in the whole of `/proc/kallsyms`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use collector_ebpf::task::{STACK_FRAMES, StackRow};

use super::load::Attached;
use super::sys;
use super::tasks::read_rows;
use crate::procfs::kallsyms::{Kallsyms, KernelSymbol};
use crate::units::Pid;

/// Reads kernel stacks.
pub(super) struct Stacks {
    iterator: Attached,
    symbols: Kallsyms,
    buffer: Vec<u8>,
}

impl Stacks {
    /// To be made before rights are dropped: whether the kernel shows its addresses is decided when the file is opened.
    pub(super) fn new(iterator: Attached, procfs: &Path) -> Self {
        Self { iterator, symbols: Kallsyms::open(procfs), buffer: Vec::new() }
    }

    /// The program, by name.
    pub(super) fn program(&self) -> (&'static str, BorrowedFd<'_>) {
        (self.iterator.name, self.iterator.program.as_fd())
    }

    /// The functions that each thread is in, the innermost first, without those of the scheduler, of the process that the programs were told of. Threads
    /// that run have none, and neither has a host whose addresses we may not see.
    pub(super) fn read(&mut self) -> io::Result<Vec<(Pid, Vec<String>)>> {
        let iterator = sys::iterator_open(self.iterator.link.as_fd())?;
        self.buffer.resize(16 * size_of::<StackRow>(), 0);
        let mut stacks: Vec<(Pid, Vec<u64>)> = Vec::new();
        read_rows(iterator, &mut self.buffer, &mut |row: &StackRow, _| {
            let frames = (row.frames as usize).min(STACK_FRAMES);
            stacks.push((row.tid, row.addresses[..frames].to_vec()));
        })?;
        self.symbols.shrink();
        self.symbols.learn(stacks.iter().flat_map(|(_, addresses)| addresses).copied())?;
        let named = |address: u64| self.symbols.symbol(address).map(|symbol| name(symbol, address));
        let names = |addresses: Vec<u64>| addresses.into_iter().filter_map(named).collect();
        Ok(stacks.into_iter().map(|(tid, addresses)| (tid, names(addresses))).collect())
    }
}

/// As `function+0x1b`, or `function+0x1b [module]`.
fn name(symbol: &KernelSymbol, address: u64) -> String {
    let KernelSymbol { name, module, start, .. } = symbol;
    let offset = address - start;
    if module.is_empty() { format!("{name}+{offset:#x}") } else { format!("{name}+{offset:#x} [{module}]") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_said_as_the_kernel_does() {
        let symbol = |module: &str| KernelSymbol {
            name: "nf_hook".into(),
            module: module.into(),
            start: 0x10,
            end: 0x20,
        };
        assert_eq!(name(&symbol("nf_tables"), 0x1b), "nf_hook+0xb [nf_tables]");
        assert_eq!(name(&symbol(""), 0x10), "nf_hook+0x0");
    }
}
