//! What can go wrong with a request, and what its sender is told to do about it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use collector_ebpf::limits::MAX_WATERFALLS;
use serde_json::json;

use super::Shared;

/// An error with the message that goes outside: it says what to do, and nothing about the inside.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that cannot be served.
    #[error("telemetry path {path:?}: {reason}")]
    TelemetryPath {
        /// As given.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// There is no snapshot yet.
    #[error("nothing was collected yet; ask again in a moment (/readyz tells when)")]
    NotReady,
    /// No pool of this name.
    #[error("there is no pool {0:?} now; /api/v1/summary lists the names")]
    UnknownPool(String),
    /// Nobody has the slot.
    #[error("pool {pool:?} has no worker with series of its own in slot {slot}; /api/v1/stats lists them")]
    UnknownWorker {
        /// The pool.
        pool: String,
        /// The slot.
        slot: u32,
    },
    /// It has no waterfall.
    #[error(
        "requests of pool {0:?} are not measured: that takes eBPF, Linux 6.3 or `--probes.requests=syscalls`, `scheduler: histograms` and no `work: spans`; \
         `collector doctor` tells what is missing"
    )]
    NoSlowRequests(String),
    /// All waterfalls are other pools'.
    #[error(
        "where the time of requests goes is measured for {MAX_WATERFALLS} pools at most, and pool {0:?} is one more; it is \
         measured when one of these is gone, or wants `scheduler: counters` or `work: spans`"
    )]
    NoWaterfallLeft(String),
    /// Lengths of waits are not recorded.
    #[error(
        "how long waits of pool {0:?} are is not measured: that takes eBPF and `scheduler: histograms`; min= takes a time, too"
    )]
    NoIntervals(String),
    /// No worker has the pid.
    #[error("no worker has pid {0} now; /api/v1/stats lists them")]
    NoWorkerWithPid(u32),
    /// Over the network, from somebody who was not asked who they are.
    #[error(
        "profiles are served on loopback addresses only, unless the web configuration file has users or asks clients for \
         certificates"
    )]
    ProfilesNeedUsers,
    /// This host cannot.
    #[error(
        "nobody can be profiled here: that takes eBPF on x86_64; `collector doctor` tells what is missing"
    )]
    NoProfiles,
    /// As many as there can be.
    #[error(
        "as many captures as there can be are under way, or as many different hz; ask again when one has ended"
    )]
    ProfilesBusy,
    /// This host counts no cycles. What to do is in the text, here and below.
    #[error("{0}")]
    NoCycles(String),
    /// Others have its counters.
    #[error("{0}")]
    CountersTaken(String),
    /// Nothing is sampled all the time.
    #[error(
        "what runs is not sampled all the time, so nothing is kept: the flag `--profiles.continuous-hz=19` has it sampled and \
         the last ten minutes kept"
    )]
    NothingKept,
    /// What is kept is of other times.
    #[error("{0}")]
    NotKept(String),
    /// It began and did not end well.
    #[error("{0}")]
    CaptureFailed(String),
    /// Go has it and we do not.
    #[error(
        "there is no execution trace of other programs; /api/v1/pools/{{pool}}/slow tells where the slowest requests spent their \
         time, and /debug/pprof/profile what runs"
    )]
    NoTrace,
    /// A parameter that cannot be read.
    #[error("{0}")]
    BadRequest(String),
    /// Credentials are missing or wrong.
    #[error(
        "a user and a password are needed here; they are in the web configuration file (health paths are free)"
    )]
    Unauthorized,
    /// More than the configured rate.
    #[error("more requests than the configured rate; ask again later, or less often")]
    TooManyRequests,
    /// Too many wait for their credentials to be verified.
    #[error("too many credentials are being verified; ask again in a moment")]
    Verifying,
    /// Too many connections are open.
    #[error("too many connections are open; ask again in a moment, and close what is not used")]
    Crowded,
    /// A page of another site asks for a change.
    #[error(
        "a page of another site must not ask for this; send the request from a program or from this host's own page"
    )]
    CrossSite,
    /// Whoever asks for profiles on this host names it in a way that pages of other sites can.
    #[error(
        "profiles are for who asks for localhost or a loopback address: under any other name a page of another site could read them; \
         with users in the web configuration file every name will do"
    )]
    ProfilesByName,
    /// Reloading is not possible.
    #[error("reloading over HTTP is switched off; send SIGHUP to the process instead")]
    ReloadOff,
    /// Another one is being worked on.
    #[error("a reload is under way; ask again when it is done")]
    ReloadBusy,
    /// Nobody is there any more to do it.
    #[error("the process is shutting down")]
    ShuttingDown,
    /// The new configuration was refused.
    #[error("the configuration in use stays, because the new one was refused: {0}")]
    ReloadFailed(String),
}

impl Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotReady
            | Self::Crowded
            | Self::Verifying
            | Self::ReloadBusy
            | Self::CountersTaken(_)
            | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoTrace | Self::NoProfiles | Self::NoCycles(_) => StatusCode::NOT_IMPLEMENTED,
            Self::UnknownPool(_)
            | Self::NoWorkerWithPid(_)
            | Self::UnknownWorker { .. }
            | Self::NoSlowRequests(_)
            | Self::NoIntervals(_)
            | Self::NothingKept
            | Self::NotKept(_)
            | Self::NoWaterfallLeft(_) => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::TooManyRequests | Self::ProfilesBusy => StatusCode::TOO_MANY_REQUESTS,
            Self::CrossSite | Self::ReloadOff | Self::ProfilesNeedUsers | Self::ProfilesByName => {
                StatusCode::FORBIDDEN
            }
            Self::TelemetryPath { .. } | Self::ReloadFailed(_) | Self::CaptureFailed(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status(), &json!({ "error": self.to_string() }));
        let hint = match self {
            Self::NotReady
            | Self::Crowded
            | Self::Verifying
            | Self::ReloadBusy
            | Self::TooManyRequests
            | Self::ProfilesBusy => (header::RETRY_AFTER, "1"),
            Self::Unauthorized => (header::WWW_AUTHENTICATE, "Basic realm=\"collector\", charset=\"UTF-8\""),
            _ => return response,
        };
        response.headers_mut().insert(hint.0, header::HeaderValue::from_static(hint.1));
        response
    }
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

pub(super) async fn not_found(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let body = json!({
        "error": format!("nothing is served under {}; see endpoints", uri.path()),
        "endpoints": shared.endpoints(),
    });
    json_response(StatusCode::NOT_FOUND, &body)
}

pub(super) async fn method_not_allowed(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
) -> Response {
    let (allowed, hint) =
        if uri.path() == "/-/reload" { ("POST, PUT", "POST or PUT") } else { ("GET, HEAD", "GET") };
    let body = json!({
        "error": format!("{} does not take {method}; use {hint}", uri.path()),
        "endpoints": shared.endpoints(),
    });
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &body);
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    response
}
