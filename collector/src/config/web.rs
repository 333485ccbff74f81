//! The web configuration file (`--web.config.file`): the YAML of Prometheus exporter-toolkit, so that one file serves
//! every exporter of a host.
//!
//! Its keys are all known here. A request that this server cannot meet is an error, never ignored, with two
//! exceptions on the safe side: TLS before 1.2 is not spoken even if `min_version` would allow it, and `http2` is
//! accepted although only HTTP/1.1 is served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use crate::auth::Users;
use crate::files;
use crate::http::{AccessConfig, RateLimit, tls};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] files::Error),
    /// It is not YAML, or has a key that nobody knows.
    #[error("{path}: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        error: Box<serde_saphyr::Error>,
    },
    /// A value makes no sense.
    #[error("{path}: {key}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, with those it is in.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Users make no sense.
    #[error("{path}: basic_auth_users: {error}")]
    Users {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: crate::auth::Error,
    },
    /// Certificates or keys are of no use.
    #[error("{path}: tls_server_config: {error}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: tls::Error,
    },
}

/// A validated file.
#[derive(Clone, Debug, Default)]
pub struct WebConfig {
    /// `None` serves plain HTTP.
    pub tls: Option<tls::Config>,
    /// Users, headers, rate.
    pub access: AccessConfig,
}

impl WebConfig {
    /// Whoever connects has to prove who they are, by a password or by a certificate.
    pub fn authenticates(&self) -> bool {
        let by_certificate = |tls: &tls::Config| tls.clients.as_ref().is_some_and(|clients| clients.required);
        !self.access.users.is_empty() || self.tls.as_ref().is_some_and(by_certificate)
    }
}

/// Reads a file, and the certificates it names.
pub fn load(path: &Path) -> Result<WebConfig, Error> {
    parse(&files::read_text(path)?, path)
}

fn parse(text: &str, path: &Path) -> Result<WebConfig, Error> {
    // An empty document is null, not an empty map.
    let written: Option<Written> = serde_saphyr::from_str(text)
        .map_err(|error| Error::Parse { path: path.to_owned(), error: Box::new(error) })?;
    let written = written.unwrap_or_default();
    let refused = |(key, reason)| Error::Value { path: path.to_owned(), key, reason };
    let tls = written.tls_server_config.unwrap_or_default().validated(path).map_err(refused)?;
    if let Some(tls) = &tls {
        tls.build().map_err(|error| Error::Tls { path: path.to_owned(), error })?;
    }
    let users = Users::new(written.basic_auth_users.unwrap_or_default())
        .map_err(|error| Error::Users { path: path.to_owned(), error })?;
    let http = written.http_server_config.unwrap_or_default();
    let headers = http.headers.unwrap_or_default().validated().map_err(refused)?;
    let rate_limit = written.rate_limit.unwrap_or_default().validated().map_err(refused)?;
    Ok(WebConfig { tls, access: AccessConfig { users, headers, rate_limit } })
}

/// A key with what is wrong with its value.
type Refusal = (&'static str, String);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    tls_server_config: Option<TlsServer>,
    http_server_config: Option<HttpServer>,
    basic_auth_users: Option<BTreeMap<String, String>>,
    rate_limit: Option<Rate>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsServer {
    cert: String,
    key: String,
    client_ca: String,
    cert_file: String,
    key_file: String,
    client_ca_file: String,
    client_auth_type: String,
    client_allowed_sans: Vec<String>,
    min_version: String,
    max_version: String,
    cipher_suites: Vec<String>,
    prefer_server_cipher_suites: Option<bool>,
    curve_preferences: Vec<String>,
}

impl TlsServer {
    fn validated(self, path: &Path) -> Result<Option<tls::Config>, Refusal> {
        let given = |inline_key, inline: String, file_key, file: String| match (&*inline, &*file) {
            ("", "") => Ok(None),
            (_, "") => Ok(Some(tls::Pem::Inline(inline_key, inline))),
            // As everywhere in this format, a relative path begins where the file is.
            ("", _) => Ok(Some(tls::Pem::File(path.parent().unwrap_or(Path::new("")).join(file)))),
            _ => Err((file_key, format!("{inline_key} is given, too; only one of them can be"))),
        };
        let certificate = given("tls_server_config.cert", self.cert, CERT_FILE, self.cert_file)?;
        let key = given("tls_server_config.key", self.key, KEY_FILE, self.key_file)?;
        let authority =
            given("tls_server_config.client_ca", self.client_ca, CLIENT_CA_FILE, self.client_ca_file)?;
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) if authority.is_none() && self.client_auth_type.is_empty() => return Ok(None),
            (None, _) => return Err((CERT_FILE, "it is missing".to_owned())),
            (_, None) => return Err((KEY_FILE, "it is missing".to_owned())),
        };
        let clients = clients(&self.client_auth_type, authority, self.client_allowed_sans)?;
        Ok(Some(tls::Config {
            certificate,
            key,
            clients,
            versions: versions(&self.min_version, &self.max_version)?,
            cipher_suites: self.cipher_suites,
            curves: self.curve_preferences,
            own_order: self.prefer_server_cipher_suites.unwrap_or(true),
        }))
    }
}

const CERT_FILE: &str = "tls_server_config.cert_file";
const KEY_FILE: &str = "tls_server_config.key_file";
const CLIENT_CA_FILE: &str = "tls_server_config.client_ca_file";
const CLIENT_AUTH_TYPE: &str = "tls_server_config.client_auth_type";
const CLIENT_ALLOWED_SANS: &str = "tls_server_config.client_allowed_sans";

fn clients(
    auth_type: &str,
    authority: Option<tls::Pem>,
    allowed_names: Vec<String>,
) -> Result<Option<tls::Clients>, Refusal> {
    let required = match auth_type {
        "" | "NoClientCert" => None,
        "VerifyClientCertIfGiven" => Some(false),
        "RequireAndVerifyClientCert" => Some(true),
        "RequestClientCert" | "RequireClientCert" | "RequireAnyClientCert" => {
            return Err((
                CLIENT_AUTH_TYPE,
                format!(
                    "{auth_type} would let in certificates that nobody signed; use RequireAndVerifyClientCert"
                ),
            ));
        }
        other => {
            return Err((
                CLIENT_AUTH_TYPE,
                format!(
                    "{other:?} is none of NoClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert"
                ),
            ));
        }
    };
    if required != Some(true) && !allowed_names.is_empty() {
        let reason = "it needs client_auth_type: RequireAndVerifyClientCert";
        return Err((CLIENT_ALLOWED_SANS, reason.to_owned()));
    }
    if let Some(mail) = allowed_names.iter().find(|name| name.contains('@') && !name.contains(':')) {
        let reason =
            format!("{mail:?}: mail addresses are not supported, only DNS names, URIs and IP addresses");
        return Err((CLIENT_ALLOWED_SANS, reason));
    }
    match (required, authority) {
        (Some(required), Some(authority)) => Ok(Some(tls::Clients { authority, required, allowed_names })),
        (None, None) => Ok(None),
        (Some(_), None) => Err((CLIENT_CA_FILE, format!("client_auth_type: {auth_type} needs it"))),
        (None, Some(_)) => Err((
            CLIENT_AUTH_TYPE,
            "it has to be RequireAndVerifyClientCert if there is a client CA".to_owned(),
        )),
    }
}

fn versions(min: &str, max: &str) -> Result<Vec<&'static SupportedProtocolVersion>, Refusal> {
    let number = |text: &str, default| match text {
        "" => Some(default),
        "TLS10" => Some(10),
        "TLS11" => Some(11),
        "TLS12" => Some(12),
        "TLS13" => Some(13),
        _ => None,
    };
    const MIN: &str = "tls_server_config.min_version";
    const MAX: &str = "tls_server_config.max_version";
    let bad = |text| format!("{text:?} is neither TLS12 nor TLS13");
    let least = number(min, 12).ok_or_else(|| (MIN, bad(min)))?;
    let most = number(max, 13).ok_or_else(|| (MAX, bad(max)))?;
    let versions: Vec<_> = [(12, &TLS12), (13, &TLS13)]
        .into_iter()
        .filter(|(number, _)| (least..=most).contains(number))
        .map(|(_, version)| version)
        .collect();
    if versions.is_empty() {
        return Err((MAX, "it leaves no version: TLS12 and TLS13 are spoken here".to_owned()));
    }
    Ok(versions)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpServer {
    http2: Option<bool>,
    headers: Option<Headers>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Headers {
    #[serde(rename = "Content-Security-Policy")]
    content_security_policy: Option<String>,
    #[serde(rename = "X-Frame-Options")]
    frame_options: Option<String>,
    #[serde(rename = "X-Content-Type-Options")]
    content_type_options: Option<String>,
    #[serde(rename = "X-XSS-Protection")]
    xss_protection: Option<String>,
    #[serde(rename = "Strict-Transport-Security")]
    strict_transport_security: Option<String>,
}

impl Headers {
    fn validated(self) -> Result<Vec<(HeaderName, Option<HeaderValue>)>, Refusal> {
        // Blank takes the header away; where the format lists the values, no other is one.
        let listed: [(&'static str, &'static str, Option<String>, &[&str]); 5] = [
            (
                "http_server_config.headers.Content-Security-Policy",
                "content-security-policy",
                self.content_security_policy,
                &[],
            ),
            (
                "http_server_config.headers.X-Frame-Options",
                "x-frame-options",
                self.frame_options,
                &["deny", "sameorigin"],
            ),
            (
                "http_server_config.headers.X-Content-Type-Options",
                "x-content-type-options",
                self.content_type_options,
                &["nosniff"],
            ),
            ("http_server_config.headers.X-XSS-Protection", "x-xss-protection", self.xss_protection, &[]),
            (
                "http_server_config.headers.Strict-Transport-Security",
                "strict-transport-security",
                self.strict_transport_security,
                &[],
            ),
        ];
        let mut headers = Vec::new();
        for (key, name, value, accepted) in listed {
            let Some(value) = value else { continue };
            let known =
                accepted.is_empty() || accepted.iter().any(|known| known.eq_ignore_ascii_case(&value));
            if !value.is_empty() && !known {
                return Err((key, format!("{value:?} is none of {}", accepted.join(", "))));
            }
            let parsed = HeaderValue::from_str(&value)
                .map_err(|_| (key, format!("{value:?} cannot be sent in a header")))?;
            headers.push((HeaderName::from_static(name), (!value.is_empty()).then_some(parsed)));
        }
        Ok(headers)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Rate {
    interval: Option<String>,
    burst: u32,
}

impl Rate {
    fn validated(self) -> Result<Option<RateLimit>, Refusal> {
        const KEY: &str = "rate_limit.interval";
        let Some(text) = self.interval.filter(|text| text != "0") else { return Ok(None) };
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
        let interval = parsed.ok_or_else(|| (KEY, format!("{text:?} is no duration such as 1s or 250ms")))?;
        if interval.is_zero() {
            return Ok(None);
        }
        if interval > Duration::from_secs(3600) {
            return Err((KEY, format!("{text} is more than an hour")));
        }
        if self.burst == 0 {
            return Err(("rate_limit.burst", "it has to be at least 1, or nobody gets an answer".to_owned()));
        }
        Ok(Some(RateLimit { interval, burst: self.burst }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text, Path::new("/etc/web.yml")).unwrap_err().to_string()
    }

    fn parsed(text: &str) -> WebConfig {
        parse(text, Path::new("/etc/web.yml")).unwrap()
    }

    #[test]
    fn nothing_means_plain_and_open() {
        for text in [
            "",
            "# only a comment\n",
            "{}",
            "tls_server_config: {}",
            "basic_auth_users:\n",
            "http_server_config:\n  http2: true\n",
        ] {
            let config = parsed(text);
            assert!(
                config.tls.is_none() && !config.authenticates() && config.access.headers.is_empty(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_of_another_exporter_is_understood() {
        let config = parsed(
            "basic_auth_users:\n  alice: $2y$04$SQvD3Z0GP6iYEUlfjgfO6uXRhGUsYhYyjFHrT1VkQnVHUnE9S/Fdy\n\
             http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: SAMEORIGIN\n    X-Content-Type-Options: ''\n    Strict-Transport-Security: max-age=60\n\
             rate_limit:\n  interval: 1s\n  burst: 20\n",
        );
        assert!(config.authenticates());
        assert_eq!(config.access.headers.len(), 3);
        assert_eq!(config.access.headers[1].1, None);
        let limit = config.access.rate_limit.unwrap();
        assert_eq!((limit.interval, limit.burst), (Duration::from_secs(1), 20));
        assert!(parsed("rate_limit: {interval: 0, burst: 3}").access.rate_limit.is_none());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, parts) in [
            ("basic_auth_user: {}", &["basic_auth_user"][..]),
            ("tls_server_config: {certfile: x}", &["certfile"]),
            ("http_server_config: {headers: {X-Powered-By: x}}", &["X-Powered-By"]),
            ("basic_auth_users: {alice: secret}", &["basic_auth_users", "\"alice\"", "bcrypt"]),
            ("basic_auth_users: {a: x, a: y}", &["a"]),
            (
                "http_server_config: {headers: {X-Frame-Options: allow}}",
                &["X-Frame-Options", "deny, sameorigin"],
            ),
            ("tls_server_config: {cert_file: a.pem}", &["tls_server_config.key_file", "missing"]),
            ("tls_server_config: {key_file: a.pem}", &["tls_server_config.cert_file", "missing"]),
            ("tls_server_config: {client_ca_file: a.pem}", &["cert_file", "missing"]),
            ("tls_server_config: {cert: x, cert_file: a.pem, key_file: k}", &["cert_file", "only one"]),
            ("tls_server_config: {cert_file: a.pem, key_file: k.pem}", &["tls_server_config", "/etc/a.pem"]),
            ("tls_server_config: {cert_file: a, key_file: k, client_ca_file: c}", &["client_auth_type"]),
            (
                "tls_server_config: {cert_file: a, key_file: k, client_auth_type: RequireAndVerifyClientCert}",
                &["client_ca_file"],
            ),
            (
                "tls_server_config: {cert_file: a, key_file: k, client_auth_type: RequireAnyClientCert}",
                &["RequireAndVerifyClientCert"],
            ),
            ("tls_server_config: {cert_file: a, key_file: k, client_auth_type: Never}", &["\"Never\""]),
            (
                "tls_server_config: {cert_file: a, key_file: k, client_allowed_sans: [x]}",
                &["client_allowed_sans", "RequireAndVerify"],
            ),
            ("tls_server_config: {cert_file: a, key_file: k, min_version: SSL3}", &["min_version", "SSL3"]),
            ("tls_server_config: {cert_file: a, key_file: k, max_version: TLS11}", &["max_version"]),
            ("rate_limit: {interval: soon}", &["rate_limit.interval", "soon"]),
            ("rate_limit: {interval: -1s, burst: 1}", &["rate_limit.interval"]),
            ("rate_limit: {interval: 1s}", &["rate_limit.burst"]),
            ("[1, 2", &[]),
            ("just text", &[]),
        ] {
            let error = refusal(text);
            assert!(error.starts_with("/etc/web.yml: "), "{error}");
            for part in parts {
                assert!(error.contains(part), "{text}: {error}");
            }
        }
        let missing = load(Path::new("/nonexistent/web.yml")).unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent/web.yml: "), "{missing}");
        let endless = load(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(endless, "/dev/zero is no regular file");
    }

    #[test]
    fn versions_are_never_older_than_1_2() {
        for (min, max, expected) in
            [("", "", 2), ("TLS10", "", 2), ("TLS13", "", 1), ("TLS12", "TLS12", 1), ("TLS10", "TLS13", 2)]
        {
            assert_eq!(versions(min, max).unwrap().len(), expected, "{min} {max}");
        }
        assert!(versions("TLS13", "TLS12").is_err());
    }
}
