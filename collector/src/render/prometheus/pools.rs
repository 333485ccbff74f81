//! Families of pools and of their masters.

use std::ops::Range;

use super::family::*;
use super::text::{Nanos, Value as _, Writer, more_label};
use super::{SYSTEM, Series, USER};
use crate::snapshot::{Distribution, Master, Pool};

/// Masters of a pool with series of their own; more than two are alive only while upgrades overlap.
const MASTERS_LISTED: usize = 8;

pub(super) fn write(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&POOL_INFO, |samples| {
        let mut labels = Vec::new();
        for (pool, of_pool) in series.pools() {
            labels.clear();
            labels.extend_from_slice(of_pool);
            more_label(&mut labels, "origin", &pool.origin);
            samples.add(&labels, "", 1u64);
        }
    });
    let each = |writer: &mut Writer<'_>, family: &Family, value: fn(&Pool) -> Option<u64>| {
        writer.family(family, |samples| {
            for (pool, labels) in series.pools() {
                samples.add_known(labels, "", value(pool));
            }
        });
    };
    each(writer, &POOL_SIZE, |pool| Some(pool.size.into()));
    each(writer, &POOL_CONFIGURED_SIZE, |pool| pool.configured_size.map(u64::from));
    writer.family(&POOL_WORKERS, |samples| {
        for (pool, labels) in series.pools() {
            samples.add(labels, r#",state="creating""#, pool.states.creating);
            samples.add(labels, r#",state="running""#, pool.states.running);
        }
    });
    writer.family(&POOL_FLAGGED, |samples| {
        for (pool, labels) in series.pools() {
            samples.add(labels, r#",flag="defunct""#, pool.defunct);
        }
    });
    each(writer, &POOL_UNLISTED, |pool| Some(pool.unlisted.into()));
    each(writer, &POOL_SPAWNS, |pool| Some(pool.spawns_total));
    writer.family(&POOL_EXITS, |samples| {
        let mut labels = Vec::new();
        for (pool, of_pool) in series.pools() {
            for (reason, count) in pool.exits.by_reason() {
                labels.clear();
                labels.extend_from_slice(of_pool);
                more_label(&mut labels, "reason", reason);
                samples.add(&labels, "", count);
            }
        }
    });
    writer.family(&POOL_CPU, |samples| {
        for (pool, labels) in series.pools() {
            samples.add(labels, USER, Nanos(pool.cpu.user_ns));
            samples.add(labels, SYSTEM, Nanos(pool.cpu.system_ns));
        }
    });
    writer.family(&POOL_RUN_DELAY, |samples| {
        for (pool, labels) in series.pools() {
            samples.add_known(labels, "", pool.run_delay_ns.map(Nanos));
        }
    });
    each(writer, &POOL_RSS, |pool| pool.rss_bytes);
    each(writer, &POOL_READ, |pool| pool.read_bytes);
    each(writer, &POOL_WRITTEN, |pool| pool.written_bytes);

    let distribution = |writer: &mut Writer<'_>, families: [&Family; 3], of: fn(&Pool) -> &Distribution| {
        writer.family(families[0], |samples| {
            for (pool, labels) in series.pools() {
                samples.add_buckets(labels, of(pool));
            }
        });
        writer.family(families[1], |samples| {
            for (pool, labels) in series.pools() {
                samples.add_quantiles(labels, of(pool));
            }
        });
        writer.family(families[2], |samples| {
            for (pool, labels) in series.pools() {
                samples.add(labels, "", of(pool).discarded);
            }
        });
    };
    distribution(
        writer,
        [&POOL_UTILIZATION, &POOL_UTILIZATION_QUANTILE, &POOL_UTILIZATION_DISCARDED],
        |pool| &pool.cpu_utilization,
    );
    distribution(writer, [&POOL_WORKER_RSS, &POOL_WORKER_RSS_QUANTILE, &POOL_WORKER_RSS_DISCARDED], |pool| {
        &pool.worker_rss_bytes
    });
    distribution(writer, [&POOL_LIFETIME, &POOL_LIFETIME_QUANTILE, &POOL_LIFETIME_DISCARDED], |pool| {
        &pool.lifetime_seconds
    });
}

pub(super) fn write_masters(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&MASTER_COUNT, |samples| {
        for (pool, labels) in series.pools() {
            samples.add(labels, "", pool.masters.len() as u64);
        }
    });
    let mut labels = Vec::new();
    let mut masters: Vec<(&Master, Range<usize>)> = Vec::new();
    for (pool, of_pool) in series.pools() {
        let mut by_age: Vec<&Master> = pool.masters.iter().collect();
        by_age.sort_by_key(|master| (master.started_unix_ns, master.pid));
        for (number, master) in by_age.into_iter().take(MASTERS_LISTED).enumerate() {
            let start = labels.len();
            labels.extend_from_slice(of_pool);
            labels.extend_from_slice(b",master=\"");
            (number as u64).write(&mut labels);
            labels.push(b'"');
            masters.push((master, start..labels.len()));
        }
    }
    let masters = || masters.iter().map(|(master, range)| (*master, &labels[range.clone()]));
    writer.family(&MASTER_INFO, |samples| {
        let mut labels = Vec::new();
        for (master, of_master) in masters() {
            labels.clear();
            labels.extend_from_slice(of_master);
            labels.extend_from_slice(b",pid=\"");
            master.pid.write(&mut labels);
            labels.push(b'"');
            more_label(&mut labels, "comm", &master.comm);
            samples.add(&labels, "", 1u64);
        }
    });
    writer.family(&MASTER_START, |samples| {
        for (master, labels) in masters() {
            samples.add(labels, "", Nanos(master.started_unix_ns));
        }
    });
    writer.family(&MASTER_CPU, |samples| {
        for (master, labels) in masters() {
            samples.add_known(labels, USER, master.cpu.map(|cpu| Nanos(cpu.user_ns)));
            samples.add_known(labels, SYSTEM, master.cpu.map(|cpu| Nanos(cpu.system_ns)));
        }
    });
    writer.family(&MASTER_RSS, |samples| {
        for (master, labels) in masters() {
            samples.add_known(labels, "", master.rss_bytes);
        }
    });
}
