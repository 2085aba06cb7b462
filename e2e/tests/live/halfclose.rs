//! A proxied connection that is half-closed and silent for longer than conntrack remembers it.

use anyhow::{Context, Result, ensure};
use sluice_e2e::lab::capture::Capture;
use sluice_e2e::lab::netns::Netns;
use sluice_e2e::lab::outer::Outer;
use sluice_e2e::lab::topology::{OUTSIDE_V4, OUTSIDE_V6};
use sluice_e2e::lab::traffic::dial::Dial;
use sluice_shared::admin::State;
use sluice_shared::contract::MODE_AMBIENT;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

const PORT: u16 = 9_090;
const LATE: &str = "late-words-of-a-half-closed-connection";
/// Every state that conntrack may have such a connection in.
const TIMEOUTS: [&str; 5] = ["established", "fin_wait", "close_wait", "last_ack", "time_wait"];

/// A server that closes its own half at once and then listens: returns whom it saw and what it heard.
fn listener(netns: &Netns) -> Result<JoinHandle<Result<(SocketAddr, String)>>> {
    let bound = netns.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))?;
    netns.spawn(move || {
        let (mut stream, peer) = bound.accept()?;
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut heard = String::new();
        stream.read_to_string(&mut heard)?;
        Ok((peer, heard))
    })
}

/// The client is on the enrolled side: its next packet is what a rule for openings only would let out.
pub fn forgotten(outer: &Outer, backend: &str) -> Result<()> {
    let (scene, _c, d, _servers) = super::scene(outer, "half", backend)?;
    // An older connection, so that the rules are those of a live enrolment.
    let _older = Dial::to(SocketAddr::new(OUTSIDE_V4.into(), super::PORT)).open(&d.netns)?;
    scene.relabel(&d, Some(MODE_AMBIENT))?;
    scene.agents[0].until(&d.facts, State::Enabled)?;
    for state in TIMEOUTS {
        d.netns.sysctl(&format!("netfilter/nf_conntrack_tcp_timeout_{state}"), "1")?;
    }
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        let server = listener(&scene.world.outside)?;
        let capture = Capture::start(&scene.node().netns, &d.host_link()?, &scene.node().logs())?;
        let mut session = Dial::to(SocketAddr::new(to, PORT)).recognised().open(&d.netns)?;
        let local = session.local();
        // Conntrack forgets about once a second.
        std::thread::sleep(Duration::from_secs(4));
        session.finish(LATE).with_context(|| format!("speak late to {to}"))?;
        let heard = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?;
        let (peer, heard) = heard.with_context(|| format!("listen on {to}"))?;
        ensure!(heard == LATE, "the server heard {heard:?}");
        let packets = capture.stop()?;
        let own = packets.0.iter().filter(|packet| packet.from == local || packet.to == local).count();
        ensure!(own == 0, "{own} packets of the application's own connection were on the wire");
        ensure!(peer.port() != local.port(), "the connection was not proxied at all");
    }
    Ok(())
}
