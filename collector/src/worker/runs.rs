//! Work measured as a process per job: the life of a worker, from its fork to its end, is one run, and how the process
//! ended says whether it went well.
//!
//! Totals of all runs since counting began, and a window: those of the last hour, [`WINDOW_RUNS`] at most. Only a pool
//! whose rule asks for it has this, because lifecycle facts alone do not tell a job runner from a prefork server: one
//! whose workers end after so many requests forks as often, with the same lifetimes and the same exit code 0. What is
//! shown of its recycling as if it were work would be wrong, so nothing is guessed.
//!
//! Knows nothing of pools. Ends come in the order in which they are told, which after a loss of events is not the one
//! in which they happened; the window keeps them in the latter.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::input::ExitStatus;
use crate::units::NANOS_PER_SECOND;

/// How far the window reaches back, ns.
pub const WINDOW_NS: u64 = HOUR_NS;

/// Runs in the window at most; of more, those that ended last.
pub const WINDOW_RUNS: usize = 1000;

const HOUR_NS: u64 = 3600 * NANOS_PER_SECOND;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// exit(0).
    Success,
    /// exit with another code.
    Error,
    /// Killed by a signal, the OOM killer apart.
    Signal,
    /// Chosen by the OOM killer.
    Oom,
    /// Nobody told.
    Unknown,
}

impl Outcome {
    /// Of what is known of an end; `oom_killed` is `None` where the source cannot tell.
    pub fn of(status: ExitStatus, oom_killed: Option<bool>) -> Self {
        match status {
            _ if oom_killed == Some(true) => Self::Oom,
            ExitStatus::Code(0) => Self::Success,
            ExitStatus::Code(_) => Self::Error,
            ExitStatus::Signal { .. } => Self::Signal,
            ExitStatus::Unknown => Self::Unknown,
        }
    }

    /// The label value and JSON text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Signal => "signal",
            Self::Oom => "oom",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the run went well; `None` where nobody told.
    pub fn succeeded(self) -> Option<bool> {
        (self != Self::Unknown).then_some(self == Self::Success)
    }
}

/// A run that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// When it ended, `CLOCK_MONOTONIC` ns; where nobody told, when it was missed.
    pub ended_at_ns: u64,
    /// The same in nanoseconds since the Unix epoch.
    pub ended_unix_ns: u64,
    /// From fork to end, ns.
    pub duration_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// Runs added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ended with code 0.
    pub success: u64,
    /// Ended with another code.
    pub error: u64,
    /// Killed by a signal, the OOM killer apart.
    pub signal: u64,
    /// Chosen by the OOM killer.
    pub oom: u64,
    /// Nobody told how they ended: neither succeeded nor failed.
    pub unknown: u64,
    /// Their durations together, ns.
    pub duration_ns: u64,
    /// The shortest and the longest duration, ns; `None` without a run.
    pub extremes_ns: Option<(u64, u64)>,
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, run: &Run) {
        let counter = match run.outcome {
            Outcome::Success => &mut self.success,
            Outcome::Error => &mut self.error,
            Outcome::Signal => &mut self.signal,
            Outcome::Oom => &mut self.oom,
            Outcome::Unknown => &mut self.unknown,
        };
        *counter += 1;
        let duration_ns = run.duration_ns;
        self.duration_ns = self.duration_ns.saturating_add(duration_ns);
        let (shortest, longest) = self.extremes_ns.unwrap_or((duration_ns, duration_ns));
        self.extremes_ns = Some((shortest.min(duration_ns), longest.max(duration_ns)));
    }

    /// Label values with their counts, in a fixed order.
    pub fn by_outcome(&self) -> [(&'static str, u64); 5] {
        [
            (Outcome::Success.as_str(), self.success),
            (Outcome::Error.as_str(), self.error),
            (Outcome::Signal.as_str(), self.signal),
            (Outcome::Oom.as_str(), self.oom),
            (Outcome::Unknown.as_str(), self.unknown),
        ]
    }

    /// All runs.
    pub fn runs(&self) -> u64 {
        self.success + self.failed() + self.unknown
    }

    /// Those that failed, for whatever reason.
    pub fn failed(&self) -> u64 {
        self.error + self.signal + self.oom
    }

    /// Share of those that succeeded among those of which it is known how they ended, 0 to 1; `None` without any.
    pub fn success_ratio(&self) -> Option<f64> {
        let known = self.success + self.failed();
        (known > 0).then(|| self.success as f64 / known as f64)
    }

    /// What the ratio of successes leaves: share of those that failed.
    pub fn error_ratio(&self) -> Option<f64> {
        let known = self.success + self.failed();
        (known > 0).then(|| self.failed() as f64 / known as f64)
    }

    /// Mean duration, seconds; `None` without a run.
    pub fn average_seconds(&self) -> Option<f64> {
        let runs = self.runs();
        (runs > 0).then(|| self.duration_ns as f64 / NANOS_PER_SECOND as f64 / runs as f64)
    }

    /// Runs per hour, when these ended within `span_ns`; `None` for no time at all.
    pub fn per_hour(&self, span_ns: u64) -> Option<f64> {
        (span_ns > 0).then(|| self.runs() as f64 * HOUR_NS as f64 / span_ns as f64)
    }
}

/// The runs that ended last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// All of them together.
    pub totals: Totals,
    /// By their end, oldest first.
    pub runs: Vec<Run>,
}

/// What readers are shown.
#[derive(Clone, Debug)]
pub struct View {
    /// Since when runs have been counted, nanoseconds since the Unix epoch.
    pub since_unix_ns: u64,
    /// How long runs have been counted, ns.
    pub counted_ns: u64,
    /// Since then.
    pub totals: Totals,
    /// When the last one ended, nanoseconds since the Unix epoch; `None` without a run.
    pub last_unix_ns: Option<u64>,
    /// How far the window reaches back, ns: an hour, or as long as runs have been counted, or less if there were more
    /// than it holds. All runs that ended within it are in it.
    pub window_ns: u64,
    /// Shared by views as long as nothing in it changes.
    pub window: Arc<Window>,
}

/// The runs of one pool.
#[derive(Debug)]
pub struct Runs {
    since_ns: u64,
    since_unix_ns: u64,
    totals: Totals,
    /// The one that ended last.
    last: Option<Run>,
    /// By their end, oldest first. Grows to its full size once and stays there.
    kept: VecDeque<Run>,
    /// The latest end of those for which there was no room.
    displaced_ns: u64,
    /// What was shown last; `None` once it has changed.
    shown: Option<Arc<Window>>,
}

impl Runs {
    /// None yet; counts from now on, `CLOCK_MONOTONIC` ns and nanoseconds since the Unix epoch.
    pub fn new(now_ns: u64, now_unix_ns: u64) -> Self {
        Self {
            since_ns: now_ns,
            since_unix_ns: now_unix_ns,
            totals: Totals::default(),
            last: None,
            kept: VecDeque::new(),
            displaced_ns: 0,
            shown: None,
        }
    }

    /// Counts a run.
    pub fn record(&mut self, run: Run) {
        self.totals.add(&run);
        if self.last.is_none_or(|last| last.ended_at_ns <= run.ended_at_ns) {
            self.last = Some(run);
        }
        if self.kept.len() == WINDOW_RUNS {
            let oldest_ns = self.kept.front().map_or(0, |oldest| oldest.ended_at_ns);
            self.displaced_ns = self.displaced_ns.max(oldest_ns.min(run.ended_at_ns));
            if run.ended_at_ns < oldest_ns {
                return;
            }
            self.kept.pop_front();
        }
        self.shown = None;
        // At the end, unless it is told late.
        let at = self.kept.partition_point(|kept| kept.ended_at_ns <= run.ended_at_ns);
        self.kept.insert(at, run);
    }

    /// What readers are shown at this moment, `CLOCK_MONOTONIC` ns. What has left the window is let go of.
    pub fn view(&mut self, now_ns: u64) -> View {
        let begin_ns = now_ns.saturating_sub(WINDOW_NS);
        while self.kept.front().is_some_and(|oldest| oldest.ended_at_ns < begin_ns) {
            self.kept.pop_front();
            self.shown = None;
        }
        let kept = &self.kept;
        let window = self.shown.get_or_insert_with(|| {
            let mut totals = Totals::default();
            kept.iter().for_each(|run| totals.add(run));
            Arc::new(Window { totals, runs: kept.iter().copied().collect() })
        });
        View {
            since_unix_ns: self.since_unix_ns,
            counted_ns: now_ns.saturating_sub(self.since_ns),
            totals: self.totals,
            last_unix_ns: self.last.map(|last| last.ended_unix_ns),
            window_ns: now_ns.saturating_sub(begin_ns.max(self.since_ns).max(self.displaced_ns)),
            window: Arc::clone(window),
        }
    }
}

/// A length of time as people write it, to the second: `1h 23m 45s`. Units before the first that counts are left out.
pub fn written(duration_ns: u64) -> String {
    let seconds = duration_ns / NANOS_PER_SECOND;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let parts = [(days, 'd'), (hours, 'h'), (minutes, 'm')];
    let mut text = String::new();
    for (count, unit) in parts.into_iter().skip_while(|(count, _)| *count == 0) {
        text.push_str(&format!("{count}{unit} "));
    }
    text + &format!("{}s", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = NANOS_PER_SECOND;
    const BOOT: u64 = 1_000_000 * SECOND;
    const OUTCOMES: [Outcome; 5] =
        [Outcome::Success, Outcome::Error, Outcome::Signal, Outcome::Oom, Outcome::Unknown];

    fn run(ended_at_ns: u64, duration_ns: u64, outcome: Outcome) -> Run {
        Run { ended_at_ns, ended_unix_ns: BOOT + ended_at_ns, duration_ns, outcome }
    }

    #[test]
    fn an_end_has_one_outcome() {
        let killed = ExitStatus::Signal { signal: 9, core_dumped: false };
        for (status, oom_killed, expected) in [
            (ExitStatus::Code(0), Some(false), Outcome::Success),
            (ExitStatus::Code(0), None, Outcome::Success),
            (ExitStatus::Code(1), None, Outcome::Error),
            (killed, Some(false), Outcome::Signal),
            (killed, Some(true), Outcome::Oom),
            (ExitStatus::Unknown, None, Outcome::Unknown),
        ] {
            assert_eq!(Outcome::of(status, oom_killed), expected);
        }
        assert_eq!(
            OUTCOMES.map(Outcome::succeeded),
            [Some(true), Some(false), Some(false), Some(false), None]
        );
    }

    #[test]
    fn figures_of_some_runs() {
        let mut runs = Runs::new(SECOND, BOOT);
        for (second, outcome) in (2..).zip(OUTCOMES) {
            runs.record(run(second * SECOND, second * SECOND / 2, outcome));
        }
        let view = runs.view(11 * SECOND);
        let totals = view.totals;
        assert_eq!((totals.runs(), totals.success, totals.failed(), totals.unknown), (5, 1, 3, 1));
        assert_eq!((totals.success_ratio(), totals.error_ratio()), (Some(0.25), Some(0.75)));
        assert_eq!((totals.duration_ns, totals.average_seconds()), (10 * SECOND, Some(2.0)));
        assert_eq!(totals.extremes_ns, Some((SECOND, 3 * SECOND)));
        assert_eq!((view.counted_ns, totals.per_hour(view.counted_ns)), (10 * SECOND, Some(1800.0)));
        assert_eq!((view.since_unix_ns, view.last_unix_ns), (BOOT, Some(BOOT + 6 * SECOND)));
        assert_eq!((view.window.totals, view.window_ns), (totals, view.counted_ns));
    }

    #[test]
    fn without_a_run_nothing_is_known_but_their_number() {
        let mut runs = Runs::new(SECOND, BOOT);
        let view = runs.view(SECOND);
        assert_eq!((view.totals, view.last_unix_ns), (Totals::default(), None));
        let totals = view.totals;
        assert_eq!(
            (totals.success_ratio(), totals.error_ratio(), totals.average_seconds()),
            (None, None, None)
        );
        assert_eq!((totals.per_hour(0), totals.per_hour(SECOND)), (None, Some(0.0)));
        runs.record(run(2 * SECOND, 5, Outcome::Unknown));
        assert_eq!(runs.view(2 * SECOND).totals.success_ratio(), None, "neither succeeded nor failed");
    }

    #[test]
    fn the_window_ends_after_an_hour() {
        let mut runs = Runs::new(0, BOOT);
        runs.record(run(10 * SECOND, SECOND, Outcome::Error));
        runs.record(run(20 * SECOND, SECOND, Outcome::Success));
        let view = runs.view(10 * SECOND + WINDOW_NS);
        assert_eq!((view.window.runs.len(), view.window_ns), (2, WINDOW_NS));
        let view = runs.view(10 * SECOND + WINDOW_NS + 1);
        assert_eq!((view.window.totals.runs(), view.window.totals.success), (1, 1));
        let view = runs.view(3 * WINDOW_NS);
        assert_eq!((view.window.runs.len(), view.window_ns, view.totals.runs()), (0, WINDOW_NS, 2));
    }

    #[test]
    fn a_full_window_reaches_back_as_far_as_it_holds_all() {
        let mut runs = Runs::new(0, BOOT);
        let count = 2 * WINDOW_RUNS as u64;
        (1..=count).for_each(|second| runs.record(run(second * SECOND, SECOND, Outcome::Success)));
        let view = runs.view(count * SECOND);
        assert_eq!((view.totals.runs(), view.window.totals.runs()), (count, WINDOW_RUNS as u64));
        assert_eq!(view.window.totals.per_hour(view.window_ns), Some(3600.0), "one a second, as it was");
    }

    #[test]
    fn no_run_allocates_once_the_window_is_full() {
        let mut runs = Runs::new(0, BOOT);
        (0..WINDOW_RUNS as u64).for_each(|at_ns| runs.record(run(at_ns, 1, Outcome::Success)));
        let capacity = runs.kept.capacity();
        (0..20_000).for_each(|at_ns| runs.record(run(at_ns, 1, Outcome::Success)));
        assert_eq!(runs.kept.capacity(), capacity);
        assert_eq!(runs.view(20_000).totals.runs(), 20_000 + WINDOW_RUNS as u64);
    }

    #[test]
    fn what_has_not_changed_is_shared() {
        let mut runs = Runs::new(0, BOOT);
        runs.record(run(1, 1, Outcome::Success));
        let before = runs.view(SECOND).window;
        assert!(Arc::ptr_eq(&before, &runs.view(2 * SECOND).window));
        runs.record(run(3 * SECOND, 1, Outcome::Success));
        assert!(!Arc::ptr_eq(&before, &runs.view(3 * SECOND).window));
    }

    #[test]
    fn lengths_of_time_as_people_write_them() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (5025, "1h 23m 45s"),
            (3605, "1h 0m 5s"),
            (86_400, "1d 0h 0m 0s"),
            (200_000, "2d 7h 33m 20s"),
        ] {
            assert_eq!(written(seconds * SECOND + SECOND - 1), expected);
        }
    }

    /// What happens: a run ends, so long before it is told, or time passes and somebody looks.
    #[derive(Clone, Debug)]
    enum Step {
        Runs { count: usize, apart_ns: u64, late_ns: u64, duration_ns: u64, outcome: usize },
        Look { after_ns: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let late = prop_oneof![3 => Just(0), 1 => 0..WINDOW_NS / 2];
        let step = prop_oneof![
            3 => (1..700usize, 0..20 * SECOND, late, 0..100 * SECOND, 0..OUTCOMES.len()).prop_map(
                |(count, apart_ns, late_ns, duration_ns, outcome)| {
                    Step::Runs { count, apart_ns, late_ns, duration_ns, outcome }
                }
            ),
            2 => (0..WINDOW_NS).prop_map(|after_ns| Step::Look { after_ns }),
        ];
        proptest::collection::vec(step, 1..12)
    }

    /// Adds up by a walk over all, sharing nothing with [`Totals`].
    fn assert_adds_up(totals: &Totals, runs: &[Run]) {
        let of = |outcome| runs.iter().filter(|run| run.outcome == outcome).count() as u64;
        assert_eq!(totals.by_outcome().map(|(_, count)| count), OUTCOMES.map(of));
        assert_eq!(totals.runs(), runs.len() as u64);
        assert_eq!(totals.duration_ns, runs.iter().map(|run| run.duration_ns).sum::<u64>());
        let durations = || runs.iter().map(|run| run.duration_ns);
        assert_eq!(totals.extremes_ns, durations().min().zip(durations().max()));
        if let (Some(success), Some(error)) = (totals.success_ratio(), totals.error_ratio()) {
            assert!((success + error - 1.0).abs() < 1e-9);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// Against a model that remembers every run and sorts them when it is asked.
        #[test]
        fn the_window_holds_the_last_of_all_runs_and_the_totals_all(steps in steps()) {
            let (mut runs, mut all, mut now_ns) = (Runs::new(0, BOOT), Vec::new(), 0);
            for step in steps {
                match step {
                    Step::Runs { count, apart_ns, late_ns, duration_ns, outcome } => {
                        for number in 0..count as u64 {
                            now_ns += apart_ns;
                            let ended_ns = now_ns.saturating_sub(late_ns);
                            let run = run(ended_ns, duration_ns + number, OUTCOMES[outcome]);
                            runs.record(run);
                            all.push(run);
                        }
                        // Stable: of those that ended together, who was told later is later.
                        all.sort_by_key(|run: &Run| run.ended_at_ns);
                    }
                    Step::Look { after_ns } => now_ns += after_ns,
                }
                let view = runs.view(now_ns);
                assert_adds_up(&view.totals, &all);
                prop_assert_eq!(view.last_unix_ns, all.last().map(|last| last.ended_unix_ns));
                let of_hour: Vec<Run> =
                    all.iter().filter(|run| run.ended_at_ns + WINDOW_NS >= now_ns).copied().collect();
                let kept = &of_hour[of_hour.len().saturating_sub(WINDOW_RUNS)..];
                prop_assert_eq!(&view.window.runs, kept);
                assert_adds_up(&view.window.totals, kept);
                // It says truly how far back it has every run.
                let begin_ns = now_ns - view.window_ns;
                let missing = &of_hour[..of_hour.len() - kept.len()];
                prop_assert!(view.window_ns <= WINDOW_NS);
                prop_assert!(missing.iter().all(|run| run.ended_at_ns <= begin_ns));
            }
        }
    }
}
