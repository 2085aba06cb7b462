//! Network namespaces by name, as bind mounts below `/run/netns`, where runtimes and `ip netns` have them too.
//!
//! Code runs inside one on a thread of its own that ends afterwards, so that no thread is ever left in the wrong one.
//! Sockets made and processes started there stay there.

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use sluice_shared::ids::NetnsId;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

const DIR: &str = "/run/netns";

/// A network namespace. Clones are the same one. It lives until [`Netns::remove`] and the last process and socket.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: Arc<File>,
}

impl Netns {
    /// Makes a new one, with `lo` down as the kernel makes it.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn create(name: &str) -> Result<Self> {
        std::fs::create_dir_all(DIR)?;
        let path = Path::new(DIR).join(name);
        File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        let target = path.clone();
        std::thread::spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("bind it to {}", target.display()))
        })
        .join()
        .map_err(|_| anyhow!("the thread that makes {name} panicked"))??;
        Self::open(name)
    }

    /// Opens the one that is called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(DIR).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { name: name.to_owned(), path, file: Arc::new(file) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as a runtime gives it in `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which one it is.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn id(&self) -> Result<NetnsId> {
        let found = self.file.metadata()?;
        Ok(NetnsId { dev: found.dev(), inode: found.ino() })
    }

    /// Takes its name away; what still runs in it goes on.
    ///
    /// # Errors
    /// When it has none any more.
    pub fn remove(&self) -> Result<()> {
        umount2(&self.path, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", self.path.display()))?;
        std::fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }

    /// Moves the calling thread into it, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", self.name))
    }

    /// Runs `f` inside and waits for it.
    ///
    /// # Errors
    /// When it cannot be entered, or `f` fails.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                f()
            });
            inside.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// Starts a thread inside.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let this = self.clone();
        let inside = move || {
            this.enter()?;
            f()
        };
        Ok(std::thread::Builder::new().name(self.name.clone()).spawn(inside)?)
    }

    /// Runs a program inside to its end, with `input` on its stdin.
    ///
    /// # Errors
    /// When it cannot be started. Its exit status is for the caller to judge.
    pub fn output(&self, command: &mut Command, input: &[u8]) -> Result<Output> {
        self.run(|| feed(command, input))
    }

    /// Runs a program inside that must succeed; returns its stdout.
    ///
    /// # Errors
    /// With the program's stderr when it fails.
    pub fn must(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.output(Command::new(program).args(args), b"")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {} in {}: {}", args.join(" "), self.name, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` commands inside, one a line, stopping at the first that fails.
    ///
    /// # Errors
    /// With `ip`'s own words.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let output = self.output(Command::new("ip").args(["-batch", "-"]), commands.as_bytes())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ip in {}: {}; the commands were:\n{commands}",
            self.name,
            said.trim()
        );
        Ok(())
    }

    /// Sets a sysctl below `/proc/sys/net`, in which each namespace has its own values.
    ///
    /// # Errors
    /// When there is no such sysctl or the value is refused.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.run(|| {
            std::fs::write(&path, value).with_context(|| format!("set {} in {}", path.display(), self.name))
        })
    }
}

fn feed(command: &mut Command, input: &[u8]) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // A program that does not read its input is no failure of ours.
            Err(why) if why.kind() != std::io::ErrorKind::BrokenPipe => return Err(why.into()),
            _ => {}
        }
    }
    child.wait_with_output().with_context(|| format!("wait for {name}"))
}
