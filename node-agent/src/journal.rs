//! What one boot remembers, in `/run/sluice`: one file a pod, written so that a restart of the agent finds every pod
//! again, one for the cgroups whose marks are trusted, one for how the host's table looked, and one for where the program is
//! that writes cookies. A tmpfs: a reboot empties it, as it does the namespaces.
//!
//! A file is replaced by rename, so that a reader never sees half of one. What cannot be read is set aside with a
//! warning: the pod is then found again by its next event, never mistaken for another.

use crate::durable;
use crate::kernel::Fingerprint;
use serde::{Deserialize, Serialize};
use sluice_shared::ids::{NetnsId, PodRef, PodUid};
use sluice_shared::plan::CgroupRef;
use sluice_shared::wire::AttachmentId;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The format's version; files of another are set aside.
const VERSION: u32 = 1;

/// Says that no pod from before the first agent is missing.
const COMPLETE: &str = "complete.json";
/// Says where the program for the probe strategy `cookie` is.
const COOKIES: &str = "cookies.json";
/// What the last probe self-test has shown.
const PROBES: &str = "probes.json";

/// How to reach a pod's namespace, as ADD vouched for it, or as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Whose.
    pub uid: PodUid,
    /// By name.
    pub pod: PodRef,
    /// Its service account, once the source has said it: ztunnel finds the workload by it.
    #[serde(default)]
    pub service_account: Option<String>,
    /// The attachment that carries the pod's address, from ADD or from the runtime's word; `None` when it is not known.
    pub attachment: Option<AttachmentId>,
    /// The path that the runtime gave.
    pub path: PathBuf,
    /// Which namespace was there.
    pub netns: NetnsId,
    /// The pod's addresses, from prevResult, or as the source showed them when the sandbox was found.
    pub ips: Vec<IpAddr>,
    /// Whether no ADD was seen for it, and it was found while it ran.
    #[serde(default)]
    pub adopted: bool,
    /// Whether the pod was redirected. Its rules are then looked for after a restart.
    pub redirected: bool,
}

impl Sandbox {
    /// Whether somebody other than the source says that it is the pod's.
    #[must_use]
    pub fn is_vouched_for(&self) -> bool {
        self.attachment.is_some() || self.adopted
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    body: T,
}

#[derive(Serialize, Deserialize)]
struct Guard {
    cgroups: BTreeSet<CgroupRef>,
}

#[derive(Serialize, Deserialize)]
struct HostTable {
    fingerprint: u64,
}

#[derive(Serialize, Deserialize)]
struct CookieProgram {
    kubelet: CgroupRef,
}

/// What the last probe self-test of this boot has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestedProbes {
    /// The strategy that was in use after it.
    pub chosen: String,
    /// What it has shown of that.
    pub verdict: String,
    /// Whether it might have chosen another, and not the configuration alone.
    #[serde(default)]
    pub by_test: bool,
}

/// The directory of these files.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
}

impl Journal {
    /// Uses `<run_dir>/pods` and `<run_dir>/guard.json`, made with mode 0700 if missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        durable::private_dir(&run_dir.join("pods"))?;
        Ok(Self { dir: run_dir.to_owned() })
    }

    /// Remembers a pod.
    ///
    /// # Errors
    /// When the file cannot be written; the pod is then not found again after a restart.
    pub fn remember(&self, sandbox: &Sandbox) -> io::Result<()> {
        durable::replace(&self.pod_file(&sandbox.uid), &encode(sandbox)?, durable::Sync::No)
    }

    /// Forgets a pod; one that is not there is no error.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn forget(&self, uid: &PodUid) -> io::Result<()> {
        match std::fs::remove_file(self.pod_file(uid)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Every pod that this boot has seen.
    ///
    /// # Errors
    /// When the directory cannot be read. A file in it that cannot is set aside as `<name>.bad`, with a warning.
    pub fn pods(&self) -> io::Result<Vec<Sandbox>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("pods"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match decode::<Sandbox>(&path) {
                Ok(sandbox) if self.pod_file(&sandbox.uid) == path => found.push(sandbox),
                Ok(sandbox) => set_aside(&path, &format!("it is about another pod, {}", sandbox.uid)),
                Err(e) => set_aside(&path, &e.to_string()),
            }
        }
        Ok(found)
    }

    /// Whether every pod that ran when this boot's first agent came has been looked at: then it is here, or outside.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.dir.join(COMPLETE).exists()
    }

    /// Notes that.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn complete(&self) -> io::Result<()> {
        durable::replace(&self.dir.join(COMPLETE), b"{}\n", durable::Sync::No)
    }

    /// Remembers whose marks are trusted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_guard(&self, cgroups: &BTreeSet<CgroupRef>) -> io::Result<()> {
        let guard = Guard { cgroups: cgroups.clone() };
        durable::replace(&self.dir.join("guard.json"), &encode(&guard)?, durable::Sync::No)
    }

    /// Whose marks were trusted; nobody's if that is not known.
    #[must_use]
    pub fn guard(&self) -> BTreeSet<CgroupRef> {
        let path = self.dir.join("guard.json");
        match decode::<Guard>(&path) {
            Ok(guard) => guard.cgroups,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(e) => {
                set_aside(&path, &e.to_string());
                BTreeSet::new()
            }
        }
    }

    /// Remembers how the host's table looked when it was last written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_host_table(&self, fingerprint: Fingerprint) -> io::Result<()> {
        let table = HostTable { fingerprint: fingerprint.0 };
        durable::replace(&self.dir.join("host-table.json"), &encode(&table)?, durable::Sync::No)
    }

    /// How the host's table looked when it was last written, if that is known.
    #[must_use]
    pub fn host_table(&self) -> Option<Fingerprint> {
        let path = self.dir.join("host-table.json");
        match decode::<HostTable>(&path) {
            Ok(table) => Some(Fingerprint(table.fingerprint)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                set_aside(&path, &e.to_string());
                None
            }
        }
    }

    /// Remembers which cgroup has the program that writes cookies.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_cookies(&self, kubelet: &CgroupRef) -> io::Result<()> {
        let cookies = CookieProgram { kubelet: kubelet.clone() };
        durable::replace(&self.dir.join(COOKIES), &encode(&cookies)?, durable::Sync::No)
    }

    /// Which cgroup has the program that writes cookies, if one has.
    #[must_use]
    pub fn cookies(&self) -> Option<CgroupRef> {
        let path = self.dir.join(COOKIES);
        match decode::<CookieProgram>(&path) {
            Ok(cookies) => Some(cookies.kubelet),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                set_aside(&path, &e.to_string());
                None
            }
        }
    }

    /// No cgroup has it any more.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn forget_cookies(&self) -> io::Result<()> {
        match std::fs::remove_file(self.dir.join(COOKIES)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Remembers what a probe self-test has shown.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_probes(&self, tested: &TestedProbes) -> io::Result<()> {
        durable::replace(&self.dir.join(PROBES), &encode(tested)?, durable::Sync::No)
    }

    /// What the last probe self-test has shown, if that is known.
    #[must_use]
    pub fn probes(&self) -> Option<TestedProbes> {
        let path = self.dir.join(PROBES);
        match decode::<TestedProbes>(&path) {
            Ok(tested) => Some(tested),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                set_aside(&path, &e.to_string());
                None
            }
        }
    }

    fn pod_file(&self, uid: &PodUid) -> PathBuf {
        self.dir.join("pods").join(format!("{uid}.json"))
    }
}

fn encode(body: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Versioned { version: VERSION, body })?)
}

fn decode<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    let versioned: Versioned<T> = serde_json::from_slice(&std::fs::read(path)?)?;
    if versioned.version == VERSION {
        Ok(versioned.body)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("version {} is not {VERSION}", versioned.version),
        ))
    }
}

fn set_aside(path: &Path, why: &str) {
    tracing::warn!(path = %path.display(), why, "journal file cannot be used; set aside as .bad");
    let _ = std::fs::rename(path, path.with_extension("bad"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(uid: &str) -> Sandbox {
        Sandbox {
            uid: PodUid::new(uid).unwrap(),
            pod: PodRef::new("demo", "a"),
            service_account: Some("sa".into()),
            attachment: Some(AttachmentId { container_id: "c1".into(), ifname: "eth0".into() }),
            path: "/run/netns/a".into(),
            netns: NetnsId { dev: 4, inode: 4026532000 },
            ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            adopted: false,
            redirected: true,
        }
    }

    #[test]
    fn what_is_remembered_is_found_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.remember(&sandbox("u1")).unwrap();
        journal.remember(&Sandbox { redirected: false, ..sandbox("u1") }).unwrap();
        assert_eq!(journal.pods().unwrap(), [Sandbox { redirected: false, ..sandbox("u1") }]);
        journal.forget(&sandbox("u1").uid).unwrap();
        journal.forget(&sandbox("u1").uid).unwrap();
        assert!(journal.pods().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.remember(&sandbox("u1")).unwrap();
        let pods = dir.path().join("pods");
        std::fs::write(pods.join("half.json"), b"{\"version\":1,").unwrap();
        std::fs::write(pods.join("later.json"), b"{\"version\":9}").unwrap();
        std::fs::copy(pods.join("u1.json"), pods.join("u2.json")).unwrap();
        assert_eq!(journal.pods().unwrap(), [sandbox("u1")]);
        for name in ["half.bad", "later.bad", "u2.bad"] {
            assert!(pods.join(name).exists(), "{name}");
        }
    }

    #[test]
    fn the_guard_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert!(journal.guard().is_empty());
        let cgroups = BTreeSet::from([CgroupRef { level: 2, id: 7, path: "kubepods/z".into() }]);
        journal.remember_guard(&cgroups).unwrap();
        assert_eq!(journal.guard(), cgroups);
    }
}
