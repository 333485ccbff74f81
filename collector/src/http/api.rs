//! `/api/v1`: the snapshot as JSON documents.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{self, HeaderMap};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::cache::Document;
use super::metrics::negotiated;
use super::{Error, Shared, negotiate};
use crate::render::json::{self, NoSlowRequests};

const JSON: &str = "application/json";

fn document(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, JSON)], body).into_response()
}

pub(super) async fn summary(State(shared): State<Arc<Shared>>) -> Result<Response, Error> {
    Ok(document(json::summary(&*shared.snapshot()?)))
}

pub(super) async fn stats(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Response, Error> {
    let gzip = negotiate::gzip(&headers);
    let body = shared.cache.get(&shared.snapshot()?, Document::Stats, gzip);
    Ok(negotiated(body, JSON, "Accept-Encoding", gzip))
}

pub(super) async fn pool(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let Path(name) = path.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    let snapshot = shared.snapshot()?;
    json::pool(&snapshot, &name).map(document).ok_or(Error::UnknownPool(name))
}

pub(super) async fn slow(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let Path(name) = path.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    match json::slow(&*shared.snapshot()?, &name) {
        Ok(body) => Ok(document(body)),
        Err(NoSlowRequests::Pool) => Err(Error::UnknownPool(name)),
        Err(NoSlowRequests::Requests) => Err(Error::NoSlowRequests(name)),
        Err(NoSlowRequests::NoneLeft) => Err(Error::NoWaterfallLeft(name)),
    }
}

pub(super) async fn worker(
    State(shared): State<Arc<Shared>>,
    path: Result<Path<(String, u32)>, PathRejection>,
) -> Result<Response, Error> {
    let Path((pool, slot)) = path.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    let snapshot = shared.snapshot()?;
    if !snapshot.pools.iter().any(|p| *p.name == *pool) {
        return Err(Error::UnknownPool(pool));
    }
    json::worker(&snapshot, &pool, slot).map(document).ok_or(Error::UnknownWorker { pool, slot })
}

/// Which deaths are wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    pool: Option<String>,
    /// All that are kept, unless given.
    limit: Option<usize>,
}

pub(super) async fn exits(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(wanted) = query.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    let limit = wanted.limit.unwrap_or(usize::MAX);
    let body = json::exits(&*shared.snapshot()?, wanted.pool.as_deref(), limit);
    // Without a pool there is always an answer.
    body.map(document).ok_or_else(|| Error::UnknownPool(wanted.pool.unwrap_or_default()))
}
