//! The axum server. Handlers read the latest snapshot and nothing else: no `/proc`, no bpf(2), no waiting for the
//! aggregator (a reload and profiles excepted, which are asked for and awaited).
//!
//! | route | answer |
//! |---|---|
//! | `GET /` | dashboard, one HTML page without external parts |
//! | `GET /metrics?collect[]=` (or `--web.telemetry-path`) | Prometheus text 0.0.4, OpenMetrics 1.0.0 or protobuf by `Accept`, gzip |
//! | `GET /api/v1/summary` | pools, uptime |
//! | `GET /api/v1/stats` | everything, worker by worker; gzip |
//! | `GET /api/v1/pools/{pool}` | one pool with its workers |
//! | `GET /api/v1/pools/{pool}/slow` | its slowest requests of each window, with where their time went; 404 for a pool whose requests are not measured |
//! | `GET /api/v1/workers/{pool}/{slot}` | one worker |
//! | `GET /api/v1/exits?pool=&limit=` | the last deaths, of one pool or of all, newest first; 404 for a pool that neither is there nor has certificates |
//! | `GET /debug/pprof/` | what there is below it |
//! | `GET /debug/pprof/{profile,offcpu,runqueue,wall}?seconds=&pool=&slot=&pid=&tid=&target=&hz=&event=&min=&from=&to=&format=&debug=` | a profile of workers, or with `target=self` of this process, when it is taken, or with `from=` of what was kept; 403 over the network from those who were not asked who they are; 404 for a worker that is not there; 429 while as many are taken as can be; 501 without eBPF, and by cycles where there is no counter; 503 while others have them |
//! | `GET /debug/pprof/threads?pool=&slot=&pid=&format=&debug=` | what all threads of workers do now, with their stacks; statuses as of a profile |
//! | `GET /debug/pprof/{heap,allocs}?seconds=&format=&debug=` | what this process has memory in use for, or has asked for; statuses as of a profile |
//! | `GET`, `POST /debug/pprof/symbol` | that there are no names to ask for |
//! | `GET /debug/pprof/cmdline` | our command line |
//! | `GET /debug/pprof/trace` | 501, with what there is instead |
//! | `GET /healthz`, `GET /-/healthy` | 200 while facts are collected |
//! | `GET /readyz`, `GET /-/ready` | 200 from the first snapshot on |
//! | `POST`, `PUT /-/reload` | configuration is read again: 200; 500 with the reason where it is refused; 403 for a page of another site; 503 while another is under way or the process shuts down |
//!
//! Everything else is a JSON error that lists these. Health and readiness are free, and told on connections beyond the
//! budget, too; all other routes, unknown ones included, ask for credentials if users are configured.

mod access;
mod api;
mod cache;
mod dashboard;
mod error;
mod guard;
mod health;
mod heap;
mod metrics;
mod negotiate;
mod pprof;
mod reload;
mod server;
pub mod tls;

use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::State;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::middleware::{from_fn_with_state, map_response_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};

use self::access::Access;
pub use self::access::{AccessConfig, RateLimit};
use self::cache::Cache;
pub use self::error::Error;
pub use self::reload::ReloadRequest;
pub use self::server::{Connections, Limits, serve};
use crate::profile::Kind;
use crate::profile::heap::Shown;
use crate::profiler::Profiler;
use crate::render::prometheus::Groups;
use crate::snapshot::Snapshot;

/// Every path but that of the metrics, which can be configured.
const PATHS: [&str; 23] = [
    "/",
    "/api/v1/summary",
    "/api/v1/stats",
    "/api/v1/pools/{pool}",
    "/api/v1/pools/{pool}/slow",
    "/api/v1/workers/{pool}/{slot}",
    "/api/v1/exits",
    "/debug/pprof/",
    "/debug/pprof/profile",
    "/debug/pprof/offcpu",
    "/debug/pprof/runqueue",
    "/debug/pprof/wall",
    "/debug/pprof/threads",
    "/debug/pprof/heap",
    "/debug/pprof/allocs",
    "/debug/pprof/symbol",
    "/debug/pprof/cmdline",
    "/debug/pprof/trace",
    "/healthz",
    "/readyz",
    "/-/healthy",
    "/-/ready",
    "/-/reload",
];

/// What is served under which path.
#[derive(Clone, Debug)]
pub struct Config {
    telemetry_path: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { telemetry_path: "/metrics".to_owned() }
    }
}

impl Config {
    /// Serves metrics under another path than `/metrics`.
    pub fn with_telemetry_path(path: &str) -> Result<Self, Error> {
        let refuse = |reason| Err(Error::TelemetryPath { path: path.to_owned(), reason });
        if !path.starts_with('/') || path == "/" {
            return refuse("it has to begin with / and to name something");
        }
        if !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte)) {
            return refuse("only letters, digits and / - _ . ~ may be in it");
        }
        if PATHS.contains(&path) || ["/api/", "/debug/", "/-/"].iter().any(|taken| path.starts_with(taken)) {
            return refuse("something else is served there");
        }
        Ok(Self { telemetry_path: path.to_owned() })
    }
}

/// What handlers share.
#[derive(Debug)]
pub struct Shared {
    config: Config,
    /// `None` until the first collection is done.
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    cache: Cache,
    reload: Option<mpsc::Sender<ReloadRequest>>,
    /// `None` where workers cannot be profiled.
    profiler: Option<Profiler>,
    /// Profiles of the heap that may be under way at a time.
    heaps: Arc<Semaphore>,
    page: Bytes,
    access: RwLock<Arc<Access>>,
    /// What a scrape gets that does not say what it wants.
    groups: RwLock<Groups>,
}

impl Shared {
    /// Serves what comes through `snapshots`. Without `reload` that route answers 403.
    pub fn new(
        config: Config,
        access: AccessConfig,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        reload: Option<mpsc::Sender<ReloadRequest>>,
        profiler: Option<Profiler>,
    ) -> Self {
        let page = dashboard::page_for(&config.telemetry_path);
        let access = RwLock::new(Arc::new(Access::new(access)));
        let groups = RwLock::default();
        let (cache, heaps) = (Cache::default(), Arc::new(Semaphore::new(heap::MAX_HEAPS)));
        Self { config, snapshots, cache, reload, profiler, heaps, page, access, groups }
    }

    /// From the next scrape on that does not say what it wants.
    pub fn set_groups(&self, groups: Groups) {
        *self.groups.write().unwrap_or_else(PoisonError::into_inner) = groups;
    }

    fn groups(&self) -> Groups {
        *self.groups.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the next request on; who was verified before is verified again only if the hash is another.
    pub fn set_access(&self, access: AccessConfig) {
        let mut current = self.access.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(current.replaced(access));
    }

    /// Drops the answers of snapshots that are gone. For when another one has come.
    pub fn forget_old(&self) {
        self.cache.forget_old();
    }

    fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn snapshot(&self) -> Result<Arc<Snapshot>, Error> {
        self.snapshots.borrow().clone().ok_or(Error::NotReady)
    }

    fn endpoints(&self) -> Vec<&str> {
        let mut endpoints = vec![PATHS[0], self.config.telemetry_path.as_str()];
        endpoints.extend_from_slice(&PATHS[1..]);
        endpoints
    }
}

/// All routes.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(dashboard::page))
        .route(&shared.config.telemetry_path, get(metrics::metrics))
        .route("/api/v1/summary", get(api::summary))
        .route("/api/v1/stats", get(api::stats))
        .route("/api/v1/pools/{pool}", get(api::pool))
        .route("/api/v1/pools/{pool}/slow", get(api::slow))
        .route("/api/v1/workers/{pool}/{slot}", get(api::worker))
        .route("/api/v1/exits", get(api::exits))
        .route("/debug/pprof", get(pprof::index))
        .route("/debug/pprof/", get(pprof::index))
        .route("/debug/pprof/profile", pprof::profile(Kind::OnCpu))
        .route("/debug/pprof/offcpu", pprof::profile(Kind::OffCpu))
        .route("/debug/pprof/runqueue", pprof::profile(Kind::RunQueue))
        .route("/debug/pprof/wall", pprof::profile(Kind::Wall))
        .route("/debug/pprof/threads", get(pprof::threads))
        .route("/debug/pprof/heap", heap::heap(Shown::InUse))
        .route("/debug/pprof/allocs", heap::heap(Shown::Allocated))
        .route("/debug/pprof/symbol", get(pprof::symbol).post(pprof::symbol))
        .route("/debug/pprof/cmdline", get(pprof::cmdline))
        .route("/debug/pprof/trace", get(pprof::trace))
        .route("/healthz", get(health::healthy))
        .route("/-/healthy", get(health::healthy))
        .route("/readyz", get(health::ready))
        .route("/-/ready", get(health::ready))
        .route("/-/reload", post(reload::reload).put(reload::reload))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&shared), access::admit))
        .layer(map_response_with_state(Arc::clone(&shared), add_headers))
        .with_state(shared)
}

/// Headers of every answer. A handler's own `Content-Security-Policy` stays; what is configured replaces all.
async fn add_headers(State(shared): State<Arc<Shared>>, mut response: Response) -> Response {
    const HEADERS: [(HeaderName, HeaderValue); 4] = [
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // Every answer is of this moment.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    shared.access().set_headers(&mut response);
    response
}

#[cfg(test)]
mod tests;
