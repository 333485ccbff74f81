//! Children that end before it is known that their parent is the master of a pool.
//!
//! A job runner that has just been executed forks its first jobs while its arguments are still to be read. Those that are
//! over by then are judged by what was told of their ends.

use super::Aggregate;
use crate::input::{Comm, Exit, Reap};
use crate::units::{NANOS_PER_SECOND, Pid};
use crate::worker::pool::PoolId;
use crate::worker::process::Process;
use crate::worker::registry::Arrival;

/// How long an end waits for its parent to be known, ns.
const KEPT_NS: u64 = NANOS_PER_SECOND;

/// Ends that wait at most; those beyond are not known.
const MAX_WAITING: usize = 8192;

/// The end of a process whose fork was seen and that nobody has judged.
#[derive(Debug)]
pub(super) struct EarlyEnd {
    parent: Pid,
    comm: Comm,
    forked_at_ns: u64,
    exit: Exit,
}

impl Aggregate {
    /// Keeps the end of a process that nobody has judged yet, if any rule could make it a worker.
    pub(super) fn keep_early_end(&mut self, exit: &Exit) {
        let unjudged = |process: &&Process| {
            process.key == exit.process
                && process.queued
                && process.matched.is_none()
                && !process.kernel_thread
        };
        let Some(process) = self.processes.by_pid(exit.process.pid).filter(unjudged) else { return };
        let Some(forked_at_ns) = process.forked_at_ns else { return };
        if self.early_ends.len() < MAX_WAITING
            && self.registry.worker(exit.process).is_none()
            && self.config.matcher.rules().iter().any(|rule| rule.takes_every_child())
        {
            let (parent, comm) = (process.parent, process.comm);
            self.early_ends.push(EarlyEnd { parent, comm, forked_at_ns, exit: *exit });
        }
    }

    /// Counts those whose parents are known by now as masters whose every child is a worker.
    pub(super) fn count_early_ends(&mut self, now_ns: u64) {
        for end in std::mem::take(&mut self.early_ends) {
            if let Some(pool) = self.pool_of_every_child(&end) {
                let started_unix_ns = self.unix_from_monotonic(end.forked_at_ns);
                let arrival = Arrival {
                    key: end.exit.process,
                    parent: end.parent,
                    comm: end.comm,
                    app: None,
                    record: None,
                    forked_at_ns: Some(end.forked_at_ns),
                    started_unix_ns,
                    now_unix_ns: started_unix_ns,
                };
                if self.registry.join(pool, arrival) {
                    self.registry.exited(&end.exit, self.unix_minus_monotonic);
                    // It had no record: nobody will tell what it used to tear down its memory.
                    let reap = Reap { process: end.exit.process, cpu: None, at_ns: end.exit.at_ns };
                    self.registry.reaped(&reap, self.unix_minus_monotonic);
                }
            } else if now_ns.saturating_sub(end.exit.at_ns) < KEPT_NS {
                self.early_ends.push(end);
            }
        }
    }

    /// The pool that the parent of this one forks for, if every child of it is a worker there, and it ran the program that
    /// makes it so when it forked this one.
    fn pool_of_every_child(&self, end: &EarlyEnd) -> Option<PoolId> {
        let parent = self.processes.by_pid(end.parent).filter(|p| p.changed_at_ns <= end.forked_at_ns)?;
        let pool = self.registry.pools.get(&self.masters.get(&parent.key)?.pool)?;
        self.config.rule_of(pool)?.takes_every_child().then_some(pool.id)
    }
}
