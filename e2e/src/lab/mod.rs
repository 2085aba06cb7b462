//! The lab's parts, from the outside in.
//!
//! [`outer`] makes the private world and dies with everything in it; [`netns`], [`cgroup`], [`hierarchies`] and [`process`] are its
//! raw materials; [`topology`] builds a fabric, nodes, pods and an outside host of them, and [`cni`] attaches pods as
//! a container runtime does; [`traffic`] and [`capture`] send packets and look at them; [`agent`] and [`ztunnel`]
//! drive the programs under test; [`report`] says what held.

pub mod agent;
pub mod capture;
pub mod cgroup;
pub mod cni;
pub mod hierarchies;
pub mod netns;
pub mod outer;
pub mod pod;
pub mod pretender;
pub mod process;
pub mod report;
pub mod rude;
pub mod scene;
pub mod sockets;
pub mod suite;
pub mod topology;
pub mod traffic;
pub mod xds;
pub mod ztunnel;

use anyhow::Context;
use std::path::Path;
use std::time::{Duration, Instant};

/// Calls `look` until it returns something, every 10 ms, for `patience` at most.
///
/// # Errors
/// What was waited for, and how long, with the last reason that `look` gave.
pub fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(why) if begun.elapsed() >= patience => {
                return Err(why.context(format!("waited {:.1} s for {what}", begun.elapsed().as_secs_f32())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Writes a file so that a reader sees the old or the new one, never a part.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, text).with_context(|| format!("write {}", next.display()))?;
    std::fs::rename(&next, path).with_context(|| format!("write {}", path.display()))
}
