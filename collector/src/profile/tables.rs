//! From the bytes of an ELF file to the rules by which the sampling programs find callers in its code without frame
//! pointers: [`collector_ebpf::unwind`].
//!
//! Pure, and any bytes are allowed: files are those of the processes that are watched. Whoever maps a file that
//! others can cut has to expect that reading it ends in a signal; whether to read it first is not decided here. It knows
//! nothing of processes and of where they have mapped a file.
//!
//! Not here, because nothing that we met has it only there: `.debug_frame`, and build ids in no segment of notes.

use collector_ebpf::unwind::Row;
use gimli::{BaseAddresses, EhFrameHdr};
use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};
use thiserror::Error;

use cfi::Frames;

mod cfi;
#[cfg(test)]
mod tests;

/// Linkers make some ten.
const MAX_PROGRAM_HEADERS: usize = 256;
/// Far more than any linker leaves in what can be run: tens.
const MAX_SECTIONS: usize = 1 << 16;
/// Bytes of a segment of notes that is looked at. Usual are hundreds.
const MAX_NOTES: u64 = 64 << 10;
/// Bytes of a build id. Usual are 16, 20 and 32.
const MAX_BUILD_ID: usize = 64;
/// Segments begin on pages, also where their headers do not say so.
const PAGE: u64 = 4096;

/// Why there is no table.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TableError {
    /// The magic number is not there.
    #[error("this is no ELF file")]
    NotElf,
    /// Code of another machine, or 32-bit code.
    #[error("ELF of another machine than x86_64: class {class}, byte order {order}, machine {machine}")]
    Machine {
        /// `EI_CLASS`
        class: u8,
        /// `EI_DATA`
        order: u8,
        /// `e_machine`
        machine: u16,
    },
    /// An object file, or a dump of memory.
    #[error("ELF of type {0}: no program and no library")]
    Type(u16),
    /// Headers contradict themselves or the size of the file.
    #[error("ELF: {what}: {source}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What of it.
        source: object::read::Error,
    },
    /// No segment is loaded, so there are no addresses.
    #[error("ELF: no segment is loaded")]
    NothingLoaded,
    /// More of something than we want to spend time and memory on.
    #[error("ELF: more {what} than {limit}")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many of these, or bytes, are allowed.
        limit: usize,
    },
}

/// A part of a file that is loaded as code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address of its begin.
    pub address: u64,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Bytes in the file.
    pub size: u64,
}

/// A file of code: what is quickly found of it.
#[derive(Debug)]
pub struct Module<'a> {
    /// The lowest virtual address of what is loaded of it, down to a page. Addresses of rows count from here.
    pub lowest: u64,
    /// Code, in the order of the file's headers, which is ascending unless the file is odd.
    pub segments: Vec<Segment>,
    /// GNU build id, hexadecimal; empty if there is none.
    pub build_id: String,
    frames: Option<Frames<'a>>,
}

/// How callers are found in the code of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Ascending, each different from the one before it.
    pub rows: Vec<Row>,
    /// What is not in them.
    pub skipped: Skipped,
}

/// Descriptions of functions that left no or not all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Begin in no code. Linkers leave those of functions that they drop.
    pub outside: u32,
    /// Are 4 GiB or more above the lowest address.
    pub far: u32,
    /// Do not say what they should. What they said before is in the rows.
    pub malformed: u32,
    /// The rest was not read, as where it begins cannot be told.
    pub cut_off: bool,
}

impl<'a> Module<'a> {
    /// Reads the headers of a file, or of an image in memory that is laid out like its file, as the vDSO is.
    pub fn parse(file: &'a [u8]) -> Result<Self, TableError> {
        let header = header(file)?;
        let programs = header.program_headers(LittleEndian, file).map_err(malformed("program headers"))?;
        within("program headers", programs.len(), MAX_PROGRAM_HEADERS)?;
        let loaded = programs.iter().filter(|program| program.p_type(LittleEndian) == elf::PT_LOAD);
        let lowest = loaded.clone().map(|program| program.p_vaddr(LittleEndian)).min();
        let executable = loaded.filter(|program| program.p_flags(LittleEndian) & elf::PF_X != 0);
        let segments = executable.map(|program| Segment {
            address: program.p_vaddr(LittleEndian),
            file_offset: program.p_offset(LittleEndian),
            size: program.p_filesz(LittleEndian),
        });
        Ok(Self {
            lowest: lowest.ok_or(TableError::NothingLoaded)? & !(PAGE - 1),
            segments: segments.collect(),
            build_id: programs.iter().find_map(|program| build_id(file, program)).unwrap_or_default(),
            frames: section(file, header).or_else(|| behind_index(file, programs)),
        })
    }

    /// The file tells of its code. Those that do not, as what Go makes, are believed to have frame pointers.
    pub fn has_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// The rules of its code; none if the file does not tell. This is where the time goes: 1 to 5 ms for
    /// libraries, 25 for node, and never much more than half a second.
    pub fn table(&self) -> Result<Table, TableError> {
        self.frames.map_or(Ok(Table::default()), |frames| cfi::table(frames, self.lowest, &self.segments))
    }
}

/// The rules of a section alone, of a file whose code is all that is below it.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn table_of_section(bytes: &[u8]) -> Result<Table, TableError> {
    const AT: u64 = 1 << 30;
    let segment = Segment { address: 0, file_offset: 0, size: AT };
    cfi::table(Frames { address: AT, bytes }, 0, &[segment])
}

/// The header of a file that can be of use.
fn header(file: &[u8]) -> Result<&FileHeader64<LittleEndian>, TableError> {
    let [0x7f, b'E', b'L', b'F', class, order, ..] = *file else {
        return Err(TableError::NotElf);
    };
    let machine = file.get(18..20).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    if class != elf::ELFCLASS64 || order != elf::ELFDATA2LSB || machine != elf::EM_X86_64 {
        return Err(TableError::Machine { class, order, machine });
    }
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(malformed("header"))?;
    match header.e_type(LittleEndian) {
        elf::ET_EXEC | elf::ET_DYN => Ok(header),
        other => Err(TableError::Type(other)),
    }
}

/// `.eh_frame` by its name. In memory, section headers are named and mostly not there; in files, they can be cut away.
fn section<'a>(file: &'a [u8], header: &FileHeader64<LittleEndian>) -> Option<Frames<'a>> {
    let sections = header.section_headers(LittleEndian, file).ok()?;
    let names =
        sections.get(header.shstrndx(LittleEndian, file).ok()? as usize)?.data(LittleEndian, file).ok()?;
    let section = sections.iter().take(MAX_SECTIONS).find(|section| {
        // Compared in place: the end of a name is not looked for, as it may be far.
        let name = names.get(section.sh_name(LittleEndian) as usize..);
        name.is_some_and(|name| name.starts_with(b".eh_frame\0"))
    })?;
    // Files of debug information have the header of the section, and nothing in it.
    let bytes = section.data(LittleEndian, file).ok().filter(|bytes| !bytes.is_empty())?;
    Some(Frames { address: section.sh_addr(LittleEndian), bytes })
}

/// `.eh_frame` by the index to it, which unwinders at run time use as well. Its end is not said: it ends itself.
fn behind_index<'a>(file: &'a [u8], programs: &[ProgramHeader64<LittleEndian>]) -> Option<Frames<'a>> {
    let index = programs.iter().find(|program| program.p_type(LittleEndian) == elf::PT_GNU_EH_FRAME)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(index.p_vaddr(LittleEndian));
    let bytes = index.data(LittleEndian, file).ok()?;
    let address = EhFrameHdr::new(bytes, gimli::LittleEndian).parse(&bases, 8).ok()?.eh_frame_ptr();
    let address = address.direct().ok()?;
    programs.iter().filter(|program| program.p_type(LittleEndian) == elf::PT_LOAD).find_map(|program| {
        let from = usize::try_from(address.checked_sub(program.p_vaddr(LittleEndian))?).ok()?;
        let bytes = program.data(LittleEndian, file).ok()?.get(from..)?;
        // What follows in the segment may be larger than what is allowed of this.
        let bytes = &bytes[..bytes.len().min(cfi::MAX_BYTES)];
        (!bytes.is_empty()).then_some(Frames { address, bytes })
    })
}

/// The build id, if it is in this segment.
fn build_id(file: &[u8], program: &ProgramHeader64<LittleEndian>) -> Option<String> {
    if program.p_filesz(LittleEndian) > MAX_NOTES {
        return None;
    }
    let mut notes = program.notes(LittleEndian, file).ok()??;
    while let Some(note) = notes.next().ok()? {
        if note.name() == elf::ELF_NOTE_GNU && note.n_type(LittleEndian) == elf::NT_GNU_BUILD_ID {
            let id = note.desc();
            return (id.len() <= MAX_BUILD_ID).then(|| id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    None
}

fn malformed(what: &'static str) -> impl Fn(object::read::Error) -> TableError {
    move |source| TableError::Malformed { what, source }
}

fn within(what: &'static str, count: usize, limit: usize) -> Result<(), TableError> {
    if count > limit { Err(TableError::TooMany { what, limit }) } else { Ok(()) }
}
