//! What the process connector tells, as facts; and how the end of a process is told, whoever found it out.

use super::listening::{Drain, Heard};
use super::{Known, ProcfsSource, boot_minus_monotonic, key};
use crate::input::{self, Comm, ExitStatus, Input, Role};
use crate::procfs::connector::Event;
use crate::procfs::root::ReadError;
use crate::procfs::tracked::{Phase, Tracked};
use crate::units::{CpuTime, NANOS_PER_TICK, Pid, ProcessKey, monotonic_ns};

impl ProcfsSource {
    pub(super) fn receive(&mut self, out: &mut dyn FnMut(Input)) {
        let boot_minus_monotonic = boot_minus_monotonic();
        let mut drain = Drain::default();
        while let Some(heard) = self.listening.hear(&mut drain) {
            match heard {
                Heard::Event(event) => self.event(event, boot_minus_monotonic, out),
                Heard::Malformed => self.losses.malformed_events += 1,
                Heard::Lost(events) => out(Input::Lost { events }),
            }
        }
    }

    pub(super) fn event(&mut self, event: Event, boot_minus_monotonic: u64, out: &mut dyn FnMut(Input)) {
        match event {
            Event::Fork { parent, child, at_ns } => {
                self.forked(parent, child, at_ns, boot_minus_monotonic, out);
            }
            Event::Thread { process } => {
                if let Some(known) = self.known.get_mut(&process) {
                    known.threaded = true;
                }
            }
            Event::Exec { process, at_ns } => self.executed(process, at_ns, out),
            Event::Rename { process, comm } => self.renamed(process, comm, out),
            Event::Exit { process, main, status, at_ns } => {
                self.thread_ended(process, main, status, at_ns, out)
            }
            Event::Acknowledged { .. } | Event::Other => {}
        }
    }

    /// The message names a pid; who that is, `stat` tells, unless the child ended before we came to it.
    pub(super) fn forked(
        &mut self,
        parent: Pid,
        child: Pid,
        at_ns: u64,
        boot_minus_monotonic: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let at_ticks = at_ns.saturating_add(boot_minus_monotonic) / NANOS_PER_TICK;
        let master = self.tracked.get(&parent).filter(|parent| parent.children.is_some());
        let pool = master.and_then(|master| master.children);
        let read = match self.root.stat(child, &mut self.buffer) {
            // The pid was given to another process since, whose own message is to come.
            Ok(stat) if stat.starttime > at_ticks.saturating_add(1) => Err(ReadError::Gone),
            other => other,
        };
        let (key, comm) = match read {
            Ok(stat) => (key(&stat), stat.comm),
            Err(error) => {
                self.count_failure(&error);
                self.losses.gone_before_read += 1;
                // Of strangers nothing is known, and nothing is said. A worker counts although it is gone: its start
                // is told by the message, within a tick, and nobody can be mistaken for it any more.
                let Some(master) = self.tracked.get(&parent).filter(|_| pool.is_some()) else { return };
                (ProcessKey::from_ticks(child, at_ticks), master.comm.unwrap_or_default())
            }
        };
        // A listing may have come before the message.
        let threaded =
            self.known.get(&child).is_some_and(|k| k.start_ticks == key.start_ticks() && k.threaded);
        self.displace(key, out);
        let known = Known {
            start_ticks: key.start_ticks(),
            comm,
            inode: 0,
            listing: self.listing,
            threaded,
            young: false,
        };
        self.remember(child, known);
        if let Some(pool) = pool.filter(|_| !self.is_tracked(key)) {
            let mut tracked = Tracked::new(key);
            tracked.add(Role::Worker, pool);
            self.tracked.insert(child, tracked);
        }
        self.told.fork += 1;
        out(Input::Fork(input::Fork { child: key, parent, comm, pool, record: None, at_ns }));
    }

    /// Another process has the pid now, so the one that had it is gone.
    pub(super) fn displace(&mut self, key: ProcessKey, out: &mut dyn FnMut(Input)) {
        if self.tracked.get(&key.pid).is_some_and(|tracked| tracked.key != key) {
            self.gone(key.pid, None, monotonic_ns(), out);
        }
    }

    pub(super) fn executed(&mut self, pid: Pid, at_ns: u64, out: &mut dyn FnMut(Input)) {
        let stat = match self.root.stat(pid, &mut self.buffer) {
            Ok(stat) => stat,
            Err(error) => {
                self.count_failure(&error);
                return;
            }
        };
        // One that we never heard of, or that took over the pid: its own fork was lost or is to come.
        let Some(known) = self.known.get_mut(&pid).filter(|k| k.start_ticks == stat.starttime) else {
            return;
        };
        known.comm = stat.comm;
        known.threaded = stat.num_threads > 1;
        let process = key(&stat);
        if let Some(tracked) = self.tracked.get_mut(&pid).filter(|t| t.key == process) {
            tracked.comm = Some(stat.comm);
            tracked.main_ended = None;
        }
        self.told.exec += 1;
        // An exec by another thread swaps tasks under the pid. Kept descriptors follow the pid, so nothing is lost.
        out(Input::Exec(input::Exec { process, comm: stat.comm, by_thread: false, at_ns }));
    }

    pub(super) fn renamed(&mut self, pid: Pid, comm: Comm, out: &mut dyn FnMut(Input)) {
        let Some(known) = self.known.get_mut(&pid) else { return };
        known.comm = comm;
        let process = ProcessKey::from_ticks(pid, known.start_ticks);
        if let Some(tracked) = self.tracked.get_mut(&pid).filter(|t| t.key == process) {
            tracked.comm = Some(comm);
        }
        self.told.rename += 1;
        out(Input::Rename(input::Rename { process, comm }));
    }

    pub(super) fn thread_ended(
        &mut self,
        pid: Pid,
        main: bool,
        status: u32,
        at_ns: u64,
        out: &mut dyn FnMut(Input),
    ) {
        if self.tracked.contains_key(&pid) {
            self.tracked_thread_ended(pid, main, status, at_ns, out);
            return;
        }
        let Some(known) = self.known.get(&pid).copied() else { return };
        if known.threaded {
            // The main thread may have ended first; which one is last cannot be told from the messages.
            match self.root.stat(pid, &mut self.buffer) {
                Ok(stat) if stat.starttime == known.start_ticks && !stat.is_over() => return,
                Ok(_) | Err(_) => {}
            }
        } else if !main {
            return;
        }
        self.known.remove(&pid);
        let process = ProcessKey::from_ticks(pid, known.start_ticks);
        self.told.exit += 1;
        out(Input::Exit(input::Exit {
            process,
            status: ExitStatus::from_wait_status(status),
            sender: None,
            oom_killed: None,
            cpu: None,
            peak_rss_bytes: None,
            at_ns,
        }));
    }

    pub(super) fn tracked_thread_ended(
        &mut self,
        pid: Pid,
        main: bool,
        status: u32,
        at_ns: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let Some(tracked) = self.tracked.get_mut(&pid) else { return };
        if tracked.phase == Phase::Ended || !main && tracked.main_ended.is_none() {
            return;
        }
        match tracked.last_stat(&self.root, &mut self.buffer) {
            Ok((stat, _)) if !stat.is_over() => {
                // Others go on, or an exec by another thread has just replaced the main thread.
                if stat.task_state() == input::TaskState::Zombie {
                    tracked.main_ended = Some(status);
                }
            }
            Ok((stat, cpu)) => {
                // What wait(2) will say, where we may see it; the message tells the status of one thread.
                let status = tracked.wait_status(&stat).filter(|code| *code != 0).unwrap_or(status);
                self.ended(pid, ExitStatus::from_wait_status(status), Some(cpu), at_ns, out);
            }
            // Reaped already.
            Err(ReadError::Gone) => self.gone(pid, Some(status), at_ns, out),
            Err(error) => {
                self.count_failure(&error);
                self.ended(pid, ExitStatus::from_wait_status(status), None, at_ns, out);
            }
        }
    }

    /// Tells the end of a tracked process, once.
    pub(super) fn ended(
        &mut self,
        pid: Pid,
        status: ExitStatus,
        cpu: Option<CpuTime>,
        at_ns: u64,
        out: &mut dyn FnMut(Input),
    ) {
        let Some(tracked) = self.tracked.get_mut(&pid).filter(|t| t.phase != Phase::Ended) else { return };
        tracked.ended(cpu, &mut self.allowance);
        let process = tracked.key;
        if self.known.get(&pid).is_some_and(|known| known.start_ticks == process.start_ticks()) {
            self.known.remove(&pid);
        }
        self.told.exit += 1;
        out(Input::Exit(input::Exit {
            process,
            status,
            sender: None,
            oom_killed: None,
            cpu,
            peak_rss_bytes: None,
            at_ns,
        }));
    }

    /// A tracked process left the kernel. Its CPU was final if it was read as a zombie.
    pub(super) fn gone(&mut self, pid: Pid, status: Option<u32>, at_ns: u64, out: &mut dyn FnMut(Input)) {
        let Some(tracked) = self.tracked.get(&pid) else { return };
        let process = tracked.key;
        let status = status.or(tracked.main_ended).map_or(ExitStatus::Unknown, ExitStatus::from_wait_status);
        let cpu = tracked.final_cpu;
        self.ended(pid, status, None, at_ns, out);
        self.forget(pid);
        self.told.reap += 1;
        out(Input::Reap(input::Reap { process, cpu, at_ns }));
    }

    pub(super) fn forget(&mut self, pid: Pid) {
        if let Some(tracked) = self.tracked.remove(&pid) {
            self.allowance.kept = self.allowance.kept.saturating_sub(tracked.descriptors());
        }
    }
}
