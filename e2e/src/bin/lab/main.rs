//! `sluice-lab`: shows what Sluice does, on this machine, in a private world. See `sluice_e2e::lab`.

mod ask;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Nodes, pods and an outside host as network namespaces, with real CNI plugins and the real agent.
#[derive(Parser)]
#[command(name = "sluice-lab", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Become PROGRAM in a cgroup (used by the lab itself)
    #[command(hide = true)]
    RunIn {
        /// The cgroup's directory
        #[arg(long)]
        cgroup: PathBuf,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Say one line to an echo server and stay connected until stdin ends (used by the lab itself)
    #[command(hide = true)]
    Ask(ask::Arguments),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().what {
        What::RunIn { cgroup, program } => run_in(&cgroup, &program),
        What::Ask(arguments) => ask::run(&arguments),
    }
}

fn run_in(cgroup: &std::path::Path, program: &[OsString]) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    sluice_e2e::lab::cgroup::Cgroup::join(cgroup)?;
    let (program, args) = program.split_first().unwrap_or_else(|| unreachable!("clap wants one"));
    let failure = Command::new(program).args(args).exec();
    anyhow::bail!("start {}: {failure}", program.to_string_lossy())
}
