//! What workers were asked, in numbers: totals that the kernel counts in words that wrap around, made to grow.

use collector_ebpf::request::OUTCOMES;

use crate::input::ScheduleReading;

/// Of one worker, or of all a pool has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// That have ended, by outcome ([`crate::input::REQUEST_OUTCOMES`]).
    pub ended: [u64; OUTCOMES],
    /// That have begun and have no answer yet.
    pub in_flight: u32,
    /// Bytes received from sockets.
    pub received_bytes: u64,
    /// Bytes sent to sockets.
    pub sent_bytes: u64,
}

/// What was last read of a worker, and what it comes to.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerRequests {
    words: [u32; OUTCOMES],
    total: Requests,
}

impl WorkerRequests {
    /// Takes a reading, and adds what is new in it to its pool's.
    pub fn take(&mut self, reading: &ScheduleReading, pool: &mut Requests) {
        let before = self.total;
        for ((total, word), now) in self.total.ended.iter_mut().zip(&mut self.words).zip(reading.requests) {
            *total += u64::from(now.wrapping_sub(std::mem::replace(word, now)));
        }
        self.total.received_bytes = reading.received_bytes;
        self.total.sent_bytes = reading.sent_bytes;
        // As the kernel counts by adding and taking away, it can be below zero for a moment.
        self.total.in_flight = u32::try_from(reading.in_flight.cast_signed()).unwrap_or(0);
        pool.replace(&before, &self.total);
    }

    /// Its worker is gone.
    pub fn leave(&self, pool: &mut Requests) {
        pool.replace(&self.total, &Requests { in_flight: 0, ..self.total });
    }

    /// Until the last reading.
    pub fn total(&self) -> &Requests {
        &self.total
    }
}

impl Requests {
    /// All that have ended.
    pub fn count(&self) -> u64 {
        self.ended.iter().sum()
    }

    /// Replaces one part of a sum.
    fn replace(&mut self, old: &Self, new: &Self) {
        for ((sum, old), new) in self.ended.iter_mut().zip(old.ended).zip(new.ended) {
            *sum += new.saturating_sub(old);
        }
        self.in_flight = (self.in_flight + new.in_flight).saturating_sub(old.in_flight);
        self.received_bytes += new.received_bytes.saturating_sub(old.received_bytes);
        self.sent_bytes += new.sent_bytes.saturating_sub(old.sent_bytes);
    }
}

/// How unevenly requests are divided: the most that one worker has got over an equal share. 1 is even; with all of them at
/// one it is the number of workers. `None` without a request.
pub fn imbalance(counts: impl Iterator<Item = u64>) -> Option<f64> {
    let (mut workers, mut sum, mut most) = (0u64, 0u64, 0u64);
    for count in counts {
        (workers, sum, most) = (workers + 1, sum.saturating_add(count), most.max(count));
    }
    (sum > 0).then(|| most as f64 * workers as f64 / sum as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_who_gets_all_of_four_is_four_times_too_many() {
        assert_eq!(imbalance([0, 8, 0, 0].into_iter()), Some(4.0));
        assert_eq!(imbalance([5, 5].into_iter()), Some(1.0));
        assert_eq!(imbalance([0, 0].into_iter()), None);
    }

    proptest! {
        #[test]
        fn a_pool_has_what_its_workers_had(
            steps in proptest::collection::vec((0usize..3, 0u32..1 << 31, 0u32..9, 0u64..1 << 40), 1..40)
        ) {
            let mut pool = Requests::default();
            let mut workers = [WorkerRequests::default(); 3];
            let mut truth = [0u64; 3];
            let mut readings: [ScheduleReading; 3] = Default::default();
            for (which, more, in_flight, bytes) in steps {
                let reading = &mut readings[which];
                reading.requests[1] = reading.requests[1].wrapping_add(more);
                reading.received_bytes += bytes;
                reading.in_flight = in_flight;
                truth[which] += u64::from(more);
                workers[which].take(reading, &mut pool);
            }
            prop_assert_eq!(pool.count(), truth.iter().sum::<u64>());
            prop_assert_eq!(pool.in_flight, workers.iter().map(|worker| worker.total().in_flight).sum::<u32>());
            prop_assert_eq!(pool.received_bytes, readings.iter().map(|r| r.received_bytes).sum::<u64>());
            for worker in &workers {
                worker.leave(&mut pool);
            }
            prop_assert_eq!((pool.in_flight, pool.count()), (0, truth.iter().sum::<u64>()));
        }
    }
}
