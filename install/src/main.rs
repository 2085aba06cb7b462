//! `sluice-install`: our entry in the primary CNI's list.
//!
//! `render` shows what a list looks like with our entry in it, or without it, and writes nothing: what an operator
//! reads before an installation, and what tools put into images and templates.
//!
//! Input: a list, on disk or stdin. Output: the edited list on stdout. May import: `shared`.

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use sluice_shared::cni::{ExemptPod, LogLevel};
use sluice_shared::conflist::{self, Entry, MAX_CONFLIST};
use std::fs::File;
use std::io::{Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};

/// Chains the Sluice CNI plugin behind a node's primary CNI.
#[derive(Parser)]
#[command(name = "sluice-install", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print a network configuration list with our entry in it, or without it; writes no file
    Render(Render),
}

#[derive(Args)]
struct Render {
    /// The list (*.conflist), or - for stdin
    #[arg(long, value_name = "FILE")]
    conflist: PathBuf,
    /// Take our entry out instead of putting it in
    #[arg(long, conflicts_with_all = ["agent_socket", "state_dir", "timeout_seconds", "log_level", "exempt_pods"])]
    remove: bool,
    /// The agent's socket, when it is not /run/sluice/agent.sock
    #[arg(long, value_name = "PATH")]
    agent_socket: Option<String>,
    /// Where membership.json is, when it is not /var/lib/sluice
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// How long ADD waits for the agent: 1 to 60 (10 when it is not given)
    #[arg(long, value_name = "SECONDS")]
    timeout_seconds: Option<u64>,
    /// How much the plugin logs: error, warn, info (when it is not given) or debug
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    log_level: Option<LogLevel>,
    /// Pods that start without asking the agent; may be given more than once
    #[arg(long = "exempt-pods", value_name = "NAMESPACE/NAME-PREFIX", value_parser = exempt_pods)]
    exempt_pods: Vec<ExemptPod>,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Render(render) => render.run(),
    }
}

impl Render {
    fn run(self) -> anyhow::Result<()> {
        let text = read(&self.conflist)?;
        let edited = if self.remove {
            conflist::remove(&text)
        } else {
            let entry = Entry {
                agent_socket: self.agent_socket,
                state_dir: self.state_dir,
                timeout_seconds: self.timeout_seconds,
                log_level: self.log_level,
                exempt_pods: self.exempt_pods,
            };
            conflist::insert(&text, &entry)
        };
        let edited = edited.with_context(|| format!("cannot edit {}", self.conflist.display()))?;
        stdout().write_all(edited.as_bytes()).context("cannot write to stdout")
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

fn log_level(text: &str) -> anyhow::Result<LogLevel> {
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];
    levels
        .into_iter()
        .find(|level| level.as_str() == text)
        .context("it is none of error, warn, info and debug")
}

fn exempt_pods(text: &str) -> anyhow::Result<ExemptPod> {
    match text.split_once('/') {
        Some((namespace, prefix)) if !namespace.is_empty() && !prefix.is_empty() => {
            Ok(ExemptPod { namespace: namespace.to_owned(), name_prefix: prefix.to_owned() })
        }
        _ => bail!("it is not NAMESPACE/NAME-PREFIX"),
    }
}
