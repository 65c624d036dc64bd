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
    for change in Change::of_a_bare_node() {
        reconciler.observe(change);
    }
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
    assert!(first.reconcile().unwrap().operations > 0);
    assert_eq!(counts(&fake), [2]);
    let before = fake.content.lock().clone();

    // A restarted agent hears of half the world first.
    let mut second = Reconciler::new("here", fake.clone());
    second.observe(Change::Service(Event::Init));
    second.observe(Change::Service(Event::InitDone));
    second.observe(Change::Slice(Event::Apply(slice("a", &["10.244.0.2"]))));
    assert_eq!(second.reconcile().unwrap(), Outcome::default());
    assert_eq!(*fake.content.lock(), before);
    // And of all Services, but not of the node's pods: their ports stay as well.
    let mut second = Reconciler::new("here", fake.clone());
    for list in
        [Change::Service(Event::InitDone), Change::Slice(Event::InitDone), Change::Node(Event::InitDone)]
    {
        second.observe(list);
    }
    assert_eq!(second.reconcile().unwrap(), Outcome::default());
    assert_eq!(*fake.content.lock(), before);

    let mut third = Reconciler::new("here", fake.clone());
    list(&mut third, vec![service("a", "10.96.0.2")], vec![slice("a", &["10.244.0.2", "10.244.0.3"])]);
    assert_eq!(third.reconcile().unwrap().operations, 0, "ids are adopted, so there is nothing to write");
    list(&mut third, vec![], vec![]);
    third.reconcile().unwrap();
    assert_eq!(*fake.content.lock(), Actual::default(), "the end is empty");
}

#[test]
fn a_failure_at_any_step_is_made_good() {
    for successes in 0..12 {
        let fake = FakeDatapath::default();
        let faulty = FaultyDatapath { inner: fake.clone(), successes: Some(successes) };
        let reports = Reports::default();
        let status = reports.status.clone();
        let mut reconciler = Reconciler::with_reports("here", faulty, reports);
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
        let state = status.state();
        assert_eq!(state.failures, 1, "and is counted");
        // Everything is compared at the beginning and after the fault; how long it took is measured by what it was.
        assert_ne!(state.full_sync, crate::dataplane::metrics::Histogram::default());
        let both = [&state.full_sync, &state.partial_sync].map(|histogram| histogram.count());
        assert_eq!(both.iter().sum::<u64>(), state.sync.count());
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
    ]
    .into_iter()
    .chain(Change::of_a_bare_node())
    {
        sender.send(change).unwrap();
    }
    seen.wait_for(|synced| *synced).await.unwrap();
    assert_eq!(counts(&fake), [0], "a service without endpoints refuses");
    sender.send(Change::Slice(Event::Apply(slice("a", &["10.244.0.2"])))).unwrap();
    drop(sender);
    task.await.unwrap();
    assert_eq!(counts(&fake), [1]);
}

fn sticky(mut service: Service) -> Service {
    service.spec.get_or_insert_default().session_affinity = Some("ClientIP".to_owned());
    service
}

#[test]
fn clients_stay_with_what_is_left_of_a_service() {
    let fake = FakeDatapath::default();
    let mut reconciler = Reconciler::new("here", fake.clone());
    let endpoints = ["10.244.0.2", "10.244.0.3"];
    list(
        &mut reconciler,
        vec![sticky(service("a", "10.96.0.2")), service("b", "10.96.0.3")],
        vec![slice("a", &endpoints), slice("b", &endpoints)],
    );
    let backends = || fake.clients.lock().values().map(std::collections::BTreeSet::len).collect::<Vec<_>>();
    reconciler.reconcile().unwrap();
    assert_eq!(backends(), [2], "one service has affinity");
    // An endpoint leaves the service and stays in another one.
    *fake.clients.lock() = [].into();
    reconciler.observe(Change::Slice(Event::Apply(slice("a", &endpoints[..1]))));
    reconciler.reconcile().unwrap();
    assert_eq!(backends(), [1]);
    // What does not concern the service leaves its clients alone.
    *fake.clients.lock() = [].into();
    reconciler.observe(Change::Slice(Event::Apply(slice("b", &endpoints[..1]))));
    reconciler.reconcile().unwrap();
    assert_eq!(backends(), [] as [usize; 0]);
    // Affinity ends, and begins with nobody.
    *fake.clients.lock() = [(7, [7].into())].into();
    reconciler.observe(Change::Service(Event::Apply(service("a", "10.96.0.2"))));
    reconciler.reconcile().unwrap();
    assert_eq!(backends(), [] as [usize; 0]);
}

/// Services that each need a frontend, two slots and two backends of their own.
fn services(numbers: std::ops::Range<u8>) -> (Vec<Service>, Vec<EndpointSlice>) {
    numbers
        .map(|number| {
            let name = format!("s{number}");
            let addresses = [format!("10.244.{number}.1"), format!("10.244.{number}.2")];
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            (service(&name, &format!("10.96.0.{}", number + 1)), slice(&name, &addresses))
        })
        .unzip()
}

#[test]
fn a_full_map_costs_the_latest_services_and_no_other() {
    for limits in [(6, 0, 0), (0, 6, 0), (0, 0, 3), (5, 0, 0), (0, 5, 0)] {
        let fake = FakeDatapath { limits, ..FakeDatapath::default() };
        let (events, mut told) = Events::channel();
        let reports = Reports { events, ..Reports::default() };
        let mut reconciler = Reconciler::with_reports("here", fake.clone(), reports);
        let (first, first_slices) = services(0..2);
        list(&mut reconciler, first.clone(), first_slices.clone());
        assert_eq!(reconciler.reconcile().unwrap().skipped, 0);
        assert_eq!(counts(&fake), [2, 2]);
        assert!(told.try_recv().is_err());

        let (all, slices) = services(0..5);
        list(&mut reconciler, all.clone(), slices);
        let outcome = reconciler.reconcile().unwrap();
        assert!(outcome.skipped > 0 && outcome.full.len() == 1, "{limits:?}: {outcome:?}");
        let event = told.try_recv().unwrap();
        assert_eq!((event.reason, event.about), ("DataplaneMapFull", crate::dataplane::events::About::Node));
        let served = counts(&fake);
        assert!(served.len() >= 2 && served.iter().all(|count| *count == 2), "{limits:?}: {served:?}");

        // An endpoint of a service that is served may go and another come, also now.
        reconciler.observe(Change::Slice(Event::Apply(slice("s0", &["10.244.0.1"]))));
        reconciler.reconcile().unwrap();
        assert!(counts(&fake).contains(&1), "{limits:?}");

        // There is room again.
        let rest = all[3..].to_vec();
        for service in rest {
            reconciler.observe(Change::Service(Event::Delete(service)));
        }
        while reconciler.reconcile().unwrap().skipped > 0 {}
        assert_eq!(counts(&fake).len(), 3, "{limits:?}");
        list(&mut reconciler, first, first_slices);
        while reconciler.reconcile().unwrap().skipped > 0 {}
        assert_eq!(counts(&fake), [2, 2]);
        assert_eq!(reconciler.reconcile().unwrap(), Outcome::default(), "nothing is left to do");
    }
}

#[test]
fn without_room_for_a_table_of_hashing_a_service_is_served_and_the_table_comes_later() {
    let fake = FakeDatapath { lookups: Some(1), ..FakeDatapath::default() };
    let balancing = kelp_model::service::Balancing { consistent: true, table_size: 251 };
    let index = Arc::new(RwLock::new(Index::new("here").with_balancing(balancing)));
    let mut reconciler = Reconciler::with_index(index, fake.clone(), Reports::default());
    let exposed = |name: &str, number: u8| -> Service {
        let mut service = service(name, &format!("10.96.0.{number}"));
        service.spec.get_or_insert_default().external_ips = Some(vec![format!("203.0.113.{number}")]);
        service
    };
    let endpoints = ["10.244.0.2", "10.244.0.3"];
    list(
        &mut reconciler,
        vec![exposed("a", 2), exposed("b", 3)],
        vec![slice("a", &endpoints), slice("b", &endpoints)],
    );
    let outcome = reconciler.reconcile().unwrap();
    assert_eq!((outcome.skipped, outcome.full), (1, [kelp_common::maps::MAGLEV].into()));
    assert_eq!(counts(&fake), [2, 2, 2, 2]);
    reconciler.observe(Change::Service(Event::Delete(exposed("a", 2))));
    while reconciler.reconcile().unwrap().skipped > 0 {}
    assert_eq!(counts(&fake), [2, 2]);
    let content = fake.content.lock();
    let table = content.frontends.values().next().unwrap().table;
    assert!(content.lookups.keys().eq([&table]), "that of the service that is left");
}

#[test]
fn what_others_need_to_know_is_told() {
    let fake = FakeDatapath::default();
    let reports = Reports::default();
    let (checks, datagrams) = (reports.health_checks.subscribe(), reports.datagrams.subscribe());
    let (opted_out, status) = (reports.opted_out.subscribe(), reports.status.clone());
    let mut reconciler = Reconciler::with_reports("here", fake, reports);
    let balanced: Service = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "lb"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 31000, "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]},
    }))
    .unwrap();
    let slice = |changed: &str, address: &str| -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "lb", "labels": {"kubernetes.io/service-name": "lb"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": changed}},
            "addressType": "IPv4", "ports": [{"port": 5353, "protocol": "UDP"}],
            "endpoints": [{"addresses": [address], "nodeName": "here"}],
        }))
        .unwrap()
    };
    list(&mut reconciler, vec![balanced], vec![]);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "mesh",
            "annotations": {kelp_model::service::SOCKET_ANNOTATION: "disabled"}},
        "spec": {"containers": []}, "status": {"podIP": "10.244.0.7"},
    }))
    .unwrap();
    reconciler.observe(Change::Pod(Event::Apply(pod)));
    reconciler.reconcile().unwrap();
    assert_eq!(checks.borrow().values().map(|check| check.endpoints).collect::<Vec<_>>(), [0]);
    assert_eq!(opted_out.borrow().len(), 1);
    // What changed before this agent started was another's to measure.
    reconciler.observe(Change::Slice(Event::Apply(slice("2026-01-01T00:00:00Z", "10.244.0.2"))));
    reconciler.reconcile().unwrap();
    assert_eq!(checks.borrow().values().map(|check| check.endpoints).collect::<Vec<_>>(), [1]);
    let serving: Vec<(u16, usize)> =
        datagrams.borrow().iter().map(|((_, port), serving)| (u16::from_be(*port), serving.len())).collect();
    assert_eq!(serving, [(30_053, 1), (53, 1)]);
    assert_eq!(status.state().programming, crate::dataplane::metrics::Histogram::default());
    let now = jiff::Timestamp::now().to_string();
    reconciler.observe(Change::Slice(Event::Apply(slice(&now, "10.244.0.3"))));
    reconciler.reconcile().unwrap();
    assert!(status.state().programming != crate::dataplane::metrics::Histogram::default());
}
