//! The host's table as the probe strategy keeps it, in a namespace that plays the host's.

use crate::fixture::Ns;
use crate::packets::TestCgroups;
use sluice_agent::kernel::linux::{LinuxKernel, cgroup};
use sluice_agent::kernel::{Fingerprint, HostProc, Kernel, Pool};
use sluice_agent::metrics::Metrics;
use sluice_agent::reconcile::HostTable;
use sluice_shared::host::HostPlan;
use sluice_shared::ids::PodUid;
use sluice_shared::lower::Backend;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub const TESTS: &[(&str, fn())] = &[
    ("a_table_that_changes_stays_ours_and_goes_with_its_strategy_nftables", || lifecycle(Backend::Nftables)),
    ("a_table_that_changes_stays_ours_and_goes_with_its_strategy_iptables", || lifecycle(Backend::Iptables)),
];

fn lifecycle(backend: Backend) {
    let (host, tree) = (Ns::new(), TestCgroups::new(&format!("host-{backend}")));
    let kubelet = cgroup::at_path(&HostProc::default(), &tree.path("ztunnel")).expect("the cgroup is there");
    let plan = HostPlan {
        kubelet,
        source_v4: [169, 254, 7, 127].into(),
        source_v6: "fd16:9254:7127:1337::1".parse().expect("an address"),
        pods: BTreeMap::from([pod(1)]),
    };
    host.run(|| {
        let path = std::path::Path::new("/proc/thread-self/ns/net");
        let kernel = Arc::new(LinuxKernel::new(path).expect("own namespace"));
        let pool = Arc::new(Pool::new(Arc::clone(&kernel) as Arc<dyn Kernel>, Some(1)).expect("threads"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(change_and_remove(&kernel, pool, backend, plan));
    });
    assert_eq!(host.command("nft", &["list", "ruleset"], ""), "");
}

async fn change_and_remove(kernel: &LinuxKernel, pool: Arc<Pool>, backend: Backend, plan: HostPlan) {
    let metrics = Metrics::new();
    let table = HostTable::snat(Arc::clone(&pool), backend, metrics.clone(), plan.clone(), None, "a test")
        .await
        .expect("this kernel takes the host's table");
    let with_one = shown(kernel).expect("installed");
    let (uid, ips) = pod(2);
    table.admit(&uid, &ips).await;
    let with_two = shown(kernel).expect("replaced");
    assert_ne!(with_one, with_two);
    table.look(Some(plan.kubelet.clone())).await;
    table.dismiss(&uid).await;
    assert_eq!(shown(kernel), Some(with_one), "replaced, it is the same as installed");
    assert!(!metrics.render().contains("host_table"), "our own changes are no drift");

    // A former run's table, whatever wrote it, goes when this run's strategy needs none.
    for other in [Backend::Nftables, Backend::Iptables] {
        let table = HostTable::source(Arc::clone(&pool), other, Metrics::new(), "a test");
        table.remove().await;
        assert_eq!(shown(kernel), None);
    }
}

fn shown(kernel: &LinuxKernel) -> Option<Fingerprint> {
    kernel.observe_host().expect("observe")
}

fn pod(number: u8) -> (PodUid, Vec<IpAddr>) {
    (PodUid::new(format!("u{number}")).expect("a uid"), vec![[10, 0, 0, number].into()])
}
