//! The embedded object: parsed, its maps made, its programs relocated and loaded one by one.
//!
//! aya-obj parses and relocates, aya speaks to the maps; loading is a few lines of bpf(2) here. aya's own loader reads
//! and parses the kernel's BTF twice and probes for features that every kernel with task storage has: that was 35 of
//! 60 ms of CPU at start. Knows nothing of what the programs do.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::{Map, MapData, MapError};
use aya_obj::btf::BtfFeatures;
use aya_obj::generated::bpf_insn;
use aya_obj::{EbpfSectionKind, Object as Parsed};
use collector_ebpf::kfunc;
use thiserror::Error;

use super::sys::{self, Program, RunBy};

/// Room for the verifier's log of a refused program.
const LOG_BYTES: usize = 1 << 20;

/// `BPF_JMP | BPF_CALL` of `include/uapi/linux/bpf.h`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`: the callee is a BTF id of the kernel.
const PSEUDO_KFUNC_CALL: u8 = 2;

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

/// An object whose maps exist.
pub(super) struct Object {
    maps: HashMap<String, MapData>,
    programs: HashMap<String, (Vec<bpf_insn>, CString)>,
}

impl Object {
    /// Makes the maps. `globals` replace the initial values of read-only globals.
    pub(super) fn open(bytes: &[u8], globals: HashMap<&str, (&[u8], bool)>) -> Result<Self, ObjectError> {
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
        for (name, definition) in object.maps.drain() {
            let refused = |error: &dyn std::fmt::Display| ObjectError::Map {
                map: name.clone(),
                error: error.to_string(),
            };
            let map =
                MapData::create(definition.clone(), &name, Some(types.as_fd())).map_err(|e| match e {
                    MapError::CreateError { io_error, .. } => refused(&io_error),
                    other => refused(&other),
                })?;
            if !definition.data().is_empty() {
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
                Some((name, (function.instructions.clone(), program.license)))
            })
            .collect();
        Ok(Self { maps, programs })
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
        let (instructions, license) = self.program(name)?;
        Self::verify(Program { name, instructions, license, run_by })
    }

    /// Loads a program that we run and that calls functions of the kernel, whose BTF ids are in the order of
    /// [`kfunc::NAMES`].
    pub(super) fn load_calling(
        &self,
        name: &'static str,
        functions: [u32; kfunc::NAMES.len()],
    ) -> Result<OwnedFd, ObjectError> {
        let (instructions, license) = self.program(name)?;
        let mut instructions = instructions.to_vec();
        for instruction in &mut instructions {
            let function = instruction.imm.cast_unsigned().checked_sub(kfunc::FIRST);
            if instruction.code == CALL
                && instruction.src_reg() == 0
                && let Some(id) = function.and_then(|number| functions.get(number as usize))
            {
                instruction.set_src_reg(PSEUDO_KFUNC_CALL);
                instruction.imm = id.cast_signed();
            }
        }
        Self::verify(Program { name, instructions: &instructions, license, run_by: RunBy::Us })
    }

    fn program(&self, name: &'static str) -> Result<(&[bpf_insn], &CStr), ObjectError> {
        match self.programs.get(name) {
            Some((instructions, license)) => Ok((instructions, license)),
            None => Err(ObjectError::Malformed(format!("it has no program {name}"))),
        }
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

/// The end of a verifier's log, on one line.
fn shown(log: &[u8]) -> String {
    let length = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    let end = &log[length.saturating_sub(LOG_SHOWN)..length];
    let text = String::from_utf8_lossy(end).trim().replace('\n', " | ");
    if text.is_empty() { text } else { format!(": {text}") }
}
