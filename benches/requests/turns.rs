//! Throughput, watched and not watched in turns of a twentieth of a second.
//!
//! The speed of a host that others are on changes by a third within seconds: what is compared has to be right beside each
//! other. So the programs of all ways to watch are loaded once, in this process, by the collector's own source of facts, and
//! attached and detached while one load goes on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use collector::input::{Profile, Requests, Role, ScheduleReading, Source, Wishes};
use collector::kernel::support::Support;
use collector::kernel::{KernelSource, RequestsBy};
use collector::units::HostFacts;
use collector_ebpf::schedule::ON_CPU;
use nix::time::ClockId;

use crate::Which;
use crate::common::empty::Empty;
use crate::nginx::Nginx;

/// How long a turn is measured, and how long it has to settle before: programs are attached by changing instructions, and what
/// is left of detached ones is freed a little later.
const TURN: Duration = Duration::from_millis(50);
const SETTLE: Duration = Duration::from_millis(15);

/// Pool number of the worker.
const POOL: u32 = 1;

/// The collector in this process, with programs that are loaded and not attached.
pub(crate) struct Watch {
    source: KernelSource,
    record: u32,
    requests: bool,
    /// Time on a CPU, ns, and bytes received of the worker when it was last seen.
    seen: (u64, u64),
}

impl Watch {
    pub(crate) fn load(which: Which, worker: u32) -> anyhow::Result<Self> {
        let by = if which == Which::Syscalls { RequestsBy::Syscalls } else { RequestsBy::Sockets };
        let (support, host) = (Support::probe(Path::new("/sys")), HostFacts::of_this_host());
        let mut source =
            KernelSource::open(&support, by, Path::new("/proc"), host).context("eBPF does not work here")?;
        let requests = match which {
            Which::Requests | Which::Syscalls => Requests::WithStatus,
            Which::NoStatus => Requests::Timed,
            Which::Spans => Requests::None,
        };
        source.set_wishes(POOL, Wishes { requests, ..Wishes::default() });
        let mut found = None;
        source.list(&mut |listed| {
            if listed.process.pid == worker {
                found = Some(listed.process);
            }
        });
        let worker = found.context("the worker is not listed")?;
        let record = source.track(worker, POOL, Role::Worker).context("no record for the worker")?;
        let mut watch = Self { source, record, requests: requests != Requests::None, seen: (0, 0) };
        // The first time its pool is given a waterfall, of which its tag is told for the times that follow.
        for _ in 0..2 {
            watch.attach(true)?;
            watch.wait_until_followed().with_context(|| which.what())?;
            watch.attach(false)?;
            watch.record =
                watch.source.track(worker, POOL, Role::Worker).context("no record for the worker")?;
        }
        Ok(watch)
    }

    /// Attaches or detaches all programs of switches and requests.
    fn attach(&mut self, on: bool) -> anyhow::Result<()> {
        let ceiling = if on { Profile::Histograms } else { Profile::None };
        let attached = self.source.limit_profiles(ceiling, self.requests);
        ensure!(attached == (on && self.requests), "the programs of requests cannot be attached");
        if on {
            // Begins to follow who is there.
            self.source.moved(&mut Vec::new());
        }
        Ok(())
    }

    /// That the worker was followed since this was last asked, or it would have cost less than it does.
    fn ensure_it_followed(&mut self) -> anyhow::Result<()> {
        let mut reading = ScheduleReading::default();
        // It changes while it is read.
        let read = (0..100).any(|_| self.source.schedule(self.record, &mut reading) == Some(true));
        let seen = (reading.time_ns[ON_CPU as usize], reading.received_bytes);
        let before = std::mem::replace(&mut self.seen, seen);
        let follows = seen.0 > before.0 && (!self.requests || seen.1 > before.1);
        ensure!(read && follows, "the worker is not followed: {reading:?}, before that {before:?}");
        Ok(())
    }

    /// Until the worker was seen on its CPU, and its requests in a waterfall if they are watched: everything is on then.
    fn wait_until_followed(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let (mut reading, mut on_cpu, mut split) = (ScheduleReading::default(), false, !self.requests);
        while !on_cpu || !split {
            ensure!(Instant::now() < deadline, "the worker is not followed: {reading:?}");
            std::thread::sleep(Duration::from_millis(20));
            self.source.moved(&mut Vec::new());
            if self.source.schedule(self.record, &mut reading) == Some(true) {
                on_cpu |= reading.time_ns[ON_CPU as usize] > 0;
            }
            self.source.waterfalls(&mut |pool, _| split |= pool == POOL);
        }
        Ok(())
    }
}

/// Who watches in a turn.
pub(crate) enum Watcher<'a> {
    /// After this one has watched.
    Nobody(&'a mut Watch),
    Empty(&'a [&'static str]),
    Collector(&'a mut Watch),
}

/// What was answered in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) per_second: f64,
    /// CPU time of the worker for a request, µs.
    pub(crate) cpu_us: f64,
}

/// Turns of one load.
pub(crate) struct Turns<'a> {
    nginx: &'a Nginx,
    status: TcpStream,
    /// The last one in which nobody watched.
    before: Turn,
}

impl<'a> Turns<'a> {
    pub(crate) fn begin(nginx: &'a Nginx) -> anyhow::Result<Self> {
        let status = TcpStream::connect(("127.0.0.1", nginx.port))?;
        status.set_nodelay(true)?;
        status.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut turns = Self { nginx, status, before: Turn { per_second: f64::NAN, cpu_us: f64::NAN } };
        turns.before = turns.turn()?;
        Ok(turns)
    }

    /// A turn with somebody who watches, between two without. Returns it, and what the middle of those is.
    pub(crate) fn watched(&mut self, watcher: Watcher<'_>) -> anyhow::Result<(Turn, Turn)> {
        let watched = match watcher {
            Watcher::Nobody(before) => {
                // What was attached and detached a moment ago is part of what a turn is like.
                before.attach(true)?;
                before.attach(false)?;
                self.turn()?
            }
            Watcher::Empty(tracepoints) => {
                let _attached = Empty::attach(tracepoints)?;
                self.turn()?
            }
            Watcher::Collector(watch) => {
                watch.attach(true)?;
                let turn = self.turn()?;
                watch.ensure_it_followed()?;
                watch.attach(false)?;
                turn
            }
        };
        let (before, after) = (self.before, self.turn()?);
        self.before = after;
        let middle = |one: f64, other: f64| (one * other).sqrt();
        let alone = Turn {
            per_second: middle(before.per_second, after.per_second),
            cpu_us: middle(before.cpu_us, after.cpu_us),
        };
        Ok((watched, alone))
    }

    fn turn(&mut self) -> anyhow::Result<Turn> {
        std::thread::sleep(SETTLE);
        let (begin, before, cpu) = self.answered()?;
        std::thread::sleep(TURN);
        let (end, after, cpu_after) = self.answered()?;
        let requests = (after - before) as f64;
        // One of them is ours.
        ensure!(requests > 1.0, "nothing was asked meanwhile");
        Ok(Turn {
            per_second: requests / (end - begin).as_secs_f64(),
            cpu_us: (cpu_after - cpu).as_secs_f64() * 1e6 / requests,
        })
    }

    /// How many requests the server has answered, by its own count, when, and what CPU time its worker had.
    fn answered(&mut self) -> anyhow::Result<(Duration, u64, Duration)> {
        self.status.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let (mut text, mut buffer) = (String::new(), [0; 1024]);
        // The last line begins so, and is short.
        while !text.contains("Waiting:") {
            let length = self.status.read(&mut buffer)?;
            ensure!(length > 0, "nginx ended: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        let now = ClockId::CLOCK_MONOTONIC.now()?.into();
        let counts = text.lines().skip_while(|line| !line.starts_with("server accepts")).nth(1);
        let requests = counts.and_then(|counts| counts.split_whitespace().nth(2)).context("no count")?;
        Ok((now, requests.parse()?, self.nginx.cpu()?))
    }
}
