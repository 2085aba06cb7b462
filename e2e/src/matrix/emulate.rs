//! A primary CNI's plugin, emulated: leaves in the pod and on the host what the description says, and answers with the
//! primary's own result. It runs as a program in the chain, so that everything behind it is as it is in the field.

use super::describe::{Addresses, Cell, Link, Side};
use super::side;
use super::words::{self, Kept, Words};
use crate::lab::netns::Netns;
use crate::lab::process::binary;
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What the program needs to know; a file beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Emulation {
    /// The words of the node.
    pub words: Words,
    /// The namespace of the link's host end.
    pub place: String,
    /// The description's.
    pub addresses: (Option<String>, Option<String>),
    /// Which of them pods get.
    pub families: (bool, bool),
    /// The description's.
    pub pod: Side,
    /// The description's.
    pub host: Side,
    /// Name, MAC address and bridge of the host's end.
    pub link: (String, String, String),
    /// The description's.
    pub mtu: u32,
    /// The description's.
    pub result: String,
    /// The list's version.
    pub cni_version: String,
    /// Where it notes what it answered.
    #[serde(default)]
    pub results: PathBuf,
    /// The pods' numbers, by name.
    pub numbers: BTreeMap<String, u8>,
    /// Of which families entries are put in force, IPv4 and IPv6. Where a primary gives one family only, what it does
    /// with the other is its own affair.
    pub kept: (bool, bool),
}

/// One pod, as the program is told of it.
struct Attached {
    name: String,
    words: Words,
    place: Netns,
    link: String,
    kept: Kept,
    ips: Vec<String>,
}

impl Emulation {
    /// What a cell's program needs, with pods of these numbers.
    ///
    /// # Errors
    /// When the description's list is none.
    pub fn of(
        cell: &Cell,
        words: Words,
        place: &Netns,
        families: (bool, bool),
        numbers: BTreeMap<String, u8>,
    ) -> Result<Self> {
        let Addresses { v4, v6, .. } = &cell.addresses;
        let Link { name, mac, bridge, .. } = &cell.link;
        Ok(Self {
            words,
            place: place.name().to_owned(),
            addresses: (v4.clone(), v6.clone()),
            families,
            pod: cell.pod.clone(),
            host: cell.host.clone(),
            link: (name.clone(), mac.clone(), bridge.clone()),
            mtu: cell.mtu,
            result: cell.result.clone(),
            cni_version: cell.list().map_err(|why| anyhow!(why))?.cni_version,
            results: PathBuf::new(),
            numbers,
            kept: if v4.is_some() && v6.is_some() { families } else { (true, true) },
        })
    }

    /// Puts the program into `dir`, under the name that the chain calls it by.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn install(mut self, dir: &Path, name: &str) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        self.results = dir.to_path_buf();
        let file = dir.join("emulation.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&self)?)?;
        let this = binary("sluice-matrix")?;
        let script = format!("#!/bin/sh\nexec '{}' emulate '{}'\n", this.display(), file.display());
        let program = dir.join(name);
        std::fs::write(&program, script)?;
        Ok(std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?)
    }

    /// Does what `CNI_COMMAND` says; returns what belongs on stdout.
    ///
    /// # Errors
    /// What could not be done.
    pub fn carry_out(&self) -> Result<String> {
        match variable("CNI_COMMAND")?.as_str() {
            "ADD" => self.add(),
            "DEL" => {
                self.del();
                Ok(String::new())
            }
            "VERSION" => Ok(json!({"cniVersion": "1.1.0",
                "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
            .to_string()),
            _ => Ok(String::new()),
        }
    }

    fn add(&self) -> Result<String> {
        let mut pod = self.attached()?;
        let netns = netns_of(&variable("CNI_NETNS")?)?;
        let (_, mac, bridge) = &self.link;
        let address = if mac.is_empty() { String::new() } else { format!("address {mac}") };
        let (link, mtu) = (&pod.link, self.mtu);
        pod.place.ip(&format!(
            "link add {link} mtu {mtu} {address} type veth peer name eth0 mtu {mtu} netns {}\n",
            netns.name()
        ))?;
        if !bridge.is_empty() {
            pod.place.ip(&format!("link set {link} master {bridge}\n"))?;
        }
        pod.place.ip(&format!("link set {link} up\n"))?;
        netns.ip("link set eth0 up\n")?;
        pod.words =
            pod.words.with("mac", &mac_of(&pod.place, link)?).with("podmac", &mac_of(&netns, "eth0")?);
        side::apply(&pod.place, &pod.words.put_into_side(&self.host, pod.kept))?;
        side::apply(&netns, &pod.words.put_into_side(&self.pod, pod.kept))?;
        let result =
            if self.result.is_empty() { self.result_of(&pod)? } else { pod.words.put_into(&self.result) };
        let beside = self.results.join(format!("result-{}.json", pod.name));
        std::fs::write(&beside, &result).with_context(|| format!("write {}", beside.display()))?;
        Ok(result)
    }

    /// DEL has nothing to complain of: what is gone is gone.
    fn del(&self) {
        let Ok(pod) = self.attached() else { return };
        let _ = pod.place.ip(&format!("link del {}\n", pod.link));
        side::undo(&pod.place, &pod.words.put_into_side(&self.host, pod.kept));
    }

    fn attached(&self) -> Result<Attached> {
        let arguments = variable("CNI_ARGS")?;
        let name = arguments.split(';').find_map(|pair| pair.strip_prefix("K8S_POD_NAME="));
        let name = name.context("no K8S_POD_NAME in CNI_ARGS")?;
        let number = *self.numbers.get(name).with_context(|| format!("no number for a pod {name}"))?;
        let netns = variable("CNI_NETNS")?;
        let netns = netns.rsplit('/').next().unwrap_or_default();
        let mut words = self.words.clone().with("n", &number).with("netns", netns);
        let mut ips = Vec::new();
        for (word, pattern, given) in
            [("pod4", &self.addresses.0, self.families.0), ("pod6", &self.addresses.1, self.families.1)]
        {
            let Some(pattern) = pattern else { continue };
            words = words.with(word, &words::address(pattern, number).map_err(|why| anyhow!(why))?);
            if given {
                ips.push(Words::default().with("n", &number).put_into(pattern));
            }
        }
        let link = words.put_into(&self.link.0);
        let kept = Kept { v4: self.kept.0, v6: self.kept.1 };
        let (name, place) = (name.to_owned(), Netns::open(&self.place)?);
        Ok(Attached { name, words: words.with("link", &link), place, link, kept, ips })
    }

    fn result_of(&self, pod: &Attached) -> Result<String> {
        let old = ["0.3.0", "0.3.1", "0.4.0"].contains(&self.cni_version.as_str());
        let ips: Vec<Value> = pod
            .ips
            .iter()
            .map(|ip| match (old, ip.contains(':')) {
                (true, v6) => json!({"version": if v6 { "6" } else { "4" }, "address": ip, "interface": 1}),
                (false, _) => json!({"address": ip, "interface": 1}),
            })
            .collect();
        Ok(json!({"cniVersion": self.cni_version, "ips": ips, "dns": {}, "interfaces": [
            {"name": pod.link, "mac": pod.words.put_into("{mac}")},
            {"name": "eth0", "mac": pod.words.put_into("{podmac}"), "sandbox": variable("CNI_NETNS")?},
        ]})
        .to_string())
    }
}

/// The program itself: reads its file, does what it is told, and says it as the CNI spec wants.
#[must_use]
pub fn main(file: &Path) -> std::process::ExitCode {
    let done = std::fs::read(file)
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(serde_json::from_slice::<Emulation>(&text)?))
        .and_then(|emulation| emulation.carry_out());
    match done {
        Ok(said) => {
            println!("{said}");
            std::process::ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{}", json!({"cniVersion": "1.0.0", "code": 999, "msg": format!("{why:#}")}));
            std::process::ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

fn netns_of(path: &str) -> Result<Netns> {
    let name = PathBuf::from(path);
    let name = name.file_name().and_then(std::ffi::OsStr::to_str).context("CNI_NETNS without a name")?;
    Netns::open(name)
}

fn mac_of(netns: &Netns, link: &str) -> Result<String> {
    let shown = netns.must("ip", &["-o", "link", "show", "dev", link])?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    Ok(words.nth(1).with_context(|| format!("no MAC address in {shown:?}"))?.to_owned())
}
