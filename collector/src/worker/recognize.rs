//! Programs that everybody runs, recognized without configuration: who is the master, how many workers it is meant
//! to have, which of its children are workers.
//!
//! Pure, on what `/proc` shows. Titles are those that the programs write themselves; argv is what is left where they
//! do not. Sources: nginx `src/os/unix/ngx_process_cycle.c`, PostgreSQL `src/backend/utils/misc/ps_status.c` and
//! `src/backend/postmaster/`, gunicorn `gunicorn/arbiter.py` and `util.py`, uWSGI `core/uwsgi.c`, PHP
//! `sapi/fpm/fpm/fpm_env.c`, Puma `lib/puma/cluster.rb`, Celery `celery/platforms.py`, httpd `server/mpm/prefork`.

use std::path::{Path, PathBuf};

use super::matcher::{Facts, joined, label_text};

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
const INTERPRETERS: [&str; 10] =
    ["python", "pypy", "ruby", "perl", "node", "php", "bash", "sh", "dash", "zsh"];

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

fn is_interpreter(name: &[u8]) -> bool {
    let stem_len = name.iter().position(|b| b.is_ascii_digit() || *b == b'.').unwrap_or(name.len());
    INTERPRETERS.iter().any(|i| i.as_bytes() == &name[..stem_len])
}

/// The script of an interpreter's command line: the first argument that is no option, or the module after `-m`.
fn script<'a>(arguments: &[&'a [u8]]) -> Option<&'a [u8]> {
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match *argument {
            b"-m" => return rest.next().copied(),
            b"-c" | b"-e" => return None,
            b"-W" | b"-X" | b"-I" | b"-r" => {
                rest.next();
            }
            argument if argument.starts_with(b"-") || argument.is_empty() => {}
            argument => return Some(basename(argument)),
        }
    }
    None
}

/// What a process runs: the executable, and for an interpreter its script as well. `None` where that cannot be read.
pub fn program_of(facts: &Facts<'_>) -> Option<Vec<u8>> {
    let exe = facts.exe?;
    let mut program = exe.to_vec();
    if is_interpreter(basename(exe)) {
        let arguments = arguments(facts);
        // A title written over the arguments is one string; workers of one pool may have different ones.
        if arguments.len() > 1
            && let Some(script) = script(&arguments)
        {
            program.push(0);
            program.extend_from_slice(script);
        }
    }
    Some(program)
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

fn option_path(arguments: &[&[u8]], names: &[&str]) -> Option<PathBuf> {
    let at = arguments.iter().position(|a| names.iter().any(|n| n.as_bytes() == *a))?;
    let path = std::str::from_utf8(arguments.get(at + 1)?).ok()?;
    Path::new(path).is_absolute().then(|| path.into())
}

/// Text between two marks.
fn between(line: &[u8], open: &[u8], close: u8) -> Option<String> {
    let at = line.windows(open.len()).position(|w| w == open)? + open.len();
    let rest = &line[at..];
    let end = rest.iter().position(|b| *b == close)?;
    Some(label_text(&rest[..end])).filter(|text| !text.is_empty())
}

fn recognized(program: &'static str) -> Recognized {
    Recognized { program, app: None, size: None, size_file: None }
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
        let file = option_path(&words, &["-c"]).unwrap_or_else(|| "/etc/nginx/nginx.conf".into());
        return Some(Recognized { size_file: Some(file), ..recognized("nginx") });
    }
    if line.starts_with(b"gunicorn: master [") {
        return Some(Recognized { app: between(&line, b"master [", b']'), ..recognized("gunicorn") });
    }
    if runs("gunicorn") && !line.starts_with(b"gunicorn: worker") {
        let app = arguments.last().filter(|a| a.contains(&b':') && !a.starts_with(b"-"));
        return Some(Recognized {
            app: app.map(|a| label_text(a)),
            size: option_number(&arguments, &["--workers", "-w"]),
            ..recognized("gunicorn")
        });
    }
    if exe.starts_with(b"uwsgi") || line.starts_with(b"uWSGI master") {
        let size = option_number(&arguments, &["--processes", "--workers", "-p"]);
        return Some(Recognized { size, ..recognized("uwsgi") });
    }
    if line.starts_with(b"php-fpm: master process") {
        let file = between(&line, b"master process (", b')').map(PathBuf::from);
        return Some(Recognized { size_file: file.filter(|f| f.is_absolute()), ..recognized("php-fpm") });
    }
    if exe == b"apache2" || exe == b"httpd" {
        return Some(recognized("apache2"));
    }
    if exe == b"postgres" && !line.starts_with(b"postgres:") {
        return Some(recognized("postgresql"));
    }
    if line.starts_with(b"puma ") && !line.starts_with(b"puma: cluster worker") {
        return Some(Recognized { app: between(&line, b"[", b']'), ..recognized("puma") });
    }
    if runs("puma") {
        return Some(Recognized {
            size: option_number(&arguments, &["--workers", "-w"]),
            ..recognized("puma")
        });
    }
    if line.starts_with(b"[celeryd: ") && line.windows(12).any(|w| w == b":MainProcess") {
        return Some(Recognized {
            app: between(&line, b"[celeryd: ", b':'),
            size: option_number(&line.split(|b| *b == b' ').collect::<Vec<_>>(), &["--concurrency", "-c"]),
            ..recognized("celery")
        });
    }
    if runs("celery") && arguments.contains(&b"worker".as_slice()) {
        return Some(Recognized {
            app: arguments
                .iter()
                .position(|a| *a == b"-A")
                .and_then(|at| arguments.get(at + 1))
                .map(|a| label_text(a)),
            size: option_number(&arguments, &["--concurrency", "-c"]),
            ..recognized("celery")
        });
    }
    None
}

/// Children of PostgreSQL's postmaster that serve no client, by the start of their title. Backends are titled
/// `postgres: user database client state`, optionally with the cluster's name before.
const POSTGRES_HELPERS: [&str; 15] = [
    "checkpointer",
    "background writer",
    "walwriter",
    "autovacuum launcher",
    "autovacuum worker",
    "stats collector",
    "logical replication",
    "archiver",
    "startup",
    "walreceiver",
    "walsummarizer",
    "logger",
    "io worker",
    "slotsync worker",
    "background worker",
];

/// What a child of a recognized master does.
pub fn child_role(program: &str, child: &Facts<'_>) -> Role {
    let line = joined(child.cmdline);
    let exe = exe_name(child);
    let worker = Role::Worker { app: None };
    match program {
        "nginx" => {
            if line.starts_with(b"nginx: worker process") {
                worker
            } else {
                Role::Helper
            }
        }
        "postgresql" => {
            let Some(title) = line.strip_prefix(b"postgres: ") else { return Role::Helper };
            // With cluster_name set the title is `postgres: name: checkpointer`.
            let title = match title.windows(2).position(|w| w == b": ") {
                Some(at) => &title[at + 2..],
                None => title,
            };
            if POSTGRES_HELPERS.iter().any(|helper| title.starts_with(helper.as_bytes())) {
                Role::Helper
            } else {
                let database = title.split(|b| *b == b' ').nth(1).map(label_text);
                Role::Worker { app: database.filter(|name| !name.is_empty()) }
            }
        }
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
            let helper = !exe.starts_with(b"uwsgi") || line.starts_with(b"uWSGI http");
            if helper { Role::Helper } else { worker }
        }
        "gunicorn" => Role::Worker { app: between(&line, b"worker [", b']') },
        "puma" => {
            if line.starts_with(b"puma: cluster worker") || is_interpreter(exe) {
                worker
            } else {
                Role::Helper
            }
        }
        _ => worker,
    }
}

/// Reads the number of workers from the text of a program's configuration. Includes are not followed.
pub fn size_from_config(program: &str, text: &str) -> Option<Size> {
    let number = |value: &str| value.trim().trim_end_matches(';').trim().parse().ok().map(Size::Fixed);
    let lines = text.lines().map(|line| line.split(['#']).next().unwrap_or_default().trim());
    match program {
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
            .filter_map(|(_, value)| value.trim().parse::<u32>().ok())
            .reduce(u32::saturating_add)
            .map(Size::Fixed),
        _ => None,
    }
}

/// A name for the pool of a master: what it runs, as people call it.
pub fn pool_name(master_facts: &Facts<'_>) -> String {
    if let Some(known) = master(master_facts) {
        return known.program.to_owned();
    }
    let exe = exe_name(master_facts);
    let arguments = arguments(master_facts);
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
            Some("celery@host"),
            Some(8),
        );
    }

    #[test]
    fn does_not_take_workers_for_masters() {
        let none = |exe, line| assert_eq!(master(&facts(exe, line)), None, "{line:?}");
        none("/usr/sbin/nginx", "nginx: worker process\0");
        none("/usr/bin/python3", "gunicorn: worker [shop]\0");
        none("/usr/lib/postgresql/15/bin/postgres", "postgres: checkpointer \0");
        none("/usr/bin/ruby", "puma: cluster worker 0: 12 [shop]\0");
        none("/bin/sleep", "sleep\x00100\0");
        none("", "");
    }

    #[test]
    fn tells_workers_from_helpers() {
        let role = |program, line: &str| child_role(program, &facts("/x/postgres", line));
        let app = |app: &str| Role::Worker { app: Some(app.into()) };
        assert_eq!(role("postgresql", "postgres: alice shop 127.0.0.1(4711) idle\0"), app("shop"));
        assert_eq!(role("postgresql", "postgres: main: alice shop [local] SELECT\0"), app("shop"));
        for helper in ["checkpointer ", "main: walwriter ", "logical replication launcher ", "io worker 0"] {
            assert_eq!(role("postgresql", &format!("postgres: {helper}\0")), Role::Helper, "{helper}");
        }
        assert_eq!(role("nginx", "nginx: worker process\0"), Role::Worker { app: None });
        assert_eq!(role("nginx", "nginx: worker process is shutting down\0"), Role::Worker { app: None });
        assert_eq!(role("nginx", "nginx: cache manager process\0"), Role::Helper);
        assert_eq!(role("php-fpm", "php-fpm: pool www\0"), app("www"));
        assert_eq!(role("gunicorn", "gunicorn: worker [shop]\0"), app("shop"));
    }

    #[test]
    fn reads_sizes_from_configuration() {
        let check = |program, text, size| assert_eq!(size_from_config(program, text), size, "{text}");
        check("nginx", "user www;\nworker_processes 4;\n", Some(Size::Fixed(4)));
        check("nginx", "worker_processes auto; # all\n", Some(Size::PerCpu));
        check("nginx", "# worker_processes 9;\n", None);
        check("php-fpm", "[a]\npm.max_children = 5\n[b]\npm.max_children=7\n", Some(Size::Fixed(12)));
        check("apache2", "MaxRequestWorkers 5", None);
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
        let of = |exe, line| program_of(&facts(exe, line));
        let python = "/usr/bin/python3";
        assert_ne!(of(python, "python3\0a.py\0"), of(python, "python3\0b.py\0"));
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
