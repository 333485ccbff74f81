//! Keeps what the scheduler probes cost within a budget, in steps that are shown.
//!
//! Histograms go first, then the counters, and with them the probes; when it is calm they come back one by one. A pure
//! function of what was measured: it neither reads nor attaches anything.

use crate::input::Profile;
use crate::snapshot::SchedulerCost;
use crate::units::NANOS_PER_SECOND;

/// Cost is looked at once in this time.
const LOOK_NS: u64 = NANOS_PER_SECOND;
/// Looks in a row above the budget before a step down: a burst of a few seconds is what one wants to see.
const PATIENCE: u32 = 5;
/// Looks in a row after which a step up is tried.
const CALM: u32 = 30;
/// What one step more costs, at most, as a multiple: histograms and counters against counters alone.
const NEXT_STEP: f64 = 1.8;
/// Probes that were detached say nothing of what they would cost. They are tried again after so many looks, each time
/// twice as many, up to the second number.
const RETRY: (u32, u32) = (60, 960);

/// Decides how much of the scheduler is watched.
#[derive(Clone, Debug)]
pub struct Governor {
    /// Share of one CPU; `None`: no limit.
    budget: Option<f64>,
    ceiling: Profile,
    last: Option<(u64, u64)>,
    over: u32,
    calm: u32,
    retry: u32,
    /// Share of one CPU at the last look.
    share: Option<f64>,
}

impl Governor {
    /// With a budget as a share of one CPU, or without one.
    pub fn new(budget: Option<f64>) -> Self {
        Self {
            budget,
            ceiling: Profile::Histograms,
            last: None,
            over: 0,
            calm: 0,
            retry: RETRY.0,
            share: None,
        }
    }

    /// The most that may be watched now.
    pub fn ceiling(&self) -> Profile {
        self.ceiling
    }

    /// What readers are shown; `None` where there are no probes.
    pub fn state(&self) -> Option<SchedulerCost> {
        self.last?;
        Some(SchedulerCost { budget: self.budget, share: self.share, ceiling: self.ceiling })
    }

    /// Takes what the probes have cost since they were loaded, ns, at a time (`CLOCK_MONOTONIC` ns).
    pub fn observe(&mut self, at_ns: u64, cost_ns: u64) {
        let Some((before_ns, before_cost)) = self.last else {
            self.last = Some((at_ns, cost_ns));
            return;
        };
        let elapsed = at_ns.saturating_sub(before_ns);
        // Passes come a little early, too.
        if elapsed < LOOK_NS / 10 * 9 {
            return;
        }
        self.last = Some((at_ns, cost_ns));
        let share = cost_ns.saturating_sub(before_cost) as f64 / elapsed as f64;
        self.share = Some(share);
        let Some(budget) = self.budget else { return };
        if share > budget {
            (self.over, self.calm) = (self.over + 1, 0);
        } else {
            self.over = 0;
            let room = self.ceiling == Profile::None || share * NEXT_STEP <= budget;
            self.calm = if room { self.calm + 1 } else { 0 };
        }
        if self.over >= PATIENCE {
            self.down(share, budget);
        } else if self.calm >= (if self.ceiling == Profile::None { self.retry } else { CALM }) {
            self.up();
        }
    }

    fn down(&mut self, share: f64, budget: f64) {
        (self.over, self.calm) = (0, 0);
        let to = match self.ceiling {
            Profile::Histograms => Profile::Counters,
            Profile::Counters => Profile::None,
            Profile::None => return,
        };
        self.ceiling = to;
        let (share, budget) = (share * 100.0, budget * 100.0);
        tracing::warn!(
            "the scheduler probes take {share:.3} % of a CPU, the budget is {budget} %: {}",
            match to {
                Profile::None => "they are detached, and tried again later",
                _ => "lengths of intervals are no longer recorded, totals are",
            }
        );
    }

    fn up(&mut self) {
        (self.over, self.calm) = (0, 0);
        match self.ceiling {
            Profile::Histograms => self.retry = RETRY.0,
            Profile::Counters => self.ceiling = Profile::Histograms,
            Profile::None => {
                self.ceiling = Profile::Counters;
                self.retry = (self.retry * 2).min(RETRY.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Shares of a CPU, one a second; returns the ceiling after each.
    fn run(governor: &mut Governor, shares: &[f64]) -> Vec<Profile> {
        let (mut at, mut cost) = governor.last.unwrap_or_default();
        governor.observe(at, cost);
        shares
            .iter()
            .map(|share| {
                at += LOOK_NS;
                cost += (share * LOOK_NS as f64) as u64;
                governor.observe(at, cost);
                governor.ceiling()
            })
            .collect()
    }

    #[test]
    fn a_burst_is_borne_and_a_load_is_not() {
        let mut governor = Governor::new(Some(0.01));
        assert!(run(&mut governor, &[0.05; 4]).iter().all(|p| *p == Profile::Histograms));
        assert!(
            run(&mut governor, &[0.005, 0.05, 0.05, 0.05, 0.05]).iter().all(|p| *p == Profile::Histograms)
        );
        assert_eq!(run(&mut governor, &[0.05]), [Profile::Counters]);
        assert_eq!(run(&mut governor, &[0.03; 5]).last(), Some(&Profile::None));
        assert_eq!(run(&mut governor, &[0.0; 59]).last(), Some(&Profile::None));
        assert_eq!(run(&mut governor, &[0.0]), [Profile::Counters]);
        // Still too much: the next attempt comes later.
        assert_eq!(run(&mut governor, &[0.03; 5]).last(), Some(&Profile::None));
        assert_eq!(run(&mut governor, &[0.0; 119]).last(), Some(&Profile::None));
        assert_eq!(run(&mut governor, &[0.0]), [Profile::Counters]);
        assert_eq!(run(&mut governor, &[0.002; 30]).last(), Some(&Profile::Histograms));
    }

    #[test]
    fn what_would_not_fit_does_not_come_back() {
        let mut governor = Governor::new(Some(0.01));
        run(&mut governor, &[0.05; 5]);
        assert_eq!(run(&mut governor, &[0.007; 100]).last(), Some(&Profile::Counters));
    }

    #[test]
    fn without_a_budget_everything_stays() {
        let mut governor = Governor::new(None);
        assert!(run(&mut governor, &[0.9; 100]).iter().all(|p| *p == Profile::Histograms));
        assert!((governor.share.unwrap_or(0.0) - 0.9).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn it_moves_one_step_at_a_time(shares in proptest::collection::vec(0.0..0.05f64, 1..400)) {
            let mut governor = Governor::new(Some(0.01));
            let mut before = Profile::Histograms;
            for after in run(&mut governor, &shares) {
                prop_assert!((before as i32 - after as i32).abs() <= 1);
                before = after;
            }
        }
    }
}
