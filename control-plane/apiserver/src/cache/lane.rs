//! Lanes: the events of one value of one field, for watchers that select by it. A node's watch of its own pods is woken by
//! changes of these alone, however many other nodes there are; a watch of one object, by that object's.

use super::{Cache, CacheEvent, Entry, Filter, Lagged, State};
use crate::registry::Resource;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;

/// Events kept at most for readers of one lane that are slow.
const EVENTS: usize = 4096;
/// Bytes of them, roughly.
const BYTES: usize = 8 << 20;

/// A field that lanes are made by: the object's key, or one of the resource's selectable fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum By {
    Key,
    Field(usize),
}

#[derive(Default)]
struct Lane {
    events: VecDeque<Arc<CacheEvent>>,
    bytes: usize,
    /// Number of the first event.
    first: u64,
    /// Readers with the number of their next event.
    readers: Vec<(u64, u64)>,
    changed: watch::Sender<()>,
}

impl Lane {
    fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn pop(&mut self) {
        if let Some(old) = self.events.pop_front() {
            self.bytes -= old.weight();
            self.first += 1;
        }
    }

    fn push(&mut self, event: &Arc<CacheEvent>) {
        self.bytes += event.weight();
        self.events.push_back(event.clone());
        while self.events.len() > EVENTS || (self.bytes > BYTES && self.events.len() > 1) {
            self.pop();
        }
        self.changed.send_replace(());
    }

    /// Forgets what every reader has seen.
    fn trim(&mut self) {
        let seen = self.readers.iter().map(|(_, next)| *next).min().unwrap_or(u64::MAX);
        while self.first < seen && !self.events.is_empty() {
            self.pop();
        }
    }
}

/// The lanes of a cache; those that have readers.
#[derive(Default)]
pub(crate) struct Lanes {
    all: HashMap<By, HashMap<Box<str>, Lane>>,
    last_reader: u64,
}

/// What a filter selects by, if one lane has all that it may see.
fn of_filter(resource: &Resource, filter: &Filter) -> Option<(By, Box<str>)> {
    let terms = || filter.fields.terms.iter().filter(|term| term.equal && !term.value.is_empty());
    let name = terms().find(|term| term.field == "metadata.name");
    if let Some(name) = name
        && (!resource.namespaced || !filter.namespace.is_empty())
    {
        let key = super::entry_key(resource.namespaced, &filter.namespace, &name.value);
        return Some((By::Key, key.into()));
    }
    terms().find_map(|term| {
        let at = resource.fields.iter().position(|field| field.label == term.field)?;
        Some((By::Field(at), term.value.as_str().into()))
    })
}

impl Lanes {
    /// Hands an event to the lanes of what its object is and was.
    pub(crate) fn push(&mut self, event: &Arc<CacheEvent>) {
        let (new, old) = (&event.object, event.previous.as_ref());
        for (by, lanes) in &mut self.all {
            let value = |entry: &Entry| match by {
                By::Key => Some(entry.key.clone()),
                By::Field(at) => entry.field_at(*at).map(Arc::from),
            };
            let now = value(new);
            let before = old.and_then(|old| value(old)).filter(|before| Some(before) != now.as_ref());
            for value in now.into_iter().chain(before) {
                if let Some(lane) = lanes.get_mut(&*value) {
                    lane.push(event);
                }
            }
        }
    }

    /// Wakes all readers, so that they see that the cache has been built anew.
    pub(crate) fn wake(&self) {
        self.all.values().flat_map(HashMap::values).for_each(|lane| {
            lane.changed.send_replace(());
        });
    }
}

/// A watcher's place in a lane.
pub(crate) struct LaneReader {
    cache: Arc<Cache>,
    by: By,
    value: Box<str>,
    id: u64,
    epoch: u64,
    /// Number of the first event of the cache's window that the lane has, if it is of the lane at all.
    from: u64,
    changes: watch::Receiver<()>,
}

impl Drop for LaneReader {
    fn drop(&mut self) {
        let mut lanes = self.cache.lanes.lock();
        let Some(of_field) = lanes.all.get_mut(&self.by) else { return };
        if let Some(lane) = of_field.get_mut(&self.value) {
            lane.readers.retain(|(id, _)| *id != self.id);
            lane.trim();
            if lane.readers.is_empty() {
                of_field.remove(&self.value);
            }
        }
        if of_field.is_empty() {
            lanes.all.remove(&self.by);
        }
    }
}

impl Cache {
    /// Joins the lane of a filter, if it has one. Events from now on are read there, earlier ones from the window.
    pub(crate) fn join(self: &Arc<Self>, filter: &Filter) -> Option<LaneReader> {
        let (by, value) = of_filter(&self.resource, filter)?;
        // While the state is held no event comes.
        let state = self.state.read();
        let mut lanes = self.lanes.lock();
        lanes.last_reader += 1;
        let id = lanes.last_reader;
        let lane = lanes.all.entry(by).or_default().entry(value.clone()).or_default();
        lane.readers.push((id, lane.next()));
        Some(LaneReader {
            cache: self.clone(),
            by,
            value,
            id,
            epoch: state.epoch,
            from: state.window.next_sequence(),
            changes: lane.changed.subscribe(),
        })
    }
}

impl LaneReader {
    /// How many events a reader of the window has left before it goes on here.
    pub(crate) fn events_before(&self, sequence: u64) -> usize {
        usize::try_from(self.from.saturating_sub(sequence)).unwrap_or(usize::MAX)
    }

    /// The next events, at most `max`, and the revision everything up to which has been handed out when they are fewer.
    pub(crate) fn read(&mut self, max: usize) -> Result<(Vec<Arc<CacheEvent>>, i64), Lagged> {
        self.changes.mark_unchanged();
        let state = self.cache.state.read();
        let mut lanes = self.cache.lanes.lock();
        self.take(&state, &mut lanes, max)
    }

    fn take(
        &self,
        state: &State,
        lanes: &mut Lanes,
        max: usize,
    ) -> Result<(Vec<Arc<CacheEvent>>, i64), Lagged> {
        let lane = lanes.all.get_mut(&self.by).and_then(|of_field| of_field.get_mut(&self.value));
        let lane = lane.filter(|_| state.epoch == self.epoch).ok_or(Lagged)?;
        let first = lane.first;
        let place = lane.readers.iter_mut().find(|(id, _)| *id == self.id).map(|(_, next)| next);
        let next = place.filter(|next| **next >= first).ok_or(Lagged)?;
        let skip = usize::try_from(*next - first).unwrap_or(usize::MAX).min(lane.events.len());
        let events: Vec<Arc<CacheEvent>> = lane.events.range(skip..).take(max).cloned().collect();
        *next += events.len() as u64;
        lane.trim();
        Ok((events, state.revision))
    }

    /// The revision everything up to which has been handed out; `None` while there is something to read.
    pub(crate) fn revision(&self) -> Option<i64> {
        let state = self.cache.state.read();
        let lanes = self.cache.lanes.lock();
        let lane = lanes.all.get(&self.by)?.get(&self.value)?;
        let next = lane.readers.iter().find(|(id, _)| *id == self.id)?.1;
        (state.epoch == self.epoch && next == lane.next()).then_some(state.revision)
    }

    /// Waits for events of the lane.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.changes.changed().await
    }
}

#[cfg(test)]
#[path = "lane/tests.rs"]
mod tests;
