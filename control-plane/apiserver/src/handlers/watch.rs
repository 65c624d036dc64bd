//! watch: a stream of frames read from the cache's window.

use super::get::{include, version};
use super::{Context, Reply, ReplyBody};
use crate::cache::{Cache, CacheEvent, Cursor, Entry, EventType, Filter, frame_of};
use crate::error::ApiError;
use crate::registry::Resource;
use crate::request::{ListOptions, View};
use crate::table::{self, IncludeObject};
use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// Events handed to the connection in one go.
const BATCH: usize = 256;
/// Time between progress bookmarks.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// A bookmark comes this long before the end of a watch.
const BOOKMARK_LEAD: Duration = Duration::from_secs(2);
/// Shortest life of a watch without timeoutSeconds; the longest is twice that.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// How objects are shown to this watcher.
struct Shape {
    resource: Arc<Resource>,
    view: View,
    include: IncludeObject,
    /// The first Table carries the column definitions.
    columns_sent: bool,
}

impl Shape {
    fn object(&mut self, object: &Value) -> Value {
        match self.view {
            View::Object => object.clone(),
            View::Partial(version) => table::partial(object, version),
            View::Table(version) => {
                let row =
                    table::row(self.resource.table, object, self.include, version, jiff::Timestamp::now());
                let columns = if std::mem::replace(&mut self.columns_sent, true) {
                    Value::Null
                } else {
                    table::definitions(self.resource.table)
                };
                json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": {"resourceVersion": crate::object::meta(object, "resourceVersion")},
                    "columnDefinitions": columns, "rows": [row]})
            }
        }
    }

    fn frame(&mut self, kind: EventType, entry: &Entry, shared: Option<&CacheEvent>) -> Bytes {
        match (self.view, shared) {
            (View::Object, Some(event)) => event.frame(kind, entry),
            (View::Object, None) => frame_of(kind.text(), entry.encoded.full()),
            _ => {
                let value = self.object(&entry.encoded.parse());
                frame_of(kind.text(), value.to_string().as_bytes())
            }
        }
    }

    fn bookmark(&mut self, revision: i64, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(),
            "metadata": metadata});
        // Typed clients decode bookmarks into the kind's own struct, whose maps need not be there.
        if self.resource.kind == "Pod" && self.view == View::Object {
            object["spec"] = json!({"containers": null});
            object["status"] = json!({});
        }
        frame_of("BOOKMARK", self.object(&object).to_string().as_bytes())
    }
}

struct Watch {
    cache: Arc<Cache>,
    filter: Filter,
    shape: Shape,
    cursor: Cursor,
    changes: tokio::sync::watch::Receiver<u64>,
    pending: VecDeque<Bytes>,
    bookmarks: bool,
    next_bookmark: tokio::time::Interval,
    /// Newest revision the client knows.
    sent: i64,
    end: Instant,
    last_bookmark_sent: bool,
    over: bool,
    shutdown: tokio_util::sync::CancellationToken,
}

fn timeout(options: &ListOptions) -> Duration {
    match options.timeout_seconds {
        Some(seconds) => Duration::from_secs(seconds),
        None => DEFAULT_TIMEOUT.mul_f64(1.0 + rand::rng().random::<f64>()),
    }
}

pub(super) async fn watch(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted_list(true)?;
    let include = include(context)?;
    let options = ListOptions::parse(&context.query, true)?;
    let filter = context.filter(&options)?;
    let wanted = version(&options.resource_version)?;
    let cache = context.cache().clone();
    // Any value but "1" and "true" watches in name only; upstream's conversion says so.
    let initial = options.send_initial_events == Some(true)
        || (options.send_initial_events.is_none() && matches!(options.resource_version.as_str(), "" | "0"));
    let with_end = options.send_initial_events == Some(true) && options.bookmarks;
    let mut shape =
        Shape { resource: context.resource.clone(), view: accepted.view, include, columns_sent: false };
    let mut pending = VecDeque::new();
    let (cursor, sent) = if initial {
        match options.resource_version.as_str() {
            "0" => cache.wait_loaded().await?,
            "" => cache.wait_fresh().await?,
            _ => cache.wait_for(wanted).await?,
        }
        let snapshot = cache.snapshot(&filter, None);
        for entry in snapshot.entries.iter().filter(|e| filter.matches(&context.resource, e)) {
            pending.push_back(shape.frame(EventType::Added, entry, None));
        }
        if with_end {
            pending.push_back(shape.bookmark(snapshot.revision, true));
        }
        (snapshot.cursor, snapshot.revision)
    } else {
        match options.resource_version.as_str() {
            "" | "0" => cache.wait_fresh().await?,
            _ => cache.wait_loaded().await?,
        }
        let from = if wanted == 0 { cache.revision() } else { wanted };
        match cache.cursor_after(from) {
            Ok(cursor) => (cursor, from),
            Err(expired) => {
                // The watch begins and ends with an error, as upstream does for what is too old.
                let frame = frame_of("ERROR", expired.to_status().to_string().as_bytes());
                let body = futures::stream::once(std::future::ready(frame));
                return Ok(Reply {
                    body: ReplyBody::Stream(Box::pin(body)),
                    ..Reply::bytes(200, "application/json", Bytes::new())
                });
            }
        }
    };
    let life = timeout(&options);
    let mut next_bookmark = tokio::time::interval_at(Instant::now() + BOOKMARK_PERIOD, BOOKMARK_PERIOD);
    next_bookmark.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch {
        changes: cache.changes(),
        cache,
        filter,
        shape,
        cursor,
        pending,
        bookmarks: options.bookmarks,
        next_bookmark,
        sent,
        end: Instant::now() + life,
        last_bookmark_sent: life <= BOOKMARK_LEAD,
        over: false,
        shutdown: context.core.shutdown.clone(),
    };
    let stream = futures::stream::unfold(watch, |mut watch| async move {
        let frames = watch.next().await?;
        Some((frames, watch))
    });
    Ok(Reply {
        body: ReplyBody::Stream(Box::pin(stream)),
        ..Reply::bytes(200, "application/json", Bytes::new())
    })
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
            self.changes.mark_unchanged();
            match self.cache.read(&mut self.cursor, BATCH) {
                Err(_) => self.over = true,
                Ok((events, revision)) => {
                    for event in &events {
                        if let Some((kind, shown)) = event.seen(&self.shape.resource, &self.filter) {
                            self.pending.push_back(self.shape.frame(kind, shown, Some(event)));
                        }
                    }
                    let full = events.len() == BATCH;
                    self.sent = revision;
                    if !self.pending.is_empty() || full {
                        // A long history must not keep the executor from others.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    self.wait().await;
                }
            }
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        if self.pending.len() <= 1 {
            return self.pending.pop_front();
        }
        let size = self.pending.iter().take(BATCH).map(Bytes::len).sum();
        let mut out = Vec::with_capacity(size);
        for frame in self.pending.drain(..self.pending.len().min(BATCH)) {
            out.extend_from_slice(&frame);
        }
        Some(out.into())
    }

    /// Waits for a change, a bookmark's time or the end.
    async fn wait(&mut self) {
        let bookmark_at = if self.last_bookmark_sent { self.end } else { self.end - BOOKMARK_LEAD };
        tokio::select! {
            changed = self.changes.changed() => self.over |= changed.is_err(),
            _ = self.next_bookmark.tick(), if self.bookmarks => self.bookmark(),
            () = tokio::time::sleep_until(bookmark_at), if self.bookmarks && !self.last_bookmark_sent => {
                self.last_bookmark_sent = true;
                self.bookmark();
            }
            () = tokio::time::sleep_until(self.end) => self.over = true,
            () = self.shutdown.cancelled() => self.over = true,
        }
    }

    fn bookmark(&mut self) {
        // A quiet resource's version moves only when it is asked for: the next bookmark shows the answer.
        self.cache.request_progress();
        if let Ok((events, revision)) = self.cache.read(&mut self.cursor.clone(), BATCH)
            && events.is_empty()
        {
            self.sent = self.sent.max(revision);
            let frame = self.shape.bookmark(self.sent, false);
            self.pending.push_back(frame);
        }
    }
}
