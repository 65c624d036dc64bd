use super::*;
use crate::cache::CacheEvent;
use crate::object::Encoded;
use crate::registry::{Registry, Resource};
use crate::selector::LabelSelector;
use proptest::prelude::*;
use std::time::Instant;

fn row() -> Arc<Resource> {
    Registry::builtin().find("", "v1", "configmaps").expect("row").clone()
}

fn entry(resource: &Resource, key: &str, revision: i64) -> Arc<Entry> {
    let (namespace, name) = key.split_once('/').expect("key");
    let odd = revision % 2;
    let json = format!(
        "{{\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"{namespace}\",\"labels\":{{\"odd\":\"{odd}\"}}}}}}"
    );
    let encoded = Encoded::from_stored(&resource.head(), json.as_bytes(), revision).expect("object");
    Arc::new(Entry::new(resource, key, encoded))
}

/// Applies changes as the feed does; returns what was there after each revision.
fn play(resource: &Resource, state: &mut State, changes: &[(u8, bool)]) -> Vec<(i64, BTreeMap<String, i64>)> {
    let mut model = BTreeMap::new();
    state.window.reset(10);
    state.revision = 10;
    let mut out = vec![(10, model.clone())];
    for (revision, (key, delete)) in (11..).zip(changes) {
        let key = format!("{}/k{}", if key % 3 == 0 { "a" } else { "b" }, key);
        if *delete {
            if let Some(previous) = state.objects.remove(key.as_str()) {
                model.remove(&key);
                let gone = Arc::new(previous.at_revision(revision));
                let event = CacheEvent::new(revision, gone, Some(previous), true);
                state.window.push(Arc::new(event), Instant::now());
            }
        } else {
            let new = entry(resource, &key, revision);
            let previous = state.objects.insert(new.key.clone(), new.clone());
            model.insert(key, revision);
            state.window.push(Arc::new(CacheEvent::new(revision, new, previous, false)), Instant::now());
        }
        state.revision = revision;
        out.push((revision, model.clone()));
    }
    out
}

fn shown(slice: &Slice) -> Vec<(String, String)> {
    slice
        .entries
        .iter()
        .map(|e| (e.key.to_string(), crate::object::meta(&e.encoded.parse(), "resourceVersion").to_owned()))
        .collect()
}

fn whole(resource: &Resource, state: &State, filter: &Filter, wanted: &Wanted<'_>) -> Option<Slice> {
    Some(cut(resource, filter, wanted.limit, state.slice(resource.namespaced, filter, wanted)?))
}

proptest! {
    /// Whatever happened since, a revision shows what was there at that time, in one piece or in pages.
    #[test]
    fn the_past_is_what_it_was(
        changes in proptest::collection::vec((0u8..8, proptest::bool::weighted(0.3)), 0..40),
        namespace in proptest::sample::select(vec!["", "a", "b"]),
        select in any::<bool>(),
        limit in 0usize..4,
    ) {
        let resource = row();
        let mut state = State::default();
        let history = play(&resource, &mut state, &changes);
        let labels = if select { LabelSelector::parse("odd=1").expect("selector") } else { LabelSelector::default() };
        let filter = Filter { namespace: namespace.to_owned(), labels, ..Filter::default() };
        for (revision, model) in history {
            let want: Vec<(String, String)> = model
                .iter()
                .filter(|(key, at)| {
                    (namespace.is_empty() || key.starts_with(&format!("{namespace}/"))) && (!select || *at % 2 == 1)
                })
                .map(|(key, at)| (key.clone(), at.to_string()))
                .collect();
            let mut got = Vec::new();
            let mut start: Option<String> = None;
            loop {
                let wanted = Wanted { revision: Some(revision), start: start.as_deref(), limit, count: true };
                let slice = whole(&resource, &state, &filter, &wanted).expect("in the window");
                let page = shown(&slice);
                prop_assert!(limit == 0 || page.len() <= limit);
                got.extend(page);
                if let Some(remaining) = slice.remaining {
                    prop_assert_eq!(remaining, want.len() - got.len());
                }
                match slice.next {
                    Some(next) => {
                        prop_assert!(Some(&next) > start.as_ref());
                        start = Some(next);
                    }
                    None => break,
                }
            }
            prop_assert_eq!(got, want);
        }
    }
}

#[test]
fn what_the_window_has_lost_and_the_future_are_not_known() {
    let resource = row();
    let mut state = State::default();
    play(&resource, &mut state, &[(0, false), (1, false)]);
    let at = |revision| Wanted { revision: Some(revision), ..Wanted::default() };
    assert!(whole(&resource, &state, &Filter::default(), &at(9)).is_none());
    assert!(whole(&resource, &state, &Filter::default(), &at(13)).is_none());
    let now = whole(&resource, &state, &Filter::default(), &Wanted::default()).expect("now");
    assert_eq!((now.revision, now.entries.len(), now.next), (12, 2, None));
}

#[test]
fn a_name_is_one_key() {
    let resource = row();
    let mut state = State::default();
    play(&resource, &mut state, &[(0, false), (3, false), (3, true)]);
    let fields = crate::selector::FieldSelector::parse("metadata.name=k3").expect("selector");
    let filter = Filter { namespace: "a".to_owned(), fields, ..Filter::default() };
    let at = |revision| Wanted { revision: Some(revision), ..Wanted::default() };
    let names = |revision| {
        whole(&resource, &state, &filter, &at(revision)).map(|slice| slice.entries.len()).unwrap_or_default()
    };
    assert_eq!((names(11), names(12), names(13)), (0, 1, 0));
}
