//! Netlink by hand: requests as bytes, and one blocking conversation with the kernel.
//!
//! Used for nf_tables, conntrack and sock_diag, whose messages no crate has in types; routes and rules are built by
//! netlink-packet-route and travel the same way.

use super::retiring::Retiring;
use crate::kernel::KernelError;
use netlink_sys::Socket;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, SndBufForce};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::AsRawFd;

/// `struct nlmsghdr`
pub(super) const HEADER: usize = 16;
/// Dumps come in pieces of at most 32 KiB (`netlink_recvmsg` in net/netlink/af_netlink.c).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// How often a dump is taken again when what it shows changed while it was taken.
const DUMP_ATTEMPTS: usize = 20;
/// The kernel answers within the send call. This is for a kernel that never does.
const ANSWER_TIMEOUT_SECONDS: i64 = 10;

/// `struct nlmsgerr`'s extended ack: the reason in words.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A netlink message that is being built: header, fixed part, attributes.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<u8>);

/// A netlink message as the kernel sent it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// A message of a dump, kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) payload: Vec<u8>,
}

/// The kernel said no.
#[derive(Debug)]
pub(super) struct Refused {
    /// The errno.
    pub(super) source: io::Error,
    /// The extended ack, if there was one.
    pub(super) words: String,
}

/// A socket on which one request after another is asked and answered.
pub(super) struct Conversation {
    socket: Retiring,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Request {
    pub(super) fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }

    /// Appends the message's fixed part, padded to 4 bytes.
    pub(super) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute, padded to 4 bytes.
    pub(super) fn attribute(self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.fixed(&[&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat())
    }

    /// Appends a string attribute, ended by NUL.
    pub(super) fn string(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// The message's bytes.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

impl Refused {
    pub(super) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// As an error that says what was being done.
    pub(super) fn during(self, call: impl Into<String>) -> KernelError {
        KernelError::Call { call: call.into(), source: self.source, detail: self.words }
    }
}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Self { source, words: String::new() }
    }
}

impl From<nix::Error> for Refused {
    fn from(errno: nix::Error) -> Self {
        io::Error::from(errno).into()
    }
}

impl Conversation {
    /// Opens a socket in the calling thread's namespace; it stays with that namespace.
    pub(super) fn open(protocol: isize) -> Result<Self, KernelError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            // Both are for better errors only: a kernel before 4.12 and 4.3 has neither.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECONDS, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| KernelError::Call {
            call: format!("open a netlink socket (protocol {protocol})"),
            source,
            detail: String::new(),
        })?;
        Ok(Self { socket: Retiring::new(protocol, socket), sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Asks the kernel to filter dumps by what the request says; one that cannot gives everything, which callers
    /// filter again.
    pub(super) fn strict(self) -> Self {
        let _ = self.socket.set_netlink_get_strict_chk(true);
        self
    }

    /// Makes room for a message of `bytes` and for as many errors as it may cause.
    pub(super) fn make_room(&self, bytes: usize) -> Result<(), Refused> {
        setsockopt(&*self.socket, SndBufForce, &(bytes + 64 * 1024))?;
        setsockopt(&*self.socket, RcvBufForce, &(2 * bytes + 256 * 1024))?;
        Ok(())
    }

    /// Sends bytes as they are.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Refused> {
        loop {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next datagram, or `None` when none is there yet and `wait` is false.
    pub(super) fn receive(&mut self, wait: bool) -> Result<Option<&[u8]>, Refused> {
        let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => return Ok(Some(&self.buffer[..length])),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) if !wait => return Ok(None),
                Err(nix::Error::EAGAIN) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT).into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Asks for something to be done and waits for the acknowledgement.
    pub(super) fn acknowledged(&mut self, request: Request) -> Result<(), Refused> {
        let sequence = self.next_sequence();
        let mut bytes = request.finish(sequence);
        add_flags(&mut bytes, libc::NLM_F_ACK);
        self.send(&bytes)?;
        loop {
            let datagram = self.receive(true)?.unwrap_or_default();
            for message in messages(datagram).filter(|message| message.sequence == sequence) {
                if let Some(result) = message.acknowledgement() {
                    return result;
                }
            }
        }
    }

    /// Asks for one thing and gives its answer.
    pub(super) fn one(&mut self, request: Request) -> Result<Kept, Refused> {
        let sequence = self.next_sequence();
        self.send(&request.finish(sequence))?;
        loop {
            let datagram = self.receive(true)?.unwrap_or_default();
            for message in messages(datagram).filter(|message| message.sequence == sequence) {
                match message.acknowledgement() {
                    Some(Err(refused)) => return Err(refused),
                    Some(Ok(())) => {}
                    None => return Ok(message.keep()),
                }
            }
        }
    }

    /// Asks for everything of a kind. A dump that was disturbed is taken again.
    pub(super) fn dump(&mut self, request: &Request) -> Result<Vec<Kept>, Refused> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(all) = self.dump_once(request.clone())? {
                return Ok(all);
            }
        }
        Err(Refused {
            source: io::Error::from_raw_os_error(libc::EINTR),
            words: format!("it changed during each of {DUMP_ATTEMPTS} dumps"),
        })
    }

    /// `None` when the kernel says that the dump is not consistent.
    fn dump_once(&mut self, request: Request) -> Result<Option<Vec<Kept>>, Refused> {
        let sequence = self.next_sequence();
        let mut bytes = request.finish(sequence);
        add_flags(&mut bytes, libc::NLM_F_DUMP);
        self.send(&bytes)?;
        let (mut all, mut consistent) = (Vec::new(), true);
        loop {
            let datagram = self.receive(true)?.unwrap_or_default();
            for message in messages(datagram).filter(|message| message.sequence == sequence) {
                consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                if i32::from(message.kind) == libc::NLMSG_DONE {
                    message.done()?;
                    return Ok(consistent.then_some(all));
                }
                match message.acknowledgement() {
                    // nf_tables says so when the generation changed before the dump began.
                    Some(Err(refused)) if refused.errno() == Some(libc::EINTR) => return Ok(None),
                    Some(Err(refused)) => return Err(refused),
                    Some(Ok(())) => {}
                    None => all.push(message.keep()),
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

impl Message<'_> {
    /// What `NLMSG_ERROR` says; `None` for any other message.
    pub(super) fn acknowledgement(&self) -> Option<Result<(), Refused>> {
        if i32::from(self.kind) != libc::NLMSG_ERROR {
            return None;
        }
        let errno = self.payload.first_chunk().map_or(-libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes));
        if errno == 0 {
            return Some(Ok(()));
        }
        Some(Err(Refused { source: io::Error::from_raw_os_error(-errno), words: self.extended_ack() }))
    }

    /// What ends a dump may be an errno too.
    fn done(&self) -> Result<(), Refused> {
        match self.payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes)) {
            errno if errno < 0 => Err(io::Error::from_raw_os_error(-errno).into()),
            _ => Ok(()),
        }
    }

    fn extended_ack(&self) -> String {
        let flags = i32::from(self.flags);
        if flags & libc::NLM_F_ACK_TLVS == 0 {
            return String::new();
        }
        // The errno, then the header of the message in question, then its payload unless it was left out.
        let quoted =
            self.payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let quoted = if flags & libc::NLM_F_CAPPED == 0 { quoted as usize } else { HEADER };
        let rest = self.payload.get(4 + quoted.next_multiple_of(4)..).unwrap_or_default();
        attributes(rest)
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
            .unwrap_or_default()
    }

    fn keep(&self) -> Kept {
        Kept { payload: self.payload.to_vec() }
    }
}

fn add_flags(bytes: &mut [u8], flags: i32) {
    let all = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags as u16;
    bytes[6..8].copy_from_slice(&all.to_ne_bytes());
}

/// The messages of one datagram. Stops at the first that is cut off.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes as (kind without flags, value). Stops at the first that is cut off.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The two highest bits say "nested" and "network byte order".
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute of this kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A string attribute, without its NUL.
pub(super) fn string(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}
