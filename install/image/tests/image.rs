//! The command, on small programs: what it writes is a layout that others read, and the same each time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use serde_json::Value;
use sha2::{Digest, Sha256};
use sluice_image::spec::VERSION;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

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

/// One that is shipped, with an SBOM.
const SPEC_OF_A_PRODUCT: &str = "
names: [docker.io/sluice/one:dev]
title: test
description: For a test.
user: 65532:65532
entrypoint: [/usr/local/bin/first]
files:
  /usr/local/bin/second: second
  /usr/local/bin/first: first
limitBytes: 20000
packages: [sluice-image]
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

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-image"));
        command
            .args(["--target", "x86_64-unknown-linux-musl", "--binaries"])
            .arg(self.path("bin"))
            .arg("--out")
            .arg(self.path("out"))
            .args(more)
            .arg(self.path("image.yaml"))
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn make(&self, more: &[&str]) -> Vec<u8> {
        let output = self.run(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(self.path("out/image.tar")).unwrap()
    }

    fn refusal(&self, more: &[&str]) -> String {
        let output = self.run(more);
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

/// What a file system says of the binaries beside their bytes, where they are, and what the command is run with.
#[test]
fn nothing_but_the_bytes_of_the_programs_counts() {
    let (one, other) = (Workshop::new(SPEC_OF_A_PRODUCT), Workshop::new(SPEC_OF_A_PRODUCT));
    let second = other.path("bin/second");
    fs::set_permissions(&second, fs::Permissions::from_mode(0o400)).unwrap();
    let file = fs::File::options().append(true).open(other.path("bin/first")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)).unwrap();
    fs::create_dir(other.path("elsewhere")).unwrap();
    fs::rename(second, other.path("elsewhere/second")).unwrap();
    let elsewhere = other.path("elsewhere").display().to_string();
    let first = one.make(&[]);
    let mut command = other.command(&["--binaries", &elsewhere]);
    let output =
        command.env("TZ", "Pacific/Auckland").env("LC_ALL", "tr_TR.UTF-8").env("USER", "x").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(first, fs::read(other.path("out/image.tar")).unwrap());
    let sbom = fs::read_to_string(one.path("out/image.cdx.json")).unwrap();
    assert_eq!(sbom, fs::read_to_string(other.path("out/image.cdx.json")).unwrap());
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    assert!(!sbom.contains(&format!("{}/", sources.display())), "it names where it was made");
}

#[test]
fn a_program_that_names_the_builders_paths_is_refused() {
    let workshop = Workshop::new(SPEC);
    workshop.write("bin/second", &elf(b"panicked at /home/builder/sluice/src/main.rs\0"));
    workshop.make(&["--private", "/home/other"]);
    fs::remove_file(workshop.path("out/image.tar")).unwrap();
    let refusal = workshop.refusal(&["--private", "/home/other", "--private", "/home/builder"]);
    assert!(refusal.contains("second") && refusal.contains("/home/builder/sluice/src/main.rs"), "{refusal}");
}

#[test]
fn what_would_not_run_is_refused_by_name() {
    let workshop = Workshop::new(SPEC);
    fs::remove_file(workshop.path("bin/second")).unwrap();
    assert!(workshop.refusal(&[]).contains("there is no second"));
    workshop.write("bin/second", b"#!/bin/sh\n");
    assert!(workshop.refusal(&[]).contains("no 64-bit"));
}

#[test]
fn an_image_above_its_limit_is_refused() {
    let workshop = Workshop::new(SPEC);
    // Noise, which is no smaller when it is compressed.
    let noise = (0..1000_u16).flat_map(|number| Sha256::digest(number.to_le_bytes())).collect::<Vec<u8>>();
    workshop.write("bin/second", &elf(&noise));
    assert!(workshop.refusal(&[]).contains("its limit is 20000"));
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
            "docker.io/sluice/sluice:next",
            "docker.io/sluice/ztunnel-standin:dev",
            "registry.k8s.io/pause:3.10",
        ]
    );
}

/// CI has no container engine; that both ways to an image name the same things can be seen without one.
#[test]
fn the_containerfile_has_the_same_programs() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let spec = sluice_image::spec::Spec::read(&here.join("sluice.yaml")).unwrap();
    let text = fs::read_to_string(here.join("Containerfile")).unwrap();
    let built = text.split_whitespace().filter_map(|word| word.strip_prefix("target/")?.rsplit('/').next());
    assert_eq!(built.collect::<BTreeSet<_>>(), spec.files.values().map(String::as_str).collect());
    for (path, program) in &spec.files {
        assert_eq!(
            path,
            &format!("/usr/local/bin/{program}"),
            "where the Containerfile copies all of them to"
        );
    }
    let entrypoint = format!("ENTRYPOINT {:?}", spec.entrypoint);
    let user = format!("USER {}", spec.user);
    let title = format!("image.title={:?}", spec.title);
    let description = format!("image.description={:?}", spec.description);
    for line in ["--chown=0:0 --chmod=0755 /out/ /usr/local/bin/", &entrypoint, &user, &title, &description] {
        assert!(text.contains(line), "the Containerfile has no {line}");
    }
    for package in &spec.packages {
        let asked = text.split_whitespace().collect::<Vec<_>>().windows(2).any(|two| two == ["-p", package]);
        assert!(asked, "the Containerfile does not build {package}");
    }
}
