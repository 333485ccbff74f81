//! Targets of [`crate::fuzz`]: what files, memory and text of those who are profiled are taken for.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use collector_ebpf::unwind::Row;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::elf::Elf;
use super::image::{Image, debug_link_of, has_debug, supplement_of};
use super::python::Runtime;
use super::{names, perf_map, rules, tables};

/// Of a copy, bytes.
const LIMIT: u64 = 1 << 20;

/// A file that has these bytes.
fn file_of(bytes: &[u8]) -> Option<File> {
    let file = File::from(memfd_create("collector-fuzz", MFdFlags::MFD_CLOEXEC).ok()?);
    file.write_all_at(bytes, 0).ok()?;
    Some(file)
}

/// A file that a process has mapped, in all ways in which it is read.
pub(crate) fn elf(bytes: &[u8]) {
    let Some(file) = file_of(bytes) else { return };
    if let Some(elf) = Elf::read(&file) {
        let kept: usize = elf.sections(&file).into_iter().flatten().map(|section| section.name.len()).sum();
        assert!(kept <= 1 << 20, "names of sections take {kept} bytes");
    }
    let _ = (debug_link_of(&file), supplement_of(&file), has_debug(&file));
    for debug in [true, false] {
        if let Some(image) = Image::copy(&file, debug, LIMIT, None) {
            // What is not sections is headers and names of as many as there are.
            assert!(image.bytes <= LIMIT + (1 << 20), "a copy of {} bytes", image.bytes);
        }
    }
    if let Some(pieces) = rules::pieces(&file) {
        assert_eq!(pieces.len(), bytes.len());
    }
    let _ = Runtime::of(&file);
}

/// The whole way from a file to its rules.
pub(crate) fn tables(bytes: &[u8]) {
    if let Ok(Ok(table)) = tables::Module::parse(bytes).map(|module| module.table()) {
        sound(&table.rows);
    }
}

/// `.eh_frame` alone.
pub(crate) fn eh_frame(bytes: &[u8]) {
    if let Ok(table) = tables::table_of_section(bytes) {
        sound(&table.rows);
    }
}

fn sound(rows: &[Row]) {
    assert!(rows.is_sorted_by(|one, next| one.address < next.address && one.rule != next.rule));
}

/// What a just-in-time compiler wrote.
pub(crate) fn perf_map(bytes: &[u8]) {
    let symbols = perf_map::parse(bytes);
    assert!(symbols.is_sorted_by(|one, next| one.end <= next.start));
    assert!(symbols.iter().all(|symbol| symbol.start < symbol.end && !symbol.name.is_empty()));
    if let Some(map) = file_of(bytes).and_then(|file| {
        use std::io::Seek as _;
        (&file).rewind().ok()?;
        perf_map::PerfMap::read(&file)
    }) {
        for symbol in &symbols {
            assert_eq!(map.name(symbol.start), Some(symbol.name));
        }
    }
}

/// A code object in memory, at an address that the first bytes say.
pub(crate) fn python(bytes: &[u8]) {
    let Some((address, memory)) = bytes.split_first_chunk() else { return };
    let Some(memory) = file_of(memory) else { return };
    let address = u64::from_le_bytes(*address);
    for runtime in Runtime::of_all_versions() {
        let _ = runtime.frames(address);
        if let Some(function) = runtime.function(&memory, address) {
            assert!(function.name.chars().count() <= 256 && function.file.chars().count() <= 256);
        }
    }
}

/// A name of a function. The first byte is a limit.
pub(crate) fn names(bytes: &[u8]) {
    let Some((limit, name)) = bytes.split_first() else { return };
    // Room for the mark, at least.
    let limit = usize::from(*limit).max(3);
    let name = String::from_utf8_lossy(name);
    assert!(names::demangle(&name, limit).len() <= limit);
    assert!(names::cut(&name, limit).len() <= limit);
}

/// Small programs and libraries that every machine has, and the vdso.
pub(crate) fn programs() -> Vec<Vec<u8>> {
    ["/bin/true", "/lib/x86_64-linux-gnu/libdl.so.2", "/lib/x86_64-linux-gnu/libutil.so.1"]
        .iter()
        .filter_map(|path| std::fs::read(path).ok())
        .collect()
}

/// `.eh_frame` of them.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    programs().iter().filter_map(|program| section(program, b".eh_frame")).collect()
}

fn section(program: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let file = file_of(program)?;
    let sections = Elf::read(&file)?.sections(&file)?;
    let header = sections.iter().find(|section| section.name == name)?.header;
    let (at, size) = (header.sh_offset.get(object::NativeEndian), header.sh_size.get(object::NativeEndian));
    Some(program.get(usize::try_from(at).ok()?..)?.get(..usize::try_from(size).ok()?)?.to_vec())
}

/// As node and java write them.
pub(crate) fn perf_maps() -> Vec<Vec<u8>> {
    let all: [&[u8]; 2] = [
        b"7f1000 40 LazyCompile:*f /a b.js:1\n7f1020 80 JS:~g native\n0x7f1000 0x10 Builtin:h\n",
        b"7f00000000a0 20 Interpreter\n7f0000000080 180 int java.lang.String.hashCode()\nffffffffffffff00 ff end\n",
    ];
    all.map(<[u8]>::to_vec).to_vec()
}

/// A code object at address 0, of a file and a function whose names are ASCII, and others are wide.
pub(crate) fn objects() -> Vec<Vec<u8>> {
    // Kind and what is told beside it: compact, ASCII.
    let object = |kind: u32, flags: u32, length: u64, header: usize| {
        let mut bytes = vec![0u8; 1024];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        for at in [68, 72] {
            put(8 + at, &7u32.to_le_bytes());
        }
        for (at, text) in [(112, 200u64), (128, 500)] {
            put(8 + at, &text.to_le_bytes());
            let text = 8 + text as usize;
            put(text + 16, &length.to_le_bytes());
            put(text + 32, &(kind << 2 | flags).to_le_bytes());
            put(text + header, b"n\0\0\0a\0\0\0m\0\0\0e\0\0\0");
        }
        bytes
    };
    let (compact, ascii) = (1 << 5, 1 << 6);
    vec![object(1, compact | ascii, 8, 40), object(2, compact, 8, 56), object(4, compact, 4, 72)]
}

/// Of Rust and of C++, each after a limit.
pub(crate) fn mangled() -> Vec<Vec<u8>> {
    let all: [&[u8]; 4] = [
        b"\x50_ZN4core3fmt5write17h0123456789abcdefE",
        b"\x50_RNvXs_NtC6_123foo3barINtB4_3VecpENtNtC4core3fmt5Debug3fmt",
        b"\x50_ZNSt6vectorISt4pairIiSsESaIS1_EE9push_backERKS1_",
        b"\x20_Z1fIiJS_DpT_EEvT_S0_PFvvE",
    ];
    all.map(<[u8]>::to_vec).to_vec()
}
