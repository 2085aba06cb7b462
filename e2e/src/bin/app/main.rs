//! `sluice-app`: the application in the test cluster's pods. See `sluice_e2e::app`.

mod ask;
mod load;
mod serve;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// SIGTERM and SIGINT, taken from the very beginning: as a container's first process nobody else would take them.
pub struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut ending = Ending::listen()?;
    match Arguments::parse().what {
        What::Serve(serve) => serve.run(&mut ending).await?,
        What::Client(load) => load.run(&mut ending).await?,
        What::Once(once) => tokio::select! {
            asked = once.run() => asked?,
            () = ending.told() => return Ok(ExitCode::FAILURE),
        },
        What::Check(check) => check.run().await?,
        What::Sleep { seconds: Some(seconds) } => tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            () = ending.told() => {}
        },
        What::Sleep { seconds: None } => ending.told().await,
    }
    Ok(ExitCode::SUCCESS)
}

impl Ending {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A duration as a number of seconds, which may have a fraction.
fn seconds(text: &str) -> anyhow::Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
