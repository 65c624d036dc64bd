//! The creations of a definition's objects that are under way: what removes the objects waits for them, so that none is
//! left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Creations under way, and whether there may be new ones.
#[derive(Debug)]
pub(crate) struct Creations {
    closed: AtomicBool,
    running: watch::Sender<usize>,
}

/// One creation, until it is dropped.
#[derive(Debug)]
pub(crate) struct Creation(Arc<Creations>);

impl Creations {
    /// None under way; `closed` when there may be none.
    pub(crate) fn new(closed: bool) -> Arc<Self> {
        Arc::new(Creations { closed: AtomicBool::new(closed), running: watch::Sender::new(0) })
    }

    /// Begins a creation; none when there may be none any more.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Creation> {
        // Counted before it is looked at, so that who closes either stops this one or waits for it.
        self.running.send_modify(|running| *running += 1);
        let creation = Creation(self.clone());
        (!self.is_closed()).then_some(creation)
    }

    /// Whether there may be no new ones.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Lets new ones begin or not.
    pub(crate) fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
    }

    /// Waits until none is under way.
    pub(crate) async fn ended(&self) {
        // The sender lives as long as this.
        _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn who_closes_waits_for_what_has_begun_and_stops_the_rest() {
        let creations = Creations::new(false);
        let (first, second) = (creations.begin().expect("open"), creations.begin().expect("open"));
        creations.close(true);
        assert!(creations.begin().is_none());
        assert!(creations.ended().now_or_never().is_none());
        drop(first);
        assert!(creations.ended().now_or_never().is_none());
        drop(second);
        creations.ended().await;
        creations.close(false);
        assert!(creations.begin().is_some());
    }
}
