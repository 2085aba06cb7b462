//! Who everybody is in the cluster: one CA, a certificate for each component, the key that signs service accounts'
//! tokens, and the kubeconfigs. What they must say is in Kubernetes' "PKI certificates and requirements".

use super::address;
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The cluster's CA, with its files in one directory.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// Whom a certificate names, and for what.
pub struct Subject<'a> {
    /// The user, for the API server.
    pub common_name: &'a str,
    /// The group, for the API server; or empty.
    pub organization: &'a str,
    /// The names of a server; empty for a client.
    pub names: &'a [&'a str],
    /// The addresses of a server; empty for a client.
    pub addresses: &'a [IpAddr],
}

/// A certificate's files.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl<'a> Subject<'a> {
    /// A client of the API server.
    #[must_use]
    pub fn client(common_name: &'a str, organization: &'a str) -> Self {
        Self { common_name, organization, names: &[], addresses: &[] }
    }
}

impl Authority {
    /// Makes a CA, and writes `ca.crt`, `ca.key`, and `sa.key`, `sa.pub` (service accounts' tokens) to `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("sluice-cluster", "");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        write(&dir.join("ca.crt"), &issuer.pem())?;
        write(&dir.join("ca.key"), &issuer.key().serialize_pem())?;
        let accounts = KeyPair::generate()?;
        write(&dir.join("sa.key"), &accounts.serialize_pem())?;
        write(&dir.join("sa.pub"), &accounts.public_key_pem())?;
        Ok(Self { issuer, dir: dir.to_path_buf() })
    }

    /// One of the files that [`Authority::create`] wrote.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Issues a certificate, as `<stem>.crt` and `<stem>.key` in `dir`.
    ///
    /// # Errors
    /// When a name cannot be in a certificate, or a file cannot be written.
    pub fn issue(&self, dir: &Path, stem: &str, subject: &Subject<'_>) -> Result<Files> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(subject.common_name, subject.organization);
        for dns in subject.names {
            params.subject_alt_names.push(SanType::DnsName((*dns).try_into()?));
        }
        params.subject_alt_names.extend(subject.addresses.iter().copied().map(SanType::IpAddress));
        let server = !params.subject_alt_names.is_empty();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = if server {
            vec![ExtendedKeyUsagePurpose::ServerAuth]
        } else {
            vec![ExtendedKeyUsagePurpose::ClientAuth]
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files =
            Files { certificate: dir.join(format!("{stem}.crt")), key: dir.join(format!("{stem}.key")) };
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }

    /// Issues a client's certificate and writes `<stem>.kubeconfig` for it. Its paths are relative, so that the
    /// directory may be mounted elsewhere.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn kubeconfig(&self, dir: &Path, stem: &str, subject: &Subject<'_>) -> Result<PathBuf> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        self.issue(dir, stem, subject)?;
        if dir != self.dir {
            std::fs::copy(self.file("ca.crt"), dir.join("ca.crt")).context("copy the CA's certificate")?;
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "sluice",
            "clusters": [{"name": "sluice", "cluster": {
                "server": address::API_URL, "certificate-authority": "ca.crt"}}],
            "users": [{"name": stem, "user": {
                "client-certificate": format!("{stem}.crt"), "client-key": format!("{stem}.key")}}],
            "contexts": [{"name": "sluice", "context": {"cluster": "sluice", "user": stem}}],
        });
        let path = dir.join(format!("{stem}.kubeconfig"));
        write(&path, &serde_norway::to_string(&config)?)?;
        Ok(path)
    }
}

fn name(common_name: &str, organization: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if !organization.is_empty() {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
