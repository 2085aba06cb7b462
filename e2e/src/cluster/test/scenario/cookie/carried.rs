//! What the opening SYNs of probes carry.

use super::KINDS;
use crate::cluster::test::stage::{PATIENCE, Stage};
use crate::cluster::watch::seen::Pod;
use crate::lab::capture::{Packet, Packets};
use anyhow::{Result, anyhow, ensure};
use sluice_shared::cookie::Cookie;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Some periods of every probe.
const WHILE: Duration = Duration::from_secs(3);
/// How many SYNs of each pod's probes are looked at, at least.
const ENOUGH: usize = 2;

/// By pod, each opening SYN to its probed port, by its source, and the cookie in it.
#[derive(Debug, Default)]
pub(super) struct Carried(BTreeMap<String, BTreeMap<SocketAddr, Option<Cookie>>>);

impl Carried {
    /// Listens until there are enough SYNs of every pod's probes. Nobody else may connect to these ports meanwhile.
    ///
    /// # Errors
    /// When a pod is not probed, or a capture lost packets.
    pub(super) fn by_probes(stage: &Stage, pods: &[Pod]) -> Result<Self> {
        let (mut carried, begun) = (Self::default(), Instant::now());
        loop {
            let wire = stage.listen()?;
            sleep(WHILE);
            carried.take(&wire.close()?, pods);
            match carried.enough(pods) {
                Err(why) if begun.elapsed() > PATIENCE => return Err(why),
                Err(_) => {}
                Ok(()) => return Ok(carried),
            }
        }
    }

    /// Each pod's carry one cookie, and no two pods' the same.
    ///
    /// # Errors
    /// Whose do not.
    pub(super) fn must_be_cookies(&self) -> Result<String> {
        let mut all = BTreeSet::new();
        for (pod, syns) in &self.0 {
            let without = syns.values().filter(|cookie| cookie.is_none()).count();
            ensure!(without == 0, "{without} of {} SYNs of {pod}'s probes carry no cookie", syns.len());
            let cookies: BTreeSet<Cookie> = syns.values().flatten().copied().collect();
            ensure!(cookies.len() == 1, "{pod}'s probes carry {} cookies", cookies.len());
            all.extend(cookies);
        }
        ensure!(all.len() == self.0.len(), "{} pods share {} cookies", self.0.len(), all.len());
        let syns: usize = self.0.values().map(BTreeMap::len).sum();
        Ok(format!("{syns} SYNs of the probes of {} pods, all with that pod's cookie", self.0.len()))
    }

    /// None carries one.
    ///
    /// # Errors
    /// Whose do.
    pub(super) fn must_be_none(&self) -> Result<String> {
        for (pod, syns) in &self.0 {
            let with = syns.values().flatten().count();
            ensure!(with == 0, "{with} of {} SYNs of {pod}'s probes carry a cookie", syns.len());
        }
        let syns: usize = self.0.values().map(BTreeMap::len).sum();
        Ok(format!("{syns} SYNs of the probes of {} pods, none with a cookie", self.0.len()))
    }

    /// A packet is seen once on each interface that it passes.
    fn take(&mut self, packets: &Packets, pods: &[Pod]) {
        for packet in packets.opening() {
            let port = packet.to.port();
            let probed =
                pods.iter().find(|pod| pod.ips.contains(&packet.to.ip()) && port_of(pod) == Some(port));
            if let Some(pod) = probed {
                self.0.entry(pod.name.clone()).or_default().insert(packet.from, cookie(packet));
            }
        }
    }

    fn enough(&self, pods: &[Pod]) -> Result<()> {
        let few = pods.iter().map(|pod| (pod, self.0.get(&pod.name).map_or(0, BTreeMap::len)));
        let mut few = few.filter(|(_, count)| *count < ENOUGH);
        few.next().map_or(Ok(()), |(pod, count)| Err(anyhow!("{count} SYNs of {}'s probes", pod.name)))
    }
}

/// The port that a pod's probes go to, by its name.
fn port_of(pod: &Pod) -> Option<u16> {
    let (kind, _) = pod.name.split_once('-')?;
    KINDS.iter().find(|(name, _)| *name == kind).map(|(_, port)| *port)
}

fn cookie(packet: &Packet) -> Option<Cookie> {
    packet.option(Cookie::kind()).and_then(Cookie::from_option)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::capture::Transport;
    use std::time::SystemTime;

    fn pod(name: &str, ip: &str) -> Pod {
        Pod { name: name.into(), ips: vec![ip.parse().unwrap()], ..Pod::default() }
    }

    fn syn(from: &str, to: &str, cookie: Option<u8>) -> Packet {
        Packet {
            at: SystemTime::UNIX_EPOCH,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            transport: Transport::Tcp { flags: 2, sequence: 1 },
            options: cookie.map_or(vec![2, 4, 5, 180], |byte| Cookie::new([byte; 8]).option().to_vec()),
            payload: Vec::new(),
        }
    }

    fn carried(packets: Vec<Packet>) -> Carried {
        let mut carried = Carried::default();
        carried.take(&Packets(packets), &[pod("http-node1", "10.77.1.2"), pod("tcp-node1", "10.77.1.3")]);
        carried
    }

    #[test]
    fn each_pod_has_one_cookie_of_its_own() {
        let of_two = |a: Option<u8>, b: Option<u8>, c: Option<u8>| {
            carried(vec![
                syn("10.77.1.1:40000", "10.77.1.2:8080", a),
                syn("10.77.1.1:40001", "10.77.1.2:8080", b),
                syn("10.77.1.1:40000", "10.77.1.3:9000", c),
            ])
            .must_be_cookies()
        };
        assert!(of_two(Some(1), Some(1), Some(2)).unwrap().starts_with("3 SYNs"));
        assert!(of_two(Some(1), None, Some(2)).is_err(), "one carries none");
        assert!(of_two(Some(1), Some(3), Some(2)).is_err(), "two cookies");
        assert!(of_two(Some(1), Some(1), Some(1)).is_err(), "one for both");
    }

    #[test]
    fn only_probes_count_and_each_once() {
        let again = syn("10.77.1.1:40000", "10.77.1.2:8080", None);
        let elsewhere = syn("10.77.1.1:40000", "10.77.1.2:9000", Some(1));
        let carried = carried(vec![again.clone(), again, elsewhere]);
        assert!(carried.must_be_none().unwrap().starts_with("1 SYNs"));
        assert!(carried.enough(&[pod("http-node1", "10.77.1.2")]).is_err());
    }
}
