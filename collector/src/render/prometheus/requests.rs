//! Families of what workers were asked, and how long they took to answer.
//!
//! A pool whose requests are watched has every outcome from the first scrape on.

use super::family::*;
use super::text::{Nanos, SignedNanos};
use super::writer::{Exemplar, Labels, Name, Place, Variants, Writer};
use super::{Format, POOL, Series};
use crate::input::{REQUEST_OUTCOMES, TIME_KINDS};
use crate::render::slow::{profile_of, span_of};
use crate::snapshot::{self, Distribution, Snapshot};
use crate::units::NANOS_PER_SECOND;

const OUTCOME: Name = Name::new("outcome");
const KIND: Name = Name::new("kind");

pub(super) fn write(writer: &mut Writer<'_>, series: &Series<'_>) {
    let requests = || series.pools().filter_map(|(pool, labels)| Some((requests_of(pool)?, labels)));
    writer.family(&POOL_REQUESTS, |samples| {
        let mut outcomes = Variants::of(OUTCOME);
        for (requests, labels) in requests() {
            for (outcome, count) in REQUEST_OUTCOMES.into_iter().zip(requests.total.ended) {
                samples.add_variant(labels, &mut outcomes, outcome, count);
            }
        }
    });
    writer.family(&POOL_IN_FLIGHT, |samples| {
        for (requests, labels) in requests().filter(|(requests, _)| requests.followed) {
            samples.add(labels, u64::from(requests.total.in_flight));
        }
    });
    writer.family(&POOL_RECEIVED, |samples| {
        for (requests, labels) in requests() {
            samples.add(labels, requests.total.received_bytes);
        }
    });
    writer.family(&POOL_SENT, |samples| {
        for (requests, labels) in requests() {
            samples.add(labels, requests.total.sent_bytes);
        }
    });
    let mut labels = Labels::of(writer.format);
    let mut durations: Vec<(Place, &Distribution, Vec<Exemplar>)> = Vec::new();
    for (pool, _) in series.pools() {
        let Some(seconds) = requests_of(pool).and_then(|requests| requests.seconds.as_ref()) else {
            continue;
        };
        let of_pool = labels.add(None, |labels| labels.text(&POOL, &pool.name));
        for (outcome, (name, seconds)) in REQUEST_OUTCOMES.iter().zip(seconds).enumerate() {
            let of_outcome = labels.add(Some(of_pool), |labels| labels.text(&OUTCOME, name));
            let exemplars = match writer.format {
                // There are none in Prometheus's own text.
                Format::Text => Vec::new(),
                Format::OpenMetrics | Format::Protobuf => exemplars(pool, outcome as u32, series.snapshot),
            };
            durations.push((of_outcome, &**seconds, exemplars));
        }
    }
    let families = [&POOL_REQUEST, &POOL_REQUEST_QUANTILE, &POOL_REQUEST_DISCARDED];
    let durations =
        || durations.iter().map(|(place, seconds, exemplars)| (labels.get(*place), *seconds, &exemplars[..]));
    super::pools::write_exemplified(writer, families, durations);
    super::pools::write_distributions(
        writer,
        [&POOL_FIRST_REQUEST, &POOL_FIRST_REQUEST_QUANTILE, &POOL_FIRST_REQUEST_DISCARDED],
        || {
            series.pools().filter_map(|(pool, labels)| {
                Some((labels, &*requests_of(pool)?.spawn_to_first_request_seconds))
            })
        },
    );
    super::pools::write_distributions(
        writer,
        [&POOL_ACCEPT_WAIT, &POOL_ACCEPT_WAIT_QUANTILE, &POOL_ACCEPT_WAIT_DISCARDED],
        || {
            series.pools().filter_map(|(pool, labels)| {
                Some((labels, requests_of(pool)?.accept_wait_seconds.as_deref()?))
            })
        },
    );
    write_waterfalls(writer, series);
}

/// The slowest requests of a pool that ended so, the latest first: those whose profile is kept.
fn exemplars(pool: &snapshot::Pool, outcome: u32, snapshot: &Snapshot) -> Vec<Exemplar> {
    const WINDOW: &str = "5m";
    let waterfall = requests_of(pool).and_then(|requests| requests.waterfall.as_ref());
    let windows = waterfall.into_iter().flat_map(|waterfall| waterfall.slowest.iter());
    let slowest = windows.filter(|(window, _)| *window == WINDOW).flat_map(|(_, requests)| requests);
    let exemplars = slowest.filter(|request| request.outcome == outcome).filter_map(|request| {
        Some(Exemplar {
            seconds: request.duration_ns as f64 / NANOS_PER_SECOND as f64,
            ended_unix_ns: span_of(request, snapshot).1,
            profile: profile_of(request, snapshot)?,
        })
    });
    let mut exemplars: Vec<Exemplar> = exemplars.collect();
    exemplars.sort_by_key(|exemplar| std::cmp::Reverse(exemplar.ended_unix_ns));
    exemplars
}

/// Of requests that had their thread to themselves.
fn write_waterfalls(writer: &mut Writer<'_>, series: &Series<'_>) {
    let waterfalls =
        || series.pools().filter_map(|(pool, labels)| Some((requests_of(pool)?.waterfall.as_ref()?, labels)));
    writer.family(&POOL_ALONE, |samples| {
        for (waterfall, labels) in waterfalls() {
            samples.add(labels, waterfall.requests);
        }
    });
    writer.family(&POOL_ALONE_DURATION, |samples| {
        for (waterfall, labels) in waterfalls() {
            samples.add(labels, Nanos(waterfall.duration_ns));
        }
    });
    let mut labels = Labels::of(writer.format);
    let mut times: Vec<(Place, &Distribution)> = Vec::new();
    for (pool, _) in series.pools() {
        let Some(waterfall) = requests_of(pool).and_then(|requests| requests.waterfall.as_ref()) else {
            continue;
        };
        let of_pool = labels.add(None, |labels| labels.text(&POOL, &pool.name));
        for (name, seconds) in TIME_KINDS.iter().zip(&waterfall.seconds) {
            let of_kind = labels.add(Some(of_pool), |labels| labels.text(&KIND, name));
            times.push((of_kind, &**seconds));
        }
    }
    let times = || times.iter().map(|(place, seconds)| (labels.get(*place), *seconds));
    let families = [&POOL_ALONE_TIME, &POOL_ALONE_TIME_QUANTILE, &POOL_ALONE_TIME_DISCARDED];
    super::pools::write_distributions(writer, families, times);
    writer.family(&POOL_ALONE_RESIDUAL, |samples| {
        for (waterfall, labels) in waterfalls() {
            let known_ns = waterfall.time_ns.iter().fold(0, |sum: u64, ns| sum.wrapping_add(*ns));
            samples.add(labels, SignedNanos(waterfall.duration_ns.wrapping_sub(known_ns).cast_signed()));
        }
    });
}

fn requests_of(pool: &snapshot::Pool) -> Option<&snapshot::Requests> {
    pool.schedule.as_ref()?.requests.as_ref()
}

/// By worker.
pub(super) fn write_details(writer: &mut Writer<'_>, series: &Series<'_>) {
    let mut each = |family: &Family, value: fn(&crate::worker::requests::Requests) -> u64| {
        writer.family(family, |samples| {
            for (worker, labels) in series.workers() {
                samples.add_known(labels, series.snapshot.requests_of(worker).map(value));
            }
        });
    };
    each(&WORKER_REQUESTS, |requests| requests.count());
    each(&WORKER_RECEIVED, |requests| requests.received_bytes);
    each(&WORKER_SENT, |requests| requests.sent_bytes);
}
