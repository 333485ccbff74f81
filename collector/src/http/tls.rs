//! TLS of the server: certificates from files that may change while we run, and who may connect.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring as provider};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    self, CertificateError, DigitallySignedStruct, DistinguishedName, NamedGroup, RootCertStore,
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
};

use crate::files;

/// How often files are looked at, at most; only when connections come.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// What keeps TLS from working.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] files::Error),
    /// A file holds something else.
    #[error("{what}: {source}")]
    Pem {
        /// Which file or key of the configuration.
        what: String,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("{0}: no certificate in it")]
    Empty(String),
    /// A certificate is of no use.
    #[error("{what}: {source}")]
    Certificate {
        /// Which file or key of the configuration.
        what: String,
        /// Why.
        source: rustls::Error,
    },
    /// Certificates of clients cannot be verified.
    #[error("{what}: {source}")]
    ClientAuthority {
        /// Which file or key of the configuration.
        what: String,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// A name that nobody knows.
    #[error("{key}: {name:?} is not supported; known are {known}")]
    Unknown {
        /// Key of the configuration.
        key: &'static str,
        /// As written.
        name: String,
        /// What could be written.
        known: String,
    },
    /// Parts that do not fit together.
    #[error("cipher suites, curves and versions leave no way to talk: {0}")]
    NoCommonGround(rustls::Error),
}

/// Where certificates and keys are.
#[derive(Clone)]
pub enum Pem {
    /// In a file, read again when it changes.
    File(PathBuf),
    /// In the configuration itself, under the key of this name.
    Inline(&'static str, String),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())
    }
}

impl Pem {
    fn what(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline(key, _) => (*key).to_owned(),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Inline(..) => None,
        }
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>, Error> {
        Ok(match self {
            Self::File(path) => files::read(path)?.into(),
            Self::Inline(_, text) => text.as_bytes().into(),
        })
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let found: Vec<_> = CertificateDer::pem_slice_iter(&self.bytes()?)
            .collect::<Result<_, _>>()
            .map_err(|source| Error::Pem { what: self.what(), source })?;
        if found.is_empty() { Err(Error::Empty(self.what())) } else { Ok(found) }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(&self.bytes()?)
            .map_err(|source| Error::Pem { what: self.what(), source })
    }
}

/// Certificates that clients have to show.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Who signs them.
    pub authority: Pem,
    /// Clients without a certificate are turned away.
    pub required: bool,
    /// One of these subject alternative names (DNS, URI or IP address) has to be in it, unless empty.
    pub allowed_names: Vec<String>,
}

/// How to serve TLS.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our certificate with its chain.
    pub certificate: Pem,
    /// Its key.
    pub key: Pem,
    /// What clients have to show; `None` asks for nothing.
    pub clients: Option<Clients>,
    /// Protocol versions that are spoken.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// TLS 1.2 suites by their names in Go, most wanted first; empty for the usual ones.
    pub cipher_suites: Vec<String>,
    /// Curves by their names in Go, most wanted first; empty for the usual ones.
    pub curves: Vec<String>,
    /// Our order of suites counts, not the client's.
    pub own_order: bool,
}

impl Config {
    fn provider(&self) -> Result<CryptoProvider, Error> {
        let mut provider = provider::default_provider();
        if !self.cipher_suites.is_empty() {
            // Their order is ours; those of TLS 1.3 are not for choosing, as in Go.
            let mut suites = provider.cipher_suites.clone();
            suites.retain(|suite| suite.tls13().is_some());
            let older: Vec<_> =
                provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).collect();
            for name in &self.cipher_suites {
                let is = |known: &str| known == name || known.strip_suffix("_SHA256") == Some(name);
                let found = older.iter().find(|suite| is(&format!("{:?}", suite.suite())));
                let unknown = || Error::Unknown {
                    key: "cipher_suites",
                    name: name.clone(),
                    known: join(older.iter().map(|suite| format!("{:?}", suite.suite()))),
                };
                suites.push(**found.ok_or_else(unknown)?);
            }
            provider.cipher_suites = suites;
        }
        if !self.curves.is_empty() {
            const NAMES: [(&str, NamedGroup); 3] = [
                ("X25519", NamedGroup::X25519),
                ("CurveP256", NamedGroup::secp256r1),
                ("CurveP384", NamedGroup::secp384r1),
            ];
            let mut groups = Vec::new();
            for name in &self.curves {
                let group = NAMES.iter().find(|(known, _)| known == name).map(|(_, group)| *group);
                let found = provider.kx_groups.iter().find(|known| Some(known.name()) == group);
                let unknown = || Error::Unknown {
                    key: "curve_preferences",
                    name: name.clone(),
                    known: join(NAMES.iter().map(|(name, _)| (*name).to_owned())),
                };
                groups.push(*found.ok_or_else(unknown)?);
            }
            provider.kx_groups = groups;
        }
        Ok(provider)
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let Some(clients) = &self.clients else { return Ok(WebPkiClientVerifier::no_client_auth()) };
        let what = || clients.authority.what();
        let mut roots = RootCertStore::empty();
        for certificate in clients.authority.certificates()? {
            roots.add(certificate).map_err(|source| Error::Certificate { what: what(), source })?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        if !clients.required {
            builder = builder.allow_unauthenticated();
        }
        let inner = builder.build().map_err(|source| Error::ClientAuthority { what: what(), source })?;
        if clients.allowed_names.is_empty() {
            return Ok(inner);
        }
        Ok(Arc::new(NamedClients { inner, allowed: clients.allowed_names.clone() }))
    }

    /// Reads all files and puts them together. Good for checking a configuration, too.
    pub fn build(&self) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(self.provider()?);
        let verifier = self.verifier(&provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)
            .map_err(Error::NoCommonGround)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.certificate.certificates()?, self.key.key()?)
            .map_err(|source| Error::Certificate { what: self.certificate.what(), source })?;
        config.ignore_client_order = self.own_order;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn stamps(&self) -> Vec<Stamp> {
        let authority = self.clients.as_ref().map(|clients| &clients.authority);
        [Some(&self.certificate), Some(&self.key), authority]
            .into_iter()
            .flatten()
            .filter_map(|pem| Stamp::of(pem.path()?))
            .collect()
    }
}

fn join(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Tells one content of a file from another without reading it. Follows links: that is how Kubernetes swaps secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok(), length: metadata.len(), inode: metadata.ino() })
    }
}

/// TLS as it is now. Without a configuration connections are plain.
#[derive(Debug, Default)]
pub struct Tls {
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    config: Config,
    built: Arc<ServerConfig>,
    stamps: Vec<Stamp>,
    checked: Instant,
}

impl Tls {
    /// Reads the files.
    pub fn new(config: Option<Config>) -> Result<Self, Error> {
        let tls = Self::default();
        tls.replace(config)?;
        Ok(tls)
    }

    /// Takes another configuration for connections to come; on an error the one before stays.
    pub fn replace(&self, config: Option<Config>) -> Result<(), Error> {
        let current = match config {
            Some(config) => {
                // Taken first: a file that changes while it is read is read again.
                let stamps = config.stamps();
                let built = config.build()?;
                Some(Current { config, built, stamps, checked: Instant::now() })
            }
            None => None,
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// For the next connection; `None` where connections are plain. Files that changed are read again, and if they
    /// cannot be used the log says so and the certificates before stay.
    /// With it, whether clients have to show certificates.
    pub(super) fn acceptor(&self) -> Option<(TlsAcceptor, bool)> {
        self.acceptor_at(Instant::now())
    }

    fn acceptor_at(&self, now: Instant) -> Option<(TlsAcceptor, bool)> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let current = current.as_mut()?;
        if now.saturating_duration_since(current.checked) >= CHECK_EVERY {
            current.checked = now;
            let stamps = current.config.stamps();
            if stamps != current.stamps {
                // Also after a failure: a bad file is tried again when it changes, not every few seconds.
                current.stamps = stamps;
                match current.config.build() {
                    Ok(built) => {
                        tracing::info!("certificates were read again");
                        current.built = built;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "new certificates are of no use; the ones before stay")
                    }
                }
            }
        }
        let certified = current.config.clients.as_ref().is_some_and(|clients| clients.required);
        Some((TlsAcceptor::from(Arc::clone(&current.built)), certified))
    }
}

/// Lets in those whose verified certificate carries one of a list of names.
#[derive(Debug)]
struct NamedClients {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Vec<String>,
}

impl NamedClients {
    fn is_allowed(&self, certificate: &webpki::EndEntityCert<'_>) -> bool {
        let has_address = |name: &str| {
            let Ok(address) = name.parse::<std::net::IpAddr>() else { return false };
            let subject = ServerName::IpAddress(IpAddr::from(address));
            certificate.verify_is_valid_for_subject_name(&subject).is_ok()
        };
        // Compared as text, as exporter-toolkit does: a wildcard in a client's certificate is a name like any other.
        self.allowed.iter().any(|name| {
            certificate.valid_dns_names().any(|dns| dns == name)
                || certificate.valid_uri_names().any(|uri| uri == name)
                || has_address(name)
        })
    }
}

impl ClientCertVerifier for NamedClients {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.is_allowed(&certificate) {
            Ok(verified)
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
