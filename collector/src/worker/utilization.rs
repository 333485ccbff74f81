//! Which part of the time of a pool its workers worked: the time that they were active over the time that its size would
//! have allowed, so that work between two collections counts, and places that nobody holds count as unused.

use std::collections::VecDeque;

use crate::units::NANOS_PER_SECOND;

/// Windows by length, ns; the last one is since the begin.
const WINDOWS: [(&str, u64); 3] =
    [("1m", 60 * NANOS_PER_SECOND), ("5m", 300 * NANOS_PER_SECOND), ("start", u64::MAX)];

/// Between marks that are kept, ns: a window is at most so much longer than it is called.
const MARK_NS: u64 = 5 * NANOS_PER_SECOND;

/// Totals at one moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at_ns: u64,
    active_ns: u64,
    size_ns: u64,
}

/// Of one pool.
#[derive(Clone, Debug, Default)]
pub struct Utilization {
    begin: Option<Mark>,
    /// Later ones, oldest first; of those that are older than the longest window that ends, only the last.
    marks: VecDeque<Mark>,
    last: Option<Mark>,
    size: u32,
}

impl Utilization {
    /// Takes how long workers have been active in all, ns, and how many there could be from now on. Returns the share of
    /// each window, from 0; above 1 where more worked than that.
    pub fn take(&mut self, active_ns: u64, size: u32, at_ns: u64) -> Vec<(&'static str, f64)> {
        let before = self.last.unwrap_or(Mark { at_ns, active_ns, size_ns: 0 });
        let grown_ns = at_ns.saturating_sub(before.at_ns).saturating_mul(self.size.into());
        let now = Mark { at_ns, active_ns, size_ns: before.size_ns.saturating_add(grown_ns) };
        (self.last, self.size) = (Some(now), size);
        let begin = *self.begin.get_or_insert(now);
        if at_ns.saturating_sub(self.marks.back().unwrap_or(&begin).at_ns) >= MARK_NS {
            self.marks.push_back(now);
        }
        let longest_ns = WINDOWS[1].1;
        while self.marks.get(1).is_some_and(|mark| at_ns.saturating_sub(mark.at_ns) >= longest_ns) {
            self.marks.pop_front();
        }
        let share = |window_ns: u64| {
            let old_enough = |mark: &&Mark| at_ns.saturating_sub(mark.at_ns) >= window_ns;
            let from = self.marks.iter().rev().find(old_enough).copied().unwrap_or(begin);
            let (active_ns, size_ns) =
                (now.active_ns.saturating_sub(from.active_ns), now.size_ns - from.size_ns);
            (size_ns > 0).then(|| active_ns as f64 / size_ns as f64)
        };
        WINDOWS.into_iter().filter_map(|(name, window_ns)| Some((name, share(window_ns)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    #[test]
    fn each_window_has_what_was_active_in_it() {
        let mut utilization = Utilization::default();
        assert!(utilization.take(7 * SECOND, 4, 0).is_empty(), "nothing is known of the time before");
        let mut active_ns = 7 * SECOND;
        let mut shares = Vec::new();
        // Four places: an hour in which one works, then a minute in which three do.
        for second in 1..=3660 {
            active_ns += if second <= 3600 { SECOND } else { 3 * SECOND };
            shares = utilization.take(active_ns, 4, second * SECOND);
        }
        assert_eq!(shares.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["1m", "5m", "start"]);
        let near = |share: f64, expected: f64| assert!((share - expected).abs() < 0.04, "{share} {expected}");
        near(shares[0].1, 0.75);
        near(shares[1].1, (240.0 + 180.0) / 1200.0);
        near(shares[2].1, (3600.0 + 180.0) / (3660.0 * 4.0));
        assert!(utilization.marks.len() <= 62, "{}", utilization.marks.len());
    }

    #[test]
    fn a_pool_that_grows_is_measured_by_what_it_was() {
        let mut utilization = Utilization::default();
        utilization.take(0, 1, 0);
        utilization.take(SECOND, 9, SECOND);
        let shares = utilization.take(10 * SECOND, 9, 2 * SECOND);
        assert_eq!(shares, [("1m", 1.0), ("5m", 1.0), ("start", 1.0)]);
        let mut empty = Utilization::default();
        empty.take(0, 0, 0);
        assert!(empty.take(0, 0, SECOND).is_empty(), "there was no place to work");
    }
}
