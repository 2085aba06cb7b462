//! Config, manifest and index, as the OCI image specification 1.1 has them, and what containerd adds.

use crate::layer::compress;
use crate::program::Architecture;
use crate::spec::Spec;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// By which containerd names what it imports.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// By which everybody else does.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Bytes, and what they are called in an archive: the SHA-256 of them, in hex.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// 64 hexadecimal digits.
    pub digest: String,
}

/// An image: its index, and every blob that the index leads to.
#[derive(Clone, Debug)]
pub struct Image {
    /// `index.json`.
    pub index: Vec<u8>,
    /// Manifest, config and layer.
    pub blobs: Vec<Blob>,
    /// The manifest's digest, `sha256:…`: what a registry and a runtime call the image.
    pub digest: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Clone, Copy, Serialize)]
struct Platform {
    architecture: &'static str,
    os: &'static str,
}

#[derive(Serialize)]
struct Config<'a> {
    created: String,
    #[serde(flatten)]
    platform: Platform,
    config: Execution<'a>,
    rootfs: RootFs,
    history: [History; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Execution<'a> {
    user: &'a str,
    env: [&'static str; 1],
    entrypoint: &'a [String],
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: [String; 1],
}

#[derive(Serialize)]
struct History {
    created: String,
    created_by: &'static str,
}

impl Blob {
    /// Names bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        let digest = hex_digest(&bytes);
        Self { bytes, digest }
    }

    fn json(value: &impl Serialize) -> anyhow::Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn descriptor(&self, media_type: &'static str) -> Descriptor {
        Descriptor {
            media_type,
            digest: format!("sha256:{}", self.digest),
            size: self.bytes.len(),
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

impl Image {
    /// Puts an image together: `files` is its file system as a tar, `labels` come on top of what the spec says, `epoch`
    /// (seconds since 1970) is when it was made.
    ///
    /// # Errors
    /// When JSON cannot be written.
    pub fn new(
        spec: &Spec,
        architecture: Architecture,
        files: &[u8],
        labels: &BTreeMap<String, String>,
        epoch: u64,
    ) -> anyhow::Result<Self> {
        let layer = Blob::new(compress(files)?);
        let platform = Platform { architecture: architecture.name(), os: "linux" };
        let labels = all_labels(spec, labels, epoch);
        let config = Blob::json(&Config {
            created: timestamp(epoch),
            platform,
            config: Execution {
                user: &spec.user,
                env: ["PATH=/usr/local/bin"],
                entrypoint: &spec.entrypoint,
                labels: &labels,
            },
            rootfs: RootFs { kind: "layers", diff_ids: [format!("sha256:{}", hex_digest(files))] },
            history: [History { created: timestamp(epoch), created_by: "sluice-image" }],
        })?;
        let manifest = Blob::json(&Manifest {
            schema_version: 2,
            media_type: MANIFEST,
            config: config.descriptor(CONFIG),
            layers: vec![layer.descriptor(LAYER)],
            annotations: labels,
        })?;
        let named = |name: &String| Descriptor {
            platform: Some(platform),
            annotations: BTreeMap::from([(CONTAINERD_NAME, name.clone()), (REF_NAME, name.clone())]),
            ..manifest.descriptor(MANIFEST)
        };
        let manifests = spec.names.iter().map(named).collect();
        let index = serde_json::to_vec(&Index { schema_version: 2, media_type: INDEX, manifests })?;
        let digest = format!("sha256:{}", manifest.digest);
        Ok(Self { index, blobs: vec![manifest, config, layer], digest })
    }
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The annotations of the OCI image specification, as labels too, since older tools read only those.
fn all_labels(spec: &Spec, more: &BTreeMap<String, String>, epoch: u64) -> BTreeMap<String, String> {
    let opencontainers = |name: &str| format!("org.opencontainers.image.{name}");
    let mut labels = BTreeMap::from([
        (opencontainers("title"), spec.title.clone()),
        (opencontainers("description"), spec.description.clone()),
        (opencontainers("licenses"), env!("CARGO_PKG_LICENSE").to_owned()),
        (opencontainers("version"), env!("CARGO_PKG_VERSION").to_owned()),
        (opencontainers("created"), timestamp(epoch)),
    ]);
    labels.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    labels
}

/// Seconds since 1970 as RFC 3339, in UTC.
#[must_use]
pub fn timestamp(epoch: u64) -> String {
    let (mut days, seconds) = (epoch / 86_400, epoch % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_written_as_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(timestamp(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(timestamp(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_blob_is_called_by_its_sha_256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Blob::new(Vec::new()).digest, empty);
    }
}
