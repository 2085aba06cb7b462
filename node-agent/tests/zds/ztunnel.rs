//! A scripted ztunnel: it speaks the client's side of ZDS packet by packet, and panics where the real one would exit,
//! drop the connection, or serve a pod wrongly. It reads protobuf by itself, so that the agent's codec is not tested
//! against itself.

use nix::sys::stat::fstat;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::OwnedAncillaryMessage;

/// ztunnel's receive buffer.
const BUFFER: usize = 1024;

/// One connection of a ztunnel.
pub struct Ztunnel {
    socket: UnixSeqpacket,
    outstanding: bool,
    snapshot_done: bool,
    /// Named in this session, before the snapshot's end.
    named: BTreeSet<String>,
    /// What it serves: uid to namespace inode.
    pub up: BTreeMap<String, u64>,
}

/// A request, as strictly read.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Add { uid: String, name: String, namespace: String, service_account: String, netns: u64 },
    Keep(String),
    Del(String),
    SnapshotSent,
}

impl Ztunnel {
    /// Connects and says hello.
    pub async fn connect(path: &Path) -> Self {
        let ztunnel = Self::mute(path).await;
        ztunnel.send(&[8, 1]).await;
        ztunnel
    }

    /// Connects and says nothing.
    pub async fn mute(path: &Path) -> Self {
        let socket = UnixSeqpacket::connect(path).await.expect("connect");
        let (named, up) = (BTreeSet::new(), BTreeMap::new());
        Self { socket, outstanding: false, snapshot_done: false, named, up }
    }

    /// Connects anew, serving what it served, as ztunnel does when the agent is gone.
    pub async fn reconnect(self, path: &Path) -> Self {
        let mut next = Self::connect(path).await;
        next.up = self.up;
        next
    }

    /// Sends any bytes; whether they arrive is the agent's business.
    pub async fn send(&self, bytes: &[u8]) {
        drop(self.socket.send(bytes).await);
    }

    /// The next request, or `None` when the agent has closed the connection. Times out after 10 s, for a test that waits
    /// for nothing.
    pub async fn request(&mut self) -> Option<Request> {
        tokio::time::timeout(Duration::from_secs(10), self.receive()).await.expect("the agent says nothing")
    }

    /// Whether the agent says nothing for a while.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.receive()).await.is_err()
    }

    /// Answers the outstanding request with success, and does it.
    pub async fn ack(&mut self, request: &Request) {
        match request {
            Request::Add { uid, netns, .. } => {
                let other = self.up.iter().find(|(other, inode)| *other != uid && *inode == netns);
                assert_eq!(other, None, "{uid} shares the namespace {netns}");
                self.up.insert(uid.clone(), *netns);
                self.named.insert(uid.clone());
            }
            Request::Keep(uid) => drop(self.named.insert(uid.clone())),
            Request::Del(uid) => drop(self.up.remove(uid)),
            Request::SnapshotSent => {
                self.snapshot_done = true;
                self.up.retain(|uid, _| self.named.contains(uid));
            }
        }
        self.answer(&[0x0a, 0]).await;
    }

    /// Answers the outstanding request with a refusal.
    pub async fn nack(&mut self, reason: &str) {
        let text = field(1, reason.as_bytes());
        self.answer(&field(1, &text)).await;
    }

    /// Takes requests and acks them until `last` is acked; returns all of them.
    pub async fn serve_until(&mut self, last: impl Fn(&Request) -> bool) -> Vec<Request> {
        let mut requests = Vec::new();
        loop {
            let request = self.request().await.expect("the agent closed the connection");
            self.ack(&request).await;
            let done = last(&request);
            requests.push(request);
            if done {
                return requests;
            }
        }
    }

    /// Takes the snapshot.
    pub async fn snapshot(&mut self) -> Vec<Request> {
        self.serve_until(|request| *request == Request::SnapshotSent).await
    }

    /// Acks whatever comes until the agent closes the connection.
    pub async fn serve(mut self) -> Self {
        while let Some(request) = self.receive().await {
            self.ack(&request).await;
        }
        self
    }

    /// Takes the next request, which must be an Add of this pod, and leaves it unanswered.
    pub async fn expect_add(&mut self, wanted: &str) -> Request {
        let request = self.request().await.expect("the agent closed the connection");
        assert!(matches!(&request, Request::Add { uid, .. } if uid == wanted), "{request:?}");
        request
    }

    /// Asserts that the agent closes the connection, and says nothing before.
    pub async fn expect_end(&mut self) {
        assert_eq!(self.request().await, None);
    }

    /// Reads on until the agent closes the connection, answering nothing.
    pub async fn expect_end_or_request(&mut self) {
        while self.request().await.is_some() {
            self.outstanding = false;
        }
    }

    /// The socket, for what no ztunnel would do.
    pub fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    async fn answer(&mut self, packet: &[u8]) {
        assert!(self.outstanding, "the test answers what was not asked");
        // Time for an agent that does not wait for answers to give itself away.
        tokio::task::yield_now().await;
        let peeked = nix::sys::socket::recv(
            self.socket.as_raw_fd(),
            &mut [0; 1],
            nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT,
        );
        assert!(!matches!(peeked, Ok(1..)), "a second request came before the first was answered");
        self.outstanding = false;
        self.send(packet).await;
    }

    async fn receive(&mut self) -> Option<Request> {
        let mut packet = [0; 4 * BUFFER];
        let mut control = [0; 256];
        let received = self.socket.recv_with_ancillary(&mut packet, &mut control).await;
        let (info, ancillary) = match received {
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("receive: {error}"),
        };
        assert!(!info.ancillary_truncated(), "more than one descriptor");
        let fds: Vec<OwnedFd> = ancillary
            .into_messages()
            .filter_map(|message| match message {
                OwnedAncillaryMessage::FileDescriptors(fds) => Some(fds),
                OwnedAncillaryMessage::Other(_) => None,
            })
            .flatten()
            .collect();
        if info.bytes_read() == 0 {
            // An empty packet reads like the end, but only the end stays.
            assert_eq!(
                self.socket.recv(&mut packet).await.expect("receive").bytes_read(),
                0,
                "an empty packet"
            );
            return None;
        }
        assert!(!info.truncated() && info.bytes_read() < BUFFER, "{} bytes", info.bytes_read());
        assert!(!self.outstanding, "a request came before the one before was answered");
        self.outstanding = true;
        Some(self.read(&packet[..info.bytes_read()], &fds))
    }

    fn read(&self, packet: &[u8], fds: &[OwnedFd]) -> Request {
        let (number, payload) = one_field(packet);
        let inode = |fd: &OwnedFd| fstat(fd).expect("fstat").st_ino;
        let request = match number {
            1 => {
                let parts = fields(payload);
                assert_eq!(fds.len(), 1, "an Add carries exactly one descriptor");
                let info = fields(parts.get(&2).expect("an Add without workload_info makes ztunnel exit"));
                Request::Add {
                    uid: text(&parts, 1),
                    name: text(&info, 1),
                    namespace: text(&info, 2),
                    service_account: text(&info, 3),
                    netns: inode(&fds[0]),
                }
            }
            2 => Request::Del(text(&fields(payload), 2)),
            3 => {
                assert!(
                    payload.is_empty() && !self.snapshot_done,
                    "a second SnapshotSent makes ztunnel exit"
                );
                Request::SnapshotSent
            }
            5 => {
                assert!(!self.snapshot_done, "Keep after the snapshot makes ztunnel exit");
                Request::Keep(text(&fields(payload), 1))
            }
            other => panic!("no such request: {other}"),
        };
        assert!(fds.is_empty() || matches!(request, Request::Add { .. }), "a descriptor with {request:?}");
        request
    }
}

/// The pods added, in order.
pub fn added(requests: &[Request]) -> Vec<&str> {
    fn uid(request: &Request) -> Option<&str> {
        match request {
            Request::Add { uid, .. } => Some(uid),
            _ => None,
        }
    }
    requests.iter().filter_map(uid).collect()
}

/// A length-delimited protobuf field.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).expect("7 bits") | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).expect("7 bits"));
    out.extend(bytes);
    out
}

fn fields(mut bytes: &[u8]) -> BTreeMap<u8, &[u8]> {
    let mut out = BTreeMap::new();
    while let Some((&tag, rest)) = bytes.split_first() {
        assert_eq!(tag & 7, 2, "every field of a request is length-delimited");
        let (mut len, mut shift, mut rest) = (0_usize, 0, rest);
        loop {
            let (&byte, after) = rest.split_first().expect("a length");
            len |= usize::from(byte & 0x7f) << shift;
            (shift, rest) = (shift + 7, after);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let (value, after) = rest.split_at(len);
        assert!(out.insert(tag >> 3, value).is_none(), "a field twice");
        bytes = after;
    }
    out
}

fn one_field(packet: &[u8]) -> (u8, &[u8]) {
    let fields = fields(packet);
    assert_eq!(fields.len(), 1, "a request has exactly one payload");
    fields.into_iter().next().expect("one")
}

fn text(fields: &BTreeMap<u8, &[u8]>, number: u8) -> String {
    String::from_utf8(fields.get(&number).copied().unwrap_or_default().to_vec()).expect("UTF-8")
}
