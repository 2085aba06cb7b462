//! `sluicectl why` in words: the verdict, the rule that decided, what was looked at, what to do next.

use sluice_agent::visible::printable;
use sluice_shared::admin::{Check, PodStatus, State};
use sluice_shared::contract::{
    ANNOTATION_BYPASS_INBOUND, ANNOTATION_DNS_CAPTURE, ANNOTATION_REROUTE_INTERFACES, LABEL_DATAPLANE_MODE,
    MODE_AMBIENT,
};
use sluice_shared::enroll::{Overrides, Reason};
use sluice_shared::ids::Ifname;
use std::fmt::Write;

/// What an operator needs to know of one pod.
pub fn render(pod: &PodStatus) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", printable(&verdict(pod)));
    out.push('\n');
    let mut line = |what: &str, text: &str| {
        let _ = writeln!(out, "  {what:<11} {}", printable(text));
    };
    line("rule", &rule(pod));
    for warning in &pod.overrides.warnings {
        line("annotation", &format!("✗ {warning}"));
    }
    for text in overrides(&pod.overrides) {
        line("annotation", &text);
    }
    line("uid", pod.uid.as_str());
    line("addresses", &addresses(pod));
    line("netns", &pod.netns.map_or("not known".to_owned(), |netns| netns.to_string()));
    if pod.kept_connections > 0 {
        line(
            "kept",
            &format!("{} connections older than its enrolment keep their path", pod.kept_connections),
        );
    }
    if pod.drift_repairs > 0 {
        line(
            "repairs",
            &format!("{} so far: its netns was found changed, and was put right", pod.drift_repairs),
        );
    }
    if !pod.checks.is_empty() {
        let _ = writeln!(out, "\nlooked at, in the order in which a packet would care:");
    }
    for Check { name, ok, detail } in &pod.checks {
        let sign = if *ok { '✓' } else { '✗' };
        let _ = writeln!(out, "  {sign} {}: {}", printable(name), printable(detail));
    }
    let _ = writeln!(out, "\n{}", printable(&next(pod)));
    out
}

fn verdict(pod: &PodStatus) -> String {
    let name = format!("{}/{}", pod.namespace, pod.name);
    match pod.state {
        State::Enabled if pod.overrides.bypass_inbound => {
            format!(
                "{name} is captured: what it sends goes through ztunnel, and so does mTLS that it receives."
            )
        }
        State::Enabled => format!("{name} is captured: what it sends and receives goes through ztunnel."),
        State::Pending => format!("{name} should be captured and is not: {}.", pod.reason),
        State::Drifted => format!("{name} was captured, and what captures it was changed: {}.", pod.reason),
        State::Draining => format!("{name} is leaving the mesh: {}.", pod.reason),
        State::Outside => format!("{name} is outside the mesh, and its traffic is left alone."),
    }
}

fn rule(pod: &PodStatus) -> String {
    match (&pod.because, pod.outside) {
        (Some(because), _) => because.to_string(),
        (None, Some(reason)) => reason.to_string(),
        (None, None) => "none was decided on yet".to_owned(),
    }
}

fn overrides(overrides: &Overrides) -> Vec<String> {
    let mut texts = Vec::new();
    if overrides.bypass_inbound {
        texts.push(format!("{ANNOTATION_BYPASS_INBOUND}: plaintext that comes in is not captured"));
    }
    if let Some(capture) = overrides.dns_capture {
        let not = if capture { "" } else { "not " };
        texts.push(format!("{ANNOTATION_DNS_CAPTURE}: its DNS queries are {not}captured"));
    }
    if !overrides.virtual_interfaces.is_empty() {
        let names: Vec<&str> = overrides.virtual_interfaces.iter().map(Ifname::as_str).collect();
        texts.push(format!("{ANNOTATION_REROUTE_INTERFACES}: {} count as its own traffic", names.join(", ")));
    }
    texts
}

fn addresses(pod: &PodStatus) -> String {
    match pod.ips.as_slice() {
        [] => "none yet".to_owned(),
        ips => ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// What to do, or that there is nothing to do.
fn next(pod: &PodStatus) -> String {
    match (pod.state, pod.outside) {
        (State::Enabled, _) if pod.checks.iter().any(|check| !check.ok) => {
            "It is captured, but what is marked ✗ above deserves a look.".to_owned()
        }
        (State::Enabled, _) => "Nothing needs doing.".to_owned(),
        (State::Drifted, _) => {
            "Nothing needs doing for this pod: the agent puts it right. Something on this node changes \
                                the pod's rules; the agent's log names what changed."
                .to_owned()
        }
        (State::Draining, _) => {
            "Nothing needs doing: proxied connections are waited for, up to drainTimeoutSeconds.".to_owned()
        }
        (State::Pending, _) => pending(pod),
        (State::Outside, reason) => outside(pod, reason),
    }
}

/// What failed decides what to look at: without its namespace nothing else can be right.
fn pending(pod: &PodStatus) -> String {
    let failed = |what| pod.checks.iter().any(|check| !check.ok && check.name.contains(what));
    let look = if failed("network namespace") {
        "the agent has not been shown the pod's network namespace: the pod started before the agent, or its runtime did \
         not call the plugin. Restarting the pod calls it"
    } else if failed("ztunnel") || pod.reason.contains("ztunnel") {
        "look at ztunnel on this node: whether its pod runs, and whether its log names this pod's uid. \
         `sluicectl status` lists the ztunnels that are connected"
    } else {
        "the reason above says what is in the way; the agent's log has more under this pod's uid"
    };
    format!("The agent keeps trying. Meanwhile {look}.")
}

fn outside(pod: &PodStatus, reason: Option<Reason>) -> String {
    let namespace = &pod.namespace;
    match reason {
        Some(Reason::NotSelected) => format!(
            "To take it in: kubectl label namespace {namespace} {LABEL_DATAPLANE_MODE}={MODE_AMBIENT} \
             (or label the pod alone)."
        ),
        Some(Reason::OptedOut) => format!(
            "To take it in: remove the pod's label {LABEL_DATAPLANE_MODE} (in its template, if it has one)."
        ),
        Some(Reason::ExcludedNamespace) => {
            format!("To take it in: remove {namespace} from excludeNamespaces in the agent's configuration.")
        }
        Some(Reason::Sidecar) => "To take it in: stop the injection of the sidecar and restart the pod.".to_owned(),
        Some(Reason::HostNetwork) => {
            "It cannot be taken in: only a pod with a network namespace of its own can.".to_owned()
        }
        Some(Reason::Terminal) => "It is done with the network.".to_owned(),
        Some(Reason::Unknown) | None => {
            "The agent knows it from the CNI plugin alone. `sluicectl status` says what its source of pods is, and what is \
             wrong there."
                .to_owned()
        }
    }
}
