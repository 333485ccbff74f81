//! The table of all processes of the host: who descends from whom, and what is known about each.
//!
//! Kept by lifecycle facts alone, so it costs a map entry per process and no system call. Program facts (executable,
//! command line) are read by the aggregator when a decision needs them, and inherited over fork until an exec.

use std::sync::Arc;

use crate::input::{Comm, Listed, ProgramFacts};
use crate::units::{ByProcess, Pid, ProcessKey};

/// More processes than this are not remembered (they are counted): the table must not grow with a fork bomb.
pub const MAX_PROCESSES: usize = 131_072;

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Identity.
    pub key: ProcessKey,
    /// Its parent when it was born (or first seen); it may be adopted later.
    pub parent: Pid,
    /// Its name.
    pub comm: Comm,
    /// It has no program.
    pub kernel_thread: bool,
    /// We saw its fork, rather than finding it in a listing.
    pub fork_seen: bool,
    /// `CLOCK_MONOTONIC` ns of its fork, where seen.
    pub forked_at_ns: Option<u64>,
    /// Facts read so far; shared with the parent until an exec.
    pub facts: Option<Arc<ProgramFacts>>,
    /// Number of the look in which the facts were read; 0 for none, also when they are inherited.
    pub facts_look: u64,
    /// It is in the list of those whose place is to be decided.
    pub queued: bool,
    /// Not to be looked at before, `CLOCK_MONOTONIC` ns.
    pub look_due_ns: u64,
    /// When it was last forked or executed a program, `CLOCK_MONOTONIC` ns: titles are written soon after.
    pub changed_at_ns: u64,
    /// Rule that its own facts match.
    pub matched: Option<Arc<str>>,
}

/// All living processes by pid.
#[derive(Debug, Default)]
pub struct ProcessTable {
    processes: ByProcess<Pid, Process>,
    /// Processes that had no room.
    pub refused: u64,
    /// Who is whose child changed since this was last cleared.
    pub topology_changed: bool,
    /// Processes that must have ended, because another has their pid; until the owner takes them.
    pub displaced: Vec<ProcessKey>,
}

impl ProcessTable {
    /// Number of processes.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// The process with this identity.
    pub fn get(&self, key: ProcessKey) -> Option<&Process> {
        self.processes.get(&key.pid).filter(|p| p.key == key)
    }

    /// The process that has this pid now.
    pub fn by_pid(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// For changes.
    pub fn by_pid_mut(&mut self, pid: Pid) -> Option<&mut Process> {
        self.processes.get_mut(&pid)
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    fn insert(&mut self, process: Process) -> bool {
        let before = self.processes.get(&process.key.pid).map(|before| before.key);
        if before.is_none() && self.processes.len() >= MAX_PROCESSES {
            self.refused += 1;
            return false;
        }
        // What is told late of a process that had the pid before.
        if before.is_some_and(|before| before.start_ns > process.key.start_ns) {
            return false;
        }
        self.displaced.extend(before);
        self.topology_changed = true;
        self.processes.insert(process.key.pid, process);
        true
    }

    /// A child is born with its parent's program. False if it is known already or there is no room.
    pub fn forked(&mut self, key: ProcessKey, parent: Pid, comm: Comm, at_ns: u64) -> bool {
        if self.get(key).is_some() {
            return false;
        }
        let facts = self.processes.get(&parent).and_then(|p| p.facts.clone());
        self.insert(Process {
            key,
            parent,
            comm,
            kernel_thread: false,
            fork_seen: true,
            forked_at_ns: Some(at_ns),
            facts,
            facts_look: 0,
            queued: false,
            look_due_ns: 0,
            changed_at_ns: at_ns,
            matched: None,
        })
    }

    /// A process was found in a listing. True if it is new.
    pub fn listed(&mut self, listed: &Listed) -> bool {
        if let Some(known) = self.processes.get_mut(&listed.process.pid)
            && known.key == listed.process
        {
            self.topology_changed |= known.parent != listed.parent;
            known.parent = listed.parent;
            return false;
        }
        self.insert(Process {
            key: listed.process,
            parent: listed.parent,
            comm: listed.comm,
            kernel_thread: listed.kernel_thread,
            fork_seen: false,
            forked_at_ns: None,
            facts: None,
            facts_look: 0,
            queued: false,
            look_due_ns: 0,
            changed_at_ns: 0,
            matched: None,
        })
    }

    /// It runs another program.
    pub fn executed(&mut self, key: ProcessKey, comm: Comm, at_ns: u64) {
        if let Some(process) = self.processes.get_mut(&key.pid).filter(|p| p.key == key) {
            process.comm = comm;
            process.facts = None;
            process.changed_at_ns = at_ns;
            self.topology_changed = true;
        }
    }

    /// It has another name.
    pub fn renamed(&mut self, key: ProcessKey, comm: Comm) {
        if let Some(process) = self.processes.get_mut(&key.pid).filter(|p| p.key == key) {
            process.comm = comm;
        }
    }

    /// It ended.
    pub fn remove(&mut self, key: ProcessKey) {
        if self.get(key).is_some() {
            self.processes.remove(&key.pid);
            self.topology_changed = true;
        }
    }

    /// Keeps those for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&Process) -> bool) {
        let before = self.processes.len();
        self.processes.retain(|_, p| keep(p));
        self.topology_changed |= before != self.processes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: Pid, start_ns: u64) -> ProcessKey {
        ProcessKey { pid, start_ns }
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut table = ProcessTable::default();
        assert!(table.forked(key(7, 1), 1, Comm::from_bytes(b"a"), 0));
        assert!(!table.forked(key(7, 1), 1, Comm::from_bytes(b"a"), 0), "told twice");
        assert!(table.forked(key(7, 2), 1, Comm::from_bytes(b"b"), 0));
        assert_eq!(table.displaced, [key(7, 1)]);
        assert!(!table.forked(key(7, 1), 1, Comm::from_bytes(b"a"), 0), "told late");
        table.remove(key(7, 1));
        assert!(table.get(key(7, 2)).is_some(), "a late end of the first does not touch the second");
        assert!(table.get(key(7, 1)).is_none());
    }
}
