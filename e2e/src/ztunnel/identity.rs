//! Who a workload is on the wire: SPIFFE certificates from a CA that every stand-in derives alike, so that they trust
//! each other without being told. It protects nothing; it makes the traffic real.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::sync::Arc;

/// What stands before the 32 bytes of an Ed25519 seed in PKCS#8 (RFC 8410 §7).
const PKCS8_ED25519: &[u8] = &[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// The CA's seed: public, so that nobody mistakes the CA for a secret.
const CA_SEED: &[u8; 32] = b"the ztunnel stand-in's public CA";
const ALPN: &[u8] = b"h2";

/// The CA. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

/// A workload's certificate and key, and how it meets its peers.
#[derive(Clone)]
pub struct Identity {
    authority: Authority,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    name: Arc<str>,
}

/// No certificate could be made, or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// By rcgen.
    #[error("cannot issue the certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// By rustls.
    #[error("cannot use the certificate: {0}")]
    Use(#[from] Error),
    /// By the verifier of clients.
    #[error("cannot verify clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Accepts a server that our CA vouches for, as one of the expected identities.
#[derive(Debug)]
struct PeerVerifier {
    roots: Arc<RootCertStore>,
    expected: Vec<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Authority {
    /// Derives the CA, the same in every stand-in.
    ///
    /// # Errors
    /// When the crypto library refuses it.
    pub fn derive() -> Result<Self, IdentityError> {
        let pkcs8: Vec<u8> = [PKCS8_ED25519, CA_SEED].concat();
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_ED25519)?;
        let mut params = lasting_params();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "ztunnel stand-in");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        let mut roots = RootCertStore::empty();
        roots.add(issuer.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Self { issuer: Arc::new(issuer), roots: Arc::new(roots), provider })
    }

    /// Issues a certificate for a `spiffe://` identity.
    ///
    /// # Errors
    /// When `identity` cannot be in a certificate.
    pub fn issue(&self, identity: &str) -> Result<Identity, IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = lasting_params();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_owned().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Identity {
            authority: self.clone(),
            chain: vec![certificate.der().clone()],
            key: Arc::new(key),
            name: identity.into(),
        })
    }
}

impl Identity {
    /// The identity itself, `spiffe://…`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How this workload accepts peers: any whose certificate the CA signed. Whether it is a SPIFFE identity is for
    /// [`peer_identity`] to say, after the handshake.
    ///
    /// # Errors
    /// When rustls refuses the certificate.
    pub fn server(&self) -> Result<ServerConfig, IdentityError> {
        let Authority { roots, provider, .. } = &self.authority;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }

    /// How this workload calls a peer that must be one of `expected`.
    ///
    /// # Errors
    /// When rustls refuses the certificate.
    pub fn client(&self, expected: Vec<String>) -> Result<ClientConfig, IdentityError> {
        let Authority { roots, provider, .. } = &self.authority;
        let algorithms = provider.signature_verification_algorithms;
        let verifier = PeerVerifier { roots: roots.clone(), expected, algorithms };
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // SPIFFE peers are not known by a DNS name.
        config.enable_sni = false;
        Ok(config)
    }
}

/// The SPIFFE identity in a peer's certificate.
#[must_use]
pub fn peer_identity(chain: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(chain?.first()?).ok()?;
    certificate.valid_uri_names().find(|uri| uri.starts_with("spiffe://")).map(str::to_owned)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let shown = peer_identity(Some(std::slice::from_ref(end_entity)));
        if shown.as_ref().is_some_and(|identity| self.expected.contains(identity)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Valid whenever a test may run.
fn lasting_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    const A: &str = "spiffe://cluster.local/ns/demo/sa/a";
    const B: &str = "spiffe://cluster.local/ns/demo/sa/b";

    /// Whom the server saw, when both were content.
    async fn meet(client: ClientConfig, server: ServerConfig) -> Option<String> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("10.0.0.1").expect("an address");
        let (called, accepted) = tokio::join!(
            TlsConnector::from(Arc::new(client)).connect(name, near),
            TlsAcceptor::from(Arc::new(server)).accept(far),
        );
        called.ok()?;
        peer_identity(accepted.ok()?.get_ref().1.peer_certificates())
    }

    #[tokio::test]
    async fn two_stand_ins_trust_each_other_without_being_told() {
        let (here, there) = (Authority::derive().expect("a CA"), Authority::derive().expect("a CA"));
        let a = here.issue(A).expect("a certificate");
        let b = there.issue(B).expect("a certificate");
        let client = || a.client(vec![B.to_owned()]).expect("a client");
        assert_eq!(meet(client(), b.server().expect("a server")).await.as_deref(), Some(A));
        // The same CA, but not the identity that was expected.
        assert_eq!(meet(client(), a.server().expect("a server")).await, None);
    }

    #[tokio::test]
    async fn another_ca_is_not_trusted() {
        let authority = Authority::derive().expect("a CA");
        let mut params = lasting_params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let other = Authority { issuer: Arc::new(issuer), ..authority.clone() };
        let (a, b) = (authority.issue(A).expect("issued"), other.issue(B).expect("issued"));
        let meeting = meet(a.client(vec![B.to_owned()]).expect("a client"), b.server().expect("a server"));
        assert_eq!(meeting.await, None);
        let meeting = meet(b.client(vec![A.to_owned()]).expect("a client"), a.server().expect("a server"));
        assert_eq!(meeting.await, None);
    }
}
