//! Certificates as a cluster's would be: a CA, a daemon's that is for servers only, a controller's that is for clients.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The name that the daemon wants of its clients.
pub(super) const CONTROLLER: &str = "janus-controller.janus-test.svc";
/// From year to year.
pub(super) const VALID: (i32, i32) = (2020, 2120);
pub(super) const EXPIRED: (i32, i32) = (2020, 2021);

pub(super) struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
    daemon: (String, String),
}

/// What a client connects with.
pub(super) struct Identity {
    pub(super) config: Arc<ClientConfig>,
    own: Option<(String, String)>,
}

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let daemon = signed(&ca, "janusd.janus-test.svc", VALID, &[ExtendedKeyUsagePurpose::ServerAuth]);
        Authority { ca, daemon }
    }

    /// The daemon's files.
    pub(super) fn write(&self, directory: &Path) {
        std::fs::write(directory.join("tls.crt"), &self.daemon.0).unwrap();
        std::fs::write(directory.join("tls.key"), &self.daemon.1).unwrap();
        std::fs::write(directory.join("ca.crt"), self.ca.pem()).unwrap();
    }

    pub(super) fn daemon_key(&self) -> &str {
        &self.daemon.1
    }

    pub(super) fn controller(&self) -> Identity {
        self.client(CONTROLLER, VALID, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    pub(super) fn client(&self, name: &str, years: (i32, i32), purposes: &[ExtendedKeyUsagePurpose]) -> Identity {
        let own = signed(&self.ca, name, years, purposes);
        Identity { config: config(self, Some(&own)), own: Some(own) }
    }

    pub(super) fn nobody(&self) -> Identity {
        Identity { config: config(self, None), own: None }
    }
}

impl Identity {
    /// The same, taking daemons of another CA.
    pub(super) fn trusting(self, other: &Authority) -> Identity {
        Identity { config: config(other, self.own.as_ref()), own: self.own }
    }
}

fn signed(
    ca: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    (from, to): (i32, i32),
    purposes: &[ExtendedKeyUsagePurpose],
) -> (String, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
    params.extended_key_usages = purposes.to_vec();
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

fn config(trusted: &Authority, own: Option<&(String, String)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
