//! Handshakes with certificates made for the test.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::*;

/// A directory with an authority that signs.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes `<name>.pem` and `<name>.key`.
    fn issue(&self, name: &str, names: Vec<SanType>, purpose: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn with_server() -> Self {
        let authority = Self::new();
        authority.issue("server", vec![dns("localhost")], ExtendedKeyUsagePurpose::ServerAuth);
        authority
    }

    fn config(&self) -> Config {
        Config {
            certificate: Pem::File(self.path("server.pem")),
            key: Pem::File(self.path("server.key")),
            clients: None,
            versions: vec![&TLS12, &TLS13],
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            own_order: true,
        }
    }

    fn requiring(&self, allowed_names: &[&str]) -> Config {
        let clients = Clients {
            authority: Pem::File(self.path("ca.pem")),
            required: true,
            allowed_names: allowed_names.iter().map(|name| (*name).to_owned()).collect(),
        };
        Config { clients: Some(clients), ..self.config() }
    }

    fn client(&self, identity: Option<&str>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = Pem::File(self.path(&format!("{name}.pem"))).certificates().unwrap();
                let key = Pem::File(self.path(&format!("{name}.key"))).key().unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// Sends a byte there and back. The certificate that the server showed, if both sides agreed.
async fn talk(acceptor: TlsAcceptor, client: ClientConfig) -> Option<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(stream).await else { return };
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_ok() {
            let _ = stream.write_all(&byte).await;
            let _ = stream.shutdown().await;
        }
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let answer = async {
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await.ok()?;
        stream.write_all(b"x").await.ok()?;
        // In TLS 1.3 a client learns only here that its certificate was refused.
        stream.read_exact(&mut [0]).await.ok()?;
        Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
    }
    .await;
    server.await.unwrap();
    answer
}

#[tokio::test]
async fn certificates_that_change_are_read_again() {
    let authority = Authority::with_server();
    let tls = Tls::new(Some(authority.config())).unwrap();
    let start = Instant::now();
    let first = talk(tls.acceptor_at(start).unwrap().0, authority.client(None)).await.unwrap();

    authority.issue("server", vec![dns("localhost")], ExtendedKeyUsagePurpose::ServerAuth);
    let early = talk(tls.acceptor_at(start).unwrap().0, authority.client(None)).await.unwrap();
    assert_eq!(early, first, "files are not looked at for each connection");
    let later = start + CHECK_EVERY * 2;
    let second = talk(tls.acceptor_at(later).unwrap().0, authority.client(None)).await.unwrap();
    assert_ne!(second, first);

    fs::write(authority.path("server.pem"), "half a certif").unwrap();
    let later = later + CHECK_EVERY * 2;
    let third = talk(tls.acceptor_at(later).unwrap().0, authority.client(None)).await.unwrap();
    assert_eq!(third, second, "a bad file changes nothing");
    assert!(tls.replace(Some(authority.config())).is_err());
    assert!(tls.acceptor_at(later).is_some());

    tls.replace(None).unwrap();
    assert!(tls.acceptor_at(later).is_none());
}

#[tokio::test]
async fn clients_have_to_show_a_certificate() {
    let authority = Authority::with_server();
    let stranger = Authority::new();
    for at in [&authority, &stranger] {
        at.issue("client", vec![dns("scraper")], ExtendedKeyUsagePurpose::ClientAuth);
    }
    let tls = Tls::new(Some(authority.requiring(&[]))).unwrap();
    let acceptor = || tls.acceptor().unwrap().0;
    assert!(talk(acceptor(), authority.client(Some("client"))).await.is_some());
    assert!(talk(acceptor(), authority.client(None)).await.is_none());
    fs::copy(stranger.path("client.pem"), authority.path("stranger.pem")).unwrap();
    fs::copy(stranger.path("client.key"), authority.path("stranger.key")).unwrap();
    assert!(talk(acceptor(), authority.client(Some("stranger"))).await.is_none());

    let mut optional = authority.requiring(&[]);
    if let Some(clients) = &mut optional.clients {
        clients.required = false;
    }
    tls.replace(Some(optional)).unwrap();
    assert!(talk(acceptor(), authority.client(None)).await.is_some());
    assert!(talk(acceptor(), authority.client(Some("stranger"))).await.is_none());
}

#[tokio::test]
async fn clients_can_be_chosen_by_name() {
    let authority = Authority::with_server();
    let names = vec![
        dns("scraper.example"),
        SanType::URI("spiffe://example/scraper".try_into().unwrap()),
        SanType::IpAddress("192.0.2.7".parse().unwrap()),
    ];
    authority.issue("client", names, ExtendedKeyUsagePurpose::ClientAuth);
    authority.issue("wild", vec![dns("*.scrapers.example")], ExtendedKeyUsagePurpose::ClientAuth);
    for (allowed, identity, expected) in [
        (&["scraper.example"][..], "client", true),
        (&["other", "spiffe://example/scraper"], "client", true),
        (&["192.0.2.7"], "client", true),
        (&["192.0.2.8"], "client", false),
        (&["example"], "client", false),
        (&["one.scrapers.example"], "wild", false),
        (&["*.scrapers.example"], "wild", true),
    ] {
        let tls = Tls::new(Some(authority.requiring(allowed))).unwrap();
        let outcome = talk(tls.acceptor().unwrap().0, authority.client(Some(identity))).await;
        assert_eq!(outcome.is_some(), expected, "{allowed:?} {identity}");
    }
}

#[tokio::test]
async fn the_server_speaks_tls_and_nothing_else() {
    let authority = Authority::with_server();
    let tls = Arc::new(Tls::new(Some(authority.config())).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
    let limits = super::super::Limits::default();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(super::super::serve(listener, router, tls, limits, Arc::default(), async {
        let _ = stopped.await;
    }));
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = Vec::new();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(authority.client(None)));
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"hello"), "{}", answer.escape_ascii());

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(request).await.unwrap();
    answer.clear();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", answer.escape_ascii());
    stop.send(()).unwrap();
    server.await.unwrap();
}

#[test]
fn a_certificate_that_is_no_file_is_refused_at_once() {
    let authority = Authority::with_server();
    let fifo = authority.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let pem = || Pem::File(fifo.clone());
    for config in
        [Config { certificate: pem(), ..authority.config() }, Config { key: pem(), ..authority.config() }]
    {
        let error = Tls::new(Some(config)).unwrap_err().to_string();
        assert_eq!(error, format!("{} is no regular file", fifo.display()));
    }
}

#[tokio::test]
async fn suites_and_curves_go_by_their_names_in_go() {
    let authority = Authority::with_server();
    let config = Config {
        versions: vec![&TLS12],
        cipher_suites: vec![
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned(),
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305".to_owned(),
        ],
        curves: vec!["CurveP256".to_owned()],
        ..authority.config()
    };
    let tls = Tls::new(Some(config.clone())).unwrap();
    assert!(talk(tls.acceptor().unwrap().0, authority.client(None)).await.is_some());
    for (suite, curve) in [("TLS_RSA_WITH_RC4_128_SHA", "X25519"), ("TLS13_AES_128_GCM_SHA256", "X25519")] {
        let bad = Config { cipher_suites: vec![suite.to_owned()], ..config.clone() };
        assert!(bad.build().unwrap_err().to_string().contains(suite));
        let bad = Config { curves: vec![curve.to_owned(), "CurveP521".to_owned()], ..config.clone() };
        assert!(bad.build().unwrap_err().to_string().contains("CurveP521"));
    }
}

#[test]
fn errors_name_the_file() {
    let authority = Authority::with_server();
    authority.issue("other", vec![dns("localhost")], ExtendedKeyUsagePurpose::ServerAuth);
    fs::write(authority.path("empty"), "").unwrap();
    let file = |name| Pem::File(authority.path(name));
    for (config, name) in [
        (Config { certificate: file("nowhere"), ..authority.config() }, "nowhere"),
        (Config { certificate: file("empty"), ..authority.config() }, "empty"),
        (Config { key: file("nowhere"), ..authority.config() }, "nowhere"),
        (Config { key: file("ca.pem"), ..authority.config() }, "ca.pem"),
        (Config { key: file("other.key"), ..authority.config() }, "server.pem"),
    ] {
        let error = config.build().unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let inline = Pem::Inline("tls_server_config.key", "secret".to_owned());
    assert!(!format!("{inline:?}").contains("secret"));
}
