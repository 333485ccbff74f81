//! Pools that no rule names: masters that are recognized or have several children of one program, and which of their
//! children are workers.

use std::collections::HashMap;
use std::sync::Arc;

use super::classify::SETTLED_NS;
use super::{Aggregate, Refused, as_facts};
use crate::input::{FactReader, Needs, ProgramFacts, Source};
use crate::units::{ByProcess, Pid, ProcessKey};
use crate::worker::pool::{Pool, PoolId};
use crate::worker::process::Process;
use crate::worker::recognize;

impl Aggregate {
    /// Zero configuration: a parent with two or more living children of the same program is a pool; a recognized
    /// master is one with its first child.
    pub(super) fn discover(&mut self, now_ns: u64, source: &mut dyn Source, reader: &mut dyn FactReader) {
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
            if let Some(master) = self.masters.get_mut(&key) {
                master.program = recognize::program_of(&own_facts);
            }
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

    fn forks_for(&self, key: ProcessKey, pool: PoolId) -> bool {
        self.masters.get(&key).is_some_and(|master| master.pool == pool)
    }

    /// A master that was found may have become something else: another program, or what a rule names. Called when what
    /// it runs has shown what it is, since servers that begin anew look like something else at first.
    pub(super) fn judge_master(
        &mut self,
        key: ProcessKey,
        now_ns: u64,
        source: &mut dyn Source,
        reader: &mut dyn FactReader,
    ) {
        let Some(master) = self.masters.get(&key) else { return };
        let (pool, executed) = (master.pool, master.executed);
        let Some(process) = self.processes.get(key).filter(|_| !self.is_configured(pool)) else { return };
        let (comm, claimed) = (process.comm, process.matched.is_some());
        if claimed {
            let children = self.registry.pools.get(&pool).into_iter().flat_map(Pool::holders);
            let children: Vec<ProcessKey> = children
                .map(|(_, child)| child)
                .filter(|child| self.processes.get(*child).is_some_and(|child| child.parent == key.pid))
                .collect();
            for child in children {
                self.dismiss(child, now_ns, source);
            }
            self.unmake_master(key, now_ns, source);
        }
        if claimed || !executed {
            return;
        }
        let Some(facts) = self.facts(key, Needs::PROGRAM, true, reader).filter(|f| f.exe.is_some()) else {
            return;
        };
        let own = as_facts(comm.as_bytes(), &facts);
        let known = self.registry.pools.get(&pool).and_then(|pool| pool.program);
        let recognized = recognize::master(&own).map(|recognized| recognized.program);
        let program = recognize::program_of(&own);
        match self.masters.get_mut(&key) {
            Some(master) if known.is_some() && recognized == known || program == master.program => {
                master.executed = false;
            }
            _ => self.unmake_master(key, now_ns, source),
        }
    }

    fn masters_known_program(&self, key: ProcessKey) -> bool {
        self.masters.get(&key).is_some_and(|master| self.pool_is_known_program(master.pool))
    }

    /// Living parents only: a server that daemonized was its parent's child, too.
    fn is_worker_of_known_program(&self, key: ProcessKey) -> bool {
        let Some(worker) = self.registry.worker(key).filter(|w| !w.ended()) else { return false };
        let parent = self.processes.get(key).and_then(|p| self.processes.by_pid(p.parent));
        self.pool_is_known_program(worker.pool)
            && parent.is_some_and(|parent| self.forks_for(parent.key, worker.pool))
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
        let parents_pool = parent.and_then(|p| self.masters.get(&p)).map(|master| master.pool);
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
        let refused = Refused::Of(master);
        let id = self.pool_for(&name, &origin, self.config.interval_ns, now_ns, refused)?;
        let (size, works) = recognized.as_ref().map_or((None, false), |r| self.size_of(master, r, reader));
        if let Some(pool) = self.registry.pools.get_mut(&id) {
            pool.program = recognized.as_ref().map(|r| r.program);
            pool.app = app.map(Into::into);
            if size.is_some() {
                pool.configured_size = size;
            }
        }
        self.apply_rule(id);
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
    pub(super) fn by_recognition(
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
                self.processes.by_pid(process.parent).and_then(|p| self.masters.get(&p.key)).map(|m| m.pool);
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
        if self.forks_for(key, pool_id) || self.masters_known_program(key) {
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
        let (program, app) = (pool.program, pool.app.clone());
        let facts_now = as_facts(comm.as_bytes(), &facts);
        let belongs = match program {
            Some(program) => match recognize::child_role(program, &facts_now) {
                recognize::Role::Worker { app: its } => Some(its.map(Arc::from).or(app)),
                recognize::Role::Helper if self.shows_its_parents_title(key, &facts, now_ns, reader) => {
                    return;
                }
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

    /// It has not said yet what it is: its title is written soon after the fork. The parent's is read again, because a
    /// master may write another one whenever it likes.
    fn shows_its_parents_title(
        &mut self,
        key: ProcessKey,
        facts: &ProgramFacts,
        now_ns: u64,
        reader: &mut dyn FactReader,
    ) -> bool {
        let Some(process) = self.processes.get(key) else { return false };
        if now_ns.saturating_sub(process.changed_at_ns) >= SETTLED_NS {
            return false;
        }
        let Some(parent) = self.processes.by_pid(process.parent).map(|p| p.key) else { return false };
        let parents = self.facts(parent, Needs::PROGRAM, true, reader);
        parents.is_some_and(|parents| parents.cmdline == facts.cmdline)
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
}
