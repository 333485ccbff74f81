//! Where pools listen.

use super::world::World;
use super::*;
use crate::input::SocketFamily::{self, Tcp, Tcp6, Unix};

/// A master and three workers.
fn world() -> World {
    let world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| {
        host.add(10, 1, "boss", "/boss", "boss\0");
        (11..14).for_each(|pid| host.add(pid, 10, "job", "/job", "job\0"));
    });
    world
}

fn listen(
    world: &World,
    pids: &[Pid],
    inode: u32,
    (family, name, length, limit): (SocketFamily, &str, u32, u32),
) {
    world.host(|host| {
        host.listening.insert(inode, (family, name.into(), length, limit));
        pids.iter().for_each(|pid| host.open.entry(*pid).or_default().push(inode));
    });
}

fn passes(world: &mut World, seconds: u32) {
    for _ in 0..seconds {
        world.later(SECOND);
        world.pass();
    }
}

#[track_caller]
fn check(world: &mut World, expected: &[&str]) {
    let pool = world.pool("jobs");
    let shown: Vec<String> = pool
        .accept_queues
        .iter()
        .map(|q| format!("{} {} {}: {}/{}", q.family.as_str(), q.address, q.sockets, q.length, q.limit))
        .collect();
    assert_eq!(shown, expected);
}

#[test]
fn a_socket_of_many_is_shown_once_and_those_of_one_address_together() {
    let mut world = world();
    listen(&world, &[10, 11, 12, 13], 100, (Tcp, "shared", 3, 511));
    for (pid, inode) in [(11, 200), (12, 201), (13, 202)] {
        listen(&world, &[pid], inode, (Tcp6, "each", inode - 199, 16));
    }
    listen(&world, &[13], 300, (Unix, "one", 0, 5));
    listen(&world, &[1], 400, (Tcp, "foreign", 1, 1));
    world.host(|host| host.open.entry(11).or_default().push(999));
    passes(&mut world, 2);
    check(&mut world, &["tcp6 unix:each 3: 6/48", "unix unix:one 1: 0/5", "tcp unix:shared 1: 3/511"]);
}

#[test]
fn lengths_are_those_of_each_pass_and_closed_sockets_go() {
    let mut world = world();
    listen(&world, &[10], 100, (Tcp, "a", 0, 8));
    passes(&mut world, 2);
    check(&mut world, &["tcp unix:a 1: 0/8"]);
    listen(&world, &[], 100, (Tcp, "a", 7, 8));
    passes(&mut world, 1);
    check(&mut world, &["tcp unix:a 1: 7/8"]);
    world.host(|host| host.listening.clear());
    passes(&mut world, 1);
    check(&mut world, &[]);
    // Another one is found with the next look.
    listen(&world, &[10], 101, (Tcp, "b", 0, 8));
    passes(&mut world, 11);
    check(&mut world, &["tcp unix:b 1: 0/8"]);
    // Somebody else holds it when the pool is gone.
    listen(&world, &[1], 101, (Tcp, "b", 0, 8));
    world.host(|host| (10..14).for_each(|pid| host.end(pid)));
    passes(&mut world, 2);
    check(&mut world, &[]);
}

#[test]
fn families_in_which_no_pool_listens_are_listed_for_a_look_alone() {
    let mut world = world();
    passes(&mut world, 100);
    let lists = world.host(|host| std::mem::take(&mut host.socket_lists));
    assert_eq!(lists.len(), 30, "three for each look");
    listen(&world, &[10], 100, (Unix, "a", 0, 8));
    passes(&mut world, 20);
    world.host(|host| host.socket_lists.clear());
    passes(&mut world, 100);
    let lists = world.host(|host| std::mem::take(&mut host.socket_lists));
    assert_eq!(lists.iter().filter(|family| **family == Unix).count(), 100, "one for each pass");
    assert_eq!(lists.len(), 120);
}

#[test]
fn passes_that_follow_closely_share_a_listing() {
    let mut world = world();
    listen(&world, &[10], 100, (Tcp, "a", 0, 8));
    passes(&mut world, 3);
    world.host(|host| host.socket_lists.clear());
    for _ in 0..40 {
        world.later(SECOND / 4);
        // Whatever the interval says.
        world.aggregate.registry.pools.values_mut().for_each(|pool| pool.due_ns = 0);
        world.pass();
    }
    let listed = world.host(|host| host.socket_lists.len());
    assert!((10..=13).contains(&listed), "{listed}");
}

#[test]
fn a_look_takes_who_is_new_the_master_and_in_turn_the_others() {
    let mut world = world();
    world.host(|host| (14..40).for_each(|pid| host.add(pid, 10, "job", "/job", "job\0")));
    passes(&mut world, 2);
    let all = |world: &World| {
        let mut looked_at = world.host(|host| std::mem::take(&mut host.looked_at));
        looked_at.sort_unstable();
        assert_eq!(looked_at, (10..40).collect::<Vec<_>>());
    };
    all(&world);
    // They may have begun to listen meanwhile.
    for pid in 30..40 {
        listen(&world, &[pid], 1000 + pid, (Tcp, "many", 0, 8));
    }
    passes(&mut world, 10);
    all(&world);
    check(&mut world, &["tcp unix:many 10: 0/80"]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        passes(&mut world, 10);
        let looked_at = world.host(|host| std::mem::take(&mut host.looked_at));
        assert_eq!((looked_at.len(), looked_at[0]), (4, 10));
        seen.extend(looked_at);
    }
    assert_eq!(seen.len(), 30);
    // A worker that listens late is found.
    listen(&world, &[25], 100, (Tcp, "late", 0, 8));
    passes(&mut world, 100);
    check(&mut world, &["tcp unix:late 1: 0/8", "tcp unix:many 10: 0/80"]);
}

#[test]
fn what_is_looked_at_in_a_pass_is_bounded() {
    let mut world = world();
    world.host(|host| (1000..2000).for_each(|pid| host.add(pid, 10, "job", "/job", "job\0")));
    passes(&mut world, 2);
    let looked_at = world.host(|host| host.looked_at.len());
    assert_eq!(looked_at, 1024 / 16);
    passes(&mut world, 200);
    let looked_at = world.host(|host| std::mem::take(&mut host.looked_at));
    let all: std::collections::BTreeSet<Pid> = looked_at.into_iter().collect();
    assert_eq!(all.len(), 1004);
}

#[test]
fn a_listing_that_fails_shows_nothing_and_is_counted() {
    let mut world = world();
    listen(&world, &[10], 100, (Tcp, "a", 0, 8));
    passes(&mut world, 2);
    world.host(|host| host.unlisted_sockets = true);
    passes(&mut world, 20);
    check(&mut world, &[]);
    assert!(world.loss("accept_queue_unread") >= 20);
    world.host(|host| host.unlisted_sockets = false);
    passes(&mut world, 2);
    check(&mut world, &["tcp unix:a 1: 0/8"]);
}

#[test]
fn addresses_have_a_ceiling_and_those_beyond_are_counted_once() {
    let mut world = world();
    for inode in 100..200 {
        listen(&world, &[10], inode, (Tcp, &format!("{inode}"), 0, 8));
    }
    passes(&mut world, 30);
    assert_eq!(world.pool("jobs").accept_queues.len(), 64);
    assert_eq!(world.loss("listening_address_limit"), 36);
}
