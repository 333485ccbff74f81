//! `/debug/pprof`: profiles of workers, as Go's own handlers serve those of themselves; and of ourselves.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::header::{self, HeaderValue};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use collector_ebpf::schedule::KINDS;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::error::Elapsed;

use super::reload::is_foreign;
use super::server::Reached;
use super::{Error, Shared};
use crate::profile::{Kind, Profile};
use crate::profiler::{CaptureError, Wanted, Whom};
use crate::render::pprof::{self, Format};
use crate::snapshot::{Pool, Snapshot, WindowQuantiles};
use crate::units::NANOS_PER_SECOND;

/// Seconds of a capture, unless given: as Go has it.
const SECONDS: f64 = 30.0;
/// The longest one.
pub(super) const MOST_SECONDS: f64 = 300.0;
/// The shortest one.
pub(super) const LEAST_SECONDS: f64 = 0.1;
/// Samples a second and CPU, unless given: not 100, in step with what many programs do.
const HZ: u32 = 99;
/// The most of these.
const MOST_HZ: u32 = 10_000;

/// After the end of a capture nobody waits longer for its profile: a file that it has to read may be on a server that is gone.
const MOST_LATE: Duration = Duration::from_secs(60);

/// What a profile is asked for with.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    seconds: Option<f64>,
    hz: Option<u32>,
    /// What samples come by, in the words of perf-list(1).
    event: Option<String>,
    pool: Option<String>,
    slot: Option<u32>,
    pid: Option<u32>,
    tid: Option<u32>,
    /// Whose profile, if it is not that of workers.
    target: Option<String>,
    /// Waits that are shorter do not count.
    min: Option<String>,
    debug: Option<u32>,
    format: Option<String>,
    /// A time that is over: what was kept of it.
    from: Option<String>,
    to: Option<String>,
    /// Go's heap profiles take it; scrapers send it to all.
    #[serde(rename = "gc")]
    _gc: Option<String>,
}

impl Parameters {
    fn whom(&self) -> Result<Whom, Error> {
        let workers = Whom { tid: self.tid, ..whom(self.pool.clone(), self.slot, self.pid)? };
        match self.target.as_deref() {
            None => Ok(workers),
            Some("self") if workers.pool.is_none() && workers.pid.is_none() => {
                Ok(Whom { own: true, ..workers })
            }
            Some("self") => {
                let text = "target=self is the collector itself: pool=, slot= and pid= are of workers";
                Err(Error::BadRequest(text.into()))
            }
            Some(other) => Err(unknown_target(other)),
        }
    }

    /// What is profiled: of what is asked for here, or of that by another event.
    fn kind(&self, kind: Kind) -> Result<Kind, Error> {
        match (self.event.as_deref(), kind) {
            (None, _) | (Some("cpu-clock"), Kind::OnCpu) => Ok(kind),
            (Some("cycles"), Kind::OnCpu) => Ok(Kind::Cycles),
            (Some(other), Kind::OnCpu) => {
                let text =
                    format!("event={other:?} is none of cpu-clock (which it is unless given) and cycles");
                Err(Error::BadRequest(text))
            }
            (Some(_), _) => Err(Error::BadRequest("event= is of profile, which is made of samples".into())),
        }
    }

    fn wanted(&self, kind: Kind, snapshot: &Snapshot) -> Result<Wanted, Error> {
        let seconds = self.seconds.unwrap_or(SECONDS);
        if !(LEAST_SECONDS..=MOST_SECONDS).contains(&seconds) {
            let text = format!("seconds={seconds} is not from {LEAST_SECONDS} to {MOST_SECONDS}");
            return Err(Error::BadRequest(text));
        }
        let hz = self.hz.unwrap_or(HZ);
        if !(1..=MOST_HZ).contains(&hz) {
            return Err(Error::BadRequest(format!("hz={hz} is not from 1 to {MOST_HZ}")));
        }
        let wanted = Wanted {
            kind,
            whom: self.whom()?,
            least_ns: [0; KINDS],
            duration: Duration::from_secs_f64(seconds),
            hz,
        };
        let pool = find(snapshot, &wanted.whom)?;
        let least_ns = match &self.min {
            None => wanted.least_ns,
            Some(_) if matches!(kind, Kind::OnCpu | Kind::Cycles) => {
                return Err(Error::BadRequest("min= is of waits, and here is none".into()));
            }
            Some(text) => least_ns(text, pool)?,
        };
        Ok(Wanted { least_ns, ..wanted })
    }

    /// The time that is asked for, nanoseconds since the Unix epoch, if it is over.
    fn then(&self, kind: Kind, now: Timestamp) -> Result<Option<(u64, u64)>, Error> {
        let from = match (&self.from, &self.to) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(Error::BadRequest("to= is the end of what from= begins".into())),
            (Some(from), _) => moment("from", from, now)?,
        };
        let to = self.to.as_ref().map_or(Ok(now), |to| moment("to", to, now))?;
        if !matches!(kind, Kind::OnCpu | Kind::OffCpu | Kind::RunQueue) {
            let text = "from= is of profile, offcpu and runqueue: only those are kept";
            return Err(Error::BadRequest(text.into()));
        }
        if self.seconds.is_some() || self.hz.is_some() || self.event.is_some() || self.min.is_some() {
            let text =
                "from= is of what was sampled already: seconds=, hz=, event= and min= are of what is to be";
            return Err(Error::BadRequest(text.into()));
        }
        if self.target.is_some() {
            let text = "from= is of workers, which are sampled all the time; target=self is sampled from now on, for seconds=";
            return Err(Error::BadRequest(text.into()));
        }
        if from >= to {
            return Err(Error::BadRequest(format!("from={from:.0} is not before to={to:.0}")));
        }
        let unix_ns = |at: Timestamp| u64::try_from(at.as_nanosecond()).unwrap_or(0);
        Ok(Some((unix_ns(from), unix_ns(to))))
    }

    fn format(&self) -> Result<Format, Error> {
        format_of(self.format.as_deref(), self.debug)
    }
}

pub(super) fn format_of(format: Option<&str>, debug: Option<u32>) -> Result<Format, Error> {
    match (format, debug.unwrap_or(0)) {
        (None | Some("proto"), 0) => Ok(Format::Proto),
        (None | Some("text"), _) => Ok(Format::Text),
        (Some("folded"), _) => Ok(Format::Folded),
        (Some("flamegraph"), _) => Ok(Format::FlameGraph),
        (Some(other), _) => {
            let text = format!("format={other:?} is none of proto, text, folded and flamegraph");
            Err(Error::BadRequest(text))
        }
    }
}

/// A moment: in seconds since the Unix epoch, in RFC 3339, or as so long ago.
fn moment(name: &str, text: &str, now: Timestamp) -> Result<Timestamp, Error> {
    // A negative number is one whose unit was forgotten.
    let unix = || {
        let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds >= 0.0)?;
        Timestamp::from_duration(SignedDuration::try_from_secs_f64(seconds).ok()?).ok()
    };
    let ago = || {
        let long = text.strip_prefix('-')?.parse::<SignedDuration>().ok()?;
        now.checked_sub(Some(long).filter(SignedDuration::is_positive)?).ok()
    };
    unix().or_else(|| text.parse().ok()).or_else(ago).ok_or_else(|| {
        Error::BadRequest(format!(
            "{name}={text:?} is no moment like -5m, 1760000000 (Unix seconds) or 2026-01-31T12:30:00Z"
        ))
    })
}

type Asked = Result<Query<Parameters>, QueryRejection>;

fn whom(pool: Option<String>, slot: Option<u32>, pid: Option<u32>) -> Result<Whom, Error> {
    if slot.is_some() && pool.is_none() {
        return Err(Error::BadRequest("slot= is a place in a pool, which pool= has to name".into()));
    }
    Ok(Whom { pool, slot, pid, ..Whom::default() })
}

pub(super) fn unknown_target(target: &str) -> Error {
    Error::BadRequest(format!(
        "target={target:?} is nobody: target=self is the collector itself, and without it workers are meant"
    ))
}

/// What threads are asked for with.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfThreads {
    pool: Option<String>,
    slot: Option<u32>,
    pid: Option<u32>,
    target: Option<String>,
    debug: Option<u32>,
    format: Option<String>,
}

/// How threads are told.
#[derive(Clone, Copy, Debug)]
enum Told {
    Listed,
    Collapsed,
    Profile(Format),
}

impl OfThreads {
    /// The numbers are Go's for its goroutines; unless one is given, threads are for humans, who ask for them when something
    /// is wrong.
    fn told(&self) -> Result<Told, Error> {
        match (self.format.as_deref(), self.debug) {
            (None, Some(0)) | (Some("proto"), None | Some(0)) => Ok(Told::Profile(Format::Proto)),
            (None | Some("text"), Some(1)) => Ok(Told::Collapsed),
            (None | Some("text"), None | Some(2..)) => Ok(Told::Listed),
            (Some("folded"), None | Some(1)) => Ok(Told::Profile(Format::Folded)),
            (Some("flamegraph"), None) => Ok(Told::Profile(Format::FlameGraph)),
            (Some(format @ ("proto" | "text" | "folded" | "flamegraph")), Some(debug)) => {
                Err(Error::BadRequest(format!("format={format} and debug={debug} contradict each other")))
            }
            (Some(other), _) => {
                let text = format!("format={other:?} is none of text, proto, folded and flamegraph");
                Err(Error::BadRequest(text))
            }
        }
    }
}

/// Somebody who may see profiles. They show what runs inside workers, and taking them costs something: over the network only
/// those may who have shown who they are, and pages of other sites may not at all.
pub(super) struct Allowed;

impl FromRequestParts<Arc<Shared>> for Allowed {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Error> {
        if is_foreign(&parts.headers) {
            return Err(Error::CrossSite);
        }
        let reached = parts.extensions.get::<Reached>().copied().unwrap_or_default();
        if reached.certified || shared.access().asks_for_users() {
            return Ok(Self);
        }
        if !reached.on_loopback || FORWARDED.iter().any(|name| parts.headers.contains_key(*name)) {
            return Err(Error::ProfilesNeedUsers);
        }
        if !is_asked_as_local(parts) {
            return Err(Error::ProfilesByName);
        }
        Ok(Self)
    }
}

/// What proxies add to what they forward (RFC 7239 and before it): it comes from a loopback address, and from whoever asked them.
const FORWARDED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// A request names this host by a loopback address or as `localhost`. A page of another site whose own name is made to lead to this host
/// has that name in its requests, and passes for one of ours (DNS rebinding). Any other name or address was that of a proxy.
fn is_asked_as_local(parts: &Parts) -> bool {
    let by_header = || {
        let host = parts.headers.get(header::HOST)?;
        // What is no name is nobody's.
        Some(host.to_str().unwrap_or_default().parse::<Authority>().ok())
    };
    let authority = match parts.uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => match by_header() {
            Some(authority) => authority,
            // Browsers always have it.
            None => return true,
        },
    };
    authority.is_some_and(|authority| {
        let name = authority.host();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost")
            || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    })
}

/// The shortest wait that is to count, by kind of time, ns. A time, the same for all; or, as `p99`, for each reason as long as
/// but 1 % of the pool's waits for it are. Where it has not waited for something in the last minutes, there is no such.
fn least_ns(text: &str, pool: Option<&Pool>) -> Result<[u64; KINDS], Error> {
    let quantile: fn(&WindowQuantiles) -> f64 = match text {
        "p50" => |window| window.p50,
        "p90" => |window| window.p90,
        "p95" => |window| window.p95,
        "p99" => |window| window.p99,
        "p999" => |window| window.p999,
        _ => {
            let Ok(Ok(least)) = text.parse::<SignedDuration>().map(Duration::try_from) else {
                let text = format!(
                    "min={text:?} is no time like 500us, 10ms or 1s, and none of p50, p90, p95, p99 and p999"
                );
                return Err(Error::BadRequest(text));
            };
            return Ok([u64::try_from(least.as_nanos()).unwrap_or(u64::MAX); KINDS]);
        }
    };
    let pool =
        pool.ok_or_else(|| Error::BadRequest(format!("min={text} is of a pool, which pool= has to name")))?;
    let measured = pool.schedule.as_ref().and_then(|schedule| schedule.intervals.as_ref());
    let intervals = measured.ok_or_else(|| Error::NoIntervals(pool.name.to_string()))?;
    Ok(intervals.each_ref().map(|interval| {
        // The shortest window that has any.
        interval.windows.first().map_or(0, |window| (quantile(window) * NANOS_PER_SECOND as f64) as u64)
    }))
}

/// Whoever is asked for has to be there now. The pool, if one is named.
fn find<'a>(snapshot: &'a Snapshot, wanted: &Whom) -> Result<Option<&'a Pool>, Error> {
    let mut named = None;
    if let Some(name) = &wanted.pool {
        let Some(pool) = snapshot.pools.iter().find(|pool| *pool.name == **name) else {
            return Err(Error::UnknownPool(name.clone()));
        };
        if let Some(slot) = wanted.slot
            && !pool.workers.iter().any(|worker| worker.slot == slot)
        {
            return Err(Error::UnknownWorker { pool: name.clone(), slot });
        }
        named = Some(pool);
    }
    if let Some(pid) = wanted.pid
        && !snapshot.pools.iter().any(|pool| pool.workers.iter().any(|worker| worker.pid == pid))
    {
        return Err(Error::NoWorkerWithPid(pid));
    }
    Ok(named)
}

/// Takes a profile of this kind when it is asked for.
pub(super) fn profile(kind: Kind) -> MethodRouter<Arc<Shared>> {
    get(move |State(shared): State<Arc<Shared>>, _: Allowed, asked: Asked| async move {
        capture(&shared, kind, asked).await
    })
}

async fn capture(shared: &Shared, kind: Kind, asked: Asked) -> Result<Response, Error> {
    let Query(parameters) = asked.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    let format = parameters.format()?;
    if let Some(from_to_ns) = parameters.then(kind, Timestamp::now())? {
        // Who is asked for may be gone by now.
        let whom = parameters.whom()?;
        let profiler = shared.profiler.as_ref().ok_or(Error::NoProfiles)?;
        if !profiler.keeps() {
            return Err(Error::NothingKept);
        }
        let profile = tokio::time::timeout(MOST_LATE, profiler.kept(kind, from_to_ns, whom.clone())).await;
        if matches!(&profile, Ok(Ok(Ok(profile))) if profile.samples.is_empty()) {
            // No pool of that name was there, or is: it is another name. Who it was may have ended.
            find(&*shared.snapshot()?, &Whom { pool: whom.pool, ..Whom::default() })?;
        }
        return rendered(profile, kind, format).await;
    }
    let kind = parameters.kind(kind)?;
    let wanted = parameters.wanted(kind, &*shared.snapshot()?)?;
    let profiler = shared.profiler.as_ref().ok_or(Error::NoProfiles)?;
    // Dropped when the client goes away, which ends the capture.
    let answer_by = wanted.duration + MOST_LATE;
    let profile = tokio::time::timeout(answer_by, profiler.capture(wanted)).await;
    rendered(profile, kind, format).await
}

type Answered = Result<Result<Result<Profile, CaptureError>, RecvError>, Elapsed>;

/// What came of asking for a profile.
async fn rendered(profile: Answered, kind: Kind, format: Format) -> Result<Response, Error> {
    let profile = profile.map_err(|_| Error::ProfilesBusy)?.map_err(|_| Error::ShuttingDown)?;
    let profile = profile.map_err(failed)?;
    answer(kind, format, move || pprof::render(&profile, format)).await
}

pub(super) fn failed(error: CaptureError) -> Error {
    match error {
        CaptureError::Busy => Error::ProfilesBusy,
        CaptureError::NoCycles(text) => Error::NoCycles(text),
        CaptureError::TooOften(text) => Error::BadRequest(text),
        CaptureError::CountersTaken(text) => Error::CountersTaken(text),
        error @ CaptureError::NotKept(_) => Error::NotKept(error.to_string()),
        other => {
            tracing::warn!(error = %other, "a capture failed");
            Error::CaptureFailed(other.to_string())
        }
    }
}

/// What is rendered where it keeps nobody waiting.
pub(super) async fn answer(
    kind: Kind,
    format: Format,
    render: impl FnOnce() -> Result<Vec<u8>, pprof::Error> + Send + 'static,
) -> Result<Response, Error> {
    let body = match tokio::task::spawn_blocking(render).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return Err(Error::CaptureFailed(error.to_string())),
        Err(_) => return Err(Error::ShuttingDown),
    };
    let mut response = ([(header::CONTENT_TYPE, format.content_type())], body).into_response();
    match format {
        Format::Proto => {
            let attachment = HeaderValue::from_static(match kind {
                Kind::OnCpu => "attachment; filename=\"profile.pb.gz\"",
                Kind::Cycles => "attachment; filename=\"cycles.pb.gz\"",
                Kind::OffCpu => "attachment; filename=\"offcpu.pb.gz\"",
                Kind::RunQueue => "attachment; filename=\"runqueue.pb.gz\"",
                Kind::Wall => "attachment; filename=\"wall.pb.gz\"",
                Kind::Threads => "attachment; filename=\"threads.pb.gz\"",
                Kind::Heap => "attachment; filename=\"heap.pb.gz\"",
            });
            response.headers_mut().insert(header::CONTENT_DISPOSITION, attachment);
        }
        Format::FlameGraph => {
            let policy = HeaderValue::from_static(pprof::CONTENT_SECURITY_POLICY);
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        Format::Text | Format::Folded => {}
    }
    Ok(response)
}

/// What all threads of workers do now.
pub(super) async fn threads(
    State(shared): State<Arc<Shared>>,
    _: Allowed,
    asked: Result<Query<OfThreads>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(parameters) = asked.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    let told = parameters.told()?;
    match parameters.target.as_deref() {
        None => {}
        Some("self") => {
            let text = "threads are told of workers; what the collector itself runs is in /debug/pprof/profile?target=self, and \
                        what it waits for in /debug/pprof/offcpu?target=self";
            return Err(Error::BadRequest(text.into()));
        }
        Some(other) => return Err(unknown_target(other)),
    }
    let whom = whom(parameters.pool, parameters.slot, parameters.pid)?;
    let profiler = shared.profiler.as_ref().ok_or(Error::NoProfiles)?;
    find(&*shared.snapshot()?, &whom)?;
    let dump = tokio::time::timeout(MOST_LATE, profiler.threads(whom)).await;
    let dump = dump.map_err(|_| Error::ProfilesBusy)?.map_err(|_| Error::ShuttingDown)?.map_err(failed)?;
    let format = match told {
        Told::Profile(format) => format,
        Told::Listed | Told::Collapsed => Format::Text,
    };
    answer(Kind::Threads, format, move || match told {
        Told::Listed => Ok(pprof::listed(&dump).into_bytes()),
        Told::Collapsed => Ok(pprof::collapsed(&dump).into_bytes()),
        Told::Profile(format) => pprof::render(&dump.profile, format),
    })
    .await
}

/// What is served under `/debug/pprof/`, and what it is.
const PROFILES: [(&str, &str); 10] = [
    (
        "profile",
        "What workers run on CPUs, by samples: from now on, or with from=-5m&to=-3m what was kept \
         (--profiles.continuous-hz).",
    ),
    (
        "offcpu",
        "What workers wait for: every wait off CPU that begins and ends meanwhile, with its reason; with from= the long ones that \
         were kept.",
    ),
    (
        "runqueue",
        "What workers were about to do while they waited for a CPU; with from= the long waits that were kept.",
    ),
    ("wall", "All of these, told apart by the label state."),
    (
        "threads",
        "What all threads of workers do now, each with its stack in the kernel and in its program. Takes pool=, slot=, pid=; \
         debug=1 puts those at the same stack together, format=proto|folded|flamegraph is for programs.",
    ),
    (
        "heap",
        "What the collector itself has memory in use for, by where it was asked for: estimated from one in 512 KiB since the start. \
         seconds= is from now on, debug=1 is for reading.",
    ),
    ("allocs", "The same, of all that it has asked for."),
    ("symbol", "Names of addresses: none, as profiles have them already."),
    ("cmdline", "Command line of the collector, its arguments separated by zero bytes."),
    (
        "trace",
        "Go's execution trace: there is none. /api/v1/pools/{pool}/slow tells where the slowest requests were.",
    ),
];

pub(super) async fn index(_: Allowed) -> Response {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>/debug/pprof/</title></head><body>\n\
         <h1>/debug/pprof/</h1>\n<p>Profiles of workers: <code>go tool pprof \'http://HOST/debug/pprof/profile?pool=NAME\'</code></p>\n\
         <p>seconds= (30), pool=, slot=, pid=, or target=self for the collector itself, hz= (99, of what runs), event=cycles (of what runs, by the CPU's counter instead of its clock), min= (of what waits, e.g. 10ms, or p99 of the pool's waits for the same reason), \
         format=proto|text|folded|flamegraph or debug=1; from=, to=</p>\n<dl>\n",
    );
    for (name, text) in PROFILES {
        let _ = writeln!(page, "<dt><a href=\"{name}\">{name}</a></dt><dd>{text}</dd>");
    }
    page.push_str("</dl></body></html>\n");
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

pub(super) async fn cmdline(_: Allowed) -> Response {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], arguments.join("\0")).into_response()
}

/// What pprof asks before it asks for names: there are none, as profiles have them already.
pub(super) async fn symbol(_: Allowed) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "num_symbols: 0\n").into_response()
}

pub(super) async fn trace() -> Error {
    Error::NoTrace
}
