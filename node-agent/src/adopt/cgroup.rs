//! Which pod a process belongs to, by the names of its cgroups. Pure.
//!
//! The kubelet makes one cgroup for each pod: `kubepods/burstable/pod<uid>` with its cgroupfs driver,
//! `kubepods-burstable-pod<uid>.slice` with systemd's, where `_` stands for each `-` of the uid. What is above differs
//! (kind puts `kubelet` before it, a nested cluster the outer pod's path), and so does what is below (the runtime's
//! scopes). Seen from a cgroup namespace, the path begins with `..` and still names the pod.

use sluice_shared::ids::PodUid;

/// The uids of the pods that `/proc/<pid>/cgroup` names (cgroups(7)), the outermost first. Where the hierarchies of
/// cgroup v1 disagree there are none: somebody has moved the process into another's cgroup.
#[must_use]
pub fn pods(proc_cgroup: &str) -> Vec<PodUid> {
    let mut agreed: Option<Vec<PodUid>> = None;
    for line in proc_cgroup.lines() {
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        let found = pods_in(path);
        match &agreed {
            _ if found.is_empty() => {}
            Some(other) if *other != found => return Vec::new(),
            Some(_) => {}
            None => agreed = Some(found),
        }
    }
    agreed.unwrap_or_default()
}

/// Whether a process that is in the cgroups of `named` (the outermost first) belongs to `uid`: the outermost one that
/// the node knows counts. A pod can make cgroups of any name below its own, but none above.
#[must_use]
pub fn belongs(named: &[PodUid], uid: &PodUid, is_known: impl Fn(&PodUid) -> bool) -> bool {
    named.iter().find(|pod| *pod == uid || is_known(pod)) == Some(uid)
}

fn pods_in(path: &str) -> Vec<PodUid> {
    // A deleted cgroup says so after its path.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    // Outside of the reader's own cgroup namespace, `kubepods` itself may be hidden behind `..`.
    let mut below_kubepods = path.starts_with("/..");
    let mut found: Vec<PodUid> = Vec::new();
    // Where the runtime and the kubelet do not agree on a driver: `kubepods-pod<uid>.slice:cri-containerd:<id>`.
    for name in path.split('/').filter_map(|name| name.split(':').next()) {
        let uid = match name.strip_suffix(".slice") {
            Some(slice) => systemd(slice),
            None if below_kubepods => name.strip_prefix("pod").and_then(uid),
            None => None,
        };
        below_kubepods |= name.contains("kubepods");
        if let Some(uid) = uid {
            // The next pod, if any, is below a `kubepods` of its own.
            below_kubepods = false;
            found.push(uid);
        }
    }
    found
}

/// `kubelet-kubepods-burstable-pod0d7f_…` → `0d7f-…`
fn systemd(slice: &str) -> Option<PodUid> {
    let (above, pod) = slice.rsplit_once("-pod")?;
    let above =
        above.strip_suffix("-burstable").or_else(|| above.strip_suffix("-besteffort")).unwrap_or(above);
    let is_kubepods = above == "kubepods" || above.ends_with("-kubepods");
    if is_kubepods { uid(&pod.replace('_', "-")) } else { None }
}

fn uid(text: &str) -> Option<PodUid> {
    PodUid::new(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "0d7f2a3c-95fb-4d4e-8f2e-2ad2ed1f2a0b";
    const OTHER: &str = "11111111-95fb-4d4e-8f2e-2ad2ed1f2a0b";

    fn named(file: &str) -> Vec<String> {
        pods(file).iter().map(|uid| uid.as_str().to_owned()).collect()
    }

    #[test]
    fn every_layout_names_its_pod() {
        let escaped = UID.replace('-', "_");
        let slice =
            |qos: &str| format!("kubepods.slice/kubepods{qos}.slice/kubepods{qos}-pod{escaped}.slice");
        let (burstable, best, guaranteed) = (
            slice("-burstable"),
            slice("-besteffort"),
            format!("kubepods.slice/kubepods-pod{escaped}.slice"),
        );
        let files = [
            // cgroup v2
            format!("0::/kubepods/burstable/pod{UID}/abc\n"),
            format!("0::/kubepods/pod{UID}/abc\n"),
            format!("0::/{burstable}/cri-containerd-abc.scope\n"),
            format!("0::/{best}/crio-abc.scope\n"),
            format!("0::/{best}/crio-abc.scope/container\n"),
            format!("0::/{guaranteed}/docker-abc.scope\n"),
            format!("0::/kubepods/besteffort/pod{UID}/crio-abc\n"),
            format!("0::/kubepods/besteffort/pod{UID}/abc (deleted)\n"),
            format!("0::/kubepods/besteffort/pod{UID} (deleted)\n"),
            format!("0::/system.slice/containerd.service/kubepods-pod{escaped}.slice:cri-containerd:abc\n"),
            // from within a cgroup namespace
            format!("0::/../../pod{UID}/abc\n"),
            format!("0::/../../../besteffort/pod{UID}/abc\n"),
            format!("0::/../../../kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/x.scope\n"),
            // kind, with and without systemd
            format!(
                "0::/system.slice/docker-0123.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{escaped}.slice/cri-containerd-a.scope\n"
            ),
            format!("0::/docker/0123/kubelet/kubepods/besteffort/pod{UID}/abc\n"),
            // cgroup v1, and both
            format!(
                "12:pids:/kubepods/burstable/pod{UID}/abc\n1:name=systemd:/kubepods/burstable/pod{UID}/abc\n"
            ),
            format!(
                "3:cpu,cpuacct:/kubepods/pod{UID}/abc\n1:name=systemd:/system.slice/containerd.service\n0::/\n"
            ),
        ];
        for file in files {
            assert_eq!(named(&file), [UID], "{file}");
        }
    }

    #[test]
    fn what_is_no_pod_names_none() {
        let files = [
            "",
            "0::/\n",
            "0::/system.slice/podman.service\n",
            "0::/podruntime/kubelet\n",
            "0::/machine.slice/libpod-abc.scope\n",
            "0::/kubepods.slice/kubepods-burstable.slice\n",
            "0::/kubepods/burstable/pod\n",
            "0::/user.slice/my-pod1.slice\n",
            "rubbish",
            "a:b",
        ];
        for file in files {
            assert_eq!(named(file), Vec::<String>::new(), "{file}");
        }
    }

    #[test]
    fn a_process_that_was_moved_in_one_hierarchy_only_is_nobodys() {
        let file = format!("4:cpu:/kubepods/pod{UID}/a\n3:pids:/kubepods/pod{OTHER}/a\n");
        assert_eq!(named(&file), Vec::<String>::new());
    }

    #[test]
    fn a_name_below_a_pods_own_cgroup_does_not_make_a_process_anothers() {
        let [ours, evil] = [UID, OTHER].map(|uid| PodUid::new(uid).unwrap());
        let planted = pods(&format!("0::/kubepods/pod{OTHER}/x/kubepods/pod{UID}/y\n"));
        assert_eq!(planted, [evil.clone(), ours.clone()]);
        let both = |uid: &PodUid| [&ours, &evil].contains(&uid);
        assert!(!belongs(&planted, &ours, both));
        assert!(belongs(&planted, &evil, both));
        // In a cluster within a pod of another one, the outer pod is not known, and the inner one counts.
        assert!(belongs(&planted, &ours, |uid| *uid == ours));
        assert!(!belongs(&[], &ours, both));
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in ".*") {
            let _ = pods(&text);
        }

        #[test]
        fn whatever_is_around_it_the_pod_is_found(
            above in "(/[a-z0-9.]{1,8}){0,4}", below in "(/[a-z0-9-]{1,8}){0,3}", systemd: bool,
        ) {
            prop_assume!(!above.contains("kubepods") && !above.contains("pod") && !below.contains("kubepods"));
            let pod = match systemd {
                true => format!("kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_")),
                false => format!("kubepods/burstable/pod{UID}"),
            };
            prop_assert_eq!(named(&format!("0::{above}/{pod}{below}")), [UID]);
        }
    }
}
