//! The sink against an API server in a box, in time that passes only while nothing is to be done.

pub(crate) mod server;

use super::*;
use server::{Mood, Server};
use sluice_shared::admin::State;
use sluice_shared::enroll::{Because, Overrides, Reason};
use sluice_shared::facts::StringMap;
use sluice_shared::ids::NetnsId;

const ENABLED: Option<&str> = Some("enabled");

struct Told {
    server: Server,
    sink: Sink,
    metrics: Metrics,
}

fn uid(n: usize) -> PodUid {
    PodUid::new(format!("00000000-0000-4000-8000-{n:012}")).unwrap()
}

fn name(n: usize) -> String {
    format!("demo/pod-{n}")
}

fn status(n: usize, state: State) -> PodStatus {
    let because = matches!(state, State::Enabled | State::Pending | State::Drifted);
    PodStatus {
        uid: uid(n),
        namespace: "demo".into(),
        name: format!("pod-{n}"),
        ips: vec!["10.0.0.2".parse().unwrap()],
        state,
        reason: format!("it is {state}"),
        because: because.then_some(Because::NamespaceLabel),
        outside: (!because).then_some(Reason::NotSelected),
        overrides: Overrides::default(),
        netns: Some(NetnsId { dev: 1, inode: 2 }),
        kept_connections: 0,
        drift_repairs: 0,
        checks: Vec::new(),
    }
}

fn told() -> Told {
    let (server, metrics) = (Server::default(), Metrics::new());
    let sink = Sink::start(server.client(), "node1".into(), metrics.clone());
    Told { server, sink, metrics }
}

impl Told {
    /// The API server has a pod, and the watch shows it.
    fn pod(&self, n: usize, annotation: Option<&str>) {
        self.server.pod(&name(n), uid(n).as_str(), annotation);
        self.shows(n, annotation);
    }

    fn shows(&self, n: usize, annotation: Option<&str>) {
        let key = "ambient.istio.io/redirection".to_owned();
        self.sink.shown(&PodFacts {
            uid: uid(n),
            name: format!("pod-{n}"),
            namespace: "demo".into(),
            service_account: "sa".into(),
            labels: StringMap::new(),
            annotations: annotation.map(|value| (key, value.to_owned())).into_iter().collect(),
            host_network: false,
            phase: Default::default(),
            ips: vec![],
            probe_ports: vec![],
            netns: None,
        });
    }

    fn is(&self, n: usize, state: State) {
        self.sink.stands(&status(n, state));
    }

    fn counted(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|l| l == line)
    }
}

async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn one_patch_for_each_change_and_none_for_what_is_right() {
    let t = told();
    t.pod(1, None);
    t.is(1, State::Pending);
    t.is(1, State::Enabled);
    pass(60.0).await;
    assert_eq!(t.server.annotation(&name(1)).as_deref(), ENABLED);
    t.shows(1, ENABLED);
    for _ in 0..30 {
        t.is(1, State::Enabled);
        pass(1.0).await;
    }
    assert_eq!(t.server.patches().len(), 1);
    let asked = &t.server.patches()[0];
    assert_eq!(asked.path, "/api/v1/namespaces/demo/pods/pod-1/status");
    assert_eq!(asked.body["metadata"]["uid"], uid(1).as_str());
    t.is(1, State::Draining);
    pass(1.0).await;
    assert_eq!(t.server.annotation(&name(1)), None);
    t.is(1, State::Outside);
    pass(60.0).await;
    assert_eq!(t.server.patches().len(), 2);
    assert!(t.counted("sluice_status_patches_total{result=\"ok\"} 2"));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_writes_nothing_that_is_right_already() {
    let t = told();
    for n in 0..110 {
        t.pod(n, ENABLED);
        t.is(n, State::Pending);
    }
    // ztunnel was in a long pause between two tries.
    pass(14.0).await;
    for n in 0..110 {
        t.is(n, State::Enabled);
    }
    pass(120.0).await;
    assert_eq!(t.server.requests().len(), 0, "neither patches nor Events");
    assert_eq!(t.sink.owed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_outside_is_never_written_and_a_left_over_annotation_goes() {
    let t = told();
    t.pod(1, None);
    t.is(1, State::Outside);
    t.pod(2, ENABLED);
    t.is(2, State::Outside);
    pass(60.0).await;
    let patches = t.server.patches();
    assert_eq!(patches.len(), 1, "{patches:?}");
    assert_eq!(t.server.annotation(&name(2)), None);
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_change_is_undone() {
    let t = told();
    t.pod(1, None);
    t.is(1, State::Enabled);
    pass(1.0).await;
    t.shows(1, None);
    pass(1.0).await;
    assert_eq!(t.server.patches().len(), 1, "the watch lags");
    t.shows(1, ENABLED);
    t.pod(1, Some("pending"));
    pass(1.0).await;
    assert_eq!(t.server.annotation(&name(1)).as_deref(), ENABLED);
}

#[tokio::test(start_paused = true)]
async fn another_pod_of_the_same_name_is_left_alone() {
    let t = told();
    t.pod(1, None);
    t.server.pod(&name(1), uid(99).as_str(), None);
    t.is(1, State::Enabled);
    pass(600.0).await;
    assert_eq!(t.server.annotation(&name(1)), None);
    assert_eq!(t.server.patches().len(), 1, "it is not tried again");
    assert!(t.counted("sluice_status_patches_total{result=\"gone\"} 1"));
    assert_eq!(t.sink.peers(&uid(1)), Peers::Unaware);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_given_up() {
    let t = told();
    t.pod(1, None);
    t.server.delete(&name(1));
    t.is(1, State::Enabled);
    pass(600.0).await;
    assert_eq!(t.server.patches().len(), 1);
    assert_eq!(t.sink.owed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_while_a_write_is_under_way_is_written_after_it_and_what_came_between_is_not() {
    let t = told();
    t.server.takes(Duration::from_secs(1));
    t.pod(1, None);
    t.is(1, State::Enabled);
    pass(0.5).await;
    for state in [State::Draining, State::Enabled, State::Draining, State::Enabled, State::Draining] {
        t.is(1, state);
    }
    pass(5.0).await;
    assert_eq!(t.server.patches().len(), 2);
    assert_eq!(t.server.annotation(&name(1)), None);
    assert_eq!(t.server.most_at_once(), 1, "one request a pod at a time");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_asked_gently_and_then_told_everything_once() {
    let t = told();
    t.server.becomes(Some(Mood::Away));
    for n in 0..110 {
        t.pod(n, None);
        t.is(n, State::Enabled);
    }
    pass(60.0).await;
    let asked_in_vain = t.server.patches().len();
    assert!((12..40).contains(&asked_in_vain), "{asked_in_vain} requests in a minute");
    assert_eq!(t.sink.owed(), 110);
    t.server.becomes(None);
    t.server.takes(Duration::from_millis(5));
    pass(10.0).await;
    assert_eq!(t.sink.owed(), 0);
    assert_eq!(t.server.patches().len(), asked_in_vain + 110);
    assert!((0..110).all(|n| t.server.annotation(&name(n)).as_deref() == ENABLED));
    assert!(t.server.most_at_once() <= board::AT_ONCE);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_says() {
    let t = told();
    t.server.once(Mood::Says(429, Some(7), "Too many requests"));
    t.pod(1, None);
    t.pod(2, None);
    t.is(1, State::Enabled);
    pass(0.1).await;
    t.is(2, State::Enabled);
    pass(30.0).await;
    let at: Vec<_> = t.server.patches().iter().map(|asked| asked.at).collect();
    assert_eq!(at.len(), 3);
    assert!(at[1] - at[0] >= Duration::from_secs(7), "{:?}", at[1] - at[0]);
    assert_eq!(t.sink.owed(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_silences_the_agent_for_long_by_what_they_say() {
    for mood in [Mood::Says(429, Some(u64::MAX), "maintenance"), Mood::Says(429, Some(86_400), "tomorrow")] {
        let t = told();
        t.server.once(mood.clone());
        t.pod(1, None);
        t.is(1, State::Enabled);
        pass(200.0).await;
        assert_eq!(t.server.annotation(&name(1)).as_deref(), ENABLED, "{mood:?}");
        t.is(1, State::Draining);
        pass(1.0).await;
        t.server.once(mood.clone());
        t.is(1, State::Outside);
        pass(200.0).await;
        let released = t.server.events().into_iter().filter(|(reason, ..)| reason == "Released");
        assert_eq!(released.count(), 1, "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_tried_again() {
    for mood in [
        Mood::Says(500, None, "etcd"),
        Mood::Says(409, None, "changed"),
        Mood::Proxied(404),
        Mood::Proxied(410),
        Mood::Silent,
        Mood::Forgetful,
    ] {
        let t = told();
        t.server.once(mood.clone());
        t.pod(1, None);
        t.is(1, State::Enabled);
        pass(30.0).await;
        assert_eq!(t.server.patches().len(), 2, "{mood:?}");
        assert_eq!(t.server.annotation(&name(1)).as_deref(), ENABLED);
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_right_it_is_counted_said_and_healed_when_the_right_is_given() {
    let t = told();
    t.server.becomes(Some(Mood::Says(403, None, "cannot patch resource pods/status")));
    for n in 0..20 {
        t.pod(n, None);
        t.is(n, State::Enabled);
    }
    pass(120.0).await;
    let refused = t.server.patches().len();
    assert!(refused < 60, "{refused} requests in two minutes");
    // Not every pod has been tried: while the server refuses, one is enough to ask with.
    let said: Vec<_> = (0..20).filter_map(|n| t.sink.explain(&uid(n))).collect();
    assert!(said.iter().all(|(ok, _)| !ok), "{said:?}");
    assert!(said.iter().any(|(_, why)| why.contains("cannot patch resource")), "{said:?}");
    t.server.becomes(None);
    pass(90.0).await;
    assert_eq!(t.sink.owed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_write_always_fails_does_not_hold_up_others() {
    let t = told();
    t.pod(1, None);
    t.server.pod(&name(1), uid(1).as_str(), None);
    t.server.once(Mood::Says(500, None, "failed calling webhook"));
    t.is(1, State::Enabled);
    pass(0.05).await;
    t.server.once(Mood::Says(500, None, "failed calling webhook"));
    pass(0.3).await;
    t.pod(2, None);
    t.is(2, State::Enabled);
    pass(1.0).await;
    assert_eq!(t.server.annotation(&name(2)).as_deref(), ENABLED);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_knows_when_peers_have_been_told() {
    let t = told();
    t.pod(1, None);
    assert_eq!(t.sink.peers(&uid(1)), Peers::Unaware, "nobody was told that it could be dialled");
    t.server.takes(Duration::from_millis(300));
    t.is(1, State::Enabled);
    pass(0.1).await;
    t.is(1, State::Draining);
    assert_eq!(t.sink.peers(&uid(1)), Peers::MayDial, "the write that says enabled is under way");
    let before = Instant::now();
    assert!(t.sink.withdrawn(&uid(1), Duration::from_secs(2)).await);
    assert_eq!(t.server.annotation(&name(1)), None);
    assert!(matches!(t.sink.peers(&uid(1)), Peers::ToldAt(at) if at > before));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_not_waited_for_long() {
    let t = told();
    t.pod(1, ENABLED);
    t.server.becomes(Some(Mood::Away));
    t.is(1, State::Draining);
    let before = Instant::now();
    assert!(!t.sink.withdrawn(&uid(1), Duration::from_secs(2)).await);
    assert_eq!(before.elapsed(), Duration::from_secs(2));
    assert_eq!(t.sink.peers(&uid(1)), Peers::MayDial);
}

#[tokio::test(start_paused = true)]
async fn stopping_writes_what_is_owed_and_leaves_captured_pods_enabled() {
    let t = told();
    t.server.takes(Duration::from_millis(100));
    for n in 0..20 {
        t.pod(n, None);
        t.is(n, State::Enabled);
    }
    assert!(t.sink.flush(Duration::from_secs(2)).await);
    assert!((0..20).all(|n| t.server.annotation(&name(n)).as_deref() == ENABLED));
    t.server.becomes(Some(Mood::Away));
    t.is(1, State::Draining);
    pass(0.5).await;
    let before = Instant::now();
    t.sink.flush(Duration::from_secs(2)).await;
    assert!(before.elapsed() <= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_is_told_nothing_waits() {
    let sink = Sink::nowhere();
    sink.stands(&status(1, State::Enabled));
    assert!(sink.withdrawn(&uid(1), Duration::from_secs(2)).await);
    assert_eq!((sink.peers(&uid(1)), sink.owed(), sink.explain(&uid(1))), (Peers::Unaware, 0, None));
}

mod events;
mod gone;
