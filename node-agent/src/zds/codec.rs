//! ZDS messages as bytes: protobuf package `istio.workload.zds` (ztunnel's `proto/zds.proto`), one message a packet.
//! Pure.

use super::Workload;
use prost::Message as _;
use sluice_shared::ids::PodUid;

/// The longest request in bytes. ztunnel reads into 1024, and answers a longer packet by dropping the connection;
/// one byte less leaves no doubt about the edge.
pub const MAX_REQUEST: usize = 1023;
/// How much of a refusal's first line is kept, in characters. ztunnel appends a stack backtrace of some 1500 bytes when
/// `RUST_BACKTRACE` is set.
const MAX_REASON: usize = 400;
/// The one version there is.
const VERSION_1: i32 = 1;

/// What is asked of ztunnel.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// Serve this pod; its netns goes along as exactly one descriptor.
    Add(&'a Workload),
    /// Go on serving this pod, whose netns we do not have. Within a snapshot only: later it makes ztunnel exit.
    Keep(&'a PodUid),
    /// Stop serving this pod.
    Del(&'a PodUid),
    /// Stop serving whatever this session has not named. Once a session: the second makes ztunnel exit.
    SnapshotSent,
}

/// ztunnel's answer to one request.
pub type Answer = Result<(), String>;

/// Why a request cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the request is {len} bytes long and ztunnel takes no more than {MAX_REQUEST}: \
     the pod's name, namespace and service account are too long together"
)]
pub struct TooLong {
    /// Bytes of the encoded request.
    pub len: usize,
}

/// Why a packet of ztunnel's cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf, or of other types.
    #[error("not a {message}: {why}")]
    Malformed {
        /// Which message it should have been.
        message: &'static str,
        /// The decoder's words.
        why: String,
    },
    /// A version that we do not speak.
    #[error("ztunnel speaks ZDS version {0}, and we only version {VERSION_1}")]
    Version(i32),
    /// An answer that holds none of the answers we know.
    #[error("the answer holds no acknowledgement")]
    NoAck,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ZdsHello {
    #[prost(int32, tag = "1")]
    version: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WorkloadInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AddWorkload {
    #[prost(string, tag = "1")]
    uid: String,
    /// Never left out: ztunnel exits on an Add without it.
    #[prost(message, required, tag = "2")]
    workload_info: WorkloadInfo,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeepWorkload {
    #[prost(string, tag = "1")]
    uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DelWorkload {
    /// Field 2, not 1.
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotSent {}

#[derive(Clone, PartialEq, prost::Message)]
struct WorkloadRequest {
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Payload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

#[derive(Clone, PartialEq, prost::Message)]
struct WorkloadResponse {
    #[prost(message, optional, tag = "1")]
    ack: Option<Ack>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ack {
    #[prost(string, tag = "1")]
    error: String,
}

impl Request<'_> {
    /// The request as one packet, 1 to [`MAX_REQUEST`] bytes.
    ///
    /// # Errors
    /// When it would be longer.
    pub fn encode(self) -> Result<Vec<u8>, TooLong> {
        let uid = |uid: &PodUid| uid.as_str().to_owned();
        let payload = match self {
            Self::Add(workload) => Payload::Add(AddWorkload {
                uid: uid(&workload.uid),
                workload_info: WorkloadInfo {
                    name: workload.name.clone(),
                    namespace: workload.namespace.clone(),
                    service_account: workload.service_account.clone(),
                },
            }),
            Self::Keep(pod) => Payload::Keep(KeepWorkload { uid: uid(pod) }),
            Self::Del(pod) => Payload::Del(DelWorkload { uid: uid(pod) }),
            Self::SnapshotSent => Payload::SnapshotSent(SnapshotSent {}),
        };
        let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
        if bytes.len() > MAX_REQUEST { Err(TooLong { len: bytes.len() }) } else { Ok(bytes) }
    }

    /// What it is, for a log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Add(_) => "Add",
            Self::Keep(_) => "Keep",
            Self::Del(_) => "Del",
            Self::SnapshotSent => "SnapshotSent",
        }
    }
}

/// Reads ztunnel's first packet.
///
/// # Errors
/// When it is no hello, or of a version that we do not speak.
pub fn decode_hello(packet: &[u8]) -> Result<(), DecodeError> {
    match ZdsHello::decode(packet) {
        Ok(ZdsHello { version: VERSION_1 }) => Ok(()),
        Ok(ZdsHello { version }) => Err(DecodeError::Version(version)),
        Err(error) => Err(DecodeError::Malformed { message: "ZdsHello", why: error.to_string() }),
    }
}

/// Reads ztunnel's answer to a request: `Err` holds the first line of its refusal.
///
/// # Errors
/// When it is no answer.
pub fn decode_response(packet: &[u8]) -> Result<Answer, DecodeError> {
    let response = WorkloadResponse::decode(packet)
        .map_err(|error| DecodeError::Malformed { message: "WorkloadResponse", why: error.to_string() })?;
    let Ack { error } = response.ack.ok_or(DecodeError::NoAck)?;
    if error.is_empty() {
        return Ok(Ok(()));
    }
    let line = error.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    Ok(Err(line.chars().take(MAX_REASON).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn workload(uid: &str, name: &str) -> Workload {
        Workload {
            uid: PodUid::new(uid).unwrap(),
            name: name.into(),
            namespace: "ns".into(),
            service_account: "sa".into(),
            netns: None,
        }
    }

    #[test]
    fn requests_are_the_bytes_that_ztunnel_reads() {
        let uid = PodUid::new("u1").unwrap();
        assert_eq!(Request::SnapshotSent.encode().unwrap(), [0x1a, 0]);
        assert_eq!(Request::Del(&uid).encode().unwrap(), *b"\x12\x04\x12\x02u1");
        assert_eq!(Request::Keep(&uid).encode().unwrap(), *b"\x2a\x04\x0a\x02u1");
        assert_eq!(
            Request::Add(&workload("u1", "pod")).encode().unwrap(),
            *b"\x0a\x13\x0a\x02u1\x12\x0d\x0a\x03pod\x12\x02ns\x1a\x02sa"
        );
    }

    #[test]
    fn an_add_always_carries_the_workload_info() {
        // ztunnel exits on an Add without field 2, even when every name in it is empty.
        let empty = Workload { name: String::new(), namespace: String::new(), ..workload("u1", "") };
        let empty = Workload { service_account: String::new(), ..empty };
        assert_eq!(Request::Add(&empty).encode().unwrap(), *b"\x0a\x06\x0a\x02u1\x12\x00");
    }

    #[test]
    fn hello_and_answers_are_read() {
        assert_eq!(decode_hello(&[8, 1]), Ok(()));
        assert_eq!(decode_hello(&[8, 2]), Err(DecodeError::Version(2)));
        assert_eq!(decode_hello(&[]), Err(DecodeError::Version(0)));
        assert!(matches!(decode_hello(&[0xff]), Err(DecodeError::Malformed { .. })));
        assert_eq!(decode_hello(&[8, 1, 0x12, 1, b'x']), Ok(()), "a later field is ignored");

        assert_eq!(decode_response(&[0x0a, 0]), Ok(Ok(())));
        assert_eq!(decode_response(b"\x0a\x06\x0a\x04nope"), Ok(Err("nope".into())));
        assert_eq!(decode_response(&[]), Err(DecodeError::NoAck));
        assert!(matches!(decode_response(b"\x0a\x06\x0a\x04no"), Err(DecodeError::Malformed { .. })));
        assert!(matches!(decode_response(b"\x0a\x04\x0a\x02\xff\xfe"), Err(DecodeError::Malformed { .. })));
    }

    #[test]
    fn of_a_refusal_the_first_line_is_kept() {
        let refusal = |error: &str| {
            let ack = Ack { error: error.into() };
            decode_response(&WorkloadResponse { ack: Some(ack) }.encode_to_vec()).unwrap().unwrap_err()
        };
        let backtrace = format!("failure to start proxy : Bind\n\nStack backtrace:\n{}", "x".repeat(1500));
        assert_eq!(refusal(&backtrace), "failure to start proxy : Bind");
        assert_eq!(refusal("\n  two\nlines"), "two");
        assert_eq!(refusal("\n\n"), "no reason given");
        assert_eq!(refusal(&"ü".repeat(5000)).chars().count(), MAX_REASON);
    }

    #[test]
    fn the_longest_real_pod_fits_and_one_byte_too_many_is_refused() {
        let longest = Workload {
            uid: PodUid::new("u".repeat(64)).unwrap(),
            name: "n".repeat(253),
            namespace: "s".repeat(63),
            service_account: "a".repeat(253),
            netns: None,
        };
        assert!(Request::Add(&longest).encode().unwrap().len() < MAX_REQUEST);
        let padded = |n: usize| Workload { name: "n".repeat(n), ..longest.clone() };
        let fits = (0..1024).rev().find(|&n| Request::Add(&padded(n)).encode().is_ok()).unwrap();
        assert_eq!(Request::Add(&padded(fits)).encode().unwrap().len(), MAX_REQUEST);
        let error = Request::Add(&padded(fits + 1)).encode().unwrap_err();
        assert_eq!(error, TooLong { len: MAX_REQUEST + 1 });
        assert!(error.to_string().contains("1024 bytes") && error.to_string().contains("1023"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_what_is_read(name in ".{0,100}", namespace in ".{0,60}", sa in ".{0,60}") {
            let sent = Workload { name, namespace, service_account: sa, ..workload("u1", "") };
            let bytes = Request::Add(&sent).encode().unwrap();
            let Some(Payload::Add(read)) = WorkloadRequest::decode(&*bytes).unwrap().payload else {
                panic!("not an Add")
            };
            prop_assert_eq!(read.workload_info.name, sent.name);
            prop_assert_eq!(read.workload_info.namespace, sent.namespace);
            prop_assert_eq!(read.workload_info.service_account, sent.service_account);
        }

        #[test]
        fn no_packet_makes_the_decoder_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_hello(&packet);
            if let Ok(Err(reason)) = decode_response(&packet) {
                prop_assert!(!reason.is_empty() && reason.chars().count() <= MAX_REASON);
            }
        }
    }
}
