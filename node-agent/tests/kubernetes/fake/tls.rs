//! The fake API server over TLS and HTTP/2, behind a wire that can freeze: nothing passes any more, and nothing is closed.

use super::{FakeApi, serve};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A wire to a server of the same objects.
pub struct Wire {
    /// How many connections have been made.
    connections: Arc<AtomicUsize>,
    frozen: watch::Sender<usize>,
}

impl FakeApi {
    /// From now on clients are led here: over TLS, HTTP/2 and a wire that can freeze.
    pub async fn over_tls(&self) -> Wire {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server_address = server.local_addr().unwrap();
        tokio::spawn(accept(server, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&self.shared)));

        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ca = self.dir.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        self.write_kubeconfig(&format!(
            "{{server: 'https://{}', certificate-authority: '{}'}}",
            front.local_addr().unwrap(),
            ca.display()
        ));
        let wire = Wire { connections: Arc::default(), frozen: watch::Sender::new(0) };
        tokio::spawn(lead(front, server_address, Arc::clone(&wire.connections), wire.frozen.subscribe()));
        wire
    }
}

impl Wire {
    /// The connections that are open now freeze; later ones do not.
    pub fn freeze(&self) {
        self.frozen.send_replace(self.connections());
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<super::Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(|request| serve::answer(request, Arc::clone(&shared)));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn lead(
    front: TcpListener,
    server: SocketAddr,
    connections: Arc<AtomicUsize>,
    frozen: watch::Receiver<usize>,
) {
    while let Ok((mut stream, _)) = front.accept().await {
        let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
        let mut frozen = frozen.clone();
        tokio::spawn(async move {
            let mut behind = TcpStream::connect(server).await.unwrap();
            tokio::select! {
                _ = copy_bidirectional(&mut stream, &mut behind) => {}
                () = async { drop(frozen.wait_for(|up_to| *up_to >= number).await) } => std::future::pending().await,
            }
        });
    }
}
