//! Health and readiness, for orchestrators: plain words, free of authentication.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use super::Shared;

/// The collecting side lives as long as it holds the other end of the channel.
pub(super) async fn healthy(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    match shared.snapshots.has_changed() {
        Ok(_) => (StatusCode::OK, "healthy\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "collecting has ended; the log says why\n"),
    }
}

pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.snapshots.borrow().is_some() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "nothing was collected yet\n")
    }
}
