//! Stacks of many threads folded into one profile: equal ones counted once, every place looked up once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::{Function, Kind, Labels, Line, Location, Losses, Mapping, Profile, Sample};
use crate::units::ProcessKey;

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place<M> {
    /// An address of the kernel.
    Kernel(u64),
    /// A virtual address of a file.
    Module(M, u64),
    /// An address of a process that is in no file.
    Memory(ProcessKey, u64),
    /// Code of an interpreter, at an address of a process.
    Interpreted(ProcessKey, u64),
}

/// What is known of a place.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// What it is in; `None` for what is in no file.
    pub mapping: Option<Mapping>,
    /// Functions, the innermost of those that were inlined first, with the line that it is at.
    pub lines: Vec<(Function, u32)>,
}

/// A profile in the making.
#[derive(Debug)]
pub struct Folder<M> {
    places: Table<Place<M>>,
    labels: Table<Labels>,
    samples: Samples,
}

/// Samples, those with the same stack and labels counted together, and what of them is not whole.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// Count and value by labels, stack, and whether it is truncated.
    sums: HashMap<(u32, Vec<u32>, bool), (u64, u64)>,
    pub(super) losses: Losses,
}

impl Samples {
    pub(super) fn add(&mut self, labels: u32, stack: Vec<u32>, truncated: bool, count: u64, value_ns: u64) {
        let sum = self.sums.entry((labels, stack, truncated)).or_default();
        sum.0 += count;
        sum.1 += value_ns;
        self.losses.samples += count;
        if truncated {
            self.losses.truncated += count;
        }
    }

    /// In the order of a profile: that of a hash map is another each time.
    pub(super) fn finish(self) -> (Vec<Sample>, Losses) {
        let samples = self.sums.into_iter().map(|((labels, stack, truncated), (count, value_ns))| Sample {
            stack,
            labels,
            count,
            value_ns,
            truncated,
        });
        let mut samples: Vec<Sample> = samples.collect();
        samples.sort_by(|a, b| {
            b.value_ns.cmp(&a.value_ns).then_with(|| (a.labels, &a.stack).cmp(&(b.labels, &b.stack)))
        });
        (samples, self.losses)
    }
}

/// Values with numbers in the order in which they came.
#[derive(Debug)]
pub(super) struct Table<T> {
    numbers: HashMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), values: Vec::new() }
    }
}

impl<T: Clone + Eq + Hash> Table<T> {
    pub(super) fn number(&mut self, value: T) -> u32 {
        match self.numbers.entry(value) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
                self.values.push(new.key().clone());
                *new.insert(number)
            }
        }
    }
}

impl<T> Table<T> {
    pub(super) fn into_values(self) -> Vec<T> {
        self.values
    }
}

impl<M> Default for Folder<M> {
    fn default() -> Self {
        Self { places: Table::default(), labels: Table::default(), samples: Samples::default() }
    }
}

impl<M: Copy + Eq + Hash> Folder<M> {
    /// Adds a stack, the innermost frame first, that was found so often, for so long altogether.
    pub fn add(
        &mut self,
        labels: Labels,
        stack: impl Iterator<Item = Place<M>>,
        truncated: bool,
        count: u64,
        value_ns: u64,
    ) {
        let stack: Vec<u32> = stack.map(|place| self.places.number(place)).collect();
        let labels = self.labels.number(labels);
        self.samples.add(labels, stack, truncated, count, value_ns);
    }

    /// Samples that there was no room for.
    pub fn add_lost(&mut self, lost: u64) {
        self.samples.losses.lost += lost;
    }

    /// Waits that were not looked at.
    pub fn add_passed_over(&mut self, count: u64) {
        self.samples.losses.passed_over += count;
    }

    /// All places, each once.
    pub fn places(&self) -> &[Place<M>] {
        &self.places.values
    }

    /// Makes the profile. `named` is what is known of each of [`Self::places`], in their order.
    pub fn finish(self, kind: Kind, named: Vec<Named>) -> Profile {
        let (mut mappings, mut functions) = (Table::default(), Table::default());
        let mut named = named.into_iter();
        // Where the kernel is in memory is nobody's business, nor where processes are: distances will do.
        let kernel = self.places.values.iter().filter_map(|place| match place {
            Place::Kernel(address) => Some(*address),
            _ => None,
        });
        let kernel = kernel.min().unwrap_or(0);
        let locations = self.places.values.iter().map(|place| {
            let Named { mapping, lines } = named.next().unwrap_or_default();
            let address = match *place {
                Place::Kernel(address) => address - kernel,
                Place::Module(_, address) => address,
                Place::Memory(_, address) => address % 4096,
                // It is data to the machine.
                Place::Interpreted(..) => 0,
            };
            Location {
                mapping: mapping.map(|mapping| mappings.number(mapping)),
                address,
                lines: lines
                    .into_iter()
                    .map(|(function, line)| Line { function: functions.number(function), line })
                    .collect(),
            }
        });
        let locations = locations.collect();
        let (samples, losses) = self.samples.finish();
        Profile {
            kind,
            started_unix_ns: 0,
            duration_ns: 0,
            period_ns: 0,
            mappings: mappings.into_values(),
            functions: functions.into_values(),
            locations,
            labels: self.labels.into_values(),
            samples,
            losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn labels(tid: u32) -> Labels {
        Labels {
            pool: "web".into(),
            slot: Some((0, 1)),
            pid: 7,
            tid,
            thread: "worker".into(),
            state: "on_cpu",
            reason: None,
            ended_unix_ns: None,
        }
    }

    fn function(name: &str) -> (Function, u32) {
        let name: Arc<str> = name.into();
        (Function { system_name: Arc::clone(&name), name, file: "a.c".into(), start_line: 1 }, 2)
    }

    #[test]
    fn equal_stacks_are_one_sample_and_each_place_is_named_once() {
        let mut folder = Folder::default();
        let (leaf, main) = (Place::Module(1u8, 0x10), Place::Module(1, 0x20));
        folder.add(labels(8), [leaf, main].into_iter(), false, 3, 30);
        folder.add(labels(8), [leaf, main].into_iter(), false, 1, 10);
        let (inner, outer) = (Place::Kernel(0x1ff), Place::Kernel(0xff));
        folder.add(labels(9), [inner, outer, leaf].into_iter(), true, 2, 20);
        folder.add_lost(5);
        assert_eq!(folder.places(), [leaf, main, inner, outer]);
        let in_file = Mapping {
            start: 0,
            limit: 0x100,
            file_offset: 0,
            path: "/bin/a".into(),
            build_id: String::new(),
            symbolized: true,
        };
        let named = ["leaf", "main"].map(|name| Named {
            mapping: Some(in_file.clone()),
            lines: vec![function(name), function("inlined_by")],
        });
        let profile = folder.finish(Kind::OnCpu, named.into());
        assert_eq!(profile.mappings, [in_file]);
        let names: Vec<&str> = profile.functions.iter().map(|function| &*function.name).collect();
        assert_eq!(names, ["leaf", "inlined_by", "main"]);
        let stacks: Vec<_> =
            profile.samples.iter().map(|s| (&*s.stack, s.count, s.value_ns, s.truncated)).collect();
        assert_eq!(stacks, [(&[0, 1][..], 4, 40, false), (&[2, 3, 0], 2, 20, true)]);
        // Where they are from the lowest one on.
        let address = |address| Location { mapping: None, address, lines: Vec::new() };
        assert_eq!(profile.locations[2..], [address(0x100), address(0)]);
        assert_eq!(profile.losses, Losses { samples: 6, truncated: 2, lost: 5, passed_over: 0 });
    }
}
