//! The protobuf exposition, read by a library and held against the text.

use super::super::native::{SCHEMA, tests as native};
use super::*;
use crate::client_model::{self, Histogram, MetricFamily, MetricType};

fn read(snapshot: &Snapshot, groups: Groups) -> Vec<MetricFamily> {
    client_model::families(&rendered_bytes(snapshot, Format::Protobuf, groups)).unwrap()
}

type Series = (String, BTreeMap<String, String>);

/// The samples of the text formats that a family stands for.
fn said_by(family: &MetricFamily) -> Vec<(Series, f64)> {
    let name = family.name.clone().unwrap();
    let mut said = Vec::new();
    for metric in &family.metric {
        let labels: BTreeMap<String, String> = metric
            .label
            .iter()
            .map(|label| (label.name.clone().unwrap(), label.value.clone().unwrap()))
            .collect();
        assert_eq!(labels.len(), metric.label.len(), "a label twice in {metric:?}");
        let mut say = |suffix: &str, le: Option<String>, value: f64| {
            let mut labels = labels.clone();
            labels.extend(le.map(|le| ("le".to_owned(), le)));
            said.push(((format!("{name}{suffix}"), labels), value));
        };
        let expected = match (&metric.counter, &metric.gauge, &metric.histogram) {
            (Some(point), None, None) => {
                say("", None, point.value.unwrap());
                MetricType::Counter
            }
            (None, Some(point), None) => {
                say("", None, point.value.unwrap());
                MetricType::Gauge
            }
            (None, None, Some(histogram)) => {
                // Readers take the last one, which has no bound, for what the count says.
                let is_bound = |bucket: &&client_model::Bucket| bucket.upper_bound.unwrap() < f64::INFINITY;
                for bucket in histogram.bucket.iter().filter(is_bound) {
                    let mut bound = Vec::new();
                    write_bound(&mut bound, bucket.upper_bound.unwrap(), Format::Text);
                    let count = bucket.cumulative_count.unwrap() as f64;
                    say("_bucket", Some(String::from_utf8(bound).unwrap()), count);
                }
                let count = histogram.sample_count.unwrap() as f64;
                say("_bucket", Some("+Inf".to_owned()), count);
                say("_sum", None, histogram.sample_sum.unwrap());
                say("_count", None, count);
                MetricType::Histogram
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(family.r#type(), expected, "{name}");
    }
    said
}

/// Both formats say the same, in the same order.
fn check_against_text(snapshot: &Snapshot, groups: Groups) {
    let said = read(snapshot, groups).iter().flat_map(said_by).collect::<Vec<_>>();
    let text = samples(&rendered_groups(snapshot, Format::Text, groups));
    assert_eq!(said.len(), text.len());
    for (((name, labels), value), sample) in said.into_iter().zip(text) {
        assert_eq!((&name, &labels), (&sample.name, &sample.labels));
        let close = (value - sample.value).abs() <= sample.value.abs() * 1e-15;
        assert!(
            close || value == sample.value || value.is_nan() && sample.value.is_nan(),
            "{name} {labels:?}: {value} and {}",
            sample.value
        );
    }
}

#[test]
fn says_what_the_text_says() {
    let snapshot = fixture::snapshot();
    check_against_text(&snapshot, Groups::all());
    check_against_text(&snapshot, Groups::default());
    for group in Group::ALL {
        check_against_text(&snapshot, [group].into_iter().collect());
    }
}

#[test]
fn examples_are_those_of_the_text() {
    let snapshot = fixture::snapshot();
    let mut read = Vec::new();
    for family in self::read(&snapshot, Groups::all()) {
        for bucket in family.metric.iter().filter_map(|m| m.histogram.as_ref()).flat_map(|h| &h.bucket) {
            let Some(exemplar) = &bucket.exemplar else { continue };
            let [label] = &exemplar.label[..] else { panic!("{exemplar:?}") };
            let ended = exemplar.timestamp.unwrap();
            let ended = format!("{}.{:09}", ended.seconds, ended.nanos);
            read.push(format!(
                "{{{}=\"{}\"}} {:?} {}",
                label.name(),
                label.value(),
                exemplar.value(),
                ended.trim_end_matches('0').trim_end_matches('.')
            ));
        }
    }
    let text = exemplified(&rendered(&snapshot, Format::OpenMetrics));
    assert_eq!(read, text.into_iter().map(|(.., example)| example).collect::<Vec<_>>());
}

#[test]
fn the_bucket_without_a_bound_is_written_for_an_example_alone() {
    let mut snapshot = fixture::snapshot();
    {
        let web = snapshot.pools.iter_mut().find(|pool| &*pool.name == "web").unwrap();
        let waterfall = web.schedule.as_mut().unwrap().requests.as_mut().unwrap().waterfall.as_mut().unwrap();
        let mut slowest = (*waterfall.slowest).clone();
        for (_, requests) in &mut slowest {
            requests[0].duration_ns = 100_000_000_000_000;
        }
        waterfall.slowest = slowest.into();
    }
    let last = |snapshot: &Snapshot| {
        let families = read(snapshot, Groups::all());
        let family = families.iter().find(|f| f.name() == "worker_pool_request_duration_seconds").unwrap();
        let histograms = family.metric.iter().filter_map(|m| m.histogram.clone());
        histograms.filter_map(|h| h.bucket.last().cloned()).find(|b| b.upper_bound() == f64::INFINITY)
    };
    assert_eq!(last(&snapshot).and_then(|bucket| bucket.exemplar).unwrap().value(), 1e5);
    check_against_text(&snapshot, Groups::all());
    snapshot.own.profiling = None;
    assert_eq!(last(&snapshot), None);
}

#[test]
fn families_are_as_declared() {
    let read = read(&fixture::snapshot(), Groups::all());
    assert_eq!(read.len(), families().count());
    for (read, declared) in read.iter().zip(families()) {
        assert_eq!(read.name(), declared.name);
        assert_eq!(read.help(), declared.help);
        assert_eq!(read.unit(), declared.unit);
        // Prometheus refuses a whole scrape for a unit that the name does not end with.
        let unsuffixed = declared.name.strip_suffix("_total").unwrap_or(declared.name);
        assert!(declared.unit.is_empty() || unsuffixed.ends_with(&format!("_{}", declared.unit)));
    }
}

#[test]
fn histograms_are_native_too() {
    let snapshot = fixture::snapshot();
    let web = snapshot.pools.iter().find(|pool| &*pool.name == "web").unwrap();
    let of = |histogram: &Histogram| {
        let spans = histogram.positive_span.iter().map(|span| (span.offset(), span.length())).collect();
        native::of(
            (histogram.zero_threshold(), histogram.zero_count()),
            spans,
            histogram.positive_delta.clone(),
        )
    };
    let (mut histograms, mut empty) = (0, 0);
    for family in read(&snapshot, Groups::all()) {
        for (metric, histogram) in family.metric.iter().filter_map(|m| Some((m, m.histogram.as_ref()?))) {
            // What tells a native histogram without values from none.
            assert!(histogram.zero_threshold() > 0.0, "{}", family.name());
            assert_eq!(histogram.schema, Some(SCHEMA));
            let read = of(histogram);
            let buckets = native::buckets(&read.spans, &read.deltas);
            let count: i64 = buckets.iter().map(|(.., count)| count).sum();
            assert_eq!(count.unsigned_abs() + read.zero_count, histogram.sample_count(), "{metric:?}");
            histograms += 1;
            empty += usize::from(histogram.sample_count() == 0);
            if family.name() == "worker_pool_on_cpu_seconds" {
                let distribution = &web.schedule.as_ref().unwrap().intervals.as_ref().unwrap()[0];
                let window = distribution.windows.iter().find(|window| window.window == "start").unwrap();
                for (q, ours) in [(0.5, window.p50), (0.99, window.p99)] {
                    let theirs = native::quantile(&read, q);
                    assert!((theirs - ours).abs() < ours * 0.06, "p{q}: {theirs} and {ours}");
                }
            }
        }
    }
    // Three of each pool, twelve kinds of time, spans, one worker's way to be ready and to be asked, waits to be accepted, six
    // outcomes of requests, and twelve kinds of time of those.
    assert_eq!((histograms, empty), (3 * 5 + 12 + 4 + 6 + 12, 3 * 4 + 9 + 4));
}

proptest! {
    #[test]
    fn any_text_and_any_number_are_as_in_the_text(
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
        check_against_text(&snapshot, Groups::all());
    }
}
