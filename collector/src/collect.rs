//! The collecting thread: drains events when they come, or by timer while there are many, reads figures when their turn comes, publishes snapshots.
//!
//! A thread of its own and not a task, because reading an iterator or `/proc` occupies a CPU; the HTTP server must
//! never wait for it. It is the only place where the source is called.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeSpec;
use tokio::sync::watch;

use crate::aggregate::{self, Aggregate};
use crate::governor::Governor;
use crate::heap;
use crate::input::{CgroupReader, FactReader, SocketReader, Source};
use crate::procfs;
use crate::profiler::Account;
use crate::snapshot::{Feature, Own, Snapshot};
use crate::units::{CpuTime, HostFacts, NANOS_PER_SECOND, monotonic_ns, thread_cpu_ns, unix_ns};

/// Time between two drains while there is much to tell. The event buffer holds several times what the fastest fork storm
/// writes meanwhile (see [`collector_ebpf::limits::EVENT_RING_BYTES`]).
const DRAIN_EVERY_NS: u64 = 50_000_000;

/// Less than this in one drain is hardly anything: see [`Source::quiet_drain_ns`]. Waking up is most of what watching
/// an idle pool costs here.
const QUIET_EVENTS: u32 = 64;

/// Where the service leaves commands for the collecting thread.
#[derive(Debug)]
pub struct Commands {
    commands: mpsc::Sender<Command>,
    bell: PipeWriter,
}

/// Where the collecting thread finds them.
#[derive(Debug)]
pub struct Inbox {
    commands: mpsc::Receiver<Command>,
    bell: PipeReader,
}

/// Both ends. The thread sleeps until a descriptor is readable, and a channel has none: hence the pipe beside it.
pub fn inbox() -> io::Result<(Commands, Inbox)> {
    let (sender, receiver) = mpsc::channel();
    let (listens, rings) = io::pipe()?;
    Ok((Commands { commands: sender, bell: rings }, Inbox { commands: receiver, bell: listens }))
}

impl Commands {
    /// Leaves a command. An error means that the collecting thread has ended.
    pub fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        (&self.bell).write_all(&[0])
    }
}

impl Inbox {
    /// Waits for a command, for news, or until it is time, `CLOCK_MONOTONIC` ns.
    fn wait(&self, news: Option<BorrowedFd<'_>>, until_ns: u64) {
        let left = TimeSpec::from_duration(Duration::from_nanos(until_ns.saturating_sub(monotonic_ns())));
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut waited_for = [readable(self.bell.as_fd()), readable(news.unwrap_or(self.bell.as_fd()))];
        // An interruption is a wait that is over early.
        let _ = ppoll(&mut waited_for, Some(left), None);
        if waited_for[0].any().unwrap_or(false) {
            // One byte for each command; those that are left ring again.
            let _ = (&self.bell).read(&mut [0]);
        }
    }
}

/// What the service asks of the collecting thread.
#[derive(Debug)]
pub enum Command {
    /// A new configuration was read and is valid.
    Reconfigure(aggregate::Config),
    /// A configuration was refused; the old one stays.
    ReloadFailed,
}

/// What the snapshots of this service are published on.
pub type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

/// What a collector is made of.
pub struct Setup {
    /// Where facts come from.
    pub source: Box<dyn Source + Send>,
    /// What tells about programs.
    pub facts: Box<dyn FactReader + Send>,
    /// What tells about control groups.
    pub cgroups: Box<dyn CgroupReader + Send>,
    /// What tells about sockets.
    pub sockets: Box<dyn SocketReader + Send>,
    /// What the host allows, besides what the source says of itself.
    pub features: Vec<Feature>,
    /// Rules and limits.
    pub config: aggregate::Config,
    /// When they were read from a file, nanoseconds since the Unix epoch.
    pub config_loaded_unix_ns: Option<u64>,
    /// Constants of this host.
    pub host: HostFacts,
    /// What profiles of workers cost; `None` if there can be none here.
    pub profiling: Option<Arc<Account>>,
    /// Share of one CPU that the scheduler probes may take; `None` for no limit.
    pub overhead_budget: Option<f64>,
    /// Where snapshots go.
    pub publisher: Publisher,
    /// Connections that the server closed because too many were open.
    pub refused_connections: Arc<AtomicU64>,
}

/// State of the collecting thread.
pub struct Collector {
    source: Box<dyn Source + Send>,
    facts: Box<dyn FactReader + Send>,
    cgroups: Box<dyn CgroupReader + Send>,
    sockets: Box<dyn SocketReader + Send>,
    features: Arc<[Feature]>,
    aggregate: Aggregate,
    publisher: Publisher,
    /// Records to be given back to the source.
    release: Vec<u32>,
    /// Facts in the last drain.
    drained: u32,
    own: procfs::own::OwnReader,
    passes: u64,
    /// The source may lose some of the slowest requests when it is not asked for them by then, `CLOCK_MONOTONIC` ns.
    slowest_due_ns: u64,
    pass_cpu_ns: u64,
    event_cpu_ns: u64,
    config_loaded_unix_ns: Option<u64>,
    config_last_reload_successful: bool,
    refused_connections: Arc<AtomicU64>,
    profiling: Option<Arc<Account>>,
}

impl Collector {
    /// Nothing is read yet.
    pub fn new(setup: Setup) -> Self {
        let Setup {
            source,
            facts,
            cgroups,
            sockets,
            mut features,
            config,
            config_loaded_unix_ns,
            host,
            publisher,
            ..
        } = setup;
        features.extend(source.features());
        Self {
            source,
            facts,
            cgroups,
            sockets,
            features: features.into(),
            aggregate: Aggregate::new(config, host, Governor::new(setup.overhead_budget)),
            publisher,
            release: Vec::new(),
            drained: 0,
            own: procfs::own::OwnReader::default(),
            passes: 0,
            slowest_due_ns: u64::MAX,
            pass_cpu_ns: 0,
            event_cpu_ns: 0,
            config_loaded_unix_ns,
            config_last_reload_successful: true,
            refused_connections: setup.refused_connections,
            profiling: setup.profiling,
        }
    }

    /// Works until the other end of `inbox` is dropped.
    pub fn run(mut self, inbox: &Inbox) {
        let mut next_pass_ns = self.turn(0);
        heap::trim();
        heap::let_go_of_code();
        loop {
            self.rest(inbox, next_pass_ns);
            loop {
                match inbox.commands.try_recv() {
                    Ok(command) => {
                        self.obey(command);
                        // The next turn that was set may be an old interval away.
                        next_pass_ns = 0;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            next_pass_ns = self.turn(next_pass_ns);
        }
    }

    /// Sleeps until there may be something to do. Who has just found no events waits for one. With one come more as a
    /// rule, so what follows it is taken by timer.
    fn rest(&mut self, inbox: &Inbox, next_pass_ns: u64) {
        let now = monotonic_ns();
        let drain_ns = match self.drained {
            0..QUIET_EVENTS => self.source.quiet_drain_ns().max(DRAIN_EVERY_NS),
            _ => DRAIN_EVERY_NS,
        };
        let news = if self.drained == 0 { self.source.begin_wait() } else { None };
        let due_ns = match news {
            Some(_) => self.aggregate.due_ns().max(now + DRAIN_EVERY_NS),
            None => now + drain_ns,
        };
        inbox.wait(news, next_pass_ns.min(due_ns).min(self.slowest_due_ns));
        self.source.end_wait();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Reconfigure(config) => {
                self.aggregate.reconfigure(config, &mut *self.source);
                self.config_loaded_unix_ns = Some(unix_ns());
                self.config_last_reload_successful = true;
            }
            Command::ReloadFailed => self.config_last_reload_successful = false,
        }
    }

    /// Takes events, decides about whom they concern, and reads and publishes when it is time. Returns when it is time
    /// next, `CLOCK_MONOTONIC` ns.
    fn turn(&mut self, next_pass_ns: u64) -> u64 {
        let cpu_before = thread_cpu_ns();
        let (aggregate, release) = (&mut self.aggregate, &mut self.release);
        let drained = &mut self.drained;
        *drained = 0;
        self.source.drain(&mut |input| {
            *drained = drained.saturating_add(1);
            aggregate.apply(input, release);
        });
        let now = monotonic_ns();
        self.aggregate.classify(now, &mut *self.source, &mut *self.facts);
        self.give_back();
        let cpu_events = thread_cpu_ns();
        self.event_cpu_ns += cpu_events.saturating_sub(cpu_before);
        if now < next_pass_ns {
            if now >= self.slowest_due_ns {
                self.aggregate.read_waterfalls(&mut *self.source);
                self.slowest_read();
                self.pass_cpu_ns += thread_cpu_ns().saturating_sub(cpu_events);
            }
            return next_pass_ns;
        }
        let next = self.aggregate.pass_begins(now);
        self.aggregate.read_cgroups();
        let (aggregate, release) = (&mut self.aggregate, &mut self.release);
        self.source.pass(&mut |input| aggregate.apply(input, release));
        self.aggregate.compare_cgroups(now, &*self.source, &mut *self.cgroups);
        self.aggregate.read_accept_queues(now, &mut *self.sockets);
        self.give_back();
        self.aggregate.read_schedules(&mut *self.source);
        self.aggregate.pass_ends(monotonic_ns());
        self.slowest_read();
        self.aggregate.flag(monotonic_ns(), &mut *self.source, &mut *self.facts);
        self.passes += 1;
        self.publish();
        self.pass_cpu_ns += thread_cpu_ns().saturating_sub(cpu_events);
        next
    }

    /// The slowest requests were just asked for: however long the intervals of pools are, they are again in half the time
    /// after which the first of them may be gone.
    fn slowest_read(&mut self) {
        let kept_ns = self.source.slowest_kept_ns();
        self.slowest_due_ns = kept_ns.map_or(u64::MAX, |kept_ns| monotonic_ns() + kept_ns / 2);
    }

    fn give_back(&mut self) {
        for record in self.release.drain(..) {
            self.aggregate.release(record, &mut *self.source);
        }
    }

    fn publish(&mut self) {
        let own = self.own();
        let snapshot = self.aggregate.snapshot(monotonic_ns(), self.source.name(), &self.features, own);
        self.publisher.send_replace(Some(Arc::new(snapshot)));
    }

    fn own(&mut self) -> Own {
        let process = self.own.read();
        let mut losses = self.source.losses();
        losses.push(("http_connection_refused", self.refused_connections.load(Ordering::Relaxed)));
        let profiling = self.profiling.as_ref().map(|account| account.read());
        if let Some(profiling) = &profiling {
            losses.push(("profile_sample", profiling.lost));
            losses.push(("profile_wait_passed_over", profiling.passed_over));
        }
        Own {
            cpu: own_cpu(),
            rss_bytes: process.rss_bytes,
            virtual_bytes: process.virtual_bytes,
            open_fds: process.open_fds,
            max_fds: process.max_fds,
            map_bytes: self.source.map_bytes(),
            passes: self.passes,
            pass_cpu_ns: self.pass_cpu_ns,
            event_cpu_ns: self.event_cpu_ns,
            events: self.source.event_counts(),
            losses,
            programs: self.source.programs(),
            scheduler: None,
            maps: self.source.map_fill(),
            processes: 0,
            profiling,
            config_loaded_unix_ns: self.config_loaded_unix_ns,
            config_last_reload_successful: self.config_last_reload_successful,
        }
    }
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("source", &self.source.name()).finish_non_exhaustive()
    }
}

fn own_cpu() -> CpuTime {
    let ns = |t: nix::sys::time::TimeVal| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * NANOS_PER_SECOND
            + u64::try_from(t.tv_usec()).unwrap_or(0) * 1000
    };
    getrusage(UsageWho::RUSAGE_SELF).map_or(CpuTime::default(), |usage| CpuTime {
        user_ns: ns(usage.user_time()),
        system_ns: ns(usage.system_time()),
    })
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("source", &self.source.name()).finish_non_exhaustive()
    }
}
