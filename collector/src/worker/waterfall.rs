//! Where the time of requests went that had their thread to themselves, and which of them were the slowest: by pool.

use std::collections::VecDeque;
use std::sync::Arc;

use collector_ebpf::histogram::index;
use collector_ebpf::schedule::KINDS;
use collector_ebpf::waterfall::{SLOWEST, STRETCH_SHIFT};

use crate::histogram::{Scale, Scratch, Shown};
use crate::input::{SlowRequest, WaterfallReading};
use crate::snapshot;
use crate::units::NANOS_PER_SECOND;

/// Windows of the slowest requests, and of how many stretches they consist: the one that lasts and what makes at least a
/// minute, or five.
const WINDOWS: [(&str, u64); 2] = [("1m", 8), ("5m", 36)];

/// All that a pool has had.
#[derive(Clone, Debug)]
pub struct Waterfall {
    /// Of its pool, that had ended before.
    requests_before: u64,
    requests: u64,
    duration_ns: u64,
    time_ns: [u64; KINDS],
    /// Values by kind that are in a histogram or known to be in none, those of no time included.
    accounted: [u64; KINDS],
    histograms: Box<[Shown; KINDS]>,
    slowest: Slowest,
}

impl Waterfall {
    /// Nothing yet, of a pool that has had so many requests. Times are `CLOCK_MONOTONIC` ns.
    pub fn new(scale: Scale, now_ns: u64, requests_before: u64) -> Self {
        Self {
            requests_before,
            requests: 0,
            duration_ns: 0,
            time_ns: [0; KINDS],
            accounted: [0; KINDS],
            histograms: Box::new(std::array::from_fn(|_| Shown::new(scale, now_ns))),
            slowest: Slowest::default(),
        }
    }

    /// Adds what is new in a reading.
    pub fn take(&mut self, reading: &WaterfallReading) {
        for shown in &mut *self.histograms {
            shown.histogram.advance(reading.at_ns);
        }
        self.requests += u64::from(reading.requests);
        self.duration_ns += reading.duration_ns;
        for (sum, time_ns) in self.time_ns.iter_mut().zip(reading.time_ns) {
            *sum += time_ns;
        }
        for interval in &reading.intervals {
            let kind = usize::from(interval.measure);
            if let (Some(shown), Some(accounted)) =
                (self.histograms.get_mut(kind), self.accounted.get_mut(kind))
            {
                shown.histogram.record_bucket(interval.bucket, interval.count);
                *accounted += u64::from(interval.count);
            }
        }
        let each = self.histograms.iter_mut().zip(&mut self.accounted).zip(reading.discarded);
        for ((Shown { histogram, .. }, accounted), discarded) in each {
            histogram.discard_many(discarded);
            *accounted += u64::from(discarded);
            // The kernel records times first and counts the request then: what lacks to the number was in this kind for no
            // time, and what is more is a request that is counted at the next reading.
            let none = u32::try_from(self.requests.saturating_sub(*accounted)).unwrap_or(u32::MAX);
            histogram.record_bucket(index(0) as u16, none);
            *accounted += u64::from(none);
        }
        for (shown, time_ns) in self.histograms.iter_mut().zip(self.time_ns) {
            // Not as the buckets have it: this is known to the nanosecond, has what was discarded, adds up and never falls.
            shown.histogram.set_sum(time_ns as f64 / NANOS_PER_SECOND as f64);
        }
        for (stretch, requests) in &reading.slowest {
            self.slowest.replace(*stretch, requests);
        }
    }

    /// What readers get at this time.
    pub fn view(&mut self, pool_requests: u64, now_ns: u64, scratch: &mut Scratch) -> snapshot::Waterfall {
        let seconds = self.histograms.each_mut().map(|shown| shown.view(now_ns, scratch));
        snapshot::Waterfall {
            of_requests: pool_requests.saturating_sub(self.requests_before),
            requests: self.requests,
            duration_ns: self.duration_ns,
            time_ns: self.time_ns,
            seconds,
            slowest: self.slowest.view(now_ns >> STRETCH_SHIFT),
        }
    }
}

/// The slowest requests of each stretch of time that is in a window, and of all that were before.
#[derive(Clone, Debug, Default)]
struct Slowest {
    /// By stretch, ascending.
    stretches: VecDeque<(u64, Vec<SlowRequest>)>,
    before: Vec<SlowRequest>,
    /// What readers got, and in which stretch.
    shown: Option<(u64, Arc<snapshot::Slowest>)>,
}

impl Slowest {
    /// These are now the slowest of a stretch.
    fn replace(&mut self, stretch: u64, requests: &[SlowRequest]) {
        self.shown = None;
        let place = self.stretches.partition_point(|(other, _)| *other < stretch);
        match self.stretches.get_mut(place) {
            Some((same, known)) if *same == stretch => *known = requests.to_vec(),
            _ => self.stretches.insert(place, (stretch, requests.to_vec())),
        }
    }

    fn view(&mut self, now: u64) -> Arc<snapshot::Slowest> {
        if let Some((then, shown)) = &self.shown
            && *then == now
        {
            return Arc::clone(shown);
        }
        let kept = WINDOWS.iter().map(|(_, length)| *length).max().unwrap_or(0);
        while let Some((_, requests)) = self.stretches.pop_front_if(|(stretch, _)| *stretch + kept <= now) {
            self.before = slowest(self.before.iter().chain(&requests));
        }
        let since = |from: u64| {
            self.stretches
                .iter()
                .filter(move |(stretch, _)| *stretch >= from)
                .flat_map(|(_, requests)| requests)
        };
        let mut windows: Vec<_> = WINDOWS
            .into_iter()
            .map(|(name, length)| (name, slowest(since((now + 1).saturating_sub(length)))))
            .collect();
        windows.push(("start", slowest(self.before.iter().chain(since(0)))));
        let shown = Arc::new(windows);
        self.shown = Some((now, Arc::clone(&shown)));
        shown
    }
}

/// The slowest first, as many as are kept.
fn slowest<'a>(requests: impl Iterator<Item = &'a SlowRequest>) -> Vec<SlowRequest> {
    let mut all: Vec<SlowRequest> = requests.copied().collect();
    all.sort_unstable_by_key(|request| (std::cmp::Reverse(request.duration_ns), request.begin_ns));
    all.truncate(SLOWEST);
    all
}

#[cfg(test)]
mod tests {
    use collector_ebpf::schedule::{ON_CPU, POLL};
    use proptest::prelude::*;

    use super::*;
    use crate::input::Interval;

    const SCALE: Scale = Scale { per_unit: NANOS_PER_SECOND as f64, bounds: &[], ceiling: 1e9 };

    fn interval(kind: u32, ns: u64, count: u32) -> Interval {
        Interval { measure: kind as u8, bucket: index(ns) as u16, count }
    }

    #[test]
    fn who_was_in_a_kind_for_no_time_counts_in_its_quantiles() {
        let mut waterfall = Waterfall::new(SCALE, 0, 0);
        let mut reading = WaterfallReading {
            requests: 4,
            duration_ns: 4_000,
            intervals: vec![interval(ON_CPU, 1_000, 4), interval(POLL, 1_000_000, 1)],
            ..WaterfallReading::default()
        };
        waterfall.take(&reading);
        let view = waterfall.view(0, 1, &mut Scratch::new());
        assert_eq!(view.requests, 4);
        for kind in [ON_CPU, POLL] {
            assert_eq!(view.seconds[kind as usize].count, 4);
        }
        let poll = &view.seconds[POLL as usize].windows[0];
        assert!(poll.p50 == 0.0 && (0.00099..0.00102).contains(&poll.max), "{poll:?}");
        // One whose times are in the histograms already, and who is counted at the next reading.
        reading = WaterfallReading {
            requests: 0,
            intervals: vec![interval(ON_CPU, 1_000, 1)],
            ..WaterfallReading::default()
        };
        waterfall.take(&reading);
        reading = WaterfallReading { requests: 1, intervals: Vec::new(), ..reading };
        waterfall.take(&reading);
        let view = waterfall.view(0, 2, &mut Scratch::new());
        assert!(view.seconds.iter().all(|seconds| seconds.count == 5), "{view:?}");
    }

    #[test]
    fn what_found_no_memory_is_discarded_and_not_zero() {
        let mut waterfall = Waterfall::new(SCALE, 0, 0);
        let mut discarded = [0; KINDS];
        discarded[POLL as usize] = 2;
        let reading = WaterfallReading { requests: 3, discarded, ..WaterfallReading::default() };
        waterfall.take(&reading);
        let poll = Arc::clone(&waterfall.view(0, 1, &mut Scratch::new()).seconds[POLL as usize]);
        assert_eq!((poll.count, poll.discarded), (1, 2));
    }

    #[test]
    fn sums_add_up_and_never_fall_whatever_is_discarded() {
        let mut waterfall = Waterfall::new(SCALE, 0, 0);
        let mut time_ns = [0; KINDS];
        (time_ns[ON_CPU as usize], time_ns[POLL as usize]) = (4_004, 1_000_007);
        let mut reading = WaterfallReading {
            requests: 4,
            duration_ns: 1_004_011,
            time_ns,
            intervals: vec![interval(ON_CPU, 1_001, 4), interval(POLL, 1_000_007, 1)],
            ..WaterfallReading::default()
        };
        let mut before = [0.0; KINDS];
        for (turn, discarded) in [(1, 0), (2, 4), (3, 4), (4, 0)] {
            reading.discarded = [discarded; KINDS];
            let intervals = reading.intervals.clone();
            if discarded > 0 {
                reading.intervals.clear();
            }
            waterfall.take(&reading);
            reading.intervals = intervals;
            let view = waterfall.view(0, turn, &mut Scratch::new());
            let sums = view.seconds.each_ref().map(|seconds| seconds.sum);
            let known = sums.iter().sum::<f64>() * NANOS_PER_SECOND as f64;
            assert!((known - view.duration_ns as f64).abs() < 0.5, "{known}: {view:?}");
            assert!(sums.iter().zip(before).all(|(now, before)| *now >= before), "{sums:?} after {before:?}");
            before = sums;
            for seconds in &view.seconds {
                assert_eq!(seconds.count + seconds.discarded, view.requests, "{seconds:?}");
            }
        }
    }

    #[test]
    fn a_sum_is_shown_when_it_is_read_also_where_its_values_were_recorded_before() {
        let mut waterfall = Waterfall::new(SCALE, 0, 0);
        let mut reading = WaterfallReading {
            intervals: (0..KINDS as u32).map(|kind| interval(kind, 1_000, 1)).collect(),
            ..WaterfallReading::default()
        };
        waterfall.take(&reading);
        assert_eq!(waterfall.view(0, 1, &mut Scratch::new()).seconds[0].sum, 0.0);
        reading.intervals.clear();
        (reading.requests, reading.duration_ns, reading.time_ns) = (1, 12_000, [1_000; KINDS]);
        waterfall.take(&reading);
        let view = waterfall.view(0, 2, &mut Scratch::new());
        assert!(view.seconds.iter().all(|seconds| seconds.sum == 1e-6), "{view:?}");
    }

    proptest! {
        #[test]
        fn the_slowest_of_a_window_are_those_that_began_to_be_kept_in_it(
            ends in proptest::collection::vec((0u64..60, 1u64..1000), 1..200)
        ) {
            // As the kernel keeps them: the slowest of each stretch; each is read when it is over.
            let mut ends = ends;
            ends.sort_unstable();
            let request = |duration_ns: u64, number: usize| SlowRequest {
                begin_ns: number as u64,
                duration_ns,
                ..SlowRequest::default()
            };
            let all: Vec<(u64, SlowRequest)> =
                ends.iter().enumerate().map(|(number, (stretch, ns))| (*stretch, request(*ns, number))).collect();
            let mut kept = Slowest::default();
            for now in 0..60 {
                let its = all.iter().filter(|(stretch, _)| *stretch == now).map(|(_, request)| request);
                let its = slowest(its);
                if !its.is_empty() {
                    kept.replace(now, &its);
                }
                for (name, shown) in &*kept.view(now) {
                    let length = WINDOWS.iter().find(|(window, _)| window == name).map_or(u64::MAX, |(_, l)| *l);
                    let truth = all.iter().filter(|(stretch, _)| *stretch <= now && now - stretch < length);
                    let truth = slowest(truth.map(|(_, request)| request));
                    prop_assert_eq!(shown, &truth, "{} at {}", name, now);
                }
            }
        }
    }
}
