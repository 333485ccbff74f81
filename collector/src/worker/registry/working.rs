//! Who works, and who has worked or waited for too long.

use std::sync::Arc;

use super::{Registry, Worker};
use crate::input::{Doing, ScheduleReading};
use crate::snapshot::{Flagged, WorkerState};
use crate::units::{NANOS_PER_SECOND, Pid, ProcessKey};
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
        let since_unix_ns = since_ns.saturating_add_signed(unix_minus_monotonic);
        let clock_was_set = worker.since_unix_ns.abs_diff(since_unix_ns) >= NANOS_PER_SECOND;
        if (worker.state, worker.since_ns) != (state, since_ns) || clock_was_set {
            (worker.state, worker.since_ns, worker.since_unix_ns) = (state, since_ns, since_unix_ns);
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
                if worker.set_flag(flag) {
                    pool.touch(slot);
                }
                let in_state = flag.map(|(flag, _)| (flag, worker.since_ns));
                if let Some((flag, _)) = in_state
                    && worker.flagged_in != in_state
                {
                    worker.flagged_in = in_state;
                    pool.flagged.add(flag);
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
    /// Gives it a flag, of the state that it is in, or none; with when it got it, `CLOCK_MONOTONIC` ns. True if it is shown
    /// otherwise.
    fn set_flag(&mut self, flag: Option<(Flag, u64)>) -> bool {
        let Some((flag, at_ns)) = flag else { return self.flag.take().is_some() };
        let since_unix_ns = self.since_unix_ns.saturating_add(at_ns.saturating_sub(self.since_ns));
        let is_same = self.flagged_in == Some((flag, self.since_ns));
        if let Some(given) = self.flag.as_mut().filter(|_| is_same) {
            // Of another limit, or by another clock of the day.
            return std::mem::replace(&mut given.since_unix_ns, since_unix_ns) != since_unix_ns;
        }
        self.flag = Some(Flagged { flag, since_unix_ns, doing: None });
        true
    }
}
