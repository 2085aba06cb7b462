//! `status`: what is on this node, which way, why, and who fights it.

use crate::directory::look;
use crate::disk::Disk;
use crate::disk::linux::Linux;
use crate::notes::{Clock, Notes};
use crate::options::Paths;
use crate::output::answer;
use clap::Args;
use sluice_shared::conflist::{Directory, PLUGIN_TYPE, contains};
use sluice_shared::install::Holding;
use std::io::{self, Write};
use std::process::ExitCode;

#[derive(Args, Clone, Debug)]
pub struct Status {
    #[command(flatten)]
    paths: Paths,
    /// Print install.json as the installer wrote it
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Prints it. Fails when our entry is not in the chain.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let mut said = Vec::new();
        let chained = self.tell(&mut said)?;
        answer(&said)?;
        Ok(if chained { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Gives whether our entry is in the chain.
    fn tell(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        let notes = Notes { disk: &Linux, paths: &self.paths };
        let clock = Clock::read(&Linux)?;
        let installation = notes.installation_here(&clock);
        let directory = look(&Linux, &self.paths.conf_dir);
        let chained = directory.as_ref().is_ok_and(Directory::has_us);
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&installation)?)?;
            return Ok(chained);
        }
        match &installation {
            None => writeln!(out, "installer  has not run since this boot")?,
            Some(found) => {
                writeln!(out, "installer  {}: {}", found.state.as_str(), found.message)?;
                if let Some(way) = found.way {
                    writeln!(out, "way        {}, since {}", way.as_str(), found.why)?;
                }
                writeln!(out, "writes     {}, of which repairs {}", found.writes, found.repairs)?;
                if let Some(fight) = &found.fight {
                    writeln!(
                        out,
                        "fight      over {}: undone {} times in {} s, written at most once a second; by {}",
                        fight.file, fight.times, fight.seconds, fight.suspect
                    )?;
                }
            }
        }
        match &directory {
            Err(e) => writeln!(out, "directory  {}: {e}", self.paths.conf_dir.display())?,
            Ok(directory) => {
                writeln!(out, "directory  {}", self.paths.conf_dir.display())?;
                tell(directory, out)?;
                tell_of_istio(directory, notes.istio_is_gone(), out)?;
            }
        }
        let binary = self.paths.bin_dir.join(PLUGIN_TYPE);
        match Linux.stamp(&binary) {
            Ok(stamp) => {
                writeln!(
                    out,
                    "plugin     {}, {} bytes, mode {:04o}",
                    binary.display(),
                    stamp.size,
                    stamp.mode
                )?;
            }
            Err(e) => writeln!(out, "plugin     {}: {e}", binary.display())?,
        }
        match notes.lease().map(|lease| (lease.holding(&clock.boot, clock.seconds()), lease)) {
            None => writeln!(out, "lease      none")?,
            Some((Holding::Held, lease)) => {
                writeln!(out, "lease      held, for {} s without the installer", lease.horizon)?;
            }
            Some((Holding::Released, _)) => {
                writeln!(out, "lease      given up: the plugin holds no pod back")?;
            }
            Some((Holding::Lapsed(gone), _)) => {
                writeln!(out, "lease      lapsed, not renewed for {gone} s: the plugin holds no pod back")?;
            }
        }
        Ok(chained)
    }
}

/// What is found of an istio-cni, and what comes of it.
fn tell_of_istio(directory: &Directory, gone: bool, out: &mut impl Write) -> io::Result<()> {
    let found = directory.istios();
    let what =
        if gone { "its agent is gone: it is replaced by ours" } else { "left until the agent sees it gone" };
    for (number, found) in found.iter().enumerate() {
        let (title, what) = if number == 0 { ("istio-cni ", what) } else { ("          ", "") };
        writeln!(out, "{title} {found}{}{what}", if what.is_empty() { "" } else { "; " })?;
    }
    Ok(())
}

fn tell(directory: &Directory, out: &mut impl Write) -> io::Result<()> {
    for file in &directory.files {
        let what = match file.text.as_deref().map(contains) {
            Ok(Ok(true)) => "has our entry".to_owned(),
            Ok(Ok(false)) => "has no entry of ours".to_owned(),
            Ok(Err(why)) => why.to_string(),
            Err(why) => why.to_owned(),
        };
        writeln!(out, "           {:<32} {what}", file.name)?;
    }
    for drop_in in &directory.drop_ins {
        writeln!(out, "           {:<32} is our drop-in", format!("{}/", drop_in.network))?;
    }
    Ok(())
}
