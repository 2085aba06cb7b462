//! A name server that gives one answer to everything and remembers who asked what, and a client.
//!
//! Just enough of RFC 1035 for one question of type A or AAAA over UDP.

use crate::lab::netns::Netns;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the name server answers to every question of type A.
pub const NAME_SERVER_SAYS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// What the name server answers to every question of type AAAA.
pub const NAME_SERVER_SAYS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const HEADER: usize = 12;

/// A running name server. Dropping it ends it.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<Mutex<Vec<(SocketAddr, String)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl NameServer {
    /// Serves UDP port 53 on every address of `netns`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(netns: &Netns) -> Result<Self> {
        let (asked, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (seen, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let (bound, is_bound) = mpsc::channel();
        let thread = netns.spawn(move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).context("bind UDP port 53");
            let socket = match socket {
                Ok(socket) => socket,
                Err(why) => {
                    let _ = bound.send(Err(why));
                    return Ok(());
                }
            };
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let _ = bound.send(Ok(()));
            let mut packet = [0; 1500];
            while !stopped.load(Ordering::Acquire) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                let Ok((name, kind, end)) = question(&packet[..length]) else { continue };
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                seen.lock().unwrap_or_else(PoisonError::into_inner).push((from, name));
                // A client that is gone needs no answer.
                let to = match from {
                    SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
                    v6 @ SocketAddr::V6(_) => v6,
                };
                let _ = socket.send_to(&answer(&packet[..end], kind), to);
            }
            Ok(())
        })?;
        is_bound.recv().map_err(|_| anyhow!("the name server's thread ended"))??;
        Ok(Self { asked, stop, thread: Some(thread) })
    }

    /// Who asked for what, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<(SocketAddr, String)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks `server` for the addresses of `name` from within `netns`.
///
/// # Errors
/// When nobody answers within `patience`, or the answer is none.
pub fn resolve(
    netns: &Netns,
    server: IpAddr,
    name: &str,
    v4: bool,
    patience: Duration,
) -> Result<Vec<IpAddr>> {
    let query = query(name, if v4 { TYPE_A } else { TYPE_AAAA })?;
    let reply = netns.run(|| {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(&query)?;
        let mut packet = [0; 1500];
        let length = socket.recv(&mut packet)?;
        Ok(packet[..length].to_vec())
    });
    addresses(&reply.with_context(|| format!("ask {server} for {name} from {}", netns.name()))?)
}

fn query(name: &str, kind: u16) -> Result<Vec<u8>> {
    // An id, "recursion desired", one question.
    let mut packet = vec![0x51, 0xce, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).context("a label of a name is too long")?;
        packet.push(length);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend(1_u16.to_be_bytes());
    Ok(packet)
}

/// The first question's name and type, and where it ends.
fn question(packet: &[u8]) -> Result<(String, u16, usize)> {
    let (mut at, mut labels) = (HEADER, Vec::new());
    loop {
        let length = usize::from(*packet.get(at).context("a name without an end")?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = packet.get(at..at + length).context("a label without an end")?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        at += length;
    }
    Ok((labels.join("."), number(packet, at)?, at + 4))
}

fn answer(question: &[u8], kind: u16) -> Vec<u8> {
    let data: Vec<u8> = match kind {
        TYPE_A => NAME_SERVER_SAYS.octets().to_vec(),
        TYPE_AAAA => NAME_SERVER_SAYS_V6.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut packet = question.to_vec();
    // "This is a response, recursion was done"; one question, one answer if there is one, nothing else (no EDNS).
    packet[2..4].copy_from_slice(&[0x81, 0x80]);
    packet[4..HEADER].copy_from_slice(&[0, 1, 0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
    if !data.is_empty() {
        // The name is the question's; class IN; 5 s to live.
        packet.extend([0xc0, 0x0c]);
        packet.extend(kind.to_be_bytes());
        packet.extend([0, 1, 0, 0, 0, 5, 0]);
        packet.push(u8::try_from(data.len()).unwrap_or_default());
        packet.extend(data);
    }
    packet
}

fn addresses(packet: &[u8]) -> Result<Vec<IpAddr>> {
    ensure!(packet.len() >= HEADER, "an answer of {} bytes", packet.len());
    let code = packet[3] & 0xf;
    if code != 0 {
        bail!("the name server refused with code {code}");
    }
    let (_, _, mut at) = question(packet)?;
    let mut found = Vec::new();
    for _ in 0..number(packet, 6)? {
        at = skip_name(packet, at)?;
        let (kind, length) = (number(packet, at)?, usize::from(number(packet, at + 8)?));
        at += 10;
        let data = packet.get(at..at + length).context("an answer without an end")?;
        match kind {
            TYPE_A => found.push(IpAddr::from(<[u8; 4]>::try_from(data)?)),
            TYPE_AAAA => found.push(IpAddr::from(<[u8; 16]>::try_from(data)?)),
            _ => {}
        }
        at += length;
    }
    Ok(found)
}

fn skip_name(packet: &[u8], mut at: usize) -> Result<usize> {
    loop {
        let length = *packet.get(at).context("a name without an end")?;
        match length {
            0 => return Ok(at + 1),
            0xc0.. => return Ok(at + 2),
            _ => at += 1 + usize::from(length),
        }
    }
}

fn number(packet: &[u8], at: usize) -> Result<u16> {
    let bytes = packet.get(at..at + 2).context("the packet ends too early")?;
    Ok(u16::from_be_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_what_was_asked_for() {
        for (kind, expected) in [
            (TYPE_A, vec![IpAddr::from(NAME_SERVER_SAYS)]),
            (TYPE_AAAA, vec![NAME_SERVER_SAYS_V6.into()]),
            (16, vec![]),
        ] {
            let query = query("echo.demo.svc.cluster.local", kind).unwrap();
            let (name, asked, end) = question(&query).unwrap();
            assert_eq!((name.as_str(), asked, end), ("echo.demo.svc.cluster.local", kind, query.len()));
            assert_eq!(addresses(&answer(&query, kind)).unwrap(), expected);
        }
    }

    #[test]
    fn a_cut_packet_is_an_error() {
        let whole = answer(&query("a.b", TYPE_A).unwrap(), TYPE_A);
        for length in 0..whole.len() {
            assert!(addresses(&whole[..length]).is_err(), "{length}");
        }
    }
}
