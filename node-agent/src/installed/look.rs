//! How the installation stands, as the installer writes it down: read once a second, since a look at two small files
//! costs less than anything that would tell of their change.

use super::course::Course;
use crate::metrics::Metrics;
use crate::status::Sink;
use nix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use sluice_shared::admin::LeaseStatus;
use sluice_shared::ids::{PodRef, PodUid};
use sluice_shared::install::{
    INSTALL_VERSION, INSTALLATION_FILE, Installation, LEASE_FILE, Lease, MAX_INSTALL_FILE,
};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What is known of the installation on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What the installer has written in this boot; `None` when it has not.
    pub installation: Option<Installation>,
    /// The lease; `None` when there is none, or none that is understood.
    pub lease: Option<LeaseStatus>,
}

/// Reads it.
#[derive(Debug)]
pub struct Looker {
    boot: String,
    installation: PathBuf,
    lease: PathBuf,
}

/// Tells whoever is to know.
pub struct Teller {
    /// The agent's own pod, which Events are about.
    pub pod: Option<(PodRef, PodUid)>,
    /// Where Events are said.
    pub status: Sink,
    /// What is counted.
    pub metrics: Metrics,
    /// The newest.
    pub standing: watch::Sender<Standing>,
}

impl Standing {
    /// Whether the plugin is in the chain, as far as the installer knows.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.installation.as_ref().is_some_and(|found| found.state.is_chained())
    }
}

impl Looker {
    /// Looks into the run directory and the state directory.
    ///
    /// # Errors
    /// When it cannot be known which boot this is.
    pub fn new(run_dir: &Path, state_dir: &Path) -> io::Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { boot, installation: run_dir.join(INSTALLATION_FILE), lease: state_dir.join(LEASE_FILE) })
    }

    /// How it stands now.
    #[must_use]
    pub fn look(&self) -> Standing {
        let installation = json::<Installation>(&self.installation)
            .filter(|found| found.version == INSTALL_VERSION && found.boot == self.boot);
        let lease = read(&self.lease).and_then(|bytes| Lease::parse(&bytes));
        let lease = lease.map(|lease| LeaseStatus::of(&lease, &self.boot, now()));
        Standing { installation, lease }
    }
}

impl Teller {
    /// Looks and tells until the agent ends.
    pub async fn run(self, looker: Looker) {
        let mut course = Course::default();
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let standing = looker.look();
            self.metrics.installation(standing.installation.as_ref(), standing.lease.as_ref());
            let said = course.stands(standing.installation.as_ref(), Instant::now());
            if let Some(said) = said {
                let (occasion, what) = &said;
                if occasion.is_warning() {
                    tracing::warn!(what, "{}", occasion.reason());
                } else {
                    tracing::info!(what, "{}", occasion.reason());
                }
                if let Some((pod, uid)) = &self.pod {
                    self.status.remark(pod, uid, said);
                }
            }
            self.standing.send_if_modified(|known| {
                let changed = *known != standing;
                *known = standing;
                changed
            });
        }
    }
}

/// Seconds since this boot began, as the installer counts them.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.ok().and_then(|now| u64::try_from(now.tv_sec()).ok()).unwrap_or(0)
}

fn json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read(path)?).ok()
}

/// No more of it than such a file has.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = MAX_INSTALL_FILE as u64;
    std::fs::File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use sluice_shared::admin::LeaseState;
    use sluice_shared::install::State;

    pub(crate) fn installation(state: State) -> Installation {
        Installation {
            version: INSTALL_VERSION,
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned(),
            state,
            message: format!("it is {}", state.as_str()),
            directory: "/etc/cni/net.d".to_owned(),
            way: None,
            why: String::new(),
            file: None,
            primary: None,
            primary_seen: true,
            writes: 3,
            repairs: 2,
            istio: Vec::new(),
            fight: None,
            updated: 0,
        }
    }

    fn dir() -> (tempfile::TempDir, Looker) {
        let dir = tempfile::tempdir().unwrap();
        let looker = Looker::new(dir.path(), dir.path()).unwrap();
        (dir, looker)
    }

    #[test]
    fn only_what_this_boots_installer_wrote_counts() {
        let (dir, looker) = dir();
        let file = dir.path().join(INSTALLATION_FILE);
        let write = |installation: &Installation| {
            std::fs::write(&file, serde_json::to_vec(installation).unwrap()).unwrap();
        };
        assert_eq!(looker.look(), Standing::default());
        write(&installation(State::Chained));
        assert!(looker.look().is_chained());
        write(&installation(State::Fighting));
        assert!(looker.look().is_chained(), "most of the time it is");
        for state in [State::Waiting, State::Blocked, State::Removed] {
            write(&installation(state));
            assert!(!looker.look().is_chained(), "{state:?}");
        }
        write(&Installation { boot: "another".into(), ..installation(State::Chained) });
        assert_eq!(looker.look(), Standing::default());
        write(&Installation { version: 2, ..installation(State::Chained) });
        assert_eq!(looker.look(), Standing::default());
        for garbage in ["", "{", "[]"] {
            std::fs::write(&file, garbage).unwrap();
            assert_eq!(looker.look(), Standing::default(), "{garbage:?}");
        }
    }

    #[test]
    fn the_lease_has_an_age() {
        let (dir, looker) = dir();
        let write = |lease: &Lease| std::fs::write(dir.path().join(LEASE_FILE), lease.to_bytes()).unwrap();
        let boot = looker.boot.clone();
        let lease = Lease { version: INSTALL_VERSION, boot, renewed: now(), horizon: 3600, released: false };
        write(&lease);
        let seen = looker.look().lease.unwrap();
        assert_eq!((seen.state, seen.horizon_seconds), (LeaseState::Held, 3600));
        assert!(seen.age_seconds < 3600, "{seen:?}");
        write(&Lease { released: true, ..lease.clone() });
        assert_eq!(looker.look().lease.unwrap().state, LeaseState::Released);
        write(&Lease { renewed: 0, horizon: 0, ..lease });
        assert_eq!(looker.look().lease.unwrap().state, LeaseState::Lapsed);
    }
}
