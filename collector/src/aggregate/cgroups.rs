//! Compares the CPU of pools with the accounts of their control groups, where a pool is one.
//!
//! A pool is a cgroup if all of its living workers and masters are in one cgroup of version 2, and nobody
//! else is in it or below it. That costs one small read for each such pool and pass (`cpu.stat`), and a look
//! at who is in the cgroup every ten seconds, of one file for all workers together.

use std::collections::BTreeMap;

use super::Aggregate;
use crate::input::{Cgroup, CgroupReader, Source};
use crate::units::{NANOS_PER_SECOND, Pid};
use crate::worker::conservation::{Comparison, Membership, Verdict};
use crate::worker::pool::{Pool, PoolId};

/// Time between two looks at who is in the cgroup of a pool.
const LOOK_EVERY_NS: u64 = 10 * NANOS_PER_SECOND;

/// Cgroups that are held, at most. Each costs two descriptors, and connections need theirs.
const MAX_HELD: usize = 128;

/// Strangers that there may be in passing among the processes of a pool; who has more is not listed to the
/// end.
const MAX_STRANGERS: usize = 64;

/// By pool.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    pools: BTreeMap<PoolId, Watched>,
    /// Kept for their room.
    members: Vec<Pid>,
    processes: Vec<Pid>,
}

/// A pool that is a cgroup, or may become one.
#[derive(Debug, Default)]
struct Watched {
    /// No look before, `CLOCK_MONOTONIC` ns.
    look_due_ns: u64,
    held: Option<Held>,
    /// Of comparisons that are over, ns; `None` before the first began.
    unattributed_ns: Option<u64>,
}

/// The cgroup of a pool.
#[derive(Debug)]
struct Held {
    cgroup: Box<dyn Cgroup>,
    membership: Membership,
    comparison: Option<Comparison>,
    /// As read before the figures of this pass.
    usage_ns: Option<u64>,
}

impl Watched {
    /// Lets go of the cgroup. What was found while it was the pool's stays.
    fn let_go(&mut self, pool: &Pool) {
        if let Some(comparison) = self.held.take().and_then(|held| held.comparison) {
            tracing::debug!(pool = &*pool.name, "the pool is no cgroup any more");
            *self.unattributed_ns.get_or_insert(0) += comparison.unattributed_ns();
        }
    }
}

impl Cgroups {
    /// What the cgroup of a pool was charged with and nobody in the pool has used, ns; `None` until they were
    /// compared.
    pub(super) fn unattributed_ns(&self, pool: PoolId) -> Option<u64> {
        let watched = self.pools.get(&pool)?;
        let comparison = watched.held.as_ref().and_then(|held| held.comparison.as_ref());
        match (watched.unattributed_ns, comparison.map(Comparison::unattributed_ns)) {
            (Some(before), Some(now)) => Some(before + now),
            (before, now) => before.or(now),
        }
    }

    fn held(&self) -> usize {
        self.pools.values().filter(|watched| watched.held.is_some()).count()
    }
}

impl Aggregate {
    /// Reads what the cgroups of pools whose turn it is have been charged with. Before the figures of their
    /// processes, which then contain it.
    pub fn read_cgroups(&mut self) {
        for (id, watched) in &mut self.cgroups.pools {
            let due = self.registry.pools.get(id).is_some_and(|pool| pool.due);
            if let Some(held) = watched.held.as_mut().filter(|held| due && held.comparison.is_some()) {
                held.usage_ns = held.cgroup.usage_ns();
            }
        }
    }

    /// Compares it with the figures that have been read since, and looks whether pools are cgroups still, or
    /// by now.
    pub fn compare_cgroups(&mut self, now_ns: u64, source: &dyn Source, reader: &mut dyn CgroupReader) {
        let mut cgroups = std::mem::take(&mut self.cgroups);
        cgroups.pools.retain(|id, _| self.registry.pools.contains_key(id));
        let mut room = MAX_HELD.saturating_sub(cgroups.held());
        for pool in self.registry.pools.values().filter(|pool| pool.due) {
            let watched = cgroups.pools.entry(pool.id).or_default();
            let held = usize::from(watched.held.is_some());
            self.compare(watched, pool, now_ns, source);
            if now_ns >= watched.look_due_ns {
                let lists = (&mut cgroups.processes, &mut cgroups.members);
                if self.look(watched, pool, room + held > 0, reader, lists) {
                    watched.look_due_ns = now_ns + LOOK_EVERY_NS;
                }
            }
            room = (room + held).saturating_sub(usize::from(watched.held.is_some()));
        }
        self.cgroups = cgroups;
    }

    fn compare(&self, watched: &mut Watched, pool: &Pool, now_ns: u64, source: &dyn Source) {
        let Some(held) = &mut watched.held else { return };
        let Some(comparison) = &mut held.comparison else { return };
        // Its cgroup is no more.
        let Some(usage_ns) = held.usage_ns.take() else { return watched.let_go(pool) };
        let short_ns = match source.cpu_short_ns() {
            0 => 0,
            each_ns => {
                let threaded = |key| self.masters.get(key).is_some_and(|master| master.threaded);
                let masters = pool.masters.iter().filter(|key| threaded(key)).count() as u64;
                each_ns * (self.registry.threaded(pool) + masters)
            }
        };
        comparison.take(usage_ns, used_ns(pool), short_ns, now_ns);
    }

    /// Looks whether the pool is a cgroup. False if the next pass has to look again.
    fn look(
        &self,
        watched: &mut Watched,
        pool: &Pool,
        room: bool,
        reader: &mut dyn CgroupReader,
        (processes, members): (&mut Vec<Pid>, &mut Vec<Pid>),
    ) -> bool {
        processes.clear();
        processes.extend(pool.holders().map(|(_, key)| key.pid));
        processes.extend(pool.masters.iter().map(|key| key.pid));
        // A master can be a worker, too.
        processes.sort_unstable();
        processes.dedup();
        let Some(first) = processes.first() else {
            watched.let_go(pool);
            return true;
        };
        if watched.held.is_none() {
            // What somebody uses before the first reading would be nobody's.
            let read = |key| self.master_readings.contains_key(key);
            if !self.registry.all_accounted(pool) || !pool.masters.iter().all(read) {
                return false;
            }
            let Some(cgroup) = room.then(|| reader.of(*first)).flatten() else { return true };
            watched.held =
                Some(Held { cgroup, membership: Membership::default(), comparison: None, usage_ns: None });
        }
        let Some(held) = &mut watched.held else { return true };
        // As soon as can be after the figures of the pool: what it uses in between will be lacking.
        let begins_with = if held.comparison.is_none() { held.cgroup.usage_ns() } else { None };
        let verdict = match held.cgroup.members(processes.len() + MAX_STRANGERS, members) {
            true => held.membership.look(members, processes),
            false => Verdict::Different,
        };
        match verdict {
            Verdict::Unsure => return false,
            Verdict::Same if held.comparison.is_some() => {}
            Verdict::Same => match begins_with {
                // It was rounded down.
                Some(usage_ns) => {
                    tracing::debug!(pool = &*pool.name, "the pool is a cgroup");
                    held.comparison = Some(Comparison::begin(used_ns(pool), usage_ns + 999));
                }
                None => watched.let_go(pool),
            },
            Verdict::Different => watched.let_go(pool),
        }
        true
    }
}

/// What the pool's processes have used, ns.
fn used_ns(pool: &Pool) -> u64 {
    pool.cpu.total_ns().saturating_add(pool.masters_cpu_ns)
}
