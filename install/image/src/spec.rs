//! What an image is made of.

use anyhow::{Context, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The version of the product, which is the workspace's: Cargo.toml has it, and nobody else.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One image, as its YAML file says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// References under which it is found, each with registry and tag: `docker.io/sluice/sluice:dev`. `{version}` in one
    /// is [`VERSION`].
    pub names: Vec<String>,
    /// Its title, for people.
    pub title: String,
    /// What it is for, in a sentence.
    pub description: String,
    /// `user:group`, as numbers: there is no /etc/passwd.
    pub user: String,
    /// The program that is started, with its first arguments.
    pub entrypoint: Vec<String>,
    /// Path in the image → name of the binary. Nothing else is in it.
    pub files: BTreeMap<String, String>,
    /// How many bytes the archive may have: about what a node has to pull.
    pub limit_bytes: u64,
    /// The Cargo packages that the binaries are built from: what the SBOM is about. None for test images.
    #[serde(default)]
    pub packages: Vec<String>,
}

impl Spec {
    /// Reads and checks one.
    ///
    /// # Errors
    /// When it cannot be read, is no such YAML, or makes no sense.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// As [`Spec::read`], from its text.
    ///
    /// # Errors
    /// When it is no such YAML, or makes no sense.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut spec: Self = serde_norway::from_str(text)?;
        for name in &mut spec.names {
            *name = name.replace("{version}", VERSION);
        }
        ensure!(!spec.names.is_empty(), "names: an image without a name cannot be used");
        for name in &spec.names {
            ensure!(is_full_reference(name), "names: {name} is not REGISTRY/PATH:TAG");
        }
        ensure!(is_numeric_user(&spec.user), "user: {} is not UID:GID in numbers", spec.user);
        for path in spec.files.keys() {
            ensure!(is_plain_path(path), "files: {path} is not a plain absolute path");
        }
        let program = spec.entrypoint.first().context("entrypoint: nothing is started")?;
        ensure!(spec.files.contains_key(program), "entrypoint: {program} is not among the files");
        Ok(spec)
    }
}

/// A runtime completes a reference that has no registry or no tag, and then looks for another name than ours.
fn is_full_reference(name: &str) -> bool {
    let Some((registry, rest)) = name.split_once('/') else { return false };
    let Some((path, tag)) = rest.rsplit_once(':') else { return false };
    let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-".contains(c);
    registry.contains('.')
        && !path.is_empty()
        && path.chars().all(safe)
        && !tag.is_empty()
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_numeric_user(user: &str) -> bool {
    user.split_once(':').is_some_and(|(uid, gid)| uid.parse::<u32>().is_ok() && gid.parse::<u32>().is_ok())
}

fn is_plain_path(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| {
        rest.len() < 100 && rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
names: [docker.io/sluice/app:dev]
title: app
description: An app.
user: 65532:65532
entrypoint: [/usr/local/bin/app, serve]
files:
  /usr/local/bin/app: app
limitBytes: 1000
";

    fn error(from: &str, to: &str) -> String {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD, "{from} is not in the text");
        Spec::parse(&text).unwrap_err().to_string()
    }

    #[test]
    fn takes_a_whole_one() {
        let spec = Spec::parse(GOOD).unwrap();
        assert_eq!(spec.entrypoint, ["/usr/local/bin/app", "serve"]);
        assert!(spec.packages.is_empty());
    }

    #[test]
    fn the_version_comes_from_the_workspace() {
        let text = GOOD.replace("docker.io/sluice/app:dev", "\"docker.io/sluice/app:{version}\"");
        assert_eq!(Spec::parse(&text).unwrap().names, [format!("docker.io/sluice/app:{VERSION}")]);
        assert!(error("docker.io/sluice/app:dev", "\"docker.io/sluice/app:{versoin}\"").contains("REGISTRY"));
    }

    #[test]
    fn refuses_what_a_runtime_would_misread() {
        assert!(error("docker.io/sluice/app:dev", "sluice/app:dev").contains("REGISTRY/PATH:TAG"));
        assert!(error("docker.io/sluice/app:dev", "docker.io/sluice/app").contains("REGISTRY/PATH:TAG"));
        assert!(error("65532:65532", "nobody:nobody").contains("UID:GID"));
        assert!(error("[/usr/local/bin/app, serve]", "[/bin/sh]").contains("not among the files"));
        assert!(error("/usr/local/bin/app: app", "/usr/../bin/app: app").contains("plain absolute path"));
        assert!(error("title: app", "titel: app").contains("titel"));
    }
}
