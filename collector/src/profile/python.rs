//! CPython, seen from outside: where its interpreter keeps the frames of threads, and what functions these are of.
//!
//! Of 3.11 to 3.13, by the layouts of their headers (`Include/internal`); a build for debugging has another one and is not
//! told apart. What is read of a process is its own business: each length is bounded, and what does not look like a name is
//! none.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use collector_ebpf::python::{DIRECT, ENTRY, FRAME_BYTES, IS_ENTRY, MAX_THREADS, OF_C, Python};
use collector_ebpf::sample::MAX_FRAMES;
use object::NativeEndian;
use object::elf::{SHT_DYNSYM, SHT_SYMTAB, Sym64};

use super::Function;
use super::elf::{Elf, piece};

/// Symbols of a file that are looked through.
const MAX_SYMBOLS: u64 = 1 << 20;
/// Bytes of their names.
const MAX_NAMES: u64 = 16 << 20;
/// Characters of a name; a longer one is cut.
const MAX_NAME: usize = 256;

/// What a file says of the interpreter in it.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Virtual address of `_PyRuntime`.
    pub address: u64,
    /// Virtual addresses of `_PyEval_EvalFrameDefault`: a frame of it stands for frames of Python.
    pub interpreter: Range<u64>,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V3_11,
    V3_12,
    V3_13,
}

impl Version {
    /// Of `Py_Version`, which is as `PY_VERSION_HEX`.
    fn of(hex: u64) -> Option<Self> {
        match hex >> 16 {
            0x030b => Some(Self::V3_11),
            0x030c => Some(Self::V3_12),
            0x030d => Some(Self::V3_13),
            _ => None,
        }
    }
}

impl Runtime {
    /// Of each version, at no address.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn of_all_versions() -> [Self; 3] {
        let of = |version| Self { address: 0, interpreter: 0..0, version };
        [Version::V3_11, Version::V3_12, Version::V3_13].map(of)
    }

    /// Of a file with one; `None` if it has none that we know.
    pub fn of(file: &File) -> Option<Self> {
        let elf = Elf::read(file)?;
        let sections = elf.sections(file)?;
        let kinds = [SHT_DYNSYM, SHT_SYMTAB];
        kinds.into_iter().find_map(|kind| {
            let table = sections.iter().find(|section| section.header.sh_type.get(NativeEndian) == kind)?;
            let names = sections.get(table.header.sh_link.get(NativeEndian) as usize)?;
            let bytes = |section: &super::elf::Section| {
                let header = &section.header;
                (header.sh_offset.get(NativeEndian), header.sh_size.get(NativeEndian))
            };
            let ((at, size), (names_at, names_size)) = (bytes(table), bytes(names));
            let count = size / size_of::<Sym64<NativeEndian>>() as u64;
            if count > MAX_SYMBOLS || names_size > MAX_NAMES {
                return None;
            }
            let symbols: Vec<Sym64<NativeEndian>> = piece(file, at, count as usize)?;
            let names: Vec<u8> = piece(file, names_at, names_size as usize)?;
            let find = |wanted: &[u8]| {
                let symbol = symbols.iter().find(|symbol| {
                    let name = names.get(symbol.st_name.get(NativeEndian) as usize..);
                    name.is_some_and(|name| {
                        name.strip_prefix(wanted).is_some_and(|rest| rest.first() == Some(&0))
                    })
                })?;
                Some((symbol.st_value.get(NativeEndian), symbol.st_size.get(NativeEndian)))
            };
            let (address, _) = find(b"_PyRuntime")?;
            let (version_at, _) = find(b"Py_Version")?;
            let (start, size) = find(b"_PyEval_EvalFrameDefault")?;
            let segment = elf.segments.iter().find(|segment| {
                version_at.checked_sub(segment.address).is_some_and(|within| within < segment.size)
            })?;
            let hex: u64 = *piece(file, version_at - segment.address + segment.file_offset, 1)?.first()?;
            let version = Version::of(hex)?;
            Some(Self { address, interpreter: start..start.checked_add(size)?, version })
        })
    }

    /// What programs need to know, in a process where `_PyRuntime` is at this address.
    pub fn frames(&self, runtime: u64) -> Python {
        let (interpreters, threads) = match self.version {
            Version::V3_11 => (40, 16),
            Version::V3_12 => (40, 72),
            Version::V3_13 => (632, 7344),
        };
        let python = Python {
            interpreters: runtime.wrapping_add(interpreters),
            threads,
            next: 8,
            ..Python::default()
        };
        match self.version {
            Version::V3_11 => Python {
                thread_id: 152,
                frame: 56,
                current: 8,
                previous: 48,
                code: 32,
                entry: 68,
                entry_is: IS_ENTRY,
                ..python
            },
            Version::V3_12 => Python {
                thread_id: 136,
                frame: 56,
                current: 0,
                previous: 8,
                code: 0,
                entry: 70,
                entry_is: OF_C,
                ..python
            },
            Version::V3_13 => Python {
                thread_id: 152,
                frame: 72,
                current: DIRECT,
                previous: 8,
                code: 0,
                entry: 70,
                entry_is: OF_C,
                ..python
            },
        }
    }

    /// The function whose code object is at this address of a process, whose memory this is. `None` if it is none any more.
    pub fn function(&self, memory: &File, code: u64) -> Option<Function> {
        let first_line = match self.version {
            Version::V3_11 => 72,
            Version::V3_12 | Version::V3_13 => 68,
        };
        let line: u32 = read(memory, code.checked_add(first_line)?)?;
        let text = |at: u64| self.text(memory, read(memory, code.checked_add(at)?)?);
        let (file, name) = (text(112)?, text(128)?);
        let name: Arc<str> = name.into();
        Some(Function { system_name: Arc::clone(&name), name, file: file.into(), start_line: line })
    }

    /// A string of Python, which is compact: `PyASCIIObject` or `PyCompactUnicodeObject`, and its characters after that.
    fn text(&self, memory: &File, at: u64) -> Option<String> {
        const LENGTH: u64 = 16;
        const STATE: u64 = 32;
        let length: u64 = read(memory, at.checked_add(LENGTH)?)?;
        let state: u32 = read(memory, at.checked_add(STATE)?)?;
        let (kind, compact, ascii) = (state >> 2 & 7, state >> 5 & 1 != 0, state >> 6 & 1 != 0);
        if !compact || length > 1 << 20 {
            return None;
        }
        let length = (length as usize).min(MAX_NAME);
        let header = match (self.version, ascii) {
            (Version::V3_11, true) => 48,
            (Version::V3_11, false) => 72,
            (_, true) => 40,
            (_, false) => 56,
        };
        let mut bytes = vec![0; length.checked_mul(kind as usize)?];
        memory.read_exact_at(&mut bytes, at.checked_add(header)?).ok()?;
        let text: String = match kind {
            1 => bytes.iter().map(|byte| char::from(*byte)).collect(),
            2 => bytes
                .chunks_exact(2)
                .map(|pair| {
                    char::from_u32(u16::from_ne_bytes([pair[0], pair[1]]).into()).unwrap_or('\u{fffd}')
                })
                .collect(),
            4 => bytes
                .chunks_exact(4)
                .map(|four| {
                    char::from_u32(u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
                        .unwrap_or('\u{fffd}')
                })
                .collect(),
            _ => return None,
        };
        Some(text)
    }
}

/// The frames of a thread that does not run, as the sampling programs tell them: addresses of code, the innermost first, and
/// [`ENTRY`]. `thread_id` is what `pthread_self` tells it.
pub fn frames(python: &Python, thread_id: u64, memory: &File) -> Vec<u64> {
    let mut frames = Vec::new();
    let mut at = first_frame(python, thread_id, memory);
    while let Some(address) = at.filter(|address| *address != 0 && frames.len() < MAX_FRAMES) {
        let Some(words) = piece::<u64>(memory, address, FRAME_BYTES / 8) else { break };
        let word = |distance: u16| words.get(usize::from(distance) / 8).copied().unwrap_or(0);
        let entry = word(python.entry) >> (python.entry % 8 * 8) & 0xff;
        let code = word(python.code) & !ENTRY;
        frames.push(match python.entry_is {
            OF_C if entry == u64::from(OF_C) => ENTRY,
            IS_ENTRY if entry != 0 => code | ENTRY,
            _ => code,
        });
        at = Some(word(python.previous));
    }
    frames
}

fn first_frame(python: &Python, thread_id: u64, memory: &File) -> Option<u64> {
    let at = |from: u64, distance: u16| read::<u64>(memory, from.checked_add(distance.into())?);
    let mut thread = at(read(memory, python.interpreters)?, python.threads)?;
    for _ in 0..MAX_THREADS {
        if thread == 0 {
            return None;
        }
        if at(thread, python.thread_id)? == thread_id {
            let frame = at(thread, python.frame)?;
            return if python.current == DIRECT { Some(frame) } else { at(frame, python.current) };
        }
        thread = at(thread, python.next)?;
    }
    None
}

fn read<T: object::Pod>(memory: &File, at: u64) -> Option<T> {
    piece(memory, at, 1)?.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_interpreter_has_no_runtime() {
        assert!(Runtime::of(&File::open("/proc/self/exe").unwrap()).is_none());
        assert!(Runtime::of(&File::open("/etc/passwd").unwrap()).is_none());
    }

    #[test]
    fn versions_are_told_by_their_number() {
        assert_eq!(Version::of(0x030b_02f0), Some(Version::V3_11));
        assert_eq!(Version::of(0x030d_00f0), Some(Version::V3_13));
        assert_eq!(Version::of(0x030a_0df0), None);
        assert_eq!(Version::of(u64::MAX), None);
    }
}
