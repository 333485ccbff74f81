//! Programs that everybody runs, recognized without configuration: who is the master, how many workers it is meant
//! to have, which of its children are workers.
//!
//! Pure, on what `/proc` shows. Titles are those that the programs write themselves; argv is what is left where they
//! do not. Sources: nginx `src/os/unix/ngx_process_cycle.c`, PostgreSQL `src/backend/utils/misc/ps_status.c` and
//! `src/backend/postmaster/`, gunicorn `gunicorn/arbiter.py` and `util.py`, uWSGI `core/uwsgi.c`, PHP
//! `sapi/fpm/fpm/fpm_env.c`, Puma `lib/puma/cluster.rb`, Celery `celery/platforms.py`, httpd `server/mpm/prefork`.
//!
//! Who counts as a worker, where opinions may differ:
//!
//! - PostgreSQL: client backends only, known by the client's address in their title. Parallel workers run a part of a
//!   backend's query and come and go with it; WAL senders serve a standby for months and have a limit of their own
//!   (`max_wal_senders`): counted as workers both would blur how many clients are served. They are helpers, as are
//!   autovacuum and the background workers of extensions, whose titles are free text.
//! - uWSGI without a master: the first process is the parent and worker 1 at once. An emperor has vassals, each with a
//!   pool of its own, and no pool itself. Without `--auto-procname` its routers and mules look like workers, but are
//!   forked after them: those beyond the configured number are helpers. A spooler is forked before, and the router of
//!   a uWSGI without a master as well, so these need the titles to be told apart.
//! - celery: beat inside a worker (`-B`) is a helper, but without titles it looks like a worker and may be forked
//!   before or after them, so it is counted rather than a worker left out. Pools of threads, and puma in single mode,
//!   have no workers.
//! - apache2: what left the server's executable (piped loggers, CGI) is a helper. The daemon of `mod_cgid`, which
//!   threaded servers use, cannot be told from a worker.
//! - Where a title hides the arguments, only the configuration file in its usual place can tell the size: a `-w` beside
//!   `config/puma.rb` or `gunicorn.conf.py` is not seen. Includes are not followed, code is not run.
//!
//! Of programs that are not known here, a parent with two or more living children of the same program is a pool,
//! except where people would not call it one:
//!
//! - parents that start what others ask for ([`starts_strangers`]): init systems, sshd, cron, container runtimes,
//!   terminal multiplexers, and shells that are typed into. A shell that runs a script is a parent like any other (it is
//!   how many containers start their workers); its pool is named after what it starts.
//! - shells at a prompt and a script's own subshells are never workers.

use std::path::PathBuf;

use collector_ebpf::schedule::{LOCK, PIPE, POLL};

use super::matcher::{Facts, joined, label_text};
use crate::input::IdleIn;

/// A master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognized {
    /// Program, as in `recognized:nginx`.
    pub program: &'static str,
    /// What it serves, where title or arguments say so.
    pub app: Option<String>,
    /// Configured number of workers, where title or arguments say so.
    pub size: Option<u32>,
    /// The configuration file that says it otherwise.
    pub size_file: Option<PathBuf>,
    /// It is a worker itself, unless its configuration file asks for a master.
    pub works: bool,
}

/// A child of a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It does the pool's work.
    Worker {
        /// What it serves.
        app: Option<String>,
    },
    /// It helps: a logger, a checkpointer, a cache manager.
    Helper,
}

/// Number of workers as a configuration file says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many.
    Fixed(u32),
    /// One per CPU.
    PerCpu,
}

/// Interpreters: the script says what runs.
const INTERPRETERS: [&str; 6] = ["python", "pypy", "ruby", "perl", "node", "php"];

/// Interpreters that people type into.
const SHELLS: [&str; 9] = ["bash", "sh", "dash", "zsh", "ksh", "mksh", "ash", "fish", "csh"];

/// One executable, many programs: the first argument says which.
const MULTI_CALL: [&str; 3] = ["busybox", "toybox", "coreutils"];

/// Parents whose children have nothing to do with each other.
const STRANGERS_START_FROM: [&str; 28] = [
    "systemd",
    "init",
    "runit",
    "runsvdir",
    "s6-svscan",
    "tini",
    "dumb-init",
    "docker-init",
    "catatonit",
    "dockerd",
    "containerd",
    "containerd-shim",
    "conmon",
    "crun",
    "runc",
    "sshd",
    "sshd-session",
    "cron",
    "crond",
    "atd",
    "login",
    "su",
    "sudo",
    "inetd",
    "xinetd",
    "tmux",
    "screen",
    "zellij",
];

fn basename(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn arguments<'a>(facts: &Facts<'a>) -> Vec<&'a [u8]> {
    let cmdline = facts.cmdline.unwrap_or_default();
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    cmdline.split(|b| *b == 0).take(256).collect()
}

fn exe_name<'a>(facts: &Facts<'a>) -> &'a [u8] {
    basename(facts.exe.unwrap_or_default())
}

/// The name it was called by, where the executable does not say which program it is.
fn called<'a>(facts: &Facts<'a>, arguments: &[&'a [u8]]) -> &'a [u8] {
    let exe = exe_name(facts);
    if !MULTI_CALL.iter().any(|name| name.as_bytes() == exe) {
        return exe;
    }
    let name = basename(arguments.first().copied().unwrap_or_default());
    name.strip_prefix(b"-").unwrap_or(name)
}

fn is_shell(name: &[u8]) -> bool {
    SHELLS.iter().any(|shell| shell.as_bytes() == name)
}

fn is_interpreter(name: &[u8]) -> bool {
    let stem_len = name.iter().position(|b| b.is_ascii_digit() || *b == b'.').unwrap_or(name.len());
    is_shell(name) || INTERPRETERS.iter().any(|i| i.as_bytes() == &name[..stem_len])
}

/// A shell without script or command: somebody types into it.
fn at_a_prompt(facts: &Facts<'_>) -> bool {
    let arguments = arguments(facts);
    is_shell(called(facts, &arguments))
        && arguments.iter().skip(1).all(|a| a.starts_with(b"-") && !runs_text(a))
}

/// An option after which the program's text comes; shells take it among other letters (`-ec`).
fn runs_text(argument: &[u8]) -> bool {
    let letters = argument.strip_prefix(b"-").unwrap_or_default();
    letters == b"e" || letters.ends_with(b"c") && letters.iter().all(|b| b"cefiluvx".contains(b))
}

/// The parent starts what others ask it to: its children make no pool, however alike they are.
pub fn starts_strangers(facts: &Facts<'_>) -> bool {
    let exe = exe_name(facts);
    let stem = exe.strip_suffix(b"-runc-v2").unwrap_or(exe);
    STRANGERS_START_FROM.iter().any(|name| name.as_bytes() == stem)
        || at_a_prompt(facts)
        || exe.starts_with(b"uwsgi") && is_emperor(&arguments(facts))
}

/// A child of a program that is not known here may be a worker.
pub fn may_work(parent: &Facts<'_>, child: &Facts<'_>) -> bool {
    let shell = is_shell(called(parent, &arguments(parent)));
    let subshell = shell && program_of(parent) == program_of(child);
    !subshell && !at_a_prompt(child)
}

fn is_emperor(arguments: &[&[u8]]) -> bool {
    arguments.iter().any(|a| *a == b"--emperor" || a.starts_with(b"--emperor="))
}

/// The process that forks the workers of Python's multiprocessing in another's name.
pub fn forks_for_its_parent(facts: &Facts<'_>) -> bool {
    arguments(facts).iter().any(|a| a.starts_with(b"from multiprocessing.forkserver import main"))
}

/// The script of an interpreter's command line: the first argument that is no option, or the module after `-m`.
fn script<'a>(arguments: &[&'a [u8]]) -> Option<&'a [u8]> {
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match *argument {
            b"-m" => return rest.next().copied(),
            text if runs_text(text) => return None,
            b"-W" | b"-X" | b"-I" | b"-r" => {
                rest.next();
            }
            argument if argument.starts_with(b"-") || argument.is_empty() => {}
            argument => return Some(basename(argument)),
        }
    }
    None
}

/// The first statement of a program's text: what follows may be the business of one worker.
fn first_statement<'a>(arguments: &[&'a [u8]]) -> Option<&'a [u8]> {
    let at = arguments.iter().position(|a| runs_text(a))?;
    let text = arguments.get(at + 1)?;
    let end = text.iter().position(|b| matches!(b, b';' | b'\n')).unwrap_or(text.len());
    Some(&text[..end.min(128)])
}

/// What a process runs: the executable, and for an interpreter its script as well. `None` where that cannot be read.
pub fn program_of(facts: &Facts<'_>) -> Option<Vec<u8>> {
    let exe = facts.exe?;
    let mut program = exe.to_vec();
    let arguments = arguments(facts);
    let name = called(facts, &arguments);
    if name != basename(exe) {
        program.push(0);
        program.extend_from_slice(name);
    }
    // A title written over the arguments is one string; workers of one pool may have different ones.
    if is_interpreter(name)
        && arguments.len() > 1
        && let Some(script) = script(&arguments).or_else(|| first_statement(&arguments))
    {
        program.push(0);
        program.extend_from_slice(script);
    }
    Some(program)
}

/// Where the workers of a program wait for work, if it is not where most do.
///
/// In uWSGI and prefork httpd one worker at a time waits for connections, the others for a lock that the processes share
/// (`uwsgi.thunder_lock`, `Mutex mpm-accept`). A child of celery reads its jobs from a pipe (billiard's `SimpleQueue`).
pub fn idle_in(program: &str) -> Option<IdleIn> {
    match program {
        "uwsgi" | "apache2" => Some(IdleIn::kinds(&[POLL, LOCK])),
        "celery" => Some(IdleIn::kinds(&[POLL, LOCK, PIPE])),
        _ => None,
    }
}

/// The number after one of these options: `-w 4`, `-w4`, `--workers 4`, `--workers=4`.
fn option_number(arguments: &[&[u8]], names: &[&str]) -> Option<u32> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.trim_end_matches(')').parse().ok();
    arguments.iter().enumerate().find_map(|(at, argument)| {
        names.iter().find_map(|name| {
            let rest = argument.strip_prefix(name.as_bytes())?;
            if rest.is_empty() {
                return text(arguments.get(at + 1)?);
            }
            match rest.strip_prefix(b"=") {
                Some(value) => text(value),
                None if !name.starts_with("--") => text(rest),
                None => None,
            }
        })
    })
}

/// The text after one of these options, as a word of its own or after `=`.
fn option_value<'a>(arguments: &[&'a [u8]], names: &[&str]) -> Option<&'a [u8]> {
    arguments.iter().enumerate().find_map(|(at, argument)| {
        names.iter().find_map(|name| match argument.strip_prefix(name.as_bytes())? {
            b"" => arguments.get(at + 1).copied(),
            rest => rest.strip_prefix(b"="),
        })
    })
}

fn option_path(arguments: &[&[u8]], names: &[&str]) -> Option<PathBuf> {
    std::str::from_utf8(option_value(arguments, names)?).ok().map(PathBuf::from)
}

/// The path, unless it is relative: to what, only the program knows.
fn absolute(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| path.is_absolute())
}

/// Text between two marks.
fn between(line: &[u8], open: &[u8], close: u8) -> Option<String> {
    let at = line.windows(open.len()).position(|w| w == open)? + open.len();
    let rest = &line[at..];
    let end = rest.iter().position(|b| *b == close)?;
    Some(label_text(&rest[..end])).filter(|text| !text.is_empty())
}

fn recognized(program: &'static str) -> Recognized {
    Recognized { program, app: None, size: None, size_file: None, works: false }
}

/// A Python module, with or without an object: `shop.wsgi`, `shop:app`, `shop:make()`.
fn python_app<'a>(arguments: &[&'a [u8]]) -> Option<&'a [u8]> {
    let dotted = |path: &[u8]| {
        let identifier = |part: &[u8]| {
            part.first().is_some_and(|b| !b.is_ascii_digit())
                && part.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        };
        path.split(|b| *b == b'.').all(identifier)
    };
    let with_object = |argument: &&&[u8]| {
        let mut parts = argument.splitn(2, |b| *b == b':');
        parts.next().is_some_and(dotted)
            && parts
                .next()
                .and_then(|object| object.first())
                .is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
    };
    let last = || arguments.last().filter(|last| last.contains(&b'.') && dotted(last));
    arguments.iter().skip(1).find(with_object).or_else(last).copied()
}

/// uWSGI, by its arguments: in a title there are none.
fn uwsgi(line: &[u8], arguments: &[&[u8]]) -> Option<Recognized> {
    if is_emperor(arguments) || arguments.len() < 2 && !line.windows(12).any(|w| w == b"uWSGI master") {
        return None;
    }
    let is_file = |argument: &&&[u8]| {
        let kinds: [&[u8]; 5] = [b".ini", b".yaml", b".yml", b".xml", b".json"];
        kinds.iter().any(|kind| argument.ends_with(kind))
    };
    let files: Vec<&[u8]> = arguments.iter().filter(is_file).copied().collect();
    let file =
        files.last().and_then(|f| f.strip_prefix(b"--ini=").or(Some(f))).filter(|f| f.ends_with(b".ini"));
    let has_master = arguments.iter().any(|a| *a == b"--master" || *a == b"-M");
    Some(Recognized {
        size: option_number(arguments, &["--processes", "--workers", "-p"]),
        size_file: file.and_then(|f| std::str::from_utf8(f).ok()).map(PathBuf::from),
        // Of several files any may ask for a master, and most do.
        works: !has_master
            && arguments.len() > 1
            && files.len() <= 1
            && files.len() == usize::from(file.is_some()),
        ..recognized("uwsgi")
    })
}

/// celery, by its arguments or by those that its title repeats in parentheses.
fn celery(words: &[&[u8]]) -> Recognized {
    Recognized {
        app: option_value(words, &["-A", "--app"]).map(label_text),
        size: option_number(words, &["--concurrency", "-c"]),
        ..recognized("celery")
    }
}

/// Says whether a process is the master of a program that is known here.
pub fn master(facts: &Facts<'_>) -> Option<Recognized> {
    let line = joined(facts.cmdline);
    let arguments = arguments(facts);
    let exe = exe_name(facts);
    let runs = |name: &str| {
        let script_is = is_interpreter(exe) && script(&arguments).is_some_and(|s| s == name.as_bytes());
        exe == name.as_bytes() || script_is
    };
    if line.starts_with(b"nginx: master process") {
        let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let file = absolute(option_path(&words, &["-c"])).unwrap_or_else(|| "/etc/nginx/nginx.conf".into());
        return Some(Recognized { size_file: Some(file), ..recognized("nginx") });
    }
    if line.starts_with(b"gunicorn: master [") {
        return Some(Recognized {
            app: between(&line, b"master [", b']'),
            size_file: Some("gunicorn.conf.py".into()),
            ..recognized("gunicorn")
        });
    }
    if runs("gunicorn") && !line.starts_with(b"gunicorn: worker") {
        let file = option_path(&arguments, &["--config", "-c"]);
        return Some(Recognized {
            app: python_app(&arguments).map(label_text),
            size: option_number(&arguments, &["--workers", "-w"]),
            size_file: Some(file.unwrap_or_else(|| "gunicorn.conf.py".into())),
            ..recognized("gunicorn")
        });
    }
    if exe.starts_with(b"uwsgi") {
        return uwsgi(&line, &arguments);
    }
    if line.starts_with(b"php-fpm: master process") {
        let file = between(&line, b"master process (", b')').map(PathBuf::from);
        return Some(Recognized { size_file: file.filter(|f| f.is_absolute()), ..recognized("php-fpm") });
    }
    if exe == b"apache2" || exe == b"httpd" {
        // Where Debian has it, as long as the server uses prefork.
        let file = absolute(option_path(&arguments, &["-f"]));
        let file = file.unwrap_or_else(|| "/etc/apache2/mods-enabled/mpm_prefork.conf".into());
        return Some(Recognized { size_file: Some(file), ..recognized("apache2") });
    }
    if exe == b"postgres" && !line.starts_with(b"postgres:") {
        return Some(recognized("postgresql"));
    }
    if line.starts_with(b"puma ") && !line.starts_with(b"puma: cluster worker") {
        return Some(Recognized {
            app: between(&line, b"[", b']'),
            size_file: Some("config/puma.rb".into()),
            ..recognized("puma")
        });
    }
    if runs("puma") {
        return Some(Recognized {
            app: option_value(&arguments, &["--tag"]).map(label_text),
            size: option_number(&arguments, &["--workers", "-w"]),
            size_file: option_path(&arguments, &["-C", "--config"]).or_else(|| Some("config/puma.rb".into())),
            ..recognized("puma")
        });
    }
    if line.starts_with(b"[celeryd: ") && line.windows(12).any(|w| w == b":MainProcess") {
        let inside = between(&line, b"(", b')').unwrap_or_default();
        return Some(celery(&inside.as_bytes().split(|b| *b == b' ').collect::<Vec<_>>()));
    }
    if runs("celery") && arguments.contains(&b"worker".as_slice()) {
        return Some(celery(&arguments));
    }
    None
}

/// The database of a client backend, by its title: `postgres: user database client state`, with the cluster's name
/// before where it has one. Only clients have an address (`[local]` or `host(port)`), and senders of WAL.
fn postgres_database(line: &[u8]) -> Option<&[u8]> {
    let title = line.strip_prefix(b"postgres: ")?;
    let title = title.windows(2).position(|w| w == b": ").map_or(title, |at| &title[at + 2..]);
    let is_client = |word: &[u8]| {
        let port = || {
            let port = word.strip_suffix(b")")?.rsplit(|b| *b == b'(').next()?;
            Some(port.len() + 2 < word.len() && !port.is_empty() && port.iter().all(u8::is_ascii_digit))
        };
        word == b"[local]" || port().unwrap_or(false)
    };
    if title.starts_with(b"walsender ") {
        return None;
    }
    let words: Vec<&[u8]> = title.split(|b| *b == b' ').take(16).collect();
    let client = words.iter().skip(2).position(|word| is_client(word))? + 2;
    words.get(client - 1).copied()
}

/// What a child of a recognized master does.
pub fn child_role(program: &str, child: &Facts<'_>) -> Role {
    let line = joined(child.cmdline);
    let exe = exe_name(child);
    let arguments = arguments(child);
    let script_is = |name: &[u8]| is_interpreter(exe) && script(&arguments) == Some(name);
    let worker = Role::Worker { app: None };
    match program {
        "nginx" => {
            if line.starts_with(b"nginx: worker process") {
                worker
            } else {
                Role::Helper
            }
        }
        "postgresql" => match postgres_database(&line) {
            Some(database) => {
                Role::Worker { app: Some(label_text(database)).filter(|name| !name.is_empty()) }
            }
            None => Role::Helper,
        },
        "php-fpm" => match line.strip_prefix(b"php-fpm: pool ") {
            Some(pool) => Role::Worker { app: Some(label_text(pool)) },
            None => Role::Helper,
        },
        "apache2" => {
            if exe == b"apache2" || exe == b"httpd" {
                worker
            } else {
                Role::Helper
            }
        }
        "uwsgi" => {
            let titled = |kind: &[u8]| line.windows(kind.len()).any(|w| w == kind);
            if exe.starts_with(b"uwsgi") && (titled(b"uWSGI worker ") || !titled(b"uWSGI ")) {
                worker
            } else {
                Role::Helper
            }
        }
        "gunicorn" => {
            if line.starts_with(b"gunicorn: worker") {
                Role::Worker { app: between(&line, b"worker [", b']') }
            } else if script_is(b"gunicorn") {
                worker
            } else {
                Role::Helper
            }
        }
        "celery" => {
            if line.windows(11).any(|w| w == b"PoolWorker-") || script_is(b"celery") {
                worker
            } else {
                Role::Helper
            }
        }
        "puma" => {
            if line.starts_with(b"puma: cluster worker") {
                Role::Worker { app: between(&line, b"[", b']') }
            } else {
                Role::Helper
            }
        }
        _ => worker,
    }
}

/// Helpers of this program may look like workers, but are forked after them: those beyond the configured number are
/// none.
pub fn helpers_come_last(program: &str) -> bool {
    program == "uwsgi"
}

/// The configuration asks for a parent that only supervises.
pub fn asks_for_master(text: &str) -> bool {
    let on = |value: &str| matches!(value.trim(), "true" | "1" | "yes" | "on" | "enable");
    text.lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, value)| key.trim() == "master" && on(value))
}

/// Reads the number of workers from the text of a program's configuration. Includes are not followed.
pub fn size_from_config(program: &str, text: &str) -> Option<Size> {
    let number = |value: &str| value.trim().trim_end_matches(';').trim().parse().ok().map(Size::Fixed);
    let lines = text.lines().map(|line| line.split(['#']).next().unwrap_or_default().trim());
    let assigned = |names: &[&str]| {
        let value = lines.clone().filter_map(|line| line.split_once('='));
        value.filter(|(key, _)| names.contains(&key.trim())).map(|(_, value)| value.trim()).next_back()
    };
    match program {
        "gunicorn" => assigned(&["workers"]).and_then(number),
        "uwsgi" => match assigned(&["processes", "workers"])? {
            "%k" => Some(Size::PerCpu),
            value => number(value),
        },
        "puma" => {
            let mut calls = lines.filter_map(|line| line.strip_prefix("workers"));
            number(calls.next()?.trim().trim_start_matches('(').trim_end_matches(')'))
        }
        // Threaded servers divide it by another number.
        "apache2" if text.contains("mpm_prefork") => lines
            .filter_map(|line| line.split_once(char::is_whitespace))
            .find(|(key, _)| {
                key.eq_ignore_ascii_case("MaxRequestWorkers") || key.eq_ignore_ascii_case("MaxClients")
            })
            .and_then(|(_, value)| number(value)),
        "nginx" => lines.filter_map(|line| line.strip_prefix("worker_processes")).find_map(|value| {
            if value.trim().trim_end_matches(';').trim() == "auto" {
                Some(Size::PerCpu)
            } else {
                number(value)
            }
        }),
        "php-fpm" => lines
            .filter_map(|line| line.split_once('='))
            .filter(|(key, _)| key.trim() == "pm.max_children")
            .filter_map(|(_, value)| value.split(';').next()?.trim().parse::<u32>().ok())
            .reduce(u32::saturating_add)
            .map(Size::Fixed),
        _ => None,
    }
}

/// The pool of such a parent is named after what it starts: that it is a shell says nothing.
pub fn is_named_after_workers(master_facts: &Facts<'_>) -> bool {
    is_shell(called(master_facts, &arguments(master_facts)))
}

/// A name for the pool of a master: what it runs, as people call it.
pub fn pool_name(master_facts: &Facts<'_>) -> String {
    if let Some(known) = master(master_facts) {
        return known.program.to_owned();
    }
    let arguments = arguments(master_facts);
    let exe = called(master_facts, &arguments);
    let script = is_interpreter(exe).then(|| script(&arguments)).flatten();
    let name = match script {
        Some(script) => {
            let stem = script.iter().rposition(|b| *b == b'.').filter(|at| *at > 0).unwrap_or(script.len());
            &script[..stem]
        }
        None if !exe.is_empty() => exe,
        None => master_facts.comm,
    };
    let name = label_text(name).trim().to_owned();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts<'a>(exe: &'a str, cmdline: &'a str) -> Facts<'a> {
        Facts { comm: b"x", exe: Some(exe.as_bytes()), cmdline: Some(cmdline.as_bytes()), ..Facts::default() }
    }

    fn check(exe: &str, cmdline: &str, program: &str, app: Option<&str>, size: Option<u32>) {
        let found = master(&facts(exe, cmdline));
        let found = found.as_ref().map(|r| (r.program, r.app.as_deref(), r.size));
        assert_eq!(found, Some((program, app, size)), "{cmdline:?}");
    }

    #[test]
    fn knows_masters() {
        let python = "/usr/bin/python3.11";
        check(
            "/usr/sbin/nginx",
            "nginx: master process /usr/sbin/nginx -g daemon off;\0",
            "nginx",
            None,
            None,
        );
        check(python, "gunicorn: master [shop.wsgi]\0", "gunicorn", Some("shop.wsgi"), None);
        check(
            python,
            "/v/bin/python\0/v/bin/gunicorn\0-w\x004\0shop:app\0",
            "gunicorn",
            Some("shop:app"),
            Some(4),
        );
        check(
            python,
            "python3\0-m\0gunicorn\0--workers=3\0shop:app\0",
            "gunicorn",
            Some("shop:app"),
            Some(3),
        );
        check("/usr/bin/uwsgi-core", "uwsgi\0--processes\x006\0", "uwsgi", None, Some(6));
        check(
            "/usr/sbin/php-fpm8.2",
            "php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)\0",
            "php-fpm",
            None,
            None,
        );
        check("/usr/sbin/apache2", "/usr/sbin/apache2\0-k\0start\0", "apache2", None, None);
        check(
            "/usr/lib/postgresql/15/bin/postgres",
            "/usr/lib/postgresql/15/bin/postgres\0-D\0/d\0",
            "postgresql",
            None,
            None,
        );
        check("/usr/bin/ruby3.1", "puma 5.6.5 (tcp://0.0.0.0:9292) [shop]\0", "puma", Some("shop"), None);
        check("/usr/bin/ruby3.1", "/usr/bin/ruby\0/usr/bin/puma\0-w\x002\0", "puma", None, Some(2));
        check(python, "python\0/v/bin/celery\0-A\0proj\0worker\0-c\x008\0", "celery", Some("proj"), Some(8));
        check(
            python,
            "[celeryd: celery@host:MainProcess] -active- (-A proj worker -c 8)\0",
            "celery",
            Some("proj"),
            Some(8),
        );
        check(python, "python3\0-m\0celery\0--app=proj\0worker\0", "celery", Some("proj"), None);
        check(
            python,
            "python\0/v/bin/gunicorn\0shop:app\0-b\x00127.0.0.1:80\0",
            "gunicorn",
            Some("shop:app"),
            None,
        );
        check(
            python,
            "python\0/v/bin/gunicorn\0-w\x002\0shop.wsgi\0",
            "gunicorn",
            Some("shop.wsgi"),
            Some(2),
        );
        check(python, "python\0/v/bin/gunicorn\0-b\0unix:/run/g.sock\0", "gunicorn", None, None);
        check("/usr/bin/uwsgi-core", "shop uWSGI master\0", "uwsgi", None, None);
    }

    #[test]
    fn does_not_take_workers_for_masters() {
        let none = |exe, line| assert_eq!(master(&facts(exe, line)), None, "{line:?}");
        none("/usr/sbin/nginx", "nginx: worker process\0");
        none("/usr/bin/python3", "gunicorn: worker [shop]\0");
        none("/usr/lib/postgresql/15/bin/postgres", "postgres: checkpointer \0");
        none("/usr/bin/ruby", "puma: cluster worker 0: 12 [shop]\0");
        none("/usr/bin/uwsgi-core", "uwsgi\0--emperor\0/etc/uwsgi/apps-enabled\0");
        none("/usr/bin/uwsgi-core", "uWSGI worker 1\0");
        none("/bin/sleep", "sleep\x00100\0");
        none("", "");
    }

    #[test]
    fn tells_workers_from_helpers() {
        let role = |program, line: &str| child_role(program, &facts("/x/postgres", line));
        let app = |app: &str| Role::Worker { app: Some(app.into()) };
        assert_eq!(role("postgresql", "postgres: alice shop 127.0.0.1(4711) idle\0"), app("shop"));
        assert_eq!(role("postgresql", "postgres: main: alice shop [local] SELECT\0"), app("shop"));
        assert_eq!(role("postgresql", "postgres: alice shop ::1(4711) authentication\0"), app("shop"));
        for helper in [
            "parallel worker for PID 4711 ",
            "walsender alice 10.0.0.1(4711) streaming 0/1",
            "autovacuum worker shop",
            "pg_cron launcher ",
            "main: alice shop ()",
            "checkpointer ",
            "main: walwriter ",
            "logical replication launcher ",
            "io worker 0",
        ] {
            assert_eq!(role("postgresql", &format!("postgres: {helper}\0")), Role::Helper, "{helper}");
        }
        assert_eq!(role("nginx", "nginx: worker process\0"), Role::Worker { app: None });
        assert_eq!(role("nginx", "nginx: worker process is shutting down\0"), Role::Worker { app: None });
        assert_eq!(role("nginx", "nginx: cache manager process\0"), Role::Helper);
        assert_eq!(role("php-fpm", "php-fpm: pool www\0"), app("www"));
        assert_eq!(role("gunicorn", "gunicorn: worker [shop]\0"), app("shop"));
        assert_eq!(role("puma", "puma: cluster worker 1: 4711 [shop]\0"), app("shop"));
        assert_eq!(role("celery", "[celeryd: celery@vm:ForkPoolWorker-3]\0"), Role::Worker { app: None });
        assert_eq!(role("celery", "[celery beat]\0"), Role::Helper);
        let uwsgi = |line: &str| child_role("uwsgi", &facts("/usr/bin/uwsgi-core", line));
        assert_eq!(uwsgi("uwsgi\0--processes\x003\0"), Role::Worker { app: None });
        assert_eq!(uwsgi("shop uWSGI worker 3\0"), Role::Worker { app: None });
        for helper in ["uWSGI http 1\0", "shop uWSGI spooler\0", "uWSGI mule 1\0"] {
            assert_eq!(uwsgi(helper), Role::Helper, "{helper}");
        }
    }

    #[test]
    fn a_uwsgi_without_a_master_works_itself() {
        let works = |line: &str| master(&facts("/usr/bin/uwsgi-core", line)).is_some_and(|r| r.works);
        assert!(works("uwsgi\0--http-socket\0:80\0-p\x003\0"));
        assert!(works("uwsgi\0--ini\0app.ini\0"), "unless the file says otherwise");
        assert!(!works("uwsgi\0--master\0-p\x003\0"));
        assert!(!works("uwsgi\0--ini\0defaults.ini\0--ini\0app.ini\0"));
        assert!(!works("uwsgi\0--yaml\0app.yaml\0"));
        assert!(!works("uWSGI master\0"));
        assert!(asks_for_master("[uwsgi]\nmaster = true\n") && !asks_for_master("[uwsgi]\nmaster=0\n"));
    }

    #[test]
    fn not_every_parent_of_twins_has_a_pool() {
        let strangers = |exe, line| starts_strangers(&facts(exe, line));
        for (exe, line) in [
            ("/usr/sbin/sshd", "sshd: root@pts/0\0"),
            ("/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd\0--user\0"),
            ("/usr/bin/containerd-shim-runc-v2", "containerd-shim-runc-v2\0-id\x001\0"),
            ("/usr/bin/bash", "-bash\0"),
            ("/usr/bin/bash", "bash\0--norc\0-i\0"),
            ("/usr/bin/busybox", "-sh\0"),
            ("/usr/bin/uwsgi-core", "uwsgi\0--emperor\0/etc/uwsgi\0"),
        ] {
            assert!(strangers(exe, line), "{exe} {line:?}");
        }
        for (exe, line) in [
            ("/usr/bin/dash", "/bin/sh\0./start.sh\0"),
            ("/usr/bin/bash", "bash\0-ec\0work & work & wait\0"),
            ("/usr/bin/busybox", "sh\0/start.sh\0"),
            ("/usr/bin/python3.11", "python3\0/usr/bin/supervisord\0"),
            ("/srv/imaged", "imaged\0"),
        ] {
            assert!(!strangers(exe, line), "{exe} {line:?}");
        }
        let work = |parent: (&str, &str), child: (&str, &str)| {
            may_work(&facts(parent.0, parent.1), &facts(child.0, child.1))
        };
        let script = ("/usr/bin/dash", "/bin/sh\0./start.sh\0");
        assert!(!work(script, script), "a subshell");
        assert!(work(script, ("/usr/bin/sleep", "sleep\x001\0")));
        assert!(!work(("/usr/bin/terminal", "terminal\0"), ("/usr/bin/bash", "bash\0")));
        assert!(work(("/usr/bin/node", "node\0a.js\0"), ("/usr/bin/node", "/usr/bin/node\0/srv/a.js\0")));
    }

    #[test]
    fn reads_sizes_from_configuration() {
        let check = |program, text, size| assert_eq!(size_from_config(program, text), size, "{text}");
        check("nginx", "user www;\nworker_processes 4;\n", Some(Size::Fixed(4)));
        check("nginx", "worker_processes auto; # all\n", Some(Size::PerCpu));
        check("nginx", "# worker_processes 9;\n", None);
        check("php-fpm", "[a]\npm.max_children = 5\n[b]\npm.max_children=7\n", Some(Size::Fixed(12)));
        check("php-fpm", "[a]\npm.max_children = 5 ; all\n;pm.max_children = 9\n", Some(Size::Fixed(5)));
        check("apache2", "MaxRequestWorkers 5", None);
        let prefork =
            "<IfModule mpm_prefork_module>\n  StartServers 2\n  MaxRequestWorkers\t150\n</IfModule>";
        check("apache2", prefork, Some(Size::Fixed(150)));
        check("uwsgi", "[uwsgi]\nprocesses = 3 # all\n", Some(Size::Fixed(3)));
        check("uwsgi", "[uwsgi]\nworkers=%k\n", Some(Size::PerCpu));
        check("gunicorn", "import os\nworkers = 4\n", Some(Size::Fixed(4)));
        check("gunicorn", "workers = os.cpu_count()\n", None);
        check("puma", "threads 1, 5\nworkers 2\n", Some(Size::Fixed(2)));
        check("puma", "workers ENV.fetch('WEB_CONCURRENCY') { 2 }\n", None);
    }

    #[test]
    fn names_pools_as_people_do() {
        let check =
            |exe: &str, line: &str, name: &str| assert_eq!(pool_name(&facts(exe, line)), name, "{line:?}");
        check("/usr/bin/python3.11", "python3\0/srv/app/worker.py\0--x\0", "worker");
        check("/usr/bin/python3.11", "python3\0-m\0rq.worker\0", "rq");
        check("/usr/bin/python3.11", "python3\0-c\0print()\0", "python3.11");
        check("/usr/bin/bash", "bash\0", "bash");
        check("/opt/my server/bin/daemon", "daemon\0", "daemon");
        check("/usr/sbin/nginx", "nginx: master process nginx\0", "nginx");
    }

    #[test]
    fn programs_of_interpreters_include_the_script() {
        let of = |exe: &str, line: &str| program_of(&facts(exe, line));
        let python = "/usr/bin/python3";
        assert_ne!(of(python, "python3\0a.py\0"), of(python, "python3\0b.py\0"));
        let forked =
            |n: u8| format!("python3\0-c\0from m import spawn; spawn({n})\0--multiprocessing-fork\0");
        assert_eq!(of(python, &forked(1)), of(python, &forked(2)));
        assert_ne!(of(python, &forked(1)), of(python, "python3\0-c\0from m import tracker; tracker(1)\0"));
        let busybox = "/bin/busybox";
        assert_ne!(of(busybox, "sleep\x001\0"), of(busybox, "tail\0-f\0a\0"));
        assert_eq!(of("/bin/sleep", "sleep\x001\0"), of("/bin/sleep", "sleep\x002\0"));
        assert_eq!(program_of(&Facts::default()), None);
    }

    proptest! {
        #[test]
        fn never_panics(exe: Vec<u8>, cmdline: Vec<u8>, title in "(nginx: master process|gunicorn: master \\[|postgres: |puma |\\[celeryd: ).{0,20}") {
            for line in [cmdline.as_slice(), title.as_bytes()] {
                let facts = Facts { comm: b"x", exe: Some(&exe), cmdline: Some(line), ..Facts::default() };
                let _ = (master(&facts), pool_name(&facts), program_of(&facts));
                for program in ["nginx", "postgresql", "php-fpm", "uwsgi", "gunicorn", "puma"] {
                    let _ = child_role(program, &facts);
                }
            }
        }
    }
}
