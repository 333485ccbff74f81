//! Profiles, as `go tool pprof` reads them.

use std::process::Command;

use collector::profile::{Function, Kind, Labels, Line, Location, Losses, Mapping, Profile, Sample};
use collector::render::pprof::{Format, render};

use crate::support::Collector;

const SECOND: u64 = 1_000_000_000;

/// `main` calls `serve`, which `parse` was inlined into; `vfs_read` was called by nobody knows whom.
fn profile(kind: Kind) -> Profile {
    let function = |name: &str, file: &str| Function {
        name: name.into(),
        system_name: name.into(),
        file: file.into(),
        start_line: 1,
    };
    let location = |mapping, address, lines: &[(u32, u32)]| Location {
        mapping: Some(mapping),
        address,
        lines: lines.iter().map(|(function, line)| Line { function: *function, line: *line }).collect(),
    };
    let mapping = |path: &str, build_id: &str, start| Mapping {
        start,
        limit: start + 0x10000,
        file_offset: 0,
        path: path.into(),
        build_id: build_id.into(),
        symbolized: true,
    };
    let labels = |slot, state, reason| Labels {
        pool: "web".into(),
        slot: Some((slot, 1 + u64::from(slot))),
        pid: 100 + slot,
        tid: 100 + slot,
        thread: "worker".into(),
        state,
        reason,
        ended_unix_ns: None,
    };
    let sample = |stack: &[u32], labels, count, truncated| Sample {
        stack: stack.into(),
        labels,
        count,
        value_ns: count * SECOND / 10,
        truncated,
    };
    Profile {
        kind,
        started_unix_ns: 1_700_000_000 * SECOND,
        duration_ns: 10 * SECOND,
        period_ns: if kind == Kind::OnCpu { SECOND / 10 } else { 0 },
        mappings: vec![
            mapping("/nowhere/app", "00c0ffee", 0x1000),
            mapping("[kernel.kallsyms]", "", 0xffff_ffff_8100_0000),
        ],
        functions: vec![
            function("main", "/src/main.c"),
            function("serve", "/src/serve.c"),
            function("parse", "/src/parse.h"),
            function("vfs_read", ""),
        ],
        locations: vec![
            location(0, 0x1100, &[(0, 12)]),
            location(0, 0x1200, &[(2, 5), (1, 30)]),
            location(1, 0xffff_ffff_8100_1000, &[(3, 0)]),
        ],
        labels: vec![labels(0, "on_cpu", None), labels(3, "blocked", Some("disk"))],
        samples: vec![
            sample(&[1, 0], 0, 60, false),
            sample(&[2], 1, 20, true),
            sample(&[1, 0], 1, 20, false),
        ],
        losses: Losses { samples: 100, truncated: 20, lost: 1, passed_over: 0 },
    }
}

/// What `go tool pprof` says to a profile; `None` where there is none.
fn pprof(kind: Kind, options: &[&str]) -> Option<String> {
    pprof_of(&render(&profile(kind), Format::Proto).unwrap(), options)
}

/// The same for one that is written.
fn pprof_of(written: &[u8], options: &[&str]) -> Option<String> {
    if let Err(error) = Command::new("go").arg("version").output() {
        println!("left out: no go: {error}; its package is golang-go");
        return None;
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("profile.pb.gz");
    std::fs::write(&path, written).unwrap();
    let mut go = Command::new("go");
    // Newer ones build the tool when it is first used, and must not go and fetch an even newer one for that.
    go.args(["tool", "pprof", "-symbolize=none"]).args(options).arg(&path);
    go.env("HOME", home.path())
        .env("GOCACHE", home.path().join("cache"))
        .env("GOFLAGS", "")
        .env("GOTOOLCHAIN", "local");
    let output = go.env("PPROF_TMPDIR", home.path()).env("TZ", "UTC").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {stderr}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Lines of a report without the blanks that align them, all of which must be in it.
fn check(kind: Kind, options: &[&str], lines: &[&str]) {
    let Some(report) = pprof(kind, options) else { return };
    let report: Vec<String> =
        report.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in lines {
        assert!(
            report.iter().any(|said| said == line),
            "{options:?}: {line:?} is not in\n{}",
            report.join("\n")
        );
    }
}

#[test]
fn go_counts_what_was_counted() {
    check(
        Kind::OnCpu,
        &["-top"],
        &[
            "File: app",
            "Type: cpu",
            "Time: Nov 14, 2023 at 10:13pm (UTC)",
            "Duration: 10s, Total samples = 10s ( 100%)",
            "8s 80.00% 80.00% 8s 80.00% parse (inline)",
            "2s 20.00% 100% 2s 20.00% vfs_read",
            "0 0% 100% 8s 80.00% main",
            "0 0% 100% 8s 80.00% serve",
            "0 0% 100% 2s 20.00% [truncated]",
        ],
    );
    check(Kind::OnCpu, &["-top", "-sample_index=samples"], &["80 80.00% 80.00% 80 80.00% parse (inline)"]);
    for kind in [Kind::OffCpu, Kind::RunQueue] {
        check(kind, &["-top"], &["Type: delay", "8s 80.00% 80.00% 8s 80.00% parse (inline)"]);
        check(kind, &["-top", "-contentions"], &["80 80.00% 80.00% 80 80.00% parse (inline)"]);
    }
    let cycles = "8000000000 80.00% 80.00% 8000000000 80.00% parse (inline)";
    check(Kind::Cycles, &["-top"], &["Type: cycles", cycles]);
    check(Kind::Wall, &["-top"], &["Type: wall", "8s 80.00% 80.00% 8s 80.00% parse (inline)"]);
    check(Kind::Threads, &["-top"], &["Type: threads", "80 80.00% 80.00% 80 80.00% parse (inline)"]);
}

#[test]
fn go_reads_all_of_it() {
    check(
        Kind::OnCpu,
        &["-raw"],
        &[
            "PeriodType: cpu nanoseconds",
            "Period: 100000000",
            "Time: 2023-11-14 22:13:20 +0000 UTC",
            "samples/count cpu/nanoseconds[dflt]",
            "60 6000000000: 1 2",
            "1: 0x1200 M=1 parse /src/parse.h:5 s=1",
            "serve /src/serve.c:30 s=1",
            "2: 0x1100 M=1 main /src/main.c:12 s=1",
            "20 2000000000: 3 4",
            "3: 0xffffffff81001000 M=2 vfs_read :0 s=1",
            "4: 0x0 [truncated] :0 s=0",
            "1: 0x1000/0x11000/0x0 /nowhere/app 00c0ffee [FN][FL][LN][IN]",
            "2: 0xffffffff81000000/0xffffffff81010000/0x0 [kernel.kallsyms] [FN]",
        ],
    );
    check(Kind::OnCpu, &["-comments"], &["samples truncated: 20 of 100", "samples lost: 1"]);
}

/// What the documentation of the labels promises.
#[test]
fn go_finds_workers_by_their_labels() {
    let total = |focus: &str, total: &str| {
        check(Kind::OnCpu, &["-top", focus], &[&format!("Showing nodes accounting for {total}")]);
    };
    total("-tagfocus=pool=^web$", "10s, 100% of 10s total");
    total("-tagfocus=slot=^0$", "6s, 60.00% of 10s total");
    total("-tagfocus=slot=^3$", "4s, 40.00% of 10s total");
    total("-tagfocus=generation=2:", "4s, 40.00% of 10s total");
    total("-tagfocus=pid=100", "6s, 60.00% of 10s total");
    total("-tagfocus=reason=disk", "4s, 40.00% of 10s total");
    check(
        Kind::OnCpu,
        &["-top", "-tagroot=pool,slot"],
        &["0 0% 100% 10s 100% web", "0 0% 100% 6s 60.00% 0", "0 0% 100% 4s 40.00% 3"],
    );
    check(Kind::OnCpu, &["-tags"], &["6.0s (60.00%): 0", "6.0s (60.00%): 100", "4.0s (40.00%): 103"]);
}

/// What `/debug/pprof/threads` says where there is no eBPF to tell of threads.
#[test]
fn threads_need_ebpf_and_sound_questions() {
    let collector = Collector::start(&["--source=procfs"]);
    let status = |query: &str| {
        let path = format!("/debug/pprof/threads{query}");
        collector.request(&path, &[]).unwrap().status().as_u16()
    };
    assert_eq!(["", "?debug=1", "?format=proto", "?pid=1"].map(status), [501; 4]);
    assert_eq!(["?seconds=1", "?slot=0", "?format=html", "?debug=1&format=proto"].map(status), [400; 4]);
    let foreign = [("sec-fetch-site", "cross-site")];
    assert_eq!(collector.request("/debug/pprof/threads", &foreign).unwrap().status(), 403);
    let index = collector.text("/debug/pprof/", "*/*");
    assert!(index.contains("<a href=\"threads\">"), "{index}");
}

/// A profile of the collector's own, as it is served.
fn own(collector: &Collector, what: &str) -> Vec<u8> {
    let mut response = collector.request(&format!("/debug/pprof/{what}"), &[]).expect("it answers");
    let bytes = response.body_mut().with_config().limit(1 << 28).read_to_vec().expect("bytes");
    assert_eq!(response.status(), 200, "{what}: {}", String::from_utf8_lossy(&bytes));
    bytes
}

/// Sums of the values of all samples, in the order in which they have them, and what is said of all.
fn sums_of(raw: &str) -> Vec<i64> {
    let mut sums = Vec::new();
    let samples = raw.lines().skip_while(|line| *line != "Samples:").skip(2);
    for line in samples.take_while(|line| *line != "Locations") {
        // The others are labels.
        let Some((values, _)) = line.split_once(':') else { continue };
        let values = values.split_whitespace().map_while(|value| value.parse::<i64>().ok());
        for (at, value) in values.enumerate() {
            if at == sums.len() {
                sums.push(0);
            }
            sums[at] += value;
        }
    }
    sums
}

/// By two counts of the same: malloc's, and where the memory is that a configuration of many rules needs.
#[test]
fn the_heap_is_what_malloc_counts_by_who_asked_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yml");
    // A class of all letters of all scripts takes a compiled expression some hundred thousand bytes.
    let pools: String = (0..100)
        .map(|pool| {
            format!(
                "  - {{name: p{pool}, match: {{cmdline: '\\w+{pool}[a-z]+\\s(alpha|beta).*\\w{{2,9}}'}}}}\n"
            )
        })
        .collect();
    std::fs::write(&file, format!("pools:\n{pools}")).unwrap();
    let collector = Collector::start(&["--source=procfs", &format!("--config.file={}", file.display())]);
    let heap = own(&collector, "heap?gc=1");
    let Some(raw) = pprof_of(&heap, &["-raw"]) else { return };
    for line in [
        "PeriodType: space bytes",
        "Period: 524288",
        "alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes[dflt]",
    ] {
        assert!(raw.lines().any(|said| said == line), "{line:?} is not in\n{raw}");
    }
    let sums = sums_of(&raw);
    let comments = pprof_of(&heap, &["-comments"]).unwrap();
    let counted =
        comments.lines().find_map(|line| line.strip_prefix("bytes in use by all of malloc, counted: "));
    let counted: f64 = counted.unwrap().parse().unwrap();
    println!("in use, estimated: {sums:?}, counted by malloc: {counted}");
    assert!(counted > 40e6, "it is large enough for an estimate: {counted}");
    // With malloc's own of some percent. Were all blocks small ones, 40 MB would be 76 samples, which vary by 11.5 % (standard deviation).
    assert!((sums[3] as f64 / counted - 1.0).abs() < 0.4, "{sums:?}, counted {counted}");
    assert!(sums[0] >= sums[2] && sums[1] >= sums[3], "more is asked for than is in use: {sums:?}");

    let total: f64 = sums[3] as f64;
    let of_rules = pprof_of(&heap, &["-raw", "-focus=regex"]).unwrap();
    let of_rules = sums_of(&of_rules)[3] as f64;
    println!("of that in expressions: {of_rules}");
    assert!(of_rules > 0.6 * total, "{of_rules} of {total}");
    let top = pprof_of(&heap, &["-top", "-cum", "-nodecount=300"]).unwrap();
    assert!(top.contains("Type: inuse_space") && top.contains("collector::config::file::"), "{top}");
    // But for what the profile itself was copied to.
    let allocator = top.lines().filter(|row| row.contains("collector::heap::sampled"));
    let allocator: Vec<&str> = allocator.filter(|row| !row.ends_with("::sampled::heap")).collect();
    assert!(allocator.is_empty(), "the allocator itself is in none: {allocator:?}");

    // What was asked for in half a second is less than what was asked for since the start.
    let allocs = pprof_of(&own(&collector, "allocs?seconds=0.5"), &["-raw"]).unwrap();
    assert!(allocs.contains("alloc_space/bytes[dflt]") && allocs.contains("Duration: 500m"), "{allocs}");
    let meanwhile = sums_of(&allocs);
    assert!(meanwhile.get(1).is_none_or(|bytes| *bytes < sums[1] / 2), "{meanwhile:?} of {sums:?}");

    let text = collector.text("/debug/pprof/heap?debug=1", "*/*");
    assert!(text.starts_with("--- heap profile: "), "{text}");
    let index = collector.text("/debug/pprof/", "*/*");
    assert!(index.contains("<a href=\"heap\">") && index.contains("target=self"), "{index}");
    // Who may see it is who may see all of them.
    let foreign = collector.request("/debug/pprof/heap", &[("sec-fetch-site", "cross-site")]).unwrap();
    assert_eq!(foreign.status(), 403);
}
