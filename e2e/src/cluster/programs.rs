//! The upstream programs that `make cluster-bin` builds.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Says where they are, when they are not in `target/cluster/bin`.
const VARIABLE: &str = "SLUICE_CLUSTER_BIN";
/// Debian's runc is the one that filters system calls; it is not built here.
const RUNC_DIRS: [&str; 5] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin"];

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
    runc: PathBuf,
}

impl Programs {
    /// Finds them.
    ///
    /// # Errors
    /// What is missing, and what makes it.
    pub fn find() -> Result<Self> {
        let dir = match std::env::var_os(VARIABLE) {
            Some(dir) => PathBuf::from(dir),
            None => target_dir()?.join("cluster/bin"),
        };
        for program in ["kube", "containerd", "containerd-shim-runc-v2", "ctr", "cni/loopback"] {
            if !dir.join(program).is_file() {
                bail!("{} is not there: `make cluster-bin` builds it", dir.join(program).display());
            }
        }
        let runc = RUNC_DIRS.iter().map(|dir| Path::new(dir).join("runc")).find(|path| path.is_file());
        let runc = runc.context("runc is not installed: `make setup` installs it")?;
        Ok(Self { dir, runc })
    }

    /// Their directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of them.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory of the CNI plugins.
    #[must_use]
    pub fn cni(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// runc.
    #[must_use]
    pub fn runc(&self) -> &Path {
        &self.runc
    }
}

/// The build directory that the running program is in.
///
/// # Errors
/// When it is in none.
pub fn target_dir() -> Result<PathBuf> {
    let this = std::env::current_exe().context("which program is this?")?;
    let target = this.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "target"));
    target
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is in no directory called target", this.display()))
}
