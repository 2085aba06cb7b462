//! Load that counts: connections that stay and ping, and new ones at a rate.

use super::ask::{exchange, resolve};
use super::totals::{Totals, milliseconds};
use crate::lab::traffic::CLIENT_PORTS;
use crate::lab::traffic::dial::{Answer, Dial};
use anyhow::{Context, Result, anyhow};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How long to wait before a connection that stays is opened anew.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// What load is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Echo servers, `host:port`, taken in turns; names are resolved for each connection.
    pub targets: Vec<String>,
    /// How many connections stay open.
    pub live: usize,
    /// New connections a second; each says one line and closes.
    pub per_second: u32,
    /// How often each connection that stays pings.
    pub ping_every: Duration,
    /// After which a connect or an answer counts as failed. Longer than a held SYN's retransmits.
    pub patience: Duration,
    /// What each server's name must begin with.
    pub expect: String,
}

/// Running load: clones are of the same.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plan: Plan,
    totals: Mutex<Totals>,
    /// When each connection that stays, by its number, was answered last; only of those that are open.
    heard: Mutex<BTreeMap<usize, Instant>>,
    /// The next target.
    turn: AtomicUsize,
    /// The next source port. Of its own: a connection that took two turns would skip every other target.
    port: AtomicUsize,
}

impl Client {
    /// Load that has not begun.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let mut totals = Totals::default();
        totals.live.wanted = plan.live as u64;
        Self(Arc::new(Inner {
            plan,
            totals: Mutex::new(totals),
            heard: Mutex::default(),
            turn: AtomicUsize::default(),
            port: AtomicUsize::default(),
        }))
    }

    /// What it did until now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = self.counted().clone();
        let longest = self.heard().values().map(Instant::elapsed).max().unwrap_or_default();
        totals.live.silent_ms = milliseconds(longest);
        totals
    }

    /// Runs until stopped. New connections that are on their way then are waited for; those that stay are closed.
    pub async fn run(&self, mut stopped: watch::Receiver<bool>) {
        let mut live = JoinSet::new();
        for number in 0..self.0.plan.live {
            live.spawn(self.clone().keep(number));
        }
        let mut new = JoinSet::new();
        let rate = self.0.plan.per_second;
        let mut tick = interval(Duration::from_secs(1) / rate.max(1));
        // A client that was held up does not make up for it in a burst.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => break,
                _ = tick.tick(), if rate > 0 => { new.spawn(self.clone().once()); }
                Some(_) = new.join_next() => {}
            }
        }
        while new.join_next().await.is_some() {}
    }

    async fn once(self) {
        self.counted().new.begun += 1;
        let begun = Instant::now();
        let line = "once";
        let answered = async {
            let mut stream = self.connect().await?;
            self.say(&mut stream, line).await
        };
        match answered.await {
            Ok(answer) => {
                self.counted().answered(&answer, begun.elapsed());
                self.compare(&answer, line);
            }
            Err(error) => {
                self.counted().failed(&error);
                tell("new", &error);
            }
        }
    }

    /// Keeps connection `number` open, for ever.
    async fn keep(self, number: usize) {
        loop {
            let opened = async {
                let mut stream = self.connect().await?;
                let answer = self.say(&mut stream, "first").await?;
                Ok::<_, anyhow::Error>((stream, answer))
            };
            match opened.await {
                Ok((mut stream, answer)) => {
                    self.heard().insert(number, Instant::now());
                    self.counted().opened(&answer);
                    self.compare(&answer, "first");
                    let (pings, error) = self.ping(number, &mut stream).await;
                    self.counted().lost(pings, &error);
                    self.heard().remove(&number);
                    tell("live", &error);
                }
                Err(error) => {
                    self.counted().refused(&error);
                    tell("live, opening", &error);
                }
            }
            sleep(REOPEN_AFTER).await;
        }
    }

    /// Pings until it fails; how often it did not, and why it did.
    async fn ping(&self, number: usize, stream: &mut BufReader<TcpStream>) -> (u64, anyhow::Error) {
        for pings in 0.. {
            sleep(self.0.plan.ping_every).await;
            let begun = Instant::now();
            let line = format!("ping {pings}");
            match self.say(stream, &line).await {
                Ok(answer) => {
                    self.heard().insert(number, Instant::now());
                    self.counted().pinged(&answer, begun.elapsed());
                    self.compare(&answer, &line);
                }
                Err(error) => return (pings, error),
            }
        }
        (u64::MAX, anyhow!("no number is left"))
    }

    /// Connects to the next target, from the next port of a range that no proxy takes by itself.
    async fn connect(&self) -> Result<BufReader<TcpStream>> {
        let Plan { targets, patience, .. } = &self.0.plan;
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
        let target = &targets[turn % targets.len()];
        let addresses = timeout(*patience, resolve(target)).await.context("resolve")??;
        let to = addresses[0];
        let stream = loop {
            let dial = Dial { patience: *patience, ..Dial::to(to) }.port(self.next_port());
            match dial.connect_async().await {
                // Still held by an older connection of this client.
                Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {
                    tokio::task::yield_now().await;
                }
                done => break done.with_context(|| format!("connect to {to}"))?,
            }
        };
        Ok(BufReader::new(stream))
    }

    fn next_port(&self) -> u16 {
        let range = CLIENT_PORTS;
        let turn = self.0.port.fetch_add(1, Ordering::Relaxed) % usize::from(range.end - range.start);
        range.start + u16::try_from(turn).unwrap_or_default()
    }

    async fn say(&self, stream: &mut BufReader<TcpStream>, line: &str) -> Result<Answer> {
        let to = stream.get_ref().peer_addr()?;
        let answer = timeout(self.0.plan.patience, exchange(stream, line)).await.context("no answer");
        answer.flatten().with_context(|| format!("talk to {to}"))
    }

    fn compare(&self, answer: &Answer, line: &str) {
        if answer.said != line || !answer.server.starts_with(&self.0.plan.expect) {
            let what = format!("{line:?} was answered by {} with {:?}", answer.server, answer.said);
            say(&json!({"event": "mismatch", "what": what}));
            self.counted().mismatched(what);
        }
    }

    fn counted(&self) -> MutexGuard<'_, Totals> {
        self.0.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> MutexGuard<'_, BTreeMap<usize, Instant>> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the server sees the client, and the client the server.
#[must_use]
pub fn as_json(answer: &Answer, to: SocketAddr) -> serde_json::Value {
    json!({
        "server": answer.server, "seen": answer.seen, "local": answer.local, "to": to, "said": answer.said,
        "direct": answer.is_direct(),
    })
}

/// Prints one JSON line. A reader who has gone away is no reason to stop.
pub fn say(event: &serde_json::Value) {
    let _ = writeln!(std::io::stdout().lock(), "{event}");
}

fn tell(kind: &str, error: &anyhow::Error) {
    say(&json!({"event": "failure", "kind": kind, "error": format!("{error:#}")}));
}
