//! What was sampled in the last minutes, kept for who asks when it is over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use collector_ebpf::schedule::KINDS;

use super::measuring::Measuring;
use super::{CaptureError, Wanted, Whom};
use crate::profile::merge::{merged, size_of_profile};
use crate::profile::{Kind, Profile};

/// How long what is kept as one lasts: no less is told apart.
pub(super) const LASTS: Duration = Duration::from_secs(10);

/// Nothing is kept for longer.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// Bytes that all of it may take. The oldest goes first.
const MOST_BYTES: usize = 64 << 20;

/// What could not be sampled is tried again after so long.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What is read of files is put in order so often.
const TIDIED_AFTER: Duration = Duration::from_secs(60);

/// Sampling that goes on all the time.
#[derive(Debug)]
pub(super) struct Continuous {
    /// What is measured now.
    pub(super) measuring: Option<Measuring>,
    pub(super) kept: Kept,
    hz: u32,
    /// Not before.
    next_try: Instant,
    next_tidy: Instant,
}

impl Continuous {
    pub(super) fn new(hz: u32) -> Self {
        let now = Instant::now();
        Self { measuring: None, kept: Kept::default(), hz, next_try: now, next_tidy: now + TIDIED_AFTER }
    }

    /// What is to be measured now, of all workers, if nothing is.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        let wanted = Wanted {
            kind: Kind::OnCpu,
            whom: Whom::default(),
            duration: LASTS,
            hz: self.hz,
            least_ns: [0; KINDS],
        };
        (self.measuring.is_none() && Instant::now() >= self.next_try).then_some(wanted)
    }

    /// It could not be measured.
    pub(super) fn failed(&mut self, error: &CaptureError) {
        self.measuring = None;
        let now = Instant::now();
        self.kept.forget_old(now);
        if matches!(error, CaptureError::Busy) {
            // As soon as a capture has ended.
            self.next_try = now;
            return;
        }
        tracing::warn!(%error, "nothing is sampled for the profiles of the last minutes; tried again in a minute");
        self.next_try = now + TRIED_AGAIN_AFTER;
    }

    /// Whether what was read of files is to be put in order now.
    pub(super) fn is_untidy(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next_tidy;
        if due {
            self.next_tidy = now + TIDIED_AFTER;
        }
        due
    }
}

/// Profiles of times after each other, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    profiles: VecDeque<KeptProfile>,
    bytes: usize,
}

#[derive(Debug)]
struct KeptProfile {
    profile: Profile,
    bytes: usize,
    /// Clocks of the day are set.
    ended: Instant,
}

impl Kept {
    /// Adds what ended at this time.
    pub(super) fn add(&mut self, profile: Profile, ended: Instant) {
        let bytes = size_of_profile(&profile);
        self.profiles.push_back(KeptProfile { profile, bytes, ended });
        self.bytes += bytes;
        self.forget_old(ended);
    }

    /// Lets go of what is too old, and of what there is no room for.
    fn forget_old(&mut self, now: Instant) {
        while let Some(oldest) = self.profiles.front()
            && (self.bytes > MOST_BYTES || now.duration_since(oldest.ended) >= KEPT_FOR)
        {
            self.bytes -= oldest.bytes;
            self.profiles.pop_front();
        }
    }

    /// What was found of someone between two times, nanoseconds since the Unix epoch: of all that began before the end and ended
    /// after the begin.
    pub(super) fn between(&self, from_ns: u64, to_ns: u64, whom: &Whom) -> Result<Profile, CaptureError> {
        let profiles = self.profiles.iter().map(|kept| &kept.profile);
        let of_then = profiles.filter(|profile| profile.started_unix_ns < to_ns && end_of(profile) > from_ns);
        merged(of_then, |labels| whom.has(&labels.pool, labels.slot.map(|(slot, _)| slot), labels.pid))
            .ok_or_else(|| CaptureError::NotKept(self.span()))
    }

    /// From when to when there is something, nanoseconds since the Unix epoch.
    fn span(&self) -> Option<(u64, u64)> {
        let profiles = || self.profiles.iter().map(|kept| &kept.profile);
        Some((profiles().map(|profile| profile.started_unix_ns).min()?, profiles().map(end_of).max()?))
    }
}

fn end_of(profile: &Profile) -> u64 {
    profile.started_unix_ns.saturating_add(profile.duration_ns)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::profile::{Labels, Losses, Sample};
    use crate::units::NANOS_PER_SECOND;

    /// One of a pool that lasted ten seconds, with so many samples and a thread whose name is that long.
    fn profile(started_s: u64, pool: &str, count: u64, name: usize) -> Profile {
        Profile {
            kind: Kind::OnCpu,
            started_unix_ns: started_s * NANOS_PER_SECOND,
            duration_ns: 10 * NANOS_PER_SECOND,
            period_ns: 1,
            mappings: Vec::new(),
            functions: Vec::new(),
            locations: Vec::new(),
            labels: vec![Labels {
                pool: pool.into(),
                slot: Some((3, 1)),
                pid: 1,
                tid: 1,
                thread: Arc::from("x".repeat(name)),
                state: "on_cpu",
                reason: None,
            }],
            samples: vec![Sample { stack: Vec::new(), labels: 0, count, value_ns: count, truncated: false }],
            losses: Losses { samples: count, truncated: 0, lost: 0 },
        }
    }

    fn samples(kept: &Kept, from_s: u64, to_s: u64, whom: &Whom) -> Option<u64> {
        let profile = kept.between(from_s * NANOS_PER_SECOND, to_s * NANOS_PER_SECOND, whom);
        profile.ok().map(|profile| profile.losses.samples)
    }

    #[test]
    fn what_overlaps_the_time_that_is_asked_for_is_told() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        for second in [1000, 1010, 1020] {
            kept.add(profile(second, "web", second - 999, 0), now);
        }
        let all = Whom::default();
        assert_eq!(samples(&kept, 1000, 1030, &all), Some(1 + 11 + 21));
        assert_eq!(samples(&kept, 1012, 1015, &all), Some(11));
        // To the nanosecond.
        assert_eq!(samples(&kept, 1010, 1020, &all), Some(11));
        assert_eq!(samples(&kept, 0, 2000, &Whom { slot: Some(4), ..Whom::default() }), Some(0));
        assert_eq!(samples(&kept, 1030, 1040, &all), None);
        let error = kept.between(0, 1, &all).unwrap_err();
        assert!(matches!(error, CaptureError::NotKept(Some((from, to)))
            if from == 1000 * NANOS_PER_SECOND && to == 1030 * NANOS_PER_SECOND));
        assert!(matches!(Kept::default().between(0, 1, &all), Err(CaptureError::NotKept(None))));
    }

    #[test]
    fn what_is_older_than_ten_minutes_goes() {
        let (mut kept, begin) = (Kept::default(), Instant::now());
        let at = |index| begin + Duration::from_secs(10 * index);
        (0..100).for_each(|index| kept.add(profile(1000 + 10 * index, "web", 1, 0), at(index)));
        assert_eq!(samples(&kept, 0, 9999, &Whom::default()), Some(60));
        assert_eq!(kept.span(), Some((1400 * NANOS_PER_SECOND, 2000 * NANOS_PER_SECOND)));
        // The clock of the day was set back; time goes on.
        kept.add(profile(500, "web", 1, 0), at(100));
        assert_eq!(samples(&kept, 0, 9999, &Whom::default()), Some(60));
        assert_eq!(kept.span(), Some((500 * NANOS_PER_SECOND, 2000 * NANOS_PER_SECOND)));
        kept.forget_old(at(159));
        assert_eq!(samples(&kept, 0, 9999, &Whom::default()), Some(1));
        kept.forget_old(at(160));
        assert_eq!(kept.span(), None);
    }

    #[test]
    fn what_would_take_too_much_memory_goes_and_is_not_counted_any_more() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        (0..20).for_each(|index| kept.add(profile(1000 + 10 * index, "web", 1, MOST_BYTES / 10), now));
        assert_eq!(samples(&kept, 0, 9999, &Whom::default()), Some(9));
        kept.add(profile(1200, "web", 1, 2 * MOST_BYTES), now);
        assert_eq!((kept.profiles.len(), kept.bytes), (0, 0));
    }
}
