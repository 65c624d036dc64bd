use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;

fn pod(name: &str, version: u64, owner: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {
        "name": name, "namespace": "n", "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
        "managedFields": [{"manager": "kubectl"}],
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": owner, "controller": true}],
    }}))
    .unwrap()
}

type Log = Arc<Mutex<Vec<String>>>;

fn logging(informer: &Informer<Pod>) -> Log {
    let log = Log::default();
    let to = log.clone();
    informer.on_change(move |change| {
        let (what, pod) = match change {
            Change::Added(p) => ("+", p),
            Change::Updated { new, .. } => ("=", new),
            Change::Deleted(p) => ("-", p),
        };
        to.lock().push(format!("{what}{}", pod.metadata.name.as_deref().unwrap()));
    });
    log
}

#[tokio::test]
async fn a_new_list_tells_only_what_differs() {
    let informer = Informer::<Pod>::default();
    let log = logging(&informer);
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(pod("a", 1, "x"))),
        Ok(Event::InitApply(pod("b", 2, "x"))),
        Ok(Event::InitDone),
        Ok(Event::Apply(pod("a", 3, "y"))),
        Ok(Event::Delete(pod("b", 4, "x"))),
        Ok(Event::Apply(pod("c", 5, "y"))),
        // The watch starts over: a is as it was, c is gone, d is new.
        Ok(Event::Init),
        Ok(Event::InitApply(pod("a", 3, "y"))),
        Ok(Event::InitApply(pod("d", 6, "z"))),
        Ok(Event::InitDone),
    ];
    informer.run(futures::stream::iter(events), CancellationToken::new()).await;
    assert_eq!(*log.lock(), ["+a", "+b", "=a", "-b", "+c", "+d", "-c"]);
    assert!(*informer.synced().borrow());
    let names = |pods: Vec<Arc<Pod>>| -> Vec<String> {
        let mut names: Vec<_> = pods.iter().map(|p| p.metadata.name.clone().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(informer.list()), ["a", "d"]);
    assert_eq!(names(informer.owned_by("y")), ["a"]);
    assert!(informer.owned_by("x").is_empty());
    assert_eq!(informer.in_namespace("n").len(), 2);
    assert!(informer.get("n/a").unwrap().metadata.managed_fields.is_none(), "not kept in memory");
}

#[tokio::test]
async fn a_late_handler_hears_of_all_objects() {
    let informer = Informer::<Pod>::default();
    informer.apply(pod("a", 1, "x"));
    let log = logging(&informer);
    informer.apply(pod("b", 2, "x"));
    assert_eq!(*log.lock(), ["+a", "+b"]);
}

#[tokio::test]
async fn an_object_of_another_uid_is_a_deletion_and_a_creation() {
    let informer = Informer::<Pod>::default();
    let log = logging(&informer);
    informer.apply(pod("a", 1, "x"));
    let mut other = pod("a", 2, "x");
    other.metadata.uid = Some("other".into());
    informer.apply(other);
    assert_eq!(*log.lock(), ["+a", "-a", "+a"]);
}
