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
    last: Arc<Mutex<Option<Look<T>>>>,
}

struct Look<T> {
    until: Instant,
    found: Result<Arc<T>, String>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { last: Arc::default() }
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
        let until = Instant::now() + if found.is_ok() { FRESH } else { FAILED_FOR };
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

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_together_share_one_look_and_later_ones_get_another() {
        let (batch, looks) = (Batch::default(), AtomicUsize::new(0));
        let ask = || {
            batch.get(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(looks.fetch_add(1, Ordering::SeqCst))
            })
        };
        let (a, b) = tokio::join!(ask(), ask());
        assert_eq!((a, b), (Ok(Arc::new(0)), Ok(Arc::new(0))));
        tokio::time::sleep(FRESH).await;
        assert!(batch.last.lock().await.is_none(), "what is old is let go of");
        assert_eq!(ask().await, Ok(Arc::new(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_waited_for_twice() {
        let batch = Batch::<()>::default();
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err("no answer".to_owned())
        };
        let began = Instant::now();
        let (a, b) = tokio::join!(batch.get(slow()), batch.get(slow()));
        assert_eq!((a, b), (Err("no answer".into()), Err("no answer".into())));
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        tokio::time::sleep(FAILED_FOR).await;
        assert_eq!(batch.get(async { Ok(()) }).await, Ok(Arc::new(())));
    }
}
