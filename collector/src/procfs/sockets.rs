//! [`Sockets`]: which sockets listen and how many connections wait at each, from the kernel's listing of sockets over
//! netlink (sock_diag(7)), and which sockets a process has open, from `/proc/PID/fd`.
//!
//! The listing is of our own network namespace. To ask in another one would take CAP_SYS_ADMIN (setns(2)) for as long
//! as we run; so who listens in another one is not shown. What is asked for is only who listens: of TCP the kernel then
//! looks at its table of these and at no connection (`inet_diag_dump_icsk` in `net/ipv4/inet_diag.c`), of UNIX sockets
//! at each, and tells those.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recvfrom, sendto};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use super::netlink::{Fields, HEADER, NLMSG_DONE, errno};
use super::root::{Buffer, ProcfsError, Root};
use crate::input::{ListeningSocket, SocketAddress, SocketFamily, SocketReader};
use crate::snapshot::Feature;
use crate::units::ProcessKey;

const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_DUMP` of `include/uapi/linux/netlink.h`.
const LIST: u16 = 0x301;
/// Of `include/uapi/linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `TCP_LISTEN` of `include/net/tcp_states.h`, for UNIX sockets as well.
const LISTENS: u8 = 10;
/// `UDIAG_SHOW_NAME | UDIAG_SHOW_RQLEN` of `include/uapi/linux/unix_diag.h`.
const NAME_AND_QUEUE: u32 = 0x11;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_RQLEN: u16 = 4;
/// `struct inet_diag_req_v2` of `include/uapi/linux/inet_diag.h`.
const INET_REQUEST: usize = 56;
/// `struct unix_diag_req`.
const UNIX_REQUEST: usize = 24;
/// `struct unix_diag_msg`; attributes follow.
const UNIX_MESSAGE: usize = 16;

/// Longest name of a UNIX socket (`sun_path` of unix(7)).
const LONGEST_NAME: usize = 108;

/// The kernel makes its pieces of a listing as large as what they are received into, at least a page
/// (`netlink_dump` in `net/netlink/af_netlink.c`).
const RECEIVE: usize = 16 << 10;

/// Pieces of a listing that are taken, at most: some 60,000 sockets that listen.
const MAX_PIECES: usize = 512;

/// A listing failed; the next one is begun on a new socket.
#[derive(Debug, Error)]
enum SockDiagError {
    /// The kernel has no listing of this family.
    #[error("the kernel does not list these sockets: {0}")]
    Absent(Errno),
    /// A call failed.
    #[error("asking the kernel for its sockets: {0}")]
    Failed(#[from] Errno),
    /// What came does not hold together, or does not end.
    #[error("the kernel's listing of sockets is not understood")]
    Malformed,
}

/// What there is after a piece of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More.
    More,
    /// Nothing: this was the last piece.
    Done,
    /// Nothing: the kernel ended it with this error.
    Refused(Errno),
}

/// Takes one piece of the listing that was asked for with this number. `None` unless every length in it agrees with
/// what was received.
pub(super) fn parse(piece: &[u8], number: u32, out: &mut dyn FnMut(ListeningSocket<'_>)) -> Option<Progress> {
    let mut rest = piece;
    while !rest.is_empty() {
        let header = Fields(rest);
        let (length, kind, of) = (header.u32(0)? as usize, header.u16(4)?, header.u32(8)?);
        let message = rest.get(HEADER..length)?;
        rest = rest.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
        if of != number {
            continue;
        }
        match kind {
            NLMSG_DONE | NLMSG_ERROR => {
                // Before Linux 4.20 there may be nothing behind the end of a listing.
                let status = Fields(message).u32(0).unwrap_or(0).cast_signed();
                return Some(match (kind, status) {
                    (NLMSG_DONE, 0..) => Progress::Done,
                    (_, status) => Progress::Refused(Errno::from_raw(status.saturating_neg())),
                });
            }
            SOCK_DIAG_BY_FAMILY => {
                if let Some(socket) = socket(message)? {
                    out(socket);
                }
            }
            _ => {}
        }
    }
    Some(Progress::More)
}

/// The socket that a message tells of; `Some(None)` if it is none that somebody can accept from.
fn socket(message: &[u8]) -> Option<Option<ListeningSocket<'_>>> {
    let fields = Fields(message);
    // `struct inet_diag_msg`: rqueue and wqueue of a socket that listens are `sk_ack_backlog` and
    // `sk_max_ack_backlog` (`tcp_diag_get_info` in `net/ipv4/tcp_diag.c`).
    let inet = |ip: IpAddr| {
        let address = SocketAddress::Inet(SocketAddr::new(ip, fields.be16(4)?));
        Some((*message.get(1)?, fields.u32(68)?, address, fields.u32(56)?, fields.u32(60)?))
    };
    let (state, inode, address, length, limit) = match i32::from(*message.first()?) {
        libc::AF_INET => inet(Ipv4Addr::from(fields.array(8)?).into())?,
        libc::AF_INET6 => inet(Ipv6Addr::from(fields.array(8)?).into())?,
        libc::AF_UNIX => {
            let (name, queue) = unix_attributes(message.get(UNIX_MESSAGE..)?)?;
            let Some((length, limit)) = queue else { return Some(None) };
            (*message.get(2)?, fields.u32(4)?, SocketAddress::Unix(name), length, limit)
        }
        _ => return Some(None),
    };
    // Who was closed while it is listed has no inode.
    let listens = state == LISTENS && inode != 0;
    Some(listens.then_some(ListeningSocket { inode, address, length, limit }))
}

/// Length and limit.
type Queue = (u32, u32);

/// Name, and length and limit of the queue, from the attributes of a UNIX socket. The kernel counts what waits in the
/// receive queue of a listening one, and `sk_max_ack_backlog` (`sk_diag_show_rqlen` in `net/unix/diag.c`).
fn unix_attributes(mut attributes: &[u8]) -> Option<(&[u8], Option<Queue>)> {
    let (mut name, mut queue): (&[u8], _) = (&[], None);
    while !attributes.is_empty() {
        let header = Fields(attributes);
        let (length, kind) = (usize::from(header.u16(0)?), header.u16(2)?);
        let value = attributes.get(4..length)?;
        match kind {
            UNIX_DIAG_NAME => name = value.get(..LONGEST_NAME).unwrap_or(value),
            UNIX_DIAG_RQLEN => queue = Some((Fields(value).u32(0)?, Fields(value).u32(4)?)),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((name, queue))
}

/// The inode number in the text of a link in `/proc/PID/fd`, if it leads to a socket (proc_pid_fd(5)).
pub(super) fn inode(link: &[u8]) -> Option<u32> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A socket that the kernel answers on.
#[derive(Debug)]
struct SockDiag {
    socket: Socket,
    /// Number of the last request.
    number: u32,
}

impl SockDiag {
    fn open() -> Result<Self, SockDiagError> {
        let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(protocol))
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(|error| SockDiagError::Absent(errno(&error)))?;
        Ok(Self { socket, number: 0 })
    }

    fn request(&mut self, family: SocketFamily) -> Result<(), Errno> {
        self.number = self.number.wrapping_add(1);
        let mut message = [0u8; HEADER + INET_REQUEST];
        let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
        let (domain, protocol, length) = match family {
            SocketFamily::Tcp => (libc::AF_INET, libc::IPPROTO_TCP, INET_REQUEST),
            SocketFamily::Tcp6 => (libc::AF_INET6, libc::IPPROTO_TCP, INET_REQUEST),
            SocketFamily::Unix => (libc::AF_UNIX, 0, UNIX_REQUEST),
        };
        let length = HEADER + length;
        put(0, &(length as u32).to_ne_bytes());
        put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        put(6, &LIST.to_ne_bytes());
        put(8, &self.number.to_ne_bytes());
        put(HEADER, &[domain as u8, protocol as u8]);
        put(HEADER + 4, &(1u32 << LISTENS).to_ne_bytes());
        if family == SocketFamily::Unix {
            put(HEADER + 12, &NAME_AND_QUEUE.to_ne_bytes());
        }
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &message[..length], &kernel, MsgFlags::empty()).map(drop)
    }

    /// Lists the sockets of a family that listen. The kernel prepares each piece while it is asked for the one before,
    /// so there is nothing to wait for.
    fn list(
        &mut self,
        family: SocketFamily,
        buffer: &mut [u8],
        out: &mut dyn FnMut(ListeningSocket<'_>),
    ) -> Result<(), SockDiagError> {
        self.request(family)?;
        let mut pieces = 0;
        while pieces < MAX_PIECES {
            let (length, sender) = match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            pieces += 1;
            // Port 0 is the kernel; a process with CAP_NET_ADMIN could write to us as well.
            if sender.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            match buffer.get(..length).and_then(|piece| parse(piece, self.number, out)) {
                Some(Progress::More) => {}
                Some(Progress::Done) => return Ok(()),
                Some(Progress::Refused(errno @ (Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP))) => {
                    return Err(SockDiagError::Absent(errno));
                }
                Some(Progress::Refused(errno)) => return Err(errno.into()),
                None => return Err(SockDiagError::Malformed),
            }
        }
        Err(SockDiagError::Malformed)
    }
}

/// Whether the accept queues of pools can be read here, whose processes are under this proc root.
pub fn feature(root: &Path) -> Feature {
    let mut buffer = vec![0; RECEIVE];
    let mut refused = |family, module| {
        let listed = SockDiag::open().and_then(|mut diag| diag.list(family, &mut buffer, &mut |_| {}));
        listed.err().map(|error| (module, error))
    };
    // A kernel without IPv6 lacks nothing.
    let refused = refused(SocketFamily::Tcp, "tcp_diag").or_else(|| refused(SocketFamily::Unix, "unix_diag"));
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let (enabled, reason, remedy) = if let Some((module, error)) = refused {
        (false, error.to_string(), format!("modprobe {module} (CONFIG_INET_DIAG, CONFIG_UNIX_DIAG)"))
    } else if !(has(Capability::CAP_SYS_PTRACE) && has(Capability::CAP_DAC_READ_SEARCH)) {
        let reason = "the accept queues of other users' pools are not found: their descriptors (/proc/PID/fd) cannot be read";
        (false, reason.to_owned(), "root, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH".to_owned())
    } else if let (Some(own), Some(first)) =
        (network_namespace(Path::new("/proc/self")), network_namespace(&root.join("1")))
        && own != first
    {
        let reason = "only those of our own network namespace, which is not that of process 1";
        (true, reason.to_owned(), "run in the host's network namespace".to_owned())
    } else {
        (true, String::new(), String::new())
    };
    Feature { name: "accept_queue", enabled, reason, remedy }
}

/// What tells the network namespace of a process from others; `None` where it is not told.
fn network_namespace(process: &Path) -> Option<std::path::PathBuf> {
    std::fs::read_link(process.join("ns/net")).ok()
}

/// Lists sockets, and what processes under one proc root have open.
#[derive(Debug)]
pub struct Sockets {
    root: Root,
    stat: Buffer,
    /// Opened when it is first needed, and again after a failure: what is left of a listing would come before the next.
    diag: Option<SockDiag>,
    buffer: Box<[u8]>,
    namespace: Option<std::path::PathBuf>,
}

impl Sockets {
    /// Opens the proc root.
    pub fn open(root: &Path) -> Result<Self, ProcfsError> {
        Ok(Self {
            root: Root::open(root)?,
            stat: Buffer::default(),
            diag: None,
            buffer: vec![0; RECEIVE].into(),
            namespace: network_namespace(Path::new("/proc/self")),
        })
    }

    fn list(
        &mut self,
        family: SocketFamily,
        out: &mut dyn FnMut(ListeningSocket<'_>),
    ) -> Result<(), SockDiagError> {
        let mut diag = match self.diag.take() {
            Some(diag) => diag,
            None => SockDiag::open()?,
        };
        diag.list(family, &mut self.buffer, out)?;
        self.diag = Some(diag);
        Ok(())
    }
}

impl SocketReader for Sockets {
    fn listening(&mut self, family: SocketFamily, out: &mut dyn FnMut(ListeningSocket<'_>)) -> bool {
        match self.list(family, out) {
            Ok(()) => true,
            // None that we could be told of; the feature says so.
            Err(SockDiagError::Absent(_)) => true,
            Err(error) => {
                tracing::debug!(family = family.as_str(), %error, "listening sockets are not known");
                false
            }
        }
    }

    fn held(&mut self, process: ProcessKey, at_most: usize, out: &mut Vec<u32>) -> usize {
        out.clear();
        let Ok(directory) = self.root.process(process.pid) else { return 0 };
        match directory.stat(&mut self.stat) {
            Ok(stat) if stat.starttime == process.start_ticks() => {}
            _ => return 0,
        }
        if let (Some(own), Ok(its)) = (&self.namespace, directory.link("ns/net"))
            && own.as_os_str() != its
        {
            // What it was handed from ours is found all the same.
            tracing::debug!(pid = process.pid, "its network namespace is another: no accept queue shows");
        }
        let Ok(mut descriptors) = directory.listing("fd") else { return 0 };
        let (mut looked_at, mut name) = (0, String::new());
        // In their order; sockets that listen are opened before the connections that they bring.
        for entry in descriptors.iter() {
            let Ok(entry) = entry else { break };
            let Some(descriptor) =
                entry.file_name().to_str().ok().filter(|name| *name != "." && *name != "..")
            else {
                continue;
            };
            if looked_at == at_most {
                break;
            }
            looked_at += 1;
            name.clear();
            name.extend(["fd/", descriptor]);
            // The text alone: following the link would lead to what is behind it, which may be a server that hangs.
            out.extend(directory.link(&name).ok().and_then(|link| inode(link.as_bytes())));
        }
        looked_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    const NUMBER: u32 = 7;

    fn message(kind: u16, number: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&2u16.to_ne_bytes());
        bytes.extend_from_slice(&number.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn inet(family: i32, address: &[u8], state: u8, inode: u32) -> Vec<u8> {
        let mut body = [0; 72];
        (body[0], body[1]) = (family as u8, state);
        body[4..6].copy_from_slice(&8080u16.to_be_bytes());
        body[8..8 + address.len()].copy_from_slice(address);
        body[56..60].copy_from_slice(&3u32.to_ne_bytes());
        body[60..64].copy_from_slice(&128u32.to_ne_bytes());
        body[68..72].copy_from_slice(&inode.to_ne_bytes());
        body.to_vec()
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn unix(name: &[u8]) -> Vec<u8> {
        let mut body = vec![libc::AF_UNIX as u8, 1, LISTENS, 0];
        body.extend_from_slice(&99u32.to_ne_bytes());
        body.extend_from_slice(&[0; 8]);
        body.extend(attribute(UNIX_DIAG_NAME, name));
        body.extend(attribute(6, &[0]));
        body.extend(attribute(UNIX_DIAG_RQLEN, &[5u32.to_ne_bytes(), 64u32.to_ne_bytes()].concat()));
        body
    }

    fn sockets(piece: &[u8]) -> (Option<Progress>, Vec<String>) {
        let mut found = Vec::new();
        let progress = parse(piece, NUMBER, &mut |socket| {
            let ListeningSocket { inode, address, length, limit } = socket;
            found.push(format!("{inode} {address} {length}/{limit}"));
        });
        (progress, found)
    }

    #[track_caller]
    fn check(body: &[u8], expected: &[&str]) {
        let (progress, found) = sockets(&message(SOCK_DIAG_BY_FAMILY, NUMBER, body));
        assert_eq!((progress, found), (Some(Progress::More), expected.iter().map(|s| (*s).into()).collect()));
    }

    #[test]
    fn each_family_is_told_with_its_queue() {
        check(&inet(libc::AF_INET, &[127, 0, 0, 1], LISTENS, 9), &["9 127.0.0.1:8080 3/128"]);
        check(&inet(libc::AF_INET6, &[0; 16], LISTENS, 9), &["9 [::]:8080 3/128"]);
        check(&unix(b"/run/x.sock\0"), &["99 unix:/run/x.sock 5/64"]);
        check(&unix(b"\0bus"), &["99 unix:@bus 5/64"]);
    }

    #[test]
    fn hostile_names_are_escaped_and_bounded() {
        check(&unix(b"\0a\n\"\xff\\x0a\0\0"), &["99 unix:@a\\x0a\"\\xff\\\\x0a\\x00\\x00 5/64"]);
        check(&unix("/r\u{fc}n/\u{85}".as_bytes()), &["99 unix:/r\u{fc}n/\\xc2\\x85 5/64"]);
        check(&unix(b""), &["99 unix: 5/64"]);
        let (_, found) = sockets(&message(SOCK_DIAG_BY_FAMILY, NUMBER, &unix(&[1; 400])));
        assert_eq!(found, [format!("99 unix:{} 5/64", "\\x01".repeat(LONGEST_NAME))]);
    }

    #[test]
    fn who_does_not_listen_or_was_closed_is_left_out() {
        check(&inet(libc::AF_INET, &[127, 0, 0, 1], 1, 9), &[]);
        check(&inet(libc::AF_INET, &[127, 0, 0, 1], LISTENS, 0), &[]);
        check(&unix(b"/x")[..UNIX_MESSAGE], &[]);
        check(&[libc::AF_NETLINK as u8; 72], &[]);
    }

    #[test]
    fn a_listing_ends_where_the_kernel_says_so() {
        let told = message(SOCK_DIAG_BY_FAMILY, NUMBER, &unix(b"/x"));
        let ended = |kind, body: &[u8]| sockets(&[&told[..], &message(kind, NUMBER, body)].concat());
        let refusal = (-libc::ENOENT).to_ne_bytes();
        for (kind, body, expected) in [
            (NLMSG_DONE, &[][..], Progress::Done),
            (NLMSG_DONE, &[0; 4], Progress::Done),
            (NLMSG_DONE, &refusal, Progress::Refused(Errno::ENOENT)),
            (NLMSG_ERROR, &refusal, Progress::Refused(Errno::ENOENT)),
        ] {
            assert_eq!(ended(kind, body), (Some(expected), vec!["99 unix:/x 5/64".to_owned()]));
        }
        // Of a listing that was given up.
        let old = message(NLMSG_DONE, NUMBER - 1, &[0; 4]);
        assert_eq!(sockets(&old), (Some(Progress::More), Vec::new()));
    }

    proptest! {
        #[test]
        fn no_piece_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes, 0, &mut |socket| drop(socket.address.to_string()));
            if let Some(Some(told)) = socket(&bytes) {
                drop(told.address.to_string());
            }
        }

        #[test]
        fn nor_does_a_damaged_one(at in 0usize..400, value: u8, cut in 0usize..400) {
            let mut piece = message(SOCK_DIAG_BY_FAMILY, NUMBER, &unix(b"/run/x.sock\0"));
            piece.extend(message(SOCK_DIAG_BY_FAMILY, NUMBER, &inet(libc::AF_INET6, &[1; 16], LISTENS, 9)));
            piece.extend(message(NLMSG_DONE, NUMBER, &[0; 4]));
            let end = piece.len();
            piece[at % end] = value;
            piece.truncate(end - cut % end);
            let _ = parse(&piece, NUMBER, &mut |socket| {
                assert!(socket.address.to_string().len() <= "unix:@".len() + 4 * LONGEST_NAME);
            });
        }

        #[test]
        fn names_that_differ_look_different(
            one in proptest::collection::vec(any::<u8>(), 0..6),
            other in proptest::collection::vec(any::<u8>(), 0..6),
        ) {
            let shown = |name: &[u8]| SocketAddress::Unix(&[b"\0", name].concat()).to_string();
            prop_assert_eq!(one == other, shown(&one) == shown(&other));
        }
    }

    #[test]
    fn links_of_sockets_have_an_inode_number() {
        assert_eq!(inode(b"socket:[4294967295]"), Some(u32::MAX));
        for link in
            ["socket:[4294967296]", "socket:[]", "socket:[-1]", "pipe:[1]", "/socket:[1]", "socket:[1"]
        {
            assert_eq!(inode(link.as_bytes()), None, "{link}");
        }
    }

    fn own_sockets(reader: &mut Sockets, at_most: usize) -> (usize, Vec<u32>) {
        let root = Root::open(Path::new("/proc")).unwrap();
        let pid = std::process::id();
        let ticks = root.stat(pid, &mut Buffer::default()).unwrap().starttime;
        let mut inodes = Vec::new();
        let looked_at = reader.held(ProcessKey::from_ticks(pid, ticks), at_most, &mut inodes);
        let other = ProcessKey::from_ticks(pid, ticks + 1);
        assert_eq!(reader.held(other, at_most, &mut Vec::new()), 0, "another process");
        (looked_at, inodes)
    }

    fn inode_of(socket: &impl AsFd) -> u32 {
        nix::sys::stat::fstat(socket).unwrap().st_ino as u32
    }

    #[test]
    fn the_kernel_tells_of_our_own_sockets_and_we_hold_them() {
        let mut reader = Sockets::open(Path::new("/proc")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(&path).unwrap();
        let address = tcp.local_addr().unwrap();
        let _waits = (TcpStream::connect(address).unwrap(), UnixStream::connect(&path).unwrap());
        let mut find = |family, inode| {
            let mut found = None;
            let complete = reader.listening(family, &mut |socket| {
                if socket.inode == inode {
                    found = Some((socket.address.to_string(), socket.length, socket.limit > 0));
                }
            });
            assert!(complete);
            found
        };
        assert_eq!(find(SocketFamily::Tcp, inode_of(&tcp)), Some((address.to_string(), 1, true)));
        let name = format!("unix:{}", path.display());
        assert_eq!(find(SocketFamily::Unix, inode_of(&unix)), Some((name, 1, true)));
        assert_eq!(find(SocketFamily::Tcp6, inode_of(&tcp)), None);
        let (_, held) = own_sockets(&mut reader, 1024);
        assert!(held.contains(&inode_of(&tcp)) && held.contains(&inode_of(&unix)), "{held:?}");
        assert_eq!(own_sockets(&mut reader, 2).0, 2);
    }
}
