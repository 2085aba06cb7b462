//! `run` and `once`: from the first look to the signal that ends the program.

use crate::agent;
use crate::binary::Binary;
use crate::directory::sweep;
use crate::disk::linux::Linux;
use crate::keeper::Keeper;
use crate::notes::{Clock, Notes};
use crate::options::{Leftover, Paths, Wanted};
use crate::output::log;
use crate::remove::{remove, remove_plugin, take_out};
use crate::watch::Watch;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use sluice_shared::conflist::{PLUGIN_TYPE, drop_in};
use sluice_shared::install::{Installation, Intent, State, Wanted as Become};
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(20);
/// How often a lock that somebody holds, or an intent that is awaited, is looked for.
const AGAIN: Duration = Duration::from_millis(100);
/// What is off the node is off, but nobody will read so.
const UNWRITTEN: &str = "removed, and this cannot be written down";

#[derive(Args, Clone, Debug)]
pub struct Run {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    leaving: Leaving,
    /// What SIGTERM means: ask waits for intent.json, which the agent writes when it ends
    #[arg(long, env = "SLUICE_ON_TERM", default_value = "ask")]
    on_term: OnTerm,
    /// How long SIGTERM waits for intent.json, in seconds; then everything stays
    #[arg(long, env = "SLUICE_TERM_WAIT", value_name = "SECONDS", default_value_t = 5)]
    term_wait: u64,
}

#[derive(Args, Clone, Debug)]
pub struct Once {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    wanted: Wanted,
    /// How long to wait for the agent and the primary, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

#[derive(Args, Clone, Debug)]
pub struct Remove {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    leaving: Leaving,
    /// How long to wait for a running installer to do it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

#[derive(Args, Clone, Debug)]
struct Leaving {
    /// What becomes of the plugin's file once its entry is out of the chain
    #[arg(long, env = "SLUICE_LEFTOVER", default_value = "auto")]
    leftover: Leftover,
    /// Where the runtime caches attachments
    #[arg(long, env = "SLUICE_CNI_CACHE", value_name = "DIR", default_value = "/var/lib/cni/results")]
    cni_cache: PathBuf,
    /// How long the plugin's file stays after its entry has gone, in seconds: attachments that have begun may take so long to
    /// get to it
    #[arg(long, env = "SLUICE_LINGER", value_name = "SECONDS", default_value_t = 5)]
    linger: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnTerm {
    /// Stay or leave as intent.json says; stay without one
    Ask,
    /// Stay
    Keep,
    /// Leave
    Remove,
}

/// What ended the waiting for the lock.
enum Turn {
    Ours(File),
    Ended,
}

impl Run {
    /// Installs, watches and repairs until a signal.
    pub fn run(&self) -> anyhow::Result<()> {
        let directories = [self.paths.conf_dir.as_path(), &self.paths.bin_dir, &self.paths.run_dir];
        let mut watch = Watch::new(&directories)?;
        // During an upgrade the old installer may still be there: two would fight each other.
        let Turn::Ours(_lock) = wait_for_lock(&self.paths, &mut watch)? else { return Ok(()) };
        let clock = Clock::read(&Linux).context("cannot read which boot this is")?;
        let notes = Notes { disk: &Linux, paths: &self.paths };
        forget_former(&notes)?;
        let mut keeper = keeper(&self.paths, &self.wanted, &clock)?;
        let (began, mut renewed) = (Instant::now(), None::<Instant>);
        loop {
            if renewed.is_none_or(|renewed| renewed.elapsed() >= RENEWAL) {
                renew(&notes, &clock, self.wanted.lease_horizon);
                renewed = Some(Instant::now());
            }
            let wait = keeper.turn(began.elapsed(), || agent::serves(self.wanted.socket()));
            if let Some(Intent { wanted: Become::Leave, why, .. }) = notes.intent() {
                log!("leaving: {why}");
                // An end of the program would make the kubelet start it again, and that one would install again.
                while let Err(e) = self.leave(&clock, keeper.state()) {
                    log!("{e:#}; trying again until it can be done");
                    if watch.wait(&Linux, Duration::from_secs(1))? {
                        return Err(e);
                    }
                }
                return idle(&mut watch);
            }
            if watch.wait(&Linux, wait)? {
                return self.end(&clock, &notes, keeper.state());
            }
        }
    }

    /// A signal has come: an upgrade keeps everything in place, an uninstall nothing.
    fn end(&self, clock: &Clock, notes: &Notes<'_, Linux>, state: &Installation) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.term_wait);
        let intent = loop {
            match (self.on_term, notes.intent()) {
                (OnTerm::Keep, _) => break Intent::new(Become::Stay, "the option says keep"),
                (OnTerm::Remove, _) => break Intent::new(Become::Leave, "the option says remove"),
                (OnTerm::Ask, Some(intent)) => break intent,
                (OnTerm::Ask, None) if Instant::now() >= deadline => {
                    break Intent::new(Become::Stay, "nobody says that this is an uninstall");
                }
                (OnTerm::Ask, None) => std::thread::sleep(AGAIN),
            }
        };
        match intent.wanted {
            Become::Stay => log!("ended, and everything stays in place: {}", intent.why),
            Become::Leave => {
                log!("leaving: {}", intent.why);
                self.leave(clock, state)?;
            }
        }
        Ok(())
    }

    /// What cannot be removed now may be a moment later: a writer, a disk that is being emptied.
    fn leave(&self, clock: &Clock, state: &Installation) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let removed = loop {
            match self.leaving.leave(&self.paths, clock) {
                Err(e) if Instant::now() < deadline => {
                    log!("{e:#}; trying again");
                    std::thread::sleep(AGAIN * 5);
                }
                result => break result,
            }
        };
        removed?;
        let notes = Notes { disk: &Linux, paths: &self.paths };
        notes.write_installation(&state.clone().removed()).context(UNWRITTEN)
    }
}

impl Leaving {
    /// Takes everything off the node, the plugin's file last.
    fn leave(&self, paths: &Paths, clock: &Clock) -> anyhow::Result<()> {
        remove(&Linux, paths, clock)?;
        // Also where an earlier attempt took the entry out: how long ago that was, nobody has written down.
        let is_there = !matches!(paths.bin_dir.join(PLUGIN_TYPE).try_exists(), Ok(false));
        if is_there && self.leftover != Leftover::Keep {
            log!(
                "our entry is out of the chain; the plugin stays {} s for what has begun with it",
                self.linger
            );
            std::thread::sleep(Duration::from_secs(self.linger));
            // Somebody who had read the chain before may have written it back since, with us in it.
            take_out(&Linux, &paths.conf_dir)?;
        }
        remove_plugin(&Linux, paths, self.leftover, &self.cni_cache)
    }
}

impl Once {
    /// Installs and ends; nothing watches afterwards.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut watch = Watch::new(&[&self.paths.conf_dir])?;
        let Turn::Ours(_lock) = wait_for_lock(&self.paths, &mut watch)? else { bail!("interrupted") };
        let clock = Clock::read(&Linux).context("cannot read which boot this is")?;
        let notes = Notes { disk: &Linux, paths: &self.paths };
        forget_former(&notes)?;
        let mut keeper = keeper(&self.paths, &self.wanted, &clock)?;
        renew(&notes, &clock, self.wanted.lease_horizon);
        let began = Instant::now();
        loop {
            let wait = keeper.turn(began.elapsed(), || agent::serves(self.wanted.socket()));
            let state = keeper.state();
            if keeper.is_done() {
                return Ok(());
            }
            if began.elapsed() >= Duration::from_secs(self.wait) {
                bail!("not installed after {} s: {}", self.wait, state.message);
            }
            if watch.wait(&Linux, wait)? {
                bail!("interrupted: {}", state.message);
            }
        }
    }
}

impl Remove {
    /// Removes everything; an installer that runs is told to do it, since it would put everything back.
    pub fn run(&self) -> anyhow::Result<()> {
        let clock = Clock::read(&Linux).context("cannot read which boot this is")?;
        let notes = Notes { disk: &Linux, paths: &self.paths };
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        loop {
            let asked = notes.intent().is_some_and(|intent| intent.wanted == Become::Leave);
            if let Some(_lock) = lock(&self.paths)? {
                // An agent that runs would write down again what it is told of the node's pods.
                if !asked && let Err(e) = notes.write_intent(&leave()) {
                    log!("{}: {e}; an agent that runs here is not told", self.paths.intent().display());
                }
                self.leaving.leave(&self.paths, &clock)?;
                // What an installer that has ended said of this node is no longer so.
                return notes.note_removal().context(UNWRITTEN);
            }
            // Whoever holds the lock is of this boot, whatever it calls it (`Lease::age`).
            if asked && notes.last_installation().is_some_and(|found| found.state == State::Removed) {
                return Ok(());
            }
            if !asked {
                // Anew where an installer that has only just begun took it for an earlier one's.
                notes.write_intent(&leave()).context("cannot tell the installer that runs")?;
            }
            if Instant::now() >= deadline {
                bail!(
                    "the installer that runs on this node was told to remove everything and has not done so within \
                     {} s; end it (its pod's container) and run this again",
                    self.wait
                );
            }
            std::thread::sleep(AGAIN);
        }
    }
}

/// What `remove` leaves for a running installer and the agent.
fn leave() -> Intent {
    Intent::new(Become::Leave, "`sluice-install remove` was run on this node")
}

/// What an earlier installation was told, and what became of it, is no longer so.
fn forget_former(notes: &Notes<'_, Linux>) -> anyhow::Result<()> {
    let cannot = |path: PathBuf| move || format!("cannot remove {}", path.display());
    // The removal first: `remove` takes it for its answer as long as the intent is there.
    notes.forget_removal().with_context(cannot(notes.paths.installation()))?;
    notes.forget_intent().with_context(cannot(notes.paths.intent()))
}

fn keeper<'a>(paths: &'a Paths, wanted: &'a Wanted, clock: &Clock) -> anyhow::Result<Keeper<'a, Linux>> {
    // A wrong option is said before anything is touched.
    drop_in(&wanted.entry.entry()).context("the options for our entry are wrong")?;
    let plugin = &wanted.plugin;
    let binary = Binary::read(&Linux, plugin, &paths.bin_dir)
        .with_context(|| format!("cannot read the plugin {}", plugin.display()))?;
    if let Err(e) = sweep(&Linux, &paths.bin_dir)
        && e.kind() != ErrorKind::NotFound
    {
        log!("temporary files of an earlier run stay in {}: {e}", paths.bin_dir.display());
    }
    Ok(Keeper::new(&Linux, paths, wanted, binary, clock.clone()))
}

fn renew(notes: &Notes<'_, Linux>, clock: &Clock, horizon: u64) {
    if let Err(e) = notes.write_lease(clock, horizon, false) {
        log!(
            "cannot renew {}: {e}; without it pods of the mesh wait for ever if Sluice leaves this node unseen",
            notes.paths.lease().display()
        );
    }
}

/// Nothing is to be done any more, until the pod ends.
fn idle(watch: &mut Watch) -> anyhow::Result<()> {
    while !watch.wait(&Linux, Duration::from_secs(60))? {}
    Ok(())
}

fn wait_for_lock(paths: &Paths, watch: &mut Watch) -> anyhow::Result<Turn> {
    let mut said = false;
    loop {
        if let Some(lock) = lock(paths)? {
            return Ok(Turn::Ours(lock));
        }
        if !said {
            log!("waiting for another sluice-install on this node, which holds {}", paths.lock().display());
            said = true;
        }
        if watch.wait(&Linux, AGAIN)? {
            return Ok(Turn::Ended);
        }
    }
}

/// `None` while another process holds it. The kernel gives it back when the holder ends, however it ends.
fn lock(paths: &Paths) -> anyhow::Result<Option<File>> {
    let path = paths.lock();
    let cannot = || format!("cannot lock {}", path.display());
    std::fs::create_dir_all(&paths.run_dir).with_context(cannot)?;
    let file = File::options().create(true).append(true).open(&path).with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e).with_context(cannot),
    }
}
