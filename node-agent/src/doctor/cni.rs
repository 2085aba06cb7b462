//! The runtime's CNI directories.

use super::root::Root;
use super::{Options, files};
use nix::sys::statvfs::{FsFlags, statvfs};
use sluice_shared::conflist::{
    DROP_IN_FILE, Directory, DropIn, File, MAX_CONFLIST, PLUGIN_TYPE, Primary, is_configuration, is_parked,
};
use sluice_shared::doctor::{CniFacts, Look, MESH_PLUGINS, PluginFile, Unlooked};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Platforms, as the chart names them, with the directories of configuration and of plugins; the usual ones first.
const PLACES: [(Option<&str>, &str, &str); 6] = [
    (Some("gke"), "/etc/cni/net.d", "/home/kubernetes/bin"),
    (None, "/etc/cni/net.d", "/opt/cni/bin"),
    (Some("k3d"), "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/bin"),
    (Some("k3s"), "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
    (
        Some("microk8s"),
        "/var/snap/microk8s/current/args/cni-network",
        "/var/snap/microk8s/current/opt/cni/bin",
    ),
    (Some("openshift"), "/run/multus/cni/net.d", "/var/lib/cni/bin"),
];

/// More than any runtime's directory has: what has more is none.
const MAX_FILES: usize = 1000;
/// How the names of the installer's temporary files and directories begin.
const TEMPORARY: &str = ".sluice-";
const AS_ROOT: &str = "run it as root";

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
    // These two share their configuration's place with others.
    let told = |platform: Option<&str>| match platform {
        Some("gke") => there("/home/kubernetes/bin"),
        Some("k3d") => root.of(Path::new("/bin/host-local")).exists(),
        _ => true,
    };
    let places: Vec<_> =
        PLACES.into_iter().filter(|(platform, conf, _)| told(*platform) && there(conf)).collect();
    let used = |conf: &str| {
        read_directory(root, Path::new(conf))
            .is_ok_and(|found| !matches!(found.primary(), Primary::Absent { .. }))
    };
    let chosen = places.iter().find(|(_, conf, _)| used(conf)).or(places.first());
    let (platform, conf, bin) = chosen.copied().unwrap_or(PLACES[1]);
    (platform, conf.into(), bin.into())
}

fn configuration(root: &Root, platform: Option<&'static str>, conf: &Path) -> Look<CniFacts> {
    let path = conf.display().to_string();
    let directory = read_directory(root, conf).map_err(|error| {
        let how = match error.kind() {
            ErrorKind::PermissionDenied => AS_ROOT,
            _ => "run it on the node, in the container install, or with --host-root; name another directory with --conf-dir",
        };
        Unlooked::new(format!("{path}: {error}"), how)
    })?;
    Ok(CniFacts { path, platform, directory, not_writable: read_only(&root.of(conf)) })
}

/// As the installer looks at it (`install/src/directory.rs`).
fn read_directory(root: &Root, conf: &Path) -> io::Result<Directory> {
    let mut found = Directory::default();
    for entry in fs::read_dir(root.of(conf))? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let path = conf.join(&name);
        // A link is followed within the node.
        if root.of(&path).is_dir() {
            // What a crash of the installer's has left is not in force.
            if !name.starts_with(TEMPORARY)
                && let Some(text) = text_of(root, &path.join(DROP_IN_FILE))?
            {
                found.drop_ins.push(DropIn { network: name, text });
            }
        } else if (is_configuration(&name) || is_parked(&name))
            && let Some(text) = text_of(root, &path)?
        {
            found.files.push(File { name, text });
        }
        if found.files.len() + found.drop_ins.len() > MAX_FILES {
            return Err(io::Error::other(format!("it has more than {MAX_FILES} configurations")));
        }
    }
    found.files.sort_by(|a, b| a.name.cmp(&b.name));
    found.drop_ins.sort_by(|a, b| a.network.cmp(&b.network));
    Ok(found)
}

/// A file's text, or why it has none; `None` when it is not there.
///
/// # Errors
/// When the caller may not read it, which says nothing of the file.
fn text_of(root: &Root, path: &Path) -> io::Result<Option<Result<String, String>>> {
    match files::text(&root.of(path), MAX_CONFLIST) {
        Ok(text) => Ok(Some(Ok(text))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let name = path.file_name().unwrap_or_default().display();
            Err(io::Error::new(error.kind(), format!("{name}: {error}")))
        }
        Err(error) => Ok(Some(Err(error.to_string()))),
    }
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
            return Err(Unlooked::new(format!("{}: {error}", bin.display()), AS_ROOT));
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
    let refused =
        |error: &io::Error| Unlooked::new(format!("{}: {error}", bin.join(PLUGIN_TYPE).display()), AS_ROOT);
    found.mode = match fs::metadata(&file) {
        Ok(there) => Some(there.permissions().mode()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(refused(&error)),
        Err(_) => None,
    };
    if found.mode.is_some() && ours.exists() {
        found.current = match files::are_equal(ours, &file) {
            Ok(equal) => Some(equal),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(refused(&error)),
            // What is wrong with it is seen by its mode.
            Err(_) => None,
        };
    }
    let others = MESH_PLUGINS.iter().filter(|other| root.of(&bin.join(other)).exists());
    found.others = others.map(|other| (*other).to_owned()).collect();
    Ok(found)
}
