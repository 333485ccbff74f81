//! What it takes to write one snapshot of a thousand workers: `cargo bench --bench render`.
//!
//! Several rounds, all forms in turn, CPU time of this thread. The anchor is a copy of the same bytes: nothing can
//! write them for less.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a program")]

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use collector::input::{Rss, TaskState};
use collector::render::json;
use collector::render::prometheus::{Buffer, Format, Groups, render};
use collector::snapshot::{
    Distribution, ExitCounts, FlagCounts, Own, Pool, Reading, Requests, Schedule, Snapshot, StateCounts,
    Waterfall, WindowQuantiles, Work, Worker, WorkerState,
};
use collector::units::CpuTime;
use collector::worker::flags::Limits;
use collector::worker::requests;
use collector::worker::state::TIMED;
use collector_ebpf::request::OUTCOMES;
use collector_ebpf::schedule::KINDS;
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::time::ClockId;
use prost::Message as _;

#[path = "../../tests/support/client_model.rs"]
mod client_model;

const WORKERS: u32 = 1000;
const ROUNDS: usize = 25;

/// What writes a document over what the buffer held, and returns how long it is.
type Write = Box<dyn FnMut(&Snapshot, &mut Vec<u8>)>;

fn main() -> anyhow::Result<()> {
    let one_pool = snapshot(1);
    let ten_pools = snapshot(10);
    let metrics = |format, groups| -> Write {
        Box::new(move |snapshot, out| {
            let mut text = Buffer::over(std::mem::take(out));
            render(snapshot, format, groups, &mut text, &mut |_| ());
            *out = text.into_written();
        })
    };
    let zipped = |format| -> Write {
        Box::new(move |snapshot, out| {
            let mut text = Buffer::default();
            render(snapshot, format, Groups::default(), &mut text, &mut |_| ());
            let mut encoder = GzEncoder::new(std::mem::take(out), Compression::new(1));
            encoder.get_mut().clear();
            let _ = encoder.write_all(text.written());
            *out = encoder.finish().unwrap_or_default();
        })
    };
    let stats = |snapshot: &Snapshot, out: &mut Vec<u8>| {
        out.clear();
        json::stats(snapshot, out);
    };
    // Less than a library would need, which would have to make these messages first.
    let mut exposition = Vec::new();
    metrics(Format::Protobuf, Groups::default())(&ten_pools, &mut exposition);
    let families = client_model::families(&exposition)?;
    let by_prost = move |_: &Snapshot, out: &mut Vec<u8>| {
        out.clear();
        for family in &families {
            // A vector has room for everything.
            let _ = family.encode_length_delimited(out);
        }
    };
    let forms: [(&str, &Snapshot, Write); 9] = [
        ("text, as by default", &one_pool, metrics(Format::Text, Groups::default())),
        ("text, everything", &one_pool, metrics(Format::Text, Groups::all())),
        ("OpenMetrics, as by default", &one_pool, metrics(Format::OpenMetrics, Groups::default())),
        ("JSON, everything", &one_pool, Box::new(stats)),
        ("ten pools: text, as by default", &ten_pools, metrics(Format::Text, Groups::default())),
        ("ten pools: the same in gzip", &ten_pools, zipped(Format::Text)),
        ("ten pools: protobuf, as by default", &ten_pools, metrics(Format::Protobuf, Groups::default())),
        ("ten pools: the same in gzip", &ten_pools, zipped(Format::Protobuf)),
        ("ten pools: the same messages by prost", &ten_pools, Box::new(by_prost)),
    ];
    let mut forms = forms.map(|(name, of, write)| (name, of, write, Vec::new(), Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for (_, of, write, out, written, copied) in &mut forms {
            let begin = cpu()?;
            write(black_box(of), out);
            written.push(cpu()? - begin);
            let mut copy = vec![0; out.len()];
            let begin = cpu()?;
            copy.copy_from_slice(black_box(out));
            copied.push(cpu()? - begin);
            black_box(copy);
        }
    }
    println!("{WORKERS} workers | KiB | µs (least, median) | ns per byte | copy, µs");
    for (name, _, _, out, mut written, mut copied) in forms {
        written.sort_unstable();
        copied.sort_unstable();
        let us = |duration: Duration| duration.as_secs_f64() * 1e6;
        println!(
            "{name} | {} | {:.1}, {:.1} | {:.3} | {:.1}",
            out.len() / 1024,
            us(written[0]),
            us(written[ROUNDS / 2]),
            us(written[ROUNDS / 2]) * 1e3 / out.len() as f64,
            us(copied[ROUNDS / 2])
        );
    }
    Ok(())
}

fn cpu() -> anyhow::Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

const NOW: u64 = 1_767_323_045_250_000_000;

fn worker(slot: u32) -> Worker {
    let seed = u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let started_unix_ns = NOW - seed % 1_000_000_000_000_000;
    Worker {
        record: None,
        slot,
        generation: 1 + slot % 17,
        pid: 400_000 + slot,
        parent: 1000,
        comm: "gunicorn: worke".into(),
        app: Some("shop:app".into()),
        state: WorkerState::Running,
        since_unix_ns: started_unix_ns,
        flag: None,
        started_unix_ns,
        reading: Some(Reading {
            cpu: CpuTime { user_ns: seed % 100_000_000_000, system_ns: seed % 7_000_000_000 },
            cpu_utilization: Some((seed % 1000) as f64 / 1001.0),
            rss: Some(Rss {
                total_bytes: 52_428_800 + seed % 1000 * 4096,
                file_bytes: Some(10_485_760),
                anonymous_bytes: Some(41_943_040 + seed % 1000 * 4096),
                shmem_bytes: Some(0),
                swap_bytes: Some(0),
            }),
            threads: 1,
            minor_faults: seed % 100_000,
            major_faults: seed % 10,
            voluntary_switches: Some(seed % 1_000_000),
            involuntary_switches: Some(seed % 10_000),
            run_delay_ns: Some(seed % 3_000_000_000),
            read_bytes: Some(seed % 100_000_000),
            written_bytes: Some(seed % 10_000_000),
            task_state: TaskState::Sleeping,
        }),
    }
}

fn distribution(bounds: &'static [f64], buckets: &Arc<Vec<(u16, u64)>>) -> Distribution {
    let window = |window| WindowQuantiles {
        window,
        count: 60_000,
        p50: 0.000_123,
        p90: 0.25,
        p95: 0.5,
        p99: 0.987_654,
        p999: 1.0,
        max: 1.0,
        coverage: 1.0,
    };
    Distribution {
        bounds,
        cumulative: (1..=bounds.len() as u64).map(|n| n * 1234).collect(),
        count: 60_000,
        sum: 1234.5678,
        discarded: 0,
        buckets: Arc::clone(buckets),
        per_unit: 1e9,
        windows: ["1m", "5m", "start"].map(window).into(),
    }
}

const BOUNDS: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0];

/// All workers in so many pools; where there are several the scheduler is watched.
fn snapshot(pools: u32) -> Snapshot {
    // Dense over a decade, sparse over three more.
    let buckets: Vec<u16> = (700..900).chain((900..1500).step_by(13)).collect();
    let buckets =
        Arc::new(buckets.into_iter().map(|bucket| (bucket, u64::from(bucket) % 97 * 11 + 1)).collect());
    let intervals = Arc::new(distribution(BOUNDS, &buckets));
    let schedule = (pools > 1).then(|| Schedule {
        time_ns: [123_456_789_012; KINDS],
        lived_ns: 12 * 123_456_789_012,
        unattributed_cpu_ns: 12_345,
        intervals: Some(std::array::from_fn(|_| Arc::clone(&intervals))),
        work: Work {
            state_ns: [123_456_789_012; TIMED.len()],
            spans: 1_234_567,
            span_seconds: Some(Arc::clone(&intervals)),
            spawn_to_ready_seconds: Arc::clone(&intervals),
            utilization: vec![("1m", 0.5), ("5m", 0.5), ("start", 0.5)],
        },
        requests: Some(Requests {
            spawn_to_first_request_seconds: Arc::clone(&intervals),
            accept_wait_seconds: Some(Arc::clone(&intervals)),
            waterfall: Some(Waterfall {
                requests: 1_234_567,
                of_requests: 1_234_567,
                duration_ns: 12 * 123_456_789_012,
                time_ns: [123_456_789_012; KINDS],
                seconds: std::array::from_fn(|_| Arc::clone(&intervals)),
                slowest: Arc::default(),
            }),
            no_waterfall_left: false,
            followed: true,
            total: requests::Requests { ended: [1_234_567; OUTCOMES], ..requests::Requests::default() },
            seconds: Some(std::array::from_fn(|_| Arc::clone(&intervals))),
        }),
    });
    let workers = WORKERS / pools;
    let pool = |number: u32| Pool {
        schedule: schedule.clone(),
        runs: None,
        accept_queues: Arc::default(),
        unattributed_cgroup_cpu_ns: None,
        name: format!("gunicorn-{number}").into(),
        number,
        origin: "recognized:gunicorn".into(),
        masters: Vec::new(),
        configured_size: Some(workers),
        size: workers,
        states: StateCounts { active: workers, ..StateCounts::default() },
        work_known: pools > 1,
        flags: FlagCounts::default(),
        flagged: FlagCounts::default(),
        limits: Limits::default(),
        defunct: Vec::new(),
        awaiting_final_cpu: 0,
        unlisted: 0,
        spawns_total: 12_345,
        exits: ExitCounts::default(),
        cpu: CpuTime { user_ns: 123_456_789_012_345, system_ns: 23_456_789_012_345 },
        run_delay_ns: Some(3_456_789_012),
        read_bytes: Some(1 << 40),
        written_bytes: Some(1 << 30),
        rss_bytes: Some(1 << 35),
        cpu_utilization: distribution(BOUNDS, &buckets),
        worker_rss_bytes: distribution(BOUNDS, &buckets),
        lifetime_seconds: distribution(BOUNDS, &buckets),
        workers: (0..workers).map(worker).collect(),
    };
    Snapshot {
        schedules: Vec::new(),
        schedules_at_ns: 0,
        unix_minus_monotonic: 0,
        at_unix_ns: NOW,
        started_unix_ns: NOW - 1_000_000_000_000,
        source: "ebpf",
        features: Arc::new([]),
        pools: (0..pools).map(pool).collect(),
        exits: Vec::new(),
        exits_total: 0,
        own: Own::default(),
    }
}
