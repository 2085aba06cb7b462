//! `sluice-lab`: shows what Sluice does, on this machine, in a private world. See `sluice_e2e::lab`.

mod ask;
mod demo;
mod shell;

use clap::{Parser, Subcommand};
use sluice_e2e::lab::{cgroup, outer, pretender, rude};
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
    /// Show what Sluice does, check by check, and write target/reports/demo.json
    Demo,
    /// Open a shell in a standing lab with pods, the agent and a ztunnel
    Shell {
        /// A program to run in the shell's place, and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
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
    /// Send one message to a SOCK_SEQPACKET socket and print the answer (used by the lab itself)
    #[command(hide = true)]
    Say {
        /// The socket
        #[arg(long)]
        socket: PathBuf,
        /// The message
        message: String,
    },
    /// Acknowledge whatever ztunnel is asked, and serve nobody (used by the lab itself)
    #[command(hide = true)]
    Pretend {
        /// The agent's socket for ztunnel
        #[arg(long)]
        zds: PathBuf,
    },
    /// Say one line to an echo server and stay connected until stdin ends (used by the lab itself)
    #[command(hide = true)]
    Ask(ask::Arguments),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().what {
        What::Demo => {
            let outer = outer::enter()?;
            let held = demo::run(&outer)?;
            outer.exit(i32::from(!held))
        }
        What::Shell { program } => {
            let outer = outer::enter()?;
            let code = shell::run(&outer, &program)?;
            outer.exit(code)
        }
        What::RunIn { cgroup, program } => run_in(&cgroup, &program),
        What::Say { socket, message } => {
            let answer = rude::say(&socket, message.as_bytes(), &[])?;
            println!("{}", String::from_utf8_lossy(&answer));
            Ok(ExitCode::SUCCESS)
        }
        What::Pretend { zds } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(pretender::pretend(&zds))?;
            Ok(ExitCode::SUCCESS)
        }
        What::Ask(arguments) => ask::run(&arguments),
    }
}

fn run_in(dir: &std::path::Path, program: &[OsString]) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    cgroup::Cgroup::join(dir)?;
    let (program, args) = program.split_first().unwrap_or_else(|| unreachable!("clap wants one"));
    let failure = Command::new(program).args(args).exec();
    anyhow::bail!("start {}: {failure}", program.to_string_lossy())
}
