//! ADDs that overtake the API server's watch.

use super::super::*;
use super::fixture::{ADD_IN_VAIN, Boxed, Setup, eventually, pod, start_with};
use crate::source::kubernetes::PodLookup;
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use sluice_shared::admin::State;
use sluice_shared::facts::PodFacts;
use std::sync::Mutex;

/// Answers each GET with what is next.
#[derive(Clone, Default)]
struct Api {
    answers: Arc<Mutex<Vec<(u16, Value)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Api {
    fn lookup(&self) -> Lookup {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            api.asked.lock().unwrap().push(request.uri().to_string());
            let answer = api.answers.lock().unwrap().pop();
            async move {
                let Some((code, body)) = answer else { return std::future::pending().await };
                let body = http_body_util::Full::new(bytes::Bytes::from(body.to_string()));
                Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        let client = kube::Client::new(service, "default");
        Lookup::Api(PodLookup::new(client, "node1", &EnrollPolicy::default()))
    }

    fn answers(&self, code: u16, body: Value) {
        self.answers.lock().unwrap().push((code, body));
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// An agent whose source shows the namespace `demo`, and has said so much.
async fn agent(api: &Api, mode: Option<&str>) -> Boxed {
    agent_with(Setup { lookup: api.lookup(), ..Setup::default() }, mode).await
}

async fn agent_with(setup: Setup, mode: Option<&str>) -> Boxed {
    let agent = start_with(setup).await;
    agent.namespace("demo", mode).await;
    agent.synced().await;
    eventually("it has been told", || *agent.cx.synced.borrow()).await;
    agent.cx.members.settled().await.unwrap();
    agent
}

fn object(uid: &str, labels: &Value) -> Value {
    json!({"metadata": {"name": format!("pod-{uid}"), "namespace": "demo", "uid": uid, "labels": labels},
           "spec": {"nodeName": "node1", "serviceAccountName": "sa"}})
}

fn outcome(reply: &Reply) -> &str {
    match reply {
        Reply::Ok { outcome } => outcome,
        Reply::Error { msg, .. } => panic!("{msg}"),
    }
}

fn refusal(reply: &Reply) -> &str {
    match reply {
        Reply::Error { code: code::TRY_AGAIN_LATER, msg, .. } => msg,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_watch_shows_is_not_asked_for() {
    let api = Api::default();
    let agent = agent(&api, Some("ambient")).await;
    let ztunnel = agent.ztunnel().await;
    agent.events.send(Event::Pod(Box::new(pod("u1", None)))).await.unwrap();
    agent.sandbox("u1");
    assert_eq!(outcome(&agent.add("u1", "u1").await), "captured");
    assert_eq!((api.asked(), ztunnel.told().len()), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_it_does_not_show_is_asked_for_once_and_judged_by_the_answer() {
    let api = Api::default();
    let agent = agent(&api, Some("ambient")).await;
    let ztunnel = agent.ztunnel().await;
    api.answers(200, object("u1", &json!({"istio.io/dataplane-mode": "none"})));
    agent.sandbox("u1");
    assert!(outcome(&agent.add("u1", "u1").await).contains("opts out"));
    api.answers(200, object("u2", &json!({})));
    agent.sandbox("u2");
    assert_eq!(outcome(&agent.add("u2", "u2").await), "captured");
    assert_eq!(ztunnel.told(), ["snapshot", "add u2"]);
    let handed = agent.cx.registry.showings().into_iter().find_map(|showing| showing.handed).unwrap();
    assert_eq!(handed.service_account, "sa");
    assert_eq!(
        *api.asked.lock().unwrap(),
        ["u1", "u2"].map(|uid| format!("/api/v1/namespaces/demo/pods/pod-{uid}"))
    );
    // What was learnt on request ends with the sandbox: the watch may never show this pod.
    let verb = Verb::Del(super::attachment("u2"));
    assert_eq!(outcome(&agent.cni(verb, None).await), "released");
    eventually("it is forgotten", || agent.state("u2").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_or_another_is_not_started() {
    let api = Api::default();
    let agent = agent(&api, None).await;
    for (code, body, expected) in [
        (404, json!({"kind": "Status", "code": 404}), "no such pod"),
        (200, object("another", &json!({})), "with uid another"),
    ] {
        api.answers(code, body);
        agent.sandbox("u1");
        let reply = agent.add("u1", "u1").await;
        let said = refusal(&reply);
        assert!(said.contains(expected) && said.contains("demo/pod-u1"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_answer_it_is_judged_by_its_namespace_as_the_plugin_would() {
    let api = Api::default();
    let agent = agent(&api, Some("ambient")).await;
    api.answers(500, json!({}));
    agent.sandbox("u1");
    let reply = agent.add("u1", "u1").await;
    assert!(
        refusal(&reply).contains("its namespace is in the mesh: the API server answers 500"),
        "{reply:?}"
    );
    // One that never answers takes no longer than an ADD may.
    let short = Setup { lookup: api.lookup(), add_timeout: ADD_IN_VAIN, ..Setup::default() };
    let agent = agent_with(short, Some("ambient")).await;
    agent.sandbox("u1");
    let reply = agent.add("u1", "u1").await;
    assert!(refusal(&reply).contains("did not answer"), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_answer_it_starts_where_no_pod_of_the_mesh_has_been_and_is_adopted_when_it_is_shown() {
    let api = Api::default();
    let agent = agent(&api, None).await;
    agent.sandbox("u1");
    api.answers(503, json!({}));
    assert!(outcome(&agent.add("u1", "u1").await).starts_with("outside for now"));
    let (state, why) = agent.state("u1").unwrap();
    assert!(state == State::Pending && why.contains("answers 503"), "{why}");
    // It is adopted when the watch shows that it belongs.
    let _ztunnel = agent.ztunnel().await;
    let labelled = [("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())].into();
    agent.events.send(Event::Pod(Box::new(PodFacts { labels: labelled, ..pod("u1", None) }))).await.unwrap();
    agent.becomes("u1", State::Enabled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_has_not_been_shown_is_unknown_and_not_one_without_labels() {
    let api = Api::default();
    // Two wait in vain, and the one between them must be captured by then.
    let add_timeout = Duration::from_secs(5);
    let agent = agent_with(Setup { lookup: api.lookup(), add_timeout, ..Setup::default() }, None).await;
    let _ztunnel = agent.ztunnel().await;
    let of_new = |uid: &str| {
        let mut object = object(uid, &json!({}));
        object["metadata"]["namespace"] = json!("new");
        object
    };
    let add = |uid: &'static str| {
        let mut attachment = super::attachment(uid);
        attachment.pod = Some(sluice_shared::ids::PodRef::new("new", format!("pod-{uid}")));
        agent.sandbox(uid);
        let netns = std::fs::File::open(agent.dir.path().join(uid)).unwrap();
        agent.cni(Verb::Add(attachment), Some(netns.into()))
    };
    api.answers(200, of_new("u1"));
    let reply = add("u1").await;
    assert!(refusal(&reply).contains("its namespace has not been shown"), "{reply:?}");
    // Shown by the watch in time, it decides.
    api.answers(200, of_new("u2"));
    let shown_late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        agent.namespace("new", Some("ambient")).await;
    };
    let (reply, ()) = tokio::join!(add("u2"), shown_late);
    assert_eq!(outcome(&reply), "captured");
    // A shown pod waits for its namespace, too.
    agent.events.send(Event::NamespaceGone("new".into())).await.unwrap();
    agent
        .events
        .send(Event::Pod(Box::new(PodFacts { namespace: "new".into(), ..pod("u3", None) })))
        .await
        .unwrap();
    let reply = add("u3").await;
    assert!(refusal(&reply).contains("its namespace has not been shown"), "{reply:?}");
    assert_eq!(
        agent.state("u2").map(|(state, _)| state),
        Some(State::Enabled),
        "what is captured stays captured"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_excluded_namespace_needs_no_answer() {
    let api = Api::default();
    let agent = agent(&api, None).await;
    let mut attachment = super::attachment("u1");
    attachment.pod = Some(sluice_shared::ids::PodRef::new("kube-system", "coredns"));
    agent.sandbox("u1");
    let netns = std::fs::File::open(agent.dir.path().join("u1")).unwrap();
    let reply = agent.cni(Verb::Add(attachment), Some(netns.into())).await;
    assert!(outcome(&reply).contains("excludeNamespaces"), "{reply:?}");
    assert_eq!(api.asked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn del_does_not_wait_for_an_answer() {
    let api = Api::default();
    let agent = agent(&api, Some("ambient")).await;
    agent.sandbox("u1");
    let add = agent.add("u1", "u1");
    let del = async {
        eventually("it is asked for", || api.asked() == 1).await;
        agent.cni(Verb::Del(super::attachment("u1")), None).await
    };
    tokio::select! {
        reply = del => assert_eq!(outcome(&reply), "released"),
        reply = add => panic!("the ADD was first: {reply:?}"),
    }
}
