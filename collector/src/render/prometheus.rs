//! A snapshot as Prometheus text 0.0.4 and as OpenMetrics 1.0.0.
//!
//! Every family is declared once, in the table below, and written in its order. What is unknown has no series; a
//! family without series has no header either. Series of workers carry `pool` and `slot` only: a successor takes over
//! the slot, its counters start from its own zero, and readers see an ordinary counter reset.
//!
//! Two roads not taken. `worker_state` is no full state set: it has one series per worker, for the state it is in,
//! because zeros for every other state would multiply the largest family by the number of states
//! (`worker_pool_workers` has all states, zeros included). And no counter has a `_created` sample:
//! `worker_start_time_seconds` says the same once per worker instead of once per series.

use std::io::Write as _;
use std::ops::Range;

use crate::snapshot::{Distribution, EventCounts, Master, Own, Pool, Reading, Snapshot, Worker};
use crate::units::NANOS_PER_SECOND;

/// A text format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text exposition 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The media type to answer with.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What the samples of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rises, and starts from 0 when what it counts is replaced.
    Counter,
    /// Any value.
    Gauge,
    /// Classic buckets with sum and count.
    Histogram,
    /// Quantiles, here without sum and count: the histogram beside it has them.
    Summary,
    /// Always 1; the labels are the content.
    Info,
}

impl Kind {
    /// The word in a `# TYPE` line; text 0.0.4 knows no infos.
    pub fn as_str(self, format: Format) -> &'static str {
        match (self, format) {
            (Self::Counter, _) => "counter",
            (Self::Gauge, _) | (Self::Info, Format::Text) => "gauge",
            (Self::Histogram, _) => "histogram",
            (Self::Summary, _) => "summary",
            (Self::Info, Format::OpenMetrics) => "info",
        }
    }
}

/// A metric family, as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Full name, with `_total` or `_info` at its end where the kind asks for it.
    pub name: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// Labels its samples can have, `le` apart.
    pub labels: &'static [&'static str],
    /// Base unit; the name contains it. Empty for plain numbers and for names in which it is not last.
    pub unit: &'static str,
    /// One line for the reader of a scrape.
    pub help: &'static str,
}

impl Family {
    /// The name in header lines: OpenMetrics leaves the suffixes to the samples.
    fn header_name(&self, format: Format) -> &'static str {
        let suffix = match (format, self.kind) {
            (Format::OpenMetrics, Kind::Counter) => "_total",
            (Format::OpenMetrics, Kind::Info) => "_info",
            _ => return self.name,
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

/// Every family there can be, in the order of the output.
pub fn families() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter()
}

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $unit:literal $help:literal;)*) => {
        $(
            const $id: Family = Family {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                unit: $unit,
                help: $help,
            };
        )*
        static FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    POOL_INFO = Info "worker_pool_info" ["pool", "origin"] ""
        "A pool, and what made it one: config, recognized:<program> or zero-config.";
    POOL_SIZE = Gauge "worker_pool_size" ["pool"] ""
        "Configured number of workers where it is known, otherwise the number of living ones.";
    POOL_CONFIGURED_SIZE = Gauge "worker_pool_configured_size" ["pool"] ""
        "Configured number of workers; absent where it is not known.";
    POOL_WORKERS = Gauge "worker_pool_workers" ["pool", "state"] ""
        "Living workers by state; each is in exactly one.";
    POOL_FLAGGED = Gauge "worker_pool_flagged_workers" ["pool", "flag"] ""
        "Workers with a flag. defunct: ended, and not reaped by their parent.";
    POOL_UNLISTED = Gauge "worker_pool_unlisted_workers" ["pool"] ""
        "Living workers without series of their own, because the pool has more than the ceiling.";
    POOL_SPAWNS = Counter "worker_pool_spawns_total" ["pool"] ""
        "Workers forked since the collector started.";
    POOL_EXITS = Counter "worker_pool_exits_total" ["pool", "reason"] ""
        "Workers that left since the collector started, by reason.";
    POOL_CPU = Counter "worker_pool_cpu_seconds_total" ["pool", "mode"] "seconds"
        "CPU time of all workers while watched, living and dead.";
    POOL_RUN_DELAY = Counter "worker_pool_run_delay_seconds_total" ["pool"] "seconds"
        "Time workers waited runnable for a CPU while watched.";
    POOL_RSS = Gauge "worker_pool_resident_memory_bytes" ["pool"] "bytes"
        "Resident memory of living workers together; pages they share count once per worker.";
    POOL_READ = Counter "worker_pool_read_bytes_total" ["pool"] "bytes"
        "Bytes that workers caused to be read from storage while watched.";
    POOL_WRITTEN = Counter "worker_pool_written_bytes_total" ["pool"] "bytes"
        "Bytes that workers caused to be written to storage while watched.";
    POOL_UTILIZATION = Histogram "worker_pool_cpu_utilization_ratio" ["pool"] "ratio"
        "CPU of one worker in one interval as a share of one CPU, one value per worker and interval.";
    POOL_UTILIZATION_QUANTILE = Summary "worker_pool_cpu_utilization_ratio_quantile" ["pool", "quantile", "window"] ""
        "Quantiles of worker_pool_cpu_utilization_ratio in a window, within 1.6 %.";
    POOL_UTILIZATION_DISCARDED = Counter "worker_pool_cpu_utilization_ratio_discarded_total" ["pool"] ""
        "Values left out of worker_pool_cpu_utilization_ratio because they could not be true.";
    POOL_WORKER_RSS = Histogram "worker_pool_worker_resident_memory_bytes" ["pool"] "bytes"
        "Resident memory of one worker, one value per worker and interval.";
    POOL_WORKER_RSS_QUANTILE = Summary "worker_pool_worker_resident_memory_bytes_quantile" ["pool", "quantile", "window"] ""
        "Quantiles of worker_pool_worker_resident_memory_bytes in a window, within 1.6 %.";
    POOL_WORKER_RSS_DISCARDED = Counter "worker_pool_worker_resident_memory_bytes_discarded_total" ["pool"] ""
        "Values left out of worker_pool_worker_resident_memory_bytes because they could not be true.";
    POOL_LIFETIME = Histogram "worker_pool_lifetime_seconds" ["pool"] "seconds"
        "Age of workers when they ended.";
    POOL_LIFETIME_QUANTILE = Summary "worker_pool_lifetime_seconds_quantile" ["pool", "quantile", "window"] ""
        "Quantiles of worker_pool_lifetime_seconds in a window, within 1.6 %.";
    POOL_LIFETIME_DISCARDED = Counter "worker_pool_lifetime_seconds_discarded_total" ["pool"] ""
        "Values left out of worker_pool_lifetime_seconds because they could not be true.";

    MASTER_COUNT = Gauge "worker_pool_masters" ["pool"] ""
        "Processes alive that fork the workers of the pool.";
    MASTER_INFO = Info "worker_pool_master_info" ["pool", "master", "pid", "comm"] ""
        "A process that forks workers; master numbers them by age, 0 is the oldest.";
    MASTER_START = Gauge "worker_pool_master_start_time_seconds" ["pool", "master"] "seconds"
        "When the master started, since the Unix epoch.";
    MASTER_CPU = Counter "worker_pool_master_cpu_seconds_total" ["pool", "master", "mode"] "seconds"
        "CPU time of the master since it started.";
    MASTER_RSS = Gauge "worker_pool_master_resident_memory_bytes" ["pool", "master"] "bytes"
        "Resident memory of the master.";

    WORKER_INFO = Info "worker_info" ["pool", "slot", "generation", "pid", "app", "comm"] ""
        "The worker that has the slot now; generation counts the workers that have had it.";
    WORKER_STATE = Gauge "worker_state" ["pool", "slot", "state"] ""
        "1 for the state the worker is in; its other states have no series.";
    WORKER_START = Gauge "worker_start_time_seconds" ["pool", "slot"] "seconds"
        "When the worker started, since the Unix epoch.";
    WORKER_CPU = Counter "worker_cpu_seconds_total" ["pool", "slot", "mode"] "seconds"
        "CPU time of the worker since it started.";
    WORKER_UTILIZATION = Gauge "worker_cpu_utilization_ratio" ["pool", "slot"] "ratio"
        "CPU of the worker in the last interval as a share of one CPU.";
    WORKER_RUN_DELAY = Counter "worker_run_delay_seconds_total" ["pool", "slot"] "seconds"
        "Time the living threads of the worker waited runnable for a CPU since it started.";
    WORKER_RSS = Gauge "worker_resident_memory_bytes" ["pool", "slot"] "bytes"
        "Resident memory of the worker: anonymous, file and shared memory.";
    WORKER_ANONYMOUS = Gauge "worker_anonymous_memory_bytes" ["pool", "slot"] "bytes"
        "Resident anonymous memory of the worker.";
    WORKER_FILE = Gauge "worker_file_memory_bytes" ["pool", "slot"] "bytes"
        "Resident pages of files that the worker has mapped.";
    WORKER_SHMEM = Gauge "worker_shared_memory_bytes" ["pool", "slot"] "bytes"
        "Resident shared memory and tmpfs pages of the worker.";
    WORKER_SWAP = Gauge "worker_swap_bytes" ["pool", "slot"] "bytes"
        "Anonymous memory of the worker that was swapped out.";
    WORKER_THREADS = Gauge "worker_threads" ["pool", "slot"] ""
        "Living threads of the worker.";
    WORKER_FAULTS = Counter "worker_page_faults_total" ["pool", "slot", "kind"] ""
        "Page faults of the worker since it started; major ones needed IO.";
    WORKER_SWITCHES = Counter "worker_context_switches_total" ["pool", "slot", "kind"] ""
        "Times the worker left a CPU since it started: by itself (voluntary) or preempted (involuntary).";
    WORKER_READ = Counter "worker_read_bytes_total" ["pool", "slot"] "bytes"
        "Bytes the worker caused to be read from storage since it started.";
    WORKER_WRITTEN = Counter "worker_written_bytes_total" ["pool", "slot"] "bytes"
        "Bytes the worker caused to be written to storage since it started.";

    BUILD_INFO = Info "collector_build_info" ["version"] ""
        "The version of the collector.";
    SOURCE_INFO = Info "collector_source_info" ["source"] ""
        "Where the facts come from: ebpf or procfs.";
    FEATURE = Gauge "collector_feature_enabled" ["feature", "reason"] ""
        "1 for what works here, 0 for what does not; reason says why not, or how it is reduced.";
    EVENTS_COUNTED = Counter "collector_events_counted_total" ["kind"] ""
        "Lifecycle events the kernel side saw: those delivered and those lost.";
    EVENTS_DELIVERED = Counter "collector_events_delivered_total" ["kind"] ""
        "Lifecycle events that were handed to the collector.";
    EVENTS_LOST = Counter "collector_events_lost_total" ["kind"] ""
        "Lifecycle events for which there was no room on the way.";
    LOSSES = Counter "collector_losses_total" ["reason"] ""
        "What went wrong and cost a fact, by reason.";
    PASSES = Counter "collector_passes_total" [] ""
        "Passes over all tracked processes.";
    PASS_CPU = Counter "collector_pass_cpu_seconds_total" [] "seconds"
        "CPU time spent in passes.";
    EVENT_CPU = Counter "collector_event_cpu_seconds_total" [] "seconds"
        "CPU time spent taking and applying events.";
    PROGRAM_RUN = Counter "collector_bpf_program_run_seconds_total" ["program"] "seconds"
        "Run time of a BPF program, about 44 ns a run of which are the statistics; absent unless kernel.bpf_stats_enabled is set.";
    PROGRAM_RUNS = Counter "collector_bpf_program_runs_total" ["program"] ""
        "Runs of a BPF program; absent unless kernel.bpf_stats_enabled is set.";
    MAP_MEMORY = Gauge "collector_kernel_map_memory_bytes" [] "bytes"
        "Kernel memory of the collector's BPF maps, which its resident memory does not show.";
    PROCESSES = Gauge "collector_processes" [] ""
        "Processes the collector knows now.";
    RELOAD_SUCCESSFUL = Gauge "collector_config_last_reload_successful" [] ""
        "1 if the configuration in use is the last one that was given.";
    RELOAD_TIME = Gauge "collector_config_last_reload_success_timestamp_seconds" [] "seconds"
        "When the configuration in use was loaded, since the Unix epoch; absent for the built-in defaults.";
    SNAPSHOT_TIME = Gauge "collector_snapshot_timestamp_seconds" [] "seconds"
        "When the figures of this scrape were taken, since the Unix epoch.";

    PROCESS_CPU = Counter "process_cpu_seconds_total" [] "seconds"
        "CPU time of the collector itself.";
    PROCESS_RSS = Gauge "process_resident_memory_bytes" [] "bytes"
        "Resident memory of the collector itself.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" [] "bytes"
        "Virtual memory of the collector itself.";
    PROCESS_FDS = Gauge "process_open_fds" [] ""
        "Open file descriptors of the collector itself.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [] ""
        "Limit of open file descriptors of the collector itself.";
    PROCESS_START = Gauge "process_start_time_seconds" [] "seconds"
        "When the collector started to collect, since the Unix epoch.";
}

/// Masters of a pool with series of their own; more than two are alive only while upgrades overlap.
const MASTERS_LISTED: usize = 8;

/// Writes a whole exposition to the end of `out`.
///
/// `after_family` is called after each family and may take the bytes out of the buffer, so that a compressed
/// exposition never exists uncompressed as a whole.
pub fn render(
    snapshot: &Snapshot,
    format: Format,
    out: &mut Vec<u8>,
    after_family: &mut dyn FnMut(&mut Vec<u8>),
) {
    let mut writer = Writer { out, format, after_family };
    let series = Series::of(snapshot);
    write_pools(&mut writer, &series);
    write_masters(&mut writer, &series);
    write_workers(&mut writer, &series);
    write_collector(&mut writer, snapshot);
    write_own_process(&mut writer, snapshot);
    if format == Format::OpenMetrics {
        writer.out.extend_from_slice(b"# EOF\n");
        (writer.after_family)(writer.out);
    }
}

/// Label strings, escaped once and used for every family.
struct Series<'a> {
    labels: Vec<u8>,
    pools: Vec<(&'a Pool, Range<usize>)>,
    workers: Vec<(&'a Worker, Range<usize>)>,
}

impl<'a> Series<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let listed = snapshot.pools.iter().map(|pool| pool.workers.len()).sum();
        let mut labels = Vec::with_capacity(64 * (listed + snapshot.pools.len()));
        let mut pools = Vec::with_capacity(snapshot.pools.len());
        let mut workers = Vec::with_capacity(listed);
        for pool in &snapshot.pools {
            let start = labels.len();
            write_label(&mut labels, "pool", &pool.name);
            let of_pool = start..labels.len();
            for worker in &pool.workers {
                let start = labels.len();
                labels.extend_from_within(of_pool.clone());
                labels.extend_from_slice(b",slot=\"");
                worker.slot.write(&mut labels);
                labels.push(b'"');
                workers.push((worker, start..labels.len()));
            }
            pools.push((pool, of_pool));
        }
        Self { labels, pools, workers }
    }

    fn pools(&self) -> impl Iterator<Item = (&'a Pool, &[u8])> {
        self.pools.iter().map(|(pool, labels)| (*pool, &self.labels[labels.clone()]))
    }

    fn workers(&self) -> impl Iterator<Item = (&'a Worker, &[u8])> {
        self.workers.iter().map(|(worker, labels)| (*worker, &self.labels[labels.clone()]))
    }

    fn readings(&self) -> impl Iterator<Item = (&'a Reading, &[u8])> {
        self.workers().filter_map(|(worker, labels)| Some((worker.reading.as_ref()?, labels)))
    }
}

fn write_pools(writer: &mut Writer<'_>, series: &Series<'_>) {
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

fn write_masters(writer: &mut Writer<'_>, series: &Series<'_>) {
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

fn write_workers(writer: &mut Writer<'_>, series: &Series<'_>) {
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

fn write_collector(writer: &mut Writer<'_>, snapshot: &Snapshot) {
    let own = &snapshot.own;
    let mut labels = Vec::new();
    writer.family(&BUILD_INFO, |samples| {
        samples.add(label(&mut labels, "version", env!("CARGO_PKG_VERSION")), "", 1u64);
    });
    writer.family(&SOURCE_INFO, |samples| {
        samples.add(label(&mut labels, "source", snapshot.source), "", 1u64);
    });
    writer.family(&FEATURE, |samples| {
        for feature in snapshot.features.iter() {
            label(&mut labels, "feature", feature.name);
            if !feature.reason.is_empty() {
                more_label(&mut labels, "reason", &feature.reason);
            }
            samples.add(&labels, "", u64::from(feature.enabled));
        }
    });
    let mut events = |writer: &mut Writer<'_>, family: &Family, count: fn(&EventCounts) -> u64| {
        writer.family(family, |samples| {
            for event in &own.events {
                samples.add(label(&mut labels, "kind", event.kind), "", count(event));
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
            let all = own.losses[at..].iter().filter(|(other, _)| other == reason).map(|(_, n)| n).sum();
            samples.add::<u64>(label(&mut labels, "reason", reason), "", all);
        }
    });
    writer.single(&PASSES, Some(own.passes));
    writer.single(&PASS_CPU, Some(Nanos(own.pass_cpu_ns)));
    writer.single(&EVENT_CPU, Some(Nanos(own.event_cpu_ns)));
    write_programs(writer, own);
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
    let mut labels = Vec::new();
    writer.family(&PROGRAM_RUN, |samples| {
        for (name, _, run_time_ns) in &programs {
            samples.add(label(&mut labels, "program", name), "", Nanos(*run_time_ns));
        }
    });
    writer.family(&PROGRAM_RUNS, |samples| {
        for (name, runs, _) in &programs {
            samples.add(label(&mut labels, "program", name), "", *runs);
        }
    });
}

fn write_own_process(writer: &mut Writer<'_>, snapshot: &Snapshot) {
    let own = &snapshot.own;
    writer.single(&PROCESS_CPU, Some(Nanos(own.cpu.total_ns())));
    writer.single(&PROCESS_RSS, own.rss_bytes);
    writer.single(&PROCESS_VIRTUAL, own.virtual_bytes);
    writer.single(&PROCESS_FDS, own.open_fds);
    writer.single(&PROCESS_MAX_FDS, own.max_fds);
    writer.single(&PROCESS_START, Some(Nanos(snapshot.started_unix_ns)));
}

const USER: &str = r#",mode="user""#;
const SYSTEM: &str = r#",mode="system""#;

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
    after_family: &'a mut dyn FnMut(&mut Vec<u8>),
}

impl Writer<'_> {
    /// Writes the header and what `samples` adds, or nothing if it adds nothing.
    fn family(&mut self, family: &Family, samples: impl FnOnce(&mut Samples<'_>)) {
        let start = self.out.len();
        let name = family.header_name(self.format);
        let kind = family.kind.as_str(self.format);
        for part in ["# HELP ", name, " ", family.help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.out.extend_from_slice(part.as_bytes());
        }
        if self.format == Format::OpenMetrics && !family.unit.is_empty() {
            for part in ["# UNIT ", name, " ", family.unit, "\n"] {
                self.out.extend_from_slice(part.as_bytes());
            }
        }
        let body = self.out.len();
        samples(&mut Samples { out: self.out, name: family.name, format: self.format });
        if self.out.len() == body {
            self.out.truncate(start);
        }
        (self.after_family)(self.out);
    }

    fn single<V: Value>(&mut self, family: &Family, value: Option<V>) {
        self.family(family, |samples| samples.add_known(b"", "", value));
    }
}

/// The samples of one family.
struct Samples<'a> {
    out: &'a mut Vec<u8>,
    name: &'static str,
    format: Format,
}

impl Samples<'_> {
    /// Adds a sample; `labels` and `more` are escaped already, and `more` begins with a comma.
    fn add<V: Value>(&mut self, labels: &[u8], more: &str, value: V) {
        self.add_suffixed("", labels, more, value);
    }

    fn add_known<V: Value>(&mut self, labels: &[u8], more: &str, value: Option<V>) {
        if let Some(value) = value {
            self.add(labels, more, value);
        }
    }

    fn add_suffixed<V: Value>(&mut self, suffix: &str, labels: &[u8], more: &str, value: V) {
        self.out.extend_from_slice(self.name.as_bytes());
        self.out.extend_from_slice(suffix.as_bytes());
        if !labels.is_empty() {
            self.out.push(b'{');
            self.out.extend_from_slice(labels);
            self.out.extend_from_slice(more.as_bytes());
            self.out.push(b'}');
        }
        self.out.push(b' ');
        value.write(self.out);
        self.out.push(b'\n');
    }

    fn add_buckets(&mut self, labels: &[u8], distribution: &Distribution) {
        let mut more = Vec::new();
        for (bound, count) in distribution.bounds.iter().zip(&distribution.cumulative) {
            more.clear();
            more.extend_from_slice(labels);
            more.extend_from_slice(b",le=\"");
            write_bound(&mut more, *bound, self.format);
            more.push(b'"');
            self.add_suffixed("_bucket", &more, "", *count);
        }
        self.add_suffixed("_bucket", labels, r#",le="+Inf""#, distribution.count);
        self.add_suffixed("_sum", labels, "", distribution.sum);
        self.add_suffixed("_count", labels, "", distribution.count);
    }

    fn add_quantiles(&mut self, labels: &[u8], distribution: &Distribution) {
        let mut more = Vec::new();
        for window in &distribution.windows {
            for (quantile, value) in [("0.5", window.p50), ("0.95", window.p95), ("0.99", window.p99)] {
                more.clear();
                more.extend_from_slice(labels);
                more_label(&mut more, "quantile", quantile);
                more_label(&mut more, "window", window.window);
                self.add(&more, "", value);
            }
        }
    }
}

/// Something that can stand behind a series.
trait Value {
    fn write(self, out: &mut Vec<u8>);
}

impl Value for u64 {
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(itoa::Buffer::new().format(self).as_bytes());
    }
}

impl Value for u32 {
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(itoa::Buffer::new().format(self).as_bytes());
    }
}

impl Value for f64 {
    fn write(self, out: &mut Vec<u8>) {
        let text = if self.is_finite() {
            return out.extend_from_slice(ryu::Buffer::new().format_finite(self).as_bytes());
        } else if self.is_nan() {
            "NaN"
        } else if self > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        };
        out.extend_from_slice(text.as_bytes());
    }
}

/// Nanoseconds, written as seconds with all their digits: no rounding, and cheaper than a float.
#[derive(Clone, Copy)]
struct Nanos(u64);

impl Value for Nanos {
    fn write(self, out: &mut Vec<u8>) {
        (self.0 / NANOS_PER_SECOND).write(out);
        let mut fraction = self.0 % NANOS_PER_SECOND;
        if fraction == 0 {
            return;
        }
        let mut digits = [b'.'; 10];
        for digit in digits[1..].iter_mut().rev() {
            *digit = b'0' + (fraction % 10) as u8;
            fraction /= 10;
        }
        let end = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
        out.extend_from_slice(&digits[..end]);
    }
}

/// Writes a bucket's bound as Go's `%g` does, because `le` is a label and other exporters write it so. OpenMetrics
/// asks for the same with `.0` behind whole numbers ("canonical numbers").
fn write_bound(out: &mut Vec<u8>, bound: f64, format: Format) {
    let start = out.len();
    // Writing to a vector cannot fail.
    if bound != 0.0 && !(1e-4..1e6).contains(&bound.abs()) {
        let _ = write!(out, "{bound:e}");
        if let Some(at) = out[start..].iter().position(|byte| *byte == b'e').map(|at| start + at + 1) {
            let negative = out.get(at) == Some(&b'-');
            let exponent: Vec<u8> = out.drain(at..).filter(|byte| *byte != b'-').collect();
            out.push(if negative { b'-' } else { b'+' });
            if exponent.len() < 2 {
                out.push(b'0');
            }
            out.extend_from_slice(&exponent);
        }
    } else {
        let _ = write!(out, "{bound}");
        if format == Format::OpenMetrics && !out[start..].contains(&b'.') {
            out.extend_from_slice(b".0");
        }
    }
}

/// Replaces the content of `labels` by one label.
fn label<'a>(labels: &'a mut Vec<u8>, name: &str, value: &str) -> &'a [u8] {
    labels.clear();
    write_label(labels, name, value);
    labels
}

/// Appends a comma and a label.
fn more_label(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b',');
    write_label(out, name, value);
}

/// Appends a label. A value can hold any character: both formats escape three, all others stand for themselves.
fn write_label(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"=\"");
    let mut rest = value.as_bytes();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => br"\\",
            b'"' => br#"\""#,
            _ => br"\n",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::render::fixture;

    fn rendered(snapshot: &Snapshot, format: Format) -> String {
        let mut out = Vec::new();
        render(snapshot, format, &mut out, &mut |_| ());
        String::from_utf8(out).unwrap()
    }

    struct Sample {
        name: String,
        labels: BTreeMap<String, String>,
        value: f64,
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
        let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
        Sample { name: name.to_owned(), labels, value }
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
        for (name, format) in [("metrics.txt", Format::Text), ("metrics.openmetrics", Format::OpenMetrics)] {
            let text = rendered(&snapshot, format).replace(version, "version=\"VERSION\"");
            fixture::check_golden(name, &text);
        }
    }

    #[test]
    fn every_declared_family_occurs_with_declared_labels_only() {
        let text = rendered(&fixture::snapshot(), Format::Text);
        let samples = samples(&text);
        let mut seen = BTreeSet::new();
        for family in families() {
            assert!(text.contains(&format!("# HELP {} {}\n", family.name, family.help)), "{}", family.name);
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
        let mut taken = Vec::new();
        let mut out = Vec::new();
        render(&snapshot, Format::OpenMetrics, &mut out, &mut |out| taken.append(out));
        assert!(out.is_empty());
        assert_eq!(String::from_utf8(taken).unwrap(), rendered(&snapshot, Format::OpenMetrics));
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
            (12_000_000_000, "12"),
            (u64::MAX, "18446744073.709551615"),
        ] {
            let mut out = Vec::new();
            Nanos(ns).write(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
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
            pool.workers = vec![worker];
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
}
