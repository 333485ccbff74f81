//! Where in the kernel the threads of a process are, by name.
//!
//! For a worker that became stuck, so it may cost what a pass may not: all tasks are gone through, and addresses that
//! were not met before are looked up in the whole of `/proc/kallsyms`, some 10 MB, which takes tens of milliseconds.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use collector_ebpf::task::{STACK_FRAMES, StackRow};

use super::load::Attached;
use super::sys;
use super::tasks::read_rows;
use crate::units::Pid;

/// Names of addresses that are kept. Threads that wait do so at the same few hundred places.
const KEPT: usize = 4096;

/// Reads kernel stacks.
pub(super) struct Stacks {
    iterator: Attached,
    symbols: Symbols,
    buffer: Vec<u8>,
}

impl Stacks {
    /// To be made before rights are dropped: whether the kernel shows its addresses is decided when the file is opened.
    pub(super) fn new(iterator: Attached, procfs: &Path) -> Self {
        let symbols = Symbols { file: File::open(procfs.join("kallsyms")).ok(), known: HashMap::new() };
        Self { iterator, symbols, buffer: Vec::new() }
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
        self.symbols.learn(stacks.iter().flat_map(|(_, addresses)| addresses).copied())?;
        let names = |addresses: Vec<u64>| addresses.iter().filter_map(|a| self.symbols.name(*a)).collect();
        Ok(stacks.into_iter().map(|(tid, addresses)| (tid, names(addresses))).collect())
    }
}

/// Names of kernel addresses.
struct Symbols {
    /// `/proc/kallsyms`
    file: Option<File>,
    known: HashMap<u64, Option<String>>,
}

impl Symbols {
    /// As `function+0x1b`, or `function+0x1b [module]`.
    fn name(&self, address: u64) -> Option<String> {
        self.known.get(&address)?.clone()
    }

    fn learn(&mut self, addresses: impl Iterator<Item = u64>) -> io::Result<()> {
        if self.known.len() > KEPT {
            self.known.clear();
        }
        let wanted: BTreeMap<u64, ()> =
            addresses.filter(|address| !self.known.contains_key(address)).map(|a| (a, ())).collect();
        let Some(file) = self.file.as_mut().filter(|_| !wanted.is_empty()) else { return Ok(()) };
        file.rewind()?;
        let wanted: Vec<u64> = wanted.into_keys().collect();
        let names = look_up(&wanted, BufReader::with_capacity(64 << 10, file))?;
        self.known.extend(wanted.into_iter().zip(names));
        Ok(())
    }
}

/// The last symbol at or before each address, of lines `ADDRESS TYPE NAME [MODULE]` (proc(5)) in any order. Addresses are
/// ascending. `None` for one before all symbols, and for all where the kernel shows zeros.
fn look_up(addresses: &[u64], mut symbols: impl BufRead) -> io::Result<Vec<Option<String>>> {
    // Nearest symbols, each found for the first address that is not before it.
    let mut nearest: Vec<(u64, String)> = vec![(0, String::new()); addresses.len()];
    let mut line = Vec::new();
    while symbols.read_until(b'\n', &mut line)? > 0 {
        if let Some((start, rest)) = std::str::from_utf8(&line).ok().and_then(symbol)
            && let Some(best) = nearest.get_mut(addresses.partition_point(|address| *address < start))
            && start > best.0
        {
            best.0 = start;
            best.1.clear();
            best.1.push_str(rest);
        }
        line.clear();
    }
    let mut last: (u64, &str) = (0, "");
    let mut names = Vec::with_capacity(addresses.len());
    for (address, (start, name)) in addresses.iter().zip(&nearest) {
        if *start > last.0 {
            last = (*start, name);
        }
        let (function, module) = last.1.split_once('\t').unwrap_or((last.1, ""));
        let offset = address - last.0;
        let space = if module.is_empty() { "" } else { " " };
        names.push((last.0 != 0).then(|| format!("{function}+{offset:#x}{space}{module}")));
    }
    Ok(names)
}

/// Address and the rest of a line, for code.
fn symbol(line: &str) -> Option<(u64, &str)> {
    let (address, rest) = line.trim_end().split_once(' ')?;
    let (kind, rest) = rest.split_once(' ')?;
    matches!(kind, "t" | "T" | "w" | "W").then_some(())?;
    Some((u64::from_str_radix(address, 16).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SYMBOLS: &str = "ffffffff81000000 T _text\n\
        ffffffff81000100 t do_poll\n\
        ffffffff81000200 D some_data\n\
        ffffffff81000300 T schedule\n\
        ffffffffc0000010 t nf_hook\t[nf_tables]\n\
        ffffffff81000250 t late_in_the_file\n";

    #[test]
    fn an_address_is_in_the_last_function_that_begins_before_it() {
        let addresses = [
            0xffff_ffff_8000_0000,
            0xffff_ffff_8100_0100,
            0xffff_ffff_8100_0210,
            0xffff_ffff_8100_0251,
            0xffff_ffff_8100_0400,
            0xffff_ffff_c000_001b,
        ];
        let names = look_up(&addresses, SYMBOLS.as_bytes()).unwrap();
        let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
        assert_eq!(
            names,
            [
                None,
                Some("do_poll+0x0"),
                Some("do_poll+0x110"),
                Some("late_in_the_file+0x1"),
                Some("schedule+0x100"),
                Some("nf_hook+0xb [nf_tables]"),
            ]
        );
    }

    #[test]
    fn where_addresses_are_hidden_there_are_no_names() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t do_poll\n";
        assert_eq!(look_up(&[1, 2], hidden.as_bytes()).unwrap(), [None, None]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(
            text in proptest::collection::vec(any::<u8>(), 0..300),
            addresses in proptest::collection::btree_set(any::<u64>(), 0..8),
        ) {
            let addresses: Vec<u64> = addresses.into_iter().collect();
            let names = look_up(&addresses, text.as_slice()).unwrap();
            prop_assert_eq!(names.len(), addresses.len());
        }
    }
}
