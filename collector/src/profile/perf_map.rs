//! Names of what a just-in-time compiler wrote: `/tmp/perf-PID.map`, which the program writes itself when it is told to
//! (`node --perf-basic-prof`, `java -XX:+DumpPerfMapAtExit`, `python -X perf`), lines of `START SIZE NAME`, hexadecimal
//! and without `0x` (but some write it).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::files;
use crate::procfs::parse::status;
use crate::procfs::root::ProcessDirectory;

/// Of a longer one the beginning is read: a machine that compiles without end writes without end.
const MAX_BYTES: u64 = 64 << 20;
/// Lines that are read, each of which takes some 200 bytes while they are put into order. Large programs have some 100,000
/// functions; 64 MiB of the shortest lines would be ten million.
const MAX_SYMBOLS: usize = 512 << 10;
/// `/proc/PID/status` is shorter, but for thousands of groups.
const MAX_STATUS: u64 = 1 << 20;

/// A function, or the part of one that no later one was written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// As the program named it.
    pub name: &'a [u8],
}

/// What a program wrote.
#[derive(Debug)]
pub(super) struct PerfMap {
    text: Vec<u8>,
    /// Start, end, and where in the text the name is.
    symbols: Vec<(u64, u64, u32, u32)>,
}

/// Tells whether it was written to since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    size: u64,
    modified: (i64, i64),
}

/// The file of a process, in its own `/tmp`, if it is its own or root's. Anybody can write into that directory, but whoever
/// could do so as this user could also change the process.
pub(super) fn open(directory: &ProcessDirectory) -> Option<(File, Version)> {
    let mut text = Vec::new();
    directory.file("status").ok()?.take(MAX_STATUS).read_to_end(&mut text).ok()?;
    let pid = status::innermost_pid(&text)?;
    let owner = status::effective_uid(&text).ok()?;
    let root = directory.directory("root").ok()?;
    let file = files::open_below(root, Path::new(&format!("/tmp/perf-{pid}.map"))).ok()?;
    let metadata = file.metadata().ok()?;
    let version = Version { size: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) };
    (metadata.uid() == owner || metadata.uid() == 0).then_some((file, version))
}

impl PerfMap {
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        let base = text.as_ptr() as usize;
        let symbols = parse(&text).into_iter().filter_map(|symbol| {
            let at = u32::try_from(symbol.name.as_ptr() as usize - base).ok()?;
            Some((symbol.start, symbol.end, at, u32::try_from(symbol.name.len()).ok()?))
        });
        let symbols = symbols.collect();
        Some(Self { symbols, text })
    }

    /// The name of what is at an address.
    pub(super) fn name(&self, address: u64) -> Option<&[u8]> {
        let after = self.symbols.partition_point(|(start, ..)| *start <= address);
        let (_, _, at, length) = *self.symbols[..after].last().filter(|(_, end, ..)| address < *end)?;
        self.text.get(at as usize..)?.get(..length as usize)
    }

    /// How much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.text.len() + self.symbols.len() * size_of::<(u64, u64, u32, u32)>()
    }
}

/// The symbols in ascending order, without overlaps: where several are at an address the last one of the file is there, as
/// memory is used again. Lines that say nothing are left out, and what is behind as many as are read.
pub fn parse(text: &[u8]) -> Vec<Symbol<'_>> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(line);
    let mut symbols: Vec<(usize, Symbol<'_>)> = lines.take(MAX_SYMBOLS).enumerate().collect();
    symbols.sort_unstable_by_key(|(number, symbol)| (symbol.start, *number));
    // A sweep over the addresses; on top of the heap is the last of those that have begun.
    let mut begun: BinaryHeap<(usize, Reverse<u64>, &[u8])> = BinaryHeap::new();
    let mut parts: Vec<Symbol<'_>> = Vec::new();
    let mut next = symbols.iter().peekable();
    let mut at = 0;
    loop {
        while let Some((number, symbol)) = next.next_if(|(_, symbol)| symbol.start <= at) {
            begun.push((*number, Reverse(symbol.end), symbol.name));
        }
        while begun.peek().is_some_and(|(_, Reverse(end), _)| *end <= at) {
            begun.pop();
        }
        let following = next.peek().map(|(_, symbol)| symbol.start);
        let Some((_, Reverse(end), name)) = begun.peek() else {
            match following {
                Some(start) => at = start,
                None => return parts,
            }
            continue;
        };
        let until = following.map_or(*end, |start| start.min(*end));
        match parts.last_mut() {
            // It goes on behind the begin of one that is older.
            Some(last) if last.end == at && std::ptr::eq(last.name, *name) => last.end = until,
            _ => parts.push(Symbol { start: at, end: until, name }),
        }
        at = until;
    }
}

fn line(line: &[u8]) -> Option<Symbol<'_>> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (start, size) = (hexadecimal(words.next()?)?, hexadecimal(words.next()?)?);
    let name = words.next()?.trim_ascii();
    let end = start.checked_add(size)?;
    (start < end && !name.is_empty()).then_some(Symbol { start, end, name })
}

fn hexadecimal(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // The library takes a sign.
    (!digits.starts_with('+')).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &[(u64, u64, &str)]) {
        let symbols = parse(text.as_bytes());
        let symbols: Vec<_> =
            symbols.iter().map(|s| (s.start, s.end, std::str::from_utf8(s.name).unwrap())).collect();
        assert_eq!(symbols, expected, "{text:?}");
    }

    #[test]
    fn malformed_beside_well_formed() {
        check("1000 10 LazyCompile:*f /a b.js:1\n", &[(0x1000, 0x1010, "LazyCompile:*f /a b.js:1")]);
        check("0x1000 0x10 f\r\n0 1 g", &[(0, 1, "g"), (0x1000, 0x1010, "f")]);
        check("1000 0 f\n1000 f\n1000\n\n  \nx 1 f\n1000 10 \n+10 10 f\n-10 10 f\n", &[]);
        check("ffffffffffffffff 1 f\nfffffffffffffffe 1 g\n", &[(u64::MAX - 1, u64::MAX, "g")]);
    }

    #[test]
    fn the_later_one_is_there() {
        check("10 10 a\n10 10 b\n", &[(0x10, 0x20, "b")]);
        check("10 10 a\n14 4 b\n", &[(0x10, 0x14, "a"), (0x14, 0x18, "b"), (0x18, 0x20, "a")]);
        check("14 4 b\n10 10 a\n", &[(0x10, 0x20, "a")]);
        check("10 10 a\n18 10 b\n", &[(0x10, 0x18, "a"), (0x18, 0x28, "b")]);
        check("18 10 b\n10 10 a\n", &[(0x10, 0x20, "a"), (0x20, 0x28, "b")]);
    }

    #[test]
    fn there_is_a_limit_to_lines() {
        let text = "1 1 a\n".repeat(MAX_SYMBOLS) + "5 1 b\n";
        check(&text, &[(1, 2, "a")]);
    }

    #[test]
    fn it_is_found_by_the_process() {
        use crate::procfs::root::Root;
        let pid = std::process::id();
        let path = format!("/tmp/perf-{pid}.map");
        std::fs::write(&path, "1000 10 compiled\n").unwrap();
        let directory = Root::open(Path::new("/proc")).unwrap().process(pid).unwrap();
        let (file, version) = open(&directory).unwrap();
        let map = PerfMap::read(&file).unwrap();
        assert_eq!(map.name(0x100f), Some(&b"compiled"[..]));
        assert_eq!(map.name(0x1010), None);
        assert_eq!(map.name(0xfff), None);
        assert!(map.bytes() >= 17);
        std::fs::write(&path, "1000 10 compiled\n2000 10 more\n").unwrap();
        assert_ne!(open(&directory).unwrap().1, version);
        std::fs::remove_file(&path).unwrap();
        assert!(open(&directory).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&text);
        }

        #[test]
        fn at_each_address_is_the_last_that_was_written(all in prop::collection::vec((0..60u64, 1..20u64), 0..20)) {
            let lines = all.iter().enumerate().map(|(number, (start, size))| format!("{start:x} {size:x} f{number}\n"));
            let text: String = lines.collect();
            let symbols = parse(text.as_bytes());
            prop_assert!(symbols.windows(2).all(|pair| pair[0].end <= pair[1].start));
            for address in 0..100 {
                let last = all.iter().rposition(|(start, size)| (*start..start + size).contains(&address));
                let found = symbols.iter().find(|symbol| (symbol.start..symbol.end).contains(&address));
                let expected = last.map(|number| format!("f{number}"));
                prop_assert_eq!(found.map(|symbol| symbol.name), expected.as_ref().map(|name| name.as_bytes()));
            }
        }
    }
}
