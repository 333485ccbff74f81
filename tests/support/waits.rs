//! Workers that wait for known reasons and say for how long: the ground truth of what the scheduler probes tell.
//!
//! Each measures, around every call that blocks, how long it was blocked, writes them all to a file, nanoseconds one a line, and then sleeps. They take no timer slack, so that a timeout is a timeout.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::time::ClockId;
use nix::unistd::{ForkResult, Pid, fork};

/// The words after `wait`: a kind, its numbers, and the file for the answer.
pub(crate) fn wait(words: &[&str]) {
    // SAFETY: a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let waits = match words {
        ["lock", ..] => futexes(),
        ["sleep", ..] => {
            (0..300).map(|_| measured(|| std::thread::sleep(Duration::from_millis(3)))).collect()
        }
        ["poll", ..] => polls(),
        ["pipe", ..] => {
            let (read, write) = nix::unistd::pipe().expect("pipe");
            answered(read, write, Duration::from_millis(4), |from, buffer| from.read_exact(buffer))
        }
        ["network", ..] => {
            let (near, far) =
                socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).expect("sockets");
            answered(near, far, Duration::from_millis(4), |from, buffer| from.read_exact(buffer))
        }
        ["child", ..] => children(),
        ["disk", path, ..] => reads(path),
        ["runnable", threads, ..] => spinners(threads.parse().expect("a number")),
        ["pingpong", turns, ..] => {
            ping_pong(turns.parse().expect("a number"));
            Vec::new()
        }
        other => panic!("unknown wait {other:?}"),
    };
    answer(words.last().expect("a file"), &waits);
}

/// Writes what was measured, ns one a line.
pub(crate) fn answer(file: &str, measured: &[u64]) {
    let text: String = measured.iter().map(|ns| format!("{ns}\n")).collect();
    // Under another name first: whoever finds the file finds all of it.
    let unfinished = format!("{file}.part");
    std::fs::write(&unfinished, text).expect("a writable file");
    std::fs::rename(unfinished, file).expect("the same directory");
}

/// ns
pub(crate) fn now(clock: ClockId) -> u64 {
    let time = clock.now().expect("a clock");
    Duration::from(time).as_nanos() as u64
}

/// Time that this thread has waited for a CPU, ns, as the kernel accounts it (second field of `schedstat`).
pub(crate) fn waited_for_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("CONFIG_SCHED_INFO");
    text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number")
}

/// CPU time of this thread, ns.
pub(crate) fn thread_cpu_ns() -> u64 {
    now(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// A call that blocked, ns.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// How long it took.
    pub(crate) passed_ns: u64,
    /// How long this thread waited for a CPU meanwhile.
    pub(crate) waited_ns: u64,
    /// How much CPU time was charged to it.
    pub(crate) used_ns: u64,
    /// How long it was blocked: none of these.
    pub(crate) blocked_ns: u64,
}

/// Sleeps.
pub(crate) fn wait_asleep(time: Duration) -> Call {
    observed(|| std::thread::sleep(time))
}

/// Waits in a futex that nobody wakes.
pub(crate) fn wait_in_lock(time: Duration) -> Call {
    let word = 0u32;
    let timeout =
        libc::timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: i64::from(time.subsec_nanos()) };
    observed(|| {
        // SAFETY: the word and the timeout outlive the call.
        unsafe { libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAIT, 0, &raw const timeout) };
    })
}

/// Time that a call was blocked, ns.
fn measured(call: impl FnOnce()) -> u64 {
    observed(call).blocked_ns
}

fn observed(call: impl FnOnce()) -> Call {
    let runnable = waited_for_cpu();
    let (wall, cpu) = (now(ClockId::CLOCK_MONOTONIC), now(ClockId::CLOCK_THREAD_CPUTIME_ID));
    call();
    let used_ns = now(ClockId::CLOCK_THREAD_CPUTIME_ID) - cpu;
    let passed_ns = now(ClockId::CLOCK_MONOTONIC) - wall;
    let waited_ns = waited_for_cpu() - runnable;
    let blocked_ns = passed_ns.saturating_sub(used_ns).saturating_sub(waited_ns);
    Call { passed_ns, waited_ns, used_ns, blocked_ns }
}

/// 5, 20 and 100 ms in shares of 60, 30 and 10 percent.
fn futexes() -> Vec<u64> {
    (0..100)
        .map(|turn| {
            wait_in_lock(Duration::from_millis(match turn % 10 {
                0..6 => 5,
                6..9 => 20,
                _ => 100,
            }))
            .blocked_ns
        })
        .collect()
}

fn polls() -> Vec<u64> {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    let mut events = [EpollEvent::empty()];
    (0..200)
        .map(|_| {
            measured(|| {
                epoll.wait(&mut events, EpollTimeout::from(7u8)).expect("epoll_wait");
            })
        })
        .collect()
}

/// A child writes a byte after each delay; we wait for it.
fn answered(
    near: OwnedFd,
    far: OwnedFd,
    delay: Duration,
    wait: impl Fn(&mut std::fs::File, &mut [u8]) -> std::io::Result<()>,
) -> Vec<u64> {
    const TURNS: usize = 200;
    // SAFETY: one thread.
    if let ForkResult::Child = unsafe { fork() }.expect("fork") {
        drop(near);
        let mut far = std::fs::File::from(far);
        for _ in 0..TURNS {
            std::thread::sleep(delay);
            far.write_all(&[0]).expect("somebody reads");
        }
        std::process::exit(0);
    }
    let mut near = std::fs::File::from(near);
    (0..TURNS).map(|_| measured(|| wait(&mut near, &mut [0]).expect("a byte"))).collect()
}

fn children() -> Vec<u64> {
    (0..60)
        .map(|_| {
            // SAFETY: one thread.
            match unsafe { fork() }.expect("fork") {
                ForkResult::Child => {
                    std::thread::sleep(Duration::from_millis(10));
                    // SAFETY: ends the child without running what belongs to its parent.
                    unsafe { libc::_exit(0) }
                }
                ForkResult::Parent { child } => measured(|| {
                    nix::sys::wait::waitpid(child, None).expect("waitpid");
                }),
            }
        })
        .collect()
}

/// Reads past the page cache, all of the file four times. So much at a time that also a fast device takes much longer than
/// the way to sleep and back.
fn reads(path: &str) -> Vec<u64> {
    const SIZE: usize = 256 << 10;
    let file =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("a file");
    let length = file.metadata().expect("metadata").len() / SIZE as u64;
    // Longer than needed, so that a multiple of 4096 is in it.
    let mut memory = vec![0u8; SIZE + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[start..start + SIZE];
    (0..4 * length)
        .map(|turn| {
            let offset = (turn * 7919 % length * SIZE as u64).cast_signed();
            measured(|| {
                // SAFETY: a buffer of this length.
                let read = unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), SIZE, offset) };
                assert_eq!(read, SIZE as isize);
            })
        })
        .collect()
}

/// Threads that share one CPU and never stop; each notes how long it was kept from it.
fn spinners(threads: usize) -> Vec<u64> {
    let mut cpus = CpuSet::new();
    cpus.set(0).expect("there is a first CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("affinity");
    let spin = || {
        let preempted =
            || getrusage(UsageWho::RUSAGE_THREAD).expect("getrusage").involuntary_context_switches();
        let (mut waits, mut before, mut known) = (Vec::new(), now(ClockId::CLOCK_MONOTONIC), preempted());
        let end = before + 2_000_000_000;
        while before < end {
            let after = now(ClockId::CLOCK_MONOTONIC);
            // An interrupt makes a gap, too, but no switch.
            if after - before > 20_000 {
                let switches = preempted();
                if switches == known + 1 {
                    waits.push(after - before);
                }
                known = switches;
                before = now(ClockId::CLOCK_MONOTONIC);
            } else {
                before = after;
            }
        }
        waits
    };
    let handles: Vec<_> = (0..threads).map(|_| std::thread::spawn(spin)).collect();
    handles.into_iter().flat_map(|handle| handle.join().expect("a thread that spins")).collect()
}

/// Gives a byte to and fro between two processes on one CPU: two switches each turn.
fn ping_pong(turns: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(0).expect("there is a first CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("affinity");
    let (here, there) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).expect("sockets");
    // SAFETY: one thread.
    let child = unsafe { fork() }.expect("fork");
    // Each keeps one end only, so that the end of one is the end of the other.
    let (socket, other, first) = match child {
        ForkResult::Child => (there, here, false),
        ForkResult::Parent { .. } => (here, there, true),
    };
    drop(other);
    // SAFETY: our own descriptor, given up by its owner.
    let mut socket = unsafe { std::fs::File::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(socket)) };
    let mut byte = [0];
    for _ in 0..turns {
        let sent = !first || socket.write_all(&byte).is_ok();
        let received = sent && socket.read_exact(&mut byte).is_ok();
        let answered = received && (first || socket.write_all(&byte).is_ok());
        if !answered {
            // The other was ended by the test.
            break;
        }
    }
    if !first {
        std::process::exit(0);
    }
}
