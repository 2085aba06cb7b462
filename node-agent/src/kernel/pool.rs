//! The threads that may enter namespaces.
//!
//! `setns` changes the calling thread, so it is done neither on a tokio worker nor on a `spawn_blocking` thread, both
//! of which are shared with everything else. A thread of the pool that cannot get back to the agent's own namespace is
//! never used again: it ends, and another one takes its place.

use super::{Kernel, KernelError};
use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;

thread_local! {
    /// Set when this thread may be in a namespace that is not the agent's.
    static LOST: Cell<bool> = const { Cell::new(false) };
    /// Set on the pool's own threads, whose jobs' panics become their callers' errors.
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Dedicated threads in front of one [`Kernel`], with an asynchronous face. Dropping it lets running jobs end and
/// answers waiting ones with [`KernelError::Gone`].
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    kernel: Arc<dyn Kernel>,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// What a worker runs. It answers its caller by itself; what it returns is whether it ended without a panic.
type Job = Box<dyn FnOnce(&dyn Kernel) -> bool + Send>;

impl Pool {
    /// Starts `threads` threads, or one for each processor when `None`: more only queue behind each other.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(kernel: Arc<dyn Kernel>, threads: Option<usize>) -> std::io::Result<Self> {
        let threads = match threads {
            Some(threads) => threads.max(1),
            None => thread::available_parallelism().map_or(1, usize::from),
        };
        let shared = Arc::new(Shared { kernel, queue: Mutex::default(), work: Condvar::new() });
        let (ended, replacements) = mpsc::channel();
        let pool = Self { shared: Arc::clone(&shared) };
        for _ in 0..threads {
            start_worker(&shared, &ended)?;
        }
        // A new thread begins in the namespace of the one that starts it. A lost worker must therefore not start its
        // own replacement; this thread, which never goes anywhere, does.
        thread::Builder::new().name("kernel-keeper".into()).spawn(move || {
            while replacements.recv().is_ok() && !shared.lock().closed {
                while let Err(error) = start_worker(&shared, &ended) {
                    tracing::error!(%error, "cannot replace a kernel thread; trying again in a second");
                    thread::sleep(Duration::from_secs(1));
                }
            }
        })?;
        Ok(pool)
    }

    /// Runs `job` on one of the threads, in the order of the calls. A job whose caller has gone away before it began
    /// is not begun.
    ///
    /// # Errors
    /// What the job returns; [`KernelError::Gone`] when it panics or the pool is dropped first.
    pub fn run<T, F>(&self, job: F) -> impl Future<Output = Result<T, KernelError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Kernel) -> Result<T, KernelError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.shared.push(Box::new(move |kernel| {
            if reply.is_closed() {
                return true;
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| job(kernel)));
            let fine = outcome.is_ok();
            let result = outcome.unwrap_or_else(|panic| Err(KernelError::Gone(panic_message(&*panic))));
            // The caller may have stopped waiting; the work is done all the same.
            drop(reply.send(result));
            fine
        }));
        async move { answer.await.unwrap_or_else(|_| Err(KernelError::Gone("the pool has shut down".into()))) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        let unanswered = std::mem::take(&mut queue.jobs);
        drop(queue);
        drop(unanswered);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while the lock is held, and a queue is whole after any panic anyway.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        let mut queue = self.lock();
        if !queue.closed {
            queue.jobs.push_back(job);
            drop(queue);
            self.work.notify_one();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn start_worker(shared: &Arc<Shared>, ended: &mpsc::Sender<()>) -> std::io::Result<()> {
    let (shared, ended) = (Arc::clone(shared), ended.clone());
    thread::Builder::new().name("kernel".into()).spawn(move || {
        OURS.set(true);
        while let Some(job) = shared.next() {
            let fine = job(&*shared.kernel);
            if !fine || thread_is_lost() {
                tracing::error!(lost = thread_is_lost(), "a kernel thread ends and is replaced");
                break;
            }
        }
        // Heard by the keeper, unless it has gone with the pool.
        let _ = ended.send(());
    })?;
    Ok(())
}

/// Whether a panic on this thread is caught, and answered for.
#[must_use]
pub fn catches_panics() -> bool {
    OURS.get()
}

/// Says that this thread may be in a foreign namespace, so that it is not used again.
pub(super) fn lose_thread() {
    LOST.set(true);
}

/// Whether this thread may be in a foreign namespace.
pub(super) fn thread_is_lost() -> bool {
    LOST.get()
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let said =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a job panicked: {}", said.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::RecordingKernel;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn pool(threads: usize) -> Pool {
        Pool::new(Arc::new(RecordingKernel::default()), Some(threads)).unwrap()
    }

    #[tokio::test]
    async fn jobs_run_off_the_callers_thread_and_answer() {
        let here = thread::current().id();
        let there = pool(1).run(|_| Ok(thread::current().id())).await.unwrap();
        assert_ne!(here, there);
    }

    #[tokio::test]
    async fn a_panic_is_that_jobs_error_and_the_next_job_runs() {
        let pool = pool(1);
        let error = pool.run::<(), _>(|_| panic!("boom")).await.unwrap_err();
        assert!(matches!(&error, KernelError::Gone(why) if why.contains("boom")), "{error}");
        assert_eq!(pool.run(|_| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_lost_thread_is_not_used_again() {
        let pool = pool(1);
        let lost = pool
            .run(|_| {
                lose_thread();
                Ok(thread::current().id())
            })
            .await
            .unwrap();
        let (next, is_lost) = pool.run(|_| Ok((thread::current().id(), thread_is_lost()))).await.unwrap();
        assert_ne!(lost, next);
        assert!(!is_lost);
    }

    #[tokio::test]
    async fn jobs_run_side_by_side() {
        let pool = pool(2);
        let (sender, receiver) = mpsc::channel();
        let waits = pool.run(move |_| Ok(receiver.recv_timeout(Duration::from_secs(20)).is_ok()));
        let wakes = pool.run(move |_| Ok(sender.send(()).is_ok()));
        assert!(wakes.await.unwrap());
        assert!(waits.await.unwrap());
    }

    #[tokio::test]
    async fn a_job_that_nobody_waits_for_is_not_begun() {
        let pool = pool(1);
        let (open, gate) = mpsc::channel::<()>();
        let begun = Arc::new(AtomicUsize::new(0));
        let first = pool.run(move |_| Ok(gate.recv().is_ok()));
        let counted = Arc::clone(&begun);
        drop(pool.run(move |_| Ok(counted.fetch_add(1, Ordering::SeqCst))));
        open.send(()).unwrap();
        first.await.unwrap();
        pool.run(|_| Ok(())).await.unwrap();
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn dropping_the_pool_answers_those_who_wait() {
        let pool = pool(1);
        let (open, gate) = mpsc::channel::<()>();
        let first = pool.run(move |_| Ok(gate.recv().is_ok()));
        let second = pool.run(|_| Ok(()));
        drop(pool);
        assert!(matches!(second.await, Err(KernelError::Gone(_))));
        // The first was either running, and ends well, or had not begun.
        let _ = open.send(());
        assert!(matches!(first.await, Ok(true) | Err(KernelError::Gone(_))));
    }
}
