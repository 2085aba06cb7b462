//! Pods that a run with another backend has captured.

use super::*;

/// Captured by a run with the other backend, which ended; `wanted` says whether it is to be captured now.
async fn with_another_backends_pod(wanted: bool) -> (Boxed, NetnsId) {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), RecordingKernel::default());
    let path = "/run/netns/u1";
    let id = kernel.netns_at(path);
    kernel.set_addresses(id, vec!["10.0.0.2".parse().unwrap()]);
    kernel.set_listening(id, PORTS);
    let plan = planned(Stage::Redirect(Older::None));
    let former = lower(Backend::Iptables, Step::Enroll { plan: &plan, live: false });
    kernel.run(&kernel.open(Path::new(path)).unwrap(), &former).unwrap();
    drop(kernel.take_log());
    let remembered = Sandbox {
        uid: PodUid::new("u1").unwrap(),
        pod: attachment("u1").pod.unwrap(),
        service_account: Some("sa".into()),
        attachment: Some(attachment("u1").id),
        path: path.into(),
        netns: id,
        ips: attachment("u1").ips,
        adopted: false,
        redirected: true,
    };
    Journal::open(&dir.path().join("run")).unwrap().remember(&remembered).unwrap();
    let agent = start_in(dir, kernel).await;
    agent.namespace("demo", wanted.then_some("ambient")).await;
    agent.events.send(Event::Pod(Box::new(pod("u1", None)))).await.unwrap();
    agent.synced().await;
    (agent, id)
}

fn given_way(ops: &[KernelOp]) -> bool {
    ops.ends_with(&lower(Backend::Iptables, Step::GiveWay))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_backends_rules_give_way_to_ours_in_a_pod_that_stays_captured() {
    let (agent, id) = with_another_backends_pod(true).await;
    let _ztunnel = agent.ztunnel().await;
    agent.becomes("u1", State::Enabled).await;
    let first = agent.ran(id).remove(0);
    let plan = planned(Stage::Redirect(Older::AnyMidStream));
    assert!(
        first.starts_with(&lower(Backend::Nftables, Step::Enroll { plan: &plan, live: false })),
        "ours first"
    );
    assert!(given_way(&first), "{first:?}");
    assert!(agent.ran(id)[1..].iter().all(|ops| !given_way(ops)), "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_backends_rules_do_not_keep_a_pod_that_leaves() {
    let (agent, id) = with_another_backends_pod(false).await;
    let _ztunnel = agent.ztunnel().await;
    agent.becomes("u1", State::Outside).await;
    assert!(given_way(&agent.ran(id)[0]), "{:?}", agent.ran(id));
    assert_eq!(agent.ran(id).last(), Some(&lower(Backend::Nftables, Step::Remove)));
}
