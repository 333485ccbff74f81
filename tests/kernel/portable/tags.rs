//! Processes are followed and let go of, also when that does not work at once.

use std::path::Path;

use collector::input::{Input, Role, Source};
use collector::kernel::support::Support;
use collector::kernel::{KernelSource, RequestsBy};
use collector::units::{HostFacts, ProcessKey};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::Workload;

fn passes_show(source: &mut KernelSource, process: ProcessKey) -> bool {
    let mut shown = false;
    source.pass(&mut |input| {
        shown |= match input {
            Input::Sample(sample) => sample.process == process,
            Input::Unchanged { process: unchanged, .. } => unchanged == process,
            _ => false,
        };
    });
    shown
}

/// Does something while no file can be opened.
fn without_descriptors<T>(work: impl FnOnce() -> T) -> T {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    let outcome = work();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    outcome
}

#[test]
fn what_fails_for_want_of_descriptors_is_counted_and_done_later() {
    let support = Support::probe(Path::new("/sys"));
    let mut source =
        KernelSource::open(&support, RequestsBy::Sockets, Path::new("/proc"), HostFacts::of_this_host())
            .unwrap();
    let mut master = Workload::start();
    let pid = master.spawn("sleep").as_raw().cast_unsigned();
    let mut found = None;
    source.list(&mut |listed| found = found.or((listed.process.pid == pid).then_some(listed.process)));
    let process = found.unwrap();
    let failed = |source: &KernelSource| {
        source.losses().into_iter().find(|(reason, _)| *reason == "tag_not_stored").unwrap().1
    };

    // Where programs find a task by its pid none is needed, and nothing fails.
    let needed = source.features().iter().any(|feature| feature.name == "task_walk" && !feature.enabled);
    let failures = |times: u64| if needed { times } else { 0 };

    let early = without_descriptors(|| source.track(process, 1, Role::Worker));
    assert_eq!(early.is_none(), needed);
    assert_eq!(failed(&source), failures(1));
    assert!(without_descriptors(|| source.lives(process)), "that it cannot be looked at does not end it");
    assert_eq!(passes_show(&mut source, process), !needed);

    let record = source.track(process, 1, Role::Worker).unwrap();
    early.into_iter().for_each(|early| source.release(early));
    assert!(passes_show(&mut source, process));
    without_descriptors(|| source.untrack(process, Role::Worker));
    assert_eq!(failed(&source), failures(2));
    assert!(!passes_show(&mut source, process), "the tag was taken away before the pass");
    source.release(record);

    // What is wanted again is not taken away later.
    source.track(process, 1, Role::Worker).unwrap();
    without_descriptors(|| source.untrack(process, Role::Worker));
    source.track(process, 1, Role::Worker).unwrap();
    assert!(passes_show(&mut source, process));

    // A tag that it has does not stay as it was when another was wanted, also where it says more.
    source.track(process, 2, Role::Master);
    let again = without_descriptors(|| source.track(process, 1, Role::Worker));
    assert_eq!(again.is_none(), needed);
    assert_eq!(passes_show(&mut source, process), !needed);

    let gone = ProcessKey { start_ns: process.start_ns - 1_000_000_000, ..process };
    assert!(source.lives(process) && !source.lives(gone));
    assert_eq!(source.track(gone, 1, Role::Worker), None);
    source.untrack(gone, Role::Worker);
    assert_eq!(failed(&source), failures(4), "to be gone is no failure");
}
