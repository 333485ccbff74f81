//! `/proc/kallsyms`: names of addresses in the kernel.
//!
//! The file is some 10 MB, which the kernel prints in tens of milliseconds, so it is gone through once for all
//! addresses that were not met before, and nothing of it is kept but what was asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::Path;
use std::sync::Arc;

/// Addresses whose names are kept.
const KEPT: usize = 16_384;

/// A function of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSymbol {
    /// Its name.
    pub name: Arc<str>,
    /// The kernel module that it is of, or `bpf`; empty for the kernel itself.
    pub module: Arc<str>,
    /// Where it begins.
    pub start: u64,
}

/// Names of kernel addresses.
#[derive(Debug)]
pub struct Kallsyms {
    file: Option<File>,
    known: HashMap<u64, Option<KernelSymbol>>,
}

impl Kallsyms {
    /// To be made before rights are dropped: whether the kernel shows its addresses is decided by the rights of who
    /// opens the file. Without one there are no names.
    pub fn open(procfs: &Path) -> Self {
        Self { file: File::open(procfs.join("kallsyms")).ok(), known: HashMap::new() }
    }

    /// The last function at or before each address, for all of them in one reading. Must be called before
    /// [`Self::symbol`].
    pub fn learn(&mut self, addresses: impl Iterator<Item = u64>) -> io::Result<()> {
        let mut wanted: Vec<u64> = addresses.filter(|address| !self.known.contains_key(address)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let Some(file) = self.file.as_mut().filter(|_| !wanted.is_empty()) else { return Ok(()) };
        file.rewind()?;
        let symbols = look_up(&wanted, BufReader::with_capacity(64 << 10, file))?;
        self.known.extend(wanted.into_iter().zip(symbols));
        Ok(())
    }

    /// What was learnt of an address. `None` for one before all functions, and for all where the kernel shows zeros.
    pub fn symbol(&self, address: u64) -> Option<&KernelSymbol> {
        self.known.get(&address)?.as_ref()
    }

    /// Gives up names when there are too many. Between the uses of what was learnt together.
    pub fn shrink(&mut self) {
        if self.known.len() > KEPT {
            self.known = HashMap::new();
        }
    }
}

/// The last symbol at or before each address, of lines `ADDRESS TYPE NAME [MODULE]` (proc(5)) in any order. Addresses are
/// ascending. `None` for one before all symbols, and for all where the kernel shows zeros.
pub(super) fn look_up(addresses: &[u64], mut symbols: impl BufRead) -> io::Result<Vec<Option<KernelSymbol>>> {
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
    let none: Arc<str> = Arc::from("");
    let mut last: Option<KernelSymbol> = None;
    let mut found = Vec::with_capacity(addresses.len());
    for (start, text) in &nearest {
        if *start > last.as_ref().map_or(0, |symbol| symbol.start) {
            let (name, module) = text.split_once('\t').unwrap_or((text, ""));
            let module = module.strip_prefix('[').and_then(|m| m.strip_suffix(']')).unwrap_or(module);
            let module = if module.is_empty() { none.clone() } else { module.into() };
            last = Some(KernelSymbol { name: name.into(), module, start: *start });
        }
        found.push(last.clone());
    }
    Ok(found)
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
        let symbols = look_up(&addresses, SYMBOLS.as_bytes()).unwrap();
        let text = |(symbol, address): (&Option<KernelSymbol>, u64)| {
            symbol.as_ref().map(|s| format!("{}+{:#x} {}", s.name, address - s.start, s.module))
        };
        let names: Vec<Option<String>> = symbols.iter().zip(addresses).map(text).collect();
        let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
        assert_eq!(
            names,
            [
                None,
                Some("do_poll+0x0 "),
                Some("do_poll+0x110 "),
                Some("late_in_the_file+0x1 "),
                Some("schedule+0x100 "),
                Some("nf_hook+0xb nf_tables"),
            ]
        );
    }

    #[test]
    fn where_addresses_are_hidden_there_are_no_names() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t do_poll\n";
        assert_eq!(look_up(&[1, 2], hidden.as_bytes()).unwrap(), [None, None]);
    }

    #[test]
    fn addresses_are_learnt_together_and_given_up() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kallsyms"), SYMBOLS).unwrap();
        let mut kallsyms = Kallsyms::open(directory.path());
        // Out of order, and one twice.
        kallsyms
            .learn([0xffff_ffff_8100_0301, 0xffff_ffff_8100_0101, 0xffff_ffff_8100_0301].into_iter())
            .unwrap();
        assert_eq!(&*kallsyms.symbol(0xffff_ffff_8100_0101).unwrap().name, "do_poll");
        assert_eq!(&*kallsyms.symbol(0xffff_ffff_8100_0301).unwrap().name, "schedule");
        kallsyms.learn(0..=KEPT as u64).unwrap();
        kallsyms.shrink();
        assert!(kallsyms.known.is_empty());
        let mut none = Kallsyms::open(Path::new("/nonexistent"));
        none.learn([1].into_iter()).unwrap();
        assert_eq!(none.symbol(1), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(
            text in proptest::collection::vec(any::<u8>(), 0..300),
            addresses in proptest::collection::btree_set(any::<u64>(), 0..8),
        ) {
            let addresses: Vec<u64> = addresses.into_iter().collect();
            let symbols = look_up(&addresses, text.as_slice()).unwrap();
            prop_assert_eq!(symbols.len(), addresses.len());
            for (symbol, address) in symbols.iter().zip(&addresses) {
                prop_assert!(symbol.as_ref().is_none_or(|symbol| symbol.start <= *address));
            }
        }
    }
}
