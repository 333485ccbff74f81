//! The embedded object: parsed, its maps made, its programs relocated and loaded one by one.
//!
//! aya-obj parses and relocates, aya speaks to the maps; loading is a few lines of bpf(2) here. aya's own loader reads
//! and parses the kernel's BTF twice and probes for features that every kernel with task storage has: that was 35 of
//! 60 ms of CPU at start. Knows nothing of what the programs do.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::{Map, MapData, MapError};
use aya_obj::btf::BtfFeatures;
use aya_obj::generated::bpf_insn;
use aya_obj::{EbpfSectionKind, Object as Parsed};
use thiserror::Error;

use super::sys::{self, TracingProgram};

/// Room for the verifier's log of a refused program.
const LOG_BYTES: usize = 1 << 20;

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
        program: &'static str,
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

    /// Loads a program for the tracepoint or iterator with this BTF id.
    pub(super) fn load(
        &self,
        name: &'static str,
        attach_btf_id: u32,
        iterator: bool,
    ) -> Result<OwnedFd, ObjectError> {
        let (instructions, license) = self
            .programs
            .get(name)
            .ok_or_else(|| ObjectError::Malformed(format!("it has no program {name}")))?;
        let program = TracingProgram { name, instructions, license, attach_btf_id, iterator };
        sys::program_load(program, None).map_err(|error| {
            // Once more for the reason: with a log the verifier takes several times as long.
            let mut log = vec![0; LOG_BYTES];
            let log = match sys::program_load(program, Some(&mut log)) {
                Ok(_) => String::new(),
                Err(_) => shown(&log),
            };
            ObjectError::Program { program: name, error, log }
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
