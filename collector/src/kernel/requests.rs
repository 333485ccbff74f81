//! The table of requests that are in progress, and the program that accounts for those that nothing else ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use collector_ebpf::limits::REQUEST_SETS;
use collector_ebpf::request::{
    Connections, FOLLOWED_NO_MORE, Finish, QUIET_NS, REQUEST_WAYS, Request, WORKER_GONE, index_of,
    set_of_index, way_of_index,
};

use super::schedule::Probe;
use super::shared::Shared;
use super::sys;

/// Requests that are looked at in one round: each is one system call. The rest is looked at in the next ones.
const LOOKS: usize = 1024;

/// Programs that follow requests.
pub(super) struct RequestProbes {
    pub(super) probes: Vec<Probe>,
    /// Accounts for one request that we found.
    pub(super) finish: OwnedFd,
}

/// Requests that are in progress, or were answered a moment ago.
pub(super) struct RequestTable {
    connections: Shared<Connections>,
    requests: Shared<Request>,
    /// Where the next round begins to look.
    next: u32,
}

/// A request as the table has it.
#[derive(Clone, Copy, Debug)]
struct Found {
    index: u32,
    key: u64,
    request: Request,
}

impl RequestTable {
    pub(super) fn new(connections: MapData, requests: MapData) -> io::Result<Self> {
        Ok(Self {
            connections: Shared::map(connections, REQUEST_SETS)?,
            requests: Shared::map(requests, REQUEST_SETS * REQUEST_WAYS)?,
            next: 0,
        })
    }

    /// Requests with a place, from a set on, around to it again.
    fn all(&self, from: u32) -> impl Iterator<Item = Found> + '_ {
        const SETS: u32 = REQUEST_SETS as u32;
        let sets = (0..SETS).map(move |offset| (from + offset) % SETS);
        let indices = sets.flat_map(|set| (0..REQUEST_WAYS as u32).map(move |way| index_of(set, way)));
        indices.filter_map(|index| {
            let key = self.key(index)?.load(Ordering::Acquire);
            let request = (key != 0).then(|| self.requests.get(index as usize)).flatten()?;
            Some(Found { index, key, request })
        })
    }

    /// Which connection a request is of.
    fn key(&self, index: u32) -> Option<&AtomicU64> {
        let set = self.connections.at(set_of_index(index) as usize)?;
        // SAFETY: an element of the set; a pointer into the mapping.
        let key = unsafe { &raw mut (*set).keys[way_of_index(index) as usize % REQUEST_WAYS] };
        // SAFETY: mapped, aligned, as long as `self`; the programs change it by atomic instructions.
        Some(unsafe { AtomicU64::from_ptr(key) })
    }

    /// Has those accounted for that have been quiet, or whose connection is gone. Returns their slots.
    pub(super) fn finish_quiet(
        &mut self,
        finish: &OwnedFd,
        now_ns: u64,
        slots: &mut Vec<u32>,
    ) -> io::Result<()> {
        let finished = self.finish_some(finish, now_ns, slots);
        // A few of them are anywhere in the table, which would be mapped in full until the next round.
        self.requests.let_go_of_all_but(std::iter::empty());
        finished
    }

    fn finish_some(&mut self, finish: &OwnedFd, now_ns: u64, slots: &mut Vec<u32>) -> io::Result<()> {
        let quiet_since_ns = now_ns.saturating_sub(QUIET_NS);
        let mut looks = 0;
        let mut next = 0;
        for found in self.all(self.next) {
            let last_ns = found.request.begin_ns.max(found.request.answer_ns);
            if last_ns >= quiet_since_ns {
                continue;
            }
            looks += 1;
            if looks > LOOKS {
                next = set_of_index(found.index);
                break;
            }
            let Found { index, key, .. } = found;
            run(finish, Finish { index, key, quiet_since_ns, end_ns: now_ns, ..Finish::default() })?;
            slots.push(Request::slot_of(found.request.place));
        }
        self.next = next;
        Ok(())
    }

    /// Has all of a slot accounted for, whose worker ended at `end_ns`.
    pub(super) fn abandon(&self, finish: &OwnedFd, slot: u32, end_ns: u64) -> io::Result<()> {
        for Found { index, key, request } in self.all(0) {
            if Request::slot_of(request.place) == slot {
                run(finish, Finish { index, key, abandon: WORKER_GONE, end_ns, ..Finish::default() })?;
            }
        }
        Ok(())
    }

    /// Has those of a slot, or of all, accounted for that were answered.
    pub(super) fn finish_answered(&self, finish: &OwnedFd, slot: Option<u32>, now_ns: u64) -> io::Result<()> {
        for Found { index, key, request } in self.all(0) {
            if !request.is_unanswered() && slot.is_none_or(|slot| slot == Request::slot_of(request.place)) {
                run(
                    finish,
                    Finish { index, key, abandon: WORKER_GONE, end_ns: now_ns, ..Finish::default() },
                )?;
            }
        }
        Ok(())
    }

    /// Lets go of all: those that were answered count, the others do not. Returns how many of them were in flight.
    pub(super) fn let_go(&self, finish: &OwnedFd, now_ns: u64) -> io::Result<u64> {
        let mut in_flight = 0;
        for Found { index, key, request } in self.all(0) {
            in_flight += u64::from(request.is_in_flight() && request.is_unanswered());
            run(
                finish,
                Finish { index, key, abandon: FOLLOWED_NO_MORE, end_ns: now_ns, ..Finish::default() },
            )?;
        }
        Ok(in_flight)
    }

    /// Forgets the requests of a worker that lives on, or of all: no program is at them. Calls with the slot of each, and
    /// whether it was in flight.
    pub(super) fn forget(&self, slot: Option<u32>, mut each: impl FnMut(u32, bool)) {
        for Found { index, key, request } in self.all(0) {
            let its = Request::slot_of(request.place);
            if slot.is_some_and(|slot| slot != its) {
                continue;
            }
            let Some(place) = self.key(index) else { continue };
            if place.compare_exchange(key, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                // Until then no program gives the place to another connection.
                if let Some(key) = self.request_key(index) {
                    key.store(0, Ordering::SeqCst);
                }
                each(its, request.is_in_flight());
            }
        }
    }

    /// Which connection a request is of, as it says itself.
    fn request_key(&self, index: u32) -> Option<&AtomicU64> {
        let request = self.requests.at(index as usize)?;
        // SAFETY: a field of an element; a pointer into the mapping.
        let key = unsafe { &raw mut (*request).key };
        // SAFETY: mapped, aligned, as long as `self`; the programs change it by whole words.
        Some(unsafe { AtomicU64::from_ptr(key) })
    }

    /// Requests with a place.
    pub(super) fn count(&self) -> u64 {
        let used = |index: &u32| self.key(*index).is_some_and(|key| key.load(Ordering::Relaxed) != 0);
        (0..(REQUEST_SETS * REQUEST_WAYS) as u32).filter(used).count() as u64
    }
}

fn run(finish: &OwnedFd, mut context: Finish) -> io::Result<()> {
    sys::program_run_with(finish.as_fd(), &mut context)
}

impl std::fmt::Debug for RequestTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestTable").field("next", &self.next).finish_non_exhaustive()
    }
}
