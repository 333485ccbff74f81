//! gunicorn and celery, with the module that writes titles and without it.

use nix::sys::signal::Signal;

use super::{
    Server, apps, check_name, command_in, directory_with, free_port, has_child, replaces_a_killed_worker,
    settled, slots,
};
use crate::support::{Collector, eventually};

const SHOP: (&str, &str) =
    ("shop.py", "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'ok']\n");

/// Python takes this module for setproctitle, and does without.
const NO_TITLES: (&str, &str) = ("setproctitle.py", "raise ImportError('hidden from this test')\n");

const CELERY: (&str, &str) = (
    "shop.py",
    "from celery import Celery\n\
     folders = {'data_folder_in': 'queue', 'data_folder_out': 'queue', 'control_folder': 'control'}\n\
     app = Celery('shop', broker='filesystem://', broker_transport_options=folders)\n",
);

#[test]
fn gunicorn_without_titles() {
    let directory = directory_with(&[SHOP, NO_TITLES]);
    let bind = format!("127.0.0.1:{}", free_port());
    let mut command =
        command_in(directory.path(), "/usr/bin/gunicorn", &["-w", "4", "shop:app", "-b", &bind]);
    let gunicorn = Server::start_ended_by(Signal::SIGKILL, command.env("PYTHONPATH", directory.path()));
    let collector = Collector::start(&["--source=ebpf"]);
    let pool = collector.pool_of(gunicorn.pid(), 4);
    check_name(&pool, "gunicorn", Some(4));
    assert_eq!(apps(&pool), ["shop:app"; 4]);
    let pool = replaces_a_killed_worker(&collector, gunicorn.pid(), &pool, 2);
    assert_eq!(slots(&pool), [(0, 1), (1, 1), (2, 2), (3, 1)]);
}

#[test]
fn gunicorn_with_titles_and_its_configuration_file() {
    let directory = directory_with(&[SHOP, ("gunicorn.conf.py", "workers = 3\n")]);
    let bind = format!("127.0.0.1:{}", free_port());
    let collector = Collector::start(&["--source=ebpf"]);
    let mut command = command_in(directory.path(), "/usr/bin/gunicorn", &["-b", &bind, "shop:app"]);
    let gunicorn = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let pool = collector.pool_of(gunicorn.pid(), 3);
    check_name(&pool, "gunicorn", Some(3));
    assert_eq!(apps(&pool), ["shop:app"; 3]);
    assert_eq!(slots(&pool), [(0, 1), (1, 1), (2, 1)]);
    replaces_a_killed_worker(&collector, gunicorn.pid(), &pool, 0);
}

#[test]
fn celery_with_titles_and_beat() {
    let directory = directory_with(&[CELERY, ("queue/.keep", ""), ("control/.keep", "")]);
    let collector = Collector::start(&["--source=ebpf"]);
    let arguments = ["-m", "celery", "-A", "shop", "worker", "-c", "3", "--beat"];
    let mut command = command_in(directory.path(), "/usr/bin/python3", &arguments);
    let celery = Server::start_ended_by(Signal::SIGKILL, &mut command);
    let pool = collector.pool_of(celery.pid(), 3);
    eventually("beat has its title", || {
        has_child(celery.pid(), &pool, |_, line| line.starts_with("[celery beat]")).then_some(())
    });
    let pool = settled(&collector, celery.pid(), 3);
    check_name(&pool, "celery", Some(3));
    assert_eq!(apps(&pool), ["shop"; 3]);
    assert!(has_child(celery.pid(), &pool, |_, line| line.starts_with("[celery beat]")));
    replaces_a_killed_worker(&collector, celery.pid(), &pool, 1);
}

#[test]
fn celery_without_titles() {
    let directory = directory_with(&[CELERY, NO_TITLES, ("queue/.keep", ""), ("control/.keep", "")]);
    let arguments = ["-m", "celery", "-A", "shop", "worker", "-c", "3"];
    let mut command = command_in(directory.path(), "/usr/bin/python3", &arguments);
    let collector = Collector::start(&["--source=ebpf"]);
    let celery = Server::start_ended_by(Signal::SIGKILL, command.env("PYTHONPATH", directory.path()));
    let pool = collector.pool_of(celery.pid(), 3);
    check_name(&pool, "celery", Some(3));
    assert_eq!(apps(&pool), ["shop"; 3]);
}
