//! What is being measured, and what of all that was sampled belongs to it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use collector_ebpf::sample::{COMPLETE, NO_ROOM, STATE_ON_CPU, Stack};

use super::Wanted;
use super::naming::{self, Interpreters};
use super::sampling::Sampling;
use super::spaces::{Readers, Spaces, key_of};
use super::workers::Workers;
use crate::kernel::{Counts, Frames};
use crate::profile::fold::{Folder, Place};
use crate::profile::modules::ModuleId;
use crate::profile::symbols::Symbols;
use crate::profile::{Kind, Labels, RUNNABLE};

/// What is being measured.
#[derive(Debug)]
pub(super) struct Measuring {
    pub(super) wanted: Wanted,
    pub(super) began: Instant,
    pub(super) began_unix_ns: u64,
    /// By the samplings that it is made of.
    pub(super) before: Vec<(u64, Before)>,
}

impl Measuring {
    /// How long it goes on.
    pub(super) fn left(&self) -> Duration {
        self.wanted.duration.saturating_sub(self.began.elapsed())
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    pub(super) fn is_half_over(&self) -> bool {
        self.left() <= self.wanted.duration / 2
    }
}

/// What had been counted when a capture began.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) counts: Counts,
    /// By hash.
    pub(super) stacks: HashMap<u64, Stack>,
}

/// What stacks of one sampling are folded with.
pub(super) struct Fold<'a> {
    pub(super) sampling: &'a Sampling,
    pub(super) wanted: &'a Wanted,
    pub(super) before: &'a Before,
    pub(super) workers: &'a Workers,
    pub(super) readers: &'a Readers,
    pub(super) interpreters: &'a mut Interpreters,
}

impl Fold<'_> {
    /// Adds a stack, as far as it is wanted and has been found since the measuring began.
    pub(super) fn add(
        &mut self,
        stack: &Stack,
        frames: Frames<'_>,
        symbols: &mut Symbols,
        folder: &mut Folder<ModuleId>,
    ) {
        let before = self.before.stacks.get(&stack.hash).copied().unwrap_or_default();
        let found = stack.count.saturating_sub(before.count);
        let time_ns = stack.time_ns.saturating_sub(before.time_ns);
        let queued = stack.queued.saturating_sub(before.queued);
        let queued_ns = stack.queued_ns.saturating_sub(before.queued_ns);
        let kind = self.wanted.kind;
        // A sampling is of one or the other.
        let measured = [
            (kind != Kind::RunQueue).then_some((found, time_ns, false)),
            matches!(kind, Kind::RunQueue | Kind::Wall).then_some((queued, queued_ns, true)),
        ];
        let measured = measured.into_iter().flatten().filter(|(count, ..)| *count > 0);
        let mut measured = measured.peekable();
        if measured.peek().is_none() {
            return;
        }
        let labels = self.workers.labels(stack);
        if !self.wanted.whom.has_thread(&labels) {
            return;
        }
        let spaces = &self.sampling.spaces;
        let frames = places(stack, frames, spaces, self.readers, self.interpreters, symbols);
        for (count, value_ns, in_queue) in measured {
            let labels = if in_queue { in_the_queue(labels.clone()) } else { labels.clone() };
            folder.add(labels, frames.iter().copied(), is_truncated(stack), count, value_ns);
        }
    }
}

/// Where the frames of a stack are, without those of the program that found it.
pub(super) fn places(
    stack: &Stack,
    frames: Frames<'_>,
    spaces: &Spaces,
    readers: &Readers,
    interpreters: &mut Interpreters,
    symbols: &mut Symbols,
) -> Vec<Place<ModuleId>> {
    let interrupted = stack.state == STATE_ON_CPU;
    let ours = if interrupted { 0 } else { naming::frames_of_ours(frames.kernel, symbols) };
    let frames = Frames { kernel: &frames.kernel[ours..], ..frames };
    let maps = spaces.maps_of(stack, &readers.modules);
    readers.places(key_of(stack), maps, frames, interrupted, interpreters)
}

/// The stack ends before its outermost frame.
pub(super) fn is_truncated(stack: &Stack) -> bool {
    stack.flags & COMPLETE == 0 || stack.flags & NO_ROOM != 0
}

/// The same while it waits for a CPU.
pub(super) fn in_the_queue(labels: Labels) -> Labels {
    Labels { state: RUNNABLE, reason: None, ..labels }
}
