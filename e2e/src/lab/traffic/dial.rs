//! A client of [`super::echo`], with a say in its source, mark and device, and in the cgroup that it runs in.

use crate::lab::cgroup::Cgroup;
use crate::lab::netns::Netns;
use crate::lab::process::{Launch, binary};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// How a connection is made.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Where to.
    pub to: SocketAddr,
    /// The source address; the kernel's choice if none.
    pub from: Option<IpAddr>,
    /// The source port; the kernel's choice if none.
    pub port: Option<u16>,
    /// `SO_MARK`
    pub mark: Option<u32>,
    /// `SO_BINDTODEVICE`
    pub device: Option<String>,
    /// How long connecting may take, and each answer.
    pub patience: Duration,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answered.
    pub server: String,
    /// Whom the server saw.
    pub seen: SocketAddr,
    /// Who the client was.
    pub local: SocketAddr,
    /// What was echoed.
    pub said: String,
}

/// An open connection.
#[derive(Debug)]
pub struct Session {
    stream: BufReader<TcpStream>,
    local: SocketAddr,
}

/// A client process in a cgroup of its own choice, with its connection open until it is dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    /// What it was answered.
    pub answer: Answer,
}

impl Answer {
    /// Whether the server saw the client's own socket. Exact for clients that bind a port of
    /// [`super::CLIENT_PORTS`], and wherever a proxy keeps no port.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.seen.port() == self.local.port()
    }
}

impl Dial {
    /// A connection to `to` with 10 s of patience.
    #[must_use]
    pub fn to(to: SocketAddr) -> Self {
        Self { to, from: None, port: None, mark: None, device: None, patience: Duration::from_secs(10) }
    }

    /// From a source port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// From a source port that no proxy takes by itself, so that [`Answer::is_direct`] is exact; another one each time.
    #[must_use]
    pub fn recognised(self) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let range = super::SINGLE_CLIENT_PORTS;
        let port = range.start + NEXT.fetch_add(1, Ordering::Relaxed) % (range.end - range.start);
        self.port(port)
    }

    /// With a mark.
    #[must_use]
    pub fn mark(mut self, mark: u32) -> Self {
        self.mark = Some(mark);
        self
    }

    /// With another patience.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Connects on a tokio runtime of the calling thread, and so in its namespace.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` when patience ends.
    pub async fn connect_async(&self) -> std::io::Result<tokio::net::TcpStream> {
        let socket = match self.to {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        if let Some(mark) = self.mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        if let Some(device) = &self.device {
            setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device))?;
        }
        if self.from.is_some() || self.port.is_some() {
            socket.set_reuseaddr(true)?;
            let any: IpAddr =
                if self.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            socket.bind(SocketAddr::new(self.from.unwrap_or(any), self.port.unwrap_or(0)))?;
        }
        let stream = tokio::time::timeout(self.patience, socket.connect(self.to)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Connects in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` when patience ends.
    pub fn connect(&self) -> std::io::Result<Session> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stream = runtime.block_on(self.connect_async())?.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let local = stream.local_addr()?;
        Ok(Session { stream: BufReader::new(stream), local })
    }

    /// Connects in `netns` and keeps the connection.
    ///
    /// # Errors
    /// Who could not be reached, and why.
    pub fn open(&self, netns: &Netns) -> Result<Session> {
        netns.run(|| self.connect().with_context(|| format!("connect from {} to {}", netns.name(), self.to)))
    }

    /// Connects in `netns`, says one line and returns the answer.
    ///
    /// # Errors
    /// Who could not be reached, and why.
    pub fn ask(&self, netns: &Netns, line: &str) -> Result<Answer> {
        self.open(netns)?.say(line).with_context(|| format!("talk from {} to {}", netns.name(), self.to))
    }

    /// As [`Dial::ask`], from a process of its own in `cgroup`; its connection stays open.
    ///
    /// # Errors
    /// What the process said.
    pub fn ask_in(&self, netns: &Netns, cgroup: &Cgroup, line: &str) -> Result<Client> {
        let mut launch =
            Launch::new(binary("sluice-lab")?, netns).in_cgroup(cgroup).arg("ask").arg("--say").arg(line);
        for (flag, value) in [
            ("--to", Some(self.to.to_string())),
            ("--from", self.from.map(|from| from.to_string())),
            ("--port", self.port.map(|port| port.to_string())),
            ("--mark", self.mark.map(|mark| mark.to_string())),
            ("--device", self.device.clone()),
            ("--patience-ms", Some(self.patience.as_millis().to_string())),
        ] {
            if let Some(value) = value {
                launch = launch.arg(flag).arg(value);
            }
        }
        let mut command = launch.command()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = netns.run(|| Ok(command.spawn()?))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.as_mut() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if let Ok(answer) = serde_json::from_str(&line) {
            return Ok(Client { child, answer });
        }
        let mut said = String::new();
        if let Some(stderr) = child.stderr.as_mut() {
            stderr.read_to_string(&mut said)?;
        }
        child.wait()?;
        bail!("a client in {} of {}: {}", cgroup.path, netns.name(), said.trim());
    }
}

impl Session {
    /// Who the client is.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Ends it with a reset, which leaves nothing behind: the same addresses and ports can be used at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reset(self) -> Result<()> {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(self.stream.get_ref(), sockopt::Linger, &linger).context("set SO_LINGER")
    }

    /// Says something and ends it, without waiting for an answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn finish(&mut self, words: &str) -> Result<()> {
        self.stream.get_mut().write_all(words.as_bytes())?;
        Ok(self.stream.get_mut().shutdown(Shutdown::Write)?)
    }

    /// Says one line and waits for the answer.
    ///
    /// # Errors
    /// When the connection breaks, or somebody else than an echo server answers.
    pub fn say(&mut self, line: &str) -> Result<Answer> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "the connection was closed without an answer");
        parse(&answer, self.local).with_context(|| format!("no echo server's answer: {answer:?}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It ends at the end of its stdin; waiting for it keeps its cgroup free.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Reads `<name> <peer> <line>`.
#[must_use]
pub fn parse(answer: &str, local: SocketAddr) -> Option<Answer> {
    let mut parts = answer.trim_end_matches('\n').splitn(3, ' ');
    let (server, seen, said) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Answer { server: server.to_owned(), seen: seen.parse().ok()?, local, said: said.to_owned() })
}
