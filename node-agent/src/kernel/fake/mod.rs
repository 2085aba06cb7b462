//! A kernel that remembers what it was asked to do, for tests of whatever sits above the seam.
//!
//! Unless told otherwise it behaves like a kernel in which everything works: what was installed last is what an
//! observation shows, and the ops of [`Step::Remove`] leave nothing behind.

mod content;
mod seam;

use super::{Fingerprint, KernelError, Netns, TcpSocket};
use content::{Content, removes};
use sluice_shared::cookie::Cookie;
use sluice_shared::ids::NetnsId;
use sluice_shared::istio::Listing;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{CgroupRef, Flow};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where ops were carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// In a pod's namespace.
    Pod(NetnsId),
    /// In the host's namespace.
    Host,
}

/// A [`Kernel`] without a kernel. Clones share their state.
#[derive(Clone, Default)]
pub struct RecordingKernel {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    log: Vec<(Place, Vec<KernelOp>)>,
    failures: VecDeque<(Place, i32)>,
    delay: Duration,
    overtaken: usize,
    paths: HashMap<PathBuf, NetnsId>,
    places: BTreeMap<Place, Content>,
    host_sources: HashMap<IpAddr, IpAddr>,
    next_inode: u64,
    kubelet: Option<CgroupRef>,
    cookies: BTreeMap<IpAddr, Cookie>,
    made_cookies: u64,
    refuses_bpf: bool,
}

impl RecordingKernel {
    /// A new namespace with a handle on it.
    #[must_use]
    pub fn netns(&self) -> Netns {
        let id = self.new_id();
        self.handle(id)
    }

    /// Makes a namespace that [`Kernel::open`] finds at `path`.
    pub fn netns_at(&self, path: impl Into<PathBuf>) -> NetnsId {
        let id = self.new_id();
        self.lock().paths.insert(path.into(), id);
        id
    }

    /// Lets [`Kernel::open`] find a namespace of this identity at `path`.
    pub fn put(&self, path: impl Into<PathBuf>, id: NetnsId) {
        self.lock().paths.insert(path.into(), id);
    }

    /// What was carried out so far, failed calls included, in order.
    #[must_use]
    pub fn log(&self) -> Vec<(Place, Vec<KernelOp>)> {
        self.lock().log.clone()
    }

    /// As [`Self::log`], which is empty afterwards.
    #[must_use]
    pub fn take_log(&self) -> Vec<(Place, Vec<KernelOp>)> {
        std::mem::take(&mut self.lock().log)
    }

    /// Lets the next `run` there fail with `errno`, with no effect. May be said several times, for several runs.
    pub fn fail_next(&self, place: Place, errno: i32) {
        self.lock().failures.push_back((place, errno));
    }

    /// Somebody changes the host's rules during the next so many writes of the whole table.
    pub fn overtake_writes(&self, count: usize) {
        self.lock().overtaken = count;
    }

    /// Lets every `run` take this long.
    pub fn set_delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Somebody changes our rules behind our back, or takes them away (`None`).
    pub fn tamper_rules(&self, place: Place, rules: Option<Fingerprint>) {
        self.with(place, |content| {
            content.rules = rules;
            content.generation += 1;
        });
    }

    /// Somebody takes the policy rule and the local route away.
    pub fn tamper_routing(&self, id: NetnsId) {
        self.with(Place::Pod(id), |content| {
            content.policy_rule = false;
            content.local_route = false;
        });
    }

    /// The runtime begins to take a sandbox down: `lo` is down, and the local route is gone with it.
    pub fn take_loopback_down(&self, id: NetnsId) {
        self.with(Place::Pod(id), |content| {
            content.loopback_down = true;
            content.local_route = false;
        });
    }

    /// The ports on which ztunnel listens there.
    pub fn set_listening(&self, id: NetnsId, ports: impl IntoIterator<Item = u16>) {
        let ports = ports.into_iter().collect();
        self.with(Place::Pod(id), |content| content.listening = ports);
    }

    /// Foreign tables that translate addresses there.
    pub fn set_foreign_nat(&self, id: NetnsId, tables: Vec<String>) {
        self.with(Place::Pod(id), |content| content.foreign_nat = tables);
    }

    /// The TCP sockets that are there.
    pub fn set_sockets(&self, id: NetnsId, sockets: Vec<TcpSocket>) {
        self.with(Place::Pod(id), |content| content.sockets = sockets);
    }

    /// What could be istio-cni's there.
    pub fn set_istio(&self, place: Place, listing: Listing) {
        self.with(place, |content| content.istio = listing);
    }

    /// The connections that the rules in force keep.
    pub fn set_kept(&self, id: NetnsId, kept: BTreeSet<Flow>) {
        self.with(Place::Pod(id), |content| content.kept = kept);
    }

    /// The addresses of the namespace's interfaces.
    pub fn set_addresses(&self, id: NetnsId, addresses: Vec<IpAddr>) {
        self.with(Place::Pod(id), |content| content.addresses = addresses);
    }

    /// From which address the host reaches a pod.
    pub fn set_host_source(&self, pod_ip: IpAddr, source: IpAddr) {
        self.lock().host_sources.insert(pod_ip, source);
    }

    /// The cgroup that the program for cookies is on.
    #[must_use]
    pub fn cookies_on(&self) -> Option<CgroupRef> {
        self.lock().kubelet.clone()
    }

    /// Somebody takes the program off, or the cgroup goes.
    pub fn lose_cookie_program(&self) {
        self.lock().kubelet = None;
    }

    /// Whether everything about BPF fails with EPERM.
    pub fn refuse_bpf(&self, refuse: bool) {
        self.lock().refuses_bpf = refuse;
    }

    fn bpf(&self) -> Result<MutexGuard<'_, State>, KernelError> {
        let state = self.lock();
        match state.refuses_bpf {
            false => Ok(state),
            true => Err(KernelError::Call {
                call: "load the program".into(),
                source: io::Error::from_raw_os_error(libc::EPERM),
                detail: "scripted".into(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_id(&self) -> NetnsId {
        let mut state = self.lock();
        state.next_inode += 1;
        NetnsId { dev: 4, inode: 4_026_532_000 + state.next_inode }
    }

    #[expect(clippy::unwrap_used, reason = "a fake for tests: /dev/null is always there")]
    fn handle(&self, id: NetnsId) -> Netns {
        Netns::new(std::fs::File::open("/dev/null").unwrap().into(), id)
    }

    fn with(&self, place: Place, change: impl FnOnce(&mut Content)) {
        change(self.lock().places.entry(place).or_default());
    }

    fn content(&self, netns: &Netns) -> Content {
        self.lock().places.get(&Place::Pod(netns.id())).cloned().unwrap_or_default()
    }

    fn carry_out(&self, place: Place, ops: &[KernelOp]) -> Result<(), KernelError> {
        let delay = self.lock().delay;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let mut state = self.lock();
        state.log.push((place, ops.to_vec()));
        if let Some(index) = state.failures.iter().position(|(failing, _)| *failing == place) {
            let errno = state.failures.remove(index).map_or(0, |(_, errno)| errno);
            return Err(KernelError::Call {
                call: format!("run {} ops in {place:?}", ops.len()),
                source: io::Error::from_raw_os_error(errno),
                detail: "scripted".into(),
            });
        }
        let content = state.places.entry(place).or_default();
        for op in ops {
            content.carry_out(op);
        }
        if removes(ops) {
            content.rules = None;
            content.written_by.clear();
        }
        Ok(())
    }
}
