//! Families of workers.

use super::family::*;
use super::text::{Nanos, One};
use super::writer::{LabelWriter, Name, Variants, Writer};
use super::{COMM, MODE, PID, Series};
use crate::snapshot::Reading;

/// What dashboards and alerts ask of every worker.
pub(super) fn write(writer: &mut Writer<'_>, series: &Series<'_>) {
    const GENERATION: Name = Name::new("generation");
    const APP: Name = Name::new("app");
    writer.family(&WORKER_INFO, |samples| {
        for (worker, labels) in series.workers() {
            let more = |labels: &mut LabelWriter<'_>| {
                labels.number(&GENERATION, worker.generation);
                labels.number(&PID, worker.pid);
                if let Some(app) = &worker.app {
                    labels.text(&APP, app);
                }
                labels.text(&COMM, &worker.comm);
            };
            samples.add_labelled(labels, more, One);
        }
    });
    writer.family(&WORKER_STATE, |samples| {
        let mut state = Variants::of(Name::new("state"));
        for (worker, labels) in series.workers() {
            samples.add_variant(labels, &mut state, worker.state.as_str(), One);
        }
    });
    writer.family(&WORKER_START, |samples| {
        for (worker, labels) in series.workers() {
            samples.add(labels, Nanos(worker.started_unix_ns));
        }
    });
    writer.family(&WORKER_CPU, |samples| {
        let mut mode = Variants::of(MODE);
        for (reading, labels) in series.readings() {
            samples.add_variant(labels, &mut mode, "user", Nanos(reading.cpu.user_ns));
            samples.add_variant(labels, &mut mode, "system", Nanos(reading.cpu.system_ns));
        }
    });
    each(writer, series, &WORKER_RSS, |reading| reading.rss.map(|rss| rss.total_bytes));
    each(writer, series, &WORKER_ANONYMOUS, |reading| reading.rss?.anonymous_bytes);
    each(writer, series, &WORKER_THREADS, |reading| Some(reading.threads.into()));
}

/// Everything else about every worker.
pub(super) fn write_details(writer: &mut Writer<'_>, series: &Series<'_>) {
    writer.family(&WORKER_UTILIZATION, |samples| {
        for (reading, labels) in series.readings() {
            samples.add_known(labels, reading.cpu_utilization);
        }
    });
    writer.family(&WORKER_RUN_DELAY, |samples| {
        for (reading, labels) in series.readings() {
            samples.add_known(labels, reading.run_delay_ns.map(Nanos));
        }
    });
    each(writer, series, &WORKER_FILE, |reading| reading.rss?.file_bytes);
    each(writer, series, &WORKER_SHMEM, |reading| reading.rss?.shmem_bytes);
    each(writer, series, &WORKER_SWAP, |reading| reading.rss?.swap_bytes);
    writer.family(&WORKER_FAULTS, |samples| {
        let mut kind = Variants::of(Name::new("kind"));
        for (reading, labels) in series.readings() {
            samples.add_variant(labels, &mut kind, "minor", reading.minor_faults);
            samples.add_variant(labels, &mut kind, "major", reading.major_faults);
        }
    });
    writer.family(&WORKER_SWITCHES, |samples| {
        let mut kind = Variants::of(Name::new("kind"));
        for (reading, labels) in series.readings() {
            if let Some(switches) = reading.voluntary_switches {
                samples.add_variant(labels, &mut kind, "voluntary", switches);
            }
            if let Some(switches) = reading.involuntary_switches {
                samples.add_variant(labels, &mut kind, "involuntary", switches);
            }
        }
    });
    each(writer, series, &WORKER_READ, |reading| reading.read_bytes);
    each(writer, series, &WORKER_WRITTEN, |reading| reading.written_bytes);
}

fn each(writer: &mut Writer<'_>, series: &Series<'_>, family: &Family, value: fn(&Reading) -> Option<u64>) {
    writer.family(family, |samples| {
        for (reading, labels) in series.readings() {
            samples.add_known(labels, value(reading));
        }
    });
}
