//! `sluicectl`, also called as `kubectl sluice`: asks the node agent how its pods stand, and says it in words.
//!
//! Exit codes, for scripts: 0 all is as it should be; 1 the agent could not answer; 2 a pod that should be captured is
//! not, the agent cannot serve an ADD, or the plugin is not in the chain; 3 the agent knows no such pod; 4 the agent
//! cannot be reached; 64 the command line is wrong. `doctor` has its own: 0 nothing but notes, 1 warnings, 2 problems.

mod client;
mod doctor;
mod node;
mod pod;

use clap::{Parser, Subcommand, ValueEnum};
use client::ClientError;
use doctor::Doctor;
use serde::Serialize;
use sluice_shared::admin::{ADMIN_VERSION, AdminReply, AdminRequest, NodeStatus, PodStatus, State};
use sluice_shared::contract::ADMIN_SOCKET;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const FAILED: u8 = 1;
const NOT_CAPTURED: u8 = 2;
const UNKNOWN_POD: u8 = 3;
const UNREACHABLE: u8 = 4;
/// `EX_USAGE` (sysexits.h)
const USAGE: u8 = 64;

/// Ask the node agent of Sluice how the pods of this node stand.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 as it should be, 1 the agent could not answer, 2 a pod that should be \
    captured is not, 3 no such pod, 4 the agent cannot be reached, 64 wrong usage. Of doctor: 0 nothing but notes, \
    1 warnings, 2 problems."
)]
struct Args {
    #[command(subcommand)]
    command: Ask,
    /// How the answer is written.
    #[arg(long, short, value_enum, global = true, default_value_t = Output::Text)]
    output: Output,
    /// Where the agent listens (its `adminSocket`).
    #[arg(long, global = true, env = "SLUICE_ADMIN_SOCKET", default_value = ADMIN_SOCKET)]
    socket: PathBuf,
}

#[derive(Subcommand)]
enum Ask {
    /// The node and all of its pods.
    Status,
    /// Why a pod is captured, or is not, looked at afresh.
    Why {
        /// NAMESPACE/NAME, a name that only one pod of the node has, or a uid.
        pod: String,
    },
    /// What on this node will get in the mesh's way, and what to do about it; needs no agent, and writes nothing.
    Doctor(Box<Doctor>),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs: the agent's answer as it is.
    Json,
}

/// What is written to stdout, and the exit code.
struct Outcome {
    text: String,
    code: u8,
}

fn main() -> ExitCode {
    let args = match Args::try_parse_from(invoked_as(std::env::args().collect())) {
        Ok(args) => args,
        Err(error) => {
            // Nobody is left to tell when stdout and stderr are closed.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match args.command {
        Ask::Status => ask(&args.socket, &AdminRequest::Status, args.output),
        Ask::Why { pod } => ask(&args.socket, &AdminRequest::Why { pod }, args.output),
        Ask::Doctor(doctor) => doctor::examine(*doctor, &args.socket, args.output),
    };
    // A reader that closed the pipe has seen enough.
    drop(io::stdout().write_all(outcome.text.as_bytes()));
    ExitCode::from(outcome.code)
}

fn ask(socket: &Path, request: &AdminRequest, output: Output) -> Outcome {
    match client::ask(socket, request) {
        Ok(reply) => tell(reply, output),
        Err(error) => unreachable(socket, &error, output),
    }
}

/// kubectl finds a plugin by its file's name, and says `kubectl sluice` for `kubectl-sluice`.
fn invoked_as(mut args: Vec<String>) -> Vec<String> {
    if let Some(program) = args.first_mut()
        && Path::new(program.as_str()).file_name().is_some_and(|name| name == "kubectl-sluice")
    {
        *program = "kubectl sluice".to_owned();
    }
    args
}

fn tell(reply: AdminReply, output: Output) -> Outcome {
    match reply {
        AdminReply::Status(status) => {
            if status.version != ADMIN_VERSION {
                eprintln!(
                    "sluicectl: the agent is of release {}; some of its answer may not be shown",
                    status.agent_version
                );
            }
            let code = if all_captured(&status) { 0 } else { NOT_CAPTURED };
            Outcome { text: written(&status, output, node::render), code }
        }
        AdminReply::Why(status) => {
            let code = if should_be_captured(&status) { NOT_CAPTURED } else { 0 };
            Outcome { text: written(&status, output, pod::render), code }
        }
        AdminReply::Error { unknown_pod, message } => {
            let message = sluice_agent::visible::printable(&message);
            eprintln!("sluicectl: {message}");
            if unknown_pod && output == Output::Text {
                eprintln!(
                    "`sluicectl status` lists the pods that it knows; a pod of another node is known to that node's agent"
                );
            }
            Outcome { text: failure(&message, output), code: if unknown_pod { UNKNOWN_POD } else { FAILED } }
        }
    }
}

fn unreachable(socket: &Path, error: &ClientError, output: Output) -> Outcome {
    let message = format!("{}: {error}", socket.display());
    eprintln!("sluicectl: {message}");
    if let Some(hints) = error.hints() {
        eprintln!("{hints}");
    }
    let code = if matches!(error, ClientError::Malformed(_)) { FAILED } else { UNREACHABLE };
    Outcome { text: failure(&message, output), code }
}

fn all_captured(status: &NodeStatus) -> bool {
    let chained = status.installation.as_ref().is_none_or(|found| found.state.is_chained());
    status.serving && chained && !status.pods.iter().any(should_be_captured)
}

/// Whether a pod should be captured and is not.
fn should_be_captured(pod: &PodStatus) -> bool {
    matches!(pod.state, State::Pending | State::Drifted)
}

fn written<T: Serialize>(status: &T, output: Output, render: fn(&T) -> String) -> String {
    match output {
        Output::Text => render(status),
        Output::Json => json(status),
    }
}

fn failure(message: &str, output: Output) -> String {
    match output {
        Output::Text => String::new(),
        Output::Json => json(&serde_json::json!({ "error": message })),
    }
}

fn json<T: Serialize>(value: &T) -> String {
    // Our own types have text for keys, so they can be written as JSON.
    serde_json::to_string_pretty(value).map(|text| text + "\n").unwrap_or_default()
}
