//! Every family there can be, declared once, in the order of the output. Whatever shows a family, in whichever format,
//! takes name, kind, unit and help from here.

use super::{Format, Group};

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
    /// The word for it; only OpenMetrics knows infos.
    pub fn as_str(self, format: Format) -> &'static str {
        match (self, format) {
            (Self::Counter, _) => "counter",
            (Self::Gauge, _)
            | (Self::Info, Format::Text | Format::Protobuf)
            | (Self::Summary, Format::Protobuf) => "gauge",
            (Self::Histogram, _) => "histogram",
            (Self::Summary, Format::Text | Format::OpenMetrics) => "summary",
            (Self::Info, Format::OpenMetrics) => "info",
        }
    }
}

/// A metric family, as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// What it is written with.
    pub group: Group,
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
    pub(super) fn header_name(&self, format: Format) -> &'static str {
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
    ($($group:ident {
        $($id:ident = $kind:ident $name:literal [$($label:literal),*] $unit:literal $help:literal;)*
    })*) => {
        $($(
            pub(super) const $id: Family = Family {
                group: Group::$group,
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                unit: $unit,
                help: $help,
            };
        )*)*
        static FAMILIES: &[Family] = &[$($($id,)*)*];
    };
}

families! {
    Pools {
        POOL_INFO = Info "worker_pool_info" ["pool", "origin"] ""
            "A pool, and what made it one: config, recognized:<program> or zero-config.";
        POOL_SIZE = Gauge "worker_pool_size" ["pool"] ""
            "Configured number of workers where it is known, otherwise the number of living ones.";
        POOL_CONFIGURED_SIZE = Gauge "worker_pool_configured_size" ["pool"] ""
            "Configured number of workers; absent where it is not known.";
        POOL_WORKERS = Gauge "worker_pool_workers" ["pool", "state"] ""
            "Living workers by state; each is in exactly one. running: nobody watches whether it works.";
        POOL_WORKING = Gauge "worker_pool_utilization_ratio" ["pool"] ""
            "Active workers over the size of the pool, now. Near 1, work may have to wait for a worker.";
        POOL_FLAGGED = Gauge "worker_pool_flagged_workers" ["pool", "flag"] ""
            "Workers with a flag. stuck: active for longer than stuck_after. stale: ready or idle for longer than idle_ttl. defunct: ended, and not reaped by their parent.";
        POOL_FLAG_ENTRIES = Counter "worker_pool_flag_entries_total" ["pool", "flag"] ""
            "Workers that were given a flag since the collector started.";
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
        POOL_ACCEPT_QUEUE = Gauge "worker_pool_accept_queue_length" ["pool", "address"] ""
            "Established connections that wait to be accepted where the pool listens; those of sockets with one address together.";
        POOL_ACCEPT_QUEUE_LIMIT = Gauge "worker_pool_accept_queue_limit" ["pool", "address"] ""
            "Backlog of the sockets with this address together; the kernel lets one connection more wait at each.";
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

        POOL_RUNS = Counter "worker_pool_runs_total" ["pool", "outcome"] ""
            "Workers that ended, each a run, since runs are counted; only of pools with work: runs. unknown: nobody told how it ended.";
        POOL_SHORTEST_RUN = Gauge "worker_pool_shortest_run_seconds" ["pool"] "seconds"
            "The shortest run since runs are counted, from fork to end; worker_pool_lifetime_seconds is their distribution.";
        POOL_LONGEST_RUN = Gauge "worker_pool_longest_run_seconds" ["pool"] "seconds"
            "The longest run since runs are counted, from fork to end.";
        POOL_LAST_RUN = Gauge "worker_pool_last_run_timestamp_seconds" ["pool"] "seconds"
            "When the last run ended, since the Unix epoch; absent before the first.";
        POOL_TIME = Counter "worker_pool_time_seconds_total" ["pool", "kind"] "seconds"
            "Time of workers' threads while followed, by what they did: on_cpu, runnable (waiting for a CPU), or blocked and why.";
        POOL_FOLLOWED = Counter "worker_pool_followed_thread_seconds_total" ["pool"] "seconds"
            "Time that workers' threads were followed, together: what worker_pool_time_seconds_total adds up to.";
        POOL_RESIDUAL = Gauge "worker_pool_time_residual_seconds" ["pool"] "seconds"
            "Followed time less the sum of all kinds, since the collector started: what is not known; negative if counted twice.";
        POOL_STATE = Counter "worker_pool_state_seconds_total" ["pool", "state"] "seconds"
            "Time that workers were creating, ready, active or idle while watched, all workers together, to the nanosecond of each change.";
        POOL_SPANS = Counter "worker_pool_spans_total" ["pool"] ""
            "Spans of work that ended: from the moment in which a worker ceases to wait for work until it waits again.";
        POOL_SPAN = Histogram "worker_pool_span_seconds" ["pool"] "seconds"
            "Length of a span of work, one value per span.";
        POOL_SPAN_QUANTILE = Summary "worker_pool_span_seconds_quantile" ["pool", "quantile", "window"] ""
            "Quantiles of worker_pool_span_seconds in a window, within 1.6 %.";
        POOL_SPAN_DISCARDED = Counter "worker_pool_span_seconds_discarded_total" ["pool"] ""
            "Spans left out of worker_pool_span_seconds because their length is not known.";
        POOL_SPAWN_TO_READY = Histogram "worker_pool_spawn_to_ready_seconds" ["pool"] "seconds"
            "Time from the fork of a worker until it first waits for work, one value per worker.";
        POOL_SPAWN_TO_READY_QUANTILE = Summary "worker_pool_spawn_to_ready_seconds_quantile" ["pool", "quantile", "window"] ""
            "Quantiles of worker_pool_spawn_to_ready_seconds in a window, within 1.6 %.";
        POOL_SPAWN_TO_READY_DISCARDED = Counter "worker_pool_spawn_to_ready_seconds_discarded_total" ["pool"] ""
            "Values that could not be used in worker_pool_spawn_to_ready_seconds.";
        POOL_WAIT = Histogram "worker_pool_run_queue_wait_seconds" ["pool"] "seconds"
            "Time a worker's thread waited for a CPU, one value per wait.";
        POOL_WAIT_QUANTILE = Summary "worker_pool_run_queue_wait_seconds_quantile" ["pool", "quantile", "window"] ""
            "Quantiles of worker_pool_run_queue_wait_seconds in a window, within 1.6 %.";
        POOL_WAIT_DISCARDED = Counter "worker_pool_run_queue_wait_seconds_discarded_total" ["pool"] ""
            "Intervals left out of worker_pool_run_queue_wait_seconds because their length is not known.";
        POOL_RUN = Histogram "worker_pool_on_cpu_seconds" ["pool"] "seconds"
            "Time a worker's thread stayed on a CPU, one value per turn.";
        POOL_RUN_QUANTILE = Summary "worker_pool_on_cpu_seconds_quantile" ["pool", "quantile", "window"] ""
            "Quantiles of worker_pool_on_cpu_seconds in a window, within 1.6 %.";
        POOL_RUN_DISCARDED = Counter "worker_pool_on_cpu_seconds_discarded_total" ["pool"] ""
            "Intervals left out of worker_pool_on_cpu_seconds because their length is not known.";
        POOL_BLOCKED = Histogram "worker_pool_off_cpu_seconds" ["pool", "reason"] "seconds"
            "Time a worker's thread was blocked, one value per interval, by reason.";
        POOL_BLOCKED_QUANTILE = Summary "worker_pool_off_cpu_seconds_quantile" ["pool", "reason", "quantile", "window"] ""
            "Quantiles of worker_pool_off_cpu_seconds in a window, within 1.6 %.";
        POOL_BLOCKED_DISCARDED = Counter "worker_pool_off_cpu_seconds_discarded_total" ["pool", "reason"] ""
            "Intervals left out of worker_pool_off_cpu_seconds because their length is not known.";
        POOL_REQUESTS = Counter "worker_pool_requests_total" ["pool", "outcome"] ""
            "Requests that ended, by outcome: the class of the status of an HTTP/1 answer, ok for any other answer, aborted for none.";
        POOL_IN_FLIGHT = Gauge "worker_pool_requests_in_flight" ["pool"] ""
            "Requests that have begun and of which no byte was answered yet.";
        POOL_RECEIVED = Counter "worker_pool_receive_bytes_total" ["pool"] "bytes"
            "Bytes that workers received from sockets of any kind.";
        POOL_SENT = Counter "worker_pool_transmit_bytes_total" ["pool"] "bytes"
            "Bytes that workers sent to sockets of any kind.";
        POOL_REQUEST = Histogram "worker_pool_request_duration_seconds" ["pool", "outcome"] "seconds"
            "Time from the first byte of a request that a worker received to the last byte of its answer that it sent.";
        POOL_REQUEST_QUANTILE = Summary "worker_pool_request_duration_seconds_quantile" ["pool", "outcome", "quantile", "window"] ""
            "Quantiles of worker_pool_request_duration_seconds in a window, within 1.6 %.";
        POOL_REQUEST_DISCARDED = Counter "worker_pool_request_duration_seconds_discarded_total" ["pool", "outcome"] ""
            "Requests left out of worker_pool_request_duration_seconds for want of memory or budget, or because it is not known when they were answered.";
        POOL_FIRST_REQUEST = Histogram "worker_pool_spawn_to_first_request_seconds" ["pool"] "seconds"
            "Time from the fork of a worker until its first request begins, one value per worker.";
        POOL_FIRST_REQUEST_QUANTILE = Summary "worker_pool_spawn_to_first_request_seconds_quantile" ["pool", "quantile", "window"] ""
            "Quantiles of worker_pool_spawn_to_first_request_seconds in a window, within 1.6 %.";
        POOL_FIRST_REQUEST_DISCARDED = Counter "worker_pool_spawn_to_first_request_seconds_discarded_total" ["pool"] ""
            "Values that could not be used in worker_pool_spawn_to_first_request_seconds.";
        POOL_ACCEPT_WAIT = Histogram "worker_pool_accept_wait_seconds" ["pool"] "seconds"
            "Time from a TCP connection being established until a worker reads its first bytes, if the client sent all of them at once.";
        POOL_ACCEPT_WAIT_QUANTILE = Summary "worker_pool_accept_wait_seconds_quantile" ["pool", "quantile", "window"] ""
            "Quantiles of worker_pool_accept_wait_seconds in a window, within 1.6 % or a tick of the kernel.";
        POOL_ACCEPT_WAIT_DISCARDED = Counter "worker_pool_accept_wait_seconds_discarded_total" ["pool"] ""
            "Connections whose client did not send at once, or sent more while it waited, or left out of worker_pool_accept_wait_seconds for want of memory or budget.";
        POOL_ALONE = Counter "worker_pool_waterfall_requests_total" ["pool"] ""
            "Requests that had the thread to themselves that they began on: those whose time is split by kind.";
        POOL_ALONE_DURATION = Counter "worker_pool_waterfall_request_seconds_total" ["pool"] "seconds"
            "How long these took, together: what the sums of worker_pool_request_time_seconds add up to.";
        POOL_ALONE_TIME = Histogram "worker_pool_request_time_seconds" ["pool", "kind"] "seconds"
            "Time of such a request that its thread spent on a CPU, waiting for one, or blocked, by reason. The sum also has what was discarded.";
        POOL_ALONE_TIME_QUANTILE = Summary "worker_pool_request_time_seconds_quantile" ["pool", "kind", "quantile", "window"] ""
            "Quantiles of worker_pool_request_time_seconds in a window, within 1.6 %.";
        POOL_ALONE_TIME_DISCARDED = Counter "worker_pool_request_time_seconds_discarded_total" ["pool", "kind"] ""
            "Times left out of buckets and count of worker_pool_request_time_seconds for want of memory or budget; with the count they are all such requests.";
        POOL_ALONE_RESIDUAL = Gauge "worker_pool_waterfall_residual_seconds" ["pool"] "seconds"
            "What the times of such requests lack to their durations, by the sums of the kernel: not zero is an error of ours.";

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
    }
    Workers {
        WORKER_INFO = Info "worker_info" ["pool", "slot", "generation", "pid", "app", "comm"] ""
            "The worker that has the slot now; generation counts the workers that have had it.";
        WORKER_STATE = Gauge "worker_state" ["pool", "slot", "state"] ""
            "1 for the state the worker is in; its other states have no series.";
        WORKER_START = Gauge "worker_start_time_seconds" ["pool", "slot"] "seconds"
            "When the worker started, since the Unix epoch.";
        WORKER_CPU = Counter "worker_cpu_seconds_total" ["pool", "slot", "mode"] "seconds"
            "CPU time of the worker since it started.";
        WORKER_RSS = Gauge "worker_resident_memory_bytes" ["pool", "slot"] "bytes"
            "Resident memory of the worker: anonymous, file and shared memory.";
        WORKER_ANONYMOUS = Gauge "worker_anonymous_memory_bytes" ["pool", "slot"] "bytes"
            "Resident anonymous memory of the worker.";
        WORKER_THREADS = Gauge "worker_threads" ["pool", "slot"] ""
            "Living threads of the worker.";
    }
    WorkerDetails {
        WORKER_UTILIZATION = Gauge "worker_cpu_utilization_ratio" ["pool", "slot"] "ratio"
            "CPU of the worker in the last interval as a share of one CPU.";
        WORKER_RUN_DELAY = Counter "worker_run_delay_seconds_total" ["pool", "slot"] "seconds"
            "Time the living threads of the worker waited runnable for a CPU since it started.";
        WORKER_FILE = Gauge "worker_file_memory_bytes" ["pool", "slot"] "bytes"
            "Resident pages of files that the worker has mapped.";
        WORKER_SHMEM = Gauge "worker_shared_memory_bytes" ["pool", "slot"] "bytes"
            "Resident shared memory and tmpfs pages of the worker.";
        WORKER_SWAP = Gauge "worker_swap_bytes" ["pool", "slot"] "bytes"
            "Anonymous memory of the worker that was swapped out.";
        WORKER_FAULTS = Counter "worker_page_faults_total" ["pool", "slot", "kind"] ""
            "Page faults of the worker since it started; major ones needed IO.";
        WORKER_SWITCHES = Counter "worker_context_switches_total" ["pool", "slot", "kind"] ""
            "Times the worker left a CPU since it started: by itself (voluntary) or preempted (involuntary).";
        WORKER_READ = Counter "worker_read_bytes_total" ["pool", "slot"] "bytes"
            "Bytes the worker caused to be read from storage since it started.";
        WORKER_WRITTEN = Counter "worker_written_bytes_total" ["pool", "slot"] "bytes"
            "Bytes the worker caused to be written to storage since it started.";
        WORKER_REQUESTS = Counter "worker_requests_total" ["pool", "slot"] ""
            "Requests of the worker that ended while it was watched.";
        WORKER_RECEIVED = Counter "worker_receive_bytes_total" ["pool", "slot"] "bytes"
            "Bytes the worker received from sockets of any kind while it was watched.";
        WORKER_SENT = Counter "worker_transmit_bytes_total" ["pool", "slot"] "bytes"
            "Bytes the worker sent to sockets of any kind while it was watched.";
    }
    Collector {
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
        PROBE_CPU = Gauge "collector_probe_cpu_ratio" [] ""
            "CPU the scheduler probes took for followed threads in the last second, as a share of one CPU, from a sample of their runs.";
        PROBE_BUDGET = Gauge "collector_probe_cpu_budget_ratio" [] ""
            "CPU the scheduler probes may take for followed threads, as a share of one CPU; absent without a limit.";
        DEGRADED = Gauge "collector_degraded" ["step"] ""
            "1 for each step taken to keep the scheduler probes within their budget: no histograms, then no probes.";
        PROFILE_CAPTURES = Counter "collector_profile_captures_total" [] ""
            "Profiles that somebody asked for and that were begun.";
        PROFILE_CPU = Counter "collector_profile_cpu_seconds_total" [] "seconds"
            "CPU time of the thread that makes profiles; what it takes to sample is not in it.";
        PROFILE_KEPT = Gauge "collector_profile_kept_bytes" [] "bytes"
            "Memory that profiles of the last minutes take, about; absent unless they are kept.";
        MAP_ENTRIES = Gauge "collector_map_entries" ["map"] ""
            "Entries of a BPF map that are in use or were handed out.";
        MAP_CAPACITY = Gauge "collector_map_capacity_entries" ["map"] ""
            "Entries that a BPF map has.";
        MAP_MEMORY = Gauge "collector_kernel_map_memory_bytes" [] "bytes"
            "Kernel memory of the collector's BPF maps. What is mapped of them is in its resident memory, too.";
        PROCESSES = Gauge "collector_processes" [] ""
            "Processes the collector knows now.";
        RELOAD_SUCCESSFUL = Gauge "collector_config_last_reload_successful" [] ""
            "1 if the configuration in use is the last one that was given.";
        RELOAD_TIME = Gauge "collector_config_last_reload_success_timestamp_seconds" [] "seconds"
            "When the configuration in use was loaded, since the Unix epoch; absent for the built-in defaults.";
        SNAPSHOT_TIME = Gauge "collector_snapshot_timestamp_seconds" [] "seconds"
            "When the figures of this scrape were taken, since the Unix epoch.";
        UNATTRIBUTED_CPU = Counter "collector_unattributed_cpu_seconds_total" ["pool", "account"] "seconds"
            "CPU time that the kernel accounted and that we lack: to workers, in no kind of time of theirs (process); to the cgroup that the pool is, of no worker or master (cgroup).";

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
}
