//! The seam itself: what a real kernel would be asked.

use super::{Place, RecordingKernel};
use crate::kernel::{Attached, Fingerprint, Kernel, KernelError, Netns, Observation, TcpSocket, Trial};
use sluice_shared::cookie::Cookie;
use sluice_shared::ids::NetnsId;
use sluice_shared::istio::Listing;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{CgroupRef, Flow};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;

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
