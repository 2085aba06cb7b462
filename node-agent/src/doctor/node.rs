//! /proc, and the files of the installation.

use super::root::Root;
use super::{Options, files};
use crate::dial;
use sluice_shared::doctor::{CgroupTree, Limits, Look, Note, NoteKind, Notes, Trial, Unlooked};
use sluice_shared::istio::PLUGIN_SOCKETS;
use sluice_shared::membership::MAX_MEMBERSHIP_FILE;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const SYSCTLS: [&str; 5] = [
    "net.ipv4.ip_forward",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.all.rp_filter",
];
/// By which traffic of pods comes in beside the default route: OVN-Kubernetes' own.
const MORE_UPLINKS: [&str; 2] = ["ovn-k8s-mp0", "br-ex"];
/// How long a socket of others is waited for.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(1);

/// Sysctls below net are those of whoever reads them, so it must be in the host's network namespace.
pub(super) fn sysctls(root: &Root) -> Look<BTreeMap<String, String>> {
    let how = "run it on the node as root, or in a pod with hostNetwork and the host's /proc";
    let inode = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let host = inode(&root.proc("1/ns/net")).map_err(|error| {
        Unlooked::new(format!("the host's network namespace cannot be seen: {error}"), how)
    })?;
    let own = inode(Path::new("/proc/self/ns/net")).map_err(|error| Unlooked::new(error.to_string(), how))?;
    if host != own {
        return Err(Unlooked::new("this runs in a network namespace that is not the host's", how));
    }
    let named = SYSCTLS.map(|name| (name.to_owned(), format!("sys/{}", name.replace('.', "/"))));
    // Interfaces may have dots in their names.
    let of = |name: String| {
        (format!("net.ipv4.conf.{name}.rp_filter"), format!("sys/net/ipv4/conf/{name}/rp_filter"))
    };
    let all = named.into_iter().chain(uplinks(root)?.into_iter().map(of));
    let mut found = BTreeMap::new();
    for (name, file) in all {
        let file = root.proc(&file);
        match files::proc(&file) {
            Ok(value) => _ = found.insert(name, value.trim().to_owned()),
            // This kernel has not got it, or its module is not there.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(unread(&file, &error)),
        }
    }
    Ok(found)
}

/// The interfaces of default routes (/proc/PID/net/route: `eth0 00000000 0102A8C0 …`), and those of the list.
fn uplinks(root: &Root) -> Look<BTreeSet<String>> {
    let file = root.proc("1/net/route");
    let routes = files::proc(&file).map_err(|error| unread(&file, &error))?;
    let by_default = routes.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let interface = words.next()?;
        (words.next()? == "00000000").then(|| interface.to_owned())
    });
    Ok(by_default.chain(MORE_UPLINKS.map(str::to_owned)).collect())
}

pub(super) fn interfaces(root: &Root) -> Look<BTreeSet<String>> {
    let text =
        files::proc(&root.proc("1/net/dev")).map_err(|error| unread(&root.proc("1/net/dev"), &error))?;
    // Two lines of headings, then `  eth0: 1234 …`.
    Ok(text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}

pub(super) fn cgroup(root: &Root) -> Look<CgroupTree> {
    let file = root.proc("1/mounts");
    let mounts = files::proc(&file).map_err(|error| unread(&file, &error))?;
    let of = |kind: &'static str| {
        mounts.lines().filter_map(move |line| {
            let mut words = line.split(' ').skip(1);
            let place = words.next()?;
            (words.next()? == kind).then(|| place.to_owned())
        })
    };
    let v2: Vec<String> = of("cgroup2").collect();
    let usual = v2.iter().find(|place| place.starts_with("/sys/fs/cgroup")).or(v2.first());
    Ok(match usual {
        None => CgroupTree::Absent,
        Some(place) if of("cgroup").next().is_some() => CgroupTree::Hybrid(place.clone()),
        Some(place) => CgroupTree::Unified(place.clone()),
    })
}

pub(super) fn limits(root: &Root, now: Look<Trial>) -> Look<Limits> {
    let file = root.proc("sys/fs/inotify/max_user_instances");
    let limit = files::proc(&file).map_err(|error| unread(&file, &error))?;
    Ok(Limits { inotify_instances: limit.trim().parse().ok(), inotify_now: now })
}

/// istio-cni's sockets, where somebody answers: a file alone is what a crash leaves.
pub(super) fn traces(root: &Root) -> Vec<String> {
    let sockets: BTreeSet<_> = PLUGIN_SOCKETS.iter().map(|socket| root.of(Path::new(socket))).collect();
    // One who does not accept in time is there all the same.
    let lives = sockets.iter().any(|socket| match dial::unix(socket, ACCEPTED_WITHIN) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::TimedOut,
    });
    if lives { vec![format!("/{}", PLUGIN_SOCKETS[0])] } else { Vec::new() }
}

pub(super) fn notes(options: &Options) -> Look<Notes> {
    let root = &options.root;
    let boot_id = root.proc("sys/kernel/random/boot_id");
    let boot = files::proc(&boot_id).map_err(|error| unread(&boot_id, &error))?;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(|now| now.tv_sec());
    let mut files = Vec::new();
    for kind in
        [NoteKind::Runtime, NoteKind::Intent, NoteKind::Installation, NoteKind::Lease, NoteKind::Membership]
    {
        let directory = match kind {
            NoteKind::Lease | NoteKind::Membership => &options.state_dir,
            NoteKind::Runtime | NoteKind::Intent | NoteKind::Installation => &options.run_dir,
        };
        let path = directory.join(kind.file());
        match files::bytes(&root.of(&path), MAX_MEMBERSHIP_FILE) {
            Ok(bytes) => files.push(Note { kind, path: path.display().to_string(), bytes: Ok(bytes) }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(unread(&path, &error)),
            Err(error) => {
                files.push(Note { kind, path: path.display().to_string(), bytes: Err(error.to_string()) });
            }
        }
    }
    let uptime = now.ok().and_then(|now| u64::try_from(now).ok()).unwrap_or(0);
    Ok(Notes { boot: boot.trim().to_owned(), uptime, files })
}

fn unread(path: &Path, error: &io::Error) -> Unlooked {
    let how = match error.kind() {
        ErrorKind::PermissionDenied => "run it as root, with CAP_SYS_PTRACE in a container",
        _ => "run it on the node, or say where its /proc is with --host-proc",
    };
    Unlooked::new(format!("{}: {error}", path.display()), how)
}
