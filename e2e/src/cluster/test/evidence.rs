//! What a failure is to be understood by: gathered as far as it is to be had, and with what is missing named.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory with what was gathered.
#[derive(Debug)]
pub struct Evidence {
    /// Where it is.
    pub dir: PathBuf,
    /// What could not be gathered, and why.
    pub missing: Vec<String>,
}

/// What a cluster that did not come up leaves in its directory: what its parts said, and who asked for what.
///
/// # Errors
/// When there is no place for it.
pub fn of_what_is_left(cluster: &Path) -> Result<Evidence> {
    let mut evidence = Evidence::begin(cluster)?;
    for what in ["logs", "audit.log"] {
        // A part that was never begun has said nothing.
        if cluster.join(what).exists() {
            evidence.take(&cluster.join(what), what);
        }
    }
    Ok(evidence)
}

impl Evidence {
    /// Nothing yet, in a cluster's directory.
    ///
    /// # Errors
    /// When a directory cannot be made there.
    pub fn begin(cluster: &Path) -> Result<Self> {
        let dir = cluster.join("evidence");
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { dir, missing: Vec::new() })
    }

    /// Copies a file, or a directory with all that is in it.
    pub fn take(&mut self, from: &Path, name: &str) {
        let copied = copy(from, &self.dir.join(name));
        self.note(name, copied);
    }

    /// Writes a text.
    pub fn write(&mut self, name: &str, text: &str) {
        let written = std::fs::write(self.dir.join(name), text).context("write it");
        self.note(name, written);
    }

    fn note(&mut self, name: &str, outcome: Result<()>) {
        if let Err(why) = outcome {
            self.missing.push(format!("{name}: {why:#}"));
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp").arg("-r").arg(from).arg(to).output().context("start cp")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "copy {}: {}", from.display(), said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), file).unwrap();
        }
        dir
    }

    #[test]
    fn what_is_not_there_does_not_cost_the_rest() {
        let dir = cluster(&["logs/etcd", "audit.log"]);
        let mut evidence = Evidence::begin(dir.path()).unwrap();
        for what in ["captures", "logs", "audit.log"] {
            evidence.take(&dir.path().join(what), what);
        }
        evidence.write("no/such/directory", "");
        evidence.write("pods", "none");
        assert_eq!(std::fs::read_to_string(evidence.dir.join("logs/etcd")).unwrap(), "logs/etcd");
        assert_eq!(std::fs::read_to_string(evidence.dir.join("pods")).unwrap(), "none");
        let [captures, directory] = evidence.missing.as_slice() else { panic!("{:?}", evidence.missing) };
        assert!(captures.starts_with("captures: copy ") && captures.contains("No such file"), "{captures}");
        assert!(directory.starts_with("no/such/directory: write it"), "{directory}");
    }

    #[test]
    fn a_cluster_that_did_not_come_up_leaves_its_logs() {
        let dir = cluster(&["logs/etcd"]);
        let evidence = of_what_is_left(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(evidence.dir.join("logs/etcd")).unwrap(), "logs/etcd");
        assert!(evidence.missing.is_empty());
        let nothing = tempfile::tempdir().unwrap();
        assert!(of_what_is_left(&nothing.path().join("never made")).unwrap().missing.is_empty());
    }
}
