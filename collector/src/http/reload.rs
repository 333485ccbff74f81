//! `/-/reload`: the one route that asks the rest of the program to do something.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
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
    // Browsers send this along. On loopback there is no other protection against pages that post to us.
    if headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(Error::CrossSite);
    }
    let channel = shared.reload.as_ref().ok_or(Error::ReloadOff)?;
    let (answer, answered) = oneshot::channel();
    channel.try_send(ReloadRequest { answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::ReloadBusy,
        mpsc::error::TrySendError::Closed(_) => Error::ReloadOff,
    })?;
    match answered.await {
        Ok(Ok(())) => Ok("reloaded\n"),
        Ok(Err(reason)) => Err(Error::ReloadFailed(reason)),
        Err(_) => Err(Error::ReloadFailed("the process is shutting down".to_owned())),
    }
}
