//! A sampler, whom it knows, and when its period changes.

use std::time::{Duration, Instant};

use super::CaptureError;
use super::measuring::Before;
use super::spaces::Spaces;
use crate::kernel::{Sampler, What};

/// How long a period lasts, or as long as ten of it. The next one is another, so that no load keeps in step with the samples:
/// one whose turn is a few periods does for as long as the period lasts. In a simulation of turns of 1 to 8 ms and 1,999 samples
/// a second for ten seconds, one share in a thousand was off by 1.4 points and more when a period lasted for 500 ms; with
/// 200 ms it is 0.8, and 0.7 with samples at random times. To change it has the kernel interrupt each CPU.
const PERIOD_LASTS: Duration = Duration::from_millis(200);

/// A sampler without room for more code is not replaced earlier: there may be more code than there is room for in any.
const REPLACED_AFTER: Duration = Duration::from_secs(300);

/// Periods are shorter or longer than asked for by these parts of a thousand. Not by less: a program in step with what was asked
/// for, as those are that work by a timer, stays in step for long with what is nearly the same.
const JITTER: std::ops::Range<u64> = 60..400;

/// A sampler, at work or kept for the next capture.
#[derive(Debug)]
pub(super) struct Sampling {
    pub(super) id: u64,
    pub(super) what: What,
    /// Of this process, not of workers.
    pub(super) own: bool,
    pub(super) sampler: Sampler,
    pub(super) spaces: Spaces,
    loaded: Instant,
    /// It has been started, and stopped if it is not now.
    has_run: bool,
    next_period: Instant,
    periods: u64,
}

impl Sampling {
    /// One that has not begun.
    pub(super) fn new(id: u64, what: What, own: bool, sampler: Sampler) -> Self {
        let now = Instant::now();
        Self {
            id,
            what,
            own,
            sampler,
            spaces: Spaces::default(),
            loaded: now,
            has_run: false,
            next_period: now,
            periods: 0,
        }
    }

    /// Begins to sample, unless that is done already. What was counted before.
    pub(super) fn start(&mut self) -> Result<Before, CaptureError> {
        let mut before = Before::default();
        if self.has_run {
            before.counts = self.sampler.counts()?;
        }
        if self.sampler.is_started() {
            self.sampler.read(|stack, _| {
                before.stacks.insert(stack.hash, *stack);
            });
        } else {
            if self.has_run {
                self.sampler.clear();
            }
            self.sampler.start()?;
            self.has_run = true;
            self.next_period = Instant::now();
        }
        Ok(before)
    }

    /// Not much of the room for stacks and address spaces is taken: of those that are not started stacks are forgotten.
    pub(super) fn has_room(&self) -> bool {
        (!self.sampler.is_started() || self.sampler.has_room_for_stacks()) && self.has_room_for_code()
    }

    fn has_room_for_code(&self) -> bool {
        self.sampler.has_room_for_code() && self.spaces.has_room()
    }

    /// There is room for more, or there was none in another one either, perhaps.
    pub(super) fn can_go_on(&self) -> bool {
        self.sampler.has_room_for_stacks()
            && (self.has_room_for_code() || self.loaded.elapsed() < REPLACED_AFTER)
    }

    /// Another capture can go on with it.
    pub(super) fn is_of_use_again(&self) -> bool {
        matches!(self.what, What::OnCpu { .. }) && self.has_run && self.has_room_for_code()
    }

    /// The next period: on both sides of the one that was asked for, evenly (the multiples of the golden ratio modulo 1 fill an
    /// interval without gaps).
    pub(super) fn change_period(&mut self) {
        const GOLDEN: u64 = 618;
        let What::OnCpu { period_ns: middle } = self.what else { return };
        if Instant::now() < self.next_period {
            return;
        }
        self.periods += 1;
        self.next_period = Instant::now() + PERIOD_LASTS.max(Duration::from_nanos(10 * middle));
        let jitter = JITTER.start + (JITTER.end - JITTER.start) * (self.periods * GOLDEN % 1000) / 1000;
        let parts = if self.periods.is_multiple_of(2) { 1000 + jitter } else { 1000 - jitter };
        let period_ns = middle * parts / 1000;
        if let Err(error) = self.sampler.change_period(period_ns) {
            tracing::debug!(%error, "the period of samples stays as it is");
        }
    }
}
