//! Random lives of workers against a model that knows each process by itself and adds up at the end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use collector_ebpf::schedule::Work;

use super::*;
use crate::input::{Doing, Rss, ScheduleReading};
use crate::snapshot::FlagCounts;
use crate::units::NANOS_PER_SECOND as SECOND;
use crate::worker::flags::Limits;

const UNIX_MINUS_MONOTONIC: i64 = 1_000_000;

/// What can happen to one of the processes of a script, told or not.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A new process under this pid; seen to be born, or found.
    Begin { pid: Pid, forked: bool },
    /// It uses CPU, which nobody tells.
    Use { pid: Pid, user: u64, system: u64 },
    /// A reading: the truth, or less than that, or another split of it.
    Sample { pid: Pid, below: u64, shift: u64 },
    /// Its end; without CPU where the source does not tell it. It may be told again and again.
    Exit { pid: Pid, cpu: bool },
    /// It leaves the kernel.
    Reap { pid: Pid, cpu: bool },
    /// It is no worker any more.
    Leave { pid: Pid },
    /// From now on the pool's workers are read, or are not.
    Due(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pid = 1u32..6;
    let step = prop_oneof![
        4 => (pid.clone(), any::<bool>()).prop_map(|(pid, forked)| Step::Begin { pid, forked }),
        6 => (pid.clone(), 0u64..100, 0u64..100).prop_map(|(pid, user, system)| Step::Use { pid, user, system }),
        6 => (pid.clone(), prop_oneof![4 => Just(0u64), 1 => 1u64..300], 0u64..60)
            .prop_map(|(pid, below, shift)| Step::Sample { pid, below, shift }),
        3 => (pid.clone(), any::<bool>()).prop_map(|(pid, cpu)| Step::Exit { pid, cpu }),
        3 => (pid.clone(), any::<bool>()).prop_map(|(pid, cpu)| Step::Reap { pid, cpu }),
        1 => pid.prop_map(|pid| Step::Leave { pid }),
        1 => any::<bool>().prop_map(Step::Due),
    ];
    proptest::collection::vec(step, 1..120)
}

/// One process as it really is, and what of it was told.
#[derive(Clone, Debug)]
struct Life {
    key: ProcessKey,
    forked: bool,
    truth: CpuTime,
    /// First and highest total that was told, the birth of a forked one included.
    told: Option<(u64, u64)>,
    ended: bool,
    record: u32,
}

impl Life {
    fn tell(&mut self, total: u64) {
        let (first, highest) = self.told.unwrap_or((total, total));
        self.told = Some((first, highest.max(total)));
    }

    fn counted(&self) -> u64 {
        self.told.map_or(0, |(first, highest)| highest - first)
    }
}

fn comm() -> Comm {
    Comm::from_bytes(b"worker")
}

fn arrival(key: ProcessKey, forked_at_ns: Option<u64>, record: SlotRecord) -> Arrival {
    Arrival {
        key,
        parent: 1,
        comm: comm(),
        app: None,
        record,
        forked_at_ns,
        started_unix_ns: forked_at_ns.unwrap_or(0) + 5,
        now_unix_ns: 7,
    }
}

fn sample(process: ProcessKey, cpu: CpuTime, at_ns: u64) -> Sample {
    Sample {
        process,
        cpu,
        rss: Some(Rss {
            total_bytes: 4096,
            file_bytes: None,
            anonymous_bytes: None,
            shmem_bytes: None,
            swap_bytes: None,
        }),
        threads: 1,
        minor_faults: 0,
        major_faults: 0,
        voluntary_switches: None,
        involuntary_switches: None,
        run_delay_ns: None,
        read_bytes: None,
        written_bytes: None,
        state: TaskState::Sleeping,
        at_ns,
    }
}

fn exit(process: ProcessKey, cpu: Option<CpuTime>, at_ns: u64) -> Exit {
    Exit {
        process,
        status: ExitStatus::Code(0),
        sender: None,
        oom_killed: Some(false),
        cpu,
        peak_rss_bytes: None,
        at_ns,
    }
}

fn cpu(user_ns: u64, system_ns: u64) -> CpuTime {
    CpuTime { user_ns, system_ns }
}

fn key(pid: Pid) -> ProcessKey {
    ProcessKey { pid, start_ns: 100 }
}

fn gone(registry: &mut Registry, process: ProcessKey, at_ns: u64) -> SlotRecord {
    registry.reaped(&Reap { process, cpu: None, at_ns }, UNIX_MINUS_MONOTONIC)
}

/// A registry with one pool, whose workers are read.
fn registry() -> (Registry, PoolId) {
    let mut registry = Registry::new(4);
    let id = registry.add_pool("web".into(), "config".into(), SECOND, 0);
    registry.pools.get_mut(&id).unwrap().due = true;
    (registry, id)
}

/// What holds at any moment.
fn check_seats(
    registry: &Registry,
    generations: &mut BTreeMap<u32, (ProcessKey, u32)>,
) -> Result<(), TestCaseError> {
    for pool in registry.pools.values() {
        let holders: BTreeMap<u32, ProcessKey> = pool.holders().collect();
        let alive: BTreeSet<ProcessKey> =
            registry.workers().filter(|w| w.pool == pool.id && !w.ended()).map(|w| w.key).collect();
        let seated: BTreeSet<ProcessKey> = holders.values().copied().collect();
        prop_assert_eq!(&seated, &alive, "each living worker holds a slot, and nobody else does");
        prop_assert_eq!(holders.len(), alive.len(), "one slot each");
        prop_assert_eq!(pool.living() as usize, alive.len());
        for (slot, holder) in holders {
            let worker = registry.worker(holder).unwrap();
            prop_assert_eq!(worker.slot, slot);
            let (before, generation) =
                generations.insert(slot, (holder, worker.generation)).unwrap_or((holder, 1));
            prop_assert_eq!(worker.generation, generation + u32::from(before != holder), "of slot {}", slot);
        }
        let unreaped = registry.workers().filter(|w| w.pool == pool.id && w.ended()).count();
        prop_assert_eq!(pool.unreaped as usize, unreaped);
    }
    Ok(())
}

fn check_certificates(registry: &Registry, kept: usize) -> Result<(), TestCaseError> {
    let sequences: Vec<u64> = registry.exits().iter().map(|c| c.sequence).collect();
    let total = registry.exits_total();
    let expected: Vec<u64> = (1..=total).rev().take(kept).collect();
    prop_assert_eq!(sequences, expected, "the newest, without gaps");
    Ok(())
}

fn run(script: &[Step], kept: usize) -> Result<(), TestCaseError> {
    let (mut registry, id) = registry();
    registry.keep_exits(kept);
    let mut living: BTreeMap<Pid, Life> = BTreeMap::new();
    let mut past: Vec<Life> = Vec::new();
    let mut generations = BTreeMap::new();
    let (mut spawns, mut exits, mut left, mut backwards) = (0, 0, 0, 0);
    let (mut given, mut released) = (0u32, Vec::new());
    let mut due = true;
    let mut now = SECOND;
    for step in script {
        now += 7_000_000;
        let pool_before = registry.pools[&id].cpu;
        match *step {
            Step::Begin { pid, forked } => {
                // The same pid again, while the end of the first was never told: another process.
                if let Some(life) = living.get(&pid)
                    && !life.ended
                {
                    // Told twice: nothing happens.
                    let again = arrival(life.key, Some(now), None);
                    prop_assert!(!registry.join(id, again));
                } else {
                    past.extend(living.remove(&pid));
                    let key = ProcessKey { pid, start_ns: now };
                    let truth = if forked { CpuTime::default() } else { cpu(1000, 500) };
                    let told = forked.then_some((0, 0));
                    prop_assert!(registry.join(id, arrival(key, forked.then_some(now), Some(given))));
                    living.insert(pid, Life { key, forked, truth, told, ended: false, record: given });
                    given += 1;
                    spawns += u64::from(forked);
                }
            }
            Step::Use { pid, user, system } => {
                if let Some(life) = living.get_mut(&pid).filter(|life| !life.ended) {
                    life.truth = cpu(life.truth.user_ns + user, life.truth.system_ns + system);
                }
            }
            Step::Sample { pid, below, shift } => {
                let Some(life) = living.get_mut(&pid) else { continue };
                let total = life.truth.total_ns().saturating_sub(below);
                let user = life.truth.user_ns.saturating_sub(shift).min(total);
                if due && registry.worker(life.key).is_some() {
                    backwards += u64::from(life.told.is_some_and(|(_, highest)| total < highest));
                    life.tell(total);
                }
                registry.sampled(&sample(life.key, cpu(user, total - user), now), now);
            }
            Step::Exit { pid, cpu } => {
                let Some(life) = living.get_mut(&pid) else { continue };
                if registry.worker(life.key).is_some() && !life.ended {
                    life.ended = true;
                    exits += 1;
                    if cpu {
                        life.tell(life.truth.total_ns());
                    }
                }
                registry.exited(&exit(life.key, cpu.then_some(life.truth), now), UNIX_MINUS_MONOTONIC);
            }
            Step::Reap { pid, cpu } => {
                let Some(life) = living.get_mut(&pid) else { continue };
                let known = registry.worker(life.key).is_some();
                if known {
                    exits += u64::from(!life.ended);
                    // Tearing it down takes time.
                    life.truth.system_ns += 3;
                    if cpu {
                        life.tell(life.truth.total_ns());
                    }
                }
                life.ended = true;
                let reap = Reap { process: life.key, cpu: cpu.then_some(life.truth), at_ns: now };
                let sequence = registry.worker(life.key).and_then(|w| w.certificate);
                let record = registry.reaped(&reap, UNIX_MINUS_MONOTONIC);
                prop_assert_eq!(record, known.then_some(life.record));
                released.extend(record);
                if let Some(certificate) =
                    registry.exits().iter().find(|c| Some(c.sequence) == sequence).filter(|_| known && cpu)
                {
                    prop_assert!(certificate.cpu_final);
                    let highest = life.told.map(|(_, highest)| highest);
                    prop_assert_eq!(certificate.cpu.map(|cpu| cpu.total_ns()), highest);
                }
            }
            Step::Leave { pid } => {
                let Some(life) = living.get_mut(&pid).filter(|life| !life.ended) else { continue };
                if registry.worker(life.key).is_some() {
                    left += 1;
                    life.ended = true;
                    released.extend(registry.leave(life.key, now));
                }
            }
            Step::Due(is_due) => {
                due = is_due;
                registry.pools.get_mut(&id).unwrap().due = due;
            }
        }
        let pool = &registry.pools[&id];
        prop_assert!(pool.cpu.user_ns >= pool_before.user_ns && pool.cpu.system_ns >= pool_before.system_ns);
        let counted: u64 = living.values().chain(&past).map(Life::counted).sum();
        prop_assert_eq!(pool.cpu.total_ns(), counted, "after {:?}", step);
        prop_assert_eq!(pool.spawns, spawns);
        prop_assert_eq!(pool.exits.total(), exits + left);
        prop_assert_eq!(pool.exits.reclassified, left);
        prop_assert_eq!(registry.exits_total(), exits);
        prop_assert_eq!(registry.backward_readings, backwards);
        check_seats(&registry, &mut generations)?;
        check_certificates(&registry, kept)?;
    }
    // Whoever is still there goes the way of those whose end nobody told.
    for at in [now, now + MISSED_NS] {
        registry.pass_begins();
        for vanished in registry.pass_complete(at + 1, UNIX_MINUS_MONOTONIC) {
            released.extend(match vanished {
                Vanished::Missed(..) | Vanished::Left(..) => None,
                Vanished::Overdue(key, _) => gone(&mut registry, key, at + 1),
                Vanished::Gone(_, record) => record,
            });
        }
    }
    prop_assert_eq!(registry.workers().count(), 0);
    let forked = living.values().chain(&past).filter(|life| life.forked).count() as u64;
    let all = (living.len() + past.len()) as u64;
    prop_assert_eq!(registry.pools[&id].spawns, forked);
    prop_assert_eq!(registry.pools[&id].exits.total(), all, "each leaves once");
    released.sort_unstable();
    prop_assert_eq!(released, (0..given).collect::<Vec<_>>(), "each record is given back once");
    check_certificates(&registry, kept)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn totals_are_exact_whatever_happens(script in steps(), kept in 0usize..6) {
        run(&script, kept)?;
    }
}

#[test]
fn what_an_exit_told_is_not_told_again() {
    let (mut registry, id) = registry();
    registry.join(id, arrival(key(9), Some(10), None));
    registry.exited(&exit(key(9), Some(cpu(10, 0)), 50), 0);
    // The pass that finds the zombie missed a thread.
    registry.sampled(&sample(key(9), cpu(4, 4), 60), 60);
    assert_eq!(registry.pools[&id].cpu, cpu(10, 0));
    assert_eq!(registry.backward_readings, 1);
    registry.reaped(&Reap { process: key(9), cpu: Some(cpu(10, 2)), at_ns: 70 }, 0);
    assert_eq!(registry.pools[&id].cpu, cpu(10, 2));
}

#[test]
fn a_certificate_shows_what_was_accounted() {
    let shown = |readings: &[CpuTime], at_exit: Option<CpuTime>| {
        let (mut registry, id) = registry();
        registry.join(id, arrival(key(9), Some(10), None));
        for reading in readings {
            registry.sampled(&sample(key(9), *reading, 20), 20);
        }
        registry.exited(&exit(key(9), at_exit, 50), 0);
        registry.exits()[0].cpu
    };
    assert_eq!(shown(&[], None), None, "not zero");
    assert_eq!(shown(&[], Some(cpu(3, 0))), Some(cpu(3, 0)));
    assert_eq!(shown(&[cpu(5, 1)], None), Some(cpu(5, 1)));
    assert_eq!(shown(&[cpu(5, 1)], Some(cpu(6, 1))), Some(cpu(6, 1)));
    assert_eq!(shown(&[cpu(5, 1)], Some(cpu(4, 1))), Some(cpu(5, 1)), "less than was shown before");
}

#[test]
fn a_certificate_says_when_and_from_where() {
    let (mut registry, id) = registry();
    registry.join(id, arrival(key(8), None, None));
    registry.join(id, arrival(key(9), Some(10), None));
    registry.sampled(&sample(key(9), cpu(5, 1), 20), 20);
    registry.exited(&exit(key(9), None, 50), UNIX_MINUS_MONOTONIC);
    let certificate = &registry.exits()[0];
    assert_eq!((certificate.sequence, certificate.slot, certificate.generation), (1, 1, 1));
    assert_eq!((certificate.pid, certificate.lifetime_ns, certificate.ended_unix_ns), (9, 40, 1_000_050));
    assert_eq!(certificate.last_state, WorkerState::Running);
    assert!(!certificate.cpu_final);
    assert_eq!(&*certificate.comm, "worker");
}

#[test]
fn the_split_never_goes_backwards() {
    let (mut registry, id) = registry();
    registry.join(id, arrival(key(9), Some(10), None));
    for (reading, expected) in [
        (cpu(10, 10), cpu(10, 10)),
        (cpu(8, 14), cpu(10, 12)),
        (cpu(22, 1), cpu(11, 12)),
        (cpu(1, 1), cpu(11, 12)),
        (cpu(12, 13), cpu(12, 13)),
    ] {
        registry.sampled(&sample(key(9), reading, 20), 20);
        assert_eq!(registry.worker(key(9)).unwrap().last.unwrap().cpu, expected, "{reading:?}");
        assert_eq!(registry.pools[&id].cpu, expected, "{reading:?}");
    }
    assert_eq!(registry.backward_readings, 1);
}

#[test]
fn no_counter_falls_when_a_thread_ends_within_a_pass() {
    let reading = |threads: u32, figure: u64| Sample {
        threads,
        minor_faults: figure,
        major_faults: figure,
        voluntary_switches: Some(figure),
        involuntary_switches: Some(figure),
        run_delay_ns: Some(figure),
        read_bytes: Some(figure),
        written_bytes: Some(figure),
        ..sample(key(9), cpu(figure, 0), 20)
    };
    // Readings with what is shown then, and how many of them count as a loss.
    let check = |readings: &[(u32, u64, u64)], losses: u64| {
        let (mut registry, id) = registry();
        registry.join(id, arrival(key(9), Some(10), None));
        for (threads, figure, shown) in readings {
            registry.sampled(&reading(*threads, *figure), 20);
            let last = registry.worker(key(9)).unwrap().last.unwrap();
            let [faults, major] = [last.minor_faults, last.major_faults];
            assert_eq!([faults, major, last.cpu.user_ns], [*shown; 3], "{readings:?}");
            let others = [last.voluntary_switches, last.involuntary_switches, last.run_delay_ns];
            assert_eq!(others, [Some(*shown); 3], "{readings:?}");
            assert_eq!([last.read_bytes, last.written_bytes], [Some(*shown); 2], "{readings:?}");
        }
        assert_eq!(registry.backward_readings, losses, "{readings:?}");
    };
    check(&[(1, 10, 10), (1, 12, 12)], 0);
    check(&[(3, 10, 10), (2, 7, 10), (2, 12, 12)], 0);
    check(&[(2, 10, 10), (1, 7, 10), (1, 12, 12)], 0);
    check(&[(3, 10, 10), (2, 7, 10), (2, 8, 10), (2, 12, 12), (2, 11, 12)], 1);
    check(&[(1, 10, 10), (1, 7, 10), (1, 12, 12)], 1);
}

/// Readings of storage bytes of one worker, and what its pool has then.
fn check_storage(forked: bool, readings: &[Option<u64>], expected: Option<u64>) {
    let (mut registry, id) = registry();
    registry.join(id, arrival(key(9), forked.then_some(10), None));
    for bytes in readings {
        let figures = sample(key(9), cpu(1, 0), 20);
        let (run_delay_ns, read_bytes, written_bytes) = (*bytes, *bytes, *bytes);
        registry.sampled(&Sample { run_delay_ns, read_bytes, written_bytes, ..figures }, 20);
    }
    let pool = &registry.pools[&id];
    let sums = [pool.run_delay_ns, pool.read_bytes, pool.written_bytes];
    assert_eq!(sums, [expected; 3], "forked {forked}, {readings:?}");
}

#[test]
fn other_totals_count_each_byte_once() {
    check_storage(true, &[None], None);
    check_storage(true, &[Some(0)], Some(0));
    check_storage(true, &[Some(100), Some(130)], Some(130));
    check_storage(false, &[Some(100), Some(130)], Some(30));
    check_storage(true, &[Some(100), None, Some(130)], Some(130));
    check_storage(false, &[Some(100), None, Some(130)], Some(30));
    check_storage(false, &[None, Some(100), Some(130)], Some(30));
    check_storage(true, &[Some(100), Some(90), Some(110)], Some(110));
}

#[test]
fn readings_count_only_in_their_pools_turn() {
    let (mut registry, id) = registry();
    registry.join(id, arrival(key(9), Some(10), None));
    registry.pools.get_mut(&id).unwrap().due = false;
    registry.pass_begins();
    registry.sampled(&sample(key(9), cpu(5, 0), SECOND), SECOND);
    assert!(registry.worker(key(9)).unwrap().last.is_none());
    assert!(registry.pass_complete(SECOND, 0).is_empty(), "it was seen all the same");
    registry.pools.get_mut(&id).unwrap().due = true;
    registry.sampled(&sample(key(9), cpu(SECOND, SECOND), 2 * SECOND + 10), SECOND);
    assert_eq!(registry.worker(key(9)).unwrap().utilization, Some(1.0), "since its birth");
    // Too short an interval says nothing.
    registry.sampled(&sample(key(9), cpu(2 * SECOND, SECOND), 2 * SECOND + 11), SECOND);
    assert_eq!(registry.worker(key(9)).unwrap().utilization, Some(1.0));
}

#[test]
fn who_is_missed_for_long_is_gone() {
    let (mut registry, id) = registry();
    registry.join(id, arrival(key(8), None, Some(3)));
    registry.join(id, arrival(key(9), Some(5 * SECOND), Some(4)));
    registry.join(id, arrival(key(10), None, Some(5)));
    let missed = |pid| Vanished::Missed(key(pid), id);
    let pass = |registry: &mut Registry, started_ns: u64, seen: &[Pid]| {
        registry.pass_begins();
        for pid in seen {
            registry.sampled(&sample(key(*pid), cpu(5, 0), started_ns), started_ns);
        }
        let mut vanished = registry.pass_complete(started_ns, 0);
        vanished.sort_by_key(|v| match v {
            Vanished::Missed(key, _) | Vanished::Overdue(key, _) => key.pid,
            Vanished::Left(key, _) | Vanished::Gone(key, _) => key.pid,
        });
        vanished
    };
    assert_eq!(pass(&mut registry, 5 * SECOND, &[8, 10]), [], "9 was born while it ran");
    assert_eq!(pass(&mut registry, 6 * SECOND, &[10]), [missed(8), missed(9)]);
    assert_eq!(pass(&mut registry, 10 * SECOND, &[9, 10]), [missed(8)], "9 was seen again");
    assert_eq!(pass(&mut registry, 11 * SECOND, &[10]), [missed(9)], "the third time for 8");
    assert_eq!(pass(&mut registry, 6 * SECOND + MISSED_NS - 1, &[10]), [missed(8), missed(9)]);
    let overdue = pass(&mut registry, 6 * SECOND + MISSED_NS, &[10]);
    assert_eq!(overdue, [Vanished::Overdue(key(8), id)], "the third time for 9");
    registry.lives(key(8));
    assert_eq!(pass(&mut registry, 7 * SECOND + MISSED_NS, &[9, 10]), [missed(8)], "from the start");
    assert_eq!(registry.pools[&id].living(), 3);
    assert_eq!(gone(&mut registry, key(8), 8 * SECOND), Some(3));
    let pool = &registry.pools[&id];
    assert_eq!((pool.exits.unknown, pool.exits.total(), pool.living(), pool.unreaped), (1, 1, 2, 0));
    assert_eq!((registry.unreported_ends, registry.unreported_reaps), (1, 1));
    let certificate = &registry.exits()[0];
    assert_eq!((certificate.status, certificate.cpu_final), (ExitStatus::Unknown, false));
    assert_eq!(certificate.cpu, Some(cpu(5, 0)), "as last read");
}

#[test]
fn who_ended_and_is_not_let_go_of_is_gone_without_another_end() {
    let (mut registry, id) = registry();
    registry.join(id, arrival(key(9), Some(1), Some(4)));
    registry.exited(&exit(key(9), Some(cpu(5, 0)), 50), 0);
    for (started_ns, expected) in [
        (SECOND, vec![Vanished::Left(key(9), Some(4))]),
        (SECOND + MISSED_NS, vec![Vanished::Gone(key(9), Some(4))]),
    ] {
        registry.pass_begins();
        assert_eq!(registry.pass_complete(started_ns, 0), expected);
    }
    assert_eq!(registry.pools[&id].exits.total(), 1);
    assert_eq!((registry.unreported_ends, registry.unreported_reaps), (0, 1));
}

#[test]
fn a_fork_told_late_counts_and_gives_back_the_other_record() {
    let (mut registry, id) = registry();
    assert_eq!(registry.fork_told(key(9), Some(1), 10), Some(1), "nobody has it");
    registry.join(id, arrival(key(9), None, Some(2)));
    assert_eq!(registry.fork_told(key(9), Some(1), 10), Some(1));
    assert_eq!(registry.fork_told(key(9), Some(2), 10), None, "told again, by its slot");
    assert_eq!(registry.pools[&id].spawns, 1);
    registry.sampled(&sample(key(9), cpu(5, 0), SECOND), 20);
    assert_eq!(registry.pools[&id].cpu, cpu(5, 0), "all of it");
    registry.join(id, arrival(key(10), None, None));
    assert_eq!(registry.fork_told(key(10), Some(3), 10), None, "it had none");
    assert_eq!(registry.reaped(&Reap { process: key(10), cpu: None, at_ns: 20 }, 0), Some(3));
}

#[test]
fn defunct_are_those_that_a_pass_still_finds() {
    let (mut registry, id) = registry();
    for pid in [8, 9] {
        registry.join(id, arrival(key(pid), Some(1), None));
        registry.exited(&exit(key(pid), None, 50), 0);
    }
    let zombie = Sample { state: TaskState::Zombie, rss: None, ..sample(key(9), cpu(1, 0), 60) };
    registry.sampled(&zombie, 60);
    registry.sampled(&Sample { at_ns: 70, ..zombie }, 70);
    assert_eq!((registry.defunct(id), registry.pools[&id].unreaped), (vec![(9, 50)], 2));
    assert_eq!(registry.pools[&id].flagged.defunct, 1, "once, however often it is seen");
}

#[test]
fn certificates_are_kept_as_many_as_asked() {
    let (mut registry, id) = registry();
    let mut pid = 0;
    let mut die = |registry: &mut Registry, count: usize| {
        for _ in 0..count {
            pid += 1;
            registry.join(id, arrival(key(pid), Some(1), None));
            registry.exited(&exit(key(pid), None, 50), 0);
        }
        registry.exits().iter().map(|c| c.sequence).collect::<Vec<_>>()
    };
    assert_eq!(die(&mut registry, 6), [6, 5, 4, 3]);
    registry.keep_exits(2);
    assert_eq!(die(&mut registry, 1), [7, 6]);
    registry.keep_exits(0);
    assert_eq!(die(&mut registry, 1), [0u64; 0]);
    registry.keep_exits(3);
    assert_eq!(die(&mut registry, 2), [10, 9]);
    assert_eq!(registry.exits_total(), 10);
    // A certificate that is not kept any more does not mix up the others.
    registry.reaped(&Reap { process: key(1), cpu: Some(cpu(1, 0)), at_ns: 60 }, 0);
    assert!(registry.exits().iter().all(|c| !c.cpu_final));
    registry.reaped(&Reap { process: key(9), cpu: Some(cpu(1, 0)), at_ns: 60 }, 0);
    let finals: Vec<u64> = registry.exits().iter().filter(|c| c.cpu_final).map(|c| c.sequence).collect();
    assert_eq!(finals, [9]);
}

#[test]
fn a_storm_in_one_pool_pushes_out_no_certificate_of_another() {
    let (mut registry, storm) = registry();
    let quiet = registry.add_pool("quiet".into(), "config".into(), SECOND, 0);
    registry.join(quiet, arrival(key(9), Some(1), None));
    registry.exited(&exit(key(9), None, 50), 0);
    for pid in 10..1000 {
        registry.join(storm, arrival(key(pid), Some(1), None));
        registry.exited(&exit(key(pid), None, 50), 0);
        if pid == 500 {
            // Its last figures come in the middle of it.
            registry.reaped(&Reap { process: key(9), cpu: Some(cpu(1, 0)), at_ns: 60 }, 0);
        }
    }
    let shown = |registry: &Registry| {
        registry.exits().iter().map(|c| (c.sequence, c.pool.to_string(), c.cpu_final)).collect::<Vec<_>>()
    };
    let web = |sequence| (sequence, "web".to_owned(), false);
    let last = (1, "quiet".to_owned(), true);
    assert_eq!(shown(&registry), [web(991), web(990), web(989), last.clone()]);
    registry.remove_pool(quiet);
    registry.join(storm, arrival(key(9), Some(1), None));
    registry.exited(&exit(key(9), None, 50), 0);
    assert_eq!(shown(&registry), [web(992), web(991), web(990), last], "also when its pool is gone");
}

#[test]
fn a_removed_pool_lets_go_of_its_workers() {
    let (mut registry, id) = registry();
    let other = registry.add_pool("other".into(), "config".into(), SECOND, 0);
    registry.join(id, arrival(key(8), None, Some(3)));
    registry.join(id, arrival(key(9), None, None));
    registry.join(other, arrival(key(10), None, Some(4)));
    let mut gone = registry.remove_pool(id);
    gone.sort_unstable();
    assert_eq!(gone, [(key(8), Some(3)), (key(9), None)]);
    assert_eq!(registry.workers().map(|w| w.key).collect::<Vec<_>>(), [key(10)]);
    assert!(!registry.join(id, arrival(key(8), None, None)), "there is no such pool");
}

/// What becomes of one worker in one pass.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Ran(u64),
    Rested,
    Missed,
    Renamed,
    Ended,
    Left,
}

fn turns() -> impl Strategy<Value = Vec<(bool, [Turn; 3])>> {
    let turn = || {
        prop_oneof![
            2 => (1u64..1000).prop_map(Turn::Ran),
            8 => Just(Turn::Rested),
            1 => Just(Turn::Missed),
            1 => Just(Turn::Renamed),
            1 => Just(Turn::Ended),
            1 => Just(Turn::Left),
        ]
    };
    proptest::collection::vec(
        (prop_oneof![4 => Just(true), 1 => Just(false)], [turn(), turn(), turn()]),
        1..60,
    )
}

proptest! {
    /// That a worker has not run is worth as much as its figures.
    #[test]
    fn a_worker_that_rests_is_as_one_that_is_read(turns in turns(), listed in 0usize..4) {
        let [mut read, mut told] = [Registry::new(10), Registry::new(10)];
        let pool = read.add_pool("web".into(), "config".into(), SECOND, 0);
        told.add_pool("web".into(), "config".into(), SECOND, 0);
        let mut used = [0; 3];
        for (pass, (due, turns)) in (1..).zip(turns) {
            let at_ns = pass * SECOND;
            for registry in [&mut read, &mut told] {
                registry.pass_begins();
                registry.pools.get_mut(&pool).unwrap().due = due;
                for pid in 0..3 {
                    // Comes again if it has left.
                    registry.join(pool, arrival(ProcessKey { pid, start_ns: 1 }, None, Some(pid)));
                }
            }
            for (pid, turn) in (0..3).zip(turns) {
                let key = ProcessKey { pid, start_ns: 1 };
                if let Turn::Ran(ns) = turn {
                    used[pid as usize] += ns;
                }
                let reading = sample(key, CpuTime { user_ns: used[pid as usize], system_ns: 0 }, at_ns);
                for (registry, reads) in [(&mut read, true), (&mut told, false)] {
                    let known = registry.worker(key).is_some_and(|w| w.last.is_some() || w.skipped.is_some());
                    match turn {
                        Turn::Missed => {}
                        Turn::Rested if !reads && known => {
                            registry.unchanged(key, Some(pid), at_ns, at_ns);
                        }
                        Turn::Ran(_) | Turn::Rested => {
                            registry.sampled(&reading, at_ns);
                        }
                        Turn::Renamed => registry.renamed(key, Comm::from_bytes(&[b'a', pass as u8 | 64]), false, at_ns),
                        Turn::Ended => registry.exited(&exit(key, None, at_ns), 0),
                        Turn::Left => drop(registry.leave(key, at_ns)),
                    }
                }
            }
            prop_assert_eq!(read.pass_complete(at_ns, 0), told.pass_complete(at_ns, 0));
            let shown = [&mut read, &mut told].map(|registry| {
                let view = registry.view(pool, listed);
                let pool = &registry.pools[&pool];
                format!("{view:?} {:?} {:?} {:?}", pool.cpu_utilization, pool.worker_rss, pool.cpu)
            });
            prop_assert_eq!(&shown[0], &shown[1]);
        }
    }
}

#[test]
fn who_works_or_waits_for_too_long_is_flagged_once_for_each_time() {
    let (mut registry, id) = registry();
    registry.pools.get_mut(&id).unwrap().limits =
        Limits { stuck_after_ns: Some(5 * SECOND), idle_ttl_ns: Some(60 * SECOND) };
    registry.join(id, arrival(key(9), Some(SECOND), Some(4)));
    let reading = |since_ns: u64, busy: bool| ScheduleReading {
        process: key(9),
        living: 1,
        busy,
        work: Work { begin_ns: SECOND, ready_ns: SECOND, worked_ns: SECOND, since_ns, ..Work::default() },
        ..ScheduleReading::default()
    };
    let flag = |registry: &mut Registry, now_s: u64| {
        let stuck = registry.flag(now_s * SECOND);
        let shown = registry.view(id, 10);
        let flag = shown.workers.iter().next().unwrap().flag.clone();
        (stuck.len(), shown.flags, flag.map(|flagged| (flagged.flag, flagged.since_unix_ns / SECOND)))
    };
    let (none, stuck) = (FlagCounts::default(), FlagCounts { stuck: 1, ..FlagCounts::default() });
    registry.worked(&reading(10 * SECOND, true), 0);
    assert_eq!(flag(&mut registry, 14), (0, none, None));
    assert_eq!(flag(&mut registry, 15), (1, stuck, Some((Flag::Stuck, 15))));
    registry.found_doing(key(9), Doing::default());
    assert_eq!(flag(&mut registry, 16), (0, stuck, Some((Flag::Stuck, 15))), "looked at once");
    let looked_at = |registry: &mut Registry| {
        let shown = registry.view(id, 10);
        shown.workers.iter().next().unwrap().flag.as_ref().unwrap().doing.is_some()
    };
    assert!(looked_at(&mut registry));
    // It is read again, and the clock of the day is another: by what it takes to read two clocks, or by an hour.
    for unix_minus_monotonic in [50, -30, 3600 * SECOND as i64, 0] {
        registry.worked(&reading(10 * SECOND, true), unix_minus_monotonic);
        let set_s = unix_minus_monotonic.max(0) as u64 / SECOND;
        assert_eq!(flag(&mut registry, 17), (0, stuck, Some((Flag::Stuck, 15 + set_s))));
    }
    let limit = |registry: &mut Registry, seconds: u64| {
        registry.pools.get_mut(&id).unwrap().limits.stuck_after_ns = Some(seconds * SECOND);
    };
    limit(&mut registry, 6);
    assert_eq!(flag(&mut registry, 17), (0, stuck, Some((Flag::Stuck, 16))), "of a longer limit");
    assert!(looked_at(&mut registry));
    limit(&mut registry, 8);
    assert_eq!(flag(&mut registry, 17), (0, none, None), "of one that is not reached");
    limit(&mut registry, 5);
    assert_eq!(flag(&mut registry, 17), (1, stuck, Some((Flag::Stuck, 15))));
    assert_eq!(registry.pools[&id].flagged, stuck, "it is active for the first time");
    // Another piece of work that takes as long.
    registry.worked(&reading(20 * SECOND, true), 0);
    assert_eq!(flag(&mut registry, 21), (0, none, None));
    assert_eq!(flag(&mut registry, 30), (1, stuck, Some((Flag::Stuck, 25))));
    registry.worked(&reading(31 * SECOND, false), 0);
    assert_eq!(flag(&mut registry, 90), (0, none, None));
    let stale = FlagCounts { stale: 1, ..FlagCounts::default() };
    assert_eq!(flag(&mut registry, 91), (0, stale, Some((Flag::Stale, 91))));
    registry.pools.get_mut(&id).unwrap().limits = Limits::default();
    assert_eq!(flag(&mut registry, 92), (0, none, None), "nobody asks any more");
    assert_eq!(registry.pools[&id].flagged, FlagCounts { stuck: 2, stale: 1, defunct: 0 });
}
