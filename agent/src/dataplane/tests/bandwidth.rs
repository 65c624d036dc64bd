//! Pods that are held to rates, whichever way the programs hand them packets.

use serde_json::Value;

use super::*;
use crate::network::Bandwidth;
use crate::network::bandwidth::limit_in;

/// 20 Mbit/s.
const RATE: u64 = 20_000_000;

/// What queues there are in a pod, by the kind and the device.
fn queues(pod: &Pod) -> Vec<(String, String, u64)> {
    let list: Value = pod.net.run(|| {
        let output = std::process::Command::new("tc").args(["-s", "-j", "qdisc", "show"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    });
    let queue = |queue: &Value| {
        let text = |key: &str| queue[key].as_str().unwrap().to_owned();
        (text("kind"), text("dev"), queue["bytes"].as_u64().unwrap())
    };
    let mut queues: Vec<_> =
        list.as_array().unwrap().iter().map(queue).filter(|(kind, ..)| kind != "noqueue").collect();
    queues.sort();
    queues
}

/// Sends so many bytes from one pod to another, and returns how long it took.
fn transfer(from: &Pod, to: &Pod, v4: bool, bytes: usize) -> std::time::Duration {
    let address = to.address(v4);
    let listener = to.net.run(|| std::net::TcpListener::bind((address, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let receiving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(TIMEOUT * 5)).unwrap();
        let mut received = 0;
        let mut buffer = [0; 65_536];
        while let length @ 1.. = stream.read(&mut buffer).unwrap() {
            received += length;
        }
        received
    });
    let started = std::time::Instant::now();
    from.net.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
    });
    assert_eq!(receiving.join().unwrap(), bytes);
    started.elapsed()
}

#[test]
fn pods_receive_and_send_no_faster_than_their_annotations_say() {
    const BYTES: usize = 2_000_000;
    // Load makes it slower only. What may pass at once, and a little, is not waited for.
    let least = std::time::Duration::from_secs_f64(BYTES as f64 * 8.0 / RATE as f64 * 0.9);
    let world = World::new();
    world.start(Vec::new(), Vec::new());
    let [one, two] = &world.pods[..] else { panic!("two pods") };
    let limit = |limits| {
        let path = two.net.path().into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(limit_in(path, limits)).unwrap();
    };
    let names = |pod: &Pod| {
        queues(pod).into_iter().map(|(kind, device, _)| format!("{kind} {device}")).collect::<Vec<_>>()
    };
    assert!(names(one).is_empty() && names(two).is_empty());
    limit(Bandwidth { ingress: None, egress: Some(RATE) });
    assert_eq!(names(two), ["tbf eth0"]);
    for v4 in [true, false] {
        assert!(transfer(two, one, v4, BYTES) >= least, "what it sends");
    }
    assert!(queues(two)[0].2 > 2 * BYTES as u64);
    // A starting agent comes by again, also for a pod of which only a part was done.
    let both = Bandwidth { ingress: Some(RATE), egress: Some(RATE) };
    for _ in 0..2 {
        limit(both);
        assert_eq!(names(two), ["ingress eth0", "tbf eth0", "tbf kelp-ingress"]);
    }
    for v4 in [true, false] {
        assert!(transfer(one, two, v4, BYTES) >= least, "what it receives");
    }
    world.kill();
    assert!(transfer(one, two, true, BYTES) >= least, "no agent");
    let through = queues(two).into_iter().find(|(_, device, _)| device == "kelp-ingress").unwrap().2;
    assert!(through > 3 * BYTES as u64 && through < 4 * BYTES as u64, "each packet once: {through}");
    assert!(names(one).is_empty());
}
