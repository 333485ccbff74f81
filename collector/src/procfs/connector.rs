//! The process connector: the kernel's own broadcast of forks, execs, renames and exits
//! (`drivers/connector/cn_proc.c`, `include/uapi/linux/cn_proc.h`), over netlink.
//!
//! It reports every thread, numbers processes as the initial pid namespace does, and speaks only to listeners in the
//! initial user, pid and network namespaces; before Linux 6.6 it asks for CAP_NET_ADMIN. Each CPU numbers its
//! messages, so a gap tells exactly how many were lost, though not of which kind.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recvfrom, sendto, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use super::netlink::{Fields, HEADER, NLMSG_DONE, errno};
use crate::input::Comm;
use crate::units::Pid;

const CN_MSG: usize = 20;
/// `struct proc_event` up to its union.
const EVENT_HEAD: usize = 16;
const LARGEST: usize = 256;
/// `CN_IDX_PROC` and `CN_VAL_PROC` of `include/uapi/linux/connector.h`.
const CN_PROC: (u32, u32) = (1, 1);
const LISTEN: u32 = 1;
const IGNORE: u32 = 2;

const EVENT_NONE: u32 = 0;
const EVENT_FORK: u32 = 1;
const EVENT_EXEC: u32 = 2;
const EVENT_COMM: u32 = 0x200;
const EVENT_EXIT: u32 = 0x8000_0000;

/// Room for what comes between two drains, bytes as the kernel accounts them (about 800 a message): some ten
/// thousand events.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The connector cannot be used. Processes are then found by polling.
#[derive(Debug, Error)]
pub(super) enum ConnectorError {
    /// `--path.procfs` shows pids of another namespace than the connector's.
    #[error("pids of this proc root are not those of the initial pid namespace")]
    OtherPids,
    /// Not built into the kernel, or a network namespace without it.
    #[error("no process connector here: {0}")]
    Absent(Errno),
    /// No right to listen.
    #[error("no right to listen to the process connector: {0}")]
    Denied(Errno),
    /// It did not answer: we are not in the initial user or pid namespace.
    #[error("the process connector does not answer in this namespace")]
    Silent,
    /// Anything else.
    #[error("the process connector failed: {0}")]
    Failed(Errno),
}

impl ConnectorError {
    /// What would bring it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::OtherPids => "run in the host's pid namespace with the host's /proc",
            Self::Absent(_) => "run in the host's network namespace, on a kernel with CONFIG_PROC_EVENTS=y",
            Self::Denied(_) => "grant CAP_NET_ADMIN, or use Linux 6.6 or newer",
            Self::Silent => "run in the host's pid and user namespaces",
            Self::Failed(_) => "",
        }
    }
}

/// One message, reduced to what we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A process was created.
    Fork { parent: Pid, child: Pid, at_ns: u64 },
    /// A process got another thread.
    Thread { process: Pid },
    /// A process executed a program.
    Exec { process: Pid, at_ns: u64 },
    /// A main thread changed its name.
    Rename { process: Pid, comm: Comm },
    /// A thread ended; the main thread when `main`. `status` is a wait status.
    Exit { process: Pid, main: bool, status: u32, at_ns: u64 },
    /// Answer to a request: 0 or an errno.
    Acknowledged { token: u32, errno: u32 },
    /// Nothing for us.
    Other,
}

/// Where a message stands in the numbering of its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    cpu: u32,
    sequence: u32,
}

/// Decodes one datagram. `None` unless every length in it agrees with what was received.
///
/// The union at the end of an event grew in 4.18 (24 bytes since, 16 and more before), so what must be there depends
/// on the event.
pub(super) fn parse(datagram: &[u8]) -> Option<(Place, Event)> {
    let header = Fields(datagram);
    let length = usize::try_from(header.u32(0)?).ok()?;
    let message = datagram.get(HEADER..length)?;
    if header.u16(4)? != NLMSG_DONE {
        return Some((Place { cpu: u32::MAX, sequence: 0 }, Event::Other));
    }
    let fields = Fields(message);
    if (fields.u32(0)?, fields.u32(4)?) != CN_PROC {
        return None;
    }
    let (sequence, acknowledged) = (fields.u32(8)?, fields.u32(12)?);
    let length = usize::from(fields.u16(16)?);
    let event = message.get(CN_MSG..)?;
    if event.len() != length {
        return None;
    }
    let event = Fields(event);
    let (what, cpu, at_ns) = (event.u32(0)?, event.u32(4)?, event.u64(8)?);
    let word = |index: usize| event.u32(EVENT_HEAD + 4 * index);
    let decoded = match what {
        EVENT_NONE => Event::Acknowledged { token: acknowledged, errno: word(0)? },
        EVENT_FORK => {
            let (parent, thread, process) = (word(1)?, word(2)?, word(3)?);
            if thread == process {
                Event::Fork { parent, child: process, at_ns }
            } else {
                Event::Thread { process }
            }
        }
        EVENT_EXEC => Event::Exec { process: word(1)?, at_ns },
        EVENT_COMM => {
            let comm: [u8; 16] = event.0.get(EVENT_HEAD + 8..EVENT_HEAD + 24)?.try_into().ok()?;
            match (word(0)?, word(1)?) {
                (thread, process) if thread == process => Event::Rename { process, comm: Comm(comm) },
                _ => Event::Other,
            }
        }
        EVENT_EXIT => {
            let (thread, process) = (word(0)?, word(1)?);
            Event::Exit { process, main: thread == process, status: word(2)?, at_ns }
        }
        _ => Event::Other,
    };
    Some((Place { cpu, sequence }, decoded))
}

/// Counts the gaps in the numbering of each CPU.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// The number that comes next, by CPU.
    next: Vec<Option<u32>>,
}

/// More CPUs than any kernel is built for (`NR_CPUS` is at most 8192).
const CPUS: u32 = 8192;

impl Gaps {
    /// Notes a message and returns how many are missing before it.
    fn note(&mut self, place: Place) -> u64 {
        if place.cpu >= CPUS {
            return 0;
        }
        let at = place.cpu as usize;
        if self.next.len() <= at {
            self.next.resize(at + 1, None);
        }
        let missing = self.next[at].map_or(0, |next| place.sequence.wrapping_sub(next));
        self.next[at] = Some(place.sequence.wrapping_add(1));
        // A number from the past (never seen) reads as a gap of nearly 2^32.
        if missing > u32::MAX / 2 { 0 } else { u64::from(missing) }
    }
}

/// What a receive brought.
#[derive(Debug)]
pub(super) enum Received {
    /// A message.
    Event(Event),
    /// A datagram that does not hold together.
    Malformed,
    /// There was no room for some messages.
    Overrun,
    /// Nothing more for now.
    Empty,
    /// The socket failed.
    Failed(Errno),
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Connector {
    socket: Socket,
    buffer: [u8; LARGEST],
    gaps: Gaps,
    /// Messages known to be missing, of any kind.
    pub(super) missing: u64,
}

impl Connector {
    /// Subscribes and waits for the kernel to say that it did.
    pub(super) fn open() -> Result<Self, ConnectorError> {
        let protocol = Protocol::from(libc::NETLINK_CONNECTOR);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(protocol))
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(|error| ConnectorError::Absent(errno(&error)))?;
        // Beyond the host's limit with CAP_NET_ADMIN, up to it without. Less room means losses earlier, counted.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        // Port 0: the kernel gives one. Groups as a bit mask: the first is CN_IDX_PROC.
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1)).map_err(refused)?;
        let mut connector = Self { socket, buffer: [0; LARGEST], gaps: Gaps::default(), missing: 0 };
        let token = std::process::id();
        connector.request(LISTEN, token).map_err(refused)?;
        connector.await_acknowledgement(token)?;
        Ok(connector)
    }

    fn request(&self, operation: u32, token: u32) -> Result<(), Errno> {
        let mut message = [0u8; HEADER + CN_MSG + 4];
        let length = message.len() as u32;
        let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &length.to_ne_bytes());
        put(4, &NLMSG_DONE.to_ne_bytes());
        put(HEADER, &CN_PROC.0.to_ne_bytes());
        put(HEADER + 4, &CN_PROC.1.to_ne_bytes());
        put(HEADER + 12, &token.to_ne_bytes());
        put(HEADER + 16, &4u16.to_ne_bytes());
        put(HEADER + CN_MSG, &operation.to_ne_bytes());
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map(drop)
    }

    /// The answer is queued before sendto(2) returns, among the events of others; so a short wait is only caution.
    /// The kernel says nothing at all to those it does not serve.
    fn await_acknowledgement(&mut self, token: u32) -> Result<(), ConnectorError> {
        let mut waited = false;
        // The answer cannot be behind more than the buffer holds.
        for _ in 0..RECEIVE_BUFFER / LARGEST {
            match self.receive() {
                Received::Event(Event::Acknowledged { token: answered, errno })
                    if answered == token.wrapping_add(1) =>
                {
                    return match errno {
                        0 => Ok(()),
                        errno => Err(refused(Errno::from_raw(errno.cast_signed()))),
                    };
                }
                Received::Empty if waited => return Err(ConnectorError::Silent),
                Received::Empty => {
                    waited = true;
                    let mut sockets =
                        [PollFd::new(std::os::fd::AsFd::as_fd(&self.socket), PollFlags::POLLIN)];
                    let _ = poll(&mut sockets, PollTimeout::from(100u8));
                }
                Received::Failed(errno) => return Err(ConnectorError::Failed(errno)),
                // Events are flowing already, so the kernel has taken us on; losing the answer among them is no harm.
                Received::Overrun => return Ok(()),
                Received::Event(_) | Received::Malformed => {}
            }
        }
        Err(ConnectorError::Silent)
    }

    /// Takes one message, without waiting.
    pub(super) fn receive(&mut self) -> Received {
        loop {
            let received = recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut self.buffer);
            let (length, sender) = match received {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Received::Empty,
                Err(Errno::ENOBUFS) => return Received::Overrun,
                Err(errno) => return Received::Failed(errno),
            };
            // Port 0 is the kernel; a process with CAP_NET_ADMIN could write to us as well.
            if sender.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            return match self.buffer.get(..length).and_then(parse) {
                Some((place, event)) => {
                    self.missing += self.gaps.note(place);
                    Received::Event(event)
                }
                None => Received::Malformed,
            };
        }
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Kernels before 6.6 do not notice a listener that only closes, and would go on making messages for nobody.
        let _ = self.request(IGNORE, std::process::id());
    }
}

fn refused(errno: Errno) -> ConnectorError {
    match errno {
        Errno::EPERM | Errno::EACCES => ConnectorError::Denied(errno),
        Errno::ECONNREFUSED | Errno::EPROTONOSUPPORT | Errno::ENOENT => ConnectorError::Absent(errno),
        other => ConnectorError::Failed(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(what: u32, place: Place, acknowledged: u32, at_ns: u64, union: &[u8]) -> Vec<u8> {
        let event_length = EVENT_HEAD + union.len();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((HEADER + CN_MSG + event_length) as u32).to_ne_bytes());
        bytes.extend_from_slice(&NLMSG_DONE.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        for word in [CN_PROC.0, CN_PROC.1, place.sequence, acknowledged] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&(event_length as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&what.to_ne_bytes());
        bytes.extend_from_slice(&place.cpu.to_ne_bytes());
        bytes.extend_from_slice(&at_ns.to_ne_bytes());
        bytes.extend_from_slice(union);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    const PLACE: Place = Place { cpu: 1, sequence: 7 };

    fn check(what: u32, union: &[u8], expected: Event) {
        assert_eq!(parse(&message(what, PLACE, 0, 99, union)), Some((PLACE, expected)));
    }

    #[test]
    fn decodes_each_kind() {
        let fork = Event::Fork { parent: 10, child: 20, at_ns: 99 };
        check(EVENT_FORK, &words(&[11, 10, 20, 20, 0, 0]), fork);
        check(EVENT_FORK, &words(&[10, 10, 21, 20, 0, 0]), Event::Thread { process: 20 });
        check(EVENT_EXEC, &words(&[20, 20, 0, 0, 0, 0]), Event::Exec { process: 20, at_ns: 99 });
        let mut comm = words(&[20, 20]);
        comm.extend_from_slice(b"a\n)\xff\0\0\0\0\0\0\0\0\0\0\0\0");
        let renamed = Event::Rename { process: 20, comm: Comm::from_bytes(b"a\n)\xff") };
        check(EVENT_COMM, &comm, renamed);
        comm[0] = 21;
        check(EVENT_COMM, &comm, Event::Other);
        let exit = Event::Exit { process: 20, main: true, status: 0x0300, at_ns: 99 };
        check(EVENT_EXIT, &words(&[20, 20, 0x0300, 17, 10, 10]), exit);
        let thread = Event::Exit { process: 20, main: false, status: 9, at_ns: 99 };
        check(EVENT_EXIT, &words(&[22, 20, 9, 17]), thread);
        check(4, &words(&[20, 20, 0, 0]), Event::Other);
        let acknowledged = parse(&message(EVENT_NONE, PLACE, 43, 0, &words(&[1])));
        assert_eq!(acknowledged, Some((PLACE, Event::Acknowledged { token: 43, errno: 1 })));
    }

    #[test]
    fn refuses_lengths_that_disagree() {
        let whole = message(EVENT_EXIT, PLACE, 0, 99, &words(&[20, 20, 9, 17]));
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), None, "cut at {end}");
        }
        let mut longer = whole.clone();
        longer[HEADER + 16] += 4;
        assert_eq!(parse(&longer), None, "the connector message claims more than there is");
        let mut other = whole;
        other[HEADER] = 9;
        assert_eq!(parse(&other), None, "another connector");
        assert_eq!(parse(&message(EVENT_FORK, PLACE, 0, 0, &words(&[1, 1, 2]))), None, "a fork cut short");
    }

    #[test]
    fn gaps_are_counted_per_cpu() {
        let mut gaps = Gaps::default();
        let mut note = |cpu, sequence| gaps.note(Place { cpu, sequence });
        assert_eq!(note(0, 100), 0, "the first number says nothing");
        assert_eq!(note(1, 5), 0);
        assert_eq!(note(0, 101), 0);
        assert_eq!(note(0, 105), 3);
        assert_eq!(note(1, 6), 0);
        assert_eq!(note(1, 2), 0, "from the past");
        assert_eq!(note(2, u32::MAX), 0);
        assert_eq!(note(2, 1), 1, "the numbering wraps");
        assert_eq!(note(u32::MAX, 1), 0, "no such CPU");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn arbitrary_events_never_panic(
            what in prop::sample::select(vec![EVENT_NONE, EVENT_FORK, EVENT_EXEC, EVENT_COMM, EVENT_EXIT, 4]),
            union in prop::collection::vec(any::<u8>(), 0..40),
            at in 0usize..80,
            byte in any::<u8>(),
        ) {
            let mut bytes = message(what, PLACE, 0, 1, &union);
            let _ = parse(&bytes);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&bytes);
        }
    }
}
