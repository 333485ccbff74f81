//! Workers that wait for work, and work, at known times: the ground truth of states.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::waits::{answer, thread_cpu_ns, wait_in_lock, waited_for_cpu};

/// How long a worker with spans takes to start, waits for its first work, and waits between two spans.
const START: Duration = Duration::from_millis(150);
const FIRST: Duration = Duration::from_millis(250);
const BETWEEN: Duration = Duration::from_millis(7);

/// How long the other thread of a worker that is left alone stays.
const LEAVES: Duration = Duration::from_secs(4);

/// What a timer is late by where the machine stood still.
const LATE: Duration = Duration::from_millis(1);

/// A clock tick: USER_HZ is 100 wherever Linux runs.
const TICK_NS: u64 = 10_000_000;

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
        ["left"] => {
            std::thread::spawn(|| wait_in_lock(LEAVES));
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
/// percent, half of it on a CPU. Writes how long all of it was, ns one a line, and works on without an end: from its fork
/// until it first slept, that wait, all others together, each of these at least and at most, and then each span.
pub(crate) fn spans(count: u64, file: &str) {
    // SAFETY: a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    work(START);
    let awake_ns = age_ns().saturating_sub(TICK_NS);
    let first = waited(&epoll, FIRST);
    let creating_ns = [awake_ns, age_ns() - first.slept_ns[0]];
    let mut before = first;
    let mut idle_ns = [0, 0];
    let mut spans = Vec::new();
    for turn in 0..count {
        let length = match turn % 10 {
            0..6 => 2,
            6..9 => 10,
            _ => 40,
        };
        work(Duration::from_millis(length));
        let wait = waited(&epoll, BETWEEN);
        spans.push(before.awake_ns + (wait.begin - before.end).as_nanos() as u64);
        for (sum, slept_ns) in idle_ns.iter_mut().zip(wait.slept_ns) {
            *sum += slept_ns;
        }
        before = wait;
    }
    // The last wait is over before this is written, and who reads the spans reads it with them.
    answer(file, &[&creating_ns, &first.slept_ns, &idle_ns, &spans[..]].concat());
}

/// A wait for work. It has work from the moment in which it is woken up until it sleeps: what of the call it did not
/// sleep belongs to a span. (Which part of it to the one before is not known, and little.)
#[derive(Clone, Copy)]
struct Wait {
    begin: Instant,
    end: Instant,
    /// At least and at most. They differ where the machine stood still for more than [`LATE`]: before the timer, and the
    /// thread slept, or between that and the CPU that it was woken up for, which is not always in its run delay.
    slept_ns: [u64; 2],
    awake_ns: u64,
}

fn waited(epoll: &Epoll, timeout: Duration) -> Wait {
    let (runnable_ns, cpu_ns, begin) = (waited_for_cpu(), thread_cpu_ns(), Instant::now());
    let timeout_ms = EpollTimeout::try_from(timeout).expect("short");
    epoll.wait(&mut [EpollEvent::empty()], timeout_ms).expect("epoll_wait");
    let (cpu_ns, end) = (thread_cpu_ns() - cpu_ns, Instant::now());
    let awake_ns = cpu_ns + waited_for_cpu() - runnable_ns;
    let awake = Duration::from_nanos(awake_ns);
    let [least, most] = [timeout, end - begin].map(|time| time.saturating_sub(awake));
    let least = if most - least > LATE { least } else { most };
    Wait { begin, end, slept_ns: [least, most].map(|time| time.as_nanos() as u64), awake_ns }
}

/// Since this process was forked, ns: up to [`TICK_NS`] more than that, as the kernel tells its start in clock ticks
/// (proc_pid_stat(5), field 22).
fn age_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let fields = stat.rsplit(')').next().expect("a name in parentheses");
    let ticks: u64 = fields.split_whitespace().nth(19).expect("22 fields").parse().expect("a number");
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("a clock");
    Duration::from(now).as_nanos() as u64 - ticks * TICK_NS
}

fn work(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time / 2 {}
    std::thread::sleep(time.saturating_sub(begin.elapsed()));
}
