//! The applications that most scenarios look at: two servers and two clients in the namespace `demo`, on two nodes, each
//! client with connections that stay and new ones all the time to both servers and to one outside the mesh; and a client
//! outside the mesh.

use super::leaks::Talker;
use super::shapes::{ECHO, Shape, namespace, service};
use super::stage::{PATIENCE, Stage};
use crate::app::totals::Totals;
use crate::cluster::watch::seen::Pod;
use crate::lab::eventually;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

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

/// How many connections of each client of [`DEMO`] a capture must see begin. Every other new one is to [`PLAIN`], five a
/// second: ztunnel passes it on from the client's own address, with a SYN of its own, while those to the mesh go through
/// one that it has open.
pub const TALKS: usize = 5;

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
    let targets = targets(stage)?;
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
    ready_once_open(Shape::client(namespace, name, targets, 4, 10))
}

/// A client that is Ready once all of its connections that stay are open: until then nothing of it need be on a wire.
#[must_use]
pub fn ready_once_open(client: Shape) -> Shape {
    let probe = serde_json::json!({"exec": {"command": ["/usr/local/bin/sluice-app", "check", "--http",
        super::shapes::TOTALS.to_string()]}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 30});
    client.with_in_container("readinessProbe", probe)
}

/// The servers' services, each by another family: a server that comes back with another address is found all the same.
/// And the server outside the mesh, by both.
///
/// # Errors
/// When one has no such address.
fn targets(stage: &Stage) -> Result<[String; 4]> {
    let seen = stage.seen();
    let of = |name: &str, v4: bool| {
        let service = seen.services.get(&(DEMO.to_owned(), name.to_owned()));
        let vip = service.and_then(|service| service.vips.iter().find(|ip| ip.is_ipv4() == v4));
        let vip = vip.with_context(|| format!("the service {name} has no such address"))?;
        Ok::<_, anyhow::Error>(SocketAddr::new(*vip, ECHO).to_string())
    };
    let plain = stage.pod(OUTSIDE, PLAIN)?;
    Ok([of("server-1", true)?, echo(&plain, true)?, of("server-2", false)?, echo(&plain, false)?])
}

/// The clients of [`DEMO`], of whose connections a capture must have seen some.
///
/// # Errors
/// When one is not there.
pub fn talkers(stage: &Stage) -> Result<Vec<Talker>> {
    CLIENTS.iter().map(|name| Ok(Talker::new(&stage.pod(DEMO, name)?, TALKS))).collect()
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

/// Waits until every connection that the clients have begun so far was answered or has failed: one to a server whose node
/// was off is given up long after the node is on again, and would be counted against whatever comes next.
///
/// # Errors
/// Of which client how many wait.
pub fn until_none_waits(stage: &Stage) -> Result<String> {
    let clients = [(DEMO, CLIENTS[0]), (DEMO, CLIENTS[1]), (OUTSIDE, OUTSIDER)];
    let begun = Instant::now();
    for (namespace, name) in clients {
        eventually(&format!("no connection of {name} to wait"), PATIENCE, || {
            let new = stage.totals(namespace, name)?.new;
            let wait = new.begun.saturating_sub(new.direct + new.proxied + new.failed);
            ensure!(wait == 0, "{wait} wait for an answer");
            Ok(())
        })?;
    }
    Ok(format!("none waits after {:.1} s", begun.elapsed().as_secs_f32()))
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
    let begun = Instant::now();
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
    /// Fails if since `self` a connection was lost, refused or answered wrongly, or none was made, or a client began
    /// anew. Waits until each connection that stays was answered once more: one that nothing comes through any more is
    /// lost only when its client's patience ends.
    ///
    /// # Errors
    /// Of which client, and its last words.
    pub fn unharmed(&self, stage: &Stage) -> Result<String> {
        let asked = Instant::now();
        let mut sum = Since::default();
        for (name, before) in &self.0 {
            sum.add(name, before, &once_answered(stage, name, asked)?)?;
        }
        Ok(format!(
            "{} connections that stayed, with {} pings, and {} new ones, none lost; slowest answer so far {} ms",
            sum.open, sum.pings, sum.new, sum.slowest_ms
        ))
    }
}

/// What a client counted once all that should stay are open, and each of them was answered after `asked`.
fn once_answered(stage: &Stage, name: &str, asked: Instant) -> Result<Totals> {
    let (namespace, pod) = name.split_once('/').context("a name without a namespace")?;
    eventually(&format!("every connection of {name} to be answered"), PATIENCE, || {
        let since = asked.elapsed();
        let totals = stage.totals(namespace, pod)?;
        let live = &totals.live;
        let all = live.open == live.wanted && u128::from(live.silent_ms) < since.as_millis();
        if all {
            return Ok(totals);
        }
        sleep(Duration::from_millis(100));
        bail!("{} of {} are open; one was answered {} ms ago", live.open, live.wanted, live.silent_ms)
    })
}

/// What clients did between two looks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Since {
    new: u64,
    pings: u64,
    open: u64,
    slowest_ms: u64,
}

impl Since {
    /// Adds what a client did, if nothing of it was lost.
    fn add(&mut self, name: &str, before: &Totals, now: &Totals) -> Result<()> {
        let grown = |what: &str, count: fn(&Totals) -> u64| {
            let (was, is) = (count(before), count(now));
            is.checked_sub(was).with_context(|| {
                format!("{name} counted {was} {what} before and {is} now: it was started anew meanwhile")
            })
        };
        let failed = grown("new connections that failed", |totals| totals.new.failed)?;
        let lost = grown("live connections that were lost", |totals| totals.live.lost)?;
        let refused = grown("live connections that were refused", |totals| totals.live.refused)?;
        let wrong = grown("wrong answers", |totals| totals.mismatches)?;
        ensure!(
            failed + lost + refused + wrong == 0,
            "{name}: {failed} new failed, {lost} live lost, {refused} refused, {wrong} answers wrong: {:?}",
            now.failures
        );
        let new = grown("new connections", |totals| totals.new.direct + totals.new.proxied)?;
        let pings = grown("pings", |totals| totals.live.pings)?;
        ensure!(new > 0 && pings > 0, "{name} made {new} connections and {pings} pings meanwhile");
        self.new += new;
        self.pings += pings;
        self.open += now.live.open;
        self.slowest_ms = self.slowest_ms.max(now.new.slowest_ms).max(now.live.slowest_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(proxied: u64, pings: u64) -> Totals {
        let mut totals = Totals::default();
        (totals.new.proxied, totals.live.pings, totals.live.open) = (proxied, pings, 4);
        totals
    }

    fn since(before: &Totals, now: &Totals) -> Result<Since> {
        let mut since = Since::default();
        since.add("demo/a", before, now)?;
        Ok(since)
    }

    #[test]
    fn what_a_client_did_meanwhile_is_counted() {
        let found = since(&totals(10, 100), &totals(15, 130)).unwrap();
        assert_eq!(found, Since { new: 5, pings: 30, open: 4, slowest_ms: 0 });
        assert!(since(&totals(10, 100), &totals(10, 130)).is_err(), "no connection was made");
        assert!(since(&totals(10, 100), &totals(15, 100)).is_err(), "nothing pinged");
    }

    #[test]
    fn one_that_was_lost_is_told_in_numbers() {
        let mut now = totals(15, 130);
        now.live.lost = 2;
        let why = since(&totals(10, 100), &now).unwrap_err().to_string();
        assert!(why.starts_with("demo/a: 0 new failed, 2 live lost"), "{why}");
    }

    #[test]
    fn a_client_that_was_started_anew_is_told_as_such() {
        let mut before = totals(10, 100);
        before.new.failed = 1;
        let why = since(&before, &totals(15, 130)).unwrap_err().to_string();
        assert_eq!(
            why,
            "demo/a counted 1 new connections that failed before and 0 now: it was started anew meanwhile"
        );
        assert!(since(&totals(10, 100), &totals(3, 130)).unwrap_err().to_string().contains("started anew"));
    }
}
