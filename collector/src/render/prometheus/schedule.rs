//! Families of what the scheduler did with the threads of workers.
//!
//! Where a pool's scheduler is not watched it has none of these series. Where it is, every kind of time has its series
//! from the first scrape on, zeros included: that nothing was ever blocked on a disk is known then, and a rate needs
//! the zero before the first increment. The same goes for the lengths of intervals, unless the pool wants totals alone.
//!
//! No counter of this kind for each worker: where the time of a worker went is as of the last look at its record, and
//! what is said of the moment after it can turn out to be some microseconds too much, which a counter may not take back.

use std::sync::Arc;

use collector_ebpf::schedule::{DISK, KINDS, ON_CPU, RUNNABLE};

use super::buffer::Piece;
use super::family::*;
use super::text::{Nanos, SignedNanos};
use super::writer::{Labels, Name, Place, Variants, Writer};
use super::{POOL, REASON, Series};
use crate::input::TIME_KINDS;
use crate::snapshot::{Distribution, Pool, Schedule};
use crate::worker::state::TIMED;

pub(super) fn write(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&POOL_TIME, |samples| {
        let mut kinds = Variants::of(Name::new("kind"));
        for (schedule, labels) in schedules(series) {
            for (kind, time_ns) in TIME_KINDS.into_iter().zip(schedule.time_ns) {
                samples.add_variant(labels, &mut kinds, kind, Nanos(time_ns));
            }
        }
    });
    writer.family(&POOL_FOLLOWED, |samples| {
        for (schedule, labels) in schedules(series) {
            samples.add(labels, Nanos(schedule.lived_ns));
        }
    });
    writer.family(&POOL_RESIDUAL, |samples| {
        for (schedule, labels) in schedules(series) {
            let known_ns = schedule.time_ns.iter().fold(0, |sum: u64, time_ns| sum.wrapping_add(*time_ns));
            samples.add(labels, SignedNanos(schedule.lived_ns.wrapping_sub(known_ns).cast_signed()));
        }
    });

    write_work(writer, series);

    let pools: Vec<(&Pool, &[Arc<Distribution>; KINDS])> = series
        .pools()
        .filter_map(|(pool, _)| Some((pool, pool.schedule.as_ref()?.intervals.as_ref()?)))
        .collect();
    let mut labels = Labels::of(writer.format);
    let mut waits = Vec::with_capacity(pools.len());
    let mut runs = Vec::with_capacity(pools.len());
    let mut blocked = Vec::with_capacity(pools.len() * TIME_KINDS.len());
    for (pool, intervals) in &pools {
        let of_pool = labels.add(None, |labels| labels.text(&POOL, &pool.name));
        waits.push((of_pool, &*intervals[RUNNABLE as usize]));
        runs.push((of_pool, &*intervals[ON_CPU as usize]));
        for (name, intervals) in TIME_KINDS.iter().zip(*intervals).skip(DISK as usize) {
            let of_reason = labels.add(Some(of_pool), |labels| labels.text(&REASON, name));
            blocked.push((of_reason, &**intervals));
        }
    }
    let mut distributions = |families, distributions: &[(Place, &Distribution)]| {
        super::pools::write_distributions(writer, families, || {
            distributions.iter().map(|(place, distribution)| (labels.get(*place), *distribution))
        });
    };
    distributions([&POOL_WAIT, &POOL_WAIT_QUANTILE, &POOL_WAIT_DISCARDED], &waits);
    distributions([&POOL_RUN, &POOL_RUN_QUANTILE, &POOL_RUN_DISCARDED], &runs);
    distributions([&POOL_BLOCKED, &POOL_BLOCKED_QUANTILE, &POOL_BLOCKED_DISCARDED], &blocked);
}

/// How much of the time workers worked.
fn write_work(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&POOL_STATE, |samples| {
        let mut states = Variants::of(Name::new("state"));
        for (schedule, labels) in schedules(series) {
            for (state, state_ns) in TIMED.into_iter().zip(schedule.work.state_ns) {
                samples.add_variant(labels, &mut states, state.as_str(), Nanos(state_ns));
            }
        }
    });
    writer.family(&POOL_SPANS, |samples| {
        for (schedule, labels) in schedules(series) {
            samples.add(labels, schedule.work.spans);
        }
    });
    let spans = || {
        schedules(series)
            .filter_map(|(schedule, labels)| Some((labels, &**schedule.work.span_seconds.as_ref()?)))
    };
    super::pools::write_distributions(writer, [&POOL_SPAN, &POOL_SPAN_QUANTILE, &POOL_SPAN_DISCARDED], spans);
    super::pools::write_distributions(
        writer,
        [&POOL_SPAWN_TO_READY, &POOL_SPAWN_TO_READY_QUANTILE, &POOL_SPAWN_TO_READY_DISCARDED],
        || schedules(series).map(|(schedule, labels)| (labels, &*schedule.work.spawn_to_ready_seconds)),
    );
}

/// What our own account of CPU time has missed.
pub(super) fn write_unattributed(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&UNATTRIBUTED_CPU, |samples| {
        let mut accounts = Variants::of(Name::new("account"));
        for (pool, labels) in series.pools() {
            for (account, ns) in pool.unattributed_cpu_ns() {
                samples.add_variant(labels, &mut accounts, account, Nanos(ns));
            }
        }
    });
}

fn schedules<'a>(series: &'a Series<'a>) -> impl Iterator<Item = (&'a Schedule, Piece<'a>)> {
    series.pools().filter_map(|(pool, labels)| Some((pool.schedule.as_ref()?, labels)))
}
