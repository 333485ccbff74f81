//! Profiles of times after each other as one.

use std::collections::HashMap;
use std::mem::size_of;

use super::fold::{Samples, Table};
use super::{Function, KERNEL, Kind, Labels, Line, Location, Mapping, Profile};

/// Profiles of one kind, the oldest first, as one of those whom `has` says: `None` if there are none. What was lost is that of
/// all.
pub fn merged<'a>(
    profiles: impl IntoIterator<Item = &'a Profile>,
    has: impl Fn(&Labels) -> bool,
) -> Option<Profile> {
    let mut profiles = profiles.into_iter().peekable();
    let first = profiles.peek()?;
    let (kind, started_unix_ns) = (first.kind, first.started_unix_ns);
    let mut merge = Merge::default();
    for profile in profiles {
        merge.add(profile, &has);
    }
    Some(merge.finish(kind, started_unix_ns))
}

/// Where a frame is, in the tables of what is being made.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Known {
    mapping: Option<u32>,
    /// `None` of the kernel where it is named: a profile has only distances there, which differ from one to the next.
    address: Option<u64>,
    lines: Vec<Line>,
}

#[derive(Default)]
struct Merge {
    mappings: Table<Mapping>,
    functions: Table<Function>,
    locations: HashMap<Known, u32>,
    placed: Vec<Location>,
    labels: Table<Labels>,
    samples: Samples,
    duration_ns: u64,
    /// Of the last one.
    period_ns: u64,
}

impl Merge {
    fn add(&mut self, profile: &Profile, has: impl Fn(&Labels) -> bool) {
        self.duration_ns += profile.duration_ns;
        self.period_ns = profile.period_ns;
        self.samples.losses.lost += profile.losses.lost;
        self.samples.losses.passed_over += profile.losses.passed_over;
        let mut locations = HashMap::new();
        for sample in &profile.samples {
            let Some(labels) = profile.labels.get(sample.labels as usize).filter(|labels| has(labels)) else {
                continue;
            };
            let labels = self.labels.number(labels.clone());
            let stack = sample.stack.iter().filter_map(|index| {
                if let Some(number) = locations.get(index) {
                    return Some(*number);
                }
                let number = self.location(profile, profile.locations.get(*index as usize)?);
                locations.insert(*index, number);
                Some(number)
            });
            let stack = stack.collect();
            self.samples.add(labels, stack, sample.truncated, sample.count, sample.value_ns);
        }
    }

    fn location(&mut self, profile: &Profile, location: &Location) -> u32 {
        let mapping = location.mapping.and_then(|index| profile.mappings.get(index as usize));
        let lines = location.lines.iter().filter_map(|line| {
            let function = self.functions.number(profile.functions.get(line.function as usize)?.clone());
            Some(Line { function, line: line.line })
        });
        let lines: Vec<Line> = lines.collect();
        let has_address = lines.is_empty() || mapping.is_none_or(|mapping| *mapping.path != *KERNEL);
        let mapping = mapping.map(|mapping| self.mappings.number(mapping.clone()));
        let address = has_address.then_some(location.address);
        let placed = &mut self.placed;
        *self.locations.entry(Known { mapping, address, lines }).or_insert_with_key(|known| {
            let Known { mapping, lines, .. } = known.clone();
            placed.push(Location { mapping, address: location.address, lines });
            placed.len() as u32 - 1
        })
    }

    fn finish(self, kind: Kind, started_unix_ns: u64) -> Profile {
        let (samples, losses) = self.samples.finish();
        let profile = Profile {
            kind,
            started_unix_ns,
            duration_ns: self.duration_ns,
            period_ns: self.period_ns,
            mappings: self.mappings.into_values(),
            functions: self.functions.into_values(),
            locations: self.placed,
            labels: self.labels.into_values(),
            samples,
            losses,
        };
        profile.with_period_of_samples()
    }
}

/// Bytes that a profile takes in memory, about: what several have in common counts for each.
pub fn size_of_profile(profile: &Profile) -> usize {
    fn flat<T>(values: &[T]) -> usize {
        size_of_val(values)
    }
    let lines: usize = profile.locations.iter().map(|location| flat(&location.lines)).sum();
    let stacks: usize = profile.samples.iter().map(|sample| flat(&sample.stack)).sum();
    let names: usize = profile
        .functions
        .iter()
        .map(|function| function.name.len() + function.system_name.len() + function.file.len())
        .sum();
    let mappings: usize =
        profile.mappings.iter().map(|mapping| mapping.path.len() + mapping.build_id.len()).sum();
    let labels: usize = profile.labels.iter().map(|labels| labels.pool.len() + labels.thread.len()).sum();
    size_of::<Profile>()
        + flat(&profile.mappings)
        + flat(&profile.functions)
        + flat(&profile.locations)
        + flat(&profile.labels)
        + flat(&profile.samples)
        + lines
        + stacks
        + names
        + mappings
        + labels
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::profile::{Losses, Sample};

    /// A profile of pools, each with a stack of named functions of these, and how often it was found.
    fn profile(started_unix_ns: u64, samples: &[(&str, &[&str], u64)]) -> Profile {
        let (mut functions, mut labels) = (Table::default(), Table::default());
        let mut made = Vec::new();
        for (pool, stack, count) in samples {
            let stack = stack.iter().map(|name| {
                let name: Arc<str> = (*name).into();
                functions.number(Function {
                    system_name: Arc::clone(&name),
                    name,
                    file: "".into(),
                    start_line: 0,
                })
            });
            let stack = stack.collect();
            let labels = labels.number(Labels {
                pool: (*pool).into(),
                slot: None,
                pid: 1,
                tid: 1,
                thread: "".into(),
                state: "on_cpu",
                reason: None,
                ended_unix_ns: None,
            });
            let (value_ns, truncated) = (count * 10, *count == 1);
            made.push(Sample { stack, labels, count: *count, value_ns, truncated });
        }
        let functions = functions.into_values();
        let mapping = |path: &str| Mapping {
            start: 0,
            limit: 1 << 20,
            file_offset: 0,
            path: path.into(),
            build_id: String::new(),
            symbolized: true,
        };
        // Functions of the kernel are elsewhere in each profile.
        let locations = functions.iter().enumerate().map(|(index, function)| {
            let in_kernel = function.name.starts_with("sys_");
            Location {
                mapping: Some(u32::from(in_kernel)),
                address: if in_kernel { started_unix_ns + index as u64 } else { function.name.len() as u64 },
                lines: vec![Line { function: index as u32, line: 0 }],
            }
        });
        let truncated = made.iter().filter(|sample| sample.truncated).map(|sample| sample.count).sum();
        Profile {
            kind: Kind::OnCpu,
            started_unix_ns,
            duration_ns: 10,
            period_ns: started_unix_ns,
            mappings: vec![mapping("/bin/a"), mapping(KERNEL)],
            locations: locations.collect(),
            functions,
            labels: labels.into_values(),
            losses: Losses {
                samples: made.iter().map(|sample| sample.count).sum(),
                truncated,
                lost: 2,
                passed_over: 0,
            },
            samples: made,
        }
    }

    /// Stacks by name, each with its pool and count.
    fn told(profile: &Profile) -> Vec<(String, String, u64, u64)> {
        let name = |location: &u32| {
            let line = profile.locations[*location as usize].lines[0];
            profile.functions[line.function as usize].name.to_string()
        };
        let told = profile.samples.iter().map(|sample| {
            let stack: Vec<String> = sample.stack.iter().map(name).collect();
            let pool = profile.labels[sample.labels as usize].pool.to_string();
            (pool, stack.join(";"), sample.count, sample.value_ns)
        });
        told.collect()
    }

    #[test]
    fn equal_stacks_of_several_profiles_are_one_wherever_their_tables_have_them() {
        let first = profile(100, &[("web", &["sys_read", "work", "main"], 3), ("jobs", &["main"], 1)]);
        let second =
            profile(300, &[("web", &["idle", "main"], 9), ("web", &["sys_read", "work", "main"], 4)]);
        let all = merged([&first, &second], |_| true).unwrap();
        assert_eq!(
            told(&all),
            [
                ("web".into(), "idle;main".into(), 9, 90),
                ("web".into(), "sys_read;work;main".into(), 7, 70),
                ("jobs".into(), "main".into(), 1, 10),
            ]
        );
        // Each sample of these is of 10 ns.
        assert_eq!((all.started_unix_ns, all.duration_ns, all.period_ns), (100, 20, 10));
        assert_eq!(all.losses, Losses { samples: 17, truncated: 1, lost: 4, passed_over: 0 });
        // Each place once.
        assert_eq!((all.locations.len(), all.functions.len(), all.mappings.len()), (4, 4, 2));
    }

    #[test]
    fn only_those_who_are_asked_for_are_in_it() {
        let both = profile(100, &[("web", &["work", "main"], 3), ("jobs", &["job", "main"], 1)]);
        let jobs = merged([&both], |labels| *labels.pool == *"jobs").unwrap();
        assert_eq!(told(&jobs), [("jobs".into(), "job;main".into(), 1, 10)]);
        assert_eq!(jobs.losses, Losses { samples: 1, truncated: 1, lost: 2, passed_over: 0 });
        // Nor is the code of others.
        assert_eq!(jobs.functions.len(), 2);
        // Of nobody nothing is known but how often was asked for.
        let nobody = merged([&both], |_| false).unwrap();
        assert_eq!((nobody.samples.len(), nobody.period_ns), (0, 100));
        assert!(merged([], |_| true).is_none());
    }

    #[test]
    fn what_a_profile_refers_to_and_does_not_have_is_left_out() {
        let mut damaged = profile(100, &[("web", &["work", "main"], 3)]);
        damaged.samples[0].stack.push(99);
        damaged.samples.push(Sample { labels: 7, ..damaged.samples[0].clone() });
        damaged.locations[0].lines.push(Line { function: 99, line: 1 });
        damaged.locations[1].mapping = Some(99);
        assert_eq!(told(&merged([&damaged], |_| true).unwrap()), [("web".into(), "work;main".into(), 3, 30)]);
    }

    #[test]
    fn a_profile_is_larger_by_what_it_has_more() {
        let (small, large) = (profile(1, &[("web", &["a"], 3)]), profile(1, &[("web", &["a", "b"], 3)]));
        let more = size_of_profile(&large) - size_of_profile(&small);
        let a_function = size_of::<Function>() + size_of::<Location>() + size_of::<Line>();
        assert_eq!(more, a_function + 2 * "b".len() + size_of::<u32>());
    }
}
