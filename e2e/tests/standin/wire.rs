//! What is on the wire: a capture of every frame that crosses the bridge.

use crate::lab::Netns;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running capture.
pub struct Capture {
    stop: Arc<AtomicBool>,
    frames: JoinHandle<Vec<Vec<u8>>>,
}

/// What was captured.
pub struct Frames(Vec<Vec<u8>>);

impl Capture {
    /// Begins at once: frames from now on are in it.
    pub fn start(outside: &Netns) -> Self {
        let all = outside.inside(|| {
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                .expect("a packet socket")
        });
        setsockopt(&all, ReceiveTimeout, &TimeVal::milliseconds(50)).expect("SO_RCVTIMEO");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let frames = std::thread::spawn(move || {
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 1 << 17]);
            loop {
                match recv(all.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(n) => frames.push(buffer[..n].to_vec()),
                    Err(_) if stopped.load(Ordering::Relaxed) => return frames,
                    Err(_) => {}
                }
            }
        });
        Self { stop, frames }
    }

    /// Ends once the wire is quiet.
    pub fn finish(self) -> Frames {
        std::thread::sleep(Duration::from_millis(100));
        self.stop.store(true, Ordering::Relaxed);
        Frames(self.frames.join().expect("the capture"))
    }
}

impl Frames {
    /// Whether any frame holds `needle`.
    pub fn contain(&self, needle: &[u8]) -> bool {
        self.0.iter().any(|frame| frame.windows(needle.len()).any(|window| window == needle))
    }

    /// How many different TCP connections were opened to `port`, of either family.
    pub fn opened_to(&self, port: u16) -> usize {
        let mut sources: Vec<u16> = self.0.iter().filter_map(|frame| opening(frame, port)).collect();
        sources.sort_unstable();
        sources.dedup();
        sources.len()
    }
}

/// The source port of an opening SYN to `port`.
fn opening(frame: &[u8], port: u16) -> Option<u16> {
    let tcp = match frame.get(12..14)? {
        [0x08, 0x00] if frame.get(23) == Some(&6) => 14 + usize::from(frame[14] & 0xf) * 4,
        [0x86, 0xdd] if frame.get(20) == Some(&6) => 14 + 40,
        _ => return None,
    };
    let header = frame.get(tcp..tcp + 14)?;
    let is_opening = header[13] & 0x12 == 0x02 && header[2..4] == port.to_be_bytes();
    is_opening.then(|| u16::from_be_bytes([header[0], header[1]]))
}
