//! An image in one tar: the OCI image layout 1.0, which `ctr images import`, podman, skopeo and docker ≥ 25 read.

use crate::oci::Image;
use crate::tarball::Tarball;
use anyhow::Context;
use std::fs;
use std::path::Path;

/// The layout's own file, as the OCI image specification has it.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const MODE: u32 = 0o644;

/// Packs an image. The index comes before the blobs, and these in the order of their digests.
///
/// # Errors
/// When a tar cannot be made of it.
pub fn pack(image: &Image, epoch: u64) -> anyhow::Result<Vec<u8>> {
    let mut tarball = Tarball::new(epoch);
    tarball.file("oci-layout", MODE, LAYOUT)?;
    tarball.file("index.json", MODE, &image.index)?;
    let mut blobs: Vec<_> = image.blobs.iter().collect();
    blobs.sort_by_key(|blob| &blob.digest);
    for blob in blobs {
        tarball.file(&format!("blobs/sha256/{}", blob.digest), MODE, &blob.bytes)?;
    }
    tarball.finish()
}

/// Writes `bytes` to `path` unless it holds them already, and says whether it did: what is made from the file need not
/// be made anew.
///
/// # Errors
/// When it cannot be written.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}
