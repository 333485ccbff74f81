//! Takes connections and serves the router on each, within limits: `axum::serve` has none.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
/// open must not make an orchestrator think that we are dead.
const HEALTH_BUDGET: usize = 16;

/// Who may connect; shared by all listeners.
#[derive(Debug)]
pub struct Connections {
    budget: Arc<Semaphore>,
    health: Arc<Semaphore>,
    refused: Arc<AtomicU64>,
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

    /// Room for one more, and whether it is of the common budget.
    fn admit(&self) -> Option<(OwnedSemaphorePermit, bool)> {
        let common = Arc::clone(&self.budget).try_acquire_owned().map(|permit| (permit, true));
        common.or_else(|_| Arc::clone(&self.health).try_acquire_owned().map(|permit| (permit, false))).ok()
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
        let Some((permit, common)) = connections.admit() else {
            connections.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        // Answers are written as a whole: waiting to fill a packet would only delay the last one.
        let _ = stream.set_nodelay(true);
        let tls = tls.acceptor();
        let watcher = graceful.watcher();
        let mut builder = builder.clone();
        let service = TowerToHyperService::new(if common { router.clone() } else { crowded.clone() });
        tokio::spawn(async move {
            let _permit = permit;
            if common {
                return attend(stream, tls, &builder, watcher, service, limits).await;
            }
            builder.keep_alive(false);
            let attended = attend(stream, tls, &builder, watcher, service, limits);
            if tokio::time::timeout(limits.crowded_wait, attended).await.is_err() {
                tracing::debug!("a connection beyond the budget took too long");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("some answers were cut off by the shutdown");
    }
}

/// Serves one connection to its end.
async fn attend(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    builder: &http1::Builder,
    watcher: Watcher,
    service: TowerToHyperService<Router>,
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
    service: TowerToHyperService<Router>,
    limits: Limits,
) -> hyper::Result<()> {
    let io = TokioIo::new(Guard::new(io, limits.answer_wait));
    watcher.watch(builder.serve_connection(io, service)).await
}
