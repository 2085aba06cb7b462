use super::*;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::File;

async fn pair(dir: &Path) -> (Listener, Conn, UnixSeqpacket) {
    let path = dir.join("s");
    let mut listener = Listener::bind(&path, 0o600, 0o700).unwrap();
    let client = UnixSeqpacket::connect(&path).await.unwrap();
    let conn = listener.accept().await.unwrap();
    (listener, conn, client)
}

async fn send_fds(client: &UnixSeqpacket, bytes: &[u8], fds: &[File]) {
    let mut control = [0; 2 * CONTROL_SPACE];
    let mut ancillary = AncillaryMessageWriter::new(&mut control);
    assert!(ancillary.add_fds(fds).is_ok());
    client.send_with_ancillary(bytes, &mut ancillary).await.unwrap();
}

#[tokio::test]
async fn messages_keep_their_bounds_and_their_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let (_listener, conn, client) = pair(dir.path()).await;
    let netns = File::open("/proc/self/ns/net").unwrap();
    send_fds(&client, b"one", &[netns.try_clone().unwrap()]).await;
    client.send(b"twotwo").await.unwrap();
    let mut buf = [0; 4];
    let first = conn.recv(&mut buf).await.unwrap();
    assert_eq!((first.len, first.truncated, first.fds.len()), (3, false, 1));
    let flags = FdFlag::from_bits_retain(fcntl(&first.fds[0], FcntlArg::F_GETFD).unwrap());
    assert!(flags.contains(FdFlag::FD_CLOEXEC), "a received descriptor would be inherited");
    let second = conn.recv(&mut buf).await.unwrap();
    assert_eq!((second.len, second.truncated, second.fds.len()), (4, true, 0));

    conn.send(b"answer", Some(netns.as_fd())).await.unwrap();
    assert_eq!(client.recv(&mut [0; 64]).await.unwrap().bytes_read(), 6);
    assert_eq!(conn.send(b"", None).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    drop(client);
    assert_eq!(conn.recv(&mut buf).await.unwrap().len, 0);
    assert_eq!(conn.send(b"x", None).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn every_descriptor_of_a_wrong_number_is_owned_and_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (_listener, conn, client) = pair(dir.path()).await;
    // A pipe's read end sees the end of file only once every copy of its write end is closed.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = File::from(OwnedFd::from(writer));
    for (count, truncated) in [(2, false), (8, false), (20, true)] {
        let copies: Vec<File> = (0..count).map(|_| writer.try_clone().unwrap()).collect();
        send_fds(&client, b"x", &copies).await;
        let received = conn.recv(&mut [0; 8]).await.unwrap();
        assert_eq!(received.ctrl_truncated, truncated, "{count} descriptors");
        assert!(received.fds.len() >= count.min(8), "{count} descriptors: {}", received.fds.len());
    }
    drop(writer);
    assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "a copy was leaked");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/here/s");
    let first = Listener::bind(&path, 0o660, 0o750).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o660, 0o750));
    assert!(matches!(Listener::bind(&path, 0o600, 0o700), Err(ListenError::InUse { .. })));

    // What a killed process leaves: the file, and nobody behind it.
    let left = dir.path().join("left");
    std::fs::rename(&path, &left).unwrap();
    drop(first);
    assert!(left.exists(), "a file that is no longer ours was removed");
    let again = Listener::bind(&left, 0o600, 0o700).unwrap();
    drop(again);
    assert!(!left.exists());

    std::fs::write(&left, "precious").unwrap();
    assert!(matches!(Listener::bind(&left, 0o600, 0o700), Err(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read(&left).unwrap(), b"precious");
    let stream = dir.path().join("stream");
    let _other_type = std::os::unix::net::UnixListener::bind(&stream).unwrap();
    assert!(matches!(Listener::bind(&stream, 0o600, 0o700), Err(ListenError::InUse { .. })));
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(Listener::bind(&long, 0o600, 0o700), Err(ListenError::Call { .. })));
}

#[tokio::test]
async fn a_socket_is_reachable_while_its_file_is_the_one_that_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = Listener::bind(&path, 0o600, 0o700).unwrap();
    let spot = listener.spot();
    assert!(spot.is_reachable());
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    assert!(!spot.is_reachable());
    let another = Listener::bind(&path, 0o600, 0o700).unwrap();
    assert!(!spot.is_reachable() && another.spot().is_reachable());
    drop(listener);
    assert!(another.spot().is_reachable(), "one that is not ours is not removed");
}

#[tokio::test]
async fn the_peer_is_who_the_kernel_says() {
    let dir = tempfile::tempdir().unwrap();
    let (_listener, conn, _client) = pair(dir.path()).await;
    let cred = conn.peer_cred().unwrap();
    assert_eq!(cred.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!((cred.uid, cred.gid), (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
}
