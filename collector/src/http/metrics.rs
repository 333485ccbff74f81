//! `/metrics`, whole or only the groups that `collect[]` names, as at other exporters.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;

use super::cache::Document;
use super::{Error, Shared, negotiate};
use crate::render::prometheus::Groups;

pub(super) async fn metrics(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let Query(query) = query.map_err(|rejection| Error::BadRequest(rejection.body_text()))?;
    // Other parameters are let through: scrapers have reasons of their own to add some.
    let mut wanted =
        query.iter().filter(|(name, _)| name == "collect[]").map(|(_, group)| &**group).peekable();
    let groups = match wanted.peek() {
        Some(_) => Groups::named(wanted).map_err(Error::BadRequest)?,
        None => shared.groups(),
    };
    let format = negotiate::format(&headers);
    let gzip = negotiate::gzip(&headers);
    let body = shared.cache.get(&shared.snapshot()?, Document::Metrics(format, groups), gzip);
    Ok(negotiated(body, format.content_type(), "Accept, Accept-Encoding", gzip))
}

/// An answer whose form depends on request headers.
pub(super) fn negotiated(
    body: Bytes,
    content_type: &'static str,
    vary: &'static str,
    gzip: bool,
) -> Response {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::VARY, HeaderValue::from_static(vary));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}
