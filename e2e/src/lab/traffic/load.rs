//! Load with a memory: new connections at a rate and long-lived ones that ping, each remembered with when it began,
//! how it went, and whether the server saw the client itself or a proxy.

use super::CLIENT_PORTS;
use super::dial::{Dial, parse};
use crate::lab::netns::Netns;
use anyhow::{Context, Result, anyhow};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What load is wanted.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Echo servers, taken in turns.
    pub targets: Vec<SocketAddr>,
    /// New connections a second; each says one line and closes.
    pub new_per_second: u32,
    /// Long-lived connections, over all targets.
    pub live: usize,
    /// How often each long-lived one pings.
    pub ping_every: Duration,
    /// Source ports of the new connections. Two loads in one namespace need ranges of their own.
    pub ports: Range<u16>,
    /// After which a connect or an answer counts as failed. Longer than a held SYN's retransmits.
    pub patience: Duration,
}

/// Running load. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What a load did.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Every new connection that has ended.
    pub new: Vec<Short>,
    /// Every long-lived connection.
    pub live: Vec<Long>,
}

/// A connection that said one line.
#[derive(Clone, Debug)]
pub struct Short {
    /// When its connect began.
    pub begun: Instant,
    /// From there to the answer, or to the failure.
    pub took: Duration,
    /// Where to.
    pub to: SocketAddr,
    /// What came of it.
    pub outcome: Result<Path, String>,
}

/// A long-lived connection.
#[derive(Clone, Debug)]
pub struct Long {
    /// Where to.
    pub to: SocketAddr,
    /// How it went at its first ping.
    pub path: Option<Path>,
    /// Pings answered.
    pub pings: u64,
    /// The longest time that an answer took.
    pub slowest: Duration,
    /// Why it is lost, if it is.
    pub lost: Option<String>,
}

/// Whom the server saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The client's own socket.
    Direct,
    /// Somebody in between.
    Proxied,
}

#[derive(Debug)]
struct Shared {
    tally: Mutex<Tally>,
    stop: AtomicBool,
    connected: AtomicUsize,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            new_per_second: 50,
            live: 0,
            ping_every: Duration::from_millis(100),
            ports: CLIENT_PORTS,
            patience: Duration::from_secs(15),
        }
    }
}

impl Load {
    /// Starts the load and waits until every long-lived connection has been answered once.
    ///
    /// # Errors
    /// When one of them could not be made.
    pub fn start(netns: &Netns, plan: LoadPlan) -> Result<Self> {
        let live = plan.targets.iter().copied().cycle().take(plan.live);
        let live = live.map(|to| Long { to, path: None, pings: 0, slowest: Duration::ZERO, lost: None });
        let shared = Arc::new(Shared {
            tally: Mutex::new(Tally { new: Vec::new(), live: live.collect() }),
            stop: AtomicBool::new(false),
            connected: AtomicUsize::new(0),
        });
        let (theirs, wanted) = (Arc::clone(&shared), plan.live);
        let patience = plan.patience;
        let thread = netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, drive(plan, theirs));
            Ok(())
        })?;
        let load = Self { shared, thread: Some(thread) };
        crate::lab::eventually("every long-lived connection's first answer", patience, || {
            if let Some(lost) = load.tally().live.iter().find_map(|long| long.lost.clone()) {
                return Err(anyhow!("a long-lived connection failed: {lost}"));
            }
            let connected = load.shared.connected.load(Ordering::Acquire);
            anyhow::ensure!(connected == wanted, "{connected} of {wanted} are there");
            Ok(())
        })
        .with_context(|| format!("start load in {}", netns.name()))?;
        Ok(load)
    }

    /// What it did until now.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.shared.tally().clone()
    }

    /// Ends it: no connection is begun any more, those on the way are waited for.
    ///
    /// # Errors
    /// When its thread failed.
    pub fn stop(mut self) -> Result<Tally> {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the load's thread panicked"))??;
        }
        Ok(self.shared.tally().clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Tally {
    /// New connections that failed, and long-lived ones that are lost.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let new = self.new.iter().filter_map(|short| {
            let why = short.outcome.as_ref().err()?;
            Some(format!("new to {} after {} ms: {why}", short.to, short.took.as_millis()))
        });
        let live = self.live.iter().filter_map(|long| {
            let why = long.lost.as_ref()?;
            Some(format!("live to {} after {} pings: {why}", long.to, long.pings))
        });
        new.chain(live).collect()
    }

    /// New connections whose connect began within `span` and that went along `path`.
    #[must_use]
    pub fn begun(&self, span: Range<Instant>, path: Path) -> usize {
        let within = self.new.iter().filter(|short| span.contains(&short.begun));
        within.filter(|short| short.outcome == Ok(path)).count()
    }

    /// The longest time that a new connection took to its answer.
    #[must_use]
    pub fn slowest(&self) -> Duration {
        self.new.iter().map(|short| short.took).max().unwrap_or_default()
    }

    /// Pings answered, over all long-lived connections.
    #[must_use]
    pub fn pings(&self) -> u64 {
        self.live.iter().map(|long| long.pings).sum()
    }

    /// Fails unless there was load, and nothing of it failed.
    ///
    /// # Errors
    /// The first failures.
    pub fn must_be_whole(&self) -> Result<()> {
        anyhow::ensure!(!self.new.is_empty() || self.pings() > 0, "there was no load");
        let failures = self.failures();
        anyhow::ensure!(
            failures.is_empty(),
            "{} failed ({self}): {}",
            failures.len(),
            failures[..failures.len().min(5)].join("; ")
        );
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |path| self.new.iter().filter(|short| short.outcome == Ok(path)).count();
        let failed = self.new.iter().filter(|short| short.outcome.is_err()).count();
        let lost = self.live.iter().filter(|long| long.lost.is_some()).count();
        write!(
            f,
            "{} new connections ({} direct, {} proxied, {failed} failed, slowest {} ms), {} live ({lost} lost, {} pings)",
            self.new.len(),
            on(Path::Direct),
            on(Path::Proxied),
            self.slowest().as_millis(),
            self.live.len(),
            self.pings()
        )
    }
}

/// Runs until stopped. Tasks are of this thread, so that their sockets are in its namespace.
async fn drive(plan: LoadPlan, shared: Arc<Shared>) {
    let tasks = Rc::new(RefCell::new(tokio::task::JoinSet::new()));
    for index in 0..plan.live {
        tasks.borrow_mut().spawn_local(ping(index, plan.clone(), Arc::clone(&shared)));
    }
    let next = Rc::new(Cell::new(plan.ports.start));
    let mut targets = plan.targets.iter().copied().cycle();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / plan.new_per_second.max(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.stopped() {
        tick.tick().await;
        if plan.new_per_second == 0 {
            continue;
        }
        let Some(to) = targets.next() else { break };
        let (plan, shared, next) = (plan.clone(), Arc::clone(&shared), Rc::clone(&next));
        tasks.borrow_mut().spawn_local(async move {
            let begun = Instant::now();
            let outcome = once(to, &plan, &next).await.map_err(|why| format!("{why:#}"));
            shared.tally().new.push(Short { begun, took: begun.elapsed(), to, outcome });
        });
        // Finished tasks are let go, or a long load would keep all of them.
        while tasks.borrow_mut().try_join_next().is_some() {}
    }
    let mut rest = tasks.take();
    while rest.join_next().await.is_some() {}
}

async fn once(to: SocketAddr, plan: &LoadPlan, next: &Cell<u16>) -> Result<Path> {
    let mut stream = BufReader::new(connect(to, plan, next).await?);
    exchange(&mut stream, "once", plan.patience).await
}

/// Connects from the next free port of the range.
async fn connect(to: SocketAddr, plan: &LoadPlan, next: &Cell<u16>) -> Result<TcpStream> {
    loop {
        let port = next.get();
        next.set(if port + 1 >= plan.ports.end { plan.ports.start } else { port + 1 });
        let dial = Dial { patience: plan.patience, ..Dial::to(to) }.port(port);
        match dial.connect_async().await {
            // Still held by an older connection of this load.
            Err(why) if why.kind() == std::io::ErrorKind::AddrInUse => {}
            done => return done.context("connect"),
        }
    }
}

async fn exchange(stream: &mut BufReader<TcpStream>, line: &str, patience: Duration) -> Result<Path> {
    let local = stream.get_ref().local_addr()?;
    let talk = async {
        stream.get_mut().write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(patience, talk).await.context("no answer")?.context("talk")?;
    anyhow::ensure!(!answer.is_empty(), "closed without an answer");
    let answer = parse(&answer, local).with_context(|| format!("a strange answer: {answer:?}"))?;
    anyhow::ensure!(answer.said == line, "{line:?} came back as {:?}", answer.said);
    Ok(if answer.is_direct() { Path::Direct } else { Path::Proxied })
}

async fn ping(index: usize, plan: LoadPlan, shared: Arc<Shared>) {
    let to = shared.tally().live[index].to;
    // The rest of the range is for new connections; these take the kernel's ports and are told apart less surely.
    let outcome = async {
        let mut stream =
            BufReader::new(Dial { patience: plan.patience, ..Dial::to(to) }.connect_async().await?);
        let mut number = 0_u64;
        while !shared.stopped() {
            let begun = Instant::now();
            let path = exchange(&mut stream, &format!("ping {number}"), plan.patience).await?;
            {
                let mut tally = shared.tally();
                let long = &mut tally.live[index];
                long.pings += 1;
                long.slowest = long.slowest.max(begun.elapsed());
                long.path.get_or_insert(path);
            }
            if number == 0 {
                shared.connected.fetch_add(1, Ordering::AcqRel);
            }
            number += 1;
            tokio::time::sleep(plan.ping_every).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    if let Err(why) = outcome.await {
        shared.tally().live[index].lost = Some(format!("{why:#}"));
    }
}
