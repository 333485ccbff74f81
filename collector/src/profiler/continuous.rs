//! Sampling that goes on all the time, for who asks when it is over.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use collector_ebpf::schedule::KINDS;

use super::kept::Kept;
use super::measuring::Measuring;
use super::tails::Tails;
use super::{CaptureError, Wanted, Whom};
use crate::profile::Kind;
use crate::units::Pid;

/// How long what is kept as one lasts: no less is told apart.
pub(super) const LASTS: Duration = Duration::from_secs(10);

/// Bytes that what ran may take.
const MOST_BYTES: usize = 40 << 20;

/// What could not be sampled is tried again after so long.
pub(super) const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What is read of files is put in order so often.
const TIDIED_AFTER: Duration = Duration::from_secs(60);

/// Sampling that goes on all the time.
#[derive(Debug)]
pub(super) struct Continuous {
    /// What is measured now.
    pub(super) measuring: Option<Measuring>,
    pub(super) kept: Kept,
    pub(super) tails: Tails,
    /// Workers that samplers were told of, each with when it was started.
    pub(super) known: HashSet<(Pid, u64)>,
    hz: u32,
    /// Not before.
    next_try: Instant,
    next_tidy: Instant,
}

impl Continuous {
    pub(super) fn new(hz: u32) -> Self {
        let now = Instant::now();
        Self {
            measuring: None,
            kept: Kept::new(MOST_BYTES, usize::MAX),
            tails: Tails::new(),
            known: HashSet::new(),
            hz,
            next_try: now,
            next_tidy: now + TIDIED_AFTER,
        }
    }

    /// What is to be measured now, of all workers, if nothing is.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        let wanted = Wanted {
            kind: Kind::OnCpu,
            whom: Whom::default(),
            duration: LASTS,
            hz: self.hz,
            least_ns: [0; KINDS],
        };
        (self.measuring.is_none() && Instant::now() >= self.next_try).then_some(wanted)
    }

    /// It could not be measured.
    pub(super) fn failed(&mut self, error: &CaptureError) {
        self.measuring = None;
        let now = Instant::now();
        self.kept.forget_old(now);
        if matches!(error, CaptureError::Busy) {
            // As soon as a capture has ended.
            self.next_try = now;
            return;
        }
        tracing::warn!(%error, "nothing is sampled for the profiles of the last minutes; tried again in a minute");
        self.next_try = now + TRIED_AGAIN_AFTER;
    }

    /// Whether what was read of files is to be put in order now.
    pub(super) fn is_untidy(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next_tidy;
        if due {
            self.next_tidy = now + TIDIED_AFTER;
        }
        due
    }
}
