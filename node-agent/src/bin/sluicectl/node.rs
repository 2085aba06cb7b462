//! `sluicectl status` in words.

use sluice_agent::visible::printable;
use sluice_shared::admin::{Choice, LeaseState, LeaseStatus, NodeStatus, PodStatus, State, ZtunnelStatus};
use std::fmt::Write;

/// The node first, then its pods by name.
pub fn render(status: &NodeStatus) -> String {
    let mut out = String::new();
    let mut line = |what: &str, text: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{what:<9} {}", printable(text));
    };
    line("node", &format!("{} (sluice-agent {})", status.node_name, status.agent_version));
    line("serving", if status.serving { "yes" } else { "no: an ADD of the CNI plugin cannot be served" });
    line("source", &status.source.from);
    if let Some(problem) = &status.source.problem {
        line("", &format!("✗ {problem}"));
    }
    line("backend", &choice(&status.backend));
    line("probes", &choice(&status.probes));
    if let Some(tested) = probe_test(&status.probe_test) {
        line("", &tested);
    }
    line("guard", &choice(&status.mark_guard));
    line("watch", &choice(&status.drift_watch));
    for (index, text) in chain(status).iter().enumerate() {
        line(if index == 0 { "chain" } else { "" }, text);
    }
    if let Some(lease) = &status.lease {
        line("lease", &self::lease(lease));
    }
    if let Some(predecessor) = &status.predecessor {
        line("istio-cni", &choice(predecessor));
    }
    if status.ztunnels.is_empty() {
        line("ztunnel", "✗ none is connected: new pods of the mesh wait for it");
    }
    for (index, ztunnel) in status.ztunnels.iter().enumerate() {
        line(if index == 0 { "ztunnel" } else { "" }, &connection(ztunnel));
    }
    if !status.pods.is_empty() {
        out.push('\n');
        out.push_str(&table(&status.pods));
    }
    let _ = writeln!(out, "\n{}", summary(&status.pods));
    out
}

/// How the plugin is in the runtime's chain, and who is against it.
fn chain(status: &NodeStatus) -> Vec<String> {
    let Some(found) = &status.installation else {
        return vec!["not known: no sluice-install has run on this node since it booted".to_owned()];
    };
    let mut lines = match (found.state.is_chained(), found.way) {
        (true, Some(way)) => {
            let file = found.file.as_deref().map(|file| format!(", in {file}")).unwrap_or_default();
            let why = if found.why.is_empty() { String::new() } else { format!(" ({})", found.why) };
            vec![format!("{}{file}{why}", way.as_str())]
        }
        (true, None) => vec![found.message.clone()],
        (false, _) => vec![format!(
            "✗ {}: {}; pods that start meanwhile are captured late, or not",
            found.state.as_str(),
            found.message
        )],
    };
    if let Some(fight) = &found.fight {
        lines.push(format!(
            "✗ undone {} times in {} s, and put back at most once a second; by {}",
            fight.times, fight.seconds, fight.suspect
        ));
    }
    lines
}

fn lease(lease: &LeaseStatus) -> String {
    let age = lease.age_seconds;
    match lease.state {
        LeaseState::Held => format!("held, renewed {age} s ago; it holds for {} s", lease.horizon_seconds),
        LeaseState::Released => "✗ given up: without an agent, pods of the mesh start outside it".to_owned(),
        LeaseState::Lapsed => {
            format!("✗ not renewed for {age} s: without an agent, pods of the mesh start outside it")
        }
    }
}

fn choice(choice: &Choice) -> String {
    match choice.because.as_str() {
        "" => choice.chosen.clone(),
        because => format!("{} ({because})", choice.chosen),
    }
}

/// What the self-test says of the probe strategy; an agent from before it says nothing.
fn probe_test(tested: &Choice) -> Option<String> {
    let Choice { chosen, because } = tested;
    match chosen.as_str() {
        "" => None,
        "blocked" => Some(format!("✗ blocked: kubelet probes of captured pods fail: {because}")),
        _ => Some(format!("{chosen}: {because}")),
    }
}

fn connection(ztunnel: &ZtunnelStatus) -> String {
    let ready = if ztunnel.ready { "ready" } else { "not ready: its snapshot is not acknowledged yet" };
    let pid = if ztunnel.pid <= 0 { "pid not visible".to_owned() } else { format!("pid {}", ztunnel.pid) };
    let cgroup = ztunnel.cgroup.as_deref().unwrap_or("not known");
    format!("#{} {ready} ({pid}, cgroup {cgroup})", ztunnel.connection)
}

fn table(pods: &[PodStatus]) -> String {
    let mut rows: Vec<[String; 4]> = pods.iter().map(row).collect();
    rows.sort();
    rows.insert(0, ["POD", "STATE", "IPS", "REASON"].map(str::to_owned));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    rows.iter().fold(String::new(), |mut out, [pod, state, ips, reason]| {
        let [a, b, c] = widths;
        let _ = writeln!(out, "{}", format!("{pod:<a$}  {state:<b$}  {ips:<c$}  {reason}").trim_end());
        out
    })
}

fn row(pod: &PodStatus) -> [String; 4] {
    let ips = match pod.ips.as_slice() {
        [] => "-".to_owned(),
        ips => ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    let mut reason = pod.reason.clone();
    if pod.kept_connections > 0 {
        let _ = write!(reason, "; {} older connections keep their path", pod.kept_connections);
    }
    [printable(&format!("{}/{}", pod.namespace, pod.name)), pod.state.to_string(), ips, printable(&reason)]
}

/// `5 pods: 3 enabled, 1 pending, 1 outside`
fn summary(pods: &[PodStatus]) -> String {
    let counts: Vec<String> = State::ALL
        .into_iter()
        .map(|state| (state, pods.iter().filter(|pod| pod.state == state).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    match pods.len() {
        0 => "no pods".to_owned(),
        1 => format!("1 pod: {}", counts.join(", ")),
        all => format!("{all} pods: {}", counts.join(", ")),
    }
}
