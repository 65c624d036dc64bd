//! The dataplane alone, beside an agent that connected the node's pods and lets the host's stack forward.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::world::*;
use crate::dataplane::reconciler::Change;

fn api_pod(pod: &Pod) -> ApiPod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": pod.name, "uid": pod.name},
        "spec": {"containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": pod.v4}, {"ip": pod.v6}]},
    }))
    .unwrap()
}

fn objects(world: &World) -> Objects {
    Objects {
        services: vec![
            service("here", &["10.96.0.30", "fd00:10:96::30"], 30_030),
            service("there", &["10.96.0.31"], 30_031),
        ],
        slices: vec![
            slice("here", &[world.pods[0].v4, world.pods[1].v4], 8080),
            slice("here", &[world.pods[0].v6, world.pods[1].v6], 8080),
            slice("there", &[REMOTE4.parse().unwrap()], 8080),
        ],
        pods: world.pods.iter().map(api_pod).collect(),
        ..Objects::default()
    }
}

/// Asks until each of these has answered.
fn answered_by(address: SocketAddr, names: &[&str]) {
    let mut missing = names.to_vec();
    for _ in 0..200 {
        let (name, _) = ask_tcp(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(names.contains(&name.as_str()), "{name}");
        missing.retain(|other| *other != name);
        if missing.is_empty() {
            return;
        }
    }
    panic!("{address}: {missing:?} have not answered");
}

#[test]
fn pods_of_another_agent_serve_on_every_path_also_after_a_restart() {
    let mut world = World::new();
    for pod in &world.pods {
        for v4 in [true, false] {
            let address = SocketAddr::new(pod.address(v4), 8080);
            serve_tcp(&pod.net, address, pod.name);
            serve_udp(&pod.net, address, pod.name);
        }
    }
    serve_tcp(&world.outside, at(REMOTE4, 8080), "remote");
    let all = objects(&world);
    world.start_beside(all);
    let check = |world: &World| {
        world.outside.run(|| {
            for node in [NODE4, NODE6] {
                answered_by(at(node, 30_030), &["one", "two"]);
                ask_udp(at(node, 30_030), true).unwrap();
            }
            // The way back leads through this node anyway.
            assert_eq!(ask_tcp(at(NODE4, 30_030)).unwrap().1, OUTSIDE4, "the client keeps its address");
            answered_by(at(NODE4, 30_031), &["remote"]);
        });
        for net in [&world.host, &world.pods[0].net] {
            world.with_sockets(net, || {
                answered_by(at("10.96.0.30", 80), &["one", "two"]);
                answered_by(at("fd00:10:96::30", 80), &["one", "two"]);
                ask_udp(at("10.96.0.30", 80), false).unwrap();
                answered_by(at("10.96.0.31", 80), &["remote"]);
                answered_by(at(NODE4, 30_030), &["one", "two"]);
            });
        }
    };
    check(&world);
    assert_eq!(world.dataplane().endpoint_count().unwrap(), 4);

    // While no agent runs, and with the next one, which knows no pods before it has listed them.
    world.kill();
    check(&world);
    let all = objects(&world);
    world.start_beside(all);
    check(&world);

    // A pod that is gone is forgotten; one whose program has ended too.
    world.tell(Change::Pod(Event::Delete(api_pod(&world.pods[0]))));
    eventually("the pod is forgotten", || world.dataplane().endpoint_count().unwrap() == 2);
    let mut ended = api_pod(&world.pods[1]);
    ended.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    world.tell(Change::Pod(Event::Apply(ended)));
    eventually("the ended pod is forgotten", || world.dataplane().endpoint_count().unwrap() == 0);
}
