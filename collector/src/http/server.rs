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
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::guard::Guard;
use super::tls::Tls;

/// What a client may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at a time; one more is closed at once, and counted.
    pub connections: usize,
    /// From the opening of a connection, or the end of an answer, to the end of the next request's headers. Also the
    /// longest time a connection may idle, hence longer than the usual scrape intervals.
    pub header_wait: Duration,
    /// From the opening of a connection to the end of the TLS handshake.
    pub handshake_wait: Duration,
    /// From the first stall of an answer to its end.
    pub answer_wait: Duration,
    /// What answers under way are given to end when the server shuts down.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            header_wait: Duration::from_secs(75),
            handshake_wait: Duration::from_secs(10),
            answer_wait: Duration::from_secs(60),
            drain: Duration::from_secs(5),
        }
    }
}

/// Counts connections over the life of the process; shared by all listeners.
#[derive(Debug, Default)]
pub struct Connections {
    refused: Arc<AtomicU64>,
}

impl Connections {
    /// Closed at once, because too many were open.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The counter itself, for whoever shows it.
    pub fn refused_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.refused)
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
    let permits = Arc::new(Semaphore::new(limits.connections));
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
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            connections.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        // Answers are written as a whole: waiting to fill a packet would only delay the last one.
        let _ = stream.set_nodelay(true);
        let tls = tls.acceptor();
        let (builder, watcher) = (builder.clone(), graceful.watcher());
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let served = match tls {
                None => attend(stream, &builder, watcher, service, limits).await,
                Some(tls) => match tokio::time::timeout(limits.handshake_wait, tls.accept(stream)).await {
                    Ok(Ok(stream)) => attend(stream, &builder, watcher, service, limits).await,
                    Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => return tracing::debug!("a TLS handshake took too long"),
                },
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
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
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    builder: &http1::Builder,
    watcher: Watcher,
    service: TowerToHyperService<Router>,
    limits: Limits,
) -> hyper::Result<()> {
    let io = TokioIo::new(Guard::new(io, limits.answer_wait));
    watcher.watch(builder.serve_connection(io, service)).await
}
