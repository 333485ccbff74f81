//! Has sampling programs follow this process and nobody else.
//!
//! They sample whom a map of tags says to be a worker in a slot. A sampler of ourselves gets maps of its own instead of those
//! of the watching programs: in them we are the one worker, and everywhere else we are none.

use std::io;
use std::os::fd::AsFd;

use aya::maps::MapData;
use collector_ebpf::event::NONE;
use collector_ebpf::slot::{ROLE_WORKER, Slot, Tag};

use super::shared::Shared;
use super::sys::{self, TaskStorage};

/// Tags this process as the worker in the one slot, of no pool. The programs keep both maps.
pub(super) fn tag_ourselves(tags: MapData, slots: MapData) -> io::Result<()> {
    // The number of no pool.
    Shared::map(slots, 1)?.set(0, Slot { pool: NONE, ..Slot::default() });
    let tag = Tag { pool: NONE, role: ROLE_WORKER, slot: 0, ..Tag::default() };
    let ourselves = sys::pidfd_open(std::process::id())?;
    TaskStorage::new(tags)?.set(ourselves.as_fd(), &tag)
}
