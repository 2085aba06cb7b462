//! A binary that may go into an image from scratch: an ELF program for the right machine that needs no loader.

use anyhow::{Context, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What an image's programs run on, as OCI (and Go) names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

/// ELF's `PT_INTERP` (elf(5)): the program asks for a dynamic loader.
const PT_INTERP: u32 = 3;

impl Architecture {
    /// As it stands in an image's config.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Of a target triple.
    ///
    /// # Errors
    /// When it is none that images are made for.
    pub fn of(target: &str) -> anyhow::Result<Self> {
        match target.split_once('-') {
            Some(("x86_64", _)) => Ok(Self::Amd64),
            Some(("aarch64", _)) => Ok(Self::Arm64),
            _ => bail!("no images are made for {target}"),
        }
    }

    /// ELF's `e_machine`.
    const fn machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }
}

/// A directory of the machine that builds. A program that names what is in it, in a panic's message or in what its
/// sources take from `env!`, has other bytes where it is built elsewhere.
#[derive(Clone, Debug)]
pub struct Private(String);

impl FromStr for Private {
    type Err = anyhow::Error;

    fn from_str(directory: &str) -> anyhow::Result<Self> {
        let rest = directory.strip_prefix('/').context("it is not absolute")?;
        Ok(Self(format!("/{}/", rest.trim_end_matches('/'))))
    }
}

impl Private {
    /// Whether the name is unlike any other: `/src/` is in `/sluice/shared/src/` as well.
    fn is_distinct(&self) -> bool {
        self.0.matches('/').count() > 2
    }

    /// What `bytes` name of what is in the directory, as far as it can be read.
    fn named_by(&self, bytes: &[u8]) -> Option<String> {
        let slashes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let found =
            slashes.filter_map(|(at, _)| bytes.get(at..)).find(|rest| rest.starts_with(self.0.as_bytes()))?;
        let path = found.iter().take(200).take_while(|byte| byte.is_ascii_graphic());
        Some(path.map(|byte| char::from(*byte)).collect())
    }
}

/// Finds `name` in the first of `directories` that has it, and reads it.
///
/// # Errors
/// When none has it, it would not run in an image from scratch on `architecture`, or it names something in one of
/// `private`.
pub fn read(
    name: &str,
    directories: &[PathBuf],
    architecture: Architecture,
    private: &[Private],
) -> anyhow::Result<Vec<u8>> {
    let found = directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    let path = found.with_context(|| {
        let looked: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        format!("there is no {name} in {}: build it first", looked.join(", "))
    })?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    check(&bytes, architecture).with_context(|| refusal(&path))?;
    let named =
        private.iter().filter(|directory| directory.is_distinct()).find_map(|one| one.named_by(&bytes));
    if let Some(named) = named {
        bail!(
            "{} names a path of the machine that built it, so it is another program on each: {named}",
            path.display()
        );
    }
    Ok(bytes)
}

fn refusal(path: &Path) -> String {
    format!("{} cannot go into an image from scratch", path.display())
}

/// Checks the ELF header and the program headers (elf(5), 64 bit, little endian).
fn check(bytes: &[u8], architecture: Architecture) -> anyhow::Result<()> {
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "it is no 64-bit little-endian ELF program");
    let machine = u16::from_le_bytes(field(bytes, 18)?);
    ensure!(
        machine == architecture.machine(),
        "it is for ELF machine {machine}, and {} is {}",
        architecture.name(),
        architecture.machine()
    );
    let table = u64::from_le_bytes(field(bytes, 32)?);
    let size = u16::from_le_bytes(field(bytes, 54)?);
    let count = u16::from_le_bytes(field(bytes, 56)?);
    for header in 0..u64::from(count) {
        let at = table.checked_add(header * u64::from(size)).and_then(|at| usize::try_from(at).ok());
        let kind = u32::from_le_bytes(field(bytes, at.context("its program headers are nowhere")?)?);
        if kind == PT_INTERP {
            bail!("it is linked dynamically: no loader is in the image");
        }
    }
    Ok(())
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    let end = at.checked_add(N).context("its header is cut off")?;
    let field = bytes.get(at..end).context("its header is cut off")?;
    Ok(field.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with these program headers.
    fn elf(machine: u16, kinds: &[u32]) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(64, 0);
        out[18..20].copy_from_slice(&machine.to_le_bytes());
        out[32..40].copy_from_slice(&64_u64.to_le_bytes());
        out[54..56].copy_from_slice(&56_u16.to_le_bytes());
        out[56..58].copy_from_slice(&u16::try_from(kinds.len()).unwrap().to_le_bytes());
        for kind in kinds {
            out.extend(kind.to_le_bytes());
            out.resize(out.len() + 52, 0);
        }
        out
    }

    #[test]
    fn takes_a_static_program_of_its_machine() {
        check(&elf(62, &[6, 1, 1]), Architecture::Amd64).unwrap();
        check(&elf(183, &[1]), Architecture::Arm64).unwrap();
    }

    #[test]
    fn refuses_what_would_not_run() {
        let error = |bytes: &[u8], on| check(bytes, on).unwrap_err().to_string();
        assert!(error(&elf(62, &[6, PT_INTERP, 1]), Architecture::Amd64).contains("dynamically"));
        assert!(error(&elf(62, &[1]), Architecture::Arm64).contains("machine 62"));
        assert!(error(b"#!/bin/sh\n", Architecture::Amd64).contains("no 64-bit"));
        assert!(error(&elf(62, &[1, 1])[..100], Architecture::Amd64).contains("cut off"));
    }

    #[test]
    fn a_private_path_is_found_as_a_whole_directory() {
        let private = |directory: &str| directory.parse::<Private>().unwrap();
        let home = private("/home/builder");
        assert_eq!(
            home.named_by(b"\0no such pod/home/builder/src/main.rs\0/x").unwrap(),
            "/home/builder/src/main.rs"
        );
        assert!(home.named_by(b"/home/builders/x /sluice/src /home/builder").is_none());
        assert!(private("/home/builder/").named_by(b"/home/builder/x").is_some());
        assert!(home.is_distinct() && !private("/src").is_distinct() && !private("/").is_distinct());
        assert!("home".parse::<Private>().is_err());
    }

    #[test]
    fn the_test_itself_is_a_real_program() {
        let own = fs::read("/proc/self/exe").unwrap();
        let dynamic = check(&own, Architecture::Amd64).map_err(|error| error.to_string());
        // Tests are linked dynamically with glibc, and statically with musl.
        if cfg!(target_env = "gnu") && cfg!(target_arch = "x86_64") && !cfg!(target_feature = "crt-static") {
            assert!(dynamic.unwrap_err().contains("dynamically"));
        }
    }
}
