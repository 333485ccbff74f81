//! Folded stacks: a line per stack, outermost frame first, with semicolons between them and a number behind.
//!
//! The outermost is the pool, where bcc's tools have the name of the process: workers of a pool do the same work, so
//! their stacks are added up, and who wants them apart asks for `profile.proto`. Who is in no pool, as the collector itself, has the
//! names of its threads there. In a wall clock profile and in one of
//! threads the second is the state, which is the first question there: running, waiting for a CPU, or blocked?
//!
//! The number is that of threads, or of samples on CPU, as `profile` of bcc has it, of cycles, of bytes, and microseconds otherwise, as of its
//! `offcputime`.
//! A function of the kernel ends in `_[k]` and an inlined one in `_[i]`, as `stackcollapse-perf.pl --all` writes them:
//! flame graphs colour frames by it and leave it out of what they show. Where there is no name there is
//! `file+0xaddress`.
//!
//! Readers split lines at semicolons and blanks, so `;` becomes `:` as with stackcollapse-perf.pl, and a blank that
//! only digits follow becomes `_`: at the end of a line it would make a second number of them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::frames::{self, Frame};
use super::{Measure, ROOM};
use crate::profile::{Kind, Labels, Profile};

/// What there is no room for, as a stack of its pool.
const LEFT_OUT: &str = "[left out]";

const NANOS_PER_MICROSECOND: u64 = 1000;

/// Writes a profile.
pub(super) fn render(profile: &Profile) -> String {
    let mut out = String::new();
    for (stack, value) in stacks(profile) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{stack} {value}");
    }
    out
}

/// What the numbers are.
pub(super) fn unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Heap => "bytes",
        Kind::Cycles => "cycles",
        _ if of_value(kind) => "us",
        _ => Measure::of(kind).count,
    }
}

/// Not of how many there are.
fn of_value(kind: Kind) -> bool {
    !matches!(kind, Kind::OnCpu | Kind::Threads)
}

/// Stacks and their numbers, each stack once and in order. Numbers do not add up to more than one can be.
pub(super) fn stacks(profile: &Profile) -> impl Iterator<Item = (String, u64)> {
    let of_time = of_value(profile.kind) && !matches!(profile.kind, Kind::Cycles | Kind::Heap);
    let per_unit = if of_time { NANOS_PER_MICROSECOND } else { 1 };
    let mut left = u64::MAX;
    sums(profile).into_iter().map(move |(stack, sum)| {
        let value = (sum / per_unit).min(left);
        left -= value;
        (stack, value)
    })
}

/// Samples or values of each stack. The largest come first, in case that there is not room for all.
fn sums(profile: &Profile) -> BTreeMap<String, u64> {
    let mut samples: Vec<_> = frames::samples(profile).collect();
    samples.sort_by_key(|(sample, _)| Reverse((sample.value_ns, sample.count)));
    let mut sums = BTreeMap::<String, u64>::new();
    let mut room = ROOM;
    let mut names = Vec::new();
    for (sample, labels) in samples {
        frames::walk(profile, sample, |frame| names.push(name(&frame)));
        let mut stack = root(profile, labels);
        for name in names.drain(..).rev() {
            stack.push(';');
            stack.push_str(&name);
        }
        if !sums.contains_key(&stack) {
            match room.checked_sub(stack.len()) {
                Some(rest) => room = rest,
                None => stack = format!("{};{LEFT_OUT}", root(profile, labels)),
            }
        }
        let sum = sums.entry(stack).or_default();
        *sum = sum.saturating_add(if of_value(profile.kind) { sample.value_ns } else { sample.count });
    }
    sums
}

/// The frames that every stack of these labels begins with.
fn root(profile: &Profile, labels: &Labels) -> String {
    if profile.kind == Kind::Heap {
        return "heap".to_owned();
    }
    let mut root = plain(if labels.pool.is_empty() { &labels.thread } else { &labels.pool });
    // A line that begins so is a comment.
    if root.starts_with('#') {
        root.replace_range(..1, "_");
    }
    if matches!(profile.kind, Kind::Wall | Kind::Threads) {
        root.push(';');
        root.push_str(labels.state);
    }
    root
}

fn name(frame: &Frame<'_>) -> String {
    match frame {
        Frame::Function { function, inlined, kernel, .. } => {
            let mut name = plain(frames::name(function));
            match (kernel, inlined) {
                (true, _) => name.push_str("_[k]"),
                (false, true) => name.push_str("_[i]"),
                (false, false) => {}
            }
            name
        }
        Frame::Address { mapping: Some(mapping), address } => {
            let file = mapping.path.rsplit('/').next().unwrap_or(&mapping.path);
            format!("{}+{address:#x}", plain(file))
        }
        Frame::Address { mapping: None, address: 0 } => "[unknown]".to_owned(),
        Frame::Address { mapping: None, address } => format!("{address:#x}"),
        Frame::Truncated => frames::TRUNCATED.to_owned(),
    }
}

/// A name without anything that means something in a line.
fn plain(name: &str) -> String {
    let replace = |character| match character {
        ';' => ':',
        _ if frames::acts(character) => char::REPLACEMENT_CHARACTER,
        _ => character,
    };
    let mut plain: String = frames::clipped(name).trim().chars().map(replace).collect();
    if plain.is_empty() {
        return "[unknown]".to_owned();
    }
    if let Some(at) = plain.rfind(' ')
        && plain[at + 1..].bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        plain.replace_range(at..=at, "_");
    }
    plain
}
