//! The rule by which a capture is judged: no opening SYN of a pod of the mesh leaves it in plaintext.
//!
//! Two kinds are told apart. The application's own SYN, known by the ports that the test's clients bind, must not be
//! on a wire at all: only ztunnel's may. And nobody's SYN, ztunnel's included, may go to a pod that peers know to be
//! reached over HBONE but to its port 15008.

use super::lives::Life;
use crate::cluster::watch::seen::Pod;
use crate::lab::capture::{Packet, Packets, Transport};
use crate::lab::traffic::{CLIENT_PORTS, SINGLE_CLIENT_PORTS};
use anyhow::{Result, ensure};
use sluice_shared::contract::{PORT_DNS, PORT_HBONE};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

/// A SYN that should not have been there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Whose.
    pub pod: String,
    /// When.
    pub at: SystemTime,
    /// From where.
    pub from: SocketAddr,
    /// To where.
    pub to: SocketAddr,
    /// Why it should not have been there.
    pub why: Why,
}

/// Why a SYN should not have been there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is the application's own, not ztunnel's.
    Application,
    /// It goes to a pod of the mesh, in plaintext.
    Plaintext,
}

/// What a capture says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// SYNs that should not have been there. One that was seen on several links is here once.
    pub leaks: Vec<Leak>,
    /// The connections that pods began while they had to be captured, by the pod's uid; "" where an address was just
    /// passing from one pod to the next. A SYN that was seen on several links, or sent again, is one connection.
    pub begun: BTreeMap<String, Vec<Begun>>,
    /// Connections that pods outside the mesh began.
    pub outside: usize,
}

/// A connection that a pod of the mesh began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// When its SYN was first seen.
    pub at: SystemTime,
    /// Whether it went to 15008.
    pub hbone: bool,
}

/// A pod that a scenario is about: without a SYN of its own, nothing is shown of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Talker {
    /// `namespace/name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// How many connections it must have begun.
    pub at_least: usize,
    /// From when on.
    pub since: SystemTime,
}

/// How long istiod, or what stands in for it, and ztunnel may take until every peer knows that a pod is reached over
/// HBONE. Before that, plaintext to it is ztunnel's decision and right.
const SETTLED: Duration = Duration::from_secs(5);

/// Judges what was on the wire by what the pods were then.
#[must_use]
pub fn judge(packets: &Packets, lives: &[Life]) -> Judgement {
    let by_address = by_address(lives);
    let owners = |ip: IpAddr, at: SystemTime| -> Vec<&Life> {
        let of_ip = by_address.get(&ip).into_iter().flatten();
        of_ip.copied().filter(|life| life.had(ip, at)).collect()
    };
    let (mut judgement, mut counted) = (Judgement::default(), BTreeSet::new());
    for packet in packets.opening().filter(|packet| is_judged(packet)) {
        let sources = owners(packet.from.ip(), packet.at);
        let Some(source) = sources.first() else { continue };
        let is_new = counted.insert((packet.from, sequence(packet)));
        // While an address passes from one pod to the next, it may still be the one's that is not in the mesh.
        if !sources.iter().all(|life| life.must_be_captured(packet.at)) {
            judgement.outside += usize::from(is_new);
            continue;
        }
        let hbone = packet.to.port() == PORT_HBONE;
        if is_new {
            let whose = if sources.len() == 1 { source.uid.clone() } else { String::new() };
            judgement.begun.entry(whose).or_default().push(Begun { at: packet.at, hbone });
        }
        if hbone {
            continue;
        }
        let targets = owners(packet.to.ip(), packet.at);
        let to_mesh = !targets.is_empty() && targets.iter().all(|life| life.is_hbone(packet.at, SETTLED));
        let why = match packet.from.port() {
            own if CLIENT_PORTS.contains(&own) || SINGLE_CLIENT_PORTS.contains(&own) => Why::Application,
            _ if to_mesh => Why::Plaintext,
            _ => continue,
        };
        let Packet { at, from, to, .. } = *packet;
        if !judgement.leaks.iter().any(|leak| leak.from == from && leak.to == to) {
            judgement.leaks.push(Leak { pod: source.name.clone(), at, from, to, why });
        }
    }
    judgement
}

/// With the sender's socket it names a SYN, on whichever link and however often it is seen.
fn sequence(packet: &Packet) -> u32 {
    match packet.transport {
        Transport::Tcp { sequence, .. } => sequence,
        Transport::Udp => 0,
    }
}

/// DNS and link-local addresses have rules of their own.
fn is_judged(packet: &Packet) -> bool {
    let link_local = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    packet.to.port() != PORT_DNS && !link_local(packet.to.ip()) && !link_local(packet.from.ip())
}

fn by_address(lives: &[Life]) -> BTreeMap<IpAddr, Vec<&Life>> {
    let mut map: BTreeMap<IpAddr, Vec<&Life>> = BTreeMap::new();
    for life in lives {
        for (ip, _) in &life.addresses {
            let of_ip = map.entry(*ip).or_default();
            if !of_ip.iter().any(|known| std::ptr::eq(*known, life)) {
                of_ip.push(life);
            }
        }
    }
    map
}

impl Talker {
    /// A pod that must have begun so many connections, at any time.
    #[must_use]
    pub fn new(pod: &Pod, at_least: usize) -> Self {
        Self { name: pod.full_name(), uid: pod.uid.clone(), at_least, since: SystemTime::UNIX_EPOCH }
    }

    /// From then on.
    #[must_use]
    pub fn since(self, since: SystemTime) -> Self {
        Self { since, ..self }
    }
}

impl Judgement {
    /// Fails when there were leaks, or when one of the pods that this is about began too few connections: an absence
    /// among nothing shows nothing.
    ///
    /// # Errors
    /// The first leaks, or the first pods that were too quiet.
    pub fn must_hold(&self, about: &[Talker]) -> Result<String> {
        let first: Vec<String> = self.leaks.iter().take(6).map(ToString::to_string).collect();
        ensure!(self.leaks.is_empty(), "{} leaks: {}", self.leaks.len(), first.join("; "));
        ensure!(!about.is_empty(), "there is no pod that this is about, so nothing is shown");
        let (mut all, mut quiet) = (Vec::new(), Vec::new());
        for talker in about {
            let begun = self.begun_by(talker);
            if begun.len() < talker.at_least {
                quiet.push(format!("{} began {} of {}", talker.name, begun.len(), talker.at_least));
            }
            all.extend(begun);
        }
        ensure!(
            quiet.is_empty(),
            "{} of {} pods began fewer connections that the captures saw than they must have, so nothing is shown: {}",
            quiet.len(),
            about.len(),
            quiet[..quiet.len().min(6)].join("; ")
        );
        let hbone = all.iter().filter(|begun| begun.hbone).count();
        let is_other = |uid: &&String| !about.iter().any(|talker| talker.uid == **uid);
        let others: usize = self.begun.keys().filter(is_other).map(|uid| self.begun[uid].len()).sum();
        Ok(format!(
            "{} connections begun by {} pods of the mesh, {hbone} of them to {PORT_HBONE}, none uncaptured; {others} \
             begun by other pods of the mesh, {} by pods outside",
            all.len(),
            about.len(),
            self.outside
        ))
    }

    /// What a pod began, from when it had to on.
    fn begun_by(&self, talker: &Talker) -> Vec<Begun> {
        let begun = self.begun.get(&talker.uid).into_iter().flatten();
        begun.filter(|begun| begun.at >= talker.since).copied().collect()
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let why = match self.why {
            Why::Application => "the application's own SYN",
            Why::Plaintext => "plaintext to a pod of the mesh",
        };
        write!(f, "{} {} → {} at {:.3}: {why}", self.pod, self.from, self.to, since.as_secs_f64())
    }
}

#[cfg(test)]
#[path = "leaks_tests.rs"]
mod tests;
