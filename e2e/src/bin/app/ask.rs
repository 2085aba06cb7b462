//! `sluice-app once` and `sluice-app check`

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use sluice_e2e::app::ask::{Question, Reply, ask, resolve};
use sluice_e2e::app::client::{as_json, say};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a probe waits: shorter than the kubelet's shortest patience would be rude, longer useless.
const CHECK_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait between two attempts.
const BETWEEN: Duration = Duration::from_millis(200);

/// Asks until there is an answer or no time is left.
#[derive(Args)]
pub struct Once {
    /// Whom to ask
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// How
    #[arg(long, value_enum, default_value = "tcp")]
    over: Over,
    /// What to say; over HTTP, what to GET
    #[arg(long, default_value = "/")]
    say: String,
    /// How long one attempt may take
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = crate::seconds)]
    patience: Duration,
    /// How long to try anew when an attempt fails
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = crate::seconds)]
    retry: Duration,
    /// Fail unless the server saw this (tcp and udp)
    #[arg(long, value_enum)]
    expect: Option<Expect>,
}

/// One attempt, for at most a second. Without a port, over HTTP to 8080.
#[derive(Args)]
#[group(multiple = false)]
pub struct Check {
    /// `GET /healthz` on this port
    #[arg(long, value_name = "PORT")]
    http: Option<u16>,
    /// gRPC's health check on this port
    #[arg(long, value_name = "PORT")]
    grpc: Option<u16>,
    /// A line and its echo on this port
    #[arg(long, value_name = "PORT")]
    tcp: Option<u16>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Over {
    Tcp,
    Udp,
    Http,
    Grpc,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Expect {
    /// The client's own socket
    Direct,
    /// Another one: a proxy is between
    Proxied,
}

impl Once {
    /// Asks.
    pub async fn run(self) -> anyhow::Result<()> {
        let question = match self.over {
            Over::Tcp => Question::Line(self.say.clone()),
            Over::Udp => Question::Datagram(self.say.clone()),
            Over::Http => Question::Http("GET".to_owned(), self.say.clone()),
            Over::Grpc => Question::Grpc,
        };
        let until = Instant::now() + self.retry;
        loop {
            match self.attempt(&question).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(error) => say(&json!({"event": "failure", "error": format!("{error:#}")})),
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }

    async fn attempt(&self, question: &Question) -> anyhow::Result<()> {
        let to = resolve(&self.to).await?[0];
        let answer = match ask(to, question, self.patience).await? {
            Reply::Text(text) => {
                say(&json!({"to": to, "said": text}));
                return Ok(());
            }
            Reply::Echo(answer) => answer,
        };
        say(&as_json(&answer, to));
        let expected = self.expect.is_none_or(|expect| (expect == Expect::Direct) == answer.is_direct());
        if !expected {
            bail!("{} saw {} where {} asked", answer.server, answer.seen, answer.local);
        }
        Ok(())
    }
}

impl Check {
    /// Asks this pod's own server.
    pub async fn run(self) -> anyhow::Result<()> {
        let (port, question) = match self {
            Self { grpc: Some(port), .. } => (port, Question::Grpc),
            Self { tcp: Some(port), .. } => (port, Question::Line("check".to_owned())),
            Self { http, .. } => {
                (http.unwrap_or(8080), Question::Http("GET".to_owned(), "/healthz".to_owned()))
            }
        };
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        ask(to, &question, CHECK_PATIENCE).await.context("not well")?;
        Ok(())
    }
}
