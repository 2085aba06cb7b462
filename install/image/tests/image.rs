//! The command, on small programs: what it writes is a layout that others read, and the same each time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use serde_json::Value;
use sha2::{Digest, Sha256};
use sluice_image::spec::VERSION;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SPEC: &str = "
names: [docker.io/sluice/one:dev, docker.io/sluice/two:v1]
title: test
description: For a test.
user: 65532:65532
entrypoint: [/usr/local/bin/first, serve]
files:
  /usr/local/bin/second: second
  /usr/local/bin/first: first
limitBytes: 20000
";

struct Workshop(tempfile::TempDir);

impl Workshop {
    fn new(spec: &str) -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        workshop.write("image.yaml", spec.as_bytes());
        workshop.write("bin/first", &elf(b"first"));
        workshop.write("bin/second", &elf(b"second"));
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn run(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sluice-image"))
            .args(["--target", "x86_64-unknown-linux-musl", "--binaries"])
            .arg(self.path("bin"))
            .arg("--out")
            .arg(self.path("out"))
            .args(more)
            .arg(self.path("image.yaml"))
            .env_remove("SOURCE_DATE_EPOCH")
            .output()
            .unwrap()
    }

    fn make(&self, more: &[&str]) -> Vec<u8> {
        let output = self.run(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(self.path("out/image.tar")).unwrap()
    }

    fn refusal(&self) -> String {
        let output = self.run(&[]);
        assert!(!output.status.success(), "it was taken");
        assert!(!self.path("out/image.tar").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// A static x86-64 program without program headers, as far as anybody looks.
fn elf(what: &[u8]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(64, 0);
    out[18] = 62;
    out.extend(what);
    out
}

fn unpack(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    });
    entries.collect()
}

/// Follows a descriptor, and checks what it says.
fn follow<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let bytes = &files[&format!("blobs/sha256/{digest}")];
    assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
    assert_eq!(hex(bytes), digest);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn every_digest_leads_to_what_it_names() {
    let workshop = Workshop::new(SPEC);
    let files = unpack(&workshop.make(&["--label", "org.opencontainers.image.revision=abc"]));
    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let index = json(&files["index.json"]);
    let names: Vec<_> = index["manifests"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 2);
    for (descriptor, name) in names.iter().zip(["docker.io/sluice/one:dev", "docker.io/sluice/two:v1"]) {
        assert_eq!(descriptor["annotations"]["io.containerd.image.name"], name);
        assert_eq!(descriptor["annotations"]["org.opencontainers.image.ref.name"], name);
        assert_eq!(descriptor["platform"]["architecture"], "amd64");
        assert_eq!(descriptor["digest"], names[0]["digest"]);
    }
    let manifest = json(follow(&files, names[0]));
    assert_eq!(manifest["annotations"]["org.opencontainers.image.revision"], "abc");
    let config = json(follow(&files, &manifest["config"]));
    assert_eq!(config["os"], "linux");
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/local/bin/first");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.title"], "test");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let mut layer = Vec::new();
    let mut packed = flate2::read::GzDecoder::new(follow(&files, &manifest["layers"][0]));
    packed.read_to_end(&mut layer).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&layer)));
    let inside = unpack(&layer);
    assert_eq!(inside["usr/local/bin/first"], elf(b"first"));
    assert_eq!(inside["usr/local/bin/second"], elf(b"second"));
    // Layout, index, manifest, config, layer, and nothing that nobody leads to.
    assert_eq!(files.len(), 5);
}

#[test]
fn equal_input_gives_equal_bytes_and_no_new_file() {
    let (one, other) = (Workshop::new(SPEC), Workshop::new(SPEC));
    let first = one.make(&[]);
    assert_eq!(first, other.make(&[]));
    let written =
        |workshop: &Workshop| fs::metadata(workshop.path("out/image.tar")).unwrap().modified().unwrap();
    let before = written(&one);
    assert_eq!(one.make(&[]), first);
    assert_eq!(written(&one), before);
    assert_ne!(one.make(&["--epoch", "1000000000"]), first);
    one.write("bin/second", &elf(b"another"));
    assert_ne!(one.make(&[]), first);
}

#[test]
fn what_would_not_run_is_refused_by_name() {
    let workshop = Workshop::new(SPEC);
    fs::remove_file(workshop.path("bin/second")).unwrap();
    assert!(workshop.refusal().contains("there is no second"));
    workshop.write("bin/second", b"#!/bin/sh\n");
    assert!(workshop.refusal().contains("no 64-bit"));
}

#[test]
fn an_image_above_its_limit_is_refused() {
    let workshop = Workshop::new(SPEC);
    // Noise, which is no smaller when it is compressed.
    let noise = (0..1000_u16).flat_map(|number| Sha256::digest(number.to_le_bytes())).collect::<Vec<u8>>();
    workshop.write("bin/second", &elf(&noise));
    assert!(workshop.refusal().contains("its limit is 20000"));
}

#[test]
fn the_real_specs_are_taken() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let product = sluice_image::spec::Spec::read(&here.join("sluice.yaml")).unwrap();
    assert!(product.limit_bytes <= 15_000_000);
    let mut names = product.names;
    for file in fs::read_dir(here.join("../../e2e/cluster/images")).unwrap() {
        names.extend(sluice_image::spec::Spec::read(&file.unwrap().path()).unwrap().names);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "docker.io/sluice/app:dev",
            format!("docker.io/sluice/sluice:{VERSION}").as_str(),
            "docker.io/sluice/sluice:dev",
            "docker.io/sluice/ztunnel-standin:dev",
            "registry.k8s.io/pause:3.10",
        ]
    );
}
