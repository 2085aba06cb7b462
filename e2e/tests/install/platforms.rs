//! What single platforms do with the directory and its files, apart from writing them anew.

use crate::Check;
use crate::antagonists::{OVN, aws, by_rename, chaining_cilium};
use crate::libcni::Libcni;
use crate::node::{Node, PATIENCE};
use crate::obstacles::tmpfs;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rustix::fs::XattrFlags;
use sluice_shared::install::State;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

pub const CHECKS: [Check; 4] = [
    ("Cilium and Antrea that chain copy a list: they copy ours along, and we never copy theirs", copied),
    ("Bottlerocket: after a reboot the directory is empty, and the plugin is there", reboot),
    ("mode, owner and SELinux label stay, in each way", attributes),
    ("MicroK8s: the directory is a link, another one is mounted over it, a file is a link", links),
];

const FILE: &str = "10-aws.conflist";

fn copied(parent: &Path, name: &str) -> Result<String> {
    let mut said = Vec::new();
    for (number, exclusive) in [false, true].into_iter().enumerate() {
        let mut node = Node::new(parent, &format!("{name}-{number}"), &[(FILE, &aws(0), 0o644)])?;
        let cilium = chaining_cilium(node.conf(), exclusive);
        let chain = |ours: &'static [&'static str]| {
            move |node: &Node| {
                let mut types = node.network(Libcni::Old)?.types;
                types.sort();
                let mut should = [&["ptp", "portmap", "cilium-cni"], ours].concat();
                should.sort_unstable();
                ensure!(types == should, "{types:?} is not {should:?}");
                Ok(())
            }
        };
        node.until("Cilium has made its list", PATIENCE, chain(&[]))?;
        node.start()?;
        node.until("we are in it once", PATIENCE, chain(&["sluice-cni"]))?;
        std::thread::sleep(Duration::from_millis(1500));
        let (writes, copies) = (node.state()?.writes, cilium.count());
        std::thread::sleep(Duration::from_secs(3));
        let state = node.state()?;
        ensure!(state.writes == writes && cilium.count() == copies, "they go on without end: {state:?}");
        ensure!(state.state == State::Chained, "{state:?}");
        chain(&["sluice-cni"])(&node)?;
        // aws-node starts again.
        by_rename(&node.conf().join(FILE), &aws(1), 0o644)?;
        node.promptly("the new list, with Cilium and us", |node| {
            let text = fs::read_to_string(node.conf().join("05-cilium.conflist"))?;
            ensure!(text.contains("\"generation\": \"1\""), "{text}");
            chain(&["sluice-cni"])(node)
        })?;
        // A list of our own would be what it copies, and copy that: it is refused, and nothing grows.
        node.end(Signal::SIGKILL)?;
        let mut shadow = node.options(&["--way=owned"]);
        shadow.start()?;
        shadow.until("a list of our own is refused", PATIENCE, |node| {
            let state = node.state()?;
            ensure!(state.message.contains("a copy of another list"), "{state:?}");
            ensure!(!node.conf().join("00-sluice.conflist").exists(), "there is one");
            chain(&[])(node)
        })?;
        shadow.remove()?;
        shadow.until("Cilium's own list", PATIENCE, chain(&[]))?;
        cilium.end()?;
        let base = if exclusive { format!("{FILE}.cilium_bak") } else { FILE.to_owned() };
        ensure!(
            fs::read_to_string(shadow.conf().join(base))? == aws(1),
            "the list that it copies is not its owner's"
        );
        said.push(format!("exclusive {exclusive}: {writes} of our writes, {copies} copies"));
    }
    Ok(said.join("; "))
}

fn reboot(parent: &Path, name: &str) -> Result<String> {
    let mut worst = Duration::ZERO;
    for (number, options) in
        [&[][..], &["--way=owned"], &["--runtime=containerd://2.1.0"]].into_iter().enumerate()
    {
        let mut node = Node::new(parent, &format!("{name}-{number}"), &[])?.options(options);
        let libcni = if number == 2 { Libcni::New } else { Libcni::Old };
        let conf = tmpfs(&node.conf(), "size=1m")?;
        by_rename(&node.conf().join(FILE), &aws(0), 0o644)?;
        node.start_chained(libcni)?;
        let plugin = fs::metadata(node.dir.join("bin/sluice-cni"))?;
        // The power is gone: what was on a tmpfs is too, and the agent comes later than the primary.
        node.end(Signal::SIGKILL)?;
        node.end_agent()?;
        drop(conf);
        fs::remove_dir(node.conf()).or_else(|_| fs::remove_dir_all(node.conf()))?;
        for file in fs::read_dir(node.dir.join("run"))? {
            fs::remove_file(file?.path())?;
        }
        node.start()?;
        node.until("the installer says what it misses", PATIENCE, |node| {
            let state = node.state()?;
            ensure!(state.state == State::Blocked && state.message.contains("conf"), "{state:?}");
            Ok(())
        })?;
        fs::create_dir(node.conf())?;
        let _conf = tmpfs(&node.conf(), "size=1m")?;
        node.until("it waits for the primary", PATIENCE, |node| {
            let state = node.state()?;
            ensure!(state.state == State::Waiting && state.message.contains("no primary"), "{state:?}");
            Ok(())
        })?;
        ensure!(node.network(libcni).is_err(), "we made the node Ready without its primary");
        by_rename(&node.conf().join(FILE), &aws(1), 0o644)?;
        // Chained before: it is closed again without waiting for the agent.
        worst = worst.max(node.converges(libcni)?);
        node.is_theirs(FILE, &aws(1))?;
        let now = fs::metadata(node.dir.join("bin/sluice-cni"))?;
        ensure!(now.ino() == plugin.ino() && now.mtime() == plugin.mtime(), "the plugin was written anew");
        node.remove()?;
        ensure!(fs::read_to_string(node.conf().join(FILE))? == aws(1), "it is not as its owner wrote it");
    }
    Ok(format!("3 ways, in the chain {} ms after the primary's file at the worst", worst.as_millis()))
}

fn attributes(parent: &Path, name: &str) -> Result<String> {
    const LABEL: &str = "security.selinux";
    let label = |path: &Path| -> Result<Vec<u8>> {
        let mut bytes = vec![0; 256];
        let length = rustix::fs::getxattr(path, LABEL, &mut bytes[..]).context("read the label")?;
        bytes.truncate(length);
        Ok(bytes)
    };
    let list = aws(0);
    let cases: [(&str, &str, &[&str], u32); 5] = [
        (FILE, &list, &[], 0o600),
        (FILE, &list, &[], 0o640),
        (FILE, &list, &["--way=owned"], 0o600),
        (FILE, &list, &["--runtime=containerd://2.1.0"], 0o644),
        ("10-ovn-kubernetes.conf", OVN, &[], 0o600),
    ];
    for (number, (file, text, options, mode)) in cases.into_iter().enumerate() {
        let mut node =
            Node::new(parent, &format!("{name}-{number}"), &[(file, text, mode)])?.options(options);
        let (theirs, said) = (node.conf().join(file), b"system_u:object_r:cni_conf_t:s0\0".to_vec());
        let plugin = node.dir.join("bin/ptp");
        chown(&theirs, Some(1234), Some(567))?;
        rustix::fs::setxattr(&theirs, LABEL, &said, XattrFlags::empty())
            .context("label the primary's file")?;
        for neighbour in fs::read_dir(node.dir.join("bin"))? {
            rustix::fs::setxattr(neighbour?.path(), LABEL, b"cni_exec_t\0", XattrFlags::empty())?;
        }
        let of = |path: &Path| -> Result<_> {
            let found = fs::metadata(path)?;
            Ok((found.mode() & 0o7777, found.uid(), found.gid(), label(path)?))
        };
        let should = (mode, 1234, 567, said.clone());
        let libcni =
            if options.iter().any(|option| option.contains("2.1")) { Libcni::New } else { Libcni::Old };
        node.start_chained(libcni)?;
        ensure!(of(&theirs)? == should, "{file} {options:?}: {:?}", of(&theirs)?);
        let own = node.conf().join("00-sluice.conflist");
        ensure!(!own.exists() || of(&own)? == should, "our list: {:?}", of(&own)?);
        let (ours, neighbours) = (of(&node.dir.join("bin/sluice-cni"))?, of(&plugin)?);
        ensure!(ours == neighbours, "the plugin is {ours:?}, and its neighbours are {neighbours:?}");
        // As Calico writes it: the mode comes last.
        std::thread::sleep(Duration::from_millis(1100));
        fs::write(&theirs, text)?;
        fs::set_permissions(&theirs, Permissions::from_mode(0o640))?;
        node.converges(libcni)?;
        ensure!(of(&theirs)?.0 == 0o640, "{file} {options:?}: {:?}", of(&theirs)?);
        node.remove()?;
        ensure!(of(&theirs)? == (0o640, 1234, 567, said), "after a removal: {:?}", of(&theirs)?);
        ensure!(fs::read_to_string(&theirs)? == text, "{file} {options:?}: it is not as its owner wrote it");
    }
    Ok("mode, owner, label of 5 files in 3 ways, and of the plugin".to_owned())
}

fn links(parent: &Path, name: &str) -> Result<String> {
    let mut node = Node::new(parent, name, &[])?;
    let (conf, real, args) = (node.conf(), node.dir.join("snap"), node.dir.join("args"));
    fs::rename(&conf, &real)?;
    symlink(&real, &conf)?;
    fs::create_dir(&args)?;
    // The file is a link too, to where the platform keeps it.
    by_rename(&args.join(FILE), &aws(0), 0o600)?;
    symlink(args.join(FILE), real.join(FILE))?;
    node.start_chained(Libcni::Old)?;
    let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    ensure!(is_link(&conf) && is_link(&real.join(FILE)), "a link has become a file");
    let mut worst = Duration::ZERO;
    std::thread::sleep(Duration::from_millis(1100));
    // A change that no watch on the directory tells of.
    by_rename(&args.join(FILE), &aws(1), 0o600)?;
    worst = worst.max(node.converges(Libcni::Old)?);
    node.is_theirs(FILE, &aws(1))?;
    ensure!(is_link(&real.join(FILE)), "a link has become a file");
    let names = |dir: &Path| -> Result<usize> { Ok(fs::read_dir(dir)?.count()) };
    // Our entry is there a moment before what it was put in by goes.
    node.until("nothing of ours is left beside the file", PATIENCE, |_| {
        ensure!(names(&args)? == 1, "something is");
        Ok(())
    })?;
    // Another directory under the same link, as after a snap's refresh.
    let next = node.dir.join("snap2");
    fs::create_dir(&next)?;
    by_rename(&next.join(FILE), &aws(2), 0o644)?;
    fs::remove_file(&conf)?;
    symlink(&next, &conf)?;
    worst = worst.max(node.converges(Libcni::Old)?);
    // A tmpfs over it, and away again: no event tells of a mount.
    {
        let _over = tmpfs(&next, "size=1m")?;
        by_rename(&next.join(FILE), &aws(3), 0o644)?;
        worst = worst.max(node.converges(Libcni::Old)?);
        node.is_theirs(FILE, &aws(3))?;
    }
    node.converges(Libcni::Old)?;
    node.is_theirs(FILE, &aws(2))?;
    node.remove()?;
    ensure!(fs::read_to_string(next.join(FILE))? == aws(2) && names(&next)? == 1, "not as it was");
    Ok(format!(
        "a directory and a file by links, a mount over it: back after {} ms at the worst",
        worst.as_millis()
    ))
}
