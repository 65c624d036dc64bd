//! Events in, content of the maps out, on maps in memory that fail at any step.

use serde_json::json;

use super::*;
use crate::dataplane::maps::{FakeDatapath, FaultyDatapath};

fn service(name: &str, address: &str) -> Service {
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": address, "ports": [{"port": 80}]},
    }))
    .unwrap()
}

fn slice(name: &str, addresses: &[&str]) -> EndpointSlice {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints,
    }))
    .unwrap()
}

fn list<D: Datapath>(reconciler: &mut Reconciler<D>, services: Vec<Service>, slices: Vec<EndpointSlice>) {
    reconciler.observe(Change::Service(Event::Init));
    for service in services {
        reconciler.observe(Change::Service(Event::InitApply(service)));
    }
    reconciler.observe(Change::Service(Event::InitDone));
    reconciler.observe(Change::Slice(Event::Init));
    for slice in slices {
        reconciler.observe(Change::Slice(Event::InitApply(slice)));
    }
    reconciler.observe(Change::Slice(Event::InitDone));
}

/// Number of backends of every frontend; every one must lead somewhere.
fn counts(fake: &FakeDatapath) -> Vec<usize> {
    let content = fake.content.lock();
    content.frontends.keys().map(|key| content.resolve(key).expect("no frontend dangles").len()).collect()
}

#[test]
fn nothing_is_written_before_both_lists_are_complete() {
    let fake = FakeDatapath::default();
    let mut first = Reconciler::new("here", fake.clone());
    list(&mut first, vec![service("a", "10.96.0.2")], vec![slice("a", &["10.244.0.2", "10.244.0.3"])]);
    assert!(first.reconcile().unwrap() > 0);
    assert_eq!(counts(&fake), [2]);
    let before = fake.content.lock().clone();

    // A restarted agent hears of half the world first.
    let mut second = Reconciler::new("here", fake.clone());
    second.observe(Change::Service(Event::Init));
    second.observe(Change::Service(Event::InitDone));
    second.observe(Change::Slice(Event::Apply(slice("a", &["10.244.0.2"]))));
    assert_eq!(second.reconcile().unwrap(), 0);
    assert_eq!(*fake.content.lock(), before);

    let mut third = Reconciler::new("here", fake.clone());
    list(&mut third, vec![service("a", "10.96.0.2")], vec![slice("a", &["10.244.0.2", "10.244.0.3"])]);
    assert_eq!(third.reconcile().unwrap(), 0, "ids are adopted, so there is nothing to write");
    list(&mut third, vec![], vec![]);
    third.reconcile().unwrap();
    assert_eq!(*fake.content.lock(), Actual::default(), "the end is empty");
}

#[test]
fn a_failure_at_any_step_is_made_good() {
    for successes in 0..12 {
        let fake = FakeDatapath::default();
        let faulty = FaultyDatapath { inner: fake.clone(), successes: Some(successes) };
        let mut reconciler = Reconciler::new("here", faulty);
        list(
            &mut reconciler,
            vec![service("a", "10.96.0.2"), service("b", "10.96.0.3")],
            vec![slice("a", &["10.244.0.2"]), slice("b", &["10.244.0.2", "10.244.0.3"])],
        );
        let mut failures = 0;
        let mut run = |reconciler: &mut Reconciler<_>| {
            if reconciler.reconcile().is_err() {
                failures += 1;
                counts(&fake);
                reconciler.reconcile().unwrap();
            }
        };
        run(&mut reconciler);
        assert_eq!(counts(&fake).iter().sum::<usize>(), 3);
        reconciler.observe(Change::Slice(Event::Apply(slice("b", &["10.244.0.4"]))));
        reconciler.observe(Change::Service(Event::Delete(service("a", "10.96.0.2"))));
        run(&mut reconciler);
        assert_eq!(counts(&fake), [1]);
        assert_eq!(failures, 1, "the fault happened, and once");
    }
}

#[tokio::test]
async fn a_stream_of_events_ends_in_the_maps_and_tells_when_it_is_in_step() {
    let fake = FakeDatapath::default();
    let (synced, mut seen) = watch::channel(false);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let changes = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    let task =
        tokio::spawn(Reconciler::new("here", fake.clone()).run(changes, synced, CancellationToken::new()));
    for change in [
        Change::Service(Event::Init),
        Change::Service(Event::InitApply(service("a", "10.96.0.2"))),
        Change::Service(Event::InitDone),
        Change::Slice(Event::Init),
        Change::Slice(Event::InitDone),
    ] {
        sender.send(change).unwrap();
    }
    seen.wait_for(|synced| *synced).await.unwrap();
    assert_eq!(counts(&fake), [0], "a service without endpoints refuses");
    sender.send(Change::Slice(Event::Apply(slice("a", &["10.244.0.2"])))).unwrap();
    drop(sender);
    task.await.unwrap();
    assert_eq!(counts(&fake), [1]);
}
