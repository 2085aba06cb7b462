//! Drop-in, in place, a list of our own: each by the node's runtime and the primary's file, and nothing too early.

use crate::Check;
use crate::antagonists::{Multus, OVN, aws, by_rename};
use crate::libcni::Libcni;
use crate::node::{Node, PATIENCE};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sluice_shared::conflist::Way;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

pub const CHECKS: [Check; 8] = [
    (
        "an old runtime's list is joined in place, a new one's by a drop-in, a single plugin by a list of our own",
        each,
    ),
    ("nothing is written before the agent serves, and our entry is there within a second of it", gate),
    ("a restart, a SIGKILL and an upgrade of the installer change nothing", restarts),
    ("the way follows the runtime: in place before its upgrade, a drop-in after it, never both", upgrade),
    ("a list of our own repeats every change of the primary's, and its .conf stays to the byte", tracks),
    (
        "a list of our own after a reboot: for the grace it stays without the primary's file, then it goes with it",
        after_reboot,
    ),
    (
        "behind Multus, thin and thick, with a runtime that adds drop-ins: we are in the chain that Multus runs",
        behind_multus,
    ),
    ("status says what is there and who is waited for", status),
];

fn each(parent: &Path, name: &str) -> Result<String> {
    let list = aws(1);
    let table = [
        ("10-aws.conflist", list.as_str(), "containerd://1.7.28", Way::InPlace, Libcni::Old),
        ("10-aws.conflist", list.as_str(), "containerd://2.1.4", Way::DropIn, Libcni::New),
        ("10-ovn-kubernetes.conf", OVN, "cri-o://1.34.1", Way::Owned, Libcni::New),
    ];
    for (number, (file, text, runtime, way, libcni)) in table.into_iter().enumerate() {
        let mut node = Node::new(parent, &format!("{name}-{number}"), &[(file, text, 0o600)])?;
        let before = node.snapshot()?;
        fs::write(
            node.dir.join("run/runtime.json"),
            runtime.split_once("://").map_or_else(String::new, |(name, version)| {
                serde_json::json!({"name": name, "version": version}).to_string()
            }),
        )?;
        node.start_chained(libcni)?;
        let state = node.state()?;
        ensure!(state.way == Some(way), "{runtime}: {state:?}");
        let plain = serde_json::from_str::<serde_json::Value>(text)?;
        ensure!(
            Some(node.network(libcni)?.name.as_str()) == plain["name"].as_str(),
            "the network's name changed"
        );
        node.is_theirs_or_untouched(file, text)?;
        node.remove()?;
        node.is_as(&before)?;
    }
    Ok("3 runtimes, 3 ways, one network name, the primary's bytes".to_owned())
}

fn gate(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[("10-aws.conflist", &aws(1), 0o644)])?;
    node.end_agent()?;
    let before = node.snapshot()?;
    node.start()?;
    node.until("the plugin is there", PATIENCE, |node| {
        fs::metadata(node.dir.join("bin/sluice-cni")).map(drop).context("no plugin")
    })?;
    std::thread::sleep(Duration::from_secs(2));
    node.is_as(&before)?;
    node.serve()?;
    let took = node.converges(Libcni::Old)?;
    Ok(format!("2 s without, then there after {} ms", took.as_millis()))
}

fn restarts(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[("10-aws.conflist", &aws(1), 0o644)])?;
    node.start_chained(Libcni::Old)?;
    let inodes = |node: &Node| -> Result<(u64, u64)> {
        let inode = |path: &str| fs::metadata(node.dir.join(path)).map(|found| found.ino());
        Ok((inode("conf/10-aws.conflist")?, inode("bin/sluice-cni")?))
    };
    let (before, files) = (node.snapshot()?, inodes(&node)?);
    // The agent is down for the time of an upgrade.
    node.end_agent()?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        node.end(signal)?;
        node.is_as(&before)?;
        node.start()?;
        node.runs()?;
        ensure!(node.state()?.writes > 0, "no state");
        std::thread::sleep(Duration::from_millis(300));
    }
    node.is_as(&before)?;
    ensure!(inodes(&node)? == files, "a file was written anew though it was right");
    // A reboot on which the primary is faster than everybody: its file is new, the agent not up.
    node.end(Signal::SIGKILL)?;
    fs::remove_file(node.dir.join("run/install.json"))?;
    by_rename(&node.conf().join("10-aws.conflist"), &aws(2), 0o644)?;
    node.start()?;
    let took = node.converges(Libcni::Old)?;
    Ok(format!("no byte and no inode changed; after a reboot our entry was back in {} ms", took.as_millis()))
}

fn upgrade(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[("10-aws.conflist", &aws(1), 0o644)])?;
    node.start_chained(Libcni::Old)?;
    fs::write(node.dir.join("run/runtime.json"), r#"{"name":"containerd","version":"2.1.0"}"#)?;
    node.promptly("the drop-in is there", |node| {
        ensure!(node.network(Libcni::New)?.ours() <= 1, "twice in the chain");
        ensure!(node.network(Libcni::Old)?.ours() == 0, "still in place");
        node.once(Libcni::New)
    })?;
    ensure!(
        fs::read_to_string(node.conf().join("10-aws.conflist"))? == aws(1),
        "the primary's file is not its own"
    );
    by_rename(&node.conf().join("10-aws.conflist"), &aws(2), 0o644)?;
    node.once(Libcni::New)?;
    node.until("the installer says which way it is", PATIENCE, |node| {
        let state = node.state()?;
        ensure!(state.way == Some(Way::DropIn), "{state:?}");
        Ok(())
    })?;
    let writes = node.state()?.writes;
    std::thread::sleep(Duration::from_millis(1200));
    ensure!(node.state()?.writes == writes, "a rewrite of the primary made us write");
    Ok("and a rewrite of the primary's file needs no repair then".to_owned())
}

fn tracks(parent: &Path, name: &str) -> Result<String> {
    let file = "10-ovn-kubernetes.conf";
    let mut node = Node::new(parent, name, &[(file, OVN, 0o600)])?;
    node.start_chained(Libcni::Old)?;
    for level in 5..9 {
        let text = OVN.replace("\"4\"", &format!("\"{level}\""));
        by_rename(&node.conf().join(file), &text, 0o600)?;
        node.promptly("our list says the same", |node| {
            let ours = fs::read_to_string(node.conf().join("00-sluice.conflist"))?;
            ensure!(ours.contains(&text), "{ours}");
            node.once(Libcni::Old)
        })?;
        ensure!(fs::read_to_string(node.conf().join(file))? == text, "the .conf is not its own");
    }
    let mode = fs::metadata(node.conf().join("00-sluice.conflist"))?.mode() & 0o777;
    ensure!(mode == 0o600, "our list has mode {mode:o}, and the primary's 600");
    // ovnkube-node's preStop: the node must be NotReady then, and not by our list Ready.
    fs::remove_file(node.conf().join(file))?;
    let took = node.promptly("our list is gone with the primary's", |node| {
        ensure!(node.network(Libcni::Old).is_err(), "pods would still start");
        Ok(())
    })?;
    by_rename(&node.conf().join(file), OVN, 0o600)?;
    node.converges(Libcni::Old)?;
    Ok(format!("4 changes followed; gone {} ms after the primary's file", took.as_millis()))
}

fn after_reboot(parent: &Path, name: &str) -> Result<String> {
    let file = "10-ovn-kubernetes.conf";
    // In seconds since boot: long past, ended while it is looked at, never reached.
    let graces: [fn(u64) -> u64; 3] = [|_| 0, |now| now + 4, |_| u64::MAX];
    for (number, grace) in graces.into_iter().enumerate() {
        let mut node = Node::new(parent, &format!("{name}-{number}"), &[(file, OVN, 0o600)])?;
        node.start_chained(Libcni::Old)?;
        node.end(Signal::SIGKILL)?;
        node.end_agent()?;
        for left in fs::read_dir(node.dir.join("run"))? {
            fs::remove_file(left?.path())?;
        }
        let grace = grace(uptime()?);
        node = node.options(&[&format!("--reboot-grace={grace}")]);
        fs::remove_file(node.conf().join(file))?;
        node.once(Libcni::Old)?;
        node.start()?;
        if grace > 0 {
            node.until("the installer says that it waits", PATIENCE, |node| {
                let state = node.state()?;
                ensure!(state.message.contains("our list of before the boot stays"), "{state:?}");
                node.once(Libcni::Old)
            })?;
        }
        if grace < u64::MAX {
            node.until("our list is gone", PATIENCE, |node| {
                ensure!(node.network(Libcni::Old).is_err(), "pods would still start");
                Ok(())
            })?;
            let now = uptime()?;
            ensure!(now >= grace, "it went after {now} s, and the grace is of {grace}");
        }
        let text = OVN.replace("\"4\"", "\"5\"");
        by_rename(&node.conf().join(file), &text, 0o600)?;
        node.promptly("our list says what the primary does now", |node| {
            let ours = fs::read_to_string(node.conf().join("00-sluice.conflist"))?;
            ensure!(ours.contains(&text), "{ours}");
            node.once(Libcni::Old)
        })?;
        // The grace is for a primary that has not come yet in this boot, not for one that has gone again.
        fs::remove_file(node.conf().join(file))?;
        node.promptly("our list is gone with the primary's", |node| {
            ensure!(node.network(Libcni::Old).is_err(), "pods would still start");
            Ok(())
        })?;
    }
    Ok("no grace, one that ends, one that does not".to_owned())
}

/// Whole seconds since this machine's boot.
fn uptime() -> Result<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    text.split('.').next().context("no uptime")?.parse().context("a strange uptime")
}

fn behind_multus(parent: &Path, name: &str) -> Result<String> {
    let file = "10-calico.conflist";
    for (multus, number) in [Multus::Thin, Multus::Thick].into_iter().zip(0..) {
        let mut node = Node::new(parent, &format!("{name}-{number}"), &[(file, &aws(0), 0o600)])?;
        fs::write(node.dir.join("run/runtime.json"), r#"{"name":"containerd","version":"2.1.4"}"#)?;
        let daemon = multus.start(node.conf(), file);
        let own = node.conf().join("00-multus.conf");
        node.until("multus has its file", PATIENCE, |_| fs::metadata(&own).map(drop).context("no file"))?;
        let chain = |ours: &[&str]| {
            let should: Vec<_> =
                ["ptp", "portmap"].iter().chain(ours).map(|kind| (*kind).to_owned()).collect();
            move |node: &Node| {
                let network = node.network(Libcni::New)?;
                ensure!(network.types == should && network.name == "aws-cni", "{network:?}");
                Ok(())
            }
        };
        node.until("multus runs the primary", PATIENCE, chain(&[]))?;
        node.start()?;
        node.until("multus runs us behind the primary", PATIENCE, chain(&["sluice-cni"]))?;
        node.until("and it is said", PATIENCE, |node| {
            let state = node.state()?;
            ensure!(state.way == Some(Way::InPlace) && state.why.contains("00-multus.conf"), "{state:?}");
            Ok(())
        })?;
        let drop_ins =
            fs::read_dir(node.conf())?.filter(|entry| entry.as_ref().is_ok_and(|e| e.path().is_dir()));
        ensure!(drop_ins.count() == 0, "a drop-in that nobody reads");
        std::thread::sleep(Duration::from_millis(1100));
        by_rename(&node.conf().join(file), &aws(1), 0o600)?;
        node.promptly("the primary's next list, with us", |node| {
            node.is_theirs(file, &aws(1))?;
            chain(&["sluice-cni"])(node)
        })?;
        node.remove()?;
        node.until("multus runs the primary alone", PATIENCE, chain(&[]))?;
        daemon.end()?;
        ensure!(fs::read_to_string(node.conf().join(file))? == aws(1), "it is not as its owner wrote it");
    }
    Ok("in the primary's list, by which Multus goes; no drop-in".to_owned())
}

fn status(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[("10-aws.conflist", "{ \"cniVersion\":", 0o644)])?;
    node.start()?;
    node.runs()?;
    let output = node.run("status", &[])?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(!output.status.success() && said.contains("10-aws.conflist") && said.contains("EOF"), "{said}");
    fs::write(node.conf().join("10-aws.conflist"), aws(1))?;
    node.converges(Libcni::Old)?;
    node.says_chained()?;
    let output = node.run("status", &[])?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && said.contains("in-place") && said.contains("has our entry"), "{said}");
    ensure!(said.contains("lease      held"), "{said}");
    Ok(said.lines().next().unwrap_or_default().to_owned())
}
