//! What holds with no agent to ask: what the agent has written down about the mesh.

use crate::log::Log;
use sluice_shared::contract::MEMBERSHIP_FILE;
use sluice_shared::membership::{
    Fallback, MAX_MEMBERSHIP_FILE, Membership, with_unreadable_file, without_agent,
};
use std::fs::File;
use std::io::{ErrorKind, Read as _};

/// Decides for a pod of `namespace` by `<state_dir>/membership.json`.
pub fn decide(state_dir: &str, namespace: &str, log: &mut Log) -> Fallback {
    let path = format!("{state_dir}/{MEMBERSHIP_FILE}");
    let why = match read(&path) {
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

fn read(path: &str) -> std::io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(MAX_MEMBERSHIP_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
