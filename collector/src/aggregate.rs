//! The one owner of registry and process table: applies facts in order, decides who belongs where, publishes
//! snapshots.
//!
//! Membership is decided apart from the facts, in [`Aggregate::classify`], because it may need to read `/proc`: events
//! only queue a process for it, so a fork storm costs no read at all. What a fork probe has tagged is a worker at
//! once, until a look shows otherwise.

mod accept_queues;
mod cgroups;
mod classify;
mod discover;
mod early_ends;

use std::collections::HashSet;
use std::sync::Arc;

use self::accept_queues::AcceptQueues;
use self::cgroups::Cgroups;
use self::early_ends::EarlyEnd;
use crate::governor::Governor;
use crate::histogram::Scratch;
use crate::input::{
    FactReader, Input, Profile, ProgramFacts, Reap, Requests, Role, Sample, ScheduleReading, Source, Wishes,
};
use crate::snapshot::{self, Own, Snapshot};
use crate::units::{
    ByProcess, CpuTime, HostFacts, NANOS_PER_SECOND, Pid, ProcessKey, Processes, boottime_ns, monotonic_ns,
    unix_ns,
};
use crate::worker::flags::Limits;
use crate::worker::matcher::{Facts, Matcher, Rule, Work};
use crate::worker::pool::{Pool, PoolId};
use crate::worker::process::ProcessTable;
use crate::worker::recognize;
use crate::worker::registry::{Arrival, Registry, Shown, Vanished};
use crate::worker::schedule::{Following, Schedules, Watched};

/// Refused pools that are remembered, so that each is counted once. Names can be as many as there are command lines.
const MAX_REFUSED: usize = 4096;

/// Workers that became stuck and are looked at in one pass; the others are in the next.
const LOOKS_AT_STUCK: usize = 8;

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
    /// What is watched of the scheduler, where a rule does not say.
    pub profile: Profile,
    /// How long a worker may be in one state, where a rule does not say.
    pub flags: Limits,
    /// Pools at most.
    pub max_pools: usize,
    /// Workers per pool with series of their own.
    pub max_listed_workers: usize,
    /// Death certificates kept, of all pools together.
    pub exits_kept: usize,
}

impl Config {
    /// The rule that a pool is of; `None` for one that was found.
    fn rule_of(&self, pool: &Pool) -> Option<&Rule> {
        self.matcher.rule_of(&pool.name).filter(|_| &*pool.origin == "config")
    }
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
    masters: ByProcess<ProcessKey, Master>,
    /// Latest readings of masters.
    master_readings: ByProcess<ProcessKey, Sample>,
    /// Programs of parents that were looked at for recognition, so that each is read once.
    looked_at: Processes<ProcessKey>,
    /// Where the time of workers went.
    schedules: Schedules,
    /// What the control groups of pools account.
    cgroups: Cgroups,
    /// Where pools listen.
    accept_queues: AcceptQueues,
    /// Processes that have ended since the last round of readings.
    ended: Vec<ProcessKey>,
    /// When the last round of readings was over, `CLOCK_MONOTONIC` ns; 0 before the first.
    readings_ended_ns: u64,
    governor: Governor,
    /// What the last round of readings let pools know.
    scheduler_ceiling: Profile,
    scratch: Scratch,
    started_unix_ns: u64,
    unix_minus_monotonic: i64,
    boot_unix_ns: u64,
    /// `listing` when a full listing is wanted: at start and after losses.
    listing_wanted: bool,
    lost_events: u64,
    /// What there was no room for among the pools; up to [`MAX_REFUSED`].
    refused_pools: HashSet<Refused>,
    refused_pools_total: u64,
    vanished: Vec<Vanished>,
    /// Workers that ended without a word of how, and what was told of their leaving the kernel.
    unexplained: Vec<(ProcessKey, Option<Reap>)>,
    /// Masters whose tag went with a thread, or that a pass did not see.
    untagged_masters: Vec<ProcessKey>,
    /// Processes that a fork probe tagged for a pool that was dropped meanwhile, with their records.
    orphans: Vec<(ProcessKey, u32)>,
    early_ends: Vec<EarlyEnd>,
}

/// A process that forks the workers of a pool.
#[derive(Debug)]
struct Master {
    pool: PoolId,
    /// What it ran when it was found; `None` if a rule names it.
    program: Option<Vec<u8>>,
    /// It has executed a program since.
    executed: bool,
    /// It has or had more than one thread.
    threaded: bool,
    /// In the pass that runs, or ran last.
    seen: bool,
    /// Passes in a row that did not see it.
    missed: u32,
}

/// A pool that there was no room for.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Refused {
    /// Of a rule.
    Named(Arc<str>),
    /// Of this master.
    Of(ProcessKey),
}

impl Aggregate {
    /// Knows nothing yet; the first [`Aggregate::classify`] lists all processes.
    pub fn new(config: Config, host: HostFacts, governor: Governor) -> Self {
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
            schedules: Schedules::default(),
            cgroups: Cgroups::default(),
            accept_queues: AcceptQueues::default(),
            ended: Vec::new(),
            readings_ended_ns: 0,
            governor,
            scheduler_ceiling: Profile::None,
            scratch: Scratch::new(),
            started_unix_ns: unix_ns(),
            unix_minus_monotonic: 0,
            boot_unix_ns: 0,
            listing_wanted: true,
            lost_events: 0,
            refused_pools: HashSet::new(),
            refused_pools_total: 0,
            vanished: Vec::new(),
            unexplained: Vec::new(),
            untagged_masters: Vec::new(),
            orphans: Vec::new(),
            early_ends: Vec::new(),
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
                pool.claimed_by_rule();
                pool.configured_size = size;
                pool.interval_ns = interval_ns;
            }
            self.apply_rule(id);
        }
    }

    /// Gives a pool what its rule, or the default, says about watching the scheduler and measuring work. If
    /// something else is to be watched than before, the tags of its processes are set right.
    fn apply_rule(&mut self, id: PoolId) {
        let Some(pool) = self.registry.pools.get_mut(&id) else { return };
        let rule = self.config.rule_of(pool);
        let in_runs = pool.runs.is_some();
        pool.measure(rule.and_then(|rule| rule.work), monotonic_ns(), unix_ns());
        let in_runs_changes = in_runs != pool.runs.is_some();
        let idle_in = pool.program.and_then(recognize::idle_in).unwrap_or_default();
        let wishes = Wishes {
            profile: rule.and_then(|rule| rule.profile).unwrap_or(self.config.profile),
            idle_in: rule.and_then(|rule| rule.idle_in).unwrap_or(idle_in),
            requests: match rule.and_then(|rule| rule.work) {
                Some(Work::Runs | Work::Spans) => Requests::None,
                Some(Work::Requests) | None if rule.is_some_and(|rule| !rule.http_status) => Requests::Timed,
                Some(Work::Requests) | None => Requests::WithStatus,
            },
        };
        let limits = rule.map_or_else(Limits::default, |rule| rule.flags);
        pool.limits = Limits {
            stuck_after_ns: limits.stuck_after_ns.or(self.config.flags.stuck_after_ns),
            idle_ttl_ns: limits.idle_ttl_ns.or(self.config.flags.idle_ttl_ns),
        };
        let before = std::mem::replace(&mut pool.wishes, wishes);
        let workers: Vec<ProcessKey> = pool.holders().map(|(_, key)| key).collect();
        if before != wishes {
            self.vanished.extend(workers.iter().map(|key| Vanished::Missed(*key, id)));
            self.untagged_masters.extend(&pool.masters);
            if !pool.masters.is_empty() {
                pool.masters_tagged_ns = u64::MAX;
            }
        }
        if before.idle_in != wishes.idle_in {
            self.schedules.forget_when_ready(id);
        }
        if in_runs_changes {
            // Their states are others at once, also of those that do not move.
            let records = workers.iter().map(|key| (*key, self.registry.worker(*key).and_then(|w| w.record)));
            let records: Vec<_> = records.collect();
            self.registry.to_tell_again.extend(records);
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
                    self.config.matcher.rule_of(&pool.name).is_none()
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
            pool.interval_ns = self
                .config
                .rule_of(pool)
                .and_then(|rule| rule.interval_ns)
                .unwrap_or(self.config.interval_ns);
            // The turn that was set lies in the old interval.
            pool.due_ns = 0;
        }
        let pools: Vec<PoolId> = self.registry.pools.keys().copied().collect();
        for id in pools {
            self.apply_rule(id);
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
        source.forget_pool(id);
        let masters: Vec<ProcessKey> =
            self.masters.iter().filter(|(_, master)| master.pool == id).map(|(k, _)| *k).collect();
        for key in masters {
            self.masters.remove(&key);
            self.master_readings.remove(&key);
            source.untrack(key, Role::Master);
        }
        for (key, record) in self.registry.remove_pool(id) {
            source.untrack(key, Role::Worker);
            if let Some(record) = record {
                self.schedules.release(record, source);
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

    /// Reads where the time of the workers went that have moved, or ended, since the last time.
    pub fn read_schedules(&mut self, source: &mut dyn Source) {
        self.schedules.retain_pools(|id| self.registry.pools.contains_key(&id));
        let wanted = |pool: &Pool| pool.living() > 0 || !pool.masters.is_empty();
        let ceiling =
            self.registry.pools.values().filter(|pool| wanted(pool)).map(|pool| pool.wishes.profile).max();
        let cost_ns = source.probe_cost_ns();
        if let Some(cost_ns) = cost_ns {
            self.governor.observe(monotonic_ns(), cost_ns);
        }
        let ceiling = ceiling.unwrap_or(Profile::None).min(self.governor.ceiling());
        let requests = self.registry.pools.values().any(|pool| {
            wanted(pool) && pool.wishes.profile > Profile::None && pool.wishes.requests != Requests::None
        });
        let follows_requests = source.limit_profiles(ceiling, requests);
        if cost_ns.is_some() {
            for pool in self.registry.pools.values() {
                let work = Watched {
                    in_runs: pool.runs.is_some(),
                    requests: match pool.wishes.requests {
                        Requests::None => Following::Unwanted,
                        _ if follows_requests => Following::Followed,
                        _ => Following::Wanted,
                    },
                };
                self.schedules.watch(pool.id, pool.wishes.profile, ceiling, work, monotonic_ns());
            }
        }
        self.note_unwatched(if cost_ns.is_some() { ceiling } else { Profile::None });
        // Once more after it was detached: what came since the last reading.
        let before = std::mem::replace(&mut self.scheduler_ceiling, ceiling);
        if ceiling.max(before) == Profile::None {
            self.ended.clear();
            return;
        }
        // Who has ended adds no more, and it may be long before it is reaped.
        let records = self.ended.drain(..).filter_map(|key| self.registry.worker(key)?.record);
        let records: Vec<u32> = records.collect();
        let (registry, unix_minus_monotonic) = (&mut self.registry, self.unix_minus_monotonic);
        let mut tell = |reading: &ScheduleReading| registry.worked(reading, unix_minus_monotonic);
        self.schedules.read(records.into_iter(), source, &mut tell);
        source.has_tags_to_renew(&mut |id| {
            let pool = self.registry.pools.get(&id);
            self.untagged_masters.extend(pool.iter().flat_map(|pool| &pool.masters));
        });
    }

    /// Reads where the time of requests went between two rounds of readings.
    pub fn read_waterfalls(&mut self, source: &mut dyn Source) {
        self.schedules.read_waterfalls(source);
    }

    /// Gives flags to workers that work or wait for too long, and looks what those do that became stuck.
    pub fn flag(&mut self, now_ns: u64, source: &mut dyn Source, reader: &mut dyn FactReader) {
        let stuck = self.registry.flag(now_ns);
        for key in stuck.into_iter().take(LOOKS_AT_STUCK) {
            let Some(mut doing) = reader.doing(key) else { continue };
            for (tid, stack) in source.kernel_stacks(key.pid) {
                if let Some(thread) = doing.threads.iter_mut().find(|thread| thread.tid == tid) {
                    thread.kernel_stack = stack;
                }
            }
            self.registry.found_doing(key, doing);
        }
    }

    /// Pools whose scheduler was watched, and is not with this ceiling: nobody knows any more who works.
    fn note_unwatched(&mut self, ceiling: Profile) {
        let mut unwatched = Vec::new();
        for pool in self.registry.pools.values_mut() {
            let watched = pool.wishes.profile.min(ceiling) > Profile::None;
            if std::mem::replace(&mut pool.watched, watched) && !watched {
                unwatched.push(pool.id);
            }
        }
        for id in unwatched {
            self.registry.unwatched(id, unix_ns());
        }
    }

    /// Takes the last figures of a record that is no worker's any more, and gives it back to the source.
    pub fn release(&mut self, record: u32, source: &mut dyn Source) {
        self.schedules.release(record, source);
    }

    /// Applies one fact. Records that are free again go to `release`.
    pub fn apply(&mut self, input: Input, release: &mut Vec<u32>) {
        match input {
            Input::Fork(fork) => {
                let is_new = self.processes.forked(fork.child, fork.parent, fork.comm, fork.at_ns);
                self.end_displaced(fork.at_ns);
                // Found by a listing before its event arrived: it is not counted as found, but as forked.
                if let Some(process) =
                    self.processes.by_pid_mut(fork.child.pid).filter(|p| p.key == fork.child)
                {
                    process.fork_seen = true;
                    process.forked_at_ns = Some(fork.at_ns);
                }
                let pool = fork.pool.and_then(|id| self.registry.pools.get(&id));
                match pool.map(|pool| (pool.id, pool.masters_tagged_ns)) {
                    Some((pool, masters_tagged_ns)) => {
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
                        } else if fork.at_ns <= self.readings_ended_ns {
                            // It may have been met when nobody knew it.
                            self.registry.to_tell_again.push((fork.child, fork.record));
                        }
                        if fork.at_ns <= masters_tagged_ns {
                            self.vanished.push(Vanished::Missed(fork.child, pool));
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
                if let Some(master) = self.masters.get_mut(&exec.process) {
                    master.executed = true;
                    if exec.by_thread {
                        // The kernel's tag went with the old main thread, and its children are to be tagged, too.
                        self.untagged_masters.push(exec.process);
                    }
                }
                if exec.by_thread
                    && let Some(worker) = self.registry.worker(exec.process)
                {
                    // The programs have tagged it anew if it is followed, by what they knew of its thread.
                    self.vanished.push(Vanished::Missed(exec.process, worker.pool));
                }
            }
            Input::Rename(rename) => {
                self.processes.renamed(rename.process, rename.comm);
                let now = unix_ns();
                self.registry.renamed(rename.process, rename.comm, false, now);
                self.enqueue(rename.process.pid);
            }
            Input::Exit(exit) => {
                self.ended.push(exit.process);
                if let Some(cpu) = exit.cpu {
                    self.master_used(exit.process, cpu);
                }
                self.registry.exited(&exit, self.unix_minus_monotonic);
                self.keep_early_end(&exit);
                self.processes.remove(exit.process);
                self.looked_at.remove(&exit.process);
                self.master_ended(exit.process, exit.at_ns);
            }
            Input::Reap(reap) => {
                if self.registry.worker(reap.process).is_some_and(|w| !w.ended() && w.record.is_some()) {
                    // Its exit was lost, but its record has it; that is looked up where the source can be asked.
                    self.unexplained.push((reap.process, Some(reap)));
                } else {
                    release.extend(self.registry.reaped(&reap, self.unix_minus_monotonic));
                }
                self.processes.remove(reap.process);
                self.master_ended(reap.process, reap.at_ns);
            }
            Input::Sample(sample) => {
                let is_master = self.master_sampled(&sample);
                let now = self.unix_from_monotonic(sample.at_ns);
                if !self.registry.sampled(&sample, now) && !is_master {
                    self.end_predecessor(sample.process, sample.at_ns);
                }
            }
            Input::Unchanged { process, record, at_ns } => {
                let now = self.unix_from_monotonic(at_ns);
                if self.registry.unchanged(process, record, at_ns, now) {
                    // A master that is a worker, too, is looked after as a worker.
                } else if let Some(master) = self.masters.get_mut(&process) {
                    master.seen = true;
                } else {
                    self.end_predecessor(process, at_ns);
                }
            }
            Input::PassComplete { started_ns } => {
                let vanished = self.registry.pass_complete(started_ns, self.unix_minus_monotonic);
                self.vanished.extend(vanished);
                self.miss_masters();
            }
            Input::Lost { events } => {
                self.lost_events += events;
                self.listing_wanted = true;
            }
        }
    }

    /// Adds what a master has used since it was last read to what its pool's masters have. What it used
    /// before it was first read is nobody's, and if it is a worker of its own pool, too, it counts as one.
    fn master_used(&mut self, key: ProcessKey, cpu: CpuTime) {
        if let Some(master) = self.masters.get(&key)
            && self.registry.worker(key).is_none_or(|worker| worker.pool != master.pool)
            && let Some(before) = self.master_readings.get(&key)
            && let Some(pool) = self.registry.pools.get_mut(&master.pool)
        {
            pool.masters_cpu_ns += cpu.total_ns().saturating_sub(before.cpu.total_ns());
        }
    }

    /// Takes the reading of a master; false if it is none.
    fn master_sampled(&mut self, sample: &Sample) -> bool {
        let Some(master) = self.masters.get_mut(&sample.process) else { return false };
        master.seen = true;
        master.threaded |= sample.threads > 1;
        let mut reading = *sample;
        if let Some(before) = self.master_readings.get(&sample.process) {
            // Never back, as for workers: a fall looks like a new process to whoever reads a counter.
            reading.cpu = if reading.cpu.total_ns() < before.cpu.total_ns() {
                before.cpu
            } else {
                reading.cpu.not_below(before.cpu)
            };
        }
        self.master_used(sample.process, reading.cpu);
        self.master_readings.insert(sample.process, reading);
        true
    }

    /// A pass is over. Masters that it did not see are to be tagged again, after one pass, two, four …
    fn miss_masters(&mut self) {
        for (key, master) in &mut self.masters {
            let as_worker = self.registry.worker(*key).is_some_and(|worker| !worker.ended());
            master.missed = if master.seen || as_worker { 0 } else { master.missed.saturating_add(1) };
            if master.missed.is_power_of_two() {
                self.untagged_masters.push(*key);
            }
        }
    }

    /// Whoever had the pid of a process before it has ended.
    fn end_predecessor(&mut self, process: ProcessKey, at_ns: u64) {
        let known = self.processes.by_pid(process.pid).map(|known| known.key);
        if let Some(before) = known.filter(|known| known.start_ns < process.start_ns) {
            self.processes.remove(before);
            self.processes.displaced.push(before);
            self.end_displaced(at_ns);
        }
    }

    /// Processes whose pid others have now: they have ended, whatever was told.
    fn end_displaced(&mut self, at_ns: u64) {
        for key in std::mem::take(&mut self.processes.displaced) {
            self.looked_at.remove(&key);
            self.master_ended(key, at_ns);
            if self.registry.worker(key).is_some_and(|worker| !worker.ended()) {
                self.unexplained.push((key, None));
            }
        }
    }

    fn master_ended(&mut self, key: ProcessKey, at_ns: u64) {
        self.refused_pools.remove(&Refused::Of(key));
        if let Some(master) = self.masters.remove(&key)
            && let Some(pool) = self.registry.pools.get_mut(&master.pool)
        {
            pool.masters.retain(|master| *master != key);
            pool.note_emptiness(at_ns);
        }
        self.master_readings.remove(&key);
    }

    /// The round of readings is over. Who was forked before this moment can have been read in it.
    pub fn pass_ends(&mut self, now_ns: u64) {
        self.readings_ended_ns = now_ns;
    }

    /// Marks the pools whose turn it is and returns when the next turn comes, `CLOCK_MONOTONIC` ns.
    pub fn pass_begins(&mut self, now_ns: u64) -> u64 {
        self.set_clocks();
        self.registry.pass_begins();
        for master in self.masters.values_mut() {
            master.seen = false;
        }
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

    /// When [`Aggregate::classify`] has something to do that it knows of, `CLOCK_MONOTONIC` ns; 0 for at once.
    pub fn due_ns(&self) -> u64 {
        if self.listing_wanted
            || !self.orphans.is_empty()
            || !self.untagged_masters.is_empty()
            || !self.vanished.is_empty()
            || !self.unexplained.is_empty()
        {
            return 0;
        }
        let looks = self.queue.iter().filter_map(|pid| Some(self.processes.by_pid(*pid)?.look_due_ns)).min();
        let discovery =
            (self.config.zero_config && self.processes.topology_changed).then_some(self.discovery_due_ns);
        looks.into_iter().chain(discovery).min().unwrap_or(u64::MAX)
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
    fn losses(&self) -> [(&'static str, u64); 8] {
        [
            ("event_lost", self.lost_events),
            ("exit_unreported", self.registry.unreported_ends),
            ("final_cpu_unreported", self.registry.unreported_reaps),
            ("reading_went_backwards", self.registry.backward_readings),
            ("process_table_full", self.processes.refused),
            ("pool_limit", self.refused_pools_total),
            ("accept_queue_unread", self.accept_queues.unread),
            ("listening_address_limit", self.accept_queues.refused_total),
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
        own.scheduler = self.governor.state();
        let mut order: Vec<PoolId> = self.registry.pools.keys().copied().collect();
        order.sort_by(|a, b| self.registry.pools[a].name.cmp(&self.registry.pools[b].name));
        let mut pools = Vec::with_capacity(order.len());
        for id in order {
            pools.extend(self.pool_view(id, now_ns));
        }
        Snapshot {
            at_unix_ns: self.unix_from_monotonic(now_ns),
            schedules: self.schedules.workers().to_vec(),
            schedules_at_ns: self.schedules.at_ns(),
            unix_minus_monotonic: self.unix_minus_monotonic,
            started_unix_ns: self.started_unix_ns,
            source,
            features: Arc::clone(features),
            pools,
            exits: self.registry.exits(),
            exits_total: self.registry.exits_total(),
            own,
        }
    }

    fn pool_view(&mut self, id: PoolId, now_ns: u64) -> Option<snapshot::Pool> {
        let defunct = match self.registry.pools.get(&id) {
            Some(pool) if pool.unreaped > 0 => self.registry.defunct(id),
            _ => Vec::new(),
        };
        let pool = self.registry.pools.get_mut(&id)?;
        for windowed in [&mut pool.cpu_utilization, &mut pool.worker_rss, &mut pool.lifetime] {
            windowed.advance(now_ns);
        }
        let runs = pool.runs.as_mut().map(|runs| runs.view(now_ns));
        let Shown { workers, states, mut flags, rss } =
            self.registry.view(id, self.config.max_listed_workers);
        flags.defunct = u32::try_from(defunct.len()).unwrap_or(u32::MAX);
        let pool = self.registry.pools.get(&id)?;
        let living = pool.living();
        let masters = pool.masters.iter().filter_map(|key| self.master_view(*key)).collect();
        let size = pool.configured_size.unwrap_or(living);
        let schedule = self.schedules.pool_view(id, pool.cpu, size, &mut self.scratch);
        Some(snapshot::Pool {
            name: Arc::clone(&pool.name),
            number: id,
            origin: Arc::clone(&pool.origin),
            masters,
            configured_size: pool.configured_size,
            size,
            states,
            work_known: pool.watched,
            flags,
            flagged: pool.flagged,
            limits: pool.limits,
            defunct,
            awaiting_final_cpu: pool.unreaped,
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
            schedule,
            runs,
            accept_queues: self.accept_queues.of(id),
            unattributed_cgroup_cpu_ns: self.cgroups.unattributed_ns(id),
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
