//! php-fpm behind nginx.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use super::{
    OPTIONS, answered, check_each_worker, connect, get, load, logged, outcomes, pauses, within_what_logs_say,
};
use crate::schedule::{check_between, check_within, slack};
use crate::servers::{Server, command_in, directory_with, free_port, php};
use crate::support::Collector;

/// Answers with its pid after so many ms as it is asked for, and writes down how long it took itself, ns.
const SCRIPT: &str = "\
<?php
$begin = hrtime(true);
usleep(1000 * (int) $_SERVER['QUERY_STRING']);
header('Content-Length: ' . strlen(getmypid()));
echo getmypid();
$took = hrtime(true) - $begin;
file_put_contents(__DIR__ . '/took.log', $took . PHP_EOL, FILE_APPEND | LOCK_EX);
";

const CHILDREN: u64 = 2;
const TIMES: u64 = 120;

/// php-fpm that listens at a UNIX socket, and nginx before it at a port.
struct Site {
    directory: tempfile::TempDir,
    fpm: Server,
    nginx: Server,
    address: String,
}

impl Site {
    /// With what nginx is told about connections to php-fpm: in its `upstream`, and in its `location`.
    fn start(upstream: &str, location: &str) -> Self {
        let directory = directory_with(&[("index.php", SCRIPT)]);
        // The user whom php-fpm runs as may write there, and make no file.
        let took = File::create(directory.path().join("took.log")).unwrap();
        took.set_permissions(Permissions::from_mode(0o666)).unwrap();
        let (at, port) = (directory.path().display(), free_port());
        let text = format!(
            "[global]\npid = {at}/pid\nerror_log = {at}/log\ndaemonize = no\n[shop]\nuser = www-data\n\
             listen = {at}/socket\nlisten.mode = 0666\npm = static\npm.max_children = {CHILDREN}\n\
             access.log = {at}/fpm.log\naccess.format = %{{micro}}d\n"
        );
        std::fs::write(directory.path().join("fpm.conf"), text).unwrap();
        let text = format!(
            "worker_processes 1;\npid {at}/nginx.pid;\nerror_log {at}/error.log;\nevents {{}}\n\
             http {{ log_format status '$status'; access_log {at}/nginx.log status;\n\
             upstream fpm {{ server unix:{at}/socket; {upstream} }}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ fastcgi_pass fpm; {location}\n\
             fastcgi_param SCRIPT_FILENAME {at}/index.php; fastcgi_param QUERY_STRING $query_string;\n\
             fastcgi_param REQUEST_METHOD $request_method; }} }} }}\n"
        );
        std::fs::write(directory.path().join("nginx.conf"), text).unwrap();
        let mut command = command_in(directory.path(), &php::program(), &["-n", "-y"]);
        let fpm = Server::start(command.arg(directory.path().join("fpm.conf")));
        let mut command = command_in(directory.path(), "/usr/sbin/nginx", &["-g", "daemon off;", "-c"]);
        let nginx = Server::start(command.arg(directory.path().join("nginx.conf")));
        Self { directory, fpm, nginx, address: format!("127.0.0.1:{port}") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Asks [`TIMES`] times for each child, for the first time, and checks all of it. Returns how long php-fpm's requests took.
    fn check(&self, collector: &Collector) -> Value {
        let answers = load(&self.address, CHILDREN, TIMES, |turn| format!("/?{}", pauses(turn)));
        let count = CHILDREN * TIMES;
        let pool = answered(collector, self.fpm.pid(), count);
        assert_eq!(outcomes(&pool["requests"]), [("ok", count)].into());
        check_each_worker(&pool, &answers.by_pid);
        let durations = &pool["quantiles"]["request_duration_seconds"]["ok"];
        // Longer than the script; and not as long as a client that asks nginx waits, but for how long php-fpm is kept from its
        // CPU after it has sent.
        let took = logged(&self.file("took.log"), count as usize);
        check_between(slack, "php", durations, took, answers.waited_ns);
        assert_eq!(logged(&self.file("fpm.log"), count as usize).len() as u64, count);
        assert_eq!(logged(&self.file("nginx.log"), count as usize), vec![200; count as usize]);
        let before = answered(collector, self.nginx.pid(), count);
        assert_eq!(outcomes(&before["requests"]), [("2xx", count)].into());
        durations.clone()
    }
}

#[test]
fn php_fpm_and_the_nginx_before_it_log_as_many_requests() {
    let collector = Collector::start(&OPTIONS);
    let site = Site::start("", "");
    collector.pool_of(site.fpm.pid(), CHILDREN as usize);
    collector.pool_of(site.nginx.pid(), 1);
    let durations = site.check(&collector);
    let truth_us = logged(&site.file("fpm.log"), (CHILDREN * TIMES) as usize);
    let truth = truth_us.iter().map(|us| us * 1000).collect();
    check_within(within_what_logs_say, "php-fpm", &durations, truth);
}

/// The record that ends a request is read when it has been answered, and is not the begin of the next one.
#[test]
fn php_fpm_over_connections_that_stay_open() {
    let collector = Collector::start(&OPTIONS);
    let site = Site::start(&format!("keepalive {CHILDREN};"), "fastcgi_keep_conn on;");
    collector.pool_of(site.fpm.pid(), CHILDREN as usize);
    collector.pool_of(site.nginx.pid(), 1);
    site.check(&collector);
    // Nor is the time that a connection idles in between a part of one. (For php-fpm's own log it is: its clock starts
    // before it waits for the next request. So that log does not say how long these took.)
    get(&mut connect(&site.address), "/?10");
    let pool = answered(&collector, site.fpm.pid(), CHILDREN * TIMES + 1);
    let longest = &pool["quantiles"]["request_duration_seconds"]["ok"]["start"]["max"];
    assert!(longest.as_f64().unwrap() < 1.0, "{longest} s");
}
