//! Whose stacks these are.

use std::collections::HashMap;
use std::sync::Arc;

use collector_ebpf::sample::{STATE_ON_CPU, Stack};
use collector_ebpf::task::ThreadRow;

use crate::input::TIME_KINDS;
use crate::profile::{Labels, ON_CPU};
use crate::snapshot::{Snapshot, Worker};
use crate::units::{NANOS_PER_TICK, Pid, boottime_ns, unix_ns};

/// Starts are known to a tick in some places, and our clocks are read one after the other.
const SAME_START_NS: i128 = 2 * NANOS_PER_TICK as i128;

/// All workers with series of their own, each with its pool.
pub(super) fn listed(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<str>, &Worker)> {
    snapshot.pools.iter().flat_map(|pool| pool.workers.iter().map(move |worker| (&pool.name, worker)))
}

/// Workers by pid, living and dead.
#[derive(Default)]
pub(super) struct Workers {
    by_pid: HashMap<Pid, Vec<Known>>,
    pools: HashMap<u32, Arc<str>>,
    unix_minus_boottime: i128,
}

struct Known {
    started_unix_ns: u64,
    pool: Arc<str>,
    /// With its generation.
    slot: (u32, u64),
}

impl Workers {
    pub(super) fn of(snapshot: Option<&Snapshot>) -> Self {
        let Some(snapshot) = snapshot else { return Self::default() };
        let mut workers = Self {
            unix_minus_boottime: i128::from(unix_ns()) - i128::from(boottime_ns()),
            pools: snapshot.pools.iter().map(|pool| (pool.number, Arc::clone(&pool.name))).collect(),
            ..Self::default()
        };
        for (pool, worker) in listed(snapshot) {
            let slot = (worker.slot, worker.generation.into());
            workers.add(worker.pid, worker.started_unix_ns, pool, slot);
        }
        for exit in &snapshot.exits {
            workers.add(exit.pid, exit.started_unix_ns, &exit.pool, (exit.slot, exit.generation.into()));
        }
        workers
    }

    fn add(&mut self, pid: Pid, started_unix_ns: u64, pool: &Arc<str>, slot: (u32, u64)) {
        self.by_pid.entry(pid).or_default().push(Known { started_unix_ns, pool: Arc::clone(pool), slot });
    }

    /// Pool and slot, with its generation, of a worker. The slot of one that came and went between two collections is not known, but its
    /// pool is.
    fn place(&self, pid: Pid, start_ns: u64, pool: u32) -> (Arc<str>, Option<(u32, u64)>) {
        let started = i128::from(start_ns) + self.unix_minus_boottime;
        let same = |worker: &&Known| (i128::from(worker.started_unix_ns) - started).abs() <= SAME_START_NS;
        let worker = self.by_pid.get(&pid).and_then(|workers| workers.iter().find(same));
        let pool = worker.map(|worker| &worker.pool).or_else(|| self.pools.get(&pool));
        (pool.map_or_else(|| "".into(), Arc::clone), worker.map(|worker| worker.slot))
    }

    /// Whose thread this is.
    pub(super) fn labels_of(&self, row: &ThreadRow, state: &'static str) -> Labels {
        let (pool, slot) = self.place(row.pid, row.start_ns, row.pool);
        Labels {
            pool,
            slot,
            pid: row.pid,
            tid: row.tid,
            thread: name(&row.comm),
            state,
            reason: None,
            ended_unix_ns: None,
        }
    }

    /// Who was found at a stack.
    pub(super) fn labels(&self, stack: &Stack) -> Labels {
        let (pool, slot) = self.place(stack.pid, stack.start_ns, stack.pool);
        let on_cpu = stack.state == STATE_ON_CPU;
        Labels {
            pool,
            slot,
            pid: stack.pid,
            tid: stack.tid,
            thread: name(&stack.comm),
            state: if on_cpu { ON_CPU } else { "blocked" },
            reason: if on_cpu { None } else { TIME_KINDS.get(stack.reason as usize).copied() },
            ended_unix_ns: None,
        }
    }
}

fn name(comm: &[u8]) -> Arc<str> {
    let length = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..length]).into()
}
