//! The chart's alerts are about metrics that the agent serves, by the names and labels that it serves them under.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where and end")]

use sluice_agent::metrics::{AddPhase, DriftObject, KernelStep, Metrics, SourceKind};
use sluice_shared::wire::Reply;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// Everything that it can serve: a metric with labels is there only once it was used.
fn served() -> String {
    let metrics = Metrics::new();
    metrics.add_took(AddPhase::Total, Duration::from_millis(1));
    metrics.drift_repaired(DriftObject::Rules);
    metrics.kernel_error(KernelStep::Enroll);
    metrics.zds_nack();
    metrics.source_error(SourceKind::Kubernetes);
    metrics.plugin_request("ADD", &Reply::Ok { outcome: "captured".to_owned() });
    metrics.status_patch("ok");
    metrics.render()
}

/// The queries of the template, as they are written there.
fn queries() -> Vec<String> {
    let template =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/chart/templates/prometheusrule.yaml");
    let text = std::fs::read_to_string(template).unwrap();
    let mut lines = text.lines();
    let mut queries = Vec::new();
    while let Some(line) = lines.next() {
        match line.trim().strip_prefix("expr: ") {
            Some(">-") => queries.push(lines.next().unwrap().trim().to_owned()),
            Some(query) => queries.push(query.to_owned()),
            None => {}
        }
    }
    queries
}

/// The words of a query that are names: of metrics, labels and functions.
fn names(query: &str) -> BTreeSet<&str> {
    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect()
}

#[test]
fn every_alert_is_about_a_metric_that_is_served() {
    let served = served();
    let metrics: BTreeSet<_> = served
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect();
    let queries = queries();
    assert!(queries.len() > 8, "{queries:?}");
    for query in &queries {
        let about = names(query);
        let ours: Vec<_> =
            about.iter().filter(|name| name.starts_with("sluice_") || name.starts_with("ztunnel_")).collect();
        assert!(ours.iter().all(|name| metrics.contains(**name)), "{query}: none of\n{metrics:?}");
        // What is left is Prometheus' own: whether the target answers.
        assert!(!ours.is_empty() || about.contains("up"), "{query}");
    }
}

#[test]
fn and_by_labels_that_it_has() {
    let served = served();
    for label in [
        "sluice_pods{state=\"pending\"",
        "sluice_pods{state=\"drifted\"",
        "sluice_install_state{state=\"waiting\"",
        "sluice_install_state{state=\"blocked\"",
        "sluice_lease_state{state=\"lapsed\"",
        "verb=\"ADD\"",
        "code=\"0\"",
        "phase=\"total\"",
    ] {
        assert!(served.contains(label), "{label} is not in\n{served}");
    }
    let queries = queries();
    for label in [
        "state=~\"pending|drifted\"",
        "state=~\"waiting|blocked\"",
        "state=\"lapsed\"",
        "verb=\"ADD\"",
        "code!=\"0\"",
        "phase=\"total\"",
    ] {
        assert!(queries.iter().any(|query| query.contains(label)), "no alert goes by {label}");
    }
}
