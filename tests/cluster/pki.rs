//! A cluster's certificates, made for it alone.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Certificate and key, as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = valid(CertificateParams::default(), "janus-cluster-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own, as PEM.
    pub(crate) fn certificate(&self) -> String {
        self.0.pem()
    }

    /// For who serves under these names and addresses.
    pub(crate) fn server(&self, name: &str, group: Option<&str>, addresses: &[&str]) -> Pair {
        let addresses: Vec<String> = addresses.iter().copied().map(str::to_owned).collect();
        self.sign(CertificateParams::new(addresses).unwrap(), name, group, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a user of the API server: its common name is the user's name, its organisation the user's group.
    pub(crate) fn client(&self, name: &str, group: Option<&str>) -> Pair {
        self.sign(CertificateParams::default(), name, group, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        params: CertificateParams,
        name: &str,
        group: Option<&str>,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Pair {
        let mut params = valid(params, name, group);
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

fn valid(mut params: CertificateParams, name: &str, group: Option<&str>) -> CertificateParams {
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2120, 1, 1));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params
}
