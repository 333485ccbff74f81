//! Profiles of workers, as `go tool pprof` shows them, against programs that are known to spend their time in known parts.

mod burner;
mod continuous;
mod hostile;
mod ourselves;
mod raw;
mod sampler;
mod stock;
mod tails;
mod threads;
mod waiter;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;

use crate::support::{Collector, collector_command, eventually};

/// What `go tool pprof` says of the bytes that were served.
pub(crate) struct Pprof {
    directory: tempfile::TempDir,
}

impl Pprof {
    /// Takes a profile, e.g. `profile?pool=web&seconds=2`.
    pub(crate) fn take(collector: &Collector, what: &str) -> Self {
        let mut response = collector.request(&format!("/debug/pprof/{what}"), &[]).expect("it answers");
        let bytes = response.body_mut().with_config().limit(1 << 28).read_to_vec().expect("bytes");
        assert_eq!(response.status(), 200, "{what}: {}", String::from_utf8_lossy(&bytes));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("profile.pb.gz"), bytes).unwrap();
        Self { directory }
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("go");
        command.args(["tool", "pprof", "-symbolize=none"]).args(arguments).arg("profile.pb.gz");
        // It wants a home to keep its settings in.
        let output = command.current_dir(self.directory.path()).env("HOME", self.directory.path()).output();
        let output = output.expect("go is installed (package golang-go)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints with these arguments.
    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        self.run(arguments)
    }

    /// How long it was measured, and how long what was found lasted altogether, s.
    fn duration_and_total_s(&self) -> (f64, f64) {
        // Duration: 10s, Total samples = 9.87s (98.70%)
        let text = self.run(&["-top", "-unit=s"]);
        let after = |what: &str| {
            let (_, rest) = text.split_once(what).expect("it says so");
            rest[..rest.find('s').unwrap()].parse().expect("seconds")
        };
        (after("Duration: "), after("Total samples = "))
    }

    /// `-raw`
    pub(crate) fn raw(&self) -> String {
        self.run(&["-raw"])
    }

    /// Shares of each function, flat and cumulative, by name, as `-top` has them, in percent.
    pub(crate) fn top(&self, arguments: &[&str]) -> HashMap<String, (f64, f64)> {
        let percent = |word: &str| word.trim_end_matches('%').parse::<f64>().expect("a share");
        let shares = |words: &[String]| (percent(&words[1]), percent(&words[4]));
        self.rows(arguments).into_iter().map(|(name, words)| (name, shares(&words))).collect()
    }

    /// How many waits functions and what they call are in.
    pub(crate) fn counts(&self) -> HashMap<String, f64> {
        let rows = self.rows(&["-sample_index=contentions"]);
        rows.into_iter().map(|(name, words)| (name, words[3].parse::<f64>().expect("a count"))).collect()
    }

    /// Names of functions, each with its row of `-top`.
    fn rows(&self, arguments: &[&str]) -> Vec<(String, Vec<String>)> {
        let text = self.run(&[&["-top", "-nodecount=1000000", "-nodefraction=0"], arguments].concat());
        let rows = text.lines().skip_while(|line| !line.trim_start().starts_with("flat")).skip(1);
        rows.map(|row| {
            // flat flat% sum% cum cum% name
            let words: Vec<String> = row.split_whitespace().map(str::to_owned).collect();
            (words[5..].join(" "), words)
        })
        .collect()
    }
}

/// A collector with one pool, of what has this name: it has found its worker.
fn in_pool(directory: &Path, name: &str) -> Collector {
    in_pool_with(directory, name, &[])
}

/// The same with other flags.
fn in_pool_with(directory: &Path, name: &str, flags: &[&str]) -> Collector {
    in_pool_of(directory, name, |own| collector_command(&[own, flags].concat()))
}

/// The same as a command of these flags.
fn in_pool_of(directory: &Path, name: &str, command: impl FnOnce(&[&str]) -> Command) -> Collector {
    let config = directory.join("config.yml");
    std::fs::write(
        &config,
        format!("zero_config: false\npools: [{{name: {name}, match: {{comm: {name}}}}}]\n"),
    )
    .unwrap();
    let config = format!("--config.file={}", config.display());
    let collector = Collector::launch(command(&[&*config, "--source=ebpf"]));
    collector.wait_ready();
    eventually("it is a worker", || {
        let stats = collector.stats();
        let pool = stats["pools"].as_array()?.iter().find(|pool| pool["name"] == name)?.clone();
        (pool["workers"].as_array()?.len() == 1).then_some(())
    });
    collector
}

/// CPU time of a process so far, s.
fn cpu_seconds(pid: Pid) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// What a program has written that measures itself: time in its three parts, ns; whatever else is behind them.
fn spent(file: &Path) -> [f64; 3] {
    eventually("it has written", || {
        let text = std::fs::read_to_string(file).ok()?;
        let numbers: Vec<f64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        numbers.first_chunk().copied()
    })
}

/// Parts have the shares of the profile that they had of the time. What the program needs to measure itself is in none of them.
fn compare(top: &HashMap<String, (f64, f64)>, functions: &[&str; 3], spent: &[f64]) {
    let cumulative = functions.map(|function| top.get(function).copied().unwrap_or_default().1);
    let (all_spent, all): (f64, f64) = (spent.iter().sum(), cumulative.iter().sum());
    for (function, (cumulative, spent)) in functions.iter().zip(cumulative.iter().zip(spent)) {
        let (share, truth) = (cumulative / all * 100.0, spent / all_spent * 100.0);
        println!("{function}: {share:.1} %, measured {truth:.1} %");
        assert!((share - truth).abs() <= 2.0, "{function}: {share} %, measured {truth} %: {top:?}");
    }
}
