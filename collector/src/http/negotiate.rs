//! Which format and coding a client gets, by RFC 9110 section 12.5. Nobody is refused: who asks for nothing we have
//! gets plain text, as from every other exporter.

use axum::http::header::{self, HeaderMap, HeaderName};

use crate::render::prometheus::Format;

/// One element of a comma-separated header with quality values.
struct Item<'a> {
    name: &'a str,
    /// Parameters without the quality, still joined by `;`.
    parameters: &'a str,
    /// 0 to 1; 0 is a refusal.
    quality: f32,
}

impl Item<'_> {
    fn parameter(&self, wanted: &str) -> Option<&str> {
        self.parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case(wanted).then_some(value.trim().trim_matches('"'))
        })
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Item<'_>> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok()).flat_map(|value| {
        value.split(',').map(|item| {
            let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
            let quality = parameters.split(';').find_map(|parameter| {
                let (name, value) = parameter.split_once('=')?;
                // What cannot be read is no wish.
                name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().unwrap_or(0.0))
            });
            Item { name: name.trim(), parameters, quality: quality.unwrap_or(1.0) }
        })
    })
}

/// Protobuf and OpenMetrics only for those who name them and like them at least as much as what is simpler.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let (mut protobuf, mut open_metrics, mut text) = (0.0f32, 0.0f32, 0.0f32);
    for item in items(headers, header::ACCEPT) {
        if item.is("application/vnd.google.protobuf") {
            // Without these it is another message, or in another form.
            if item.parameter("proto") == Some("io.prometheus.client.MetricFamily")
                && item.parameter("encoding") == Some("delimited")
            {
                protobuf = protobuf.max(item.quality);
            }
        } else if item.is("application/openmetrics-text") {
            if matches!(item.parameter("version"), None | Some("1.0.0")) {
                open_metrics = open_metrics.max(item.quality);
            }
        } else if item.is("text/plain") || item.is("text/*") || item.is("*/*") {
            text = text.max(item.quality);
        }
    }
    if protobuf > 0.0 && protobuf >= open_metrics && protobuf >= text {
        Format::Protobuf
    } else if open_metrics > 0.0 && open_metrics >= text {
        Format::OpenMetrics
    } else {
        Format::Text
    }
}

/// Whether to compress.
pub(super) fn gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for item in items(headers, header::ACCEPT_ENCODING) {
        let place = if item.is("gzip") || item.is("x-gzip") {
            &mut gzip
        } else if item.is("identity") {
            &mut identity
        } else if item.is("*") {
            &mut any
        } else {
            continue;
        };
        *place = Some(item.quality);
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn with(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn formats() {
        // The first is what Prometheus 2.x sends, the second what 3.x sends.
        for (accept, expected) in [
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4", Format::Text),
            // With native histograms, 2.x and 3.x.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::Protobuf,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::Protobuf,
            ),
            (
                "Application/Vnd.Google.Protobuf; Proto=\"io.prometheus.client.MetricFamily\"; Encoding=\"delimited\", */*",
                Format::Protobuf,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.2,text/plain",
                Format::Text,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
                Format::Text,
            ),
            ("application/vnd.google.protobuf;proto=other.Message;encoding=delimited", Format::Text),
            ("application/vnd.google.protobuf", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text ; Version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text;version=0.0.1", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=nonsense", Format::Text),
            ("*/*", Format::Text),
            ("text/html", Format::Text),
            ("application/json", Format::Text),
            ("", Format::Text),
            (";;,q=,;q=1", Format::Text),
        ] {
            assert_eq!(format(&with(header::ACCEPT, &[accept])), expected, "{accept}");
        }
        assert_eq!(format(&HeaderMap::new()), Format::Text);
        let split = with(header::ACCEPT, &["text/plain;q=0.1", "application/openmetrics-text"]);
        assert_eq!(format(&split), Format::OpenMetrics);
    }

    #[test]
    fn codings() {
        for (accept, expected) in [
            ("gzip", true),
            ("x-gzip", true),
            ("GZIP;q=0.1", true),
            ("deflate, gzip, br", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000, *", false),
            ("*;q=0", false),
            ("identity", false),
            ("br", false),
            ("", false),
            ("identity;q=1, gzip;q=0.5", false),
            ("identity;q=0.5, gzip;q=1", true),
            ("identity;q=0, *;q=0.1", true),
        ] {
            assert_eq!(gzip(&with(header::ACCEPT_ENCODING, &[accept])), expected, "{accept}");
        }
        assert!(!gzip(&HeaderMap::new()));
    }
}
