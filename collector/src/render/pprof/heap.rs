//! A profile of a heap for humans, in the manner of Go's `?debug=1`: what is in use, how much of it, in brackets what was asked for
//! altogether, and where.

use std::cmp::Reverse;
use std::fmt::{self, Write as _};

use super::text::{when, write_frames};
use super::{ROOM, duration, remarks};
use crate::heap::sampled::{Amount, PERIOD_BYTES};
use crate::profile::heap::{Heap, Values};

/// Writes it.
pub(super) fn render(heap: &Heap) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(heap, &mut out);
    out
}

fn write(heap: &Heap, out: &mut String) -> fmt::Result {
    let profile = &heap.profile;
    let mut total = Values::default();
    for values in &heap.values {
        total.allocated += values.allocated;
        total.in_use += values.in_use;
    }
    write!(out, "--- heap profile: ")?;
    write_values(&total, out)?;
    writeln!(out, " @ heap/{PERIOD_BYTES}")?;
    if profile.duration_ns > 0 {
        writeln!(out, "of {:?} until {}", duration(profile.duration_ns), when(profile.started_unix_ns))?;
        writeln!(
            out,
            "blocks and bytes that were in use in the end less those in the beginning [asked for meanwhile]"
        )?;
    } else {
        writeln!(out, "taken {}", when(profile.started_unix_ns))?;
        writeln!(
            out,
            "blocks and bytes in use [asked for since the start], estimated from one in {PERIOD_BYTES} bytes"
        )?;
    }
    writeln!(out, "{}", of_malloc(heap))?;
    remarks(profile).iter().try_for_each(|remark| writeln!(out, "{remark}"))?;
    let mut samples: Vec<_> = profile.samples.iter().zip(&heap.values).collect();
    samples.sort_by_key(|(_, values)| Reverse(values.shown(heap.shown).bytes));
    for (at, (sample, values)) in samples.iter().enumerate() {
        if out.len() >= ROOM {
            return writeln!(out, "\n{} more, which are smaller, are left out", samples.len() - at);
        }
        writeln!(out)?;
        write_values(values, out)?;
        writeln!(out, " @")?;
        write_frames(profile, sample, out)?;
    }
    Ok(())
}

fn write_values(values: &Values, out: &mut String) -> fmt::Result {
    let Values { allocated, in_use } = *values;
    let Amount { objects, bytes } = in_use;
    write!(out, "{objects}: {bytes} [{}: {}]", allocated.objects, allocated.bytes)
}

/// What the allocator says of itself.
pub(super) fn of_malloc(heap: &Heap) -> String {
    format!("bytes in use by all of malloc, counted: {}", heap.malloc_in_use)
}
