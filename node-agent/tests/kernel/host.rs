//! The host's table as the probe strategy keeps it, in a namespace that plays the host's.

use crate::fixture::Ns;
use crate::packets::TestCgroups;
use sluice_agent::kernel::linux::iptables::Variant;
use sluice_agent::kernel::linux::{LinuxKernel, cgroup};
use sluice_agent::kernel::{Fingerprint, HostProc, Kernel, Pool};
use sluice_agent::metrics::Metrics;
use sluice_agent::reconcile::{HostTable, Strategy};
use sluice_shared::host::{self, HostPlan, HostStep};
use sluice_shared::ids::{Family, PodUid};
use sluice_shared::lower::Backend;
use sluice_shared::plan::ProbeDoor;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub const TESTS: &[(&str, fn())] = &[
    ("a_table_that_changes_stays_ours_and_goes_with_its_strategy_nftables", || lifecycle(Backend::Nftables)),
    ("a_table_that_changes_stays_ours_and_goes_with_its_strategy_iptables", || lifecycle(Backend::Iptables)),
    ("a_table_of_many_pods_reads_back_as_it_was_written", many_pods),
    ("what_others_do_in_the_hosts_iptables_tables_is_no_drift", among_others),
    ("a_replacement_whose_jumps_somebody_flushed_is_not_taken_for_ours", flushed_before_a_replacement),
];

/// A plan with one pod.
fn plan(tree: &TestCgroups) -> HostPlan {
    HostPlan {
        kubelet: cgroup::at_path(&HostProc::default(), &tree.path("ztunnel")).expect("the cgroup is there"),
        source_v4: [169, 254, 7, 127].into(),
        source_v6: "fd16:9254:7127:1337::1".parse().expect("an address"),
        pods: BTreeMap::from([pod(1)]),
        trials: BTreeSet::new(),
    }
}

/// kube-proxy, the primary CNI and port mappings write to the same tables all the time.
fn among_others() {
    let (host, tree) = (Ns::new(), TestCgroups::new("host-others"));
    let plan = plan(&tree);
    host.run(|| {
        let kernel =
            LinuxKernel::new(std::path::Path::new("/proc/thread-self/ns/net")).expect("own namespace");
        kernel.run_host(&host::lower(Backend::Iptables, HostStep::Install(&plan))).expect("installed");
        let installed = shown(&kernel).expect("it is there");
        let table = nft(&["list", "tables"]);
        assert!(table.contains("table ip nat"), "iptables here is of the other kind: {table:?}");
        let changed = |arguments: &[&str]| {
            let output =
                std::process::Command::new("iptables").args(arguments).output().expect("run iptables");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            shown(&kernel) != Some(installed)
        };
        assert!(!changed(&["-t", "nat", "-N", "KUBE-SVC"]));
        assert!(!changed(&["-t", "nat", "-A", "KUBE-SVC", "-p", "tcp", "-j", "RETURN"]));
        assert!(!changed(&["-t", "nat", "-A", "POSTROUTING", "-j", "KUBE-SVC"]));
        assert!(!changed(&["-t", "nat", "-A", "OUTPUT", "-j", "KUBE-SVC"]));
        assert!(
            changed(&["-t", "nat", "-I", "POSTROUTING", "-j", "KUBE-SVC"]),
            "what comes before ours may take packets"
        );
        assert!(!changed(&["-t", "nat", "-D", "POSTROUTING", "1"]));
        assert!(changed(&["-t", "nat", "-A", "SLUICE_POSTROUTING", "-j", "RETURN"]));
        assert!(!changed(&["-t", "nat", "-D", "SLUICE_POSTROUTING", "-j", "RETURN"]));
        assert!(changed(&["-t", "nat", "-D", "POSTROUTING", "-j", "SLUICE_POSTROUTING"]), "the jump is gone");
    });
}

/// A replacement counts on the jumps that are there. Who flushes them between our look and our commit leaves chains that
/// nobody goes to, and they must not be taken for what was written.
fn flushed_before_a_replacement() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let (host, tree) = (Ns::new(), TestCgroups::new("host-flushed"));
        let plan = plan(&tree);
        host.run(|| {
            let kernel =
                LinuxKernel::new(std::path::Path::new("/proc/thread-self/ns/net")).expect("own namespace");
            kernel.use_iptables(variant);
            let write =
                |step| kernel.write_host(&host::lower(Backend::Iptables, step)).expect("the kernel takes it");
            let flush = |family, arguments: &[&str]| {
                let mut command = std::process::Command::new(variant.program(family));
                let output = command.args(arguments).output().expect("run iptables");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            };
            let written = write(HostStep::Install(&plan));
            assert!(written.is_some() && written == shown(&kernel), "{variant}");
            for family in Family::BOTH {
                flush(family, &["-t", "nat", "-F", "POSTROUTING"]);
                assert_eq!(write(HostStep::Replace(&plan)), None, "{variant}: the jump is gone");
                flush(family, &["-t", "nat", "-F"]);
                assert_eq!(write(HostStep::Replace(&plan)), None, "{variant}: everything was flushed");
                assert_eq!(write(HostStep::Install(&plan)), written, "{variant}: built anew");
                assert_eq!(write(HostStep::Replace(&plan)), written, "{variant}: nothing was missing");
            }
            flush(Family::V4, &["-t", "nat", "-I", "POSTROUTING", "-j", "RETURN"]);
            assert_eq!(write(HostStep::Replace(&plan)), None, "{variant}: somebody is before us");
        });
    }
}

/// Over the room of its sets and back, and at once: the kernel moves the elements of a set that has no size when it grows,
/// and a table that is read meanwhile would look like one that somebody changed.
fn many_pods() {
    let (host, tree) = (Ns::new(), TestCgroups::new("host-many"));
    let base = plan(&tree);
    let with = |pods: usize| {
        let pods = (0..pods).map(|number| {
            let [high, low] = u16::try_from(number).expect("few enough").to_be_bytes();
            (PodUid::new(format!("u{number}")).expect("a uid"), vec![IpAddr::from([10, 1, high, low])])
        });
        HostPlan { pods: pods.collect(), ..base.clone() }
    };
    host.run(|| {
        let kernel =
            LinuxKernel::new(std::path::Path::new("/proc/thread-self/ns/net")).expect("own namespace");
        let mut before = with(0);
        let mut at_once = kernel.write_host(&host::lower(Backend::Nftables, HostStep::Install(&before)));
        for (pods, amended) in [(256, true), (257, false), (512, true), (2000, false), (256, false)] {
            let written = at_once.expect("the kernel takes it").expect("nobody else is here");
            let after = with(pods);
            let ops = before.amended(Backend::Nftables, &after);
            assert_eq!(ops.is_some(), amended, "{pods} pods");
            at_once = match ops {
                Some(ops) => kernel.amend_host(written, &ops),
                None => kernel.write_host(&host::lower(Backend::Nftables, HostStep::Replace(&after))),
            };
            std::thread::sleep(std::time::Duration::from_millis(300));
            assert_eq!(at_once.as_ref().ok().copied().flatten(), shown(&kernel), "{pods} pods");
            assert_eq!(nft(&["list", "set", "inet", "sluice", "pods4"]).matches("comment").count(), pods);
            before = after;
        }
    });
}

fn lifecycle(backend: Backend) {
    let (host, tree) = (Ns::new(), TestCgroups::new(&format!("host-{backend}")));
    let plan = plan(&tree);
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
    let started =
        Strategy::snat(Arc::clone(&pool), backend, metrics.clone(), plan.clone(), None, "a test").await;
    let strategy = started.expect("this kernel takes the host's table");
    let table = HostTable::new(Arc::clone(&pool), backend, metrics.clone(), strategy);
    let with_one = shown(kernel).expect("installed");
    let built = handle(backend);
    let ((uid, ips), (heir, _)) = (pod(2), pod(3));
    table.admit(&uid, &ips, &ProbeDoor::Closed).await;
    let with_two = shown(kernel).expect("changed");
    assert_ne!(with_one, with_two);
    table.look(Some(plan.kubelet.clone())).await;
    // An address that another pod has now: what changes is only whose it is.
    table.admit(&heir, &ips, &ProbeDoor::Closed).await;
    if backend == Backend::Nftables {
        assert_eq!(shown(kernel), Some(with_two));
        let pods = nft(&["list", "set", "inet", "sluice", "pods4"]);
        assert!(pods.contains("comment \"u3\"") && !pods.contains("u2"), "{pods}");
    }
    table.dismiss(&uid).await;
    table.dismiss(&heir).await;
    assert_eq!(shown(kernel), Some(with_one), "changed, it is the same as installed");
    if backend == Backend::Nftables {
        assert_eq!(handle(backend), built, "nothing but elements came and went");
        nft(&["add", "element", "inet", "sluice", "pods4", "{ 10.9.9.9 }"]);
        table.admit(&uid, &ips, &ProbeDoor::Closed).await;
        assert_eq!(shown(kernel), Some(with_two), "what somebody else put in is gone");
        assert_ne!(handle(backend), built, "by a table that was written whole");
        table.dismiss(&uid).await;
    }
    assert!(!metrics.render().contains("host_table"), "our own changes are no drift");

    // A former run's table, whatever wrote it, goes when this run's strategy needs none.
    for other in [Backend::Nftables, Backend::Iptables] {
        let table = HostTable::new(Arc::clone(&pool), other, Metrics::new(), Strategy::source("a test"));
        table.remove().await;
        assert_eq!(shown(kernel), None);
    }
}

/// The number that the kernel gave to the table when it was made.
fn handle(backend: Backend) -> Option<String> {
    let shown = (backend == Backend::Nftables).then(|| nft(&["-a", "list", "table", "inet", "sluice"]))?;
    let (_, handle) = shown.lines().next()?.split_once("# handle ").expect("nft -a shows handles");
    Some(handle.to_owned())
}

fn nft(arguments: &[&str]) -> String {
    let output = std::process::Command::new("nft").args(arguments).output().expect("run nft");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn shown(kernel: &LinuxKernel) -> Option<Fingerprint> {
    kernel.observe_host().expect("observe")
}

fn pod(number: u8) -> (PodUid, Vec<IpAddr>) {
    (PodUid::new(format!("u{number}")).expect("a uid"), vec![[10, 0, 0, number].into()])
}
