//! A profile for humans: a header, then the samples, largest first, each with its frames, innermost first.
//!
//! In the manner of Go's `?debug=1`: how many and how long before an `@`, `#` before each frame. What follows the `@`
//! are not addresses but who it was. Characters that act on a terminal are escaped as Rust writes them.

use std::cmp::Reverse;
use std::fmt::{self, Write as _};

use jiff::Timestamp;

use super::frames::{self, Frame};
use super::{Measure, ROOM, duration, remarks};
use crate::profile::{Kind, Labels, Profile, Sample};

/// Writes a profile.
pub(super) fn render(profile: &Profile) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(profile, &mut out);
    out
}

fn write(profile: &Profile, out: &mut String) -> fmt::Result {
    let mut samples: Vec<_> = frames::samples(profile).collect();
    samples.sort_by_key(|(sample, _)| Reverse((sample.value_ns, sample.count)));
    write_header(profile, &samples, out)?;
    for (at, (sample, labels)) in samples.iter().enumerate() {
        if out.len() >= ROOM {
            return writeln!(out, "\n{} more, which are smaller, are left out", samples.len() - at);
        }
        write!(out, "\n{} {} @ ", sample.count, sample.value_ns)?;
        write_labels(labels, out)?;
        write_frames(profile, sample, out)?;
    }
    Ok(())
}

/// The frames of a sample, a line each.
pub(super) fn write_frames(profile: &Profile, sample: &Sample, out: &mut String) -> fmt::Result {
    let mut result = Ok(());
    frames::walk(profile, sample, |frame| {
        if result.is_ok() {
            result = write_frame(&frame, out);
        }
    });
    result
}

fn write_header(profile: &Profile, samples: &[(&Sample, &Labels)], out: &mut String) -> fmt::Result {
    let measure = Measure::of(profile.kind);
    let total = |of: fn(&Sample) -> u64| samples.iter().fold(0, |sum: u64, (s, _)| sum.saturating_add(of(s)));
    write!(out, "--- {} profile: {}/count", measure.name, measure.count)?;
    if let Some((value, unit)) = measure.value {
        write!(out, " {value}/{unit}")?;
    }
    writeln!(out, " @")?;
    writeln!(out, "started {}", when(profile.started_unix_ns))?;
    writeln!(out, "measured for {:?}", duration(profile.duration_ns))?;
    let is_of_cycles = profile.kind == Kind::Cycles;
    let amount = |value: u64| {
        if is_of_cycles { format!("{value} cycles") } else { format!("{:?}", duration(value)) }
    };
    if profile.period_ns > 0 {
        let of = if is_of_cycles { "on average" } else { "of CPU time" };
        writeln!(out, "a sample every {} {of}", amount(profile.period_ns))?;
    }
    let (count, value) = (total(|sample| sample.count), total(|sample| sample.value_ns));
    writeln!(out, "{count} {}, {}", measure.counted, amount(value))?;
    remarks(profile).iter().try_for_each(|remark| writeln!(out, "{remark}"))
}

/// A moment.
pub(super) fn when(unix_ns: u64) -> String {
    match Timestamp::from_nanosecond(unix_ns.into()) {
        Ok(moment) => moment.to_string(),
        Err(_) => format!("{unix_ns} ns after 1970"),
    }
}

fn write_labels(labels: &Labels, out: &mut String) -> fmt::Result {
    write!(out, "pool=\"{}\"", Shown(&labels.pool, true))?;
    if let Some((slot, generation)) = labels.slot {
        write!(out, " slot={slot} generation={generation}")?;
    }
    write!(out, " pid={} tid={}", labels.pid, labels.tid)?;
    write!(out, " thread=\"{}\" state={}", Shown(&labels.thread, true), labels.state)?;
    if let Some(reason) = labels.reason {
        write!(out, " reason={reason}")?;
    }
    if let Some(ended_unix_ns) = labels.ended_unix_ns {
        write!(out, " ended={}", when(ended_unix_ns))?;
    }
    writeln!(out)
}

/// A frame on a line of its own.
fn write_frame(frame: &Frame<'_>, out: &mut String) -> fmt::Result {
    write!(out, "#\t")?;
    write_place(frame, out)
}

/// Where a frame is, to the end of its line.
pub(super) fn write_place(frame: &Frame<'_>, out: &mut String) -> fmt::Result {
    match frame {
        Frame::Function { function, line, inlined, .. } => {
            write!(out, "{}", Shown(frames::name(function), false))?;
            if *inlined {
                write!(out, " (inlined)")?;
            }
            if !function.file.is_empty() {
                write!(out, "\t{}", Shown(&function.file, false))?;
                if *line > 0 {
                    write!(out, ":{line}")?;
                }
            }
            writeln!(out)
        }
        Frame::Address { mapping: Some(mapping), address } => {
            writeln!(out, "{}+{address:#x}", Shown(&mapping.path, false))
        }
        Frame::Address { mapping: None, address } => writeln!(out, "{address:#x}"),
        Frame::Truncated => writeln!(out, "{}", frames::TRUNCATED),
    }
}

/// A name as it is shown, within quotes or not.
pub(super) struct Shown<'a>(pub(super) &'a str, pub(super) bool);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, quoted) = *self;
        for character in frames::clipped(name).chars() {
            match character {
                '"' | '\\' if quoted => write!(out, "\\{character}")?,
                '\n' | '\r' | '\t' => write!(out, "{}", character.escape_default())?,
                _ if frames::acts(character) => write!(out, "{}", character.escape_unicode())?,
                _ => out.write_char(character)?,
            }
        }
        Ok(())
    }
}
