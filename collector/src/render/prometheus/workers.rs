//! Families of workers.

use super::family::*;
use super::text::{Nanos, Value as _, Writer, more_label};
use super::{SYSTEM, Series, USER};
use crate::snapshot::Reading;

pub(super) fn write(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&WORKER_INFO, |samples| {
        let mut labels = Vec::new();
        for (worker, of_worker) in series.workers() {
            labels.clear();
            labels.extend_from_slice(of_worker);
            labels.extend_from_slice(b",generation=\"");
            worker.generation.write(&mut labels);
            labels.extend_from_slice(b"\",pid=\"");
            worker.pid.write(&mut labels);
            labels.push(b'"');
            if let Some(app) = &worker.app {
                more_label(&mut labels, "app", app);
            }
            more_label(&mut labels, "comm", &worker.comm);
            samples.add(&labels, "", 1u64);
        }
    });
    writer.family(&WORKER_STATE, |samples| {
        let mut labels = Vec::new();
        for (worker, of_worker) in series.workers() {
            labels.clear();
            labels.extend_from_slice(of_worker);
            more_label(&mut labels, "state", worker.state.as_str());
            samples.add(&labels, "", 1u64);
        }
    });
    writer.family(&WORKER_START, |samples| {
        for (worker, labels) in series.workers() {
            samples.add(labels, "", Nanos(worker.started_unix_ns));
        }
    });
    writer.family(&WORKER_CPU, |samples| {
        for (reading, labels) in series.readings() {
            samples.add(labels, USER, Nanos(reading.cpu.user_ns));
            samples.add(labels, SYSTEM, Nanos(reading.cpu.system_ns));
        }
    });
    writer.family(&WORKER_UTILIZATION, |samples| {
        for (reading, labels) in series.readings() {
            samples.add_known(labels, "", reading.cpu_utilization);
        }
    });
    writer.family(&WORKER_RUN_DELAY, |samples| {
        for (reading, labels) in series.readings() {
            samples.add_known(labels, "", reading.run_delay_ns.map(Nanos));
        }
    });
    let each = |writer: &mut Writer<'_>, family: &Family, value: fn(&Reading) -> Option<u64>| {
        writer.family(family, |samples| {
            for (reading, labels) in series.readings() {
                samples.add_known(labels, "", value(reading));
            }
        });
    };
    each(writer, &WORKER_RSS, |reading| reading.rss.map(|rss| rss.total_bytes));
    each(writer, &WORKER_ANONYMOUS, |reading| reading.rss?.anonymous_bytes);
    each(writer, &WORKER_FILE, |reading| reading.rss?.file_bytes);
    each(writer, &WORKER_SHMEM, |reading| reading.rss?.shmem_bytes);
    each(writer, &WORKER_SWAP, |reading| reading.rss?.swap_bytes);
    each(writer, &WORKER_THREADS, |reading| Some(reading.threads.into()));
    writer.family(&WORKER_FAULTS, |samples| {
        for (reading, labels) in series.readings() {
            samples.add(labels, r#",kind="minor""#, reading.minor_faults);
            samples.add(labels, r#",kind="major""#, reading.major_faults);
        }
    });
    writer.family(&WORKER_SWITCHES, |samples| {
        for (reading, labels) in series.readings() {
            samples.add_known(labels, r#",kind="voluntary""#, reading.voluntary_switches);
            samples.add_known(labels, r#",kind="involuntary""#, reading.involuntary_switches);
        }
    });
    each(writer, &WORKER_READ, |reading| reading.read_bytes);
    each(writer, &WORKER_WRITTEN, |reading| reading.written_bytes);
}
