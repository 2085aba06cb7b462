//! A kernel that remembers what it was asked to do, for tests of whatever sits above the seam.
//!
//! Unless told otherwise it behaves like a kernel in which everything works: what was installed last is what an
//! observation shows, and the ops of [`Step::Remove`] leave nothing behind.

use super::{Attached, Fingerprint, Kernel, KernelError, Netns, Observation, TcpSocket, Trial};
use sluice_shared::cookie::Cookie;
use sluice_shared::host::{self, HostStep};
use sluice_shared::ids::NetnsId;
use sluice_shared::istio::{Listing, Table};
use sluice_shared::lower::{Backend, Step, lower};
use sluice_shared::nft;
use sluice_shared::op::{KernelOp, Presence};
use sluice_shared::plan::{CgroupRef, Flow};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
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

#[derive(Clone, Default)]
struct Content {
    rules: Option<Fingerprint>,
    written_by: BTreeSet<Backend>,
    generation: u32,
    policy_rule: bool,
    local_route: bool,
    loopback_down: bool,
    listening: BTreeSet<u16>,
    foreign_nat: Vec<String>,
    sockets: Vec<TcpSocket>,
    kept: BTreeSet<Flow>,
    addresses: Vec<IpAddr>,
    istio: Listing,
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

impl Content {
    fn lose(&mut self, backend: Backend) {
        self.written_by.remove(&backend);
        if self.written_by.is_empty() {
            self.rules = None;
        }
    }

    fn carry_out(&mut self, op: &KernelOp) {
        let mut hasher = DefaultHasher::new();
        match op {
            KernelOp::PolicyRule(_, presence) => self.policy_rule = *presence == Presence::Present,
            KernelOp::LocalRoute(_, presence) => {
                self.local_route = *presence == Presence::Present;
                // A local route needs `lo`, so it is brought up for it.
                self.loopback_down &= !self.local_route;
            }
            KernelOp::LoopbackUp
            | KernelOp::FlushConntrack
            | KernelOp::ForgetDirect
            | KernelOp::RememberHalfClosed(_) => {}
            KernelOp::ClearIptables => self.lose(Backend::Iptables),
            KernelOp::NftBatch(batch) => batch.bytes.hash(&mut hasher),
            KernelOp::IptablesRestore(script) => script.text.hash(&mut hasher),
            KernelOp::LegacyWithout { family, table, chains } => {
                let table = Table::Legacy(*family, table.clone());
                self.istio.chains.retain(|chain| chain.table != table || !chains.contains(&chain.name));
            }
            KernelOp::DestroyIpset(name) => _ = self.istio.ipsets.remove(name),
        }
        if let KernelOp::NftBatch(batch) = op
            && batch.labels.iter().any(|label| label.starts_with("delete istio-cni's"))
        {
            self.istio.chains.retain(|chain| matches!(chain.table, Table::Legacy(..)));
            if !batch.labels.iter().any(|label| label.starts_with("add table")) {
                return;
            }
        }
        if matches!(op, KernelOp::NftBatch(_) | KernelOp::IptablesRestore(_)) {
            self.rules = Some(Fingerprint(hasher.finish()));
            self.generation += 1;
            let wrote =
                if matches!(op, KernelOp::NftBatch(_)) { Backend::Nftables } else { Backend::Iptables };
            self.written_by.insert(wrote);
            if *op == KernelOp::NftBatch(nft::remove()) {
                self.lose(Backend::Nftables);
            }
        }
    }
}

fn removes(ops: &[KernelOp]) -> bool {
    !ops.is_empty()
        && [Backend::Nftables, Backend::Iptables].into_iter().any(|backend| {
            lower(backend, Step::Remove) == ops || host::lower(backend, HostStep::Remove) == ops
        })
}

impl Kernel for RecordingKernel {
    fn open(&self, path: &Path) -> Result<Netns, KernelError> {
        let id = self.lock().paths.get(path).copied();
        id.map(|id| self.handle(id)).ok_or_else(|| KernelError::NotANetns {
            what: path.display().to_string(),
            why: "no such file or directory".into(),
        })
    }

    /// Takes any descriptor: its own device and inode are the namespace's identity.
    fn adopt(&self, fd: OwnedFd) -> Result<Netns, KernelError> {
        let stat = nix::sys::stat::fstat(&fd).map_err(|errno| KernelError::NotANetns {
            what: "the descriptor".into(),
            why: errno.desc().into(),
        })?;
        Ok(Netns::new(fd, NetnsId { dev: stat.st_dev, inode: stat.st_ino }))
    }

    fn run(&self, netns: &Netns, ops: &[KernelOp]) -> Result<(), KernelError> {
        self.carry_out(Place::Pod(netns.id()), ops)
    }

    fn run_host(&self, ops: &[KernelOp]) -> Result<(), KernelError> {
        self.carry_out(Place::Host, ops)
    }

    fn write_host(&self, ops: &[KernelOp]) -> Result<Option<Fingerprint>, KernelError> {
        self.carry_out(Place::Host, ops)?;
        let mut state = self.lock();
        if state.overtaken > 0 {
            state.overtaken -= 1;
            drop(state);
            self.tamper_rules(Place::Host, Some(Fingerprint(1)));
            return Ok(None);
        }
        drop(state);
        self.observe_host()
    }

    fn amend_host(&self, before: Fingerprint, ops: &[KernelOp]) -> Result<Option<Fingerprint>, KernelError> {
        if self.observe_host()? != Some(before) {
            return Ok(None);
        }
        if ops.is_empty() {
            return Ok(Some(before));
        }
        self.carry_out(Place::Host, ops)?;
        self.observe_host()
    }

    fn observe(&self, netns: &Netns) -> Result<Observation, KernelError> {
        let content = self.content(netns);
        Ok(Observation {
            rules: content.rules,
            written_by: content.written_by,
            generation: content.generation,
            policy_rule: content.policy_rule,
            local_route: content.local_route,
            loopback: !content.loopback_down,
            listening: content.listening,
            foreign_nat: content.foreign_nat,
        })
    }

    fn observe_since(&self, netns: &Netns, _: &Observation) -> Result<Observation, KernelError> {
        self.observe(netns)
    }

    fn observe_host(&self) -> Result<Option<Fingerprint>, KernelError> {
        Ok(self.lock().places.get(&Place::Host).and_then(|content| content.rules))
    }

    fn sockets(&self, netns: &Netns) -> Result<Vec<TcpSocket>, KernelError> {
        Ok(self.content(netns).sockets)
    }

    fn kept_flows(&self, netns: &Netns) -> Result<BTreeSet<Flow>, KernelError> {
        Ok(self.content(netns).kept)
    }

    fn istio(&self, netns: &Netns) -> Result<Listing, KernelError> {
        Ok(self.content(netns).istio)
    }

    fn istio_on_host(&self) -> Result<Listing, KernelError> {
        Ok(self.lock().places.get(&Place::Host).map(|content| content.istio.clone()).unwrap_or_default())
    }

    fn addresses(&self, netns: &Netns) -> Result<Vec<IpAddr>, KernelError> {
        Ok(self.content(netns).addresses)
    }

    fn host_source_for(&self, pod_ip: IpAddr) -> Result<IpAddr, KernelError> {
        let known = self.lock().host_sources.get(&pod_ip).copied();
        Ok(known.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))))
    }

    /// Process 7 lives in `/proc-7`.
    fn cgroup_of(&self, pid: i32) -> Result<CgroupRef, KernelError> {
        self.cgroup_at(&format!("proc-{pid}"))
    }

    /// Every path is there; its id is made from its name.
    fn cgroup_at(&self, path: &str) -> Result<CgroupRef, KernelError> {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        Ok(CgroupRef { level: path.split('/').count() as u32, id: hasher.finish(), path: path.into() })
    }

    /// Cookies outlive the kernel's users, as a map that is attached does.
    fn attach_cookies(&self, kubelet: &CgroupRef) -> Result<Attached, KernelError> {
        let before = self.bpf()?.kubelet.replace(kubelet.clone());
        Ok(if before.as_ref() == Some(kubelet) { Attached::AsItWas } else { Attached::Anew })
    }

    fn detach_cookies(&self, kubelet: &CgroupRef) -> Result<bool, KernelError> {
        let mut state = self.bpf()?;
        let there = state.kubelet.take_if(|on| on == kubelet).is_some();
        if there {
            state.cookies.clear();
        }
        Ok(there)
    }

    fn cookies(&self) -> Result<BTreeMap<IpAddr, Cookie>, KernelError> {
        Ok(self.bpf()?.cookies.clone())
    }

    fn give_cookie(&self, to: IpAddr, cookie: Option<Cookie>) -> Result<(), KernelError> {
        let mut state = self.bpf()?;
        match cookie {
            Some(cookie) => _ = state.cookies.insert(to, cookie),
            None => _ = state.cookies.remove(&to),
        }
        Ok(())
    }

    /// 1, 2, 3, …
    fn new_cookie(&self) -> Result<Cookie, KernelError> {
        let mut state = self.lock();
        state.made_cookies += 1;
        Ok(Cookie::new(state.made_cookies.to_be_bytes()))
    }

    /// There are no packets here to try anything with.
    fn trial(&self, _: &Netns, address: IpAddr) -> Result<Trial, KernelError> {
        Err(KernelError::Gone(format!("no connection to {address} can be made in a fake")))
    }

    fn carry_cookies(&self, _: &[(IpAddr, Cookie)]) -> Result<Box<dyn Send>, KernelError> {
        drop(self.bpf()?);
        Ok(Box::new(()))
    }

    fn host_addresses(&self) -> Result<BTreeSet<IpAddr>, KernelError> {
        Ok(self.lock().host_sources.values().copied().collect())
    }
}
