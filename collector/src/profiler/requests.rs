//! What the profiling thread is asked for, and how it waits for that and for what samplers meet, in one sleep.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

use super::{CaptureError, Wanted, Whom};
use crate::profile::threads::Dump;
use crate::profile::{Kind, Profile};

pub(super) type Answer = oneshot::Sender<Result<Profile, CaptureError>>;

/// What the thread is asked for.
pub(super) enum Request {
    Capture(Wanted, Answer),
    /// What was found between two times, nanoseconds since the Unix epoch.
    Kept {
        kind: Kind,
        from_to_ns: (u64, u64),
        whom: Whom,
        answer: Answer,
    },
    Threads(Whom, oneshot::Sender<Result<Dump, CaptureError>>),
    /// All captures are to end.
    End,
}

/// Where it is asked.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    requests: mpsc::Sender<Request>,
    ended: Arc<AtomicBool>,
    /// Dropped last: when it is gone, so are all senders.
    bell: Arc<UnixStream>,
}

/// Where it waits.
#[derive(Debug)]
pub(super) struct Requests {
    requests: mpsc::Receiver<Request>,
    ended: Arc<AtomicBool>,
    bell: UnixStream,
}

/// Nobody is left to ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Both ends.
pub(super) fn new() -> io::Result<(Asking, Requests)> {
    let (sender, requests) = mpsc::channel();
    let (rung, bell) = UnixStream::pair()?;
    rung.set_nonblocking(true)?;
    bell.set_nonblocking(true)?;
    let ended = Arc::new(AtomicBool::new(false));
    let asking = Asking { requests: sender, ended: Arc::clone(&ended), bell: Arc::new(rung) };
    Ok((asking, Requests { requests, ended, bell }))
}

impl Asking {
    /// Asks. Without an answer if the thread has ended.
    pub(super) fn ask(&self, request: Request) {
        if self.requests.send(request).is_ok() {
            self.ring();
        }
    }

    /// Has all captures end, and none begin: also of those that are asked for already.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.ask(Request::End);
    }

    /// Has the thread look after what it does. If there is no room for one more byte, it is awake, or about to be.
    fn ring(&self) {
        let _ = (&*self.bell).write(&[0]);
    }
}

/// The answer to come of a capture. Dropping it ends the capture.
#[derive(Debug)]
pub struct Captured {
    /// `None` once it has come.
    answered: Option<oneshot::Receiver<Result<Profile, CaptureError>>>,
    asking: Asking,
}

impl Captured {
    pub(super) fn new(answered: oneshot::Receiver<Result<Profile, CaptureError>>, asking: Asking) -> Self {
        Self { answered: Some(answered), asking }
    }
}

impl Future for Captured {
    type Output = Result<Result<Profile, CaptureError>, RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answered) = &mut self.answered else { return Poll::Pending };
        let answer = ready!(Pin::new(answered).poll(context));
        self.answered = None;
        Poll::Ready(answer)
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        if let Some(mut answered) = self.answered.take() {
            // First, so that it is seen.
            answered.close();
            self.asking.ring();
        }
    }
}

impl Requests {
    /// No more captures are to begin.
    pub(super) fn have_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The next request. `None` if there is none for so long, or one of the others can be read, or the bell was rung for something else.
    pub(super) fn next(
        &self,
        timeout: Option<Duration>,
        others: &[BorrowedFd<'_>],
    ) -> Result<Option<Request>, Closed> {
        let next = || match self.requests.try_recv() {
            Ok(request) => Ok(Some(request)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Closed),
        };
        if let Some(request) = next()? {
            return Ok(Some(request));
        }
        let bell = [self.bell.as_fd()];
        let mut fds: Vec<PollFd<'_>> =
            bell.iter().chain(others).map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None) {
            // Interrupted is as good as over.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "the profiling thread looks ten times a second: it cannot wait for samplers");
                return match self.requests.recv_timeout(Duration::from_millis(100)) {
                    Ok(request) => Ok(Some(request)),
                    Err(RecvTimeoutError::Timeout) => Ok(None),
                    Err(RecvTimeoutError::Disconnected) => Err(Closed),
                };
            }
        }
        // Before what it was rung for is taken: what is asked for after that rings again.
        let _ = (&self.bell).read(&mut [0; 64]);
        next()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(60));

    fn threads() -> Request {
        Request::Threads(Whom::default(), oneshot::channel().0)
    }

    #[test]
    fn a_request_ends_the_wait() {
        let (asking, requests) = new().unwrap();
        let began = Instant::now();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || requests.next(LONG, &[]));
            asking.ask(threads());
            assert!(matches!(waiting.join().unwrap(), Ok(Some(Request::Threads(..)))));
        });
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn each_request_is_handed_over_however_many_there_are() {
        let (asking, requests) = new().unwrap();
        // More than the bell has room for.
        const MANY: usize = 10_000;
        (0..MANY).for_each(|_| asking.ask(threads()));
        assert_eq!((0..MANY).filter(|_| matches!(requests.next(LONG, &[]), Ok(Some(_)))).count(), MANY);
        assert!(matches!(requests.next(Some(Duration::ZERO), &[]), Ok(None)));
    }

    #[test]
    fn what_else_can_be_read_ends_the_wait() {
        let (_asking, requests) = new().unwrap();
        let (mut writer, reader) = UnixStream::pair().unwrap();
        writer.write_all(&[0]).unwrap();
        assert!(matches!(requests.next(None, &[reader.as_fd()]), Ok(None)));
    }

    #[test]
    fn it_ends_with_the_last_who_can_ask() {
        let (asking, requests) = new().unwrap();
        let other = asking.clone();
        drop(asking);
        assert!(matches!(requests.next(Some(Duration::ZERO), &[]), Ok(None)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                loop {
                    match requests.next(None, &[]) {
                        Err(closed) => return closed,
                        Ok(_) => continue,
                    }
                }
            });
            other.ask(threads());
            drop(other);
            assert_eq!(waiting.join().unwrap(), Closed);
        });
    }
}
