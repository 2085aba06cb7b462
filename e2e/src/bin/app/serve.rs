//! `sluice-app serve`

use crate::Ending;
use clap::Args;
use serde_json::{Map, json};
use sluice_e2e::app::client::say;
use sluice_e2e::app::server::{Plan, Server};
use std::time::Duration;

/// A port of 0 is not served.
#[derive(Args)]
pub struct Serve {
    /// Who it says it is: by default the host's name, which in a pod is the pod's
    #[arg(long, env = "POD_NAME")]
    name: Option<String>,
    /// `GET /` says who asks whom; `GET /healthz`, `POST /healthz/pass`, `POST /healthz/fail`
    #[arg(long, default_value_t = 8080)]
    http: u16,
    /// Each line is answered with `<name> <peer> <the line>`
    #[arg(long, default_value_t = 9000)]
    tcp: u16,
    /// As --tcp, for datagrams
    #[arg(long, default_value_t = 9001)]
    udp: u16,
    /// gRPC's health service
    #[arg(long, default_value_t = 9002)]
    grpc: u16,
    /// How long it takes to become well
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = crate::seconds)]
    well_after: Duration,
    /// How long open connections may go on after SIGTERM
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = crate::seconds)]
    drain: Duration,
}

impl Serve {
    /// Serves until SIGTERM.
    pub async fn run(self, ending: &mut Ending) -> anyhow::Result<()> {
        let port = |port: u16| (port != 0).then_some(port);
        let name = match self.name {
            Some(name) => name,
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let server = Server::start(Plan {
            name: name.clone(),
            http: port(self.http),
            tcp: port(self.tcp),
            udp: port(self.udp),
            grpc: port(self.grpc),
            well_after: self.well_after,
            drain: self.drain,
        });
        let server = server.await?;
        let addresses: Map<_, _> =
            server.addresses.iter().map(|(kind, address)| ((*kind).to_owned(), json!(address))).collect();
        say(&json!({"event": "serving", "name": name, "addresses": addresses}));
        ending.told().await;
        say(&json!({"event": "ending"}));
        server.finish().await;
        Ok(())
    }
}
