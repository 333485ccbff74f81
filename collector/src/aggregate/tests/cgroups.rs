//! Pools that are control groups, and what these account beyond them.

use super::world::World;
use super::*;

const GROUP: &str = "/system.slice/jobs.service";
const MILLISECOND: u64 = 1_000_000;

/// A master and two workers, in a cgroup of their own.
fn world() -> World {
    let world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| {
        host.add(10, 1, "boss", "/boss", "boss\0");
        host.add(11, 10, "job", "/job", "job\0");
        host.add(12, 10, "job", "/job", "job\0");
        host.put_in(GROUP, &[10, 11, 12]);
        host.run(10, SECOND);
        host.run(11, SECOND);
    });
    world
}

fn unattributed(world: &mut World) -> Option<u64> {
    world.pool("jobs").unattributed_cgroup_cpu_ns
}

/// Some seconds in which everybody in the pool works.
fn work(world: &mut World, seconds: u32) {
    for _ in 0..seconds {
        world.later(SECOND);
        world.host(|host| [10, 11, 12].into_iter().for_each(|pid| host.run(pid, 100 * MILLISECOND)));
        world.pass();
    }
}

/// A stranger that works in the cgroup and is gone before the next pass.
fn visit(world: &mut World, pid: Pid, ns: u64) {
    world.host(|host| {
        host.fork(1, pid);
        host.put_in(GROUP, &[pid]);
        host.run(pid, ns);
        host.end(pid);
    });
}

#[test]
fn what_the_pool_uses_is_attributed_to_the_living_the_dead_and_masters() {
    let mut world = world();
    assert_eq!(unattributed(&mut world), None, "not compared yet");
    work(&mut world, 5);
    assert_eq!(unattributed(&mut world), Some(0));
    world.host(|host| {
        host.fork(10, 13);
        host.run(13, SECOND);
        host.end(13);
        host.fork(10, 14);
        host.run(14, SECOND);
    });
    work(&mut world, 20);
    assert_eq!(unattributed(&mut world), Some(0));
    // The master ends, and with it what was read of it.
    world.host(|host| {
        host.run(10, SECOND);
        host.end(10);
    });
    work(&mut world, 20);
    assert_eq!(unattributed(&mut world), Some(0));
}

#[test]
fn who_comes_and_goes_in_the_cgroup_is_unattributed() {
    let mut world = world();
    work(&mut world, 3);
    for pid in 100..110 {
        visit(&mut world, pid, 50 * MILLISECOND);
        work(&mut world, 1);
    }
    work(&mut world, 8);
    let shown = unattributed(&mut world).unwrap();
    assert!((499 * MILLISECOND..=500 * MILLISECOND).contains(&shown), "{shown}");
    work(&mut world, 60);
    assert_eq!(unattributed(&mut world), Some(shown));
}

#[test]
fn the_comparison_ends_with_a_stranger_and_begins_anew_without() {
    let mut world = world();
    work(&mut world, 3);
    visit(&mut world, 100, 50 * MILLISECOND);
    work(&mut world, 8);
    let shown = unattributed(&mut world).unwrap();
    assert!(shown.abs_diff(50 * MILLISECOND) <= 1000, "{shown}");
    world.host(|host| {
        host.fork(1, 101);
        host.put_in(GROUP, &[101]);
    });
    // Until somebody looks it cannot be told from one that goes soon.
    work(&mut world, 12);
    let shown = unattributed(&mut world).unwrap();
    world.host(|host| host.run(101, 5 * SECOND));
    work(&mut world, 20);
    assert_eq!(unattributed(&mut world), Some(shown), "it stays, and no more is said");
    world.host(|host| host.end(101));
    work(&mut world, 20);
    visit(&mut world, 102, 70 * MILLISECOND);
    work(&mut world, 10);
    let again = unattributed(&mut world).unwrap();
    assert!((again - shown).abs_diff(70 * MILLISECOND) <= 1000, "{shown}, then {again}");
}

#[test]
fn a_pool_that_is_no_cgroup_has_no_such_figure() {
    for (what, change) in [
        ("a stranger", (|host| host.put_in(GROUP, &[1])) as fn(&mut Host)),
        ("a worker elsewhere", |host| host.put_in("/other", &[12])),
        ("the master elsewhere", |host| host.put_in("/other", &[10])),
        ("no cgroup", |host| host.charged.clear()),
    ] {
        let mut world = world();
        world.host(change);
        work(&mut world, 30);
        assert_eq!(unattributed(&mut world), None, "{what}");
    }
}

#[test]
fn a_cgroup_that_is_removed_ends_the_comparison() {
    let mut world = world();
    work(&mut world, 5);
    visit(&mut world, 100, 50 * MILLISECOND);
    work(&mut world, 8);
    let shown = unattributed(&mut world);
    world.host(|host| host.charged.clear());
    work(&mut world, 30);
    assert_eq!(unattributed(&mut world), shown);
    assert!(shown.is_some_and(|ns| ns > 0));
}

#[test]
fn a_look_at_the_members_is_taken_every_ten_seconds() {
    let mut world = world();
    work(&mut world, 5);
    let (before_account, before_members) = world.host(|host| host.cgroup_reads);
    work(&mut world, 100);
    let (account, members) = world.host(|host| host.cgroup_reads);
    assert_eq!((account - before_account, members - before_members), (100, 10));
}
