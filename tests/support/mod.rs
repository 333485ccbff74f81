//! What the tests share: a running collector, a master that obeys, and waiting for conditions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(dead_code, unreachable_pub, reason = "each test target uses its part")]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The longest that anything may take; a condition that holds comes back at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came about: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that was built with the tests; the environment says where it is when it was carried to another machine.
pub fn program(variable: &str, built: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| built.into(), PathBuf::from)
}

fn collector_binary() -> PathBuf {
    program("COLLECTOR_BINARY", env!("CARGO_BIN_EXE_collector"))
}

/// Examples lie beside the test binaries' directory.
fn workload_binary() -> PathBuf {
    std::env::var_os("WORKLOAD_BINARY").map_or_else(
        || {
            let own = std::env::current_exe().expect("our own path");
            own.parent()
                .and_then(|deps| deps.parent())
                .expect("target/profile/deps")
                .join("examples/workload")
        },
        PathBuf::from,
    )
}

/// A command of the collector that ends by itself.
pub fn collector_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(collector_binary());
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("COLLECTOR_") {
            command.env_remove(name);
        }
    }
    command
}

/// A collector that serves on a port of its own.
pub struct Collector {
    child: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// Starts it and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        let collector = Self::launch(collector_command(arguments));
        collector.wait_ready();
        collector
    }

    /// Starts a prepared command, with a free port; not ready yet.
    pub fn launch(mut command: Command) -> Self {
        command.arg("--web.listen-address=127.0.0.1:0").stderr(Stdio::piped());
        let mut child = command.spawn().expect("the collector was built");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                writer.lock().expect("no panic holds it").push(line);
            }
        });
        let address = eventually("the collector says where it listens", || {
            let lines = log.lock().expect("no panic holds it");
            if let Some(status) = child.try_wait().expect("ours") {
                panic!("the collector ended with {status}:\n{}", lines.join("\n"));
            }
            let line = lines.iter().find(|line| line.contains("address="))?;
            let address = line.split("address=").nth(1)?.split_whitespace().next()?;
            Some(address.trim_matches('"').to_owned())
        });
        Self { child, address, log }
    }

    pub fn wait_ready(&self) {
        eventually("the collector is ready", || {
            (self.request("/readyz", &[]).ok()?.status() == 200).then_some(())
        });
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Lines of its log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic holds it").join("\n")
    }

    pub fn request(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        let mut request = agent.get(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call()
    }

    pub fn text(&self, path: &str, accept: &str) -> String {
        let mut response = self.request(path, &[("accept", accept)]).expect("it answers");
        assert_eq!(response.status(), 200, "{path}");
        response.body_mut().with_config().limit(1 << 28).read_to_string().expect("text")
    }

    pub fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path, "application/json")).expect("JSON")
    }

    pub fn stats(&self) -> Value {
        self.json("/api/v1/stats")
    }

    /// The pool of this master, once it has so many workers with readings.
    pub fn pool_of(&self, master: Pid, workers: usize) -> Value {
        eventually(&format!("the pool of {master} has {workers} workers"), || {
            let stats = self.stats();
            let pool = pool_of(&stats, master)?;
            let read = pool["workers"].as_array()?.iter().filter(|w| w.get("cpu").is_some()).count();
            (read == workers).then(|| pool.clone())
        })
    }

    /// A value of `/metrics`: the family and labels as they are written there.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = self.text("/metrics", "text/plain");
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|r| r.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Switches of workers' threads that the kernel has not told. Some kernels hide the threads of the first process, and with
    /// them the switch to a thread that runs after one of these.
    pub fn unseen_switches(&self) -> u64 {
        self.metric("collector_losses_total{reason=\"switch_out_of_order\"}").expect("it has the scheduler")
            as u64
    }

    /// What a run comes to in which the kernel told of every switch.
    pub fn with_all_seen<T>(&self, mut run: impl FnMut() -> T) -> T {
        const RUNS: usize = 20;
        for _ in 0..RUNS {
            let before = self.unseen_switches();
            let result = run();
            if self.unseen_switches() == before {
                return result;
            }
        }
        panic!("in none of {RUNS} runs the kernel told of every switch");
    }

    /// The death certificate of a process.
    pub fn certificate(&self, pid: Pid) -> Value {
        eventually(&format!("{pid} has a death certificate"), || {
            let exits = self.json("/api/v1/exits");
            exits["exits"].as_array()?.iter().find(|e| e["pid"] == pid.as_raw()).cloned()
        })
    }

    /// Ends it as an init system does. Returns its exit status.
    pub fn stop(mut self) -> std::process::ExitStatus {
        kill(self.pid(), Signal::SIGTERM).expect("it runs");
        self.child.wait().expect("ours")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Into files: they are long, and what the test has to say must not be lost behind them.
            let last = self.request("/api/v1/stats", &[]).and_then(|mut r| r.body_mut().read_to_string());
            for (what, text) in [("stats", last.unwrap_or_else(|e| e.to_string())), ("log", self.log())] {
                let path = std::env::temp_dir().join(format!("collector-{}-{what}", self.pid()));
                let written = std::fs::write(&path, text);
                eprintln!("its last {what}: {} ({written:?})", path.display());
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pool that has this master.
pub fn pool_of(stats: &Value, master: Pid) -> Option<&Value> {
    stats["pools"].as_array()?.iter().find(|pool| {
        pool["masters"].as_array().is_some_and(|m| m.iter().any(|m| m["pid"] == master.as_raw()))
    })
}

/// The worker with this pid.
pub fn worker(pool: &Value, pid: Pid) -> Option<&Value> {
    pool["workers"].as_array()?.iter().find(|w| w["pid"] == pid.as_raw())
}

/// A master that obeys; see `workload.rs`.
pub struct Workload {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Workload {
    pub fn start() -> Self {
        let path = workload_binary();
        let mut child =
            Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|e| {
                panic!("{}: {e}; `cargo build --example workload` makes it", path.display())
            });
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a command without waiting for its answer.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("it reads");
    }

    /// Waits for the answer of a command that was sent.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it writes");
        line.trim().to_owned()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Forks a worker.
    pub fn spawn(&mut self, behaviour: &str) -> Pid {
        Pid::from_raw(self.ask(&format!("spawn {behaviour}")).parse().expect("a pid"))
    }

    /// Two numbers of an answer.
    pub fn ask_pair(&mut self, command: &str) -> (u64, u64) {
        self.tell(command);
        self.answer_pair()
    }

    pub fn answer_pair(&mut self) -> (u64, u64) {
        let answer = self.answer();
        let mut words = answer.split(' ').map(|w| w.parse().expect("a number"));
        (words.next().expect("first"), words.next().expect("second"))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the hypervisor has kept from this machine's CPUs, in seconds: `steal` of `/proc/stat`, see proc(5).
pub fn stolen_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("/proc");
    text.lines().next().unwrap().split_whitespace().nth(8).unwrap().parse::<f64>().unwrap() / 100.0
}

/// `/proc/PID/stat` after the name, from field 3 (state) on: `fields[n - 3]` is field n of proc_pid_stat(5).
pub fn proc_stat(pid: Pid) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// Field n of proc_pid_stat(5), from 4 on.
pub fn stat_field(pid: Pid, n: usize) -> Option<u64> {
    proc_stat(pid)?.get(n - 3).copied()
}
