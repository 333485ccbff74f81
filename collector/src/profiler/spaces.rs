//! What a sampler is told of address spaces: where code is mapped, and by which rules its callers are found.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use collector_ebpf::python::{ENTRY, Python};
use collector_ebpf::sample::{Code, MAX_SPACES, Space, Stack};
use collector_ebpf::unwind::Rule;

use super::naming::Interpreters;
use crate::kernel::{Frames, Sampler};
use crate::procfs::root::{AddressSpace, Buffer, Root};
use crate::profile::fold::Place;
use crate::profile::modules::{Mapped, Module, ModuleId, Modules, ProcessMaps};
use crate::profile::python::Runtime;
use crate::profile::rules::Rules;
use crate::units::{NANOS_PER_TICK, Pid, ProcessKey, monotonic_ns};

/// A process is looked at again after so long at the earliest: what was met in its first moments has not mapped all that it will.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// After twice as long each time, and so long at most: some map more and more.
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_secs(1);

/// Rows of all rules together from which on no more are made, 128 MiB.
const MAX_ROWS: usize = 16 << 20;

/// What is read of processes, for all samplers.
pub(super) struct Readers {
    pub(super) procfs: Root,
    pub(super) buffer: Buffer,
    pub(super) modules: Modules,
    pub(super) rules: HashMap<ModuleId, Arc<Rules>>,
    /// The interpreter in a module; `None` if it has none.
    pub(super) pythons: HashMap<ModuleId, Option<Arc<Runtime>>>,
}

impl Readers {
    /// Lets go of what was read of those who have ended. What was found of them is to be named before.
    pub(super) fn tidy(&mut self) {
        let (procfs, buffer) = (&self.procfs, &mut self.buffer);
        self.modules.retain_processes(|key| {
            procfs.stat(key.pid, buffer).is_ok_and(|stat| stat.starttime == key.start_ticks())
        });
        self.modules.forget_unused();
        self.rules.retain(|id, _| self.modules.get(*id).is_some());
        self.pythons.retain(|id, _| self.modules.get(*id).is_some());
    }

    /// The rules of a module. Without rows if there would be too many of all together.
    fn rules_of(&mut self, module: &Arc<Module>) -> Arc<Rules> {
        if let Some(rules) = self.rules.get(&module.id) {
            return Arc::clone(rules);
        }
        let rules = if self.rows() < MAX_ROWS { Rules::of(module) } else { Rules::default() };
        let rules = Arc::new(rules);
        self.rules.insert(module.id, Arc::clone(&rules));
        rules
    }

    /// Lets go of all that was read.
    pub(super) fn clear(&mut self) {
        self.modules.clear();
        self.rules.clear();
        self.pythons.clear();
    }

    /// Rows of the rules that are known.
    pub(super) fn rows(&self) -> usize {
        self.rules.values().map(|rules| rules.rows.len()).sum()
    }

    /// The memory of a process, to be read; `None` if it is gone or does not let us.
    pub(super) fn memory(&mut self, key: ProcessKey) -> Option<File> {
        let space = self.procfs.address_space(key.pid, &mut self.buffer).ok()?;
        (space.starttime == key.start_ticks()).then(|| space.directory.file("mem").ok()).flatten()
    }

    /// The rule for an address of a process; `None` where it has no code. Where nothing is known of code it has frame pointers,
    /// or so it is hoped.
    pub(super) fn rule_at(&mut self, maps: &ProcessMaps, pc: u64) -> Option<Rule> {
        let Mapped { start, file_offset, module, .. } = *maps.find(pc)?;
        let module = module.and_then(|id| self.modules.get(id).cloned());
        let Some(module) = module else { return Some(Rule::FRAME_POINTER) };
        let rules = self.rules_of(&module);
        let base = module.mapped_at(rules.lowest, start, file_offset);
        Some(base.map_or(Rule::FRAME_POINTER, |base| rules.at(pc.wrapping_sub(base))))
    }

    /// Where frames of a process are. One of the interpreter's own stands for those of the functions that it runs, the innermost of
    /// which comes first until the one that it was called for. `interrupted`: it is to go on with its innermost frame, which is not
    /// of a call.
    pub(super) fn places(
        &self,
        process: ProcessKey,
        maps: Option<&ProcessMaps>,
        frames: Frames<'_>,
        interrupted: bool,
        interpreters: &mut Interpreters,
    ) -> Vec<Place<ModuleId>> {
        let kernel = frames.kernel.iter().enumerate();
        let kernel = kernel.map(|(frame, address)| address - u64::from(frame > 0 || !interrupted));
        let mut places: Vec<Place<ModuleId>> = kernel.map(Place::Kernel).collect();
        let mut python = frames.python.iter().peekable();
        for address in frames.user {
            let in_module = maps.and_then(|maps| maps.find(*address)).and_then(|mapped| {
                let Mapped { start, file_offset, module: Some(id), .. } = *mapped else { return None };
                Some((id, self.modules.get(id)?.address(file_offset + (address - start))?))
            });
            let Some((id, virtual_address)) = in_module else {
                places.push(Place::Memory(process, *address));
                continue;
            };
            let runtime = self.pythons.get(&id).and_then(Option::as_ref);
            let Some(runtime) = runtime
                .filter(|runtime| python.peek().is_some() && runtime.interpreter.contains(&virtual_address))
            else {
                places.push(Place::Module(id, virtual_address));
                continue;
            };
            interpreters.entry(process).or_insert_with(|| Arc::clone(runtime));
            for code in python.by_ref() {
                if code & !ENTRY != 0 {
                    places.push(Place::Interpreted(process, code & !ENTRY));
                }
                if code & ENTRY != 0 {
                    break;
                }
            }
        }
        places
    }

    /// Where the frames of the interpreter are in a process that has mapped one.
    pub(super) fn python_in(&mut self, maps: &ProcessMaps) -> Python {
        let found = maps.mapped().iter().find_map(|mapped| {
            let module = self.modules.get(mapped.module?)?;
            let runtime = self.pythons.entry(module.id).or_insert_with(|| interpreter(module).map(Arc::new));
            let runtime = runtime.as_ref()?;
            let at = module.mapped_at(runtime.address, mapped.start, mapped.file_offset)?;
            Some(runtime.frames(at))
        });
        found.unwrap_or_default()
    }

    /// What tells the address space of a process from another program's, and its start.
    fn identity(&mut self, pid: Pid) -> Option<(ProcessKey, u64, u64)> {
        let AddressSpace { starttime, stat, .. } = self.procfs.address_space(pid, &mut self.buffer).ok()?;
        Some((ProcessKey::from_ticks(pid, starttime), stat.startcode, stat.start_brk.unwrap_or(0)))
    }
}

/// Of CPython, by the name of the file: not every file has to be looked through.
fn interpreter(module: &Module) -> Option<Runtime> {
    let name = module.path.rsplit('/').next()?;
    if !name.contains("python") {
        return None;
    }
    Runtime::of(module.file()?)
}

/// What one sampler was told.
#[derive(Debug, Default)]
pub(super) struct Spaces {
    /// By the number that the sampler has for them.
    by_number: HashMap<u32, Arc<ProcessMaps>>,
    numbers: HashMap<Vec<Mapped>, u32>,
    /// First row and rows of modules.
    rows: HashMap<ModuleId, (u32, u32)>,
    /// Processes that it was told of.
    told: HashMap<ProcessKey, Space>,
    /// There was no room for the code of one.
    was_full: bool,
    looked_at: HashMap<ProcessKey, Looked>,
}

/// A look at a process.
#[derive(Clone, Copy, Debug)]
struct Looked {
    at: Instant,
    /// What tells its address space from another program's.
    program: (u64, u64),
    /// How long until the next one.
    again_after: Duration,
}

impl Spaces {
    /// Not many processes were told of, and there was room for all rules.
    pub(super) fn has_room(&self) -> bool {
        self.looked_at.len() < MAX_SPACES / 2 && !self.was_full
    }

    /// Tells a sampler of a process that it will meet, unless it knows it: it asks if anything has changed.
    pub(super) fn introduce(&mut self, pid: Pid, readers: &mut Readers, sampler: &mut Sampler) {
        let Some((key, start_code, _)) = readers.identity(pid) else { return };
        if self.told.get(&key).is_none_or(|space| space.start_code != start_code) {
            self.tell(pid, readers, sampler);
        }
    }

    /// Tells a sampler of the address space of a process, unless it was looked at a moment ago: or that there is nothing to tell, if
    /// nobody may look at it, or if there is no room. Of one that is gone nothing is told.
    pub(super) fn tell(&mut self, pid: Pid, readers: &mut Readers, sampler: &mut Sampler) {
        let Some(identity) = readers.identity(pid) else { return };
        let (key, start_code, start_brk) = identity;
        // Who cannot be told of is asked for with every sample.
        let (now, program) = (Instant::now(), (start_code, start_brk));
        let last = self.looked_at.get(&key).filter(|last| last.program == program);
        if last.is_some_and(|last| now.duration_since(last.at) < last.again_after) {
            return;
        }
        let again_after = last.map_or(LOOK_AGAIN, |last| (2 * last.again_after).min(LOOK_AGAIN_AT_MOST));
        self.looked_at.insert(key, Looked { at: now, program, again_after });
        let found = self.look_at(identity, readers, sampler);
        // If it called execve(2) in between it is met again.
        if readers.identity(pid) != Some(identity) {
            return;
        }
        // What was known of it before is not all that it has mapped, and better than nothing.
        let before =
            self.told.get(&key).filter(|space| (space.start_code, space.start_brk) == program).copied();
        let again_ns = monotonic_ns() + again_after.as_nanos() as u64;
        let space = Space { again_ns, ..found.or(before).unwrap_or_default() };
        match sampler.set_space(pid, space) {
            Ok(()) if space.start_code != 0 => drop(self.told.insert(key, space)),
            Ok(()) => {}
            Err(error) => tracing::debug!(pid, %error, "a process is sampled without its address space"),
        }
    }

    /// What a process has mapped. `None` if that cannot be read, or there is no room for it.
    fn look_at(
        &mut self,
        (key, start_code, start_brk): (ProcessKey, u64, u64),
        readers: &mut Readers,
        sampler: &mut Sampler,
    ) -> Option<Space> {
        if start_brk == 0 {
            return None;
        }
        let maps = readers.modules.refresh(key).ok()?;
        let first = self.number(&maps, readers, sampler)?;
        let python = readers.python_in(&maps);
        let count = maps.mapped().len() as u32;
        Some(Space { first, count, start_code, start_brk, again_ns: 0, python })
    }

    /// The number of an address space, which the sampler is told of if it is new to it.
    fn number(
        &mut self,
        maps: &Arc<ProcessMaps>,
        readers: &mut Readers,
        sampler: &mut Sampler,
    ) -> Option<u32> {
        if let Some(number) = self.numbers.get(maps.mapped()) {
            return Some(*number);
        }
        if maps.mapped().is_empty() {
            return None;
        }
        let mut full = false;
        let mut code_of = |mapped: &Mapped| {
            let Mapped { start, end, file_offset, module } = *mapped;
            let unknown = Code { start, end, ..Code::default() };
            let Some(module) = module.and_then(|id| readers.modules.get(id).cloned()) else { return unknown };
            let rules = readers.rules_of(&module);
            let Some(base) = module.mapped_at(rules.lowest, start, file_offset) else { return unknown };
            let rows = self.rows.get(&module.id).copied().or_else(|| {
                let first = sampler.add_rows(&rules.rows);
                full |= first.is_none();
                let rows = (first?, rules.rows.len() as u32);
                self.rows.insert(module.id, rows);
                Some(rows)
            });
            rows.map_or(unknown, |(first_row, rows)| Code { start, end, base, first_row, rows })
        };
        let code: Vec<Code> = maps.mapped().iter().map(&mut code_of).collect();
        let number = sampler.add_code(&code);
        self.was_full |= full || number.is_none();
        let number = number?;
        self.numbers.insert(maps.mapped().to_vec(), number);
        self.by_number.insert(number, Arc::clone(maps));
        Some(number)
    }

    /// Where the frames of a stack are to be looked up.
    pub(super) fn maps_of<'a>(&'a self, stack: &Stack, modules: &'a Modules) -> Option<&'a ProcessMaps> {
        if let Some(maps) = self.by_number.get(&stack.space) {
            return Some(maps);
        }
        // Found before its address space was known: as it was soon after, unless that was another program's.
        let key = key_of(stack);
        let space = self.told.get(&key)?;
        (space.start_code == stack.start_code).then_some(modules.known(key)?)
    }
}

/// As `/proc` has it: to the tick.
pub(super) fn key_of(stack: &Stack) -> ProcessKey {
    ProcessKey::from_ticks(stack.pid, stack.start_ns / NANOS_PER_TICK)
}
