//! Who works, and who has worked or waited for too long.

use std::sync::Arc;

use super::{Registry, Worker};
use crate::input::{Doing, ScheduleReading};
use crate::snapshot::{Flagged, WorkerState};
use crate::units::{Pid, ProcessKey};
use crate::worker::flags::{self, Flag, Limits};
use crate::worker::pool::PoolId;
use crate::worker::state::{self, Fact};

impl Registry {
    /// Takes what the kernel has seen of a worker's waiting for work.
    pub fn worked(&mut self, reading: &ScheduleReading, unix_minus_monotonic: i64) {
        let Some(worker) = self.workers.get_mut(&reading.process).filter(|worker| !worker.ended()) else {
            return;
        };
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return };
        worker.watched = true;
        let state = match pool.runs {
            Some(_) => WorkerState::Active,
            None => state::after(&reading.work, reading.busy),
        };
        let since_ns = match pool.runs {
            Some(_) => reading.work.begin_ns,
            None => state::since_ns(&reading.work, state),
        };
        if (worker.state, worker.since_ns) != (state, since_ns) {
            (worker.state, worker.since_ns) = (state, since_ns);
            worker.since_unix_ns = since_ns.saturating_add_signed(unix_minus_monotonic);
            pool.touch(worker.slot);
        }
    }

    /// Nobody tells any more when the workers of a pool wait for work.
    pub fn unwatched(&mut self, pool_id: PoolId, now_unix_ns: u64) {
        let Some(pool) = self.pools.get_mut(&pool_id) else { return };
        let holders: Vec<(u32, ProcessKey)> = pool.holders().collect();
        for (slot, key) in holders {
            if let Some(worker) = self.workers.get_mut(&key).filter(|worker| worker.watched) {
                worker.watched = false;
                worker.moved(Fact::Unwatched, now_unix_ns);
                pool.touch(slot);
            }
        }
    }

    /// Workers of a pool that ended and that the last pass still found: pid, and when they ended, Unix ns.
    pub fn defunct(&self, pool: PoolId) -> Vec<(Pid, u64)> {
        let defunct = |worker: &&Worker| {
            worker.pool == pool && worker.flag.as_ref().is_some_and(|flagged| flagged.flag == Flag::Defunct)
        };
        self.workers().filter(defunct).map(|worker| (worker.key.pid, worker.since_unix_ns)).collect()
    }

    /// Gives flags to workers that have been in their state for longer than their pool allows, and takes them from
    /// others. Returns those that are stuck and were not looked at yet.
    pub fn flag(&mut self, now_ns: u64) -> Vec<ProcessKey> {
        let mut stuck = Vec::new();
        for pool in self.pools.values_mut() {
            let limits = std::mem::replace(&mut pool.limits_applied, pool.limits);
            if pool.limits == Limits::default() && limits == Limits::default() {
                continue;
            }
            let holders: Vec<(u32, ProcessKey)> = pool.holders().collect();
            for (slot, key) in holders {
                let Some(worker) = self.workers.get_mut(&key) else { continue };
                let flag = flags::of(worker.state, worker.since_ns, now_ns, pool.limits);
                let (changed, is_new) = worker.set_flag(flag);
                if is_new {
                    flag.iter().for_each(|(flag, _)| pool.flagged.add(*flag));
                }
                if changed {
                    pool.touch(slot);
                }
                if worker.flag.as_ref().is_some_and(|f| f.flag == Flag::Stuck && f.doing.is_none()) {
                    stuck.push(key);
                }
            }
        }
        stuck
    }

    /// What a worker was doing when it became stuck.
    pub fn found_doing(&mut self, key: ProcessKey, doing: Doing) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if let Some(flagged) = &mut worker.flag {
            flagged.doing = Some(Arc::new(doing));
        }
        if let Some(pool) = self.pools.get_mut(&worker.pool) {
            pool.touch(worker.slot);
        }
    }
}

impl Worker {
    /// Gives it a flag, of the state that it is in, or none; with when it got it, `CLOCK_MONOTONIC` ns. Whether it is shown
    /// otherwise, and whether that is another flag than it had, and not the same since another moment because the limit
    /// is another.
    fn set_flag(&mut self, flag: Option<(Flag, u64)>) -> (bool, bool) {
        let Some((flag, at_ns)) = flag else { return (self.flag.take().is_some(), false) };
        let since_unix_ns = self.since_unix_ns.saturating_add(at_ns.saturating_sub(self.since_ns));
        if self.flagged_in_ns == self.since_ns
            && let Some(given) = self.flag.as_mut().filter(|given| given.flag == flag)
        {
            let before = std::mem::replace(&mut given.since_unix_ns, since_unix_ns);
            return (before != since_unix_ns, false);
        }
        self.flag = Some(Flagged { flag, since_unix_ns, doing: None });
        self.flagged_in_ns = self.since_ns;
        (true, true)
    }
}
