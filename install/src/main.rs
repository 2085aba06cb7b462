//! `sluice-install`: the plugin on the node, our entry in the primary CNI's chain, kept there, and taken off again.
//!
//! It is a container of its own in the agent's pod: the node's directories without a privilege, while the agent has
//! privileges without the directories. It needs no network, no API server and no other program.
//!
//! | file | what it does |
//! |---|---|
//! | `run` | `run`, `once`, `remove`: the lock, the loop, the signal |
//! | `keeper` | one look, and what follows from it |
//! | `directory`, `binary`, `notes` | the three things that are written |
//! | `write`, `exchange` | whole files or none, and nobody's newer version lost |
//! | `disk` | the seam to the file system |
//! | `remove`, `status`, `render` | the other commands |
//! | `agent`, `watch`, `options` | the agent's socket; inotify and signals; the command line |
//! | `output` | log and answers, whoever reads them |
//!
//! What is decided is in `shared::conflist`. May import: `shared`.

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic where nobody reads: see `output`")]

mod agent;
mod binary;
mod directory;
mod disk;
mod exchange;
mod keeper;
mod notes;
mod options;
mod output;
mod remove;
mod render;
mod run;
mod status;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Chains the Sluice CNI plugin behind a node's primary CNI.
#[derive(Parser)]
#[command(name = "sluice-install", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Install, watch and repair, until a signal; what SIGTERM does is up to --on-term
    Run(run::Run),
    /// Install, and end; nothing watches afterwards
    Once(run::Once),
    /// Take everything off this node: the entry first, the plugin when nobody needs it
    Remove(run::Remove),
    /// Say what is on this node, and who fights it; fails when our entry is not in the chain
    Status(status::Status),
    /// Print a network configuration list with our entry in it, or without it; writes no file
    Render(render::Render),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().what {
        What::Run(run) => run.run()?,
        What::Once(once) => once.run()?,
        What::Remove(remove) => remove.run()?,
        What::Status(status) => return status.run(),
        What::Render(render) => render.run()?,
    }
    Ok(ExitCode::SUCCESS)
}
