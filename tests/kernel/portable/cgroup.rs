//! The CPU of a pool against the account of the control group that it is.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Collector, Workload, eventually, pool_of, worker};

/// What may be found unattributed where nothing is, and missed or added where something is, seconds: what the
/// pool uses while its figures and its cgroup's are read one after the other, and the tail of threads that
/// end.
const BOUND: f64 = 0.02;

/// A control group of version 2, removed at the end.
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    pub(super) fn new(name: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            file_system.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?
        });
        let mount = mount.map_or_else(mounted, PathBuf::from);
        let path = mount.join(format!("collector-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// Freezes all that is in it, or lets it go on.
    pub(super) fn freeze(&self, frozen: bool) {
        std::fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" }).unwrap();
    }

    pub(super) fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever was in it was killed and takes a moment to leave.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A new mount of the file system, for as long as the host runs: whoever looks for one later is to find it.
fn mounted() -> PathBuf {
    let place = std::env::temp_dir().join("collector-test-cgroup2");
    std::fs::create_dir_all(&place).unwrap();
    let none: Option<&str> = None;
    nix::mount::mount(none, &place, Some("cgroup2"), nix::mount::MsFlags::empty(), none).unwrap();
    place
}

/// What the pool does when the comparison begins. What it uses between the two readings then is missed, once: on an
/// emulated CPU that is more than [`BOUND`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    Busy,
    Idle,
}

pub(crate) fn agrees_with_the_cgroup(source: &str, storms: bool, begins: Begins) {
    let cgroup = Cgroup::new(source);
    let mut master = Workload::start();
    std::fs::write(cgroup.procs(), master.pid().to_string()).unwrap();
    let mut workers = vec![master.spawn("sleep"), master.spawn("sleep")];
    let mut busy = |master: &mut Workload| {
        workers.extend([master.spawn("duty 30 20000"), master.spawn("duty 60 20000")]);
        if storms {
            workers.push(master.spawn("threads 2 3000"));
        }
    };
    if begins == Begins::Busy {
        busy(&mut master);
    }
    let collector = Collector::start(&[&format!("--source={source}")]);
    let its_master = master.pid();
    let unattributed = || {
        let stats = collector.stats();
        pool_of(&stats, its_master)?["unattributed_cpu_seconds"]["cgroup"].as_f64()
    };
    eventually("the pool is a cgroup", unattributed);
    if begins == Begins::Idle {
        busy(&mut master);
    }

    // They come and go all the time, and all are the pool's.
    for _ in 0..6 {
        if storms {
            master.ask("storm 100 2000");
        }
        std::thread::sleep(Duration::from_millis(1500));
    }
    let stats = collector.stats();
    let pool = pool_of(&stats, master.pid()).unwrap().clone();
    for pid in workers {
        assert!(worker(&pool, pid).is_some(), "{pid}: {pool}");
    }
    let used = ["user_seconds", "system_seconds"].map(|mode| pool["totals"]["cpu"][mode].as_f64().unwrap());
    let before = pool["unattributed_cpu_seconds"]["cgroup"].as_f64().unwrap();
    println!("{source}: the pool used {:.3} s, {before:.6} s are unattributed", used.iter().sum::<f64>());
    assert!(before <= BOUND, "{before} s of nobody");

    // Children of somebody else, each gone before anybody looks twice.
    let mut stranger = Workload::start();
    let its_workers = [stranger.spawn("sleep"), stranger.spawn("sleep")];
    const STRANGERS: u32 = 8;
    const EACH_MS: u32 = 100;
    for _ in 0..STRANGERS {
        stranger.spawn(&format!("burn-in {} {EACH_MS}", cgroup.procs().display()));
        eventually("it has ended", || (stranger.ask("reap") == "1").then_some(()));
    }
    let (user, system) = stranger.ask_pair("children");
    let truth = (user + system) as f64 / 1e6;
    let found = || unattributed().map(|now| now - before);
    // What each used before it had joined is not in it, and what it burnt is known.
    let least = f64::from(STRANGERS * EACH_MS) / 1e3 - BOUND;
    eventually("their CPU is unattributed", || (found()? >= least).then_some(()));
    // What shows later must not be more than it was.
    std::thread::sleep(Duration::from_secs(5));
    let found = found().unwrap();
    println!("{source}: strangers used {truth:.6} s, {found:.6} s of it are unattributed");
    assert!((least..=truth + BOUND).contains(&found), "{found} s, strangers used {truth} s");
    let name = pool["name"].as_str().unwrap();
    let series = format!("collector_unattributed_cpu_seconds_total{{pool=\"{name}\",account=\"cgroup\"}}");
    assert!(collector.metric(&series).unwrap() >= least);
    // Strangers are a pool, too, but not the only processes of their cgroup.
    let other = collector.pool_of(stranger.pid(), its_workers.len());
    assert!(other["unattributed_cpu_seconds"].get("cgroup").is_none(), "{other}");
}

#[test]
fn cpu_of_strangers_in_the_cgroup_of_a_pool_is_unattributed_and_no_other() {
    agrees_with_the_cgroup("ebpf", true, Begins::Idle);
}

/// Without storms: what a worker used since its last reading is not known when it ends, and unattributed.
#[test]
fn without_bpf_it_is_the_same_for_workers_that_stay() {
    agrees_with_the_cgroup("procfs", false, Begins::Busy);
}
