//! What profiling costs and loses.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::profile::Profile;
use crate::snapshot::Profiling;

/// Totals since start: the profiling thread writes them, and whoever collects reads them.
#[derive(Debug)]
pub struct Account {
    keeps: bool,
    kept_since_unix_ns: AtomicU64,
    captures: AtomicU64,
    lost: AtomicU64,
    passed_over: AtomicU64,
    kept_bytes: AtomicU64,
    cpu_ns: AtomicU64,
}

impl Account {
    pub(super) fn new(keeps: bool) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            keeps,
            kept_since_unix_ns: AtomicU64::new(u64::MAX),
            captures: zero(),
            lost: zero(),
            passed_over: zero(),
            kept_bytes: zero(),
            cpu_ns: zero(),
        }
    }

    /// Profiles are kept.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// As they are now.
    pub fn read(&self) -> Profiling {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Profiling {
            kept_since_unix_ns: self.keeps.then(|| of(&self.kept_since_unix_ns)),
            captures: of(&self.captures),
            lost: of(&self.lost),
            passed_over: of(&self.passed_over),
            kept_bytes: self.keeps.then(|| of(&self.kept_bytes)),
            cpu_ns: of(&self.cpu_ns),
        }
    }

    pub(super) fn add_capture(&self) {
        self.captures.fetch_add(1, Ordering::Relaxed);
    }

    /// A profile was made.
    pub(super) fn add_lost_of(&self, profile: &Profile) {
        self.lost.fetch_add(profile.losses.lost, Ordering::Relaxed);
        self.passed_over.fetch_add(profile.losses.passed_over, Ordering::Relaxed);
    }

    pub(super) fn set_kept(&self, bytes: usize, since_unix_ns: u64) {
        self.kept_bytes.store(bytes as u64, Ordering::Relaxed);
        self.kept_since_unix_ns.store(since_unix_ns, Ordering::Relaxed);
    }

    /// The thread has used so much altogether.
    pub(super) fn set_cpu_ns(&self, cpu_ns: u64) {
        self.cpu_ns.store(cpu_ns, Ordering::Relaxed);
    }
}
