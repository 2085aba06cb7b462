//! A client in a process of its own: only a process can be in a cgroup of its own.

use anyhow::Result;
use sluice_e2e::lab::traffic::dial::Dial;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

/// See [`Dial`].
#[derive(clap::Args)]
pub struct Arguments {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// The source address
    #[arg(long)]
    from: Option<IpAddr>,
    /// The source port
    #[arg(long)]
    port: Option<u16>,
    /// SO_MARK
    #[arg(long)]
    mark: Option<u32>,
    /// SO_BINDTODEVICE
    #[arg(long)]
    device: Option<String>,
    /// How long connecting may take, and the answer
    #[arg(long, default_value_t = 10_000)]
    patience_ms: u64,
    /// What to say
    #[arg(long)]
    say: String,
}

/// Connects, says the line, prints the answer as JSON, and keeps the connection until stdin ends.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let dial = Dial {
        to: arguments.to,
        from: arguments.from,
        port: arguments.port,
        mark: arguments.mark,
        device: arguments.device.clone(),
        patience: Duration::from_millis(arguments.patience_ms),
    };
    let mut session = dial.connect()?;
    let answer = session.say(&arguments.say)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(&answer)?)?;
    stdout.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(ExitCode::SUCCESS)
}
