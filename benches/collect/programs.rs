//! Whole programs that watch processes: the collector and its peer, started, asked and measured from outside.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::client::{Client, Coding};
use crate::common::launch;
use crate::workers::COMM;

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's build of process-exporter.
pub(crate) const PEER: &str = "/usr/bin/prometheus-process-exporter";
pub(crate) const PEER_PACKAGE: &str = "prometheus-process-exporter";

pub(crate) struct Program {
    child: Child,
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) started: Instant,
    _configuration: Option<tempfile::NamedTempFile>,
}

impl Program {
    /// Starts the collector from this source; it need not be ready yet.
    pub(crate) fn collector(source: &'static str) -> anyhow::Result<Self> {
        let started = Instant::now();
        let program = Path::new(env!("CARGO_BIN_EXE_collector"));
        let (child, address) = launch::collector(program, &[&format!("--source={source}")])?;
        Ok(Self { child, name: source, address, started, _configuration: None })
    }

    /// Starts process-exporter for the processes of the bench; `None` when it is not installed.
    pub(crate) fn peer() -> anyhow::Result<Option<Self>> {
        if !Path::new(PEER).exists() {
            return Ok(None);
        }
        let mut configuration = tempfile::NamedTempFile::new()?;
        write!(configuration, "process_names:\n  - name: \"{{{{.Comm}}}}\"\n    comm: [\"{COMM}\"]\n")?;
        // It cannot tell which port it was given, so a free one is found for it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(PEER);
        command.arg("-config.path").arg(configuration.path()).args(["-procfs", "/proc"]);
        command.arg(format!("-web.listen-address={address}"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let child = launch::spawn(&mut command)?;
        let program =
            Self { child, name: "process-exporter", address, started, _configuration: Some(configuration) };
        program.until("process-exporter listens", || program.client().ok())?;
        Ok(Some(program))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::connect(self.address)
    }

    /// CPU time of all its threads, living and dead, to the nanosecond.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(ClockId::pid_cpu_clock_id(self.pid())?)
    }

    /// Resident set, counted exactly: the figures of `stat` and `statm` may lag by some pages for each CPU.
    pub(crate) fn rss_bytes(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask() {
                return Ok(answer);
            }
            ensure!(Instant::now() < deadline, "{}: it never came about: {what}", self.name);
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Waits for the first scrape that is answered, and returns the CPU it took to get there.
    pub(crate) fn first_scrape(&self) -> anyhow::Result<Duration> {
        self.until("the first scrape is answered", || {
            let mut client = self.client().ok()?;
            (client.get("/metrics", Coding::Plain).ok()?.status == 200).then_some(())
        })?;
        self.cpu()
    }

    /// Waits until it shows so many workers, or processes, as one pool or group.
    pub(crate) fn wait_for(&self, workers: usize) -> anyhow::Result<()> {
        self.until(&format!("it sees {workers} workers"), || {
            std::thread::sleep(Duration::from_millis(200));
            self.sees(&self.client().ok()?.text("/metrics").ok()?, workers).then_some(())
        })
    }

    /// This exposition shows so many workers.
    fn sees(&self, text: &str, workers: usize) -> bool {
        // The peer counts the master, too.
        let (prefix, expected) = match self.name {
            "process-exporter" => {
                ("namedprocess_namegroup_num_procs{groupname=\"bench-worker\"} ", workers + 1)
            }
            _ => ("worker_pool_size{", workers),
        };
        let mut values =
            text.lines().filter(|line| line.starts_with(prefix)).filter_map(|l| l.rsplit(' ').next());
        values.any(|value| value.parse() == Ok(expected))
    }

    /// Values of series of the collector, named as they are written.
    pub(crate) fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics(self.client()?.text("/metrics")?))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Metrics(String);

impl Metrics {
    /// The sum over all series of a family.
    pub(crate) fn sum(&self, family: &str) -> f64 {
        self.with(family, "")
    }

    /// The sum over the series of a family whose labels contain this.
    pub(crate) fn with(&self, family: &str, label: &str) -> f64 {
        let series = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(family)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let named = labels.is_empty() || labels.starts_with('{');
            (named && labels.contains(label)).then(|| value.parse::<f64>().ok())?
        });
        series.sum()
    }
}

pub(crate) fn cpu_of(clock: ClockId) -> anyhow::Result<Duration> {
    Ok(Duration::from(clock.now().context("reading a CPU clock")?))
}
