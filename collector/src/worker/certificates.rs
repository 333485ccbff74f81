//! The last death certificates, shared out so that no pool can push out those of another.
//!
//! One bound holds for all pools together. Whoever has the most when it is exceeded loses its oldest: a pool that forks
//! by the thousand turns over its own certificates, and those of a quiet one are there when somebody asks. Between
//! equals the oldest goes, so that the newest deaths are kept also where there are more pools than room.
//!
//! Certificates outlive their pool, for it may be them that say why it is gone. All pools that were dropped have one
//! share together: names come and go without end, and must not take the room of the pools that are there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::pool::PoolId;
use crate::snapshot::DeathCertificate;

/// Whose certificates count together; `None` for all pools that were dropped.
type Holder = Option<PoolId>;

/// How many a holder has, and the sequence of its oldest: the greater loses first.
type Rank = (usize, Reverse<u64>);

/// Certificates, at most as many as are to be kept. To add one allocates nothing but the certificate, once all has its
/// size.
#[derive(Debug)]
pub(super) struct Certificates {
    kept: usize,
    /// By sequence. One that is evicted leaves a hole, and the holes are closed together when they are more than half:
    /// to close each by itself would move what lies beside it.
    entries: Vec<Entry>,
    /// Entries that are no holes.
    len: usize,
    shares: BTreeMap<Holder, Share>,
    /// Every share as it is, and some as they were: those are passed over when it is their turn, which is cheaper than
    /// to look for them whenever a share changes.
    ranking: BinaryHeap<(Rank, Holder)>,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    holder: Holder,
    /// Sequence of the holder's next one; says nothing in its newest.
    next: u64,
    /// `None` is a hole.
    certificate: Option<Arc<DeathCertificate>>,
}

/// What a holder has: so many entries, chained by [`Entry::next`] from the oldest to the newest.
#[derive(Clone, Copy, Debug)]
struct Share {
    count: usize,
    oldest: u64,
    newest: u64,
}

impl Share {
    fn rank(&self) -> Rank {
        (self.count, Reverse(self.oldest))
    }
}

impl Certificates {
    /// None yet, and never more than `kept`.
    pub(super) fn new(kept: usize) -> Self {
        Self { kept, entries: Vec::new(), len: 0, shares: BTreeMap::new(), ranking: BinaryHeap::new() }
    }

    /// Changes how many are kept.
    pub(super) fn keep(&mut self, kept: usize) {
        self.kept = kept;
        for _ in kept..self.len {
            self.evict();
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All of them, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Arc<DeathCertificate>> {
        self.entries.iter().rev().filter_map(|entry| entry.certificate.as_ref())
    }

    /// The one with this sequence, if it is still there.
    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Arc<DeathCertificate>> {
        self.entry(sequence)?.certificate.as_mut()
    }

    /// Adds one of a pool that is there. Sequences have to rise.
    pub(super) fn push(&mut self, pool: PoolId, certificate: DeathCertificate) {
        let (holder, sequence) = (Some(pool), certificate.sequence);
        let share =
            self.shares.entry(holder).or_insert(Share { count: 0, oldest: sequence, newest: sequence });
        share.count += 1;
        let before = std::mem::replace(&mut share.newest, sequence);
        let rank = share.rank();
        if let Some(before) = self.entry(before) {
            before.next = sequence;
        }
        self.rank(rank, holder);
        self.entries.push(Entry { sequence, holder, next: 0, certificate: Some(Arc::new(certificate)) });
        self.len += 1;
        if self.len > self.kept {
            self.evict();
        }
    }

    /// A pool was dropped: its certificates go to the share of all that were.
    pub(super) fn pool_dropped(&mut self, pool: PoolId) {
        if self.shares.remove(&Some(pool)).is_none() {
            return;
        }
        // Two chains become one, by a walk that is short beside the dropping of workers.
        let mut together: Option<Share> = None;
        let entries = self.entries.iter_mut().rev().filter(|entry| entry.certificate.is_some());
        for entry in entries.filter(|entry| entry.holder.is_none_or(|holder| holder == pool)) {
            let sequence = entry.sequence;
            let share = together.get_or_insert(Share { count: 0, oldest: sequence, newest: sequence });
            share.count += 1;
            entry.next = std::mem::replace(&mut share.oldest, sequence);
            entry.holder = None;
        }
        if let Some(share) = together {
            self.shares.insert(None, share);
            self.rank(share.rank(), None);
        }
    }

    /// Whoever has the most loses its oldest.
    fn evict(&mut self) {
        let first = std::iter::from_fn(|| self.ranking.pop())
            .find(|(rank, holder)| self.shares.get(holder).is_some_and(|share| share.rank() == *rank));
        let Some(((_, Reverse(oldest)), holder)) = first else { return };
        let Some(entry) = self.entry(oldest) else { return };
        entry.certificate = None;
        let next = entry.next;
        self.len -= 1;
        if let Some(share) = self.shares.get_mut(&holder) {
            share.count -= 1;
            share.oldest = next;
            match *share {
                Share { count: 0, .. } => drop(self.shares.remove(&holder)),
                share => self.rank(share.rank(), holder),
            }
        }
        if self.entries.len() > 2 * self.len {
            self.entries.retain(|entry| entry.certificate.is_some());
        }
    }

    /// Ranks a share that has changed.
    fn rank(&mut self, rank: Rank, holder: Holder) {
        if self.ranking.len() <= 2 * self.shares.len() {
            self.ranking.push((rank, holder));
        } else {
            self.ranking.clear();
            self.ranking.extend(self.shares.iter().map(|(holder, share)| (share.rank(), *holder)));
        }
    }

    fn entry(&mut self, sequence: u64) -> Option<&mut Entry> {
        // What came since holes were closed the last time lies without a gap: who asks for one of those, as nearly
        // everybody does in a storm, finds it at once.
        let back = self.entries.last()?.sequence.checked_sub(sequence)?;
        let at = usize::try_from(back).ok().and_then(|back| self.entries.len().checked_sub(back + 1));
        let at = at.filter(|at| self.entries.get(*at).is_some_and(|entry| entry.sequence == sequence));
        let at = at.or_else(|| self.entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok())?;
        self.entries.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::input::ExitStatus;
    use crate::snapshot::WorkerState;

    fn death(sequence: u64) -> DeathCertificate {
        DeathCertificate {
            sequence,
            pool: "web".into(),
            slot: 0,
            generation: 1,
            pid: 9,
            comm: "worker".into(),
            app: None,
            status: ExitStatus::Code(0),
            sender: None,
            oom_killed: None,
            started_unix_ns: 0,
            ended_unix_ns: sequence,
            lifetime_ns: sequence,
            cpu: None,
            cpu_final: false,
            peak_rss_bytes: None,
            last_state: WorkerState::Running,
        }
    }

    fn sequences(certificates: &Certificates) -> Vec<u64> {
        certificates.newest_first().map(|certificate| certificate.sequence).collect()
    }

    /// Deaths in these pools one after the other, and which of them are there in the end.
    fn check(kept: usize, pools: &[PoolId], expected: &[u64]) {
        let mut certificates = Certificates::new(kept);
        for (sequence, pool) in (1..).zip(pools) {
            certificates.push(*pool, death(sequence));
        }
        assert_eq!(sequences(&certificates), expected, "{kept} of {pools:?}");
    }

    #[test]
    fn the_pool_with_the_most_loses_its_oldest() {
        check(3, &[1, 2], &[2, 1]);
        check(3, &[1, 1, 1, 1, 1], &[5, 4, 3]);
        check(4, &[1, 2, 2, 2, 2, 2, 2, 2], &[8, 7, 6, 1]);
        check(4, &[2, 2, 2, 2, 1], &[5, 4, 3, 2]);
        check(4, &[2, 2, 2, 2, 1, 1, 1, 1], &[8, 7, 4, 3]);
        // The one that comes counts: it is the third of its pool.
        check(4, &[1, 1, 2, 2, 2], &[5, 4, 2, 1]);
    }

    #[test]
    fn between_equals_the_oldest_goes() {
        check(4, &[1, 2, 1, 2, 3], &[5, 4, 3, 2]);
        check(3, &[1, 2, 3, 4, 5], &[5, 4, 3]);
        check(1, &[1, 2, 1, 1], &[4]);
        check(0, &[1, 2], &[]);
    }

    #[test]
    fn dropped_pools_have_one_share_together() {
        let mut certificates = Certificates::new(6);
        for (sequence, pool) in (1..).zip([1, 2, 1, 2, 3, 3]) {
            certificates.push(pool, death(sequence));
        }
        certificates.pool_dropped(2);
        certificates.pool_dropped(1);
        certificates.pool_dropped(9);
        assert_eq!(sequences(&certificates), [6, 5, 4, 3, 2, 1], "there is room");
        certificates.push(3, death(7));
        assert_eq!(
            sequences(&certificates),
            [7, 6, 5, 4, 3, 2],
            "four of those that were, three of the other"
        );
        certificates.push(3, death(8));
        certificates.push(3, death(9));
        assert_eq!(sequences(&certificates), [9, 8, 7, 4, 3, 2]);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(PoolId),
        Drop(PoolId),
        Keep(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            40 => prop_oneof![4 => Just(1), 2 => Just(2), 1 => 3u32..8].prop_map(Step::Push),
            1 => (1u32..8).prop_map(Step::Drop),
            1 => (0usize..12).prop_map(Step::Keep),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// The rule as it is said: counts everything anew each time.
    fn bound(model: &mut Vec<(u64, Holder)>, kept: usize) {
        while model.len() > kept {
            let count = |holder| model.iter().filter(|(_, of)| *of == holder).count();
            let most = model.iter().map(|(_, holder)| count(*holder)).max().unwrap();
            let oldest = model.iter().position(|(_, holder)| count(*holder) == most).unwrap();
            model.remove(oldest);
        }
    }

    proptest! {
        #[test]
        fn as_many_as_asked_of_whom_the_rule_says_and_in_order(steps in steps(), kept in 0usize..12) {
            let (mut certificates, mut model, mut kept) = (Certificates::new(kept), Vec::new(), kept);
            let mut total = 0;
            for step in steps {
                match step {
                    Step::Push(pool) => {
                        total += 1;
                        certificates.push(pool, death(total));
                        model.push((total, Some(pool)));
                        let (ranks, shares) = (certificates.ranking.len(), certificates.shares.len());
                        prop_assert!(ranks <= 2 * shares + 2, "old ranks have a bound: {ranks} of {shares}");
                    }
                    Step::Drop(pool) => {
                        certificates.pool_dropped(pool);
                        for (_, holder) in model.iter_mut().filter(|(_, holder)| *holder == Some(pool)) {
                            *holder = None;
                        }
                    }
                    Step::Keep(wanted) => {
                        kept = wanted;
                        certificates.keep(kept);
                    }
                }
                bound(&mut model, kept);
                let expected: Vec<u64> = model.iter().rev().map(|(sequence, _)| *sequence).collect();
                prop_assert_eq!(sequences(&certificates), expected, "after {:?}", step);
                prop_assert_eq!(certificates.len(), model.len());
                prop_assert!(certificates.entries.len() <= 2 * certificates.len(), "holes have a bound");
                for sequence in 0..=total + 1 {
                    let found = certificates.get_mut(sequence).map(|certificate| certificate.sequence);
                    let there = model.iter().any(|(of, _)| *of == sequence);
                    prop_assert_eq!(found, there.then_some(sequence));
                }
            }
        }
    }
}
