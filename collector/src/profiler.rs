//! The profiling thread: takes what is asked for, samples, and answers with profiles; and with where all threads are.
//!
//! A thread of its own, because reading the files of what is profiled and looking up names occupies a CPU. While nobody asks
//! it sleeps, and nothing of it is in the kernel, unless it is to sample all the time and keep what it finds
//! (`continuous`). Captures of the same things at the same rate share their samples.

mod account;
mod continuous;
mod heap;
mod kept;
mod measuring;
mod naming;
mod requests;
mod sampling;
mod spaces;
mod tails;
mod threads;
mod work;
mod workers;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use collector_ebpf::schedule::KINDS;
use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::{oneshot, watch};

pub use self::account::Account;
use self::continuous::Continuous;
pub use self::heap::heap;
pub use self::requests::Captured;
use self::requests::{Asking, Closed, Request, Requests};
use self::work::Work;
use crate::kernel::{LoadError, Samplers, What};
use crate::procfs::ProcfsError;
use crate::procfs::kallsyms::Kallsyms;
use crate::procfs::root::Root;
use crate::profile::threads::Dump;
use crate::profile::{Kind, Labels, Profile};
use crate::snapshot::Snapshot;
use crate::units::{NANOS_PER_SECOND, Pid};

/// Whose profile is asked for.
#[derive(Clone, Debug, Default)]
pub struct Whom {
    /// The workers of this pool; those of all, unless given.
    pub pool: Option<String>,
    /// The worker in this slot.
    pub slot: Option<u32>,
    /// The worker with this pid.
    pub pid: Option<Pid>,
    /// The thread with this id.
    pub tid: Option<Pid>,
    /// Not of workers, but of this process. No pool, slot or pid may be given then.
    pub own: bool,
}

impl Whom {
    fn has_pool(&self, pool: &str) -> bool {
        self.pool.as_ref().is_none_or(|wanted| *wanted == *pool)
    }

    fn has(&self, pool: &str, slot: Option<u32>, pid: Pid) -> bool {
        self.has_pool(pool)
            && self.slot.is_none_or(|wanted| slot == Some(wanted))
            && self.pid.is_none_or(|wanted| wanted == pid)
    }

    fn has_thread(&self, labels: &Labels) -> bool {
        self.has(&labels.pool, labels.slot.map(|(slot, _)| slot), labels.pid)
            && self.tid.is_none_or(|wanted| wanted == labels.tid)
    }
}

/// Why there is nobody to ask.
#[derive(Debug, Error)]
pub enum SetUpError {
    /// Processes cannot be read.
    #[error(transparent)]
    Procfs(#[from] ProcfsError),
    /// No descriptors are left for what wakes the thread up.
    #[error("a pair of sockets to wake the profiling thread up with: {0}")]
    Bell(#[from] io::Error),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What is to be measured. Not [`Kind::Threads`] and [`Kind::Heap`], which nothing is measured for.
    pub kind: Kind,
    /// Of whom.
    pub whom: Whom,
    /// For how long.
    pub duration: Duration,
    /// Samples a second, of each CPU. Not zero.
    pub hz: u32,
    /// Of waits, those that are as long as that at least, ns, by kind of time ([`crate::input::TIME_KINDS`]).
    pub least_ns: [u64; KINDS],
}

impl Wanted {
    /// What has to be sampled for it.
    fn sampled(&self) -> Vec<What> {
        let on_cpu = What::OnCpu { period_ns: NANOS_PER_SECOND / u64::from(self.hz) };
        let off_cpu = What::OffCpu { least_ns: self.least_ns };
        match self.kind {
            Kind::OnCpu => vec![on_cpu],
            Kind::Cycles => vec![What::Cycles { hz: self.hz }],
            Kind::OffCpu | Kind::RunQueue => vec![off_cpu],
            Kind::Wall => vec![on_cpu, off_cpu],
            Kind::Threads | Kind::Heap => Vec::new(),
        }
    }
}

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// As many as there can be are under way.
    #[error("as many captures, or rates, are under way as can be; ask again when one has ended")]
    Busy,
    /// Cycles are asked for, and cannot be counted. What to do is in the text, here and below.
    #[error("{0}")]
    NoCycles(String),
    /// Not that often.
    #[error("{0}")]
    TooOften(String),
    /// Not while others count.
    #[error("{0}")]
    CountersTaken(String),
    /// The kernel refused.
    #[error("the kernel refuses to sample: {0}")]
    Load(LoadError),
    /// Of the time that is asked for nothing is kept. From when to when there is something, nanoseconds since the Unix epoch.
    #[error("nothing is kept of that time; {}", kept(*.0))]
    NotKept(Option<(u64, u64)>),
    /// Counters, or where threads are, could not be read.
    #[error("reading what the kernel tells: {0}")]
    Read(#[from] io::Error),
}

impl From<LoadError> for CaptureError {
    fn from(error: LoadError) -> Self {
        let text = || format!("{error}; what helps: {}", error.remedy());
        match error {
            LoadError::NoEventsLeft => Self::Busy,
            LoadError::NoCycles(_) => Self::NoCycles(text()),
            LoadError::TooOften { .. } => Self::TooOften(text()),
            LoadError::CountersTaken => Self::CountersTaken(text()),
            other => Self::Load(other),
        }
    }
}

fn kept(from_to: Option<(u64, u64)>) -> String {
    let time = |unix_ns: u64| Timestamp::from_nanosecond(unix_ns.into()).unwrap_or(Timestamp::MAX);
    from_to.map_or_else(
        || {
            let lasts_s = continuous::LASTS.as_secs();
            format!(
                "what is sampled now will be in {lasts_s} s, unless the log says that it cannot be sampled"
            )
        },
        |(from, to)| format!("there is something from {:.0} to {:.0}", time(from), time(to)),
    )
}

/// Where captures are asked for.
#[derive(Clone, Debug)]
pub struct Profiler {
    asking: Asking,
    account: Arc<Account>,
}

impl Profiler {
    /// A capture, which begins now. It ends early when what this returns is dropped; and that ends without an answer if the
    /// thread has ended.
    pub fn capture(&self, wanted: Wanted) -> Captured {
        let (answer, answered) = oneshot::channel();
        self.asking.ask(Request::Capture(wanted, answer));
        Captured::new(answered, self.asking.clone())
    }

    /// Ends all captures without an answer: nobody is to wait for them when the process ends.
    pub fn end_captures(&self) {
        self.asking.end();
    }

    /// What runs on CPUs is sampled all the time, and kept, and so are long waits.
    pub fn keeps(&self) -> bool {
        self.account.keeps()
    }

    /// What it costs.
    pub fn account(&self) -> Arc<Account> {
        Arc::clone(&self.account)
    }

    /// What was kept of a time, from when to when, nanoseconds since the Unix epoch: what ran ([`Kind::OnCpu`]), to the ten seconds,
    /// or the long waits that ended then ([`Kind::OffCpu`], [`Kind::RunQueue`]). As for captures, there is no answer if the thread
    /// has ended.
    pub fn kept(
        &self,
        kind: Kind,
        from_to_ns: (u64, u64),
        whom: Whom,
    ) -> oneshot::Receiver<Result<Profile, CaptureError>> {
        let (answer, answered) = oneshot::channel();
        self.asking.ask(Request::Kept { kind, from_to_ns, whom, answer });
        answered
    }

    /// What all threads of workers do now. As for captures, there is no answer if the thread has ended.
    pub fn threads(&self, whom: Whom) -> oneshot::Receiver<Result<Dump, CaptureError>> {
        let (answer, answered) = oneshot::channel();
        self.asking.ask(Request::Threads(whom, answer));
        answered
    }
}

/// What the thread is given.
#[derive(Debug)]
pub struct Profiling {
    requests: Requests,
    samplers: Samplers,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    kallsyms: Kallsyms,
    /// One for each who reads.
    procfs: [Root; 3],
    continuous: Option<Continuous>,
    account: Arc<Account>,
}

/// Both ends. To be made before rights are dropped: whether the kernel shows the addresses of its functions is decided then. What runs
/// on CPUs is sampled all the time if `continuous_hz` says how often.
pub fn new(
    samplers: Samplers,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    procfs: &Path,
    continuous_hz: Option<u32>,
) -> Result<(Profiler, Profiling), SetUpError> {
    let (asking, requests) = requests::new()?;
    let roots = [Root::open(procfs)?, Root::open(procfs)?, Root::open(procfs)?];
    let account = Arc::new(Account::new(continuous_hz.is_some()));
    let profiling = Profiling {
        account: Arc::clone(&account),
        requests,
        samplers,
        snapshots,
        kallsyms: Kallsyms::open(procfs),
        procfs: roots,
        continuous: continuous_hz.map(Continuous::new),
    };
    Ok((Profiler { asking, account }, profiling))
}

impl Profiling {
    /// Works until all other ends are dropped.
    pub fn run(self) {
        let Self { requests, samplers, snapshots, kallsyms, procfs, continuous, account } = self;
        let mut work = Work::new(samplers, snapshots, kallsyms, procfs, continuous, account);
        loop {
            match requests.next(work.next_look(), &work.await_strangers()) {
                Ok(Some(Request::End)) => work.end_captures(),
                Ok(Some(_)) if requests.have_ended() => {}
                Ok(Some(Request::Capture(wanted, answer))) => work.begin(wanted, answer),
                Ok(Some(Request::Kept { kind, from_to_ns, whom, answer })) if !answer.is_closed() => {
                    let _ = answer.send(work.kept(kind, from_to_ns, &whom));
                }
                Ok(Some(Request::Threads(whom, answer))) if !answer.is_closed() => {
                    let _ = answer.send(work.threads(&whom));
                }
                Ok(Some(Request::Threads(..) | Request::Kept { .. })) => {}
                Ok(None) if !work.is_at_work() => {
                    work.forget_if_due();
                    continue;
                }
                Ok(None) => {}
                Err(Closed) => return,
            }
            work.look_after();
            work.account_for();
        }
    }
}
