//! Nothing is lost silently: what the kernel counted is what was delivered and what was lost.

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::support::{Collector, Workload, eventually, pool_of};

pub(crate) fn events(stats: &Value, kind: &str) -> (u64, u64, u64) {
    let event = stats["collector"]["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["kind"] == kind)
        .unwrap_or_else(|| panic!("no events of kind {kind}"));
    let number = |name: &str| event[name].as_u64().unwrap();
    (number("counted"), number("delivered"), number("lost"))
}

/// More than the ring buffer holds: 232 bytes for each that is forked, exits and is reaped.
const STORM: u64 = 14_000;

#[test]
fn a_reader_that_stands_still_loses_only_what_is_counted() {
    let mut master = Workload::start();
    master.spawn("sleep");
    master.spawn("sleep");
    let collector = Collector::start(&["--source=ebpf"]);
    collector.pool_of(master.pid(), 2);
    kill(collector.pid(), Signal::SIGSTOP).unwrap();
    master.tell(&format!("storm {STORM} 0"));
    let _ = master.answer();
    kill(collector.pid(), Signal::SIGCONT).unwrap();

    let stats = eventually("it has caught up", || {
        let stats = collector.stats();
        // The kernel goes on letting go of the dead for a while.
        let quiet = ["fork", "exec", "rename", "exit", "reap"].into_iter().all(|kind| {
            let (counted, delivered, lost) = events(&stats, kind);
            assert!(counted >= delivered + lost, "{kind}: more than there were");
            counted == delivered + lost
        });
        (quiet && events(&stats, "exit").0 >= STORM).then_some(stats)
    });
    let (.., lost) = events(&stats, "fork");
    assert!(lost > 0, "the buffer was meant to overflow");
    assert!(stats["collector"]["losses"]["event_lost"].as_u64().unwrap() > 0);
    // What the events did not tell, the records did: of all that had one, so of more than the buffer has room for.
    let unrecorded = stats["collector"]["losses"]["no_free_slot"].as_u64().unwrap();
    let recorded = STORM - unrecorded;
    assert!(recorded > STORM - lost, "{unrecorded} had no record");
    let books = |pool: &Value| {
        let exits = pool["totals"]["exits"].as_object().unwrap();
        let ended: u64 = exits.values().filter_map(Value::as_u64).sum();
        assert_eq!(exits["success"], ended, "as they all did: {exits:?}");
        (pool["totals"]["spawns"].as_u64().unwrap(), ended, pool["total"].as_u64().unwrap())
    };
    eventually("the books of the pool are right", || {
        (books(pool_of(&collector.stats(), master.pid())?) == (recorded, recorded, 2)).then_some(())
    });
    // And it goes on: who comes now is seen.
    let later = master.spawn("sleep");
    eventually("a worker that comes later is seen", || {
        let stats = collector.stats();
        let pool = pool_of(&stats, master.pid())?;
        crate::support::worker(pool, later).map(|_| assert_eq!(books(pool), (recorded + 1, recorded, 3)))
    });
    let text = collector.text("/metrics", "text/plain");
    assert!(text.contains("collector_events_lost_total{kind=\"fork\"}"), "losses are metrics");
}
