//! What all threads do, of programs whose threads are known to wait in known functions.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::{Pprof, in_pool};
use crate::servers::{Server, command_in, compile, directory_with, free_port};
use crate::support::{Collector, eventually};

/// Waits for a condition, polls, and sleeps, in functions of these names, and computes in another one.
const SITTER: &str = r#"
#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static volatile int turns;

__attribute__((noinline)) static void f_a(void) {
    pthread_mutex_lock(&mutex);
    for (;; turns++) pthread_cond_wait(&never, &mutex);
}

__attribute__((noinline)) static void f_b(void) {
    for (;; turns++) poll(0, 0, -1);
}

__attribute__((noinline)) static void f_c(void) {
    struct timespec t = {1000, 0};
    for (;; turns++) nanosleep(&t, 0);
}

__attribute__((noinline)) static void f_d(void) {
    for (;;) turns++;
}

static void *waits(void *unused) { prctl(PR_SET_NAME, "waits"); f_a(); turns++; return unused; }
static void *polls(void *unused) { prctl(PR_SET_NAME, "polls"); f_b(); turns++; return unused; }
static void *spins(void *unused) { prctl(PR_SET_NAME, "spins"); f_d(); turns++; return unused; }

int main(void) {
    pthread_t thread;
    if (pthread_create(&thread, 0, waits, 0) || pthread_create(&thread, 0, polls, 0)
        || pthread_create(&thread, 0, spins, 0))
        return 1;
    f_c();
    return turns;
}
"#;

/// The block of a thread: its first line, and the functions of its frames, the innermost first.
fn block(text: &str, thread: &str) -> (String, Vec<String>) {
    let wanted = format!("thread=\"{thread}\"");
    let block = text.split("\n\n").find(|block| block.lines().next().is_some_and(|l| l.contains(&wanted)));
    let mut lines = block.unwrap_or_else(|| panic!("{thread}: {text}")).lines();
    let first = lines.next().unwrap().to_owned();
    let function = |line: &str| line.trim_start_matches("#\t").split('\t').next().unwrap().to_owned();
    (first, lines.map(function).collect())
}

/// These are among the frames, in this order.
fn check_order(frames: &[String], expected: &[&str]) {
    let mut rest = frames.iter();
    for function in expected {
        assert!(
            rest.any(|frame| frame.ends_with(function)),
            "{function} is not where it should be: {frames:#?}"
        );
    }
}

fn check_sitter(directory: &Path, program: &Path) {
    let sitter =
        Server::start_ended_by(Signal::SIGKILL, &mut command_in(directory, program.to_str().unwrap(), &[]));
    let collector = in_pool(directory, "sitter");
    let text = eventually("all sit", || {
        let text = collector.text("/debug/pprof/threads?pool=sitter", "*/*");
        (text.matches("[sleeping]").count() == 3 && text.contains("spins")).then_some(text)
    });
    println!("{text}");
    let check = |thread: &str, syscall: &str, functions: &[&str]| {
        let (first, frames) = block(&text, thread);
        assert!(
            first.contains(&format!("[sleeping]: pool=\"sitter\" slot=0 generation=1 pid={}", sitter.pid()))
        );
        assert!(first.ends_with(&format!(" syscall={syscall}")), "{first}");
        let wait_channel = first.split(" wchan=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        assert_eq!(frames[0], format!("[k] {wait_channel}"));
        check_order(&frames, functions);
        assert!(!frames.iter().any(|frame| frame.contains("truncated")), "{frames:#?}");
        let kernel = frames.iter().take_while(|frame| frame.starts_with("[k] ")).count();
        assert!(frames[kernel..].iter().all(|frame| !frame.starts_with("[k] ")), "{frames:#?}");
    };
    check("waits", "futex", &["do_syscall_64", "pthread_cond_wait", "f_a", "waits", "start_thread"]);
    check("polls", "poll", &["do_syscall_64", "poll", "f_b", "polls", "start_thread"]);
    check("sitter", "clock_nanosleep", &["do_syscall_64", "nanosleep", "f_c", "main", "_start"]);
    // It runs, or waits for a CPU at where it was interrupted.
    let (first, frames) = block(&text, "spins");
    match first.contains("[running]") {
        true => assert!(frames.len() == 1 && frames[0].contains("it is on a CPU"), "{frames:#?}"),
        // It calls nobody, so its caller may stand in no frame.
        false => check_order(&frames, &["f_d", "start_thread"]),
    }
    assert!(!first.contains("syscall="), "{first}");
}

#[test]
fn threads_are_where_they_wait_without_frame_pointers() {
    let directory = tempfile::tempdir().unwrap();
    let options = ["-O2", "-g", "-fomit-frame-pointer", "-pthread"];
    check_sitter(directory.path(), &compile(directory.path(), "sitter", SITTER, &options));
}

#[test]
fn threads_are_where_they_wait_with_frame_pointers_alone() {
    let directory = tempfile::tempdir().unwrap();
    let options = ["-O1", "-fno-omit-frame-pointer", "-pthread", "-Wl,--no-eh-frame-hdr"];
    let program = compile(directory.path(), "sitter", SITTER, &options);
    let mut strip = Command::new("objcopy");
    let status = strip.args(["--remove-section=.eh_frame"]).arg(&program).status();
    assert!(status.expect("objcopy is installed (package binutils)").success());
    check_sitter(directory.path(), &program);
}

#[test]
fn go_reads_threads_as_a_profile() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "sitter", SITTER, &["-O2", "-g", "-pthread"]);
    let mut command = command_in(directory.path(), program.to_str().unwrap(), &[]);
    let _sitter = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "sitter");
    eventually("all sit", || {
        let text = collector.text("/debug/pprof/threads", "*/*");
        (text.matches("[sleeping]").count() == 3).then_some(())
    });
    let profile = Pprof::take(&collector, "threads?format=proto");
    let raw = profile.raw();
    assert!(raw.contains("threads/count[dflt]") && raw.contains("pool:[sitter]"), "{raw}");
    let top = profile.top(&["-tagfocus=state=sleeping"]);
    let share = |function: &str| top.get(function).map(|(_, cumulative)| *cumulative);
    assert_eq!(["f_a", "f_b", "f_c", "main"].map(share), [Some(25.0); 4], "{top:?}");
    let collapsed = collector.text("/debug/pprof/threads?debug=1", "*/*");
    assert_eq!(collapsed.lines().filter(|line| line.starts_with("1 @ pool=\"sitter\"")).count(), 4);
}

#[test]
fn workers_of_nginx_wait_for_connections() {
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("nginx.conf");
    let text = format!(
        "worker_processes 3;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{1}; return 200; }} }}\n",
        directory.path().display(),
        free_port()
    );
    std::fs::write(&configuration, text).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(&configuration).args(["-g", "daemon off;"]);
    let nginx = Server::start(&mut command);
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(nginx.pid(), 3);
    // Their stacks are the same, so they are one.
    let text = eventually("all wait at the same place", || {
        let text = collector.text("/debug/pprof/threads?pool=nginx&debug=1", "*/*");
        text.contains("\n3 @ pool=\"nginx\" state=\"sleeping\"").then_some(text)
    });
    println!("{text}");
    assert!(text.contains("syscall=epoll_wait") && text.contains("\tepoll_wait"), "{text}");
    assert!(!text.contains("truncated"), "{text}");
}

#[test]
fn functions_of_python_stand_where_its_interpreter_is() {
    const SCRIPT: &str = "import threading\n\
        lock = threading.Lock()\n\
        def inner(): lock.acquire()\n\
        def outer(): inner()\n\
        lock.acquire()\n\
        outer()\n";
    let directory = directory_with(&[("sit.py", SCRIPT)]);
    let mut command = command_in(directory.path(), "/usr/bin/python3", &["sit.py"]);
    let python = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let collector = in_pool(directory.path(), "python3");
    let text = eventually("it sits", || {
        let text = collector.text(&format!("/debug/pprof/threads?pid={}", python.pid()), "*/*");
        text.contains("syscall=futex").then_some(text)
    });
    println!("{text}");
    let frames: Vec<String> =
        text.lines().filter_map(|l| Some(l.strip_prefix("#\t")?.split('\t').next()?.to_owned())).collect();
    check_order(&frames, &["inner", "outer", "<module>", "_start"]);
}
