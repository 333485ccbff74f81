//! The service from start to end: ready when it has something to show, gone when it is told.

use crate::support::{Collector, collector_command};

#[test]
fn it_ends_cleanly_on_sigterm() {
    let collector = Collector::start(&["--source=procfs"]);
    let status = collector.stop();
    assert!(status.success(), "{status}");
}

#[test]
fn every_endpoint_answers_and_unknown_ones_say_what_there_is() {
    let collector = Collector::start(&["--source=procfs"]);
    for path in ["/", "/metrics", "/api/v1/summary", "/api/v1/stats", "/api/v1/exits", "/healthz", "/readyz"]
    {
        assert_eq!(collector.request(path, &[]).unwrap().status(), 200, "{path}");
    }
    for path in ["/-/healthy", "/-/ready"] {
        assert_eq!(collector.request(path, &[]).unwrap().status(), 200, "{path}");
    }
    let mut missing = collector.request("/api/v1/pools/nobody", &[]).unwrap();
    assert_eq!(missing.status(), 404);
    assert!(missing.body_mut().read_to_string().unwrap().contains("nobody"));
    assert_eq!(collector.request("/nowhere", &[]).unwrap().status(), 404);
}

#[test]
fn formats_are_negotiated() {
    let collector = Collector::start(&["--source=procfs"]);
    let text = collector.text("/metrics", "text/plain");
    assert!(text.contains("# TYPE collector_build_info gauge") && !text.contains("# EOF"));
    let open = collector.text("/metrics", "application/openmetrics-text; version=1.0.0");
    assert!(open.ends_with("# EOF\n"));
}

#[test]
fn the_environment_stands_in_for_flags() {
    let mut command = collector_command(&["--source=procfs"]);
    command.env("COLLECTOR_WEB_TELEMETRY_PATH", "/probe").env("COLLECTOR_LOG_FORMAT", "logfmt");
    let collector = Collector::launch(command);
    collector.wait_ready();
    assert_eq!(collector.request("/probe", &[]).unwrap().status(), 200);
    assert_eq!(collector.request("/metrics", &[]).unwrap().status(), 404);
}
