//! `source: kubernetes`: this node's pods and all namespaces, from the API server.
//!
//! Two watches and nothing else in steady state. What is kept of an object is what decisions need of it: a few hundred
//! bytes a pod, a hundred a namespace.

pub(crate) mod api;
mod client;
mod follow;
mod known;
pub(crate) mod lines;
mod lookup;
mod message;
mod pod;
mod report;
mod resource;

pub use client::{ClientError, connect};
pub use lookup::PodLookup;

use crate::metrics::Metrics;
use crate::source::{Event, Problem};
use api::Api;
use follow::Follower;
use report::Reporter;
use resource::{AllNamespaces, Pods, Resource as _, WantedLabels};
use sluice_shared::enroll::EnrollPolicy;
use tokio::sync::{mpsc, watch};

/// The source.
pub struct KubernetesSource {
    api: Api,
    pods: Pods,
    namespaces: AllNamespaces,
    reporters: [Reporter; 2],
}

impl KubernetesSource {
    /// A source of the pods of `node`. It keeps the labels that `policy` goes by, and tells what is wrong with it through
    /// the receiver.
    #[must_use]
    pub fn new(
        client: kube::Client,
        node: &str,
        policy: &EnrollPolicy,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Problem>) {
        let labels = WantedLabels::of(policy);
        let (reporters, problem) = Reporter::each([AllNamespaces::WHAT, Pods::WHAT], metrics);
        let source = Self {
            api: Api::new(client),
            pods: Pods::new(node, labels.clone()),
            namespaces: AllNamespaces::new(labels),
            reporters,
        };
        (source, problem)
    }

    /// Says what is there, and from then on what changes, until nobody listens any more. [`Event::Synced`] follows when
    /// both resources have been listed once.
    pub async fn run(self, events: mpsc::Sender<Event>) {
        let Self { api, pods, namespaces, reporters: [of_namespaces, of_pods] } = self;
        let namespaces = Follower::new(api.clone(), namespaces, events.clone(), of_namespaces);
        let pods = Follower::new(api, pods, events, of_pods);
        tokio::join!(Box::pin(namespaces.run()), Box::pin(pods.run()));
    }
}
