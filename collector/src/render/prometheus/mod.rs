//! A snapshot as Prometheus text 0.0.4 and as OpenMetrics 1.0.0.
//!
//! What is unknown has no series; a family without series has no header either. Series of workers carry `pool` and
//! `slot` only: a successor takes over the slot, its counters start from its own zero, and readers see an ordinary
//! counter reset.
//!
//! Every family is declared once, in `family`; `pools`, `workers` and `own` say which samples a snapshot gives it, and
//! `text` how they are written.
//!
//! Two roads not taken. `worker_state` is no full state set: it has one series per worker, for the state it is in,
//! because zeros for every other state would multiply the largest family by the number of states
//! (`worker_pool_workers` has all states, zeros included). And no counter has a `_created` sample:
//! `worker_start_time_seconds` says the same once per worker instead of once per series.

mod family;
mod own;
mod pools;
mod text;
mod workers;

use std::ops::Range;

pub use self::family::{Family, Kind, families};
use self::text::{Value as _, Writer, write_label};
use crate::snapshot::{Pool, Reading, Snapshot, Worker};

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
    pools::write(&mut writer, &series);
    pools::write_masters(&mut writer, &series);
    workers::write(&mut writer, &series);
    own::write(&mut writer, snapshot);
    own::write_process(&mut writer, snapshot);
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

const USER: &str = r#",mode="user""#;
const SYSTEM: &str = r#",mode="system""#;

#[cfg(test)]
mod tests;
