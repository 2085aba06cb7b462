//! Which way packets go.

use super::{PATIENCE, Stage};
use anyhow::{Context, Result, ensure};
use sluice_e2e::lab::capture::Capture;
use sluice_e2e::lab::cgroup::Cgroup;
use sluice_e2e::lab::pod::Pod;
use sluice_e2e::lab::report::Report;
use sluice_e2e::lab::scene::PORT;
use sluice_e2e::lab::sockets::taken_at;
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6};
use sluice_e2e::lab::traffic::dial::{Client, Dial};
use sluice_e2e::lab::traffic::dns::{NAME_SERVER_SAYS, resolve};
use sluice_e2e::lab::xds::hostname;
use sluice_shared::contract::{PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use std::net::{IpAddr, SocketAddr};

/// Said by the clients whose words must not be on the wire.
const SECRET: &str = "the-secret-of-the-mesh-0123456789";

/// Below the range from which proxies get their ports.
const CLIENT_PORT: u16 = 15_500;

pub fn mesh_to_mesh(stage: &Stage, report: &mut Report) {
    report.step("a → b, both of the mesh; captures on the node's ends of their links");
    let seen = || -> Result<_> {
        let node = stage.scene.node();
        let captures = [&stage.a, &stage.b, &stage.c]
            .map(|pod| Capture::start(&node.netns, &pod.host_link()?, &node.logs()));
        let mut said = Vec::new();
        for v4 in [true, false] {
            let to = SocketAddr::new(stage.b.ip(v4)?, PORT);
            let mut session = Dial::to(to).port(CLIENT_PORT).open(&stage.a.netns)?;
            let answer = session.say(SECRET)?;
            said.push((answer.clone(), taken_at(&stage.a.netns, answer.local)?));
        }
        // The same words from the pod outside the mesh: a capture that could not see them would prove nothing.
        Dial::to(SocketAddr::new(OUTSIDE_V4.into(), PORT)).ask(&stage.c.netns, SECRET)?;
        let [a, b, c] = captures;
        Ok((said, a?.stop()?, b?.stop()?, c?.stop()?))
    };
    let seen = seen();
    let seen = || seen.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"));
    report.check("a → b arrives, with a's address, IPv4 and IPv6", || {
        for (answer, taken) in &seen()?.0 {
            let expected = stage.a.ip(answer.local.is_ipv4())?;
            ensure!(answer.server == "b" && answer.seen.ip() == expected, "{answer:?}");
            ensure!(*taken == Some(PORT_OUTBOUND), "taken at {taken:?} in a, not at {PORT_OUTBOUND}");
        }
        Ok(format!("b saw {} and {}", seen()?.0[0].0.seen, seen()?.0[1].0.seen))
    });
    report.check("a → b leaves as mTLS on 15008", || {
        let (_, a, b, _) = seen()?;
        for (name, packets) in [("a", a), ("b", b)] {
            let (tls, all) = packets.tls_to(PORT_HBONE);
            ensure!(
                tls > 0 && tls == all,
                "on {name}'s link {tls} of {all} connections to 15008 began as TLS"
            );
            ensure!(packets.syns_to(PORT) == 0, "on {name}'s link there was a SYN to port {PORT}");
        }
        Ok(format!("{} connections to 15008 left a, all TLS; none to port {PORT}", a.tls_to(PORT_HBONE).1))
    });
    report.check("its payload is nowhere in plaintext on the wire", || {
        let (_, a, b, c) = seen()?;
        ensure!(!a.contain(SECRET.as_bytes()), "it is on a's link");
        ensure!(!b.contain(SECRET.as_bytes()), "it is on b's link");
        ensure!(
            c.contain(SECRET.as_bytes()),
            "the capture of the pod outside the mesh does not see its words"
        );
        Ok(format!(
            "{} packets on the links of a and b; the control, c → outside, is seen",
            a.0.len() + b.0.len()
        ))
    });
}

pub fn plaintext_in(stage: &Stage, report: &mut Report) {
    report.step("c → b: from outside the mesh into it");
    for v4 in [true, false] {
        report.check(&format!("c → b is taken at 15006, {}", family(v4)), || {
            let mut session = Dial::to(SocketAddr::new(stage.b.ip(v4)?, PORT)).open(&stage.c.netns)?;
            let answer = session.say("hello")?;
            let taken = taken_at(&stage.b.netns, answer.local)?;
            ensure!(taken == Some(PORT_INBOUND), "taken at {taken:?}");
            ensure!(answer.seen.ip() == stage.c.ip(v4)?, "b saw {}, not c's address", answer.seen);
            Ok(format!("client {}, seen by b as {}: the address is kept", answer.local, answer.seen))
        });
    }
}

pub fn out_of_the_mesh(stage: &Stage, report: &mut Report) {
    report.step("a → outside");
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        report.check(&format!("a → outside is taken at 15001, {}", family(to.is_ipv4())), || {
            let dial = Dial::to(SocketAddr::new(to, PORT)).port(CLIENT_PORT + 1);
            let mut session = dial.open(&stage.a.netns)?;
            let answer = session.say("hello")?;
            let taken = taken_at(&stage.a.netns, answer.local)?;
            ensure!(taken == Some(PORT_OUTBOUND), "taken at {taken:?}");
            ensure!(!answer.is_direct() && answer.seen.ip() == stage.a.ip(to.is_ipv4())?, "{answer:?}");
            Ok(format!("client {}, seen outside as {}: ztunnel's own socket", answer.local, answer.seen))
        });
    }
}

pub fn names(stage: &Stage, report: &mut Report) {
    report.step("names: the pods' name server is the outside host, which says the same to everything");
    let name = hostname("b", sluice_e2e::lab::scene::MESH);
    report.check("a's question for a service is answered at 15053", || {
        let found = resolve(&stage.a.netns, OUTSIDE_V4.into(), &name, true, PATIENCE)?;
        let vip = stage.scene.vip("b")?;
        ensure!(found == [vip], "{name} is {found:?}, not the service's {vip}");
        let asked = stage.names.asked();
        let from_a = asked.iter().find(|(_, asked)| *asked == name);
        ensure!(from_a.is_none(), "the name server outside was asked: {from_a:?}");
        Ok(format!("{name} is {vip}; the outside name server was not asked"))
    });
    report.check("c's question goes to the name server it asks", || {
        let found = resolve(&stage.c.netns, OUTSIDE_V4.into(), &name, true, PATIENCE)?;
        ensure!(found == [IpAddr::from(NAME_SERVER_SAYS)], "{found:?}");
        let (from, _) = stage.names.asked().into_iter().next_back().context("nobody asked")?;
        ensure!(from.ip() == stage.c.ip(true)?, "{from} asked");
        Ok(format!("it says {NAME_SERVER_SAYS}, to {from}"))
    });
    report.check("a → b's service address arrives at b", || {
        let answer = Dial::to(SocketAddr::new(stage.scene.vip("b")?, PORT)).ask(&stage.a.netns, "hello")?;
        ensure!(answer.server == "b", "{answer:?}");
        Ok(format!("{} answered for {}", answer.server, stage.scene.vip("b")?))
    });
}

pub fn probes(stage: &Stage, report: &mut Report) {
    report.step("the node → a: a kubelet's probe, and another process of the host");
    let node = stage.scene.node();
    for v4 in [true, false] {
        report.check(
            &format!("a probe from the kubelet's cgroup reaches a directly, {}", family(v4)),
            || {
                let client = from_host(stage, &node.kubelet, v4, CLIENT_PORT + 2)?;
                ensure!(client.answer.is_direct(), "a saw {}: a proxy's socket", client.answer.seen);
                let taken = taken_at(&stage.a.netns, client.answer.seen)?;
                ensure!(taken.is_none(), "taken at {taken:?}");
                Ok(format!("the probe is {}, a saw {}", client.answer.local, client.answer.seen))
            },
        );
        report.check(&format!("another host process is taken at 15006, {}", family(v4)), || {
            let client = from_host(stage, &node.other, v4, CLIENT_PORT + 3)?;
            let taken = taken_at(&stage.a.netns, client.answer.local)?;
            ensure!(taken == Some(PORT_INBOUND), "taken at {taken:?}; a saw {}", client.answer.seen);
            ensure!(!client.answer.is_direct(), "a saw the process itself: {}", client.answer.seen);
            Ok(format!("the process is {}, a saw {}", client.answer.local, client.answer.seen))
        });
    }
}

fn from_host(stage: &Stage, cgroup: &Cgroup, v4: bool, port: u16) -> Result<Client> {
    let a: &Pod = &stage.a;
    Dial::to(SocketAddr::new(a.ip(v4)?, PORT)).port(port).ask_in(
        &stage.scene.node().netns,
        cgroup,
        "GET /healthz",
    )
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}
