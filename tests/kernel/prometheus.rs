//! A real Prometheus and its own checker.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::servers::free_port;
use crate::support::{Collector, Workload, eventually};

struct Prometheus {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Self {
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
        let answer = self.get(&format!("/api/v1/query?query={query}"))?;
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
    let prometheus = Prometheus::start(collector.address());
    eventually("the target is up", || (prometheus.query("up")? == 1.0).then_some(()));
    let workers = format!("sum(worker_pool_workers{{pool=%22{name}%22}})");
    eventually("it has the workers", || (prometheus.query(&workers)? == 3.0).then_some(()));
    master.spawn("exit 4");
    let failed = format!("worker_pool_exits_total{{pool=%22{name}%22,reason=%22error%22}}");
    eventually("it has the exit", || (prometheus.query(&failed)? == 1.0).then_some(()));
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
