//! ZDS on the wire, from ztunnel's side: proto3, package `istio.workload.zds`, one message a packet.
//!
//! Written from the protocol, not shared with the agent: two independent codecs check each other.

use super::netns::Netns;
use super::workloads::WorkloadInfo;
use prost::Message;
use std::os::fd::OwnedFd;

/// ztunnel's receive buffer, in bytes. A request must fit.
pub const MAX_REQUEST: usize = 1024;

#[derive(Clone, PartialEq, Message)]
struct ZdsHello {
    #[prost(enumeration = "Version", tag = "1")]
    version: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Version {
    NotUsed = 0,
    V1 = 1,
}

#[derive(Clone, PartialEq, Message)]
struct WorkloadRequest {
    #[prost(oneof = "RequestPayload", tags = "1, 2, 3, 5")]
    payload: Option<RequestPayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RequestPayload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

#[derive(Clone, PartialEq, Message)]
struct AddWorkload {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    workload_info: Option<WireInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct WireInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, Message)]
struct DelWorkload {
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotSent {}

#[derive(Clone, PartialEq, Message)]
struct KeepWorkload {
    #[prost(string, tag = "1")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct WorkloadResponse {
    #[prost(oneof = "ResponsePayload", tags = "1")]
    payload: Option<ResponsePayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ResponsePayload {
    #[prost(message, tag = "1")]
    Ack(Ack),
}

#[derive(Clone, PartialEq, Message)]
struct Ack {
    #[prost(string, tag = "1")]
    error: String,
}

/// A packet as it was received.
#[derive(Debug)]
pub struct Packet {
    /// The bytes, up to [`MAX_REQUEST`].
    pub bytes: Vec<u8>,
    /// Whether there were more bytes than that.
    pub truncated: bool,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Whether there were more descriptors than there was room for.
    pub fds_truncated: bool,
}

/// What the agent asks.
#[derive(Debug)]
pub enum Request {
    /// Serve this pod.
    Add {
        /// The pod's uid.
        uid: String,
        /// Who it is; mandatory in practice.
        info: Option<WorkloadInfo>,
        /// Its namespace, or whatever the agent took for it.
        netns: Netns,
    },
    /// Go on serving this pod, if you do.
    Keep(String),
    /// Stop serving this pod.
    Del(String),
    /// That was the snapshot.
    SnapshotSent,
}

/// Why a packet is no request. ztunnel answers with it, drops the connection and connects again.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// More than [`MAX_REQUEST`] bytes.
    #[error("the packet is longer than {MAX_REQUEST} bytes")]
    TooLong,
    /// Not protobuf.
    #[error("failed to decode: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// No known request in it.
    #[error("no payload")]
    NoPayload,
    /// Add without a descriptor.
    #[error("no control message")]
    NoFd,
    /// Add with several.
    #[error("expected 1 fd, got {0}")]
    ManyFds(String),
    /// Another request with a descriptor.
    #[error("unexpected control message")]
    UnexpectedFd,
    /// The descriptor cannot even be examined.
    #[error("fstat of the descriptor: {0}")]
    Fd(std::io::Error),
}

impl Packet {
    /// The request in this packet, which must come with exactly the descriptors it needs.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn request(self) -> Result<Request, ReadError> {
        if self.truncated {
            return Err(ReadError::TooLong);
        }
        let payload = WorkloadRequest::decode(self.bytes.as_slice())?.payload.ok_or(ReadError::NoPayload)?;
        let RequestPayload::Add(add) = payload else {
            return without_fd(payload, self.fds.is_empty() && !self.fds_truncated);
        };
        if self.fds_truncated {
            return Err(ReadError::ManyFds("more than there is room for".into()));
        }
        let mut fds = self.fds;
        let fd = fds.pop().ok_or(ReadError::NoFd)?;
        if !fds.is_empty() {
            return Err(ReadError::ManyFds((fds.len() + 1).to_string()));
        }
        let info = add.workload_info.map(|WireInfo { name, namespace, service_account }| WorkloadInfo {
            name,
            namespace,
            service_account,
        });
        Ok(Request::Add { uid: add.uid, info, netns: Netns::new(fd).map_err(ReadError::Fd)? })
    }
}

/// The hello, ztunnel's first packet.
#[must_use]
pub fn hello() -> Vec<u8> {
    ZdsHello { version: Version::V1.into() }.encode_to_vec()
}

/// The answer to a request: an empty error is success.
#[must_use]
pub fn response(error: &str) -> Vec<u8> {
    let ack = Ack { error: error.to_owned() };
    WorkloadResponse { payload: Some(ResponsePayload::Ack(ack)) }.encode_to_vec()
}

fn without_fd(payload: RequestPayload, no_fd: bool) -> Result<Request, ReadError> {
    if !no_fd {
        return Err(ReadError::UnexpectedFd);
    }
    match payload {
        RequestPayload::Del(del) => Ok(Request::Del(del.uid)),
        RequestPayload::Keep(keep) => Ok(Request::Keep(keep.uid)),
        RequestPayload::SnapshotSent(_) => Ok(Request::SnapshotSent),
        RequestPayload::Add(_) => Err(ReadError::NoFd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(bytes: &[u8], fds: usize) -> Packet {
        let fds = (0..fds).map(|_| std::fs::File::open("/proc/self/ns/net").expect("netns").into()).collect();
        Packet { bytes: bytes.to_vec(), truncated: false, fds, fds_truncated: false }
    }

    const ADD: &[u8] = b"\x0a\x0f\x0a\x02u1\x12\x09\x0a\x01n\x12\x01s\x1a\x01a";

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        assert_eq!(hello(), b"\x08\x01");
        assert_eq!(response(""), b"\x0a\x00");
        assert_eq!(response("no"), b"\x0a\x04\x0a\x02no");
        assert!(matches!(packet(b"\x1a\x00", 0).request(), Ok(Request::SnapshotSent)));
        assert!(matches!(packet(b"\x12\x04\x12\x02u1", 0).request(), Ok(Request::Del(uid)) if uid == "u1"));
        assert!(matches!(packet(b"\x2a\x04\x0a\x02u1", 0).request(), Ok(Request::Keep(uid)) if uid == "u1"));
        let Ok(Request::Add { uid, info: Some(info), .. }) = packet(ADD, 1).request() else {
            panic!("not an Add");
        };
        assert_eq!((uid.as_str(), info.name.as_str()), ("u1", "n"));
        assert_eq!((info.namespace.as_str(), info.service_account.as_str()), ("s", "a"));
    }

    #[test]
    fn wrong_packets_are_refused() {
        assert!(matches!(packet(ADD, 0).request(), Err(ReadError::NoFd)));
        assert!(matches!(packet(ADD, 2).request(), Err(ReadError::ManyFds(_))));
        assert!(matches!(packet(b"\x1a\x00", 1).request(), Err(ReadError::UnexpectedFd)));
        assert!(matches!(packet(b"\x22\x00", 0).request(), Err(ReadError::NoPayload)));
        assert!(matches!(packet(b"\xff\xff", 0).request(), Err(ReadError::Undecodable(_))));
        let long = Packet { truncated: true, ..packet(ADD, 1) };
        assert!(matches!(long.request(), Err(ReadError::TooLong)));
    }
}
