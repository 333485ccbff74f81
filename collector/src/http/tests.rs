//! The router from outside: one request in, one answer out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Read as _;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;

use super::*;
use crate::client_model;
use crate::render::{fixture, prometheus};
use crate::snapshot::Pool;

struct Site {
    publish: watch::Sender<Option<Arc<Snapshot>>>,
    reloads: mpsc::Receiver<ReloadRequest>,
    router: Router,
    shared: Arc<Shared>,
}

fn site() -> Site {
    let (publish, snapshots) = watch::channel(Some(Arc::new(fixture::snapshot())));
    let (reload, reloads) = mpsc::channel(1);
    let shared =
        Arc::new(Shared::new(Config::default(), AccessConfig::default(), snapshots, Some(reload), None));
    Site { publish, reloads, router: router(Arc::clone(&shared)), shared }
}

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

async fn send(router: &Router, method: Method, uri: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn get_with(router: &Router, uri: &str, headers: &[(&str, &str)]) -> Answer {
    send(router, Method::GET, uri, headers).await
}

async fn get(router: &Router, uri: &str) -> Answer {
    get_with(router, uri, &[]).await
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

/// Any text as one segment of a path.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn metrics_come_in_the_form_asked_for() {
    let site = site();
    const OPEN: (&str, &str) = ("accept", "application/openmetrics-text; version=1.0.0");
    const ZIP: (&str, &str) = ("accept-encoding", "gzip");
    let text = get(&site.router, "/metrics").await;
    let open = get_with(&site.router, "/metrics", &[OPEN]).await;
    assert_eq!(text.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(open.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.body.ends_with(b"# EOF\n") && !text.body.ends_with(b"# EOF\n"));
    const PROTOBUF: &str =
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
    let protobuf = get_with(&site.router, "/metrics", &[("accept", PROTOBUF)]).await;
    assert_eq!(protobuf.header("content-type"), PROTOBUF);
    assert!(client_model::families(&protobuf.body).unwrap().len() > 30);
    for (headers, plain) in
        [(&[ZIP][..], &text), (&[ZIP, OPEN][..], &open), (&[ZIP, ("accept", PROTOBUF)][..], &protobuf)]
    {
        let zipped = get_with(&site.router, "/metrics", headers).await;
        assert_eq!(zipped.header("content-encoding"), "gzip");
        assert_eq!(zipped.header("content-type"), plain.header("content-type"));
        assert!(zipped.body.len() < plain.body.len() / 2);
        assert_eq!(unzipped(&zipped.body), plain.body);
    }
    for answer in [&text, &open, &protobuf] {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("vary"), "Accept, Accept-Encoding");
        assert_eq!(answer.header("content-encoding"), "");
    }
}

#[tokio::test]
async fn a_scrape_can_say_which_metrics_it_wants() {
    let site = site();
    let text = async |query: &str| {
        let answer = get(&site.router, &format!("/metrics{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}");
        String::from_utf8(answer.body.to_vec()).unwrap()
    };
    let has = |text: &str| {
        ["worker_pool_size{", "worker_threads{", "worker_page_faults_total{", "collector_passes_total "]
            .map(|series| text.contains(&format!("\n{series}")))
    };
    assert_eq!(has(&text("").await), [true, true, false, true]);
    assert_eq!(has(&text("?other=1").await), [true, true, false, true]);
    assert_eq!(has(&text("?collect[]=worker_details").await), [false, false, true, false]);
    assert_eq!(has(&text("?collect%5B%5D=pools&collect%5B%5D=collector").await), [true, false, false, true]);
    site.shared.set_groups(prometheus::Groups::all());
    assert_eq!(has(&text("").await), [true; 4]);
    assert_eq!(has(&text("?collect[]=workers").await), [false, true, false, false]);
    for (query, expected) in [("?collect[]=threads", "worker_details"), ("?collect[]=", "worker_details")] {
        let answer = get(&site.router, &format!("/metrics{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(answer.error().contains(expected), "{}", answer.error());
    }
}

#[tokio::test]
async fn no_more_bodies_are_kept_than_readers_need() {
    let site = site();
    let names = prometheus::Group::ALL.map(prometheus::Group::as_str);
    let mut kept = 0;
    for selection in 1u32..16 {
        let wanted: Vec<String> = (0..4)
            .filter(|at| selection & 1 << at != 0)
            .map(|at| format!("collect[]={}", names[at]))
            .collect();
        let uri = format!("/metrics?{}", wanted.join("&"));
        let (first, second) = (get(&site.router, &uri).await.body, get(&site.router, &uri).await.body);
        assert_eq!(first, second, "{uri}");
        kept += usize::from(first.as_ptr() == second.as_ptr());
    }
    assert_eq!(kept, 8);
}

#[tokio::test]
async fn a_snapshot_is_rendered_once() {
    let site = site();
    for (uri, headers) in [
        ("/metrics", &[][..]),
        ("/metrics", &[("accept-encoding", "gzip")][..]),
        ("/metrics", &[("accept", "application/openmetrics-text")][..]),
        ("/api/v1/stats", &[][..]),
        ("/api/v1/stats", &[("accept-encoding", "gzip")][..]),
    ] {
        let first = get_with(&site.router, uri, headers).await.body;
        let second = get_with(&site.router, uri, headers).await.body;
        assert_eq!(first.as_ptr(), second.as_ptr(), "{uri} {headers:?}");
        let mut next = fixture::snapshot();
        next.own.passes += 1;
        site.publish.send_replace(Some(Arc::new(next)));
        let third = get_with(&site.router, uri, headers).await.body;
        assert_ne!(first, third, "{uri} {headers:?}");
        site.publish.send_replace(Some(Arc::new(fixture::snapshot())));
    }
}

#[tokio::test]
async fn a_buffer_is_filled_again_when_nobody_has_it_any_more() {
    let site = site();
    let first = get(&site.router, "/metrics").await.body.as_ptr();
    site.publish.send_replace(Some(Arc::new(fixture::snapshot())));
    let held = get(&site.router, "/metrics").await.body;
    assert_eq!(held.as_ptr(), first);
    let copy = held.to_vec();
    site.publish.send_replace(Some(Arc::new(fixture::snapshot())));
    let third = get(&site.router, "/metrics").await.body;
    assert_ne!(third.as_ptr(), held.as_ptr());
    assert_eq!(held, copy, "a body under way does not change");
}

#[tokio::test]
async fn documents() {
    let site = site();
    let summary = get(&site.router, "/api/v1/summary").await;
    assert_eq!(summary.status, StatusCode::OK);
    assert_eq!(summary.json()["pools"][2]["name"], "web");
    assert!(summary.json()["pools"][2].get("workers").is_none());
    assert_eq!(get(&site.router, "/api/v1/stats").await.json()["pools"][2]["workers"][0]["id"], "web/0.17");
    assert_eq!(get(&site.router, "/api/v1/pools/web").await.json()["size"], 4);
    assert_eq!(get(&site.router, "/api/v1/pools/web/slow").await.json()["slowest"]["1m"][0]["slot"], 0);
    assert_eq!(get(&site.router, "/api/v1/workers/web/1").await.json()["pid"], 4001);
    let exits = get(&site.router, "/api/v1/exits?pool=web&limit=1").await.json();
    assert_eq!(exits["exits"][0]["sequence"], 17);
    assert_eq!(exits["exits"].as_array().unwrap().len(), 1);
    let page = get(&site.router, "/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.header("content-security-policy").contains("script-src 'sha256-"));
}

#[tokio::test]
async fn any_pool_name_can_be_asked_for() {
    for name in [fixture::HOSTILE, "a/b", "%2F", "ü ?#&+", "a\0b", "{x}", "*"] {
        let pool = Pool { workers: vec![fixture::worker(3)].into(), ..fixture::pool(name) };
        let snapshot = Snapshot { pools: vec![pool], ..fixture::snapshot() };
        let site = site();
        site.publish.send_replace(Some(Arc::new(snapshot)));
        let pool = get(&site.router, &format!("/api/v1/pools/{}", encoded(name))).await;
        assert_eq!(pool.json()["name"], name);
        let worker = get(&site.router, &format!("/api/v1/workers/{}/3", encoded(name))).await;
        assert_eq!(worker.json()["pool"], name);
        let exits = get(&site.router, &format!("/api/v1/exits?pool={}", encoded(name))).await;
        assert_eq!(exits.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let site = site();
    for (uri, status, hint) in [
        ("/nothing", StatusCode::NOT_FOUND, "see endpoints"),
        ("/api/v1/pools/", StatusCode::NOT_FOUND, "see endpoints"),
        ("/api/v1/pools/nobody", StatusCode::NOT_FOUND, "\"nobody\""),
        ("/api/v1/pools/nobody/slow", StatusCode::NOT_FOUND, "\"nobody\""),
        ("/api/v1/pools/withheld/slow", StatusCode::NOT_FOUND, "not measured"),
        ("/api/v1/pools/%ff/slow", StatusCode::BAD_REQUEST, "UTF-8"),
        ("/api/v1/workers/nobody/0", StatusCode::NOT_FOUND, "\"nobody\""),
        ("/api/v1/workers/web/77", StatusCode::NOT_FOUND, "slot 77"),
        ("/api/v1/workers/web/x", StatusCode::BAD_REQUEST, "x"),
        ("/api/v1/workers/web/-1", StatusCode::BAD_REQUEST, "-1"),
        ("/api/v1/pools/%ff", StatusCode::BAD_REQUEST, "UTF-8"),
        ("/api/v1/exits?pool=nobody", StatusCode::NOT_FOUND, "\"nobody\""),
        ("/api/v1/exits?limit=x", StatusCode::BAD_REQUEST, "limit"),
        ("/api/v1/exits?limmit=1", StatusCode::BAD_REQUEST, "limmit"),
    ] {
        let answer = get(&site.router, uri).await;
        assert_eq!(answer.status, status, "{uri}");
        assert!(answer.error().contains(hint), "{uri}: {}", answer.error());
    }
    let answer = send(&site.router, Method::POST, "/metrics", &[]).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.header("allow"), "GET, HEAD");
    assert!(answer.error().contains("use GET"));
    let answer = get(&site.router, "/-/reload").await;
    assert_eq!(answer.header("allow"), "POST, PUT");
    let endpoints = get(&site.router, "/nothing").await.json();
    assert!(endpoints["endpoints"].as_array().unwrap().contains(&"/metrics".into()));
}

#[tokio::test]
async fn every_answer_has_the_headers() {
    let site = site();
    for uri in ["/", "/metrics", "/api/v1/stats", "/nothing", "/healthz"] {
        let answer = get(&site.router, uri).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{uri}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{uri}");
        assert_eq!(answer.header("cache-control"), "no-store", "{uri}");
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'"), "{uri}");
    }
}

#[tokio::test]
async fn ready_with_the_first_snapshot_and_healthy_until_collecting_ends() {
    let site = site();
    site.publish.send_replace(None);
    for uri in ["/readyz", "/-/ready", "/metrics", "/api/v1/summary", "/api/v1/pools/web"] {
        assert_eq!(get(&site.router, uri).await.status, StatusCode::SERVICE_UNAVAILABLE, "{uri}");
    }
    for uri in ["/healthz", "/-/healthy", "/"] {
        assert_eq!(get(&site.router, uri).await.status, StatusCode::OK, "{uri}");
    }
    site.publish.send_replace(Some(Arc::new(fixture::snapshot())));
    for uri in ["/readyz", "/-/ready", "/metrics"] {
        assert_eq!(get(&site.router, uri).await.status, StatusCode::OK, "{uri}");
    }
    drop(site.publish);
    assert_eq!(get(&site.router, "/healthz").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn reload_asks_and_tells() {
    let mut site = site();
    for (method, outcome, status) in [
        (Method::POST, Ok(()), StatusCode::OK),
        (Method::PUT, Err("line 3: unknown key".to_owned()), StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let (answer, ()) = tokio::join!(send(&site.router, method, "/-/reload", &[]), async {
            site.reloads.recv().await.unwrap().answer.send(outcome.clone()).unwrap();
        });
        assert_eq!(answer.status, status);
        if let Err(reason) = &outcome {
            assert!(answer.error().contains(reason));
        }
    }
    // While one is under way there is no second.
    let (first, second) = tokio::join!(send(&site.router, Method::POST, "/-/reload", &[]), async {
        let second = send(&site.router, Method::POST, "/-/reload", &[]).await;
        drop(site.reloads.recv().await.unwrap().answer);
        second
    });
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(second.error().contains("under way"));
    assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE, "nobody answered");
    assert!(first.error().contains("shutting down"));
    drop(site.reloads);
    let gone = send(&site.router, Method::POST, "/-/reload", &[]).await;
    assert_eq!(gone.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn pages_of_other_sites_cannot_reload() {
    let mut site = site();
    let host = ("host", "localhost:10087");
    for foreign in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site"), host],
        &[("origin", "http://evil.example"), host],
        &[("origin", "http://localhost:10088"), host],
        &[("origin", "http://localhost"), host],
        &[("origin", "http://evil.example/://localhost:10087"), host],
        &[("origin", "null"), host],
        &[("origin", "localhost:10087"), host],
        &[("origin", "http://localhost:10087")],
        &[("origin", "http://localhost:10087"), ("origin", "http://evil.example"), host],
    ] {
        let answer = send(&site.router, Method::POST, "/-/reload", foreign).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{foreign:?}");
        assert!(answer.error().contains("another site"));
    }
    for own in [
        &[host][..],
        &[("sec-fetch-site", "none"), host],
        &[("origin", "http://localhost:10087"), host],
        &[("origin", "https://LOCALHOST:10087"), ("sec-fetch-site", "same-origin"), host],
    ] {
        let (answer, ()) = tokio::join!(send(&site.router, Method::POST, "/-/reload", own), async {
            site.reloads.recv().await.unwrap().answer.send(Ok(())).unwrap();
        });
        assert_eq!(answer.status, StatusCode::OK, "{own:?}");
    }
}

#[tokio::test]
async fn metrics_can_be_moved() {
    for bad in ["", "metrics", "/", "/healthz", "/api/v1/summary", "/-/x", "/a{b}", "/a b", "/ä"] {
        assert!(Config::with_telemetry_path(bad).is_err(), "{bad}");
    }
    let (_publish, snapshots) = watch::channel(Some(Arc::new(fixture::snapshot())));
    let config = Config::with_telemetry_path("/probe/metrics").unwrap();
    let router = router(Arc::new(Shared::new(config, AccessConfig::default(), snapshots, None, None)));
    assert_eq!(get(&router, "/probe/metrics").await.status, StatusCode::OK);
    let missing = get(&router, "/metrics").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert!(missing.json()["endpoints"].as_array().unwrap().contains(&"/probe/metrics".into()));
    let page = get(&router, "/").await.body;
    assert!(std::str::from_utf8(&page).unwrap().contains("href=\"probe/metrics\""));
    assert_eq!(send(&router, Method::POST, "/-/reload", &[]).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn users_are_asked_for_everywhere_but_at_health() {
    let site = site();
    let hash = bcrypt::hash("secret", 4).unwrap();
    let users = crate::auth::Users::new([("alice".to_owned(), hash)].into()).unwrap();
    site.shared.set_access(AccessConfig { users, ..AccessConfig::default() });
    let right: &[(&str, &str)] = &[("authorization", "Basic YWxpY2U6c2VjcmV0")];
    let wrong: &[(&str, &str)] = &[("authorization", "Basic YWxpY2U6d3Jvbmc=")];
    for uri in ["/", "/metrics", "/api/v1/stats", "/api/v1/pools/web", "/nothing", "/metrics/", "//healthz"] {
        for headers in [&[][..], wrong, wrong] {
            let answer = get_with(&site.router, uri, headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{uri}");
            assert!(answer.header("www-authenticate").starts_with("Basic "), "{uri}");
            assert!(answer.error().contains("password"), "{uri}");
        }
    }
    let post = send(&site.router, Method::POST, "/-/reload", &[]).await;
    assert_eq!(post.status, StatusCode::UNAUTHORIZED);
    for _ in 0..2 {
        assert_eq!(get_with(&site.router, "/metrics", right).await.status, StatusCode::OK);
    }
    for uri in ["/healthz", "/readyz", "/-/healthy", "/-/ready"] {
        assert_eq!(get(&site.router, uri).await.status, StatusCode::OK, "{uri}");
    }
    site.shared.set_access(AccessConfig::default());
    assert_eq!(get(&site.router, "/metrics").await.status, StatusCode::OK);
}

#[tokio::test]
async fn guessers_do_not_keep_out_who_is_right() {
    const RIGHT: &str = "Basic YWxpY2U6c2VjcmV0";
    let site = site();
    // Hard enough that none is done before all have come.
    let hash = bcrypt::hash("secret", 6).unwrap();
    let users = crate::auth::Users::new([("alice".to_owned(), hash)].into()).unwrap();
    let access = AccessConfig { users, ..AccessConfig::default() };
    site.shared.set_access(access.clone());
    assert_eq!(get_with(&site.router, "/metrics", &[("authorization", RIGHT)]).await.status, StatusCode::OK);
    let mut guesses = tokio::task::JoinSet::new();
    for guess in 0..60 {
        // Every other user does not exist, and is answered alike.
        let credentials = format!("{}:{guess}", ["alice", "mallory"][guess % 2]);
        let credentials = base64::engine::general_purpose::STANDARD.encode(credentials);
        let router = site.router.clone();
        guesses.spawn(async move {
            let guess = format!("Basic {credentials}");
            get_with(&router, "/metrics", &[("authorization", &guess)]).await
        });
    }
    tokio::task::yield_now().await;
    site.shared.set_access(access);
    let answer = get_with(&site.router, "/metrics", &[("authorization", RIGHT)]).await;
    assert_eq!(answer.status, StatusCode::OK, "verified before the reload");
    let answers = guesses.join_all().await;
    let told = |status| answers.iter().filter(|answer| answer.status == status).count();
    let (judged, sent_away) = (told(StatusCode::UNAUTHORIZED), told(StatusCode::SERVICE_UNAVAILABLE));
    // More may have been judged, where one was done before all had come.
    assert!(judged >= 16 && sent_away > 0 && judged + sent_away == 60, "{judged} {sent_away}");
    let turned_away = answers.iter().find(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE).unwrap();
    assert_eq!(turned_away.header("retry-after"), "1");
    assert!(turned_away.error().contains("being verified"));
}

#[tokio::test]
async fn configured_headers_replace_ours_and_rates_are_kept() {
    let site = site();
    let access = AccessConfig {
        headers: vec![
            (header::X_FRAME_OPTIONS, Some(HeaderValue::from_static("sameorigin"))),
            (header::X_CONTENT_TYPE_OPTIONS, None),
        ],
        rate_limit: Some(RateLimit { interval: Duration::from_secs(60), burst: 2 }),
        ..AccessConfig::default()
    };
    site.shared.set_access(access);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = get(&site.router, "/metrics").await;
        assert_eq!(answer.header("x-frame-options"), "sameorigin");
        assert_eq!(answer.header("x-content-type-options"), "");
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS]);
    assert_eq!(get(&site.router, "/healthz").await.status, StatusCode::OK);
}

struct Running {
    address: std::net::SocketAddr,
    connections: Arc<Connections>,
    stop: tokio::sync::oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

async fn running(router: Router, limits: Limits, connections: Connections) -> Running {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(connections);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server =
        tokio::spawn(serve(listener, router, Arc::default(), limits, Arc::clone(&connections), async {
            let _ = stopped.await;
        }));
    Running { address, connections, stop, server }
}

async fn read_all(stream: &mut tokio::net::TcpStream) -> Vec<u8> {
    let mut out = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut out)).await.unwrap();
    out
}

/// Asks on a connection of its own. Empty if that is closed without an answer.
async fn ask(server: &Running, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    String::from_utf8_lossy(&read_all(&mut stream).await).into_owned()
}

#[tokio::test]
async fn slow_clients_and_crowds_are_turned_away() {
    let limits = Limits {
        header_wait: Duration::from_millis(300),
        drain: Duration::from_secs(1),
        ..Limits::default()
    };
    let server = running(site().router, limits, Connections::new(2, 0)).await;
    let mut slow = tokio::net::TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let mut idle = tokio::net::TcpStream::connect(server.address).await.unwrap();
    // Third in the queue of the listener, so the first two were accepted before it.
    let mut third = tokio::net::TcpStream::connect(server.address).await.unwrap();
    assert!(read_all(&mut third).await.is_empty());
    assert_eq!(server.connections.refused(), 1);
    assert!(!String::from_utf8_lossy(&read_all(&mut slow).await).contains("200 OK"));
    assert!(read_all(&mut idle).await.is_empty());
    assert!(ask(&server, "/readyz").await.contains("200 OK"));
    server.stop.send(()).unwrap();
    server.server.await.unwrap();
}

#[tokio::test]
async fn health_is_told_while_others_hold_all_connections() {
    let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
    let site = site();
    let server = running(site.router, limits, Connections::new(100, 16)).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(tokio::net::TcpStream::connect(server.address).await.unwrap());
    }
    for path in ["/healthz", "/readyz", "/-/healthy", "/-/ready"].into_iter().cycle().take(40) {
        let answer = ask(&server, path).await;
        assert!(answer.contains("200 OK") && answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    assert_eq!(server.connections.refused(), 0);
    let answer = ask(&server, "/metrics").await;
    assert!(
        answer.contains("503 Service Unavailable") && answer.contains("too many connections"),
        "{answer}"
    );
    assert_eq!(server.connections.refused(), 1);
    server.stop.send(()).unwrap();
    server.server.await.unwrap();
}

#[tokio::test]
async fn nobody_holds_the_connections_for_health() {
    let limits =
        Limits { crowded_wait: Duration::from_millis(300), drain: Duration::ZERO, ..Limits::default() };
    let server = running(site().router, limits, Connections::new(0, 4)).await;
    let mut idle = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let started = std::time::Instant::now();
    assert!(read_all(&mut idle).await.is_empty());
    assert!(started.elapsed() >= Duration::from_millis(200), "nobody needed its place");
    assert_eq!(server.connections.refused(), 0);
    server.stop.send(()).unwrap();
    server.server.await.unwrap();
}

#[tokio::test]
async fn health_is_told_while_others_hold_its_connections_and_say_nothing() {
    let limits = Limits { crowded_wait: Duration::from_secs(60), drain: Duration::ZERO, ..Limits::default() };
    let site = site();
    let server = running(site.router, limits, Connections::new(0, 4)).await;
    let mut silent = std::collections::VecDeque::new();
    for round in 0..20 {
        for at in 0..12 {
            let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            if at % 2 == 0 {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: ").await.unwrap();
            }
            silent.push_back(stream);
        }
        for path in ["/healthz", "/readyz"] {
            let answer = ask(&server, path).await;
            assert!(answer.contains("200 OK"), "round {round}: {answer:?}");
        }
    }
    // The first to come made room first; the last is still there.
    let mut first = silent.pop_front().unwrap();
    let _ = read_all(&mut first).await;
    let mut last = silent.pop_back().unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(100), last.read(&mut [0])).await;
    assert!(waited.is_err(), "{waited:?}");
    assert!(server.connections.refused() >= 20 * 12 - 4);
    server.stop.send(()).unwrap();
    server.server.await.unwrap();
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up() {
    let mut snapshot = fixture::snapshot();
    snapshot.pools[2].workers = (0..30_000).map(fixture::worker).collect();
    let site = site();
    site.publish.send_replace(Some(Arc::new(snapshot)));
    let limits = Limits {
        answer_wait: Duration::from_millis(300),
        drain: Duration::from_secs(20),
        ..Limits::default()
    };
    let server = running(site.router, limits, Connections::default()).await;
    let mut client = tokio::net::TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // The first bytes show that the answer is under way; the rest is more than the sockets can hold.
    client.read_exact(&mut [0; 12]).await.unwrap();
    server.stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), server.server).await.unwrap().unwrap();
}

/// As if asked on a loopback address.
async fn get_locally(router: &Router, uri: &str) -> Answer {
    let reached = server::Reached { on_loopback: true, certified: false };
    let router = router.clone().layer(axum::Extension(reached));
    get(&router, uri).await
}

#[tokio::test]
async fn profiles_are_for_this_host_or_for_those_who_say_who_they_are() {
    let site = site();
    for path in ["", "profile", "offcpu", "threads", "heap", "allocs", "cmdline"]
        .map(|name| format!("/debug/pprof/{name}"))
    {
        let path = &*path;
        let refused = get(&site.router, path).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
        assert!(refused.error().contains("loopback"), "{}", refused.error());
    }
    let index = get_locally(&site.router, "/debug/pprof/").await;
    assert_eq!(index.status, StatusCode::OK);
    assert!(std::str::from_utf8(&index.body).unwrap().contains("href=\"offcpu\""));
    let certified = server::Reached { on_loopback: false, certified: true };
    let index = get(&site.router.clone().layer(axum::Extension(certified)), "/debug/pprof/").await;
    assert_eq!(index.status, StatusCode::OK);
    let reached = server::Reached { on_loopback: true, certified: false };
    let local = site.router.clone().layer(axum::Extension(reached));
    let foreign = get_with(&local, "/debug/pprof/profile", &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    let cmdline = get_locally(&site.router, "/debug/pprof/cmdline").await;
    assert!(!cmdline.body.is_empty());
    for (host, expected) in [
        ("localhost:10087", StatusCode::OK),
        ("LocalHost", StatusCode::OK),
        ("127.0.0.1:10087", StatusCode::OK),
        ("[::1]:10087", StatusCode::OK),
        ("[::ffff:127.0.0.1]", StatusCode::OK),
        ("192.0.2.2:10087", StatusCode::FORBIDDEN),
        ("[2001:db8::1]", StatusCode::FORBIDDEN),
        ("evil.example:10087", StatusCode::FORBIDDEN),
        ("localhost.evil.example", StatusCode::FORBIDDEN),
        ("", StatusCode::FORBIDDEN),
        ("no name", StatusCode::FORBIDDEN),
    ] {
        let index =
            get_with(&local, "/debug/pprof/", &[("host", host), ("sec-fetch-site", "same-origin")]).await;
        assert_eq!(index.status, expected, "{host}");
    }
    for forwarded in ["x-forwarded-for", "forwarded"] {
        let by_proxy =
            get_with(&local, "/debug/pprof/", &[("host", "localhost"), (forwarded, "for=192.0.2.9")]).await;
        assert_eq!(by_proxy.status, StatusCode::FORBIDDEN, "{forwarded}");
    }
    let elsewhere = site.router.clone().layer(axum::Extension(certified));
    let named = get_with(&elsewhere, "/debug/pprof/", &[("host", "collector.example")]).await;
    assert_eq!(named.status, StatusCode::OK);
}

#[tokio::test]
async fn profiles_of_the_heap_are_limited() {
    let site = site();
    let held = Arc::clone(&site.shared.heaps).try_acquire_many_owned(super::heap::MAX_HEAPS as u32).unwrap();
    let refused = get_locally(&site.router, "/debug/pprof/heap").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    drop(held);
    assert_eq!(get_locally(&site.router, "/debug/pprof/heap").await.status, StatusCode::OK);
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_is_sampled() {
    let site = site();
    for (query, hint) in [
        ("seconds=0", "seconds=0 is not from"),
        ("seconds=301", "to 300"),
        ("seconds=x", "seconds"),
        ("seconds=nan", "seconds"),
        ("hz=0", "hz=0"),
        ("hz=10001", "10000"),
        ("slot=1", "pool="),
        ("min=1ms", "of waits"),
        ("event=cycles&min=1ms", "of waits"),
        ("event=instructions", "none of cpu-clock (which it is unless given) and cycles"),
        ("from=-1m&event=cycles", "was sampled already"),
        ("format=svg", "flamegraph"),
        ("pools=web", "unknown field"),
        ("from=yesterday", "is no moment like -5m"),
        ("from=-5m&to=5m", "to=\"5m\" is no moment"),
        ("from=1e300", "is no moment"),
        ("from=-90", "is no moment like -5m"),
        ("from=--5m", "is no moment"),
        ("from=nan", "is no moment"),
        ("to=-5m", "from="),
        ("from=-1m&to=-2m", "is not before to="),
        ("from=2999-01-01T00:00:00Z", "is not before to="),
        ("from=-1m&hz=19", "was sampled already"),
        ("from=-1m&slot=1", "pool="),
        ("target=web", "target=self is the collector itself"),
        ("target=self&pool=web", "are of workers"),
        ("target=self&pid=1", "are of workers"),
        ("target=self&slot=1", "pool="),
        ("target=self&from=-1m", "from now on"),
    ] {
        let refused = get_locally(&site.router, &format!("/debug/pprof/profile?{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(refused.error().contains(hint), "{query}: {}", refused.error());
    }
    for min in ["1%20parsec", "p98", "p99"] {
        let refused = get_locally(&site.router, &format!("/debug/pprof/offcpu?min={min}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{min}");
    }
    let by_cycles = get_locally(&site.router, "/debug/pprof/wall?event=cycles").await;
    assert_eq!(by_cycles.status, StatusCode::BAD_REQUEST);
    assert!(by_cycles.error().contains("event= is of profile"), "{}", by_cycles.error());
    let of_all = get_locally(&site.router, "/debug/pprof/wall?from=-1m").await;
    assert_eq!(of_all.status, StatusCode::BAD_REQUEST);
    // What is asked for is sound, but nobody can do it here.
    for path in [
        "profile?seconds=1",
        "profile?from=-1h30m&to=-5m",
        "profile?from=1760000000.5&pool=gone",
        "profile?from=2026-01-31T12:30:00Z&to=2026-01-31T13:31:00%2B01:00",
        "offcpu?min=10ms",
        "offcpu?from=-1m&tid=7",
        "runqueue?from=1760000000.5&to=1760000000.75",
        "runqueue",
        "wall?debug=1&gc=1",
        "profile?target=self",
        "profile?event=cycles&hz=999",
        "profile?event=cpu-clock",
        "offcpu?target=self&min=10ms",
        "trace",
    ] {
        let answer = get_locally(&site.router, &format!("/debug/pprof/{path}")).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{path}");
    }
}

#[tokio::test]
async fn the_heap_is_that_of_the_collector() {
    let site = site();
    for (query, hint) in [
        ("pool=web", "not seen from outside"),
        ("slot=1", "not seen from outside"),
        ("pid=1", "not seen from outside"),
        ("target=web", "target=self"),
        ("seconds=301", "to 300"),
        ("seconds=-1", "is not from"),
        ("hz=99", "unknown field"),
        ("format=svg", "flamegraph"),
    ] {
        let refused = get_locally(&site.router, &format!("/debug/pprof/heap?{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(refused.error().contains(hint), "{query}: {}", refused.error());
    }
    // It takes no eBPF. The tests have an allocator that samples nothing.
    for query in [
        "heap?gc=1&debug=1",
        "heap?target=self",
        "allocs?seconds=0.1",
        "heap?format=folded",
        "allocs?format=flamegraph",
    ] {
        let answer = get_locally(&site.router, &format!("/debug/pprof/{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}");
    }
}

#[tokio::test]
async fn threads_are_asked_for_by_what_they_know() {
    let site = site();
    for (query, hint) in [
        ("seconds=1", "unknown field"),
        ("hz=99", "unknown field"),
        ("slot=1", "pool="),
        ("pid=x", "pid"),
        ("pid=-1", "pid"),
        ("debug=x", "debug"),
        ("debug=1&format=proto", "contradict"),
        ("debug=0&format=text", "contradict"),
        ("format=json", "flamegraph"),
        ("target=self", "/debug/pprof/profile?target=self"),
        ("target=web", "is nobody"),
    ] {
        let refused = get_locally(&site.router, &format!("/debug/pprof/threads?{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(refused.error().contains(hint), "{query}: {}", refused.error());
    }
    // What is asked for is sound, but nobody can do it here.
    for query in
        ["", "debug=0", "debug=1", "debug=2", "format=proto", "format=folded", "pool=web&slot=1", "pid=1"]
    {
        let answer = get_locally(&site.router, &format!("/debug/pprof/threads?{query}")).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{query}");
    }
}
