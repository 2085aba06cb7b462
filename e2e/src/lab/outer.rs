//! The private world that everything runs in: the program executes itself again as the first process of new network,
//! mount, pid, uts and ipc namespaces.
//!
//! The first process of a pid namespace takes all others with it when it ends, and the mounts and network namespaces
//! go with the last process. So a crash, a SIGKILL or a closed terminal leaves nothing but empty cgroup directories,
//! which the next start removes ([`super::cgroup`]).

use super::cgroup::Cgroups;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Says to the second execution that it is the second.
const INNER: &str = "SLUICE_LAB_INNER";
/// Where the lab keeps its files, on a tmpfs of its own.
const LAB_DIR: &str = "/run/sluice-lab";
/// Host directories that programs under test may write to: a private copy-on-write view of each.
const PRIVATE: [&str; 2] = ["/etc", "/var/lib"];

/// The private world. Keep it until the end: dropping it removes the cgroups.
#[derive(Debug)]
pub struct Outer {
    cgroups: Arc<Cgroups>,
    dir: PathBuf,
}

/// Makes the private world and goes on in it. Does not return in the first execution: that becomes `unshare(1)`,
/// whose death kills everything inside. Call it first thing in `main`, before any thread starts.
///
/// # Errors
/// When the caller is not root, `unshare` is missing, or a mount is refused.
pub fn enter() -> Result<Outer> {
    // A child of the lab inherits the variable but is not the first process of its pid namespace.
    if std::env::var_os(INNER).is_some() && std::process::id() == 1 {
        return Outer::set_up();
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root: it makes network namespaces and cgroups (all private, all gone at the end)"
    );
    let this = std::env::current_exe().context("which program is this?")?;
    let failure = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "--"])
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(INNER, "1")
        .exec();
    bail!("unshare(1), from the package util-linux, could not be started: {failure}");
}

impl Outer {
    fn set_up() -> Result<Self> {
        mount_at("tmpfs", Path::new("/run"), "tmpfs", "mode=755")?;
        for path in PRIVATE {
            private_view(Path::new(path))?;
        }
        let dir = PathBuf::from(LAB_DIR);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {LAB_DIR}"))?;
        nix::unistd::sethostname("sluice-lab").context("name the lab's host")?;
        let cgroups = Arc::new(Cgroups::create(&dir)?);
        end_on_signal(Arc::clone(&cgroups))?;
        Ok(Self { cgroups, dir })
    }

    /// The lab's cgroups.
    #[must_use]
    pub fn cgroups(&self) -> &Arc<Cgroups> {
        &self.cgroups
    }

    /// Where the lab keeps its files: gone at the end.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends the program, and with it the lab: `std::process::exit` alone would leave the cgroups.
    pub fn exit(self, code: i32) -> ! {
        self.cgroups.remove();
        std::process::exit(code)
    }

    /// Writes the lab's own `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn resolve_with(&self, server: std::net::IpAddr) -> Result<()> {
        // The machine's file may be a link into /run, which is empty here.
        let path = Path::new("/etc/resolv.conf");
        match std::fs::remove_file(path) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(why.into()),
            _ => {}
        }
        std::fs::write(path, format!("nameserver {server}\n")).context("write the lab's /etc/resolv.conf")
    }
}

/// Lays a writable layer over `path` that only this mount namespace sees.
fn private_view(path: &Path) -> Result<()> {
    let layers = Path::new("/run/private").join(path.strip_prefix("/").unwrap_or(path));
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    for layer in [&upper, &work] {
        std::fs::create_dir_all(layer).with_context(|| format!("make {}", layer.display()))?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", path.display(), upper.display(), work.display());
    mount_at("overlay", path, "overlay", &options)
}

fn mount_at(source: &str, target: &Path, kind: &str, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount {kind} on {} ({options})", target.display()))
}

/// The first process of a pid namespace ignores signals that it does not handle: without this, Ctrl-C does nothing.
fn end_on_signal(cgroups: Arc<Cgroups>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
                signal(SignalKind::hangup()),
            ) else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            eprintln!("interrupted: the lab ends");
            cgroups.remove();
            std::process::exit(130);
        });
    })?;
    Ok(())
}
