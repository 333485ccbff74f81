//! A snapshot as Prometheus text 0.0.4, as OpenMetrics 1.0.0, and as protobuf with native histograms.
//!
//! What is unknown has no series; a family without series has no header either. Series of workers carry `pool` and
//! `slot` only: a successor takes over the slot, its counters start from its own zero, and readers see an ordinary
//! counter reset.
//!
//! Every family is declared once, in `family`; `pools`, `schedule`, `workers` and `own` say which samples a snapshot gives
//! it, and `writer` has `text` and `protobuf` write them: only there a format is more than a name. Families come in groups, because series per
//! worker are what a Prometheus pays for: by default there are eight of each worker, which are those that dashboards and
//! alerts ask for, and all others when their group is named.
//!
//! Two roads not taken. `worker_state` is no full state set: it has one series per worker, for the state it is in,
//! because zeros for every other state would multiply the largest family by the number of states
//! (`worker_pool_workers` has all states, zeros included). And no counter has a `_created` sample:
//! `worker_start_time_seconds` says the same once per worker instead of once per series.

mod buffer;
mod family;
mod native;
mod own;
mod pools;
mod protobuf;
mod requests;
mod schedule;
mod text;
mod workers;
mod writer;

pub use self::buffer::Buffer;
use self::buffer::Piece;
pub use self::family::{Family, Kind, families};
use self::native::Native;
use self::writer::{Labels, Name, Place, Writer};
use crate::snapshot::{Pool, Reading, Snapshot, Worker};

/// A format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text exposition 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Messages of `io.prometheus.client`, each preceded by its length: the only one that has native histograms.
    Protobuf,
}

impl Format {
    /// The media type to answer with.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// Families that are asked for together: what `collect` names, in the configuration and in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Pools and their masters, complete.
    Pools,
    /// What dashboards and alerts ask of every worker.
    Workers,
    /// Everything else about every worker.
    WorkerDetails,
    /// The collector itself.
    Collector,
}

impl Group {
    /// All of them, in the order of the output.
    pub const ALL: [Self; 4] = [Self::Pools, Self::Workers, Self::WorkerDetails, Self::Collector];

    /// How it is named.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pools => "pools",
            Self::Workers => "workers",
            Self::WorkerDetails => "worker_details",
            Self::Collector => "collector",
        }
    }
}

/// Some of the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups(u8);

impl Default for Groups {
    /// All but the details of workers: with those, series per worker would be three times as many.
    fn default() -> Self {
        [Group::Pools, Group::Workers, Group::Collector].into_iter().collect()
    }
}

impl FromIterator<Group> for Groups {
    fn from_iter<I: IntoIterator<Item = Group>>(groups: I) -> Self {
        Self(groups.into_iter().fold(0, |bits, group| bits | 1 << group as u8))
    }
}

impl Groups {
    /// Every group.
    pub fn all() -> Self {
        Group::ALL.into_iter().collect()
    }

    /// The groups of these names; an error that lists the names there are for anything else, and for none at all.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let known = || Group::ALL.map(Group::as_str).join(", ");
        let group = |name: &str| {
            let found = Group::ALL.into_iter().find(|group| group.as_str() == name);
            found.ok_or_else(|| format!("there is no group of metrics {name:?}; there are {}", known()))
        };
        let groups: Self = names.into_iter().map(group).collect::<Result<_, _>>()?;
        if groups.0 == 0 { Err(format!("name at least one of {}", known())) } else { Ok(groups) }
    }

    /// Whether the group is among them.
    pub fn contains(self, group: Group) -> bool {
        self.0 & 1 << group as u8 != 0
    }
}

/// Writes a whole exposition to the end of `out`.
///
/// `after_family` is called after each family and may take what was written, so that a compressed exposition never
/// exists uncompressed as a whole.
pub fn render(
    snapshot: &Snapshot,
    format: Format,
    groups: Groups,
    out: &mut Buffer,
    after_family: &mut dyn FnMut(&mut Buffer),
) {
    let mut writer = Writer { out, format, groups, native: Native::default(), after_family };
    let series = Series::of(snapshot, format, groups);
    pools::write(&mut writer, &series);
    pools::write_runs(&mut writer, &series);
    schedule::write(&mut writer, &series);
    requests::write(&mut writer, &series);
    pools::write_masters(&mut writer, &series);
    workers::write(&mut writer, &series);
    workers::write_details(&mut writer, &series);
    requests::write_details(&mut writer, &series);
    own::write(&mut writer, snapshot);
    schedule::write_unattributed(&mut writer, &series);
    own::write_process(&mut writer, snapshot);
    writer.end();
}

/// What there are series of, with their labels, which are escaped once and used for every family.
struct Series<'a> {
    snapshot: &'a Snapshot,
    labels: Labels,
    pools: Vec<(&'a Pool, Place)>,
    workers: Vec<(&'a Worker, Place)>,
}

impl<'a> Series<'a> {
    fn of(snapshot: &'a Snapshot, format: Format, groups: Groups) -> Self {
        let with_workers = groups.contains(Group::Workers) || groups.contains(Group::WorkerDetails);
        let mut labels = Labels::of(format);
        let mut pools = Vec::with_capacity(snapshot.pools.len());
        let mut workers = Vec::new();
        for pool in &snapshot.pools {
            let of_pool = labels.add(None, |labels| labels.text(&POOL, &pool.name));
            pools.push((pool, of_pool));
            if !with_workers {
                continue;
            }
            workers.reserve(pool.workers.len());
            for worker in &pool.workers {
                workers.push((worker, labels.add(Some(of_pool), |labels| labels.number(&SLOT, worker.slot))));
            }
        }
        Self { snapshot, labels, pools, workers }
    }

    fn pools(&self) -> impl Iterator<Item = (&'a Pool, Piece<'_>)> {
        self.pools.iter().map(|(pool, labels)| (*pool, self.labels.get(*labels)))
    }

    fn workers(&self) -> impl Iterator<Item = (&'a Worker, Piece<'_>)> {
        self.workers.iter().map(|(worker, labels)| (*worker, self.labels.get(*labels)))
    }

    fn readings(&self) -> impl Iterator<Item = (&'a Reading, Piece<'_>)> {
        self.workers().filter_map(|(worker, labels)| Some((worker.reading.as_ref()?, labels)))
    }
}

const POOL: Name = Name::new("pool");
const SLOT: Name = Name::new("slot");
const MODE: Name = Name::new("mode");
const PID: Name = Name::new("pid");
const COMM: Name = Name::new("comm");
const REASON: Name = Name::new("reason");

#[cfg(test)]
mod tests;
