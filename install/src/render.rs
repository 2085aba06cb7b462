//! `render`: a list with our entry in it, or without it, for the eye and for other tools.

use crate::options::EntryOptions;
use crate::output::answer;
use anyhow::Context;
use clap::Args;
use sluice_shared::conflist::{self, MAX_CONFLIST};
use std::fs::File;
use std::io::{Read, stdin};
use std::path::{Path, PathBuf};

#[derive(Args, Clone, Debug)]
pub struct Render {
    /// The list (*.conflist), or - for stdin
    #[arg(long, value_name = "FILE")]
    conflist: PathBuf,
    /// Take our entry out instead of putting it in
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    entry: EntryOptions,
}

impl Render {
    /// Prints it.
    pub fn run(&self) -> anyhow::Result<()> {
        let text = read(&self.conflist)?;
        let edited = match self.remove {
            true => conflist::remove(&text),
            false => conflist::insert(&text, &self.entry.entry()),
        };
        let edited = edited.with_context(|| format!("cannot edit {}", self.conflist.display()))?;
        answer(edited.as_bytes())
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let source: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(stdin()),
        _ => Box::new(File::open(path).with_context(cannot)?),
    };
    let mut text = String::new();
    // One byte more than is taken, so that the limit is seen.
    source.take(MAX_CONFLIST as u64 + 1).read_to_string(&mut text).with_context(cannot)?;
    Ok(text)
}
