//! A snapshot as the documents of `/api/v1`: the wire types and what fills them.
//!
//! Names are snake_case and carry their unit, times are RFC 3339 in UTC, and what is unknown is absent. Numbers that
//! JSON cannot write (infinities, NaN) count as unknown. The types only borrow: a document costs its bytes.

mod death;
mod flag;
mod own;
mod pool;
mod requests;
mod runs;
mod times;
mod work;
mod worker;

use std::io;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use self::death::Exit;
use self::own::Collector;
use self::pool::{PoolStats, PoolSummary};
use self::requests::SlowRequests;
use self::worker::Worker;
use crate::histogram::Scratch;
use crate::snapshot::Snapshot;
use crate::units::NANOS_PER_SECOND;

/// `/api/v1/summary`: pools without their workers.
pub fn summary(snapshot: &Snapshot) -> Vec<u8> {
    bytes(&Summary { head: Head::of(snapshot), pools: snapshot.pools.iter().map(PoolSummary::of).collect() })
}

/// `/api/v1/stats`: everything but the deaths, worker by worker.
///
/// It is large, so it goes to a writer, in many small pieces; an error of the writer ends the document early.
pub fn stats(snapshot: &Snapshot, out: &mut impl io::Write) {
    let pools = snapshot.pools.iter().map(|pool| PoolStats::of(pool, snapshot)).collect();
    write(&Stats { head: Head::of(snapshot), pools, collector: Collector::of(snapshot) }, out);
}

/// `/api/v1/pools/{pool}`: one pool of `stats`; `None` if there is none of this name.
pub fn pool(snapshot: &Snapshot, name: &str) -> Option<Vec<u8>> {
    let pool = snapshot.pools.iter().find(|pool| &*pool.name == name)?;
    Some(bytes(&OnePool { head: Head::of(snapshot), pool: PoolStats::of(pool, snapshot) }))
}

/// What `/api/v1/pools/{pool}/slow` cannot tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSlowRequests {
    /// There is no pool of this name.
    Pool,
    /// Its requests are not measured.
    Requests,
    /// Where their time goes is measured for other pools, as many as can be.
    NoneLeft,
}

/// `/api/v1/pools/{pool}/slow`: the slowest requests of a pool in each window, with where the profile of each is as long as it is
/// kept.
pub fn slow(snapshot: &Snapshot, name: &str) -> Result<Vec<u8>, NoSlowRequests> {
    let pool = snapshot.pools.iter().find(|pool| &*pool.name == name).ok_or(NoSlowRequests::Pool)?;
    let slowest = SlowRequests::of(pool, snapshot).ok_or_else(|| {
        let requests = pool.schedule.as_ref().and_then(|schedule| schedule.requests.as_ref());
        match requests.is_some_and(|requests| requests.no_waterfall_left) {
            true => NoSlowRequests::NoneLeft,
            false => NoSlowRequests::Requests,
        }
    })?;
    Ok(bytes(&Slow { head: Head::of(snapshot), pool: name, slowest }))
}

/// `/api/v1/workers/{pool}/{slot}`: one worker of `stats`; `None` if nobody listed has the slot now.
pub fn worker(snapshot: &Snapshot, pool: &str, slot: u32) -> Option<Vec<u8>> {
    let pool = snapshot.pools.iter().find(|p| &*p.name == pool)?;
    let worker = pool.workers.iter().find(|worker| worker.slot == slot)?;
    let mut scratch = Scratch::new();
    let worker = Worker::of(pool, worker, snapshot, &mut scratch);
    Some(bytes(&OneWorker { head: Head::of(snapshot), pool: &pool.name, worker }))
}

/// `/api/v1/exits`: death certificates, newest first, at most `limit`, of one pool or of all; `None` if there is neither
/// a pool of this name nor a certificate of one.
pub fn exits(snapshot: &Snapshot, pool: Option<&str>, limit: usize) -> Option<Vec<u8>> {
    if let Some(name) = pool
        && !snapshot.pools.iter().any(|pool| *pool.name == *name)
        && !snapshot.exits.iter().any(|exit| *exit.pool == *name)
    {
        return None;
    }
    Some(bytes(&Exits {
        head: Head::of(snapshot),
        total: snapshot.exits_total,
        kept: snapshot.exits.len(),
        exits: snapshot
            .exits
            .iter()
            .filter(|exit| pool.is_none_or(|pool| &*exit.pool == pool))
            .take(limit)
            .map(|exit| Exit::of(exit))
            .collect(),
    }))
}

/// Any serializable value of this module, as JSON with a newline at its end.
fn bytes(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out.shrink_to_fit();
    out
}

fn write(value: &impl Serialize, out: &mut impl io::Write) {
    // Maps have string keys and memory takes every byte: neither way to fail exists.
    let _ = serde_json::to_writer(&mut *out, value);
    let _ = out.write_all(b"\n");
}

/// Nanoseconds since the Unix epoch, shown as RFC 3339.
struct Time(u64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // In range until the year 9999, and a `u64` ends in 2554.
        serializer.collect_str(&Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or_default())
    }
}

/// Nanoseconds, shown as seconds.
struct Seconds(u64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0 as f64 / NANOS_PER_SECOND as f64)
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// What every document begins with.
#[derive(Serialize)]
struct Head {
    timestamp: Time,
    uptime_seconds: Seconds,
    source: &'static str,
}

impl Head {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            timestamp: Time(snapshot.at_unix_ns),
            uptime_seconds: Seconds(snapshot.at_unix_ns.saturating_sub(snapshot.started_unix_ns)),
            source: snapshot.source,
        }
    }
}

#[derive(Serialize)]
struct Slow<'a> {
    #[serde(flatten)]
    head: Head,
    pool: &'a str,
    slowest: SlowRequests,
}

#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    head: Head,
    pools: Vec<PoolSummary<'a>>,
}

#[derive(Serialize)]
struct Stats<'a> {
    #[serde(flatten)]
    head: Head,
    pools: Vec<PoolStats<'a>>,
    collector: Collector<'a>,
}

#[derive(Serialize)]
struct OnePool<'a> {
    #[serde(flatten)]
    head: Head,
    #[serde(flatten)]
    pool: PoolStats<'a>,
}

#[derive(Serialize)]
struct OneWorker<'a> {
    #[serde(flatten)]
    head: Head,
    pool: &'a str,
    #[serde(flatten)]
    worker: Worker<'a>,
}

#[derive(Serialize)]
struct Exits<'a> {
    #[serde(flatten)]
    head: Head,
    /// Since start, also those that are no longer kept and those of other pools.
    total: u64,
    kept: usize,
    exits: Vec<Exit<'a>>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::Value;

    use super::death::signal_name;
    use super::*;
    use crate::render::fixture::{self, HOSTILE};

    fn parsed(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    fn stats_of(snapshot: &Snapshot) -> Value {
        let mut out = Vec::new();
        stats(snapshot, &mut out);
        parsed(&out)
    }

    #[test]
    fn golden_files() {
        let snapshot = fixture::snapshot();
        for (name, value) in [
            ("summary.json", parsed(&summary(&snapshot))),
            ("stats.json", stats_of(&snapshot)),
            ("slow.json", parsed(&slow(&snapshot, "web").unwrap())),
            ("exits.json", parsed(&exits(&snapshot, None, 100).unwrap())),
        ] {
            let mut value = value;
            if let Some(collector) = value.get_mut("collector") {
                collector["version"] = "VERSION".into();
            }
            fixture::check_golden(name, &(serde_json::to_string_pretty(&value).unwrap() + "\n"));
        }
    }

    #[test]
    fn a_pool_adds_up() {
        let snapshot = fixture::snapshot();
        let all = parsed(&summary(&snapshot));
        for pool in all["pools"].as_array().unwrap() {
            let field = |name: &str| pool[name].as_u64().unwrap();
            let known = |name: &str| pool[name].as_u64().unwrap_or(0);
            let waiting_or_working = known("ready") + known("active") + known("idle");
            assert_eq!(field("total"), field("creating") + waiting_or_working + field("running"), "{pool}");
            assert_eq!(field("unused"), field("size").saturating_sub(field("total")), "{pool}");
        }
    }

    #[test]
    fn unknown_is_absent() {
        let all = stats_of(&fixture::snapshot());
        let withheld = &all["pools"][3];
        assert_eq!(withheld["name"], "withheld");
        for absent in ["configured_size", "rss_bytes", "cpu_utilization"] {
            assert!(withheld.get(absent).is_none(), "{absent}");
        }
        let worker = &withheld["workers"][0];
        for absent in ["app", "memory", "context_switches", "run_delay_seconds", "storage"] {
            assert!(worker.get(absent).is_none(), "{absent}");
        }
        assert!(worker["cpu"].get("utilization").is_none());
        let unread = &all["pools"][2]["workers"][2];
        assert_eq!(unread["state"], "creating");
        assert!(unread.get("cpu").is_none(), "{unread}");
        assert_eq!(all["pools"][1]["cpu_utilization"], 0.0, "no worker uses no CPU");
        assert!(!all.to_string().contains("null"), "{all}");
    }

    #[test]
    fn numbers_that_json_cannot_write_are_absent() {
        let mut snapshot = fixture::snapshot();
        for pool in &mut snapshot.pools {
            let mut workers: Vec<_> = pool.workers.iter().cloned().collect();
            for reading in workers.iter_mut().filter_map(|worker| worker.reading.as_mut()) {
                reading.cpu_utilization = Some(f64::NAN);
            }
            pool.workers = workers.into();
            for window in &mut pool.cpu_utilization.windows {
                window.max = f64::INFINITY;
            }
        }
        assert!(!stats_of(&snapshot).to_string().contains("null"));
        assert!(!parsed(&summary(&snapshot)).to_string().contains("null"));
    }

    #[test]
    fn hostile_text_comes_back() {
        let snapshot = fixture::snapshot();
        let one = parsed(&pool(&snapshot, HOSTILE).unwrap());
        assert_eq!(one["name"], HOSTILE);
        assert_eq!(one["workers"][0]["comm"], HOSTILE);
        assert_eq!(one["workers"][0]["id"], format!("{HOSTILE}/0.17"));
        assert_eq!(parsed(&worker(&snapshot, HOSTILE, 0).unwrap())["pool"], HOSTILE);
        assert!(pool(&snapshot, "nobody").is_none());
        assert!(worker(&snapshot, "web", 9).is_none());
        assert_eq!(slow(&snapshot, "nobody"), Err(NoSlowRequests::Pool));
        assert_eq!(slow(&snapshot, HOSTILE), Err(NoSlowRequests::Requests));
    }

    #[test]
    fn exits_can_be_narrowed() {
        let snapshot = fixture::snapshot();
        let sequences = |pool, limit| -> Vec<u64> {
            let all = parsed(&exits(&snapshot, pool, limit).unwrap());
            assert_eq!(all["total"], 18);
            assert_eq!(all["kept"], 4);
            all["exits"].as_array().unwrap().iter().map(|e| e["sequence"].as_u64().unwrap()).collect()
        };
        assert_eq!(sequences(None, 100), [18, 17, 16, 15]);
        assert_eq!(sequences(None, 2), [18, 17]);
        assert_eq!(sequences(Some("web"), 2), [17, 16]);
        assert!(sequences(Some("jobs"), 2).is_empty(), "nobody has died there");
        assert!(exits(&snapshot, Some("nobody"), 2).is_none());
        let dropped = Snapshot { pools: Vec::new(), ..snapshot };
        assert!(exits(&dropped, Some("web"), 2).is_some(), "certificates outlive their pool");
        assert!(exits(&dropped, Some("jobs"), 2).is_none());
    }

    #[test]
    fn signals_have_names() {
        for (number, name) in [
            (9, Some("SIGKILL")),
            (11, Some("SIGSEGV")),
            (33, None),
            (34, Some("SIGRTMIN")),
            (64, Some("SIGRTMIN+30")),
            (65, None),
        ] {
            assert_eq!(signal_name(number).as_deref(), name, "{number}");
        }
    }
}
