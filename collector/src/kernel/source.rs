//! [`KernelSource`]: the eBPF implementation of [`Source`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::maps::MapData;
use aya::util::nr_cpus;
use collector_ebpf::event::{Counter, EXEC, EXIT, FORK, KINDS, NONE, REAP, RENAME};
use collector_ebpf::limits::{MAX_CHUNKS, MAX_SLOTS, REQUEST_SETS, THREAD_SETS};
use collector_ebpf::request::{REQUEST_WAYS, WANTS_REQUESTS, WANTS_STATUS};
use collector_ebpf::schedule::{
    PROFILE_COUNTERS, PROFILE_HISTOGRAMS, PROFILE_NONE, TIMED_RUNS, WAYS, parks_of, profile_of, wishes,
};
use collector_ebpf::slot::{EXITED, FINAL, FREE, REAPED, ROLE_MASTER, ROLE_WORKER, Slot, Tag};
use collector_ebpf::waterfall::{STRETCH_SHIFT, STRETCHES, with_ticket};

use super::events::{self, EventReader};
use super::load::{self, Attached, LoadError, RequestsBy};
use super::requests::RequestProbes;
use super::sampler::Samplers;
use super::schedule::{OnCpuRequests, Probe, ScheduleTable, Scheduler};
use super::slots::SlotTable;
use super::stacks::Stacks;
use super::support::Support;
use super::sys;
use super::tags::Tags;
use super::tasks::{Missing, TaskReader};
use super::waterfall::WaterfallTable;
use crate::input::{
    self, Comm, Input, Listed, Profile, Requests, Role, ScheduleReading, SlotRecord, Source,
    WaterfallReading, Wishes,
};
use crate::procfs::parse::stat::Stat;
use crate::procfs::root::{Buffer, ReadError, Root};
use crate::snapshot::{EventCounts, Feature, MapFill, ProgramCost};
use crate::units::{CpuTime, HostFacts, Pid, ProcessKey, monotonic_ns};

/// Processes whose tag could not be taken away are remembered up to this number.
const MAX_UNTAGGED_LATER: usize = 1024;

/// From so many chunks of histograms on that have been handed out, a slot does not keep its own for its next worker.
const SCARCE_CHUNKS: u32 = MAX_CHUNKS as u32 / 4 * 3;

/// The first process of the host. Some builds of the kernel keep it out of the task iterators: seen with one for
/// microVMs (6.18), not with Debian's 6.1 and 6.12, nor in `task_seq_get_next` of the kernel's `kernel/bpf/task_iter.c`.
/// In a microVM it can be the master of a pool.
const FIRST_PROCESS: Pid = 1;

const KIND_NAMES: [(u32, &str); KINDS] =
    [(FORK, "fork"), (EXEC, "exec"), (RENAME, "rename"), (EXIT, "exit"), (REAP, "reap")];

/// Watches through eBPF.
pub struct KernelSource {
    events: EventReader,
    tasks: TaskReader,
    slots: SlotTable,
    scheduler: Option<Scheduler>,
    requests: Option<RequestProbes>,
    requests_attached: bool,
    stacks: Option<Stacks>,
    scheduler_attached: bool,
    /// There may be workers whose threads are not followed.
    follow_wanted: bool,
    schedule: ScheduleTable,
    waterfalls: WaterfallTable,
    /// Pools that got one since their masters were tagged.
    given_waterfalls: Vec<u32>,
    /// What pools want to know of the scheduler.
    wishes: HashMap<u32, Wishes>,
    tags: Tags,
    counters: MapData,
    /// CPUs for which there is a value of each counter.
    cpus: usize,
    /// Their sums, as of the begin of the last pass.
    counts: [u64; Counter::COUNT],
    tracepoints: Vec<Attached>,
    samplers: Option<Samplers>,
    features: Vec<Feature>,
    missing: Missing,
    procfs: Root,
    buffer: Buffer,
    host: HostFacts,
    map_bytes: Option<u64>,
    /// Events lost, as of the last look.
    lost_seen: u64,
    /// Processes whose story was told from their slot; their late events must not tell it again.
    told: HashSet<ProcessKey>,
    failed_passes: u64,
    failed_tags: u64,
    /// The last attempt to tag or untag failed, and was told of.
    tagging_fails: bool,
    /// Roles that are to be taken from processes, but could not be.
    untagged_later: VecDeque<(ProcessKey, Role)>,
    refused_slots: u64,
    refused_chunks: u64,
    /// Requests that were in flight when their worker ceased to be followed.
    forgotten_requests: u64,
    /// What the programs cost, as of the last look.
    costs: Vec<ProgramCost>,
    /// Runs of the program of passes then.
    runs_seen: u64,
}

impl KernelSource {
    /// Loads and attaches everything.
    pub fn open(
        support: &Support,
        requests: RequestsBy,
        procfs: &Path,
        host: HostFacts,
    ) -> Result<Self, LoadError> {
        let loaded = load::load(support, requests)?;
        let off = |name: &str| loaded.features.iter().any(|f| f.name == name && !f.enabled);
        let missing = Missing { run_delay: off("run_delay"), storage_io: off("storage_io") };
        Ok(Self {
            events: EventReader::new(loaded.events, host),
            tasks: TaskReader::new(loaded.tracked, loaded.all_processes, loaded.pass, host),
            slots: loaded.slots,
            scheduler: loaded.scheduler,
            requests: loaded.requests,
            requests_attached: false,
            stacks: loaded.stacks.map(|iterator| Stacks::new(iterator, procfs)),
            scheduler_attached: false,
            follow_wanted: false,
            schedule: loaded.schedule,
            waterfalls: loaded.waterfalls,
            given_waterfalls: Vec::new(),
            wishes: HashMap::new(),
            tags: loaded.tags,
            counters: loaded.counters,
            cpus: nr_cpus().map_err(|(_, error)| LoadError::Shared(error))?,
            counts: [0; Counter::COUNT],
            costs: Vec::new(),
            runs_seen: 0,
            tracepoints: loaded.tracepoints,
            samplers: loaded.samplers,
            features: loaded.features,
            missing,
            procfs: Root::open(procfs)?,
            buffer: Buffer::default(),
            host,
            map_bytes: map_bytes(),
            lost_seen: 0,
            told: HashSet::new(),
            failed_passes: 0,
            failed_tags: 0,
            tagging_fails: false,
            untagged_later: VecDeque::new(),
            refused_slots: 0,
            refused_chunks: 0,
            forgotten_requests: 0,
        })
    }

    /// What profiles of workers are made with; `None` where they cannot be.
    pub fn samplers(&self) -> Option<Samplers> {
        self.samplers.clone()
    }

    fn counter(&self, index: u32) -> u64 {
        self.counts.get(index as usize).copied().unwrap_or(0)
    }

    /// Reads the counters, all in one call.
    fn count(&mut self) {
        match sys::per_cpu_sums(self.counters.fd().as_fd(), self.cpus) {
            Ok(counts) => self.counts = counts,
            Err(error) => tracing::warn!(%error, "reading the counters of events failed"),
        }
    }

    fn lost(&self) -> u64 {
        KIND_NAMES.iter().map(|(kind, _)| self.counter(Counter::lost(*kind))).sum()
    }

    /// Tells from the slots what events did not: who came, who ended and how. The ring buffer was drained just
    /// before; what still arrives for these processes is older than their slot.
    fn recover(&mut self, out: &mut dyn FnMut(Input)) {
        for (number, slot) in self.slots.in_use() {
            let child = ProcessKey { pid: slot.pid, start_ns: slot.start_ns };
            // Zero: it lived before it was tracked, and nobody saw it come.
            if slot.forked_at_ns != 0 {
                out(Input::Fork(input::Fork {
                    child,
                    parent: slot.parent,
                    comm: Comm(slot.comm),
                    pool: events::some(slot.pool),
                    record: Some(number),
                    at_ns: slot.forked_at_ns,
                }));
            }
            if let Some(exit) = recorded_exit(&slot, self.host) {
                out(Input::Exit(exit));
            }
            if slot.phase == REAPED {
                let cpu = Some(events::cpu(slot.cpu));
                self.told.insert(child);
                out(Input::Reap(input::Reap { process: child, cpu, at_ns: slot.reaped_at_ns }));
            }
        }
    }

    fn wishes_of(&mut self, number: u32) -> u32 {
        let pool = self.wishes.get(&number).copied().unwrap_or_default();
        let requests = match pool.requests {
            Requests::None => 0,
            Requests::Timed => WANTS_REQUESTS,
            Requests::WithStatus => WANTS_REQUESTS | WANTS_STATUS,
        };
        let mut parks = u32::from(pool.idle_in.0) | requests;
        if wants_waterfall(&pool) {
            parks = with_ticket(parks, self.waterfalls.lend(number, &mut self.schedule));
        }
        wishes(profile_number(pool.profile), parks)
    }

    /// Lets go of the threads of a worker that lives on, or of all, and of their requests.
    fn cease_to_follow(&mut self, slot: Option<u32>) {
        let now_ns = monotonic_ns();
        if let Some(RequestProbes { finish, .. }) = &self.requests
            && let Err(error) = self.schedule.requests().0.finish_answered(finish, slot, now_ns)
        {
            tracing::warn!(%error, "accounting for requests that were answered failed");
        }
        self.forgotten_requests += self.schedule.forget(slot, Some(now_ns));
    }

    /// Lets go of all requests; the threads are followed on.
    fn cease_to_follow_requests(&mut self) {
        if let Some(RequestProbes { finish, .. }) = &self.requests {
            match self.schedule.requests().0.let_go(finish, monotonic_ns()) {
                Ok(in_flight) => self.forgotten_requests += in_flight,
                Err(error) => tracing::warn!(%error, "letting go of requests failed"),
            }
        }
    }

    /// A worker's requests are in the waterfall of its pool, which gets one when it has been asked.
    fn find_waterfall(&mut self, record: u32, pool: u32, asked: bool) {
        // A record of a pool that is no more may be read once more.
        if !self.wishes.get(&pool).is_some_and(wants_waterfall) {
            return;
        }
        let before = self.waterfalls.ticket_of(pool);
        let ticket = if asked { self.waterfalls.get(pool, &self.slots, &mut self.schedule) } else { before };
        if before == ticket {
            self.schedule.set_ticket(record, ticket);
            return;
        }
        // Its other workers may not have moved; those that come have what the tag of their master says.
        for (record, _) in self.slots.in_use().filter(|(_, slot)| slot.pool == pool) {
            self.schedule.set_ticket(record, ticket);
        }
        self.given_waterfalls.push(pool);
    }

    /// `/proc/PID/stat`; `None` if there is no such process.
    fn stat(&mut self, pid: Pid) -> io::Result<Option<Stat>> {
        match self.procfs.stat(pid, &mut self.buffer) {
            Ok(stat) => Ok(Some(stat)),
            Err(ReadError::Gone) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Adds a role to the tag of a process. Returns the slot that a worker has.
    fn tag(&mut self, process: ProcessKey, pool: u32, role: Role) -> io::Result<SlotRecord> {
        let Some(tagged) = self.tags.of(process, &self.procfs, &mut self.buffer)? else { return Ok(None) };
        // A process may fork the workers of one pool and be a worker of another; what its tag says of the one role
        // stays when the other is added.
        let before = self.tags.get(&tagged)?.unwrap_or_default();
        // Whoever follows it from here has none of its figures.
        self.tasks.forget(process.pid);
        let wishes = self.wishes_of(pool);
        match role {
            Role::Master => {
                let slot = if before.role & ROLE_WORKER != 0 { before.slot } else { NONE };
                let role = before.role & ROLE_WORKER | ROLE_MASTER;
                self.tags.set(&tagged, Tag { pool, role, slot, children_wishes: wishes, ..before })?;
                Ok(None)
            }
            Role::Worker => {
                self.follow_wanted = true;
                let role = before.role & ROLE_MASTER | ROLE_WORKER;
                let children_pool = if before.role & ROLE_MASTER != 0 { before.pool } else { pool };
                let tag = Tag { pool: children_pool, role, wishes, ..before };
                if let Some(slot) = self.slot_to_keep(process, pool, &before, wishes) {
                    self.tags.set(&tagged, tag)?;
                    self.schedule.set_wishes(slot, wishes);
                    return Ok(Some(slot));
                }
                let (pid, start_ns) = (process.pid, process.start_ns);
                let slot = self.slots.take(Slot { pid, start_ns, pool, ..Slot::default() });
                self.refused_slots += u64::from(slot.is_none());
                if let Err(error) = self.tags.set(&tagged, Tag { slot: slot.unwrap_or(NONE), ..tag }) {
                    slot.into_iter().for_each(|slot| self.slots.release(slot));
                    return Err(error);
                }
                if let Some(slot) = slot {
                    // A thread that was made at the same moment may have been followed by what the tag said before.
                    self.schedule.set_wishes(slot, wishes);
                }
                // Its threads are followed into the slot that it had; from now on nobody follows more of them there.
                if before.role & ROLE_WORKER != 0 && before.slot != NONE {
                    self.cease_to_follow(Some(before.slot));
                }
                Ok(slot)
            }
        }
    }

    /// The slot of a worker that is followed on: its pool is the same, and still wants to know of the scheduler, and of
    /// requests, if it did before. Its threads and its requests are in no moment let go of.
    fn slot_to_keep(&self, process: ProcessKey, pool: u32, before: &Tag, wishes: u32) -> SlotRecord {
        let slot = self.slots.get(before.slot).filter(|_| before.role & ROLE_WORKER != 0)?;
        let watched = |wishes| profile_of(wishes) != PROFILE_NONE;
        let asked = |wishes| parks_of(wishes) & WANTS_REQUESTS != 0;
        let as_much = [watched, asked].iter().all(|wanted| wanted(wishes) || !wanted(before.wishes));
        (slot.pool == pool && self.slots.is_of(before.slot, process) && as_much).then_some(before.slot)
    }

    /// Takes a role out of a tag.
    fn untag(&mut self, process: ProcessKey, role: Role) -> io::Result<()> {
        // Gone: the kernel freed the tag with it.
        let Some(tagged) = self.tags.of(process, &self.procfs, &mut self.buffer)? else { return Ok(()) };
        let Some(tag) = self.tags.get(&tagged)? else { return Ok(()) };
        let (gone, stays) = match role {
            Role::Master => (ROLE_MASTER, tag),
            Role::Worker => (ROLE_WORKER, Tag { slot: NONE, ..tag }),
        };
        let stays = Tag { role: tag.role & !gone, ..stays };
        // As long as it has a place among what was told, passes show it without a look at its tag.
        self.tasks.forget(process.pid);
        match stays.role {
            0 => self.tags.delete(&tagged),
            _ => self.tags.set(&tagged, stays),
        }?;
        if role == Role::Worker && tag.slot != NONE {
            self.cease_to_follow(Some(tag.slot));
        }
        Ok(())
    }

    fn untag_later(&mut self, process: ProcessKey, role: Role) {
        if self.untagged_later.len() < MAX_UNTAGGED_LATER && !self.untagged_later.contains(&(process, role)) {
            self.untagged_later.push_back((process, role));
        }
    }

    /// Does what could not be done before, as long as it succeeds.
    fn untag_now(&mut self) {
        while let Some((process, role)) = self.untagged_later.front().copied() {
            match self.untag(process, role) {
                Err(error) if !is_gone(&error) => return,
                _ => drop(self.untagged_later.pop_front()),
            }
            self.tagging_fails = false;
        }
    }

    /// Counts each, and tells of the first in a row.
    fn tagging_failed(&mut self, process: ProcessKey, error: &io::Error, outcome: &str) {
        self.failed_tags += 1;
        if !std::mem::replace(&mut self.tagging_fails, true) {
            tracing::warn!(pid = process.pid, %error, "the tag of a process could not be set; {outcome}");
        }
    }

    /// What a listing would say of the first process; see [`FIRST_PROCESS`].
    fn first_process(&mut self) -> Option<Listed> {
        let stat = self.stat(FIRST_PROCESS).ok()??;
        Some(Listed {
            process: ProcessKey::from_ticks(FIRST_PROCESS, stat.starttime),
            parent: stat.ppid,
            comm: stat.comm,
            kernel_thread: false,
            zombie: false,
        })
    }
}

/// ESRCH is said of a process, ENOENT of a tag.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// The end of the worker that has a slot; `None` while it lives, or if it had ended before it was tagged.
fn recorded_exit(slot: &Slot, host: HostFacts) -> Option<input::Exit> {
    let process = ProcessKey { pid: slot.pid, start_ns: slot.start_ns };
    (matches!(slot.phase, EXITED | FINAL | REAPED) && slot.exited_at_ns != 0)
        .then(|| events::death(process, &slot.death, slot.cpu, host, slot.exited_at_ns))
}

impl Source for KernelSource {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn drain(&mut self, out: &mut dyn FnMut(Input)) {
        let (told, slots) = (std::mem::take(&mut self.told), &self.slots);
        self.events.drain(&mut |mut input| {
            let process = match &mut input {
                Input::Fork(fork) => {
                    // Who was found before the event arrived may have been let go of since, and its slot be another's.
                    fork.record = fork.record.filter(|record| slots.is_of(*record, fork.child));
                    fork.child
                }
                Input::Exit(exit) => exit.process,
                Input::Reap(reap) => reap.process,
                _ => return out(input),
            };
            if !told.contains(&process) {
                out(input);
            }
        });
    }

    fn begin_wait(&mut self) -> Option<BorrowedFd<'_>> {
        self.slots.set_reader_waits(true);
        Some(self.events.fd())
    }

    fn end_wait(&mut self) {
        self.slots.set_reader_waits(false);
    }

    fn pass(&mut self, out: &mut dyn FnMut(Input)) {
        self.count();
        let lost = self.lost();
        if lost > self.lost_seen {
            out(Input::Lost { events: lost - self.lost_seen });
            self.lost_seen = lost;
            self.recover(out);
        }
        self.untag_now();
        let started_ns = monotonic_ns();
        match self.tasks.pass(self.missing, out) {
            Ok(()) => out(Input::PassComplete { started_ns }),
            Err(error) => {
                self.failed_passes += 1;
                tracing::warn!(%error, "reading tracked processes failed; figures stay as they were");
            }
        }
    }

    fn list(&mut self, out: &mut dyn FnMut(Listed)) {
        let mut first = false;
        let listed = self.tasks.list(&mut |listed| {
            first |= listed.process.pid == FIRST_PROCESS;
            out(listed);
        });
        match listed {
            Ok(()) if first => {}
            Ok(()) => self.first_process().into_iter().for_each(out),
            Err(error) => {
                self.failed_passes += 1;
                tracing::warn!(%error, "listing processes failed");
            }
        }
    }

    fn track(&mut self, process: ProcessKey, pool: u32, role: Role) -> SlotRecord {
        self.untagged_later.retain(|later| *later != (process, role));
        match self.tag(process, pool, role) {
            Ok(slot) => {
                self.tagging_fails = false;
                slot
            }
            Err(error) if is_gone(&error) => None,
            Err(error) => {
                self.tagging_failed(process, &error, "it is not followed until that works");
                // A tag that it had goes as soon as it can, with both roles: passes do not show the process then, and the
                // aggregator asks again for each.
                self.untag_later(process, Role::Worker);
                self.untag_later(process, Role::Master);
                None
            }
        }
    }

    fn untrack(&mut self, process: ProcessKey, role: Role) {
        let Err(error) = self.untag(process, role) else { return };
        if is_gone(&error) {
            return;
        }
        self.tagging_failed(process, &error, "it is followed until that works");
        self.untag_later(process, role);
    }

    fn tell_again(&mut self, process: ProcessKey, record: SlotRecord) {
        self.tasks.forget(process.pid);
        if let Some(slot) = record {
            self.schedule.unsee(slot);
        }
    }

    fn release(&mut self, record: u32) {
        self.schedule.clear(record, monotonic_ns());
        if self.slots.chunks_handed_out() >= SCARCE_CHUNKS {
            self.schedule.reclaim(record);
        }
        self.slots.release(record);
    }

    fn set_wishes(&mut self, pool: u32, wishes: Wishes) {
        if !wants_waterfall(&wishes) {
            self.waterfalls.forget(pool);
        }
        self.wishes.insert(pool, wishes);
    }

    fn limit_profiles(&mut self, ceiling: Profile, requests: bool) -> bool {
        let Some(Scheduler { probes, .. }) = &mut self.scheduler else { return false };
        let wanted = ceiling > Profile::None;
        if wanted && !self.scheduler_attached {
            // There are none, unless a program was late.
            self.schedule.forget(None, None);
            if !attach_all(probes) {
                self.scheduler = None;
                return false;
            }
            self.follow_wanted = true;
            self.scheduler_attached = true;
        }
        // Requests are those of threads that are followed.
        let requests = requests && wanted;
        let mut requests_detached = false;
        if let Some(probes) = self.requests.as_mut().map(|requests| &mut requests.probes)
            && requests != self.requests_attached
        {
            self.requests_attached = requests;
            if !requests {
                detach_all(probes);
                requests_detached = true;
            } else if !attach_all(probes) {
                (self.requests, self.requests_attached) = (None, false);
            }
        }
        // Threads begin to be followed after the probes are attached, and cease to before they are detached.
        self.slots.set_ceiling(profile_number(ceiling));
        let detached = !wanted && self.scheduler_attached;
        if detached {
            detach_all(probes);
            self.scheduler_attached = false;
        }
        if detached || requests_detached {
            sys::wait_for_running_programs();
        }
        if requests_detached {
            self.cease_to_follow_requests();
        }
        if detached {
            self.cease_to_follow(None);
        }
        self.requests_attached
    }

    fn probe_cost_ns(&self) -> Option<u64> {
        self.scheduler.as_ref().map(|_| self.counter(Counter::TIMED_NS).saturating_mul(TIMED_RUNS))
    }

    fn moved(&mut self, records: &mut Vec<u32>) {
        if std::mem::take(&mut self.follow_wanted)
            && let Some(scheduler) = self.scheduler.as_ref().filter(|_| self.scheduler_attached)
        {
            match scheduler.follow_all() {
                Ok(again) => self.follow_wanted = again,
                Err(error) => {
                    self.failed_passes += 1;
                    self.follow_wanted = true;
                    tracing::warn!(%error, "looking for threads to follow failed");
                }
            }
        }
        let refused = self.counter(Counter::NO_CHUNK);
        if refused > self.refused_chunks {
            // Slots without worker keep theirs, until there is need.
            self.refused_chunks = refused;
            self.slots.with_free(|slot| self.schedule.reclaim(slot));
        }
        if let Some(RequestProbes { finish, .. }) = &self.requests
            && let (table, true) = self.schedule.requests()
            && let Err(error) = table.finish_quiet(finish, monotonic_ns(), records)
        {
            tracing::warn!(%error, "accounting for requests that were answered failed");
        }
        self.schedule.moved(self.slots.follow_changes(), records);
    }

    fn schedule(&mut self, record: u32, out: &mut ScheduleReading) -> Option<bool> {
        out.intervals.clear();
        let slot = self.slots.get(record).filter(|slot| slot.phase != FREE)?;
        if let Some(RequestProbes { finish, .. }) = &self.requests
            && let Some(end_ns) = self.schedule.ended_serving(record)
            && let Err(error) = self.schedule.requests().0.abandon(finish, record, end_ns)
        {
            tracing::warn!(%error, "accounting for the requests of a worker that ended failed");
        }
        let mut nowhere = OnCpuRequests::default();
        let on_cpu = self.waterfalls.on_cpu(slot.pool).unwrap_or(&mut nowhere);
        let read = self.schedule.read(record, monotonic_ns, out, on_cpu)?;
        out.pool = slot.pool;
        out.process = ProcessKey { pid: slot.pid, start_ns: slot.start_ns };
        if read {
            self.find_waterfall(record, slot.pool, out.first_request_ns != 0);
        }
        Some(read)
    }

    fn waterfalls(&mut self, tell: &mut dyn FnMut(u32, &WaterfallReading)) {
        self.waterfalls.read(&self.schedule, tell);
    }

    fn slowest_kept_ns(&self) -> Option<u64> {
        // A stretch takes the place of the last but one.
        self.requests_attached.then_some((STRETCHES as u64 - 1) << STRETCH_SHIFT)
    }

    fn refuses_waterfall(&self, pool: u32) -> bool {
        self.waterfalls.refuses(pool)
    }

    fn has_tags_to_renew(&mut self, tell: &mut dyn FnMut(u32)) {
        self.given_waterfalls.drain(..).for_each(tell);
    }

    fn forget_pool(&mut self, pool: u32) {
        self.wishes.remove(&pool);
        self.waterfalls.forget(pool);
    }

    fn kernel_stacks(&mut self, pid: Pid) -> Vec<(Pid, Vec<String>)> {
        let Some(stacks) = &mut self.stacks else { return Vec::new() };
        self.slots.set_stacks_of(pid);
        stacks.read().unwrap_or_else(|error| {
            tracing::warn!(pid, %error, "reading the kernel stacks of a stuck worker failed");
            Vec::new()
        })
    }

    fn lives(&mut self, process: ProcessKey) -> bool {
        match self.stat(process.pid) {
            Ok(Some(stat)) => {
                stat.starttime == process.start_ticks() && !matches!(stat.state, b'Z' | b'X' | b'x')
            }
            Ok(None) => false,
            // Whoever cannot be looked at is not known to be gone.
            Err(_) => true,
        }
    }

    fn recorded_exit(&self, process: ProcessKey, record: u32) -> Option<input::Exit> {
        let slot = self.slots.get(record)?;
        recorded_exit(&slot, self.host).filter(|exit| exit.process == process)
    }

    fn final_cpu(&self, process: ProcessKey, record: u32) -> Option<CpuTime> {
        let slot = self.slots.get(record)?;
        let its = ProcessKey { pid: slot.pid, start_ns: slot.start_ns } == process;
        (its && matches!(slot.phase, FINAL | REAPED)).then(|| events::cpu(slot.cpu))
    }

    fn event_counts(&self) -> Vec<EventCounts> {
        KIND_NAMES
            .iter()
            .map(|(kind, name)| EventCounts {
                kind: name,
                counted: self.counter(Counter::counted(*kind)),
                delivered: self.events.delivered[*kind as usize - 1],
                lost: self.counter(Counter::lost(*kind)),
            })
            .collect()
    }

    fn losses(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("event_malformed", self.events.malformed),
            ("request_not_followed", self.counter(Counter::NO_REQUEST) + self.forgotten_requests),
            ("request_undecided", self.counter(Counter::REQUEST_UNDECIDED)),
            ("request_torn", self.counter(Counter::REQUEST_MISSED)),
            ("slow_request_not_kept", self.counter(Counter::SLOW_MISSED)),
            ("waterfall_limit", self.waterfalls.refused_total()),
            ("thread_not_followed", self.counter(Counter::NO_THREAD)),
            ("histogram_memory", self.counter(Counter::NO_CHUNK)),
            ("interval_negative", self.counter(Counter::NEGATIVE)),
            ("switch_out_of_order", self.counter(Counter::OUT_OF_ORDER)),
            ("no_free_slot", self.counter(Counter::NO_SLOT) + self.refused_slots),
            ("tag_not_stored", self.counter(Counter::NO_TAG) + self.failed_tags),
            ("pass_failed", self.failed_passes),
        ]
    }

    fn features(&self) -> Vec<Feature> {
        self.features.clone()
    }

    fn programs(&mut self) -> Vec<ProgramCost> {
        // The program of passes has just run: if it was not counted, none is, and what was counted before stands.
        let [(_, passes), _] = self.tasks.programs();
        let runs = sys::program_cost(passes).map_or(0, |(runs, _)| runs);
        if runs != self.runs_seen {
            self.runs_seen = runs;
            let tracepoints =
                self.tracepoints.iter().map(|attached| (attached.name, attached.program.as_fd()));
            let probes = self.scheduler.iter().flat_map(|scheduler| &scheduler.probes);
            let probes = probes.chain(self.requests.iter().flat_map(|requests| &requests.probes));
            let probes = probes.map(|probe| (probe.name, probe.program.as_fd()));
            let stacks = self.stacks.iter().map(Stacks::program);
            let all = tracepoints.chain(probes).chain(self.tasks.programs()).chain(stacks);
            let costs = all.filter_map(|(name, program)| {
                let (runs, run_time_ns) = sys::program_cost(program).ok()?;
                (runs > 0).then_some(ProgramCost { name, runs, run_time_ns })
            });
            self.costs = costs.collect();
        }
        self.costs.clone()
    }

    fn map_fill(&self) -> Vec<MapFill> {
        let fill = |name, entries, capacity: usize| MapFill { name, entries, capacity: capacity as u64 };
        vec![
            fill("slots", self.slots.handed_out().into(), MAX_SLOTS),
            fill("threads", self.schedule.followed(), THREAD_SETS * WAYS),
            fill("requests", self.schedule.open_requests(), REQUEST_SETS * REQUEST_WAYS),
            fill("histogram_chunks", self.slots.chunks_handed_out().into(), MAX_CHUNKS),
        ]
    }

    fn map_bytes(&self) -> Option<u64> {
        self.map_bytes
    }
}

/// Attaches all of them or none. There is no second attempt: the reason will not go away.
fn attach_all(probes: &mut [Probe]) -> bool {
    for probe in probes.iter_mut() {
        match sys::tracepoint_attach(probe.program.as_fd()) {
            Ok(link) => probe.link = Some(link),
            Err(error) => {
                tracing::warn!(probe = probe.name, %error, "attaching a probe failed");
                detach_all(probes);
                return false;
            }
        }
    }
    true
}

fn detach_all(probes: &mut [Probe]) {
    probes.iter_mut().for_each(|probe| probe.link = None);
}

fn wants_waterfall(wishes: &Wishes) -> bool {
    wishes.requests != Requests::None && wishes.profile == Profile::Histograms
}

fn profile_number(profile: Profile) -> u32 {
    match profile {
        Profile::None => PROFILE_NONE,
        Profile::Counters => PROFILE_COUNTERS,
        Profile::Histograms => PROFILE_HISTOGRAMS,
    }
}

/// Sum of `memlock` over our map descriptors, as the kernel shows it in `/proc/self/fdinfo` (`bpf_map_show_fdinfo`).
/// Constant while we run: every map but the task storage is allocated when it is made.
fn map_bytes() -> Option<u64> {
    let mut sum = None;
    for entry in std::fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if field("map_id:").is_some()
            && let Some(bytes) = field("memlock:")
        {
            sum = Some(sum.unwrap_or(0) + bytes);
        }
    }
    sum
}

impl std::fmt::Debug for KernelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelSource").field("features", &self.features).finish_non_exhaustive()
    }
}
