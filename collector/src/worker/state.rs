//! The life cycle of a worker as one transition function.
//!
//! Facts in, state out; time is the caller's. Finer states (ready, active, idle) will stand between running and
//! terminated, with the facts that move a worker between them.

use crate::snapshot::WorkerState;

/// What can move a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// It was seen to have run by itself: used CPU, or executed a program.
    Ran,
    /// Its last thread ended.
    Ended,
}

/// The state after `fact`; the same state when the fact does not move it.
pub fn next(state: WorkerState, fact: Fact) -> WorkerState {
    match (state, fact) {
        (WorkerState::Terminated, _) | (_, Fact::Ended) => WorkerState::Terminated,
        (WorkerState::Creating | WorkerState::Running, Fact::Ran) => WorkerState::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WorkerState::{Creating, Running, Terminated};

    #[test]
    fn nothing_comes_back_from_the_dead() {
        for fact in [Fact::Ran, Fact::Ended] {
            assert_eq!(next(Terminated, fact), Terminated);
        }
    }

    #[test]
    fn creating_runs_and_ends() {
        assert_eq!(next(Creating, Fact::Ran), Running);
        assert_eq!(next(Running, Fact::Ran), Running);
        assert_eq!(next(Creating, Fact::Ended), Terminated);
        assert_eq!(next(Running, Fact::Ended), Terminated);
    }
}
