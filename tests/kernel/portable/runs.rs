//! Work as a process per job: every run is counted once, as it ended and for as long as it took.

use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::support::{Collector, Workload, eventually};

/// A runner all of whose children are jobs, by a rule that measures their runs.
pub(crate) struct Runner {
    pub(crate) master: Workload,
    pub(crate) collector: Collector,
    config: tempfile::TempDir,
}

impl Runner {
    pub(crate) fn start(source: &str) -> Self {
        let mut master = Workload::start();
        // Whoever answers has executed its program: the kernel lets the parent go on before that shows (`exec_mm_release`).
        master.ask("reap");
        let config = tempfile::tempdir().unwrap();
        let path = config.path().join("collector.yml");
        let rules = Self::rules(&master, "work: runs");
        std::fs::write(&path, rules).unwrap();
        let collector = Collector::start(&[source, &format!("--config.file={}", path.display())]);
        let runner = Self { master, collector, config };
        eventually("the runner is known", || {
            let masters = runner.pool()["masters"].as_array()?.clone();
            masters.iter().any(|master| master["pid"] == runner.master.pid().as_raw()).then_some(())
        });
        runner
    }

    /// By the path of the program: others on the host have workloads of their own.
    fn rules(master: &Workload, work: &str) -> String {
        let program = std::fs::read_link(format!("/proc/{}/exe", master.pid())).unwrap();
        format!(
            "zero_config: false\npools: [{{name: jobs, parent: {{exe: {}}}, {work}}}, {{name: web, match: {{comm: x}}}}]\n",
            program.display()
        )
    }

    fn pool(&self) -> Value {
        self.collector.json("/api/v1/pools/jobs")
    }

    pub(crate) fn runs_once(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || Some(self.pool()["runs"].clone()).filter(&holds))
    }

    fn reload(&self, work: &str) {
        let path = self.config.path().join("collector.yml");
        std::fs::write(path, Self::rules(&self.master, work)).unwrap();
        kill(self.collector.pid(), Signal::SIGHUP).unwrap();
    }

    pub(crate) fn counted(&self, outcome: &str) -> Option<f64> {
        let labels = format!("{{pool=\"jobs\",outcome=\"{outcome}\"}}");
        self.collector.metric(&format!("worker_pool_runs_total{labels}"))
    }
}

pub(crate) fn seconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

pub(crate) fn unix_seconds(value: &Value) -> f64 {
    value.as_str().unwrap().parse::<Timestamp>().unwrap().as_nanosecond() as f64 / 1e9
}

fn now_unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn every_run_is_counted_as_it_went() {
    check_every_run("--source=ebpf");
}

/// Jobs one after the other, of each of which is known how it ends and how long it takes at least and at most.
pub(crate) fn check_every_run(source: &str) {
    let mut runner = Runner::start(source);
    let none = runner.pool()["runs"].clone();
    assert_eq!((&none["total"], none.get("last_run"), none.get("success_ratio")), (&0.into(), None, None));

    // What it does, for how long at least, and whether it is a success.
    let jobs = [
        ("job 100 0", 0.1, true),
        ("job 50 3", 0.05, false),
        ("job 300 0", 0.3, true),
        ("abort", 0.0, false),
        ("job 0 0", 0.0, true),
        ("killed", 0.2, false),
        ("job 20 0", 0.02, true),
        ("job 150 255", 0.15, false),
    ];
    let mut bounds = Vec::new();
    for (behaviour, shortest, success) in jobs {
        let (begun, begun_unix) = (Instant::now(), now_unix_seconds());
        let pid = runner.master.spawn(if behaviour == "killed" { "sleep" } else { behaviour });
        if behaviour == "killed" {
            std::thread::sleep(Duration::from_secs_f64(shortest));
            kill(pid, Signal::SIGTERM).unwrap();
        }
        runner.collector.certificate(pid);
        let longest = begun.elapsed().as_secs_f64();
        bounds.push((shortest, longest, success, begun_unix, now_unix_seconds()));
    }

    let runs = runner.runs_once("all runs are counted", |runs| runs["total"] == jobs.len());
    let window = &runs["last_hour"];
    for figures in [&runs, window] {
        assert_eq!(
            (&figures["succeeded"], &figures["failed"], &figures["unknown"]),
            (&4.into(), &4.into(), &0.into())
        );
        assert_eq!(figures["failed_by"], serde_json::json!({"error": 2, "signal": 2, "oom": 0}));
        assert_eq!((&figures["success_ratio"], &figures["error_ratio"]), (&0.5.into(), &0.5.into()));
    }
    let each = window["runs"].as_array().unwrap();
    assert_eq!(each.len(), jobs.len());
    for (run, (shortest, longest, success, begun_unix, ended_unix)) in each.iter().zip(&bounds) {
        let duration = seconds(&run["duration_seconds"]);
        // The machine's clocks may be set a little while it runs.
        const CLOCKS: f64 = 0.05;
        assert!((*shortest..=*longest).contains(&duration), "{run}: {shortest} to {longest}");
        let timestamp = unix_seconds(&run["timestamp"]);
        assert!((begun_unix - CLOCKS..=ended_unix + CLOCKS).contains(&timestamp), "{run}");
        assert_eq!(run["success"], *success, "{run}");
    }
    let durations = || each.iter().map(|run| seconds(&run["duration_seconds"]));
    let duration = |name: &str| seconds(&runs["duration"][name]);
    assert!((duration("total_seconds") - durations().sum::<f64>()).abs() < 1e-6);
    assert!((duration("average_seconds") - durations().sum::<f64>() / 8.0).abs() < 1e-6);
    assert_eq!(duration("min_seconds"), durations().fold(f64::MAX, f64::min));
    assert_eq!(duration("max_seconds"), durations().fold(0.0, f64::max));
    assert_eq!(runs["last_run"], each.last().unwrap()["timestamp"]);
    let uptime = seconds(&runs["uptime_seconds"]);
    assert!((seconds(&runs["runs_per_hour"]) - 8.0 * 3600.0 / uptime).abs() < 1e-3);
    let written = runs["uptime"].as_str().unwrap();
    assert!(written.ends_with(&format!("{}s", uptime as u64 % 60)), "{written} for {uptime} s");

    for (outcome, count) in
        [("success", 4.0), ("error", 2.0), ("signal", 2.0), ("oom", 0.0), ("unknown", 0.0)]
    {
        assert_eq!(runner.counted(outcome), Some(count), "{outcome}");
    }
    let gauge =
        |name: &str| runner.collector.metric(&format!("worker_pool_{name}{{pool=\"jobs\"}}")).unwrap();
    assert_eq!(
        (gauge("shortest_run_seconds"), gauge("longest_run_seconds")),
        (duration("min_seconds"), duration("max_seconds"))
    );
    assert!((gauge("last_run_timestamp_seconds") - unix_seconds(&runs["last_run"])).abs() < 1e-3);

    // Where nobody asks for it there is nothing, and no zeros either.
    assert_eq!(runner.collector.json("/api/v1/pools/web").get("runs"), None);
    assert!(!runner.collector.text("/metrics", "text/plain").contains("worker_pool_runs_total{pool=\"web\""));
    runner.reload("interval: 1s");
    eventually("it is switched off", || runner.pool().get("runs").is_none().then_some(()));
    assert_eq!(runner.counted("success"), None);
    runner.reload("work: runs");
    runner.runs_once("it begins anew", |runs| runs["total"] == 0);
    let pid = runner.master.spawn("job 0 1");
    runner.collector.certificate(pid);
    runner.runs_once("and goes on", |runs| runs["total"] == 1 && runs["failed"] == 1);
}
