//! What an image's binaries are built from, as a CycloneDX 1.6 document: the crates that Cargo links into them, with
//! versions, licences and the checksums of Cargo.lock, and who depends on whom. Build tools are not in it.

use crate::oci::{Image, timestamp};
use crate::program::Architecture;
use crate::spec::Spec;
use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where crates come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What Cargo says: who is linked, what it is, and who asked for it.
pub struct Linked {
    packages: BTreeMap<String, Package>,
    /// Package → what it depends on, by id.
    edges: BTreeMap<String, BTreeSet<String>>,
    /// The compiler, whose standard library (and with musl its C library) is linked too.
    rustc: String,
    target: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_root: String,
}

#[derive(Clone, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    #[serde(skip)]
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

impl Linked {
    /// Asks Cargo what is linked into the binaries of `packages` for `target`, with the features that it builds them with.
    ///
    /// # Errors
    /// When Cargo fails, or Cargo.lock is not up to date.
    pub fn ask(packages: &[String], target: &str) -> anyhow::Result<Self> {
        let mut tree = vec!["tree", "--locked", "--target", target, "--prefix", "none", "--format", "{p}"];
        // Not build scripts, not tests; procedural macros run in the compiler.
        tree.extend(["--edges", "normal,no-proc-macro"]);
        tree.extend(packages.iter().flat_map(|package| ["--package", package]));
        let tree = cargo(&tree)?;
        let metadata =
            cargo(&["metadata", "--locked", "--format-version", "1", "--filter-platform", target])?;
        let metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
        let rustc = run(Command::new("rustc").arg("--version"))?;
        Self::join(&tree, metadata, &rustc, target)
    }

    /// `tree` says who is linked: with `metadata` alone, features that only other packages of the workspace ask for would
    /// bring in crates that are not.
    fn join(tree: &str, metadata: Metadata, rustc: &str, target: &str) -> anyhow::Result<Self> {
        let linked: BTreeSet<(&str, &str)> = tree.lines().filter_map(name_and_version).collect();
        let lock = Path::new(&metadata.workspace_root).join("Cargo.lock");
        let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
        let checksums = checksums(&lock);
        let known = metadata.packages.into_iter().map(|mut package| {
            let key = (package.name.clone(), package.version.clone());
            package.checksum = checksums.get(&key).cloned();
            (package.id.clone(), package)
        });
        let packages: BTreeMap<_, _> = known
            .filter(|(_, package)| linked.contains(&(package.name.as_str(), package.version.as_str())))
            .collect();
        ensure!(
            packages.len() == linked.len(),
            "cargo tree names {} packages, of which cargo metadata knows {}",
            linked.len(),
            packages.len()
        );
        let nodes = metadata.resolve.nodes.into_iter().filter(|node| packages.contains_key(&node.id));
        let edges = nodes.map(|node| (node.id.clone(), linked_dependencies(node, &packages))).collect();
        let rustc = rustc.split_whitespace().nth(1).context("rustc --version says no version")?;
        Ok(Self { packages, edges, rustc: rustc.to_owned(), target: target.to_owned() })
    }

    /// The document about `image`.
    #[must_use]
    pub fn document(&self, spec: &Spec, image: &Image, architecture: Architecture, epoch: u64) -> Value {
        let std = format!("pkg:generic/rust-std@{}", self.rustc);
        let ours = self.packages.values().filter(|package| spec.packages.contains(&package.name));
        let mut dependencies = vec![json!({
            "ref": "image",
            "dependsOn": ours.map(Package::url).collect::<BTreeSet<_>>(),
        })];
        for (id, package) in &self.packages {
            let on = self.edges.get(id).into_iter().flatten().filter_map(|id| self.packages.get(id));
            let on: BTreeSet<_> = on.map(Package::url).chain([std.clone()]).collect();
            dependencies.push(json!({"ref": package.url(), "dependsOn": on}));
        }
        let mut components: Vec<_> = self.packages.values().map(Package::component).collect();
        components.push(json!({
            "type": "library", "bom-ref": std, "name": "rust-std", "version": self.rustc, "purl": std,
            "description": format!("Rust's standard library, with the C library of {}", self.target),
            "licenses": [{"expression": "MIT OR Apache-2.0"}],
        }));
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "timestamp": timestamp(epoch),
                "tools": {"components": [
                    {"type": "application", "name": "sluice-image", "version": env!("CARGO_PKG_VERSION")},
                ]},
                "component": {
                    "type": "container", "bom-ref": "image", "name": spec.title,
                    "version": env!("CARGO_PKG_VERSION"), "description": spec.description,
                    "purl": format!("pkg:oci/{}@{}?arch={}", base_name(spec), image.digest, architecture.name()),
                },
            },
            "components": components,
            "dependencies": dependencies,
        })
    }
}

impl Package {
    /// Its package URL.
    fn url(&self) -> String {
        // A `+` in a version would be read as a space.
        let version = self.version.replace('+', "%2B");
        format!("pkg:cargo/{}@{version}", self.name)
    }

    fn component(&self) -> Value {
        let kind = if self.source.is_some() { "library" } else { "application" };
        let mut out = json!({
            "type": kind, "bom-ref": self.url(), "name": self.name, "version": self.version, "purl": self.url(),
        });
        if let Some(license) = &self.license {
            // Old crates separate alternatives with a slash, which SPDX does not know.
            let alternatives: Vec<_> = license.split('/').map(str::trim).collect();
            out["licenses"] = json!([{"expression": alternatives.join(" OR ")}]);
        }
        if let Some(checksum) = &self.checksum {
            out["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        if self.source.as_deref().is_some_and(|source| source != CRATES_IO) {
            out["externalReferences"] = json!([{"type": "distribution", "url": self.source}]);
        }
        out
    }
}

fn linked_dependencies(node: Node, packages: &BTreeMap<String, Package>) -> BTreeSet<String> {
    let normal = |dependency: &Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
    node.deps
        .into_iter()
        .filter(|dependency| normal(dependency) && packages.contains_key(&dependency.pkg))
        .map(|dependency| dependency.pkg)
        .collect()
}

/// `serde v1.0.0 (*)` → `serde`, `1.0.0`.
fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

/// Name and version → SHA-256 of the crate, of every package in a Cargo.lock that has one.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, key: &str| {
        let value = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(value.trim_matches('"').to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|block| {
            Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?))
        })
        .collect()
}

/// `docker.io/sluice/app:dev` → `app`
fn base_name(spec: &Spec) -> &str {
    let name = spec.names.first().map_or("", String::as_str);
    let name = name.rsplit('/').next().unwrap_or_default();
    name.split(':').next().unwrap_or_default()
}

fn cargo(arguments: &[&str]) -> anyhow::Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).args(arguments))
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let said = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {said}"))?;
    ensure!(output.status.success(), "{said}: {}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).with_context(|| format!("{said} does not print UTF-8"))
}

#[cfg(test)]
mod tests;
