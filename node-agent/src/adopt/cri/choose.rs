//! Which of the runtime's sandboxes is a pod's, and whether its status says so too. Pure.

use super::message::{OF_THE_POD, PodSandbox, PodSandboxMetadata, PodSandboxStatus, READY};
use crate::adopt::{Miss, Neighbours, Wanted};
use sluice_shared::ids::PodUid;
use std::net::IpAddr;

/// Labels that the kubelet gives every sandbox.
const LABELS: [&str; 3] = ["io.kubernetes.pod.uid", "io.kubernetes.pod.namespace", "io.kubernetes.pod.name"];

/// The pod's sandbox: the one of the newest attempt, which must be ready. A runtime that shows the sandbox of another
/// pod of this node is the kubelet's, and its list is whole: a pod that is not in it has none.
pub(super) fn sandbox<'a>(
    listed: &'a [PodSandbox],
    wanted: &Wanted,
    neighbours: &Neighbours,
) -> Result<&'a PodSandbox, Miss> {
    let age = |sandbox: &&PodSandbox| (metadata(sandbox).attempt, sandbox.created_at);
    let of_uid = || listed.iter().filter(|sandbox| metadata(sandbox).uid == wanted.uid.as_str());
    let Some(newest) = of_uid().max_by_key(age) else {
        let same_name =
            listed.iter().find(|sandbox| is_named(metadata(sandbox), wanted) && sandbox.state == READY);
        let is_neighbour = |sandbox: &&PodSandbox| {
            let uid = PodUid::new(metadata(sandbox).uid.as_str());
            sandbox.state == READY && uid.is_ok_and(|uid| neighbours.known.contains(&uid))
        };
        return Err(match same_name.or_else(|| listed.iter().find(is_neighbour)) {
            Some(other) if !is_named(metadata(other), wanted) => Miss::No(format!(
                "it has the sandbox of {}/{} of this node, and none of this pod's",
                metadata(other).namespace,
                metadata(other).name
            )),
            Some(other) => Miss::No(format!(
                "its sandbox of that name belongs to the uid {:?}: another pod of the same name, or a static pod",
                metadata(other).uid
            )),
            None => Miss::Unknown(format!("none of its {} sandboxes is this pod's", listed.len())),
        });
    };
    if of_uid().filter(|sandbox| age(sandbox) == age(&newest)).count() > 1 {
        return Err(Miss::No("it shows two sandboxes of the pod's that are equally new".into()));
    }
    check(metadata(newest), wanted)?;
    if newest.state != READY {
        return Err(Miss::No(format!("the pod's newest sandbox, {}, is not ready", newest.id)));
    }
    Ok(newest)
}

/// Whether a status is that of this sandbox, and of a pod with a network of its own.
pub(super) fn agrees(status: &PodSandboxStatus, id: &str, wanted: &Wanted) -> Result<(), Miss> {
    let no = |why: String| Err(Miss::No(why));
    if status.id != id {
        return no(format!("asked for the status of sandbox {id}, it gives that of {:?}", status.id));
    }
    check(status.metadata.as_ref().unwrap_or(&NOBODY), wanted)?;
    let claimed = [wanted.uid.as_str(), &wanted.pod.namespace, &wanted.pod.name];
    for (label, claimed) in LABELS.into_iter().zip(claimed) {
        if let Some(value) = status.labels.get(label).filter(|value| *value != claimed) {
            return no(format!("sandbox {id} is the pod's, and its label {label} is {value:?}"));
        }
    }
    if status.state != READY {
        return no(format!("sandbox {id} is not ready"));
    }
    if status.network_mode() != OF_THE_POD {
        return no(format!("sandbox {id} has no network namespace of its own (hostNetwork)"));
    }
    let said: Vec<IpAddr> = addresses(status);
    let shared = |ip: &IpAddr| wanted.ips.iter().any(|claim| claim.to_canonical() == ip.to_canonical());
    if !said.is_empty() && !said.iter().any(shared) {
        return no(format!("sandbox {id} has the addresses {said:?}, and the pod {:?}", wanted.ips));
    }
    Ok(())
}

static NOBODY: PodSandboxMetadata =
    PodSandboxMetadata { name: String::new(), uid: String::new(), namespace: String::new(), attempt: 0 };

fn metadata(sandbox: &PodSandbox) -> &PodSandboxMetadata {
    sandbox.metadata.as_ref().unwrap_or(&NOBODY)
}

fn is_named(metadata: &PodSandboxMetadata, wanted: &Wanted) -> bool {
    metadata.namespace == wanted.pod.namespace && metadata.name == wanted.pod.name
}

fn check(metadata: &PodSandboxMetadata, wanted: &Wanted) -> Result<(), Miss> {
    if metadata.uid == wanted.uid.as_str() && is_named(metadata, wanted) {
        return Ok(());
    }
    Err(Miss::No(format!(
        "the sandbox for the pod's uid says that it is {}/{} with uid {:?}",
        metadata.namespace, metadata.name, metadata.uid
    )))
}

pub(super) fn addresses(status: &PodSandboxStatus) -> Vec<IpAddr> {
    let Some(network) = &status.network else { return Vec::new() };
    let more = network.additional_ips.iter().map(|more| more.ip.as_str());
    std::iter::once(network.ip.as_str()).chain(more).filter_map(|ip| ip.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adopt::cri::message::{
        LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandboxNetworkStatus,
    };
    use sluice_shared::ids::{PodRef, PodUid};

    fn wanted() -> Wanted {
        let (uid, pod) = (PodUid::new("u1").unwrap(), PodRef::new("demo", "a"));
        Wanted { uid, pod, ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()] }
    }

    fn named(uid: &str, name: &str, attempt: u32) -> Option<PodSandboxMetadata> {
        let (uid, name) = (uid.to_owned(), name.to_owned());
        Some(PodSandboxMetadata { name, uid, namespace: "demo".into(), attempt })
    }

    fn listed(id: &str, uid: &str, attempt: u32, state: i32) -> PodSandbox {
        let created_at = i64::from(attempt);
        PodSandbox { id: id.into(), metadata: named(uid, "a", attempt), state, created_at }
    }

    fn status() -> PodSandboxStatus {
        PodSandboxStatus {
            id: "s1".into(),
            metadata: named("u1", "a", 0),
            state: READY,
            network: Some(PodSandboxNetworkStatus { ip: "10.0.0.2".into(), additional_ips: vec![] }),
            ..Default::default()
        }
    }

    fn chosen(sandboxes: &[PodSandbox]) -> Result<String, Miss> {
        sandbox(sandboxes, &wanted(), &Neighbours::default()).map(|sandbox| sandbox.id.clone())
    }

    #[test]
    fn the_newest_ready_sandbox_of_the_uid_is_the_pods() {
        let (old, new) = (listed("s0", "u1", 0, 1), listed("s1", "u1", 1, READY));
        let stranger = listed("s2", "u2", 9, READY);
        assert_eq!(chosen(&[old.clone(), new, stranger.clone()]), Ok("s1".into()));
        assert!(matches!(chosen(&[old]), Err(Miss::No(why)) if why.contains("not ready")));
        assert!(matches!(chosen(&[]), Err(Miss::Unknown(_))));
        // An older one that is still ready is not taken for a newer one that is dead.
        let both = [listed("s0", "u1", 0, READY), listed("s1", "u1", 1, 1)];
        assert!(matches!(chosen(&both), Err(Miss::No(why)) if why.contains("s1")));
        let twins = [listed("s0", "u1", 0, READY), listed("s1", "u1", 0, READY)];
        assert!(matches!(chosen(&twins), Err(Miss::No(why)) if why.contains("equally new")));
        assert!(matches!(chosen(&[stranger]), Err(Miss::No(why)) if why.contains("\"u2\"")));
    }

    #[test]
    fn a_runtime_that_has_the_nodes_pods_has_all_of_them() {
        let neighbours = Neighbours { known: [PodUid::new("u2").unwrap()].into(), ..Default::default() };
        let other =
            |uid: &str, state| PodSandbox { metadata: named(uid, "b", 0), ..listed("s2", uid, 0, state) };
        let judge =
            |listed: &[PodSandbox]| sandbox(listed, &wanted(), &neighbours).map(|found| found.id.clone());
        assert!(
            matches!(judge(&[other("u2", READY)]), Err(Miss::No(why)) if why.contains("demo/b of this node"))
        );
        // Left over from before the node got another runtime, or nothing to do with the node's pods.
        assert!(matches!(judge(&[other("u2", 1), other("u9", READY)]), Err(Miss::Unknown(_))));
        assert_eq!(judge(&[other("u2", READY), listed("s1", "u1", 0, READY)]), Ok("s1".into()));
    }

    #[test]
    fn a_uid_under_another_name_is_a_lie() {
        let renamed = PodSandbox { metadata: named("u1", "b", 0), ..listed("s0", "u1", 0, READY) };
        assert!(matches!(chosen(&[renamed]), Err(Miss::No(why)) if why.contains("demo/b")));
        let nameless = PodSandbox { metadata: None, ..listed("s0", "u1", 0, READY) };
        assert!(matches!(chosen(&[nameless]), Err(Miss::Unknown(_))));
    }

    #[test]
    fn a_status_must_agree_with_the_list_and_the_source() {
        let judge = |status: PodSandboxStatus| agrees(&status, "s1", &wanted());
        assert_eq!(judge(status()), Ok(()));
        let second = PodSandboxNetworkStatus {
            ip: "10.9.9.9".into(),
            additional_ips: vec![PodIp { ip: "fd00::2".into() }],
        };
        assert_eq!(judge(PodSandboxStatus { network: Some(second), ..status() }), Ok(()));
        let host = NamespaceOption { network: 2 };
        let linux = LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(host) }) };
        let elsewhere = PodSandboxNetworkStatus { ip: "10.9.9.9".into(), additional_ips: vec![] };
        let label = [("io.kubernetes.pod.uid".to_owned(), "u2".to_owned())];
        for (status, why) in [
            (PodSandboxStatus { id: "s2".into(), ..status() }, "gives that of"),
            (PodSandboxStatus { metadata: named("u2", "a", 0), ..status() }, "with uid \"u2\""),
            (PodSandboxStatus { metadata: None, ..status() }, "with uid \"\""),
            (PodSandboxStatus { labels: label.into(), ..status() }, "its label"),
            (PodSandboxStatus { state: 1, ..status() }, "not ready"),
            (PodSandboxStatus { linux: Some(linux), ..status() }, "hostNetwork"),
            (PodSandboxStatus { network: Some(elsewhere), ..status() }, "10.9.9.9"),
        ] {
            let Err(Miss::No(said)) = judge(status) else { panic!("{why}") };
            assert!(said.contains(why), "{said}");
        }
    }
}
