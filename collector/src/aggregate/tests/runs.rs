//! Work as a process per job: whom it is measured of, and that no end is counted twice or not at all.

use super::world::World;
use super::*;
use crate::input::Input;
use crate::worker::matcher::Work;

/// Children of 10 are jobs, and their lives its work if it is to be measured.
fn rules(work: Option<Work>) -> Config {
    only(vec![Rule { work, ..by_parent("jobs", "boss") }, by_comm("web", "x")])
}

fn world(work: Option<Work>) -> World {
    let mut world = World::new(rules(work));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world
}

/// So many jobs come and go.
fn work(world: &mut World, jobs: u64) {
    for _ in 0..jobs {
        world.host(|host| {
            host.fork(10, 11);
            host.end(11);
        });
        world.turn();
    }
}

fn counted(world: &mut World) -> Option<u64> {
    world.pool("jobs").runs.map(|runs| runs.totals.runs())
}

#[test]
fn runs_are_measured_where_a_rule_says_so() {
    let mut world = world(Some(Work::Runs));
    assert_eq!(counted(&mut world), Some(0), "a pool that is to have runs has none before the first");
    work(&mut world, 3);
    let pool = world.pool("jobs");
    let runs = pool.runs.unwrap();
    assert_eq!((runs.totals.success, runs.totals.runs(), pool.exits.success), (3, 3, 3));
    let deaths = world.snapshot().exits;
    let lives: Vec<(u64, u64)> = deaths.iter().map(|d| (d.ended_unix_ns, d.lifetime_ns)).rev().collect();
    let window = runs.window.runs.iter().map(|run| (run.ended_unix_ns, run.duration_ns));
    assert_eq!(window.collect::<Vec<_>>(), lives, "they are what their certificates say");
    assert!(world.pool("web").runs.is_none());
}

#[test]
fn jobs_that_end_before_their_runner_is_known_are_counted() {
    let mut world = World::new(rules(Some(Work::Runs)));
    world.host(|host| host.add(10, 1, "shell", "/shell", "shell\0"));
    world.settle();
    world.host(|host| {
        host.fork(10, 11);
        host.fork(11, 20);
        host.end(20);
        // What it forked before was not a job.
        host.exec(11, "boss", "/boss", "boss\0");
        for pid in 21..24 {
            host.fork(11, pid);
            host.end(pid);
        }
        host.fork(11, 24);
    });
    world.turn();
    assert_eq!(counted(&mut world), Some(3));
    assert_eq!(world.loss("final_cpu_unreported"), 3, "they had no record");
    world.host(|host| host.end(24));
    world.turn();
    assert_eq!(counted(&mut world), Some(4));
    // Nobody is counted twice, and strangers are forgotten.
    world.host(|host| {
        host.fork(10, 30);
        host.end(30);
    });
    world.settle();
    assert_eq!(counted(&mut world), Some(4));
    assert!(world.aggregate.early_ends.is_empty());
}

#[test]
fn a_reload_keeps_what_was_counted_and_beginning_again_begins_anew() {
    let mut world = world(Some(Work::Runs));
    work(&mut world, 2);
    world.reconfigure(rules(Some(Work::Runs)));
    work(&mut world, 1);
    assert_eq!(counted(&mut world), Some(3));
    world.reconfigure(rules(None));
    work(&mut world, 1);
    assert_eq!(counted(&mut world), None);
    world.reconfigure(rules(Some(Work::Runs)));
    assert_eq!(counted(&mut world), Some(0));
    work(&mut world, 1);
    assert_eq!(counted(&mut world), Some(1));
    assert_eq!(world.pool("jobs").exits.success, 5, "the pool goes on");
}

#[test]
fn a_pool_that_was_found_has_runs_once_a_rule_claims_it() {
    let mut world = World::new(config(Vec::new()));
    world.host(|host| {
        host.add(10, 1, "boss", "/boss", "boss\0");
        host.add(12, 10, "job", "/job", "job\0");
        host.add(13, 10, "job", "/job", "job\0");
    });
    world.settle();
    let found = world.pools();
    assert_eq!(found, ["boss: [10] | [12, 13]"]);
    assert!(world.pool("boss").runs.is_none(), "nothing is guessed");
    world.reconfigure(config(vec![Rule { work: Some(Work::Runs), ..by_parent("boss", "boss") }]));
    world.settle();
    world.host(|host| host.end(12));
    world.turn();
    assert_eq!(world.pool("boss").runs.unwrap().totals.success, 1);
}

/// Of those whose events were lost the records tell; of those whose records do not, only that they ended.
#[test]
fn lost_events_cost_no_run() {
    let mut world = world(Some(Work::Runs));
    world.host(|host| {
        for pid in 20..40 {
            host.fork(10, pid);
        }
    });
    world.turn();
    world.host(|host| {
        for pid in 20..40 {
            host.end(pid);
        }
        host.events.retain(|event| matches!(event, Input::Reap(_)));
        host.records.values_mut().take(5).for_each(|written| written.exit = None);
    });
    world.turn();
    world.settle();
    let pool = world.pool("jobs");
    let totals = pool.runs.unwrap().totals;
    assert_eq!((totals.success, totals.failed(), totals.unknown), (15, 0, 5));
    assert_eq!((pool.exits.success, pool.exits.unknown), (15, 5));
}
