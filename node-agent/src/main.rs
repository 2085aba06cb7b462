//! The node agent.
//!
//! Exit codes: 0 ended as asked, 64 the command line or the configuration is wrong (`EX_USAGE`), 1 it could not start
//! or go on.

use sluice_agent::config::{self, Config, Invocation, Mode, ProcessEnv, RawConfig};
use sluice_agent::{limits, telemetry};
use std::process::ExitCode;

/// `EX_USAGE` (sysexits.h)
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let invocation = match Invocation::parse(std::env::args_os(), &ProcessEnv) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Nobody is left to tell when stdout and stderr are closed.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if invocation.mode == Mode::PrintConfigDocs {
        print!("{}", config::reference());
        return ExitCode::SUCCESS;
    }
    let gathered = RawConfig::gather(&invocation, &ProcessEnv);
    let resolved = gathered.and_then(|raw| Config::resolve(&raw).map(|config| (raw, config)));
    match resolved {
        Ok((raw, _)) if invocation.mode == Mode::PrintConfig => {
            print!("{}", config::in_force(&raw));
            ExitCode::SUCCESS
        }
        Ok((raw, config)) => match run(&config, &raw.warnings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("sluice-agent: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn run(config: &Config, warnings: &[String]) -> anyhow::Result<()> {
    telemetry::start(config.log_format, &config.log_level)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is; many pods may need more");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node_name, "sluice-agent starts");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(sluice_agent::app::run(config));
    // A thread that hangs in a system call must not keep an agent that has ended.
    runtime.shutdown_background();
    ended
}
