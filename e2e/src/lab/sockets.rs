//! The TCP sockets of a namespace, from `/proc`: shows at which of ztunnel's listeners a connection was taken,
//! whichever ztunnel runs.

use super::netns::Netns;
use anyhow::{Context, Result};
use sluice_shared::contract::{PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A TCP socket. IPv4-mapped addresses are written as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// `TCP_ESTABLISHED` (1), `TCP_LISTEN` (10), … (include/net/tcp_states.h).
    pub state: u8,
}

const LISTEN: u8 = 10;

/// Every TCP socket of a namespace.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn sockets(netns: &Netns) -> Result<Vec<Socket>> {
    netns.run(|| {
        let mut all = Vec::new();
        for table in ["tcp", "tcp6"] {
            // Not /proc/net: that is the main thread's namespace.
            let path = format!("/proc/thread-self/net/{table}");
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            all.extend(text.lines().skip(1).filter_map(socket));
        }
        Ok(all)
    })
}

/// Which of ztunnel's ports in `netns` has a connection whose other end is `client`.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn taken_at(netns: &Netns, client: SocketAddr) -> Result<Option<u16>> {
    let ports = [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE, PORT_DNS_PROXY];
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let found = sockets(netns)?;
    let at = found.iter().find(|socket| socket.remote == client && ports.contains(&socket.local.port()));
    Ok(at.map(|socket| socket.local.port()))
}

/// The ports that something listens on.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn listening(netns: &Netns) -> Result<Vec<u16>> {
    let all = sockets(netns)?;
    let mut ports: Vec<u16> =
        all.iter().filter(|socket| socket.state == LISTEN).map(|socket| socket.local.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    Some(Socket { local, remote, state: u8::from_str_radix(fields.next()?, 16).ok()? })
}

/// `0100007F:1F90`, or four such words: each word is in the host's byte order, the port is not.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':').filter(|(ip, _)| matches!(ip.len(), 8 | 32))?;
    let words: Option<Vec<u8>> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    let bytes = words?;
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_of_proc_are_read() {
        for (text, expected) in [
            ("0100007F:1F90", "127.0.0.1:8080"),
            ("0000000000000000FFFF00000100007F:3A98", "127.0.0.1:15000"),
            ("B80D01200000990000000000100000000:0050", ""),
            ("B80D0120000099000000000010000000:0050", "[2001:db8:99::10]:80"),
        ] {
            assert_eq!(address(text), expected.parse().ok(), "{text}");
        }
    }
}
