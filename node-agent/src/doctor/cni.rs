//! The runtime's CNI directories.

use super::Options;
use super::root::Root;
use nix::sys::statvfs::{FsFlags, statvfs};
use sluice_shared::conflist::{
    DROP_IN_FILE, Directory, DropIn, File, MAX_CONFLIST, PLUGIN_TYPE, Primary, is_configuration, is_parked,
};
use sluice_shared::doctor::{CniFacts, Look, MESH_PLUGINS, PluginFile, Unlooked};
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Platforms, as the chart names them, with the directories of configuration and of plugins; the usual ones first.
const PLACES: [(Option<&str>, &str, &str); 5] = [
    (Some("gke"), "/etc/cni/net.d", "/home/kubernetes/bin"),
    (None, "/etc/cni/net.d", "/opt/cni/bin"),
    (Some("k3s"), "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
    (
        Some("microk8s"),
        "/var/snap/microk8s/current/args/cni-network",
        "/var/snap/microk8s/current/opt/cni/bin",
    ),
    (Some("openshift"), "/run/multus/cni/net.d", "/var/lib/cni/bin"),
];

/// Both directories.
pub(super) fn look(options: &Options) -> (Look<CniFacts>, Look<PluginFile>) {
    let root = &options.root;
    let (platform, conf, bin) = match &options.conf_dir {
        Some(conf) => (None, conf.clone(), "/opt/cni/bin".into()),
        None => usual(root),
    };
    let bin = options.bin_dir.clone().unwrap_or(bin);
    (configuration(root, platform, &conf), plugin(root, &bin, &options.plugin))
}

/// The first place that has a primary's configuration; where none has, the first that is there.
fn usual(root: &Root) -> (Option<&'static str>, PathBuf, PathBuf) {
    let there = |path: &str| root.of(Path::new(path)).is_dir();
    let places = PLACES.into_iter().filter(|(platform, _, bin)| *platform != Some("gke") || there(bin));
    let places: Vec<_> = places.filter(|(_, conf, _)| there(conf)).collect();
    let used = |conf: &str| {
        read_directory(&root.of(Path::new(conf)))
            .is_ok_and(|found| !matches!(found.primary(), Primary::Absent { .. }))
    };
    let chosen = places.iter().find(|(_, conf, _)| used(conf)).or(places.first());
    let (platform, conf, bin) = chosen.copied().unwrap_or(PLACES[1]);
    (platform, conf.into(), bin.into())
}

fn configuration(root: &Root, platform: Option<&'static str>, conf: &Path) -> Look<CniFacts> {
    let here = root.of(conf);
    let path = conf.display().to_string();
    let directory = read_directory(&here).map_err(|error| {
        let how = match error.kind() {
            ErrorKind::PermissionDenied => "run it as root",
            _ => "run it on the node, in the container install, or with --host-root; name another directory with --conf-dir",
        };
        Unlooked::new(format!("{path}: {error}"), how)
    })?;
    Ok(CniFacts { path, platform, directory, not_writable: read_only(&here) })
}

/// As the installer looks at it (`install/src/directory.rs`).
fn read_directory(here: &Path) -> io::Result<Directory> {
    let mut found = Directory::default();
    for entry in fs::read_dir(here)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if path.is_dir() {
            if let Some(text) = text_of(&path.join(DROP_IN_FILE)) {
                found.drop_ins.push(DropIn { network: name, text });
            }
        } else if (is_configuration(&name) || is_parked(&name))
            && let Some(text) = text_of(&path)
        {
            found.files.push(File { name, text });
        }
    }
    found.files.sort_by(|a, b| a.name.cmp(&b.name));
    found.drop_ins.sort_by(|a, b| a.network.cmp(&b.network));
    Ok(found)
}

/// A file's text, or why it has none; `None` when it is not there.
fn text_of(path: &Path) -> Option<Result<String, String>> {
    let mut text = String::new();
    // A FIFO would wait for a writer.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Some(Err("it is no file".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        _ => {}
    }
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_CONFLIST as u64 + 1).read_to_string(&mut text));
    Some(read.map(|_| text).map_err(|error| error.to_string()))
}

fn read_only(here: &Path) -> Option<String> {
    let found = statvfs(here).ok()?;
    found.flags().contains(FsFlags::ST_RDONLY).then(|| "mounted read-only".to_owned())
}

fn plugin(root: &Root, bin: &Path, ours: &Path) -> Look<PluginFile> {
    let here = root.of(bin);
    let mut found = PluginFile { directory: bin.display().to_string(), ..PluginFile::default() };
    match fs::read_dir(&here) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(Unlooked::new(format!("{}: {error}", bin.display()), "run it as root"));
        }
        // Nothing can be chained there; but where the node is not seen at all, that is no defect of the node.
        Err(error) if root.of(Path::new("/etc/os-release")).exists() => {
            found.not_writable = Some(error.to_string());
            return Ok(found);
        }
        Err(error) => {
            let how = "run it on the node, in the container install, or with --host-root; name another directory with --bin-dir";
            return Err(Unlooked::new(format!("{}: {error}", bin.display()), how));
        }
    }
    found.not_writable = read_only(&here);
    found.noexec = statvfs(&here).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC));
    let file = root.of(&bin.join(PLUGIN_TYPE));
    found.mode = fs::metadata(&file).ok().map(|found| found.permissions().mode());
    found.current = fs::read(ours).ok().zip(fs::read(&file).ok()).map(|(ours, there)| ours == there);
    let others = MESH_PLUGINS.iter().filter(|other| root.of(&bin.join(other)).exists());
    found.others = others.map(|other| (*other).to_owned()).collect();
    Ok(found)
}
