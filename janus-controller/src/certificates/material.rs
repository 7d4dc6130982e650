//! Keys and certificates: made, signed, and told apart. Knows no cluster.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::parse_x509_certificate;

use super::plan::{Authority, LIFE_OF_CA, LIFE_OF_LEAF, Side, Signed, Time};

/// Certificates hold from a little before they are made: clocks differ.
const BACKDATED: Time = 3600;

/// What is wrong with what a Secret holds, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// Not PEM, or not what it should be.
    #[error("no certificate: {0}")]
    Certificate(String),
    /// Not a key, or none that goes with the certificate.
    #[error("no key for the certificate: {0}")]
    Key(String),
    /// It is another side's, or its CA is not among ours.
    #[error("refused by its peer: {0}")]
    Refused(#[from] webpki::Error),
    /// It could not be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Beyond the calendar.
    #[error("no such time: {0}")]
    Time(#[from] time::error::ComponentRange),
}

/// A CA's certificate; with its key it can sign.
#[derive(Debug)]
pub struct Ca {
    certificate: CertificateDer<'static>,
    /// As it is kept.
    pub pem: String,
    ends: Time,
}

/// A CA that can sign.
#[derive(Debug)]
pub struct Signer {
    /// Its certificate.
    pub ca: Ca,
    key: KeyPair,
}

impl Ca {
    /// Of what a Secret holds.
    ///
    /// # Errors
    /// [`MaterialError::Certificate`].
    pub fn read(pem: &str) -> Result<Ca, MaterialError> {
        let certificate = one_certificate(pem)?;
        let (_, ends) = validity(&certificate)?;
        Ok(Ca { certificate, pem: pem.to_owned(), ends })
    }

    /// What plans are made of.
    pub fn authority(&self) -> Authority {
        Authority { id: self.certificate.to_vec(), ends: self.ends }
    }
}

impl Signer {
    /// A new one.
    ///
    /// # Errors
    /// [`MaterialError::Make`].
    pub fn make(now: Time) -> Result<Signer, MaterialError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // A name of its own: of two CAs of one name, a verifier would try the wrong one first.
        params.distinguished_name = common_name(&format!("janus-ca {now}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = at(now - BACKDATED)?;
        params.not_after = at(now + LIFE_OF_CA)?;
        let certificate = params.self_signed(&key)?;
        Ok(Signer { ca: Ca::read(&certificate.pem())?, key })
    }

    /// Of what a Secret holds.
    ///
    /// # Errors
    /// [`MaterialError::Certificate`], [`MaterialError::Key`].
    pub fn read(certificate: &str, key: &str) -> Result<Signer, MaterialError> {
        let ca = Ca::read(certificate)?;
        let key = key_of(key, &ca.certificate)?;
        Ok(Signer { ca, key })
    }

    /// Its key, as it is kept.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A new key for one side, and its certificate: both PEM.
    ///
    /// # Errors
    /// [`MaterialError::Make`].
    pub fn sign(&self, side: Side, namespace: &str, now: Time) -> Result<(String, String), MaterialError> {
        let key = KeyPair::generate()?;
        let name = name(side, namespace);
        let mut params = CertificateParams::new(vec![name.clone()])?;
        params.distinguished_name = common_name(&name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // One purpose each: a node's key, which is the daemon's, must not drive other nodes.
        params.extended_key_usages = vec![match side {
            Side::Daemon => ExtendedKeyUsagePurpose::ServerAuth,
            Side::Controller => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        params.not_before = at(now - BACKDATED)?;
        params.not_after = at(self.ca.ends.min(now + LIFE_OF_LEAF))?;
        let issuer = Issuer::from_ca_cert_der(&self.ca.certificate, &self.key)?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// The name that a side's certificate is for.
pub fn name(side: Side, namespace: &str) -> String {
    match side {
        Side::Daemon => format!("janusd.{namespace}.svc"),
        Side::Controller => format!("janus-controller.{namespace}.svc"),
    }
}

/// Looks at a side's certificate and key as its peer would: name, purpose, time, and which of `authorities` signed it.
///
/// # Errors
/// Why it is of no use.
pub fn inspect(
    certificate: &str,
    key: &str,
    (side, namespace): (Side, &str),
    authorities: &[&Ca],
    now: Time,
) -> Result<Signed, MaterialError> {
    let der = one_certificate(certificate)?;
    key_of(key, &der)?;
    let (from, ends) = validity(&der)?;
    let leaf = EndEntityCert::try_from(&der)?;
    let server =
        ServerName::try_from(name(side, namespace)).map_err(|error| MaterialError::Certificate(error.to_string()))?;
    leaf.verify_is_valid_for_subject_name(&server)?;
    let usage = match side {
        Side::Daemon => KeyUsage::server_auth(),
        Side::Controller => KeyUsage::client_auth(),
    };
    let at = UnixTime::since_unix_epoch(Duration::from_secs(now.try_into().unwrap_or(0)));
    let mut refusal = webpki::Error::UnknownIssuer;
    for ca in authorities {
        let anchor = [webpki::anchor_from_trusted_cert(&ca.certificate)?];
        let algorithms = &[webpki::ring::ECDSA_P256_SHA256];
        match leaf.verify_for_usage(algorithms, &anchor, &[], at, usage, None, None) {
            Ok(_) => return Ok(Signed { by: ca.certificate.to_vec(), at: from + BACKDATED, ends }),
            Err(webpki::Error::UnknownIssuer) => {}
            Err(error) => refusal = error,
        }
    }
    Err(refusal.into())
}

/// All certificates of a bundle, as their bytes.
///
/// # Errors
/// [`MaterialError::Certificate`].
pub fn bundle(pem: &str) -> Result<Vec<Vec<u8>>, MaterialError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|certificate| certificate.map(|it| it.to_vec()).map_err(|e| MaterialError::Certificate(e.to_string())))
        .collect()
}

fn one_certificate(pem: &str) -> Result<CertificateDer<'static>, MaterialError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| MaterialError::Certificate(error.to_string()))
}

fn validity(der: &CertificateDer<'_>) -> Result<(Time, Time), MaterialError> {
    let (_, parsed) = parse_x509_certificate(der).map_err(|error| MaterialError::Certificate(error.to_string()))?;
    Ok((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

fn key_of(pem: &str, certificate: &CertificateDer<'_>) -> Result<KeyPair, MaterialError> {
    let key = KeyPair::from_pem(pem).map_err(|error| MaterialError::Key(error.to_string()))?;
    let (_, parsed) =
        parse_x509_certificate(certificate).map_err(|error| MaterialError::Certificate(error.to_string()))?;
    if parsed.public_key().raw == key.subject_public_key_info() {
        Ok(key)
    } else {
        Err(MaterialError::Key("it is another certificate's".to_owned()))
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}

fn at(time: Time) -> Result<OffsetDateTime, MaterialError> {
    Ok(OffsetDateTime::from_unix_timestamp(time)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = 1_800_000_000;
    const NAMESPACE: &str = "janus-system";

    fn judge(signer: &Signer, made: Side, taken_for: Side, now: Time) -> Result<Signed, MaterialError> {
        let (certificate, key) = signer.sign(made, NAMESPACE, NOW).unwrap();
        inspect(&certificate, &key, (taken_for, NAMESPACE), &[&signer.ca], now)
    }

    #[test]
    fn each_side_is_good_for_itself_and_for_nothing_else() {
        let signer = Signer::make(NOW).unwrap();
        for side in Side::ALL {
            let signed = judge(&signer, side, side, NOW).unwrap();
            let all = Signed { by: signer.ca.authority().id, at: NOW, ends: NOW + LIFE_OF_LEAF };
            assert_eq!(signed, all);
            assert!(judge(&signer, side, side, NOW + LIFE_OF_LEAF + 1).is_err(), "it has ended");
        }
        assert!(judge(&signer, Side::Daemon, Side::Controller, NOW).is_err());
        assert!(judge(&signer, Side::Controller, Side::Daemon, NOW).is_err());
    }

    #[test]
    fn a_certificate_for_servers_is_none_for_clients_whatever_its_name() {
        let signer = Signer::make(NOW).unwrap();
        let (certificate, _) = signer.sign(Side::Daemon, NAMESPACE, NOW).unwrap();
        let der = one_certificate(&certificate).unwrap();
        let anchors = [webpki::anchor_from_trusted_cert(&signer.ca.certificate).unwrap()];
        let at = UnixTime::since_unix_epoch(Duration::from_secs(NOW as u64));
        let leaf = EndEntityCert::try_from(&der).unwrap();
        let judged = leaf.verify_for_usage(
            &[webpki::ring::ECDSA_P256_SHA256],
            &anchors,
            &[],
            at,
            KeyUsage::client_auth(),
            None,
            None,
        );
        assert!(judged.is_err());
    }

    #[test]
    fn what_was_kept_signs_like_what_was_made() {
        let made = Signer::make(NOW).unwrap();
        let kept = Signer::read(&made.ca.pem, &made.key_pem()).unwrap();
        assert_eq!(kept.ca.authority(), made.ca.authority());
        assert_eq!(kept.ca.authority().ends, NOW + LIFE_OF_CA);
        assert!(judge(&kept, Side::Daemon, Side::Daemon, NOW).is_ok());
        let other = Signer::make(NOW).unwrap();
        assert!(matches!(Signer::read(&made.ca.pem, &other.key_pem()), Err(MaterialError::Key(_))));
        assert!(matches!(Signer::read("nonsense", &other.key_pem()), Err(MaterialError::Certificate(_))));
    }

    #[test]
    fn the_ca_that_signed_is_found_among_others_and_a_stranger_is_none() {
        let [one, other, stranger] = [0, 1, 2].map(|more| Signer::make(NOW + more).unwrap());
        let (certificate, key) = other.sign(Side::Daemon, NAMESPACE, NOW).unwrap();
        let judge = |authorities: &[&Ca]| inspect(&certificate, &key, (Side::Daemon, NAMESPACE), authorities, NOW);
        assert_eq!(judge(&[&one.ca, &other.ca]).unwrap().by, other.ca.authority().id);
        assert!(matches!(judge(&[&one.ca, &stranger.ca]), Err(MaterialError::Refused(_))));
        assert!(judge(&[]).is_err());
        let (_, key) = other.sign(Side::Daemon, NAMESPACE, NOW).unwrap();
        let wrong_key = inspect(&certificate, &key, (Side::Daemon, NAMESPACE), &[&other.ca], NOW);
        assert!(matches!(wrong_key, Err(MaterialError::Key(_))));
    }

    #[test]
    fn nothing_outlives_its_ca() {
        let signer = Signer::make(NOW).unwrap();
        let late = NOW + LIFE_OF_CA - 60;
        let (certificate, key) = signer.sign(Side::Controller, NAMESPACE, late).unwrap();
        let signed = inspect(&certificate, &key, (Side::Controller, NAMESPACE), &[&signer.ca], late).unwrap();
        assert_eq!(signed.ends, NOW + LIFE_OF_CA);
    }
}
