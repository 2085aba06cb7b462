//! The probe strategy `cookie` with the kubelet itself: pods of the mesh that refuse plaintext are probed by HTTP, TCP and
//! gRPC, and captures show what their opening SYNs carry. Nobody else passes, and another kubelet goes on where the last
//! one ended.

mod carried;

use super::probes::probed;
use super::{AGENT, of_ztunnel, restart_agents};
use crate::cluster::istiod::STRICT;
use crate::cluster::node::Node;
use crate::cluster::test::shapes::{ECHO, GRPC, HTTP, Shape, namespace, service};
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::test::{demo, manifests, processes};
use crate::cluster::watch::What;
use crate::cluster::watch::seen::{Object, Pod};
use crate::lab::cgroup::Cgroup;
use crate::lab::eventually;
use crate::lab::report::Report;
use crate::lab::traffic::dial::{Answer, Dial};
use anyhow::{Context, Result, anyhow, bail, ensure};
use carried::Carried;
use serde_json::json;
use sluice_shared::contract::{MODE_AMBIENT, MODE_NONE, NFT_TABLE};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

const COOKIES: &str = "cookies";
/// How the kubelet asks, and where.
const KINDS: [(&str, u16); 3] = [("http", HTTP), ("tcp", ECHO), ("grpc", GRPC)];
/// A pod outside the mesh on each node.
const OTHER: &str = "other";
/// A kubelet is away for longer than the agent's sweep takes to see it.
const AWAY: Duration = Duration::from_secs(2);
/// Three probes that nobody answers, each given five seconds, and what the API server takes to say so.
const NOTICED: Duration = Duration::from_secs(20);
/// How long a node may take to find out by itself how probes go.
const CHOSEN: Duration = Duration::from_secs(60);
/// What the agent says when it has found another kubelet, and when it has taken the program off.
const MOVED: &str = "the kubelet's cgroup is another one now";
const OFF: &str = "a former run's program is off the kubelet's cgroup";

/// The agents take the strategy, and give it up again.
pub fn pass(stage: &mut Stage, report: &mut Report) {
    report.step("the agents' configuration says probes: cookie; pods of the mesh that refuse plaintext, on both nodes");
    let configured = configure(stage, "probes: cookie");
    report.check("the agents take the strategy cookie, and the nodes have no rule of ours", || {
        configured?;
        strategy_without_rules(stage)
    });
    let made = make(stage);
    report.check("http, tcp and grpc probes pass to them, each by its pod's cookie", || {
        made?;
        probes_pass(stage)
    });
    report.check("ztunnel has seen none of these probes", || {
        for pod in probed_pods(stage)? {
            let refused = refusals(stage, &pod)?;
            ensure!(refused.is_empty(), "{} of {}, the first from {}", refused.len(), pod.name, refused[0]);
        }
        Ok("no plaintext connection to these pods got as far as ztunnel".into())
    });
    report.check(
        "a client in the kubelet's cgroup passes to the probed port; no other does, and nowhere else",
        || nobody_else_passes(stage),
    );
    report.step("every kubelet is killed and started, in another cgroup");
    report.check("the new kubelets' probes pass, by the agents that were there", || other_kubelets(stage));
    report.check("beside the new kubelets nobody else passes", || nobody_else_passes(stage));
    report.step("the agents' configuration says probes: snat");
    let changed = configure(stage, "probes: snat");
    report.check("another strategy after this one: probes pass, and no SYN carries a cookie", || {
        changed?;
        given_up(stage)
    });
    report.step("the agents' configuration is as before");
    let restored = configure(stage, "");
    report.check("left to the self-test, every node goes by cookies again", || {
        restored?;
        chosen_by_test(stage)
    });
    report.check("an Event on each node's agent says which way probes go, and why", || told_by_event(stage));
    report.check("the probed pods go", || stage.remove(&[COOKIES]).map(|()| "removed".into()));
}

/// Gives the agents other keys, and has them start anew.
fn configure(stage: &Stage, keys: &str) -> Result<()> {
    stage.cluster().apply(&manifests::config(keys)?)?;
    restart_agents(stage)
}

/// The strategy of every node, and why.
fn chosen(stage: &Stage) -> Result<Vec<(String, String)>> {
    let nodes = stage.cluster().nodes().iter();
    nodes.map(|node| stage.status(node).map(|status| (status.probes.chosen, status.probes.because))).collect()
}

fn strategy_without_rules(stage: &Stage) -> Result<String> {
    let chosen = chosen(stage)?;
    for (strategy, because) in &chosen {
        ensure!(strategy == "cookie", "it is {strategy}: {because}");
    }
    for node in stage.cluster().nodes() {
        let tables = node.run(&["nft", "list", "tables"])?;
        let ours = tables.lines().find(|table| table.split(' ').any(|word| word == NFT_TABLE));
        ensure!(ours.is_none(), "{} has the table {ours:?}", node.name());
    }
    Ok(chosen[0].1.clone())
}

/// A pod for each kind of probe on each node, a service on a port of the nodes, and pods outside the mesh.
fn make(stage: &Stage) -> Result<()> {
    let mut objects = vec![namespace(COOKIES, Some(MODE_AMBIENT))];
    for node in stage.cluster().nodes() {
        for (kind, _) in KINDS {
            let shape = Shape::server(COOKIES, &on(kind, node)).label(STRICT.0, STRICT.1);
            // While a new kubelet's cgroup is not known yet, its probes are refused: no reason to start anew.
            objects.push(probed(&shape, kind, 30).on(node.name()).pod());
        }
        objects.push(Shape::idle(COOKIES, &on(OTHER, node)).mode(MODE_NONE).on(node.name()).pod());
        let mut on_nodes = service(COOKIES, &on("tcp", node));
        on_nodes["spec"]["type"] = json!("NodePort");
        objects.push(on_nodes);
    }
    stage.apply(&objects)
}

fn on(kind: &str, node: &Node) -> String {
    format!("{kind}-{}", node.name())
}

/// The pods that are probed, all of them Ready, captured and never restarted.
fn probed_pods(stage: &Stage) -> Result<Vec<Pod>> {
    let nodes = stage.cluster().nodes().iter();
    let names: Vec<_> = nodes.flat_map(|node| KINDS.map(|(kind, _)| on(kind, node))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    stage.until_captured(COOKIES, &names, true)?;
    let pods = stage.until_ready(COOKIES, &names)?;
    for pod in &pods {
        ensure!(pod.restarts == 0, "{} was restarted {} times", pod.name, pod.restarts);
    }
    Ok(pods)
}

fn probes_pass(stage: &Stage) -> Result<String> {
    let carried = Carried::by_probes(stage, &probed_pods(stage)?)?;
    carried.must_be_cookies()
}

/// The address that the node's own connections to a pod come from: the kernel's choice.
fn nodes_address(node: &Node, to: SocketAddr) -> Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    node.netns()?.run(|| {
        // Nothing is sent: connecting a datagram socket chooses its source.
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    })
}

/// From the node's own addresses: the kubelet's cgroup, another one, and the node's port masqueraded by kube-proxy. And
/// another pod of the node.
fn nobody_else_passes(stage: &Stage) -> Result<String> {
    let mut refused = 0;
    for node in stage.cluster().nodes() {
        let (probed, other) = (on("tcp", node), on(OTHER, node));
        let pods = stage.until_ready(COOKIES, &[&probed, &other])?;
        let (pod, other) = (&pods[0], processes::program(&pods[1], "sluice-app")?);
        let (kubelet, user) = (node.service("kubelet")?.v2()?, node.cgroup().below("user.slice")?.v2()?);
        for ip in &pod.ips {
            let (declared, undeclared) = (SocketAddr::new(*ip, ECHO), SocketAddr::new(*ip, HTTP));
            let own = nodes_address(node, declared)?;
            let answer = ask(node, &kubelet, declared)?;
            let as_itself = answer.is_direct() && answer.seen.ip() == own;
            ensure!(as_itself, "a client in the kubelet's cgroup at {own} is seen as {}", answer.seen);
            must_be_refused(stage, pod, "the kubelet at an undeclared port", Some(own), || {
                ask(node, &kubelet, undeclared)
            })?;
            must_be_refused(stage, pod, "another process of the node", Some(own), || {
                ask(node, &user, declared)
            })?;
            must_be_refused(stage, pod, "another pod of the node", None, || {
                other.within(|| Dial::to(declared).recognised().connect()?.say("hello"))
            })?;
            refused += 3;
        }
        // Without a local policy kube-proxy masquerades to the node's own address, so that answers come back by it.
        let at_node = SocketAddr::new(node.v4().into(), node_port(stage, pod)?);
        let own = nodes_address(node, demo::echo(pod, true)?.parse()?)?;
        must_be_refused(stage, pod, "a client behind the node's port", Some(own), || {
            Dial::to(at_node).recognised().ask(stage.cluster().fabric(), "hello")
        })?;
        refused += 1;
    }
    Ok(format!(
        "{refused} connections refused: by another process of the node and by a masqueraded node port, both from the kubelet's \
         own address, by another pod, and by the kubelet's cgroup at a port without a probe"
    ))
}

/// Asks an echo server from a process in a cgroup of the node's.
fn ask(node: &Node, cgroup: &Cgroup, to: SocketAddr) -> Result<Answer> {
    Ok(Dial::to(to).recognised().ask_in(&node.netns()?, cgroup, "hello")?.answer.clone())
}

fn node_port(stage: &Stage, pod: &Pod) -> Result<u16> {
    let port = "--output=jsonpath={.spec.ports[0].nodePort}";
    let said = stage.kubectl(&["get", "service", "--namespace", COOKIES, &pod.name, port])?;
    said.parse().with_context(|| format!("the service {} has the node port {said:?}", pod.name))
}

/// Nobody answers, and it was ztunnel that refused it; from that address, where one is given.
fn must_be_refused(
    stage: &Stage,
    pod: &Pod,
    who: &str,
    from: Option<IpAddr>,
    dial: impl Fn() -> Result<Answer>,
) -> Result<()> {
    let before = refusals(stage, pod)?.len();
    let source = eventually(&format!("ztunnel to refuse {who} to {}", pod.name), PATIENCE, || {
        if let Ok(answer) = dial() {
            return Ok(Err(anyhow!("{who} was answered by {}, which saw {}", pod.name, answer.seen)));
        }
        let refused = refusals(stage, pod)?;
        let new = refused.get(before).map(|source| Ok(source.ip())).context("ztunnel saw nothing of it");
        new.inspect_err(|_| sleep(Duration::from_millis(200)))
    })??;
    ensure!(from.is_none_or(|from| from == source), "{who} came from {source}, not from {from:?}");
    Ok(())
}

/// From where ztunnel refused plaintext to a pod's servers, in order. The agents' self-test has connections of its own that must be
/// captured, to a listener on a port that nobody else has (docs/decisions/0014-probe-self-test.md): they are left out.
fn refusals(stage: &Stage, pod: &Pod) -> Result<Vec<SocketAddr>> {
    let events = of_ztunnel(stage, pod)?;
    let ends = events
        .iter()
        .filter(|event| event["event"] == "conn-end" && event["direction"] == "inbound-passthrough")
        .filter(|event| {
            let to = event["dst"].as_str().and_then(|to| to.parse::<SocketAddr>().ok());
            to.is_none_or(|to| KINDS.iter().any(|(_, port)| *port == to.port()))
        });
    let sources = ends.map(|event| {
        let error = event["error"].as_str().unwrap_or_default();
        ensure!(error.contains("policy rejection"), "ztunnel let plaintext through to {}: {event}", pod.name);
        event["src"]
            .as_str()
            .and_then(|source| source.parse().ok())
            .with_context(|| format!("no source: {event}"))
    });
    sources.collect()
}

/// Kills and starts every kubelet. The agents find the new ones' cgroups themselves.
fn other_kubelets(stage: &Stage) -> Result<String> {
    let agents = agents(stage)?;
    for node in stage.cluster().nodes() {
        let before = said_by_agent(stage, node, MOVED)?;
        node.kill_kubelet()?;
        sleep(AWAY);
        node.start_kubelet()?;
        until_said(stage, node, MOVED, before)?;
    }
    let said = probes_pass(stage)?;
    let now = self::agents(stage)?;
    ensure!(agents == now, "the agents were {agents:?} and are {now:?}");
    Ok(said)
}

/// The agents' uids and restart counts.
fn agents(stage: &Stage) -> Result<Vec<(String, u64)>> {
    let nodes = stage.cluster().nodes().iter();
    nodes.map(|node| stage.agent(node.name()).map(|agent| (agent.uid, agent.restarts))).collect()
}

fn said_by_agent(stage: &Stage, node: &Node, words: &str) -> Result<usize> {
    let said = stage.said(&stage.agent(node.name())?, AGENT)?;
    Ok(said.iter().filter(|line| line.text.contains(words)).count())
}

fn until_said(stage: &Stage, node: &Node, words: &str, before: usize) -> Result<()> {
    eventually(&format!("the agent on {} to say: {words}", node.name()), PATIENCE, || {
        if said_by_agent(stage, node, words)? > before {
            return Ok(());
        }
        sleep(Duration::from_millis(100));
        bail!("it has not")
    })
}

/// With `probes: auto` the self-test asks pods of the node, and takes what passes.
fn chosen_by_test(stage: &Stage) -> Result<String> {
    let begun = SystemTime::now();
    let nodes = stage.cluster().nodes().iter();
    let said = nodes.map(|node| {
        eventually("the self-test to choose", CHOSEN, || {
            let status = stage.status(node)?;
            let (probes, tested) = (status.probes, status.probe_test);
            let is_chosen = probes.chosen == "cookie" && tested.chosen == "works";
            ensure!(is_chosen, "{} ({}): {}", probes.chosen, tested.chosen, tested.because);
            Ok(tested.because)
        })
    });
    let said = said.collect::<Result<Vec<_>>>()?.join("; ");
    stay_ready(stage, begun)?;
    Ok(said)
}

/// It is news: the former agents were to go another way.
fn told_by_event(stage: &Stage) -> Result<String> {
    let mut told = Vec::new();
    for node in stage.cluster().nodes() {
        let agent = stage.agent(node.name())?;
        let selector = format!("--field-selector=reason=ProbesTried,involvedObject.uid={}", agent.uid);
        let messages = "--output=jsonpath={range .items[*]}{.message}{\"\\n\"}{end}";
        told.push(eventually("the Event", PATIENCE, || {
            let said =
                stage.kubectl(&["get", "events", "--namespace", &agent.namespace, &selector, messages])?;
            let news = said.lines().find(|line| line.starts_with("probes go by cookie: cookie passes in"));
            news.map(str::to_owned).with_context(|| format!("{}: {said:?}", agent.name))
        })?);
    }
    Ok(told.join("; "))
}

/// Fails if one of the probed pods was not Ready at some time since `begun`, or gets so soon: a probe that nobody answers is
/// noticed by then, three times.
fn stay_ready(stage: &Stage, begun: SystemTime) -> Result<()> {
    sleep(NOTICED);
    for change in stage.log().iter().filter(|change| change.at >= begun) {
        let What::Is(Object::Pod(pod)) = &change.what else { continue };
        let is_one = pod.namespace == COOKIES && !pod.name.starts_with(OTHER);
        ensure!(!is_one || pod.ready, "{} was not Ready: its probes were lost", pod.name);
    }
    probed_pods(stage).map(drop)
}

/// The program is taken off the kubelets' cgroups, and probes pass as they do by another strategy.
fn given_up(stage: &Stage) -> Result<String> {
    let begun = SystemTime::now();
    for (now, because) in chosen(stage)? {
        ensure!(now == "snat", "it is {now}: {because}");
    }
    for node in stage.cluster().nodes() {
        until_said(stage, node, OFF, 0)?;
    }
    let carried = Carried::by_probes(stage, &probed_pods(stage)?)?.must_be_none()?;
    stay_ready(stage, begun)?;
    Ok(carried)
}
