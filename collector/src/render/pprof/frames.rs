//! Which frames a sample has, and how they are called where people read them.

use std::borrow::Cow;

use crate::profile::{Function, Labels, Location, Mapping, Profile, Sample};

/// The outermost frame of a stack that ends before it.
pub(super) const TRUNCATED: &str = "[truncated]";

/// Characters after which a name is cut off: more than compilers make of what people write, but for their worst.
const LONGEST_NAME: usize = 512;

/// A frame.
pub(super) enum Frame<'a> {
    /// It is known which function this is.
    Function {
        /// The function. It has a name.
        function: &'a Function,
        /// Line in its source file; 0 if it is not known.
        line: u32,
        /// It is part of what the compiler made of the next frame.
        inlined: bool,
        /// It is of the kernel.
        kernel: bool,
    },
    /// It is only known where this is.
    Address {
        /// The file, or what else code is in.
        mapping: Option<&'a Mapping>,
        /// In the mapping if there is one.
        address: u64,
    },
    /// The stack ends here, and should not.
    Truncated,
}

/// The samples that are whole, with their labels.
pub(super) fn samples(profile: &Profile) -> impl Iterator<Item = (&Sample, &Labels)> {
    profile.samples.iter().filter_map(|sample| Some((sample, labels(profile, sample)?)))
}

/// Labels of a sample; `None` if it refers to anything that the profile does not have.
pub(super) fn labels<'a>(profile: &'a Profile, sample: &Sample) -> Option<&'a Labels> {
    let whole = sample.stack.iter().all(|location| (*location as usize) < profile.locations.len());
    profile.labels.get(sample.labels as usize).filter(|_| whole)
}

/// Whether frames are missing from a stack. The kernel finds at least where a thread is, so an empty one lacks all.
pub(super) fn truncated(sample: &Sample) -> bool {
    sample.truncated || sample.stack.is_empty()
}

/// Calls `each` with the frames of a sample, the innermost first.
pub(super) fn walk<'a>(profile: &'a Profile, sample: &Sample, mut each: impl FnMut(Frame<'a>)) {
    for index in &sample.stack {
        let Some(location) = profile.locations.get(*index as usize) else { continue };
        let mapping = mapping(profile, location);
        let kernel = mapping.is_some_and(is_kernel);
        let mut named = false;
        for (at, line) in location.lines.iter().enumerate() {
            let Some(function) = profile.functions.get(line.function as usize) else { continue };
            if name(function).is_empty() {
                continue;
            }
            named = true;
            each(Frame::Function {
                function,
                line: line.line,
                inlined: at + 1 < location.lines.len(),
                kernel,
            });
        }
        if !named {
            each(Frame::Address { mapping, address: location.address });
        }
    }
    if truncated(sample) {
        each(Frame::Truncated);
    }
}

/// It is the kernel's code.
pub(super) fn is_kernel(mapping: &Mapping) -> bool {
    mapping.path.starts_with("[kernel")
}

/// The mapping of a location.
pub(super) fn mapping<'a>(profile: &'a Profile, location: &Location) -> Option<&'a Mapping> {
    profile.mappings.get(location.mapping? as usize)
}

/// The best name that a function has; empty if it has none.
pub(super) fn name(function: &Function) -> &str {
    if function.name.is_empty() { &function.system_name } else { &function.name }
}

/// A name, cut off if it is very long.
pub(super) fn clipped(name: &str) -> Cow<'_, str> {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]).into(),
        None => name.into(),
    }
}

/// Whether a character acts on what shows it instead of being shown: control characters, separators of lines, marks of
/// direction, what XML forbids. Names are hostile bytes, and these formats end up in terminals and browsers.
pub(super) fn acts(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fffe}'
                | '\u{ffff}'
        )
}
