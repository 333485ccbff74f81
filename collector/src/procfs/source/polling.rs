//! Comings and goings without the process connector, or after it lost some: by comparing listings.

use super::{Known, ProcfsSource, SETTLED_NS, boot_minus_monotonic, key, of};
use crate::input::{self, ExitStatus, Input, Role};
use crate::procfs::root::ReadError;
use crate::procfs::tracked::Tracked;
use crate::units::{NANOS_PER_TICK, Pid, ProcessKey};

impl ProcfsSource {
    /// Compares the processes there are with those that are known. What is new is told as a fork. What is missing is
    /// told as an end, unless the connector will do so.
    pub(super) fn compare_listing(&mut self, now_ns: u64, out: &mut dyn FnMut(Input)) {
        self.listing = self.listing.wrapping_add(1);
        let boot_minus_monotonic = boot_minus_monotonic();
        let mut look = std::mem::take(&mut self.look);
        look.clear();
        let (known, listing) = (&mut self.known, self.listing);
        let listed = self.scan.pids(|pid, inode| match known.get_mut(&pid) {
            Some(known) if known.inode == inode && !known.young => known.listing = listing,
            _ => look.push((pid, inode)),
        });
        if let Err(error) = listed {
            self.losses.listing_failed += 1;
            tracing::warn!(%error, "listing the proc root failed; processes stay as they were");
            self.look = look;
            return;
        }
        for (pid, inode) in look.drain(..) {
            self.looked_up(pid, inode, now_ns, boot_minus_monotonic, out);
        }
        self.look = look;
        if !self.listening.works() {
            let mut pids = std::mem::take(&mut self.pids);
            let missing = self.known.iter().filter(|(_, known)| known.listing != listing);
            pids.extend(missing.map(|(pid, _)| *pid));
            for pid in pids.drain(..) {
                let Some(known) = self.known.remove(&pid) else { continue };
                let process = ProcessKey::from_ticks(pid, known.start_ticks);
                // The pass finds out about those that are tracked.
                if !self.is_tracked(process) {
                    self.vanished(process, now_ns, out);
                }
            }
            self.pids = pids;
        }
    }

    /// An untracked process is gone, and that is all there is to know.
    pub(super) fn vanished(&mut self, process: ProcessKey, at_ns: u64, out: &mut dyn FnMut(Input)) {
        self.told.exit += 1;
        self.told.reap += 1;
        out(Input::Exit(input::Exit {
            process,
            status: ExitStatus::Unknown,
            sender: None,
            oom_killed: None,
            cpu: None,
            peak_rss_bytes: None,
            at_ns,
        }));
        out(Input::Reap(input::Reap { process, cpu: None, at_ns }));
    }

    /// Reads a process that is new, young, or lost its inode.
    pub(super) fn looked_up(
        &mut self,
        pid: Pid,
        inode: u64,
        now_ns: u64,
        boot_minus_monotonic: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let stat = match self.root.stat(pid, &mut self.buffer) {
            Ok(stat) => stat,
            Err(error) => {
                self.count_failure(&error);
                self.losses.gone_before_read += u64::from(matches!(error, ReadError::Gone));
                return;
            }
        };
        let process = key(&stat);
        let before = self.known.get(&pid).copied();
        let same = before.is_some_and(|known| known.start_ticks == stat.starttime);
        let started_ns = (stat.starttime.saturating_mul(NANOS_PER_TICK)).saturating_sub(boot_minus_monotonic);
        let young = now_ns.saturating_sub(started_ns) < SETTLED_NS;
        let known = Known { inode, listing: self.listing, young, ..of(&stat) };
        if let Some(before) = before.filter(|_| !same) {
            let old = ProcessKey::from_ticks(pid, before.start_ticks);
            if !self.is_tracked(old) && !self.listening.works() {
                self.vanished(old, now_ns, out);
            }
        }
        self.displace(process, out);
        let pool = self.tracked.get(&stat.ppid).and_then(|parent| parent.children);
        if stat.is_over() && self.listening.works() && pool.is_none() {
            // Its end was told or lost, and nothing would tell when to forget it.
            return;
        }
        self.remember(pid, known);
        if same {
            if before.is_some_and(|before| before.comm != stat.comm) {
                self.told.rename += 1;
                out(Input::Rename(input::Rename { process, comm: stat.comm }));
            }
            return;
        }
        // Told by the listing that the aggregator asks for first; or a stranger that is defunct already.
        if !self.listed || stat.is_over() && pool.is_none() {
            return;
        }
        if let Some(pool) = pool.filter(|_| !self.is_tracked(process)) {
            let mut tracked = Tracked::new(process);
            tracked.add(Role::Worker, pool);
            self.tracked.insert(pid, tracked);
        }
        self.told.fork += 1;
        out(Input::Fork(input::Fork {
            child: process,
            parent: stat.ppid,
            comm: stat.comm,
            pool,
            record: None,
            at_ns: started_ns.min(now_ns),
        }));
    }
}
