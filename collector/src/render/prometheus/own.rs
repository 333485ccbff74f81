//! Families of the collector itself.

use super::REASON;
use super::buffer::Piece;
use super::family::*;
use super::text::{Nanos, One, Value};
use super::writer::{LabelWriter, Name, Samples, Writer};
use crate::input::Profile;
use crate::snapshot::{EventCounts, MapFill, Own, Snapshot};

pub(super) fn write(writer: &mut Writer<'_>, snapshot: &Snapshot) {
    let own = &snapshot.own;
    writer.family(&BUILD_INFO, |samples| {
        one_label(samples, &Name::new("version"), env!("CARGO_PKG_VERSION"), One);
    });
    writer.family(&SOURCE_INFO, |samples| one_label(samples, &Name::new("source"), snapshot.source, One));
    writer.family(&FEATURE, |samples| {
        for feature in snapshot.features.iter() {
            let labels = |labels: &mut LabelWriter<'_>| {
                labels.text(&Name::new("feature"), feature.name);
                if !feature.reason.is_empty() {
                    labels.text(&REASON, &feature.reason);
                }
            };
            samples.add_labelled(Piece::EMPTY, labels, u64::from(feature.enabled));
        }
    });
    let events = |writer: &mut Writer<'_>, family: &Family, count: fn(&EventCounts) -> u64| {
        writer.family(family, |samples| {
            for event in &own.events {
                one_label(samples, &Name::new("kind"), event.kind, count(event));
            }
        });
    };
    events(writer, &EVENTS_COUNTED, |event| event.counted);
    events(writer, &EVENTS_DELIVERED, |event| event.delivered);
    events(writer, &EVENTS_LOST, |event| event.lost);
    writer.family(&LOSSES, |samples| {
        // Two parts of the collector may use one reason, and a series must not occur twice.
        for (at, (reason, _)) in own.losses.iter().enumerate() {
            if own.losses[..at].iter().any(|(earlier, _)| earlier == reason) {
                continue;
            }
            let all: u64 = own.losses[at..].iter().filter(|(other, _)| other == reason).map(|(_, n)| n).sum();
            one_label(samples, &REASON, reason, all);
        }
    });
    writer.single(&PASSES, Some(own.passes));
    writer.single(&PASS_CPU, Some(Nanos(own.pass_cpu_ns)));
    writer.single(&EVENT_CPU, Some(Nanos(own.event_cpu_ns)));
    write_programs(writer, own);
    writer.single(&PROBE_CPU, own.scheduler.and_then(|scheduler| scheduler.share));
    writer.single(&PROBE_BUDGET, own.scheduler.and_then(|scheduler| scheduler.budget));
    writer.family(&DEGRADED, |samples| {
        let Some(scheduler) = own.scheduler else { return };
        for (step, taken) in [
            ("no_histograms", scheduler.ceiling < Profile::Histograms),
            ("no_probes", scheduler.ceiling < Profile::Counters),
        ] {
            one_label(samples, &Name::new("step"), step, u64::from(taken));
        }
    });
    writer.single(&PROFILE_CAPTURES, own.profiling.map(|profiling| profiling.captures));
    writer.single(&PROFILE_CPU, own.profiling.map(|profiling| Nanos(profiling.cpu_ns)));
    writer.single(&PROFILE_KEPT, own.profiling.and_then(|profiling| profiling.kept_bytes));
    let maps = |writer: &mut Writer<'_>, family: &Family, of: fn(&MapFill) -> u64| {
        writer.family(family, |samples| {
            for map in &own.maps {
                one_label(samples, &Name::new("map"), map.name, of(map));
            }
        });
    };
    maps(writer, &MAP_ENTRIES, |map| map.entries);
    maps(writer, &MAP_CAPACITY, |map| map.capacity);
    writer.single(&MAP_MEMORY, own.map_bytes);
    writer.single(&PROCESSES, Some(own.processes));
    writer.single(&RELOAD_SUCCESSFUL, Some(u64::from(own.config_last_reload_successful)));
    writer.single(&RELOAD_TIME, own.config_loaded_unix_ns.map(Nanos));
    writer.single(&SNAPSHOT_TIME, Some(Nanos(snapshot.at_unix_ns)));
}

fn write_programs(writer: &mut Writer<'_>, own: &Own) {
    // The kernel cuts names at 15 bytes, which can make two programs look alike.
    let mut programs: Vec<(&str, u64, u64)> = Vec::with_capacity(own.programs.len());
    for program in &own.programs {
        match programs.iter_mut().find(|(name, ..)| *name == program.name) {
            Some((_, runs, run_time_ns)) => {
                *runs += program.runs;
                *run_time_ns += program.run_time_ns;
            }
            None => programs.push((program.name, program.runs, program.run_time_ns)),
        }
    }
    writer.family(&PROGRAM_RUN, |samples| {
        for (name, _, run_time_ns) in &programs {
            one_label(samples, &PROGRAM, name, Nanos(*run_time_ns));
        }
    });
    writer.family(&PROGRAM_RUNS, |samples| {
        for (name, runs, _) in &programs {
            one_label(samples, &PROGRAM, name, *runs);
        }
    });
}

pub(super) fn write_process(writer: &mut Writer<'_>, snapshot: &Snapshot) {
    let own = &snapshot.own;
    writer.single(&PROCESS_CPU, Some(Nanos(own.cpu.total_ns())));
    writer.single(&PROCESS_RSS, own.rss_bytes);
    writer.single(&PROCESS_VIRTUAL, own.virtual_bytes);
    writer.single(&PROCESS_FDS, own.open_fds);
    writer.single(&PROCESS_MAX_FDS, own.max_fds);
    writer.single(&PROCESS_START, Some(Nanos(snapshot.started_unix_ns)));
}

const PROGRAM: Name = Name::new("program");

fn one_label<V: Value>(samples: &mut Samples<'_>, name: &Name, label: &str, value: V) {
    samples.add_labelled(Piece::EMPTY, |labels| labels.text(name, label), value);
}
