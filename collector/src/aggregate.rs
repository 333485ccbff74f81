//! The one owner of registry and process table: applies facts in order, decides who belongs where, publishes
//! snapshots.
//!
//! Membership is decided apart from the facts, in [`Aggregate::classify`], because it may need to read `/proc`: events
//! only queue a process for it, so a fork storm costs no read at all. What a fork probe has tagged is a worker at
//! once, until a look shows otherwise.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::histogram::Scratch;
use crate::input::{FactReader, Input, Needs, ProgramFacts, Role, Source};
use crate::snapshot::{self, Own, Snapshot, StateCounts, WorkerState};
use crate::units::{
    ByProcess, HostFacts, NANOS_PER_SECOND, Pid, ProcessKey, Processes, boottime_ns, monotonic_ns, unix_ns,
};
use crate::worker::matcher::{Facts, Matcher};
use crate::worker::pool::{Pool, PoolId};
use crate::worker::process::{Process, ProcessTable};
use crate::worker::recognize;
use crate::worker::registry::{Arrival, Registry, Vanished};

/// A process is looked at again until it has run its program for so long: servers write the titles of their workers
/// soon after the fork, and no event tells.
const SETTLED_NS: u64 = NANOS_PER_SECOND;

/// The first time between two looks; each next one is as long as the program has run already. So a title is seen before
/// twice its age, at the cost of half a dozen looks and not of one in every turn: a pool of a thousand workers that
/// starts is a thousand processes to read in each.
const LOOK_AGAIN_NS: u64 = NANOS_PER_SECOND / 20;

/// Time between two searches for pools. Each goes over all processes, and on a busy host there is always a new one.
const DISCOVERY_NS: u64 = NANOS_PER_SECOND / 4;

/// A discovered pool without worker and master is forgotten after this time.
const EMPTY_POOL_KEPT_NS: u64 = 600 * NANOS_PER_SECOND;

/// What the aggregator is told about its work.
#[derive(Debug)]
pub struct Config {
    /// Rules for pools.
    pub matcher: Matcher,
    /// Find pools that no rule names.
    pub zero_config: bool,
    /// Nanoseconds between readings, where a rule does not say.
    pub interval_ns: u64,
    /// Pools at most.
    pub max_pools: usize,
    /// Workers per pool with series of their own.
    pub max_listed_workers: usize,
    /// Death certificates kept.
    pub exits_kept: usize,
}

/// Owns everything that is known.
#[derive(Debug)]
pub struct Aggregate {
    config: Config,
    host: HostFacts,
    registry: Registry,
    processes: ProcessTable,
    /// Processes whose place is to be decided, in the order in which they came.
    queue: Vec<Pid>,
    /// The facts that were read last: workers of one pool have the same, and there is one copy of them.
    last_facts: Arc<ProgramFacts>,
    /// Number of the look at the queue, from 1; facts read in it need not be read again in it.
    look: u64,
    /// No search for pools before, `CLOCK_MONOTONIC` ns.
    discovery_due_ns: u64,
    /// Masters by process; a process can fork the workers of one pool.
    masters: ByProcess<ProcessKey, PoolId>,
    /// Latest readings of masters.
    master_readings: ByProcess<ProcessKey, crate::input::Sample>,
    /// Programs of parents that were looked at for recognition, so that each is read once.
    looked_at: Processes<ProcessKey>,
    scratch: Scratch,
    started_unix_ns: u64,
    unix_minus_monotonic: i64,
    boot_unix_ns: u64,
    /// `listing` when a full listing is wanted: at start and after losses.
    listing_wanted: bool,
    lost_events: u64,
    refused_pools: u64,
    vanished: Vec<Vanished>,
    /// Masters whose tag went with a thread.
    untagged_masters: Vec<ProcessKey>,
    /// Processes that a fork probe tagged for a pool that was dropped meanwhile, with their records.
    orphans: Vec<(ProcessKey, u32)>,
}

impl Aggregate {
    /// Knows nothing yet; the first [`Aggregate::classify`] lists all processes.
    pub fn new(config: Config, host: HostFacts) -> Self {
        let exits_kept = config.exits_kept;
        let mut aggregate = Self {
            config,
            host,
            registry: Registry::new(exits_kept),
            processes: ProcessTable::default(),
            queue: Vec::new(),
            last_facts: Arc::default(),
            look: 0,
            discovery_due_ns: 0,
            masters: ByProcess::default(),
            master_readings: ByProcess::default(),
            looked_at: Processes::default(),
            scratch: Scratch::new(),
            started_unix_ns: unix_ns(),
            unix_minus_monotonic: 0,
            boot_unix_ns: 0,
            listing_wanted: true,
            lost_events: 0,
            refused_pools: 0,
            vanished: Vec::new(),
            untagged_masters: Vec::new(),
            orphans: Vec::new(),
        };
        aggregate.set_clocks();
        aggregate.add_configured_pools();
        aggregate
    }

    fn set_clocks(&mut self) {
        let unix = unix_ns();
        self.unix_minus_monotonic = unix.cast_signed().wrapping_sub(monotonic_ns().cast_signed());
        self.boot_unix_ns = unix.saturating_sub(boottime_ns());
    }

    fn started_unix_ns(&self, key: ProcessKey) -> u64 {
        self.boot_unix_ns.saturating_add(key.start_ns)
    }

    fn unix_from_monotonic(&self, at_ns: u64) -> u64 {
        at_ns.saturating_add_signed(self.unix_minus_monotonic)
    }

    /// A configured pool without captures in its name shows zeros before its first worker comes.
    fn add_configured_pools(&mut self) {
        let now = monotonic_ns();
        let named: Vec<(Arc<str>, Option<u32>, u64)> = self
            .config
            .matcher
            .rules()
            .iter()
            .filter_map(|rule| {
                Some((rule.fixed_name()?.into(), rule.size, self.rule_interval(rule.interval_ns)))
            })
            .collect();
        for (name, size, interval_ns) in named {
            let id = match self.registry.pool_named(&name) {
                Some(pool) => pool.id,
                None => self.registry.add_pool(name, "config".into(), interval_ns, now),
            };
            if let Some(pool) = self.registry.pools.get_mut(&id) {
                pool.configured_size = size;
                pool.interval_ns = interval_ns;
            }
        }
    }

    fn rule_interval(&self, own: Option<u64>) -> u64 {
        own.unwrap_or(self.config.interval_ns)
    }

    /// Takes a new configuration: pools that are no longer named go, every process is judged anew.
    pub fn reconfigure(&mut self, config: Config, source: &mut dyn Source) {
        self.config = config;
        self.registry.keep_exits(self.config.exits_kept);
        let gone: Vec<PoolId> = self
            .registry
            .pools
            .values()
            .filter(|pool| {
                if &*pool.origin == "config" {
                    !self.config.matcher.rules().iter().any(|rule| rule.could_name(&pool.name))
                } else {
                    !self.config.zero_config
                }
            })
            .map(|pool| pool.id)
            .collect();
        for id in gone {
            self.drop_pool(id, source);
        }
        self.add_configured_pools();
        for pool in self.registry.pools.values_mut() {
            let rule = match &*pool.origin {
                "config" => self.config.matcher.rules().iter().find(|rule| rule.could_name(&pool.name)),
                _ => None,
            };
            pool.interval_ns = rule.and_then(|rule| rule.interval_ns).unwrap_or(self.config.interval_ns);
            // The turn that was set lies in the old interval.
            pool.due_ns = 0;
        }
        self.looked_at.clear();
        self.processes.topology_changed = true;
        let pids: Vec<Pid> = self.processes.iter().map(|p| p.key.pid).collect();
        for pid in pids {
            if let Some(process) = self.processes.by_pid_mut(pid) {
                process.matched = None;
            }
            self.enqueue(pid);
        }
    }

    fn drop_pool(&mut self, id: PoolId, source: &mut dyn Source) {
        let masters: Vec<ProcessKey> =
            self.masters.iter().filter(|(_, p)| **p == id).map(|(k, _)| *k).collect();
        for key in masters {
            self.masters.remove(&key);
            self.master_readings.remove(&key);
            source.untrack(key, Role::Master);
        }
        for (key, record) in self.registry.remove_pool(id) {
            source.untrack(key, Role::Worker);
            if let Some(record) = record {
                source.release(record);
            }
        }
    }

    /// To be looked at in the next turn, also if it was to be later.
    fn enqueue(&mut self, pid: Pid) {
        let Some(process) = self.processes.by_pid_mut(pid) else { return };
        process.look_due_ns = 0;
        if !std::mem::replace(&mut process.queued, true) {
            self.queue.push(pid);
        }
    }

    /// Applies one fact. Records that are free again go to `release`.
    pub fn apply(&mut self, input: Input, release: &mut Vec<u32>) {
        match input {
            Input::Fork(fork) => {
                let is_new = self.processes.forked(fork.child, fork.parent, fork.comm, fork.at_ns);
                // Found by a listing before its event arrived: it is not counted as found, but as forked.
                if let Some(process) =
                    self.processes.by_pid_mut(fork.child.pid).filter(|p| p.key == fork.child)
                {
                    process.fork_seen = true;
                    process.forked_at_ns = Some(fork.at_ns);
                }
                let pool = fork.pool.filter(|id| self.registry.pools.contains_key(id));
                match pool {
                    Some(pool) => {
                        let arrival = Arrival {
                            key: fork.child,
                            parent: fork.parent,
                            comm: fork.comm,
                            app: None,
                            record: fork.record,
                            forked_at_ns: Some(fork.at_ns),
                            started_unix_ns: self.unix_from_monotonic(fork.at_ns),
                            now_unix_ns: self.unix_from_monotonic(fork.at_ns),
                        };
                        if !self.registry.join(pool, arrival) {
                            release.extend(self.registry.fork_told(fork.child, fork.record, fork.at_ns));
                        }
                    }
                    None => {
                        let record = self.registry.fork_told(fork.child, fork.record, fork.at_ns);
                        // Its pool was dropped while the event was under way. The kernel writes to the record until
                        // the tag is gone, so that goes first.
                        if let Some(record) = record
                            && !self.orphans.contains(&(fork.child, record))
                        {
                            self.orphans.push((fork.child, record));
                        }
                    }
                }
                if is_new {
                    self.enqueue(fork.child.pid);
                }
            }
            Input::Exec(exec) => {
                self.processes.executed(exec.process, exec.comm, exec.at_ns);
                let now = self.unix_from_monotonic(exec.at_ns);
                self.registry.renamed(exec.process, exec.comm, true, now);
                self.looked_at.remove(&exec.process);
                self.enqueue(exec.process.pid);
                if exec.by_thread {
                    // The kernel's tag went with the old main thread. A worker is tagged anew by the next pass that
                    // misses it; a master has to be at once, for its children to be.
                    self.processes.topology_changed = true;
                    if self.masters.contains_key(&exec.process) {
                        self.untagged_masters.push(exec.process);
                    }
                }
            }
            Input::Rename(rename) => {
                self.processes.renamed(rename.process, rename.comm);
                let now = unix_ns();
                self.registry.renamed(rename.process, rename.comm, false, now);
                self.enqueue(rename.process.pid);
            }
            Input::Exit(exit) => {
                self.registry.exited(&exit, self.unix_minus_monotonic);
                self.processes.remove(exit.process);
                self.looked_at.remove(&exit.process);
                self.master_ended(exit.process, exit.at_ns);
            }
            Input::Reap(reap) => {
                release.extend(self.registry.reaped(&reap, self.unix_minus_monotonic));
                self.processes.remove(reap.process);
                self.master_ended(reap.process, reap.at_ns);
            }
            Input::Sample(sample) => {
                if self.masters.contains_key(&sample.process) {
                    let mut reading = sample;
                    if let Some(before) = self.master_readings.get(&sample.process) {
                        // Never back, as for workers: a fall looks like a new process to whoever reads a counter.
                        reading.cpu = if reading.cpu.total_ns() < before.cpu.total_ns() {
                            before.cpu
                        } else {
                            reading.cpu.not_below(before.cpu)
                        };
                    }
                    self.master_readings.insert(sample.process, reading);
                }
                let now = self.unix_from_monotonic(sample.at_ns);
                self.registry.sampled(&sample, now);
            }
            Input::Unchanged { process, at_ns } => {
                let now = self.unix_from_monotonic(at_ns);
                self.registry.unchanged(process, at_ns, now);
            }
            Input::PassComplete { started_ns } => {
                let vanished = self.registry.pass_complete(started_ns, self.unix_minus_monotonic);
                self.vanished.extend(vanished);
            }
            Input::Lost { events } => {
                self.lost_events += events;
                self.listing_wanted = true;
            }
        }
    }

    fn master_ended(&mut self, key: ProcessKey, at_ns: u64) {
        if let Some(pool) = self.masters.remove(&key)
            && let Some(pool) = self.registry.pools.get_mut(&pool)
        {
            pool.masters.retain(|master| *master != key);
            pool.note_emptiness(at_ns);
        }
        self.master_readings.remove(&key);
    }

    /// Marks the pools whose turn it is and returns when the next turn comes, `CLOCK_MONOTONIC` ns.
    pub fn pass_begins(&mut self, now_ns: u64) -> u64 {
        self.set_clocks();
        self.registry.pass_begins();
        let mut next = (now_ns / self.config.interval_ns + 1) * self.config.interval_ns;
        for pool in self.registry.pools.values_mut() {
            // Turns lie on a grid that all pools of one interval share, or each pool would bring passes of its own. One
            // may come a little early, when it falls together with another interval's.
            let early = pool.interval_ns / 20;
            pool.due = pool.due_ns <= now_ns + early;
            if pool.due {
                pool.due_ns = ((now_ns + early) / pool.interval_ns.max(1) + 1) * pool.interval_ns;
            }
            next = next.min(pool.due_ns);
        }
        next
    }

    /// Decides the place of every process that is new or changed, and finds pools that no rule names.
    pub fn classify(&mut self, now_ns: u64, source: &mut dyn Source, facts: &mut dyn FactReader) {
        if std::mem::take(&mut self.listing_wanted) {
            self.list(source);
        }
        for (key, record) in std::mem::take(&mut self.orphans) {
            if self.registry.worker(key).is_none() {
                source.untrack(key, Role::Worker);
            }
            source.release(record);
        }
        for key in std::mem::take(&mut self.untagged_masters) {
            if let Some(pool) = self.masters.get(&key) {
                source.track(key, *pool, Role::Master);
            }
        }
        for vanished in std::mem::take(&mut self.vanished) {
            match vanished {
                Vanished::Missed(key, pool) => {
                    // It may have ended, moved or lost its pool since.
                    if self.registry.worker(key).is_none_or(|w| w.pool != pool || w.ended()) {
                        continue;
                    }
                    let record = source.track(key, pool, Role::Worker);
                    if let Some(old) = self
                        .registry
                        .worker_mut(key)
                        .and_then(|w| record.and_then(|record| w.record.replace(record)))
                    {
                        source.release(old);
                    }
                }
                Vanished::Gone(key, record) => {
                    self.processes.remove(key);
                    if let Some(record) = record {
                        source.release(record);
                    }
                }
            }
        }
        self.look += 1;
        let mut queue = std::mem::take(&mut self.queue);
        let later =
            queue.extract_if(.., |pid| self.processes.by_pid(*pid).is_some_and(|p| p.look_due_ns > now_ns));
        self.queue.extend(later);
        if !queue.is_empty() {
            self.by_rules(&queue, now_ns, source, facts);
        }
        let discovery_due = self.processes.topology_changed && now_ns >= self.discovery_due_ns;
        if self.config.zero_config && discovery_due {
            self.processes.topology_changed = false;
            self.discovery_due_ns = now_ns + DISCOVERY_NS;
            self.discover(now_ns, source, facts);
        }
        if !queue.is_empty() {
            self.by_recognition(&queue, now_ns, source, facts);
        }
        for pid in queue {
            let Some(process) = self.processes.by_pid_mut(pid) else { continue };
            let age_ns = now_ns.saturating_sub(process.changed_at_ns);
            process.queued = age_ns < SETTLED_NS;
            if process.queued {
                process.look_due_ns = now_ns + age_ns.max(LOOK_AGAIN_NS);
                self.queue.push(pid);
            }
        }
        self.forget_empty_pools(now_ns, source);
    }

    fn list(&mut self, source: &mut dyn Source) {
        let mut seen = Processes::default();
        let mut new = Vec::new();
        let processes = &mut self.processes;
        source.list(&mut |listed| {
            if listed.zombie {
                return;
            }
            seen.insert(listed.process);
            if processes.listed(&listed) && !listed.kernel_thread {
                new.push(listed.process.pid);
            }
        });
        // A failed listing says nothing; who is in no listing has ended.
        if !seen.is_empty() {
            self.processes.retain(|p| seen.contains(&p.key));
            self.looked_at.retain(|key| seen.contains(key));
            let ended: Vec<ProcessKey> =
                self.masters.keys().filter(|key| !seen.contains(*key)).copied().collect();
            for key in ended {
                self.master_ended(key, monotonic_ns());
            }
        }
        // Parents before children, so that a master is known before its workers are judged.
        new.sort_unstable();
        for pid in new {
            self.enqueue(pid);
        }
    }

    /// Facts of a process, read as far as they are needed and kept until it executes another program. `fresh` ones were
    /// read in this look.
    fn facts(
        &mut self,
        key: ProcessKey,
        needs: Needs,
        fresh: bool,
        facts: &mut dyn FactReader,
    ) -> Option<Arc<ProgramFacts>> {
        let process = self.processes.get(key)?;
        if let Some(known) = &process.facts
            && (!fresh || process.facts_look == self.look)
            && needs.met_by(known)
        {
            return Some(Arc::clone(known));
        }
        let read = facts.read(key, needs)?;
        if read != *self.last_facts {
            self.last_facts = Arc::new(read);
        }
        let read = Arc::clone(&self.last_facts);
        let process = self.processes.by_pid_mut(key.pid)?;
        process.facts = Some(Arc::clone(&read));
        process.facts_look = self.look;
        Some(read)
    }

    /// Rules of the configuration; the first that matches names the pool.
    fn by_rules(&mut self, queue: &[Pid], now_ns: u64, source: &mut dyn Source, reader: &mut dyn FactReader) {
        if self.config.matcher.rules().is_empty() {
            return;
        }
        let needs = self.config.matcher.needs();
        let mut verdicts = Vec::with_capacity(queue.len());
        for pid in queue {
            let Some(process) = self.processes.by_pid(*pid).filter(|p| !p.kernel_thread) else { continue };
            let (key, parent, comm) = (process.key, process.parent, process.comm);
            let Some(own) = self.facts(key, needs, true, reader) else { continue };
            let parent_key =
                self.processes.by_pid(parent).filter(|p| !p.kernel_thread).map(|p| (p.key, p.comm));
            let parent_facts = match parent_key {
                Some((key, comm)) if needs.parent => self.facts(key, needs, false, reader).map(|f| (comm, f)),
                _ => None,
            };
            let own_facts = as_facts(comm.as_bytes(), &own);
            let parent_facts = parent_facts.as_ref().map(|(comm, f)| as_facts(comm.as_bytes(), f));
            let verdict = self.config.matcher.classify(&own_facts, parent_facts.as_ref());
            let master_of = self.config.matcher.master_of(&own_facts);
            if let Some(process) = self.processes.by_pid_mut(*pid) {
                process.matched = verdict.as_ref().map(|m| m.pool.as_str().into());
            }
            verdicts.push((key, verdict, master_of));
        }
        // Who has a child that matches the same pool is its master, not a worker.
        let parents: HashSet<(Pid, Arc<str>)> =
            self.processes.iter().filter_map(|p| Some((p.parent, p.matched.clone()?))).collect();
        for (key, verdict, master_of) in verdicts {
            if let Some(rule) = master_of
                && let Some(name) = self.config.matcher.rules()[rule].fixed_name()
                // A worker that still has its master's name and program is no second master.
                && verdict.as_ref().is_none_or(|verdict| verdict.pool != name)
                && let Some(pool) = self.registry.pool_named(name).map(|p| p.id)
            {
                self.make_master(key, pool, source);
            }
            let Some(verdict) = verdict else {
                let seated = self.registry.worker(key).filter(|w| !w.ended()).map(|w| w.pool);
                if seated.is_some_and(|id| self.is_configured(id)) {
                    self.dismiss(key, now_ns, source);
                }
                continue;
            };
            let rule = &self.config.matcher.rules()[verdict.rule];
            let (interval_ns, rule_size) = (self.rule_interval(rule.interval_ns), rule.size);
            let pool_name: Arc<str> = verdict.pool.as_str().into();
            let Some(pool) = self.pool_for(&pool_name, "config", interval_ns, now_ns) else { continue };
            if let Some(pool) = self.registry.pools.get_mut(&pool)
                && let Some(size) = verdict.size.or(rule_size)
            {
                pool.configured_size = Some(size);
            }
            let has_child = parents.contains(&(key.pid, Arc::clone(&pool_name)));
            if has_child {
                self.dismiss(key, now_ns, source);
                self.make_master(key, pool, source);
                continue;
            }
            let parent = self.processes.get(key).and_then(|p| self.processes.by_pid(p.parent));
            if let Some(parent) = parent.filter(|p| p.matched.as_ref() == Some(&pool_name)).map(|p| p.key) {
                self.dismiss(parent, now_ns, source);
                self.make_master(parent, pool, source);
            }
            self.place(key, pool, verdict.app.map(Into::into), now_ns, source);
        }
    }

    fn is_configured(&self, id: PoolId) -> bool {
        self.registry.pools.get(&id).is_some_and(|pool| &*pool.origin == "config")
    }

    /// The pool of this name, made if there is room.
    fn pool_for(&mut self, name: &Arc<str>, origin: &str, interval_ns: u64, now_ns: u64) -> Option<PoolId> {
        if let Some(pool) = self.registry.pool_named(name) {
            return Some(pool.id);
        }
        if self.registry.pools.len() >= self.config.max_pools {
            self.refused_pools += 1;
            return None;
        }
        Some(self.registry.add_pool(Arc::clone(name), origin.into(), interval_ns, now_ns))
    }

    fn make_master(&mut self, key: ProcessKey, pool_id: PoolId, source: &mut dyn Source) {
        if self.masters.get(&key) == Some(&pool_id) {
            return;
        }
        let Some(pool) = self.registry.pools.get_mut(&pool_id) else { return };
        pool.masters.push(key);
        pool.empty_since_ns = None;
        if let Some(old) = self.masters.insert(key, pool_id)
            && let Some(old) = self.registry.pools.get_mut(&old)
        {
            old.masters.retain(|master| *master != key);
        }
        source.track(key, pool_id, Role::Master);
    }

    /// Makes a process a worker of a pool, wherever it was before.
    fn place(
        &mut self,
        key: ProcessKey,
        pool: PoolId,
        app: Option<Arc<str>>,
        now_ns: u64,
        source: &mut dyn Source,
    ) {
        if let Some(worker) = self.registry.worker_mut(key) {
            if worker.pool == pool {
                if app.is_some() {
                    worker.app = app;
                }
                return;
            }
            if worker.ended() {
                return;
            }
            self.dismiss(key, now_ns, source);
        }
        let Some(process) = self.processes.get(key) else { return };
        let (parent, comm, forked_at_ns) = (process.parent, process.comm, process.forked_at_ns);
        let record = source.track(key, pool, Role::Worker);
        let started_unix_ns = match forked_at_ns {
            Some(at_ns) => self.unix_from_monotonic(at_ns),
            None => self.started_unix_ns(key),
        };
        let now_unix_ns = self.unix_from_monotonic(now_ns);
        let arrival = Arrival { key, parent, comm, app, record, forked_at_ns, started_unix_ns, now_unix_ns };
        self.registry.join(pool, arrival);
    }

    /// A worker that is none after all.
    fn dismiss(&mut self, key: ProcessKey, now_ns: u64, source: &mut dyn Source) {
        if self.registry.worker(key).is_none_or(|w| w.ended()) {
            return;
        }
        source.untrack(key, Role::Worker);
        // What it was taken for may have hidden what it is: a master of its own, for one.
        self.processes.topology_changed = true;
        if let Some(record) = self.registry.leave(key, now_ns) {
            source.release(record);
        }
    }

    /// Zero configuration: a parent with two or more living children of the same program is a pool; a recognized
    /// master is one with its first child.
    fn discover(&mut self, now_ns: u64, source: &mut dyn Source, reader: &mut dyn FactReader) {
        let mut children: ByProcess<Pid, Vec<ProcessKey>> = ByProcess::default();
        for process in self.processes.iter() {
            let placed = process.matched.is_some() || self.registry.worker(process.key).is_some();
            if !process.kernel_thread && process.parent != 0 && !placed {
                children.entry(process.parent).or_default().push(process.key);
            }
        }
        for (parent, mut children) in children {
            let Some(master) = self.processes.by_pid(parent).filter(|p| !p.kernel_thread) else { continue };
            let (key, comm) = (master.key, master.comm);
            if self.masters.contains_key(&key) || master.matched.is_some() {
                continue;
            }
            if children.len() < 2 && !self.looked_at.insert(key) {
                continue;
            }
            // A worker that shows its master's arguments is no master of its own, whatever it forks.
            if self.is_worker_of_known_program(key) {
                continue;
            }
            // The control group may have to tell two masters apart.
            let needs = Needs { cgroup: true, ..Needs::PROGRAM };
            let Some(own) = self.facts(key, needs, true, reader) else { continue };
            let own_facts = as_facts(comm.as_bytes(), &own);
            let recognized = recognize::master(&own_facts);
            if recognized.is_none() && (children.len() < 2 || recognize::starts_strangers(&own_facts)) {
                continue;
            }
            // In the order of their birth, as far as pids tell.
            children.sort_unstable_by_key(|child| (child.start_ns, child.pid));
            let mut programs: HashMap<Vec<u8>, Vec<ProcessKey>> = HashMap::new();
            for child in children {
                let Some(facts) = self.facts(child, Needs::PROGRAM, false, reader) else { continue };
                let Some(program) = recognize::program_of(&as_facts(b"", &facts)) else { continue };
                // Init adopts strangers: only what it forked without exec can be its workers.
                if parent == 1 && facts.exe != own.exe {
                    continue;
                }
                let known = recognized.is_some();
                if known && facts.exe == own.exe
                    || !known
                        && !self.masters_known_program(child)
                        && recognize::may_work(&own_facts, &as_facts(b"", &facts))
                {
                    programs.entry(program).or_default().push(child);
                }
            }
            if recognized.is_none() {
                programs.retain(|_, group| group.len() >= 2);
            }
            let Some(largest) = programs.values().max_by_key(|group| (group.len(), group[0])) else {
                continue;
            };
            let named_by = if recognized.is_some() {
                key
            } else if recognize::is_named_after_workers(&own_facts) {
                largest[0]
            } else if recognize::forks_for_its_parent(&own_facts) {
                self.processes.get(key).and_then(|p| self.processes.by_pid(p.parent)).map_or(key, |p| p.key)
            } else {
                key
            };
            let Some(named_by) = self.facts(named_by, Needs::PROGRAM, false, reader) else { continue };
            let Some((pool, works)) = self.discovered_pool(key, &named_by, recognized, now_ns, reader) else {
                continue;
            };
            if self.registry.pools.get(&pool).is_some_and(|p| p.program.is_some()) {
                // It daemonized, or its parent took it for a worker before it was known what it is.
                self.dismiss(key, now_ns, source);
            }
            self.make_master(key, pool, source);
            if works {
                self.place(key, pool, None, now_ns, source);
            }
            let mut groups: Vec<_> = programs.into_values().collect();
            groups.sort_unstable_by_key(|group| (group[0].start_ns, group[0].pid));
            for child in groups.into_iter().flatten() {
                self.enqueue(child.pid);
                self.judge_child(child, pool, now_ns, source, reader);
            }
        }
    }

    fn pool_is_known_program(&self, id: PoolId) -> bool {
        self.registry.pools.get(&id).is_some_and(|pool| pool.program.is_some())
    }

    fn masters_known_program(&self, key: ProcessKey) -> bool {
        self.masters.get(&key).is_some_and(|id| self.pool_is_known_program(*id))
    }

    /// Living parents only: a server that daemonized was its parent's child, too.
    fn is_worker_of_known_program(&self, key: ProcessKey) -> bool {
        let Some(worker) = self.registry.worker(key).filter(|w| !w.ended()) else { return false };
        let parent = self.processes.get(key).and_then(|p| self.processes.by_pid(p.parent));
        self.pool_is_known_program(worker.pool)
            && parent.is_some_and(|parent| self.masters.get(&parent.key) == Some(&worker.pool))
    }

    /// Names and makes the pool of a master that was found; says whether the master is a worker, too.
    fn discovered_pool(
        &mut self,
        master: ProcessKey,
        own: &ProgramFacts,
        recognized: Option<recognize::Recognized>,
        now_ns: u64,
        reader: &mut dyn FactReader,
    ) -> Option<(PoolId, bool)> {
        let comm = self.processes.get(master)?.comm;
        let base = recognize::pool_name(&as_facts(comm.as_bytes(), own));
        // A second generation of masters (an upgrade in flight) shares the pool of the first.
        let parent = self.processes.get(master).and_then(|p| self.processes.by_pid(p.parent)).map(|p| p.key);
        let parents_pool = parent.and_then(|p| self.masters.get(&p).copied());
        if let Some(id) = parents_pool
            && self
                .registry
                .pools
                .get(&id)
                .is_some_and(|p| recognized.is_some() && p.program == recognized.as_ref().map(|r| r.program))
        {
            return Some((id, false));
        }
        let origin = match &recognized {
            Some(r) => format!("recognized:{}", r.program),
            None => "zero-config".to_owned(),
        };
        let app = recognized.as_ref().and_then(|r| r.app.clone());
        let name = self.free_name(&base, app.as_deref(), own);
        let id = self.pool_for(&name, &origin, self.config.interval_ns, now_ns)?;
        let (size, works) = recognized.as_ref().map_or((None, false), |r| self.size_of(master, r, reader));
        if let Some(pool) = self.registry.pools.get_mut(&id) {
            pool.program = recognized.as_ref().map(|r| r.program);
            pool.app = app.map(Into::into);
            if size.is_some() {
                pool.configured_size = size;
            }
        }
        Some((id, works))
    }

    /// Configured number of workers, and whether the master is one of them.
    fn size_of(
        &self,
        master: ProcessKey,
        recognized: &recognize::Recognized,
        reader: &mut dyn FactReader,
    ) -> (Option<u32>, bool) {
        let file = recognized.size_file.as_deref().filter(|_| recognized.size.is_none() || recognized.works);
        let text = file.and_then(|path| reader.config_text(master, path));
        let size = || match recognize::size_from_config(recognized.program, text.as_deref()?)? {
            recognize::Size::Fixed(size) => Some(size),
            recognize::Size::PerCpu => Some(self.host.cpus),
        };
        let works = match (file, text.as_deref()) {
            (Some(_), None) => false,
            (_, text) => recognized.works && !text.is_some_and(recognize::asks_for_master),
        };
        (recognized.size.or_else(size), works)
    }

    /// Two masters of one name are told apart by what they serve, then by their control group, then by a number. A
    /// pool whose masters and workers are gone gives its name to a successor.
    fn free_name(&self, base: &str, app: Option<&str>, own: &ProgramFacts) -> Arc<str> {
        let taken = |name: &str| {
            self.registry.pool_named(name).is_some_and(|pool| {
                !pool.masters.is_empty() || &*pool.origin == "config" || pool.living() > 0
            })
        };
        if !taken(base) {
            return base.into();
        }
        let unit = own.cgroup.as_deref().and_then(|path| {
            let last = path.rsplit(|b| *b == b'/').next().filter(|last| !last.is_empty())?;
            Some(String::from_utf8_lossy(last).into_owned())
        });
        let distinct = app.map(str::to_owned).into_iter().chain(unit).map(|by| format!("{base}@{by}"));
        for name in distinct.chain((2..10_000).map(|n| format!("{base}-{n}"))) {
            if !taken(&name) {
                return name.into();
            }
        }
        base.into()
    }

    /// Children of discovered masters among those that changed: worker, helper, or something else altogether.
    fn by_recognition(
        &mut self,
        queue: &[Pid],
        now_ns: u64,
        source: &mut dyn Source,
        reader: &mut dyn FactReader,
    ) {
        for pid in queue {
            let Some(process) =
                self.processes.by_pid(*pid).filter(|p| !p.kernel_thread && p.matched.is_none())
            else {
                continue;
            };
            let key = process.key;
            let seated = self.registry.worker(key).filter(|w| !w.ended()).map(|w| w.pool);
            let by_parent =
                self.processes.by_pid(process.parent).and_then(|p| self.masters.get(&p.key)).copied();
            let Some(pool) = seated.or(by_parent) else { continue };
            if !self.is_configured(pool) {
                self.judge_child(key, pool, now_ns, source, reader);
            }
        }
    }

    fn judge_child(
        &mut self,
        key: ProcessKey,
        pool_id: PoolId,
        now_ns: u64,
        source: &mut dyn Source,
        reader: &mut dyn FactReader,
    ) {
        if self.masters.get(&key) == Some(&pool_id) || self.masters_known_program(key) {
            return;
        }
        let Some(comm) = self.processes.get(key).map(|p| p.comm) else { return };
        let Some(facts) = self.facts(key, Needs::PROGRAM, true, reader) else { return };
        if facts.exe.is_none() {
            // It is ending (its main thread at least has no program any more), or we have no right to look: no reason
            // to change anything.
            return;
        }
        let Some(pool) = self.registry.pools.get(&pool_id) else { return };
        let facts_now = as_facts(comm.as_bytes(), &facts);
        let belongs = match pool.program {
            Some(program) => match recognize::child_role(program, &facts_now) {
                recognize::Role::Worker { app } => Some(app.map(Arc::from).or_else(|| pool.app.clone())),
                recognize::Role::Helper if self.shows_its_parents_title(key, &facts, now_ns) => return,
                recognize::Role::Helper => None,
            },
            None => {
                let parent = self.processes.get(key).and_then(|p| self.processes.by_pid(p.parent));
                let parent = parent.and_then(|p| p.facts.as_deref());
                (parent.is_none_or(|parent| recognize::may_work(&as_facts(b"", parent), &facts_now))
                    && self.same_program_as_others(key, pool_id, &facts))
                .then_some(None)
            }
        };
        match belongs {
            Some(_) if self.is_beyond_size(key, pool_id) => self.dismiss(key, now_ns, source),
            Some(app) => {
                self.place(key, pool_id, app, now_ns, source);
                self.keep_to_size(pool_id, now_ns, source);
            }
            None => self.dismiss(key, now_ns, source),
        }
    }

    /// It has not said yet what it is: its title is written soon after the fork.
    fn shows_its_parents_title(&self, key: ProcessKey, facts: &ProgramFacts, now_ns: u64) -> bool {
        let Some(process) = self.processes.get(key) else { return false };
        let parents = self.processes.by_pid(process.parent).and_then(|p| p.facts.as_ref());
        now_ns.saturating_sub(process.changed_at_ns) < SETTLED_NS
            && parents.is_some_and(|parents| parents.cmdline == facts.cmdline)
    }

    /// The configured size of a pool whose helpers look like workers, but are forked after them.
    fn size_that_tells(&self, pool_id: PoolId) -> Option<usize> {
        let pool = self.registry.pools.get(&pool_id)?;
        pool.program.filter(|program| recognize::helpers_come_last(program))?;
        pool.configured_size.map(|size| size as usize)
    }

    /// As many workers as there may be are older. Once dismissed, a helper is not counted against successors.
    fn is_beyond_size(&self, key: ProcessKey, pool_id: PoolId) -> bool {
        let Some(size) = self.size_that_tells(pool_id) else { return false };
        let born = |key: ProcessKey| (key.start_ns, key.pid);
        let pool = self.registry.pools.get(&pool_id);
        let older = |pool: &Pool| pool.holders().filter(|(_, other)| born(*other) < born(key)).count();
        pool.map_or(0, older) >= size
    }

    /// A helper that the fork probe tagged may have a seat before the last worker has.
    fn keep_to_size(&mut self, pool_id: PoolId, now_ns: u64, source: &mut dyn Source) {
        let Some(size) = self.size_that_tells(pool_id) else { return };
        let Some(pool) = self.registry.pools.get(&pool_id).filter(|pool| pool.living() as usize > size)
        else {
            return;
        };
        let youngest = pool.holders().map(|(_, key)| key).max_by_key(|key| (key.start_ns, key.pid));
        if let Some(youngest) = youngest {
            self.dismiss(youngest, now_ns, source);
        }
    }

    /// In a pool without a recognizer a worker runs the program of its master or of another worker.
    fn same_program_as_others(&self, key: ProcessKey, pool_id: PoolId, facts: &ProgramFacts) -> bool {
        let program = recognize::program_of(&as_facts(b"", facts));
        let Some(program) = program else { return false };
        let same = |other: &Process| {
            other.facts.as_ref().and_then(|f| recognize::program_of(&as_facts(b"", f))).as_ref()
                == Some(&program)
        };
        let Some(pool) = self.registry.pools.get(&pool_id) else { return false };
        let mut others = pool.holders().map(|(_, holder)| holder).filter(|holder| *holder != key);
        let masters = pool.masters.iter().copied();
        if masters.chain(others.by_ref().take(8)).filter_map(|k| self.processes.get(k)).any(same) {
            return true;
        }
        let parent = self.processes.get(key).map(|p| p.parent);
        // Siblings that are about to be judged, too.
        self.processes.iter().filter(|p| Some(p.parent) == parent && p.key != key).take(64).any(same)
    }

    fn forget_empty_pools(&mut self, now_ns: u64, source: &mut dyn Source) {
        let stale: Vec<PoolId> = self
            .registry
            .pools
            .values_mut()
            .filter_map(|pool| {
                pool.note_emptiness(now_ns);
                let fixed = self.config.matcher.rules().iter().any(|r| r.fixed_name() == Some(&*pool.name));
                let since_ns = pool.empty_since_ns.filter(|_| !fixed)?;
                (now_ns.saturating_sub(since_ns) > EMPTY_POOL_KEPT_NS).then_some(pool.id)
            })
            .collect();
        for id in stale {
            self.drop_pool(id, source);
        }
    }

    /// Losses by reason that arose here.
    fn losses(&self) -> [(&'static str, u64); 6] {
        [
            ("event_lost", self.lost_events),
            ("exit_unreported", self.registry.unreported_ends),
            ("final_cpu_unreported", self.registry.unreported_reaps),
            ("reading_went_backwards", self.registry.backward_readings),
            ("process_table_full", self.processes.refused),
            ("pool_limit", self.refused_pools),
        ]
    }

    /// The view of now. `own` is completed with what is counted here.
    pub fn snapshot(
        &mut self,
        now_ns: u64,
        source: &'static str,
        features: &Arc<[snapshot::Feature]>,
        mut own: Own,
    ) -> Snapshot {
        own.losses.extend(self.losses());
        own.processes = self.processes.len() as u64;
        let mut order: Vec<PoolId> = self.registry.pools.keys().copied().collect();
        order.sort_by(|a, b| self.registry.pools[a].name.cmp(&self.registry.pools[b].name));
        let mut pools = Vec::with_capacity(order.len());
        for id in order {
            pools.extend(self.pool_view(id, now_ns));
        }
        Snapshot {
            at_unix_ns: self.unix_from_monotonic(now_ns),
            started_unix_ns: self.started_unix_ns,
            source,
            features: Arc::clone(features),
            pools,
            exits: self.registry.exits().cloned().collect(),
            exits_total: self.registry.exits_total(),
            own,
        }
    }

    fn pool_view(&mut self, id: PoolId, now_ns: u64) -> Option<snapshot::Pool> {
        let defunct = match self.registry.pools.get(&id) {
            Some(pool) if pool.unreaped > 0 => self.registry.defunct(id),
            _ => 0,
        };
        let pool = self.registry.pools.get_mut(&id)?;
        for windowed in [&mut pool.cpu_utilization, &mut pool.worker_rss, &mut pool.lifetime] {
            windowed.advance(now_ns);
        }
        let pool = self.registry.pools.get(&id)?;
        let listed = self.config.max_listed_workers;
        let mut states = StateCounts::default();
        let mut rss = (0u64, 0u32);
        let mut workers = Vec::with_capacity((pool.living() as usize).min(listed));
        for (slot, key) in pool.holders() {
            let Some(worker) = self.registry.worker(key) else { continue };
            match worker.state {
                WorkerState::Creating => states.creating += 1,
                WorkerState::Running | WorkerState::Terminated => states.running += 1,
            }
            if let Some(memory) = worker.last.and_then(|s| s.rss) {
                rss = (rss.0 + memory.total_bytes, rss.1 + 1);
            }
            if workers.len() < listed {
                workers.push(worker_view(worker, slot));
            }
        }
        let living = pool.living();
        let masters = pool.masters.iter().filter_map(|key| self.master_view(*key)).collect();
        Some(snapshot::Pool {
            name: Arc::clone(&pool.name),
            origin: Arc::clone(&pool.origin),
            masters,
            configured_size: pool.configured_size,
            size: pool.configured_size.unwrap_or(living),
            states,
            defunct,
            unlisted: living.saturating_sub(workers.len() as u32),
            spawns_total: pool.spawns,
            exits: pool.exits,
            cpu: pool.cpu,
            run_delay_ns: pool.run_delay_ns,
            read_bytes: pool.read_bytes,
            written_bytes: pool.written_bytes,
            rss_bytes: (rss.1 > 0 || living == 0).then_some(rss.0),
            cpu_utilization: pool.cpu_utilization.distribution(&mut self.scratch),
            worker_rss_bytes: pool.worker_rss.distribution(&mut self.scratch),
            lifetime_seconds: pool.lifetime.distribution(&mut self.scratch),
            workers,
        })
    }

    fn master_view(&self, key: ProcessKey) -> Option<snapshot::Master> {
        let process = self.processes.get(key)?;
        let reading = self.master_readings.get(&key);
        Some(snapshot::Master {
            pid: key.pid,
            comm: String::from_utf8_lossy(process.comm.as_bytes()).into(),
            started_unix_ns: self.started_unix_ns(key),
            cpu: reading.map(|r| r.cpu),
            rss_bytes: reading.and_then(|r| r.rss).map(|rss| rss.total_bytes),
        })
    }
}

fn worker_view(worker: &crate::worker::registry::Worker, slot: u32) -> snapshot::Worker {
    snapshot::Worker {
        slot,
        generation: worker.generation,
        pid: worker.key.pid,
        parent: worker.parent,
        comm: Arc::clone(&worker.comm_text),
        app: worker.app.clone(),
        state: worker.state,
        since_unix_ns: worker.since_unix_ns,
        started_unix_ns: worker.started_unix_ns,
        reading: worker.last.map(|sample| snapshot::Reading {
            cpu: sample.cpu,
            cpu_utilization: worker.utilization,
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

fn as_facts<'a>(comm: &'a [u8], facts: &'a ProgramFacts) -> Facts<'a> {
    Facts {
        comm,
        exe: facts.exe.as_deref(),
        cmdline: facts.cmdline.as_deref(),
        uid: facts.uid,
        cgroup: facts.cgroup.as_deref(),
    }
}

#[cfg(test)]
mod tests;
