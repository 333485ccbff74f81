//! Bad input on the command line and in files: each gets an error that says what to do.

use std::io::Write;

use crate::support::collector_command;

fn fails(arguments: &[&str], expected: &[&str]) {
    let output = collector_command(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    for part in expected {
        assert!(said.contains(part), "{arguments:?} said: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn bad_flags_name_the_flag() {
    fails(&["--no-such-flag"], &["--no-such-flag"]);
    fails(&["--source=magic"], &["--source", "auto", "ebpf", "procfs"]);
    fails(&["--web.listen-address=nowhere"], &["--web.listen-address"]);
    fails(&["--web.telemetry-path=metrics"], &["begin with /"]);
    fails(&["--path.procfs=/nonexistent", "--source=procfs"], &["/nonexistent"]);
    let no_proc = tempfile::tempdir().unwrap();
    let flag = format!("--path.procfs={}", no_proc.path().display());
    fails(&["--web.listen-address=127.0.0.1:0", &flag], &["is no mounted /proc", "--path.procfs"]);
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flag = format!("--web.listen-address={address}");
    fails(&["--source=procfs", &flag], &[&address, "in use", "--web.listen-address"]);
}

#[test]
fn bad_configuration_names_file_place_and_remedy() {
    let check = |text: &str, expected: &[&str]| {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        fails(&["check-config", path], &[&[path], expected].concat());
        // The service refuses it in the same words.
        let flag = format!("--config.file={path}");
        fails(&["--source=procfs", "--web.listen-address=127.0.0.1:0", &flag], &[&[path], expected].concat());
    };
    check("colour: red\n", &["colour"]);
    check("pools: [{match: {comm: a}}]\n", &["pools[0]", "needs a name"]);
    check("pools: [{name: a, match: {cmdline: '['}}]\n", &["pools[0] (a)", "match.cmdline", "regex"]);
    check("pools: [{name: a, match: {comm: a}}, {name: a, match: {comm: b}}]\n", &["pools[1] (a)", "unique"]);
    check("pools: [\n", &[]);
    fails(&["check-config", "/nonexistent.yml"], &["/nonexistent.yml", "No such file"]);
}

#[test]
fn a_good_configuration_is_shown() {
    let file = file("pools: [{name: web, match: {comm: nginx}}]\n");
    let output = collector_command(&["check-config", file.path().to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("valid, 1 pool\n") && said.contains("web"), "{said}");
}

#[test]
fn doctor_reports_in_both_forms() {
    let text = collector_command(&["doctor", "--source=procfs"]).output().unwrap();
    assert!(text.status.success());
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("source    procfs") && text.contains("lifecycle_events"), "{text}");
    let json = collector_command(&["doctor", "--source=procfs", "--format=json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["source"], "procfs");
    for feature in report["features"].as_array().unwrap() {
        if feature["enabled"] == false {
            assert!(feature.get("reason").is_some(), "what is off says why: {feature}");
            assert!(feature.get("remedy").is_some(), "and what would bring it: {feature}");
        }
    }
}
