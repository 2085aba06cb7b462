//! What holds with no agent to ask: what the agent has written down about the mesh, for as long as Sluice is installed
//! on this node. An entry that an uninstall has left behind holds nobody back.

use crate::log::Log;
use nix::time::{ClockId, clock_gettime};
use sluice_shared::contract::MEMBERSHIP_FILE;
use sluice_shared::install::{Holding, LEASE_FILE, Lease, MAX_INSTALL_FILE};
use sluice_shared::membership::{
    Fallback, MAX_MEMBERSHIP_FILE, Membership, with_unreadable_file, without_agent,
};
use std::fs::File;
use std::io::{ErrorKind, Read as _};

/// Where the kernel names this boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Decides for a pod of `namespace` by `<state_dir>/membership.json` and `<state_dir>/lease.json`.
pub fn decide(state_dir: &str, namespace: &str, log: &mut Log) -> Fallback {
    match by_membership(state_dir, namespace, log) {
        Fallback::Wait(because) => match by_lease(state_dir, log) {
            Holding::Held => Fallback::Wait(because),
            Holding::Released => Fallback::Pass("Sluice was uninstalled from this node"),
            Holding::Lapsed(seconds) => {
                log.warn(format_args!(
                    "{state_dir}/{LEASE_FILE} was not renewed for {seconds} s: Sluice is no longer on this node; \
                     `sluice-install remove` takes its entry out of the network configuration"
                ));
                Fallback::Pass("Sluice has been gone from this node for longer than its lease")
            }
        },
        pass => pass,
    }
}

fn by_membership(state_dir: &str, namespace: &str, log: &mut Log) -> Fallback {
    let path = format!("{state_dir}/{MEMBERSHIP_FILE}");
    let why = match read(&path, MAX_MEMBERSHIP_FILE) {
        Ok(None) => return without_agent(None, namespace),
        Ok(Some(bytes)) => match Membership::parse(&bytes) {
            Ok(membership) => return without_agent(Some(&membership), namespace),
            Err(e) => e.to_string(),
        },
        Err(e) => e.to_string(),
    };
    log.warn(format_args!(
        "{path} cannot be read: {why}; pods wait for the agent, which writes it anew when it starts"
    ));
    with_unreadable_file(namespace)
}

/// Whether the agent has written down that `namespace` is outside the mesh.
pub fn is_known_outside(state_dir: &str, namespace: &str) -> bool {
    let Ok(Some(bytes)) = read(&format!("{state_dir}/{MEMBERSHIP_FILE}"), MAX_MEMBERSHIP_FILE) else {
        return false;
    };
    Membership::parse(&bytes).is_ok_and(|membership| membership.is_outside(namespace))
}

/// With no lease there was no installer, which proves nothing; one that cannot be read proves nothing either.
fn by_lease(state_dir: &str, log: &mut Log) -> Holding {
    let path = format!("{state_dir}/{LEASE_FILE}");
    match read(&path, MAX_INSTALL_FILE) {
        Ok(None) => Holding::Held,
        Ok(Some(bytes)) => match (Lease::parse(&bytes), this_boot()) {
            (Some(lease), Some((boot, now))) => lease.holding(&boot, now),
            (Some(lease), None) if lease.released => Holding::Released,
            _ => {
                log.warn(format_args!("{path} cannot be understood; it counts as held"));
                Holding::Held
            }
        },
        Err(e) => {
            log.warn(format_args!("{path} cannot be read: {e}; it counts as held"));
            Holding::Held
        }
    }
}

/// This boot's id, and how many seconds it is old.
fn this_boot() -> Option<(String, u64)> {
    let boot = read(BOOT_ID, MAX_INSTALL_FILE).ok()??;
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    Some((String::from_utf8(boot).ok()?.trim().to_owned(), u64::try_from(now.tv_sec()).ok()?))
}

fn read(path: &str, most: usize) -> std::io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
