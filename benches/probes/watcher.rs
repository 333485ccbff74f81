//! Those who watch: the collector, with rules that follow the pair or do not, and two tools of libbpf-tools.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;

use crate::cost::Cost;
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
    child: Child,
    address: Option<SocketAddr>,
    _rules: Option<tempfile::NamedTempFile>,
}

impl Watcher {
    /// Starts it, and waits until it is attached and follows the pair if it is to.
    pub(crate) fn start(which: Which, collector: &Path) -> anyhow::Result<Self> {
        let mut watcher = match which.rules() {
            Some(rules) => Self::collector(which, collector, &rules)?,
            None => {
                let mut command = Command::new(which.name());
                if which == Which::Runqlat {
                    command.arg("-P");
                }
                command.stdout(Stdio::null()).stderr(Stdio::null());
                Self { which, child: spawn(&mut command)?, address: None, _rules: None }
            }
        };
        let deadline = Instant::now() + PATIENCE;
        while watcher.cost().is_err() || !watcher.follows() {
            if let Some(status) = watcher.child.try_wait()? {
                bail!("{} ended: {status}", which.name());
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

    fn collector(which: Which, collector: &Path, rules: &str) -> anyhow::Result<Self> {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        file.write_all(rules.as_bytes())?;
        let mut command = Command::new(collector);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("COLLECTOR_") {
                command.env_remove(name);
            }
        }
        // Without a budget: this load is above any, and the probes would record less.
        command.args(["--source=ebpf", "--probes.overhead-budget=0", "--web.listen-address=127.0.0.1:0"]);
        command.arg("--config.file").arg(file.path());
        command.stderr(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
        let mut log = Vec::new();
        let address = loop {
            let Some(line) = lines.next() else {
                bail!("the collector ended before it listened:\n{}", log.join("\n"));
            };
            let line = line?;
            match line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()) {
                Some(address) => break address.trim_matches('"').parse()?,
                None => log.push(line),
            }
        };
        // Its log goes on, and must not block it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(Self { which, child, address: Some(address), _rules: Some(file) })
    }

    /// Time that both of the pair spent is known, if that is its task. False before it answers.
    fn follows(&self) -> bool {
        let (Some(address), Which::Tracked | Which::Counters) = (self.address, self.which) else {
            return true;
        };
        let stats = || {
            let mut answer = ureq::get(format!("http://{address}/api/v1/stats")).call().ok()?;
            answer.body_mut().read_json::<serde_json::Value>().ok()
        };
        stats().is_some_and(|stats| {
            stats["pools"][0]["schedule"]["seconds"]["pipe"].as_f64().is_some_and(|seconds| seconds > 0.0)
        })
    }

    /// Run time of its programs so far.
    pub(crate) fn cost(&self) -> anyhow::Result<Cost> {
        Cost::of(&self.child.id().to_string())
    }
}

/// Starts a program that ends with us, however we end.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null());
    // SAFETY: prctl(2) is async-signal-safe, and nothing is allocated or locked.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    command.spawn().with_context(|| format!("starting {}", command.get_program().display()))
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
