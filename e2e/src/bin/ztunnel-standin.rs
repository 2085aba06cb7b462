//! A stand-in for ztunnel that is strict with the node agent. See `sluice_e2e::ztunnel`.

use clap::{ArgAction, Parser};
use sluice_e2e::ztunnel::sockets::SocketOptions;
use sluice_e2e::ztunnel::{Options, run};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A transparent proxy that behaves towards the node agent as ztunnel does, and reports each of its mistakes.
///
/// Says what happens as JSON lines on stdout. Exits with 1 when the agent breaks the protocol as ztunnel would, and
/// with 3 at its end when the agent was at fault in any other way.
#[derive(Parser)]
#[command(name = "ztunnel-standin", version)]
struct Arguments {
    /// The agent's ZDS socket
    #[arg(long, default_value = sluice_shared::contract::ZDS_SOCKET)]
    zds: PathBuf,
    /// Workloads and services as YAML, in the shape of ztunnel's LOCAL_XDS_PATH; read again when it changes
    #[arg(long)]
    workloads: PathBuf,
    /// This node's name: only its workloads are served
    #[arg(long, default_value = "")]
    node: String,
    /// Serve /config_dump at this address
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Serve /healthz/ready at this address
    #[arg(long)]
    readiness: Option<SocketAddr>,
    /// Listen on IPv6 too
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    ipv6: bool,
    /// Do without IP_TRANSPARENT: applications see the proxy's address
    #[arg(long)]
    no_transparent: bool,
    /// Do not count what the agent does wrong, beyond what ztunnel itself would mind
    #[arg(long)]
    no_strict: bool,
    /// How long open connections may go on after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    drain_seconds: u64,
    /// Stop answering after this many requests, as a ztunnel that hangs
    #[arg(long, value_name = "REQUESTS")]
    hang_after: Option<u64>,
    /// Refuse every Add of this pod
    #[arg(long, value_name = "UID")]
    nack_uid: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let options = Options {
        zds: arguments.zds,
        workloads: arguments.workloads,
        node: arguments.node,
        admin: arguments.admin,
        readiness: arguments.readiness,
        sockets: SocketOptions { ipv6: arguments.ipv6, transparent: !arguments.no_transparent },
        strict: !arguments.no_strict,
        drain: Duration::from_secs(arguments.drain_seconds),
        hang_after: arguments.hang_after,
        nack_uid: arguments.nack_uid,
    };
    Ok(run(options).await?.into())
}
