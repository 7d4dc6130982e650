//! Certificates as a cluster's would be: a CA, a daemon's that is for servers only, a controller's that is for clients.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Where janusd runs.
pub(crate) const NAMESPACE: &str = "janus-system";

const VALID: i32 = 2120;
const EXPIRED: i32 = 2021;

/// A CA, and what it has signed.
pub(crate) struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// A chain and its key, PEM.
struct Signed {
    chain: String,
    key: String,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// The controller's files: `tls.crt`, `tls.key`, `ca.crt`.
    pub(crate) fn write_controller(&self, directory: &Path) {
        let own = self.sign(&controller_name(), VALID, ExtendedKeyUsagePurpose::ClientAuth);
        std::fs::write(directory.join("tls.crt"), own.chain).unwrap();
        std::fs::write(directory.join("tls.key"), own.key).unwrap();
        std::fs::write(directory.join("ca.crt"), self.ca.pem()).unwrap();
    }

    /// What the controller connects with.
    pub(crate) fn controller(&self) -> Arc<ClientConfig> {
        self.client(&controller_name())
    }

    /// What somebody of that name connects with.
    pub(crate) fn client(&self, name: &str) -> Arc<ClientConfig> {
        let own = self.sign(name, VALID, ExtendedKeyUsagePurpose::ClientAuth);
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(own.chain(), own.key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// What a daemon serves with.
    pub(crate) fn daemon(&self) -> Arc<ServerConfig> {
        self.server(&self.sign(&daemon_name(), VALID, ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// A daemon's, for another name.
    pub(crate) fn misnamed(&self) -> Arc<ServerConfig> {
        self.server(&self.sign("janusd.elsewhere.svc", VALID, ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// A daemon's that has expired.
    pub(crate) fn expired(&self) -> Arc<ServerConfig> {
        self.server(&self.sign(&daemon_name(), EXPIRED, ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// A daemon's of a CA that nobody knows.
    pub(crate) fn forged(&self) -> Arc<ServerConfig> {
        self.server(&Authority::new().sign(&daemon_name(), VALID, ExtendedKeyUsagePurpose::ServerAuth))
    }

    fn server(&self, own: &Signed) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(own.chain(), own.key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    fn sign(&self, name: &str, until: i32, purpose: ExtendedKeyUsagePurpose) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        Signed { chain: params.signed_by(&key, &self.ca).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Signed {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// The name that daemons ask of a client.
pub(crate) fn controller_name() -> String {
    format!("janus-controller.{NAMESPACE}.svc")
}

/// The name under which daemons are dialled.
pub(crate) fn daemon_name() -> String {
    format!("janusd.{NAMESPACE}.svc")
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
