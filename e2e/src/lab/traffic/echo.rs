//! A TCP server that says who it is and whom it sees: each line is answered with `<name> <peer> <the line>`.

use crate::lab::netns::Netns;
use anyhow::{Context, Result, anyhow};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A running server. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Echo {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Echo {
    /// Serves `port` on every address of `netns`, as `name`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(netns: &Netns, name: &str, port: u16) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = mpsc::channel();
        let name: std::sync::Arc<str> = name.into();
        let thread = netns.spawn(move || {
            let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            let listener = match listener {
                Ok(listener) => listener,
                Err(why) => {
                    let _ = bound.send(Err(why));
                    return Ok(());
                }
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let _ = bound.send(Ok(()));
                tokio::select! {
                    done = serve(&listener, &name) => done,
                    _ = stopped => Ok(()),
                }
            })
        })?;
        let answer = is_bound.recv().map_err(|_| anyhow!("the echo server's thread ended"))?;
        answer.with_context(|| format!("listen on port {port}"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: &tokio::net::TcpListener, name: &std::sync::Arc<str>) -> Result<()> {
    loop {
        // A connection that was reset before it was accepted is the client's to count.
        if let Ok((stream, peer)) = listener.accept().await {
            let name = std::sync::Arc::clone(name);
            tokio::spawn(async move { answer(stream, peer, &name).await });
        }
    }
}

/// Answers each line on a connection, until its client closes it.
///
/// # Errors
/// When it breaks.
pub async fn answer(mut stream: TcpStream, peer: SocketAddr, name: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        write.write_all(format!("{name} {peer} {line}\n").as_bytes()).await?;
    }
    Ok(())
}
