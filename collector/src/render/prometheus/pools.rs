//! Families of pools and of their masters.

use super::buffer::Piece;
use super::family::*;
use super::text::{Nanos, One};
use super::writer::{Exemplar, LabelWriter, Labels, Name, Place, Variants, Writer};
use super::{COMM, MODE, PID, POOL, REASON, Series};

use crate::snapshot::{AcceptQueue, Distribution, Master, Pool};
use crate::worker::runs::View;

/// Masters of a pool with series of their own; more than two are alive only while upgrades overlap.
const MASTERS_LISTED: usize = 8;

pub(super) fn write(writer: &mut Writer<'_>, series: &Series<'_>) {
    const ORIGIN: Name = Name::new("origin");
    writer.family(&POOL_INFO, |samples| {
        for (pool, labels) in series.pools() {
            samples.add_labelled(labels, |labels| labels.text(&ORIGIN, &pool.origin), One);
        }
    });
    let each = |writer: &mut Writer<'_>, family: &Family, value: fn(&Pool) -> Option<u64>| {
        writer.family(family, |samples| {
            for (pool, labels) in series.pools() {
                samples.add_known(labels, value(pool));
            }
        });
    };
    each(writer, &POOL_SIZE, |pool| Some(pool.size.into()));
    each(writer, &POOL_CONFIGURED_SIZE, |pool| pool.configured_size.map(u64::from));
    writer.family(&POOL_WORKERS, |samples| {
        let mut state = Variants::of(Name::new("state"));
        for (pool, labels) in series.pools() {
            let states = pool.states;
            samples.add_variant(labels, &mut state, "creating", states.creating);
            if pool.work_known {
                samples.add_variant(labels, &mut state, "ready", states.ready);
                samples.add_variant(labels, &mut state, "active", states.active);
                samples.add_variant(labels, &mut state, "idle", states.idle);
            }
            samples.add_variant(labels, &mut state, "running", states.running);
        }
    });
    writer.family(&POOL_WORKING, |samples| {
        for (pool, labels) in series.pools() {
            samples.add_known(labels, pool.utilization());
        }
    });
    writer.family(&POOL_FLAGGED, |samples| {
        let mut flag = Variants::of(Name::new("flag"));
        for (pool, labels) in series.pools() {
            for (name, count) in pool.by_flag(pool.flags) {
                samples.add_variant(labels, &mut flag, name, count);
            }
        }
    });
    writer.family(&POOL_FLAG_ENTRIES, |samples| {
        let mut flag = Variants::of(Name::new("flag"));
        for (pool, labels) in series.pools() {
            for (name, count) in pool.by_flag(pool.flagged) {
                samples.add_variant(labels, &mut flag, name, count);
            }
        }
    });
    each(writer, &POOL_UNLISTED, |pool| Some(pool.unlisted.into()));
    each(writer, &POOL_SPAWNS, |pool| Some(pool.spawns_total));
    writer.family(&POOL_EXITS, |samples| {
        let mut reasons = Variants::of(REASON);
        for (pool, labels) in series.pools() {
            for (reason, count) in pool.exits.by_reason() {
                samples.add_variant(labels, &mut reasons, reason, count);
            }
        }
    });
    writer.family(&POOL_CPU, |samples| {
        let mut mode = Variants::of(MODE);
        for (pool, labels) in series.pools() {
            samples.add_variant(labels, &mut mode, "user", Nanos(pool.cpu.user_ns));
            samples.add_variant(labels, &mut mode, "system", Nanos(pool.cpu.system_ns));
        }
    });
    writer.family(&POOL_RUN_DELAY, |samples| {
        for (pool, labels) in series.pools() {
            samples.add_known(labels, pool.run_delay_ns.map(Nanos));
        }
    });
    each(writer, &POOL_RSS, |pool| pool.rss_bytes);
    each(writer, &POOL_READ, |pool| pool.read_bytes);
    each(writer, &POOL_WRITTEN, |pool| pool.written_bytes);
    write_accept_queues(writer, series);

    let distribution = |writer: &mut Writer<'_>, families, of: fn(&Pool) -> &Distribution| {
        write_distributions(writer, families, || series.pools().map(|(pool, labels)| (labels, of(pool))));
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

/// Pools whose work is a process per job.
pub(super) fn write_runs(writer: &mut Writer<'_>, series: &Series<'_>) {
    let runs = || series.pools().filter_map(|(pool, labels)| Some((pool.runs.as_ref()?, labels)));
    writer.family(&POOL_RUNS, |samples| {
        let mut outcomes = Variants::of(Name::new("outcome"));
        for (runs, labels) in runs() {
            for (outcome, count) in runs.totals.by_outcome() {
                samples.add_variant(labels, &mut outcomes, outcome, count);
            }
        }
    });
    let each = |writer: &mut Writer<'_>, family: &Family, ns: fn(&View) -> Option<u64>| {
        writer.family(family, |samples| {
            for (runs, labels) in runs() {
                samples.add_known(labels, ns(runs).map(Nanos));
            }
        });
    };
    each(writer, &POOL_SHORTEST_RUN, |runs| Some(runs.totals.extremes_ns?.0));
    each(writer, &POOL_LONGEST_RUN, |runs| Some(runs.totals.extremes_ns?.1));
    each(writer, &POOL_LAST_RUN, |runs| runs.last_unix_ns);
}

fn write_accept_queues(writer: &mut Writer<'_>, series: &Series<'_>) {
    const ADDRESS: Name = Name::new("address");
    let each = |writer: &mut Writer<'_>, family: &Family, value: fn(&AcceptQueue) -> u64| {
        writer.family(family, |samples| {
            for (pool, labels) in series.pools() {
                for queue in &*pool.accept_queues {
                    let address = |labels: &mut LabelWriter<'_>| labels.text(&ADDRESS, &queue.address);
                    samples.add_labelled(labels, address, value(queue));
                }
            }
        });
    };
    each(writer, &POOL_ACCEPT_QUEUE, |queue| queue.length);
    each(writer, &POOL_ACCEPT_QUEUE_LIMIT, |queue| queue.limit);
}

/// Writes a histogram, its quantiles and what was left out of it.
pub(super) fn write_distributions<'a, I: Iterator<Item = (Piece<'a>, &'a Distribution)>>(
    writer: &mut Writer<'_>,
    families: [&Family; 3],
    distributions: impl Fn() -> I,
) {
    write_exemplified(writer, families, || distributions().map(|(labels, of)| (labels, of, &[][..])));
}

/// The same of histograms of which there are examples.
pub(super) fn write_exemplified<'a, I: Iterator<Item = (Piece<'a>, &'a Distribution, &'a [Exemplar])>>(
    writer: &mut Writer<'_>,
    families: [&Family; 3],
    distributions: impl Fn() -> I,
) {
    writer.family(families[0], |samples| samples.add_histograms(distributions()));
    writer.family(families[1], |samples| {
        samples.add_quantiles(distributions().map(|(labels, distribution, _)| (labels, distribution)));
    });
    writer.family(families[2], |samples| {
        for (labels, distribution, _) in distributions() {
            samples.add(labels, distribution.discarded);
        }
    });
}

pub(super) fn write_masters(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&MASTER_COUNT, |samples| {
        for (pool, labels) in series.pools() {
            samples.add(labels, pool.masters.len() as u64);
        }
    });
    const MASTER: Name = Name::new("master");
    let mut all = Labels::of(writer.format);
    let mut masters: Vec<(&Master, Place)> = Vec::new();
    for (pool, _) in series.pools() {
        let mut by_age: Vec<&Master> = pool.masters.iter().collect();
        by_age.sort_by_key(|master| (master.started_unix_ns, master.pid));
        let of_pool = all.add(None, |labels| labels.text(&POOL, &pool.name));
        for (number, master) in by_age.into_iter().take(MASTERS_LISTED).enumerate() {
            let labels = all.add(Some(of_pool), |labels| labels.number(&MASTER, number as u64));
            masters.push((master, labels));
        }
    }
    let masters = || masters.iter().map(|(master, labels)| (*master, all.get(*labels)));
    writer.family(&MASTER_INFO, |samples| {
        for (master, labels) in masters() {
            let more = |labels: &mut LabelWriter<'_>| {
                labels.number(&PID, master.pid);
                labels.text(&COMM, &master.comm);
            };
            samples.add_labelled(labels, more, One);
        }
    });
    writer.family(&MASTER_START, |samples| {
        for (master, labels) in masters() {
            samples.add(labels, Nanos(master.started_unix_ns));
        }
    });
    writer.family(&MASTER_CPU, |samples| {
        let mut mode = Variants::of(MODE);
        for (master, labels) in masters() {
            let Some(cpu) = master.cpu else { continue };
            samples.add_variant(labels, &mut mode, "user", Nanos(cpu.user_ns));
            samples.add_variant(labels, &mut mode, "system", Nanos(cpu.system_ns));
        }
    });
    writer.family(&MASTER_RSS, |samples| {
        for (master, labels) in masters() {
            samples.add_known(labels, master.rss_bytes);
        }
    });
}
