//! What the chart leaves on the nodes, and how its installer has got into their chains.

use crate::cluster::node::Node;
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::lab::eventually;
use anyhow::{Context, Result, ensure};
use sluice_shared::conflist::Way;
use sluice_shared::install::{INSTALLATION_FILE, Installation, State};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A directory's files: where, what, and with which mode.
pub type Tree = BTreeMap<String, (Vec<u8>, u32)>;

/// The nodes' directories of network configuration.
///
/// # Errors
/// When one cannot be read.
pub fn directories(stage: &Stage) -> Result<Vec<Tree>> {
    stage.cluster().nodes().iter().map(directory).collect()
}

/// Fails unless every node's directory is as it was.
///
/// # Errors
/// On which node it is not, and what is in it.
pub fn must_be_as(stage: &Stage, before: &[Tree]) -> Result<String> {
    let nodes = stage.cluster().nodes();
    ensure!(nodes.len() == before.len(), "there are {} nodes, and were {}", nodes.len(), before.len());
    nodes.iter().zip(before).try_for_each(|(node, before)| must_be(node, before))?;
    Ok("the same files, bytes and modes on every node".into())
}

/// The same for one node.
///
/// # Errors
/// What is in it.
pub fn must_be(node: &Node, before: &Tree) -> Result<()> {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>().join(", ");
    let now = directory(node)?;
    ensure!(now == *before, "{} has {}, and had {}", node.name(), names(&now), names(before));
    Ok(())
}

/// Fails unless the installer has chained the plugin in these ways, on the nodes from `node1` on.
///
/// # Errors
/// On which node it has not, and what it says.
pub fn must_be_chained(stage: &Stage, ways: &[Way]) -> Result<String> {
    let of = |(node, way): (&Node, &Way)| -> Result<String> {
        let said = installation(node)?;
        let as_wanted = said.state == State::Chained && said.way == Some(*way);
        ensure!(as_wanted, "{}: {said:?}, where {} was to be", node.name(), way.as_str());
        Ok(format!("{}: {}, since {}", node.name(), way.as_str(), said.why))
    };
    let said: Result<Vec<_>> = stage.cluster().nodes().iter().zip(ways).map(of).collect();
    Ok(said?.join("; "))
}

/// What the installer on a node says.
///
/// # Errors
/// When it says nothing.
pub fn installation(node: &Node) -> Result<Installation> {
    let path = node.path(Path::new("/run/sluice").join(INSTALLATION_FILE))?;
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).context("read install.json")
}

/// Waits until every node has the plugin of the next version's image, or of the first one's. They do the same: the one
/// has a word behind its end. A pod may be Ready by what the installer before its own has done.
///
/// # Errors
/// On which node it stays the other one, or there is none.
pub fn until_plugin(stage: &Stage, next: bool) -> Result<()> {
    let (wanted, other) = if next { ("next", "first") } else { ("first", "next") };
    stage.cluster().nodes().iter().try_for_each(|node| {
        eventually(&format!("{} to have the {wanted} image's plugin", node.name()), PATIENCE, || {
            let path = node.disk("opt/cni/bin/sluice-cni");
            let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let is_next = bytes.ends_with(b"the next version\n");
            ensure!(is_next == next, "it has the {other} one's");
            Ok(())
        })
    })
}

/// All files below a node's directory of network configuration.
fn directory(node: &Node) -> Result<Tree> {
    let dir = node.disk("etc/cni/net.d");
    let (mut found, mut dirs) = (Tree::new(), vec![dir.clone()]);
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("list {}", next.display()))? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            let name = path.strip_prefix(&dir)?.display().to_string();
            if meta.is_dir() {
                found.insert(format!("{name}/"), (Vec::new(), meta.permissions().mode()));
                dirs.push(path);
            } else {
                let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                found.insert(name, (bytes, meta.permissions().mode()));
            }
        }
    }
    Ok(found)
}
