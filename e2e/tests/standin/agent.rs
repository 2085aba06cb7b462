//! A node agent that says what a test wants it to say. Its messages are written by hand, byte by byte.

use crate::lab::{Netns, PATIENCE};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_seqpacket::ancillary::AncillaryMessageWriter;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

/// Listens, and talks to one stand-in at a time.
pub struct Agent {
    runtime: Runtime,
    listener: UnixSeqpacketListener,
    session: Option<UnixSeqpacket>,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Ack,
    Nack(String),
    Closed,
    /// Nothing, within the time given.
    Silence,
}

impl Agent {
    pub fn listen(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _ = std::fs::remove_file(path);
        let listener = runtime.block_on(async { UnixSeqpacketListener::bind(path) }).expect("bind");
        Self { runtime, listener, session: None }
    }

    /// Waits for a stand-in and its hello.
    pub fn accept(&mut self) {
        self.session = None;
        let listener = &mut self.listener;
        let session = self.runtime.block_on(async {
            let session =
                timeout(PATIENCE, listener.accept()).await.expect("nobody connects").expect("accept");
            let mut hello = [0; 64];
            let info = timeout(PATIENCE, session.recv(&mut hello)).await.expect("no hello").expect("hello");
            assert_eq!(&hello[..info.bytes_read()], b"\x08\x01", "the hello");
            session
        });
        self.session = Some(session);
    }

    /// Drops the session.
    pub fn close(&mut self) {
        self.session = None;
    }

    pub fn add(&mut self, uid: &str, name: &str, netns: &Netns) -> Answer {
        self.ask(&add(uid, name), &[netns.0.as_fd()])
    }

    pub fn keep(&mut self, uid: &str) -> Answer {
        self.ask(&field(5, &field(1, uid.as_bytes())), &[])
    }

    pub fn del(&mut self, uid: &str) -> Answer {
        self.ask(&del(uid), &[])
    }

    pub fn snapshot_sent(&mut self) -> Answer {
        self.ask(b"\x1a\x00", &[])
    }

    /// Sends a packet and reads the answer.
    pub fn ask(&mut self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        self.send(packet, fds);
        self.answer(PATIENCE)
    }

    pub fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) {
        let session = self.session.as_ref().expect("a session");
        let mut space = [0; 128];
        let mut ancillary = AncillaryMessageWriter::new(&mut space);
        if !fds.is_empty() {
            ancillary.add_fds(fds).expect("room for the descriptors");
        }
        self.runtime.block_on(session.send_with_ancillary(packet, &mut ancillary)).expect("send");
    }

    pub fn answer(&self, patience: Duration) -> Answer {
        let session = self.session.as_ref().expect("a session");
        let mut buffer = vec![0; 65536];
        let received = self.runtime.block_on(async { timeout(patience, session.recv(&mut buffer)).await });
        let Ok(received) = received else { return Answer::Silence };
        match &buffer[..received.map_or(0, |info| info.bytes_read())] {
            [] => Answer::Closed,
            b"\x0a\x00" => Answer::Ack,
            // Ack with an error: two length-delimited fields, one within the other.
            [0x0a, rest @ ..] => {
                let (outer, rest) = varint(rest);
                assert_eq!((outer, rest[0]), (rest.len(), 0x0a), "a nested message");
                let (inner, text) = varint(&rest[1..]);
                assert_eq!(inner, text.len(), "the text's length");
                Answer::Nack(String::from_utf8(text.to_vec()).expect("UTF-8"))
            }
            other => panic!("no response: {other:?}"),
        }
    }
}

impl Answer {
    #[track_caller]
    pub fn expect_ack(self) {
        assert_eq!(self, Self::Ack);
    }

    #[track_caller]
    pub fn expect_nack(self, beginning: &str) {
        match self {
            Self::Nack(text) => assert!(text.starts_with(beginning), "{text:?} is not {beginning:?}"),
            other => panic!("{other:?} is no NACK"),
        }
    }
}

/// An Add as it should be. Pod a has the default service account, pod b one of its own.
pub fn add(uid: &str, name: &str) -> Vec<u8> {
    let account: &[u8] = if name == "pod-b" { b"sa-b" } else { b"default" };
    let info = [field(1, name.as_bytes()), field(2, b"demo"), field(3, account)].concat();
    field(1, &[field(1, uid.as_bytes()), field(2, &info)].concat())
}

pub fn del(uid: &str) -> Vec<u8> {
    field(2, &field(2, uid.as_bytes()))
}

/// A length-delimited field.
pub fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).expect("seven bits"));
    [bytes.as_slice(), content].concat()
}

fn varint(bytes: &[u8]) -> (usize, &[u8]) {
    let last = bytes.iter().position(|byte| byte & 0x80 == 0).expect("an end");
    let value = bytes[..=last].iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f));
    (value, &bytes[last + 1..])
}
