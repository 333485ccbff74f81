//! Apache httpd with its prefork module.

use nix::sys::signal::Signal;

use super::{
    Server, check_name, command_in, directory_with, free_port, has_child, replaces_a_killed_worker, settled,
    slots,
};
use crate::support::Collector;

#[test]
fn apache2_prefork_with_a_piped_log() {
    let directory = directory_with(&[]);
    let path = directory.path().display().to_string();
    let configuration = format!("{path}/httpd.conf");
    let text = format!(
        "ServerRoot {path}\nServerName localhost\nPidFile {path}/pid\nErrorLog {path}/log\n\
         LoadModule mpm_prefork_module /usr/lib/apache2/modules/mod_mpm_prefork.so\n\
         LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n\
         CustomLog \"|/bin/cat\" \"%h\"\nListen 127.0.0.1:{}\nUser www-data\nGroup www-data\n\
         StartServers 3\nMinSpareServers 3\nMaxSpareServers 3\nServerLimit 5\nMaxRequestWorkers 5\n",
        free_port()
    );
    std::fs::write(&configuration, text).unwrap();
    let collector = Collector::start(&["--source=ebpf"]);
    let arguments = ["-f", &configuration, "-D", "FOREGROUND", "-k", "start"];
    let mut command = command_in(directory.path(), "/usr/sbin/apache2", &arguments);
    let apache = Server::start_ended_by(Signal::SIGTERM, &mut command);
    let pool = settled(&collector, apache.pid(), 3);
    check_name(&pool, "apache2", Some(5));
    assert!(has_child(apache.pid(), &pool, |comm, _| comm == "cat"), "the logger is a child, but no worker");
    let first: Vec<i64> = slots(&pool).iter().map(|(_, generation)| *generation).collect();
    assert_eq!(first.iter().filter(|generation| **generation == 1).count(), 3.min(first.len()));
    replaces_a_killed_worker(&collector, apache.pid(), &pool, 1);
}
