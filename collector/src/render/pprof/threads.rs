//! Threads at one moment, for humans: each on its own, or those at the same stack together.
//!
//! In the manner of what Go says of its goroutines with `?debug=2` and `?debug=1`. Frames of the kernel come first and are
//! marked `[k]`. What is not known is not there, and a line in brackets says why.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use super::frames::{self, Frame};
use super::text::{Shown, when, write_place};
use super::{ROOM, remarks};
use crate::profile::threads::{Dump, Thread};
use crate::profile::{Labels, Sample};

/// Threads that are named of those at one stack.
const NAMED: usize = 16;

/// A thread with all that is known of it.
type Told<'a> = (&'a Sample, &'a Labels, &'a Thread);

/// Each thread with its stack, in the order of pools, slots and threads.
pub fn listed(dump: &Dump) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_listed(dump, &mut out);
    out
}

/// Those of a pool that do the same at the same stack together, the most first.
pub fn collapsed(dump: &Dump) -> String {
    let mut out = String::new();
    let _ = write_collapsed(dump, &mut out);
    out
}

fn told(dump: &Dump) -> Vec<Told<'_>> {
    let mut told: Vec<Told<'_>> = frames::samples(&dump.profile)
        .filter_map(|(sample, labels)| Some((sample, labels, dump.threads.get(sample.labels as usize)?)))
        .collect();
    told.sort_by_key(|(sample, ..)| sample.labels);
    told
}

fn write_listed(dump: &Dump, out: &mut String) -> fmt::Result {
    let told = told(dump);
    write_header(dump, &told, out)?;
    for (at, (sample, labels, thread)) in told.iter().enumerate() {
        if out.len() >= ROOM {
            return writeln!(out, "\n{} more are left out", told.len() - at);
        }
        write!(out, "\nthread {} [{}]: pool=\"{}\"", labels.tid, labels.state, Shown(&labels.pool, true))?;
        if let Some((slot, generation)) = labels.slot {
            write!(out, " slot={slot} generation={generation}")?;
        }
        write!(out, " pid={} thread=\"{}\"", labels.pid, Shown(&labels.thread, true))?;
        write_doing(thread, out)?;
        write_stack(dump, sample, thread, out)?;
    }
    Ok(())
}

fn write_collapsed(dump: &Dump, out: &mut String) -> fmt::Result {
    let told = told(dump);
    write_header(dump, &told, out)?;
    let mut groups: Vec<Vec<Told<'_>>> = Vec::new();
    let mut places = HashMap::new();
    for told in told {
        let (sample, labels, thread) = told;
        let key = (&labels.pool, labels.state, thread, &sample.stack, sample.truncated);
        let place = *places.entry(key).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(told),
            None => groups.push(vec![told]),
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    for (at, group) in groups.iter().enumerate() {
        let Some((sample, labels, thread)) = group.first() else { continue };
        if out.len() >= ROOM {
            return writeln!(out, "\n{} more stacks, of fewer threads, are left out", groups.len() - at);
        }
        write!(out, "\n{} @ pool=\"{}\" state=\"{}\"", group.len(), Shown(&labels.pool, true), labels.state)?;
        write_doing(thread, out)?;
        write!(out, "# threads")?;
        for (_, labels, _) in group.iter().take(NAMED) {
            write!(out, " {}", labels.tid)?;
        }
        writeln!(out, "{}", if group.len() > NAMED { " …" } else { "" })?;
        write_stack(dump, sample, thread, out)?;
    }
    Ok(())
}

fn write_header(dump: &Dump, told: &[Told<'_>], out: &mut String) -> fmt::Result {
    let mut pids: Vec<u32> = told.iter().map(|(_, labels, _)| labels.pid).collect();
    pids.dedup();
    writeln!(out, "--- threads: {} of {} processes @", told.len(), pids.len())?;
    writeln!(out, "taken {}", when(dump.profile.started_unix_ns))?;
    remarks(&dump.profile).iter().try_for_each(|remark| writeln!(out, "{remark}"))?;
    if dump.profile.losses.lost > 0 {
        writeln!(out, "pool=, slot= and pid= ask for fewer")?;
    }
    Ok(())
}

/// Where in the kernel it is, to the end of the line.
fn write_doing(thread: &Thread, out: &mut String) -> fmt::Result {
    for (name, value) in [("wchan", &thread.wait_channel), ("syscall", &thread.syscall)] {
        if let Some(value) = value {
            write!(out, " {name}={}", Shown(value, false))?;
        }
    }
    writeln!(out)
}

fn write_stack(dump: &Dump, sample: &Sample, thread: &Thread, out: &mut String) -> fmt::Result {
    if let Some(why) = &thread.no_kernel_frames {
        writeln!(out, "#\t[no frames of the kernel: {}]", Shown(why, false))?;
    }
    let mut result = Ok(());
    frames::walk(&dump.profile, sample, |frame| {
        // Where there is nothing at all, the line below says why.
        let nothing = matches!(frame, Frame::Truncated) && thread.no_user_frames.is_some();
        if result.is_ok() && !nothing {
            result = write_frame(&frame, out);
        }
    });
    result?;
    match &thread.no_user_frames {
        Some(why) => writeln!(out, "#\t[no frames of the program: {}]", Shown(why, false)),
        None => Ok(()),
    }
}

fn write_frame(frame: &Frame<'_>, out: &mut String) -> fmt::Result {
    let kernel = match frame {
        Frame::Function { kernel, .. } => *kernel,
        Frame::Address { mapping: Some(mapping), .. } => frames::is_kernel(mapping),
        Frame::Address { mapping: None, .. } | Frame::Truncated => false,
    };
    write!(out, "#\t{}", if kernel { "[k] " } else { "" })?;
    write_place(frame, out)
}
