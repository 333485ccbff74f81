//! What profiling costs and loses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::profile::Profile;
use crate::snapshot::Profiling;

/// Totals since start: the profiling thread writes them, and whoever collects reads them.
#[derive(Debug)]
pub struct Account {
    kept_for: Option<Duration>,
    captures: AtomicU64,
    lost: AtomicU64,
    kept_bytes: AtomicU64,
    cpu_ns: AtomicU64,
}

impl Account {
    pub(super) fn new(kept_for: Option<Duration>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { kept_for, captures: zero(), lost: zero(), kept_bytes: zero(), cpu_ns: zero() }
    }

    /// As they are now.
    pub fn read(&self) -> Profiling {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Profiling {
            kept_for: self.kept_for,
            captures: of(&self.captures),
            lost: of(&self.lost),
            kept_bytes: self.kept_for.map(|_| of(&self.kept_bytes)),
            cpu_ns: of(&self.cpu_ns),
        }
    }

    pub(super) fn add_capture(&self) {
        self.captures.fetch_add(1, Ordering::Relaxed);
    }

    /// A profile was made.
    pub(super) fn add_lost_of(&self, profile: &Profile) {
        self.lost.fetch_add(profile.losses.lost, Ordering::Relaxed);
    }

    pub(super) fn set_kept_bytes(&self, bytes: usize) {
        self.kept_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    /// The thread has used so much altogether.
    pub(super) fn set_cpu_ns(&self, cpu_ns: u64) {
        self.cpu_ns.store(cpu_ns, Ordering::Relaxed);
    }
}
