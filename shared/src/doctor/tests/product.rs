//! The agent, and the files of the installation.

use super::*;
use crate::admin::{PodStatus, State};
use crate::enroll::Overrides;
use crate::ids::PodUid;
use crate::install::{Fought, Intent, Wanted};

fn saying(status: NodeStatus) -> Facts {
    node(|facts| facts.agent = Agent::Answers(Box::new(status)))
}

fn with_note(note: Note) -> Facts {
    node(|facts| {
        let files = &mut facts.notes.as_mut().unwrap().files;
        files.retain(|found| found.kind != note.kind);
        files.push(note);
    })
}

#[test]
fn an_agent_that_does_not_answer() {
    let silent = node(|facts| {
        facts.agent = Agent::Silent {
            socket: "/run/sluice/admin.sock".to_owned(),
            why: "Connection refused".to_owned(),
        };
    });
    let problem = the(&silent, "agent");
    assert_eq!(
        (problem.severity, problem.evidence[0].value.as_str()),
        (Severity::Problem, "Connection refused")
    );
    assert!(diagnose(&silent).not_looked_at.iter().any(|unseen| unseen.checks.contains(&"ztunnel")));
}

#[test]
fn an_agent_that_may_not_be_asked_is_no_finding() {
    let facts = node(|facts| facts.agent = Agent::Forbidden { socket: "/run/sluice/admin.sock".to_owned() });
    let report = diagnose(&facts);
    assert_eq!(report.findings, []);
    assert!(report.not_looked_at[0].checks.contains(&"agent") && !report.passed.contains(&"agent"));
    assert_eq!(report.worst(false), Some(Severity::Warning));
}

#[test]
fn an_agent_in_trouble() {
    let mut pod = PodStatus {
        uid: PodUid::new("u1").unwrap(),
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        ips: Vec::new(),
        state: State::Pending,
        reason: "waiting for ztunnel".to_owned(),
        because: None,
        outside: None,
        overrides: Overrides::default(),
        netns: None,
        kept_connections: 0,
        drift_repairs: 0,
        checks: Vec::new(),
    };
    let mut all = status();
    all.serving = false;
    all.ztunnels.clear();
    all.pods.push(pod.clone());
    all.source.problem = Some("the API server answers 403".to_owned());
    let ids: Vec<_> = found(&saying(all)).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["agent", "source", "ztunnel", "pods"]);
    let mut unready = status();
    unready.ztunnels[0].ready = false;
    assert_eq!(found(&saying(unready)), [("ztunnel", Severity::Problem)]);
    let mut many = status();
    many.pods = (0..7)
        .map(|index| {
            pod.name = format!("cart-{index}");
            pod.clone()
        })
        .collect();
    let problem = the(&saying(many), "pods");
    assert_eq!(
        problem.what,
        "7 pods that should be captured are not: shop/cart-0, shop/cart-1, shop/cart-2 and 4 more"
    );
    assert_eq!(problem.evidence.len(), 5);
    assert_eq!(problem.fix, "sluicectl why shop/cart-0 says what it waits for");
}

#[test]
fn the_chain_s_state() {
    let stands = |installation: Installation| {
        saying(NodeStatus { installation: Some(Box::new(installation)), ..status() })
    };
    let fight = Fought {
        file: "05-cilium.conflist".to_owned(),
        times: 12,
        seconds: 40,
        suspect: "cilium-agent with cni.exclusive=true".to_owned(),
    };
    let fought =
        stands(Installation { state: install::State::Fighting, fight: Some(fight), ..installation() });
    assert!(the(&fought, "chain-state").fix.contains("cilium-agent with cni.exclusive=true"));
    for (state, severity) in [
        (install::State::Waiting, Severity::Problem),
        (install::State::Blocked, Severity::Problem),
        (install::State::Removed, Severity::Warning),
    ] {
        let facts = stands(Installation { state, ..installation() });
        assert_eq!(found(&facts), [("chain-state", severity)], "{state:?}");
    }
    let nobody = saying(NodeStatus { installation: None, ..status() });
    assert_eq!(found(&nobody), [("chain-state", Severity::Warning)]);
}

#[test]
fn files_that_cannot_be_understood() {
    use NoteKind::{Installation, Intent, Lease, Membership, Runtime};
    for (kind, severity) in [
        (Runtime, Severity::Warning),
        (Intent, Severity::Warning),
        (Installation, Severity::Warning),
        (Lease, Severity::Warning),
        (Membership, Severity::Problem),
    ] {
        for bytes in [Ok(b"{".to_vec()), Ok(b"{\"version\":9}".to_vec()), Err("Permission denied".to_owned())]
        {
            let facts = with_note(Note { bytes: bytes.clone(), ..note(kind, "") });
            assert_eq!(found(&facts), [("notes", severity)], "{kind:?} {bytes:?}");
        }
    }
}

#[test]
fn intents_and_leases() {
    let leave = serde_json::to_string(&Intent::new(Wanted::Leave, "uninstalled")).unwrap();
    assert_eq!(found(&with_note(note(NoteKind::Intent, &leave))), [("intent", Severity::Warning)]);
    let stay = serde_json::to_string(&Intent::new(Wanted::Stay, "an upgrade")).unwrap();
    assert_eq!(found(&with_note(note(NoteKind::Intent, &stay))), []);
    for (renewed, released, bad) in [
        (UPTIME - 10, false, false),
        (UPTIME, true, true),
        (1, false, true),
        (UPTIME + 61, false, true),
        (UPTIME + 59, false, false),
    ] {
        let expected: &[(&str, Severity)] = if bad { &[("lease", Severity::Warning)] } else { &[] };
        assert_eq!(found(&with_note(lease(renewed, released))), expected, "{renewed} {released}");
    }
}

#[test]
fn clocks() {
    for (ahead, bad) in [(0, false), (60, false), (-60, false), (61, true), (-4000, true)] {
        let facts = node(|facts| facts.cluster.as_mut().unwrap().clock_ahead = Ok(ahead));
        let expected: &[(&str, Severity)] = if bad { &[("clock", Severity::Problem)] } else { &[] };
        assert_eq!(found(&facts), expected, "{ahead}");
    }
    let behind = node(|facts| facts.cluster.as_mut().unwrap().clock_ahead = Ok(-4000));
    assert_eq!(the(&behind, "clock").what, "this node's clock is 4000 s behind the API server's");
}
