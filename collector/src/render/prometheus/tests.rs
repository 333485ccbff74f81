#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::text::{Nanos, SignedNanos, Value as _, write_bound};
use super::*;
use crate::input::TIME_KINDS;
use crate::render::fixture;
use crate::units::NANOS_PER_SECOND;
use crate::worker::runs::Runs;

mod protobuf;

fn rendered_bytes(snapshot: &Snapshot, format: Format, groups: Groups) -> Vec<u8> {
    let mut out = Buffer::default();
    render(snapshot, format, groups, &mut out, &mut |_| ());
    out.into_written()
}

fn rendered_groups(snapshot: &Snapshot, format: Format, groups: Groups) -> String {
    String::from_utf8(rendered_bytes(snapshot, format, groups)).unwrap()
}

fn rendered(snapshot: &Snapshot, format: Format) -> String {
    rendered_groups(snapshot, format, Groups::all())
}

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
    /// As it is written.
    exemplar: Option<String>,
}

/// Reads a sample line by the grammar, sharing nothing with the writer.
fn parse_sample(line: &str) -> Sample {
    let name_end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        other => panic!("escaped {other:?}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "label twice: {line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap();
    }
    let value = rest.strip_prefix(' ').unwrap();
    let (value, exemplar) = value.split_once(" # ").map_or((value, None), |(value, of)| (value, Some(of)));
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
    Sample { name: name.to_owned(), labels, value, exemplar: exemplar.map(str::to_owned) }
}

fn samples(text: &str) -> Vec<Sample> {
    text.split_terminator('\n').filter(|line| !line.starts_with('#')).map(parse_sample).collect()
}

fn value(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    samples(text)
        .into_iter()
        .find(|s| s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|l| l == v)))
        .map(|s| s.value)
}

#[test]
fn golden_files() {
    let snapshot = fixture::snapshot();
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    for (name, format, groups) in [
        ("metrics.txt", Format::Text, Groups::all()),
        ("metrics.openmetrics", Format::OpenMetrics, Groups::all()),
        ("metrics.default.txt", Format::Text, Groups::default()),
    ] {
        let text = rendered_groups(&snapshot, format, groups).replace(version, "version=\"VERSION\"");
        fixture::check_golden(name, &text);
    }
}

/// The buckets of web's requests with an example, each with that.
fn exemplified(text: &str) -> Vec<(String, String, String)> {
    let samples = samples(text).into_iter().filter(|sample| sample.exemplar.is_some());
    samples
        .map(|Sample { name, labels, exemplar, .. }| {
            assert_eq!(name, "worker_pool_request_duration_seconds_bucket");
            assert_eq!(labels["pool"], "web");
            (labels["outcome"].clone(), labels["le"].clone(), exemplar.unwrap())
        })
        .collect()
}

#[test]
fn slow_requests_are_examples_of_the_bucket_that_they_are_in() {
    let mut snapshot = fixture::snapshot();
    let examples = exemplified(&rendered(&snapshot, Format::OpenMetrics));
    assert!(examples.len() >= 2, "{examples:?}");
    for (_, le, example) in &examples {
        // {profile="/debug/pprof/offcpu?…"} 0.26 1767323044.51
        let (labels, rest) = example.strip_prefix("{profile=\"").unwrap().split_once("\"} ").unwrap();
        assert!(labels.starts_with("/debug/pprof/"), "{example}");
        let numbers: Vec<f64> = rest.split(' ').map(|number| number.parse().unwrap()).collect();
        let [seconds, ended] = numbers[..] else { panic!("{example}") };
        let bounds = snapshot.pools.iter().find(|pool| &*pool.name == "web").unwrap();
        let bounds =
            bounds.schedule.as_ref().unwrap().requests.as_ref().unwrap().seconds.as_ref().unwrap()[0].bounds;
        let le: f64 = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
        let above = bounds.iter().rev().find(|bound| **bound < le).copied().unwrap_or(0.0);
        assert!(above < seconds && seconds <= le, "{example} in le={le}");
        assert!(ended < fixture::AT as f64 / 1e9, "{example}");
    }
    // The text format of Prometheus has none, nor is there one that leads nowhere.
    assert_eq!(exemplified(&rendered(&snapshot, Format::Text)), []);
    snapshot.own.profiling = None;
    assert_eq!(exemplified(&rendered(&snapshot, Format::OpenMetrics)), []);
}

#[test]
fn every_declared_family_occurs_with_declared_labels_only() {
    let text = rendered(&fixture::snapshot(), Format::Text);
    let samples = samples(&text);
    let mut seen = BTreeSet::new();
    let mut at = 0;
    for family in families() {
        let help = format!("# HELP {} {}\n", family.name, family.help);
        at += text[at..].find(&help).unwrap_or_else(|| panic!("{} in its place", family.name));
        assert!(seen.insert(family.name), "{} is declared twice", family.name);
        assert!(family.name.contains(family.unit), "{} has the unit {}", family.name, family.unit);
        assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        assert_eq!(family.name.ends_with("_info"), family.kind == Kind::Info, "{}", family.name);
        let of_family = |name: &str| match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix) == Some(family.name)),
            _ => name == family.name,
        };
        let labels: BTreeSet<&str> = samples
            .iter()
            .filter(|s| of_family(&s.name))
            .flat_map(|s| s.labels.keys().map(String::as_str))
            .filter(|label| *label != "le")
            .collect();
        assert_eq!(labels, family.labels.iter().copied().collect(), "labels of {}", family.name);
    }
}

#[test]
fn no_series_occurs_twice() {
    for format in [Format::Text, Format::OpenMetrics] {
        let text = rendered(&fixture::snapshot(), format);
        let mut seen = BTreeSet::new();
        for sample in samples(&text) {
            let series = format!("{} {:?}", sample.name, sample.labels);
            assert!(seen.insert(series.clone()), "{series}");
        }
    }
}

#[test]
fn unknown_is_absent_and_empty_is_zero() {
    let text = rendered(&fixture::snapshot(), Format::Text);
    let of = |name: &str, pool: &str| value(&text, name, &[("pool", pool)]);
    assert_eq!(of("worker_pool_resident_memory_bytes", "withheld"), None);
    assert_eq!(of("worker_resident_memory_bytes", "withheld"), None);
    assert_eq!(of("worker_pool_read_bytes_total", "withheld"), None);
    assert_eq!(of("worker_threads", "withheld"), Some(4.0));
    assert_eq!(of("worker_pool_size", "jobs"), Some(0.0));
    assert_eq!(of("worker_pool_resident_memory_bytes", "jobs"), Some(0.0));
    assert_eq!(of("worker_pool_lifetime_seconds_count", "jobs"), Some(0.0));
    assert_eq!(of("worker_pool_lifetime_seconds_quantile", "jobs"), None);
}

#[test]
fn runs_have_series_where_they_are_measured() {
    let mut snapshot = fixture::snapshot();
    let text = rendered(&snapshot, Format::Text);
    let names = ["runs_total", "shortest_run_seconds", "longest_run_seconds", "last_run_timestamp_seconds"];
    let of = |text: &str, pool: &str| {
        names.map(|name| value(text, &format!("worker_pool_{name}"), &[("pool", pool)]))
    };
    assert_eq!(of(&text, "xargs"), [Some(1.0), Some(0.25), Some(1.25), Some(1_767_323_044.25)]);
    assert_eq!(of(&text, "web"), [None; 4]);
    // Before the first run it is known that there was none, and nothing else.
    snapshot.pools[0].runs = Some(Runs::new(0, 0).view(NANOS_PER_SECOND));
    let text = rendered(&snapshot, Format::Text);
    assert_eq!(of(&text, fixture::HOSTILE), [Some(0.0), None, None, None]);
}

#[test]
fn a_family_without_samples_has_no_header() {
    let mut snapshot = fixture::snapshot();
    snapshot.own.programs.clear();
    snapshot.pools.clear();
    let text = rendered(&snapshot, Format::OpenMetrics);
    assert!(!text.contains("bpf_program"), "{text}");
    assert!(!text.contains("worker"), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn losses_of_one_reason_are_summed() {
    let text = rendered(&fixture::snapshot(), Format::Text);
    assert_eq!(value(&text, "collector_losses_total", &[("reason", "event_lost")]), Some(3.0));
}

#[test]
fn taking_the_bytes_after_each_family_changes_nothing() {
    let snapshot = fixture::snapshot();
    for format in [Format::OpenMetrics, Format::Protobuf] {
        let mut taken = Vec::new();
        let mut out = Buffer::default();
        render(&snapshot, format, Groups::all(), &mut out, &mut |out| {
            taken.extend_from_slice(out.written());
            out.clear();
        });
        assert!(out.written().is_empty());
        assert!(taken == rendered_bytes(&snapshot, format, Groups::all()), "{format:?}");
    }
}

#[test]
fn leftovers_are_written_over() {
    let snapshot = fixture::snapshot();
    for format in [Format::Text, Format::Protobuf] {
        let expected = rendered_bytes(&snapshot, format, Groups::all());
        for length in [1, 100, 1000, expected.len() - 1, expected.len(), 2 * expected.len()] {
            let mut out = Buffer::over(vec![b'#'; length]);
            render(&snapshot, format, Groups::all(), &mut out, &mut |_| ());
            assert!(out.into_written() == expected, "{format:?} over {length} bytes");
        }
    }
}

#[test]
fn groups_divide_what_there_is() {
    let snapshot = fixture::snapshot();
    let lines = |groups: Groups| -> Vec<String> {
        rendered_groups(&snapshot, Format::Text, groups).lines().map(str::to_owned).collect()
    };
    let one_by_one: Vec<String> =
        Group::ALL.into_iter().flat_map(|group| lines([group].into_iter().collect())).collect();
    assert_eq!(one_by_one, lines(Groups::all()));
    let default = lines(Groups::default());
    let without_details =
        one_by_one.iter().filter(|line| !lines([Group::WorkerDetails].into_iter().collect()).contains(line));
    assert!(without_details.eq(&default));
    let of_worker =
        |lines: &[String]| lines.iter().filter(|line| line.contains("{pool=\"web\",slot=\"0\"")).count();
    assert_eq!((of_worker(&default), of_worker(&one_by_one)), (8, 22), "series of one worker");
}

#[test]
fn groups_are_known_by_their_names() {
    for group in Group::ALL {
        let named = Groups::named([group.as_str()]).unwrap();
        assert!(Group::ALL.into_iter().all(|other| named.contains(other) == (other == group)));
    }
    assert_eq!(Groups::named(["collector", "workers", "pools", "pools"]), Ok(Groups::default()));
    for (names, expected) in [(&["workers", "threads"][..], "\"threads\""), (&[][..], "at least one")] {
        let error = Groups::named(names.iter().copied()).unwrap_err();
        assert!(error.contains(expected) && error.contains("worker_details"), "{error}");
    }
}

#[test]
fn bounds_are_written_as_go_writes_them() {
    for (bound, text, open_metrics) in [
        (0.0, "0", "0.0"),
        (1.0, "1", "1.0"),
        (0.25, "0.25", "0.25"),
        (0.0001, "0.0001", "0.0001"),
        (0.00001, "1e-05", "1e-05"),
        (0.0000125, "1.25e-05", "1.25e-05"),
        (999_999.0, "999999", "999999.0"),
        (1e6, "1e+06", "1e+06"),
        (67_108_864.0, "6.7108864e+07", "6.7108864e+07"),
        (1e100, "1e+100", "1e+100"),
    ] {
        for (format, expected) in [(Format::Text, text), (Format::OpenMetrics, open_metrics)] {
            let mut out = Vec::new();
            write_bound(&mut out, bound, format);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}

#[test]
fn nanoseconds_keep_every_digit() {
    for (ns, expected) in [
        (0, "0"),
        (1, "0.000000001"),
        (1_500_000_000, "1.5"),
        (1_000_000_010, "1.00000001"),
        (999_999_999, "0.999999999"),
        (12_000_000_000, "12"),
        (u64::MAX, "18446744073.709551615"),
    ] {
        let mut place = [b'#'; 40];
        let length = Nanos(ns).write(&mut place);
        assert_eq!(std::str::from_utf8(&place[..length]).unwrap(), expected);
    }
}

#[test]
fn nanoseconds_can_be_negative() {
    for (ns, expected) in [
        (0, "0"),
        (-1, "-0.000000001"),
        (1_500_000_000, "1.5"),
        (-12_000_000_000, "-12"),
        (i64::MIN, "-9223372036.854775808"),
    ] {
        let mut place = [b'#'; 40];
        let length = SignedNanos(ns).write(&mut place);
        assert_eq!(std::str::from_utf8(&place[..length]).unwrap(), expected);
    }
}

#[test]
fn times_have_series_where_the_scheduler_is_watched() {
    let mut snapshot = fixture::snapshot();
    let text = rendered(&snapshot, Format::Text);
    let of = |text: &str, name: &str, label: (&str, &str)| value(text, name, &[("pool", "web"), label]);
    let only_there = [
        "worker_pool_time_",
        "worker_pool_followed_",
        "worker_pool_run_queue_",
        "worker_pool_on_cpu_",
        "worker_pool_off_cpu_",
    ];
    for sample in samples(&text).iter().filter(|s| only_there.iter().any(|start| s.name.starts_with(start))) {
        assert_eq!(sample.labels["pool"], "web", "{}", sample.name);
    }
    let unattributed = |pool, account| {
        let labels = [("pool", pool), ("account", account)];
        value(&text, "collector_unattributed_cpu_seconds_total", &labels)
    };
    assert_eq!((unattributed("web", "process"), unattributed("web", "cgroup")), (Some(0.002), Some(1.25)));
    // A pool that is a cgroup is compared whether or not the scheduler is watched; others have no such
    // series.
    assert_eq!((unattributed("withheld", "process"), unattributed("withheld", "cgroup")), (None, Some(0.0)));
    assert_eq!((unattributed("jobs", "process"), unattributed("jobs", "cgroup")), (None, None));
    let times = TIME_KINDS.map(|kind| of(&text, "worker_pool_time_seconds_total", ("kind", kind)).unwrap());
    let followed = value(&text, "worker_pool_followed_thread_seconds_total", &[("pool", "web")]).unwrap();
    let residual = value(&text, "worker_pool_time_residual_seconds", &[("pool", "web")]).unwrap();
    assert!((times.iter().sum::<f64>() + residual - followed).abs() < 1e-6);
    // A reason of which nothing was recorded is known to have had no interval, and has no quantiles.
    let blocked = |text: &str, end: &str, reason| {
        of(text, &format!("worker_pool_off_cpu_seconds{end}"), ("reason", reason))
    };
    assert_eq!((blocked(&text, "_count", "poll"), blocked(&text, "_count", "disk")), (Some(39.0), Some(0.0)));
    assert_eq!(blocked(&text, "_discarded_total", "poll"), Some(1.0));
    assert_eq!(blocked(&text, "_discarded_total", "disk"), Some(0.0));
    assert!(blocked(&text, "_quantile", "poll").is_some() && blocked(&text, "_quantile", "disk").is_none());

    // A pool that wants totals alone.
    let web = snapshot.pools.iter_mut().find(|pool| &*pool.name == "web").unwrap();
    web.schedule.as_mut().unwrap().intervals = None;
    let text = rendered(&snapshot, Format::Text);
    assert!(of(&text, "worker_pool_time_seconds_total", ("kind", "disk")).is_some());
    assert!(!text.contains("worker_pool_on_cpu_seconds") && !text.contains("worker_pool_off_cpu_seconds"));
}

proptest! {
    #[test]
    fn any_text_and_any_number_come_back(
        name in any::<String>(),
        comm in any::<String>(),
        app in proptest::option::of(any::<String>()),
        utilization in any::<f64>(),
        cpu in any::<u64>(),
    ) {
        let mut snapshot = fixture::snapshot();
        let mut pool = fixture::pool(&name);
        let mut worker = fixture::worker(7);
        worker.comm = comm.as_str().into();
        worker.app = app.as_deref().map(Into::into);
        let reading = worker.reading.as_mut().unwrap();
        reading.cpu_utilization = Some(utilization);
        reading.cpu.user_ns = cpu;
        pool.workers = vec![worker].into();
        snapshot.pools = vec![pool];
        for format in [Format::Text, Format::OpenMetrics] {
            let samples = samples(&rendered(&snapshot, format));
            let find = |name: &str| samples.iter().find(|s| s.name == name).unwrap();
            let info = find("worker_info");
            prop_assert_eq!(&info.labels["pool"], &name);
            prop_assert_eq!(&info.labels["comm"], &comm);
            prop_assert_eq!(info.labels.get("app"), app.as_ref());
            let back = find("worker_cpu_utilization_ratio").value;
            prop_assert!(back == utilization || back.is_nan() && utilization.is_nan());
            let seconds: f64 =
                format!("{}.{:09}", cpu / NANOS_PER_SECOND, cpu % NANOS_PER_SECOND).parse().unwrap();
            prop_assert_eq!(find("worker_cpu_seconds_total").value, seconds);
        }
    }
}
