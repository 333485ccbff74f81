//! Puma in cluster and in single mode.

use nix::sys::signal::Signal;

use super::{
    Server, apps, check_name, command_in, directory_with, free_port, replaces_a_killed_worker, slots,
};
use crate::support::{Collector, eventually, pool_of};

const RACKUP: (&str, &str) = ("config.ru", "run lambda { |environment| [200, {}, ['ok']] }\n");

#[test]
fn puma_with_three_workers() {
    let configuration = format!("workers 3\nthreads 1, 1\nbind 'tcp://127.0.0.1:{}'\n", free_port());
    let directory = directory_with(&[RACKUP, ("config/puma.rb", &configuration)]);
    let collector = Collector::start(&["--source=ebpf"]);
    let mut command = command_in(directory.path(), "/usr/bin/puma", &["--tag", "shop"]);
    let puma = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let pool = collector.pool_of(puma.pid(), 3);
    check_name(&pool, "puma", Some(3));
    assert_eq!(apps(&pool), ["shop"; 3]);
    assert_eq!(slots(&pool), [(0, 1), (1, 1), (2, 1)]);
    replaces_a_killed_worker(&collector, puma.pid(), &pool, 2);
}

#[test]
fn puma_in_single_mode_has_no_workers() {
    let directory = directory_with(&[RACKUP]);
    let address = format!("tcp://127.0.0.1:{}", free_port());
    let mut command = command_in(directory.path(), "/usr/bin/puma", &["-w", "0", "-b", &address]);
    let puma = Server::start_ended_by(Signal::SIGKILL, &mut command);
    eventually("puma listens", || std::net::TcpStream::connect(address.trim_start_matches("tcp://")).ok());
    let collector = Collector::start(&["--source=ebpf"]);
    assert!(pool_of(&collector.stats(), puma.pid()).is_none());
}
