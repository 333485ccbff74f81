//! Workers that have not run since they were last read: what a pass has to know of each is one line of memory, found by
//! the record that the kernel knows the worker by.
//!
//! Most workers of most pools rest most of the time. Their figures are those of the last reading, so there is nothing to
//! compare, to add or to copy; only that they are there, and since when they have used nothing.

use super::pool::PoolId;
use crate::units::ProcessKey;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resting {
    pub(super) key: ProcessKey,
    pub(super) pool: PoolId,
    /// The last pass that saw it.
    pub(super) pass: u64,
    /// End of the last interval in which it used nothing, `CLOCK_MONOTONIC` ns.
    pub(super) at_ns: u64,
    pub(super) rss_bytes: Option<u64>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Rest {
    by_record: Vec<Option<Resting>>,
}

impl Rest {
    /// The entry of a process. Records are given to others, so the identity has to agree.
    pub(super) fn get_mut(&mut self, record: u32, key: ProcessKey) -> Option<&mut Resting> {
        self.by_record.get_mut(record as usize)?.as_mut().filter(|resting| resting.key == key)
    }

    /// It rests from now on. Records are small numbers: there are as many as there were workers at a time.
    pub(super) fn put(&mut self, record: u32, resting: Resting) {
        let at = record as usize;
        if at >= self.by_record.len() {
            self.by_record.resize(at + 1, None);
        }
        self.by_record[at] = Some(resting);
    }

    /// It rests no more; what was known of it.
    pub(super) fn take(&mut self, record: u32, key: ProcessKey) -> Option<Resting> {
        let entry = self.by_record.get_mut(record as usize)?;
        entry.take_if(|resting| resting.key == key)
    }
}
