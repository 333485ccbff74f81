//! What is known when facts were lost.

use crate::snapshot::StateCounts;

use super::world::World;
use super::*;
use crate::input::{Input, Reap};

/// A pool `jobs` with master 10 and worker 11, born under our eyes.
fn jobs() -> World {
    let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| host.fork(10, 11));
    world.settle();
    world.check(&["jobs: [10] | [11]"]);
    world
}

#[test]
fn an_exit_that_was_lost_is_told_by_the_record() {
    let mut world = jobs();
    world.host(|host| {
        host.end(11);
        host.events.retain(|event| matches!(event, Input::Reap(_)));
        assert_eq!(host.events.len(), 1);
    });
    world.turn();
    let pool = world.pool("jobs");
    assert_eq!((pool.exits.success, pool.exits.total()), (1, 1));
    assert_eq!(world.loss("exit_unreported"), 0);
    assert!(world.snapshot().exits[0].cpu_final);
    assert_eq!(world.host(|host| host.records.len()), 0);
}

#[test]
fn an_exit_that_nothing_tells_is_of_unknown_status() {
    let mut world = jobs();
    world.host(|host| {
        host.end(11);
        host.events.retain(|event| matches!(event, Input::Reap(_)));
        host.records.values_mut().for_each(|written| written.exit = None);
    });
    world.turn();
    assert_eq!(world.pool("jobs").exits.unknown, 1);
    assert_eq!(world.loss("exit_unreported"), 1);
    assert_eq!(world.host(|host| host.records.len()), 0);
}

#[test]
fn who_lost_its_pid_to_another_ends_at_once() {
    for record_tells in [true, false] {
        let mut world = jobs();
        world.host(|host| {
            host.end(11);
            // Nothing in its place that would be told as lost, either: only the listing shows the other.
            host.events.clear();
            for written in host.records.values_mut() {
                written.reap = None;
                written.exit = written.exit.filter(|_| record_tells);
            }
            host.add(11, 1, "x", "/x", "x\0");
        });
        world.aggregate.listing_wanted = true;
        world.turn();
        world.check(&["jobs: [10] | []"]);
        let exits = world.pool("jobs").exits;
        assert_eq!((exits.success == 1, exits.unknown == 1), (record_tells, !record_tells));
        assert_eq!(world.loss("exit_unreported"), u64::from(!record_tells));
        // What the kernel says when it lets go of the first changes nothing.
        for _ in 0..4 {
            world.later(6 * SECOND);
            world.pass();
        }
        assert_eq!(world.pool("jobs").exits.total(), 1);
        assert_eq!(world.host(|host| host.records.len()), 0);
        assert_eq!(world.snapshot().own.processes, 3);
    }
}

#[test]
fn a_pass_that_shows_another_under_a_pid_ends_the_first() {
    let mut world = jobs();
    // The other is tagged, and its fork is lost without a word.
    world.host(|host| {
        host.end(11);
        host.fork(10, 11);
        host.events.clear();
    });
    world.later(SECOND);
    world.pass();
    world.turn();
    assert_eq!(world.pool("jobs").exits.success, 1, "told by the record");
    assert_eq!(world.pool("jobs").states, StateCounts::default());
}

#[test]
fn a_master_that_lost_its_pid_to_another_is_none() {
    let mut world = jobs();
    world.host(|host| {
        host.end(11);
        host.end(10);
        host.events.retain(|event| !matches!(event, Input::Exit(exit) if exit.process.pid == 10));
        host.events.retain(|event| !matches!(event, Input::Reap(Reap { process, .. }) if process.pid == 10));
        host.fork(1, 10);
    });
    world.turn();
    world.check(&["jobs: [] | []"]);
}

#[test]
fn a_refused_pool_counts_once() {
    let rules = vec![by_comm("a", "a"), by_line("app-${app}", "app=(?P<app>.)")];
    let mut world = World::new(Config { max_pools: 1, ..config(rules) });
    world.host(|host| {
        host.add(10, 1, "x", "/x", "app=1\0");
        host.add(11, 1, "x", "/x", "app=1\0");
        host.add(12, 1, "x", "/x", "app=2\0");
        host.add(20, 1, "srv", "/srv", "srv\0");
        host.add(21, 20, "srv", "/srv", "srv\0");
        host.add(22, 20, "srv", "/srv", "srv\0");
    });
    for round in 0..3 {
        world.host(|host| {
            host.fork(20, 30 + round);
            host.fork(1, 40 + round);
            host.exec(40 + round, "x", "/x", "app=2\0");
        });
        world.settle();
    }
    world.check(&["a: [] | []"]);
    assert_eq!(world.loss("pool_limit"), 3, "app-1, app-2 and that of 20");
}
