//! Where the masters and workers of pools listen, and how many connections wait there to be accepted.
//!
//! Who holds which socket is looked up every ten seconds, of a few processes: those that nobody has looked at twice, one
//! master, and in turn the others. How full the queues are is read with each pass, at most once a second, in one listing
//! of all sockets that listen for each family in which some pool does; nothing of that depends on the number of workers.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Aggregate;
use crate::input::{ListeningSocket, SocketFamily, SocketReader};
use crate::snapshot::AcceptQueue;
use crate::units::{ByProcess, NANOS_PER_SECOND, ProcessKey};
use crate::worker::pool::{Pool, PoolId};

/// Time between two looks at who holds the sockets of a pool.
const LOOK_EVERY_NS: u64 = 10 * NANOS_PER_SECOND;

/// Time between two listings, with what a pass may come early.
const LIST_EVERY_NS: u64 = NANOS_PER_SECOND * 9 / 10;

/// Processes of a pool that are looked at in one look, those apart that nobody has looked at twice.
const LOOKED_AT: usize = 4;

/// Descriptors of one process that are looked at. What listens is opened early and has a low number.
const MAX_DESCRIPTORS: usize = 512;

/// Descriptors that are looked at in one pass, of all pools together, at some 3 µs. A process costs as much as
/// [`PROCESS_COST`] of them, besides its own.
const MAX_DESCRIPTORS_PER_PASS: usize = 2 * MAX_DESCRIPTORS;
const PROCESS_COST: usize = 16;

/// Addresses of a pool that are shown. Each is a series.
const MAX_ADDRESSES: usize = 64;

/// By pool.
#[derive(Debug, Default)]
pub(super) struct AcceptQueues {
    pools: BTreeMap<PoolId, Watched>,
    /// No listing before, `CLOCK_MONOTONIC` ns.
    due_ns: u64,
    /// Listings that failed.
    pub(super) unread: u64,
    /// Addresses beyond [`MAX_ADDRESSES`] in some pool.
    pub(super) refused_total: u64,
    /// Kept for its room.
    listing: Vec<Listed>,
}

/// A pool that may listen.
#[derive(Debug, Default)]
struct Watched {
    /// No look before, `CLOCK_MONOTONIC` ns.
    look_due_ns: u64,
    /// Its masters and workers that were looked at.
    processes: ByProcess<ProcessKey, Looked>,
    /// The sockets of all of them that listened, by inode number.
    sockets: Vec<(u32, SocketFamily)>,
    queues: Arc<[AcceptQueue]>,
    /// Addresses there was no room for, at most.
    refused: usize,
}

#[derive(Debug)]
struct Looked {
    at_ns: u64,
    /// Not for the first time: a worker may have begun to listen only after that.
    again: bool,
    sockets: Vec<(u32, SocketFamily)>,
}

/// A socket of the last listing.
#[derive(Debug)]
struct Listed {
    inode: u32,
    family: SocketFamily,
    address: Arc<str>,
    length: u32,
    limit: u32,
}

fn find(listing: &[Listed], inode: u32) -> Option<&Listed> {
    listing.binary_search_by_key(&inode, |listed| listed.inode).ok().and_then(|at| listing.get(at))
}

impl AcceptQueues {
    /// The queues of a pool, by address.
    pub(super) fn of(&self, pool: PoolId) -> Arc<[AcceptQueue]> {
        self.pools.get(&pool).map(|watched| Arc::clone(&watched.queues)).unwrap_or_default()
    }

    /// Lists what listens in the families in which some pool does, in all for a look; of other sockets than those of
    /// pools only for a look, which may find them.
    /// False if some may be missing.
    fn list(&mut self, look: bool, reader: &mut dyn SocketReader) -> bool {
        let known: HashSet<(u32, SocketFamily)> =
            self.pools.values().flat_map(|watched| &watched.sockets).copied().collect();
        let unread_before = self.unread;
        self.listing.clear();
        for family in SocketFamily::ALL {
            if !look && !known.iter().any(|(_, of)| *of == family) {
                continue;
            }
            let listing = &mut self.listing;
            let before = listing.len();
            let complete = reader.listening(family, &mut |socket: ListeningSocket<'_>| {
                let ListeningSocket { inode, address, length, limit } = socket;
                if look || known.contains(&(inode, family)) {
                    listing.push(Listed {
                        inode,
                        family,
                        address: address.to_string().into(),
                        length,
                        limit,
                    });
                }
            });
            if !complete {
                listing.truncate(before);
                self.unread += 1;
            }
        }
        self.listing.sort_unstable_by_key(|listed| listed.inode);
        // A listing in pieces can tell a socket twice, when others come and go meanwhile.
        self.listing.dedup_by_key(|listed| listed.inode);
        self.unread == unread_before
    }
}

impl Aggregate {
    /// Reads the accept queues of pools, and looks who holds them, where it is time.
    pub fn read_accept_queues(&mut self, now_ns: u64, reader: &mut dyn SocketReader) {
        let all = &mut self.accept_queues;
        all.pools.retain(|id, _| self.registry.pools.contains_key(id));
        if now_ns < all.due_ns {
            return;
        }
        let (mut looks, mut listens) = (Vec::new(), false);
        for pool in self.registry.pools.values().filter(|pool| pool.due) {
            let watched = all.pools.entry(pool.id).or_default();
            if pool.living() == 0 && pool.masters.is_empty() {
                // To be looked at as soon as somebody comes.
                *watched = Watched::default();
                continue;
            }
            listens |= !watched.sockets.is_empty();
            if watched.look_due_ns <= now_ns {
                looks.push((watched.look_due_ns, pool));
            }
        }
        if !listens && looks.is_empty() {
            return;
        }
        all.due_ns = now_ns + LIST_EVERY_NS;
        if !all.list(!looks.is_empty(), reader) {
            // Who does not show would be taken for one that does not listen.
            looks.clear();
        }
        // Who has waited longest first: there may not be enough for all.
        looks.sort_unstable_by_key(|(due_ns, pool)| (*due_ns, pool.id));
        let mut room = MAX_DESCRIPTORS_PER_PASS;
        for (_, pool) in looks {
            let Some(watched) = all.pools.get_mut(&pool.id).filter(|_| room > 0) else { break };
            watched.look(pool, now_ns, &all.listing, &mut room, reader);
        }
        for watched in all.pools.values_mut() {
            all.refused_total += watched.update(&all.listing);
        }
    }
}

impl Watched {
    fn look(
        &mut self,
        pool: &Pool,
        now_ns: u64,
        listing: &[Listed],
        room: &mut usize,
        reader: &mut dyn SocketReader,
    ) {
        self.look_due_ns = now_ns + LOOK_EVERY_NS;
        let all = pool.masters.iter().copied().chain(pool.holders().map(|(_, key)| key));
        let looked = |key: ProcessKey| self.processes.get(&key).map_or((false, 0), |l| (l.again, l.at_ns));
        let mut members: Vec<((bool, u64), ProcessKey)> = all.map(|key| (looked(key), key)).collect();
        // Those that nobody has looked at twice come first, then those that nobody has for longest; but a master before all,
        // or it would never be its turn where workers come fast.
        members.sort_unstable();
        // A master can be a worker, too.
        members.dedup();
        if let Some(master) = members.iter().position(|(_, key)| pool.masters.contains(key)) {
            members[..=master].rotate_right(1);
        }
        let living: HashSet<ProcessKey> = members.iter().map(|(_, key)| *key).collect();
        self.processes.retain(|key, _| living.contains(key));
        let mut inodes = Vec::new();
        for (number, ((again, at_ns), key)) in members.into_iter().enumerate() {
            if *room == 0 || (again && number >= LOOKED_AT) {
                break;
            }
            let descriptors = reader.held(key, MAX_DESCRIPTORS, &mut inodes);
            *room = room.saturating_sub(PROCESS_COST + descriptors);
            let sockets = inodes.iter().filter_map(|inode| Some((*inode, find(listing, *inode)?.family)));
            let looked = Looked { at_ns: now_ns, again: at_ns > 0, sockets: sockets.collect() };
            self.processes.insert(key, looked);
        }
        self.sockets.clear();
        self.sockets.extend(self.processes.values().flat_map(|looked| &looked.sockets));
        self.sockets.sort_unstable();
        self.sockets.dedup();
    }

    /// Takes what the listing says of its sockets. Returns how many addresses are beyond what can be shown, and were not
    /// before.
    fn update(&mut self, listing: &[Listed]) -> u64 {
        let mut queues: BTreeMap<Arc<str>, AcceptQueue> = BTreeMap::new();
        for listed in self.sockets.iter().filter_map(|(inode, _)| find(listing, *inode)) {
            let queue = queues.entry(Arc::clone(&listed.address)).or_insert_with_key(|address| AcceptQueue {
                address: Arc::clone(address),
                family: listed.family,
                sockets: 0,
                length: 0,
                limit: 0,
            });
            queue.sockets += 1;
            queue.length += u64::from(listed.length);
            queue.limit += u64::from(listed.limit);
        }
        let refused = queues.len().saturating_sub(MAX_ADDRESSES);
        let more = refused.saturating_sub(self.refused);
        self.refused = self.refused.max(refused);
        self.queues = queues.into_values().take(MAX_ADDRESSES).collect();
        more as u64
    }
}
