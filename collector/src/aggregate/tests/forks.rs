//! Workers from their forks on, in whatever order these and what else is known of them are told.

use super::world::World;
use super::*;

#[test]
fn children_by_rule_count_from_their_fork() {
    let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| {
        host.add(10, 1, "boss", "/boss", "boss\0");
        host.add(11, 10, "job", "/job", "job\0");
        host.run(11, 1000);
    });
    world.settle();
    world.check(&["jobs: [10] | [11]"]);
    world.host(|host| {
        host.fork(10, 12);
        host.run(12, 70);
    });
    world.turn();
    world.check(&["jobs: [10] | [11, 12]"]);
    world.host(|host| host.exec(12, "job", "/job", "job\0"));
    world.turn();
    assert_eq!(world.host(|host| host.tracked.clone()), [(10, 1, Role::Master), (11, 1, Role::Worker)]);
    world.later(SECOND);
    world.pass();
    let pool = world.pool("jobs");
    assert_eq!((pool.spawns_total, pool.cpu.user_ns), (1, 70), "of 11 only what it uses from now on");
    world.host(|host| {
        host.run(11, 5);
        host.end(12);
        host.fork(10, 13);
        host.end(13);
    });
    world.later(SECOND);
    world.pass();
    let pool = world.pool("jobs");
    assert_eq!((pool.spawns_total, pool.exits.success, pool.flags.defunct), (2, 2, 0));
    assert_eq!((pool.cpu.user_ns, pool.cpu.system_ns), (75, 10), "with what the end took");
    assert_eq!(world.host(|host| host.records.len()), 1);
}

#[test]
fn who_was_read_before_its_fork_was_told_has_its_figures_and_its_state() {
    for lost in [false, true] {
        let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
        world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
        world.settle();
        // Events are taken before a pass, which it is born in; and it never moves again.
        world.turn();
        world.host(|host| {
            host.fork(10, 11);
            host.run(11, 70);
            host.parked.push(11);
        });
        world.read();
        world.host(|host| {
            if lost {
                host.lose()
            }
        });
        for _ in 0..3 {
            world.later(SECOND);
            world.pass();
        }
        let pool = world.pool("jobs");
        let worker = pool.workers.iter().next().unwrap();
        assert_eq!((worker.pid, worker.state), (11, snapshot::WorkerState::Ready), "{lost}");
        assert_eq!((pool.cpu.user_ns, pool.rss_bytes), (70, Some(8192)), "{lost}");
        // Who is born between two passes is known before it is read.
        world.host(|host| {
            host.fork(10, 12);
            host.parked.push(12);
        });
        world.later(SECOND);
        world.pass();
        assert_eq!(world.pool("jobs").states.ready, 2, "{lost}");
        let told_again = world.host(|host| host.told_again.clone());
        assert!(told_again.iter().all(|pid| *pid == 11) && !told_again.is_empty(), "{lost}: {told_again:?}");
    }
}

#[test]
fn whose_fork_was_under_way_when_its_pool_came_to_ask_for_something_else_is_tagged_anew() {
    use crate::input::Profile;
    let asking = |profile| only(vec![Rule { profile: Some(profile), ..by_parent("jobs", "boss") }]);
    let mut world = World::new(asking(Profile::None));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| host.fork(10, 11));
    world.reconfigure(asking(Profile::Counters));
    world.host(|host| host.fork(10, 12));
    world.settle();
    world.host(|host| host.fork(10, 13));
    world.settle();
    let tracked = world.host(|host| host.tracked.clone());
    let as_worker =
        |pid| tracked.iter().filter(|(who, _, role)| (*who, *role) == (pid, Role::Worker)).count();
    assert_eq!([11, 12, 13].map(as_worker), [1, 1, 0], "{tracked:?}");
    world.check(&["jobs: [10] | [11, 12, 13]"]);
    assert_eq!(world.host(|host| (host.records.len(), host.next_record)), (3, 3), "all keep theirs");
}

#[test]
fn a_worker_is_followed_on_unless_its_pool_asks_for_less() {
    use crate::input::Profile;
    use crate::worker::matcher::Work;
    let asking = |profile, work, http_status| {
        let rule = Rule { profile: Some(profile), work, http_status, ..by_parent("jobs", "boss") };
        only(vec![rule])
    };
    let (none, counters, histograms) = (Profile::None, Profile::Counters, Profile::Histograms);
    let mut world = World::new(asking(counters, None, true));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| host.fork(10, 11));
    world.settle();
    let mut records = 1;
    for (config, kept) in [
        (asking(histograms, None, true), true),
        (asking(counters, None, false), true),
        (asking(counters, Some(Work::Spans), true), false),
        (asking(counters, Some(Work::Runs), true), true),
        (asking(counters, Some(Work::Requests), true), true),
        (asking(none, None, true), false),
        (asking(histograms, None, true), true),
    ] {
        world.reconfigure(config);
        world.settle();
        records += u32::from(!kept);
        let (all, latest) = world.host(|host| (host.records.len(), host.next_record));
        assert_eq!((all, latest), (1, records), "what it had is given back, and nothing else");
        world.check(&["jobs: [10] | [11]"]);
    }
}

#[test]
fn whose_life_becomes_its_work_is_active_even_if_it_does_not_move() {
    use crate::worker::matcher::Work;
    let working = |work| only(vec![Rule { work, ..by_parent("jobs", "boss") }]);
    let mut world = World::new(working(Some(Work::Spans)));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| {
        host.fork(10, 11);
        host.parked.push(11);
    });
    world.settle();
    let mut states = |work| {
        world.reconfigure(working(Some(work)));
        for _ in 0..2 {
            world.later(SECOND);
            world.pass();
        }
        let states = world.pool("jobs").states;
        (states.ready, states.active)
    };
    assert_eq!([Work::Spans, Work::Runs, Work::Spans].map(&mut states), [(1, 0), (0, 1), (1, 0)]);
}

#[test]
fn a_fork_for_a_dropped_pool_loses_its_tag_before_its_record() {
    let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| host.add(20, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| host.fork(20, 21));
    world.reconfigure(only(vec![]));
    world.turn();
    assert_eq!(world.host(|host| (host.records.len(), host.tags.len())), (0, 0));
    world.host(|host| host.end(21));
    world.settle();
}

#[test]
fn a_fork_that_a_listing_was_faster_to_tell_is_a_spawn() {
    let mut world = World::new(only(vec![by_parent("jobs", "boss"), by_comm("web", "web")]));
    world.host(|host| {
        host.add(10, 1, "boss", "/boss", "boss\0");
        host.add(20, 1, "web", "/web", "web\0");
    });
    world.settle();
    // Between the drain and the listing.
    let mut forks = Vec::new();
    world.host(|host| {
        host.fork(10, 11);
        host.fork(20, 21);
        host.run(11, 300);
        forks.append(&mut host.events);
        host.lost = 1;
    });
    // No record tells of them, either: they came after the recovery.
    world.aggregate.listing_wanted = true;
    world.host(|host| host.lost = 0);
    world.turn();
    world.check(&["jobs: [10] | [11]", "web: [20] | [21]"]);
    assert_eq!(world.pool("jobs").spawns_total, 0);
    world.host(|host| host.events = forks);
    world.turn();
    assert_eq!(world.pool("jobs").spawns_total, 1);
    assert_eq!(world.pool("web").spawns_total, 1);
    world.later(SECOND);
    world.pass();
    assert_eq!(world.pool("jobs").cpu.user_ns, 300);
    assert_eq!(world.host(|host| host.records.len()), 2, "no worker has two");
}
