//! Whole programs that watch processes: the collector and its peer, started, asked and measured from outside.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::client::{Client, Coding};
use crate::workers::{COMM, die_with_us};

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
        let mut command = Command::new(env!("CARGO_BIN_EXE_collector"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("COLLECTOR_") {
                command.env_remove(name);
            }
        }
        command.arg(format!("--source={source}")).arg("--web.listen-address=127.0.0.1:0");
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        die_with_us(&mut command);
        let started = Instant::now();
        let mut child = command.spawn().context("starting the collector")?;
        let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
        let mut log = Vec::new();
        let address = loop {
            let Some(line) = lines.next() else {
                bail!("the collector ended before it listened:\n{}", log.join("\n"));
            };
            let line = line?;
            let address = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next());
            match address {
                Some(address) => break address.trim_matches('"').parse()?,
                None => log.push(line),
            }
        };
        // Its log goes on, and must not block it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
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
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        die_with_us(&mut command);
        let started = Instant::now();
        let child = command.spawn().context("starting process-exporter")?;
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
