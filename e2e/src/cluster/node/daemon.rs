//! The daemon of a primary CNI on a node: the real one, as a service of the node instead of a pod, so that it is there
//! before the first pod.

use super::enter::Place;
use super::{Node, PATIENCE, cilium, flanneld};
use crate::cluster::chain::Primary;
use crate::cluster::pki::Authority;
use crate::cluster::programs::Programs;
use crate::lab::eventually;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::time::Duration;

/// Which one runs on every node, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// flannel's.
    Flanneld(flanneld::Backend),
    /// Cilium's.
    Cilium(cilium::Datapath),
}

/// How it is chosen on a command line.
#[derive(Args, Clone, Copy, Debug)]
pub struct Choice {
    /// With the real flanneld as every node's primary CNI
    #[arg(long, value_name = "BACKEND", conflicts_with = "cilium")]
    flanneld: Option<flanneld::Backend>,
    /// With the real Cilium as every node's primary CNI
    #[arg(long, value_name = "DATAPATH")]
    cilium: Option<cilium::Datapath>,
}

impl Choice {
    /// The one that was chosen.
    #[must_use]
    pub fn daemon(self) -> Option<Daemon> {
        self.flanneld.map(Daemon::Flanneld).or(self.cilium.map(Daemon::Cilium))
    }

    /// What chooses the same.
    #[must_use]
    pub fn arguments(self) -> Vec<OsString> {
        let named = |flag: &str, value: Option<clap::builder::PossibleValue>| {
            value.map(|value| [flag.into(), value.get_name().into()])
        };
        let flanneld = named("--flanneld", self.flanneld.and_then(|backend| backend.to_possible_value()));
        let cilium = named("--cilium", self.cilium.and_then(|datapath| datapath.to_possible_value()));
        [flanneld, cilium].into_iter().flatten().flatten().collect()
    }
}

impl Daemon {
    /// Its program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flanneld(_) => "flanneld",
            Self::Cilium(_) => "cilium-agent",
        }
    }

    /// What every node has of it.
    #[must_use]
    pub fn primary(self) -> Primary {
        match self {
            Self::Flanneld(_) => Primary::Flanneld,
            Self::Cilium(_) => Primary::Cilium,
        }
    }

    /// What the API server must have before it starts, each to be applied.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn objects(self, programs: &Programs) -> Result<Vec<String>> {
        match self {
            Self::Flanneld(_) => Ok(vec![flanneld::rights()]),
            Self::Cilium(datapath) => cilium::objects(programs, datapath),
        }
    }

    /// Puts what it needs onto a node's disk.
    ///
    /// # Errors
    /// When it is not built, or a file cannot be written.
    pub fn configure(self, place: &Place, authority: &Authority, programs: &Programs) -> Result<()> {
        match self {
            Self::Flanneld(backend) => flanneld::configure(place, authority, programs, backend),
            Self::Cilium(_) => cilium::configure(place, authority, programs),
        }
    }

    /// The program and its arguments.
    fn program(self, node: &str) -> Vec<String> {
        match self {
            Self::Flanneld(_) => flanneld::program(node),
            Self::Cilium(datapath) => cilium::program(node, datapath),
        }
    }

    /// Fails unless it has set the node up.
    fn is_ready(self, node: &Node) -> Result<()> {
        match self {
            Self::Flanneld(_) => flanneld::is_ready(node),
            Self::Cilium(_) => cilium::is_ready(node),
        }
    }

    /// How long it may take for that on a busy machine: Cilium compiles its programs for each kind of endpoint.
    fn patience(self) -> Duration {
        match self {
            Self::Flanneld(_) => PATIENCE,
            Self::Cilium(_) => PATIENCE * 5,
        }
    }
}

impl Node {
    /// Starts the daemon of the node's primary CNI, if it has one, and returns when it has set the node up. Kubernetes
    /// must know the node's range of pods by then.
    ///
    /// # Errors
    /// When it cannot be started, or ends, with its last words.
    pub fn start_daemon(&self) -> Result<()> {
        let Some(daemon) = self.daemon else { return Ok(()) };
        let name = daemon.name();
        ensure!(self.lock().daemon.is_none(), "{name} runs already on {}", self.name);
        let mut process = self.start(name, &daemon.program(&self.name))?;
        eventually(&format!("{name} to set {} up", self.name), daemon.patience(), || {
            process.must_run()?;
            daemon.is_ready(self)
        })
        .with_context(|| process.last_words())?;
        self.lock().daemon = Some(process);
        self.progress.say(&format!("{}: {name} is up", self.name));
        Ok(())
    }
}
