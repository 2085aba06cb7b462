//! Packets on a link: tcpdump writes them, this reads them.

use super::netns::Netns;
use super::process::{Launch, Process};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A running capture. Dropping it ends it and forgets what it saw.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    log: PathBuf,
}

/// What was on the link.
#[derive(Clone, Debug, Default)]
pub struct Packets(pub Vec<Packet>);

/// One TCP or UDP packet; of a tunnel's, the one inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When it was seen, by the machine's clock.
    pub at: SystemTime,
    /// From whom.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What it carries.
    pub transport: Transport,
    /// TCP's options, as they are in the header.
    pub options: Vec<u8>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, with its flags and sequence number.
    Tcp {
        /// FIN 1, SYN 2, RST 4, ACK 16, … (RFC 9293).
        flags: u8,
        /// The first payload byte's number.
        sequence: u32,
    },
    /// UDP
    Udp,
}

const SYN: u8 = 2;
const ACK: u8 = 16;
/// A TLS record's first bytes: a handshake of TLS 1.x (RFC 8446, section 5.1).
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

/// Where Linux' VXLAN devices send to, unless they are told otherwise.
const VXLAN: u16 = 8472;

/// Packets with the SYN flag. An IPv6 header has a fixed length and the pod networks no extension headers.
const BEGINNINGS: &str = "(ip and tcp and tcp[13] & 2 != 0) or (ip6 and ip6[6] == 6 and ip6[53] & 2 != 0)";

static CAPTURES: AtomicU64 = AtomicU64::new(0);

impl Capture {
    /// Begins to capture on `link` of `netns` (`any` for all of them) and waits until it does.
    ///
    /// # Errors
    /// When tcpdump is not installed or cannot listen there.
    pub fn start(netns: &Netns, link: &str, dir: &Path) -> Result<Self> {
        Self::only(netns, link, &[], dir)
    }

    /// As [`Capture::start`], of what begins a TCP connection only: cheap enough for a busy link and a long time.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn of_beginnings(netns: &Netns, link: &str, dir: &Path) -> Result<Self> {
        Self::only(netns, link, &["-s", "160", BEGINNINGS], dir)
    }

    fn only(netns: &Netns, link: &str, what: &[&str], dir: &Path) -> Result<Self> {
        let name = format!("capture-{}", CAPTURES.fetch_add(1, Ordering::Relaxed));
        let file = dir.join(format!("{name}.pcap"));
        let mut launch = Launch::new("tcpdump", netns)
            .arg("-i")
            .arg(link)
            // As root all the way: the file is in a directory of root's. Names cost time, a small buffer packets.
            .arg("-Z")
            .arg("root")
            .arg("-n")
            .arg("-U")
            .arg("-s")
            .arg("0")
            .arg("-B")
            .arg("16384")
            .arg("--immediate-mode")
            .arg("-w")
            .arg(&file);
        launch.args.extend(what.iter().map(Into::into));
        let process = launch.start(&name, dir).context("tcpdump: `make setup` installs it")?;
        let mut capture = Self { process, file, log: dir.join(format!("{name}.log")) };
        super::eventually("tcpdump to listen", Duration::from_secs(10), || {
            capture.process.must_run()?;
            let said = std::fs::read_to_string(&capture.log)?;
            ensure!(said.contains("listening on"), "tcpdump said {said:?}");
            Ok(())
        })?;
        Ok(capture)
    }

    /// Ends the capture and reads it.
    ///
    /// # Errors
    /// When packets were dropped, since then an absence proves nothing, or the file is damaged.
    pub fn stop(self) -> Result<Packets> {
        // Packets of the last moment are still on their way through the ring.
        std::thread::sleep(Duration::from_millis(100));
        self.process.signal(Signal::SIGINT)?;
        let Self { mut process, file, log } = self;
        super::eventually("tcpdump to end", Duration::from_secs(10), || {
            process.ended()?.context("tcpdump still runs")
        })?;
        let said = std::fs::read_to_string(log)?;
        let dropped = said.lines().find_map(|line| line.strip_suffix(" packets dropped by kernel"));
        ensure!(dropped == Some("0"), "tcpdump lost packets, so an absence proves nothing: {said}");
        Packets::parse(&std::fs::read(&file)?)
    }
}

impl Packets {
    /// Reads a pcap file. Packets that are neither TCP nor UDP are left out.
    ///
    /// # Errors
    /// When it is none, or cut.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let magic = file.get(..4).context("an empty pcap file")?;
        // Written by this machine, in its byte order; with microseconds or with nanoseconds.
        let fraction = match u32::from_ne_bytes(magic.try_into()?) {
            0xa1b2_c3d4 => Duration::from_micros(1),
            0xa1b2_3c4d => Duration::from_nanos(1),
            other => bail!("not a pcap file: {other:#x}"),
        };
        let word =
            |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(file.get(at..at + 4)?.try_into().ok()?)) };
        // Where the network header is, by link type (LINKTYPE_*): Ethernet, raw IP, "cooked" v1 and v2.
        let skip = match word(20).context("a cut pcap header")? & 0xffff {
            1 => 14,
            101 => 0,
            113 => 16,
            276 => 20,
            other => bail!("a pcap file of link type {other}"),
        };
        let (mut at, mut packets) = (24, Vec::new());
        while let (Some(seconds), Some(parts), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
            let when = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into()) + fraction * parts;
            let length = usize::try_from(length)?;
            let Some(frame) = file.get(at + 16..at + 16 + length) else { break };
            packets.extend(frame.get(skip..).and_then(|network| packet(when, network)));
            at += 16 + length;
        }
        Ok(Self(packets))
    }

    /// Whether `bytes` are anywhere in a packet's payload, or in one direction of a TCP connection.
    #[must_use]
    pub fn contain(&self, bytes: &[u8]) -> bool {
        let holds = |hay: &[u8]| hay.windows(bytes.len()).any(|window| window == bytes);
        self.0.iter().any(|packet| holds(&packet.payload))
            || self.streams().values().any(|stream| holds(stream))
    }

    /// Opening SYNs to `port`.
    #[must_use]
    pub fn syns_to(&self, port: u16) -> usize {
        self.opening().filter(|packet| packet.to.port() == port).count()
    }

    /// Opening SYNs.
    pub fn opening(&self) -> impl Iterator<Item = &Packet> {
        self.0.iter().filter(
            |packet| matches!(packet.transport, Transport::Tcp { flags, .. } if flags & (SYN | ACK) == SYN),
        )
    }

    /// Packets with a payload to or from `port`.
    pub fn with_port(&self, port: u16) -> impl Iterator<Item = &Packet> {
        self.0.iter().filter(move |packet| {
            !packet.payload.is_empty() && (packet.from.port() == port || packet.to.port() == port)
        })
    }

    /// Connections to `port` whose client begins with a TLS handshake, and all connections to it that carry data.
    #[must_use]
    pub fn tls_to(&self, port: u16) -> (usize, usize) {
        let streams = self.streams();
        let to_port = || streams.iter().filter(|((_, to), stream)| to.port() == port && !stream.is_empty());
        (to_port().filter(|(_, stream)| stream.starts_with(&TLS_HANDSHAKE)).count(), to_port().count())
    }

    /// The payload of each direction of each TCP connection, in order of sequence numbers. Good for streams below
    /// 2 GiB of which the capture saw the beginning.
    fn streams(&self) -> BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> {
        let mut starts = BTreeMap::new();
        let mut parts: BTreeMap<_, BTreeMap<u32, &[u8]>> = BTreeMap::new();
        for packet in &self.0 {
            if let Transport::Tcp { flags, sequence } = packet.transport {
                let key = (packet.from, packet.to);
                let first = sequence.wrapping_add(u32::from(flags & SYN != 0));
                let start = *starts.entry(key).or_insert(first);
                if !packet.payload.is_empty() {
                    parts.entry(key).or_default().insert(first.wrapping_sub(start), &packet.payload);
                }
            }
        }
        let join = |parts: BTreeMap<u32, &[u8]>| parts.into_values().flatten().copied().collect();
        parts.into_iter().map(|(key, parts)| (key, join(parts))).collect()
    }
}

impl Packet {
    /// The TCP option of this kind, whole; `None` when there is none, or what stands before it is no option (RFC 9293, 3.2).
    #[must_use]
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = self.options.as_slice();
        loop {
            match *rest {
                [1, ..] => rest = &rest[1..],
                [found, length, ..] if found != 0 && length >= 2 => {
                    let option = rest.get(..usize::from(length))?;
                    if found == kind {
                        return Some(option);
                    }
                    rest = &rest[usize::from(length)..];
                }
                _ => return None,
            }
        }
    }
}

fn packet(at: SystemTime, network: &[u8]) -> Option<Packet> {
    let (from, to, protocol, transport): (IpAddr, IpAddr, u8, &[u8]) = match network.first()? >> 4 {
        4 => {
            let header = usize::from(network[0] & 0xf) * 4;
            let total = usize::from(word(network, 2)?);
            let ip = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(network.get(at..at + 4)?).ok()?));
            (ip(12)?.into(), ip(16)?.into(), *network.get(9)?, network.get(header..total.min(network.len()))?)
        }
        6 => {
            let total = 40 + usize::from(word(network, 4)?);
            let ip = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(network.get(at..at + 16)?).ok()?));
            (ip(8)?.into(), ip(24)?.into(), *network.get(6)?, network.get(40..total.min(network.len()))?)
        }
        _ => return None,
    };
    let (from, to) = (SocketAddr::new(from, word(transport, 0)?), SocketAddr::new(to, word(transport, 2)?));
    match protocol {
        6 => {
            let sequence = u32::from_be_bytes(transport.get(4..8)?.try_into().ok()?);
            let header = usize::from(transport.get(12)? >> 4) * 4;
            let options = transport.get(20..header)?.to_vec();
            let (transport, payload) =
                (Transport::Tcp { flags: *transport.get(13)?, sequence }, transport.get(header..)?.to_vec());
            Some(Packet { at, from, to, transport, options, payload })
        }
        17 if to.port() == VXLAN => packet(at, tunnelled(transport.get(8..)?)?),
        17 => {
            let payload = transport.get(8..)?.to_vec();
            Some(Packet { at, from, to, transport: Transport::Udp, options: Vec::new(), payload })
        }
        _ => None,
    }
}

/// The network packet inside of a VXLAN packet, behind its header and an Ethernet header without a VLAN tag (RFC 7348,
/// section 5). Nothing where the header does not name a network, or ARP or the like is inside.
fn tunnelled(vxlan: &[u8]) -> Option<&[u8]> {
    let names_a_network = vxlan.first()? & 0x08 != 0;
    let ethertype = word(vxlan, 8 + 12)?;
    (names_a_network && matches!(ethertype, 0x0800 | 0x86dd)).then(|| vxlan.get(8 + 14..)).flatten()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_options(options: &[u8]) -> Packet {
        packet(SystemTime::UNIX_EPOCH, &syn(options)).unwrap()
    }

    fn syn(options: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ip.extend([0x80, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0, SYN, 0, 0, 0, 0, 0, 0]);
        ip[32] = u8::try_from((20 + options.len()) / 4 * 16).unwrap();
        ip.extend(options);
        ip[3] = u8::try_from(ip.len()).unwrap();
        ip
    }

    /// A UDP packet over IPv4 to [`VXLAN`], with this VXLAN header's flags and this inside of an Ethernet frame.
    fn in_a_tunnel(flags: u8, ethertype: [u8; 2], network: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        ip.extend([0xc0, 0]);
        ip.extend(VXLAN.to_be_bytes());
        ip.extend([0; 4]);
        ip.extend([flags, 0, 0, 0, 0, 0, 1, 0]);
        ip.extend([0; 12]);
        ip.extend(ethertype);
        ip.extend(network);
        ip[3] = u8::try_from(ip.len()).unwrap();
        ip
    }

    #[test]
    fn of_a_tunnel_s_packet_the_one_inside_counts() {
        let inside = packet(SystemTime::UNIX_EPOCH, &in_a_tunnel(8, [8, 0], &syn(&[2, 4, 5, 180])));
        assert_eq!(inside, Some(with_options(&[2, 4, 5, 180])));
        let nothing = |outside: &[u8]| packet(SystemTime::UNIX_EPOCH, outside).is_none();
        assert!(nothing(&in_a_tunnel(8, [8, 6], &[0; 28])), "ARP");
        assert!(nothing(&in_a_tunnel(0, [8, 0], &syn(&[]))), "of no network");
        assert!(nothing(&in_a_tunnel(8, [8, 0], &[])), "cut");
    }

    #[test]
    fn an_option_is_found_behind_others() {
        let syn = with_options(&[2, 4, 5, 180, 1, 1, 4, 2, 254, 6, b'S', b'L', 7, 8, 0, 0]);
        assert_eq!(syn.option(254), Some(&[254, 6, b'S', b'L', 7, 8][..]));
        assert_eq!(syn.option(4), Some(&[4, 2][..]));
        assert_eq!(syn.option(3), None);
        assert_eq!((syn.from.port(), syn.to.port(), syn.payload.len()), (0x8000, 80, 0));
    }

    #[test]
    fn what_is_no_option_ends_them() {
        assert_eq!(with_options(&[0, 254, 2, 0]).option(254), None, "after the end of the list");
        assert_eq!(with_options(&[8, 40, 254, 2]).option(254), None, "cut");
        assert_eq!(with_options(&[8, 0, 254, 2]).option(254), None, "a length that cannot be");
        assert_eq!(with_options(&[]).option(254), None);
    }
}
