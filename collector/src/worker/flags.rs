//! Workers that have been in one state for too long. Pure: a state and since when, a limit, and now.

use crate::snapshot::WorkerState;

/// What is wrong with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// Active for longer than its pool allows.
    Stuck,
    /// Waiting for work for longer than its pool allows. A worker that works never is.
    Stale,
    /// Ended, and not reaped by its parent.
    Defunct,
}

impl Flag {
    /// The label value and JSON text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stuck => "stuck",
            Self::Stale => "stale",
            Self::Defunct => "defunct",
        }
    }
}

/// How long a worker may be in one state; `None` for as long as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Active, ns.
    pub stuck_after_ns: Option<u64>,
    /// Ready or idle, ns.
    pub idle_ttl_ns: Option<u64>,
}

/// The flag of a worker that has been in a state since then, and since when it has that; times in ns of one clock.
pub fn of(state: WorkerState, since_ns: u64, now_ns: u64, limits: Limits) -> Option<(Flag, u64)> {
    let (flag, limit_ns) = match state {
        WorkerState::Active => (Flag::Stuck, limits.stuck_after_ns?),
        WorkerState::Ready | WorkerState::Idle => (Flag::Stale, limits.idle_ttl_ns?),
        WorkerState::Creating | WorkerState::Running | WorkerState::Terminated => return None,
    };
    let flagged_ns = since_ns.saturating_add(limit_ns);
    (flagged_ns <= now_ns).then_some((flag, flagged_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use WorkerState::{Active, Creating, Idle, Ready, Running, Terminated};

    #[test]
    fn who_is_in_a_state_for_longer_than_its_limit_is_flagged_from_then_on() {
        let limits = Limits { stuck_after_ns: Some(30), idle_ttl_ns: Some(600) };
        assert_eq!(of(Active, 100, 129, limits), None);
        assert_eq!(of(Active, 100, 130, limits), Some((Flag::Stuck, 130)));
        assert_eq!(of(Active, 100, 5000, limits), Some((Flag::Stuck, 130)));
        for state in [Ready, Idle] {
            assert_eq!(of(state, 100, 699, limits), None);
            assert_eq!(of(state, 100, 700, limits), Some((Flag::Stale, 700)));
        }
        for state in [Creating, Running, Terminated] {
            assert_eq!(of(state, 0, u64::MAX, limits), None);
        }
    }

    #[test]
    fn without_a_limit_nobody_is_flagged() {
        for state in [Active, Ready, Idle] {
            assert_eq!(of(state, 0, u64::MAX, Limits::default()), None);
        }
        // However long it works, it is not stale, nor is one that waits stuck.
        let stale = Limits { idle_ttl_ns: Some(1), ..Limits::default() };
        assert_eq!(of(Active, 0, u64::MAX, stale), None);
        let stuck = Limits { stuck_after_ns: Some(1), ..Limits::default() };
        assert_eq!(of(Idle, 0, u64::MAX, stuck), None);
    }
}
