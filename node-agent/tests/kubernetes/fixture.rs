//! A source that follows a fake API server.

use crate::fake::FakeApi;
use sluice_agent::metrics::Metrics;
use sluice_agent::source::kubernetes::KubernetesSource;
use sluice_agent::source::{Event, Problem};
use sluice_shared::enroll::EnrollPolicy;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// More than any back-off of the source comes to in a test, on a loaded machine.
pub const SOON: Duration = Duration::from_secs(60);
/// Long enough for a change that must not be said to have been said.
pub const SETTLED: Duration = Duration::from_millis(700);

pub struct Followed {
    pub api: FakeApi,
    pub events: mpsc::Receiver<Event>,
    pub problem: watch::Receiver<Problem>,
    pub metrics: Metrics,
}

impl Followed {
    /// A source of `api`'s pods on `node1`.
    pub async fn new(api: FakeApi) -> Self {
        let metrics = Metrics::new();
        let policy = EnrollPolicy::default();
        let (source, problem) = KubernetesSource::new(api.client().await, "node1", &policy, metrics.clone());
        let (sender, events) = mpsc::channel(64);
        tokio::spawn(source.run(sender));
        Self { api, events, problem, metrics }
    }

    pub async fn next(&mut self) -> String {
        let event = timeout(SOON, self.events.recv()).await;
        match event.unwrap_or_else(|_| panic!("no event came; asked: {:?}", self.api.asked())).unwrap() {
            Event::Pod(pod) => format!("+{}", pod.uid),
            Event::PodGone(uid) => format!("-{uid}"),
            Event::Namespace(namespace) => match namespace.labels.get("istio.io/dataplane-mode") {
                Some(mode) => format!("+ns {} {mode}", namespace.name),
                None => format!("+ns {}", namespace.name),
            },
            Event::NamespaceGone(name) => format!("-ns {name}"),
            Event::Synced => "synced".to_owned(),
            Event::Cni(_) => unreachable!("an API server has no plugin"),
        }
    }

    /// The next events, in any order: the two resources do not wait for each other.
    pub async fn expect(&mut self, expected: &[&str]) {
        let mut said = Vec::new();
        for _ in expected {
            said.push(self.next().await);
        }
        said.sort();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(said, expected);
    }

    /// What is there at the start, then that it was all.
    pub async fn expect_start(&mut self, expected: &[&str]) {
        self.expect(expected).await;
        assert_eq!(self.next().await, "synced");
    }

    pub async fn expect_silence(&mut self) {
        tokio::time::sleep(SETTLED).await;
        if let Ok(event) = self.events.try_recv() {
            panic!("said: {event:?}");
        }
    }

    pub async fn expect_problem(&mut self, what: &str) -> String {
        let seen =
            timeout(SOON, self.problem.wait_for(|now| now.as_ref().is_some_and(|now| now.contains(what))));
        seen.await.expect("no problem was said").unwrap().clone().unwrap()
    }

    pub async fn expect_no_problem(&mut self) {
        timeout(SOON, self.problem.wait_for(Option::is_none)).await.expect("the problem stays").unwrap();
    }

    /// Waits until so many requests of this kind have come.
    pub async fn asked(&self, what: &str, times: usize) {
        let waiting = async {
            while self.api.count(what) < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, waiting)
            .await
            .unwrap_or_else(|_| panic!("{what} not {times} times: {:?}", self.api.asked()));
    }
}
