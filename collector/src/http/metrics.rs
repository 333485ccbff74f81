//! `/metrics`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;

use super::cache::Document;
use super::{Error, Shared, negotiate};

pub(super) async fn metrics(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let format = negotiate::format(&headers);
    let gzip = negotiate::gzip(&headers);
    let body = shared.cache.get(&shared.snapshot()?, Document::Metrics(format), gzip);
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
