//! `sluice-image`: static binaries in, OCI archives out.
//!
//! Input: image specs (YAML) and directories with binaries. Output: `<spec's name>.tar` for each, and for those that are
//! shipped `<spec's name>.cdx.json`, what they are built from. Imports nothing of ours.

use anyhow::{Context, ensure};
use clap::Parser;
use sluice_image::oci::Image;
use sluice_image::program::{self, Architecture, Private};
use sluice_image::sbom::Linked;
use sluice_image::spec::Spec;
use sluice_image::{archive, layer};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Writes container images of static binaries as OCI archives.
#[derive(Parser)]
#[command(name = "sluice-image", version)]
struct Arguments {
    /// What the images are made of
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<PathBuf>,
    /// Where the binaries are; the first directory that has one gives it
    #[arg(long, required = true, value_name = "DIR")]
    binaries: Vec<PathBuf>,
    /// Where the archives go
    #[arg(long, default_value = "target/images", value_name = "DIR")]
    out: PathBuf,
    /// What the binaries were built for, as Cargo names it
    #[arg(long, value_name = "TRIPLE")]
    target: String,
    /// A directory of this machine that no program may name: it would have other bytes elsewhere; may be given more than
    /// once
    #[arg(long, value_name = "DIR")]
    private: Vec<Private>,
    /// One more label; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// When everything in the images was made, in seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0, value_name = "SECONDS")]
    epoch: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
    for path in &arguments.specs {
        make(path, &arguments).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn make(path: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let (architecture, epoch) = (Architecture::of(&arguments.target)?, arguments.epoch);
    let spec = Spec::read(path)?;
    let read = |(inside, binary): (&String, &String)| {
        Ok((inside.clone(), program::read(binary, &arguments.binaries, architecture, &arguments.private)?))
    };
    let programs = spec.files.iter().map(read).collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let labels = arguments.label.iter().cloned().collect();
    let files = layer::pack(&programs, epoch)?;
    let image = Image::new(&spec, architecture, &files, &labels, epoch)?;
    let bytes = archive::pack(&image, epoch)?;
    ensure!(
        bytes.len() as u64 <= spec.limit_bytes,
        "the archive has {} bytes, and its limit is {}",
        bytes.len(),
        spec.limit_bytes
    );

    let name = path.file_stem().context("it has no name")?;
    let out = arguments.out.join(name).with_extension("tar");
    let fresh = if archive::write_if_changed(&out, &bytes)? { "" } else { ", unchanged" };
    if !spec.packages.is_empty() {
        let linked = Linked::ask(&spec.packages, &arguments.target)?;
        let document = linked.document(&spec, &image, architecture, epoch);
        let document = format!("{document:#}\n");
        archive::write_if_changed(&out.with_extension("cdx.json"), document.as_bytes())?;
    }
    println!(
        "images: {}: {}, {} bytes (limit {}), {} unpacked, {}{fresh}",
        out.display(),
        spec.names.join(", "),
        bytes.len(),
        spec.limit_bytes,
        files.len(),
        image.digest
    );
    Ok(())
}

fn label(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').context("it is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
