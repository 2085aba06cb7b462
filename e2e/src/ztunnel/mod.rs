//! A stand-in for ztunnel: a real transparent proxy that speaks ZDS as ztunnel does, carries traffic between pods over
//! mTLS, and complains of every mistake that a node agent makes. It knows nothing of the agent but the protocol.
//!
//! | room | what it holds |
//! |---|---|
//! | [`session`], [`messages`] | the connection to the agent, and its packets |
//! | [`table`] | the pods, and what each request does to them |
//! | [`pod`] | one pod's listeners, identity and connections |
//! | [`netns`], [`sockets`] | sockets within a pod, with ztunnel's mark and options |
//! | [`outbound`], [`inbound`], [`hbone`], [`relay`], [`dns`] | the traffic |
//! | [`workloads`], [`directories`], [`identity`] | what istiod and its CA would say |
//! | [`admin`], [`events`] | what it tells others |

pub mod admin;
pub mod directories;
pub mod dns;
pub mod events;
pub mod hbone;
pub mod identity;
pub mod inbound;
pub mod messages;
pub mod netns;
pub mod outbound;
pub mod pod;
pub mod relay;
pub mod session;
pub mod sockets;
pub mod table;
pub mod workloads;

use anyhow::Context;
use events::Events;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pod::Shared;
use serde_json::json;
use session::Session;
use sockets::SocketOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use table::Table;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// The exit code of a process that the agent ended by breaking the protocol, as with ztunnel.
pub const EXIT_PROTOCOL: u8 = 1;
/// The exit code, at the end, of a strict process that saw the agent at fault.
pub const EXIT_FAULTS: u8 = 3;

/// How the stand-in runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's socket.
    pub zds: PathBuf,
    /// The workloads file.
    pub workloads: PathBuf,
    /// ztunnel's `NODE_NAME`; any node when empty.
    pub node: String,
    /// Where `/config_dump` is served.
    pub admin: Option<SocketAddr>,
    /// Where `/healthz/ready` is served.
    pub readiness: Option<SocketAddr>,
    /// How sockets are made.
    pub sockets: SocketOptions,
    /// Whether the agent's faults are counted.
    pub strict: bool,
    /// How long open connections may go on after SIGTERM.
    pub drain: Duration,
    /// After how many requests to stop answering.
    pub hang_after: Option<u64>,
    /// The pod whose Add is always refused.
    pub nack_uid: Option<String>,
}

/// Runs until a signal, or until the agent breaks the protocol, and says how to exit.
///
/// # Errors
/// When it cannot start: no workloads file, an address that is taken.
pub async fn run(options: Options) -> anyhow::Result<u8> {
    raise_descriptor_limit();
    let events = Events::to_stdout(options.strict);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let directories = directories::Directories::follow(options.workloads.clone(), events.clone())?;
    let shared = Shared {
        entrance: netns::Entrance::open(),
        directories,
        authority: identity::Authority::derive()?,
        events: events.clone(),
        node: options.node.clone(),
        sockets: options.sockets,
    };
    let table = Arc::new(Table::new(shared, options.nack_uid.clone()));
    for address in [options.admin, options.readiness].into_iter().flatten() {
        admin::serve(address, table.clone()).await.with_context(|| format!("cannot listen on {address}"))?;
    }
    let session = Session {
        socket: options.zds.clone(),
        table: table.clone(),
        events: events.clone(),
        hang_after: options.hang_after,
    };
    let broken = tokio::select! {
        error = session.run() => Some(error),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let code = if let Some(error) = broken {
        // As with ztunnel, every pod loses its proxy at once.
        events.say(json!({"event": "exit", "error": error.to_string(), "faults": events.faults()}));
        EXIT_PROTOCOL
    } else {
        drain(&table, options.drain).await;
        events.say(json!({"event": "exit", "cut": table.open_connections(), "faults": events.faults()}));
        if events.faults() > 0 { EXIT_FAULTS } else { 0 }
    };
    events.flush();
    Ok(code)
}

/// Stops listening and waits for the open connections, for `limit` at most.
async fn drain(table: &Table, limit: Duration) {
    table.drain();
    let deadline = Instant::now() + limit;
    while table.open_connections() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two descriptors a connection are soon more than the usual soft limit.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Failing leaves the soft limit, which is enough for small tests.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
