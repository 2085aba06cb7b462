//! One look at the node, and what follows from it: the plugin's file first, then our entry, paced.

use crate::binary::Binary;
use crate::directory::{apply, look, sweep};
use crate::disk::{Disk, Stamp};
use crate::notes::{Clock, Notes};
use crate::options::{Paths, Replace, Wanted};
use crate::output::log;
use crate::write::Change;
use sluice_shared::conflist::{
    Chained, Directory, Entry, Pace, Plan, Primary, Step, Wish, leave, plan, suspect,
};
use sluice_shared::install::{Fought, INSTALL_VERSION, Installation, State};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the directory is looked at when nothing is heard of it.
pub const LOOK: Duration = Duration::from_millis(500);

/// Keeps our entry in the chain.
#[derive(Debug)]
pub struct Keeper<'a, D> {
    notes: Notes<'a, D>,
    paths: &'a Paths,
    wanted: &'a Wanted,
    entry: Entry,
    binary: Binary,
    clock: Clock,
    pace: Pace,
    /// The directory as we last saw it or left it, and its files' stamps: also who writes the same again has written.
    left: Option<(Directory, Vec<Stamp>)>,
    /// Why our last write failed.
    failure: Option<String>,
    /// Something may be left of a write that was broken off; and why it was left at the last try.
    unsettled: Option<String>,
    /// Whether our entry was in the chain then.
    was_chained: bool,
    /// Whether an entry may be added: the agent has served here.
    cleared: bool,
    /// Whether the last look found nothing to do.
    settled: bool,
    state: Installation,
    /// What was last written down, to be said only when it changes.
    said: Option<Installation>,
}

impl<'a, D: Disk> Keeper<'a, D> {
    /// One that goes on where an earlier one has stopped.
    pub fn new(disk: &'a D, paths: &'a Paths, wanted: &'a Wanted, binary: Binary, clock: Clock) -> Self {
        let notes = Notes { disk, paths };
        let earlier = notes.installation(&clock.boot);
        let state = Installation {
            version: INSTALL_VERSION,
            boot: clock.boot.clone(),
            state: State::Waiting,
            message: String::new(),
            directory: paths.conf_dir.display().to_string(),
            way: None,
            why: String::new(),
            file: None,
            primary: None,
            primary_seen: earlier.as_ref().is_some_and(|earlier| earlier.primary_seen),
            writes: earlier.as_ref().map_or(0, |earlier| earlier.writes),
            repairs: earlier.as_ref().map_or(0, |earlier| earlier.repairs),
            istio: Vec::new(),
            fight: None,
            updated: 0,
        };
        Self {
            cleared: notes.chaining().is_some(),
            entry: wanted.entry.entry(),
            pace: Pace::default(),
            left: None,
            failure: None,
            unsettled: Some(String::new()),
            was_chained: false,
            settled: false,
            said: None,
            notes,
            paths,
            wanted,
            binary,
            clock,
            state,
        }
    }

    /// How it stands.
    pub fn state(&self) -> &Installation {
        &self.state
    }

    /// Whether our entry is in the chain, and nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.settled && self.state.state == State::Chained
    }

    /// Looks, and does what may be done now; gives when to look again at the latest. `now` counts from an arbitrary
    /// moment; `serves` asks the agent.
    pub fn turn(&mut self, now: Duration, serves: impl FnOnce() -> Result<(), String>) -> Duration {
        let (state, message, wait) = match self.step(now, serves) {
            Ok(settled) => settled,
            Err(e) => (State::Blocked, e, LOOK),
        };
        self.conclude(now, state, message);
        wait
    }

    fn step(
        &mut self,
        now: Duration,
        serves: impl FnOnce() -> Result<(), String>,
    ) -> Result<(State, String, Duration), String> {
        let dir = &self.paths.conf_dir;
        let failed = |what: &str, e: &io::Error| format!("{what}: {e}");
        self.sweep();
        let ensured = self.binary.ensure(self.notes.disk);
        let directory = look(self.notes.disk, dir).map_err(|e| failed(&dir.display().to_string(), &e))?;
        self.notice(&directory, now);
        if let Err(e) = &ensured {
            return Err(self.without_binary(&directory, now, e));
        }
        let Plan { steps, outcome } = self.decide(&directory, serves);
        self.settled = steps.is_empty();
        if self.settled {
            self.failure = None;
            if outcome.is_ok() {
                self.pace.satisfied();
            }
            let (state, message) = self.reached(outcome);
            return Ok((state, message, LOOK));
        }
        let earliest = self.pace.earliest();
        // What must not outlive the primary's file goes at once.
        let urgent = steps.iter().all(|step| matches!(step, Step::RemoveOwned { .. }));
        if now < earliest && !urgent {
            let wait = (earliest - now).min(LOOK);
            if let Some(failure) = &self.failure {
                return Ok((State::Blocked, failure.clone(), wait));
            }
            let message = outcome.map_or_else(|why| why, |to| format!("{} is about to be written", to.file));
            return Ok((State::Waiting, message, wait));
        }
        self.write(&directory, &steps, &outcome, now)?;
        let (state, message) = self.reached(outcome);
        Ok((state, message, Duration::ZERO))
    }

    /// Before anything is decided: a newer version of somebody else's may wait beside its place.
    fn sweep(&mut self) {
        let Some(said) = &mut self.unsettled else { return };
        let dir = &self.paths.conf_dir;
        match sweep(self.notes.disk, dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let why = e.to_string();
                if *said != why {
                    log!("what an earlier write has left in {} stays for now: {why}", dir.display());
                    *said = why;
                }
            }
            _ => self.unsettled = None,
        }
    }

    /// What is to be done; the agent is asked only when something would be added where nothing was.
    fn decide(&mut self, directory: &Directory, serves: impl FnOnce() -> Result<(), String>) -> Plan {
        if let Primary::Found(_) = directory.primary() {
            self.state.primary_seen = true;
        }
        let noted = self.notes.runtime();
        let replace_istio = match self.wanted.replace_istio_cni {
            Replace::Auto => self.notes.istio_is_gone(),
            Replace::Always => true,
            Replace::Never => false,
        };
        self.state.istio = directory.istios();
        let wish = Wish {
            replace_istio,
            entry: &self.entry,
            way: self.wanted.way.0,
            drop_ins: self.wanted.drop_ins(noted.as_ref()),
            auxiliary_chain: self.wanted.auxiliary_chain.as_deref(),
            may_add: self.cleared,
            outlive: !self.state.primary_seen && self.clock.seconds() < self.wanted.reboot_grace,
        };
        let cautious = plan(directory, &wish);
        let bold = plan(directory, &Wish { may_add: true, ..wish });
        if self.cleared || cautious == bold {
            return bold;
        }
        match serves() {
            Ok(()) => {
                self.cleared = true;
                bold
            }
            Err(why) => Plan { outcome: Err(why), ..cautious },
        }
    }

    fn write(
        &mut self,
        directory: &Directory,
        steps: &[Step],
        outcome: &Result<Chained, String>,
        now: Duration,
    ) -> Result<(), String> {
        let dir = &self.paths.conf_dir;
        if let Ok(chained) = outcome
            && self.notes.chaining() != Some(chained.way)
            && let Err(e) = self.notes.write_chaining(chained.way)
        {
            // Without the note a restart waits for the agent first, which is no reason not to go on.
            log!("cannot write {}: {e}", self.paths.chaining().display());
        }
        let repaired = outcome.is_ok() && self.state.writes > 0 && !directory.has_us();
        for (number, step) in steps.iter().enumerate() {
            match apply(self.notes.disk, dir, step) {
                Ok(Change::Made) => self.state.writes += 1,
                Ok(Change::Overtaken) => {
                    if number > 0 {
                        self.pace.wrote(now);
                    }
                    self.pace.overtaken(now);
                    self.left = None;
                    return Ok(());
                }
                Err(e) => {
                    self.pace.wrote(now);
                    self.unsettled.get_or_insert_default();
                    let failure = format!("cannot write to {}: {e}", dir.display());
                    self.failure = Some(failure.clone());
                    return Err(failure);
                }
            }
        }
        self.pace.wrote(now);
        self.failure = None;
        let after = directory.after(steps);
        self.state.repairs += u64::from(repaired);
        self.was_chained = after.has_us();
        let stamps = self.stamps(&after);
        self.left = Some((after, stamps));
        Ok(())
    }

    fn stamps(&self, directory: &Directory) -> Vec<Stamp> {
        let files = directory.files.iter();
        files.filter_map(|file| self.notes.disk.stamp(&self.paths.conf_dir.join(&file.name)).ok()).collect()
    }

    /// Compares with what we left.
    fn notice(&mut self, directory: &Directory, now: Duration) {
        let found = Some((directory.clone(), self.stamps(directory)));
        if self.left == found {
            return;
        }
        self.pace.changed(now);
        if self.was_chained && !directory.has_us() {
            self.pace.undone(now);
        }
        self.was_chained = directory.has_us();
        self.left = found;
    }

    /// With the plugin gone, and no way to put it back, our entry would keep every pod from starting.
    fn without_binary(&mut self, directory: &Directory, now: Duration, e: &io::Error) -> String {
        let path = self.binary.path().display().to_string();
        if self.binary.is_there(self.notes.disk) {
            return format!("{path} is an old one and cannot be replaced: {e}");
        }
        let steps = leave(directory);
        if steps.is_empty() || now < self.pace.earliest() {
            return format!("{path} cannot be written: {e}");
        }
        match self.write(directory, &steps, &Err(String::new()), now) {
            Ok(()) => format!("{path} cannot be written: {e}; our entry is taken out, or no pod could start"),
            Err(then) => format!("{path} cannot be written: {e}; and our entry cannot be taken out: {then}"),
        }
    }

    /// Notes where our entry is.
    fn reached(&mut self, outcome: Result<Chained, String>) -> (State, String) {
        match outcome {
            Ok(Chained { way, why, file, primary, .. }) => {
                let message = format!("our entry is in the chain, in {file}");
                self.state.way = Some(way);
                (self.state.why, self.state.file, self.state.primary) = (why, Some(file), primary);
                (State::Chained, message)
            }
            Err(why) => (State::Waiting, why),
        }
    }

    /// Writes down how it stands, when that has changed.
    fn conclude(&mut self, now: Duration, state: State, message: String) {
        self.state.fight = self.pace.fight(now).map(|fight| self.fought(&fight));
        self.state.state = match (state, &self.state.fight) {
            (State::Chained | State::Waiting, Some(_)) => State::Fighting,
            _ => state,
        };
        self.state.message = message;
        // How long a fight lasts changes each second and is no news.
        let told = |state: &Installation| Installation {
            updated: 0,
            fight: state.fight.clone().map(|fight| Fought { seconds: fight.seconds / 10, ..fight }),
            ..state.clone()
        };
        let now_told = told(&self.state);
        if self.said.as_ref() == Some(&now_told) {
            return;
        }
        self.say(&now_told);
        self.state.updated = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Err(e) = self.notes.write_installation(&self.state) {
            log!("cannot write {}: {e}", self.paths.installation().display());
        }
        self.said = Some(now_told);
    }

    fn fought(&self, fight: &sluice_shared::conflist::Fight) -> Fought {
        let directory = self.left.clone().unwrap_or_default().0;
        let types = match directory.primary() {
            Primary::Found(primary) => primary.types,
            _ => Vec::new(),
        };
        let unknown = || "unknown: look for programs that write to the directory".to_owned();
        Fought {
            file: self.state.file.clone().unwrap_or_default(),
            times: fight.times as u64,
            seconds: fight.since.as_secs(),
            suspect: suspect(&directory, &types).unwrap_or_else(unknown),
        }
    }

    fn say(&self, now: &Installation) {
        let before = self.said.as_ref();
        if before.is_none_or(|before| (before.state, &before.message) != (now.state, &now.message)) {
            log!("{}: {}", now.state.as_str(), now.message);
        }
        let fight = |state: &Installation| state.fight.clone().map(|fight| (fight.file, fight.suspect));
        match (before.and_then(fight), fight(now)) {
            (None, Some((file, suspect))) => {
                let times = now.fight.as_ref().map_or(0, |fight| fight.times);
                log!(
                    "{}/{file}: our entry was taken out {times} times within a minute; the writer may be {suspect}; \
                     we write at most once a second",
                    now.directory
                );
            }
            (Some(_), None) => log!("{}: nobody takes our entry out any more", now.directory),
            _ => {}
        }
    }
}
