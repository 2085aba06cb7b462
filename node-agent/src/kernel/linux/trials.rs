//! A pod's whole plan, tried on this kernel: what `sluicectl doctor` reports, backend by backend.

use super::netns::OWN_NETNS;
use super::scratch::scratch;
use super::{LinuxKernel, carry_out, cgroup};
use crate::kernel::{HostProc, KernelError};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::utsname::uname;
use sluice_shared::contract::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use sluice_shared::doctor::{KernelTrials, Look, Trial, Unlooked};
use sluice_shared::enroll::Overrides;
use sluice_shared::lower::Backend;
use sluice_shared::op::KernelOp;
use sluice_shared::plan::{self, Hold, MarkGuard, Older, ProbeDoor, RedirectConfig, RedirectPlan, Stage};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// `IPV6_TRANSPARENT` (include/uapi/linux/in6.h)
const IPV6_TRANSPARENT: libc::c_int = 75;

/// Tries everything. What cannot be tried for want of rights is no fault of the kernel's.
pub(in crate::kernel) fn run(proc: &HostProc) -> Look<KernelTrials> {
    let failed = |error: KernelError| {
        let how = "run it as root with CAP_SYS_ADMIN and CAP_NET_ADMIN: on the node, in the container agent, or with kubectl debug \
                   --profile=sysadmin";
        Unlooked::new(error.to_string(), how)
    };
    let kernel = LinuxKernel::new(Path::new(OWN_NETNS)).map_err(failed)?.with_host_proc(proc.clone());
    // Whoever may do nothing in a namespace of its own would hear a refusal of everything.
    scratch(|| carry_out(&[KernelOp::LoopbackUp], kernel.means(None))).map_err(failed)?;
    let nftables = by(&kernel, Backend::Nftables, &plan(true));
    let nftables_v4 = nftables.is_err().then(|| by(&kernel, Backend::Nftables, &plan(false)));
    // Programs are run for it: only where they are needed.
    let iptables = match &nftables {
        Ok(()) => Err("not tried: nftables works".to_owned()),
        Err(_) => by(&kernel, Backend::Iptables, &plan(true)),
    };
    let (backend, ipv6) = match (&nftables, &iptables, &nftables_v4) {
        (Ok(()), ..) => (Backend::Nftables, true),
        (Err(_), Err(_), Some(Ok(()))) => (Backend::Nftables, false),
        (Err(_), ..) => (Backend::Iptables, true),
    };
    let mark_guard = guard(&kernel, proc, backend, &plan(ipv6));
    Ok(KernelTrials {
        release: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        nftables,
        iptables,
        nftables_v4,
        mark_guard,
        transparent_v4: transparent(AddressFamily::Inet, libc::SOL_IP, libc::IP_TRANSPARENT),
        transparent_v6: transparent(AddressFamily::Inet6, libc::SOL_IPV6, IPV6_TRANSPARENT),
    })
}

/// What the agent asks of a kernel with its default configuration.
fn plan(ipv6: bool) -> RedirectPlan {
    plan::redirect(
        &Overrides::default(),
        &RedirectConfig { dns_capture: true, ipv6 },
        Stage::Redirect(Older::AnyMidStream),
        ProbeDoor::Snat { v4: PROBE_SOURCE_V4, v6: PROBE_SOURCE_V6 },
        MarkGuard::Off,
        Hold::Drop,
    )
}

fn by(kernel: &LinuxKernel, backend: Backend, plan: &RedirectPlan) -> Trial {
    match kernel.probe_backends(plan, Some(backend)) {
        Ok(_) => Ok(()),
        // The outer error only says that there was one.
        Err(KernelError::Call { detail, .. }) if !detail.is_empty() => Err(detail),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether rules find sockets by their cgroup. That this process cannot name its own says nothing of the rules.
fn guard(kernel: &LinuxKernel, proc: &HostProc, backend: Backend, plan: &RedirectPlan) -> Look<Trial> {
    scratch(|| cgroup::own(proc).map(drop)).map_err(|error| {
        let how = "run it on the node, or with the host's /proc and its /sys/fs/cgroup as the agent's container has them";
        Unlooked::new(error.to_string(), how)
    })?;
    Ok(kernel.guard_works(backend, plan).map_err(|error| error.to_string()))
}

/// Makes a socket transparent, in a namespace of its own.
fn transparent(family: AddressFamily, level: libc::c_int, option: libc::c_int) -> Trial {
    let words = |error: io::Error| error.to_string();
    let tried = scratch(|| {
        Ok(match socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
            Ok(socket) => set(&socket, level, option),
            Err(errno) => Err(errno.into()),
        })
    });
    tried.map_err(|error| error.to_string())?.map_err(words)
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    #[expect(unsafe_code, reason = "no crate that we have knows this option of IPv6")]
    // SAFETY: the kernel reads one int at this address, which lives until the call is over.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(&on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
