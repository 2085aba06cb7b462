//! What wakes the installer: a signal, a change in one of the directories, or time.

use crate::disk::{Disk, Stamp};
use crate::output::log;
use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The signals that end the program.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Signals and directories. A directory that cannot be watched is looked at now and then all the same.
#[derive(Debug)]
pub struct Watch {
    signals: SignalFd,
    inotify: Option<Inotify>,
    directories: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// Which directory is watched under that name: another one may have been put into its place.
    now: Option<((u64, u64), WatchDescriptor)>,
}

impl Watch {
    /// Takes over the signals; to be called before any thread is started.
    pub fn new(directories: &[&Path]) -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        ENDING.into_iter().for_each(|signal| set.add(signal));
        set.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&set, flags).context("cannot read signals")?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(e) = &inotify {
            log!("inotify refuses ({}): directories are looked at twice a second", e.desc());
        }
        let directories =
            directories.iter().map(|path| Watched { path: path.to_path_buf(), now: None }).collect();
        Ok(Self { signals, inotify: inotify.ok(), directories })
    }

    /// Waits until something happens, for `time` at the most. Gives whether the program shall end.
    pub fn wait(&mut self, disk: &impl Disk, time: Duration) -> anyhow::Result<bool> {
        self.renew(disk);
        let time = PollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.inotify.as_ref().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, time) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot wait"),
        }
        drop(fds);
        // What happened does not matter: the directory is looked at.
        if let Some(inotify) = &self.inotify {
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        Ok(self.signals.read_signal().context("cannot read a signal")?.is_some())
    }

    /// Watches what is under each name now: a directory may be removed, mounted over or come later.
    fn renew(&mut self, disk: &impl Disk) {
        let Some(inotify) = &self.inotify else { return };
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for directory in &mut self.directories {
            let inode = disk.stamp(&directory.path).ok().map(|stamp: Stamp| stamp.inode);
            if inode.is_some() && inode == directory.now.as_ref().map(|(inode, _)| *inode) {
                continue;
            }
            if let Some((_, old)) = directory.now.take() {
                let _ = inotify.rm_watch(old);
            }
            let watched =
                inode.and_then(|inode| Some((inode, inotify.add_watch(&directory.path, flags).ok()?)));
            directory.now = watched;
        }
    }
}
