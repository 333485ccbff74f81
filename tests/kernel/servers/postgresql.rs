//! PostgreSQL.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use super::{Server, has_child, pids, settled};
use crate::support::{Collector, eventually, pool_of};

/// A server with data of its own, that listens in its directory.
pub(crate) struct Cluster {
    pub(crate) directory: tempfile::TempDir,
    binaries: PathBuf,
    user: User,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let binaries = std::fs::read_dir("/usr/lib/postgresql")
            .unwrap_or_else(|e| panic!("/usr/lib/postgresql: {e}; is the package postgresql installed?"))
            .find_map(|entry| Some(entry.ok()?.path().join("bin")).filter(|b| b.join("postgres").exists()))
            .expect("a PostgreSQL server");
        let user = User::from_name("postgres").unwrap().expect("the package makes this user");
        let directory = tempfile::tempdir().unwrap();
        nix::unistd::chown(directory.path(), Some(user.uid), Some(user.gid)).unwrap();
        let cluster = Self { directory, binaries, user };
        let made = cluster
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "-D"])
            .arg(cluster.directory.path().join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        cluster
    }

    /// A program of PostgreSQL, as its user.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        let directory = self.directory.path();
        command.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw()).current_dir(directory);
        command.env("PGHOST", directory).env("PGUSER", "postgres");
        command
    }

    /// The server, with these settings.
    pub(crate) fn start(&self, settings: &[&str]) -> Server {
        let directory = self.directory.path();
        let mut command = self.command("postgres");
        command.arg("-D").arg(directory.join("data")).arg("-k").arg(directory);
        for setting in [&["listen_addresses="], settings].concat() {
            command.args(["-c", setting]);
        }
        Server::start(&mut command)
    }

    pub(crate) fn wait_ready(&self) {
        eventually("PostgreSQL takes connections", || {
            let asked = self.command("psql").args(["-c", "select 1", "postgres"]).output().ok()?;
            asked.status.success().then_some(())
        });
    }
}

#[test]
fn postgresql_with_twenty_connections() {
    let cluster = Cluster::new();
    let server = cluster.start(&[
        // Otherwise a backend notices that its client went only when its query ends.
        "client_connection_check_interval=100ms",
        // One query of this test is to have parallel workers, however small its table.
        "parallel_setup_cost=0",
        "parallel_tuple_cost=0",
        "min_parallel_table_scan_size=0",
        "max_wal_senders=2",
        "wal_level=replica",
    ]);
    let collector = Collector::start(&["--source=ebpf"]);
    cluster.wait_ready();
    let clients: Vec<Server> = (0..20)
        .map(|_| Server::start(cluster.command("psql").args(["-c", "select pg_sleep(600)", "postgres"])))
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
    // A backend whose query runs in parallel, and a connection of a standby: one more client, not four.
    let query = "set force_parallel_mode = on; select pg_sleep(600) from pg_class";
    let parallel = Server::start(cluster.command("psql").args(["-c", query, "postgres"]));
    let standby = Server::start(
        cluster.command("pg_receivewal").args(["--no-loop", "-D"]).arg(cluster.directory.path()),
    );
    let pool = collector.pool_of(server.pid(), 20);
    for helper in
        ["postgres: parallel worker for PID", "postgres: walsender postgres", "postgres: checkpointer"]
    {
        eventually(helper, || {
            has_child(server.pid(), &pool, |_, line| line.starts_with(helper)).then_some(())
        });
    }
    assert_eq!(pids(&settled(&collector, server.pid(), 20)), pids(&pool));
    drop((standby, parallel));
    drop(clients);
    eventually("no client, no worker", || {
        let stats = collector.stats();
        (pool_of(&stats, server.pid())?["total"] == 0).then_some(())
    });
}
