//! The applications that most scenarios look at: two servers and two clients in the namespace `demo`, on two nodes, each
//! client with connections that stay and new ones all the time to both servers; and a client outside the mesh.

use super::shapes::{ECHO, Shape, namespace, service};
use super::stage::{PATIENCE, Stage};
use crate::app::totals::Totals;
use crate::cluster::watch::seen::Pod;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

/// The namespace that joins and leaves the mesh.
pub const DEMO: &str = "demo";
/// A namespace that never does.
pub const OUTSIDE: &str = "outside";
/// Every pod of [`DEMO`].
pub const PODS: [&str; 4] = ["server-1", "server-2", "client-1", "client-2"];
/// The clients of [`DEMO`].
pub const CLIENTS: [&str; 2] = ["client-1", "client-2"];
/// The client of [`OUTSIDE`].
pub const OUTSIDER: &str = "outsider";
/// The server of [`OUTSIDE`].
pub const PLAIN: &str = "plain";

/// Long enough for each client to make dozens of connections.
const WHILE: Duration = Duration::from_secs(2);

/// What clients counted, by `namespace/name`.
#[derive(Clone, Debug)]
pub struct Counted(BTreeMap<String, Totals>);

/// Makes the applications if they are not there, outside the mesh, and returns when every connection that should stay
/// is open.
///
/// # Errors
/// What is not Ready.
pub fn set(stage: &Stage) -> Result<()> {
    if stage.pod(DEMO, PODS[0]).is_ok() {
        return Ok(());
    }
    stage.apply(&[
        namespace(DEMO, None),
        namespace(OUTSIDE, None),
        Shape::server(DEMO, "server-1").on("node1").pod(),
        Shape::server(DEMO, "server-2").on("node2").pod(),
        Shape::server(OUTSIDE, PLAIN).on("node1").pod(),
        service(DEMO, "server-1"),
        service(DEMO, "server-2"),
    ])?;
    stage.until_ready(DEMO, &["server-1", "server-2"])?;
    stage.until_ready(OUTSIDE, &[PLAIN])?;
    let targets = services(stage)?;
    stage.apply(&[
        client(DEMO, "client-1", &targets).on("node1").pod(),
        client(DEMO, "client-2", &targets).on("node2").pod(),
        client(OUTSIDE, OUTSIDER, &targets).on("node2").pod(),
    ])?;
    stage.until_ready(DEMO, &PODS)?;
    stage.until_ready(OUTSIDE, &[OUTSIDER]).map(drop)
}

/// As [`set`], and in the mesh.
///
/// # Errors
/// What is not captured.
pub fn set_in_mesh(stage: &Stage) -> Result<()> {
    set(stage)?;
    label(stage, DEMO, true)?;
    stage.until_captured(DEMO, &PODS, true).map(drop)
}

/// A client that is Ready once all of its connections that stay are open.
#[must_use]
pub fn client(namespace: &str, name: &str, targets: &[String]) -> Shape {
    let probe = serde_json::json!({"exec": {"command": ["/usr/local/bin/sluice-app", "check", "--http",
        super::shapes::TOTALS.to_string()]}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 30});
    Shape::client(namespace, name, targets, 4, 10).with_in_container("readinessProbe", probe)
}

/// The servers' services, each by another family. A server that comes back with another address is found all the same.
///
/// # Errors
/// When one has no such address.
pub fn services(stage: &Stage) -> Result<[String; 2]> {
    let seen = stage.seen();
    let of = |name: &str, v4: bool| {
        let service = seen.services.get(&(DEMO.to_owned(), name.to_owned()));
        let vip = service.and_then(|service| service.vips.iter().find(|ip| ip.is_ipv4() == v4));
        let vip = vip.with_context(|| format!("the service {name} has no such address"))?;
        Ok::<_, anyhow::Error>(SocketAddr::new(*vip, ECHO).to_string())
    };
    Ok([of("server-1", true)?, of("server-2", false)?])
}

/// Where a server echoes.
///
/// # Errors
/// When it has no address of this family.
pub fn echo(server: &Pod, v4: bool) -> Result<String> {
    let ip = server.ips.iter().find(|ip| ip.is_ipv4() == v4);
    let ip = ip.with_context(|| format!("{} has no such address: {:?}", server.full_name(), server.ips))?;
    Ok(SocketAddr::new(*ip, ECHO).to_string())
}

/// `kubectl label namespace NAMESPACE istio.io/dataplane-mode=ambient`, or its removal.
///
/// # Errors
/// With kubectl's words.
pub fn label(stage: &Stage, namespace: &str, ambient: bool) -> Result<()> {
    let label = if ambient { "istio.io/dataplane-mode=ambient" } else { "istio.io/dataplane-mode-" };
    stage.kubectl(&["label", "namespace", namespace, label, "--overwrite"]).map(drop)
}

/// What the clients of [`DEMO`] and [`OUTSIDE`] counted until now.
///
/// # Errors
/// When one does not answer.
pub fn counted(stage: &Stage) -> Result<Counted> {
    let demo = CLIENTS.map(|client| (DEMO, client));
    of(stage, &[&demo[..], &[(OUTSIDE, OUTSIDER)]].concat())
}

/// What these clients counted until now.
///
/// # Errors
/// When one does not answer.
pub fn of(stage: &Stage, clients: &[(&str, &str)]) -> Result<Counted> {
    let totals = clients
        .iter()
        .map(|(namespace, name)| Ok((format!("{namespace}/{name}"), stage.totals(namespace, name)?)));
    Ok(Counted(totals.collect::<Result<_>>()?))
}

/// How the connections go that these clients begin from now on: how many reach the server's eyes as the client's own,
/// and how many through a proxy.
///
/// # Errors
/// When a client does not answer.
pub fn paths(stage: &Stage, clients: &[(&str, &str)]) -> Result<(u64, u64)> {
    // Those on their way began before.
    sleep(Duration::from_millis(300));
    let before = of(stage, clients)?;
    sleep(WHILE);
    let after = of(stage, clients)?;
    let grown = |count: fn(&Totals) -> u64| -> u64 {
        let pairs = after.0.values().zip(before.0.values());
        pairs.map(|(after, before)| count(after).saturating_sub(count(before))).sum()
    };
    Ok((grown(|totals| totals.new.direct), grown(|totals| totals.new.proxied)))
}

/// Waits until every new connection of the clients of [`DEMO`] goes through a proxy, or none does.
///
/// # Errors
/// How they go instead.
pub fn until_paths(stage: &Stage, proxied: bool) -> Result<String> {
    let clients = CLIENTS.map(|client| (DEMO, client));
    let begun = std::time::Instant::now();
    loop {
        let (direct, through) = paths(stage, &clients)?;
        let as_wanted = if proxied { direct == 0 && through > 0 } else { through == 0 && direct > 0 };
        if as_wanted {
            return Ok(format!("{direct} direct and {through} proxied in {} s", WHILE.as_secs()));
        }
        let late = begun.elapsed() > PATIENCE / 2;
        ensure!(!late, "{direct} new connections are direct, {through} proxied");
    }
}

impl Counted {
    /// Fails if since `self` a connection was lost, refused or answered wrongly, or none was made.
    ///
    /// # Errors
    /// Of which client, and its last words.
    pub fn unharmed(&self, stage: &Stage) -> Result<String> {
        let (mut new, mut pings, mut open, mut slowest) = (0, 0, 0, 0);
        for (name, before) in &self.0 {
            let (namespace, pod) = name.split_once('/').context("a name without a namespace")?;
            let now = stage.totals(namespace, pod)?;
            let bad = |totals: &Totals| {
                totals.new.failed + totals.live.lost + totals.live.refused + totals.mismatches
            };
            ensure!(
                bad(&now) == bad(before),
                "{name}: {} new failed, {} live lost, {} refused, {} answers wrong: {:?}",
                now.new.failed - before.new.failed,
                now.live.lost - before.live.lost,
                now.live.refused - before.live.refused,
                now.mismatches - before.mismatches,
                now.failures
            );
            let made = now.new.direct + now.new.proxied - before.new.direct - before.new.proxied;
            ensure!(made > 0 && now.live.pings > before.live.pings, "{name} made no connection meanwhile");
            (new, pings) = (new + made, pings + now.live.pings - before.live.pings);
            (open, slowest) =
                (open + now.live.open, slowest.max(now.new.slowest_ms).max(now.live.slowest_ms));
        }
        Ok(format!(
            "{open} connections that stayed, with {pings} pings, and {new} new ones, none lost; slowest answer so far \
             {slowest} ms"
        ))
    }
}
