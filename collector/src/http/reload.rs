//! `/-/reload`: the one route that asks the rest of the program to do something.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use tokio::sync::{mpsc, oneshot};

use super::{Error, Shared};

/// Asks for a reload. Answer with the reason if the new configuration is refused.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Where the answer is awaited.
    pub answer: oneshot::Sender<Result<(), String>>,
}

pub(super) async fn reload(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<&'static str, Error> {
    if is_foreign(&headers) {
        return Err(Error::CrossSite);
    }
    let channel = shared.reload.as_ref().ok_or(Error::ReloadOff)?;
    let (answer, answered) = oneshot::channel();
    channel.try_send(ReloadRequest { answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::ReloadBusy,
        mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
    })?;
    match answered.await {
        Ok(Ok(())) => Ok("reloaded\n"),
        Ok(Err(reason)) => Err(Error::ReloadFailed(reason)),
        Err(_) => Err(Error::ShuttingDown),
    }
}

/// A browser sent it for a page that is not ours. On loopback there is no other protection against pages that post to
/// us. Browsers say so in `Sec-Fetch-Site` where they trust the connection, and in `Origin` with every POST.
pub(super) fn is_foreign(headers: &HeaderMap) -> bool {
    let by_site = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    let by_origin = headers.get_all(header::ORIGIN).iter().any(|origin| {
        // `null` has no host. The scheme may be another than ours, where a proxy speaks TLS for us.
        let origin = origin.as_bytes();
        let at = origin.windows(3).position(|three| three == b"://").map(|at| at + 3);
        !at.zip(host).is_some_and(|(at, host)| origin[at..].eq_ignore_ascii_case(host))
    });
    by_site || by_origin
}
