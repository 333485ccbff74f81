//! What a process is doing at one moment, for a worker that has been at it for too long.
//!
//! Read once, when it becomes stuck, so it may cost what a pass may not: some files for each thread, and the tables of
//! the sockets of its network namespace. All of it is bounded, and whatever cannot be read is left out.

use std::collections::HashMap;
use std::io::Read;

use ::procfs::net::{TcpNetEntries, TcpState, UnixNetEntries, UnixState};
use ::procfs::{FromRead, FromReadSI};

use super::root::{Buffer, ProcessDirectory, ReadError};
use super::sockets::inode;
use crate::input::{Doing, OpenSocket, ThreadDoing};
use crate::procfs::parse::stat::Stat;
use crate::units::Pid;

/// Threads of a process that are looked at, those with the lowest ids.
const MAX_THREADS: usize = 64;

/// Descriptors of a process that are looked at, the lowest.
const MAX_DESCRIPTORS: usize = 512;

/// Sockets of a process that are told.
const MAX_SOCKETS: usize = 64;

/// Of a table of sockets, bytes: some 30,000 of them.
const MAX_TABLE: u64 = 4 << 20;

/// Reads what a process is doing.
pub(super) fn read(process: &ProcessDirectory, buffer: &mut Buffer) -> Doing {
    let mut tids = numbers(process, "task");
    tids.truncate(MAX_THREADS);
    Doing {
        threads: tids.into_iter().filter_map(|tid| thread(process, tid, buffer).ok()).collect(),
        sockets: sockets(process),
    }
}

/// The numbers that the entries of a directory are called by, ascending.
fn numbers(process: &ProcessDirectory, name: &str) -> Vec<u32> {
    let Ok(mut directory) = process.listing(name) else { return Vec::new() };
    let entries = directory.iter().map_while(Result::ok);
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

fn thread(process: &ProcessDirectory, tid: Pid, buffer: &mut Buffer) -> Result<ThreadDoing, ReadError> {
    let mut text = |name: &str| -> Result<String, ReadError> {
        let file = process.file(&format!("task/{tid}/{name}"))?;
        Ok(String::from_utf8_lossy(buffer.read(&file)?).into_owned())
    };
    let (wait_channel, syscall) = (text("wchan"), text("syscall"));
    let stat = Stat::parse(buffer.read(&process.file(&format!("task/{tid}/stat"))?)?)?;
    Ok(ThreadDoing {
        tid,
        comm: stat.comm,
        state: char::from(stat.state),
        // 0: it runs, or we may not know.
        wait_channel: wait_channel.ok().filter(|channel| !channel.is_empty() && channel != "0"),
        syscall: syscall.ok().and_then(|line| syscall_name(&line)),
        // Asks for CAP_SYS_ADMIN here, which we do not keep.
        kernel_stack: Vec::new(),
    })
}

/// The system call of a line of `/proc/PID/syscall`: `NUMBER ARGUMENTS…`. `None` for a thread that runs, or that is
/// blocked outside any (-1).
fn syscall_name(line: &str) -> Option<String> {
    let number: usize = line.split(' ').next()?.trim_end().parse().ok()?;
    Some(call_name(number))
}

/// What the system call with this number is called.
pub(crate) fn call_name(number: usize) -> String {
    syscalls::Sysno::new(number).map_or_else(|| number.to_string(), |call| call.name().to_owned())
}

/// State and addresses of a socket, by its inode number.
struct Known {
    family: &'static str,
    state: Option<&'static str>,
    local: Option<String>,
    remote: Option<String>,
}

fn sockets(process: &ProcessDirectory) -> Vec<OpenSocket> {
    let descriptors = numbers(process, "fd").into_iter().take(MAX_DESCRIPTORS);
    let open: Vec<(u32, u32)> = descriptors
        .filter_map(|descriptor| {
            let link = process.link(&format!("fd/{descriptor}")).ok()?;
            Some((descriptor, inode(link.as_encoded_bytes())?))
        })
        .take(MAX_SOCKETS)
        .collect();
    if open.is_empty() {
        return Vec::new();
    }
    let mut known = known_sockets(process);
    let socket = |(descriptor, inode)| {
        let known = known.remove(&u64::from(inode));
        let state = known.as_ref().and_then(|known| known.state).map(str::to_owned);
        let family = known.as_ref().map(|known| known.family);
        let (local, remote) = known.map_or((None, None), |known| (known.local, known.remote));
        OpenSocket { descriptor, family, state, local, remote }
    };
    open.into_iter().map(socket).collect()
}

/// The sockets of the network namespace of a process.
fn known_sockets(process: &ProcessDirectory) -> HashMap<u64, Known> {
    let mut known = HashMap::new();
    for family in ["tcp", "tcp6"] {
        let entries = table(process, family)
            .and_then(|text| TcpNetEntries::from_read(text.as_slice(), ::procfs::current_system_info()).ok());
        for entry in entries.into_iter().flat_map(|entries| entries.0) {
            let listens = entry.state == TcpState::Listen;
            let remote = (!listens).then(|| entry.remote_address.to_string());
            let (state, local) = (Some(tcp_state(&entry.state)), Some(entry.local_address.to_string()));
            known.insert(entry.inode, Known { family, state, local, remote });
        }
    }
    let entries = table(process, "unix").and_then(|text| UnixNetEntries::from_read(text.as_slice()).ok());
    for entry in entries.into_iter().flat_map(|entries| entries.0) {
        let state = match entry.state {
            UnixState::CONNECTED => Some("CONNECTED"),
            _ => None,
        };
        let local = entry.path.map(|path| path.to_string_lossy().into_owned());
        known.insert(entry.inode, Known { family: "unix", state, local, remote: None });
    }
    known
}

/// The whole lines of a table, as far as it is read.
fn table(process: &ProcessDirectory, name: &str) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    process.file(&format!("net/{name}")).ok()?.take(MAX_TABLE).read_to_end(&mut text).ok()?;
    text.truncate(text.iter().rposition(|byte| *byte == b'\n')? + 1);
    Some(text)
}

/// As tcp(7) and ss(8) write it.
fn tcp_state(state: &TcpState) -> &'static str {
    match state {
        TcpState::Established => "ESTABLISHED",
        TcpState::SynSent => "SYN_SENT",
        TcpState::SynRecv | TcpState::NewSynRecv => "SYN_RECV",
        TcpState::FinWait1 => "FIN_WAIT1",
        TcpState::FinWait2 => "FIN_WAIT2",
        TcpState::TimeWait => "TIME_WAIT",
        TcpState::Close => "CLOSE",
        TcpState::CloseWait => "CLOSE_WAIT",
        TcpState::LastAck => "LAST_ACK",
        TcpState::Listen => "LISTEN",
        TcpState::Closing => "CLOSING",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::root::Root;
    use proptest::prelude::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::path::Path;

    #[test]
    fn tells_calls_as_the_kernel_writes_them() {
        assert_eq!(syscall_name("45 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x7f45\n").as_deref(), {
            syscalls::Sysno::new(45).map(|call| call.name())
        });
        assert_eq!(syscall_name("running\n"), None);
        assert_eq!(syscall_name("-1 0x7ffd 0x7f45\n"), None);
        assert_eq!(syscall_name("99999 0x0\n").as_deref(), Some("99999"));
    }

    #[test]
    fn tells_what_this_process_does_and_has_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        let (mut read_end, write_end) = std::io::pipe().unwrap();
        let reader = std::thread::Builder::new().name("waits-for-one".into());
        let reader = reader.spawn(move || read_end.read_exact(&mut [0]).unwrap()).unwrap();
        let root = Root::open(Path::new("/proc")).unwrap();
        let process = root.process(std::process::id()).unwrap();
        let mut buffer = Buffer::default();
        let reads = |thread: &ThreadDoing| {
            thread.comm.as_bytes() == b"waits-for-one" && thread.syscall.as_deref() == Some("read")
        };
        // It has to come to where it waits.
        let doing = loop {
            let doing = read(&process, &mut buffer);
            if doing.threads.iter().any(reads) {
                break doing;
            }
            std::thread::yield_now();
        };
        (&write_end).write_all(&[0]).unwrap();
        reader.join().unwrap();
        let socket = |descriptor: i32| {
            doing.sockets.iter().find(|socket| i64::from(socket.descriptor) == i64::from(descriptor)).unwrap()
        };
        let listens = socket(listener.as_raw_fd());
        assert_eq!((listens.family, listens.state.as_deref()), (Some("tcp"), Some("LISTEN")));
        assert_eq!((listens.local.as_deref(), &listens.remote), (Some(&*address.to_string()), &None));
        let connected = socket(stream.as_raw_fd());
        assert_eq!(connected.state.as_deref(), Some("ESTABLISHED"));
        assert_eq!(connected.remote.as_deref(), Some(&*address.to_string()));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in any::<String>()) {
            let _ = syscall_name(&line);
        }
    }
}
