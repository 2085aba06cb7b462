//! A pod's network namespace, and the one thread that enters them.

use nix::sched::{CloneFlags, setns};
use sluice_shared::ids::NetnsId;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// A handle on a namespace. As with ztunnel, it is kept for as long as the pod is served, and pins the namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    id: NetnsId,
}

/// The thread that enters namespaces. It does nothing else; a socket stays in the namespace it was made in and is used
/// from anywhere. It comes back from each: a namespace that a thread is in lives on without its pod, with its links.
#[derive(Clone)]
pub struct Entrance(Arc<Mutex<Sender<Job>>>);

struct Job {
    netns: Netns,
    work: Box<dyn FnOnce(io::Result<()>) + Send>,
}

impl Netns {
    /// Takes a descriptor. Whether it is a network namespace shows when it is entered (EINVAL).
    ///
    /// # Errors
    /// When fstat fails.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let meta = file.metadata()?;
        let id = NetnsId { dev: meta.dev(), inode: meta.ino() };
        Ok(Self { fd: Arc::new(file.into()), id })
    }

    /// The one that this process is in.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn own() -> io::Result<Self> {
        Self::new(File::open("/proc/self/ns/net")?.into())
    }

    /// Which namespace it is.
    #[must_use]
    pub const fn id(&self) -> NetnsId {
        self.id
    }
}

impl Entrance {
    /// Starts the thread.
    #[must_use]
    pub fn open() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            let home = Netns::own();
            for Job { netns, work } in queue {
                work(setns(&*netns.fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
                if let Ok(home) = &home {
                    // Where this fails, the next job goes on from where the thread is.
                    let _ = setns(&*home.fd, CloneFlags::CLONE_NEWNET);
                }
            }
        });
        Self(Arc::new(Mutex::new(jobs)))
    }

    /// Does `work`, which must not block, within `netns`.
    ///
    /// # Errors
    /// `EINVAL` when `netns` is no network namespace, and those of `work`.
    pub async fn within<T: Send + 'static>(
        &self,
        netns: &Netns,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, result) = oneshot::channel();
        let work = Box::new(move |entered: io::Result<()>| {
            let _ = answer.send(entered.and_then(|()| work()));
        });
        let job = Job { netns: netns.clone(), work };
        let gone = || io::Error::other("the thread that enters namespaces is gone");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(job).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}
