//! A real Prometheus and its own checker.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::servers::free_port;
use crate::support::{Collector, Workload, eventually, pool_of};

struct Prometheus {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let configuration = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: collector, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        std::fs::write(&configuration, text).unwrap();
        let port = free_port();
        let child = Command::new("/usr/bin/prometheus")
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("/usr/bin/prometheus: {e}; is its package installed?"));
        Self { child, port, _directory: directory }
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut response = ureq::get(format!("http://127.0.0.1:{}{path}", self.port)).call().ok()?;
        serde_json::from_str(&response.body_mut().read_to_string().ok()?).ok()
    }

    /// The value of an instant query with one result.
    fn query(&self, query: &str) -> Option<f64> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"))?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_prometheus_server_scrapes_it() {
    let mut master = Workload::start();
    for _ in 0..3 {
        master.spawn("sleep");
    }
    let collector = Collector::start(&["--source=ebpf"]);
    let name = collector.pool_of(master.pid(), 3)["name"].as_str().unwrap().to_owned();
    let prometheus = Prometheus::start(collector.address(), &[]);
    eventually("the target is up", || (prometheus.query("up")? == 1.0).then_some(()));
    let workers = format!("sum(worker_pool_workers{{pool=\"{name}\"}})");
    eventually("it has the workers", || (prometheus.query(&workers)? == 3.0).then_some(()));
    master.spawn("exit 4");
    let failed = format!("worker_pool_exits_total{{pool=\"{name}\",reason=\"error\"}}");
    eventually("it has the exit", || (prometheus.query(&failed)? == 1.0).then_some(()));
    let targets = prometheus.get("/api/v1/targets").unwrap();
    assert_eq!(targets["data"]["activeTargets"][0]["lastError"], "");
}

/// What has ended leaves figures that stand still, so both sides can be asked for the same.
#[test]
fn quantiles_of_native_histograms_agree_with_ours() {
    // A bucket of theirs, and one of ours that may stand beside it.
    const WIDTH: f64 = 0.045 + 0.016;
    let mut master = Workload::start();
    for _ in 0..2 {
        master.spawn("sleep");
    }
    let collector = Collector::start(&["--source=ebpf"]);
    let name = collector.pool_of(master.pid(), 2)["name"].as_str().unwrap().to_owned();
    let prometheus = Prometheus::start(collector.address(), &["--enable-feature=native-histograms"]);
    let pool = format!("pool=\"{name}\"");
    eventually("it has the pool", || {
        (prometheus.query(&format!("sum(worker_pool_workers{{{pool}}})"))? == 2.0).then_some(())
    });
    for percent in [20, 40, 60] {
        master.spawn(&format!("duty {percent} 3000"));
    }
    let series = [
        (format!("worker_pool_on_cpu_seconds{{{pool}}}"), "/on_cpu_seconds"),
        (format!("worker_pool_run_queue_wait_seconds{{{pool}}}"), "/run_queue_wait_seconds"),
        (format!("worker_pool_off_cpu_seconds{{{pool},reason=\"sleep\"}}"), "/off_cpu_seconds/sleep"),
    ];
    let ours = |path: &str| -> Option<Value> {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        pool["quantiles"].pointer(&format!("{path}/start")).cloned()
    };
    for (series, path) in &series {
        let (window, theirs) = eventually(&format!("both have the same {path}"), || {
            let window = ours(path)?;
            let count = window["count"].as_f64()?;
            // So many turns make at least so many intervals, but for those whose begin or end the kernel has not told.
            let enough = count + collector.unseen_switches() as f64 >= 3.0 * 300.0;
            let done = enough && prometheus.query(&format!("histogram_count({series})"))? == count;
            let quantile = |q| prometheus.query(&format!("histogram_quantile({q}, {series})"));
            let theirs = [quantile(0.5)?, quantile(0.95)?, quantile(0.99)?];
            (done && ours(path)? == window).then_some((window, theirs))
        });
        let of = |quantile: &str| window[quantile].as_f64().unwrap();
        for (quantile, theirs) in ["p50", "p95", "p99"].into_iter().zip(theirs) {
            let ours = of(quantile);
            assert!((theirs - ours).abs() <= ours * WIDTH, "{quantile} of {path}: {theirs} and {ours}");
        }
        // The few values before the first scrape are in no rate.
        let recent = prometheus.query(&format!("histogram_quantile(0.99, rate({series}[5m]))")).unwrap();
        let expected = of("p95") * (1.0 - WIDTH)..=of("max") * (1.0 + WIDTH);
        assert!(expected.contains(&recent), "{path}: {recent} of {window}");
    }
    let targets = prometheus.get("/api/v1/targets").unwrap();
    assert_eq!(targets["data"]["activeTargets"][0]["lastError"], "");
}

/// Runs a checker on some text: nothing may be said.
fn check(mut checker: Command, package: &str, text: &str) {
    let name = checker.get_program().to_owned();
    let mut child = checker
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}; is the package {package} installed?", name.display()));
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let said = child.wait_with_output().unwrap();
    let complaints = [String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)].concat();
    assert!(said.status.success() && complaints.is_empty(), "{}: {complaints}", name.display());
    writer.join().unwrap().unwrap();
}

fn promtool() -> Command {
    let mut command = Command::new("/usr/bin/promtool");
    command.args(["check", "metrics"]);
    command
}

/// Every group of metrics, also those that are not in a scrape by default.
const EVERYTHING: &str =
    "/metrics?collect[]=pools&collect[]=workers&collect[]=worker_details&collect[]=collector";

/// promtool reads the older format only; this says the same in it. A counter's family has the name of its series there,
/// and there is no type for information.
fn in_the_older_format(open_metrics: &str) -> String {
    let mut text = String::new();
    let mut help = "";
    for line in open_metrics.lines().filter(|l| !l.starts_with("# UNIT ") && *l != "# EOF") {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", ..] => help = line,
            ["#", "TYPE", family, kind] => {
                let suffix = match *kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                let kind = if *kind == "info" { "gauge" } else { kind };
                let described = help.splitn(4, ' ').nth(3).unwrap_or_default();
                text += &format!("# HELP {family}{suffix} {described}\n# TYPE {family}{suffix} {kind}\n");
            }
            _ => text += &format!("{line}\n"),
        }
    }
    text
}

#[test]
fn the_checkers_find_nothing_to_say() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("name 6122625c630a7b7d1bff");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    master.spawn("exit 4");
    eventually("waits are measured", || {
        let text = collector.text("/metrics", "text/plain");
        text.contains("\nworker_pool_off_cpu_seconds_bucket{").then_some(())
    });
    check(promtool(), "prometheus", &collector.text(EVERYTHING, "text/plain; version=0.0.4"));

    let open_metrics = collector.text(EVERYTHING, "application/openmetrics-text; version=1.0.0");
    let mut parser = Command::new("/usr/bin/python3");
    parser.args([
        "-c",
        "import sys\nfrom prometheus_client.openmetrics.parser import text_fd_to_metric_families as parse\n\
         families = list(parse(sys.stdin))\nassert len(families) > 20, families",
    ]);
    check(parser, "python3-prometheus-client", &open_metrics);
    check(promtool(), "prometheus", &in_the_older_format(&open_metrics));
}
