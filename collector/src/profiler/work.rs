//! What the profiling thread does: begins what is asked for, looks after what is sampled, and makes profiles of it.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::account::Account;
use super::continuous::Continuous;
use super::measuring::{Before, Fold, Measuring};
use super::naming::{self, Interpreters};
use super::requests::Answer;
use super::sampling::Sampling;
use super::spaces::Readers;
use super::workers::{self, Workers};
use super::{CaptureError, Wanted, Whom};
use crate::kernel::{LoadError, Names, Samplers, Threads, What};
use crate::procfs::kallsyms::Kallsyms;
use crate::procfs::root::{Buffer, Root};
use crate::profile::fold::Folder;
use crate::profile::modules::{Limits, ModuleId, Modules};
use crate::profile::symbols::{self, Symbols};
use crate::profile::{Kind, Profile};
use crate::snapshot::Snapshot;
use crate::units::{Pid, thread_cpu_ns, unix_ns};

/// Captures at a time.
const MAX_CAPTURES: usize = 4;

/// While it samples the thread looks so often at least whether there are new workers, and takes long waits. It is woken up for all that is
/// urgent, and to be woken up is most of what it costs then: some 30 µs of its CPU time, caches being cold. Longer than a period
/// lasts, so that one wake-up does for both.
const TICK: Duration = Duration::from_millis(600);

/// After a process was met that it did not know it is not woken up for so long: who cannot be told of is met with every sample.
const TICK_OF_STRANGERS: Duration = Duration::from_millis(5);

/// The same while nobody waits for what is sampled: a few samples are all that there is to lose.
const TICK_OF_STRANGERS_OF_NOBODY: Duration = Duration::from_millis(100);

/// What was read of the files of processes, and a sampler, is kept for so long after the last capture.
const FORGET_AFTER: Duration = Duration::from_secs(120);

/// What the thread works with.
pub(super) struct Work {
    pub(super) samplers: Samplers,
    pub(super) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(super) readers: Readers,
    pub(super) symbols: Symbols,
    /// What tells where threads are, once somebody has asked.
    pub(super) threads: Option<Threads>,
    /// What names addresses in the kernel.
    pub(super) names: Option<Names>,
    samplings: Vec<Sampling>,
    captures: Vec<Capture>,
    continuous: Option<Continuous>,
    pub(super) account: Arc<Account>,
    /// What was read of those who have ended is to go.
    pub(super) untidy: bool,
    next_sampling: u64,
    /// When the last capture ended.
    pub(super) idle_since: Option<Instant>,
    /// At the last look.
    met_strangers: bool,
    /// Modules that had been met when names were looked up.
    named_modules: u64,
}

/// A capture under way.
struct Capture {
    measuring: Measuring,
    /// What was found in its first half was looked up, or need not be.
    is_learnt: bool,
    answer: Answer,
}

/// What was found since a measuring began.
struct Found {
    folder: Folder<ModuleId>,
    interpreters: Interpreters,
    /// Of what was asked for.
    period_ns: u64,
}

impl Work {
    pub(super) fn new(
        samplers: Samplers,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        kallsyms: Kallsyms,
        [for_stat, for_maps, for_names]: [Root; 3],
        continuous: Option<Continuous>,
        account: Arc<Account>,
    ) -> Self {
        Self {
            samplers,
            snapshots,
            readers: Readers {
                procfs: for_stat,
                buffer: Buffer::default(),
                modules: Modules::new(for_maps, Limits::default()),
                rules: HashMap::new(),
                pythons: HashMap::new(),
            },
            symbols: Symbols::new(symbols::Config::default(), for_names, kallsyms),
            threads: None,
            names: None,
            samplings: Vec::new(),
            captures: Vec::new(),
            continuous,
            account,
            untidy: false,
            next_sampling: 0,
            idle_since: None,
            met_strangers: false,
            named_modules: 0,
        }
    }

    pub(super) fn begin(&mut self, wanted: Wanted, answer: Answer) {
        self.idle_since = None;
        // Who went away wants nothing any more, and takes no place.
        self.captures.retain(|capture| !capture.answer.is_closed());
        if answer.is_closed() {
            return;
        }
        if self.captures.len() >= MAX_CAPTURES {
            let _ = answer.send(Err(CaptureError::Busy));
            return;
        }
        match self.measure(wanted) {
            Ok(measuring) => {
                self.account.add_capture();
                self.captures.push(Capture { measuring, is_learnt: false, answer });
            }
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Ends all captures without an answer.
    pub(super) fn end_captures(&mut self) {
        self.captures.clear();
    }

    /// Begins to measure.
    fn measure(&mut self, wanted: Wanted) -> Result<Measuring, CaptureError> {
        let (sampled, own) = (wanted.sampled(), wanted.whom.own);
        // There may be no room for another one beside those that are kept for others.
        self.let_go(|sampling| {
            sampling.own == own && sampled.contains(&sampling.what) && sampling.is_of_use_again()
        });
        let samplings = sampled.into_iter().map(|what| self.prepare(what, &wanted));
        // All is ready before any begins.
        let ids = samplings.collect::<Result<Vec<u64>, _>>()?;
        let (began, began_unix_ns) = (Instant::now(), unix_ns());
        let samplings = self.samplings.iter_mut().filter(|sampling| ids.contains(&sampling.id));
        let before = samplings.map(|sampling| Ok((sampling.id, sampling.start()?)));
        let before = before.collect::<Result<Vec<_>, CaptureError>>()?;
        Ok(Measuring { wanted, began, began_unix_ns, before })
    }

    /// Lets go of samplings that nothing is measured by, but for those.
    fn let_go(&mut self, but: impl Fn(&Sampling) -> bool) {
        let wanted = self.wanted();
        self.samplings.retain(|sampling| wanted.contains(&sampling.id) || but(sampling));
    }

    /// Something is sampled.
    pub(super) fn is_at_work(&self) -> bool {
        !self.captures.is_empty() || self.continuous.is_some()
    }

    /// All that is measured.
    fn measuring(&self) -> impl Iterator<Item = &Measuring> {
        let continuous = self.continuous.as_ref().and_then(|continuous| continuous.measuring.as_ref());
        self.captures.iter().map(|capture| &capture.measuring).chain(continuous)
    }

    /// What was kept of a time.
    pub(super) fn kept(
        &mut self,
        kind: Kind,
        from_to_ns: (u64, u64),
        whom: &Whom,
    ) -> Result<Profile, CaptureError> {
        let mut continuous = self.continuous.take().ok_or(CaptureError::NotKept(None))?;
        let kept = if kind == Kind::OnCpu {
            &continuous.kept
        } else {
            self.keep_tails(&mut continuous.tails);
            &continuous.tails.kept
        };
        let profile = kept.between(kind, from_to_ns, whom);
        self.continuous = Some(continuous);
        profile
    }

    /// Tells samplers that are at work all the time of who was found since, so that not even their first stacks are cut short.
    fn introduce_newcomers(&mut self, continuous: &mut Continuous) {
        if !self.snapshots.has_changed().unwrap_or(false) {
            return;
        }
        let Some(snapshot) = self.snapshots.borrow_and_update().clone() else { return };
        let workers = workers::listed(&snapshot).map(|(_, worker)| (worker.pid, worker.started_unix_ns));
        let present: HashSet<(Pid, u64)> = workers.collect();
        for (pid, _) in present.difference(&continuous.known) {
            let started = self.samplings.iter_mut();
            let started = started.filter(|sampling| sampling.sampler.is_started() && !sampling.own);
            for sampling in started.chain(continuous.tails.sampling.as_mut()) {
                sampling.spaces.introduce(*pid, &mut self.readers, &mut sampling.sampler);
            }
        }
        continuous.known = present;
        continuous.tails.set_limits_of_new(&snapshot);
    }

    /// Keeps what was sampled, when it was for long enough, and goes on. True if nothing is found now that has no name yet.
    fn keep(&mut self) -> bool {
        let Some(mut continuous) = self.continuous.take() else { return true };
        self.introduce_newcomers(&mut continuous);
        self.met_strangers |= self.look_after_tails(&mut continuous.tails);
        if continuous.tails.are_due() {
            self.keep_tails(&mut continuous.tails);
        }
        let mut all_named = continuous.measuring.is_none() && continuous.tails.are_kept();
        if let Some(mut measuring) = continuous.measuring.take_if(|measuring| measuring.is_over()) {
            let (now, now_unix_ns, mut after) = (Instant::now(), unix_ns(), Vec::new());
            match self.profile(&measuring, now.duration_since(measuring.began), Some(&mut after)) {
                Ok(profile) => {
                    continuous.kept.add(profile, now);
                    (measuring.began, measuring.began_unix_ns, measuring.before) = (now, now_unix_ns, after);
                    let goes_on = |(id, _): &(u64, _)| {
                        self.samplings.iter().any(|sampling| sampling.id == *id && sampling.can_go_on())
                    };
                    continuous.measuring = measuring.before.iter().all(goes_on).then_some(measuring);
                }
                Err(error) => continuous.failed(&error),
            }
            if continuous.measuring.is_none() {
                // It begins anew, or another one does: until then nothing is sampled.
                self.stop_unwanted();
            }
            // Of waits too.
            self.keep_tails(&mut continuous.tails);
            all_named = true;
            self.untidy |= continuous.is_untidy();
        }
        if let Some(wanted) = continuous.wanted() {
            match self.measure(wanted) {
                Ok(measuring) => continuous.measuring = Some(measuring),
                Err(error) => continuous.failed(&error),
            }
        }
        self.continuous = Some(continuous);
        all_named
    }

    /// Stops samplings that nothing is measured by.
    fn stop_unwanted(&mut self) {
        let wanted = self.wanted();
        let unwanted = self.samplings.iter_mut().filter(|sampling| !wanted.contains(&sampling.id));
        for sampling in unwanted.filter(|sampling| sampling.sampler.is_started()) {
            sampling.sampler.stop();
        }
    }

    /// Lets go of what was read of those who have ended, unless something was found that has no name yet.
    fn tidy(&mut self, all_named: bool) {
        if self.untidy && all_named && self.captures.is_empty() {
            self.untidy = false;
            self.readers.tidy();
            self.symbols.retain(&self.readers.modules);
            crate::heap::trim();
        }
    }

    /// A sampling of this, which knows who is wanted: to load one takes the kernel, which verifies it, longer than all else. Those of
    /// waits are not shared: one that began before a capture would be in it.
    fn prepare(&mut self, what: What, wanted: &Wanted) -> Result<u64, CaptureError> {
        let own = wanted.whom.own;
        let is_shared = |sampling: &Sampling| {
            sampling.own == own && sampling.what == what && what.runs() && sampling.has_room()
        };
        let mut sampling = match self.samplings.iter().position(is_shared) {
            Some(index) => self.samplings.swap_remove(index),
            None => self.load(what, own)?,
        };
        self.introduce(&mut sampling, &wanted.whom);
        let id = sampling.id;
        self.samplings.push(sampling);
        Ok(id)
    }

    /// A new one.
    pub(super) fn load(&mut self, what: What, own: bool) -> Result<Sampling, CaptureError> {
        self.next_sampling += 1;
        let rows = self.readers.rows() * 3 / 2;
        let sampler = match own {
            true => self.samplers.load_for_own(what, rows)?,
            false => self.samplers.load(what, rows)?,
        };
        Ok(Sampling::new(self.next_sampling, what, own, sampler))
    }

    /// Tells a sampling whom it will meet.
    pub(super) fn introduce(&mut self, sampling: &mut Sampling, whom: &Whom) {
        let mut pids = Vec::new();
        if whom.own {
            pids.push(std::process::id());
        } else if let Some(snapshot) = self.snapshots.borrow().as_deref() {
            let workers = workers::listed(snapshot);
            let workers = workers.filter(|(pool, worker)| whom.has(pool, Some(worker.slot), worker.pid));
            pids.extend(workers.map(|(_, worker)| worker.pid));
            // Who is forked meanwhile has their address space, until it calls execve(2).
            let pools = snapshot.pools.iter().filter(|pool| whom.has_pool(&pool.name));
            pids.extend(pools.flat_map(|pool| &pool.masters).map(|master| master.pid));
        }
        for pid in pids {
            sampling.spaces.introduce(pid, &mut self.readers, &mut sampling.sampler);
        }
    }

    /// How long until the next look: until the next capture is over, or a period changes, at most. `None` if there is nothing to look
    /// after.
    pub(super) fn next_look(&self) -> Option<Duration> {
        if !self.is_at_work() {
            return self.idle_since.map(|since| FORGET_AFTER.saturating_sub(since.elapsed()));
        }
        let tick = match (self.met_strangers, self.captures.is_empty()) {
            (false, _) => TICK,
            (true, false) => TICK_OF_STRANGERS,
            (true, true) => TICK_OF_STRANGERS_OF_NOBODY,
        };
        let periods = self.started().filter_map(Sampling::period_left);
        self.measuring().map(Measuring::left).chain(periods).chain([tick]).min()
    }

    /// What tells at once when a process is met that is not known; nothing does after one was met, for a moment: there are as many as
    /// there are forks.
    pub(super) fn await_strangers(&self) -> Vec<BorrowedFd<'_>> {
        if self.met_strangers {
            return Vec::new();
        }
        let tails = self.continuous.as_ref().and_then(|continuous| continuous.tails.sampling.as_ref());
        self.started().chain(tails).map(|sampling| sampling.sampler.await_strangers()).collect()
    }

    /// Those that are not kept for the next capture.
    fn started(&self) -> impl Iterator<Item = &Sampling> {
        self.samplings.iter().filter(|sampling| sampling.sampler.is_started())
    }

    pub(super) fn look_after(&mut self) {
        self.met_strangers = false;
        for sampling in self.samplings.iter_mut().filter(|sampling| sampling.sampler.is_started()) {
            self.met_strangers |= sampling.answer_strangers(&mut self.readers);
            sampling.change_period();
        }
        // Who went away wants nothing any more.
        self.captures.retain(|capture| !capture.answer.is_closed());
        self.learn();
        let over: Vec<Capture> =
            self.captures.extract_if(.., |capture| capture.measuring.is_over()).collect();
        let now = Instant::now();
        self.stop_unwanted();
        self.untidy |= !over.is_empty();
        for Capture { measuring, answer, .. } in over {
            let _ = answer.send(self.profile(&measuring, now.duration_since(measuring.began), None));
        }
        let all_named = self.keep();
        self.let_go(Sampling::is_of_use_again);
        self.tidy(all_named);
        if !self.is_at_work() {
            self.idle_since = Some(Instant::now());
        }
    }

    /// Samplings that something is measured by.
    fn wanted(&self) -> Vec<u64> {
        self.measuring().flat_map(|measuring| measuring.before.iter().map(|(id, _)| *id)).collect()
    }

    /// Looks up what was found in the first half of a capture, if there are files that were not there when names were looked up
    /// last: to read them is nearly all that a first profile takes, and at the end somebody waits for it. Nothing is read that
    /// the profile does not need; only what was found is gone through once more, so that is not done for each.
    fn learn(&mut self) {
        let is_due = |capture: &Capture| !capture.is_learnt && capture.measuring.is_half_over();
        let Some(index) = self.captures.iter().position(is_due) else { return };
        let mut capture = self.captures.swap_remove(index);
        capture.is_learnt = true;
        if self.readers.modules.met() > self.named_modules && !capture.measuring.is_over() {
            self.named_modules = self.readers.modules.met();
            if let Ok(Found { folder, .. }) = self.found(&capture.measuring, None) {
                let is_late = || capture.measuring.is_over();
                naming::learn_files(folder.places(), &self.readers, &mut self.symbols, is_late);
            }
        }
        self.captures.push(capture);
    }

    /// The profile of what was found. `after` gets what had been counted by then.
    fn profile(
        &mut self,
        measuring: &Measuring,
        duration: Duration,
        after: Option<&mut Vec<(u64, Before)>>,
    ) -> Result<Profile, CaptureError> {
        let Found { folder, interpreters, period_ns } = self.found(measuring, after)?;
        self.named_modules = self.readers.modules.met();
        let named = naming::named(folder.places(), &interpreters, &mut self.readers, &mut self.symbols);
        let profile = Profile {
            started_unix_ns: measuring.began_unix_ns,
            duration_ns: duration.as_nanos() as u64,
            period_ns,
            ..folder.finish(measuring.wanted.kind, named)
        };
        self.account.add_lost_of(&profile);
        Ok(profile.with_period_of_samples())
    }

    /// What was found, without names but those of the kernel.
    fn found(
        &mut self,
        measuring: &Measuring,
        mut after: Option<&mut Vec<(u64, Before)>>,
    ) -> Result<Found, CaptureError> {
        let workers = Workers::of(self.snapshots.borrow().as_deref());
        let mut folder = Folder::default();
        let mut interpreters = Interpreters::default();
        let mut period_ns = 0;
        for (id, before) in &measuring.before {
            let Some(sampling) = self.samplings.iter().find(|sampling| sampling.id == *id) else { continue };
            if !sampling.sampler.has_counted()? {
                return Err(LoadError::CountersTaken.into());
            }
            let counts = sampling.sampler.counts()?;
            if let What::OnCpu { period_ns: asked_ns } = sampling.what {
                period_ns = asked_ns;
            }
            let sampler = &sampling.sampler;
            naming::learn_kernel_of(sampler, |_| true, &mut self.names, &self.samplers, &mut self.symbols);
            folder.add_lost(counts.lost.saturating_sub(before.counts.lost));
            let mut fold = Fold {
                sampling,
                wanted: &measuring.wanted,
                before,
                workers: &workers,
                readers: &self.readers,
                interpreters: &mut interpreters,
            };
            let symbols = &mut self.symbols;
            let mut stacks = HashMap::new();
            sampling.sampler.read(|stack, frames| {
                if after.is_some() {
                    stacks.insert(stack.hash, *stack);
                }
                fold.add(stack, frames, symbols, &mut folder);
            });
            if let Some(after) = &mut after {
                after.push((*id, Before { counts, stacks }));
            }
        }
        Ok(Found { folder, interpreters, period_ns })
    }

    /// Says what it has cost so far.
    pub(super) fn account_for(&self) {
        self.account.set_cpu_ns(thread_cpu_ns());
        if let Some(continuous) = &self.continuous {
            let bytes = continuous.kept.bytes() + continuous.tails.kept.bytes();
            self.account.set_kept(bytes, continuous.tails.kept_since());
        }
    }

    /// Lets go of all that was read, if nobody has asked for long.
    pub(super) fn forget_if_due(&mut self) {
        if self.idle_since.is_none_or(|since| since.elapsed() < FORGET_AFTER) {
            return;
        }
        self.idle_since = None;
        self.samplings.clear();
        self.threads = None;
        self.names = None;
        self.readers.clear();
        self.symbols.clear();
        crate::heap::trim();
    }
}
