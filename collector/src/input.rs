//! What a source can say about processes: the closed set of facts that the aggregator takes.
//!
//! The eBPF source and the `/proc` source both speak this and nothing else, which is why registry, snapshot and
//! API do not know which one is running. A fact that a source cannot know is `None`, never 0.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use collector_ebpf::request::OUTCOMES;
use collector_ebpf::schedule::{DISK, KINDS, MEASURES, PARKS_IN_SHARED_LOCK, POLL, Work};

use crate::units::{CpuTime, Pid, ProcessKey};

/// Longest `comm` the kernel keeps, with its terminating zero (`TASK_COMM_LEN` in `include/linux/sched.h`).
pub const COMM_LEN: usize = 16;

/// A process name as the kernel holds it: up to 15 arbitrary bytes, padded with zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Comm(pub [u8; COMM_LEN]);

impl Comm {
    /// The bytes before the first zero. Any byte but zero can occur, newlines and invalid UTF-8 included.
    pub fn as_bytes(&self) -> &[u8] {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(COMM_LEN);
        &self.0[..len]
    }

    /// Takes the first 15 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut comm = [0; COMM_LEN];
        let len = bytes.len().min(COMM_LEN - 1);
        comm[..len].copy_from_slice(&bytes[..len]);
        Self(comm)
    }
}

/// The kernel slot record that a worker was given at fork; `None` where the source has no slots or none was free.
pub type SlotRecord = Option<u32>;

/// One fact. Sources hand these to the aggregator in the order in which they happened, as far as the source knows.
#[derive(Clone, Debug)]
pub enum Input {
    /// A process (not a thread) was created.
    Fork(Fork),
    /// A process runs another program now, under the same identity.
    Exec(Exec),
    /// A process changed its `comm`.
    Rename(Rename),
    /// The last thread of a process ended. It may stay as a zombie until its parent reaps it.
    Exit(Exit),
    /// The process is gone from the kernel; its CPU figures are final. Always after its `Exit`, if both arrive.
    Reap(Reap),
    /// Cumulative figures of one living (or defunct) process, read now.
    Sample(Sample),
    /// A process has not run since its last [`Input::Sample`]: that is still what it has used. Whoever begins to track a
    /// process gets a sample first; of who was tracked from its fork it may have come too early ([`Source::tell_again`]).
    Unchanged {
        /// Who.
        process: ProcessKey,
        /// The record that its source knows it by, where it has one.
        record: SlotRecord,
        /// When this was read, `CLOCK_MONOTONIC` ns.
        at_ns: u64,
    },
    /// Ends one pass over all tracked processes: whoever was not in it no longer exists.
    PassComplete {
        /// `CLOCK_MONOTONIC` when the pass began, ns. Processes that were born later are not judged by it.
        started_ns: u64,
    },
    /// The source lost lifecycle facts; what is known may be stale until the next full listing.
    Lost {
        /// How many facts were lost since the last such input.
        events: u64,
    },
}

/// A process as a full listing shows it.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Who.
    pub process: ProcessKey,
    /// Its parent's pid.
    pub parent: Pid,
    /// Its name.
    pub comm: Comm,
    /// It has no program and no address space of its own.
    pub kernel_thread: bool,
    /// It ended and was not reaped.
    pub zombie: bool,
}

/// Kinds of time, in the order of [`collector_ebpf::schedule`]: on a CPU, waiting for one, and the reasons to be blocked.
pub const TIME_KINDS: [&str; KINDS] = [
    "on_cpu",
    "runnable",
    "disk",
    "lock",
    "network",
    "poll",
    "sleep",
    "pipe",
    "pagefault",
    "child",
    "stopped",
    "other",
];

/// Values of one bucket of one measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Index into [`TIME_KINDS`], or [`SPAN`](collector_ebpf::schedule::SPAN), or, from
    /// [`REQUEST`](collector_ebpf::schedule::REQUEST) on, into [`REQUEST_OUTCOMES`].
    pub measure: u8,
    /// Bucket of its length in ns ([`collector_ebpf::histogram`]).
    pub bucket: u16,
    /// How many.
    pub count: u32,
}

/// Where the threads of one worker have spent their time since they were first followed.
#[derive(Clone, Debug, Default)]
pub struct ScheduleReading {
    /// Pool of the worker.
    pub pool: u32,
    /// The worker.
    pub process: ProcessKey,
    /// When this was read, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// Time by kind, ns, intervals that are not over included.
    pub time_ns: [u64; KINDS],
    /// Intervals that are not over, by kind: how many threads add to that time.
    pub open: [u32; KINDS],
    /// How long all of its threads have been followed, living and dead, ns: what the times add up to but for what is
    /// not known.
    pub lived_ns: u64,
    /// Threads followed now.
    pub living: u32,
    /// Values by measure that are in no histogram; wraps around.
    pub discarded: [u32; MEASURES],
    /// What was recorded since the last reading.
    pub intervals: Vec<Interval>,
    /// It is busy: a thread of it is not parked, or a request is in flight.
    pub busy: bool,
    /// When it was.
    pub work: Work,
    /// Requests that have ended, by outcome; wraps around.
    pub requests: [u32; OUTCOMES],
    /// Requests in flight.
    pub in_flight: u32,
    /// When the first began, `CLOCK_MONOTONIC` ns; 0 before.
    pub first_request_ns: u64,
    /// Bytes received from sockets.
    pub received_bytes: u64,
    /// Bytes sent to sockets.
    pub sent_bytes: u64,
}

/// What is new of the requests of one pool that had their thread to themselves.
#[derive(Clone, Debug, Default)]
pub struct WaterfallReading {
    /// When this was read, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// How many there were since the last reading, as all that follows.
    pub requests: u32,
    /// How long they took, together, ns.
    pub duration_ns: u64,
    /// Where their threads were meanwhile, by kind, ns.
    pub time_ns: [u64; KINDS],
    /// Times by kind that are in no histogram.
    pub discarded: [u32; KINDS],
    /// Time of a request in a kind, where it was in it at all.
    pub intervals: Vec<Interval>,
    /// All of the slowest of each stretch of time of which one was kept.
    pub slowest: Vec<(u64, Vec<SlowRequest>)>,
}

/// A request that was one of the slowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowRequest {
    /// When its first byte was received, `CLOCK_MONOTONIC` ns.
    pub begin_ns: u64,
    /// From then to the last byte of its answer, ns.
    pub duration_ns: u64,
    /// Its worker.
    pub pid: Pid,
    /// The thread.
    pub tid: Pid,
    /// Index into [`REQUEST_OUTCOMES`].
    pub outcome: u32,
    /// Where the thread was meanwhile, by kind, ns.
    pub time_ns: [u64; KINDS],
}

/// Outcomes of requests, in the order of [`collector_ebpf::request`].
pub const REQUEST_OUTCOMES: [&str; OUTCOMES] = ["2xx", "3xx", "4xx", "5xx", "ok", "aborted"];

/// What a pool wants to know of the scheduler, and what it counts as waiting for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// How much is watched.
    pub profile: Profile,
    /// Where a worker waits for work.
    pub idle_in: IdleIn,
    /// What is watched of requests.
    pub requests: Requests,
}

/// What a pool wants to know of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requests {
    /// Nothing.
    None,
    /// How many there are and how long they take.
    Timed,
    /// And the class of the status of HTTP/1 answers.
    #[default]
    WithStatus,
}

/// The kinds of time in which a thread waits for work, as bits by number, and [`PARKS_IN_SHARED_LOCK`]: also in a lock, but
/// for the only thread of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleIn(pub u16);

impl IdleIn {
    /// These kinds ([`TIME_KINDS`]), and locks that threads share.
    pub const fn kinds(kinds: &[u32]) -> Self {
        let mut bits = PARKS_IN_SHARED_LOCK as u16;
        let mut index = 0;
        while index < kinds.len() {
            bits |= 1 << kinds[index];
            index += 1;
        }
        Self(bits)
    }

    /// The kind with this name, if it is one that a thread is blocked in.
    pub fn kind_named(name: &str) -> Option<u32> {
        let kind = TIME_KINDS.iter().position(|kind| *kind == name)? as u32;
        (kind >= DISK).then_some(kind)
    }
}

impl Default for IdleIn {
    fn default() -> Self {
        Self::kinds(&[POLL])
    }
}

/// What a pool wants to know of the scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// Nothing.
    None,
    /// How much time went where.
    Counters,
    /// And how long each interval was.
    #[default]
    Histograms,
}

impl Profile {
    /// As the configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Counters => "counters",
            Self::Histograms => "histograms",
        }
    }
}

/// What a tracked process is to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It forks workers: its children are tracked from their first microsecond, where the source can do that.
    Master,
    /// It is a worker.
    Worker,
}

/// Where facts come from. The collecting thread owns one and calls it; nothing here blocks or sleeps.
pub trait Source {
    /// `ebpf` or `procfs`.
    fn name(&self) -> &'static str;

    /// Hands over what happened since the last call.
    fn drain(&mut self, out: &mut dyn FnMut(Input));

    /// How long a source that had hardly anything to tell may be left alone, ns: what can happen meanwhile has to find
    /// room on the way. The event buffer holds more than twice as long of the fastest fork storm
    /// ([`collector_ebpf::limits::EVENT_RING_BYTES`]).
    fn quiet_drain_ns(&self) -> u64 {
        100_000_000
    }

    /// What becomes readable when there is something to drain, for a source that can be waited for. Asked for before a
    /// wait and told when it is over, so that nothing is spent on waking who does not wait.
    fn begin_wait(&mut self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The wait is over, whether or not it was for this source.
    fn end_wait(&mut self) {}

    /// Reads the figures of every tracked process, then says [`Input::PassComplete`].
    fn pass(&mut self, out: &mut dyn FnMut(Input));

    /// Lists every process of the host.
    fn list(&mut self, out: &mut dyn FnMut(Listed));

    /// Starts to follow a process for pool number `pool`. Returns the record of a worker, where there are records: the one that
    /// it has, if it is followed for this pool already and that still wants to know of the scheduler, and of requests, as far as it did at
    /// all; what it wants now is then set right in place, and nothing is missed meanwhile. A process can have both roles, for different pools.
    /// A process that is gone already is no error: its end was or will be reported.
    fn track(&mut self, process: ProcessKey, pool: u32, role: Role) -> SlotRecord;

    /// Takes a role from a process that goes on living. What fails now is done in a later pass.
    fn untrack(&mut self, process: ProcessKey, role: Role);

    /// What a pass or [`Source::schedule`] has told of a worker came before anybody knew it as one. The next pass, and
    /// [`Source::moved`], tell of it again, also if nothing has changed.
    fn tell_again(&mut self, _process: ProcessKey, _record: SlotRecord) {}

    /// Gives back the record of a worker whose final figures were taken.
    fn release(&mut self, record: u32);

    /// Says what a pool wants to know of the scheduler, before any of its processes is tracked; the default if it never
    /// says.
    fn set_wishes(&mut self, _pool: u32, _wishes: Wishes) {}

    /// The most that any pool wants, and may have, of the scheduler. The probes run while this is not
    /// [`Profile::None`], those of requests if some pool wants `requests`.
    /// True if those of requests run.
    fn limit_profiles(&mut self, _ceiling: Profile, _requests: bool) -> bool {
        false
    }

    /// How much of its CPU, ns, may not be in the figure of a process that has, or had, more than one thread.
    fn cpu_short_ns(&self) -> u64 {
        0
    }

    /// What the scheduler probes have cost where they had something to do, CPU ns since start, from a sample of their
    /// runs; `None` where there are none.
    fn probe_cost_ns(&self) -> Option<u64> {
        None
    }

    /// Adds the records of workers whose threads have moved since [`Source::schedule`] last read them.
    fn moved(&mut self, _records: &mut Vec<u32>) {}

    /// Reads where the time of the worker with this record went, and takes what was recorded. `None` if nothing has
    /// changed since the last time but that time has passed, or if nothing is known here; `Some(false)` if its times
    /// cannot be read now, and only what was recorded is in `out`.
    fn schedule(&mut self, _record: u32, _out: &mut ScheduleReading) -> Option<bool> {
        None
    }

    /// Reads where the time of requests went, and tells of each pool, by its number, where something is new.
    fn waterfalls(&mut self, _tell: &mut dyn FnMut(u32, &WaterfallReading)) {}

    /// All waterfalls are other pools', and this one has been asked: where the time of its requests goes is not measured.
    fn refuses_waterfall(&self, _pool: u32) -> bool {
        false
    }

    /// Tells the pools for whose masters [`Source::track`] is to be called again, so that workers that come are followed as
    /// those are that are there.
    fn has_tags_to_renew(&mut self, _tell: &mut dyn FnMut(u32)) {}

    /// For how long it keeps what [`Source::waterfalls`] tells of the slowest requests, ns, whether or not it was told; `None`
    /// where it has none.
    fn slowest_kept_ns(&self) -> Option<u64> {
        None
    }

    /// Says that there is no such pool any more.
    fn forget_pool(&mut self, _pool: u32) {}

    /// Of each thread of a process, the functions of the kernel that it is in, the innermost first; none of those that
    /// run, and where that is not known.
    fn kernel_stacks(&mut self, _pid: Pid) -> Vec<(Pid, Vec<String>)> {
        Vec::new()
    }

    /// A process lives that passes did not show. Where passes show every one that lives there is nothing to look up.
    fn lives(&mut self, _process: ProcessKey) -> bool {
        false
    }

    /// How a worker ended, as its record has it; for an end that no fact told.
    fn recorded_exit(&self, _process: ProcessKey, _record: u32) -> Option<Exit> {
        None
    }

    /// What a worker that has ended has used, as its record has it, if nothing can be added any more.
    fn final_cpu(&self, _process: ProcessKey, _record: u32) -> Option<CpuTime> {
        None
    }

    /// Lifecycle events by kind.
    fn event_counts(&self) -> Vec<crate::snapshot::EventCounts>;

    /// What was lost, by reason, since start.
    fn losses(&self) -> Vec<(&'static str, u64)>;

    /// What this source can do here.
    fn features(&self) -> Vec<crate::snapshot::Feature>;

    /// Cost of the programs in the kernel; empty where there are none or the kernel does not count.
    fn programs(&mut self) -> Vec<crate::snapshot::ProgramCost> {
        Vec::new()
    }

    /// How full the kernel maps are.
    fn map_fill(&self) -> Vec<crate::snapshot::MapFill> {
        Vec::new()
    }

    /// Kernel memory held for us, bytes.
    fn map_bytes(&self) -> Option<u64> {
        None
    }
}

/// What `/proc` says about the program of a process. Fields that were not asked for or cannot be read are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramFacts {
    /// Path of the executable, as bytes.
    pub exe: Option<Vec<u8>>,
    /// Arguments, each ended by a zero byte; or a title that the process wrote over them.
    pub cmdline: Option<Vec<u8>>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Control group path.
    pub cgroup: Option<Vec<u8>>,
}

/// Facts that a decision needs, so that the caller reads no others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Path of the executable.
    pub exe: bool,
    /// Arguments.
    pub cmdline: bool,
    /// User.
    pub uid: bool,
    /// Control group.
    pub cgroup: bool,
    /// The same facts of the parent.
    pub parent: bool,
}

impl Needs {
    /// What tells a program and its role.
    pub const PROGRAM: Self = Self { exe: true, cmdline: true, uid: false, cgroup: false, parent: false };

    /// These facts have been read. A fact that cannot be read is asked for again, which costs a failed open.
    pub fn met_by(self, facts: &ProgramFacts) -> bool {
        (!self.exe || facts.exe.is_some())
            && (!self.cmdline || facts.cmdline.is_some())
            && (!self.uid || facts.uid.is_some())
            && (!self.cgroup || facts.cgroup.is_some())
    }

    /// These and those.
    pub fn with(self, other: Self) -> Self {
        Self {
            exe: self.exe || other.exe,
            cmdline: self.cmdline || other.cmdline,
            uid: self.uid || other.uid,
            cgroup: self.cgroup || other.cgroup,
            parent: self.parent || other.parent,
        }
    }
}

/// Reads what `/proc` says about a program.
pub trait FactReader {
    /// `None` when the process is gone or is another one by now.
    fn read(&mut self, process: ProcessKey, needs: Needs) -> Option<ProgramFacts>;

    /// What a process is doing now. `None` when it is gone or is another one by now.
    fn doing(&mut self, _process: ProcessKey) -> Option<Doing> {
        None
    }

    /// The text of a configuration file of a recognized program, if it is readable and small.
    fn config_text(&mut self, process: ProcessKey, path: &Path) -> Option<String>;
}

/// What a process is doing at one moment, thread by thread. What cannot be read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doing {
    /// Its threads, at most so many as the reader reads.
    pub threads: Vec<ThreadDoing>,
    /// Its sockets, at most so many as the reader reads.
    pub sockets: Vec<OpenSocket>,
}

/// What a thread is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadDoing {
    /// Thread id.
    pub tid: Pid,
    /// Its name.
    pub comm: Comm,
    /// State as `/proc` writes it: `R`, `S`, `D` and so on.
    pub state: char,
    /// Where in the kernel it waits (`/proc/PID/wchan`).
    pub wait_channel: Option<String>,
    /// The system call that it is in (`/proc/PID/syscall`), by name, or by number where that has none here.
    pub syscall: Option<String>,
    /// Functions of the kernel that it is in, the innermost first.
    pub kernel_stack: Vec<String>,
}

/// A socket that a process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// Its descriptor.
    pub descriptor: u32,
    /// `tcp`, `tcp6`, `unix`; absent for any other.
    pub family: Option<&'static str>,
    /// State of a TCP socket, as tcp(7) has it; of a UNIX socket, whether it is connected or listens.
    pub state: Option<String>,
    /// Its own address.
    pub local: Option<String>,
    /// That of the other end.
    pub remote: Option<String>,
}

/// A control group of version 2, held by whoever found it.
pub trait Cgroup: std::fmt::Debug + Send {
    /// CPU time that was charged to it, ns, rounded down to a microsecond (`usage_usec` of its `cpu.stat`).
    /// `None` when it is no more.
    fn usage_ns(&mut self) -> Option<u64>;

    /// Replaces what is in `out` by the processes that are in it (its `cgroup.procs`); 0 stands for one
    /// outside our pid namespace. False if there are more than `at_most`, if there are cgroups below it, or
    /// if it does not tell.
    fn members(&mut self, at_most: usize, out: &mut Vec<Pid>) -> bool;
}

/// Finds control groups.
pub trait CgroupReader {
    /// The cgroup that the process with this pid is in; `None` where that cannot be told or reached.
    fn of(&mut self, pid: Pid) -> Option<Box<dyn Cgroup>>;
}

/// Sockets that can listen, as they are listed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketFamily {
    /// TCP over IPv4.
    Tcp,
    /// TCP over IPv6, and over IPv4 where the socket takes both.
    Tcp6,
    /// UNIX sockets with connections: streams, and sequenced packets.
    Unix,
}

impl SocketFamily {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tcp6, Self::Unix];

    /// As JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tcp6 => "tcp6",
            Self::Unix => "unix",
        }
    }
}

/// Where a socket listens. Shown as `0.0.0.0:8080`, `[::]:80`, `unix:/run/x.sock`, or `unix:@name` for an abstract name
/// (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketAddress<'a> {
    /// Of TCP.
    Inet(SocketAddr),
    /// Name of a UNIX socket: a path as it was given to bind(2), or a zero byte and any bytes, at most 108 together.
    Unix(&'a [u8]),
}

impl fmt::Display for SocketAddress<'_> {
    /// In names, control characters and what is no UTF-8 are shown as `\xNN`, and `\` as `\\`, so that no two names look
    /// alike.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Inet(address) => return address.fmt(f),
            Self::Unix(name) => name,
        };
        f.write_str("unix:")?;
        let name = match name {
            [0, name @ ..] => {
                f.write_str("@")?;
                name
            }
            // The kernel ends a path with a zero byte (`unix_mkname_bsd` in `net/unix/af_unix.c`).
            path => path.split(|byte| *byte == 0).next().unwrap_or_default(),
        };
        for piece in name.utf8_chunks() {
            for character in piece.valid().chars() {
                let mut bytes = [0; 4];
                match character {
                    '\\' => f.write_str(r"\\")?,
                    c if c.is_control() => escape(c.encode_utf8(&mut bytes).as_bytes(), f)?,
                    c => f.write_char(c)?,
                }
            }
            escape(piece.invalid(), f)?;
        }
        Ok(())
    }
}

fn escape(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

/// A socket that listens, and what waits to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListeningSocket<'a> {
    /// Its inode number, which tells it from all other sockets of the host.
    pub inode: u32,
    /// Where it listens.
    pub address: SocketAddress<'a>,
    /// Connections that are established and wait for accept(2).
    pub length: u32,
    /// The backlog of listen(2), at most `net.core.somaxconn`. The kernel takes connections until there are more, so one
    /// more than this can wait (`sk_acceptq_is_full` in `include/net/sock.h`).
    pub limit: u32,
}

/// Tells which sockets listen, and which ones processes have open.
pub trait SocketReader {
    /// Tells every socket of this family that listens in our network namespace. False if some may be missing.
    fn listening(&mut self, family: SocketFamily, out: &mut dyn FnMut(ListeningSocket<'_>)) -> bool;

    /// Replaces what is in `out` by the inode numbers of the sockets that a process has open, and returns at how many
    /// descriptors it looked: from the first, so many at most. None if the process is gone or may not be looked at.
    fn held(&mut self, process: ProcessKey, at_most: usize, out: &mut Vec<u32>) -> usize;
}

/// A process came into being.
#[derive(Clone, Copy, Debug)]
pub struct Fork {
    /// The child.
    pub child: ProcessKey,
    /// The parent's pid (its `real_parent`'s thread group).
    pub parent: Pid,
    /// The child's `comm`, inherited from the forking thread.
    pub comm: Comm,
    /// The pool tag that the fork probe gave to it, when the parent is a tracked master.
    pub pool: Option<u32>,
    /// The slot record given with the tag.
    pub record: SlotRecord,
    /// When, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
}

/// A process called execve(2).
#[derive(Clone, Copy, Debug)]
pub struct Exec {
    /// Who.
    pub process: ProcessKey,
    /// Its new `comm`.
    pub comm: Comm,
    /// A thread other than the leader called execve: the kernel swapped task structures, and tags kept on the
    /// old leader are gone.
    pub by_thread: bool,
    /// When, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
}

/// A process changed its name (prctl(PR_SET_NAME) in its main thread, or a write to its `comm` file).
#[derive(Clone, Copy, Debug)]
pub struct Rename {
    /// Who.
    pub process: ProcessKey,
    /// Its new `comm`.
    pub comm: Comm,
}

/// How a process ended, decoded from the kernel's wait status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// exit(2) with this code, 0–255.
    Code(u8),
    /// Killed by a signal.
    Signal {
        /// Signal number, 1–64.
        signal: u8,
        /// A core image was written (`WCOREDUMP`).
        core_dumped: bool,
    },
    /// The source saw it vanish and cannot say how (polling `/proc`).
    Unknown,
}

impl ExitStatus {
    /// Decodes a wait status as wait(2) returns it: low 7 bits signal, bit 7 core flag, next 8 bits exit code.
    pub fn from_wait_status(status: u32) -> Self {
        match (status & 0x7f) as u8 {
            0 => Self::Code((status >> 8) as u8),
            signal => Self::Signal { signal, core_dumped: status & 0x80 != 0 },
        }
    }
}

/// Who sent the signal that ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The kernel itself (a fault, the OOM killer, a terminal, a timer).
    Kernel,
    /// A process, by kill(2), tgkill(2), sigqueue(3) or pidfd_send_signal(2).
    Process {
        /// Its pid.
        pid: Pid,
        /// Its `comm` when it sent the signal.
        comm: Comm,
    },
}

/// The last thread of a process ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Who.
    pub process: ProcessKey,
    /// How.
    pub status: ExitStatus,
    /// Who sent the signal, for a death by signal whose sending was seen.
    pub sender: Option<Sender>,
    /// The OOM killer chose it; `None` where the source cannot tell.
    pub oom_killed: Option<bool>,
    /// CPU until here. Tearing down its memory may still add to it: the figure in [`Reap`] is final.
    pub cpu: Option<CpuTime>,
    /// Largest resident set it ever had, bytes.
    pub peak_rss_bytes: Option<u64>,
    /// When, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
}

/// A process left the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Reap {
    /// Who.
    pub process: ProcessKey,
    /// Lifetime CPU, final; `None` where the source cannot tell.
    pub cpu: Option<CpuTime>,
    /// When, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
}

/// Scheduler state of a process's main thread, as the state letter of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// `R`
    Running,
    /// `S`
    Sleeping,
    /// `D`
    DiskSleep,
    /// `T` or `t`
    Stopped,
    /// `Z` or `X`: ended, not yet reaped.
    Zombie,
    /// `I`
    Idle,
    /// Anything newer kernels may add.
    Other,
}

/// Resident memory by kind, bytes. The kernel keeps these in per-CPU counters since 6.2: each may lag the truth by
/// (batch × CPUs) pages, where batch is max(32, 2 × CPUs), as in `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rss {
    /// File + anonymous + shared memory.
    pub total_bytes: u64,
    /// Pages of mapped files; `None` where the source cannot tell the kinds apart.
    pub file_bytes: Option<u64>,
    /// Anonymous pages.
    pub anonymous_bytes: Option<u64>,
    /// Shared memory and tmpfs pages.
    pub shmem_bytes: Option<u64>,
    /// Anonymous memory that was swapped out; not resident, not in the total.
    pub swap_bytes: Option<u64>,
}

/// Cumulative figures of one process: all its threads, living and dead.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Who.
    pub process: ProcessKey,
    /// CPU used since it started.
    pub cpu: CpuTime,
    /// Resident memory; `None` for a process without an address space (it is ending).
    pub rss: Option<Rss>,
    /// Living threads.
    pub threads: u32,
    /// Faults served without IO.
    pub minor_faults: u64,
    /// Faults that needed IO.
    pub major_faults: u64,
    /// Times it gave up the CPU by itself; `None` where unreadable.
    pub voluntary_switches: Option<u64>,
    /// Times it was preempted; `None` where unreadable.
    pub involuntary_switches: Option<u64>,
    /// Time its living threads waited runnable for a CPU, ns (`sched_info.run_delay`); `None` where unreadable.
    pub run_delay_ns: Option<u64>,
    /// Bytes it caused to be read from storage (`/proc/PID/io` `read_bytes`); `None` where unreadable.
    pub read_bytes: Option<u64>,
    /// Bytes it caused to be written to storage; `None` where unreadable.
    pub written_bytes: Option<u64>,
    /// State of its main thread.
    pub state: TaskState,
    /// When this was read, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
}
