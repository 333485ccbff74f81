//! `/proc/PID/schedstat`, `Documentation/scheduler/sched-stats.rst`; printed by `proc_pid_schedstat` in
//! `fs/proc/base.c`. Of the main thread only.

use super::{ParseError, Words};

/// What the scheduler counts for one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedstat {
    /// Time on a CPU, ns (`sum_exec_runtime`), exact.
    pub run_ns: u64,
    /// Time runnable without a CPU, ns (`run_delay`).
    pub delay_ns: u64,
    /// Times it got a CPU (`pcount`).
    pub slices: u64,
}

impl Schedstat {
    /// Parses the line. `None`: a kernel built without these statistics prints three zeros.
    pub fn parse(text: &[u8]) -> Result<Option<Self>, ParseError> {
        let mut words = Words::new("schedstat", text);
        let parsed = Self {
            run_ns: words.unsigned("run_ns")?,
            delay_ns: words.unsigned("delay_ns")?,
            slices: words.unsigned("slices")?,
        };
        Ok((parsed.slices > 0 || parsed.run_ns > 0 || parsed.delay_ns > 0).then_some(parsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_beside_well_formed() {
        let expected = Schedstat { run_ns: 123_456, delay_ns: 789, slices: 3 };
        assert_eq!(Schedstat::parse(b"123456 789 3\n"), Ok(Some(expected)));
        assert_eq!(Schedstat::parse(b"0 0 0\n"), Ok(None));
        let missing = ParseError::Missing { file: "schedstat", field: "slices" };
        assert_eq!(Schedstat::parse(b"1 2\n"), Err(missing));
        assert!(Schedstat::parse(b"1  2 3").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back((run_ns, delay_ns, slices) in any::<(u64, u64, u64)>()) {
            prop_assume!(run_ns > 0);
            let text = format!("{run_ns} {delay_ns} {slices}\n");
            prop_assert_eq!(Schedstat::parse(text.as_bytes()), Ok(Some(Schedstat { run_ns, delay_ns, slices })));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = Schedstat::parse(&bytes);
        }
    }
}
