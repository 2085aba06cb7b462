//! A node on a simulated disk, a runtime that reads it as libcni does, and the installer's programs.

use crate::binary::Binary;
use crate::disk::Disk;
use crate::disk::simulated::Simulated;
use crate::keeper::Keeper;
use crate::notes::{Clock, Notes};
use crate::options::{Leftover, Paths, Wanted};
use crate::remove::{remove, remove_plugin};
use clap::Parser;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

pub const LIST: &str = "{ \"cniVersion\": \"1.0.0\", \"name\": \"net\",\n \"mtu\": \"9001\", \"plugins\": [{\"type\": \
                        \"ptp\"} ] }\n";
pub const SINGLE: &str = "{\"cniVersion\":\"0.4.0\", \"name\":\"ovn\", \"type\":\"ptp\"}\n";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    wanted: Wanted,
}

/// A node: its disk outlives the programs.
pub struct Node {
    pub disk: Simulated,
    pub paths: Paths,
    pub wanted: Wanted,
}

/// One of the primaries and ways that there are.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub file: (&'static str, &'static str),
    pub options: &'static [&'static str],
    /// Another drop-in is there already.
    pub neighbour: bool,
}

pub const CASES: [Case; 5] = [
    Case { file: ("10-p.conflist", LIST), options: &[], neighbour: false },
    Case { file: ("10-p.conf", SINGLE), options: &[], neighbour: false },
    Case { file: ("10-p.conflist", LIST), options: &["--way=owned"], neighbour: false },
    Case { file: ("10-p.conflist", LIST), options: &["--runtime=containerd://2.1.0"], neighbour: false },
    Case { file: ("10-p.conflist", LIST), options: &["--runtime=containerd://2.1.0"], neighbour: true },
];

impl Node {
    pub fn new(case: &Case) -> Self {
        let file = format!("/conf/{}", case.file.0);
        let disk = Simulated::with(&[
            (&file, case.file.1, 0o600),
            ("/conf/kubeconfig", "secret", 0o600),
            ("/bin/ptp", "ELF", 0o755),
            ("/bin/other", "ELF", 0o755),
            ("/state/x", "", 0o600),
            ("/run/x", "", 0o600),
            ("/sluice-cni", "ELF sluice", 0o755),
        ]);
        if case.neighbour {
            disk.put_there("/conf/net/50-other.conf", b"{\"type\":\"other\"}", 0o644);
        }
        Self::on(disk, case.options)
    }

    pub fn on(disk: Simulated, options: &[&str]) -> Self {
        let line = [
            "x",
            "--plugin=/sluice-cni",
            "--conf-dir=/conf",
            "--bin-dir=/bin",
            "--host-state-dir=/state",
            "--run-dir=/run",
        ];
        let Line { paths, wanted } = Line::parse_from(line.iter().chain(options));
        Self { disk, paths, wanted }
    }

    /// The same node with another disk.
    pub fn with(&self, disk: Simulated) -> Self {
        Self { disk, paths: self.paths.clone(), wanted: self.wanted.clone() }
    }

    pub fn clock() -> Clock {
        Clock { boot: "this".to_owned() }
    }

    pub fn keeper(&self) -> Option<Keeper<'_, Simulated>> {
        let binary = Binary::read(&self.disk, &self.wanted.plugin, &self.paths.bin_dir).ok()?;
        let _ = crate::directory::sweep(&self.disk, &self.paths.bin_dir);
        let keeper = Keeper::new(&self.disk, &self.paths, &self.wanted, binary, Self::clock());
        let notes = Notes { disk: &self.disk, paths: &self.paths };
        let _ = notes.write_lease(&Self::clock(), 3600, false);
        Some(keeper)
    }

    /// Runs the installer for a minute of simulated time, with an agent that serves or does not.
    pub fn install(&self, serves: bool) -> bool {
        let Some(mut keeper) = self.keeper() else { return false };
        let answer = || if serves { Ok(()) } else { Err("no agent".to_owned()) };
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(60) && !keeper.is_done() && !self.disk.dead.get() {
            now += keeper.turn(now, answer).max(Duration::from_millis(10));
        }
        keeper.is_done()
    }

    pub fn uninstall(&self) -> anyhow::Result<()> {
        remove(&self.disk, &self.paths, &Self::clock())?;
        remove_plugin(&self.disk, &self.paths, Leftover::Remove, Path::new("/cache"))
    }

    /// What a write that was broken off has left, anywhere.
    pub fn temporaries(&self) -> Vec<String> {
        let dirs = ["/conf", "/bin", "/state", "/run"];
        let paths = dirs.iter().flat_map(|dir| self.disk.below(dir).into_keys());
        paths.map(|path| path.display().to_string()).filter(|path| path.contains("/.sluice-")).collect()
    }

    /// The plugins that a runtime would run, or why no pod starts; drop-ins count when it is a new one.
    pub fn starts(&self) -> Result<Vec<String>, String> {
        let names = self.disk.names(Path::new("/conf")).map_err(|e| e.to_string())?;
        let taken = |name: &str| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
        let first = names.iter().map(|(name, _)| name).find(|name| taken(name)).ok_or("no configuration")?;
        let read = |path: &str| -> Result<Value, String> {
            let bytes = self.disk.read(Path::new(path), 1 << 20).map_err(|e| e.to_string())?;
            serde_json::from_slice(&bytes).map_err(|e| format!("{path}: {e}"))
        };
        let document = read(&format!("/conf/{first}"))?;
        let mut plugins = match first.ends_with(".conflist") {
            true => document["plugins"].as_array().cloned().ok_or("no plugins")?,
            false => vec![document.clone()],
        };
        if first.ends_with(".conflist") && self.wanted.runtime.is_some() {
            let network = document["name"].as_str().ok_or("no name")?;
            let dir = format!("/conf/{network}");
            for (name, _) in self.disk.names(Path::new(&dir)).unwrap_or_default() {
                if name.ends_with(".conf") {
                    plugins.push(read(&format!("{dir}/{name}"))?);
                }
            }
        }
        let mut types = Vec::new();
        for plugin in plugins {
            let kind = plugin["type"].as_str().ok_or("a plugin without a type")?.to_owned();
            let stamp = self.disk.stamp(Path::new(&format!("/bin/{kind}")));
            let runs = stamp.is_ok_and(|stamp| stamp.size > 0 && stamp.mode == 0o755);
            runs.then_some(()).ok_or_else(|| format!("{kind} cannot be run"))?;
            types.push(kind);
        }
        Ok(types)
    }

    /// How often we are in the chain.
    #[track_caller]
    pub fn times(&self) -> usize {
        let types = self.starts().unwrap_or_else(|why| panic!("no pod starts: {why}\n{:#?}", self.disk));
        assert_eq!(types[0], "ptp", "the primary is first");
        types.iter().filter(|kind| *kind == "sluice-cni").count()
    }
}
