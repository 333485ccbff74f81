//! Distributions over time windows: what is recorded once is read as quantiles of the last minute, the last five
//! minutes and since start.
//!
//! Counts are kept sparse, in the bucket layout of [`collector_ebpf::histogram`]: a pool's values fall into some
//! dozens of its 2,368 buckets. Each window is merged into one [`hdrhistogram::Histogram`], which answers the
//! quantiles. Knows nothing of what the values mean; a [`Scale`] turns them into the unit of a metric.

use std::collections::VecDeque;
use std::sync::Arc;

use collector_ebpf::histogram::{MAX_VALUE, bounds, index, middle};
use hdrhistogram::Histogram;

use crate::snapshot::{Distribution, WindowQuantiles};
use crate::units::NANOS_PER_SECOND;

/// How a metric maps to the integers that are recorded, and its classic buckets.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Recorded integers per unit of the metric.
    pub per_unit: f64,
    /// Upper bounds of the classic buckets, in the metric's unit, ascending.
    pub bounds: &'static [f64],
    /// The largest value that can be true, in the metric's unit; larger ones are discarded and counted.
    pub ceiling: f64,
}

/// Sorted `(bucket, count)`.
#[derive(Clone, Debug, Default)]
struct Counts {
    buckets: Vec<(u16, u32)>,
    discarded: u64,
    /// The largest value, exactly.
    max: u64,
}

impl Counts {
    fn add(&mut self, bucket: u16, count: u32) {
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            self.add(*bucket, *count);
        }
        self.discarded += other.discarded;
        self.max = self.max.max(other.max);
    }
}

/// Length of the finest part of a window.
const FINE_NS: u64 = 10 * NANOS_PER_SECOND;
/// Fine parts that make a minute.
const FINE_PARTS: usize = 6;
/// Whole minutes that, with the one being filled, make five.
const COARSE_PARTS: usize = 4;

/// One distribution.
#[derive(Clone, Debug)]
pub struct Windowed {
    scale: Scale,
    /// Since start, by bucket. Shared with what was shown: copied by the next value, and not at all if none comes.
    total: Arc<Vec<(u16, u64)>>,
    /// By classic bucket, not cumulative; the last is beyond every bound.
    classic: Vec<u64>,
    count: u64,
    sum: f64,
    discarded: u64,
    max: u64,
    /// Parts of ten seconds, newest last; the newest is being filled.
    fine: VecDeque<Counts>,
    /// Parts of a minute that the fine ones were merged into, newest last.
    coarse: VecDeque<Counts>,
    /// Fine parts that went into the newest coarse one.
    merged: usize,
    fine_ends_ns: u64,
}

impl Windowed {
    /// Empty; time is `CLOCK_MONOTONIC` ns.
    pub fn new(scale: Scale, now_ns: u64) -> Self {
        Self {
            scale,
            total: Arc::default(),
            classic: vec![0; scale.bounds.len() + 1],
            count: 0,
            sum: 0.0,
            discarded: 0,
            max: 0,
            fine: VecDeque::from([Counts::default()]),
            coarse: VecDeque::new(),
            merged: 0,
            fine_ends_ns: now_ns.saturating_add(FINE_NS),
        }
    }

    /// Records a value in the metric's unit. What is negative, not a number or above the ceiling is discarded.
    pub fn record(&mut self, value: f64) {
        self.record_n(value, 1);
    }

    /// Records the same value so many times.
    pub fn record_n(&mut self, value: f64, times: u32) {
        if times == 0 {
            return;
        }
        let Some(newest) = self.fine.back_mut() else { return };
        if !(0.0..=self.scale.ceiling).contains(&value) {
            self.discarded += u64::from(times);
            newest.discarded += u64::from(times);
            return;
        }
        // In range: the ceiling is finite, and the cast saturates.
        let scaled = ((value * self.scale.per_unit).round() as u64).min(MAX_VALUE);
        let bucket = index(scaled) as u16;
        newest.add(bucket, times);
        newest.max = newest.max.max(scaled);
        self.add_to_total(bucket, u64::from(times));
        self.classic[self.scale.bounds.partition_point(|bound| *bound < value)] += u64::from(times);
        self.count += u64::from(times);
        self.sum += value * f64::from(times);
        self.max = self.max.max(scaled);
    }

    /// Records values that were put into buckets elsewhere, each as the middle of its bucket. What was counted by
    /// classic bucket is exact but for values within a bucket's width of a bound.
    pub fn record_bucket(&mut self, bucket: u16, count: u32) {
        let Some(newest) = self.fine.back_mut() else { return };
        let (_, highest) = bounds(usize::from(bucket));
        newest.add(bucket, count);
        newest.max = newest.max.max(highest);
        self.add_to_total(bucket, count.into());
        let value = middle(usize::from(bucket)) as f64 / self.scale.per_unit;
        self.classic[self.scale.bounds.partition_point(|bound| *bound < value)] += u64::from(count);
        self.count += u64::from(count);
        self.sum += value * f64::from(count);
        self.max = self.max.max(highest);
    }

    fn add_to_total(&mut self, bucket: u16, count: u64) {
        let total = Arc::make_mut(&mut self.total);
        match total.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => total[at].1 += count,
            Err(at) => total.insert(at, (bucket, count)),
        }
    }

    /// Says what the sum is, where that is known better than by what was recorded.
    pub fn set_sum(&mut self, sum: f64) {
        self.sum = sum;
    }

    /// Counts values that could not be recorded.
    pub fn discard_many(&mut self, count: u32) {
        self.discarded += u64::from(count);
        if let Some(newest) = self.fine.back_mut() {
            newest.discarded += u64::from(count);
        }
    }

    /// Counts a value that the caller could not make sense of.
    pub fn discard(&mut self) {
        self.record(f64::NAN);
    }

    /// Moves the windows on. Call before reading; more often does no harm. True if they are others than before.
    pub fn advance(&mut self, now_ns: u64) -> bool {
        // After a long pause (a suspended host) every part is stale: a handful of turns empties them all.
        let turns = now_ns.saturating_sub(self.fine_ends_ns).checked_div(FINE_NS).unwrap_or(0) + 1;
        if now_ns < self.fine_ends_ns {
            return false;
        }
        for _ in 0..turns.min((FINE_PARTS * (COARSE_PARTS + 2)) as u64) {
            self.turn();
        }
        self.fine_ends_ns += turns * FINE_NS;
        true
    }

    /// Nothing was recorded since this was made of it.
    fn is_shown_by(&self, shown: &Distribution) -> bool {
        (self.count, self.discarded, self.sum.to_bits())
            == (shown.count, shown.discarded, shown.sum.to_bits())
    }

    fn turn(&mut self) {
        self.fine.push_back(Counts::default());
        if self.fine.len() <= FINE_PARTS {
            return;
        }
        let Some(oldest) = self.fine.pop_front() else { return };
        if self.merged == 0 {
            self.coarse.push_back(Counts::default());
            if self.coarse.len() > COARSE_PARTS {
                self.coarse.pop_front();
            }
        }
        if let Some(newest) = self.coarse.back_mut() {
            newest.merge(&oldest);
        }
        self.merged = (self.merged + 1) % FINE_PARTS;
    }

    /// What readers get. `scratch` is cleared and used for each window.
    pub fn distribution(&self, scratch: &mut Scratch) -> Distribution {
        let mut cumulative = Vec::with_capacity(self.scale.bounds.len());
        let mut sum = 0;
        for count in &self.classic[..self.scale.bounds.len()] {
            sum += count;
            cumulative.push(sum);
        }
        let mut windows = Vec::with_capacity(3);
        let parts = |parts: &mut dyn Iterator<Item = &Counts>, scratch: &mut Scratch| {
            scratch.clear();
            let (mut discarded, mut max) = (0, 0);
            for part in parts {
                discarded += part.discarded;
                max = part.max.max(max);
                for (bucket, count) in &part.buckets {
                    scratch.add(*bucket, u64::from(*count));
                }
            }
            (discarded, max)
        };
        let (discarded, max) = parts(&mut self.fine.iter(), scratch);
        windows.extend(scratch.quantiles("1m", discarded, self.scale, max));
        let (discarded, max) = parts(&mut self.coarse.iter().chain(&self.fine), scratch);
        windows.extend(scratch.quantiles("5m", discarded, self.scale, max));
        scratch.clear();
        for (bucket, count) in self.total.iter() {
            scratch.add(*bucket, *count);
        }
        windows.extend(scratch.quantiles("start", self.discarded, self.scale, self.max));
        Distribution {
            bounds: self.scale.bounds,
            cumulative,
            count: self.count,
            sum: self.sum,
            discarded: self.discarded,
            buckets: Arc::clone(&self.total),
            per_unit: self.scale.per_unit,
            windows,
        }
    }
}

/// A distribution and what readers got of it, made anew only where it has changed.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What is recorded to.
    pub histogram: Windowed,
    shown: Option<Arc<Distribution>>,
}

impl Shown {
    /// As [`Windowed::new`].
    pub fn new(scale: Scale, now_ns: u64) -> Self {
        Self { histogram: Windowed::new(scale, now_ns), shown: None }
    }

    /// As readers get it, in the windows that end now.
    pub fn view(&mut self, now_ns: u64, scratch: &mut Scratch) -> Arc<Distribution> {
        let moved_on = self.histogram.advance(now_ns);
        let shown = self.shown.take().filter(|shown| !moved_on && self.histogram.is_shown_by(shown));
        let shown = shown.unwrap_or_else(|| Arc::new(self.histogram.distribution(scratch)));
        self.shown = Some(Arc::clone(&shown));
        shown
    }
}

/// The HDR histogram that windows are merged into; one for all, because clearing is cheaper than keeping.
#[derive(Debug)]
pub struct Scratch {
    histogram: Histogram<u64>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// Two significant digits: each bucket of ours is two of the histogram's, so merging adds no error.
    pub fn new() -> Self {
        let mut histogram = Histogram::new(2).unwrap_or_else(|_| unreachable!("2 is between 0 and 5"));
        histogram.auto(true);
        Self { histogram }
    }

    fn clear(&mut self) {
        self.histogram.clear();
    }

    fn add(&mut self, bucket: u16, count: u64) {
        // Grows by itself up to the largest bucket, 2^42; recording cannot fail.
        let _ = self.histogram.record_n(middle(usize::from(bucket)), count);
    }

    fn quantiles(
        &self,
        window: &'static str,
        discarded: u64,
        scale: Scale,
        max: u64,
    ) -> Option<WindowQuantiles> {
        let count = self.histogram.len();
        if count == 0 {
            return None;
        }
        let unit = |value: u64| value as f64 / scale.per_unit;
        // The middle of the bucket, not its upper end: half the error. The largest value is known exactly, and nothing
        // is beyond it.
        let at = |quantile: f64| {
            let value = self.histogram.value_at_quantile(quantile);
            unit(middle(index(self.histogram.lowest_equivalent(value))).min(max))
        };
        Some(WindowQuantiles {
            window,
            count,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: unit(max),
            coverage: count as f64 / (count + discarded) as f64,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCALE: Scale = Scale { per_unit: 1e6, bounds: &[0.1, 0.5, 1.0], ceiling: 1000.0 };

    fn window<'a>(d: &'a Distribution, name: &str) -> Option<&'a WindowQuantiles> {
        d.windows.iter().find(|w| w.window == name)
    }

    proptest! {
        #[test]
        fn quantiles_are_within_1_6_percent_of_the_exact_ones(mut values in proptest::collection::vec(0.0001f64..900.0, 1..400)) {
            let mut windowed = Windowed::new(SCALE, 0);
            for value in &values {
                windowed.record(*value);
            }
            let d = windowed.distribution(&mut Scratch::new());
            values.sort_by(f64::total_cmp);
            let w = window(&d, "1m").unwrap();
            for (q, got) in [(0.5, w.p50), (0.9, w.p90), (0.95, w.p95), (0.99, w.p99), (0.999, w.p999)] {
                let rank = ((q * values.len() as f64).ceil() as usize).max(1);
                let exact = values[rank - 1];
                prop_assert!((got - exact).abs() <= exact * 0.016 + 1e-6, "p{q}: {got} against {exact}");
                prop_assert!(got <= w.max, "p{q}: {got} is beyond the largest value {}", w.max);
            }
            let largest = values.last().copied().unwrap_or_default();
            prop_assert!((w.max - largest).abs() <= 1e-6, "{} against {largest}", w.max);
        }
    }

    #[test]
    fn values_leave_the_windows_but_not_the_total() {
        let mut windowed = Windowed::new(SCALE, 0);
        let mut scratch = Scratch::new();
        let second = NANOS_PER_SECOND;
        windowed.record(0.25);
        windowed.advance(30 * second);
        windowed.record(4.0);
        let d = windowed.distribution(&mut scratch);
        assert_eq!(window(&d, "1m").map(|w| w.count), Some(2));
        windowed.advance(65 * second);
        let d = windowed.distribution(&mut scratch);
        assert_eq!(window(&d, "1m").map(|w| w.count), Some(1));
        assert_eq!(window(&d, "5m").map(|w| w.count), Some(2));
        windowed.advance(3600 * second);
        let d = windowed.distribution(&mut scratch);
        assert!(window(&d, "1m").is_none());
        assert!(window(&d, "5m").is_none());
        assert_eq!(window(&d, "start").map(|w| (w.count, w.max)), Some((2, 4.0)));
    }

    #[test]
    fn five_minutes_hold_five_minutes() {
        let mut windowed = Windowed::new(SCALE, 0);
        let mut scratch = Scratch::new();
        for second in 0..900u64 {
            windowed.advance(second * NANOS_PER_SECOND);
            windowed.record(1.0);
            let d = windowed.distribution(&mut scratch);
            let (minute, five) = (window(&d, "1m").unwrap().count, window(&d, "5m").unwrap().count);
            assert!(minute == second + 1 || (51..=60).contains(&minute), "{second}: {minute}");
            assert!(five == second + 1 || (241..=300).contains(&five), "{second}: {five}");
        }
    }

    #[test]
    fn absurd_values_are_counted_and_left_out() {
        let mut windowed = Windowed::new(SCALE, 0);
        for value in [-1.0, f64::NAN, f64::INFINITY, 1e9, 1.0] {
            windowed.record(value);
        }
        let d = windowed.distribution(&mut Scratch::new());
        assert_eq!((d.count, d.discarded, d.sum), (1, 4, 1.0));
        assert_eq!(window(&d, "1m").map(|w| w.coverage), Some(0.2));
    }

    #[test]
    fn what_was_shown_stays_and_is_not_copied_unless_it_has_to() {
        let mut windowed = Windowed::new(SCALE, 0);
        let mut scratch = Scratch::new();
        windowed.record(0.25);
        let first = windowed.distribution(&mut scratch);
        let second = windowed.distribution(&mut scratch);
        assert!(Arc::ptr_eq(&first.buckets, &second.buckets));
        windowed.record(0.25);
        windowed.record_bucket(3, 2);
        let third = windowed.distribution(&mut scratch);
        let of = |value: f64| index((value * SCALE.per_unit) as u64) as u16;
        assert_eq!(*first.buckets, [(of(0.25), 1)]);
        assert_eq!(*third.buckets, [(3, 2), (of(0.25), 2)]);
    }

    #[test]
    fn classic_buckets_include_their_bound() {
        let mut windowed = Windowed::new(SCALE, 0);
        for value in [0.1, 0.11, 1.0, 2.0] {
            windowed.record(value);
        }
        let d = windowed.distribution(&mut Scratch::new());
        assert_eq!(d.cumulative, [1, 2, 3]);
        assert_eq!(d.count, 4);
    }
}
