//! The embedded object: parsed, its maps made, its programs relocated and loaded one by one.
//!
//! aya-obj parses and relocates, aya speaks to the maps; loading is a few lines of bpf(2) here. aya's own loader reads
//! and parses the kernel's BTF twice and probes for features that every kernel with task storage has: that was 35 of
//! 60 ms of CPU at start. Knows nothing of what the programs do.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::maps::{Map, MapData, MapError};
use aya_obj::btf::BtfFeatures;
use aya_obj::generated::{BPF_F_MMAPABLE, BPF_PSEUDO_KFUNC_CALL, bpf_func_info, bpf_insn};
use aya_obj::maps::Map as Definition;
use aya_obj::{EbpfSectionKind, Object as Parsed};
use collector_ebpf::kfunc;
use collector_ebpf::offsets::PLACEHOLDER;
use thiserror::Error;

use super::sys::{self, Program, RunBy};

/// Room for the verifier's log of a refused program.
const LOG_BYTES: usize = 1 << 20;

/// `BPF_JMP | BPF_CALL` of `include/uapi/linux/bpf.h`.
const CALL: u8 = 0x85;

/// `BPF_LD | BPF_IMM | BPF_DW` of the same: of a constant of 64 bits the low half, and the next instruction has the high half.
const LOAD_CONSTANT: u8 = 0x18;

/// Of a log, what is shown: its end, where the reason stands.
const LOG_SHOWN: usize = 1200;

/// Why the object or a part of it cannot be used.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The embedded bytes are not what they should be: our bug.
    #[error("the embedded object: {0}")]
    Malformed(String),
    /// The kernel refused the object's types.
    #[error("loading the types of our maps: {0}")]
    Types(io::Error),
    /// The kernel refused a map.
    #[error("map {map}: {error}")]
    Map {
        /// Which.
        map: String,
        /// What it said.
        error: String,
    },
    /// The kernel refused a program.
    #[error("program {program}: {error}{log}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        error: io::Error,
        /// The end of the verifier's log, after `: `.
        log: String,
    },
}

/// What becomes of a map of the object.
pub(super) enum Made<'a> {
    /// It is made, with so many entries if that is said; not of one that the programs address directly, which has one value.
    New(Option<u32>),
    /// It is this one, which was made before.
    Given(BorrowedFd<'a>),
    /// Nothing: the kernel refuses programs that refer to it.
    Not,
}

/// What the names of sections begin with that hold an array which the programs address directly. The rest is its name.
const DIRECT: &str = ".bss.";

/// Descriptor that no map has.
const NO_MAP: RawFd = -1;

/// An object whose maps exist.
pub(super) struct Object {
    maps: HashMap<String, MapData>,
    programs: HashMap<String, Code>,
    types: OwnedFd,
}

/// A program that is relocated.
struct Code {
    instructions: Vec<bpf_insn>,
    license: CString,
    /// Where each of its functions begins, and its type.
    functions: Vec<bpf_func_info>,
}

impl Object {
    /// Makes the maps that are wanted, by name. `globals` replace the initial values of read-only globals; `offsets` are
    /// [those of the kernel's fields](collector_ebpf::offsets::Offsets), in the order of their declaration; `functions` are the
    /// BTF ids of the kernel's functions, in the order of [`kfunc::NAMES`], as far as it has them.
    pub(super) fn open<'a>(
        bytes: &[u8],
        globals: HashMap<&str, (&[u8], bool)>,
        offsets: &[u32],
        functions: &[Option<u32>; kfunc::NAMES.len()],
        made: impl Fn(&str) -> Made<'a>,
    ) -> Result<Self, ObjectError> {
        let malformed = |e: &dyn std::fmt::Display| ObjectError::Malformed(e.to_string());
        let mut object = Parsed::parse(bytes).map_err(|e| malformed(&e))?;
        object.patch_map_data(globals).map_err(|e| malformed(&e))?;
        // Functions, data sections and floats since 5.13; tags and 64-bit enums came later and are taken out.
        let features = BtfFeatures::new(true, true, true, false, true, false, false, false);
        let types = object
            .fixup_and_sanitize_btf(&features)
            .map_err(|e| malformed(&e))?
            .ok_or_else(|| malformed(&"it has no types"))?
            .to_bytes();
        let types = sys::btf_load(&types).map_err(ObjectError::Types)?;

        let mut maps = HashMap::new();
        let mut definitions = Vec::new();
        for (section, mut definition) in object.maps.drain() {
            let direct = section.strip_prefix(DIRECT);
            let name = direct.unwrap_or(&section).to_owned();
            if direct.is_some() {
                make_mappable(&mut definition);
            }
            match made(&name) {
                Made::New(None) => {}
                Made::New(Some(entries)) => definition.set_max_entries(entries),
                Made::Given(map) => {
                    definitions.push((name, map.as_raw_fd(), definition));
                    continue;
                }
                Made::Not => {
                    definitions.push((name, NO_MAP, definition));
                    continue;
                }
            }
            let refused = |error: &dyn std::fmt::Display| ObjectError::Map {
                map: name.clone(),
                error: error.to_string(),
            };
            let map =
                MapData::create(definition.clone(), &name, Some(types.as_fd())).map_err(|e| match e {
                    MapError::CreateError { io_error, .. } => refused(&io_error),
                    other => refused(&other),
                })?;
            if direct.is_none() && !definition.data().is_empty() {
                // aya-obj sets the size of a data section's value to the length of its data.
                sys::global_data_set(map.fd().as_fd(), definition.data()).map_err(|e| refused(&e))?;
            }
            if definition.section_kind() == EbpfSectionKind::Rodata {
                sys::map_freeze(map.fd().as_fd()).map_err(|e| refused(&e))?;
            }
            definitions.push((name.clone(), map.fd().as_fd().as_raw_fd(), definition));
            maps.insert(name, map);
        }
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object
            .relocate_maps(definitions.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &text)
            .map_err(|e| malformed(&e))?;
        object.relocate_calls(&text).map_err(|e| malformed(&e))?;
        let programs = object
            .programs
            .drain()
            .filter_map(|(name, program)| {
                let function = object.functions.get(&program.function_key())?;
                let mut instructions = function.instructions.clone();
                call_kernel_functions(&mut instructions, functions);
                set_offsets(&mut instructions, offsets);
                let functions = function.func_info.func_info.clone();
                Some((name, Code { instructions, license: program.license, functions }))
            })
            .collect();
        Ok(Self { maps, programs, types })
    }

    /// The descriptor of a map that was made and not handed out, once more.
    pub(super) fn map_again(&self, name: &'static str) -> Result<OwnedFd, ObjectError> {
        let refused =
            |error: &dyn std::fmt::Display| ObjectError::Map { map: name.into(), error: error.to_string() };
        let map = self.maps.get(name).ok_or_else(|| refused(&"not in the object"))?;
        map.fd().as_fd().try_clone_to_owned().map_err(|e| refused(&e))
    }

    /// Hands a map out. Programs refer to it whether or not it was taken.
    pub(super) fn take_map<T>(
        &mut self,
        name: &'static str,
        convert: impl FnOnce(Map) -> Result<T, MapError>,
    ) -> Result<T, ObjectError> {
        let refused = |error: String| ObjectError::Map { map: name.into(), error };
        let data = self.take_map_data(name)?;
        Map::from_map_data(data).and_then(convert).map_err(|e| refused(e.to_string()))
    }

    /// Hands out a map that aya has no type for.
    pub(super) fn take_map_data(&mut self, name: &'static str) -> Result<MapData, ObjectError> {
        let missing = || ObjectError::Map { map: name.into(), error: "not in the object".into() };
        self.maps.remove(name).ok_or_else(missing)
    }

    /// Loads a program.
    pub(super) fn load(&self, name: &'static str, run_by: RunBy) -> Result<OwnedFd, ObjectError> {
        let missing = || ObjectError::Malformed(format!("it has no program {name}"));
        let Code { instructions, license, functions } = self.programs.get(name).ok_or_else(missing)?;
        Self::verify(Program { name, instructions, license, functions, types: self.types.as_fd(), run_by })
    }

    fn verify(program: Program<'_>) -> Result<OwnedFd, ObjectError> {
        sys::program_load(program, None).map_err(|error| {
            // Once more for the reason: with a log the verifier takes several times as long.
            let mut log = vec![0; LOG_BYTES];
            let log = match sys::program_load(program, Some(&mut log)) {
                Ok(_) => String::new(),
                Err(_) => shown(&log),
            };
            ObjectError::Program { program: program.name.into(), error, log }
        })
    }
}

/// Lets user space map a map that aya-obj has made of a section, and lets go of what it is to hold at first, which is zeros, as in
/// each new map. One is left: a map with data is one that is addressed directly.
fn make_mappable(definition: &mut Definition) {
    if let Definition::Legacy(section) = definition {
        section.def.map_flags |= BPF_F_MMAPABLE;
        section.data.truncate(1);
        section.data.shrink_to_fit();
    }
}

/// Makes calls of helper numbers that stand for functions of the kernel ([`kfunc`]) calls of those functions. What the
/// kernel lacks stays as it is: the verifier refuses it, unless it is in a branch that is never taken.
fn call_kernel_functions(instructions: &mut [bpf_insn], functions: &[Option<u32>; kfunc::NAMES.len()]) {
    for instruction in instructions {
        let function = instruction.imm.cast_unsigned().checked_sub(kfunc::FIRST);
        if instruction.code == CALL
            && instruction.src_reg() == 0
            && let Some(Some(id)) = function.and_then(|number| functions.get(number as usize))
        {
            instruction.set_src_reg(BPF_PSEUDO_KFUNC_CALL as u8);
            instruction.imm = id.cast_signed();
        }
    }
}

/// Makes constants that stand for offsets those offsets.
fn set_offsets(instructions: &mut [bpf_insn], offsets: &[u32]) {
    for low in 1..instructions.len() {
        let [constant, high] = &mut instructions[low - 1..=low] else { continue };
        if constant.code == LOAD_CONSTANT
            && constant.src_reg() == 0
            && high.imm.cast_unsigned() == PLACEHOLDER
            && let Some(offset) = offsets.get(constant.imm as usize)
        {
            constant.imm = offset.cast_signed();
            high.imm = 0;
        }
    }
}

/// The end of a verifier's log, on one line.
fn shown(log: &[u8]) -> String {
    let length = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    let end = &log[length.saturating_sub(LOG_SHOWN)..length];
    let text = String::from_utf8_lossy(end).trim().replace('\n', " | ");
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calls_that_stand_for_kernel_functions_are_replaced() {
        let call = |register: u8, number: u32| {
            let registers = bpf_insn::new_bitfield_1(0, register);
            bpf_insn {
                code: CALL,
                _bitfield_align_1: [],
                _bitfield_1: registers,
                off: 0,
                imm: number.cast_signed(),
            }
        };
        let (known, unknown) = (kfunc::RDONLY_CAST, kfunc::ITER_TASK_NEW);
        let mut instructions = [call(0, known), call(0, unknown), call(0, 5), call(1, known)];
        let mut functions = [None; kfunc::NAMES.len()];
        functions[7] = Some(77);
        call_kernel_functions(&mut instructions, &functions);
        let now = instructions.map(|instruction| (instruction.src_reg(), instruction.imm.cast_unsigned()));
        assert_eq!(now, [(2, 77), (0, unknown), (0, 5), (1, known)]);
    }

    #[test]
    fn only_the_constants_that_stand_for_offsets_are_replaced() {
        let half = |code: u8, register: u8, imm: u32| bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(0, register),
            off: 0,
            imm: imm.cast_signed(),
        };
        let constant = |register, low, high| [half(LOAD_CONSTANT, register, low), half(0, 0, high)];
        let mut instructions = [
            constant(0, 1, PLACEHOLDER),
            // Another constant, a map's value, and an offset that there is not.
            constant(0, 1, 7),
            constant(2, 1, PLACEHOLDER),
            constant(0, 2, PLACEHOLDER),
        ]
        .concat();
        set_offsets(&mut instructions, &[11, u32::MAX]);
        let now: Vec<u32> = instructions.iter().map(|half| half.imm.cast_unsigned()).collect();
        assert_eq!(now, [u32::MAX, 0, 1, 7, 1, PLACEHOLDER, 2, PLACEHOLDER]);
    }
}
