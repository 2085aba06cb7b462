//! The reconciler against a recording kernel and a scripted ztunnel.

mod admit;
mod adopting;
mod backends;
mod doubt;
pub(super) mod fixture;
mod flood;
mod sandboxes;
mod succession;
mod telling;
mod view;

use super::*;
use crate::journal::Sandbox;
use crate::kernel::Kernel as _;
use crate::kernel::fake::{Place, RecordingKernel};
use crate::kernel::{Fingerprint, TcpSocket};
use fixture::{
    ADD_IN_VAIN, Boxed, PORTS, Setup, attachment, direct, eventually, planned, pod, proxied, start, start_in,
    start_with, with_a_captured_pod,
};
use sluice_shared::admin::State;
use sluice_shared::lower::{Step, lower};
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{Older, Stage};
use std::path::Path;
use std::sync::atomic::Ordering;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_gets_its_rules_before_ztunnel_and_its_answer_after() {
    let agent = start().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.sandbox("u1");
    assert_eq!(agent.add("u1", "u1").await, Reply::Ok { outcome: "captured".into() });
    let plan = planned(Stage::Redirect(Older::None));
    assert_eq!(agent.ran(id), [lower(Backend::Nftables, Step::Enroll { plan: &plan, live: false })]);
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
    assert_eq!(agent.state("u1"), Some((State::Enabled, "captured".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adds_time_is_told_by_phase_and_nothing_else_is_counted_with_it() {
    let agent = start().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let _ztunnel = agent.ztunnel().await;
    agent.running_pod("u1").await;
    agent.becomes("u1", State::Enabled).await;
    let counted = |times: u32| {
        let text = agent.cx.metrics.render();
        ["queue", "decide", "kernel", "ztunnel", "confirm", "total"].iter().all(|phase| {
            let line = format!("sluice_add_duration_seconds_count{{phase=\"{phase}\"}} {times}");
            text.lines().any(|found| found == line) || (times == 0 && !text.contains(&line[..line.len() - 1]))
        })
    };
    assert!(counted(0), "a pod that joined live: {}", agent.cx.metrics.render());
    agent.sandbox("u2");
    assert_eq!(agent.add("u2", "u2").await, Reply::Ok { outcome: "captured".into() });
    assert!(counted(1), "{}", agent.cx.metrics.render());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outside_the_mesh_is_answered_at_once_with_nobody_there() {
    let agent = start().await;
    agent.namespace("demo", None).await;
    agent.synced().await;
    let id = agent.sandbox("u1");
    let reply = agent.add("u1", "u1").await;
    assert!(matches!(&reply, Reply::Ok { outcome } if outcome.starts_with("outside: ")), "{reply:?}");
    assert!(agent.ran(id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_ztunnel_the_rules_stay_and_the_plugin_is_told_to_come_back() {
    let agent = start_with(Setup { add_timeout: ADD_IN_VAIN, ..Setup::default() }).await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let id = agent.sandbox("u1");
    let reply = agent.add("u1", "u1").await;
    let Reply::Error { code: 11, msg, .. } = &reply else { panic!("{reply:?}") };
    assert!(msg.contains("demo/pod-u1") && msg.contains("ztunnel") && msg.contains("sluicectl why"), "{msg}");
    assert_eq!(agent.ran(id).len(), 1, "fail closed: the rules are in");
    assert!(matches!(agent.state("u1"), Some((State::Pending, _))));
    // The snapshot of the first ztunnel that comes brings it up.
    let ztunnel = agent.ztunnel().await;
    assert!(ztunnel.told().contains(&"add u1".to_owned()));
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_joins_after_ztunnel_and_keeps_exactly_its_older_connections() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    let flow = direct();
    let socket = TcpSocket { flow, state: 1, mark: 0, cgroup: None };
    agent.kernel.set_sockets(id, vec![socket]);
    agent.synced().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.becomes("u1", State::Enabled).await;
    let at_commit = planned(Stage::Redirect(Older::AnyMidStream));
    let narrowed = planned(Stage::Redirect(Older::Kept([flow].into())));
    assert_eq!(
        agent.ran(id),
        [
            lower(Backend::Nftables, Step::Enroll { plan: &at_commit, live: true }),
            lower(Backend::Nftables, Step::Replace(&narrowed)),
        ]
    );
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_waits_for_proxied_connections_then_takes_everything_away() {
    let (agent, ztunnel, id) = with_a_captured_pod().await;
    agent.kernel.set_sockets(id, vec![proxied()]);
    agent.namespace("demo", None).await;
    agent.becomes("u1", State::Draining).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1"], "not told to let go while a connection is proxied");
    let drained = lower(Backend::Nftables, Step::Replace(&planned(Stage::Drain)));
    eventually("nothing new is captured", || agent.ran(id).last() == Some(&drained)).await;
    agent.kernel.set_sockets(id, vec![]);
    agent.becomes("u1", State::Outside).await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
    assert_eq!(agent.ran(id).last(), Some(&lower(Backend::Nftables, Step::Remove)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_pod_that_is_wanted_again_is_captured_again() {
    let (agent, _ztunnel, id) = with_a_captured_pod().await;
    agent.kernel.set_sockets(id, vec![proxied()]);
    agent.namespace("demo", None).await;
    agent.becomes("u1", State::Draining).await;
    agent.namespace("demo", Some("ambient")).await;
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_put_right_and_counted() {
    let (agent, _ztunnel, id) = with_a_captured_pod().await;
    drop(agent.kernel.take_log());
    for (count, rules) in [(1, None), (2, Some(Fingerprint(7)))] {
        agent.kernel.tamper_rules(Place::Pod(id), rules);
        agent.cx.registry.look(None);
        eventually("it is repaired", || agent.cx.registry.showings()[0].status.drift_repairs == count).await;
    }
    agent.kernel.tamper_routing(id);
    agent.cx.registry.look(None);
    eventually("it is repaired", || agent.cx.registry.showings()[0].status.drift_repairs == 3).await;
    let plan = planned(Stage::Redirect(Older::None));
    let repair = lower(Backend::Nftables, Step::Repair(&plan));
    assert_eq!(agent.ran(id), [repair.clone(), repair.clone(), repair]);
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_taken_down_has_not_drifted_unless_it_stays_so() {
    let (agent, _ztunnel, id) = with_a_captured_pod().await;
    drop(agent.kernel.take_log());
    agent.kernel.take_loopback_down(id);
    let begun = Instant::now();
    agent.cx.registry.look(None);
    eventually("it is repaired", || agent.cx.registry.showings()[0].status.drift_repairs == 1).await;
    assert!(
        begun.elapsed() >= Duration::from_millis(500),
        "repaired while the runtime may be taking it down"
    );
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_not_enabled_while_ztunnel_is_away_or_does_not_listen() {
    let (agent, ztunnel, id) = with_a_captured_pod().await;
    ztunnel.task.abort();
    agent.becomes("u1", State::Pending).await;
    let ztunnel = agent.ztunnel().await;
    agent.becomes("u1", State::Enabled).await;
    // Its listeners vanish though it is connected: it is told anew.
    agent.kernel.set_listening(id, []);
    agent.cx.registry.look(None);
    agent.becomes("u1", State::Pending).await;
    eventually("ztunnel is told anew", || ztunnel.told().ends_with(&["del u1".into(), "add u1".into()]))
        .await;
    agent.kernel.set_listening(id, PORTS);
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_reason_and_not_the_end() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    ztunnel.refuse.store(true, Ordering::SeqCst);
    agent.running_pod("u1").await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.becomes("u1", State::Pending).await;
    eventually("the reason is said", || agent.state("u1").is_some_and(|(_, why)| why.contains("refused")))
        .await;
    ztunnel.refuse.store(false, Ordering::SeqCst);
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_serves_its_pods_before_any_source_speaks_and_keeps_what_was_kept() {
    let agent = start().await;
    let _ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let id = agent.sandbox("u1");
    agent.add("u1", "u1").await;
    let Boxed { kernel, dir, cx, zds: server, .. } = agent;
    server.close().await;
    drop(cx);
    let flow = direct();
    kernel.set_kept(id, [flow].into());
    drop(kernel.take_log());

    let agent = start_in(dir, kernel).await;
    let ztunnel = agent.ztunnel().await;
    assert_eq!(ztunnel.told(), ["add u1", "snapshot"]);
    assert!(agent.ran(id).is_empty(), "nothing is touched before the source has spoken");
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    agent.becomes("u1", State::Enabled).await;
    let kept = planned(Stage::Redirect(Older::Kept([flow].into())));
    assert_eq!(agent.ran(id)[0], lower(Backend::Nftables, Step::Replace(&kept)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_kernel_fails_the_add_and_says_why() {
    let agent = start().await;
    let _ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let id = agent.sandbox("u1");
    agent.kernel.fail_next(Place::Pod(id), libc::ENOMEM);
    let reply = agent.add("u1", "u1").await;
    let Reply::Error { code: code::REDIRECT_FAILED, msg, .. } = &reply else { panic!("{reply:?}") };
    assert!(msg.contains("demo/pod-u1"), "{msg}");
    assert_ne!(agent.state("u1").unwrap().0, State::Enabled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_pod_is_released_without_a_drain() {
    let (agent, ztunnel, id) = with_a_captured_pod().await;
    agent.kernel.set_sockets(id, vec![proxied()]);
    let mut done = pod("u1", Some("/run/netns/u1".into()));
    done.phase = sluice_shared::facts::Phase::Succeeded;
    agent.events.send(Event::Pod(Box::new(done))).await.unwrap();
    agent.becomes("u1", State::Outside).await;
    assert_eq!(ztunnel.told(), ["snapshot", "add u1", "del u1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_changes_a_live_pods_rules_at_once() {
    let (agent, _ztunnel, id) = with_a_captured_pod().await;
    let mut facts = pod("u1", Some("/run/netns/u1".into()));
    facts.annotations.insert("ambient.istio.io/dns-capture".into(), "false".into());
    agent.events.send(Event::Pod(Box::new(facts))).await.unwrap();
    let mut plan = planned(Stage::Redirect(Older::None));
    plan.capture_dns = false;
    let wanted = lower(Backend::Nftables, Step::Replace(&plan));
    eventually("the rules are replaced", || agent.ran(id).last() == Some(&wanted)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_handed_over_by_a_wrong_name_is_handed_over_anew() {
    let agent = start().await;
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let ztunnel = agent.ztunnel().await;
    agent.sandbox("u1");
    // ADD says no service account; ztunnel would keep the guess for good.
    agent.add("u1", "u1").await;
    agent.events.send(Event::Pod(Box::new(pod("u1", None)))).await.unwrap();
    eventually("it is handed over anew", || {
        ztunnel.told() == ["snapshot", "add u1", "del u1", "add u1"].map(String::from)
    })
    .await;
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_plan_could_not_be_replaced_is_not_enabled() {
    let (agent, _ztunnel, id) = with_a_captured_pod().await;
    // Tried again after 0.2, 0.4, 0.8 and 1.6 s.
    for _ in 0..4 {
        agent.kernel.fail_next(Place::Pod(id), libc::ENOMEM);
    }
    let mut facts = pod("u1", Some("/run/netns/u1".into()));
    facts.annotations.insert("ambient.istio.io/dns-capture".into(), "false".into());
    agent.events.send(Event::Pod(Box::new(facts))).await.unwrap();
    agent.becomes("u1", State::Pending).await;
    agent.cx.registry.look(None);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (state, why) = agent.state("u1").unwrap();
    assert!(state == State::Pending && why.contains("could not be replaced"), "{state}: {why}");
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_had_opted_out_stays_out_when_the_source_drops_it_first() {
    let agent = start().await;
    let ztunnel = agent.ztunnel().await;
    agent.namespace("demo", Some("ambient")).await;
    let mut facts = pod("u1", None);
    facts.labels.insert("istio.io/dataplane-mode".into(), "none".into());
    agent.events.send(Event::Pod(Box::new(facts))).await.unwrap();
    agent.synced().await;
    agent.sandbox("u1");
    agent.add("u1", "u1").await;
    agent.events.send(Event::PodGone(PodUid::new("u1").unwrap())).await.unwrap();
    agent.namespace("demo", Some("ambient")).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(agent.state("u1").unwrap().0, State::Outside);
    assert_eq!(ztunnel.told(), ["snapshot"]);
    agent.cni(Verb::Del(attachment("u1")), None).await;
    eventually("it is forgotten", || agent.state("u1").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_that_was_cut_short_is_finished() {
    let agent = start().await;
    let _ztunnel = agent.ztunnel().await;
    let id = agent.running_pod("u1").await;
    agent.kernel.tamper_rules(Place::Pod(id), Some(Fingerprint(7)));
    let flow = direct();
    agent.kernel.set_sockets(id, vec![TcpSocket { flow, state: 1, mark: 0, cgroup: None }]);
    agent.namespace("demo", Some("ambient")).await;
    agent.synced().await;
    let narrowed = planned(Stage::Redirect(Older::Kept([flow].into())));
    let wanted = lower(Backend::Nftables, Step::Replace(&narrowed));
    eventually("the rules are narrowed", || agent.ran(id).contains(&wanted)).await;
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_takes_rules_away_in_a_loop_keeps_nobody_busy() {
    let (agent, _ztunnel, id) = with_a_captured_pod().await;
    drop(agent.kernel.take_log());
    let begun = Instant::now();
    for _ in 0..100 {
        agent.kernel.tamper_rules(Place::Pod(id), None);
        agent.cx.registry.look(Some(id));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.becomes("u1", State::Enabled).await;
    let (repairs, took) = (agent.ran(id).len(), begun.elapsed());
    // One each 200 ms: of the hundred that it takes, on any machine, half a second and more, a few.
    let due = 1 + usize::try_from(took.as_millis() / 200).unwrap();
    assert!((1..=due).contains(&repairs), "{repairs} repairs in {took:?}");
}
