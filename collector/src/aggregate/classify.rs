//! Who belongs where: decides the place of every process that is new or changed, by the rules of the configuration.
//!
//! What no rule names is left to [`super::discover`]. Nothing here takes facts: it acts on what was applied before.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Aggregate, MAX_REFUSED, Master, Refused, as_facts};
use crate::input::{FactReader, Needs, Profile, ProgramFacts, Reap, Role, SlotRecord, Source, Wishes};
use crate::units::{NANOS_PER_SECOND, Pid, ProcessKey, Processes, monotonic_ns};
use crate::worker::pool::PoolId;
use crate::worker::process::ProcessTable;
use crate::worker::registry::{Arrival, Vanished};

/// A process is looked at again until it has run its program for so long: servers write the titles of their workers
/// soon after the fork, and no event tells.
pub(super) const SETTLED_NS: u64 = NANOS_PER_SECOND;

/// The first time between two looks; each next one is as long as the program has run already. So a title is seen before
/// twice its age, at the cost of half a dozen looks and not of one in every turn: a pool of a thousand workers that
/// starts is a thousand processes to read in each.
const LOOK_AGAIN_NS: u64 = NANOS_PER_SECOND / 20;

/// Time between two searches for pools. Each goes over all processes, and on a busy host there is always a new one.
const DISCOVERY_NS: u64 = NANOS_PER_SECOND / 4;

impl Aggregate {
    /// Decides the place of every process that is new or changed, and finds pools that no rule names.
    pub fn classify(&mut self, now_ns: u64, source: &mut dyn Source, facts: &mut dyn FactReader) {
        if std::mem::take(&mut self.listing_wanted) {
            self.list(source);
        }
        for (key, record) in std::mem::take(&mut self.orphans) {
            if self.registry.worker(key).is_none() {
                source.untrack(key, Role::Worker);
            }
            self.schedules.release(record, source);
        }
        for (key, record) in self.registry.to_tell_again.drain(..) {
            source.tell_again(key, record);
        }
        self.tag_masters(source);
        self.look_for_vanished(now_ns, source);
        self.explain_ends(now_ns, source);
        self.look += 1;
        let mut queue = std::mem::take(&mut self.queue);
        let later =
            queue.extract_if(.., |pid| self.processes.by_pid(*pid).is_some_and(|p| p.look_due_ns > now_ns));
        self.queue.extend(later);
        if !queue.is_empty() {
            self.by_rules(&queue, now_ns, source, facts);
        }
        self.count_early_ends(now_ns);
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
            } else {
                let key = process.key;
                self.judge_master(key, now_ns, source, facts);
            }
        }
        self.forget_empty_pools(now_ns, source);
    }

    /// Ends workers of which nobody told how they ended, unless their records do.
    fn explain_ends(&mut self, now_ns: u64, source: &mut dyn Source) {
        for (key, reap) in std::mem::take(&mut self.unexplained) {
            let Some(worker) = self.registry.worker(key) else { continue };
            if let Some(exit) = worker.record.and_then(|record| source.recorded_exit(key, record)) {
                self.registry.exited(&exit, self.unix_minus_monotonic);
            }
            match reap {
                Some(reap) => {
                    if let Some(record) = self.registry.reaped(&reap, self.unix_minus_monotonic) {
                        self.schedules.release(record, source);
                    }
                }
                None => self.registry.end_unreported(key, None, now_ns, self.unix_minus_monotonic),
            }
        }
    }

    /// Tags masters anew: of pools that want to know something else, and those whose tags went with a thread.
    fn tag_masters(&mut self, source: &mut dyn Source) {
        if self.untagged_masters.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.untagged_masters) {
            if let Some(master) = self.masters.get(&key) {
                self.track(key, master.pool, Role::Master, source);
            }
        }
        let now_ns = monotonic_ns();
        for pool in self.registry.pools.values_mut() {
            pool.masters_tagged_ns = pool.masters_tagged_ns.min(now_ns);
        }
    }

    /// Tags workers anew that passes did not see, and ends those that must have ended.
    fn look_for_vanished(&mut self, now_ns: u64, source: &mut dyn Source) {
        for vanished in std::mem::take(&mut self.vanished) {
            let (key, pool, overdue) = match vanished {
                Vanished::Missed(key, pool) => (key, pool, false),
                Vanished::Overdue(key, pool) => (key, pool, true),
                Vanished::Left(key, record) => {
                    let cpu = record.and_then(|record| source.final_cpu(key, record));
                    if cpu.is_some() {
                        let reap = Reap { process: key, cpu, at_ns: now_ns };
                        if let Some(record) = self.registry.reaped(&reap, self.unix_minus_monotonic) {
                            self.schedules.release(record, source);
                        }
                    }
                    continue;
                }
                Vanished::Gone(key, record) => {
                    self.processes.remove(key);
                    if let Some(record) = record {
                        self.schedules.release(record, source);
                    }
                    continue;
                }
            };
            // It may have ended, moved or lost its pool since.
            if self.registry.worker(key).is_none_or(|w| w.pool != pool || w.ended()) {
                continue;
            }
            if overdue && !source.lives(key) {
                self.processes.remove(key);
                self.master_ended(key, now_ns);
                let reap = Reap { process: key, cpu: None, at_ns: now_ns };
                self.unexplained.push((key, Some(reap)));
                continue;
            }
            if overdue {
                self.registry.lives(key);
            }
            let record = self.track(key, pool, Role::Worker, source);
            if let Some(worker) = self.registry.worker_mut(key)
                && let Some(record) = record
                && let Some(old) = worker.record.replace(record).filter(|old| *old != record)
            {
                self.schedules.release(old, source);
            }
            if let Some(master) = self.masters.get(&key) {
                self.track(key, master.pool, Role::Master, source);
            }
        }
    }

    /// Has a process followed, as its pool wants it.
    fn track(&self, key: ProcessKey, pool: PoolId, role: Role, source: &mut dyn Source) -> SlotRecord {
        let unknown = Wishes { profile: Profile::None, ..Wishes::default() };
        let wishes = self.registry.pools.get(&pool).map_or(unknown, |pool| pool.wishes);
        source.set_wishes(pool, wishes);
        source.track(key, pool, role)
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
        self.end_displaced(monotonic_ns());
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
    pub(super) fn facts(
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
            // A worker that still has its master's name and program is no second master.
            let forks_for = master_of
                .and_then(|rule| self.config.matcher.rules()[rule].fixed_name())
                .filter(|name| verdict.as_ref().is_none_or(|verdict| verdict.pool != *name))
                .and_then(|name| self.registry.pool_named(name))
                .map(|pool| pool.id);
            let of_its_children = verdict
                .as_ref()
                .map(|v| v.pool.as_str().into())
                .filter(|name| parents.contains(&(key.pid, Arc::clone(name))));
            if let Some(pool) = forks_for {
                self.make_master(key, pool, source);
            } else if let Some(name) = self.configured_pool_of_master(key)
                && of_its_children != Some(name)
            {
                self.unmake_master(key, now_ns, source);
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
            let refused = Refused::Named(Arc::clone(&pool_name));
            let Some(pool) = self.pool_for(&pool_name, "config", interval_ns, now_ns, refused) else {
                continue;
            };
            if !self.is_configured(pool) {
                self.claim(pool, &pool_name, interval_ns, now_ns, source);
            }
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

    pub(super) fn is_configured(&self, id: PoolId) -> bool {
        self.registry.pools.get(&id).is_some_and(|pool| &*pool.origin == "config")
    }

    /// The name of the pool whose workers it forks, if that is one of the configuration.
    fn configured_pool_of_master(&self, key: ProcessKey) -> Option<Arc<str>> {
        let pool = self.registry.pools.get(&self.masters.get(&key)?.pool)?;
        (&*pool.origin == "config").then(|| Arc::clone(&pool.name))
    }

    /// A rule has named a pool that was found. Who is in it and matches no such rule leaves it.
    fn claim(&mut self, id: PoolId, name: &Arc<str>, interval_ns: u64, now_ns: u64, source: &mut dyn Source) {
        let Some(pool) = self.registry.pools.get_mut(&id) else { return };
        pool.claimed_by_rule();
        pool.interval_ns = interval_ns;
        self.apply_rule(id);
        let Some(pool) = self.registry.pools.get(&id) else { return };
        let matches =
            |p: &ProcessTable, key| p.get(key).is_some_and(|process| process.matched.as_ref() == Some(name));
        let strangers: Vec<ProcessKey> =
            pool.holders().map(|(_, key)| key).filter(|key| !matches(&self.processes, *key)).collect();
        let masters: Vec<ProcessKey> =
            pool.masters.iter().copied().filter(|key| !matches(&self.processes, *key)).collect();
        for key in strangers {
            self.dismiss(key, now_ns, source);
        }
        for key in masters {
            self.unmake_master(key, now_ns, source);
        }
    }

    /// The pool of this name, made if there is room; otherwise what is `refused` is counted, once.
    pub(super) fn pool_for(
        &mut self,
        name: &Arc<str>,
        origin: &str,
        interval_ns: u64,
        now_ns: u64,
        refused: Refused,
    ) -> Option<PoolId> {
        if let Some(pool) = self.registry.pool_named(name) {
            return Some(pool.id);
        }
        if self.registry.pools.len() >= self.config.max_pools {
            // Beyond what is remembered nothing is counted: rather too few than one again and again.
            if self.refused_pools.len() < MAX_REFUSED && self.refused_pools.insert(refused) {
                self.refused_pools_total += 1;
            }
            return None;
        }
        let id = self.registry.add_pool(Arc::clone(name), origin.into(), interval_ns, now_ns);
        self.apply_rule(id);
        Some(id)
    }

    pub(super) fn make_master(&mut self, key: ProcessKey, pool_id: PoolId, source: &mut dyn Source) {
        if self.masters.get(&key).is_some_and(|master| master.pool == pool_id) {
            return;
        }
        let Some(pool) = self.registry.pools.get_mut(&pool_id) else { return };
        pool.masters.push(key);
        pool.empty_since_ns = None;
        let master =
            Master { pool: pool_id, program: None, executed: false, threaded: false, seen: true, missed: 0 };
        if let Some(old) = self.masters.insert(key, master)
            && let Some(old) = self.registry.pools.get_mut(&old.pool)
        {
            old.masters.retain(|master| *master != key);
        }
        self.track(key, pool_id, Role::Master, source);
    }

    /// It goes on living, and forks no workers any more.
    pub(super) fn unmake_master(&mut self, key: ProcessKey, now_ns: u64, source: &mut dyn Source) {
        source.untrack(key, Role::Master);
        self.master_ended(key, now_ns);
        // It may be found to be the master of others.
        self.looked_at.remove(&key);
        self.processes.topology_changed = true;
    }

    /// Makes a process a worker of a pool, wherever it was before.
    pub(super) fn place(
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
        let record = self.track(key, pool, Role::Worker, source);
        let started_unix_ns = match forked_at_ns {
            Some(at_ns) => self.unix_from_monotonic(at_ns),
            None => self.started_unix_ns(key),
        };
        let now_unix_ns = self.unix_from_monotonic(now_ns);
        let arrival = Arrival { key, parent, comm, app, record, forked_at_ns, started_unix_ns, now_unix_ns };
        self.registry.join(pool, arrival);
    }

    /// A worker that is none after all.
    pub(super) fn dismiss(&mut self, key: ProcessKey, now_ns: u64, source: &mut dyn Source) {
        if self.registry.worker(key).is_none_or(|w| w.ended()) {
            return;
        }
        source.untrack(key, Role::Worker);
        // What it was taken for may have hidden what it is: a master of its own, for one.
        self.processes.topology_changed = true;
        if let Some(record) = self.registry.leave(key, now_ns) {
            self.schedules.release(record, source);
        }
    }
}
