//! The servers that people run, from their packages, without a word of configuration for us.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use serde_json::Value;

use crate::support::{Collector, eventually, pool_of};

/// A server that is ended with the test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|e| panic!("{}: {e}; is its package installed?", name.display())))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGQUIT);
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn pids(pool: &Value) -> Vec<i64> {
    pool["workers"].as_array().unwrap().iter().map(|w| w["pid"].as_i64().unwrap()).collect()
}

fn slots(pool: &Value) -> Vec<(i64, i64)> {
    let number = |value: &Value| value.as_i64().unwrap();
    pool["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| (number(&w["slot"]), number(&w["generation"])))
        .collect()
}

#[test]
fn nginx_with_four_workers_and_its_reload() {
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("nginx.conf");
    let text = format!(
        "worker_processes 4;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{1}; return 200; }} }}\n",
        directory.path().display(),
        free_port()
    );
    std::fs::write(&configuration, text).unwrap();
    let collector = Collector::start(&["--source=ebpf"]);
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(&configuration).args(["-g", "daemon off;"]);
    let nginx = Server::start(&mut command);
    let pool = collector.pool_of(nginx.pid(), 4);
    assert_eq!(pool["name"], "nginx");
    assert_eq!(pool["origin"], "recognized:nginx");
    assert_eq!((&pool["configured_size"], &pool["size"]), (&4.into(), &4.into()));
    assert_eq!(slots(&pool), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    let spawned_at_start = pool["spawns_total"].as_u64().unwrap();
    assert_eq!(spawned_at_start, 4, "they came while we looked");

    // The new workers come before the old ones go, so they take the next slots; the reload after that takes the
    // first ones again.
    let mut before = pids(&pool);
    for (round, expected) in [(1, [(4, 1), (5, 1), (6, 1), (7, 1)]), (2, [(0, 2), (1, 2), (2, 2), (3, 2)])] {
        kill(nginx.pid(), Signal::SIGHUP).unwrap();
        let pool = eventually("four new workers have taken over", || {
            let stats = collector.stats();
            let pool = pool_of(&stats, nginx.pid())?;
            let new = pids(pool);
            (new.len() == 4 && !new.iter().any(|pid| before.contains(pid))).then(|| pool.clone())
        });
        assert_eq!(slots(&pool), expected);
        assert_eq!(pool["spawns_total"], spawned_at_start + 4 * round);
        assert_eq!(pool["totals"]["exits"]["success"], 4 * round, "the old ones ended by themselves");
        before = pids(&pool);
    }
    assert_eq!(pool["masters"].as_array().unwrap().len(), 1);
}

#[test]
fn gunicorn_with_four_workers_and_one_killed() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("shop.py"),
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'ok']\n",
    )
    .unwrap();
    let mut command = Command::new("/usr/bin/gunicorn");
    command
        .args(["-w", "4", "-b", &format!("127.0.0.1:{}", free_port()), "shop:app"])
        .current_dir(directory.path());
    let gunicorn = Server::start(&mut command);
    let collector = Collector::start(&["--source=ebpf"]);
    let pool = collector.pool_of(gunicorn.pid(), 4);
    assert_eq!((&pool["name"], &pool["configured_size"]), (&"gunicorn".into(), &4.into()));
    let spawned_at_start = pool["spawns_total"].as_u64().unwrap();

    let victim = &pool["workers"][2];
    let pid = Pid::from_raw(victim["pid"].as_i64().unwrap() as i32);
    kill(pid, Signal::SIGKILL).unwrap();
    let certificate = collector.certificate(pid);
    assert_eq!(certificate["signal"]["name"], "SIGKILL");
    assert_eq!(certificate["sender"]["pid"], std::process::id());
    assert_eq!((&certificate["slot"], &certificate["oom_killed"]), (&victim["slot"], &false.into()));
    let pool = eventually("a successor has its slot", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, gunicorn.pid())?.clone();
        (slots(&pool) == [(0, 1), (1, 1), (2, 2), (3, 1)]).then_some(pool)
    });
    assert_eq!(pool["spawns_total"], spawned_at_start + 1);
    assert_eq!((&pool["totals"]["exits"]["signal"], &pool["exits_total"]), (&1.into(), &1.into()));
}

#[test]
fn postgresql_with_twenty_connections() {
    let binaries = std::fs::read_dir("/usr/lib/postgresql")
        .unwrap_or_else(|e| panic!("/usr/lib/postgresql: {e}; is the package postgresql installed?"))
        .find_map(|entry| Some(entry.ok()?.path().join("bin")).filter(|b| b.join("postgres").exists()))
        .expect("a PostgreSQL server");
    let user = User::from_name("postgres").unwrap().expect("the package makes this user");
    let directory = tempfile::tempdir().unwrap();
    nix::unistd::chown(directory.path(), Some(user.uid), Some(user.gid)).unwrap();
    let as_postgres = |program: &Path| {
        let mut command = Command::new(program);
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir(directory.path());
        command.env("PGHOST", directory.path()).env("PGUSER", "postgres");
        command
    };
    let data = directory.path().join("data");
    let made = as_postgres(&binaries.join("initdb"))
        .args(["--no-sync", "--auth=trust", "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command = as_postgres(&binaries.join("postgres"));
    command.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-c", "listen_addresses="]);
    // Otherwise a backend notices that its client went only when its query ends.
    command.args(["-c", "client_connection_check_interval=100ms"]);
    let server = Server::start(&mut command);
    let collector = Collector::start(&["--source=ebpf"]);
    eventually("PostgreSQL takes connections", || {
        let asked = as_postgres(&binaries.join("psql")).args(["-c", "select 1", "postgres"]).output().ok()?;
        asked.status.success().then_some(())
    });
    let clients: Vec<Server> = (0..20)
        .map(|_| {
            let mut command = as_postgres(&binaries.join("psql"));
            Server::start(command.args(["-c", "select pg_sleep(600)", "postgres"]))
        })
        .collect();
    let pool = collector.pool_of(server.pid(), 20);
    assert_eq!((&pool["name"], &pool["origin"]), (&"postgresql".into(), &"recognized:postgresql".into()));
    for worker in pool["workers"].as_array().unwrap() {
        assert_eq!(worker["app"], "postgres", "the database: {worker}");
    }
    let backend = Pid::from_raw(pool["workers"][0]["pid"].as_i64().unwrap() as i32);
    kill(backend, Signal::SIGTERM).unwrap();
    let certificate = collector.certificate(backend);
    assert_eq!(certificate["exit_code"], 1, "a backend that is told to end exits by itself");
    collector.pool_of(server.pid(), 19);
    drop(clients);
    eventually("no client, no worker", || {
        let stats = collector.stats();
        (pool_of(&stats, server.pid())?["total"] == 0).then_some(())
    });
}
