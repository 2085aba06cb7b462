//! Who listens and who dials: sockets with the options that matter to the rules.

use crate::fixture::Ns;
use nix::sys::socket::sockopt::{
    BindToDevice, Ip6tOriginalDst, IpTransparent, Mark, OriginalDst, ReceiveTimeout, ReuseAddr, ReusePort,
    SendTimeout,
};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, listen,
    setsockopt, shutdown, socket,
};
use nix::sys::time::TimeVal;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub const ZTUNNEL_MARK: u32 = 0x539;
/// Far beyond what a loaded machine needs, in seconds.
const PATIENCE: i64 = 20;

/// A listener that answers every connection with one line (its tag, the original destination, the client's address)
/// and then echoes. It ends when dropped; its connections live on.
pub struct Listener {
    socket: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// ztunnel's listeners in a pod.
pub struct Ztunnel(#[expect(dead_code, reason = "held, not read")] Vec<Listener>);

/// How to dial.
#[derive(Clone, Debug, Default)]
pub struct Dial {
    pub mark: u32,
    pub device: Option<&'static str>,
    pub source: Option<SocketAddr>,
    pub timeout: Option<Duration>,
}

/// What a dial led to.
#[derive(Debug)]
pub enum Reached {
    /// Somebody answered with this line.
    Line {
        line: String,
        stream: TcpStream,
    },
    Refused,
    /// Nobody answered.
    Nobody,
}

impl Listener {
    /// Listens on `[::]` or on one address.
    pub fn new(ns: &Ns, tag: &'static str, address: SocketAddr, transparent: bool, mark: u32) -> Self {
        ns.run(|| {
            let socket = stream_socket(address);
            setsockopt(&socket, ReuseAddr, &true).expect("SO_REUSEADDR");
            setsockopt(&socket, ReusePort, &true).expect("SO_REUSEPORT");
            if transparent {
                setsockopt(&socket, IpTransparent, &true).expect("IP_TRANSPARENT");
            }
            setsockopt(&socket, Mark, &mark).expect("SO_MARK");
            bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).expect("bind");
            listen(&socket, Backlog::MAXALLOWABLE).expect("listen");
            let accepting = TcpListener::from(socket.try_clone().expect("duplicate"));
            let thread = thread::spawn(move || {
                while let Ok((stream, client)) = accepting.accept() {
                    thread::spawn(move || serve(tag, stream, client));
                }
            });
            Self { socket, thread: Some(thread) }
        })
    }

    /// Listens on every address.
    pub fn everywhere(ns: &Ns, tag: &'static str, port: u16) -> Self {
        Self::new(ns, tag, (Ipv6Addr::UNSPECIFIED, port).into(), false, 0)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Ztunnel {
    pub fn start(pod: &Ns) -> Self {
        let all = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let mut listeners = vec![
            Listener::new(pod, "outbound", all(15001), true, ZTUNNEL_MARK),
            Listener::new(pod, "inbound", all(15006), true, ZTUNNEL_MARK),
            Listener::new(pod, "hbone", all(15008), true, ZTUNNEL_MARK),
        ];
        for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let address = SocketAddr::from((loopback, 15053));
            listeners.push(Listener::new(pod, "dns", address, false, ZTUNNEL_MARK));
        }
        Self(listeners)
    }
}

/// Answers every datagram with its tag.
pub fn answer_udp(ns: &Ns, tag: &'static str, address: SocketAddr) {
    let socket = ns.run(|| UdpSocket::bind(address).expect("bind udp"));
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(tag.as_bytes(), from);
        }
    });
}

/// Asks by UDP and gives the answer.
pub fn ask_udp(ns: &Ns, mark: u32, to: SocketAddr) -> Option<String> {
    ns.run(|| {
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).expect("bind udp");
        setsockopt(&socket, Mark, &mark).expect("SO_MARK");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        socket.send_to(b"?", to).expect("send");
        let mut buffer = [0; 512];
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
        // A resolver takes an answer only from where its question went.
        Some(if from == to { said } else { format!("{said}, but from {from}") })
    })
}

impl Dial {
    pub fn to(&self, ns: &Ns, to: SocketAddr) -> Reached {
        ns.run(|| self.here(to))
    }

    /// Dials in the calling thread's namespace.
    pub fn here(&self, to: SocketAddr) -> Reached {
        let socket = stream_socket(to);
        let patience = self.timeout.map_or(TimeVal::new(PATIENCE, 0), |timeout| {
            TimeVal::new(timeout.as_secs() as i64, i64::from(timeout.subsec_micros()))
        });
        setsockopt(&socket, SendTimeout, &patience).expect("SO_SNDTIMEO");
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE, 0)).expect("SO_RCVTIMEO");
        setsockopt(&socket, Mark, &self.mark).expect("SO_MARK");
        if let Some(device) = self.device {
            setsockopt(&socket, BindToDevice, &device.into()).expect("SO_BINDTODEVICE");
        }
        if let Some(source) = self.source {
            setsockopt(&socket, ReuseAddr, &true).expect("SO_REUSEADDR");
            bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).expect("bind the source");
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) => {}
            Err(nix::Error::ECONNREFUSED | nix::Error::ECONNRESET) => return Reached::Refused,
            Err(nix::Error::EINPROGRESS | nix::Error::ETIMEDOUT) => return Reached::Nobody,
            Err(errno) => panic!("connect to {to}: {errno}"),
        }
        let stream = TcpStream::from(socket);
        let mut line = String::new();
        match BufReader::new(stream.try_clone().expect("duplicate")).read_line(&mut line) {
            Ok(1..) => Reached::Line { line: line.trim_end().to_owned(), stream },
            Ok(0) => Reached::Refused,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Reached::Refused,
            Err(_) => Reached::Nobody,
        }
    }
}

impl Reached {
    /// The line without the client's address, or what happened instead.
    pub fn summary(&self) -> String {
        match self {
            Self::Line { line, .. } => line.split(" from ").next().unwrap_or_default().to_owned(),
            Self::Refused => "refused".into(),
            Self::Nobody => "nobody".into(),
        }
    }
}

/// Whether a connection still carries data both ways.
pub fn is_alive(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buffer).is_ok() && &buffer == b"ping"
}

fn serve(tag: &str, mut stream: TcpStream, client: SocketAddr) {
    let original = original_destination(&stream);
    let local = stream.local_addr().expect("a connected socket has an address");
    let to = original.unwrap_or(local);
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let _ = writeln!(stream, "{tag} {to} from {}", client.ip().to_canonical());
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
}

/// What conntrack says where the connection was going; `None` when nobody translated it.
fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    if local.ip().to_canonical().is_ipv4() {
        let found = getsockopt(stream, OriginalDst).ok()?;
        let address = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
        return Some((address, u16::from_be(found.sin_port)).into());
    }
    let found = getsockopt(stream, Ip6tOriginalDst).ok()?;
    Some((Ipv6Addr::from(found.sin6_addr.s6_addr), u16::from_be(found.sin6_port)).into())
}

fn stream_socket(address: SocketAddr) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket")
}
