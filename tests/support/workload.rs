//! A master with workers that do what a test tells them: the ground truth of the kernel tests.
//!
//! Reads commands from standard input, one a line, and answers each with one line on standard output:
//!
//! | command | does | answer |
//! |---|---|---|
//! | `spawn BEHAVIOUR…` | forks a worker | its pid |
//! | `storm COUNT BURN_US` | forks and reaps so many, as fast as it can, each burning CPU for so long | `USER_US SYSTEM_US`, what wait(2) accounted for them |
//! | `children` | — | `USER_US SYSTEM_US` of all that were reaped |
//! | `reap` | reaps who has ended | how many |
//! | `exit` | ends at once, without its workers | |
//!
//! Behaviours: `sleep`, `burn MS` (one core, then sleep), `duty PERCENT MS`, `touch BYTES` (then sleep),
//! `touch-in CGROUP_PROCS BYTES` (joins a control group first), `burn-out MS` (ends after that), `burn-in CGROUP_PROCS MS` (does so, and ends
//! when it has burnt), `name HEX` (sets its comm to these bytes), `exec PROGRAM ARGS…`, `exit CODE`, `abort`,
//! `job MS CODE` (sleeps, then exits), `dump-core DIRECTORY`, `threads COUNT BURN_MS`, `last-thread MS CODE` (the main
//! thread ends first),
//! `listen ADDRESS BACKLOG FILE` (accepts nothing before the file is there, then everything; an address is `IP:PORT`,
//! which others may share, `unix:PATH` or `unix:@NAME`),
//! `serve ADDRESS FILE` (answers over a socket as it is asked to, one connection after the other; see `serve.rs`),
//! `serve-late ADDRESS FILE` (it burns half a second before it accepts),
//! `serve-in-threads ADDRESS FILE` (each connection in a thread of its own),
//! `wait KIND … FILE` (waits for a known reason and writes to the file for how long; see `waits.rs`),
//! `park poll|restarted|lock|locks THREADS|pipe|stdin` (waits for ever so), `spans COUNT FILE` (waits for work and works at
//! known times, see `work.rs`),
//! `thread-exec PROGRAM ARGS…` (execve from another thread than the main one). A worker dies with its master,
//! but `orphan BEHAVIOUR…` does not.
#![allow(
    unsafe_code,
    reason = "fork(2) and friends; the process has one thread and its children keep to what is theirs"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test program fails loudly")]
#![allow(clippy::disallowed_methods, reason = "its work is to sleep")]

#[path = "serve.rs"]
mod serve;
#[path = "waits.rs"]
mod waits;
#[path = "work.rs"]
mod work;

use std::ffi::CString;
use std::io::{BufRead, Write};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause};

/// The argument of a run that ends at once, for those who execute this program.
const NOTHING: &str = "nothing";

fn main() {
    if std::env::args().nth(1).as_deref() == Some(NOTHING) {
        return;
    }
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input is text");
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[0] {
            "spawn" => spawn(&words[1..]).to_string(),
            "storm" => storm(number(&words, 1), number(&words, 2), 0),
            "storm_of_threads" => storm(number(&words, 1), number(&words, 2), number(&words, 3)),
            "children" => format_usage(children()),
            "reap" => reap().to_string(),
            "exit" => std::process::exit(0),
            other => panic!("unknown command {other:?}"),
        };
        writeln!(out, "{answer}").and_then(|()| out.flush()).expect("somebody reads");
    }
}

fn number(words: &[&str], at: usize) -> u64 {
    words[at].parse().expect("a number")
}

/// User and system microseconds of reaped children.
fn children() -> (i64, i64) {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let us = |t: nix::sys::time::TimeVal| t.tv_sec() * 1_000_000 + t.tv_usec();
    (us(usage.user_time()), us(usage.system_time()))
}

fn format_usage((user, system): (i64, i64)) -> String {
    format!("{user} {system}")
}

/// Children that end as soon as they have used so much CPU, with so many other threads that end with them.
fn storm(count: u64, burn_us: u64, threads: u64) -> String {
    let before = children();
    let mut running = 0;
    for _ in 0..count {
        // SAFETY: one thread.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                for _ in 0..threads {
                    std::thread::spawn(pause);
                }
                burn(Duration::from_micros(burn_us));
                // SAFETY: ends the child without running what belongs to its parent.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { .. } => running += 1,
        }
        while running > 64 {
            waitpid(None, None).expect("waitpid");
            running -= 1;
        }
        while running > 0 && matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::Exited(..))) {
            running -= 1;
        }
    }
    while running > 0 {
        waitpid(None, None).expect("waitpid");
        running -= 1;
    }
    let after = children();
    format_usage((after.0 - before.0, after.1 - before.1))
}

fn reap() -> u32 {
    let mut count = 0;
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
        count += 1;
    }
    count
}

fn spawn(behaviour: &[&str]) -> Pid {
    // SAFETY: one thread.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let (orphan, behaviour) = match behaviour {
                ["orphan", rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            if !orphan {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
            }
            behave(behaviour);
            loop {
                pause();
            }
        }
    }
}

fn behave(words: &[&str]) {
    let ms = |at: usize| Duration::from_millis(number(words, at));
    match words[0] {
        "sleep" => {}
        "burn" => burn(ms(1)),
        "burn-out" => {
            burn(ms(1));
            std::process::exit(0);
        }
        "duty" => {
            // So many turns of 10 ms, however long the machine lets them take: what it burns is known.
            let busy = Duration::from_micros(number(words, 1) * 100);
            for _ in 0..number(words, 2) / 10 {
                burn(busy);
                std::thread::sleep(Duration::from_millis(10).saturating_sub(busy));
            }
        }
        "touch" => touch(number(words, 1)),
        "touch-in" => {
            std::fs::write(words[1], std::process::id().to_string()).expect("joining a control group");
            touch(number(words, 2));
        }
        "burn-in" => {
            std::fs::write(words[1], std::process::id().to_string()).expect("joining a control group");
            burn(ms(2));
            std::process::exit(0);
        }
        "dump-core" => {
            nix::unistd::chdir(words[1]).expect("a directory");
            let limit = nix::sys::resource::RLIM_INFINITY;
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, limit, limit)
                .expect("root may");
            std::process::abort();
        }
        "name" => {
            let bytes: Vec<u8> = words[1]
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            nix::sys::prctl::set_name(&CString::new(bytes).expect("no zero")).expect("prctl");
        }
        "exec" => exec(&words[1..]),
        "exec-from-thread" => {
            let time = ms(1);
            let thread = std::thread::spawn(move || {
                burn(time);
                exec(&["/proc/self/exe", NOTHING]);
            });
            thread.join().expect("it is gone by then");
        }
        "exit" => std::process::exit(number(words, 1) as i32),
        "job" => {
            std::thread::sleep(ms(1));
            std::process::exit(number(words, 2) as i32);
        }
        "abort" => std::process::abort(),
        "threads" => {
            let (count, time) = (number(words, 1), ms(2));
            for _ in 0..count {
                std::thread::spawn(move || {
                    burn(time);
                    loop {
                        pause();
                    }
                });
            }
        }
        "listen" => listen(words[1], number(words, 2) as i32, std::path::Path::new(words[3])),
        "wait" => waits::wait(&words[1..]),
        "park" => work::park(&words[1..]),
        "spans" => work::spans(number(words, 1), words[2]),
        "serve" => serve::serve(words[1], words[2]),
        "serve-late" => serve::serve_late(words[1], words[2]),
        "serve-in-threads" => serve::serve_in_threads(words[1], words[2]),
        "last-thread" => {
            let (time, code) = (ms(1), number(words, 2) as i32);
            std::thread::spawn(move || {
                burn(time);
                std::process::exit(code);
            });
            // exit(2) as the kernel has it: this thread alone. The library's pthread_exit would unwind through us.
            // SAFETY: nothing of this thread is needed any more.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }
        "thread-exec" => {
            let words: Vec<String> = words[1..].iter().map(|w| (*w).to_owned()).collect();
            std::thread::spawn(move || exec(&words.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        other => panic!("unknown behaviour {other:?}"),
    }
}

fn listen(address: &str, backlog: i32, go: &std::path::Path) {
    use socket2::{Domain, SockAddr, Socket, Type};
    let (domain, address) = match address.strip_prefix("unix:") {
        Some(name) => (Domain::UNIX, SockAddr::unix(name.replacen('@', "\0", 1)).expect("a name")),
        None => {
            let address: std::net::SocketAddr = address.parse().expect("an address");
            (Domain::for_address(address), address.into())
        }
    };
    let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
    if domain != Domain::UNIX {
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(true).expect("IPV6_V6ONLY");
    }
    socket.bind(&address).expect("a free address");
    socket.listen(backlog).expect("it listens");
    while !go.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut accepted = Vec::new();
    loop {
        accepted.push(socket.accept().expect("a connection"));
    }
}

fn touch(bytes: u64) {
    let bytes = usize::try_from(bytes).expect("fits");
    std::mem::forget(std::hint::black_box(vec![1u8; bytes]));
}

fn exec(words: &[&str]) {
    let words: Vec<CString> = words.iter().map(|w| CString::new(*w).unwrap()).collect();
    let Err(error) = nix::unistd::execv(&words[0], &words);
    panic!("execv: {error}");
}

/// Spins until this thread has used so much CPU.
fn burn(time: Duration) {
    if time.is_zero() {
        return;
    }
    let used = || Duration::from(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("a clock"));
    let until = used() + time;
    while used() < until {}
}
