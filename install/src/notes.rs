//! The small files by which installer, agent and plugin tell each other things (`shared::install`).

use crate::disk::{Attributes, Disk};
use crate::options::Paths;
use crate::write::{is_of_a_write, no_room, put};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_shared::conflist::{Runtime, Way};
use sluice_shared::contract::MEMBERSHIP_FILE;
use sluice_shared::install::{
    Chaining, INSTALL_VERSION, Installation, Intent, LEASE_LENGTH, Lease, MAX_INSTALL_FILE, PredecessorNote,
    State,
};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PRIVATE: Attributes = Attributes { mode: 0o600, owner: (0, 0), label: None };

/// This boot, and the time in it.
#[derive(Clone, Debug)]
pub struct Clock {
    /// The kernel's id of this boot.
    pub boot: String,
}

impl Clock {
    /// Reads which boot this is.
    pub fn read(disk: &impl Disk) -> io::Result<Self> {
        let boot = disk.read(Path::new("/proc/sys/kernel/random/boot_id"), MAX_INSTALL_FILE)?;
        Ok(Self { boot: String::from_utf8_lossy(&boot).trim().to_owned() })
    }

    /// Seconds since this boot began.
    pub fn seconds(&self) -> u64 {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        now.ok().and_then(|now| u64::try_from(now.tv_sec()).ok()).unwrap_or(0)
    }

    /// When this boot began, in seconds since 1970.
    fn began(&self) -> u64 {
        let began = SystemTime::now().checked_sub(Duration::from_secs(self.seconds()));
        began.and_then(|began| began.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
    }
}

/// The notes of one node.
#[derive(Debug)]
pub struct Notes<'a, D> {
    pub disk: &'a D,
    pub paths: &'a Paths,
}

impl<D: Disk> Notes<'_, D> {
    /// The state that an installer of this boot has left, for the next one in the same container.
    pub fn installation(&self, boot: &str) -> Option<Installation> {
        self.last_installation().filter(|found| found.boot == boot)
    }

    /// The same for a command on the node, which may have another name of this boot than the container (LXC, see
    /// [`Lease::age`]): what was written since the boot began is of this boot.
    pub fn installation_here(&self, clock: &Clock) -> Option<Installation> {
        self.last_installation().filter(|found| found.boot == clock.boot || found.updated >= clock.began())
    }

    /// The state that an installer has left, whenever that was.
    pub fn last_installation(&self) -> Option<Installation> {
        let found: Installation = self.json(&self.paths.installation())?;
        (found.version == INSTALL_VERSION).then_some(found)
    }

    /// That an earlier installer has removed everything says nothing about this one, which counts from nothing.
    pub fn forget_removal(&self) -> io::Result<()> {
        match self.last_installation() {
            Some(found) if found.state == State::Removed => self.remove(&self.paths.installation()),
            _ => Ok(()),
        }
    }

    /// Writes the state down, for the agent and for `status`.
    pub fn write_installation(&self, state: &Installation) -> io::Result<()> {
        self.write(&self.paths.installation(), state)
    }

    /// Corrects what an installer has left, which is gone like everything else. Where none has run, nothing is written.
    pub fn note_removal(&self) -> io::Result<()> {
        let Some(left) = self.last_installation() else { return Ok(()) };
        match self.write_installation(&left.removed()) {
            Err(e) if no_room(&e) => self.remove(&self.paths.installation()),
            written => written,
        }
    }

    /// The runtime that the agent has found.
    pub fn runtime(&self) -> Option<Runtime> {
        self.json(&self.paths.runtime())
    }

    /// Whether the agent has seen that no istio-cni is here any more.
    pub fn istio_is_gone(&self) -> bool {
        let note: Option<PredecessorNote> = self.json(&self.paths.predecessor());
        note.is_some_and(|note| note.version == INSTALL_VERSION && note.gone)
    }

    /// What shall become of the installation.
    pub fn intent(&self) -> Option<Intent> {
        Intent::parse(&self.disk.read(&self.paths.intent(), MAX_INSTALL_FILE).ok()?)
    }

    pub fn write_intent(&self, intent: &Intent) -> io::Result<()> {
        self.write(&self.paths.intent(), intent)
    }

    /// An intent that was about an earlier installer says nothing about this one.
    pub fn forget_intent(&self) -> io::Result<()> {
        self.remove(&self.paths.intent())
    }

    /// Whether our entry is in the chain, or was about to be.
    pub fn chaining(&self) -> Option<Way> {
        let chaining: Chaining = self.json(&self.paths.chaining())?;
        (chaining.version == INSTALL_VERSION).then_some(chaining.way)
    }

    pub fn write_chaining(&self, way: Way) -> io::Result<()> {
        self.write(&self.paths.chaining(), &Chaining { version: INSTALL_VERSION, way })
    }

    /// Renews the lease, or gives it up. A file that is there is written over in one go, which needs no room.
    pub fn write_lease(&self, clock: &Clock, horizon: u64, released: bool) -> io::Result<()> {
        let (boot, renewed) = (clock.boot.clone(), clock.seconds());
        let bytes = Lease { version: INSTALL_VERSION, boot, renewed, horizon, released }.to_bytes();
        let path = self.paths.lease();
        match self.disk.stamp(&path) {
            Ok(stamp) if stamp.size == LEASE_LENGTH as u64 && bytes.len() == LEASE_LENGTH => {
                self.disk.overwrite(&path, None, 0, &bytes, LEASE_LENGTH as u64).map(drop)
            }
            _ => put(self.disk, &path, &bytes, &PRIVATE),
        }
    }

    /// The lease of this node.
    pub fn lease(&self) -> Option<Lease> {
        Lease::parse(&self.disk.read(&self.paths.lease(), MAX_INSTALL_FILE).ok()?)
    }

    /// Gives the lease up: from now on the plugin holds nobody back. Without a membership file it does not anyway.
    pub fn release(&self, clock: &Clock) -> io::Result<()> {
        match self.write_lease(clock, 0, true) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            // There is no lease, and no room for one: then what closes pods goes instead.
            Err(e) if no_room(&e) => self.remove(&self.membership()),
            result => result,
        }
    }

    /// Removes what survives a reboot, and what writes of notes have left that a crash broke off. The lease goes last:
    /// while it is there, given up, nobody is held back.
    pub fn remove_all(&self) -> io::Result<()> {
        self.sweep(&self.paths.run_dir)?;
        self.sweep(&self.paths.host_state_dir)?;
        self.remove(&self.paths.chaining())?;
        self.remove(&self.membership())?;
        self.remove(&self.paths.lease())
    }

    fn sweep(&self, dir: &Path) -> io::Result<()> {
        let names = match self.disk.names(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        names
            .iter()
            .filter(|(name, _)| is_of_a_write(name))
            .try_for_each(|(name, _)| self.remove(&dir.join(name)))
    }

    fn membership(&self) -> std::path::PathBuf {
        self.paths.host_state_dir.join(MEMBERSHIP_FILE)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn json<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        serde_json::from_slice(&self.disk.read(path, MAX_INSTALL_FILE).ok()?).ok()
    }

    fn write(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        put(self.disk, path, &serde_json::to_vec(value)?, &PRIVATE)
    }
}
