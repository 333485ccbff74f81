//! What is at the places of a profile.

use std::collections::HashMap;
use std::sync::Arc;

use super::CaptureError;
use super::spaces::Readers;
use crate::kernel::{Names, Sampler, Samplers};
use crate::profile::fold::{Named, Place};
use crate::profile::modules::{Module, ModuleId};
use crate::profile::python::Runtime;
use crate::profile::symbols::{SymbolLine, Symbolized, Symbols};
use crate::profile::{Function, KERNEL, Mapping};
use crate::units::ProcessKey;

/// Addresses that are looked up in one thing, each with the place that it was asked for.
#[derive(Default)]
struct Asked {
    places: Vec<usize>,
    addresses: Vec<u64>,
}

/// The interpreters of processes.
pub(super) type Interpreters = HashMap<ProcessKey, Arc<Runtime>>;

/// Looks all of them up. As many answers as places, in their order.
pub(super) fn named(
    places: &[Place<ModuleId>],
    interpreters: &Interpreters,
    readers: &mut Readers,
    symbols: &mut Symbols,
) -> Vec<Named> {
    let mut kernel = Asked::default();
    let mut of_modules: HashMap<ModuleId, Asked> = HashMap::new();
    let mut of_memory: HashMap<ProcessKey, Asked> = HashMap::new();
    let mut of_interpreters: HashMap<ProcessKey, Asked> = HashMap::new();
    for (index, place) in places.iter().enumerate() {
        let (asked, address) = match *place {
            Place::Kernel(address) => (&mut kernel, address),
            Place::Module(module, address) => (of_modules.entry(module).or_default(), address),
            Place::Memory(process, address) => (of_memory.entry(process).or_default(), address),
            Place::Interpreted(process, code) => (of_interpreters.entry(process).or_default(), code),
        };
        asked.places.push(index);
        asked.addresses.push(address);
    }
    let mut named = vec![Named::default(); places.len()];
    let mut tell = |asked: Asked, found: Vec<Symbolized>, mapping: &dyn Fn(u64) -> Option<Mapping>| {
        for ((index, address), symbolized) in asked.places.iter().zip(asked.addresses).zip(found) {
            named[*index] = Named { mapping: mapping(address), lines: lines(&symbolized) };
        }
    };
    let found = symbols.kernel(&kernel.addresses);
    let symbolized = are_named(&found);
    tell(kernel, found, &|_| Some(kernel_mapping(symbolized)));
    for (id, asked) in of_modules {
        let Some(module) = readers.modules.get(id) else { continue };
        let found = symbols.user(module, &asked.addresses);
        let symbolized = are_named(&found);
        tell(asked, found, &|address| mapping_of(module, address, symbolized));
    }
    for (process, asked) in of_memory {
        let found = symbols.compiled(process, &asked.addresses);
        tell(asked, found, &|_| None);
    }
    for (process, asked) in of_interpreters {
        let Some(runtime) = interpreters.get(&process) else { continue };
        let memory = readers.memory(process);
        for (index, code) in asked.places.iter().zip(asked.addresses) {
            let function = memory.as_ref().and_then(|memory| runtime.function(memory, code));
            named[*index].lines = vec![(function.unwrap_or_else(unknown_python), 0)];
        }
    }
    named
}

/// Learns what is at the places that are in files, for as long as there is time.
pub(super) fn learn_files(
    places: &[Place<ModuleId>],
    readers: &Readers,
    symbols: &mut Symbols,
    is_late: impl Fn() -> bool,
) {
    let mut of_modules: HashMap<ModuleId, Vec<u64>> = HashMap::new();
    for place in places {
        if let Place::Module(module, address) = *place {
            of_modules.entry(module).or_default().push(address);
        }
    }
    for (id, addresses) in of_modules {
        if is_late() {
            return;
        }
        if let Some(module) = readers.modules.get(id) {
            symbols.user(module, &addresses);
        }
    }
}

/// As [`learn_kernel`], of the frames in the kernel of stacks in these places of a sampler's table.
pub(super) fn learn_kernel_of(
    sampler: &Sampler,
    is_wanted: impl Fn(u32) -> bool,
    names: &mut Option<Names>,
    samplers: &Samplers,
    symbols: &mut Symbols,
) {
    let mut addresses = Vec::new();
    sampler.read_some(is_wanted, |_, _, frames| {
        // Of frames that made a call what is named: the call.
        addresses.extend(frames.kernel.iter().flat_map(|address| [*address, address - 1]));
    });
    learn_kernel(&addresses, names, samplers, symbols);
}

/// Learns what is at addresses of the kernel: of those that are not known it is asked, all at once. What it does not say is
/// looked for in a listing of all that it has, when names are needed.
pub(super) fn learn_kernel(
    addresses: &[u64],
    names: &mut Option<Names>,
    samplers: &Samplers,
    symbols: &mut Symbols,
) {
    let unknown = symbols.unknown_of_kernel(addresses);
    if unknown.is_empty() {
        return;
    }
    let loaded = names.take().map_or_else(|| samplers.names(), Ok).map_err(CaptureError::from);
    match loaded.and_then(|loaded| Ok(names.insert(loaded).look_up(&unknown)?)) {
        Ok(found) => symbols.tell_kernel(found.into_iter()),
        Err(error) => tracing::debug!(%error, "the kernel does not name its addresses one by one"),
    }
}

/// Its process has ended, or let go of it.
fn unknown_python() -> Function {
    let name: Arc<str> = "[python]".into();
    Function { system_name: Arc::clone(&name), name, file: "".into(), start_line: 0 }
}

fn lines(symbolized: &Symbolized) -> Vec<(Function, u32)> {
    let line = |line: &SymbolLine| {
        let function = Function {
            name: Arc::clone(&line.name),
            system_name: Arc::clone(&line.system_name),
            file: Arc::clone(&line.file),
            start_line: line.start_line,
        };
        (function, line.line)
    };
    symbolized.lines.iter().map(line).collect()
}

/// The kernel, from the lowest of its addresses that is in the profile on.
fn kernel_mapping(symbolized: bool) -> Mapping {
    Mapping {
        start: 0,
        limit: 1 << 48,
        file_offset: 0,
        path: KERNEL.into(),
        build_id: String::new(),
        symbolized,
    }
}

/// Some of them are. Of a mapping without any, whoever reads the profile may try to look them up.
fn are_named(found: &[Symbolized]) -> bool {
    found.iter().any(|symbolized| !symbolized.lines.is_empty())
}

/// The segment of a file that an address is in.
fn mapping_of(module: &Module, address: u64, symbolized: bool) -> Option<Mapping> {
    let segment = module.segment_of(address)?;
    Some(Mapping {
        start: segment.address,
        limit: segment.address.saturating_add(segment.size),
        file_offset: segment.file_offset,
        path: Arc::clone(&module.path),
        build_id: module.build_id.clone(),
        symbolized,
    })
}

/// How many of the innermost frames of the kernel are not of what the thread did, but of us who look at it: those of the
/// tracepoint and of the program that it runs.
pub(super) fn frames_of_ours(kernel: &[u64], symbols: &mut Symbols) -> usize {
    const OURS: [&str; 5] = ["bpf_", "__bpf_", "__traceiter_", "trace_call_bpf", "perf_trace_run_bpf"];
    /// More than there ever are.
    const MOST: usize = 8;
    let innermost = &kernel[..kernel.len().min(MOST)];
    let found = symbols.kernel(innermost);
    let ours = |symbolized: &&Symbolized| {
        symbolized.lines.first().is_some_and(|line| OURS.iter().any(|name| line.name.starts_with(name)))
    };
    found.iter().take_while(ours).count()
}
