//! A snapshot in which everything occurs that can: the one that golden files and handler tests show.

use std::sync::Arc;

use collector_ebpf::histogram::index;
use collector_ebpf::request::ABORTED;
use collector_ebpf::schedule::{ACCEPT_WAIT, KINDS, NETWORK, ON_CPU, POLL, REQUEST, RUNNABLE, SPAN, Work};
use collector_ebpf::waterfall::STRETCH_SHIFT;

use crate::histogram::Scratch;
use crate::input::{
    Comm, Doing, ExitStatus, Interval, OpenSocket, Profile, Rss, ScheduleReading, Sender, SlowRequest,
    SocketFamily, TaskState, ThreadDoing, WaterfallReading,
};
use crate::snapshot::{
    AcceptQueue, DeathCertificate, Distribution, EventCounts, ExitCounts, Feature, FlagCounts, Flagged,
    MapFill, Master, Own, Pool, Profiling, ProgramCost, Reading, SchedulerCost, Snapshot, StateCounts,
    WindowQuantiles, Worker, WorkerState, Workers,
};
use crate::units::{CpuTime, ProcessKey};
use crate::worker::flags::{Flag, Limits};
use crate::worker::runs::{Outcome, Run, Runs};
use crate::worker::schedule::{Following, Schedules, Watched};

/// 2026-01-02T03:04:05.25Z
pub(crate) const AT: u64 = 1_767_323_045_250_000_000;
const SECOND: u64 = 1_000_000_000;
/// Each character that some format escapes, and some that none does.
pub(crate) const HOSTILE: &str = "a\"b\\c\nd{e}=f,g \u{1b}[31m<i>/%2F\u{fffd}";

pub(crate) fn distribution(bounds: &'static [f64], unit: f64) -> Distribution {
    let quantiles = |window, count| WindowQuantiles {
        window,
        count,
        p50: unit,
        p90: unit * 1.5,
        p95: unit * 2.0,
        p99: unit * 2.5,
        p999: unit * 2.75,
        max: unit * 3.0,
        coverage: 0.75,
    };
    Distribution {
        bounds,
        cumulative: (1..=bounds.len() as u64).collect(),
        count: bounds.len() as u64 + 3,
        sum: unit * 8.5,
        discarded: 2,
        buckets: Arc::new(vec![(0, 2), (1000, bounds.len() as u64), (1001, 1)]),
        per_unit: PER_UNIT,
        windows: vec![quantiles("1m", 3), quantiles("5m", 6), quantiles("start", 9)],
    }
}

const PER_UNIT: f64 = 1e6;

fn empty(bounds: &'static [f64]) -> Distribution {
    Distribution { bounds, cumulative: vec![0; bounds.len()], per_unit: PER_UNIT, ..Distribution::default() }
}

pub(crate) fn pool(name: &str) -> Pool {
    Pool {
        name: name.into(),
        number: 0,
        origin: "config".into(),
        masters: Vec::new(),
        configured_size: None,
        size: 0,
        states: StateCounts::default(),
        work_known: false,
        flags: FlagCounts::default(),
        flagged: FlagCounts::default(),
        limits: Limits::default(),
        defunct: Vec::new(),
        awaiting_final_cpu: 0,
        unlisted: 0,
        spawns_total: 0,
        exits: ExitCounts::default(),
        cpu: CpuTime::default(),
        run_delay_ns: None,
        read_bytes: None,
        written_bytes: None,
        rss_bytes: Some(0),
        cpu_utilization: empty(&[0.1, 1.0]),
        worker_rss_bytes: empty(&[1048576.0]),
        lifetime_seconds: empty(&[1.0]),
        schedule: None,
        runs: None,
        accept_queues: Arc::default(),
        unattributed_cgroup_cpu_ns: None,
        workers: Workers::default(),
    }
}

fn accept_queue(address: &str, family: SocketFamily, sockets: u32, length: u64, limit: u64) -> AcceptQueue {
    AcceptQueue { address: address.into(), family, sockets, length, limit }
}

pub(crate) fn worker(slot: u32) -> Worker {
    Worker {
        slot,
        generation: 17,
        pid: 4000 + slot,
        parent: 1000,
        comm: "gunicorn".into(),
        app: Some("shop:app".into()),
        state: WorkerState::Running,
        since_unix_ns: AT - 50 * SECOND,
        flag: None,
        started_unix_ns: AT - 60 * SECOND,
        reading: Some(reading()),
        record: None,
    }
}

/// A tenth of an hour of two threads, of which the worker worked for 100 s after one of starting and ten of waiting: 1 ms of each kind of time for every number of it, from 1, the rest polling.
pub(crate) fn schedule() -> ScheduleReading {
    let mut time_ns: [u64; KINDS] = std::array::from_fn(|kind| (kind as u64 + 1) * 1_000_000);
    time_ns[POLL as usize] = 720 * SECOND - time_ns.iter().sum::<u64>() - 5000;
    ScheduleReading {
        pool: 1,
        at_ns: SCHEDULES_AT,
        time_ns,
        open: std::array::from_fn(|kind| if kind == POLL as usize { 2 } else { 0 }),
        lived_ns: 720 * SECOND,
        living: 2,
        discarded: std::array::from_fn(|kind| u32::from(kind == POLL as usize)),
        intervals: vec![
            Interval { measure: ON_CPU as u8, bucket: 700, count: 30 },
            Interval { measure: ON_CPU as u8, bucket: 800, count: 10 },
            Interval { measure: RUNNABLE as u8, bucket: 500, count: 40 },
            Interval { measure: POLL as u8, bucket: 1500, count: 39 },
            Interval { measure: SPAN as u8, bucket: 1500, count: 7 },
            Interval { measure: REQUEST as u8, bucket: 1400, count: 11 },
            Interval { measure: (REQUEST + ABORTED) as u8, bucket: 1600, count: 1 },
            Interval { measure: ACCEPT_WAIT as u8, bucket: 1300, count: 5 },
        ],
        process: ProcessKey { pid: 4000, start_ns: 1 },
        busy: false,
        work: Work {
            busy_ns: 101 * SECOND,
            since_ns: SCHEDULES_AT - 2 * SECOND,
            begin_ns: SCHEDULES_AT - 360 * SECOND,
            ready_ns: SCHEDULES_AT - 359 * SECOND,
            worked_ns: SCHEDULES_AT - 349 * SECOND,
            end_ns: 0,
            spans: 7,
        },
        requests: [11, 0, 0, 0, 0, 1],
        in_flight: 2,
        first_request_ns: SCHEDULES_AT - 300 * SECOND,
        received_bytes: 1200,
        sent_bytes: 34_000,
    }
}

fn stuck() -> Flagged {
    let thread = ThreadDoing {
        tid: 4001,
        comm: Comm::from_bytes(b"gunicorn"),
        state: 'S',
        wait_channel: Some("wait_woken".into()),
        syscall: Some("recvfrom".into()),
        kernel_stack: Vec::new(),
    };
    let socket = OpenSocket {
        descriptor: 9,
        family: Some("tcp"),
        state: Some("ESTABLISHED".into()),
        local: Some("10.0.0.1:8000".into()),
        remote: Some("10.0.0.7:40000".into()),
    };
    let doing = Doing { threads: vec![thread], sockets: vec![socket] };
    Flagged { flag: Flag::Stuck, since_unix_ns: AT - 20 * SECOND, doing: Some(Arc::new(doing)) }
}

/// Two requests, of which one waited; the workers of both are known, of the one by its certificate.
fn waterfall() -> WaterfallReading {
    let mut time_ns = [0; KINDS];
    (time_ns[ON_CPU as usize], time_ns[NETWORK as usize]) = (SECOND / 100, SECOND / 4);
    let slow = |pid, seconds_ago: u64, kinds: &[u32]| {
        let mut of_it = [0; KINDS];
        kinds.iter().for_each(|kind| of_it[*kind as usize] = time_ns[*kind as usize]);
        SlowRequest {
            begin_ns: SCHEDULES_AT - seconds_ago * SECOND,
            duration_ns: of_it.iter().sum(),
            pid,
            tid: pid,
            outcome: 0,
            time_ns: of_it,
        }
    };
    let interval = |kind: u32, count| Interval {
        measure: kind as u8,
        bucket: index(time_ns[kind as usize]) as u16,
        count,
    };
    WaterfallReading {
        at_ns: SCHEDULES_AT,
        requests: 2,
        duration_ns: 2 * time_ns[ON_CPU as usize] + time_ns[NETWORK as usize],
        time_ns: std::array::from_fn(|kind| time_ns[kind] * if kind == ON_CPU as usize { 2 } else { 1 }),
        intervals: vec![interval(ON_CPU, 2), interval(NETWORK, 1)],
        slowest: vec![(
            SCHEDULES_AT >> STRETCH_SHIFT,
            vec![slow(3999, 70, &[ON_CPU]), slow(worker(0).pid, 1, &[ON_CPU, NETWORK])],
        )],
        ..WaterfallReading::default()
    }
}

/// When the schedules of the snapshot were read.
pub(crate) const SCHEDULES_AT: u64 = 8000 * SECOND;

pub(crate) fn reading() -> Reading {
    Reading {
        cpu: CpuTime { user_ns: 12_345_678_900, system_ns: 2 * SECOND },
        cpu_utilization: Some(0.25),
        rss: Some(Rss {
            total_bytes: 52_428_800,
            file_bytes: Some(10_485_760),
            anonymous_bytes: Some(41_943_040),
            shmem_bytes: Some(0),
            swap_bytes: Some(4096),
        }),
        threads: 4,
        minor_faults: 1234,
        major_faults: 5,
        voluntary_switches: Some(777),
        involuntary_switches: Some(88),
        run_delay_ns: Some(1_500_000),
        read_bytes: Some(8192),
        written_bytes: Some(16384),
        task_state: TaskState::Sleeping,
    }
}

/// A run of each outcome, one a second, after more than an hour without any.
pub(crate) fn runs() -> Runs {
    let mut runs = Runs::new(RUNS_AT - 5025 * SECOND, AT - 5025 * SECOND);
    let outcomes = [Outcome::Success, Outcome::Error, Outcome::Signal, Outcome::Oom, Outcome::Unknown];
    for (number, outcome) in (1..).zip(outcomes) {
        let ago_ns = (6 - number) * SECOND;
        runs.record(Run {
            ended_at_ns: RUNS_AT - ago_ns,
            ended_unix_ns: AT - ago_ns,
            duration_ns: number * SECOND / 4,
            outcome,
        });
    }
    runs
}

/// When the runs of the snapshot were read.
const RUNS_AT: u64 = 9000 * SECOND;

pub(crate) fn death(sequence: u64, pool: &str, status: ExitStatus) -> Arc<DeathCertificate> {
    Arc::new(DeathCertificate {
        sequence,
        pool: pool.into(),
        slot: 3,
        generation: 16,
        pid: 3999,
        comm: "gunicorn".into(),
        app: Some("shop:app".into()),
        status,
        sender: None,
        oom_killed: Some(false),
        started_unix_ns: AT - 100 * SECOND,
        ended_unix_ns: AT - 60 * SECOND,
        lifetime_ns: 40 * SECOND,
        cpu: Some(CpuTime { user_ns: 3 * SECOND, system_ns: SECOND / 2 }),
        cpu_final: true,
        peak_rss_bytes: Some(62_914_560),
        last_state: WorkerState::Running,
    })
}

/// Five pools: full, full of hostile text, empty by configuration, one whose work is runs, and one whose facts are
/// withheld.
pub(crate) fn snapshot() -> Snapshot {
    let mut web = pool("web");
    web.origin = "recognized:gunicorn".into();
    web.masters = vec![Master {
        pid: 1000,
        comm: "gunicorn".into(),
        started_unix_ns: AT - 3600 * SECOND,
        cpu: Some(CpuTime { user_ns: SECOND / 4, system_ns: SECOND / 8 }),
        rss_bytes: Some(20_971_520),
    }];
    web.configured_size = Some(4);
    web.size = 4;
    web.states = StateCounts { creating: 1, active: 1, idle: 1, ..StateCounts::default() };
    web.work_known = true;
    web.limits = Limits { stuck_after_ns: Some(30 * SECOND), idle_ttl_ns: None };
    web.flags = FlagCounts { stuck: 1, stale: 0, defunct: 1 };
    web.flagged = FlagCounts { stuck: 3, stale: 0, defunct: 2 };
    web.defunct = vec![(3999, AT - SECOND)];
    web.spawns_total = 20;
    web.exits = ExitCounts { success: 10, error: 2, signal: 3, oom: 1, unknown: 0, reclassified: 1 };
    web.cpu = CpuTime { user_ns: 100 * SECOND, system_ns: 25 * SECOND + 1 };
    web.run_delay_ns = Some(3_000_000_500);
    web.read_bytes = Some(1 << 20);
    web.written_bytes = Some(1 << 40);
    web.rss_bytes = Some(104_857_600);
    web.cpu_utilization = distribution(&[0.001, 0.05, 0.1, 0.5, 1.0], 0.25);
    web.worker_rss_bytes = distribution(&[1_048_576.0, 16_777_216.0, 1_073_741_824.0], 52_428_800.0);
    web.unattributed_cgroup_cpu_ns = Some(1_250_000_000);
    web.accept_queues = [
        accept_queue("0.0.0.0:8080", SocketFamily::Tcp, 4, 3, 8192),
        accept_queue("[::]:8080", SocketFamily::Tcp6, 1, 0, 511),
    ]
    .into();
    web.lifetime_seconds = distribution(&[0.00001, 1.0, 60.0, 86_400.0, 1_000_000.0], 40.0);
    let creating = Worker {
        generation: 1,
        state: WorkerState::Creating,
        app: None,
        reading: None,
        since_unix_ns: AT - SECOND / 10,
        started_unix_ns: AT - SECOND / 10,
        ..worker(2)
    };
    web.workers = vec![
        Worker { record: Some(0), state: WorkerState::Idle, ..worker(0) },
        Worker { state: WorkerState::Active, flag: Some(stuck()), ..worker(1) },
        creating,
    ]
    .into();

    let mut hostile = pool(HOSTILE);
    hostile.origin = "zero-config".into();
    hostile.size = 5;
    hostile.states.running = 5;
    hostile.unlisted = 4;
    hostile.accept_queues = [accept_queue(HOSTILE, SocketFamily::Unix, 1, 129, 128)].into();
    hostile.workers = vec![Worker { comm: HOSTILE.into(), app: Some(HOSTILE.into()), ..worker(0) }].into();

    let mut xargs = pool("xargs");
    xargs.exits = ExitCounts { success: 1, error: 1, signal: 1, oom: 1, unknown: 1, reclassified: 0 };
    xargs.runs = Some(runs().view(RUNS_AT));

    let mut withheld = pool("withheld");
    withheld.size = 1;
    withheld.states.running = 1;
    withheld.rss_bytes = None;
    withheld.unattributed_cgroup_cpu_ns = Some(0);
    withheld.workers = vec![Worker {
        app: None,
        reading: Some(Reading {
            cpu_utilization: None,
            rss: None,
            voluntary_switches: None,
            involuntary_switches: None,
            run_delay_ns: None,
            read_bytes: None,
            written_bytes: None,
            ..reading()
        }),
        ..worker(0)
    }]
    .into();

    let mut killed = (*death(18, HOSTILE, ExitStatus::Signal { signal: 9, core_dumped: false })).clone();
    killed.sender = Some(Sender::Process { pid: 77, comm: Comm::from_bytes(b"sh\n\xff") });
    killed.cpu_final = false;
    let mut oom = (*death(17, "web", ExitStatus::Signal { signal: 9, core_dumped: false })).clone();
    oom.sender = Some(Sender::Kernel);
    oom.oom_killed = Some(true);
    let mut vanished = (*death(15, "web", ExitStatus::Unknown)).clone();
    vanished.app = None;
    vanished.oom_killed = None;
    vanished.cpu = None;
    vanished.peak_rss_bytes = None;

    let mut schedules = Schedules::default();
    // What is unattributed has stood for some seconds.
    let before = |seconds| ScheduleReading {
        pool: 1,
        at_ns: SCHEDULES_AT - seconds * SECOND,
        ..ScheduleReading::default()
    };
    let work = Watched { requests: Following::Followed, ..Watched::default() };
    schedules.watch(1, Profile::Histograms, Profile::Histograms, work, before(5).at_ns);
    schedules.account_waterfall(1, &waterfall());
    for (reading, user_ns) in
        [(before(5), 0), (before(4), 0), (before(3), 3_000_000), (schedule(), 3_000_000)]
    {
        schedules.account(0, &reading, true);
        web.schedule = schedules.pool_view(1, CpuTime { user_ns, system_ns: 0 }, 4, &mut Scratch::new());
    }

    Snapshot {
        at_unix_ns: AT,
        started_unix_ns: AT - 7200 * SECOND,
        schedules: schedules.workers().to_vec(),
        schedules_at_ns: SCHEDULES_AT,
        unix_minus_monotonic: (AT - SCHEDULES_AT).cast_signed(),
        source: "ebpf",
        features: Arc::new([
            Feature { name: "lifecycle_events", enabled: true, reason: String::new(), remedy: String::new() },
            Feature {
                name: "storage_bytes",
                enabled: false,
                reason: "permission denied: \"/proc/PID/io\"".into(),
                remedy: "grant CAP_SYS_PTRACE".into(),
            },
        ]),
        pools: vec![hostile, pool("jobs"), web, withheld, xargs],
        exits: vec![
            Arc::new(killed),
            Arc::new(oom),
            death(16, "web", ExitStatus::Code(3)),
            Arc::new(vanished),
        ],
        exits_total: 18,
        own: Own {
            profiling: Some(Profiling {
                kept_since_unix_ns: Some(AT - 600 * SECOND),
                captures: 3,
                lost: 5,
                passed_over: 7,
                kept_bytes: Some(1_048_576),
                cpu_ns: 1_500_000_000,
            }),
            maps: vec![MapFill { name: "slots", entries: 3, capacity: 8192 }],
            scheduler: Some(SchedulerCost {
                budget: Some(0.01),
                share: Some(0.002_5),
                ceiling: Profile::Counters,
            }),
            cpu: CpuTime { user_ns: 1_250_000_000, system_ns: 500_000_000 },
            rss_bytes: Some(9_437_184),
            virtual_bytes: Some(83_886_080),
            open_fds: Some(42),
            max_fds: Some(1024),
            map_bytes: Some(4_194_304),
            passes: 7200,
            pass_cpu_ns: 720_000_000,
            event_cpu_ns: 36_000_000,
            events: vec![
                EventCounts { kind: "fork", counted: 100, delivered: 98, lost: 2 },
                EventCounts { kind: "exit", counted: 90, delivered: 90, lost: 0 },
            ],
            losses: vec![("event_lost", 2), ("pool_limit", 0), ("event_lost", 1)],
            programs: vec![ProgramCost { name: "sched_process_exit", runs: 90, run_time_ns: 45_000 }],
            processes: 310,
            config_loaded_unix_ns: Some(AT - 7200 * SECOND),
            config_last_reload_successful: true,
        },
    }
}

/// Compares with `tests/golden/<name>`, or writes it when `BLESS` is set.
pub(crate) fn check_golden(name: &str, actual: &str) {
    let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name);
    #[expect(clippy::disallowed_methods, reason = "how a developer renews the files")]
    let bless = std::env::var_os("BLESS").is_some();
    if bless {
        std::fs::write(&path, actual).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if let Some((line, (expected, actual))) =
        expected.lines().zip(actual.lines()).enumerate().find(|(_, (expected, actual))| expected != actual)
    {
        panic!(
            "{}:{}\nexpected: {expected}\n  actual: {actual}\nrenew with BLESS=1 cargo test -p collector",
            path.display(),
            line + 1
        );
    }
    assert_eq!(
        expected.len(),
        actual.len(),
        "{}: renew with BLESS=1 cargo test -p collector",
        path.display()
    );
}
