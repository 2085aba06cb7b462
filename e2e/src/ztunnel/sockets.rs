//! The sockets that ztunnel has in a pod, with the options that the redirection relies on.

use super::netns::{Entrance, Netns};
use sluice_shared::contract::{MARK_ZTUNNEL, PORT_DNS_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// ztunnel's listen backlog.
const BACKLOG: i32 = 128;
/// How long a connection to a peer may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(180);

/// How sockets are to be made.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    /// Listen on IPv6 too (ztunnel's `IPV6_ENABLED`).
    pub ipv6: bool,
    /// Set IP_TRANSPARENT, and so keep client addresses.
    pub transparent: bool,
}

/// All that listens in one pod.
#[derive(Debug)]
pub struct Listeners {
    /// 15053 over TCP, one or two.
    pub dns_tcp: Vec<TcpListener>,
    /// 15053 over UDP, one or two.
    pub dns_udp: Vec<UdpSocket>,
    /// 15008
    pub hbone: TcpListener,
    /// 15006
    pub inbound: TcpListener,
    /// 15001
    pub outbound: TcpListener,
}

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("Bind({address}, {source:?})")]
pub struct BindError {
    address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

impl Listeners {
    /// Opens every listener in `netns`, in ztunnel's order. None is left when one fails.
    ///
    /// # Errors
    /// Names the first address that could not be bound.
    pub async fn open(entrance: &Entrance, netns: &Netns, how: SocketOptions) -> Result<Self, BindError> {
        let open = |address: SocketAddr, kind: Type| async move {
            let make = move || listener(address, kind, how);
            entrance.within(netns, make).await.map_err(|source| BindError { address, source })
        };
        let tcp = |address: SocketAddr| async move {
            let socket = open(address, Type::STREAM).await?;
            TcpListener::from_std(socket.into()).map_err(|source| BindError { address, source })
        };
        let any = if how.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let mut loopbacks = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        if how.ipv6 && entrance.within(netns, loopback_has_ipv6).await.unwrap_or(true) {
            loopbacks.push(Ipv6Addr::LOCALHOST.into());
        }
        let (mut dns_tcp, mut dns_udp) = (Vec::new(), Vec::new());
        for address in loopbacks.into_iter().map(|ip| SocketAddr::new(ip, PORT_DNS_PROXY)) {
            let socket = open(address, Type::DGRAM).await?;
            dns_udp.push(UdpSocket::from_std(socket.into()).map_err(|source| BindError { address, source })?);
            dns_tcp.push(tcp(address).await?);
        }
        Ok(Self {
            dns_tcp,
            dns_udp,
            hbone: tcp(SocketAddr::new(any, PORT_HBONE)).await?,
            inbound: tcp(SocketAddr::new(any, PORT_INBOUND)).await?,
            outbound: tcp(SocketAddr::new(any, PORT_OUTBOUND)).await?,
        })
    }
}

/// Connects from within `netns`; from `source`, which need not be an address of the pod, when one is given.
///
/// # Errors
/// Those of the socket calls; `TimedOut` after 10 s.
pub async fn connect(
    entrance: &Entrance,
    netns: &Netns,
    source: Option<IpAddr>,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    // The kernel would take a connection to itself from a bound transparent socket for a loop.
    let source = source.filter(|ip| *ip != to.ip() && ip.is_ipv4() == to.is_ipv4());
    let make = move || {
        let socket = marked(Domain::for_address(to), Type::STREAM)?;
        if let Some(ip) = source {
            set_transparent(&socket, ip.is_ipv6())?;
            set_freebind(&socket, ip.is_ipv6())?;
            socket.bind(&SockAddr::from(SocketAddr::new(ip, 0)))?;
        }
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    };
    let socket = TcpSocket::from_std_stream(entrance.within(netns, make).await?.into());
    tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(to)).await?
}

/// Where the application meant a redirected connection to go: SO_ORIGINAL_DST, its IPv6 twin, or else (no NAT: TPROXY,
/// sk_assign) the socket's own address.
///
/// # Errors
/// When not even that can be read.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let found = socket.original_dst_v4().or_else(|_| socket.original_dst_v6()).ok();
    let address = found.and_then(|address| address.as_socket());
    address.map_or_else(|| stream.local_addr(), Ok).map(canonical)
}

/// An IPv4-mapped IPv6 address as IPv4.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Ends a connection with a reset, so that its application does not take a failure for an end of stream.
pub fn reset_on_close(stream: &TcpStream) {
    // A socket that is already gone needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn listener(address: SocketAddr, kind: Type, how: SocketOptions) -> io::Result<Socket> {
    let socket = marked(Domain::for_address(address), kind)?;
    // Two ztunnels serve a pod during an upgrade.
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if how.transparent && address.ip().is_unspecified() {
        set_transparent(&socket, address.is_ipv6())?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

fn marked(domain: Domain, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(MARK_ZTUNNEL.value)?;
    Ok(socket)
}

fn set_transparent(socket: &Socket, ipv6: bool) -> io::Result<()> {
    // The kernel keeps one flag under both names, so a dual-stack socket needs only its own.
    if ipv6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

fn set_freebind(socket: &Socket, ipv6: bool) -> io::Result<()> {
    if ipv6 { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) }
}

/// Whether `lo` is meant to have `::1`, read where the thread is. One that is merely down is the agent's mistake, and
/// shows when the listener is bound.
fn loopback_has_ipv6() -> io::Result<bool> {
    Ok(std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")?.trim() != "1")
}
