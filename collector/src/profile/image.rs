//! What of an ELF file names are looked up in, copied: symbol tables and debug information.
//!
//! The library that reads them maps files. A file that its owner cuts off while it is mapped kills the reader with
//! SIGBUS, also where nobody means harm: `cp` over a library in use does it. So it gets a file of its own, in memory and
//! sealed. The copy is made anew from the few sections that count, with a table of sections and names of our making:
//! without code, which is most of a program, and without links to other files, which the library would follow wherever
//! they lead. Compressed sections are unpacked while they are copied, up to the size that was allowed.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use flate2::read::ZlibDecoder;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use object::elf::{
    CompressionHeader64, ELFCOMPRESS_ZLIB, FileHeader64, SHF_COMPRESSED, SHT_NOBITS, SHT_PROGBITS,
    SHT_STRTAB, SectionHeader64, Sym64,
};
use object::pod::{bytes_of, bytes_of_slice};
use object::{NativeEndian, U16, U32, U64};

use super::elf::{Elf, Section, piece};

const SYMBOLS: [&[u8]; 5] = [b".symtab", b".strtab", b".dynsym", b".dynstr", b".note.gnu.build-id"];
/// Those that functions, lines and inlined functions are in: not where variables are, nor indices of debuggers.
const DEBUG: [&[u8]; 11] = [
    b".debug_abbrev",
    b".debug_addr",
    b".debug_aranges",
    b".debug_info",
    b".debug_line",
    b".debug_line_str",
    b".debug_ranges",
    b".debug_rnglists",
    b".debug_str",
    b".debug_str_offsets",
    b".debug_types",
];
const SUPPLEMENT: &[u8] = b".gnu_debugaltlink";
const NAMES: &[u8] = b".shstrtab";

/// A copy.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    /// How long it is.
    pub(super) bytes: u64,
    /// It has debug information.
    pub(super) debug: bool,
}

/// Another image that has what several have in common (dwz(1)), with its build id.
pub(super) struct Supplement<'a> {
    pub(super) image: &'a Image,
    pub(super) build_id: &'a [u8],
}

impl Image {
    /// Copies what is of use, with debug information if it is wanted and does not make it larger than the limit.
    /// `None` if there is nothing of use, or not within the limit.
    pub(super) fn copy(
        file: &File,
        debug: bool,
        limit: u64,
        supplement: Option<&Supplement<'_>>,
    ) -> Option<Self> {
        let elf = Elf::read(file)?;
        let sections = elf.sections(file)?;
        let length = file.metadata().ok()?.len();
        let kept = |names: &[&[u8]]| -> Vec<Kept<'_>> {
            let wanted = sections.iter().filter(|section| names.contains(&&*section.name));
            wanted.filter_map(|section| Kept::of(section, file, length)).collect()
        };
        let mut kept_sections = kept(&SYMBOLS);
        let size =
            |sections: &[Kept<'_>]| sections.iter().try_fold(0u64, |sum, kept| sum.checked_add(kept.size));
        let symbols = size(&kept_sections).filter(|size| *size <= limit)?;
        let debug_sections = if debug { kept(&DEBUG) } else { Vec::new() };
        let fits = size(&debug_sections)
            .and_then(|size| size.checked_add(symbols))
            .is_some_and(|size| size <= limit);
        let debug = fits && debug_sections.iter().any(|kept| kept.name == b".debug_info");
        if debug {
            kept_sections.extend(debug_sections);
        }
        if !kept_sections.iter().any(|kept| kept.name == b".symtab" || kept.name == b".dynsym") && !debug {
            return None;
        }
        let mut writer = Writer::new().ok()?;
        for section in &kept_sections {
            writer.section(section, file).ok()?;
        }
        if let Some(supplement) = supplement.filter(|_| debug) {
            let mut link = supplement.image.path().into_bytes();
            link.push(0);
            link.extend(supplement.build_id);
            writer.bytes(SUPPLEMENT, &link).ok()?;
        }
        let (file, bytes) = writer.finish(&elf.header).ok()?;
        Some(Self { file, bytes, debug })
    }

    /// Where this process opens it.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }
}

/// Path and build id of the file that a file of debug information refers to, if it does.
pub(super) fn supplement_of(file: &File) -> Option<(Vec<u8>, Vec<u8>)> {
    let link = contents(file, SUPPLEMENT)?;
    let end = link.iter().position(|byte| *byte == 0)?;
    Some((link[..end].to_vec(), link[end + 1..].to_vec()))
}

/// Name and checksum of the file that has the debug information of this one, if it says so.
pub(super) fn debug_link_of(file: &File) -> Option<(Vec<u8>, u32)> {
    let link = contents(file, b".gnu_debuglink")?;
    let end = link.iter().position(|byte| *byte == 0)?;
    let checksum = link.get((end + 1).next_multiple_of(4)..)?.first_chunk()?;
    Some((link[..end].to_vec(), u32::from_ne_bytes(*checksum)))
}

/// It has debug information of its own.
pub(super) fn has_debug(file: &File) -> bool {
    let sections = Elf::read(file).and_then(|elf| elf.sections(file)).unwrap_or_default();
    sections.iter().any(|s| s.name == b".debug_info" && s.header.sh_type.get(NativeEndian) != SHT_NOBITS)
}

/// The bytes of a small section.
fn contents(file: &File, name: &[u8]) -> Option<Vec<u8>> {
    const MAX: u64 = 8192;
    let sections = Elf::read(file)?.sections(file)?;
    let header = sections.iter().find(|section| section.name == name)?.header;
    let size = header.sh_size.get(NativeEndian);
    if size > MAX || header.sh_type.get(NativeEndian) == SHT_NOBITS {
        return None;
    }
    piece(file, header.sh_offset.get(NativeEndian), usize::try_from(size).ok()?)
}

/// A section to be copied.
struct Kept<'a> {
    name: &'a [u8],
    header: &'a SectionHeader64<NativeEndian>,
    /// Where its bytes, packed or not, are in the file.
    from: u64,
    to: u64,
    packed: bool,
    /// Bytes of the copy.
    size: u64,
}

impl<'a> Kept<'a> {
    fn of(section: &'a Section, file: &File, length: u64) -> Option<Self> {
        let header = &section.header;
        let (from, size) = (header.sh_offset.get(NativeEndian), header.sh_size.get(NativeEndian));
        let to = from.checked_add(size).filter(|to| *to <= length)?;
        if header.sh_type.get(NativeEndian) == SHT_NOBITS {
            return None;
        }
        let kept = Self { name: &section.name, header, from, to, packed: false, size };
        if header.sh_flags.get(NativeEndian) & u64::from(SHF_COMPRESSED) == 0 {
            return Some(kept);
        }
        let packing: CompressionHeader64<NativeEndian> = piece(file, from, 1)?.pop()?;
        let from = from.checked_add(size_of_val(&packing) as u64).filter(|from| *from <= to)?;
        let zlib = packing.ch_type.get(NativeEndian) == ELFCOMPRESS_ZLIB;
        zlib.then_some(Self { from, packed: true, size: packing.ch_size.get(NativeEndian), ..kept })
    }
}

/// Reads a part of a file without moving its position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..left], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Writes a new ELF file.
struct Writer {
    file: File,
    length: u64,
    headers: Vec<SectionHeader64<NativeEndian>>,
    names: Vec<u8>,
    buffer: Vec<u8>,
}

impl Writer {
    fn new() -> io::Result<Self> {
        let file = memfd_create("collector-symbols", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let mut file = File::from(file);
        // The header comes last.
        let length = size_of::<FileHeader64<NativeEndian>>();
        file.write_all(&vec![0; length])?;
        // The section of number 0 is none.
        let none = header(0, 0, 0, 0, 0);
        // A multiple of the size of a symbol, so that none is cut.
        let buffer = vec![0; 8192 * size_of::<Sym64<NativeEndian>>()];
        Ok(Self { file, length: length as u64, headers: vec![none], names: vec![0], buffer })
    }

    fn section(&mut self, kept: &Kept<'_>, file: &File) -> io::Result<()> {
        let start = self.begin()?;
        let part = Part { file, at: kept.from, end: kept.to };
        if kept.packed {
            self.copy(ZlibDecoder::new(part), kept)?
        } else {
            self.copy(part, kept)?
        }
        let kind = kept.header.sh_type.get(NativeEndian);
        self.end(kept.name, kind, start, kept.header.sh_entsize.get(NativeEndian));
        Ok(())
    }

    fn copy(&mut self, mut from: impl Read, kept: &Kept<'_>) -> io::Result<()> {
        let symbols = matches!(kept.name, b".symtab" | b".dynsym");
        let mut left = kept.size;
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let chunk = &mut self.buffer[..size];
            from.read_exact(chunk)?;
            if symbols {
                chunk.chunks_exact_mut(size_of::<Sym64<NativeEndian>>()).for_each(limit_size);
            }
            self.file.write_all(chunk)?;
            self.length += size as u64;
            left -= size as u64;
        }
        Ok(())
    }

    fn bytes(&mut self, name: &[u8], contents: &[u8]) -> io::Result<()> {
        let start = self.begin()?;
        self.file.write_all(contents)?;
        self.length += contents.len() as u64;
        self.end(name, SHT_PROGBITS, start, 0);
        Ok(())
    }

    /// Where the next section begins: aligned for every kind of table.
    fn begin(&mut self) -> io::Result<u64> {
        let aligned = self.length.next_multiple_of(16);
        let padding = [0; 16];
        self.file.write_all(&padding[..usize::try_from(aligned - self.length).unwrap_or(0)])?;
        self.length = aligned;
        Ok(aligned)
    }

    fn end(&mut self, name: &[u8], kind: u32, start: u64, entry: u64) {
        let at = u32::try_from(self.names.len()).unwrap_or(0);
        self.names.extend(name);
        self.names.push(0);
        self.headers.push(header(at, kind, start, self.length - start, entry));
    }

    fn finish(mut self, of: &FileHeader64<NativeEndian>) -> io::Result<(File, u64)> {
        let start = self.begin()?;
        // The name of the section of names is in it.
        self.names.extend(NAMES);
        self.names.push(0);
        let at = u32::try_from(self.names.len() - NAMES.len() - 1).unwrap_or(0);
        self.file.write_all(&self.names)?;
        self.length += self.names.len() as u64;
        self.headers.push(header(at, SHT_STRTAB, start, self.length - start, 0));
        let table = self.begin()?;
        let headers = bytes_of_slice(&self.headers);
        self.file.write_all(headers)?;
        self.length += headers.len() as u64;

        let count = u16::try_from(self.headers.len()).map_err(io::Error::other)?;
        let mut ehdr = *of;
        ehdr.e_phoff = U64::new(NativeEndian, 0);
        ehdr.e_phnum = U16::new(NativeEndian, 0);
        ehdr.e_shoff = U64::new(NativeEndian, table);
        ehdr.e_shentsize = U16::new(NativeEndian, size_of::<SectionHeader64<NativeEndian>>() as u16);
        ehdr.e_shnum = U16::new(NativeEndian, count);
        ehdr.e_shstrndx = U16::new(NativeEndian, count - 1);
        self.file.write_all_at(bytes_of(&ehdr), 0)?;
        let seals =
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok((self.file, self.length))
    }
}

fn header(name: u32, kind: u32, offset: u64, size: u64, entry: u64) -> SectionHeader64<NativeEndian> {
    SectionHeader64 {
        sh_name: U32::new(NativeEndian, name),
        sh_type: U32::new(NativeEndian, kind),
        sh_flags: U64::new(NativeEndian, 0),
        sh_addr: U64::new(NativeEndian, 0),
        sh_offset: U64::new(NativeEndian, offset),
        sh_size: U64::new(NativeEndian, size),
        sh_link: U32::new(NativeEndian, 0),
        sh_info: U32::new(NativeEndian, 0),
        sh_addralign: U64::new(NativeEndian, 1),
        sh_entsize: U64::new(NativeEndian, entry),
    }
}

/// A symbol that would reach over the end of the address space gets no size: its reader adds start and size.
fn limit_size(symbol: &mut [u8]) {
    let number = |range: std::ops::Range<usize>| {
        symbol.get(range)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    };
    // Elf64_Sym, elf(5): value and size stand last.
    if let (Some(value), Some(size)) = (number(8..16), number(16..24))
        && value.checked_add(size).is_none()
    {
        symbol[16..24].fill(0);
    }
}
