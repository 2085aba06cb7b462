//! Whether every part of the agent lives.
//!
//! An agent of which a part has died is worse than none: it looks ready, and what that part did is done no more. So a part
//! that ends before the agent is told to, and a panic anywhere but in a job of the kernel threads, which answer for
//! theirs, end the agent: the kubelet starts a whole one, and captured pods stay captured meanwhile.

use crate::kernel::catches_panics;
use std::future::Future;
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, Once, OnceLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the process's panics are told to.
static PANICS: OnceLock<watch::Sender<Option<String>>> = OnceLock::new();

/// Hears of parts that have died. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Vitals {
    ended: Arc<watch::Sender<Option<String>>>,
    panicked: watch::Receiver<Option<String>>,
}

impl Vitals {
    /// Begins to listen. What this process has panicked with before the first time is not heard.
    #[must_use]
    pub fn listen() -> Self {
        static HOOK: Once = Once::new();
        let panics = PANICS.get_or_init(|| watch::Sender::new(None));
        HOOK.call_once(|| {
            let print = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                print(panic);
                if !catches_panics() {
                    note(panics, &describe(panic));
                }
            }));
        });
        Self { ended: Arc::new(watch::Sender::new(None)), panicked: panics.subscribe() }
    }

    /// Runs a part that must not end by itself. Aborting it is no such end.
    pub fn keep(&self, part: &'static str, run: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let ended = Arc::clone(&self.ended);
        tokio::spawn(async move {
            run.await;
            note(&ended, &format!("{part} has ended"));
        })
    }

    /// Waits until a part has died, and says what is known of it.
    pub async fn failed(&self) -> String {
        let (mut ended, mut panicked) = (self.ended.subscribe(), self.panicked.clone());
        let first = tokio::select! {
            ended = ended.wait_for(Option::is_some) => ended,
            panicked = panicked.wait_for(Option::is_some) => panicked,
        };
        // Both are told for as long as the process lives.
        first.ok().and_then(|why| why.clone()).unwrap_or_else(|| "nobody tells any more".to_owned())
    }
}

/// The first is the cause; what follows from it is not told.
fn note(ended: &watch::Sender<Option<String>>, why: &str) {
    ended.send_if_modified(|known| {
        let first = known.is_none();
        known.get_or_insert_with(|| why.to_owned());
        first
    });
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let said = panic.payload();
    let what =
        said.downcast_ref::<&str>().copied().or_else(|| said.downcast_ref::<String>().map(String::as_str));
    let what = what.unwrap_or("no message");
    match panic.location() {
        Some(place) => format!("a part has panicked at {place}: {what}"),
        None => format!("a part has panicked: {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Pool;
    use crate::kernel::fake::RecordingKernel;

    /// One test for both, and the only one of this process's that panics outside the kernel threads: whatever does is heard
    /// by all who listen.
    #[tokio::test]
    async fn a_part_that_ends_and_a_panic_are_heard_but_for_one_in_a_job_of_the_kernel_threads() {
        let vitals = Vitals::listen();
        let aborted = vitals.keep("what is told to end", std::future::pending());
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        let pool = Pool::new(Arc::new(RecordingKernel::default()), Some(1)).unwrap();
        let error = pool.run::<(), _>(|_| panic!("that job's error")).await.unwrap_err();
        assert!(error.to_string().contains("that job's error"), "{error}");
        vitals.keep("the source", async {}).await.unwrap();
        assert_eq!(vitals.failed().await, "the source has ended", "and neither of what was before");

        let vitals = Vitals::listen();
        // Nobody looks after a task within a task.
        drop(tokio::spawn(async { drop(tokio::spawn(async { panic!("nobody looks at this") })) }));
        let why = vitals.failed().await;
        assert!(why.contains("vitals.rs") && why.ends_with("nobody looks at this"), "{why}");
    }
}
