//! `sluicectl doctor`: the node, the agent and the API server are looked at, and the report is written.

use crate::client::{self, ClientError};
use crate::{FAILED, Outcome, Output, json};
use clap::Args;
use sluice_agent::doctor::{ApiServer, Options, Root, gather, render};
use sluice_agent::kernel::{HostProc, ThisKernel};
use sluice_shared::admin::{AdminReply, AdminRequest};
use sluice_shared::contract::{RUN_DIR, STATE_DIR};
use sluice_shared::doctor::{Agent, Report, Severity, diagnose};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const WARNINGS: u8 = 1;
const PROBLEMS: u8 = 2;

/// Where to look.
#[derive(Args)]
pub struct Doctor {
    /// The node's root directory; found through the host's /proc in the agent's container.
    #[arg(long, value_name = "DIR")]
    host_root: Option<PathBuf>,
    /// The node's /proc.
    #[arg(long, value_name = "DIR")]
    host_proc: Option<PathBuf>,
    /// The runtime's network configuration on the node, when it is in none of the usual places.
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// The runtime's CNI plugins on the node.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// The agent's `runDir`.
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
    /// The agent's `stateDir`.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// The plugin of this release, which the one on the node is compared with.
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/sluice-cni")]
    plugin: PathBuf,
    /// Ask the API server too, by this file's current context; nothing is written.
    #[arg(long, value_name = "FILE", conflicts_with = "in_cluster")]
    kubeconfig: Option<PathBuf>,
    /// Ask the API server too, by the service account of this pod.
    #[arg(long)]
    in_cluster: bool,
    /// Count what was not looked at for want of an API server as a warning.
    #[arg(long)]
    complete: bool,
}

/// Examines this node.
pub fn examine(doctor: Doctor, socket: &Path, output: Output) -> Outcome {
    let root = Root::find(doctor.host_root, doctor.host_proc);
    let api_server = match (doctor.kubeconfig, doctor.in_cluster) {
        (Some(path), _) => ApiServer::Kubeconfig(path),
        (None, true) => ApiServer::InCluster,
        (None, false) => ApiServer::Unasked,
    };
    let agent = ask(socket, &root);
    let kernel = ThisKernel { proc: HostProc::at(root.proc("")) };
    let options = Options {
        conf_dir: doctor.conf_dir,
        bin_dir: doctor.bin_dir,
        run_dir: doctor.run_dir,
        state_dir: doctor.state_dir,
        plugin: doctor.plugin,
        api_server,
        ..Options::new(root)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let facts = match runtime {
        Ok(runtime) => runtime.block_on(gather(&options, &kernel, agent)),
        Err(error) => {
            eprintln!("sluicectl: {error}");
            return Outcome { text: String::new(), code: FAILED };
        }
    };
    let report = diagnose(&facts);
    let text = match output {
        Output::Text => render(&report),
        Output::Json => json(&report),
    };
    Outcome { text, code: code(&report, doctor.complete) }
}

fn code(report: &Report, complete: bool) -> u8 {
    match report.worst(complete) {
        None | Some(Severity::Note) => 0,
        Some(Severity::Warning) => WARNINGS,
        Some(Severity::Problem) => PROBLEMS,
    }
}

/// The agent on its socket below the node's root, else as it is seen from here.
fn ask(socket: &Path, root: &Root) -> Agent {
    let below = root.of(socket);
    let seen = if below.exists() || !socket.exists() { below.as_path() } else { socket };
    let place = socket.display().to_string();
    match client::ask(seen, &AdminRequest::Status) {
        Ok(AdminReply::Status(status)) => Agent::Answers(Box::new(status)),
        Ok(AdminReply::Error { message, .. }) => Agent::Silent { socket: place, why: message },
        Ok(AdminReply::Why(_)) => {
            Agent::Silent { socket: place, why: "it answers another question".to_owned() }
        }
        Err(ClientError::Connect(error)) => match error.kind() {
            ErrorKind::NotFound => Agent::Absent { socket: place },
            ErrorKind::PermissionDenied => Agent::Forbidden { socket: place },
            _ => Agent::Silent { socket: place, why: error.to_string() },
        },
        Err(error) => Agent::Silent { socket: place, why: error.to_string() },
    }
}
