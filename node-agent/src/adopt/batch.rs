//! One look for everybody who asks at about the same time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long what was found is good for. A pod that is newer than that asks again.
const FRESH: Duration = Duration::from_secs(1);
/// How long a failure stands: whoever asks meanwhile must not wait for the same timeout again.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// What the last look found. It is let go of soon after: between adoptions it costs nothing.
pub(super) struct Batch<T> {
    fresh: Duration,
    failed_for: Duration,
    last: Arc<Mutex<Option<Look<T>>>>,
}

struct Look<T> {
    until: Instant,
    found: Result<Arc<T>, String>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { fresh: FRESH, failed_for: FAILED_FOR, last: Arc::default() }
    }
}

impl<T: Send + Sync + 'static> Batch<T> {
    /// What the last look found, or, when that is old, what `look` finds. Others who ask meanwhile wait for it.
    pub(super) async fn get(&self, look: impl Future<Output = Result<T, String>>) -> Result<Arc<T>, String> {
        let mut last = self.last.lock().await;
        if let Some(Look { until, found }) = last.as_ref()
            && Instant::now() < *until
        {
            return found.clone();
        }
        let found = look.await.map(Arc::new);
        self.put(&mut last, found.clone());
        found
    }

    /// From now on, and for a while, there is nothing to be had.
    pub(super) async fn fail(&self, why: String) {
        let mut last = self.last.lock().await;
        self.put(&mut last, Err(why));
    }

    fn put(&self, last: &mut Option<Look<T>>, found: Result<Arc<T>, String>) {
        let until = Instant::now() + if found.is_ok() { self.fresh } else { self.failed_for };
        *last = Some(Look { until, found });
        let weak = Arc::downgrade(&self.last);
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            if let Some(last) = weak.upgrade() {
                let mut last = last.lock().await;
                if last.as_ref().is_some_and(|look| look.until == until) {
                    *last = None;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn those_who_ask_together_share_one_look() {
        let looks = AtomicUsize::new(0);
        let batch = Batch { fresh: NEVER, ..Batch::default() };
        let ask = || {
            batch.get(async {
                tokio::task::yield_now().await;
                Ok(looks.fetch_add(1, Ordering::SeqCst))
            })
        };
        assert_eq!(tokio::join!(ask(), ask()), (Ok(Arc::new(0)), Ok(Arc::new(0))));
    }

    #[tokio::test]
    async fn what_is_old_is_let_go_of() {
        let batch = Batch { fresh: Duration::from_millis(1), ..Batch::default() };
        assert_eq!(batch.get(async { Ok(1) }).await, Ok(Arc::new(1)));
        while batch.last.lock().await.is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(batch.get(async { Ok(2) }).await, Ok(Arc::new(2)));
    }

    #[tokio::test]
    async fn a_failure_is_not_waited_for_twice() {
        let batch = Batch { failed_for: NEVER, ..Batch::default() };
        assert_eq!(batch.get(async { Err("no answer".to_owned()) }).await, Err("no answer".to_owned()));
        assert_eq!(batch.get(async { Ok(()) }).await, Err("no answer".to_owned()));
    }

    #[tokio::test]
    async fn a_failure_takes_the_place_of_what_was_found() {
        let batch = Batch { fresh: NEVER, failed_for: Duration::ZERO, ..Batch::default() };
        assert_eq!(batch.get(async { Ok(1) }).await, Ok(Arc::new(1)));
        batch.fail("gone".into()).await;
        assert_eq!(batch.get(async { Ok(2) }).await, Ok(Arc::new(2)));
    }
}
