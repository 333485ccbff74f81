//! `/proc/kallsyms`: names of addresses in the kernel.
//!
//! The file is some 10 MB, which the kernel prints in tens of milliseconds, so it is gone through once for all
//! addresses in functions that were not met before, and nothing of it is kept but what was asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::Path;
use std::sync::Arc;

/// Addresses, and functions, whose names are kept.
const KEPT: usize = 16_384;

/// What is further from the begin of a function is not of it for certain: what comes next may have no name.
const LONGEST: u64 = 64 << 10;

/// A function of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSymbol {
    /// Its name.
    pub name: Arc<str>,
    /// The kernel module that it is of, or `bpf`; empty for the kernel itself.
    pub module: Arc<str>,
    /// Where it begins.
    pub start: u64,
    /// Where the next one begins.
    pub end: u64,
}

/// Names of kernel addresses.
#[derive(Debug)]
pub struct Kallsyms {
    file: Option<File>,
    /// Of the kernel itself, by where they begin: they stay where they are.
    functions: BTreeMap<u64, KernelSymbol>,
    /// Addresses that are elsewhere: of modules and of BPF programs, which come and go, and of nobody knows what.
    known: HashMap<u64, Option<KernelSymbol>>,
}

impl Kallsyms {
    /// To be made before rights are dropped: whether the kernel shows its addresses is decided by the rights of who
    /// opens the file. Without one there are no names.
    pub fn open(procfs: &Path) -> Self {
        let file = File::open(procfs.join("kallsyms")).ok();
        Self { file, functions: BTreeMap::new(), known: HashMap::new() }
    }

    /// The last function at or before each address, for all of them in one reading. Must be called before
    /// [`Self::symbol`].
    pub fn learn(&mut self, addresses: impl Iterator<Item = u64>) -> io::Result<()> {
        let wanted = self.unknown(&addresses.collect::<Vec<u64>>());
        let Some(file) = self.file.as_mut().filter(|_| !wanted.is_empty()) else { return Ok(()) };
        file.rewind()?;
        let symbols = look_up(&wanted, BufReader::with_capacity(64 << 10, file))?;
        for (address, symbol) in wanted.into_iter().zip(symbols) {
            self.tell(address, symbol);
        }
        Ok(())
    }

    /// The function of the kernel itself that an address is in, if it was met.
    fn function(&self, address: u64) -> Option<&KernelSymbol> {
        let (_, symbol) = self.functions.range(..=address).next_back()?;
        (address < symbol.limit()).then_some(symbol)
    }

    /// Those of these addresses that nothing was learnt of, ascending, each once.
    pub fn unknown(&self, addresses: &[u64]) -> Vec<u64> {
        let is_new = |address: &u64| self.function(*address).is_none() && !self.known.contains_key(address);
        let mut unknown: Vec<u64> = addresses.iter().copied().filter(is_new).collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }

    /// What somebody else has found out.
    pub fn tell(&mut self, address: u64, symbol: Option<KernelSymbol>) {
        match symbol {
            Some(symbol) if symbol.module.is_empty() && address < symbol.limit() => {
                self.functions.insert(symbol.start, symbol);
            }
            other => drop(self.known.insert(address, other)),
        }
    }

    /// What was learnt of an address. `None` for one before all functions, and for all where the kernel shows zeros.
    pub fn symbol(&self, address: u64) -> Option<&KernelSymbol> {
        self.function(address).or_else(|| self.known.get(&address)?.as_ref())
    }

    /// Gives up names when there are too many. Between the uses of what was learnt together.
    pub fn shrink(&mut self) {
        if self.known.len() > KEPT {
            self.known = HashMap::new();
        }
        if self.functions.len() > KEPT {
            self.functions = BTreeMap::new();
        }
    }
}

impl KernelSymbol {
    /// What is before it is of this function.
    fn limit(&self) -> u64 {
        self.end.min(self.start.saturating_add(LONGEST))
    }
}

/// The last symbol at or before each address, of lines `ADDRESS TYPE NAME [MODULE]` (proc(5)) in any order. Addresses are
/// ascending. `None` for one before all symbols, and for all where the kernel shows zeros.
pub(super) fn look_up(addresses: &[u64], mut symbols: impl BufRead) -> io::Result<Vec<Option<KernelSymbol>>> {
    // Nearest symbols, each found for the first address that is not before it; and the next ones, each for the last address
    // that is before it.
    let mut nearest: Vec<(u64, String)> = vec![(0, String::new()); addresses.len()];
    let mut next: Vec<u64> = vec![u64::MAX; addresses.len()];
    let mut line = Vec::new();
    while symbols.read_until(b'\n', &mut line)? > 0 {
        if let Some((start, rest)) = std::str::from_utf8(&line).ok().and_then(symbol) {
            let after = addresses.partition_point(|address| *address < start);
            if let Some(best) = nearest.get_mut(after).filter(|best| start > best.0) {
                best.0 = start;
                best.1.clear();
                best.1.push_str(rest);
            }
            if let Some(end) = after.checked_sub(1).and_then(|before| next.get_mut(before)) {
                *end = start.min(*end);
            }
        }
        line.clear();
    }
    // No symbol begins between two addresses: they have the same next one.
    let mut end = u64::MAX;
    for next in next.iter_mut().rev() {
        end = end.min(*next);
        *next = end;
    }
    let none: Arc<str> = Arc::from("");
    let mut last: Option<KernelSymbol> = None;
    let mut found = Vec::with_capacity(addresses.len());
    for ((start, text), end) in nearest.iter().zip(next) {
        if *start > last.as_ref().map_or(0, |symbol| symbol.start) {
            let (name, module) = text.split_once('\t').unwrap_or((text, ""));
            let module = module.strip_prefix('[').and_then(|m| m.strip_suffix(']')).unwrap_or(module);
            let module = if module.is_empty() { none.clone() } else { module.into() };
            last = Some(KernelSymbol { name: name.into(), module, start: *start, end });
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
        // Others in the same functions need no reading.
        std::fs::remove_file(directory.path().join("kallsyms")).unwrap();
        kallsyms.file = None;
        kallsyms.learn([0xffff_ffff_8100_0155].into_iter()).unwrap();
        assert_eq!(&*kallsyms.symbol(0xffff_ffff_8100_0155).unwrap().name, "do_poll");
        // Of what is behind the last one, that is not certain.
        assert_eq!(kallsyms.symbol(0xffff_ffff_8100_0251), None);
        std::fs::write(directory.path().join("kallsyms"), SYMBOLS).unwrap();
        let mut kallsyms = Kallsyms::open(directory.path());
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
                let is_in = |symbol: &KernelSymbol| symbol.start <= *address && *address <= symbol.end;
                prop_assert!(symbol.as_ref().is_none_or(is_in));
            }
        }
    }
}
