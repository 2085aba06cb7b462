//! The rule by which a capture is judged: no opening SYN of a pod of the mesh leaves it in plaintext.
//!
//! Two kinds are told apart. The application's own SYN, known by the ports that the test's clients bind, must not be
//! on a wire at all: only ztunnel's may. And nobody's SYN, ztunnel's included, may go to a pod that peers know to be
//! reached over HBONE but to its port 15008.

use super::lives::Life;
use crate::lab::capture::{Packet, Packets};
use crate::lab::traffic::{CLIENT_PORTS, SINGLE_CLIENT_PORTS};
use sluice_shared::contract::{PORT_DNS, PORT_HBONE};
use std::collections::BTreeMap;
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
    /// SYNs of pods that had to be captured then: with none, nothing was shown.
    pub judged: usize,
    /// Of them, those to 15008.
    pub hbone: usize,
    /// SYNs with the address of a pod outside the mesh.
    pub outside: usize,
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
    let mut judgement = Judgement::default();
    for packet in packets.opening().filter(|packet| is_judged(packet)) {
        let sources = owners(packet.from.ip(), packet.at);
        let Some(source) = sources.first() else { continue };
        // While an address passes from one pod to the next, it may still be the one's that is not in the mesh.
        if !sources.iter().all(|life| life.must_be_captured(packet.at)) {
            judgement.outside += 1;
            continue;
        }
        judgement.judged += 1;
        if packet.to.port() == PORT_HBONE {
            judgement.hbone += 1;
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

impl Judgement {
    /// Fails when there were leaks, or no pod of the mesh began anything.
    ///
    /// # Errors
    /// The first leaks.
    pub fn must_hold(&self) -> anyhow::Result<String> {
        anyhow::ensure!(
            self.judged > 0,
            "no pod of the mesh began a connection that the capture saw, so nothing is shown"
        );
        self.must_hold_under_load()
    }

    /// As [`Judgement::must_hold`], for pods of which it is known otherwise that they begin connections: ztunnel may
    /// send all of them through one that it has open. That the capture sees is shown by pods outside.
    ///
    /// # Errors
    /// The first leaks.
    pub fn must_hold_under_load(&self) -> anyhow::Result<String> {
        let first: Vec<String> = self.leaks.iter().take(6).map(ToString::to_string).collect();
        anyhow::ensure!(self.leaks.is_empty(), "{} leaks: {}", self.leaks.len(), first.join("; "));
        anyhow::ensure!(self.judged + self.outside > 0, "the capture saw no pod begin a connection");
        Ok(format!(
            "{} SYNs of pods of the mesh, {} of them to {PORT_HBONE}, none uncaptured; {} of pods outside",
            self.judged, self.hbone, self.outside
        ))
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
mod tests {
    use super::super::lives::Span;
    use super::*;
    use crate::lab::capture::Transport;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn span(from: u64) -> Span {
        Span { from: at(from), until: None }
    }

    fn life(ip: &str, captured: &[Span], hbone: &[Span]) -> Life {
        Life {
            name: format!("demo/{ip}"),
            seen: at(0),
            addresses: vec![(ip.parse().unwrap(), span(0))],
            captured: captured.to_vec(),
            hbone: hbone.to_vec(),
        }
    }

    /// a is of the mesh from 10 on, b from 10 on and known to be from 12 on, c is outside.
    fn pods() -> Vec<Life> {
        vec![
            life("10.77.1.2", &[span(10)], &[]),
            life("10.77.1.3", &[span(10)], &[span(12)]),
            life("10.77.1.4", &[], &[]),
        ]
    }

    fn syn(seconds: u64, from: &str, to: &str) -> Packet {
        Packet {
            at: at(seconds),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            transport: Transport::Tcp { flags: 2, sequence: 1 },
            payload: Vec::new(),
        }
    }

    fn why(packet: Packet) -> Option<Why> {
        judge(&Packets(vec![packet]), &pods()).leaks.first().map(|leak| leak.why)
    }

    #[test]
    fn the_application_s_own_syn_is_a_leak_wherever_it_goes() {
        assert_eq!(why(syn(11, "10.77.1.2:16001", "10.77.1.3:8080")), Some(Why::Application));
        assert_eq!(why(syn(11, "10.77.1.2:16001", "10.77.1.4:8080")), Some(Why::Application));
        assert_eq!(why(syn(11, "10.77.1.2:16001", "192.0.2.1:80")), Some(Why::Application));
    }

    #[test]
    fn ztunnel_may_speak_plaintext_to_those_outside_only() {
        assert_eq!(why(syn(30, "10.77.1.2:40001", "10.77.1.3:8080")), Some(Why::Plaintext));
        assert_eq!(why(syn(30, "10.77.1.2:40001", "10.77.1.4:8080")), None);
        assert_eq!(why(syn(13, "10.77.1.2:40001", "10.77.1.3:8080")), None, "peers cannot know yet");
        assert_eq!(why(syn(30, "10.77.1.2:40001", "10.77.1.3:15008")), None);
    }

    #[test]
    fn a_pod_outside_is_free_and_so_is_one_that_is_not_captured_yet() {
        assert_eq!(why(syn(11, "10.77.1.4:16001", "10.77.1.3:8080")), None);
        assert_eq!(why(syn(9, "10.77.1.2:16001", "10.77.1.3:8080")), None);
        assert_eq!(why(syn(11, "10.77.1.2:16001", "10.96.0.10:53")), None, "DNS has rules of its own");
    }

    #[test]
    fn an_address_that_passes_on_is_judged_once_its_owner_is_sure() {
        let mut lives = pods();
        let mut last = life("10.77.1.2", &[], &[]);
        last.addresses[0].1.until = Some(at(20));
        lives.push(last);
        let leaks = |seconds| {
            let packets = Packets(vec![syn(seconds, "10.77.1.2:16001", "10.77.1.3:8080")]);
            judge(&packets, &lives).leaks.len()
        };
        assert_eq!((leaks(15), leaks(20)), (0, 1));
    }

    #[test]
    fn nothing_seen_is_nothing_shown() {
        let outside = Packets(vec![syn(11, "10.77.1.4:16001", "10.77.1.3:8080")]);
        let judgement = judge(&outside, &pods());
        assert!(judgement.must_hold().is_err());
        assert_eq!((judgement.judged, judgement.outside), (0, 1));
        let twice =
            vec![syn(11, "10.77.1.2:16001", "10.77.1.3:80"), syn(11, "10.77.1.2:16001", "10.77.1.3:80")];
        assert_eq!(judge(&Packets(twice), &pods()).leaks.len(), 1);
    }
}
