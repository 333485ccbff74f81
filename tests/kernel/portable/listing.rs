//! A listing names every process of the host, whatever its number.

use std::collections::BTreeMap;
use std::path::Path;

use collector::input::Source;
use collector::kernel::support::Support;
use collector::kernel::{KernelSource, RequestsBy};
use collector::units::HostFacts;

/// Start in clock ticks and parent, by pid.
type Processes = BTreeMap<u32, (u64, u32)>;

fn of_proc() -> Processes {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = crate::support::proc_stat(nix::unistd::Pid::from_raw(pid as i32))?;
        Some((pid, (stat[22 - 3], stat[4 - 3] as u32)))
    })
    .collect()
}

#[test]
fn every_process_is_listed_from_the_first_to_the_last() {
    let mut support = Support::probe(Path::new("/sys"));
    support.initial_pid_namespace = true;
    let mut source =
        KernelSource::open(&support, RequestsBy::Sockets, Path::new("/proc"), HostFacts::of_this_host())
            .unwrap();
    let before = of_proc();
    let mut listed = Processes::new();
    source.list(&mut |process| {
        let told = (process.process.start_ticks(), process.parent);
        assert!(listed.insert(process.process.pid, told).is_none(), "{process:?} is told twice");
    });
    let after = of_proc();
    // Whoever was there before and after was there all the time.
    for (pid, process) in before.iter().filter(|(pid, process)| after.get(pid) == Some(process)) {
        assert_eq!(listed.get(pid), Some(process), "{pid}");
    }
    for (pid, process) in listed {
        assert!(before.get(&pid) == Some(&process) || after.contains_key(&pid), "{pid} is invented");
    }
    assert!(before.contains_key(&1));
}
