//! Which runtime the node has: its own answer, for the installer, which goes by what its libcni can do.

use super::client::CallError;
use super::{Listing, first_that_shows};
use sluice_shared::conflist::Runtime;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The name and version of the runtime that these sockets lead to: of the first that shows any sandbox, since a node may
/// have one that the kubelet does not use.
///
/// # Errors
/// Says what each socket gave instead.
pub async fn version(sockets: &[PathBuf]) -> Result<Runtime, String> {
    let Listing { client, sandboxes } = first_that_shows(sockets).await?;
    // The kubelet's own may be restarting while another one answers.
    if sandboxes.is_empty() && there(sockets) > 1 {
        return Err("there are several runtimes, and none that answers shows a sandbox".into());
    }
    let answer = client.version().await.map_err(|error: CallError| error.to_string())?;
    if answer.runtime_name.is_empty() || answer.runtime_version.is_empty() {
        return Err("the runtime does not say its name and version".into());
    }
    Ok(Runtime { name: answer.runtime_name, version: answer.runtime_version })
}

/// How many sockets there are; one may be found by two paths.
fn there(sockets: &[PathBuf]) -> usize {
    let found = sockets.iter().filter_map(|socket| std::fs::metadata(socket).ok());
    found.map(|found| (found.dev(), found.ino())).collect::<BTreeSet<_>>().len()
}
