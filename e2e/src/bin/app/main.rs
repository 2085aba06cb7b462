//! `sluice-app`: the application in the test cluster's pods. See `sluice_e2e::app`.

mod ask;
mod load;
mod serve;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Serves, asks and counts.
#[derive(Parser)]
#[command(name = "sluice-app", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Serve over TCP, UDP, HTTP and gRPC until SIGTERM
    Serve(serve::Serve),
    /// Keep connections open and open new ones, and count what becomes of them, until SIGTERM
    Client(load::Load),
    /// Ask one question, print the answer as JSON, and exit with 0 if there was one
    Once(ask::Once),
    /// Ask the server on this pod's own loopback address how it is; for exec probes
    Check(ask::Check),
    /// Do nothing until SIGTERM, or for some time
    Sleep {
        /// For how many seconds
        seconds: Option<u64>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().what {
        What::Serve(serve) => serve.run().await?,
        What::Client(load) => load.run().await?,
        What::Once(once) => once.run().await?,
        What::Check(check) => check.run().await?,
        What::Sleep { seconds: Some(seconds) } => tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            ended = told_to_end() => ended?,
        },
        What::Sleep { seconds: None } => told_to_end().await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or SIGINT. As a container's first process, nobody else would take them.
async fn told_to_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// A duration as a number of seconds, which may have a fraction.
fn seconds(text: &str) -> anyhow::Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
