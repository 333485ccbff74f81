//! Flags of workers, and what a stuck one was doing.

use serde::{Serialize, Serializer};

use super::Time;
use crate::input::{Comm, Doing, OpenSocket, ThreadDoing};
use crate::snapshot;
use crate::units::Pid;

/// It has been in its state for too long.
#[derive(Serialize)]
pub(super) struct Flagged<'a> {
    name: &'static str,
    since: Time,
    /// When that was noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    doing: Option<DoingThen<'a>>,
}

#[derive(Serialize)]
struct DoingThen<'a> {
    threads: Vec<Thread<'a>>,
    sockets: Vec<Socket<'a>>,
}

#[derive(Serialize)]
struct Thread<'a> {
    tid: Pid,
    #[serde(serialize_with = "text")]
    comm: Comm,
    state: char,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    syscall: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    kernel_stack: &'a [String],
}

#[derive(Serialize)]
struct Socket<'a> {
    descriptor: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<&'a str>,
}

fn text<S: Serializer>(comm: &Comm, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(comm.as_bytes()))
}

impl<'a> Flagged<'a> {
    pub(super) fn of(flagged: &'a snapshot::Flagged) -> Self {
        Self {
            name: flagged.flag.as_str(),
            since: Time(flagged.since_unix_ns),
            doing: flagged.doing.as_deref().map(DoingThen::of),
        }
    }
}

impl<'a> DoingThen<'a> {
    fn of(doing: &'a Doing) -> Self {
        Self {
            threads: doing.threads.iter().map(Thread::of).collect(),
            sockets: doing.sockets.iter().map(Socket::of).collect(),
        }
    }
}

impl<'a> Thread<'a> {
    fn of(thread: &'a ThreadDoing) -> Self {
        Self {
            tid: thread.tid,
            comm: thread.comm,
            state: thread.state,
            wait_channel: thread.wait_channel.as_deref(),
            syscall: thread.syscall.as_deref(),
            kernel_stack: &thread.kernel_stack,
        }
    }
}

impl<'a> Socket<'a> {
    fn of(socket: &'a OpenSocket) -> Self {
        Self {
            descriptor: socket.descriptor,
            family: socket.family,
            state: socket.state.as_deref(),
            local: socket.local.as_deref(),
            remote: socket.remote.as_deref(),
        }
    }
}
