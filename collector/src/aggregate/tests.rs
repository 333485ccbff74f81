//! The aggregator against the host of [`world`].

mod accept_queues;
mod cgroups;
mod forks;
mod losses;
mod masters;
mod runs;
mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use regex::bytes::Regex;

use self::world::{Host, World};
use super::*;
use crate::snapshot::StateCounts;
use crate::units::NANOS_PER_SECOND as SECOND;
use crate::worker::matcher::{Conditions, Rule};

fn config(rules: Vec<Rule>) -> Config {
    Config {
        profile: crate::input::Profile::default(),
        flags: Limits::default(),
        matcher: Matcher::new(rules),
        zero_config: true,
        interval_ns: SECOND,
        max_pools: 5,
        max_listed_workers: 3,
        exits_kept: 10,
    }
}

fn by_comm(name: &str, comm: &str) -> Rule {
    let worker = Conditions { comm: vec![comm.into()], ..Conditions::default() };
    Rule {
        name: name.into(),
        worker,
        parent: Conditions::default(),
        size: None,
        interval_ns: None,
        profile: None,
        work: None,
        http_status: true,
        idle_in: None,
        flags: Limits::default(),
    }
}

fn by_line(name: &str, line: &str) -> Rule {
    let cmdline = Some(Regex::new(line).unwrap());
    Rule { worker: Conditions { cmdline, ..Conditions::default() }, ..by_comm(name, "") }
}

/// All children of processes with this name.
fn by_parent(name: &str, comm: &str) -> Rule {
    let rule = by_comm(name, comm);
    Rule { parent: rule.worker, worker: Conditions::default(), ..rule }
}

fn only(rules: Vec<Rule>) -> Config {
    Config { zero_config: false, ..config(rules) }
}

#[test]
fn the_first_rule_that_matches_names_the_pool() {
    let mut world = World::new(only(vec![by_comm("a", "x"), by_comm("b", "x"), by_line("c", "^y")]));
    world.host(|host| {
        host.add(10, 1, "x", "/x", "y\0");
        host.add(11, 1, "z", "/z", "y 1\0");
        host.add(12, 1, "z", "/z", "z\0");
        host.add(13, 2, "x", "", "");
        host.processes.get_mut(&13).unwrap().kernel_thread = true;
    });
    world.settle();
    world.check(&["a: [] | [10]", "b: [] | []", "c: [] | [11]"]);
}

#[test]
fn who_lives_is_tagged_anew_when_a_rule_asks_for_something_else() {
    use crate::input::Profile;
    let asking = |profile| only(vec![Rule { profile: Some(profile), ..by_comm("a", "x") }]);
    let mut world = World::new(asking(Profile::None));
    world.host(|host| host.add(10, 1, "x", "/x", "x\0"));
    world.settle();
    for profile in [Profile::Histograms, Profile::Counters, Profile::None] {
        let before = world.host(|host| host.tracked.len());
        world.reconfigure(asking(profile));
        world.settle();
        assert_eq!(world.host(|host| host.tracked.len()), before + 1, "{profile:?}");
        world.reconfigure(asking(profile));
        world.settle();
        assert_eq!(world.host(|host| host.tracked.len()), before + 1, "{profile:?} once more");
    }
}

#[test]
fn a_configured_pool_without_workers_shows_zeros() {
    let rule = Rule { size: Some(4), ..by_comm("web", "x") };
    let mut world = World::new(only(vec![rule, by_line("by-${app}", "app=(?P<app>.*)")]));
    world.pass();
    world.check(&["web: [] | []"]);
    let pool = world.pool("web");
    assert_eq!((pool.rss_bytes, pool.size, pool.configured_size), (Some(0), 4, Some(4)));
    assert_eq!((pool.spawns_total, pool.exits.total(), pool.states), (0, 0, StateCounts::default()));
    assert_eq!((pool.run_delay_ns, pool.read_bytes), (None, None), "nobody was readable");
}

#[test]
fn another_program_or_name_is_judged_anew() {
    let mut world = World::new(only(vec![by_comm("a", "x"), by_comm("b", "y")]));
    world.host(|host| host.add(10, 1, "x", "/x", "x\0"));
    world.settle();
    world.check(&["a: [] | [10]", "b: [] | []"]);
    world.host(|host| host.rename(10, "y"));
    world.turn();
    world.check(&["a: [] | []", "b: [] | [10]"]);
    world.host(|host| host.exec(10, "z", "/z", "z\0"));
    world.turn();
    world.check(&["a: [] | []", "b: [] | []"]);
    for pool in ["a", "b"] {
        let pool = world.pool(pool);
        assert_eq!((pool.exits.reclassified, pool.exits.total()), (1, 1));
    }
    assert_eq!(world.host(|host| (host.records.len(), host.tags.len())), (0, 0));
    assert!(world.snapshot().exits.is_empty(), "nobody died");
}

#[test]
fn who_has_a_matching_child_is_its_master() {
    let mut world = World::new(only(vec![by_comm("web", "web")]));
    world.host(|host| {
        host.add(10, 1, "web", "/web", "web\0");
        host.add(20, 1, "web", "/web", "web\0");
        host.add(21, 20, "web", "/web", "web\0");
    });
    world.settle();
    world.check(&["web: [20] | [10, 21]"]);
    // Its first child makes a worker a master.
    world.host(|host| host.fork(10, 11));
    world.turn();
    world.check(&["web: [10, 20] | [11, 21]"]);
    world.host(|host| host.fork(10, 12));
    world.turn();
    assert_eq!(world.pool("web").spawns_total, 2);
    assert_eq!(world.pool("web").exits.reclassified, 1);
}

#[test]
fn two_children_of_one_program_are_a_pool_and_one_is_not() {
    let mut world = World::new(config(vec![]));
    world.host(|host| {
        host.add(10, 1, "srv", "/srv", "srv\0");
        host.add(11, 10, "srv", "/srv", "srv\0");
        host.add(20, 1, "shell", "/shell", "shell\0");
        host.add(21, 20, "a", "/a", "a\0");
        host.add(22, 20, "b", "/b", "b\0");
    });
    world.settle();
    world.check(&[]);
    world.host(|host| host.fork(10, 12));
    world.settle();
    world.check(&["srv: [10] | [11, 12]"]);
    assert_eq!(&*world.pool("srv").origin, "zero-config");
    // From now on from the fork; another program is no worker.
    world.host(|host| {
        host.fork(10, 13);
        host.fork(10, 14);
        host.exec(14, "cat", "/cat", "cat\0");
    });
    world.turn();
    world.check(&["srv: [10] | [11, 12, 13]"]);
    assert_eq!(world.pool("srv").exits.reclassified, 1);
}

#[test]
fn a_recognized_master_needs_one_child() {
    let mut world = World::new(config(vec![]));
    world.host(|host| {
        host.config_texts.insert("/etc/nginx/nginx.conf".into(), "worker_processes auto;".into());
        host.add(10, 1, "nginx", "/usr/sbin/nginx", "nginx: master process nginx\0");
    });
    world.settle();
    world.check(&[]);
    world.host(|host| {
        host.add(11, 10, "nginx", "/usr/sbin/nginx", "nginx: worker process\0");
        host.add(12, 10, "nginx", "/usr/sbin/nginx", "nginx: cache manager process\0");
        host.lost = 1;
    });
    world.settle();
    world.check(&["nginx: [10] | [11]"]);
    let pool = world.pool("nginx");
    assert_eq!((&*pool.origin, pool.configured_size), ("recognized:nginx", Some(3)));
}

fn gunicorn(host: &mut Host, master: Pid, app: &str) {
    host.add(master, 1, "gunicorn", "/usr/bin/python3", &format!("gunicorn: master [{app}]\0"));
    host.add(master + 1, master, "gunicorn", "/usr/bin/python3", &format!("gunicorn: worker [{app}]\0"));
}

#[test]
fn pools_of_one_name_get_names_of_their_own() {
    let mut world = World::new(config(vec![]));
    world.host(|host| gunicorn(host, 10, "shop"));
    world.settle();
    for (master, app) in [(20, "blog"), (30, "blog"), (40, "blog")] {
        world.host(|host| {
            gunicorn(host, master, app);
            if master == 40 {
                host.processes.get_mut(&40).unwrap().facts.cgroup = Some("/".into());
            }
            host.lost = 1;
        });
        world.settle();
    }
    // By what it serves, then by its control group, then by a number.
    world.check(&[
        "gunicorn: [10] | [11]",
        "gunicorn-2: [40] | [41]",
        "gunicorn@30.service: [30] | [31]",
        "gunicorn@blog: [20] | [21]",
    ]);
    // Names stay while the others come and go, and a successor takes the name of the dead.
    world.host(|host| {
        host.end_children(10);
        host.end(10);
        host.fork(20, 22);
        // It writes its title soon after.
        host.processes.get_mut(&22).unwrap().facts.cmdline = Some("gunicorn: worker [blog]\0".into());
    });
    world.settle();
    assert!(world.pools().contains(&"gunicorn@blog: [20] | [21, 22]".to_owned()));
    world.host(|host| {
        gunicorn(host, 50, "shop");
        host.lost = 1;
    });
    world.settle();
    assert!(world.pools().contains(&"gunicorn: [50] | [51]".to_owned()), "{:?}", world.pools());
    assert_eq!(world.loss("pool_limit"), 0);
}

#[test]
fn pools_above_the_limit_are_refused_and_counted() {
    let rules = vec![by_comm("a", "a"), by_line("app-${app}", "app=(?P<app>.)")];
    let mut world = World::new(Config { max_pools: 2, ..only(rules) });
    world.host(|host| {
        host.add(10, 1, "x", "/x", "app=1\0");
        host.add(11, 1, "x", "/x", "app=2\0");
        host.add(12, 1, "a", "/x", "a\0");
    });
    world.settle();
    world.check(&["a: [] | [12]", "app-1: [] | [10]"]);
    assert!(world.loss("pool_limit") > 0);
}

#[test]
fn a_new_configuration_moves_workers_and_drops_pools() {
    let mut world = World::new(only(vec![by_comm("a", "x"), by_parent("jobs", "boss")]));
    world.host(|host| {
        host.add(10, 1, "x", "/x", "x\0");
        host.add(20, 1, "boss", "/boss", "boss\0");
    });
    world.settle();
    world.host(|host| host.fork(20, 21));
    world.settle();
    world.check(&["a: [] | [10]", "jobs: [20] | [21]"]);
    world.reconfigure(only(vec![by_comm("b", "x")]));
    world.settle();
    world.check(&["b: [] | [10]"]);
    assert_eq!(world.host(|host| (host.records.len(), host.tags.len())), (1, 1));
    assert_eq!(world.pool("b").spawns_total, 0, "it was not born there");
    // Without rules everything is open to discovery again.
    world.host(|host| {
        host.fork(10, 11);
        host.fork(10, 12);
    });
    world.settle();
    world.check(&["b: [10] | [11, 12]"]);
    world.reconfigure(config(vec![]));
    world.settle();
    world.check(&["x: [10] | [11, 12]"]);
    world.reconfigure(only(vec![]));
    world.settle();
    world.check(&[]);
    assert_eq!(world.host(|host| (host.records.len(), host.tags.len())), (0, 0));
}

#[test]
fn who_was_missed_in_a_pool_that_is_dropped_is_not_tagged_for_it() {
    let mut world = World::new(only(vec![by_comm("a", "x")]));
    world.host(|host| host.add(10, 1, "x", "/x", "x\0"));
    world.settle();
    let key = world.host(|host| {
        let key = host.processes[&10].key;
        host.tags.remove(&key);
        key
    });
    world.later(SECOND);
    world.pass();
    world.reconfigure(only(vec![]));
    world.turn();
    assert_eq!(world.host(|host| (host.records.len(), host.tags.contains_key(&key))), (0, false));
}

#[test]
fn a_lost_tag_is_given_again() {
    let mut world = World::new(only(vec![by_comm("a", "x")]));
    world.host(|host| host.add(10, 1, "x", "/x", "x\0"));
    world.settle();
    world.host(|host| host.tags.clear());
    world.settle();
    world.check(&["a: [] | [10]"]);
    assert_eq!(
        world.host(|host| (host.records.len(), host.tags.len(), host.released.clone())),
        (1, 1, vec![0])
    );
}

#[test]
fn a_listing_after_losses_ends_the_vanished() {
    let mut world = World::new(config(vec![by_parent("jobs", "boss"), by_comm("web", "web")]));
    world.host(|host| {
        host.add(10, 1, "boss", "/boss", "boss\0");
        host.add(20, 1, "web", "/web", "web\0");
        host.add(30, 1, "srv", "/srv", "srv\0");
        host.add(31, 30, "srv", "/srv", "srv\0");
        host.add(32, 30, "srv", "/srv", "srv\0");
    });
    world.settle();
    world.host(|host| host.fork(10, 11));
    world.settle();
    world.check(&["jobs: [10] | [11]", "srv: [30] | [31, 32]", "web: [] | [20]"]);
    world.host(|host| {
        host.fork(10, 12);
        host.end(11);
        host.end(12);
        host.end(10);
        host.end(20);
        host.end_children(30);
        host.end(30);
        host.fork(1, 40);
        host.exec(40, "web", "/web", "web\0");
        host.lose();
    });
    world.settle();
    world.check(&["jobs: [] | []", "srv: [] | []", "web: [] | [40]"]);
    let jobs = world.pool("jobs");
    assert_eq!((jobs.spawns_total, jobs.exits.success), (2, 2), "their records told");
    assert_eq!(world.pool("web").exits.success, 1);
    assert!(world.loss("event_lost") > 10);
    assert_eq!(world.host(|host| host.records.len()), 1);
    assert_eq!(world.snapshot().own.processes, 2);
    assert!(world.aggregate.masters.is_empty() && world.aggregate.master_readings.is_empty());
    // A pool without a master is forgotten in time.
    world.later(EMPTY_POOL_KEPT_NS + SECOND);
    world.settle();
    world.check(&["jobs: [] | []", "web: [] | [40]"]);
}

#[test]
fn a_listing_that_fails_ends_nobody() {
    let mut world = World::new(only(vec![by_comm("web", "web")]));
    world.host(|host| host.add(20, 1, "web", "/web", "web\0"));
    world.settle();
    world.host(|host| {
        host.lost = 1;
        host.unlistable = true;
    });
    world.settle();
    world.check(&["web: [] | [20]"]);
    assert_eq!(world.snapshot().own.processes, 2);
}

#[test]
fn worker_of_one_pool_and_master_of_another() {
    let mut world = World::new(only(vec![by_parent("supervised", "init"), by_parent("jobs", "boss")]));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| {
        host.fork(10, 11);
        host.run(10, 500);
    });
    world.settle();
    world.check(&["jobs: [10] | [11]", "supervised: [1] | [10]"]);
    let master = &world.pool("jobs").masters[0];
    assert_eq!((master.pid, &*master.comm), (10, "boss"));
    assert_eq!(master.cpu.map(|cpu| cpu.user_ns), Some(500));
    assert_eq!(master.rss_bytes, Some(8192));
    assert_eq!(world.pool("supervised").cpu.user_ns, 500);
    world.host(|host| host.end(10));
    world.turn();
    world.turn();
    // Who adopted 11 is not told; it stays what it was born as.
    world.check(&["jobs: [] | [11]", "supervised: [1] | []"]);
    assert_eq!(world.pool("supervised").exits.success, 1);
}

#[test]
fn empty_pools_that_were_found_are_kept_for_a_while() {
    let mut world = World::new(config(vec![by_comm("fixed", "none")]));
    world.host(|host| {
        host.add(10, 1, "srv", "/srv", "srv\0");
        host.add(11, 10, "srv", "/srv", "srv\0");
        host.add(12, 10, "srv", "/srv", "srv\0");
    });
    world.settle();
    world.host(|host| {
        host.end_children(10);
        host.end(10);
    });
    world.turn();
    world.later(EMPTY_POOL_KEPT_NS - SECOND);
    world.turn();
    world.check(&["fixed: [] | []", "srv: [] | []"]);
    world.later(2 * SECOND);
    world.turn();
    world.check(&["fixed: [] | []"]);
}

#[test]
fn a_pool_whose_master_went_to_another_pool_is_forgotten_too() {
    let mut world = World::new(config(vec![]));
    world.host(|host| {
        host.add(10, 1, "srv", "/srv", "srv\0");
        host.add(11, 10, "srv", "/srv", "srv\0");
        host.add(12, 10, "srv", "/srv", "srv\0");
    });
    world.settle();
    world.host(|host| host.end_children(10));
    world.settle();
    world.reconfigure(config(vec![by_parent("jobs", "srv")]));
    world.settle();
    world.check(&["jobs: [10] | []", "srv: [] | []"]);
    world.later(EMPTY_POOL_KEPT_NS);
    world.settle();
    world.check(&["jobs: [10] | []"]);
}

#[test]
fn passes_lie_on_a_grid_and_slow_pools_wait_for_their_turn() {
    let slow = Rule { interval_ns: Some(5 * SECOND), ..by_comm("slow", "s") };
    let mut world = World::new(only(vec![by_comm("a", "a"), by_comm("b", "b"), slow]));
    world.turn();
    let start = (monotonic_ns() / (5 * SECOND) + 2) * 5 * SECOND;
    let due = |world: &World| -> Vec<String> {
        let pools = world.aggregate.registry.pools.values();
        pools.filter(|pool| pool.due).map(|pool| pool.name.to_string()).collect()
    };
    // The first turn comes somewhere between two points of the grid.
    assert_eq!(world.aggregate.pass_begins(start + SECOND / 3), start + SECOND);
    assert_eq!(due(&world), ["a", "b", "slow"]);
    for second in 1..=10 {
        // The thread wakes up a little late.
        let next = world.aggregate.pass_begins(start + second * SECOND + SECOND / 50);
        assert_eq!(next, start + (second + 1) * SECOND);
        let expected: &[&str] = if second % 5 == 0 { &["a", "b", "slow"] } else { &["a", "b"] };
        assert_eq!(due(&world), expected, "after {second} s");
    }
}

#[test]
fn a_new_interval_holds_for_every_pool_at_once() {
    let minute = |rules| Config { interval_ns: 60 * SECOND, ..config(rules) };
    let by_app = || by_line("app-${app}", "app=(?P<app>.)");
    let own = Rule { interval_ns: Some(5 * SECOND), ..by_comm("own", "o") };
    let mut world = World::new(minute(vec![by_app(), own.clone()]));
    world.host(|host| {
        host.add(10, 1, "x", "/x", "app=1\0");
        gunicorn(host, 20, "shop");
    });
    world.settle();
    world.reconfigure(config(vec![by_app(), own]));
    world.later(SECOND);
    world.pass();
    let pools = world.aggregate.registry.pools.values();
    let seen: Vec<_> = pools.map(|p| (p.name.to_string(), p.interval_ns / SECOND, p.due)).collect();
    let expected = [("own", 5, true), ("app-1", 1, true), ("gunicorn", 1, true)];
    assert_eq!(seen, expected.map(|(name, seconds, due)| (name.to_owned(), seconds, due)));
}

#[test]
fn slow_pools_are_read_in_their_own_interval_only() {
    let slow = Rule { interval_ns: Some(5 * SECOND), ..by_comm("slow", "s") };
    let mut world = World::new(only(vec![by_comm("fast", "f"), slow]));
    world.host(|host| {
        host.add(10, 1, "f", "/f", "f\0");
        host.add(11, 1, "s", "/s", "s\0");
        host.clock = (host.clock / (5 * SECOND) + 1) * 5 * SECOND;
    });
    for _ in 0..20 {
        world.pass();
        world.later(SECOND);
    }
    let (fast, slow) = (world.pool("fast"), world.pool("slow"));
    assert_eq!((fast.worker_rss_bytes.count, slow.worker_rss_bytes.count), (20, 4));
    assert_eq!(slow.exits.total(), 0, "it was seen in between");
}

#[test]
fn a_snapshot_lists_up_to_the_ceiling_and_counts_the_rest() {
    let mut world = World::new(only(vec![by_parent("jobs", "boss")]));
    world.host(|host| host.add(10, 1, "boss", "/boss", "boss\0"));
    world.settle();
    world.host(|host| {
        for pid in 11..16 {
            host.fork(10, pid);
        }
        host.run(12, 10);
        host.run(13, 10);
        host.exit(15);
    });
    world.later(SECOND);
    world.pass();
    let pool = world.pool("jobs");
    assert_eq!(pool.workers.iter().map(|w| (w.slot, w.pid)).collect::<Vec<_>>(), [(0, 11), (1, 12), (2, 13)]);
    assert_eq!((pool.unlisted, pool.size, pool.flags.defunct), (1, 4, 1));
    assert_eq!(
        pool.states,
        StateCounts { creating: 2, running: 2, ..StateCounts::default() },
        "all that live"
    );
    assert_eq!(pool.rss_bytes, Some(4 * 8192), "those without a series count, too");
    assert_eq!(pool.masters.iter().map(|m| m.pid).collect::<Vec<_>>(), [10]);
    let snapshot = world.snapshot();
    assert_eq!((snapshot.exits_total, snapshot.exits.len()), (1, 1));
    assert!(!snapshot.exits[0].cpu_final);
    world.host(|host| host.reap(15));
    world.turn();
    assert!(world.snapshot().exits[0].cpu_final);
}

#[test]
fn memory_of_workers_that_nobody_read_is_unknown() {
    let mut world = World::new(only(vec![by_comm("web", "web")]));
    world.host(|host| host.add(20, 1, "web", "/web", "web\0"));
    world.turn();
    assert_eq!(world.pool("web").rss_bytes, None);
    assert!(world.pool("web").workers.iter().all(|worker| worker.reading.is_none()));
}

/// What can happen on the host of a random script.
#[derive(Clone, Copy, Debug)]
enum Step {
    Fork(usize),
    Exec(usize, usize),
    Rename(usize, usize),
    Exit(usize),
    Reap(usize),
    Run(usize, u64),
    /// The events that wait are lost.
    Lose,
    /// The tag of a process gets lost.
    Untag(usize),
    /// From now on no process can be tagged, or it can again.
    Untaggable(bool),
    Turn,
    /// Time goes by, then a pass comes.
    Pass(u64),
    Reconfigure(usize),
}

const NAMES: [&str; 4] = ["boss", "web", "srv", "x"];

fn configs(number: usize) -> Config {
    match number {
        0 => config(vec![by_parent("jobs", "boss"), by_comm("web", "web")]),
        1 => only(vec![by_comm("web", "web"), by_parent("supervised", "init")]),
        _ => config(vec![]),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_process = 0usize..12;
    let step = prop_oneof![
        8 => any_process.clone().prop_map(Step::Fork),
        4 => (any_process.clone(), 0..NAMES.len()).prop_map(|(at, name)| Step::Exec(at, name)),
        1 => (any_process.clone(), 0..NAMES.len()).prop_map(|(at, name)| Step::Rename(at, name)),
        4 => any_process.clone().prop_map(Step::Exit),
        4 => any_process.clone().prop_map(Step::Reap),
        4 => (any_process.clone(), 1u64..1000).prop_map(|(at, ns)| Step::Run(at, ns)),
        1 => Just(Step::Lose),
        1 => any_process.prop_map(Step::Untag),
        1 => any::<bool>().prop_map(Step::Untaggable),
        4 => Just(Step::Turn),
        4 => (0..2 * SECOND).prop_map(Step::Pass),
        1 => (0usize..3).prop_map(Step::Reconfigure),
    ];
    proptest::collection::vec(step, 1..80)
}

fn check_world(world: &World) -> Result<(), TestCaseError> {
    let mut seats = BTreeMap::new();
    for pool in world.aggregate.registry.pools.values() {
        for (_, holder) in pool.holders() {
            // Two of one pid can be there: the end of the first was lost.
            let other = seats.insert(holder, pool.name.clone());
            prop_assert!(other.is_none(), "{} is in {} and {:?}", holder, pool.name, other);
        }
    }
    for (key, master) in &world.aggregate.masters {
        let pool = &world.aggregate.registry.pools[&master.pool];
        prop_assert_eq!(pool.masters.iter().filter(|master| *master == key).count(), 1);
    }
    let of_pools: usize = world.aggregate.registry.pools.values().map(|p| p.masters.len()).sum();
    prop_assert_eq!(of_pools, world.aggregate.masters.len());
    Ok(())
}

fn run(script: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new(configs(0));
    world.host(|host| {
        host.add(2, 1, "boss", "/boss", "boss\0");
        host.add(3, 1, "srv", "/srv", "srv\0");
    });
    world.turn();
    let mut pid = 10;
    for step in script {
        let nth = |host: &Host, at: usize| host.processes.keys().nth(1 + at).copied();
        match *step {
            Step::Fork(at) => {
                let parent = world.host(|host| nth(host, at)).unwrap_or(1);
                world.host(|host| {
                    // Pids come back soon.
                    pid = (10..).find(|pid| !host.processes.contains_key(pid)).unwrap_or(pid);
                    host.fork(parent, pid);
                });
            }
            Step::Exec(at, name) => world.host(|host| {
                let name = NAMES[name];
                if let Some(pid) = nth(host, at) {
                    host.exec(pid, name, &format!("/{name}"), name);
                }
            }),
            Step::Rename(at, name) => world.host(|host| {
                if let Some(pid) = nth(host, at) {
                    host.rename(pid, NAMES[name]);
                }
            }),
            Step::Exit(at) => world.host(|host| {
                if let Some(pid) = nth(host, at) {
                    host.exit(pid);
                }
            }),
            Step::Reap(at) => world.host(|host| {
                if let Some(pid) = nth(host, at) {
                    host.reap(pid);
                }
            }),
            Step::Run(at, ns) => world.host(|host| {
                if let Some(pid) = nth(host, at) {
                    host.run(pid, ns);
                }
            }),
            Step::Lose => world.host(Host::lose),
            Step::Untag(at) => world.host(|host| {
                if let Some(key) = nth(host, at).map(|pid| host.processes[&pid].key) {
                    host.tags.remove(&key);
                }
            }),
            Step::Untaggable(untaggable) => world.host(|host| host.untaggable = untaggable),
            Step::Turn => world.turn(),
            Step::Pass(ns) => {
                world.later(ns);
                world.pass();
            }
            Step::Reconfigure(number) => world.reconfigure(configs(number)),
        }
        check_world(&world)?;
    }
    // All end, and the last of it is told.
    world.host(|host| {
        let pids: Vec<Pid> = host.processes.keys().copied().filter(|pid| *pid != 1).collect();
        for pid in pids {
            host.end(pid);
            host.reap(pid);
        }
    });
    for _ in 0..4 {
        world.later(6 * SECOND);
        world.pass();
    }
    world.turn();
    check_world(&world)?;
    let aggregate = &world.aggregate;
    prop_assert_eq!(aggregate.registry.workers().count(), 0);
    prop_assert!(aggregate.masters.keys().all(|key| key.pid == 1));
    prop_assert!(aggregate.registry.pools.values().all(|pool| pool.living() == 0 && pool.unreaped == 0));
    let given: Vec<u32> = world.host(|host| host.records.keys().copied().collect());
    prop_assert_eq!(given, [0u32; 0], "records that nobody gave back");
    prop_assert_eq!(aggregate.registry.backward_readings, 0);
    prop_assert_eq!(aggregate.processes.len(), 1);
    prop_assert!(aggregate.looked_at.iter().all(|key| key.pid == 1), "{:?}", &aggregate.looked_at);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_everything_is_given_back(script in steps()) {
        run(&script)?;
    }
}
