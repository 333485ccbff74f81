//! A profile as `profile.proto` of google/pprof, as text to read, as folded stacks, and as a flame graph.
//!
//! `frames` says which frames a sample has and how they are called; `proto`, `text`, `folded` and `flamegraph` write
//! them, `threads` those of one moment with what else is known of each thread, `heap` text of memory. What all of them keep to:
//!
//! - A stack that ends before its outermost frame gets `[truncated]` as that frame, so that what is missing below `main`
//!   stands beside `main` and not nowhere. An empty stack counts as one of these.
//! - What was lost is said in each of them: comments, header, subtitle. Folded stacks have no place for it.
//! - A sample that refers to what is not in its profile is left out and counted among the losses; a line of an unknown
//!   function is left out, a location in an unknown mapping is in none.
//! - Whatever is meant for eyes is bounded: names are clipped, and beyond `ROOM` the smallest samples are added up
//!   or counted instead of shown. `profile.proto` says each name once and needs no such bound.

mod flamegraph;
mod folded;
mod frames;
mod heap;
mod proto;
#[cfg(test)]
mod tests;
mod text;
mod threads;

use std::io;
use std::time::Duration;

pub use self::flamegraph::CONTENT_SECURITY_POLICY;
pub use self::threads::{collapsed, listed};
use crate::profile::heap::Heap;
use crate::profile::{Kind, Profile};

/// A format for profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `profile.proto` of google/pprof, compressed, which is how all its readers expect it.
    Proto,
    /// For humans: what `?debug=1` asks for.
    Text,
    /// A line per stack, outermost frame first: what flamegraph.pl, inferno and speedscope read.
    Folded,
    /// An interactive picture. It needs [`CONTENT_SECURITY_POLICY`].
    FlameGraph,
}

impl Format {
    /// The media type to answer with. The compression of `profile.proto` is part of the format: there is no
    /// `Content-Encoding` to go with it, or clients would take it off.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Proto => "application/octet-stream",
            Self::Text | Self::Folded => "text/plain; charset=utf-8",
            Self::FlameGraph => "image/svg+xml",
        }
    }
}

/// Why a profile cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Even its widest frames do not fit: the stacks are far deeper than any that the kernel walks.
    #[error("the flame graph would be larger than {} bytes", flamegraph::LARGEST)]
    TooLarge,
    /// Our bug: everything is written to memory.
    #[error("writing a profile as {format:?}: {source}")]
    Write {
        /// As what.
        format: Format,
        /// What the library said.
        source: io::Error,
    },
}

/// Writes a profile.
pub fn render(profile: &Profile, format: Format) -> Result<Vec<u8>, Error> {
    match format {
        Format::Proto => proto::render(profile, None).map_err(|source| Error::Write { format, source }),
        Format::Text => Ok(text::render(profile).into_bytes()),
        Format::Folded => Ok(folded::render(profile).into_bytes()),
        Format::FlameGraph => flamegraph::render(profile),
    }
}

/// Writes a profile of a heap.
pub fn render_heap(heap: &Heap, format: Format) -> Result<Vec<u8>, Error> {
    match format {
        Format::Proto => {
            proto::render(&heap.profile, Some(heap)).map_err(|source| Error::Write { format, source })
        }
        Format::Text => Ok(heap::render(heap).into_bytes()),
        Format::Folded | Format::FlameGraph => render(&heap.profile, format),
    }
}

/// Bytes that text and folded stacks may have.
const ROOM: usize = 16 << 20;

/// How a kind of profile is called, and what it counts and measures.
struct Measure {
    name: &'static str,
    /// In the words of Go's profiles, which are what readers know.
    count: &'static str,
    /// Type and unit of what is measured beside; `None` for what is only counted.
    value: Option<(&'static str, &'static str)>,
    /// The same for humans.
    counted: &'static str,
}

impl Measure {
    fn of(kind: Kind) -> Self {
        let time = |name| Some((name, "nanoseconds"));
        let (name, count, value, counted) = match kind {
            Kind::OnCpu => ("on-CPU", "samples", time("cpu"), "samples"),
            Kind::Cycles => ("cycles", "samples", Some(("cycles", "count")), "samples"),
            Kind::OffCpu => ("off-CPU", "contentions", time("delay"), "waits"),
            Kind::RunQueue => ("run queue", "contentions", time("delay"), "waits"),
            Kind::Wall => ("wall clock", "samples", time("wall"), "samples"),
            Kind::Threads => ("threads", "threads", None, "threads"),
            Kind::Heap => ("heap", "inuse_objects", Some(("inuse_space", "bytes")), "allocations"),
        };
        Self { name, count, value, counted }
    }
}

/// What of a profile is not whole, a phrase each.
fn remarks(profile: &Profile) -> Vec<String> {
    let losses = profile.losses;
    let what = Measure::of(profile.kind).counted;
    let damaged: u64 = profile
        .samples
        .iter()
        .filter(|sample| frames::labels(profile, sample).is_none())
        .fold(0, |sum, sample| sum.saturating_add(sample.count));
    let mut remarks = Vec::new();
    if losses.truncated > 0 {
        remarks.push(format!("{what} truncated: {} of {}", losses.truncated, losses.samples));
    }
    if losses.lost > 0 {
        let how = match profile.kind {
            Kind::Threads => "left out, as they are too many",
            Kind::Heap => {
                "sampled and not followed to their end, so that they are missing from what is in use"
            }
            _ => "lost",
        };
        remarks.push(format!("{what} {how}: {}", losses.lost));
    }
    if losses.passed_over > 0 {
        remarks
            .push(format!("{what} not looked at, long or not, as they are too many: {}", losses.passed_over));
    }
    if damaged > 0 {
        remarks.push(format!("{what} left out, as they refer to what is not in the profile: {damaged}"));
    }
    remarks
}

/// A length of time for humans: `30s`, `10.101ms`.
fn duration(ns: u64) -> Duration {
    Duration::from_nanos(ns)
}
