//! The source that the configuration names.

use crate::config::{Config, Source};
use crate::metrics::Metrics;
use crate::source::file::FileSource;
use crate::source::kubernetes::{self, KubernetesSource, PodLookup};
use crate::source::{Event, Lookup, Problem};
use crate::status::Sink;
use anyhow::Context as _;
use tokio::sync::{mpsc, watch};

/// A source, and what others need of it.
pub(super) struct Chosen {
    pub(super) what: What,
    /// For `sluicectl status`.
    pub(super) from: String,
    /// What is wrong with it.
    pub(super) problem: watch::Receiver<Problem>,
    /// Where single pods can be asked for.
    pub(super) lookup: Lookup,
    /// Where it is said how pods stand.
    pub(super) status: Sink,
    /// The way to the API server, where there is one.
    pub(super) client: Option<kube::Client>,
}

pub(super) enum What {
    File(FileSource),
    Kubernetes(KubernetesSource),
}

/// The source that the configuration names. It asks nobody anything yet.
///
/// # Errors
/// When the way to the API server cannot be made.
pub(super) async fn choose(config: &Config, metrics: &Metrics) -> anyhow::Result<Chosen> {
    match &config.source {
        Source::File(path) => {
            let (source, problem) = FileSource::new(path.clone(), metrics.clone());
            let from = format!("file {}", path.display());
            let (lookup, status) = (Lookup::Nothing, Sink::nowhere());
            Ok(Chosen { what: What::File(source), from, problem, lookup, status, client: None })
        }
        Source::Kubernetes { kubeconfig } => {
            let client = kubernetes::connect(kubeconfig.as_deref()).await.context("kubeconfig")?;
            let (node, policy) = (&config.node_name, config.enroll_policy());
            let lookup = Lookup::Api(PodLookup::new(client.clone(), node, &policy));
            let status = Sink::start(client.clone(), node.clone(), metrics.clone());
            let (source, problem) = KubernetesSource::new(client.clone(), node, &policy, metrics.clone());
            let from = format!("kubernetes, pods of node {node}");
            let (what, client) = (What::Kubernetes(source), Some(client));
            Ok(Chosen { what, from, problem, lookup, status, client })
        }
    }
}

impl What {
    pub(super) async fn run(self, events: mpsc::Sender<Event>) {
        match self {
            Self::File(source) => source.run(events).await,
            Self::Kubernetes(source) => source.run(events).await,
        }
    }
}
