//! Who forks workers, and who does so no longer.

use super::world::World;
use super::*;

#[test]
fn a_master_by_rule_that_becomes_something_else_forks_no_workers() {
    for change in ["exec", "rename"] {
        let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
        world.host(|host| {
            host.add(10, 1, "boss", "/boss", "boss\0");
            host.add(11, 10, "boss", "/boss", "boss\0");
        });
        world.settle();
        world.check(&["jobs: [10] | [11]"]);
        world.host(|host| match change {
            "exec" => host.exec(10, "cat", "/cat", "cat\0"),
            _ => host.rename(10, "cat"),
        });
        world.turn();
        world.host(|host| host.fork(10, 12));
        world.settle();
        world.check(&["jobs: [] | [11]"]);
        assert_eq!(world.pool("jobs").spawns_total, 0, "{change}");
        world.host(|host| host.rename(10, "boss"));
        world.turn();
        world.host(|host| host.fork(10, 13));
        world.turn();
        assert_eq!(world.pool("jobs").masters[0].pid, 10);
        assert_eq!(world.pool("jobs").spawns_total, 1, "{change}");
    }
}

#[test]
fn a_master_by_its_children_that_matches_no_longer_is_none() {
    let mut world = World::new(only(vec![by_comm("web", "web")]));
    world.host(|host| {
        host.add(20, 1, "web", "/web", "web\0");
        host.add(21, 20, "web", "/web", "web\0");
    });
    world.settle();
    world.check(&["web: [20] | [21]"]);
    world.host(|host| host.exec(20, "cat", "/cat", "cat\0"));
    world.turn();
    world.check(&["web: [] | [21]"]);
    assert!(world.host(|host| host.tags.values().all(|tag| tag.master.is_none())));
}

#[test]
fn a_new_rule_unmakes_masters_of_the_old_one() {
    let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| {
        host.add(10, 1, "boss", "/boss", "boss\0");
        host.add(11, 10, "job", "/job", "job\0");
    });
    world.settle();
    world.check(&["jobs: [10] | [11]"]);
    world.reconfigure(only(vec![by_comm("jobs", "job")]));
    world.settle();
    world.check(&["jobs: [] | [11]"]);
    assert!(world.host(|host| host.tags.values().all(|tag| tag.master.is_none())));
}

fn found() -> World {
    let mut world = World::new(config(vec![]));
    world.host(|host| {
        host.add(10, 1, "srv", "/srv", "srv\0");
        host.add(11, 10, "srv", "/srv", "srv\0");
        host.add(12, 10, "srv", "/srv", "srv\0");
    });
    world.settle();
    world.check(&["srv: [10] | [11, 12]"]);
    world
}

#[test]
fn a_master_that_was_found_and_runs_something_else_is_none() {
    let mut world = found();
    // A server that begins anew is the same server.
    world.host(|host| host.exec(10, "srv", "/srv", "srv -again\0"));
    world.settle();
    world.check(&["srv: [10] | [11, 12]"]);
    world.host(|host| host.rename(10, "srv: main"));
    world.settle();
    world.check(&["srv: [10] | [11, 12]"]);
    world.host(|host| host.exec(10, "cat", "/cat", "cat\0"));
    world.settle();
    world.check(&["srv: [] | [11, 12]"]);
    world.host(|host| host.fork(10, 13));
    world.settle();
    world.check(&["srv: [] | [11, 12]"]);
    assert!(world.host(|host| host.tags.values().all(|tag| tag.master.is_none())));
}

#[test]
fn a_recognized_master_that_runs_something_else_is_none() {
    let mut world = World::new(config(vec![]));
    world.host(|host| gunicorn(host, 10, "shop"));
    world.settle();
    world.check(&["gunicorn: [10] | [11]"]);
    // It begins anew: first as an interpreter of its script, then under its title.
    world.host(|host| host.exec(10, "gunicorn", "/usr/bin/python3", "python3\0/usr/bin/gunicorn\0shop\0"));
    world.turn();
    world.host(|host| {
        let facts = &mut host.processes.get_mut(&10).unwrap().facts;
        facts.cmdline = Some("gunicorn: master [shop]\0".into());
    });
    world.settle();
    world.check(&["gunicorn: [10] | [11]"]);
    world.host(|host| host.exec(10, "sleep", "/bin/sleep", "sleep\0infinity\0"));
    world.settle();
    world.check(&["gunicorn: [] | [11]"]);
}

#[test]
fn a_child_with_a_title_that_its_master_wrote_untold_has_not_said_what_it_is() {
    let mut world = World::new(config(vec![]));
    world.host(|host| gunicorn(host, 10, "shop"));
    world.settle();
    // No event tells of a new title, and the child is forked with it.
    world.host(|host| {
        let facts = &mut host.processes.get_mut(&10).unwrap().facts;
        facts.cmdline = Some("gunicorn: master [shop] again\0".into());
        host.fork(10, 12);
    });
    world.turn();
    world.check(&["gunicorn: [10] | [11, 12]"]);
    world.host(|host| {
        let facts = &mut host.processes.get_mut(&12).unwrap().facts;
        facts.cmdline = Some("gunicorn: worker [shop]\0".into());
    });
    world.settle();
    world.check(&["gunicorn: [10] | [11, 12]"]);
    assert_eq!(world.pool("gunicorn").exits.reclassified, 0);
}

#[test]
fn a_master_that_was_found_and_is_a_rules_worker_now_is_none() {
    let mut world = found();
    world.reconfigure(config(vec![Rule { worker: alone("srv", "^srv$"), ..by_comm("front", "") }]));
    world.settle();
    world.check(&["front: [10] | [11, 12]", "srv: [] | []"]);
    let mut world = found();
    world.host(|host| {
        for pid in [11, 12] {
            host.processes.get_mut(&pid).unwrap().facts.cmdline = Some("srv child\0".into());
        }
    });
    world.reconfigure(config(vec![Rule { worker: alone("srv", "^srv$"), ..by_comm("front", "") }]));
    world.settle();
    world.check(&["front: [] | [10]", "srv: [] | []"]);
}

fn alone(comm: &str, line: &str) -> Conditions {
    Conditions { cmdline: by_line("", line).worker.cmdline, ..by_comm("", comm).worker }
}

#[test]
fn a_rule_takes_over_the_pool_that_has_its_name() {
    let origin = |world: &mut World| world.pool("srv").origin.to_string();
    let mut world = found();
    assert_eq!(origin(&mut world), "zero-config");
    // By a fixed name. Nobody in the pool matches, so they are found again, under another name.
    world.reconfigure(config(vec![by_comm("srv", "other")]));
    world.settle();
    world.check(&["srv: [] | []", "srv@10.service: [10] | [11, 12]"]);
    assert_eq!(origin(&mut world), "config");
    // By a capture, when somebody comes that matches.
    let mut world = World::new(config(vec![by_line("${app}", "app=(?P<app>[a-z]+)")]));
    world.host(|host| {
        host.add(10, 1, "srv", "/srv", "srv\0");
        host.add(11, 10, "srv", "/srv", "srv\0");
        host.add(12, 10, "srv", "/srv", "srv\0");
    });
    world.settle();
    assert_eq!(origin(&mut world), "zero-config");
    world.host(|host| {
        host.fork(1, 20);
        host.exec(20, "x", "/x", "x app=srv\0");
    });
    world.settle();
    assert_eq!(origin(&mut world), "config");
    world.check(&["srv: [] | [20]", "srv@10.service: [10] | [11, 12]"]);
    assert_eq!(world.pool("srv").exits.reclassified, 2);
}

#[test]
fn a_master_that_a_pass_did_not_see_is_tagged_again() {
    let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| host.tags.clear());
    world.settle();
    world.host(|host| host.fork(10, 11));
    world.turn();
    assert_eq!(world.pool("jobs").spawns_total, 1);
    assert_eq!(world.host(|host| host.tracked.len()), 2, "not more often than needed");
}

#[test]
fn who_cannot_be_tagged_is_tagged_later() {
    let mut world = World::new(only(vec![by_parent("jobs", "boss"), by_comm("web", "web")]));
    world.host(|host| {
        host.untaggable = true;
        host.add(10, 1, "boss", "/boss", "boss\0");
        host.add(20, 1, "web", "/web", "web\0");
    });
    for _ in 0..40 {
        world.settle();
    }
    world.check(&["jobs: [10] | []", "web: [] | [20]"]);
    let attempts = world.host(|host| host.tracked.len());
    assert!(attempts < 100, "{attempts} in 160 passes");
    world.host(|host| host.untaggable = false);
    for _ in 0..4 {
        world.settle();
    }
    assert!(world.pool("web").workers.iter().next().unwrap().reading.is_some());
    world.host(|host| host.end(20));
    world.turn();
    assert_eq!(world.pool("web").exits.success, 1);
    // The pauses between attempts for a master grow with the time in which none succeeded.
    for _ in 0..40 {
        world.settle();
    }
    world.host(|host| host.fork(10, 11));
    world.turn();
    assert_eq!(world.pool("jobs").spawns_total, 1);
}
