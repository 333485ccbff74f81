//! What this process has asked for memory for, with names.
//!
//! Needs neither the profiling thread nor eBPF: all that it tells is in our own memory and in our own files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::CaptureError;
use super::naming::{self, Interpreters};
use super::spaces::Readers;
use crate::heap::malloc_in_use;
use crate::heap::sampled::{self, Allocated, Amount};
use crate::kernel::Frames;
use crate::procfs::ProcfsError;
use crate::procfs::kallsyms::Kallsyms;
use crate::procfs::root::{Buffer, Root};
use crate::profile::fold::{Folder, Named, Place};
use crate::profile::heap::{Heap, Shown, Values};
use crate::profile::modules::{Limits, ModuleId, Modules};
use crate::profile::symbols::{self, Symbols};
use crate::profile::{Function, Kind, Labels, Profile};
use crate::units::{ProcessKey, unix_ns};

/// Ours, whatever else is profiled.
const PROCFS: &str = "/proc";

type Stack = (Vec<Place<ModuleId>>, bool);

/// What the heap was at the end of some time, or what was asked for, and how much more was in use, than at its begin. Takes a while, and
/// memory, for what files have of names; both are given back.
pub fn heap(
    before: Option<&sampled::Heap>,
    after: &sampled::Heap,
    shown: Shown,
) -> Result<Heap, CaptureError> {
    // Before there are names.
    let malloc_in_use = malloc_in_use();
    let open = || Root::open(Path::new(PROCFS)).map_err(|error| refused(&error));
    let mut readers = Readers {
        procfs: open()?,
        buffer: Buffer::default(),
        modules: Modules::new(open()?, Limits::default()),
        rules: HashMap::new(),
        pythons: HashMap::new(),
    };
    let mut symbols = Symbols::new(symbols::Config::default(), open()?, Kallsyms::open(Path::new(PROCFS)));
    let pid = std::process::id();
    let stat = readers.procfs.stat(pid, &mut readers.buffer).map_err(std::io::Error::other)?;
    let process = ProcessKey::from_ticks(pid, stat.starttime);
    let maps = readers.modules.refresh(process).map_err(std::io::Error::other)?;

    let mut interpreters = Interpreters::default();
    let mut stacks: Vec<(Stack, Values)> = Vec::new();
    // Stacks keep their places.
    let mut earlier = before.into_iter().flat_map(sampled::Heap::stacks);
    for stack in after.stacks() {
        let values = since(&stack, earlier.next().as_ref());
        if values == Values::default() {
            continue;
        }
        let user: Vec<u64> = stack.frames.iter().map(|frame| *frame as u64).collect();
        let frames = Frames { kernel: &[], user: &user, python: &[] };
        let places = readers.places(process, Some(&maps), frames, false, &mut interpreters);
        stacks.push(((places, stack.truncated), values));
    }
    let places: HashSet<Place<ModuleId>> =
        stacks.iter().flat_map(|((places, _), _)| places.iter().copied()).collect();
    let places: Vec<Place<ModuleId>> = places.into_iter().collect();
    let named = naming::named(&places, &interpreters, &mut readers, &mut symbols);
    let mut named: HashMap<Place<ModuleId>, Named> = places.into_iter().zip(named).collect();

    let mut folder = Folder::default();
    for ((places, truncated), values) in &mut stacks {
        let ours = places.iter().take_while(|place| named.get(place).is_some_and(is_allocator)).count();
        places.drain(..ours);
        if let Some(innermost) = places.first().and_then(|place| named.get_mut(place)) {
            let library = innermost.lines.iter().take_while(|(function, _)| is_of_library(function)).count();
            innermost.lines.drain(..library.min(innermost.lines.len().saturating_sub(1)));
        }
        let Amount { objects, bytes } = values.shown(shown);
        let amount = |number: i64| number.max(0).cast_unsigned();
        folder.add(nobody(), places.iter().copied(), *truncated, amount(objects), amount(bytes));
    }
    let numbers = folder.places().iter().zip(0u32..).map(|(place, number)| (*place, number));
    let numbers: HashMap<Place<ModuleId>, u32> = numbers.collect();
    let mut values: HashMap<(Vec<u32>, bool), Values> = HashMap::new();
    for ((places, truncated), of_stack) in stacks {
        let stack = places.iter().filter_map(|place| numbers.get(place).copied()).collect();
        let sum = values.entry((stack, truncated)).or_default();
        sum.allocated += of_stack.allocated;
        sum.in_use += of_stack.in_use;
    }
    folder.add_lost(after.unfollowed());
    let named = folder.places().iter().map(|place| named.get(place).cloned().unwrap_or_default()).collect();
    let profile = Profile { started_unix_ns: unix_ns(), ..folder.finish(Kind::Heap, named) };
    let values = profile
        .samples
        .iter()
        .map(|sample| values.get(&(sample.stack.clone(), sample.truncated)).copied().unwrap_or_default());
    Ok(Heap { values: values.collect(), profile, shown, malloc_in_use })
}

fn refused(error: &ProcfsError) -> CaptureError {
    CaptureError::Read(std::io::Error::other(error.to_string()))
}

fn since(stack: &Allocated<'_>, earlier: Option<&Allocated<'_>>) -> Values {
    let (allocated, in_use) =
        earlier.map_or((Amount::default(), Amount::default()), |e| (e.allocated, e.in_use));
    Values { allocated: stack.allocated - allocated, in_use: stack.in_use - in_use }
}

/// Of the allocator itself, or between it and whoever asked it, as what grows all vectors: where every stack begins.
fn is_allocator(named: &Named) -> bool {
    let Some((function, _)) = named.lines.last() else { return false };
    const PARTS: [&str; 5] = [
        "collector::heap::sampled::",
        "::__rust_alloc",
        "::__rust_realloc",
        "alloc::alloc::",
        "alloc::raw_vec::",
    ];
    PARTS.iter().any(|part| function.name.contains(part))
}

/// What the library has between whoever asks and the allocator, inlined into the former: of `Box`, `Vec` and their like.
fn is_of_library(function: &Function) -> bool {
    function.name.contains("__rust_")
        || ["/library/alloc/src/", "/library/core/src/"].iter().any(|of| function.file.contains(of))
}

/// Memory belongs to no thread.
fn nobody() -> Labels {
    Labels {
        pool: "".into(),
        slot: None,
        pid: 0,
        tid: 0,
        thread: "".into(),
        state: "",
        reason: None,
        ended_unix_ns: None,
    }
}
