//! The life cycle of a worker as one transition function, and how long it was in which state.
//!
//! Facts in, state out. Where the scheduler is watched the kernel tells the facts, with their times ([`Work`]), so that
//! nothing between two collections is missed; where it is not, all that is known of a worker is that it runs.
//!
//! ```text
//! creating ─parked→ ready ─unparked→ active ⇄ idle
//!     └──────────ran──────────→ running            any ─ended→ terminated
//! ```

use collector_ebpf::schedule::Work;

use crate::snapshot::WorkerState;

/// What can move a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// It was seen to have run by itself: used CPU, or executed a program. Told where nobody watches what it waits for.
    Ran,
    /// All its threads wait for work.
    Parked,
    /// One of them does so no more.
    Unparked,
    /// Nobody watches any more what it waits for.
    Unwatched,
    /// Its last thread ended.
    Ended,
}

/// The state after `fact`; the same state when the fact does not move it.
pub fn next(state: WorkerState, fact: Fact) -> WorkerState {
    use WorkerState::{Active, Creating, Idle, Ready, Running, Terminated};
    match (state, fact) {
        (Terminated, _) | (_, Fact::Ended) => Terminated,
        (Creating, Fact::Parked) => Ready,
        (Active | Running, Fact::Parked) => Idle,
        (Ready | Idle | Running, Fact::Unparked) => Active,
        (Creating, Fact::Ran) | (Ready | Active | Idle, Fact::Unwatched) => Running,
        (unmoved, _) => unmoved,
    }
}

/// The state that what the kernel has seen of a worker leads to.
pub fn after(work: &Work, busy: bool) -> WorkerState {
    let ready = (work.ready_ns != 0).then_some(Fact::Parked);
    let worked = (work.worked_ns != 0).then_some(Fact::Unparked);
    let parked = (work.worked_ns != 0 && !busy).then_some(Fact::Parked);
    [ready, worked, parked].into_iter().flatten().fold(WorkerState::Creating, next)
}

/// When a worker entered the state that it is in, `CLOCK_MONOTONIC` ns.
pub fn since_ns(work: &Work, state: WorkerState) -> u64 {
    match state {
        WorkerState::Creating => work.begin_ns,
        WorkerState::Ready => work.ready_ns,
        _ => work.since_ns,
    }
}

/// The states whose times are told, in the order of [`times`].
pub const TIMED: [WorkerState; 4] =
    [WorkerState::Creating, WorkerState::Ready, WorkerState::Active, WorkerState::Idle];

/// How long a worker has been in each of the states of [`TIMED`] until `until_ns`, ns: when it was read, or its end.
/// `work.busy_ns` is as of then, too.
pub fn times(work: &Work, until_ns: u64) -> [u64; TIMED.len()] {
    let happened = |at_ns: u64| if at_ns == 0 { until_ns } else { at_ns.min(until_ns) };
    let (ready_ns, worked_ns) = (happened(work.ready_ns), happened(work.worked_ns));
    let creating = ready_ns.saturating_sub(work.begin_ns);
    let ready = worked_ns.saturating_sub(ready_ns);
    // Until it is parked for the first time it is busy without a break.
    let lived = until_ns.saturating_sub(work.begin_ns);
    let worked = lived.saturating_sub(creating).saturating_sub(ready);
    // Wrapping, and nearer to zero than what was taken off where CPUs disagree about the time.
    let active = work.busy_ns.wrapping_sub(creating).cast_signed().max(0).cast_unsigned().min(worked);
    [creating, ready, active, worked - active]
}

#[cfg(test)]
mod tests {
    use super::*;
    use WorkerState::{Active, Creating, Idle, Ready, Running, Terminated};
    use proptest::prelude::*;

    const FACTS: [Fact; 5] = [Fact::Ran, Fact::Parked, Fact::Unparked, Fact::Unwatched, Fact::Ended];

    #[test]
    fn nothing_comes_back_from_the_dead() {
        for fact in FACTS {
            assert_eq!(next(Terminated, fact), Terminated);
        }
    }

    #[test]
    fn a_watched_worker_makes_the_six_moves_and_no_other() {
        let mut moves = Vec::new();
        for state in [Creating, Ready, Active, Idle] {
            for fact in [Fact::Parked, Fact::Unparked, Fact::Ended] {
                let after = next(state, fact);
                if after != state {
                    moves.push((state, after));
                }
            }
        }
        let ends = [Creating, Ready, Active, Idle].map(|state| (state, Terminated));
        moves.retain(|moved| !ends.contains(moved));
        assert_eq!(moves, [(Creating, Ready), (Ready, Active), (Active, Idle), (Idle, Active)]);
    }

    #[test]
    fn who_is_not_watched_runs() {
        assert_eq!(next(Creating, Fact::Ran), Running);
        assert_eq!(next(Idle, Fact::Unwatched), Running);
        assert_eq!(next(Running, Fact::Parked), Idle);
        assert_eq!(next(Running, Fact::Unparked), Active);
    }

    /// As the kernel has it, for a worker that was born at `begin_ns`, and then changed so often, after so long each.
    fn lived(begin_ns: u64, lengths: &[u64]) -> (Work, bool, u64, [u64; 4]) {
        let mut work = Work { begin_ns, since_ns: begin_ns, ..Work::default() };
        work.busy_ns = begin_ns.wrapping_neg();
        let (mut at_ns, mut busy, mut state, mut times) = (begin_ns, true, Creating, [0; 4]);
        for (index, length) in lengths.iter().enumerate() {
            times[TIMED.iter().position(|timed| *timed == state).unwrap()] += length;
            at_ns += length;
            if index + 1 == lengths.len() {
                break;
            }
            work.since_ns = at_ns;
            if busy {
                work.busy_ns = work.busy_ns.wrapping_add(at_ns);
                if work.ready_ns == 0 {
                    work.ready_ns = at_ns;
                }
            } else {
                work.busy_ns = work.busy_ns.wrapping_sub(at_ns);
                if work.worked_ns == 0 {
                    work.worked_ns = at_ns;
                }
            }
            busy = !busy;
            state = next(state, if busy { Fact::Unparked } else { Fact::Parked });
        }
        if busy {
            work.busy_ns = work.busy_ns.wrapping_add(at_ns);
        }
        assert_eq!(after(&work, busy), state);
        (work, busy, at_ns, times)
    }

    proptest! {
        #[test]
        fn times_add_up_and_are_those_of_the_states(
            begin_ns in 1u64..1 << 60, lengths in proptest::collection::vec(1u64..1 << 40, 1..20)
        ) {
            let (work, _, at_ns, expected) = lived(begin_ns, &lengths);
            let times = times(&work, at_ns);
            prop_assert_eq!(times, expected);
            prop_assert_eq!(times.iter().sum::<u64>(), at_ns - begin_ns);
        }

        #[test]
        fn nothing_that_is_read_can_exceed_a_life(
            words in proptest::array::uniform6(any::<u64>()), until_ns in any::<u64>()
        ) {
            let [busy_ns, since_ns, begin_ns, ready_ns, worked_ns, end_ns] = words;
            let work = Work { busy_ns, since_ns, begin_ns, ready_ns, worked_ns, end_ns, spans: 0 };
            let sum = times(&work, until_ns).iter().fold(0u128, |sum, time| sum + u128::from(*time));
            prop_assert!(sum <= u128::from(until_ns.saturating_sub(begin_ns)) || begin_ns > ready_ns.min(until_ns));
        }
    }
}
