use super::snat::WRITES;
use super::*;
use crate::journal::Journal;
use crate::kernel::Fingerprint;
use crate::kernel::fake::{Place, RecordingKernel};
use sluice_shared::host::{self, HostPlan, HostStep};
use sluice_shared::op::KernelOp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn plan() -> HostPlan {
    HostPlan {
        kubelet: CgroupRef { level: 2, id: 7, path: "system.slice/kubelet.service".into() },
        source_v4: "169.254.7.127".parse().unwrap(),
        source_v6: "fd16:9254:7127:1337::1".parse().unwrap(),
        pods: BTreeMap::new(),
        trials: BTreeSet::new(),
    }
}

fn pool(kernel: &RecordingKernel) -> Arc<Pool> {
    Arc::new(Pool::new(Arc::new(kernel.clone()), Some(2)).unwrap())
}

async fn table(kernel: &RecordingKernel, backend: Backend) -> HostTable {
    table_of(kernel, backend, plan(), None).await
}

async fn table_of(
    kernel: &RecordingKernel,
    backend: Backend,
    plan: HostPlan,
    journal: Option<Journal>,
) -> HostTable {
    let (pool, metrics) = (pool(kernel), Metrics::new());
    let started = Strategy::snat(Arc::clone(&pool), backend, metrics.clone(), plan, journal, "a test").await;
    HostTable::new(pool, backend, metrics, started.unwrap())
}

fn uid(number: usize) -> PodUid {
    PodUid::new(format!("u{number}")).unwrap()
}

fn ip(number: usize) -> IpAddr {
    IpAddr::from([10, 0, (number / 256) as u8, (number % 256) as u8])
}

fn with(pods: &[usize]) -> HostPlan {
    HostPlan { pods: pods.iter().map(|number| (uid(*number), vec![ip(*number)])).collect(), ..plan() }
}

/// Whether the last thing that was done on the host was this.
fn was_last(kernel: &RecordingKernel, expected: &[KernelOp]) -> bool {
    kernel.log().last().is_some_and(|(place, ops)| *place == Place::Host && *ops == expected)
}

/// Whether the last thing that was done on the host wrote exactly these pods.
fn in_force(
    kernel: &RecordingKernel,
    backend: Backend,
    step: fn(&HostPlan) -> HostStep<'_>,
    pods: &[usize],
) -> bool {
    was_last(kernel, &host::lower(backend, step(&with(pods))))
}

/// Whether the last thing that was done on the host led from these pods to those.
fn was_amended(kernel: &RecordingKernel, from: &HostPlan, to: &HostPlan) -> bool {
    was_last(kernel, &from.amended(Backend::Nftables, to).expect("only pods differ"))
}

#[tokio::test]
async fn pods_of_a_former_run_are_in_the_first_table() {
    let kernel = RecordingKernel::default();
    let plan = HostPlan { pods: BTreeMap::from([(uid(1), vec![ip(1)])]), ..plan() };
    let table = table_of(&kernel, Backend::Nftables, plan, None).await;
    assert!(in_force(&kernel, Backend::Nftables, |plan| HostStep::Install(plan), &[1]));
    table.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    assert_eq!(kernel.log().len(), 1, "a pod that is in the table already costs nothing");
    table.dismiss(&uid(1)).await;
    assert!(was_amended(&kernel, &with(&[1]), &with(&[])));
}

#[tokio::test]
async fn what_is_not_known_to_the_last_byte_is_written_whole() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, Backend::Nftables).await;
    table.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    assert!(was_amended(&kernel, &with(&[]), &with(&[1])));
    kernel.tamper_rules(Place::Host, Some(Fingerprint(1)));
    table.admit(&uid(2), &[ip(2)], &ProbeDoor::Closed).await;
    assert!(in_force(&kernel, Backend::Nftables, |plan| HostStep::Replace(plan), &[1, 2]), "others' changes");
    // The kernel refuses the change: an element that should go is not there, or one that should come is.
    kernel.fail_next(Place::Host, libc::ENOENT);
    table.dismiss(&uid(1)).await;
    assert!(in_force(&kernel, Backend::Nftables, |plan| HostStep::Replace(plan), &[2]), "refused");
    table.look(Some(CgroupRef { id: 8, ..plan().kubelet })).await;
    let moved = HostPlan { kubelet: CgroupRef { id: 8, ..plan().kubelet }, ..with(&[2]) };
    assert!(was_last(&kernel, &host::lower(Backend::Nftables, HostStep::Replace(&moved))), "another rule");
    assert!(!table.metrics.render().contains("host_table"), "no drift: it was written before it was seen");
}

#[tokio::test]
async fn pods_that_come_at_once_share_commits() {
    let kernel = RecordingKernel::default();
    let table = Arc::new(table(&kernel, Backend::Iptables).await);
    drop(kernel.take_log());
    kernel.set_delay(Duration::from_millis(100));
    let admits: Vec<_> = (0..200)
        .map(|number| {
            let table = Arc::clone(&table);
            tokio::spawn(async move { table.admit(&uid(number), &[ip(number)], &ProbeDoor::Closed).await })
        })
        .collect();
    for admit in admits {
        admit.await.unwrap();
    }
    let all = Vec::from_iter(0..200);
    assert!(in_force(&kernel, Backend::Iptables, |plan| HostStep::Replace(plan), &all));
    assert!(kernel.log().len() < 20, "{} commits for 200 pods", kernel.log().len());
}

#[tokio::test]
async fn an_address_has_one_owner() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, Backend::Nftables).await;
    table.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    table.admit(&uid(2), &[ip(1)], &ProbeDoor::Closed).await;
    let pods = BTreeMap::from([(uid(1), vec![]), (uid(2), vec![ip(1)])]);
    assert!(was_amended(&kernel, &with(&[1]), &HostPlan { pods, ..plan() }));
    drop(kernel.take_log());
    table.dismiss(&uid(1)).await;
    assert!(kernel.log().is_empty(), "a pod whose addresses are another's leaves nothing behind");
}

#[tokio::test]
async fn the_door_stays_while_the_table_is_ours_and_is_rebuilt_when_it_is_not() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, Backend::Iptables).await;
    let clears = |kernel: &RecordingKernel| {
        let log = kernel.take_log();
        assert_eq!(log.len(), 1, "{log:?}");
        log[0].1.contains(&KernelOp::ClearIptables)
    };
    assert!(clears(&kernel));
    table.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    assert!(!clears(&kernel));
    table.look(Some(CgroupRef { id: 8, ..plan().kubelet })).await;
    assert!(!clears(&kernel), "the kubelet has another cgroup");
    kernel.tamper_rules(Place::Host, Some(Fingerprint(1)));
    table.admit(&uid(2), &[ip(2)], &ProbeDoor::Closed).await;
    assert!(clears(&kernel), "somebody has changed the table since");
    kernel.tamper_rules(Place::Host, None);
    table.look(None).await;
    assert!(clears(&kernel), "somebody has taken the table away");
    assert!(table.metrics.render().contains("host_table\"} 1"));
}

#[tokio::test]
async fn what_others_changed_while_it_was_written_is_never_taken_for_ours() {
    for backend in [Backend::Iptables, Backend::Nftables] {
        let kernel = RecordingKernel::default();
        let table = table(&kernel, backend).await;
        let moved = CgroupRef { id: 8, ..plan().kubelet };
        let moved_plan = HostPlan { kubelet: moved.clone(), ..plan() };
        // With the jumps gone, a replacement would fill chains that nobody goes to.
        kernel.overtake_writes(1);
        table.look(Some(moved.clone())).await;
        assert!(was_last(&kernel, &host::lower(backend, HostStep::Install(&moved_plan))), "{backend}");
        drop(kernel.take_log());
        table.look(Some(moved.clone())).await;
        assert!(kernel.log().is_empty(), "{backend}: it is as it was written");
        // Somebody who does not cease: nothing is believed, and the next look tries again.
        // A look writes for the change, and once more for what it then finds.
        kernel.overtake_writes(2 * WRITES);
        table.look(Some(plan().kubelet)).await;
        drop(kernel.take_log());
        table.look(None).await;
        assert!(was_last(&kernel, &host::lower(backend, HostStep::Install(&plan()))), "{backend}");
        assert!(!table.metrics.render().contains("host_table"), "{backend}: written before it was seen");
    }
}

#[tokio::test]
async fn a_commit_that_failed_is_the_next_looks() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, Backend::Nftables).await;
    for _amended_and_written_whole in 0..2 {
        kernel.fail_next(Place::Host, libc::ENOBUFS);
    }
    table.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    drop(kernel.take_log());
    table.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    assert!(kernel.log().is_empty(), "its pods do not try, every one of them");
    table.look(None).await;
    assert!(in_force(&kernel, Backend::Nftables, |plan| HostStep::Install(plan), &[1]));
    table.look(None).await;
    assert_eq!(kernel.log().len(), 1);
    assert!(!table.metrics.render().contains("host_table"), "no drift");
}

#[tokio::test]
async fn a_former_runs_table_goes_and_a_host_without_one_is_left_alone() {
    let kernel = RecordingKernel::default();
    table(&kernel, Backend::Nftables).await;
    drop(kernel.take_log());
    let later = HostTable::new(pool(&kernel), Backend::Nftables, Metrics::new(), Strategy::source("a test"));
    kernel.fail_next(Place::Host, libc::EPERM);
    kernel.fail_next(Place::Host, libc::EPERM);
    later.remove().await;
    assert!(later.kernel.run(crate::kernel::Kernel::observe_host).await.unwrap().is_some(), "it was refused");
    later.remove().await;
    assert_eq!(later.kernel.run(crate::kernel::Kernel::observe_host).await.unwrap(), None);
    drop(kernel.take_log());
    later.remove().await;
    assert!(kernel.log().is_empty());
}

#[tokio::test]
async fn a_table_that_is_as_the_journal_remembers_it_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let kernel = RecordingKernel::default();
    let plan = plan();
    let started = async || {
        table_of(&kernel, Backend::Iptables, plan.clone(), Some(journal.clone())).await;
        kernel.log().last().unwrap().1.clone()
    };
    let [install, replace] =
        [HostStep::Install(&plan), HostStep::Replace(&plan)].map(|step| host::lower(Backend::Iptables, step));
    assert_eq!(started().await, install);
    assert_eq!(started().await, replace);
    kernel.tamper_rules(Place::Host, Some(Fingerprint(7)));
    assert_eq!(started().await, install);
}
