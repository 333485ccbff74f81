//! The headers of an ELF file: segments, build id, sections. Of 64 bits and this machine's byte order only.
//!
//! Read piece by piece: the file may be replaced or cut off meanwhile, and a mapped file that becomes shorter kills who
//! reads it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use object::elf::{
    ELFCLASS64, ELFMAG, ET_DYN, ET_EXEC, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_LOAD, PT_NOTE,
    ProgramHeader64, SHT_NOBITS, SHT_NOTE, SectionHeader64,
};
use object::{NativeEndian, Pod};

/// More program headers than any file has.
const MAX_SEGMENTS: u16 = 1024;
/// A file that was linked with a section for each function has some 10,000; those are not programs.
const MAX_SECTIONS: u16 = 4096;
/// Names of sections, bytes.
const MAX_NAMES: u64 = 1 << 20;
/// Bytes of a name of a section that are kept. Those that are looked for are shorter; in a table without an end of any name,
/// all of it would be the name of each section.
const MAX_NAME: usize = 64;
/// Notes of a segment, bytes. The build id is among the first.
const MAX_NOTES: u64 = 64 << 10;
/// Bytes of a build id. SHA-1 has 20; a longer one is none.
const MAX_BUILD_ID: usize = 64;

/// A part of a file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the address space of the file.
    pub address: u64,
    /// Where it begins in the file.
    pub file_offset: u64,
    /// Its bytes in the file.
    pub size: u64,
    /// It holds code.
    pub executable: bool,
}

/// What an ELF file says of itself at its beginning.
#[derive(Clone, Debug)]
pub(super) struct Elf {
    pub(super) header: FileHeader64<NativeEndian>,
    pub(super) segments: Vec<Segment>,
    /// Empty if it has none.
    pub(super) build_id: Vec<u8>,
}

/// A section with its name.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) name: Vec<u8>,
    pub(super) header: SectionHeader64<NativeEndian>,
}

impl Elf {
    /// `None` if it is no ELF file of a program or library.
    pub(super) fn read(file: &File) -> Option<Self> {
        let header: FileHeader64<NativeEndian> = piece(file, 0, 1)?.pop()?;
        let loaded = matches!(header.e_type.get(NativeEndian), ET_EXEC | ET_DYN);
        let endian = if cfg!(target_endian = "little") { 1 } else { 2 };
        let ours = header.e_ident.class == ELFCLASS64 && header.e_ident.data == endian;
        if header.e_ident.magic != ELFMAG || !ours || !loaded {
            return None;
        }
        let count = header.e_phnum.get(NativeEndian).min(MAX_SEGMENTS);
        let headers: Vec<ProgramHeader64<NativeEndian>> =
            piece(file, header.e_phoff.get(NativeEndian), count.into())?;
        let mut segments = Vec::new();
        let mut build_id = Vec::new();
        for segment in &headers {
            let (offset, size) = (segment.p_offset.get(NativeEndian), segment.p_filesz.get(NativeEndian));
            match segment.p_type.get(NativeEndian) {
                PT_LOAD => segments.push(Segment {
                    address: segment.p_vaddr.get(NativeEndian),
                    file_offset: offset,
                    size,
                    executable: segment.p_flags.get(NativeEndian) & PF_X != 0,
                }),
                PT_NOTE if build_id.is_empty() => {
                    build_id = build_id_at(file, offset, size).unwrap_or_default();
                }
                _ => {}
            }
        }
        let mut elf = Self { header, segments, build_id };
        if elf.build_id.is_empty() {
            // Those that hold nothing but debug information have their segments, but not always notes in them.
            elf.build_id = elf.build_id_of_sections(file).unwrap_or_default();
        }
        Some(elf)
    }

    fn build_id_of_sections(&self, file: &File) -> Option<Vec<u8>> {
        let sections = self.sections(file)?;
        let notes = sections.iter().filter(|s| s.header.sh_type.get(NativeEndian) == SHT_NOTE);
        notes
            .filter_map(|s| {
                build_id_at(file, s.header.sh_offset.get(NativeEndian), s.header.sh_size.get(NativeEndian))
            })
            .find(|id| !id.is_empty())
    }

    /// Its sections; `None` if the table of them is not as it should be.
    pub(super) fn sections(&self, file: &File) -> Option<Vec<Section>> {
        let count = self.header.e_shnum.get(NativeEndian);
        if count > MAX_SECTIONS {
            return None;
        }
        let headers: Vec<SectionHeader64<NativeEndian>> =
            piece(file, self.header.e_shoff.get(NativeEndian), count.into())?;
        let names = headers.get(usize::from(self.header.e_shstrndx.get(NativeEndian)))?;
        let (offset, size) = (names.sh_offset.get(NativeEndian), names.sh_size.get(NativeEndian));
        if size > MAX_NAMES || names.sh_type.get(NativeEndian) == SHT_NOBITS {
            return None;
        }
        let names: Vec<u8> = piece(file, offset, usize::try_from(size).ok()?)?;
        let name = |header: &SectionHeader64<NativeEndian>| {
            let name = names.get(usize::try_from(header.sh_name.get(NativeEndian)).ok()?..)?;
            let name = &name[..name.len().min(MAX_NAME)];
            Some(name.split(|byte| *byte == 0).next()?.to_vec())
        };
        let named = |header: SectionHeader64<NativeEndian>| Section {
            name: name(&header).unwrap_or_default(),
            header,
        };
        Some(headers.into_iter().map(named).collect())
    }
}

/// As many values as are asked for, from the file. `None` if it is shorter.
pub(super) fn piece<T: Pod>(file: &File, offset: u64, count: usize) -> Option<Vec<T>> {
    // All bytes zero are a value of any plain type; words, as it has to be aligned.
    let (zero, _) = object::pod::from_bytes::<T>(object::pod::bytes_of_slice(&[0u64; 8])).ok()?;
    let mut values = vec![*zero; count];
    file.read_exact_at(object::pod::bytes_of_slice_mut(&mut values), offset).ok()?;
    Some(values)
}

fn build_id_at(file: &File, offset: u64, size: u64) -> Option<Vec<u8>> {
    let notes: Vec<u8> = piece(file, offset, usize::try_from(size.min(MAX_NOTES)).ok()?)?;
    build_id(&notes)
}

/// The build id among notes, elf(5): a header, the name and the contents, both padded to four bytes.
fn build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    while let Some((header, rest)) = notes.split_at_checked(3 * size_of::<u32>()) {
        let number =
            |at: usize| Some(u32::from_ne_bytes(*header.get(at * size_of::<u32>()..)?.first_chunk()?));
        let padded = |size: u32| usize::try_from(size).ok()?.checked_next_multiple_of(4);
        let (name, contents, kind) = (number(0)?, number(1)?, number(2)?);
        let (name, rest) = rest.split_at_checked(padded(name)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            let id = rest.get(..usize::try_from(contents).ok()?)?;
            return (id.len() <= MAX_BUILD_ID).then(|| id.to_vec());
        }
        notes = rest.get(padded(contents)?..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_this_program() {
        let elf = Elf::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert_eq!(elf.segments.iter().filter(|segment| segment.executable).count(), 1);
        let sections = elf.sections(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(sections.iter().any(|section| section.name == b".symtab"));
    }

    #[test]
    fn what_is_no_program_is_none() {
        assert!(Elf::read(&File::open("/proc/self/maps").unwrap()).is_none());
        assert!(Elf::read(&File::open("/etc/passwd").unwrap()).is_none());
    }

    #[test]
    fn names_of_sections_without_an_end_are_cut() {
        // A header, as many sections as are read with the same name, and a table of names without an end of any.
        const HEADER: usize = 64;
        let mut bytes = vec![b'n'; HEADER + usize::from(MAX_SECTIONS) * HEADER + MAX_NAMES as usize];
        bytes[..HEADER + usize::from(MAX_SECTIONS) * HEADER].fill(0);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &ET_DYN.to_le_bytes());
        put(40, &(HEADER as u64).to_le_bytes());
        put(60, &MAX_SECTIONS.to_le_bytes());
        put(HEADER + 24, &(HEADER as u64 * (1 + u64::from(MAX_SECTIONS))).to_le_bytes());
        put(HEADER + 32, &MAX_NAMES.to_le_bytes());
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let sections = Elf::read(&file).unwrap().sections(&file).unwrap();
        assert_eq!(sections.len(), usize::from(MAX_SECTIONS));
        assert!(sections.iter().all(|section| section.name == [b'n'; MAX_NAME]));
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        let mut note = |kind: u32, name: &[u8], contents: &[u8]| {
            for number in [name.len() as u32, contents.len() as u32, kind] {
                notes.extend(number.to_ne_bytes());
            }
            for part in [name, contents] {
                notes.extend(part);
                notes.resize(notes.len().next_multiple_of(4), 0);
            }
        };
        note(1, b"Linux\0", b"abc");
        note(NT_GNU_BUILD_ID, b"GNU\0", &[1, 2, 3, 4, 5]);
        assert_eq!(build_id(&notes), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(build_id(&notes[..notes.len() - 6]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_notes_never_panic(notes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = build_id(&notes);
        }
    }
}
