//! Requests on their way to the writer thread.

use crate::{Lease, StoreError, TxnRequest, TxnResponse};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Requests that wait or are being written; more senders wait for their turn.
const CAPACITY: usize = 4096;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
pub(crate) enum Command {
    Txn { req: TxnRequest, reply: Reply<TxnResponse> },
    Compact { revision: i64, reply: Reply<()> },
    Grant { id: i64, ttl: i64, reply: Reply<Lease> },
    Revoke { id: i64, reply: Reply<()> },
}

/// The writer's queue; the writer waits on it without polling.
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    permits: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    commands: VecDeque<(Command, OwnedSemaphorePermit)>,
    poked: bool,
    closed: bool,
}

/// What the writer woke up for.
pub(crate) struct Work {
    pub commands: Vec<Command>,
    pub closed: bool,
    /// Held until the commands are answered.
    pub _permits: Vec<OwnedSemaphorePermit>,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Queue { state: Mutex::default(), wake: Condvar::new(), permits: Arc::new(Semaphore::new(CAPACITY)) }
    }

    /// Queues a request; waits while too many are under way.
    pub(crate) async fn push(&self, command: Command) -> Result<(), StoreError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let mut state = self.state.lock();
        if state.closed {
            return Err(StoreError::Closed);
        }
        state.commands.push_back((command, permit));
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Makes the writer look for work other than requests.
    pub(crate) fn poke(&self) {
        self.state.lock().poked = true;
        self.wake.notify_one();
    }

    /// No more requests; those queued are still answered.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.permits.close();
        self.wake.notify_one();
    }

    /// Waits for requests, a poke, the close or the deadline (`now`: does not wait), and takes at most `max` requests.
    pub(crate) fn take(&self, max: usize, wait: Wait) -> Work {
        let mut state = self.state.lock();
        while state.commands.is_empty() && !state.poked && !state.closed {
            match wait {
                Wait::No => break,
                Wait::Forever => self.wake.wait(&mut state),
                Wait::Until(deadline) => {
                    if self.wake.wait_until(&mut state, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        state.poked = false;
        let count = state.commands.len().min(max);
        let (commands, permits) = state.commands.drain(..count).unzip();
        Work { commands, closed: state.closed && state.commands.is_empty(), _permits: permits }
    }
}

/// How long [`Queue::take`] waits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    No,
    Forever,
    Until(Instant),
}
