//! What readers are shown of workers, kept until it changes.

use std::sync::Arc;

use super::{Registry, Worker};
use crate::snapshot::{self, FlagCounts, StateCounts};
use crate::worker::pool::{PoolId, VIEW_SLOTS, View};

/// What readers are shown of the workers of a pool.
#[derive(Debug, Default)]
pub struct Shown {
    /// One by one, by slot.
    pub workers: snapshot::Workers,
    /// Of all.
    pub states: StateCounts,
    /// Of all that live.
    pub flags: FlagCounts,
    /// Resident bytes, and of how many workers.
    pub rss: (u64, u32),
}

impl View {
    /// Of these workers, by slot; at most `room` of them are shown.
    fn of<'a>(workers: impl Iterator<Item = (u32, &'a Worker)>, room: usize) -> Self {
        let (mut states, mut flags, mut rss) = (StateCounts::default(), FlagCounts::default(), (0, 0));
        let mut shown = Vec::with_capacity(room);
        for (slot, worker) in workers {
            states.add(worker.state);
            worker.flag.iter().for_each(|flagged| flags.add(flagged.flag));
            if let Some(memory) = worker.last.and_then(|s| s.rss) {
                rss = (rss.0 + memory.total_bytes, rss.1 + 1);
            }
            if shown.len() < room {
                shown.push(worker.view(slot));
            }
        }
        Self { room, workers: shown.into(), states, flags, rss }
    }
}

impl Registry {
    /// What readers are shown of the workers of a pool, at most `listed` of them one by one.
    pub fn view(&mut self, id: PoolId, listed: usize) -> Shown {
        let mut shown = Shown::default();
        let Some(pool) = self.pools.get_mut(&id) else { return shown };
        let mut views = std::mem::take(&mut pool.views);
        for (part, holders) in pool.holders_by(VIEW_SLOTS).enumerate() {
            let room = listed.saturating_sub(shown.workers.len()).min(VIEW_SLOTS);
            if part == views.len() {
                views.push(None);
            }
            let kept = views[part].take().filter(|view| view.room == room);
            let view = kept.unwrap_or_else(|| {
                let workers = holders.filter_map(|(slot, key)| Some((slot, &**self.workers.get(&key)?)));
                View::of(workers, room)
            });
            shown.states = shown.states.plus(view.states);
            shown.flags.stuck += view.flags.stuck;
            shown.flags.stale += view.flags.stale;
            shown.rss = (shown.rss.0 + view.rss.0, shown.rss.1 + view.rss.1);
            shown.workers.push(Arc::clone(&view.workers));
            views[part] = Some(view);
        }
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.views = views;
        }
        shown
    }
}

impl Worker {
    /// What readers are shown of it.
    fn view(&self, slot: u32) -> snapshot::Worker {
        snapshot::Worker {
            slot,
            generation: self.generation,
            pid: self.key.pid,
            parent: self.parent,
            comm: Arc::clone(&self.comm_text),
            app: self.app.clone(),
            state: self.state,
            since_unix_ns: self.since_unix_ns,
            flag: self.flag.clone(),
            started_unix_ns: self.started_unix_ns,
            record: self.record,
            reading: self.last.map(|sample| snapshot::Reading {
                cpu: sample.cpu,
                cpu_utilization: self.utilization,
                rss: sample.rss,
                threads: sample.threads,
                minor_faults: sample.minor_faults,
                major_faults: sample.major_faults,
                voluntary_switches: sample.voluntary_switches,
                involuntary_switches: sample.involuntary_switches,
                run_delay_ns: sample.run_delay_ns,
                read_bytes: sample.read_bytes,
                written_bytes: sample.written_bytes,
                task_state: sample.state,
            }),
        }
    }
}
