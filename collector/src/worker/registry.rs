//! All pools and workers: applies facts about workers, keeps totals exact and writes death certificates.
//!
//! Does no IO and decides no membership: who belongs to which pool is the aggregator's question. A worker leaves its
//! slot when its last thread ends, so that its successor can have it, but stays here until the kernel has let go of
//! it: only then is its CPU final.

mod shown;
mod working;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::shown::Shown;
use super::certificates::Certificates;
use super::flags::Flag;
use super::pool::{Pool, PoolId};
use super::rest::{Rest, Resting};
use super::runs::{Outcome, Run};
use super::state::{self, Fact};
use crate::input::{Comm, Exit, ExitStatus, Reap, Sample, SlotRecord, TaskState};
use crate::snapshot::{DeathCertificate, Flagged, WorkerState};
use crate::units::{ByProcess, CpuTime, NANOS_PER_SECOND, Pid, ProcessKey};

/// A worker that no pass has seen for so long is gone, whatever events said. Long, because the kernel tells of the end
/// of a process only when nobody refers to it any more, which on a busy host can take a second.
const MISSED_NS: u64 = 10 * NANOS_PER_SECOND;

/// Shorter intervals say too little about a share of a CPU: the kernel accounts running tasks by its tick.
const SHORTEST_INTERVAL_NS: u64 = 20_000_000;

/// One worker, alive or not yet reaped.
#[derive(Debug)]
pub struct Worker {
    /// Identity.
    pub key: ProcessKey,
    /// Pool.
    pub pool: PoolId,
    /// Slot in the pool.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// Kernel record.
    pub record: SlotRecord,
    /// Parent.
    pub parent: Pid,
    /// Name.
    pub comm: Comm,
    /// The same as text, kept because it is shown far more often than it changes.
    pub comm_text: Arc<str>,
    /// What it serves.
    pub app: Option<Arc<str>>,
    /// State.
    pub state: WorkerState,
    /// The kernel tells when it waits for work, so that its state is known.
    watched: bool,
    /// It has been in it for too long.
    flag: Option<Flagged>,
    /// The flag that it got last, and `since_ns` of the state that it got it in.
    flagged_in: Option<(Flag, u64)>,
    /// When it entered the state, as the kernel tells it, `CLOCK_MONOTONIC` ns; 0 of a state that it does not tell of. What
    /// tells one stay in a state from another: the same moment by the clock of the day is another at each reading, by
    /// some ns, or by as much as somebody sets it.
    since_ns: u64,
    /// The same, Unix ns.
    pub since_unix_ns: u64,
    /// When it started, Unix ns.
    pub started_unix_ns: u64,
    /// `CLOCK_MONOTONIC` ns of its fork, where seen; exact, while the start in its key is in ticks.
    pub forked_at_ns: Option<u64>,
    /// Latest reading.
    pub last: Option<Sample>,
    /// A later one that came when it was not the pool's turn: the source tells figures once.
    skipped: Option<Box<Sample>>,
    /// CPU as last accounted to the pool, and when it was read.
    baseline: Option<(CpuTime, u64)>,
    /// The latest reading was below the one before.
    behind: bool,
    /// It has or had more than one thread.
    threaded: bool,
    /// Share of a CPU in the last interval.
    pub utilization: Option<f64>,
    /// Number of its death certificate.
    certificate: Option<u64>,
    /// `None` if the last pass saw it.
    missed: Option<Missed>,
    seen_in_pass: u64,
}

/// Passes in a row that did not see a worker.
#[derive(Clone, Copy, Debug)]
struct Missed {
    /// Begin of the first, `CLOCK_MONOTONIC` ns.
    since_ns: u64,
    /// How many.
    passes: u32,
}

/// Everything a worker needs to begin.
#[derive(Debug)]
pub struct Arrival {
    /// Identity.
    pub key: ProcessKey,
    /// Parent.
    pub parent: Pid,
    /// Name.
    pub comm: Comm,
    /// What it serves.
    pub app: Option<Arc<str>>,
    /// Kernel record.
    pub record: SlotRecord,
    /// `CLOCK_MONOTONIC` ns of its fork; `None` for one that lived before we looked.
    pub forked_at_ns: Option<u64>,
    /// When it started, Unix ns.
    pub started_unix_ns: u64,
    /// Now, Unix ns.
    pub now_unix_ns: u64,
}

/// What became of a worker that a pass did not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vanished {
    /// Perhaps the kernel lost its tag. Said after one pass, two, four …
    Missed(ProcessKey, PoolId),
    /// Not seen for so long that it must have ended, if it cannot be shown to live.
    Overdue(ProcessKey, PoolId),
    /// It had ended, and is no longer among the living or the defunct: its final figures are where they will ever be.
    Left(ProcessKey, SlotRecord),
    /// The same so long ago that nobody can be waited for; taken off the books.
    Gone(ProcessKey, SlotRecord),
}

/// Pools, workers and the dead.
#[derive(Debug)]
pub struct Registry {
    /// By number, which is the order in which they came.
    pub pools: BTreeMap<PoolId, Pool>,
    /// In boxes, because a table is half empty and a worker is large.
    workers: ByProcess<ProcessKey, Box<Worker>>,
    next_pool: PoolId,
    exits: Certificates,
    exits_total: u64,
    pass: u64,
    /// Workers that this pass has seen.
    seen: usize,
    rest: Rest,
    /// Workers whose source is to tell of them again: what it has told may have come before they were known.
    pub to_tell_again: Vec<(ProcessKey, SlotRecord)>,
    /// The text of the last name that was turned into text: forks come in series.
    last_comm: (Comm, Arc<str>),
    /// Readings below the previous one, of which the figures that fell were left out.
    pub backward_readings: u64,
    /// Ends that no event told.
    pub unreported_ends: u64,
    /// Processes that left the kernel without their final figures.
    pub unreported_reaps: u64,
}

impl Registry {
    /// Empty; keeps `exits_kept` certificates at most.
    pub fn new(exits_kept: usize) -> Self {
        Self {
            pools: BTreeMap::new(),
            workers: ByProcess::default(),
            next_pool: 1,
            exits: Certificates::new(exits_kept),
            exits_total: 0,
            pass: 0,
            seen: 0,
            rest: Rest::default(),
            to_tell_again: Vec::new(),
            last_comm: (Comm::default(), Arc::from("")),
            backward_readings: 0,
            unreported_ends: 0,
            unreported_reaps: 0,
        }
    }

    /// Changes how many certificates are kept.
    pub fn keep_exits(&mut self, exits_kept: usize) {
        self.exits.keep(exits_kept);
    }

    /// Adds a pool and returns its number.
    pub fn add_pool(&mut self, name: Arc<str>, origin: Arc<str>, interval_ns: u64, now_ns: u64) -> PoolId {
        let id = self.next_pool;
        self.next_pool += 1;
        self.pools.insert(id, Pool::new(id, name, origin, interval_ns, now_ns));
        id
    }

    /// The pool with this name.
    pub fn pool_named(&self, name: &str) -> Option<&Pool> {
        self.pools.values().find(|pool| &*pool.name == name)
    }

    /// A worker by identity.
    pub fn worker(&self, key: ProcessKey) -> Option<&Worker> {
        self.workers.get(&key).map(Box::as_ref)
    }

    /// All workers, those that ended and are not reaped included.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values().map(Box::as_ref)
    }

    /// For what is kept beside the life cycle (name, app, record).
    pub fn worker_mut(&mut self, key: ProcessKey) -> Option<&mut Worker> {
        let worker = self.workers.get_mut(&key)?;
        worker.stir(&mut self.rest);
        if let Some(pool) = self.pools.get_mut(&worker.pool) {
            pool.touch(worker.slot);
        }
        Some(worker)
    }

    /// Certificates that are kept, newest first.
    pub fn exits(&self) -> Vec<Arc<DeathCertificate>> {
        // Sized before: holes hide from the iterator how many it will be.
        let mut exits = Vec::with_capacity(self.exits.len());
        exits.extend(self.exits.newest_first().cloned());
        exits
    }

    /// Deaths since start.
    pub fn exits_total(&self) -> u64 {
        self.exits_total
    }

    /// A name as text, invalid UTF-8 replaced.
    pub fn text(&mut self, comm: Comm) -> Arc<str> {
        if self.last_comm.0 != comm {
            self.last_comm = (comm, String::from_utf8_lossy(comm.as_bytes()).into());
        }
        Arc::clone(&self.last_comm.1)
    }

    /// Seats a worker. False when it has a seat already, or the pool does not exist.
    pub fn join(&mut self, pool_id: PoolId, arrival: Arrival) -> bool {
        if self.workers.contains_key(&arrival.key) || !self.pools.contains_key(&pool_id) {
            return false;
        }
        let comm_text = self.text(arrival.comm);
        let Some(pool) = self.pools.get_mut(&pool_id) else { return false };
        let (slot, generation) = pool.seat(arrival.key);
        if arrival.forked_at_ns.is_some() {
            pool.spawns += 1;
        }
        let state = if arrival.forked_at_ns.is_some() { WorkerState::Creating } else { WorkerState::Running };
        self.workers.insert(
            arrival.key,
            Box::new(Worker {
                key: arrival.key,
                pool: pool_id,
                slot,
                generation,
                record: arrival.record,
                parent: arrival.parent,
                comm: arrival.comm,
                comm_text,
                app: arrival.app,
                state,
                watched: false,
                flag: None,
                flagged_in: None,
                since_ns: 0,
                since_unix_ns: if state == WorkerState::Creating {
                    arrival.started_unix_ns
                } else {
                    arrival.now_unix_ns
                },
                started_unix_ns: arrival.started_unix_ns,
                forked_at_ns: arrival.forked_at_ns,
                last: None,
                skipped: None,
                // Born under our eyes: all it ever uses is the pool's.
                baseline: arrival.forked_at_ns.map(|at_ns| (CpuTime::default(), at_ns)),
                behind: false,
                threaded: false,
                utilization: None,
                certificate: None,
                missed: None,
                seen_in_pass: self.pass,
            }),
        );
        true
    }

    /// The fork of a worker was told after a listing had found it: it was born under our eyes after all. Returns the
    /// record that the fork gave to it if it has another one, to be given back.
    pub fn fork_told(&mut self, key: ProcessKey, record: SlotRecord, at_ns: u64) -> SlotRecord {
        let Some(worker) = self.workers.get_mut(&key) else { return record };
        if worker.forked_at_ns.is_none()
            && let Some(pool) = self.pools.get_mut(&worker.pool)
        {
            worker.forked_at_ns = Some(at_ns);
            pool.spawns += 1;
            if worker.baseline.is_none() {
                worker.baseline = Some((CpuTime::default(), at_ns));
            }
        }
        let own = worker.record.or(record);
        worker.record = own;
        record.filter(|_| record != own)
    }

    /// A living worker stops being one of this pool. Returns its record, to be given back.
    pub fn leave(&mut self, key: ProcessKey, now_ns: u64) -> SlotRecord {
        let mut worker = self.workers.remove(&key)?;
        worker.stir(&mut self.rest);
        if let Some(pool) = self.pools.get_mut(&worker.pool) {
            pool.exits.reclassified += 1;
            pool.vacate(worker.slot, now_ns);
        }
        worker.record
    }

    /// It executed a program or took another name.
    pub fn renamed(&mut self, key: ProcessKey, comm: Comm, executed: bool, now_unix_ns: u64) {
        if !self.workers.contains_key(&key) {
            return;
        }
        let text = self.text(comm);
        if let Some(worker) = self.worker_mut(key) {
            (worker.comm, worker.comm_text) = (comm, text);
            if executed && !worker.watched {
                worker.moved(Fact::Ran, now_unix_ns);
            }
        }
    }

    /// It has not run since its last reading, which holds for this moment, too. False for strangers.
    pub fn unchanged(&mut self, key: ProcessKey, record: SlotRecord, at_ns: u64, now_unix_ns: u64) -> bool {
        if let Some(resting) = record.and_then(|record| self.rest.get_mut(record, key))
            && let Some(pool) = self.pools.get_mut(&resting.pool)
        {
            if resting.pass != self.pass {
                resting.pass = self.pass;
                self.seen += 1;
            }
            if pool.due {
                if at_ns.saturating_sub(resting.at_ns) >= SHORTEST_INTERVAL_NS {
                    pool.add_idle();
                }
                resting.at_ns = at_ns;
                resting.rss_bytes.into_iter().for_each(|rss_bytes| pool.add_resting_memory(rss_bytes));
            }
            return true;
        }
        let Some(worker) = self.workers.get(&key) else { return false };
        let Some(reading) = worker.skipped.as_deref().or(worker.last.as_ref()) else {
            // It was told to somebody who did not know yet that it is a worker. It is there, and to be told again.
            self.saw(key);
            self.to_tell_again.push((key, record));
            return true;
        };
        let reading = Sample { at_ns, ..*reading };
        self.sampled(&reading, now_unix_ns);
        self.lay_down(key, record, at_ns);
        true
    }

    /// A worker that used nothing in its last interval, and of which no more is to be told, rests until something is.
    fn lay_down(&mut self, key: ProcessKey, record: SlotRecord, at_ns: u64) {
        let Some(worker) = self.workers.get(&key) else { return };
        let Some(last) = worker.last.filter(|last| last.at_ns == at_ns && worker.skipped.is_none()) else {
            return;
        };
        if let Some(record) = record.filter(|_| worker.record == record && !worker.ended())
            && worker.utilization == Some(0.0)
        {
            let rss_bytes = last.rss.map(|rss| rss.total_bytes);
            let resting = Resting { key, pool: worker.pool, pass: self.pass, at_ns, rss_bytes };
            self.rest.put(record, resting);
        }
    }

    fn saw(&mut self, key: ProcessKey) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        worker.missed = None;
        if worker.seen_in_pass != self.pass {
            worker.seen_in_pass = self.pass;
            self.seen += 1;
        }
    }

    /// Takes a reading. Those for pools whose turn it is not are kept for later; those of strangers are ignored, and the
    /// answer is false.
    pub fn sampled(&mut self, sample: &Sample, now_unix_ns: u64) -> bool {
        let Some(worker) = self.workers.get_mut(&sample.process) else { return false };
        worker.stir(&mut self.rest);
        worker.missed = None;
        if worker.seen_in_pass != self.pass {
            worker.seen_in_pass = self.pass;
            self.seen += 1;
        }
        if worker.ended()
            && sample.state == TaskState::Zombie
            && worker.flag.as_ref().is_none_or(|flagged| flagged.flag != Flag::Defunct)
            && let Some(pool) = self.pools.get_mut(&worker.pool)
        {
            pool.flagged.add(Flag::Defunct);
            let since_unix_ns = worker.since_unix_ns;
            worker.flag = Some(Flagged { flag: Flag::Defunct, since_unix_ns, doing: None });
        }
        let Some(pool) = self.pools.get_mut(&worker.pool).filter(|pool| pool.due) else {
            worker.skipped = Some(Box::new(*sample));
            return true;
        };
        worker.skipped = None;
        worker.threaded |= sample.threads > 1;
        pool.touch(worker.slot);
        let mut sample = *sample;
        self.backward_readings += u64::from(worker.keep_up(&mut sample));
        let ended = worker.certificate.is_some();
        match worker.baseline {
            Some((before, at_ns)) => {
                let used = sample.cpu.total_ns().saturating_sub(before.total_ns());
                let interval = sample.at_ns.saturating_sub(at_ns);
                pool.add_cpu(before, sample.cpu);
                if worker.last.is_some() || worker.forked_at_ns.is_some() {
                    pool.add_totals(worker.last.as_ref(), &sample);
                }
                if interval >= SHORTEST_INTERVAL_NS && !ended {
                    let share = used as f64 / interval as f64;
                    worker.utilization = Some(share);
                    pool.cpu_utilization.record(share);
                }
            }
            None => pool.add_totals(Some(&sample), &sample),
        }
        worker.baseline = Some((sample.cpu, sample.at_ns));
        if let Some(rss) = sample.rss.filter(|_| !ended) {
            pool.worker_rss.record(rss.total_bytes as f64);
        }
        worker.last = Some(sample);
        if sample.cpu.total_ns() > 0 && !worker.watched {
            worker.moved(Fact::Ran, now_unix_ns);
        }
        true
    }

    /// Its last thread ended: it gives up its slot and gets a certificate.
    pub fn exited(&mut self, exit: &Exit, unix_minus_monotonic: i64) {
        let Some(worker) = self.workers.get_mut(&exit.process) else { return };
        if worker.certificate.is_some() {
            return;
        }
        worker.stir(&mut self.rest);
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return };
        let ended_unix_ns = exit.at_ns.saturating_add_signed(unix_minus_monotonic);
        let lifetime_ns = match worker.forked_at_ns {
            Some(forked_at_ns) => exit.at_ns.saturating_sub(forked_at_ns),
            None => ended_unix_ns.saturating_sub(worker.started_unix_ns),
        };
        let last_state = worker.state;
        worker.moved(Fact::Ended, ended_unix_ns);
        worker.account(pool, exit.cpu, exit.at_ns);
        pool.vacate(worker.slot, exit.at_ns);
        pool.unreaped += 1;
        pool.count_exit(exit.status, exit.oom_killed);
        pool.lifetime.record(lifetime_ns as f64 / NANOS_PER_SECOND as f64);
        if let Some(runs) = &mut pool.runs {
            runs.record(Run {
                ended_at_ns: exit.at_ns,
                ended_unix_ns,
                duration_ns: lifetime_ns,
                outcome: Outcome::of(exit.status, exit.oom_killed),
            });
        }
        self.exits_total += 1;
        worker.certificate = Some(self.exits_total);
        let certificate = DeathCertificate {
            sequence: self.exits_total,
            pool: Arc::clone(&pool.name),
            slot: worker.slot,
            generation: worker.generation,
            pid: worker.key.pid,
            comm: Arc::clone(&worker.comm_text),
            app: worker.app.clone(),
            status: exit.status,
            sender: exit.sender,
            oom_killed: exit.oom_killed,
            started_unix_ns: worker.started_unix_ns,
            ended_unix_ns,
            lifetime_ns,
            // As accounted: a lower figure than was shown already would be wrong.
            cpu: exit.cpu.or(worker.last.map(|s| s.cpu)).and(worker.baseline).map(|(cpu, _)| cpu),
            cpu_final: false,
            peak_rss_bytes: exit.peak_rss_bytes,
            last_state,
        };
        self.exits.push(worker.pool, certificate);
    }

    /// The exit of a worker was lost: what is known is that it is gone.
    pub fn end_unreported(
        &mut self,
        key: ProcessKey,
        cpu: Option<CpuTime>,
        at_ns: u64,
        unix_minus_monotonic: i64,
    ) {
        if self.workers.get(&key).is_none_or(|worker| worker.ended()) {
            return;
        }
        self.unreported_ends += 1;
        let exit = Exit {
            process: key,
            status: ExitStatus::Unknown,
            sender: None,
            oom_killed: None,
            cpu,
            peak_rss_bytes: None,
            at_ns,
        };
        self.exited(&exit, unix_minus_monotonic);
    }

    /// The kernel let go of it. Returns its record, to be given back.
    pub fn reaped(&mut self, reap: &Reap, unix_minus_monotonic: i64) -> SlotRecord {
        self.end_unreported(reap.process, reap.cpu, reap.at_ns, unix_minus_monotonic);
        let mut worker = self.workers.remove(&reap.process)?;
        worker.stir(&mut self.rest);
        let Some(pool) = self.pools.get_mut(&worker.pool) else { return worker.record };
        worker.account(pool, reap.cpu, reap.at_ns);
        let Some(sequence) = worker.certificate else { return worker.record };
        pool.unreaped = pool.unreaped.saturating_sub(1);
        if reap.cpu.is_none() {
            self.unreported_reaps += 1;
            return worker.record;
        }
        if let Some(certificate) = self.exits.get_mut(sequence) {
            let certificate = Arc::make_mut(certificate);
            certificate.cpu = worker.baseline.map(|(cpu, _)| cpu);
            certificate.cpu_final = true;
        }
        worker.record
    }

    /// A pass begins.
    pub fn pass_begins(&mut self) {
        self.pass += 1;
        self.seen = 0;
    }

    /// A worker that no pass sees lives all the same.
    pub fn lives(&mut self, key: ProcessKey) {
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.missed = None;
        }
    }

    /// A pass that began at `started_ns` saw every tracked process that was born before. Those it did not see are
    /// reported; of those that had ended, the ones missed for long are taken off the books.
    pub fn pass_complete(&mut self, started_ns: u64, unix_minus_monotonic: i64) -> Vec<Vanished> {
        self.pools.values_mut().for_each(Pool::settle);
        if self.seen == self.workers.len() {
            return Vec::new();
        }
        let (pass, rest) = (self.pass, &mut self.rest);
        let missed: Vec<(ProcessKey, Missed)> = self
            .workers
            .values_mut()
            .filter_map(|worker| {
                if worker
                    .record
                    .and_then(|record| rest.get_mut(record, worker.key))
                    .is_some_and(|r| r.pass == pass)
                {
                    return None;
                }
                worker.stir(rest);
                if worker.seen_in_pass == pass || worker.forked_at_ns.is_some_and(|at_ns| at_ns >= started_ns)
                {
                    return None;
                }
                let missed = worker.missed.get_or_insert(Missed { since_ns: started_ns, passes: 0 });
                missed.passes = missed.passes.saturating_add(1);
                Some((worker.key, *missed))
            })
            .collect();
        let mut vanished = Vec::new();
        for (key, missed) in missed {
            let Some(worker) = self.workers.get(&key) else { continue };
            let overdue = started_ns.saturating_sub(missed.since_ns) >= MISSED_NS;
            // An ended worker is on its way out: the kernel frees a task some milliseconds after it was reaped, and does
            // not always tell.
            if worker.certificate.is_none() {
                if overdue {
                    vanished.push(Vanished::Overdue(key, worker.pool));
                } else if missed.passes.is_power_of_two() {
                    vanished.push(Vanished::Missed(key, worker.pool));
                }
            } else if overdue {
                let gone = Reap { process: key, cpu: None, at_ns: started_ns };
                let record = self.reaped(&gone, unix_minus_monotonic);
                vanished.push(Vanished::Gone(key, record));
            } else {
                vanished.push(Vanished::Left(key, worker.record));
            }
        }
        vanished
    }

    /// Living workers of a pool that have, or had, more than one thread.
    pub fn threaded(&self, pool: &Pool) -> u64 {
        pool.holders().filter(|(_, key)| self.workers.get(key).is_some_and(|worker| worker.threaded)).count()
            as u64
    }

    /// All that the living workers of a pool use from now on will be in its totals.
    pub fn all_accounted(&self, pool: &Pool) -> bool {
        pool.holders().all(|(_, key)| self.workers.get(&key).is_some_and(|worker| worker.baseline.is_some()))
    }

    /// Removes a pool; its certificates stay. Returns the workers it had, to be let go of: identity and record.
    pub fn remove_pool(&mut self, id: PoolId) -> Vec<(ProcessKey, SlotRecord)> {
        self.pools.remove(&id);
        self.exits.pool_dropped(id);
        let keys: Vec<ProcessKey> = self.workers.values().filter(|w| w.pool == id).map(|w| w.key).collect();
        let removed = keys.into_iter().filter_map(|key| {
            let mut worker = self.workers.remove(&key)?;
            worker.stir(&mut self.rest);
            Some((key, worker.record))
        });
        removed.collect()
    }
}

impl Worker {
    /// It rests no more: what was noted meanwhile comes back here.
    fn stir(&mut self, rest: &mut Rest) {
        let Some(resting) = self.record.and_then(|record| rest.take(record, self.key)) else { return };
        self.seen_in_pass = resting.pass;
        if let Some((_, at_ns)) = &mut self.baseline {
            *at_ns = resting.at_ns;
        }
        if let Some(last) = &mut self.last {
            last.at_ns = resting.at_ns;
        }
    }

    fn moved(&mut self, fact: Fact, now_unix_ns: u64) {
        let next = state::next(self.state, fact);
        if next != self.state {
            self.state = next;
            (self.since_ns, self.since_unix_ns) = (0, now_unix_ns);
        }
    }

    /// It has ended and waits to be reaped.
    pub fn ended(&self) -> bool {
        self.certificate.is_some()
    }

    /// Lifts cumulative figures to what was known before: counters never fall. True for a fall that should not have been.
    ///
    /// Two kinds of falls are how the kernel tells these figures, and do not count. A thread that ends between the row
    /// of the main thread, which has the sums of those that are gone, and its own turn is in neither; the next pass has
    /// it, so a process of several threads counts when that one is behind, too. And the kernel keeps run delay of living
    /// threads only.
    fn keep_up(&mut self, sample: &mut Sample) -> bool {
        let mut behind = false;
        // Its exit may have told more than its last reading.
        if let Some((before, _)) = self.baseline {
            behind = sample.cpu.total_ns() < before.total_ns();
            sample.cpu = if behind { before } else { sample.cpu.not_below(before) };
        }
        let Some(last) = &self.last else { return behind };
        let mut lift = |now: &mut u64, before: u64| {
            behind |= *now < before;
            *now = before.max(*now);
        };
        lift(&mut sample.minor_faults, last.minor_faults);
        lift(&mut sample.major_faults, last.major_faults);
        for (now, before) in [
            (&mut sample.voluntary_switches, last.voluntary_switches),
            (&mut sample.involuntary_switches, last.involuntary_switches),
            (&mut sample.read_bytes, last.read_bytes),
            (&mut sample.written_bytes, last.written_bytes),
        ] {
            match (now, before) {
                (Some(now), Some(before)) => lift(now, before),
                // Unreadable this time; what was known stays.
                (now, before) => *now = now.or(before),
            }
        }
        sample.run_delay_ns = sample.run_delay_ns.max(last.run_delay_ns);
        let threaded = last.threads > 1 || sample.threads > 1;
        let again = std::mem::replace(&mut self.behind, behind);
        behind && (again || !threaded)
    }

    /// Adds to the pool what it used since the last account. Accounts never go back.
    fn account(&mut self, pool: &mut Pool, cpu: Option<CpuTime>, at_ns: u64) {
        let Some(cpu) = cpu else { return };
        let Some((before, _)) = self.baseline else {
            // It lived before us and was never read: what it used under our eyes is unknown.
            self.baseline = Some((cpu, at_ns));
            return;
        };
        if cpu.total_ns() >= before.total_ns() {
            let cpu = cpu.not_below(before);
            pool.add_cpu(before, cpu);
            self.baseline = Some((cpu, at_ns));
        }
    }
}

#[cfg(test)]
mod tests;
