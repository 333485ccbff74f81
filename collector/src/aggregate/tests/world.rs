//! A host that does not exist: processes in a table, tags and records as the kernel keeps them, and the aggregator that
//! watches it.
//!
//! The host checks on its side what must hold at any time: a record is released once, and never while a tag still
//! makes the kernel write to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::*;
use crate::governor::Governor;
use crate::input::{
    Cgroup, CgroupReader, Comm, Exec, Exit, ExitStatus, FactReader, Fork, Listed, ListeningSocket, Needs,
    Profile, Reap, Rename, Requests, Rss, Sample, SlotRecord, SocketAddress, SocketFamily, SocketReader,
    TaskState, Wishes,
};
use crate::snapshot::{EventCounts, Feature};
use crate::units::{CpuTime, NANOS_PER_SECOND as SECOND};

pub(super) const NO_OWN: fn() -> Own = Own::default;

#[derive(Clone, Debug)]
pub(super) struct Real {
    pub(super) key: ProcessKey,
    pub(super) parent: Pid,
    pub(super) comm: Comm,
    pub(super) facts: ProgramFacts,
    pub(super) kernel_thread: bool,
    pub(super) zombie: bool,
    pub(super) cpu: CpuTime,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tag {
    pub(super) master: Option<u32>,
    pub(super) worker: bool,
    pub(super) record: SlotRecord,
    pub(super) wishes: Wishes,
}

fn asked_less(before: &Wishes, now: &Wishes) -> bool {
    let asked = |wishes: &Wishes| wishes.requests != Requests::None;
    now.profile == Profile::None && before.profile > Profile::None || asked(before) && !asked(now)
}

/// What the kernel wrote to a record.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) fork: Fork,
    pub(super) by_track: bool,
    pub(super) exit: Option<Exit>,
    pub(super) reap: Option<Reap>,
}

#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) clock: u64,
    pub(super) processes: BTreeMap<Pid, Real>,
    pub(super) tags: BTreeMap<ProcessKey, Tag>,
    pub(super) records: BTreeMap<u32, Written>,
    pub(super) next_record: u32,
    pub(super) events: Vec<Input>,
    pub(super) lost: u64,
    pub(super) told: Vec<ProcessKey>,
    pub(super) unlistable: bool,
    /// What pools want to know.
    pub(super) wishes: BTreeMap<u32, Wishes>,
    /// No process can be tagged now.
    pub(super) untaggable: bool,
    pub(super) config_texts: BTreeMap<String, String>,
    pub(super) tracked: Vec<(Pid, u32, Role)>,
    pub(super) untracked: Vec<(Pid, Role)>,
    pub(super) released: Vec<u32>,
    pub(super) reads: usize,
    /// CPU charged to control groups, by path.
    pub(super) charged: BTreeMap<Vec<u8>, u64>,
    /// Accounts and lists of members that were read.
    pub(super) cgroup_reads: (usize, usize),
    /// Sockets that listen, by inode: where, how many wait, of how many.
    pub(super) listening: BTreeMap<u32, (SocketFamily, String, u32, u32)>,
    /// Who has which of them open, and others.
    pub(super) open: BTreeMap<Pid, Vec<u32>>,
    /// No socket is listed now.
    pub(super) unlisted_sockets: bool,
    /// Families that were listed.
    pub(super) socket_lists: Vec<SocketFamily>,
    /// Whose descriptors were looked at.
    pub(super) looked_at: Vec<Pid>,
    /// Who waits for work since its fork.
    pub(super) parked: Vec<Pid>,
    /// Figures that passes have told: they are told anew when they have changed.
    pub(super) told_figures: BTreeMap<ProcessKey, (CpuTime, bool)>,
    /// Records of those who wait that were read, and have not moved since.
    pub(super) read_records: Vec<u32>,
    /// Of whom it was asked to tell again.
    pub(super) told_again: Vec<Pid>,
}

impl Host {
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1_000_000;
        self.clock
    }

    /// The pool for which a worker is followed.
    fn pool_of_record(&self, tag: &Tag) -> Option<u32> {
        self.records.get(&tag.record.filter(|_| tag.worker)?)?.fork.pool
    }

    /// A process that was there before.
    pub(super) fn add(&mut self, pid: Pid, parent: Pid, comm: &str, exe: &str, cmdline: &str) {
        let key = ProcessKey { pid, start_ns: self.tick() };
        let facts = ProgramFacts {
            exe: (!exe.is_empty()).then(|| exe.into()),
            cmdline: Some(cmdline.into()),
            uid: Some(0),
            cgroup: Some(format!("/system.slice/{pid}.service").into()),
        };
        let (kernel_thread, zombie) = (false, false);
        let comm = Comm::from_bytes(comm.as_bytes());
        self.processes
            .insert(pid, Real { key, parent, comm, facts, kernel_thread, zombie, cpu: CpuTime::default() });
    }

    pub(super) fn fork(&mut self, parent: Pid, pid: Pid) {
        let at_ns = self.tick();
        let key = ProcessKey { pid, start_ns: at_ns };
        let Some(real) = self.processes.get(&parent).filter(|p| !p.zombie).cloned() else { return };
        assert!(!self.processes.contains_key(&pid), "{pid} is in use");
        let pool = self.tags.get(&real.key).and_then(|tag| tag.master);
        let record = pool.map(|_| self.next_record);
        let fork = Fork { child: key, parent, comm: real.comm, pool, record, at_ns };
        if let Some(record) = record {
            self.next_record += 1;
            self.records.insert(record, Written { fork, by_track: false, exit: None, reap: None });
            let wishes = pool.and_then(|pool| self.wishes.get(&pool)).copied().unwrap_or_default();
            self.tags.insert(key, Tag { master: None, worker: true, record: Some(record), wishes });
        }
        self.processes.insert(pid, Real { key, parent, cpu: CpuTime::default(), ..real });
        self.events.push(Input::Fork(fork));
    }

    pub(super) fn exec(&mut self, pid: Pid, comm: &str, exe: &str, cmdline: &str) {
        let at_ns = self.tick();
        let Some(real) = self.processes.get_mut(&pid).filter(|p| !p.zombie) else { return };
        real.comm = Comm::from_bytes(comm.as_bytes());
        (real.facts.exe, real.facts.cmdline) = (Some(exe.into()), Some(cmdline.into()));
        let exec = Exec { process: real.key, comm: real.comm, by_thread: false, at_ns };
        self.events.push(Input::Exec(exec));
    }

    pub(super) fn rename(&mut self, pid: Pid, comm: &str) {
        let Some(real) = self.processes.get_mut(&pid).filter(|p| !p.zombie) else { return };
        real.comm = Comm::from_bytes(comm.as_bytes());
        self.events.push(Input::Rename(Rename { process: real.key, comm: real.comm }));
    }

    pub(super) fn exit(&mut self, pid: Pid) {
        let at_ns = self.tick();
        let Some(real) = self.processes.get_mut(&pid).filter(|p| !p.zombie) else { return };
        real.zombie = true;
        real.facts.exe = None;
        let exit = Exit {
            process: real.key,
            status: ExitStatus::Code(0),
            sender: None,
            oom_killed: Some(false),
            cpu: Some(real.cpu),
            peak_rss_bytes: Some(4096),
            at_ns,
        };
        let key = real.key;
        if let Some(record) = self.tags.get(&key).and_then(|tag| tag.record) {
            let written = self.records.get_mut(&record).expect("a record with a tag is not released");
            assert_eq!(written.fork.child, key);
            written.exit = Some(exit);
        }
        for child in self.processes.values_mut().filter(|p| p.parent == pid) {
            child.parent = 1;
        }
        self.events.push(Input::Exit(exit));
    }

    pub(super) fn reap(&mut self, pid: Pid) {
        let at_ns = self.tick();
        let Some(real) = self.processes.get(&pid).filter(|p| p.zombie).cloned() else { return };
        self.processes.remove(&pid);
        let cpu = CpuTime { system_ns: real.cpu.system_ns + 5, ..real.cpu };
        let reap = Reap { process: real.key, cpu: Some(cpu), at_ns };
        let Some(tag) = self.tags.remove(&real.key) else { return };
        if let Some(record) = tag.record {
            self.records.get_mut(&record).expect("a record with a tag is not released").reap = Some(reap);
        }
        self.events.push(Input::Reap(reap));
    }

    pub(super) fn end(&mut self, pid: Pid) {
        self.exit(pid);
        self.reap(pid);
    }

    pub(super) fn end_children(&mut self, parent: Pid) {
        let pids: Vec<Pid> =
            self.processes.values().filter(|p| p.parent == parent).map(|p| p.key.pid).collect();
        pids.into_iter().for_each(|pid| self.end(pid));
    }

    pub(super) fn run(&mut self, pid: Pid, user_ns: u64) {
        if let Some(real) = self.processes.get_mut(&pid).filter(|p| !p.zombie) {
            real.cpu.user_ns += user_ns;
            if let Some(charged) = real.facts.cgroup.as_ref().and_then(|path| self.charged.get_mut(path)) {
                *charged += user_ns;
            }
        }
    }

    /// Puts these processes into a control group.
    pub(super) fn put_in(&mut self, cgroup: &str, pids: &[Pid]) {
        self.charged.entry(cgroup.into()).or_default();
        for pid in pids {
            self.processes.get_mut(pid).unwrap().facts.cgroup = Some(cgroup.into());
        }
    }

    /// Loses the events that wait to be drained.
    pub(super) fn lose(&mut self) {
        self.lost += self.events.len() as u64;
        self.events.clear();
    }
}

#[derive(Clone)]
pub(super) struct Fake(Arc<Mutex<Host>>);

impl Fake {
    fn host(&self) -> MutexGuard<'_, Host> {
        self.0.lock().expect("no panic holds it")
    }
}

impl Source for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn drain(&mut self, out: &mut dyn FnMut(Input)) {
        let mut host = self.host();
        let told = std::mem::take(&mut host.told);
        for input in std::mem::take(&mut host.events) {
            let process = match &input {
                Input::Fork(fork) => Some(fork.child),
                Input::Exit(exit) => Some(exit.process),
                Input::Reap(reap) => Some(reap.process),
                _ => None,
            };
            if process.is_none_or(|process| !told.contains(&process)) {
                out(input);
            }
        }
    }

    fn pass(&mut self, out: &mut dyn FnMut(Input)) {
        let mut host = self.host();
        let lost = std::mem::take(&mut host.lost);
        if lost > 0 {
            out(Input::Lost { events: lost });
            for written in host.records.values() {
                if !written.by_track {
                    out(Input::Fork(written.fork));
                }
                written.exit.into_iter().for_each(|exit| out(Input::Exit(exit)));
                written.reap.into_iter().for_each(|reap| out(Input::Reap(reap)));
            }
            host.told = host.records.values().filter(|w| w.reap.is_some()).map(|w| w.fork.child).collect();
        }
        let started_ns = host.tick();
        let mut told = Vec::new();
        for key in host.tags.keys() {
            let Some(real) = host.processes.get(&key.pid).filter(|p| p.key == *key) else { continue };
            if host.told_figures.get(key) == Some(&(real.cpu, real.zombie)) {
                let record = host.tags.get(key).and_then(|tag| tag.record);
                out(Input::Unchanged { process: *key, record, at_ns: started_ns });
                continue;
            }
            told.push((*key, (real.cpu, real.zombie)));
            let bytes = Some(8192).filter(|_| !real.zombie);
            out(Input::Sample(Sample {
                process: *key,
                cpu: real.cpu,
                rss: bytes.map(|total_bytes| Rss {
                    total_bytes,
                    file_bytes: None,
                    anonymous_bytes: None,
                    shmem_bytes: None,
                    swap_bytes: None,
                }),
                threads: 1,
                minor_faults: 0,
                major_faults: 0,
                voluntary_switches: None,
                involuntary_switches: None,
                run_delay_ns: None,
                read_bytes: None,
                written_bytes: None,
                state: if real.zombie { TaskState::Zombie } else { TaskState::Sleeping },
                at_ns: started_ns,
            }));
        }
        host.told_figures.extend(told);
        out(Input::PassComplete { started_ns });
    }

    fn list(&mut self, out: &mut dyn FnMut(Listed)) {
        let host = self.host();
        for real in host.processes.values().filter(|_| !host.unlistable) {
            out(Listed {
                process: real.key,
                parent: real.parent,
                comm: real.comm,
                kernel_thread: real.kernel_thread,
                zombie: real.zombie,
            });
        }
    }

    fn set_wishes(&mut self, pool: u32, wishes: Wishes) {
        self.host().wishes.insert(pool, wishes);
    }

    fn track(&mut self, process: ProcessKey, pool: u32, role: Role) -> SlotRecord {
        let mut host = self.host();
        host.tracked.push((process.pid, pool, role));
        host.told_figures.remove(&process);
        let untaggable = host.untaggable;
        let real = host.processes.get(&process.pid).filter(|p| p.key == process && !untaggable).cloned()?;
        let mut tag = host.tags.get(&process).copied().unwrap_or_default();
        let wishes = host.wishes.get(&pool).copied().unwrap_or_default();
        match role {
            Role::Master => tag.master = Some(pool),
            // One that is followed for this pool already is followed on, unless it is to be asked less.
            Role::Worker if host.pool_of_record(&tag) == Some(pool) && !asked_less(&tag.wishes, &wishes) => {
                tag.wishes = wishes;
            }
            Role::Worker => {
                let record = host.next_record;
                host.next_record += 1;
                let (parent, comm, at_ns) = (real.parent, real.comm, 0);
                let fork =
                    Fork { child: process, parent, comm, pool: Some(pool), record: Some(record), at_ns };
                host.records.insert(record, Written { fork, by_track: true, exit: None, reap: None });
                (tag.worker, tag.record, tag.wishes) = (true, Some(record), wishes);
            }
        }
        host.tags.insert(process, tag);
        tag.record.filter(|_| role == Role::Worker)
    }

    fn untrack(&mut self, process: ProcessKey, role: Role) {
        let mut host = self.host();
        host.untracked.push((process.pid, role));
        host.told_figures.remove(&process);
        let Some(tag) = host.tags.get_mut(&process) else { return };
        match role {
            Role::Master => tag.master = None,
            Role::Worker => (tag.worker, tag.record) = (false, None),
        }
        if tag.master.is_none() && !tag.worker {
            host.tags.remove(&process);
        }
    }

    fn tell_again(&mut self, process: ProcessKey, record: SlotRecord) {
        let mut host = self.host();
        host.told_again.push(process.pid);
        host.told_figures.remove(&process);
        host.read_records.retain(|read| Some(*read) != record);
    }

    fn moved(&mut self, records: &mut Vec<u32>) {
        let host = self.host();
        let parked = host.records.iter().filter(|(_, written)| host.parked.contains(&written.fork.child.pid));
        records
            .extend(parked.map(|(record, _)| *record).filter(|record| !host.read_records.contains(record)));
    }

    fn schedule(&mut self, record: u32, out: &mut ScheduleReading) -> Option<bool> {
        let mut host = self.host();
        let fork = host.records.get(&record).map(|written| written.fork)?;
        if !host.parked.contains(&fork.child.pid) || host.read_records.contains(&record) {
            return None;
        }
        host.read_records.push(record);
        *out = ScheduleReading {
            pool: fork.pool?,
            process: fork.child,
            at_ns: host.tick(),
            living: 1,
            ..ScheduleReading::default()
        };
        (out.work.begin_ns, out.work.ready_ns) = (fork.at_ns, fork.at_ns + 1);
        Some(true)
    }

    fn release(&mut self, record: u32) {
        let mut host = self.host();
        assert!(host.records.remove(&record).is_some(), "record {record} is not given");
        let user = host.tags.iter().find(|(_, tag)| tag.record == Some(record));
        assert!(user.is_none(), "record {record} is still written by {user:?}");
        host.released.push(record);
    }

    fn lives(&mut self, process: ProcessKey) -> bool {
        self.host().processes.get(&process.pid).is_some_and(|real| real.key == process && !real.zombie)
    }

    fn recorded_exit(&self, process: ProcessKey, record: u32) -> Option<Exit> {
        let host = self.host();
        host.records.get(&record).and_then(|written| written.exit).filter(|exit| exit.process == process)
    }

    fn event_counts(&self) -> Vec<EventCounts> {
        Vec::new()
    }

    fn losses(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn features(&self) -> Vec<Feature> {
        Vec::new()
    }
}

impl FactReader for Fake {
    fn read(&mut self, process: ProcessKey, needs: Needs) -> Option<ProgramFacts> {
        let mut host = self.host();
        host.reads += 1;
        let facts = &host.processes.get(&process.pid).filter(|p| p.key == process)?.facts;
        Some(ProgramFacts {
            exe: facts.exe.clone().filter(|_| needs.exe),
            cmdline: facts.cmdline.clone().filter(|_| needs.cmdline),
            uid: facts.uid.filter(|_| needs.uid),
            cgroup: facts.cgroup.clone().filter(|_| needs.cgroup),
        })
    }

    fn config_text(&mut self, _: ProcessKey, path: &Path) -> Option<String> {
        self.host().config_texts.get(path.to_str()?).cloned()
    }
}

/// A control group of the host.
struct FakeCgroup(Fake, Vec<u8>);

impl std::fmt::Debug for FakeCgroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FakeCgroup").field(&self.1).finish()
    }
}

impl Cgroup for FakeCgroup {
    fn usage_ns(&mut self) -> Option<u64> {
        let mut host = self.0.host();
        host.cgroup_reads.0 += 1;
        host.charged.get(&self.1).copied()
    }

    fn members(&mut self, at_most: usize, out: &mut Vec<Pid>) -> bool {
        let mut host = self.0.host();
        host.cgroup_reads.1 += 1;
        let inside =
            host.processes.values().filter(|p| !p.zombie && p.facts.cgroup.as_ref() == Some(&self.1));
        *out = inside.map(|p| p.key.pid).collect();
        out.len() <= at_most
    }
}

impl CgroupReader for Fake {
    fn of(&mut self, pid: Pid) -> Option<Box<dyn Cgroup>> {
        let path = self.host().processes.get(&pid)?.facts.cgroup.clone()?;
        self.host().charged.contains_key(&path).then(|| Box::new(FakeCgroup(self.clone(), path)) as _)
    }
}

impl SocketReader for Fake {
    fn listening(&mut self, family: SocketFamily, out: &mut dyn FnMut(ListeningSocket<'_>)) -> bool {
        let mut host = self.host();
        host.socket_lists.push(family);
        for (inode, (of, name, length, limit)) in &host.listening {
            let address = SocketAddress::Unix(name.as_bytes());
            if *of == family {
                out(ListeningSocket { inode: *inode, address, length: *length, limit: *limit });
            }
        }
        !host.unlisted_sockets
    }

    fn held(&mut self, process: ProcessKey, at_most: usize, out: &mut Vec<u32>) -> usize {
        let mut host = self.host();
        assert!(host.processes.get(&process.pid).is_none_or(|real| real.key == process));
        host.looked_at.push(process.pid);
        out.clear();
        out.extend(host.open.get(&process.pid).into_iter().flatten().take(at_most));
        out.len()
    }
}

/// The aggregator, the host and the time, turned as the collecting thread turns them.
pub(super) struct World {
    pub(super) aggregate: Aggregate,
    pub(super) fake: Fake,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        let host = Host { clock: monotonic_ns() + SECOND, ..Host::default() };
        let fake = Fake(Arc::new(Mutex::new(host)));
        let aggregate = Aggregate::new(config, HostFacts { page_size: 4096, cpus: 3 }, Governor::new(None));
        let world = Self { aggregate, fake };
        world.host(|host| host.add(1, 0, "init", "/sbin/init", "init\0"));
        world
    }

    pub(super) fn host<T>(&self, change: impl FnOnce(&mut Host) -> T) -> T {
        change(&mut self.fake.host())
    }

    pub(super) fn turn(&mut self) {
        let (aggregate, mut release) = (&mut self.aggregate, Vec::new());
        self.fake.drain(&mut |input| aggregate.apply(input, &mut release));
        let now = self.host(Host::tick);
        self.aggregate.classify(now, &mut self.fake.clone(), &mut self.fake.clone());
        release.into_iter().for_each(|record| self.fake.release(record));
    }

    /// A turn with a pass. Returns when the next is due.
    pub(super) fn pass(&mut self) -> u64 {
        self.turn();
        self.read()
    }

    /// The pass alone.
    pub(super) fn read(&mut self) -> u64 {
        let now = self.host(Host::tick);
        let next = self.aggregate.pass_begins(now);
        self.aggregate.read_cgroups();
        let (aggregate, mut release) = (&mut self.aggregate, Vec::new());
        self.fake.pass(&mut |input| aggregate.apply(input, &mut release));
        self.aggregate.compare_cgroups(now, &self.fake.clone(), &mut self.fake.clone());
        self.aggregate.read_accept_queues(now, &mut self.fake.clone());
        release.into_iter().for_each(|record| self.fake.release(record));
        self.aggregate.read_schedules(&mut self.fake.clone());
        let now = self.host(Host::tick);
        self.aggregate.pass_ends(now);
        next
    }

    pub(super) fn later(&mut self, ns: u64) {
        self.host(|host| host.clock += ns);
    }

    /// Time for everything: looks, searches and a reading.
    pub(super) fn settle(&mut self) {
        for _ in 0..4 {
            self.later(SECOND);
            self.pass();
        }
    }

    pub(super) fn snapshot(&mut self) -> Snapshot {
        let now = self.host(Host::tick);
        self.aggregate.snapshot(now, "fake", &Arc::from([]), NO_OWN())
    }

    pub(super) fn reconfigure(&mut self, config: Config) {
        self.aggregate.reconfigure(config, &mut self.fake.clone());
    }

    /// Pools with the pids of masters and workers, as `name: masters | workers`.
    pub(super) fn pools(&mut self) -> Vec<String> {
        let view = |pool: &snapshot::Pool| {
            let mut workers: Vec<Pid> = pool.workers.iter().map(|w| w.pid).collect();
            workers.sort_unstable();
            let mut masters: Vec<Pid> = pool.masters.iter().map(|m| m.pid).collect();
            masters.sort_unstable();
            format!("{}: {masters:?} | {workers:?}", pool.name)
        };
        self.snapshot().pools.iter().map(view).collect()
    }

    #[track_caller]
    pub(super) fn check(&mut self, expected: &[&str]) {
        assert_eq!(self.pools(), expected);
    }

    pub(super) fn pool(&mut self, name: &str) -> snapshot::Pool {
        let pools = self.snapshot().pools;
        pools.into_iter().find(|pool| &*pool.name == name).unwrap_or_else(|| panic!("no pool {name}"))
    }

    pub(super) fn loss(&mut self, reason: &str) -> u64 {
        self.aggregate.losses().iter().find(|(name, _)| *name == reason).unwrap().1
    }
}
