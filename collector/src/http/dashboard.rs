//! `/`: the dashboard, one page without external parts.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::Shared;

const PAGE: &str = include_str!("dashboard.html");

/// Only the page's own script and style run, whatever a worker calls itself. A test checks the digests.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'; \
    script-src 'sha256-fqwP2oqwL/2b0gTAjquv8Eyls6nptxOB2KjePVQknxc='; \
    style-src 'sha256-QpzcQBcwfmSzZzKjaUmN1HEMNn4dp3N8KyVpNvTtVAk='";

/// The page with its link to the metrics. Links are relative, so that it works behind a path prefix.
pub(super) fn page_for(telemetry_path: &str) -> Bytes {
    match telemetry_path {
        "/metrics" => Bytes::from_static(PAGE.as_bytes()),
        path => {
            PAGE.replace("href=\"metrics\"", &format!("href=\"{}\"", path.trim_start_matches('/'))).into()
        }
    }
}

pub(super) async fn page(State(shared): State<Arc<Shared>>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)],
        shared.page.clone(),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn policy_lets_this_script_and_style_run() {
        for tag in ["script", "style"] {
            let (_, rest) = PAGE.split_once(&format!("<{tag}>")).unwrap_or_default();
            let (inside, _) = rest.split_once(&format!("</{tag}>")).unwrap_or_default();
            let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(inside));
            let source = format!("{tag}-src 'sha256-{digest}'");
            assert!(POLICY.contains(&source), "the page's {tag} has changed; POLICY has to say {source}");
        }
    }

    #[test]
    fn page_has_no_way_to_interpret_text_as_markup() {
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(way), "{way}");
        }
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://"), "it has external parts");
    }
}
