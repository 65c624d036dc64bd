use super::*;
use crate::cache::Cursor;
use crate::cache::Wanted;
use crate::object::Encoded;
use crate::registry::Registry;
use crate::selector::FieldSelector;
use proptest::prelude::*;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

fn pods() -> Arc<Cache> {
    let row = Registry::builtin().find("", "v1", "pods").expect("row").clone();
    let store = Arc::new(kelp_store::EmbeddedStore::in_memory());
    let cache = Cache::new(row, store, CancellationToken::new());
    {
        let mut state = cache.state.write();
        state.window.reset(10);
        state.revision = 10;
    }
    cache
}

fn filter(namespace: &str, fields: &str) -> Filter {
    let fields = FieldSelector::parse(fields).expect("a selector");
    Filter { namespace: namespace.to_owned(), fields, ..Filter::default() }
}

/// Puts (with the name of a node) or removes a pod, as the feed does.
fn change(cache: &Cache, revision: i64, name: &str, node: Option<&str>) {
    let mut state = cache.state.write();
    let key = format!("n/{name}");
    let event = match node {
        Some(node) => {
            let json = format!(
                "{{\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"n\"}},\"spec\":{{\"nodeName\":\"{node}\"}}}}"
            );
            let encoded =
                Encoded::from_stored(&cache.resource.head(), json.as_bytes(), revision).expect("object");
            let entry = Arc::new(Entry::new(&cache.resource, &key, encoded));
            let previous = state.objects.insert(entry.key.clone(), entry.clone());
            CacheEvent::new(revision, entry, previous, false)
        }
        None => match state.objects.remove(key.as_str()) {
            Some(previous) => {
                CacheEvent::new(revision, Arc::new(previous.at_revision(revision)), Some(previous), true)
            }
            None => return,
        },
    };
    let event = Arc::new(event);
    state.window.push(event.clone(), Instant::now());
    state.revision = revision;
    cache.lanes.lock().push(&event);
}

/// What a watcher with this filter sees of events.
fn seen(cache: &Cache, filter: &Filter, events: &[Arc<CacheEvent>]) -> Vec<(i64, &'static str, String)> {
    let shown = |event: &Arc<CacheEvent>| {
        let (kind, entry) = event.seen(&cache.resource, filter)?;
        Some((event.revision, kind.text(), entry.name().to_owned()))
    };
    events.iter().filter_map(shown).collect()
}

fn start(cache: &Cache, filter: &Filter) -> Cursor {
    cache.slice(filter, &Wanted::default()).expect("the present").cursor
}

/// Everything that is left for a reader that began at a cursor.
fn rest(cache: &Cache, lane: &mut LaneReader, cursor: &mut Cursor, batch: usize) -> Vec<Arc<CacheEvent>> {
    let mut out = Vec::new();
    loop {
        let (events, _) = match lane.events_before(Cache::place(cursor)) {
            0 => lane.read(batch).expect("not behind"),
            before => {
                out.extend(cache.read(cursor, before.min(batch)).expect("not behind").0);
                continue;
            }
        };
        if events.is_empty() {
            return out;
        }
        out.extend(events);
    }
}

proptest! {
    /// A lane shows its readers what the window shows them, wherever they begin and whenever they join.
    #[test]
    fn a_lane_has_all_that_its_readers_may_see(
        before in proptest::collection::vec((0u8..4, proptest::option::of(0u8..3)), 0..12),
        between in proptest::collection::vec((0u8..4, proptest::option::of(0u8..3)), 0..12),
        after in proptest::collection::vec((0u8..4, proptest::option::of(0u8..3)), 0..20),
        fields in proptest::sample::select(vec!["spec.nodeName=node1", "metadata.name=p1", "metadata.name=p1,spec.nodeName=node2"]),
        batch in 1usize..5,
    ) {
        let cache = pods();
        let filter = filter("n", fields);
        let mut revision = 10;
        let mut play = |changes: &[(u8, Option<u8>)]| for (pod, node) in changes {
            revision += 1;
            change(&cache, revision, &format!("p{pod}"), node.map(|node| format!("node{node}")).as_deref());
        };
        play(&before);
        let mut cursor = start(&cache, &filter);
        let mut plain = cursor;
        play(&between);
        let mut lane = cache.join(&filter).expect("a lane");
        play(&after);
        let got = rest(&cache, &mut lane, &mut cursor, batch);
        let all = cache.read(&mut plain, usize::MAX).expect("in the window").0;
        prop_assert_eq!(seen(&cache, &filter, &got), seen(&cache, &filter, &all));
        prop_assert_eq!(lane.revision(), Some(cache.state.read().revision));
    }
}

#[test]
fn others_do_not_wake_a_reader_and_what_was_read_goes() {
    let cache = pods();
    let one = filter("", "spec.nodeName=node1");
    let mut lane = cache.join(&one).expect("a lane");
    change(&cache, 11, "a", Some("node2"));
    assert!(!lane.changes.has_changed().expect("open"));
    change(&cache, 12, "b", Some("node1"));
    // It moves away: the old node hears of it, too.
    change(&cache, 13, "b", Some("node2"));
    assert!(lane.changes.has_changed().expect("open"));
    let (events, revision) = lane.read(10).expect("events");
    assert_eq!((events.len(), revision), (2, 13));
    assert_eq!(seen(&cache, &one, &events), [(12, "ADDED", "b".into()), (13, "DELETED", "b".into())]);
    assert!(cache.lanes.lock().all.values().flat_map(HashMap::values).all(|lane| lane.events.is_empty()));
    drop(lane);
    assert!(cache.lanes.lock().all.is_empty());
    assert!(cache.join(&filter("", "metadata.name=a")).is_none(), "a name in any namespace");
    assert!(cache.join(&filter("", "spec.nodeName!=node1")).is_none());
    assert!(cache.join(&Filter::default()).is_none());
}

#[test]
fn who_is_too_slow_or_of_before_is_told() {
    let cache = pods();
    let filter = filter("", "spec.nodeName=node1");
    let (mut slow, mut quick) = (cache.join(&filter).expect("a lane"), cache.join(&filter).expect("a lane"));
    for revision in 11..12 + EVENTS as i64 {
        change(&cache, revision, "a", Some("node1"));
        assert_eq!(quick.read(10).expect("in time").0.len(), 1);
    }
    assert!(slow.read(10).is_err());
    cache.state.write().epoch += 1;
    cache.lanes.lock().wake();
    assert!(quick.changes.has_changed().expect("open"));
    assert!(quick.read(10).is_err());
}
