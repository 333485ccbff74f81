//! Workers that wait for work, and work, at known times: the ground truth of states.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::waits::{answer, waited_for_cpu};

/// How long a worker with spans takes to start, waits for its first work, and waits between two spans.
const START: Duration = Duration::from_millis(150);
const FIRST: u16 = 250;
const BETWEEN: u8 = 7;

/// Waits for ever, as a word says.
pub(crate) fn park(words: &[&str]) {
    let futex = || {
        let word = 0u32;
        loop {
            let no_timeout = std::ptr::null::<libc::timespec>();
            // SAFETY: the word outlives the call.
            unsafe { libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAIT, 0, no_timeout) };
        }
    };
    let read = |descriptor: BorrowedFd<'_>| {
        nix::unistd::read(descriptor, &mut [0]).expect("the other end is open");
    };
    match words {
        ["poll"] => poll(EpollTimeout::NONE),
        // A stop interrupts this one, and it goes on as restart_syscall(2).
        ["restarted"] => {
            // SAFETY: no descriptors.
            unsafe { libc::poll(std::ptr::null_mut(), 0, -1) };
        }
        ["lock"] => futex(),
        ["locks", threads] => {
            for _ in 0..threads.parse().expect("a number") {
                std::thread::spawn(futex);
            }
            futex();
        }
        ["pipe"] => {
            let (near, _far) = nix::unistd::pipe().expect("a pipe");
            read(near.as_fd());
        }
        ["stdin"] => {
            let (near, _far) = nix::unistd::pipe().expect("a pipe");
            // SAFETY: the commands that came through it were for the master.
            assert_eq!(unsafe { libc::dup2(near.as_raw_fd(), 0) }, 0);
            read(std::io::stdin().as_fd());
            unreachable!("nobody writes");
        }
        other => panic!("unknown way to wait {other:?}"),
    }
}

fn poll(timeout: EpollTimeout) {
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    epoll.wait(&mut [EpollEvent::empty()], timeout).expect("epoll_wait");
}

/// Starts for [`START`], waits for [`FIRST`], and then works so often, for 2, 10 and 40 ms in shares of 60, 30 and 10
/// percent, half of it on a CPU. Writes how long each span was, ns one a line, and works on without an end.
pub(crate) fn spans(count: u64, file: &str) {
    // SAFETY: a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    work(START);
    epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(FIRST)).expect("epoll_wait");
    let mut begin = Instant::now();
    let mut awake_ns = 0;
    let mut spans = Vec::new();
    for turn in 0..count {
        let length = match turn % 10 {
            0..6 => 2,
            6..9 => 10,
            _ => 40,
        };
        work(Duration::from_millis(length));
        let before_ns = waited_for_cpu();
        let before_cpu_ns = cpu_ns();
        spans.push(awake_ns + begin.elapsed().as_nanos() as u64);
        epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(BETWEEN)).expect("epoll_wait");
        let after_cpu_ns = cpu_ns();
        begin = Instant::now();
        // It has work from the moment in which it is woken up until it sleeps: what of the call it did not sleep belongs to
        // a span. (Which part of it to the one before is not known, and little.)
        awake_ns = after_cpu_ns - before_cpu_ns + waited_for_cpu() - before_ns;
    }
    answer(file, &spans);
}

fn work(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time / 2 {}
    std::thread::sleep(time.saturating_sub(begin.elapsed()));
}

/// CPU time of this thread so far.
fn cpu_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    Duration::from(time).as_nanos() as u64
}
