//! Profiles of the last minutes, for who asks when it is over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::continuous::LASTS;
use super::{CaptureError, Whom};
use crate::profile::merge::{merged, size_of_profile};
use crate::profile::{Kind, Labels, Profile, RUNNABLE};

/// Nothing is kept for longer.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// Profiles of times after each other, the oldest first.
#[derive(Debug)]
pub(super) struct Kept {
    profiles: VecDeque<KeptProfile>,
    bytes: usize,
    /// That all of it may take. The oldest goes first.
    most_bytes: usize,
    /// Of those that are added to the one before, the largest.
    most_samples: usize,
}

#[derive(Debug)]
struct KeptProfile {
    profile: Profile,
    bytes: usize,
    /// Clocks of the day are set.
    ended: Instant,
}

impl Kept {
    pub(super) fn new(most_bytes: usize, most_samples: usize) -> Self {
        Self { profiles: VecDeque::new(), bytes: 0, most_bytes, most_samples }
    }

    /// Adds what ended at this time: to the one before, where both together are not too long.
    pub(super) fn add(&mut self, mut profile: Profile, ended: Instant) {
        let lasts = |last: &KeptProfile| last.profile.duration_ns.saturating_add(profile.duration_ns);
        if let Some(last) = self.profiles.pop_back_if(|last| u128::from(lasts(last)) <= LASTS.as_nanos()) {
            self.bytes -= last.bytes;
            profile = merged([&last.profile, &profile], |_| true).unwrap_or(profile);
            if profile.samples.len() > self.most_samples {
                // The largest come first.
                let others = profile.samples.split_off(self.most_samples);
                let lost: u64 = others.iter().map(|sample| sample.count).sum();
                profile.losses.samples -= lost;
                profile.losses.lost += lost;
                profile = merged([&profile], |_| true).unwrap_or(profile);
            }
        }
        let bytes = size_of_profile(&profile);
        self.profiles.push_back(KeptProfile { profile, bytes, ended });
        self.bytes += bytes;
        self.forget_old(ended);
    }

    /// Since when there is something, nanoseconds since the Unix epoch.
    pub(super) fn since(&self) -> Option<u64> {
        self.span().map(|(since, _)| since)
    }

    /// Bytes that all of it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets go of what is too old, and of what there is no room for.
    pub(super) fn forget_old(&mut self, now: Instant) {
        while let Some(oldest) = self.profiles.front()
            && (self.bytes > self.most_bytes || now.duration_since(oldest.ended) >= KEPT_FOR)
        {
            self.bytes -= oldest.bytes;
            self.profiles.pop_front();
        }
    }

    /// What was found of someone between two times, nanoseconds since the Unix epoch: of all that began before the end and ended
    /// after the begin, but of waits those that ended between the two.
    pub(super) fn between(
        &self,
        kind: Kind,
        (from_ns, to_ns): (u64, u64),
        whom: &Whom,
    ) -> Result<Profile, CaptureError> {
        let profiles = self.profiles.iter().map(|kept| &kept.profile);
        let of_then = profiles.filter(|profile| profile.started_unix_ns < to_ns && end_of(profile) > from_ns);
        let has = |labels: &Labels| {
            let is_of_kind = (labels.state == RUNNABLE) == (kind == Kind::RunQueue);
            let is_of_then = labels.ended_unix_ns.is_none_or(|ended| (from_ns..=to_ns).contains(&ended));
            whom.has_thread(labels) && is_of_kind && is_of_then
        };
        let mut profile = merged(of_then.clone(), has).ok_or_else(|| CaptureError::NotKept(self.span()))?;
        if kind != Kind::OnCpu {
            let ended = of_then.map(end_of).max().unwrap_or(to_ns).min(to_ns);
            profile.kind = kind;
            profile.started_unix_ns = profile.started_unix_ns.max(from_ns);
            profile.duration_ns = ended.saturating_sub(profile.started_unix_ns);
        }
        Ok(profile)
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

    const MOST_BYTES: usize = 1 << 20;

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
                ended_unix_ns: None,
            }],
            samples: vec![Sample { stack: Vec::new(), labels: 0, count, value_ns: count, truncated: false }],
            losses: Losses { samples: count, truncated: 0, lost: 0, passed_over: 0 },
        }
    }

    fn samples(kept: &Kept, from_s: u64, to_s: u64, whom: &Whom) -> Option<u64> {
        let profile = kept.between(Kind::OnCpu, (from_s * NANOS_PER_SECOND, to_s * NANOS_PER_SECOND), whom);
        profile.ok().map(|profile| profile.losses.samples)
    }

    #[test]
    fn what_overlaps_the_time_that_is_asked_for_is_told() {
        let (mut kept, now) = (Kept::new(MOST_BYTES, usize::MAX), Instant::now());
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
        let error = kept.between(Kind::OnCpu, (0, 1), &all).unwrap_err();
        assert!(matches!(error, CaptureError::NotKept(Some((from, to)))
            if from == 1000 * NANOS_PER_SECOND && to == 1030 * NANOS_PER_SECOND));
        assert!(matches!(
            Kept::new(MOST_BYTES, usize::MAX).between(Kind::OnCpu, (0, 1), &all),
            Err(CaptureError::NotKept(None))
        ));
    }

    #[test]
    fn short_ones_are_kept_as_one() {
        let (mut kept, now) = (Kept::new(MOST_BYTES, usize::MAX), Instant::now());
        for (second, lasts_s) in [(1000, 4), (1004, 6), (1010, 1), (1011, 10)] {
            let duration_ns = lasts_s * NANOS_PER_SECOND;
            kept.add(Profile { duration_ns, ..profile(second, "web", lasts_s, 0) }, now);
        }
        assert_eq!(kept.profiles.len(), 3);
        assert_eq!(samples(&kept, 1001, 1002, &Whom::default()), Some(4 + 6));
        assert_eq!(samples(&kept, 1010, 1011, &Whom::default()), Some(1));
        let bytes: usize = kept.profiles.iter().map(|kept| kept.bytes).sum();
        assert_eq!(kept.bytes, bytes);
    }

    #[test]
    fn what_is_older_than_ten_minutes_goes() {
        let (mut kept, begin) = (Kept::new(MOST_BYTES, usize::MAX), Instant::now());
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
        let (mut kept, now) = (Kept::new(MOST_BYTES, usize::MAX), Instant::now());
        (0..20).for_each(|index| kept.add(profile(1000 + 10 * index, "web", 1, MOST_BYTES / 10), now));
        assert_eq!(samples(&kept, 0, 9999, &Whom::default()), Some(9));
        kept.add(profile(1200, "web", 1, 2 * MOST_BYTES), now);
        assert_eq!((kept.profiles.len(), kept.bytes), (0, 0));
    }
}
