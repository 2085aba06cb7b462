//! 15053: the names of the workloads file's services, and one name of the stand-in's own. It forwards nothing: every
//! other name does not exist, so that no question leaves the test.

use super::pod::{Direction, Pod};
use super::sockets;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// The name that shows that the stand-in answered.
pub const OWN_NAME: &str = "ztunnel.standin.test";
/// Its addresses, from the ranges for documentation.
pub const OWN_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53))];

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// How long an answer may be kept, in seconds.
const TTL: u32 = 5;
const HEADER: usize = 12;
const RCODE_NXDOMAIN: u8 = 3;
const RCODE_NOTIMP: u8 = 4;

/// A question: the first of a message, which in practice is the only one.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    name: String,
    kind: u16,
    class: u16,
    /// Where it ends in the message.
    end: usize,
}

/// Answers datagrams until the pod's listeners stop.
pub async fn over_udp(pod: Arc<Pod>, socket: UdpSocket) {
    let mut buffer = vec![0; 4096];
    let Ok(local) = socket.local_addr() else { return };
    loop {
        // An error here is the ICMP answer to an earlier reply: it belongs to nobody.
        let Ok((n, source)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(reply) = answer(&pod, &buffer[..n], source, local, "udp") {
            let _ = socket.send_to(&reply, source).await;
        }
    }
}

/// Answers the questions of one connection, one after the other (RFC 1035 §4.2.2).
pub async fn over_tcp(pod: Arc<Pod>, mut stream: TcpStream, source: SocketAddr) {
    let Ok(local) = stream.local_addr() else { return };
    while let Ok(length) = stream.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        let Some(reply) = answer(&pod, &message, source, local, "tcp") else { return };
        let length = u16::try_from(reply.len()).unwrap_or(u16::MAX);
        let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

fn answer(
    pod: &Arc<Pod>,
    message: &[u8],
    source: SocketAddr,
    local: SocketAddr,
    transport: &str,
) -> Option<Vec<u8>> {
    let question = Question::parse(message)?;
    let directory = pod.shared.directories.current();
    let addresses = if question.name == OWN_NAME {
        Some(OWN_ADDRESSES.as_slice())
    } else {
        directory.resolve(&question.name)
    };
    let more = json!({"name": question.name, "transport": transport});
    let (source, local) = (sockets::canonical(source), sockets::canonical(local));
    let connection = pod.connection(Direction::Dns, source, local, more);
    let reply = respond(message, &question, addresses);
    connection.count.sent.store(message.len() as u64, Ordering::Relaxed);
    connection.count.received.store(reply.len() as u64, Ordering::Relaxed);
    Some(reply)
}

impl Question {
    /// Reads the first question; `None` for what is no query, and so gets no answer.
    fn parse(message: &[u8]) -> Option<Self> {
        let is_query = *message.get(2)? & 0x80 == 0;
        let count = u16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
        if !is_query || count == 0 {
            return None;
        }
        let (mut at, mut labels) = (HEADER, Vec::new());
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            match length {
                0 => break,
                // No pointer can stand in the first name of a message.
                64.. => return None,
                _ => labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase()),
            }
            at += length;
        }
        let fixed = message.get(at..at + 4)?;
        Some(Self {
            name: labels.join("."),
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            end: at + 4,
        })
    }
}

/// The reply: `addresses` is `None` for a name that does not exist.
fn respond(message: &[u8], question: &Question, addresses: Option<&[IpAddr]>) -> Vec<u8> {
    let opcode = message[2] & 0x78;
    let rcode = match addresses {
        _ if opcode != 0 => RCODE_NOTIMP,
        None => RCODE_NXDOMAIN,
        Some(_) => 0,
    };
    let wanted = |ip: &&IpAddr| match question.kind {
        TYPE_A => ip.is_ipv4(),
        TYPE_AAAA => ip.is_ipv6(),
        _ => false,
    };
    let asked = question.class == CLASS_IN && rcode == 0;
    let found: Vec<&IpAddr> = addresses.unwrap_or_default().iter().filter(|ip| asked && wanted(ip)).collect();
    let mut reply = message[..question.end].to_vec();
    // QR and AA, with the query's opcode and RD; then RA and the code.
    reply[2] = 0x84 | opcode | (message[2] & 1);
    reply[3] = 0x80 | rcode;
    let answers = u16::try_from(found.len()).unwrap_or(u16::MAX).to_be_bytes();
    reply[4..HEADER].copy_from_slice(&[0, 1, answers[0], answers[1], 0, 0, 0, 0]);
    for ip in found {
        let octets = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        // The owner is a pointer to the question's name.
        reply.extend([0xc0, 0x0c]);
        reply.extend(question.kind.to_be_bytes());
        reply.extend(CLASS_IN.to_be_bytes());
        reply.extend(TTL.to_be_bytes());
        reply.extend([0, if ip.is_ipv4() { 4 } else { 16 }]);
        reply.extend(octets);
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).expect("short"));
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn a_known_name_has_its_addresses() {
        let message = query("Echo.Demo", TYPE_A);
        let question = Question::parse(&message).expect("a question");
        assert_eq!(question.name, "echo.demo");
        let reply = respond(&message, &question, Some(&OWN_ADDRESSES));
        assert_eq!(reply[..8], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1]);
        assert!(reply.ends_with(&[0, 4, 192, 0, 2, 53]));
        let none = respond(&message, &Question { kind: 15, ..question }, Some(&OWN_ADDRESSES));
        assert_eq!((none[3], none[7]), (0x80, 0));
    }

    #[test]
    fn an_unknown_name_does_not_exist() {
        let message = query("example.com", TYPE_AAAA);
        let question = Question::parse(&message).expect("a question");
        assert_eq!(respond(&message, &question, None)[3], 0x80 | RCODE_NXDOMAIN);
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let message = query("a.b", TYPE_A);
        for cut in 0..message.len() {
            assert_eq!(Question::parse(&message[..cut]), None, "cut at {cut}");
        }
        let mut reply = message.clone();
        reply[2] |= 0x80;
        assert_eq!(Question::parse(&reply), None);
    }
}
