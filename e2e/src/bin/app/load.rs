//! `sluice-app client`

use crate::Ending;
use clap::Args;
use serde_json::json;
use sluice_e2e::app::client::{Client, Plan, say};
use sluice_e2e::app::http::{self, Handler, Request, Response};
use sluice_e2e::app::server::{accept, listen};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Prints each failure as a JSON line, and the totals at its end.
#[derive(Args)]
pub struct Load {
    /// An echo server; may be given more than once, they are taken in turns
    #[arg(long, required = true, value_name = "HOST:PORT")]
    to: Vec<String>,
    /// How many connections stay open
    #[arg(long, default_value_t = 0)]
    live: usize,
    /// New connections a second; each says one line and closes
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// How often each connection that stays pings
    #[arg(long, default_value = "0.1", value_name = "SECONDS", value_parser = crate::seconds)]
    ping: Duration,
    /// After which a connect or an answer counts as failed
    #[arg(long, default_value = "15", value_name = "SECONDS", value_parser = crate::seconds)]
    patience: Duration,
    /// What each server's name must begin with
    #[arg(long, default_value = "", value_name = "PREFIX")]
    expect: String,
    /// Where `GET /totals` and `GET /healthz` (200 once all that should stay are open) are answered; 0 is nowhere
    #[arg(long, default_value_t = 8081)]
    admin: u16,
}

impl Load {
    /// Runs until SIGTERM.
    pub async fn run(self, ending: &mut Ending) -> anyhow::Result<()> {
        let client = Client::new(Plan {
            targets: self.to,
            live: self.live,
            per_second: self.rate,
            ping_every: self.ping,
            patience: self.patience,
            expect: self.expect,
        });
        let (stop, stopped) = watch::channel(false);
        if self.admin != 0 {
            let handler = handler(client.clone());
            let answer = move |stream, peer| http::answer(stream, peer, Arc::clone(&handler));
            tokio::spawn(accept(listen(self.admin).await?, stopped.clone(), Duration::ZERO, answer));
        }
        let running = client.run(stopped);
        tokio::pin!(running);
        tokio::select! {
            () = &mut running => {}
            () = ending.told() => {}
        }
        stop.send_replace(true);
        running.await;
        say(&json!({"event": "totals", "totals": client.totals()}));
        Ok(())
    }
}

fn handler(client: Client) -> Handler {
    Arc::new(move |request: &Request| {
        let totals = client.totals();
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/totals") => Response::json(&totals),
            ("GET", "/healthz") if totals.live.open == totals.live.wanted => Response::new(200, "ok\n"),
            ("GET", "/healthz") => {
                Response::new(503, format!("{} of {} are open\n", totals.live.open, totals.live.wanted))
            }
            _ => Response::new(404, "GET /totals or /healthz\n"),
        }
    })
}
