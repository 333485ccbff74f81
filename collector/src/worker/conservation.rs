//! Whether two accounts of the same CPU agree: of a control group and of the pool that it is, of a pool's workers and of
//! the switches that were seen of them. What the one was charged with and the other has not is unattributed. In
//! a cgroup that may be processes that came and went unseen; and whatever our own figures have missed shows here.
//!
//! The two figures cannot be read at one instant, and a counter may not take back what it showed. So the
//! difference is made too small rather than too large, and never by more than once: when a comparison begins
//! our figure is read before the account, and from then on the account before ours. Both are totals since
//! that beginning, so what was used between two readings is not added up.
//!
//! What is left is our figure lagging behind: a process that has ended and whose last figures are
//! under way, a thread that ended in the middle of a pass. That passes in a second or two, so only what every
//! comparison of some seconds has is shown ([`Comparison`]).

use crate::units::{NANOS_PER_SECOND, Pid};

/// What is to be shown has to stand for so long: longer than the kernel takes to tell of an end, which on a
/// busy host can be a second, and our next pass to hear of it. At the usual interval four passes.
const STANDS_NS: u64 = 5 * NANOS_PER_SECOND / 2;

/// CPU by two accounts since both were first read, the kernel's and ours, and how much ours lacks.
#[derive(Clone, Debug)]
pub struct Comparison {
    account_ns: u64,
    ours_ns: u64,
    /// What has stood, ns.
    unattributed_ns: u64,
    window: Option<Window>,
}

/// Comparisons one after the other.
#[derive(Clone, Copy, Debug)]
struct Window {
    since_ns: u64,
    /// What each of them had at least.
    least_ns: u64,
}

impl Comparison {
    /// Begins with what we have and what the account has, ns, read in this order.
    pub fn begin(ours_ns: u64, account_ns: u64) -> Self {
        Self { account_ns, ours_ns, unattributed_ns: 0, window: None }
    }

    /// Takes what the account has and what we have, ns, read in this order at about `at_ns`, `CLOCK_MONOTONIC`. Our
    /// figure may be as much as `short_ns` too small.
    pub fn take(&mut self, account_ns: u64, ours_ns: u64, short_ns: u64, at_ns: u64) {
        let charged_ns = account_ns.saturating_sub(self.account_ns);
        let used_ns = ours_ns.saturating_sub(self.ours_ns).saturating_add(short_ns);
        let now = Window { since_ns: at_ns, least_ns: charged_ns.saturating_sub(used_ns) };
        let window = self.window.get_or_insert(now);
        window.least_ns = window.least_ns.min(now.least_ns);
        if at_ns.saturating_sub(window.since_ns) >= STANDS_NS {
            self.unattributed_ns = self.unattributed_ns.max(window.least_ns);
            self.window = Some(now);
        }
    }

    /// What the account has and we lack, ns. Never falls.
    pub fn unattributed_ns(&self) -> u64 {
        self.unattributed_ns
    }
}

/// Whether the processes of a cgroup are those of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are, but for some that were just coming or going.
    Same,
    /// Not all; those that differ may just be coming or going. Another look will tell.
    Unsure,
    /// Somebody is in one of them and not in the other, and stays so.
    Different,
}

/// Looks at who is in a cgroup and who in its pool.
///
/// The two are not known at one instant either: who was forked since events were last taken is in the cgroup
/// and not yet in the pool, and who has ended since is not in it any more. So a difference counts only when
/// the next look, a pass later, finds it still.
#[derive(Debug, Default)]
pub struct Membership {
    /// Who was in one of them only when an unsure look was taken.
    apart: Vec<Pid>,
}

impl Membership {
    /// Compares; both lists are left in some other order.
    pub fn look(&mut self, cgroup: &mut [Pid], pool: &mut [Pid]) -> Verdict {
        cgroup.sort_unstable();
        pool.sort_unstable();
        let without = |pids: &[Pid], others: &[Pid]| -> Vec<Pid> {
            pids.iter().copied().filter(|pid| others.binary_search(pid).is_err()).collect()
        };
        let mut apart = without(cgroup, pool);
        apart.extend(without(pool, cgroup));
        let before = std::mem::take(&mut self.apart);
        if apart.is_empty() {
            Verdict::Same
        } else if before.is_empty() {
            self.apart = apart;
            Verdict::Unsure
        } else if apart.iter().any(|pid| before.contains(pid)) {
            Verdict::Different
        } else {
            Verdict::Same
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    #[test]
    fn what_stands_for_some_seconds_is_shown() {
        let mut comparison = Comparison::begin(100, 1000);
        for second in 0..3 {
            comparison.take(1600, 200, 0, second * SECOND);
            assert_eq!(comparison.unattributed_ns(), 0, "after {second} s");
        }
        comparison.take(1700, 300, 0, 3 * SECOND);
        assert_eq!(comparison.unattributed_ns(), 500);
        // From a pool that is read once a minute, too.
        comparison.take(3000, 600, 0, 63 * SECOND);
        assert_eq!(comparison.unattributed_ns(), 500, "one comparison is not enough");
        comparison.take(3000, 600, 0, 123 * SECOND);
        assert_eq!(comparison.unattributed_ns(), 1500);
    }

    #[test]
    fn what_comes_and_goes_is_not() {
        let mut comparison = Comparison::begin(0, 0);
        for second in 0..60 {
            // Somebody's last figures come a second late, all the time.
            let late = if second % 3 == 0 { 0 } else { 7 };
            comparison.take(second * 100, second * 100 - second.min(late), 0, second * SECOND);
        }
        assert_eq!(comparison.unattributed_ns(), 0);
    }

    #[test]
    fn figures_in_ticks_may_be_too_small() {
        let mut comparison = Comparison::begin(0, 0);
        for second in 0..10 {
            comparison.take(1000, 970, 30, second * SECOND);
        }
        assert_eq!(comparison.unattributed_ns(), 0);
    }

    #[test]
    fn a_difference_counts_when_it_stays() {
        let mut membership = Membership::default();
        let mut look =
            |cgroup: &[Pid], pool: &[Pid]| membership.look(&mut cgroup.to_vec(), &mut pool.to_vec());
        assert_eq!(look(&[3, 1, 2], &[2, 3, 1]), Verdict::Same);
        // 9 has ended and 4 was forked while we looked.
        assert_eq!(look(&[1, 2, 4], &[1, 2, 9]), Verdict::Unsure);
        assert_eq!(look(&[1, 2, 4, 5], &[1, 2, 4]), Verdict::Same, "only others differ now");
        assert_eq!(look(&[1, 2, 4, 6], &[1, 2, 4]), Verdict::Unsure);
        assert_eq!(look(&[6, 4, 2, 1], &[1, 2, 4]), Verdict::Different, "a stranger");
        assert_eq!(look(&[1], &[1, 2]), Verdict::Unsure);
        assert_eq!(look(&[1], &[2, 1]), Verdict::Different, "a worker elsewhere");
        assert_eq!(look(&[0, 1], &[1]), Verdict::Unsure);
        assert_eq!(look(&[0, 1], &[1]), Verdict::Different, "somebody of another pid namespace");
    }

    /// Of one second: what the pool and strangers use, what the pool uses between the two readings, and what
    /// of the pool's figure is late.
    type Second = (u64, u64, u64, u64);

    fn second() -> impl Strategy<Value = Second> {
        (0..4 * SECOND, prop_oneof![Just(0), 0..SECOND / 10], 0..SECOND / 100, 0..SECOND)
    }

    proptest! {
        /// Never more than strangers have used, however long it runs; and less by no more than one second's
        /// noise.
        #[test]
        fn noise_is_not_added_up(
            seconds in proptest::collection::vec(second(), 1..400),
            first in 0..SECOND / 100,
        ) {
            let (mut pool, mut strangers) = (0u64, 0u64);
            let mut comparison = Comparison::begin(pool, first);
            pool += first;
            let mut known = Vec::new();
            let mut before = 0;
            for (at, (used, by_strangers, between, late)) in seconds.into_iter().enumerate() {
                pool += used;
                strangers += by_strangers;
                known.push(strangers);
                let usage = pool + strangers;
                pool += between;
                // What is late in one second has come two seconds after.
                let late = if at % 3 == 0 { 0 } else { late.min(pool) };
                comparison.take(usage, pool - late, 0, at as u64 * SECOND);
                let shown = comparison.unattributed_ns();
                prop_assert!(shown <= strangers, "{shown} of {strangers}");
                prop_assert!(shown >= before, "it falls");
                before = shown;
                if let Some(then) = at.checked_sub(6) {
                    prop_assert!(shown + SECOND / 50 >= known[then], "{shown} of {}", known[then]);
                }
            }
        }
    }
}
