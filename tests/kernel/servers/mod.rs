//! The servers that people run, from their packages, without a word of configuration for us.

mod apache;
mod nginx;
pub(crate) mod php;
pub(crate) mod postgresql;
mod puma;
mod python;
mod unknown;
mod uwsgi;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Collector, eventually, pool_of};

/// A server that is ended with the test, and all that it left in its process group.
pub(crate) struct Server {
    child: Child,
    end: Signal,
}

impl Server {
    /// One that ends at once, with its workers, when it is told to quit.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_ended_by(Signal::SIGQUIT, command)
    }

    pub(crate) fn start_ended_by(end: Signal, command: &mut Command) -> Self {
        Self::start_reading(Stdio::null(), end, command)
    }

    fn start_reading(input: impl Into<Stdio>, end: Signal, command: &mut Command) -> Self {
        let name = command.get_program().to_owned();
        // apache2 signals its whole group: it must not be ours.
        command.process_group(0).stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn();
        let child = child.unwrap_or_else(|e| panic!("{}: {e}; is its package installed?", name.display()));
        Self { child, end }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid(), self.end);
        // Some wait for a worker that was killed under their hands; the test has seen what it wanted.
        let deadline = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A directory with these files.
pub(crate) fn directory_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

/// Compiles a C program.
pub(crate) fn compile(directory: &Path, name: &str, source: &str, options: &[&str]) -> std::path::PathBuf {
    let (file, program) = (directory.join(format!("{name}.c")), directory.join(name));
    std::fs::write(&file, source).unwrap();
    let output = Command::new("cc").args(options).arg("-o").arg(&program).arg(&file).output();
    let output = output.expect("a C compiler is installed (package gcc)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

pub(crate) fn command_in(directory: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    command
}

fn pids(pool: &Value) -> Vec<i64> {
    pool["workers"].as_array().unwrap().iter().map(|w| w["pid"].as_i64().unwrap()).collect()
}

fn slots(pool: &Value) -> Vec<(i64, i64)> {
    let number = |value: &Value| value.as_i64().unwrap();
    pool["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| (number(&w["slot"]), number(&w["generation"])))
        .collect()
}

/// What each worker serves, in the order of slots.
fn apps(pool: &Value) -> Vec<&str> {
    pool["workers"].as_array().unwrap().iter().map(|w| w["app"].as_str().unwrap_or("")).collect()
}

/// A child of this process that is no worker has such a name or command line.
fn has_child(master: Pid, pool: &Value, is: impl Fn(&str, &str) -> bool) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap();
    children.split_whitespace().any(|pid| {
        let read = |file| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (comm, line) = (read("comm"), read("cmdline"));
        !pids(pool).contains(&pid.parse().unwrap())
            && is(String::from_utf8_lossy(&comm).trim(), &String::from_utf8_lossy(&line))
    })
}

/// Once every worker has been looked at for the last time, so that what was taken for one at its birth is out: the
/// pool of this master has exactly these workers.
fn settled(collector: &Collector, master: Pid, workers: usize) -> Value {
    let pool = collector.pool_of(master, workers);
    let uptime = || collector.stats()["uptime_seconds"].as_f64().unwrap();
    let from = uptime();
    eventually("what it started has settled", || (uptime() > from + 1.2).then_some(()));
    let pool_now = collector.pool_of(master, workers);
    assert_eq!(pids(&pool_now), pids(&pool), "the same workers as before");
    pool_now
}

/// Kills one worker; its certificate says who did it, and its successor takes the lowest free slot, which is the same one
/// unless a process that proved to be no worker has left one below. Returns the pool.
fn replaces_a_killed_worker(collector: &Collector, master: Pid, pool: &Value, at: usize) -> Value {
    let victim = &pool["workers"][at];
    let pid = Pid::from_raw(victim["pid"].as_i64().unwrap() as i32);
    kill(pid, Signal::SIGKILL).unwrap();
    let certificate = collector.certificate(pid);
    assert_eq!(certificate["signal"]["name"], "SIGKILL");
    assert_eq!(certificate["sender"]["pid"], std::process::id());
    assert_eq!((&certificate["slot"], &certificate["oom_killed"]), (&victim["slot"], &false.into()));
    let mut others = slots(pool);
    let (slot, generation) = others.remove(at);
    let lowest = (0..).find(|slot| others.iter().all(|(other, _)| other != slot)).unwrap();
    assert!(lowest == slot || pool["totals"]["exits"]["reclassified"] != 0, "nobody left a slot: {pool}");
    let after = eventually("a successor has the lowest free slot", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master)?.clone();
        let mut slots = slots(&pool);
        let (_, its) = slots.remove(slots.iter().position(|(slot, _)| *slot == lowest)?);
        (slots == others && (lowest != slot || its == generation + 1)).then_some(pool)
    });
    assert_eq!(after["totals"]["exits"]["signal"].as_u64(), Some(1));
    assert_eq!(after["exits_total"].as_u64(), Some(pool["exits_total"].as_u64().unwrap() + 1));
    assert_eq!(after["spawns_total"].as_u64(), Some(pool["spawns_total"].as_u64().unwrap() + 1));
    after
}

fn check_name(pool: &Value, program: &str, size: Option<u32>) {
    assert_eq!((&pool["name"], &pool["origin"]), (&program.into(), &format!("recognized:{program}").into()));
    assert_eq!(pool.get("configured_size").and_then(Value::as_u64), size.map(u64::from), "{pool}");
}
