//! watch: a stream of frames read from the cache's window.

mod frames;

use super::get::{include, version};
use super::{Context, Reply, ReplyBody};
use crate::cache::{Cache, CacheEvent, Cursor, EventType, Filter, Lagged, LaneReader, Slice, Wanted};
use crate::error::ApiError;
use crate::request::ListOptions;
use crate::server::Entered;
use crate::storage;
use bytes::Bytes;
use frames::Shape;
use rand::Rng;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// Events handed to the connection in one go.
const BATCH: usize = 256;
/// Bytes handed to the connection in one go, unless one event alone has more.
const BATCH_BYTES: usize = 256 << 10;
/// Time between progress bookmarks.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// A bookmark comes this long before the end of a watch.
const BOOKMARK_LEAD: Duration = Duration::from_secs(2);
/// Shortest life of a watch without timeoutSeconds; the longest is twice that.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// The objects that a watch begins with. They are taken from the cache's past page by page, so a client that reads
/// slowly keeps nothing in memory; one that is too slow for the window is ended.
struct Initial {
    revision: i64,
    start: Option<String>,
    /// A bookmark marks their end.
    with_end: bool,
}

/// What wakes a watch.
enum Changes {
    /// Every change of the resource.
    All(tokio::sync::watch::Receiver<u64>),
    /// Changes that it may see.
    Lane(LaneReader),
}

impl Changes {
    /// The next events, at most so many, and the revision everything up to which has been handed out when they are fewer.
    fn read(&mut self, cache: &Cache, cursor: &mut Cursor) -> Result<(Vec<Arc<CacheEvent>>, i64), Lagged> {
        match self {
            Changes::All(changes) => {
                changes.mark_unchanged();
                cache.read(cursor, BATCH)
            }
            Changes::Lane(lane) => match lane.events_before(Cache::place(cursor)) {
                0 => lane.read(BATCH),
                before => cache.read(cursor, before.min(BATCH)),
            },
        }
    }

    async fn wait(&mut self) -> bool {
        match self {
            Changes::All(changes) => changes.changed().await.is_ok(),
            Changes::Lane(lane) => lane.changed().await.is_ok(),
        }
    }
}

/// Longest time that a watch keeps its seat: a client that takes nothing must not keep others out.
const LONGEST_START: Duration = Duration::from_secs(10);

struct Watch {
    cache: Arc<Cache>,
    filter: Filter,
    shape: Shape,
    initial: Option<Initial>,
    cursor: Cursor,
    changes: Changes,
    pending: VecDeque<Bytes>,
    counter: Arc<crate::server::WatchCounter>,
    bookmarks: bool,
    next_bookmark: Instant,
    /// Rings when the next bookmark or the end is due; kept, as is the wait for the end of the cache, so that an event costs a
    /// watcher no timer.
    timer: Pin<Box<Sleep>>,
    retired: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Newest revision the client knows.
    sent: i64,
    end: Instant,
    last_bookmark_sent: bool,
    /// What happened until now is still told.
    ending: bool,
    over: bool,
    /// Dropped once what the watch begins with is handed over; then its seat is given back.
    starts: Option<oneshot::Sender<()>>,
}

fn timeout(options: &ListOptions) -> Duration {
    match options.timeout_seconds {
        // Longer than anybody waits, and short enough for the clock's arithmetic.
        Some(seconds) => Duration::from_secs(seconds.min(1 << 31)),
        None => DEFAULT_TIMEOUT.mul_f64(1.0 + rand::rng().random::<f64>()),
    }
}

/// Where a watch begins: with the present objects, or after a revision.
enum Start {
    Objects(Slice),
    After(Cursor, i64),
}

async fn start(
    cache: &Arc<Cache>,
    options: &ListOptions,
    filter: &Filter,
    wanted: i64,
    initial: bool,
) -> Result<Start, ApiError> {
    match options.resource_version.as_str() {
        "" => cache.wait_fresh().await?,
        "0" => cache.wait_loaded().await?,
        _ if initial => cache.wait_for(wanted).await?,
        _ => cache.wait_loaded().await?,
    }
    if initial {
        // The first page; only its revision and place in the window matter yet.
        let page = Wanted { limit: 1, ..Wanted::default() };
        let slice = cache.slice(filter, &page);
        return slice
            .map(Start::Objects)
            .ok_or_else(|| ApiError::internal("the cache has no newest revision"));
    }
    let from = if wanted == 0 { cache.revision() } else { wanted };
    if from < cache.revision()
        && let Some(oldest) = storage::compacted(&cache.store, from).await?
    {
        return Err(ApiError::expired(format!("too old resource version: {from} ({oldest})")));
    }
    Ok(Start::After(cache.cursor_after(from)?, from))
}

pub(super) async fn watch(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted_list(true)?;
    let options = ListOptions::parse(&context.query, true)?;
    let filter = context.filter(&options)?;
    let wanted = version(&options.resource_version)?;
    let include = include(context, accepted)?;
    let cache = context.cache().clone();
    // Without a version a watch begins with the present objects, unless it says otherwise.
    let legacy = matches!(options.resource_version.as_str(), "" | "0");
    let initial = options.send_initial_events.unwrap_or(legacy);
    let shape = Shape::new(context.resource.clone(), accepted, include);
    let content_type = accepted.format.stream_type().unwrap_or("application/json");
    let stream = |body| Reply { body, ..Reply::bytes(200, content_type, Bytes::new()) };
    let (first, cursor, sent) = match start(&cache, &options, &filter, wanted, initial).await {
        Ok(Start::Objects(slice)) => {
            let with_end = initial && options.bookmarks;
            let first = Initial { revision: slice.revision, start: None, with_end };
            (Some(first), slice.cursor, slice.revision)
        }
        Ok(Start::After(cursor, from)) => (None, cursor, from),
        Err(error) => {
            // What goes wrong once the parameters were understood is an event, as upstream does it.
            let frame = shape.error(&error);
            let body = futures::stream::once(std::future::ready(frame));
            return Ok(stream(ReplyBody::Stream(Box::pin(body))));
        }
    };
    let starts = context.seat.lock().take().filter(|_| first.is_some()).map(keep);
    let life = timeout(&options);
    let now = Instant::now();
    let retired = cache.retired().clone().cancelled_owned();
    let mut watch = Watch {
        changes: cache.join(&filter).map_or_else(|| Changes::All(cache.changes()), Changes::Lane),
        cache,
        filter,
        shape,
        initial: first,
        cursor,
        pending: VecDeque::new(),
        counter: {
            let row = &context.resource;
            context.core.metrics.watch(row.group(), row.version(), row.plural())
        },
        bookmarks: options.bookmarks,
        next_bookmark: now + BOOKMARK_PERIOD,
        timer: Box::pin(tokio::time::sleep_until(now + life)),
        retired: Box::pin(retired),
        sent,
        end: now + life,
        last_bookmark_sent: life <= BOOKMARK_LEAD,
        ending: false,
        over: false,
        starts,
    };
    let due = watch.due();
    watch.timer.as_mut().reset(due);
    let frames = futures::stream::unfold(watch, |mut watch| async move {
        let frames = watch.next().await?;
        Some((frames, watch))
    });
    Ok(stream(ReplyBody::Stream(Box::pin(frames))))
}

/// Keeps a seat until the sender is dropped, or too much time has passed.
fn keep(seat: Entered) -> oneshot::Sender<()> {
    let (starts, started) = oneshot::channel();
    tokio::spawn(async move {
        let _ = tokio::time::timeout(LONGEST_START, started).await;
        drop(seat);
    });
    starts
}

impl Watch {
    /// The next frames in one piece; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.take() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            if let Some(initial) = self.initial.take() {
                self.objects(initial);
                continue;
            }
            self.starts = None;
            match self.changes.read(&self.cache, &mut self.cursor) {
                Err(_) => self.over = true,
                Ok((events, revision)) => {
                    // Those before a lane are read first, however few they are.
                    let more = matches!(&self.changes, Changes::Lane(lane) if lane.events_before(Cache::place(&self.cursor)) > 0);
                    for event in &events {
                        if let Some((kind, shown)) = event.seen(&self.shape.resource, &self.filter) {
                            self.pending.push_back(self.shape.event(kind, shown, event));
                        }
                    }
                    let full = more || events.len() == BATCH;
                    self.sent = self.sent.max(revision);
                    if !self.pending.is_empty() || full {
                        // A long history must not keep the executor from others.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    if self.ending {
                        self.over = true;
                        continue;
                    }
                    self.wait().await;
                }
            }
        }
    }

    /// The next page of the objects that the watch begins with.
    fn objects(&mut self, initial: Initial) {
        let wanted = Wanted {
            revision: Some(initial.revision),
            start: initial.start.as_deref(),
            limit: BATCH,
            count: false,
        };
        let Some(slice) = self.cache.slice(&self.filter, &wanted) else {
            // The window has moved on: the client has to start again.
            self.over = true;
            return;
        };
        for entry in &slice.entries {
            self.pending.push_back(self.shape.object(EventType::Added, entry));
        }
        match slice.next {
            Some(next) => self.initial = Some(Initial { start: Some(next), ..initial }),
            None if initial.with_end => self.pending.push_back(self.shape.bookmark(initial.revision, true)),
            None => {}
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        if self.pending.len() <= 1 {
            return self.take_one();
        }
        let (mut count, mut size) = (0, 0);
        for frame in &self.pending {
            if count > 0 && size + frame.len() > BATCH_BYTES {
                break;
            }
            count += 1;
            size += frame.len();
        }
        if count == 1 {
            return self.take_one();
        }
        let mut out = Vec::with_capacity(size);
        for frame in self.pending.drain(..count) {
            self.counter.sent(frame.len());
            out.extend_from_slice(&frame);
        }
        Some(out.into())
    }

    /// When the timer rings next.
    fn due(&self) -> Instant {
        let last = self.end - BOOKMARK_LEAD;
        match (self.bookmarks, self.last_bookmark_sent) {
            (false, _) => self.end,
            (true, true) => self.end.min(self.next_bookmark),
            (true, false) => last.min(self.next_bookmark),
        }
    }

    fn take_one(&mut self) -> Option<Bytes> {
        let frame = self.pending.pop_front()?;
        self.counter.sent(frame.len());
        Some(frame)
    }

    /// Waits for a change, a bookmark's time or the end.
    async fn wait(&mut self) {
        tokio::select! {
            changed = self.changes.wait() => self.over |= !changed,
            () = self.timer.as_mut() => self.ring(),
            () = self.retired.as_mut() => self.ending = true,
        }
    }

    /// A bookmark or the end is due.
    fn ring(&mut self) {
        let now = Instant::now();
        if now >= self.end {
            self.over = true;
            return;
        }
        let last = !self.last_bookmark_sent && now >= self.end - BOOKMARK_LEAD;
        if last || now >= self.next_bookmark {
            self.last_bookmark_sent |= last;
            self.next_bookmark = now + BOOKMARK_PERIOD;
            self.bookmark();
        }
        let due = self.due();
        self.timer.as_mut().reset(due);
    }

    fn bookmark(&mut self) {
        // A quiet resource's version moves only when it is asked for: the next bookmark shows the answer.
        self.cache.request_progress();
        let revision = match &self.changes {
            Changes::Lane(lane) if lane.events_before(Cache::place(&self.cursor)) == 0 => lane.revision(),
            _ => match self.cache.read(&mut self.cursor.clone(), BATCH) {
                Ok((events, revision)) if events.is_empty() => Some(revision),
                _ => None,
            },
        };
        if let Some(revision) = revision {
            self.sent = self.sent.max(revision);
            let frame = self.shape.bookmark(self.sent, false);
            self.pending.push_back(frame);
        }
    }
}
