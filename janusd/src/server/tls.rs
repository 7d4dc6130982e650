//! Who may connect: TLS 1.3, mutual, certificates and CA read again when their files change. How many, and for how long:
//! [`super::entrance`].
//!
//! A client has to bring a certificate of the CA, made for clients (one that names no purpose is not), for the controller's
//! name: that of a daemon, which every node holds, drives no other. Connections that stand keep what they were made with; each new one gets what was read
//! last, and there are no tickets by which an old one could be taken up again.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use webpki::{ExtendedKeyUsageValidator, KeyPurposeIdIter};

use crate::metrics::Metrics;

/// How often files are looked at. A mounted Secret is a minute late by itself.
const LOOK: Duration = Duration::from_secs(2);
/// The largest file that is read, bytes.
const LARGEST: u64 = 1024 * 1024;

/// The files.
#[derive(Debug, Clone)]
pub struct Files {
    /// Our certificate and those that lead to its CA, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The CAs of clients, PEM.
    pub client_ca: PathBuf,
}

/// Why files are no good.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One holds no such thing.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// They do not go together.
    #[error("certificate and key: {0}")]
    Pair(#[source] rustls::Error),
}

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl Files {
    fn read(&self) -> Result<Contents, TlsError> {
        Ok(Contents { certificate: read(&self.certificate)?, key: read(&self.key)?, client_ca: read(&self.client_ca)? })
    }

    fn configure(&self, contents: &Contents, client: &ServerName<'static>) -> Result<Arc<ServerConfig>, TlsError> {
        let wrong =
            |path: &Path, what: &dyn fmt::Display| TlsError::Content { path: path.to_owned(), what: what.to_string() };
        let certificates = |path: &Path, bytes: &[u8]| {
            let all: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(bytes).collect();
            match all {
                Ok(all) if all.is_empty() => Err(wrong(path, &"holds no certificate")),
                Ok(all) => Ok(all),
                Err(error) => Err(wrong(path, &error)),
            }
        };
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| wrong(&self.key, &error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.client_ca, &contents.client_ca)? {
            roots.add(certificate).map_err(|error| wrong(&self.client_ca, &error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| wrong(&self.client_ca, &error))?;
        let verifier = Arc::new(OneClient { chains, client: client.clone() });
        configure(provider, chain, key, verifier).map_err(TlsError::Pair)
    }
}

fn configure(
    provider: Arc<CryptoProvider>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Arc<OneClient>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST {
            Err(std::io::Error::other(format!("larger than {LARGEST} bytes")))
        } else {
            Ok(bytes)
        }
    };
    read().map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Lets in whoever has a certificate of the CA for one name.
#[derive(Debug)]
struct OneClient {
    chains: Arc<dyn ClientCertVerifier>,
    client: ServerName<'static>,
}

impl ClientCertVerifier for OneClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chains.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        certificate
            .verify_is_valid_for_subject_name(&self.client)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::NotValidForName))?;
        if !names_a_purpose(&certificate, now) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::InvalidPurpose));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Whether a certificate says what it is for. That clients are among it, if anything is, has been seen with its chain: one
/// without is made for everything, and so for us.
fn names_a_purpose(certificate: &webpki::EndEntityCert<'_>, now: UnixTime) -> bool {
    /// Of the first certificate that is looked at.
    #[derive(Default)]
    struct Named(Cell<Option<bool>>);
    impl ExtendedKeyUsageValidator for Named {
        fn validate(&self, mut purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
            if self.0.get().is_none() {
                self.0.set(Some(purposes.next().is_some()));
            }
            Ok(())
        }
    }
    let named = Named::default();
    // Its own properties come first, and no issuer is there that could be looked at: that it is unknown is no news.
    let _unknown_issuer =
        certificate.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[], &[], now, &named, None, None);
    named.0.get() == Some(true)
}

/// What new connections are made with.
pub struct Door {
    files: Files,
    client: ServerName<'static>,
    contents: Contents,
    config: Arc<ArcSwap<ServerConfig>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("files", &self.files).field("client", &self.client).finish_non_exhaustive()
    }
}

impl Door {
    /// Reads the files. `client`: the DNS name that clients have to show.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(files: Files, client: ServerName<'static>) -> Result<Door, TlsError> {
        let contents = files.read()?;
        let config = files.configure(&contents, &client)?;
        Ok(Door { files, client, contents, config: Arc::new(ArcSwap::new(config)) })
    }

    /// What new connections are made with, now and later.
    pub(super) fn config(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.config.clone()
    }

    /// Reads them again whenever they have changed, for ever. Files that are no good change nothing, and that is said
    /// once: a certificate and its key are not replaced at one moment.
    pub(super) async fn keep(mut self, metrics: Arc<Metrics>) {
        let mut refused: Option<Contents> = None;
        let mut unreadable = false;
        loop {
            tokio::time::sleep(LOOK).await;
            match self.files.read() {
                Ok(contents) if contents == self.contents => refused = None,
                Ok(contents) if refused.as_ref() == Some(&contents) => {}
                Ok(contents) => match self.files.configure(&contents, &self.client) {
                    Ok(config) => {
                        self.config.store(config);
                        self.contents = contents;
                        metrics.tls_reloaded(true);
                        tracing::info!("certificates read again: new connections use them");
                    }
                    Err(error) => {
                        metrics.tls_reloaded(false);
                        tracing::error!(%error, "changed certificates are no good; what was in use stays");
                        refused = Some(contents);
                    }
                },
                Err(error) => {
                    if !unreadable {
                        metrics.tls_reloaded(false);
                        tracing::error!(%error, "certificates cannot be read; what was in use stays");
                    }
                    unreadable = true;
                    continue;
                }
            }
            unreadable = false;
        }
    }
}
