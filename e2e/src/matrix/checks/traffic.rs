//! Packets in and out.

use crate::lab::capture::Capture;
use crate::lab::eventually;
use crate::lab::netns::Netns;
use crate::lab::outer::Outer;
use crate::lab::pod::addresses_of;
use crate::lab::scene::PORT;
use crate::lab::traffic::dial::{Answer, Dial};
use crate::lab::traffic::dns::{self, NameServer};
use crate::lab::traffic::load::Path;
use crate::matrix::stage::{FOREIGN_SERVICE, METADATA, SERVICE, Stage};
use crate::ztunnel::dns::{OWN_ADDRESSES, OWN_NAME};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_shared::contract::PORT_HBONE;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
/// One line of a large transfer: 2 MiB, many times what any buffer on the way holds.
const LARGE: usize = 2 << 20;

/// One connection: what came back must be of `server`, along `path`.
pub(super) fn goes(from: &Netns, to: SocketAddr, server: &str, path: Path, line: &str) -> Result<Answer> {
    let dial = Dial::to(to).recognised().patience(PATIENCE);
    let answer = dial.ask(from, line)?;
    ensure!(answer.server == server, "{} → {to} was answered by {}", from.name(), answer.server);
    ensure!(answer.said == line, "{} → {to}: the answer is another", from.name());
    let taken = if answer.is_direct() { Path::Direct } else { Path::Proxied };
    ensure!(taken == path, "{} → {to} is {taken:?}: {server} saw {}", from.name(), answer.seen);
    Ok(answer)
}

fn said(all: &[String]) -> Result<String> {
    ensure!(!all.is_empty(), "there was nothing to look at");
    Ok(all.join("; "))
}

pub fn stands(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    stage.ztunnel.must_be_content()?;
    let status = stage.agent.status()?;
    Ok(format!(
        "backend {}, probes {} ({})",
        status.backend.chosen, status.probes.chosen, status.probes.because
    ))
}

pub fn result(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let file = stage.node.dir.join("bin").join("result-a.json");
    let own: Value = serde_json::from_slice(&std::fs::read(&file).context("the primary's own result")?)?;
    let seen = &stage.pod("a").result;
    ensure!(
        without_empty_dns(&own) == without_empty_dns(seen),
        "the primary said {own}, the runtime got {seen}"
    );
    let ips = addresses_of(seen)?;
    Ok(format!("{ips:?}, with everything else in it"))
}

/// A result as a runtime reads it: upstream's plugins between the primary and ours say an empty `dns` or leave
/// it out, as their version has it (CNI spec 1.0.0, "Success": the key is optional).
fn without_empty_dns(result: &Value) -> Value {
    let mut result = result.clone();
    if result["dns"] == serde_json::json!({}) {
        result.as_object_mut().map(|keys| keys.remove("dns"));
    }
    result
}

pub fn mtu(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let pod = stage.pod("a");
    let host_end = stage.host_end(pod)?;
    let mut all = Vec::new();
    for (netns, link) in [(&pod.netns, "eth0"), (&stage.place, host_end.as_str())] {
        let shown = netns.must("ip", &["-o", "link", "show", "dev", link])?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "mtu");
        let found = words.nth(1).unwrap_or_default();
        ensure!(found == stage.cell.mtu.to_string(), "{link} has an MTU of {found}, not {}", stage.cell.mtu);
        all.push(format!("{link} {found}"));
    }
    said(&all)
}

pub fn outbound(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let mut all = Vec::new();
    for ip in stage.ways_out() {
        let to = SocketAddr::new(ip, PORT);
        let control = goes(&stage.pod("c").netns, to, "outside", Path::Direct, "outside the mesh")?;
        let answer = goes(&stage.pod("a").netns, to, "outside", Path::Proxied, "outbound")?;
        all.push(format!("a → {to}: seen from {}; c, outside the mesh, from {}", answer.seen, control.seen));
    }
    said(&all)
}

pub fn inbound(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let mut all = Vec::new();
    for ip in &stage.pod("a").facts.ips {
        let to = SocketAddr::new(*ip, PORT);
        for (from, name) in [(&stage.outside, "outside"), (&stage.pod("c").netns, "c")] {
            let answer = goes(from, to, "a", Path::Proxied, "inbound")?;
            all.push(format!("{name} → {to}: seen from {}", answer.seen));
        }
    }
    for ip in &stage.pod("c").facts.ips {
        goes(&stage.outside, SocketAddr::new(*ip, PORT), "c", Path::Direct, "the control")?;
    }
    said(&all)
}

pub fn hbone(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let (a, b) = (stage.pod("a"), stage.pod("b"));
    let capture = Capture::start(&stage.place, &stage.host_end(b)?, &stage.node.logs())?;
    for ip in &b.facts.ips {
        goes(&a.netns, SocketAddr::new(*ip, PORT), "b", Path::Proxied, "a-secret-between-pods")?;
    }
    let packets = capture.stop()?;
    let to_b: Vec<_> = packets.opening().filter(|packet| b.facts.ips.contains(&packet.to.ip())).collect();
    let astray: Vec<_> = to_b.iter().filter(|packet| packet.to.port() != PORT_HBONE).collect();
    ensure!(!to_b.is_empty(), "the capture saw no connection to b");
    ensure!(astray.is_empty() && !packets.contain(b"a-secret-between-pods"), "in plaintext: {astray:?}");
    let mut all = vec![format!("{} connections to b, all to {PORT_HBONE}", to_b.len())];
    for ip in &a.facts.ips {
        let to = SocketAddr::new(*ip, PORT_HBONE);
        let mut session = Dial::to(to).patience(PATIENCE).open(&stage.outside)?;
        session.finish("this is no handshake\n")?;
        let from = session.local().to_string();
        eventually("ztunnel's HBONE port to refuse it", PATIENCE, || {
            let events = stage.ztunnel.events()?;
            let refused =
                |event: &&Value| event["event"] == "conn-refused" && event["direction"] == "inbound-hbone";
            let port = from.rsplit(':').next().unwrap_or_default();
            let by_port =
                |event: &Value| event["src"].as_str().is_some_and(|src| src.ends_with(&format!(":{port}")));
            ensure!(events.iter().filter(refused).any(by_port), "no such event");
            Ok(())
        })?;
        all.push(format!("{from} → {to}: taken by the HBONE port"));
    }
    said(&all)
}

pub fn own_address(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let a = stage.pod("a");
    let mut all = Vec::new();
    for ip in &a.facts.ips {
        let answer = goes(&a.netns, SocketAddr::new(*ip, PORT), "a", Path::Direct, "myself")?;
        all.push(format!("{ip}: seen from {}", answer.seen));
    }
    said(&all)
}

pub fn loopback(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let a = stage.pod("a");
    let shown = a.netns.must("ip", &["-o", "addr", "show", "dev", "lo"])?;
    let mut all = Vec::new();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        if shown.contains(&format!("{ip}/")) {
            goes(&a.netns, SocketAddr::new(ip, PORT), "a", Path::Direct, "loopback")?;
            all.push(ip.to_string());
        }
    }
    said(&all)
}

pub fn names(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let server = NameServer::start(&stage.outside)?;
    let mut all = Vec::new();
    for ip in &stage.pod("a").facts.ips {
        let to = Stage::outside_like(*ip);
        for (pod, by) in [("c", "the name server"), ("a", "ztunnel")] {
            let before = server.asked().len();
            let found = dns::resolve(&stage.pod(pod).netns, to, OWN_NAME, true, PATIENCE)?;
            let asked = server.asked().len() - before;
            ensure!(found.contains(&OWN_ADDRESSES[0]), "{pod} was told {found:?}");
            ensure!((asked > 0) == (pod == "c"), "{pod}'s question reached the name server {asked} times");
            all.push(format!("{pod} asks {to}: {by} answers"));
        }
    }
    said(&all)
}

pub fn metadata(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let a = stage.pod("a");
    let mut all = Vec::new();
    for to in METADATA {
        let to: IpAddr = to.parse()?;
        if a.facts.ips.iter().any(|ip| ip.is_ipv4() == to.is_ipv4()) {
            let answer = goes(&a.netns, SocketAddr::new(to, 80), "metadata", Path::Proxied, "GET /latest")?;
            all.push(format!("{to}: seen from {}", answer.seen));
        }
    }
    said(&all)
}

pub fn services(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let a = stage.pod("a");
    let mut all = Vec::new();
    for (vips, server) in [(SERVICE, "b"), (FOREIGN_SERVICE, "outside")] {
        for vip in vips {
            let vip: IpAddr = vip.parse()?;
            if a.facts.ips.iter().any(|ip| ip.is_ipv4() == vip.is_ipv4()) {
                goes(&a.netns, SocketAddr::new(vip, PORT), server, Path::Proxied, "a service")?;
                all.push(format!("{vip}: {server}"));
            }
        }
    }
    said(&all)
}

pub fn headless(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let (a, b) = (stage.pod("a"), stage.pod("b"));
    let mut all = Vec::new();
    for ip in &b.facts.ips {
        let to = SocketAddr::new(*ip, PORT);
        goes(&a.netns, to, "b", Path::Proxied, "headless")?;
        let by_mtls = |event: &Value| {
            event["event"] == "conn"
                && event["direction"] == "outbound"
                && event["mtls"] == true
                && event["dst"] == to.to_string()
        };
        eventually("ztunnel to say that it was mTLS", PATIENCE, || {
            ensure!(stage.ztunnel.events()?.iter().any(by_mtls), "no such event");
            Ok(())
        })?;
        all.push(format!("{to} by mTLS"));
    }
    said(&all)
}

pub fn large(stage: &mut Stage<'_>, _: &Outer) -> Result<String> {
    let line = "0123456789abcdef".repeat(LARGE / 16);
    let (a, b) = (stage.pod("a"), stage.pod("b"));
    let mut all = Vec::new();
    for (own, others) in a.facts.ips.iter().zip(&b.facts.ips) {
        let outside = SocketAddr::new(Stage::outside_like(*own), PORT);
        goes(&a.netns, outside, "outside", Path::Proxied, &line)?;
        goes(&stage.outside, SocketAddr::new(*own, PORT), "a", Path::Proxied, &line)?;
        goes(&a.netns, SocketAddr::new(*others, PORT), "b", Path::Proxied, &line)?;
        all.push(format!("{own}: {} MiB there and back: out, in, and to b by mTLS", LARGE >> 20));
    }
    said(&all)
}
