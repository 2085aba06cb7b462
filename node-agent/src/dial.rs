//! Connections to Unix sockets that end in time.

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::TimeVal;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Connects to a stream socket. `UnixStream::connect` waits for ever where somebody listens and never accepts.
///
/// # Errors
/// `connect`'s; `TimedOut` when nobody has accepted within that time.
pub fn unix(path: &Path, within: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(within.as_secs()).unwrap_or(i64::MAX);
    // It is the time limit of connect() too (unix(7), net/unix/af_unix.c). Zero would be none.
    setsockopt(&socket, SendTimeout, &TimeVal::new(seconds, within.subsec_micros().max(1).into()))?;
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(nix::Error::EAGAIN) => {
            let why = format!("somebody listens, and has not accepted within {within:?}");
            return Err(io::Error::new(ErrorKind::TimedOut, why));
        }
        Err(error) => return Err(error.into()),
    }
    setsockopt(&socket, SendTimeout, &TimeVal::new(0, 0))?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// Somebody who lets one caller wait, and no more.
    fn listener(path: &Path) -> UnixListener {
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&socket, Backlog::new(1).unwrap()).unwrap();
        UnixListener::from(socket)
    }

    #[test]
    fn somebody_who_never_accepts_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let failed = || unix(&path, Duration::from_millis(50)).unwrap_err();
        assert_eq!(failed().kind(), ErrorKind::NotFound);
        let listener = listener(&path);
        let mut first = unix(&path, Duration::from_secs(60)).unwrap();
        first.write_all(b"?").unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        let waiting: Vec<_> = (0..8).map_while(|_| unix(&path, Duration::from_millis(50)).ok()).collect();
        assert!((1..8).contains(&waiting.len()), "{waiting:?}");
        assert_eq!(failed().kind(), ErrorKind::TimedOut);
        drop(listener);
        assert_eq!(failed().kind(), ErrorKind::ConnectionRefused, "nobody listens any more");
    }
}
