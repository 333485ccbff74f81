//! Those who watch: the collector, with rules that follow the pair or do not, and two tools of libbpf-tools.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::common::cost::Cost;
use crate::common::launch::spawn;
use crate::common::sidecar::Sidecar;
use crate::pipe::COMM;

/// The name that the bench gives itself. Where the pair is not to be followed, the bench is: the collector's probes are
/// attached only while there is a worker.
pub(crate) const BENCH: &str = "probes-bench";

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The collector, the pair in a pool with all histograms.
    Tracked,
    /// The collector, the pair in a pool with counters alone.
    Counters,
    /// The collector, which follows somebody else.
    Untracked,
    Runqlat,
    Offcputime,
}

impl Which {
    pub(crate) const ALL: [Self; 5] =
        [Self::Tracked, Self::Counters, Self::Untracked, Self::Runqlat, Self::Offcputime];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tracked | Self::Counters | Self::Untracked => "collector",
            Self::Runqlat => "runqlat",
            Self::Offcputime => "offcputime",
        }
    }

    /// Of one of ours, what it does with the pair.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Tracked => "tracked, run-queue wait, on-CPU and off-CPU histograms",
            Self::Counters => "tracked, counters only",
            Self::Untracked => "untracked",
            Self::Runqlat | Self::Offcputime => "",
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        self.rules().is_some()
    }

    pub(crate) fn available(self) -> bool {
        match self {
            Self::Tracked | Self::Counters | Self::Untracked => true,
            Self::Runqlat | Self::Offcputime => {
                Command::new(self.name()).arg("--version").output().is_ok_and(|o| o.status.success())
            }
        }
    }

    /// The file with the collector's rules.
    fn rules(self) -> Option<String> {
        let (comm, scheduler) = match self {
            Self::Tracked => (COMM, "histograms"),
            Self::Counters => (COMM, "counters"),
            Self::Untracked => (BENCH, "histograms"),
            Self::Runqlat | Self::Offcputime => return None,
        };
        Some(format!(
            "zero_config: false\npools:\n  - name: pipe\n    scheduler: {scheduler}\n    match:\n      comm: {comm}\n"
        ))
    }
}

/// Watches while it lives.
pub(crate) struct Watcher {
    which: Which,
    runs: Runs,
}

enum Runs {
    Ours(Sidecar),
    Tool(Child),
}

impl Watcher {
    /// Starts it, and waits until it is attached and follows the pair if it is to.
    pub(crate) fn start(which: Which, collector: &Path) -> anyhow::Result<Self> {
        let runs = match which.rules() {
            Some(rules) => Runs::Ours(Sidecar::start(collector, &rules, &[])?),
            None => {
                let mut command = Command::new(which.name());
                if which == Which::Runqlat {
                    command.arg("-P");
                }
                Runs::Tool(spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?)
            }
        };
        let mut watcher = Self { which, runs };
        let deadline = Instant::now() + PATIENCE;
        while watcher.cost().is_err() || !watcher.follows() {
            match &mut watcher.runs {
                Runs::Ours(sidecar) => sidecar.alive()?,
                Runs::Tool(child) => {
                    let status = child.try_wait()?;
                    ensure!(status.is_none(), "{} ended: {status:?}", which.name());
                }
            }
            ensure!(
                Instant::now() < deadline,
                "{} ({}) did not attach or follow: {:?}",
                which.name(),
                which.what(),
                watcher.cost()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(watcher)
    }

    /// Time that both of the pair spent is known, if that is its task. False before it answers.
    fn follows(&self) -> bool {
        let (Runs::Ours(sidecar), Which::Tracked | Which::Counters) = (&self.runs, self.which) else {
            return true;
        };
        sidecar
            .pool()
            .is_some_and(|pool| pool["schedule"]["seconds"]["pipe"].as_f64().is_some_and(|s| s > 0.0))
    }

    /// Run time of its programs so far.
    pub(crate) fn cost(&self) -> anyhow::Result<Cost> {
        match &self.runs {
            Runs::Ours(sidecar) => sidecar.cost(),
            Runs::Tool(child) => Cost::of(&child.id().to_string()),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Runs::Tool(child) = &mut self.runs {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
