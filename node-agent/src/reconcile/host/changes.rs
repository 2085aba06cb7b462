//! One strategy follows another: the new door before the old one goes.

use super::*;
use crate::kernel::fake::{Place, RecordingKernel};
use crate::kernel::{Kernel, KernelError};
use sluice_shared::host::HostPlan;
use sluice_shared::plan::TrialDoor;

const PORTS: [u16; 1] = [8080];

fn pool(kernel: &RecordingKernel) -> Arc<Pool> {
    Arc::new(Pool::new(Arc::new(kernel.clone()), Some(1)).unwrap())
}

fn uid(number: u8) -> PodUid {
    PodUid::new(format!("u{number}")).unwrap()
}

fn ip(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn kubelet() -> CgroupRef {
    CgroupRef { level: 2, id: 7, path: "system.slice/kubelet.service".into() }
}

async fn snat(kernel: &RecordingKernel, pods: &[u8]) -> Result<Strategy, KernelError> {
    let plan = HostPlan {
        kubelet: kubelet(),
        source_v4: [169, 254, 7, 127].into(),
        source_v6: "fd16::1".parse().unwrap(),
        pods: pods.iter().map(|pod| (uid(*pod), vec![ip(*pod)])).collect(),
        trials: BTreeSet::new(),
    };
    Strategy::snat(pool(kernel), Backend::Nftables, Metrics::new(), plan, None, "a test").await
}

async fn cookie(kernel: &RecordingKernel) -> Result<Strategy, KernelError> {
    Strategy::cookie(pool(kernel), Metrics::new(), None, kubelet(), BTreeMap::new(), "a test").await
}

fn table(kernel: &RecordingKernel, strategy: Strategy) -> HostTable {
    HostTable::new(pool(kernel), Backend::Nftables, Metrics::new(), strategy)
}

async fn door(table: &HostTable, pod: u8) -> ProbeDoor {
    table.door(&uid(pod), &[ip(pod)], &PORTS).await
}

/// What a pod's task does: its rules are committed, then it is confirmed.
async fn settle(table: &HostTable, pod: u8) -> ProbeDoor {
    let door = door(table, pod).await;
    table.admit(&uid(pod), &[ip(pod)], &door).await;
    door
}

/// The names of the doors in one.
fn names(door: &ProbeDoor) -> Vec<&'static str> {
    let name = |door: &ProbeDoor| match door {
        ProbeDoor::Closed | ProbeDoor::Several(_) => "closed",
        ProbeDoor::Snat { .. } => "snat",
        ProbeDoor::Source { .. } => "source",
        ProbeDoor::Cookie { .. } => "cookie",
        ProbeDoor::Trial(_) => "trial",
    };
    door.doors().map(name).collect()
}

fn given(kernel: &RecordingKernel) -> Vec<IpAddr> {
    Kernel::cookies(kernel).unwrap().into_keys().collect()
}

fn on_host(kernel: &RecordingKernel) -> bool {
    Kernel::observe_host(kernel).unwrap().is_some()
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_both_doors_while_its_probes_change_over() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, snat(&kernel, &[]).await.unwrap());
    assert_eq!(names(&settle(&table, 1).await), ["snat"]);
    settle(&table, 2).await;
    let changed = table.change_to(Arc::new(cookie(&kernel).await.unwrap())).await;
    assert_eq!(changed, [uid(1), uid(2)]);
    assert_eq!(names(&door(&table, 1).await), ["cookie", "snat"]);
    assert!(given(&kernel).is_empty(), "its rules do not accept it yet");
    settle(&table, 1).await;
    assert_eq!(given(&kernel), [ip(1)]);
    assert_eq!(names(&door(&table, 1).await), ["cookie", "snat"], "what was sent before is on its way");
    // A pod that comes now has nothing to change.
    assert_eq!(names(&settle(&table, 3).await), ["cookie"]);
    tokio::time::advance(LINGERS).await;
    assert_eq!(table.turn().await, [uid(1), uid(2)], "one is over, the other is asked again");
    assert_eq!(names(&settle(&table, 1).await), ["cookie"]);
    assert!(table.is_changing() && on_host(&kernel), "the other still counts on it");
    settle(&table, 2).await;
    tokio::time::advance(LINGERS).await;
    assert_eq!(table.turn().await, [uid(2)]);
    assert!(!table.is_changing() && !on_host(&kernel));
    assert_eq!(table.choice().chosen, "cookie");
    table.look(Some(kubelet())).await;
    assert!(!on_host(&kernel), "what is retired is not put back");
}

#[tokio::test(start_paused = true)]
async fn the_host_gives_a_source_only_to_pods_that_accept_it() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, cookie(&kernel).await.unwrap());
    settle(&table, 1).await;
    table.change_to(Arc::new(snat(&kernel, &[]).await.unwrap())).await;
    drop(kernel.take_log());
    // Its plan was made before.
    let before =
        ProbeDoor::Cookie { cookies: BTreeSet::new(), addresses: BTreeSet::new(), ports: PORTS.into() };
    table.admit(&uid(2), &[ip(2)], &before).await;
    assert!(kernel.log().is_empty());
    assert_eq!(table.turn().await, [uid(1), uid(2)], "both are asked to settle");
    settle(&table, 1).await;
    assert_eq!(kernel.take_log().len(), 1, "it is in the table now");
    assert!(!given(&kernel).contains(&ip(1)));
    settle(&table, 2).await;
    tokio::time::advance(LINGERS).await;
    table.turn().await;
    assert!(!table.is_changing() && kernel.cookies_on().is_none());
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_former_run_count_until_they_have_changed_over_or_gone() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, snat(&kernel, &[1, 2]).await.unwrap());
    let changed = table.change_to(Arc::new(Strategy::source("a test"))).await;
    assert_eq!(changed, [uid(1), uid(2)]);
    assert_eq!(names(&settle(&table, 1).await), ["source", "snat"]);
    tokio::time::advance(LINGERS).await;
    assert_eq!(table.turn().await, [uid(1), uid(2)]);
    assert!(table.is_changing());
    table.dismiss(&uid(2)).await;
    assert!(table.turn().await.is_empty());
    assert!(!table.is_changing() && !on_host(&kernel));
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_port_to_probe_holds_nothing_up() {
    let kernel = RecordingKernel::default();
    for by_snat in [false, true] {
        let before = if by_snat { snat(&kernel, &[]).await.unwrap() } else { Strategy::source("a test") };
        let table = table(&kernel, before);
        let portless = table.door(&uid(1), &[ip(1)], &[]).await;
        table.admit(&uid(1), &[ip(1)], &portless).await;
        table.change_to(Arc::new(cookie(&kernel).await.unwrap())).await;
        let closed = table.door(&uid(1), &[ip(1)], &[]).await;
        assert_eq!(closed, ProbeDoor::Closed);
        table.admit(&uid(1), &[ip(1)], &closed).await;
        tokio::time::advance(LINGERS).await;
        assert_eq!(table.turn().await, [uid(1)]);
        assert!(!table.is_changing() && !on_host(&kernel));
    }
    // The other way round it has something to take over: that door is the same for every pod.
    let table = table(&kernel, Strategy::source("a test"));
    table.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    table.change_to(Arc::new(snat(&kernel, &[]).await.unwrap())).await;
    let open = table.door(&uid(1), &[ip(1)], &[]).await;
    assert_eq!(names(&open), ["snat"]);
    table.admit(&uid(1), &[ip(1)], &open).await;
    tokio::time::advance(LINGERS).await;
    table.turn().await;
    assert!(!table.is_changing() && on_host(&kernel));
}

/// The host takes no rules, by either of the ways that are tried next.
fn refuse(kernel: &RecordingKernel) {
    kernel.fail_next(Place::Host, libc::EPERM);
    kernel.fail_next(Place::Host, libc::EPERM);
}

#[tokio::test(start_paused = true)]
async fn pods_keep_the_door_for_a_table_that_the_host_does_not_let_go() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, snat(&kernel, &[]).await.unwrap());
    settle(&table, 1).await;
    table.change_to(Arc::new(cookie(&kernel).await.unwrap())).await;
    refuse(&kernel);
    assert_eq!(names(&settle(&table, 1).await), ["cookie", "snat"]);
    tokio::time::advance(GIVES_UP).await;
    assert_eq!(table.turn().await, [uid(1)], "it is asked again");
    assert_eq!(names(&door(&table, 1).await), ["cookie", "snat"], "its probes still get the source");
    // The host takes rules again, but for the last moment.
    table.look(Some(kubelet())).await;
    settle(&table, 1).await;
    refuse(&kernel);
    tokio::time::advance(LINGERS).await;
    assert_eq!(table.turn().await, [uid(1)]);
    assert!(table.is_changing() && on_host(&kernel), "nobody forgets it");
    assert_eq!(names(&settle(&table, 1).await), ["cookie"]);
    assert!(table.turn().await.is_empty());
    assert!(!table.is_changing() && !on_host(&kernel));
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_refuses_holds_no_pod() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, cookie(&kernel).await.unwrap());
    settle(&table, 1).await;
    kernel.lose_cookie_program();
    kernel.refuse_bpf(true);
    table.look(Some(kubelet())).await;
    assert!(table.is_refused());
    table.change_to(Arc::new(snat(&kernel, &[]).await.unwrap())).await;
    // Its rules cannot be changed for now.
    tokio::time::advance(GIVES_UP).await;
    assert_eq!(table.turn().await, [uid(1)]);
    assert!(!table.is_changing());
}

#[tokio::test]
async fn what_is_tried_is_beside_what_is_in_force() {
    let kernel = RecordingKernel::default();
    let table = table(&kernel, Strategy::source("a test"));
    settle(&table, 1).await;
    let trial = TrialDoor { from: ip(254), from_port: Some(40_000), to: (ip(1), 50_000), cookie: None };
    table.set_trials(&uid(1), vec![ProbeDoor::Trial(trial)]);
    assert!(!table.has_trials(&uid(1)), "not in its rules yet");
    assert_eq!(names(&settle(&table, 1).await), ["source", "trial"]);
    assert!(table.has_trials(&uid(1)));
    table.set_trials(&uid(1), Vec::new());
    assert_eq!(names(&settle(&table, 1).await), ["source"]);
    assert_eq!(names(&door(&table, 2).await), ["source"], "nobody else has it");
}
