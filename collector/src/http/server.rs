//! Takes connections and serves the router on each, within limits: `axum::serve` has none.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::access::Crowded;
use super::guard::Guard;
use super::tls::Tls;

/// What a client may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the opening of a connection, or the end of an answer, to the end of the next request's headers: the longest
    /// time that a connection may idle. No usual scrape interval, or a scraper would find its connection closed while
    /// it is about to use it.
    pub header_wait: Duration,
    /// From the opening of a connection to the end of the TLS handshake.
    pub handshake_wait: Duration,
    /// From the first stall of an answer to its end.
    pub answer_wait: Duration,
    /// How long a connection beyond the budget may last, all told.
    pub crowded_wait: Duration,
    /// What answers under way are given to end when the server shuts down.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_wait: Duration::from_secs(35),
            handshake_wait: Duration::from_secs(10),
            answer_wait: Duration::from_secs(60),
            crowded_wait: Duration::from_secs(2),
            drain: Duration::from_secs(5),
        }
    }
}

/// Connections that may be open at a time, all listeners together.
const BUDGET: usize = 512;

/// Connections beyond that for questions after health and readiness, one for each connection: whoever holds all others
/// open must not make an orchestrator think that we are dead. Nor whoever holds these by saying nothing: the one that has
/// been silent for longest makes room.
const HEALTH_BUDGET: usize = 16;

/// How a request reached us.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    /// At a loopback address, so it comes from this host.
    pub(super) on_loopback: bool,
    /// Its sender had to show a certificate.
    pub(super) certified: bool,
}

/// Who may connect; shared by all listeners.
#[derive(Debug)]
pub struct Connections {
    budget: Arc<Semaphore>,
    health: Arc<Semaphore>,
    silent: Arc<SilentOnes>,
    refused: Arc<AtomicU64>,
}

/// Connections beyond the budget whose request has not come yet, the oldest first, each with what tells it to leave.
type SilentOnes = Mutex<VecDeque<Arc<Notify>>>;

/// A place among the silent ones, until the request comes or the connection ends.
#[derive(Debug)]
struct Silent {
    ones: Arc<SilentOnes>,
    leave: Arc<Notify>,
}

impl Silent {
    fn end(&self) {
        let mut ones = self.ones.lock().unwrap_or_else(PoisonError::into_inner);
        ones.retain(|one| !Arc::ptr_eq(one, &self.leave));
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.end();
    }
}

/// Room for a connection.
enum Room {
    /// One of the common budget.
    Common(OwnedSemaphorePermit),
    /// One of those for health and readiness; another had to leave for it if it is not there yet.
    Health(Option<OwnedSemaphorePermit>, Silent),
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(BUDGET, HEALTH_BUDGET)
    }
}

impl Connections {
    /// So many at a time, and so many more that are told nothing but health and readiness.
    pub(super) fn new(budget: usize, health: usize) -> Self {
        Self {
            budget: Arc::new(Semaphore::new(budget)),
            health: Arc::new(Semaphore::new(health)),
            silent: Arc::default(),
            refused: Arc::default(),
        }
    }

    /// Connections closed at once, and requests not answered, because too many were open.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The counter itself, for whoever shows it.
    pub fn refused_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.refused)
    }

    /// Room for one more.
    fn admit(&self) -> Option<Room> {
        if let Ok(permit) = Arc::clone(&self.budget).try_acquire_owned() {
            return Some(Room::Common(permit));
        }
        let permit = Arc::clone(&self.health).try_acquire_owned().ok();
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if permit.is_none() {
            // Its place goes to the one that comes now, as places go to those who wait in their order.
            silent.pop_front()?.notify_one();
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        let leave = Arc::new(Notify::new());
        silent.push_back(Arc::clone(&leave));
        Some(Room::Health(permit, Silent { ones: Arc::clone(&self.silent), leave }))
    }
}

/// Serves until `shutdown` is ready, then lets answers under way end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Arc<Tls>,
    limits: Limits,
    connections: Arc<Connections>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let crowded = Crowded { refused: connections.refused_counter() };
    let crowded = router.clone().layer(axum::Extension(crowded));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_wait);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // A client that left meanwhile costs nothing; out of descriptors, only waiting helps.
                    if !matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset) {
                        tracing::warn!(%error, "cannot accept a connection; trying again in a second");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    continue;
                }
            },
        };
        let Some(room) = connections.admit() else {
            connections.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        // Answers are written as a whole: waiting to fill a packet would only delay the last one.
        let _ = stream.set_nodelay(true);
        let (tls, certified) = tls.acceptor().unzip();
        let reached = Reached {
            on_loopback: stream.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback()),
            certified: certified.unwrap_or(false),
        };
        let watcher = graceful.watcher();
        let mut builder = builder.clone();
        let (permit, silent) = match room {
            Room::Common(permit) => {
                let service =
                    Service { router: TowerToHyperService::new(router.clone()), silent: None, reached };
                tokio::spawn(async move {
                    let _permit = permit;
                    attend(stream, tls, &builder, watcher, service, limits).await;
                });
                continue;
            }
            Room::Health(permit, silent) => (permit, silent),
        };
        let places = Arc::clone(&connections.health);
        let leave = Arc::clone(&silent.leave);
        let service =
            Service { router: TowerToHyperService::new(crowded.clone()), silent: Some(silent), reached };
        let made_room = permit.is_none();
        tokio::spawn(async move {
            builder.keep_alive(false);
            let attended = async {
                let _permit = match permit {
                    Some(permit) => Ok(permit),
                    None => places.acquire_owned().await,
                };
                attend(stream, tls, &builder, watcher, service, limits).await;
            };
            tokio::select! {
                () = attended => {}
                () = leave.notified() => tracing::debug!("a silent connection beyond the budget made room"),
                () = tokio::time::sleep(limits.crowded_wait) => {
                    tracing::debug!("a connection beyond the budget took too long");
                }
            }
        });
        if made_room {
            // Whoever has spoken already is heard before the next one takes a place.
            tokio::task::yield_now().await;
        }
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("some answers were cut off by the shutdown");
    }
}

/// The router, for one connection.
struct Service {
    router: TowerToHyperService<Router>,
    silent: Option<Silent>,
    reached: Reached,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.reached);
        if let Some(silent) = &self.silent {
            silent.end();
        }
        self.router.call(request)
    }
}

/// Serves one connection to its end.
async fn attend(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    builder: &http1::Builder,
    watcher: Watcher,
    service: Service,
    limits: Limits,
) {
    let served = match tls {
        None => exchange(stream, builder, watcher, service, limits).await,
        Some(tls) => match tokio::time::timeout(limits.handshake_wait, tls.accept(stream)).await {
            Ok(Ok(stream)) => exchange(stream, builder, watcher, service, limits).await,
            Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => return tracing::debug!("a TLS handshake took too long"),
        },
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Requests and answers of one connection.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    builder: &http1::Builder,
    watcher: Watcher,
    service: Service,
    limits: Limits,
) -> hyper::Result<()> {
    let io = TokioIo::new(Guard::new(io, limits.answer_wait));
    watcher.watch(builder.serve_connection(io, service)).await
}
