//! A sampler, whom it knows, and when its period changes.

use std::time::{Duration, Instant};

use super::CaptureError;
use super::measuring::Before;
use super::spaces::{Readers, Spaces};
use crate::kernel::{Period, Sampler, What};
use crate::units::monotonic_ns;

/// How long a period lasts in the middle, or as long as ten of it. The next one is another, so that no load keeps in step with the
/// samples: one whose turn is a few periods does for as long as the period lasts. And it lasts longer or less long, so that none keeps
/// in step with the changes. What that makes shares wrong by, beside samples at random times, is in the tests below. To change it has the kernel interrupt each CPU: 8 to 44 µs of this thread's CPU time for each
/// in a virtual machine, and 30 more to be woken up for it.
const PERIOD_LASTS: Duration = Duration::from_millis(480);

/// A sampler without room for more code is not replaced earlier: there may be more code than there is room for in any.
const REPLACED_AFTER: Duration = Duration::from_secs(300);

/// There are more or fewer samples than asked for by these parts of a thousand. Not by less: a program in step with what was asked
/// for, as those are that work by a timer, stays in step for long with what is nearly the same. Of those between these
/// are among the best in the tests below.
const JITTER: std::ops::Range<u64> = 114..387;

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
    /// Numbers the next one.
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
            // Not all captures begin with the same one.
            periods: monotonic_ns() % 1000,
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
            self.sampler.start(self.period())?;
            self.has_run = true;
            if let What::OnCpu { period_ns } = self.what {
                self.next_period = Instant::now() + lasting(period_ns, self.periods);
            }
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

    /// Another capture can go on with it. Not those that have counters, which are others' as soon as they can be.
    pub(super) fn is_of_use_again(&self) -> bool {
        matches!(self.what, What::OnCpu { .. }) && self.has_run && self.has_room_for_code()
    }

    /// Tells the sampler of the processes that it met and did not know. True if there were any.
    pub(super) fn answer_strangers(&mut self, readers: &mut Readers) -> bool {
        let strangers = self.sampler.strangers();
        for pid in &strangers {
            self.spaces.tell(*pid, readers, &mut self.sampler);
        }
        !strangers.is_empty()
    }

    /// How long the period still lasts, if there is one.
    pub(super) fn period_left(&self) -> Option<Duration> {
        let left = || self.next_period.saturating_duration_since(Instant::now());
        matches!(self.what, What::OnCpu { .. }).then(left)
    }

    /// The period now.
    fn period(&self) -> Period {
        match self.what {
            What::OnCpu { period_ns: middle_ns } => period(middle_ns, self.periods),
            What::Cycles { .. } | What::OffCpu { .. } | What::Tails => Period::default(),
        }
    }

    /// Goes on to the next period, if it is time to.
    pub(super) fn change_period(&mut self) {
        let What::OnCpu { period_ns: middle_ns } = self.what else { return };
        if Instant::now() < self.next_period {
            return;
        }
        self.periods += 1;
        self.next_period = Instant::now() + lasting(middle_ns, self.periods);
        if let Err(error) = self.sampler.change_period(self.period()) {
            tracing::debug!(%error, "the period of samples stays as it is");
        }
    }
}

/// How long a period lasts by its number, if they are to be like this: up to 15 % more or less than the middle.
fn lasting(middle_ns: u64, number: u64) -> Duration {
    const STEP: u64 = 217_714;
    let parts = 850 + (300 * (number * STEP % WHOLE) / WHOLE) as u32;
    PERIOD_LASTS.max(Duration::from_nanos(10 * middle_ns)) * parts / 1000
}

/// What steps are multiples of: those of such a step, modulo the whole, fill it without gaps. Of many pairs of steps the two here are
/// among the best in the tests below.
const WHOLE: u64 = 1_000_000;

/// A period by its number: of rates on both sides of the one that was asked for, evenly.
fn period(middle_ns: u64, number: u64) -> Period {
    const STEP: u64 = 370_370;
    let jitter = JITTER.start + (JITTER.end - JITTER.start) * (number * STEP % WHOLE) / WHOLE;
    let rate = if number.is_multiple_of(2) { 1000 + jitter } else { 1000 - jitter };
    let ns = middle_ns * 1000 / rate;
    let lasts_ns = lasting(middle_ns, number).as_nanos() as u64;
    Period { ns, sample_ns: lasts_ns / (lasts_ns / ns) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::NANOS_PER_SECOND;

    /// By how many points the share of a function is wrong that has a third of each turn, sampled for so long. Periods begin at any
    /// number; a sample stands for its period.
    fn points_off(sampled: (u64, u64), turn_ns: u64, phase_ns: u64, first: u64) -> f64 {
        (share(sampled, turn_ns, turn_ns / 3, phase_ns, first) - 1.0 / 3.0).abs() * 100.0
    }

    /// The share that is found of what is done for so long of each turn.
    fn share((hz, seconds): (u64, u64), turn_ns: u64, part_ns: u64, phase_ns: u64, first: u64) -> f64 {
        let middle_ns = NANOS_PER_SECOND / hz;
        let (mut at_ns, mut found_ns, mut number) = (0, 0, 0);
        while at_ns < seconds * NANOS_PER_SECOND {
            let Period { ns, sample_ns } = period(middle_ns, first + number);
            let end_ns = at_ns + lasting(middle_ns, first + number).as_nanos() as u64;
            number += 1;
            while at_ns + ns <= end_ns {
                at_ns += ns;
                let has_it = (at_ns + phase_ns) % turn_ns < part_ns;
                found_ns += if has_it { sample_ns } else { 0 };
            }
            at_ns = end_ns;
        }
        found_ns as f64 / at_ns as f64
    }

    /// The same in 99 of 100 loads, at most, of this turn, or of different ones.
    fn mostly_off_by(sampled: (u64, u64), turn_ns: impl Fn(u64) -> u64) -> f64 {
        const LOADS: u64 = 1000;
        let off = |load: u64| points_off(sampled, turn_ns(load), load * 7919 % turn_ns(load), load);
        let mut off: Vec<f64> = (0..LOADS).map(off).collect();
        off.sort_unstable_by(f64::total_cmp);
        off[LOADS as usize * 99 / 100]
    }

    #[test]
    fn a_load_in_step_with_what_was_asked_for_has_its_true_share() {
        // Samples at random times: 3.8 and 1.2 points; with one period it is anything up to 67.
        let in_step = |hz| mostly_off_by((hz, 10), |_| NANOS_PER_SECOND / hz);
        assert!(in_step(99) < 2.0, "{}", in_step(99));
        assert!(in_step(999) < 1.2, "{}", in_step(999));
    }

    #[test]
    fn there_are_as_many_samples_as_asked_for() {
        const MIDDLE_NS: u64 = 1_000_000;
        let rate: f64 =
            (7..7 + 1000).map(|number| MIDDLE_NS as f64 / period(MIDDLE_NS, number).ns as f64).sum();
        assert!((rate / 1000.0 - 1.0).abs() < 0.005, "{rate}");
        let not_twice = |number| period(MIDDLE_NS, number).ns < 2 * MIDDLE_NS;
        assert!((0..1000).all(not_twice));
    }

    #[test]
    fn a_load_in_step_with_the_changes_has_its_true_share() {
        // What takes 20 ms once a second, in a minute at 20 Hz: 2 %, and 1.0 to 3.1 % in 98 of 100 loads by samples at random times.
        const LOADS: u64 = 1000;
        let share = |load: u64| {
            share((20, 60), NANOS_PER_SECOND, 20_000_000, load * 1_000_003 % NANOS_PER_SECOND, load)
        };
        let mut shares: Vec<f64> = (0..LOADS).map(|load| 100.0 * share(load)).collect();
        shares.sort_unstable_by(f64::total_cmp);
        let (low, high) = (shares[LOADS as usize / 100], shares[LOADS as usize * 99 / 100]);
        println!("{low} to {high} %");
        assert!(low > 1.0 && high < 3.1, "{low} to {high} %");
    }

    #[test]
    fn a_load_in_step_with_nothing_has_its_true_share() {
        // Of 1 to 8 ms. Samples at random times: 1.2 points, 3.5, and 11 with few of them.
        for (sampled, limit) in [((999, 10), 1.2), ((999, 1), 3.5), ((99, 1), 20.0)] {
            let any = mostly_off_by(sampled, |load| 1_000_000 + load * 7_001);
            println!("{sampled:?}: {any}");
            assert!(any < limit, "{sampled:?}: {any}");
        }
    }
}
