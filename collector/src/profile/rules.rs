//! The rules of a module, read from its file: of all of it only the pieces that tell of them.
//!
//! Not mapped, as a file that is cut off while it is mapped kills its reader. The pieces are put where they stand in the file,
//! in memory that is as long; what is not written of that is never backed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use collector_ebpf::unwind::{Row, Rule};
use object::NativeEndian;
use object::elf::{ProgramHeader64, SHT_NOBITS, SectionHeader64};

use super::elf::{Elf, Section};
use super::modules::Module;
use super::tables;

/// A longer file is not looked at.
const MAX_FILE: u64 = 512 << 20;
/// Bytes of all pieces.
const MAX_PIECES: u64 = 96 << 20;
/// Of the begin of a file, which has its headers.
const HEAD: u64 = 4096;

/// How callers are found in the code of a module.
#[derive(Debug, Default)]
pub struct Rules {
    /// The lowest virtual address of its file, which rows count from.
    pub lowest: u64,
    /// Ascending. None if the file does not tell: its frames have frame pointers, or so it is hoped.
    pub rows: Vec<Row>,
}

impl Rules {
    /// Those of a module; without rows if its file cannot be read or is not as it should be.
    pub fn of(module: &Module) -> Self {
        let Some(file) = module.file() else { return Self::default() };
        let Some(bytes) = pieces(file) else { return Self::default() };
        let table = tables::Module::parse(&bytes).and_then(|module| Ok((module.lowest, module.table()?)));
        match table {
            Ok((lowest, table)) => Self { lowest, rows: table.rows },
            Err(error) => {
                tracing::debug!(path = &*module.path, %error, "callers are found by frame pointers");
                Self::default()
            }
        }
    }

    /// The one for an address, so many bytes above the lowest.
    pub fn at(&self, address: u64) -> Rule {
        if self.rows.is_empty() {
            return Rule::FRAME_POINTER;
        }
        let after = self.rows.partition_point(|row| u64::from(row.address) <= address);
        self.rows[..after].last().map_or(Rule::UNKNOWN, |row| Rule::decode(row.rule))
    }
}

/// The file, where it tells of frames, and zeros elsewhere.
pub(super) fn pieces(file: &File) -> Option<Vec<u8>> {
    let length = file.metadata().ok()?.len().min(MAX_FILE);
    let elf = Elf::read(file)?;
    let table =
        |offset: u64, count: u16, size: usize| offset..offset.saturating_add(u64::from(count) * size as u64);
    let header = &elf.header;
    let mut ranges = vec![
        0..HEAD,
        table(
            header.e_phoff.get(NativeEndian),
            header.e_phnum.get(NativeEndian),
            size_of::<ProgramHeader64<NativeEndian>>(),
        ),
    ];
    match elf.sections(file) {
        Some(sections) if !sections.is_empty() => {
            let size = size_of::<SectionHeader64<NativeEndian>>();
            ranges.push(table(header.e_shoff.get(NativeEndian), header.e_shnum.get(NativeEndian), size));
            let names = usize::from(header.e_shstrndx.get(NativeEndian));
            let wanted = |(index, section): &(usize, &Section)| {
                *index == names || [&b".eh_frame"[..], b".eh_frame_hdr"].contains(&&*section.name)
            };
            ranges.extend(sections.iter().enumerate().filter(wanted).map(|(_, section)| bytes_of(section)));
        }
        // Where they are is found by what is loaded of them.
        _ => {
            let loaded = elf.segments.iter().filter(|segment| !segment.executable);
            ranges.extend(
                loaded.map(|segment| segment.file_offset..segment.file_offset.saturating_add(segment.size)),
            );
        }
    }
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    let mut left = MAX_PIECES;
    for range in ranges {
        let range = range.start.min(length)..range.end.min(length);
        left = left.checked_sub(range.end - range.start)?;
        let place = bytes.get_mut(range.start as usize..range.end as usize)?;
        file.read_exact_at(place, range.start).ok()?;
    }
    Some(bytes)
}

fn bytes_of(section: &Section) -> Range<u64> {
    let header = &section.header;
    if header.sh_type.get(NativeEndian) == SHT_NOBITS {
        return 0..0;
    }
    let offset = header.sh_offset.get(NativeEndian);
    offset..offset.saturating_add(header.sh_size.get(NativeEndian))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_tell_what_the_whole_file_tells() {
        for path in ["/proc/self/exe", "/lib/x86_64-linux-gnu/libc.so.6"] {
            let whole = std::fs::read(path).unwrap();
            let some = pieces(&File::open(path).unwrap()).unwrap();
            let rows = |bytes: &[u8]| tables::Module::parse(bytes).unwrap().table().unwrap().rows;
            assert_eq!(some.len(), whole.len());
            assert!(rows(&whole) == rows(&some), "{path}");
            assert!(rows(&whole).len() > 10_000, "{path}");
        }
    }

    #[test]
    fn a_rule_holds_until_the_next() {
        let row = |address, kind| Row { address, rule: Rule { kind, offset: 1, saved: 0 }.encode() };
        let rules = Rules { lowest: 0, rows: vec![row(16, 2), row(32, 3)] };
        let kinds = [15, 16, 31, 32, 1 << 40].map(|address| rules.at(address).kind);
        assert_eq!(kinds, [0, 2, 2, 3, 3]);
        assert_eq!(Rules::default().at(7), Rule::FRAME_POINTER);
    }

    #[test]
    fn what_is_no_program_has_no_pieces() {
        assert!(pieces(&File::open("/etc/passwd").unwrap()).is_none());
    }
}
