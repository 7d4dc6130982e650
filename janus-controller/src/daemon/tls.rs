//! What daemons are met with: TLS 1.3, mutual, files read again when they change.
//!
//! A daemon has to show a certificate of the CA, made for servers, for `janusd.<namespace>.svc`. Connections that stand keep
//! what they were made with; each new one gets what was read last. There are no tickets: nothing is resumed.

use std::convert::Infallible;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The largest file that is read, bytes.
const LARGEST: u64 = 1 << 20;

/// The files, PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The CAs of daemons.
    pub ca: PathBuf,
    /// The controller's certificate and those that lead to its CA.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why files are no good.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One does not hold what it should.
    #[error("{}: {source}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A CA that is none, or a certificate and a key that do not go together.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The namespace makes no name of a server.
    #[error("{0} is no name of a server")]
    Name(String),
}

/// One after the other: CA, certificate, key.
type Contents = [Vec<u8>; 3];

impl Files {
    fn read(&self) -> Result<Contents, FilesError> {
        Ok([read(&self.ca)?, read(&self.certificate)?, read(&self.key)?])
    }

    fn configure(&self, [ca, certificate, key]: &Contents) -> Result<Arc<ClientConfig>, FilesError> {
        let content = |path: &Path| {
            let path = path.to_owned();
            move |source| FilesError::Content { path, source }
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca, ca)? {
            roots.add(certificate).map_err(content(&self.ca))?;
        }
        let chain = certificates(&self.certificate, certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|source| FilesError::Pem { path: self.key.clone(), source })?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(content(&self.certificate))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(content(&self.certificate))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(rustls_pki_types::pem::Error::NoItemsFound),
        all => all,
    }
    .map_err(|source| FilesError::Pem { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let mut bytes = Vec::new();
    let done = std::fs::File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    let source = match done {
        Ok(length) if length as u64 > LARGEST => std::io::ErrorKind::FileTooLarge.into(),
        Ok(_) => return Ok(bytes),
        Err(source) => source,
    };
    Err(FilesError::Read { path: path.to_owned(), source })
}

/// What new connections are made with. Clones share it.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ArcSwap<ClientConfig>>,
    name: ServerName<'static>,
}

impl Tls {
    /// Reads the files. Daemons are in `namespace`. Without [`Reload::run`] they are not read again.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn open(files: Files, namespace: &str) -> Result<(Tls, Reload), FilesError> {
        let name = format!("janusd.{namespace}.svc");
        let name = ServerName::try_from(name.clone()).map_err(|_| FilesError::Name(name))?;
        let contents = files.read()?;
        let config = Arc::new(ArcSwap::new(files.configure(&contents)?));
        Ok((Tls { config: config.clone(), name }, Reload { files, config, seen: Ok(contents) }))
    }

    pub(super) fn now(&self) -> (Arc<ClientConfig>, ServerName<'static>) {
        (self.config.load_full(), self.name.clone())
    }
}

/// Reads files again.
pub struct Reload {
    files: Files,
    config: Arc<ArcSwap<ClientConfig>>,
    /// What was there at the last look, of use or not, so that each is told of once.
    seen: Result<Contents, String>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What came of a look at the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// They are as they were.
    Same,
    /// They have changed, and new connections use them.
    Used,
    /// They have changed and are no good: a certificate and its key are not replaced at one moment. What was in use stays.
    Refused,
}

impl Reload {
    /// Looks at the files every two seconds, for ever, and tells of what has changed.
    pub async fn run(mut self, mut tell: impl FnMut(Looked)) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.look() {
                Looked::Same => {}
                changed => tell(changed),
            }
        }
    }

    /// Looks once.
    pub fn look(&mut self) -> Looked {
        let read = self.files.read();
        let seen = read.as_ref().map_err(ToString::to_string).cloned();
        if seen == self.seen {
            return Looked::Same;
        }
        self.seen = seen;
        match read.and_then(|contents| self.files.configure(&contents)) {
            Ok(config) => {
                self.config.store(config);
                tracing::info!("certificates read again: new connections use them");
                Looked::Used
            }
            Err(error) => {
                tracing::error!(%error, "changed certificates are no good; what was in use stays");
                Looked::Refused
            }
        }
    }
}
