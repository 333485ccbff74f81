//! What a sampler is told of address spaces: where code is mapped, and by which rules its callers are found.

use std::collections::HashMap;
use std::sync::Arc;

use collector_ebpf::sample::{Code, Space, Stack};

use super::key_of;
use crate::kernel::Sampler;
use crate::procfs::root::{Buffer, Root};
use crate::profile::modules::{Mapped, ModuleId, Modules, ProcessMaps};
use crate::profile::rules::Rules;
use crate::units::{Pid, ProcessKey};

/// What is read of processes, for all samplers.
pub(super) struct Readers {
    pub(super) procfs: Root,
    pub(super) buffer: Buffer,
    pub(super) modules: Modules,
    pub(super) rules: HashMap<ModuleId, Arc<Rules>>,
}

impl Readers {
    /// Lets go of all that was read.
    pub(super) fn clear(&mut self) {
        self.modules.clear();
        self.rules.clear();
    }

    /// Rows of the rules that are known.
    pub(super) fn rows(&self) -> usize {
        self.rules.values().map(|rules| rules.rows.len()).sum()
    }

    /// What tells the address space of a process from another program's, and its start.
    fn identity(&mut self, pid: Pid) -> Option<(ProcessKey, u64, u64)> {
        let stat = self.procfs.stat(pid, &mut self.buffer).ok()?;
        Some((ProcessKey::from_ticks(pid, stat.starttime), stat.startcode, stat.start_brk.unwrap_or(0)))
    }
}

/// What one sampler was told.
#[derive(Default)]
pub(super) struct Spaces {
    /// By the number that the sampler has for them.
    by_number: HashMap<u32, Arc<ProcessMaps>>,
    numbers: HashMap<Vec<Mapped>, u32>,
    /// First row and rows of modules.
    rows: HashMap<ModuleId, (u32, u32)>,
    /// Processes, each with where its program's code begins.
    told: HashMap<ProcessKey, u64>,
}

impl Spaces {
    /// Tells a sampler of the address space of a process. Of one that is gone there is nothing to tell.
    pub(super) fn tell(&mut self, pid: Pid, readers: &mut Readers, sampler: &mut Sampler) {
        let Some(identity) = readers.identity(pid) else { return };
        let (key, start_code, start_brk) = identity;
        let Ok(maps) = readers.modules.refresh(key) else { return };
        // If it called execve(2) in between it is met again.
        if readers.identity(pid) != Some(identity) {
            return;
        }
        let Some(first) = self.number(&maps, readers, sampler) else { return };
        let space = Space { first, count: maps.mapped().len() as u32, start_code, start_brk };
        match sampler.set_space(pid, space) {
            Ok(()) => drop(self.told.insert(key, start_code)),
            Err(error) => tracing::debug!(pid, %error, "a process is sampled without its address space"),
        }
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
        let mut code_of = |mapped: &Mapped| {
            let Mapped { start, end, file_offset, module } = *mapped;
            let unknown = Code { start, end, ..Code::default() };
            let Some(module) = module.and_then(|id| readers.modules.get(id)) else { return unknown };
            let rules = readers.rules.entry(module.id).or_insert_with(|| Arc::new(Rules::of(module)));
            let Some(base) = module.mapped_at(rules.lowest, start, file_offset) else { return unknown };
            let rows = self.rows.get(&module.id).copied().or_else(|| {
                let rows = (sampler.add_rows(&rules.rows)?, rules.rows.len() as u32);
                self.rows.insert(module.id, rows);
                Some(rows)
            });
            rows.map_or(unknown, |(first_row, rows)| Code { start, end, base, first_row, rows })
        };
        let code: Vec<Code> = maps.mapped().iter().map(&mut code_of).collect();
        let number = sampler.add_code(&code)?;
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
        let start_code = self.told.get(&key)?;
        (*start_code == stack.start_code).then_some(modules.known(key)?)
    }
}
