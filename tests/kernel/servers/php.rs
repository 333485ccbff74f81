//! PHP's process manager.

use super::{Server, apps, check_name, command_in, directory_with, replaces_a_killed_worker, settled, slots};
use crate::support::{Collector, eventually, pool_of};

/// Its name says the version.
pub(crate) fn program() -> String {
    std::fs::read_dir("/usr/sbin")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path().display().to_string()))
        .find(|path| path.contains("/php-fpm"))
        .expect("the package php-fpm")
}

#[test]
fn php_fpm_with_two_pools() {
    let directory = directory_with(&[]);
    let path = directory.path().display().to_string();
    let configuration = format!("{path}/fpm.conf");
    let pool = |name: &str, children: u32| {
        format!(
            "[{name}]\nuser = www-data\nlisten = {path}/{name}.sock\npm = static\npm.max_children = {children}\n"
        )
    };
    let global = format!("[global]\npid = {path}/pid\nerror_log = {path}/log\ndaemonize = no\n");
    std::fs::write(&configuration, global + &pool("shop", 3) + &pool("blog", 1)).unwrap();
    let program = program();
    let collector = Collector::start(&["--source=ebpf"]);
    let fpm = Server::start(&mut command_in(directory.path(), &program, &["-n", "-y", &configuration]));
    let pool = settled(&collector, fpm.pid(), 4);
    check_name(&pool, "php-fpm", Some(4));
    assert_eq!(sorted_apps(&pool), ["blog", "shop", "shop", "shop"]);
    assert_eq!(slots(&pool), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    let blog = apps(&pool).iter().position(|app| *app == "blog").unwrap();
    replaces_a_killed_worker(&collector, fpm.pid(), &pool, blog);
    eventually("its successor says what it serves", || {
        let stats = collector.stats();
        (apps(pool_of(&stats, fpm.pid())?) == apps(&pool)).then_some(())
    });
}

fn sorted_apps(pool: &serde_json::Value) -> Vec<&str> {
    let mut apps = apps(pool);
    apps.sort_unstable();
    apps
}
