//! The agent, ztunnel, and the files by which our own parts tell each other things.

use super::catalogue::{AGENT, CHAIN_STATE, CLOCK, INTENT, LEASE, NOTES, PODS, SOURCE, ZTUNNEL};
use super::chain::entries;
use super::facts::{Agent, Facts, Note, NoteKind, Notes};
use super::text::{count, some};
use super::{Diagnosis, Finding, Severity, Unlooked};
use crate::admin::{NodeStatus, State};
use crate::conflist::Runtime;
use crate::install::{self, Holding, INSTALL_VERSION, Installation, Intent, Lease, Wanted};
use crate::membership::Membership;

/// How far clocks may be apart, in seconds: no answer is older than that.
const CLOCKS_APART: u64 = 60;

pub(super) fn check(facts: &Facts, diagnosis: &mut Diagnosis) {
    match &facts.agent {
        Agent::Answers(status) => {
            diagnosis.looked.extend([AGENT, ZTUNNEL, SOURCE, PODS, CHAIN_STATE].map(|check| check.id));
            answering(status, diagnosis);
        }
        Agent::Silent { socket, why } => {
            diagnosis.looked.insert(AGENT.id);
            let what = "the agent's socket is there, and it does not answer";
            let fix = "kubectl -n sluice-system get pods -o wide, and the log of the agent's last run on this node: kubectl -n \
                       sluice-system logs PODNAME -c agent --previous";
            diagnosis.find(Finding::new(AGENT, Severity::Problem, what, fix).seen(socket, why));
        }
        Agent::Absent { socket } => absent(socket, facts, diagnosis),
        Agent::Forbidden { socket } => {
            let about = [AGENT, ZTUNNEL, SOURCE, PODS, CHAIN_STATE];
            diagnosis.miss(
                "what the agent knows",
                &about,
                &Unlooked::new(format!("{socket} is for root"), "run it as root"),
            );
        }
    }
    if matches!(facts.agent, Agent::Absent { .. } | Agent::Silent { .. }) {
        let unlooked = Unlooked {
            why: "no agent answers on this node".to_owned(),
            how: "before an installation there is none; else see `agent`".to_owned(),
            // Before an installation it is no fault, and after one `agent` is a finding.
            not_asked_for: true,
        };
        diagnosis.miss("what the agent knows", &[ZTUNNEL, SOURCE, PODS, CHAIN_STATE], &unlooked);
    }
    if let Some(notes) =
        diagnosis.look("the installation's files", &[NOTES, INTENT, LEASE], facts.notes.as_ref())
    {
        files(notes, diagnosis);
        intent(facts, diagnosis);
        lease(notes, facts, diagnosis);
    }
    clock(facts, diagnosis);
}

fn absent(socket: &str, facts: &Facts, diagnosis: &mut Diagnosis) {
    diagnosis.looked.insert(AGENT.id);
    let chained = facts.cni.as_ref().map(entries).unwrap_or_default();
    let held = facts.notes.as_ref().ok().zip(facts.note(NoteKind::Lease)).is_some_and(|(notes, note)| {
        let lease = note.bytes.as_ref().ok().and_then(|bytes| Lease::parse(bytes));
        lease.is_none_or(|lease| lease.holding(&notes.boot, notes.uptime) == Holding::Held)
    });
    if chained.is_empty() && !held {
        let note = Finding::new(
            AGENT,
            Severity::Note,
            "no agent runs on this node",
            "helm install, when all that is above is in order",
        );
        diagnosis.find(note.seen(socket, "absent"));
        return;
    }
    let what = "Sluice is installed on this node, and its agent does not run";
    let fix = "kubectl -n sluice-system get pods -o wide -l app.kubernetes.io/name=sluice-agent; kubectl describe says what the \
               pod waits for. Has its `adminSocket` another path? Then: --socket PATH";
    diagnosis.find(Finding::new(AGENT, Severity::Problem, what, fix).seen(socket, "absent"));
}

fn answering(status: &NodeStatus, diagnosis: &mut Diagnosis) {
    const PLACE: &str = "the agent";
    if !status.serving {
        let what = "the agent runs and cannot serve yet";
        let fix = "sluicectl status says what it waits for; so does its log";
        diagnosis.find(Finding::new(AGENT, Severity::Problem, what, fix).seen(PLACE, "serving: false"));
    }
    if let Some(problem) = &status.source.problem {
        let what = "the agent cannot follow pods and namespaces";
        let fix = "Mend what it says: the way to the API server, the account's rights, or the file";
        diagnosis.find(Finding::new(SOURCE, Severity::Problem, what, fix).seen(&status.source.from, problem));
    }
    ztunnels(status, diagnosis);
    pods(status, diagnosis);
    match &status.installation {
        Some(installation) => chain_state(installation, diagnosis),
        None => {
            let what = "no installer of this boot has said that the plugin is chained";
            let fix = "kubectl -n sluice-system logs PODNAME -c install. With install.enabled=false, chain the plugin by other means: \
                       sluice-install render prints the list";
            diagnosis.find(
                Finding::new(CHAIN_STATE, Severity::Warning, what, fix).seen(PLACE, "installation: none"),
            );
        }
    }
}

fn ztunnels(status: &NodeStatus, diagnosis: &mut Diagnosis) {
    let ready = status.ztunnels.iter().any(|ztunnel| ztunnel.ready);
    let (what, value) = match status.ztunnels.first() {
        _ if ready => return,
        None => ("no ztunnel is connected to the agent", "ztunnels: none".to_owned()),
        Some(_) => {
            let number = count(status.ztunnels.len(), "connection", "connections");
            ("ztunnel is connected, and has not acknowledged its snapshot", format!("{number}, none ready"))
        }
    };
    let fix = "kubectl -n istio-system get pods -o wide -l app=ztunnel. It must run on this node, with the host's \
               /var/run/ztunnel mounted, and INPOD_UDS must name the agent's zdsSocket";
    diagnosis.find(Finding::new(ZTUNNEL, Severity::Problem, what, fix).seen("the agent", value));
}

fn pods(status: &NodeStatus, diagnosis: &mut Diagnosis) {
    let waiting = status.pods.iter().filter(|pod| matches!(pod.state, State::Pending | State::Drifted));
    let waiting: Vec<_> = waiting.collect();
    if waiting.is_empty() {
        return;
    }
    let names: Vec<String> = waiting.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    let number = count(names.len(), "pod that should be captured is", "pods that should be captured are");
    let what = format!("{number} not: {}", some(&names));
    let fix = format!("sluicectl why {} says what it waits for", names[0]);
    let start = Finding::new(PODS, Severity::Problem, what, fix);
    let place = |namespace: &str, name: &str| format!("pod {namespace}/{name}");
    diagnosis.find(waiting.iter().take(5).fold(start, |finding, pod| {
        finding.seen(place(&pod.namespace, &pod.name), format!("{}: {}", pod.state, pod.reason))
    }));
}

fn chain_state(installation: &Installation, diagnosis: &mut Diagnosis) {
    let place = "the installer (install.json)";
    let finding = |severity, what: &str, fix: String| Finding::new(CHAIN_STATE, severity, what, fix);
    let found = match (installation.state, &installation.fight) {
        (install::State::Chained, _) => return,
        (install::State::Fighting, Some(fight)) => {
            let value = format!(
                "{}: {} times in {} s, put back at most once a second",
                fight.file, fight.times, fight.seconds
            );
            let fix = format!(
                "By all signs it is {}. See cni-exclusive; or ask for another way with `install.way`",
                fight.suspect
            );
            finding(Severity::Problem, "somebody takes our entry out of the chain again and again", fix)
                .seen(place, value)
        }
        (install::State::Removed, _) => {
            let fix = "Nothing, if Sluice is to leave this node; else remove its pod here, and the installer starts anew".to_owned();
            finding(Severity::Warning, "our entry was taken out of the chain, as the installer was told", fix)
                .seen(place, &installation.message)
        }
        (state, _) => {
            let fix = "What it waits for, or what refuses, is in the evidence".to_owned();
            finding(Severity::Problem, "our entry is not in the chain, or not for sure", fix)
                .seen(place, format!("{}: {}", state.as_str(), installation.message))
        }
    };
    diagnosis.find(found);
}

/// Why a file does not say what it should.
fn defect(note: &Note) -> Option<String> {
    let bytes = match &note.bytes {
        Ok(bytes) => bytes,
        Err(why) => return Some(why.clone()),
    };
    let read = match note.kind {
        NoteKind::Runtime => serde_json::from_slice::<Runtime>(bytes).map(drop).map_err(|e| e.to_string()),
        NoteKind::Installation => match serde_json::from_slice::<Installation>(bytes) {
            Ok(Installation { version: INSTALL_VERSION, .. }) => Ok(()),
            Ok(other) => Err(format!("it has version {}", other.version)),
            Err(e) => Err(e.to_string()),
        },
        NoteKind::Intent => {
            Intent::parse(bytes).map(drop).ok_or_else(|| "it is no intent of this release".to_owned())
        }
        NoteKind::Lease => {
            Lease::parse(bytes).map(drop).ok_or_else(|| "it is no lease of this release".to_owned())
        }
        NoteKind::Membership => Membership::parse(bytes).map(drop).map_err(|e| e.to_string()),
    };
    read.err()
}

fn files(notes: &Notes, diagnosis: &mut Diagnosis) {
    for note in &notes.files {
        let Some(why) = defect(note) else { continue };
        let name = note.kind.file();
        let (severity, fix) = match note.kind {
            NoteKind::Membership => (
                Severity::Problem,
                "Start the agent: it writes the file anew. With Sluice uninstalled: sluice-install remove on this node".to_owned(),
            ),
            _ => (Severity::Warning, format!("rm {}: whoever writes it does so anew", note.path)),
        };
        let what = format!("{name} cannot be understood");
        diagnosis.find(Finding::new(NOTES, severity, what, fix).seen(&note.path, why));
    }
}

fn intent(facts: &Facts, diagnosis: &mut Diagnosis) {
    let Some(note) = facts.note(NoteKind::Intent) else { return };
    let Some(intent) = note.bytes.as_ref().ok().and_then(|bytes| Intent::parse(bytes)) else { return };
    if intent.wanted == Wanted::Leave && facts.answer().is_some() {
        let what = "the installer was told to leave this node, and the agent still runs";
        let fix =
            format!("If Sluice is to stay: rm {}. Else nothing: it leaves when its pod ends", note.path);
        diagnosis.find(
            Finding::new(INTENT, Severity::Warning, what, fix)
                .seen(&note.path, format!("wanted: leave, {}", intent.why)),
        );
    }
}

fn lease(notes: &Notes, facts: &Facts, diagnosis: &mut Diagnosis) {
    let Some(note) = facts.note(NoteKind::Lease) else { return };
    let Some(lease) = note.bytes.as_ref().ok().and_then(|bytes| Lease::parse(bytes)) else { return };
    let installer =
        "kubectl -n sluice-system logs PODNAME -c install says why the installer does not renew it";
    let finding = |what: String, fix: &str| Finding::new(LEASE, Severity::Warning, what, fix);
    if lease.boot == notes.boot && lease.renewed > notes.uptime + CLOCKS_APART {
        let what = "the lease was renewed at a time of this boot that has not come yet".to_owned();
        let fix = format!(
            "rm {}: the installer writes it anew. Was the file copied from another machine?",
            note.path
        );
        let value = format!("renewed at {} s of this boot, which is {} s old", lease.renewed, notes.uptime);
        diagnosis.find(finding(what, &fix).seen(&note.path, value));
        return;
    }
    // Without an agent `leftover` is about it.
    let Agent::Answers(_) = facts.agent else { return };
    let what = match lease.holding(&notes.boot, notes.uptime) {
        Holding::Held => return,
        Holding::Released => "the lease was given up, and the agent runs".to_owned(),
        Holding::Lapsed(seconds) => format!("the lease was not renewed for {seconds} s"),
    };
    let value = format!("horizon {} s, released {}", lease.horizon, lease.released);
    diagnosis.find(finding(what, installer).seen(&note.path, value));
}

fn clock(facts: &Facts, diagnosis: &mut Diagnosis) {
    let ahead = facts.of_cluster(|cluster| &cluster.clock_ahead);
    let Some(ahead) = diagnosis.look("the API server's clock", &[CLOCK], ahead) else { return };
    if ahead.unsigned_abs() <= CLOCKS_APART {
        return;
    }
    let way = if *ahead > 0 { "ahead of" } else { "behind" };
    let what = format!("this node's clock is {} s {way} the API server's", ahead.unsigned_abs());
    let fix = "timedatectl set-ntp true, or start the node's time service (chronyd, systemd-timesyncd)";
    let finding = Finding::new(CLOCK, Severity::Problem, what, fix);
    diagnosis.find(finding.seen("the API server's answer, Date", format!("{ahead:+} s")));
}
