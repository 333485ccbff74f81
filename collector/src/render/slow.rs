//! Where to find what the thread of a slow request did meanwhile.

use collector_ebpf::schedule::{ON_CPU, RUNNABLE};

use crate::input::SlowRequest;
use crate::snapshot::Snapshot;

const NANOS_PER_MICRO: u64 = 1000;

/// When it began and ended, nanoseconds since the Unix epoch.
pub(super) fn span_of(request: &SlowRequest, snapshot: &Snapshot) -> (u64, u64) {
    let began = request.begin_ns.saturating_add_signed(snapshot.unix_minus_monotonic);
    (began, began.saturating_add(request.duration_ns))
}

/// Path and query of the profile that is kept of it, if any is: of its long waits, for a CPU or for something else, or of what
/// ran, whichever took more of its time. No longer than 117 characters, so that it can be the label of an exemplar.
pub(super) fn profile_of(request: &SlowRequest, snapshot: &Snapshot) -> Option<String> {
    let (began, ended) = span_of(request, snapshot);
    if began < snapshot.own.profiling?.kept_since_unix_ns? {
        return None;
    }
    let [on_cpu, runnable] = [ON_CPU, RUNNABLE].map(|kind| request.time_ns[kind as usize]);
    let blocked = request.time_ns.iter().sum::<u64>().saturating_sub(on_cpu + runnable);
    let kind = match on_cpu.max(runnable).max(blocked) {
        most if most == blocked => "offcpu",
        most if most == runnable => "runqueue",
        _ => "profile",
    };
    let SlowRequest { pid, tid, .. } = request;
    // As exact as clocks are read: the wait before may have ended a moment ago.
    let [from, to] = [began / NANOS_PER_MICRO, ended.div_ceil(NANOS_PER_MICRO)]
        .map(|us| format!("{}.{:06}", us / 1_000_000, us % 1_000_000));
    Some(format!("/debug/pprof/{kind}?pid={pid}&tid={tid}&from={from}&to={to}"))
}

#[cfg(test)]
mod tests {
    use collector_ebpf::schedule::{KINDS, NETWORK};

    use super::*;
    use crate::render::fixture;

    fn request(on_cpu: u64, runnable: u64, network: u64) -> SlowRequest {
        let mut time_ns = [0; KINDS];
        time_ns[ON_CPU as usize] = on_cpu;
        time_ns[RUNNABLE as usize] = runnable;
        time_ns[NETWORK as usize] = network;
        let (begin_ns, duration_ns) = (5_000_600_000, on_cpu + runnable + network);
        SlowRequest { begin_ns, duration_ns, pid: 71, tid: 72, outcome: 0, time_ns }
    }

    #[test]
    fn where_most_of_the_time_went_is_what_is_to_be_looked_at() {
        let mut snapshot = fixture::snapshot();
        snapshot.unix_minus_monotonic = 1_000_000_000_000;
        let keep = |snapshot: &mut Snapshot, since| {
            let profiling = snapshot.own.profiling.as_mut();
            profiling.expect("it is in the fixture").kept_since_unix_ns = since;
        };
        keep(&mut snapshot, None);
        let ms = 1_000_000_u64;
        assert_eq!(profile_of(&request(1, 2, 3), &snapshot), None, "none is kept");
        keep(&mut snapshot, Some(1_005_000_000_000));
        let shown = |on_cpu, runnable, network| {
            profile_of(&request(on_cpu * ms, runnable * ms, network * ms), &snapshot).unwrap_or_default()
        };
        let then = "?pid=71&tid=72&from=1005.000600&to=1005.006600";
        assert_eq!(shown(1, 2, 3), format!("/debug/pprof/offcpu{then}"));
        assert_eq!(shown(1, 3, 2), format!("/debug/pprof/runqueue{then}"));
        assert_eq!(shown(3, 2, 1), format!("/debug/pprof/profile{then}"));
        keep(&mut snapshot, Some(1_005_000_600_001));
        assert_eq!(profile_of(&request(1, 2, 3), &snapshot), None, "it is not kept any more");
    }

    #[test]
    fn it_fits_into_an_exemplar() {
        let snapshot = fixture::snapshot();
        let request = SlowRequest {
            begin_ns: u64::MAX / 2,
            duration_ns: u64::MAX / 2,
            pid: u32::MAX,
            tid: u32::MAX,
            ..request(0, 1, 0)
        };
        let profile = profile_of(&request, &snapshot).unwrap_or_default();
        assert!("profile".len() + profile.len() <= 128 && !profile.is_empty(), "{profile}");
    }
}
