//! What is chosen at the start, by trying: the backend, the mark guard, the drift watch (the probe strategy: `probes`). Each choice
//! carries its reason, for `sluicectl status`.

use crate::adopt;
use crate::config::{BackendChoice, Config, KubeletCgroup, MarkGuardChoice};
use crate::journal::{Journal, Sandbox};
use crate::kernel::linux::LinuxKernel;
use crate::kernel::linux::watch::Watch;
use crate::kernel::{Hint, HostProc, Kernel, KernelError, Pool, WatchHandle};
use crate::reconcile::{Context, Trust};
use anyhow::Context as _;
use sluice_shared::admin::Choice;
use sluice_shared::enroll::Overrides;
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use sluice_shared::plan::{self, CgroupRef, Hold, MarkGuard, Older, ProbeDoor, RedirectPlan, Stage};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Where kubelets are found, most common first: systemd's unit, its slice with kubelet's cgroup driver settings, and the
/// distributions that run the kubelet within their own process.
const KUBELET_CGROUPS: [&str; 8] = [
    "system.slice/kubelet.service",
    "runtime.slice/kubelet.service",
    "kubelet.slice/kubelet.service",
    "podruntime/kubelet",
    "system.slice/k3s.service",
    "system.slice/k3s-agent.service",
    "system.slice/rke2-server.service",
    "system.slice/snap.microk8s.daemon-kubelite.service",
];

/// What the process is called that is a kubelet, or has one in it. Looked for where none of the cgroups above is there.
const KUBELETS: [&str; 4] = ["kubelet", "k3s-server", "k3s-agent", "kubelite"];

/// How long pods may take to renew their rules once all of them have been looked at.
const RULES_RENEWED_WITHIN: Duration = Duration::from_secs(10);

/// Finds the kubelet's cgroup again and again: a kubelet that restarts may get a new one.
#[derive(Clone)]
pub(super) struct Kubelet {
    choice: KubeletCgroup,
    proc: HostProc,
    /// Where it was found last, to look there first.
    last: Option<String>,
}

/// The backend that takes a whole plan in a scratch namespace.
///
/// # Errors
/// When none does: no pod could be captured.
pub(super) fn backend(config: &Config, kernel: &LinuxKernel) -> anyhow::Result<(Backend, Choice)> {
    let only = match config.backend {
        BackendChoice::Auto => None,
        BackendChoice::Nftables => Some(Backend::Nftables),
        BackendChoice::Iptables => Some(Backend::Iptables),
    };
    let (backend, because) =
        kernel.probe_backends(&sample(config), only).context("no backend works on this node")?;
    tracing::info!(%backend, because, "backend chosen");
    Ok((backend, Choice { chosen: backend.to_string(), because }))
}

/// A plan with everything in it that this configuration may ask for, but the mark guard.
pub(super) fn sample(config: &Config) -> RedirectPlan {
    plan::redirect(
        &Overrides::default(),
        &config.redirect_config(),
        Stage::Redirect(Older::AnyMidStream),
        ProbeDoor::Snat { v4: config.probe_source_v4, v6: config.probe_source_v6 },
        MarkGuard::Off,
        Hold::Drop,
    )
}

/// Whose marks are trusted. A guard that the kernel refuses would keep every pod out of the mesh: it is off then.
pub(super) fn trust(
    config: &Config,
    kernel: &LinuxKernel,
    backend: Backend,
    pool: &Arc<Pool>,
    journal: &Journal,
) -> Trust {
    match config.mark_guard {
        MarkGuardChoice::Off => {
            Trust::anybody(journal.clone(), "markGuard is off in the configuration".into())
        }
        MarkGuardChoice::Auto => match kernel.guard_works(backend, &sample(config)) {
            Ok(()) => Trust::by_cgroup(Arc::clone(pool), journal.clone()),
            Err(error) => {
                tracing::warn!(%error, "the mark guard is off: a pod with CAP_NET_ADMIN can pass for ztunnel");
                Trust::anybody(journal.clone(), format!("rules by cgroup do not work on this node: {error}"))
            }
        },
    }
}

/// The pods that a former run captured and that are still there, with their addresses: their probes pass from the start,
/// not only when each has been looked at.
pub(super) async fn captured_before(pool: &Pool, remembered: Vec<Sandbox>) -> BTreeMap<PodUid, Vec<IpAddr>> {
    let found = pool.run(move |kernel| {
        let there = |pod: &Sandbox| kernel.open(&pod.path).is_ok_and(|netns| netns.id() == pod.netns);
        let captured = remembered.into_iter().filter(|pod| pod.redirected && there(pod));
        Ok(captured.map(|pod| (pod.uid, pod.ips)).collect())
    });
    found.await.unwrap_or_default()
}

/// Takes a former run's program off the kubelet's cgroup where cookies are no longer what probes pass by: once the pods
/// that were captured then have rules of today's, or none. Returns once no such program is left to be taken for a new one.
pub(super) async fn clear_cookies(cx: &Context, mut recalled: watch::Receiver<bool>) {
    let (pool, journal) = (&cx.kernel, &cx.journal);
    let Some(kubelet) = journal.cookies().filter(|_| cx.host.choice().chosen != "cookie") else { return };
    if recalled.wait_for(|recalled| *recalled).await.is_err() {
        return;
    }
    tokio::time::sleep(RULES_RENEWED_WITHIN).await;
    let path = kubelet.path.clone();
    match pool.run(move |kernel| kernel.detach_cookies(&kubelet)).await {
        Ok(_) => tracing::info!(path, "a former run's program is off the kubelet's cgroup"),
        Err(error) => tracing::info!(path, %error, "a former run's program went with the kubelet's cgroup"),
    }
    if let Err(error) = journal.forget_cookies() {
        tracing::warn!(%error, "where the program was that writes cookies cannot be forgotten");
    }
}

impl Kubelet {
    pub(super) fn new(config: &Config) -> Self {
        let (choice, proc) = (config.kubelet_cgroup.clone(), HostProc::at(&config.host_proc));
        Self { choice, proc, last: None }
    }

    /// Its cgroup as it is now.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) async fn find(&mut self, pool: &Pool) -> Result<CgroupRef, KernelError> {
        let Self { choice, proc, last } = self.clone();
        let found = pool.run(move |kernel| match &choice {
            KubeletCgroup::Path(path) => kernel.cgroup_at(&path.to_string_lossy()),
            KubeletCgroup::Auto => {
                let likely = last.as_deref().into_iter().chain(KUBELET_CGROUPS);
                let found = likely.into_iter().find_map(|path| kernel.cgroup_at(path).ok());
                found.or_else(|| running_kubelet(kernel, &proc)).ok_or_else(|| KernelError::Call {
                    call: "find the kubelet's cgroup".into(),
                    source: std::io::Error::from_raw_os_error(libc::ENOENT),
                    detail: format!(
                        "none of /{}, and no process {} of root in a cgroup v2 of its own; say it as kubeletCgroup",
                        KUBELET_CGROUPS.join(", /"),
                        KUBELETS.join(", ")
                    ),
                })
            }
        });
        let found = found.await?;
        self.last = Some(found.path.clone());
        Ok(found)
    }
}

/// The cgroup of a process that is called as a kubelet is. One in a pod is none: a pod with the host's network could
/// otherwise pass for the kubelet.
fn running_kubelet(kernel: &dyn Kernel, proc: &HostProc) -> Option<CgroupRef> {
    let cgroups = proc.named(&KUBELETS).into_iter().filter_map(|pid| kernel.cgroup_of(pid).ok());
    cgroups.into_iter().find(|cgroup| !cgroup.path.contains("kubepods"))
}

/// Where pods' namespaces are looked for that no ADD has shown.
pub(super) fn adoption(config: &Config) -> adopt::Settings {
    adopt::Settings {
        cri_sockets: config.cri_sockets.clone(),
        netns_dirs: config.netns_dirs.clone(),
        host_proc: config.host_proc.clone(),
    }
}

/// The drift watch; without it the sweep alone sees changes.
pub(super) fn drift_watch(
    kernel: &LinuxKernel,
) -> (Option<WatchHandle>, Option<mpsc::Receiver<Hint>>, Choice) {
    let sweep = |because: String| {
        tracing::warn!(because, "no change can be heard: captured pods are looked at once a second");
        (None, None, Choice { chosen: "sweep".into(), because })
    };
    match Watch::start(kernel) {
        Ok(Watch { handle, hints, hearing }) if hearing.hears => {
            (Some(handle), Some(hints), Choice { chosen: "events".into(), because: hearing.reason })
        }
        Ok(deaf) => sweep(deaf.hearing.reason),
        Err(error) => sweep(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::RecordingKernel;
    use sluice_shared::ids::{NetnsId, PodRef};

    #[tokio::test]
    async fn probes_pass_from_the_start_to_captured_pods_that_are_still_there() {
        let kernel = RecordingKernel::default();
        let pool = Pool::new(Arc::new(kernel.clone()), Some(1)).unwrap();
        let remembered = |uid: &str, netns: NetnsId, redirected: bool| Sandbox {
            uid: PodUid::new(uid).unwrap(),
            pod: PodRef::new("demo", uid),
            service_account: None,
            attachment: None,
            path: format!("/run/netns/{uid}").into(),
            netns,
            ips: vec!["10.0.0.2".parse().unwrap()],
            adopted: false,
            redirected,
        };
        let [captured, outside, reused] =
            ["captured", "outside", "reused"].map(|name| kernel.netns_at(format!("/run/netns/{name}")));
        let another = NetnsId { inode: reused.inode + 100, ..reused };
        let found = captured_before(
            &pool,
            vec![
                remembered("captured", captured, true),
                remembered("outside", outside, false),
                remembered("reused", another, true),
                remembered("gone", another, true),
            ],
        );
        let uid = PodUid::new("captured").unwrap();
        assert_eq!(found.await, BTreeMap::from([(uid, vec!["10.0.0.2".parse().unwrap()])]));
    }
}
