//! A profile, sample by sample and place by place, as `go tool pprof -raw` prints it.

use std::collections::HashMap;

/// What is printed of a profile.
pub(super) struct Raw {
    pub(super) comments: Vec<String>,
    pub(super) samples: Vec<Sample>,
    pub(super) locations: HashMap<u32, Location>,
    pub(super) mappings: HashMap<u32, Mapping>,
}

pub(super) struct Sample {
    pub(super) count: u64,
    /// Of locations, the innermost first.
    pub(super) stack: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Location {
    pub(super) address: u64,
    pub(super) mapping: Option<u32>,
    /// Functions, the innermost of those that were inlined first; none if it has no name.
    pub(super) names: Vec<String>,
}

pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) limit: u64,
    pub(super) path: String,
    pub(super) build_id: String,
}

impl Raw {
    pub(super) fn parse(text: &str) -> Self {
        let mut raw =
            Self { comments: vec![], samples: vec![], locations: HashMap::new(), mappings: HashMap::new() };
        let (mut part, mut last) = ("", 0);
        for line in text.lines() {
            match (part, line) {
                (_, "Samples:" | "Locations" | "Mappings") => part = line,
                ("", _) => raw.comments.extend(line.strip_prefix("Comment: ").map(str::to_owned)),
                ("Samples:", _) => raw.samples.extend(sample(line)),
                ("Locations", _) => match location(line) {
                    Some((id, location)) => {
                        raw.locations.insert(id, location);
                        last = id;
                    }
                    // What the function before it was inlined into stands on a line of its own.
                    None => raw.locations.get_mut(&last).expect("a location").names.extend(name(line)),
                },
                _ => raw.mappings.extend(mapping(line)),
            }
        }
        assert!(!raw.samples.is_empty() && !raw.locations.is_empty(), "{text}");
        raw
    }
}

/// `12   12012012: 1 2 3`; its labels follow, and names of values are before the first.
fn sample(line: &str) -> Option<Sample> {
    let (values, stack) = line.split_once(": ")?;
    let count = values.split_whitespace().next()?.parse().ok()?;
    let stack = stack.split_whitespace().map(|id| id.parse().expect("a location")).collect();
    Some(Sample { count, stack })
}

/// `4: 0x2b4c M=2 function file:12:0 s=10`, without what is not known.
fn location(line: &str) -> Option<(u32, Location)> {
    let (id, rest) = line.trim_start().split_once(": 0x")?;
    let (address, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let address = u64::from_str_radix(address, 16).ok()?;
    let (mapping, rest) = match rest.strip_prefix("M=") {
        Some(rest) => {
            let (mapping, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            (Some(mapping.parse().ok()?), rest)
        }
        None => (None, rest),
    };
    Some((id.parse().ok()?, Location { address, mapping, names: name(rest).into_iter().collect() }))
}

/// `function file:12:0 s=10`, where a function of no file has ` :0:0 s=0` after it.
fn name(line: &str) -> Option<String> {
    let (line, _) = line.trim().rsplit_once(" s=")?;
    let (name, _) = line.rsplit_once(' ')?;
    (!name.trim().is_empty()).then(|| name.trim().to_owned())
}

/// `2: 0x25000/0xf8000/0x25000 /usr/sbin/nginx 7442… [FN]`
fn mapping(line: &str) -> Option<(u32, Mapping)> {
    let (id, rest) = line.trim_start().split_once(": ")?;
    let mut words = rest.split(' ');
    let numbers = words.next()?.split('/').map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let [start, limit, _] = numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()?;
    let (path, build_id) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some((id.parse().ok()?, Mapping { start, limit, path, build_id }))
}
