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

/// The same, as made: not yet known to the runtime.
struct Sockets {
    dns_tcp: Vec<Socket>,
    dns_udp: Vec<Socket>,
    hbone: Socket,
    inbound: Socket,
    outbound: Socket,
}

impl Listeners {
    /// Opens every listener in `netns`, in ztunnel's order. None is left when one fails.
    ///
    /// # Errors
    /// Names the first address that could not be bound.
    pub async fn open(entrance: &Entrance, netns: &Netns, how: SocketOptions) -> Result<Self, BindError> {
        let not_entered =
            |source| BindError { address: (Ipv4Addr::LOCALHOST, PORT_DNS_PROXY).into(), source };
        let sockets = entrance.within(netns, move || Ok(Sockets::open(how))).await.map_err(not_entered)??;
        sockets.listen().map_err(not_entered)
    }
}

impl Sockets {
    /// Opens them where the thread is.
    fn open(how: SocketOptions) -> Result<Self, BindError> {
        let open = |ip: IpAddr, port: u16, kind: Type| {
            let address = SocketAddr::new(ip, port);
            listener(address, kind, how).map_err(|source| BindError { address, source })
        };
        let any = if how.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let mut loopbacks = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        if how.ipv6 && loopback_has_ipv6() {
            loopbacks.push(Ipv6Addr::LOCALHOST.into());
        }
        let (mut dns_tcp, mut dns_udp) = (Vec::new(), Vec::new());
        for ip in loopbacks {
            dns_udp.push(open(ip, PORT_DNS_PROXY, Type::DGRAM)?);
            dns_tcp.push(open(ip, PORT_DNS_PROXY, Type::STREAM)?);
        }
        Ok(Self {
            dns_tcp,
            dns_udp,
            hbone: open(any, PORT_HBONE, Type::STREAM)?,
            inbound: open(any, PORT_INBOUND, Type::STREAM)?,
            outbound: open(any, PORT_OUTBOUND, Type::STREAM)?,
        })
    }

    fn listen(self) -> io::Result<Listeners> {
        let tcp = |socket: Socket| TcpListener::from_std(socket.into());
        let udp = |socket: Socket| UdpSocket::from_std(socket.into());
        Ok(Listeners {
            dns_tcp: self.dns_tcp.into_iter().map(tcp).collect::<io::Result<_>>()?,
            dns_udp: self.dns_udp.into_iter().map(udp).collect::<io::Result<_>>()?,
            hbone: tcp(self.hbone)?,
            inbound: tcp(self.inbound)?,
            outbound: tcp(self.outbound)?,
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
fn loopback_has_ipv6() -> bool {
    // Where it cannot be read, the bind decides.
    !std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|off| off.trim() == "1")
}
