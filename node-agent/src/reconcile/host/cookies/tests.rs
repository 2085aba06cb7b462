use super::*;
use crate::kernel::fake::RecordingKernel;

const PORTS: [u16; 2] = [8080, 9090];

fn uid(number: u8) -> PodUid {
    PodUid::new(format!("u{number}")).unwrap()
}

fn ip(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

/// Where the node's own connections come from.
fn node() -> BTreeSet<IpAddr> {
    BTreeSet::from([ip(254)])
}

fn cgroup(id: u64) -> CgroupRef {
    CgroupRef { level: 2, id, path: "system.slice/kubelet.service".into() }
}

/// The fake kernel's cookies count from 1.
fn cookie(number: u64) -> Cookie {
    Cookie::new(number.to_be_bytes())
}

fn set(numbers: &[u64]) -> BTreeSet<Cookie> {
    numbers.iter().map(|number| cookie(*number)).collect()
}

fn given(kernel: &RecordingKernel) -> BTreeMap<IpAddr, Cookie> {
    crate::kernel::Kernel::cookies(kernel).unwrap()
}

async fn start(kernel: &RecordingKernel, pods: &[u8]) -> Cookies {
    let pool = Arc::new(Pool::new(Arc::new(kernel.clone()), Some(1)).unwrap());
    let pods = pods.iter().map(|pod| (uid(*pod), vec![ip(*pod)])).collect();
    Cookies::start(pool, Metrics::new(), None, cgroup(1), pods, "a test").await.unwrap()
}

async fn accepted(cookies: &Cookies, pod: u8) -> BTreeSet<Cookie> {
    match cookies.door(&uid(pod), node(), &PORTS).await {
        ProbeDoor::Cookie { cookies, addresses, ports } => {
            assert_eq!((addresses, ports), (node(), BTreeSet::from(PORTS)));
            cookies
        }
        other => panic!("{other:?}"),
    }
}

/// What a pod's task does: its rules are committed, then it is confirmed.
async fn settle(cookies: &Cookies, pod: u8) {
    let door = cookies.door(&uid(pod), node(), &PORTS).await;
    cookies.admit(&uid(pod), &[ip(pod)], &door).await;
}

#[tokio::test]
async fn probes_carry_a_cookie_once_the_rules_accept_it_and_until_the_pod_goes() {
    let kernel = RecordingKernel::default();
    let cookies = start(&kernel, &[]).await;
    assert_eq!(kernel.cookies_on(), Some(cgroup(1)));
    let door = cookies.door(&uid(1), node(), &PORTS).await;
    assert_eq!(given(&kernel), BTreeMap::new(), "its rules are not there yet");
    assert_eq!(cookies.door(&uid(1), node(), &PORTS).await, door, "asked twice, the same");
    cookies.admit(&uid(1), &[ip(1), ip(101)], &door).await;
    settle(&cookies, 2).await;
    assert_eq!(
        given(&kernel),
        BTreeMap::from([(ip(1), cookie(1)), (ip(101), cookie(1)), (ip(2), cookie(2))]),
        "each pod has its own, for all of its addresses"
    );
    cookies.dismiss(&uid(1)).await;
    assert_eq!(given(&kernel), BTreeMap::from([(ip(2), cookie(2))]));
    assert_eq!(accepted(&cookies, 1).await, set(&[3]), "one that comes back has another");
}

#[tokio::test]
async fn a_pod_without_probes_has_no_cookie() {
    let kernel = RecordingKernel::default();
    let cookies = start(&kernel, &[]).await;
    assert_eq!(cookies.door(&uid(1), node(), &[]).await, ProbeDoor::Closed);
    cookies.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    assert_eq!(given(&kernel), BTreeMap::new());
    settle(&cookies, 1).await;
    assert_eq!(given(&kernel).len(), 1);
    cookies.admit(&uid(1), &[ip(1)], &ProbeDoor::Closed).await;
    assert_eq!(given(&kernel), BTreeMap::new(), "its door was closed");
}

#[tokio::test]
async fn an_address_has_one_owner() {
    let kernel = RecordingKernel::default();
    let cookies = start(&kernel, &[]).await;
    settle(&cookies, 1).await;
    let door = cookies.door(&uid(2), node(), &PORTS).await;
    cookies.admit(&uid(2), &[ip(1)], &door).await;
    assert_eq!(given(&kernel), BTreeMap::from([(ip(1), cookie(2))]));
    cookies.dismiss(&uid(1)).await;
    assert_eq!(given(&kernel), BTreeMap::from([(ip(1), cookie(2))]), "it is the other's now");
}

#[tokio::test(start_paused = true)]
async fn a_cookie_follows_another_with_no_moment_in_which_what_is_carried_is_not_accepted() {
    let kernel = RecordingKernel::default();
    let cookies = start(&kernel, &[]).await;
    settle(&cookies, 1).await;
    tokio::time::advance(LIFE - Duration::from_secs(1)).await;
    assert_eq!(cookies.turn().await, []);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(cookies.turn().await, [uid(1)]);
    assert_eq!(cookies.turn().await, [], "once");
    assert_eq!(accepted(&cookies, 1).await, set(&[1, 2]));
    // Its rules are still the old ones, and it is looked at.
    let old = ProbeDoor::Cookie { cookies: set(&[1]), addresses: node(), ports: PORTS.into() };
    cookies.admit(&uid(1), &[ip(1)], &old).await;
    assert_eq!(given(&kernel)[&ip(1)], cookie(1));
    settle(&cookies, 1).await;
    assert_eq!(given(&kernel)[&ip(1)], cookie(2));
    assert_eq!(accepted(&cookies, 1).await, set(&[1, 2]), "the former one may be on its way");
    tokio::time::advance(LINGERS).await;
    assert_eq!(cookies.turn().await, [uid(1)]);
    assert_eq!(accepted(&cookies, 1).await, set(&[2]));
    settle(&cookies, 1).await;
    assert_eq!(given(&kernel)[&ip(1)], cookie(2));
}

#[tokio::test]
async fn a_later_run_goes_on_with_what_is_given_out() {
    let kernel = RecordingKernel::default();
    let former = start(&kernel, &[]).await;
    for pod in 1..=3 {
        settle(&former, pod).await;
    }
    drop(former);
    let cookies = start(&kernel, &[1, 3]).await;
    assert_eq!(given(&kernel), BTreeMap::from([(ip(1), cookie(1)), (ip(3), cookie(3))]), "2 is gone");
    assert_eq!(accepted(&cookies, 1).await, set(&[1]));
    assert_eq!(accepted(&cookies, 2).await, set(&[4]));
}

#[tokio::test]
async fn the_program_follows_the_kubelet_and_comes_back() {
    let kernel = RecordingKernel::default();
    let cookies = start(&kernel, &[]).await;
    settle(&cookies, 1).await;
    cookies.look(cgroup(2)).await;
    assert_eq!(kernel.cookies_on(), Some(cgroup(2)));
    assert!(!cookies.metrics.render().contains("cookie_program"), "a kubelet's restart is no drift");
    kernel.lose_cookie_program();
    cookies.look(cgroup(2)).await;
    assert_eq!(kernel.cookies_on(), Some(cgroup(2)));
    assert!(cookies.metrics.render().contains("cookie_program\"} 1"));
    assert_eq!(given(&kernel), BTreeMap::from([(ip(1), cookie(1))]), "with the cookies that were given out");
}

#[tokio::test]
async fn what_fails_is_said_and_tried_again() {
    let kernel = RecordingKernel::default();
    let cookies = start(&kernel, &[]).await;
    assert!(!cookies.choice().because.contains("but"), "{}", cookies.choice().because);
    kernel.refuse_bpf(true);
    settle(&cookies, 1).await;
    cookies.look(cgroup(2)).await;
    assert!(cookies.choice().because.contains("probes may be captured now"), "{}", cookies.choice().because);
    kernel.refuse_bpf(false);
    settle(&cookies, 1).await;
    cookies.look(cgroup(2)).await;
    assert_eq!(given(&kernel), BTreeMap::from([(ip(1), cookie(1))]));
    assert!(!cookies.choice().because.contains("but"), "{}", cookies.choice().because);
}
