//! Whether the process connector tells of comings and goings: from the opening of its socket over overruns to its
//! failure, after which processes are found by polling. What its messages mean is not known here.

use crate::procfs::connector::{Connector, ConnectorError, Event, Received};
use crate::procfs::root::Root;

/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`: the inode of the initial pid namespace.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Messages taken in one drain, so that a storm cannot keep the collecting thread from its other work.
const MESSAGES_PER_DRAIN: usize = 65_536;

/// What a drain of the connector brought.
pub(super) enum Heard {
    /// A message.
    Event(Event),
    /// A datagram that does not hold together.
    Malformed,
    /// So many messages were lost, as far as it was not said before.
    Lost(u64),
}

/// One drain, which has an end however much comes.
pub(super) struct Drain {
    left: usize,
    overrun: bool,
}

impl Default for Drain {
    fn default() -> Self {
        Self { left: MESSAGES_PER_DRAIN, overrun: false }
    }
}

/// The listener, or why there is none.
#[derive(Debug)]
pub(super) struct Listening {
    /// `None` as the error: it is turned off.
    connector: Result<Connector, Option<ConnectorError>>,
    /// Messages were lost: the next pass compares listings, as without the connector.
    compare: bool,
    /// Messages that went missing, as far as it was said already.
    missing_told: u64,
    /// Overruns that no gap has explained so far.
    unexplained_overruns: u64,
}

impl Listening {
    /// Subscribes, if it is wanted and we may.
    pub(super) fn begin(root: &Root, wanted: bool) -> Self {
        let connector = if !wanted {
            Err(None)
        } else if !shows_initial_pids(root) {
            Err(Some(ConnectorError::OtherPids))
        } else {
            Connector::open().map_err(Some)
        };
        Self { connector, compare: false, missing_told: 0, unexplained_overruns: 0 }
    }

    /// It tells of comings and goings. False for good after a failure.
    pub(super) fn works(&self) -> bool {
        self.connector.is_ok()
    }

    /// Why it does not, and what would help.
    pub(super) fn obstacle(&self) -> Option<(String, &'static str)> {
        match &self.connector {
            Ok(_) => None,
            Err(Some(error)) => Some((error.to_string(), error.remedy())),
            Err(None) => {
                Some(("the process connector is turned off".into(), "turn it on in the configuration"))
            }
        }
    }

    /// Listings have to be compared in this pass: always without the connector, once after it lost messages.
    pub(super) fn wants_comparison(&mut self) -> bool {
        std::mem::take(&mut self.compare) || !self.works()
    }

    /// Messages lost, of any kind; `None` without the connector.
    pub(super) fn lost(&self) -> Option<u64> {
        let connector = self.connector.as_ref().ok()?;
        Some(connector.missing + self.unexplained_overruns)
    }

    /// What comes next in this drain, without waiting; `None` at its end. Losses are told last.
    pub(super) fn hear(&mut self, drain: &mut Drain) -> Option<Heard> {
        while drain.left > 0 {
            drain.left -= 1;
            match self.connector.as_mut().ok()?.receive() {
                Received::Event(event) => return Some(Heard::Event(event)),
                Received::Malformed => return Some(Heard::Malformed),
                Received::Overrun => drain.overrun = true,
                Received::Empty => drain.left = 0,
                Received::Failed(errno) => {
                    tracing::warn!(%errno, "the process connector failed; processes are found by polling from now on");
                    self.connector = Err(Some(ConnectorError::Failed(errno)));
                    return Some(Heard::Lost(1));
                }
            }
        }
        let missing = self.connector.as_ref().ok()?.missing;
        let lost = self.newly_lost(missing, std::mem::take(&mut drain.overrun));
        self.compare |= lost > 0;
        (lost > 0).then_some(Heard::Lost(lost))
    }

    /// An overrun tells at once that something was lost, a gap tells later how much: the next message of that CPU has to
    /// come first. What was guessed for the one is taken off the other.
    fn newly_lost(&mut self, missing: u64, overrun: bool) -> u64 {
        let gap = missing - self.missing_told;
        self.missing_told = missing;
        let explained = gap.min(self.unexplained_overruns);
        self.unexplained_overruns -= explained;
        let lost = gap - explained;
        if overrun && lost == 0 {
            self.unexplained_overruns += 1;
            return 1;
        }
        lost
    }
}

/// Pids in this root mean what they mean to the connector: both we and the root are in the initial pid namespace.
fn shows_initial_pids(root: &Root) -> bool {
    let own_pid = std::process::id().to_string();
    root.link("self").is_ok_and(|link| link == *own_pid)
        && root.link("self/ns/pid").is_ok_and(|link| link == *INITIAL_PID_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn off() -> Listening {
        Listening::begin(&Root::open(Path::new("/proc")).expect("/proc is mounted"), false)
    }

    #[test]
    fn a_loss_is_told_once_by_overrun_or_gap() {
        let mut listening = off();
        assert_eq!(listening.newly_lost(0, false), 0);
        assert_eq!(listening.newly_lost(0, true), 1, "at least one");
        assert_eq!(listening.newly_lost(5, false), 4, "five, of which one was told");
        assert_eq!(listening.newly_lost(5, false), 0);
        assert_eq!(listening.newly_lost(8, true), 3, "the gap is there already");
        assert_eq!(listening.newly_lost(8, false), 0);
    }

    #[test]
    fn without_the_connector_listings_are_compared_in_every_pass() {
        let mut listening = off();
        assert!(listening.hear(&mut Drain::default()).is_none());
        assert!(!listening.works() && listening.wants_comparison() && listening.wants_comparison());
        assert_eq!(listening.lost(), None);
        let (reason, remedy) = listening.obstacle().expect("it is off");
        assert!(reason.contains("turned off") && !remedy.is_empty());
    }
}
