//! The one connection to the API server.
//!
//! Over TLS it is HTTP/2: both watches, the look-ups and the patches share a single connection, and pings tell a server
//! that no longer answers from one that has nothing to say. TCP's own keep-alive does the same, for dead hosts only,
//! where a server offers no HTTP/2.

use http::header::{HeaderValue, USER_AGENT};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tower::ServiceBuilder;
use tower::util::MapRequestLayer;

/// How long a TCP connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// After so much silence the other end is asked whether it is there: by HTTP/2 and by TCP.
const PING_AFTER: Duration = Duration::from_secs(15);
/// How long it may take to answer a ping before the connection is given up.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How often TCP asks until it gives up, this far apart.
const TCP_PROBES: u32 = 3;
const TCP_PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// A connection that nobody uses is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig file cannot be used.
    #[error("{}: {source}", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// There is neither a kubeconfig nor a service account.
    #[error(
        "no service account is mounted here ({0}); run the agent in a pod with one, or set kubeconfig to a file"
    )]
    InCluster(Box<kube::config::InClusterError>),
    /// The kubeconfig asks for a proxy.
    #[error("{}: proxy-url is not supported: the agent must reach the API server directly", .0.display())]
    Proxy(PathBuf),
    /// The credentials or certificates cannot be used.
    #[error("the credentials for the API server cannot be used: {0}")]
    Credentials(#[from] Box<kube::Error>),
}

/// A client by this kubeconfig's current context, or by the service account that is mounted into the pod. A token file
/// and the cluster's certificates are read again at least once a minute, so that their rotation is followed.
///
/// # Errors
/// When the configuration cannot be read or used. No request is made yet.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().map_err(|error| ClientError::InCluster(Box::new(error)))?,
    };
    client(&config).map_err(|error| ClientError::Credentials(Box::new(error)))
}

async fn from_file(path: &Path) -> Result<Config, ClientError> {
    let wrong = |source| ClientError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let config = config.map_err(wrong)?;
    match config.proxy_url {
        Some(_) => Err(ClientError::Proxy(path.to_owned())),
        None => Ok(config),
    }
}

fn client(config: &Config) -> kube::Result<Client> {
    let tls = config.rustls_client_config()?;
    let mut connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = config.tls_server_name.clone() {
        let name = name.try_into().map_err(|error| kube::Error::Service(Box::new(error)))?;
        connector = connector.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name));
    }
    let connector = connector.enable_all_versions().wrap_connector(tcp());
    let http: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PONG_WITHIN)
        .http2_keep_alive_while_idle(true)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .layer(MapRequestLayer::new(name_ourselves))
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN));
    tcp.set_keepalive(Some(PING_AFTER));
    tcp.set_keepalive_interval(Some(TCP_PROBE_EVERY));
    tcp.set_keepalive_retries(Some(TCP_PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    tcp
}

/// The API server's audit log and its metrics tell clients apart by this.
fn name_ourselves(mut request: http::Request<Body>) -> http::Request<Body> {
    const NAME: &str = concat!("sluice-agent/", env!("CARGO_PKG_VERSION"));
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(NAME));
    request
}
