//! Real questions over real sockets of the loopback device, in front of a server that plays the node's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A server as it runs on a node, and what it was made of.
struct World {
    address: SocketAddr,
    index: Arc<RwLock<Index>>,
    complete: watch::Sender<bool>,
    namespaces: tokio::sync::mpsc::UnboundedSender<NamespaceEvent>,
    shutdown: CancellationToken,
    dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl World {
    /// `servers` are the lines of resolv.conf.
    fn new(servers: &[&str], upstream_port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sockets = loop {
            let sockets = Sockets::open(&[HERE], 0, Vec::new()).unwrap();
            // Both kinds at one port, as on a node.
            let port = sockets.addresses().unwrap()[0].port();
            if let Ok(listener) = TcpListener::bind((HERE, port)) {
                break Sockets { tcp: vec![listener], ..sockets };
            }
        };
        let address = sockets.addresses().unwrap()[0];
        let index: Arc<RwLock<Index>> = Arc::default();
        let (complete, receiver) = watch::channel(true);
        let shutdown = CancellationToken::new();
        let config = Config {
            domain: "cluster.local".into(),
            servers: vec!["10.96.0.10".parse().unwrap()],
            ranges: vec![("10.96.0.0".parse().unwrap(), 16)],
            clients: Vec::new(),
            resolv_conf: dir.path().join("resolv.conf"),
            upstream_port,
        };
        let (namespaces, mut events) = tokio::sync::mpsc::unbounded_channel();
        let world =
            Self { address, index: index.clone(), complete, namespaces, shutdown: shutdown.clone(), dir };
        world.set_servers(servers);
        let events = futures::stream::poll_fn(move |context| events.poll_recv(context));
        tokio::spawn(run(config, sockets, Source { index, complete: receiver }, events, shutdown));
        world
    }

    fn set_servers(&self, servers: &[&str]) {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        std::fs::write(self.dir.path().join("resolv.conf"), text).unwrap();
    }

    fn service(&self, name: &str, spec: serde_json::Value) {
        let object = json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
        self.index.write().apply_service(&serde_json::from_value(object).unwrap());
    }

    fn endpoints(&self, service: &str, count: u8) {
        let endpoints: Vec<_> = (0..count).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
        let object = json!({"metadata": {"namespace": "ns", "name": service,
            "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}], "endpoints": endpoints});
        self.index.write().apply_slice(&serde_json::from_value(object).unwrap());
    }

    async fn raw(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = tokio::net::UdpSocket::bind((HERE, 0)).await.unwrap();
        socket.send_to(bytes, self.address).await.unwrap();
        let mut answer = vec![0; 65_535];
        let received = tokio::time::timeout(Duration::from_secs(8), socket.recv(&mut answer)).await;
        let length = received.ok()?.unwrap();
        answer.truncate(length);
        Some(answer)
    }

    async fn send(&self, request: &Message) -> Message {
        let answer = self.raw(&request.to_vec().unwrap()).await.expect("an answer");
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.id, answer.message_type), (request.id, MessageType::Response));
        assert_eq!(answer.queries, request.queries, "the question is repeated, also its case");
        answer
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.send(&question(name, kind)).await
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).unwrap()
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

/// Code, flags that matter, and records.
fn show(message: &Message) -> String {
    let records = |records: &[Record]| {
        let mut texts: Vec<String> = records.iter().map(|record| record.data.to_string()).collect();
        texts.sort();
        texts.join(" ")
    };
    let flags = if message.authoritative { " aa" } else { "" };
    format!("{:?}{flags} {}", message.response_code, records(&message.answers)).trim_end().to_owned()
}

/// A server that knows `known.test`, tells that all other names do not exist, and counts who asks for what.
struct Upstream {
    port: u16,
    asked: Arc<parking_lot::Mutex<BTreeMap<String, usize>>>,
    silent: Arc<std::sync::atomic::AtomicBool>,
}

impl Upstream {
    async fn new() -> Self {
        let (socket, listener) = loop {
            let socket = tokio::net::UdpSocket::bind((HERE, 0)).await.unwrap();
            if let Ok(listener) = tokio::net::TcpListener::bind(socket.local_addr().unwrap()).await {
                break (socket, listener);
            }
        };
        let port = socket.local_addr().unwrap().port();
        let asked: Arc<parking_lot::Mutex<BTreeMap<String, usize>>> = Arc::default();
        let silent: Arc<std::sync::atomic::AtomicBool> = Arc::default();
        let (counts, quiet) = (asked.clone(), silent.clone());
        tokio::spawn(async move {
            let mut bytes = vec![0; 4096];
            loop {
                let (length, client) = socket.recv_from(&mut bytes).await.unwrap();
                let request = Message::from_vec(&bytes[..length]).unwrap();
                *counts.lock().entry(request.queries[0].name().to_ascii()).or_default() += 1;
                if !quiet.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = Self::answer(&request, false).to_vec().unwrap();
                    socket.send_to(&answer, client).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut bytes = vec![0; usize::from(length)];
                        stream.read_exact(&mut bytes).await.unwrap();
                        let answer =
                            Self::answer(&Message::from_vec(&bytes).unwrap(), true).to_vec().unwrap();
                        stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
        Self { port, asked, silent }
    }

    fn answer(request: &Message, tcp: bool) -> Message {
        let mut response = Message::response(request.id, OpCode::Query);
        let query = request.queries[0].clone();
        response.add_query(query.clone());
        let record = |name: &Name, data| Record::from_rdata(name.clone(), 300, data);
        match query.name().to_lowercase().to_ascii().as_str() {
            "known.test." if query.query_type() == RecordType::A => {
                response.add_answer(record(query.name(), RData::A(A::new(192, 0, 2, 1))));
            }
            "alias.test." => {
                let known = name("known.test");
                response.add_answer(record(query.name(), RData::CNAME(CNAME(known.clone()))));
                response.add_answer(record(&known, RData::A(A::new(192, 0, 2, 1))));
            }
            "large.test." if tcp => {
                response.add_answers((0..100).map(|n| record(query.name(), RData::A(A::new(192, 0, 2, n)))));
            }
            "large.test." => response.metadata.truncation = true,
            "refused.test." => response.metadata.response_code = ResponseCode::Refused,
            other => {
                if other != "known.test." {
                    response.metadata.response_code = ResponseCode::NXDomain;
                }
                let soa = SOA::new(name("ns.test"), name("h.test"), 1, 2, 3, 4, 60);
                response.add_authority(record(&name("test"), RData::SOA(soa)));
            }
        }
        response
    }

    fn asked(&self, text: &str) -> usize {
        self.asked.lock().get(&format!("{text}.")).copied().unwrap_or_default()
    }

    fn set_silent(&self, silent: bool) {
        self.silent.store(silent, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test]
async fn names_of_the_cluster() {
    let world = World::new(&[], 53);
    world.service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}));
    let answer = world.ask("WEB.ns.svc.Cluster.local", RecordType::A).await;
    assert_eq!(show(&answer), "NoError aa 10.96.0.7");
    assert!(answer.recursion_available && answer.recursion_desired && !answer.truncation);
    assert_eq!(answer.answers[0].ttl, 5);
    assert_eq!(answer.answers[0].name.to_ascii(), "WEB.ns.svc.Cluster.local.");
    assert!(answer.edns.is_none(), "a client without EDNS gets none");
    let answer = world.ask("_http._tcp.web.ns.svc.cluster.local", RecordType::SRV).await;
    assert_eq!(show(&answer), "NoError aa 0 100 80 web.ns.svc.cluster.local.");
    assert_eq!(answer.additionals[0].data.to_string(), "10.96.0.7");
    for (text, kind, expected) in [
        ("web.ns.svc.cluster.local", RecordType::AAAA, "NoError aa"),
        ("none.ns.svc.cluster.local", RecordType::A, "NXDomain aa"),
        ("8.0.96.10.in-addr.arpa", RecordType::PTR, "NXDomain aa"),
    ] {
        let answer = world.ask(text, kind).await;
        assert_eq!(show(&answer), expected, "{text}");
        let [authority] = answer.authorities.as_slice() else { panic!("{answer}") };
        let RData::SOA(soa) = &authority.data else { panic!("{authority}") };
        assert_eq!(
            (authority.ttl, soa.minimum, soa.mname.to_ascii().as_str()),
            (5, 5, "ns.dns.cluster.local.")
        );
        assert!(authority.name.zone_of(&name(text)), "{} above {text}", authority.name);
    }
    let answer = world.ask("7.0.96.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(show(&answer), "NoError aa web.ns.svc.cluster.local.");
    let answer = world.ask("dns-version.cluster.local", RecordType::TXT).await;
    assert_eq!(show(&answer), "NoError aa 1.1.0");
}

#[tokio::test]
async fn namespaces_without_services_have_names() {
    use kube::core::PartialObjectMeta;
    use kube::runtime::watcher::Event;
    let world = World::new(&[], 53);
    let object = |name: &str| -> PartialObjectMeta<_> {
        serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
    };
    let becomes = async |events: Vec<NamespaceEvent>, expected: [&str; 2]| {
        events.into_iter().for_each(|event| world.namespaces.send(event).unwrap());
        let look = async || {
            let mut answers = Vec::new();
            for name in ["a.svc.cluster.local", "b.svc.cluster.local"] {
                answers.push(show(&world.ask(name, RecordType::A).await));
            }
            answers
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while look().await != expected {
            assert!(Instant::now() < deadline, "{:?}, not {expected:?}", look().await);
        }
    };
    let (yes, no) = ("NoError aa", "NXDomain aa");
    becomes(vec![], [yes, yes]).await;
    // A list that is not whole says nothing.
    becomes(vec![Event::Init, Event::InitApply(object("c"))], [yes, yes]).await;
    becomes(vec![Event::Init, Event::InitApply(object("a")), Event::InitDone], [yes, no]).await;
    becomes(vec![Event::Apply(object("b")), Event::Delete(object("a"))], [no, yes]).await;
    becomes(vec![Event::Init, Event::InitDone], [no, no]).await;
    assert_eq!(show(&world.ask("c.svc.cluster.local", RecordType::A).await), no);
}

#[tokio::test]
async fn long_answers_are_cut_for_datagrams_and_whole_over_tcp() {
    let world = World::new(&[], 53);
    world.service("peers", json!({"clusterIP": "None"}));
    world.endpoints("peers", 200);
    let mut request = question("peers.ns.svc.cluster.local", RecordType::A);
    let answer = world.send(&request).await;
    assert!(answer.truncation && answer.answers.len() > 20, "{}", answer.answers.len());
    request.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(4096);
    let more = world.send(&request).await;
    assert!(more.truncation && more.answers.len() > 2 * answer.answers.len(), "{}", more.answers.len());
    assert_eq!(more.edns.unwrap().max_payload(), 1232);

    // Several questions on one connection.
    let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    for _ in 0..3 {
        let bytes = request.to_vec().unwrap();
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert!(!answer.truncation);
        assert_eq!(answer.answers.len(), 200);
    }
    // The order changes: clients that use the first address only are spread.
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..20 {
        firsts.insert(world.send(&request).await.answers[0].data.to_string());
    }
    assert!(firsts.len() > 3, "{firsts:?}");
}

#[tokio::test]
async fn what_is_no_question_is_refused() {
    let world = World::new(&[], 53);
    let good = question("web.ns.svc.cluster.local", RecordType::A);
    let code = async |change: &dyn Fn(&mut Message)| {
        let mut request = good.clone();
        change(&mut request);
        world.send(&request).await.response_code
    };
    assert_eq!(code(&|m| m.metadata.op_code = OpCode::Notify).await, ResponseCode::NotImp);
    assert_eq!(code(&|m| m.queries.clear()).await, ResponseCode::FormErr);
    assert_eq!(code(&|m| m.queries.push(m.queries[0].clone())).await, ResponseCode::FormErr);
    assert_eq!(
        code(&|m| {
            m.queries[0].set_query_class(DNSClass::CH);
        })
        .await,
        ResponseCode::Refused
    );
    assert_eq!(
        code(&|m| {
            m.queries[0].set_query_type(RecordType::AXFR);
        })
        .await,
        ResponseCode::Refused
    );
    let newer = |m: &mut Message| {
        m.set_edns(Edns::new()).edns.as_mut().unwrap().set_version(1);
    };
    // The same number is BADSIG in a signature.
    assert_eq!(u16::from(code(&newer).await), u16::from(ResponseCode::BADVERS));
    // Garbage is told so by its own number; an answer, and what has no number, is not answered.
    let garbage = [0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff];
    let answer = Message::from_vec(&world.raw(&garbage).await.unwrap()).unwrap();
    assert_eq!((answer.id, answer.response_code), (0xabcd, ResponseCode::FormErr));
    let socket = tokio::net::UdpSocket::bind((HERE, 0)).await.unwrap();
    let answer = Message::response(7, OpCode::Query).to_vec().unwrap();
    for silence in [b"".as_slice(), b"\xab\xcd\x01", &answer] {
        socket.send_to(silence, world.address).await.unwrap();
    }
    socket.send_to(&good.to_vec().unwrap(), world.address).await.unwrap();
    let mut bytes = vec![0; 512];
    let length = socket.recv(&mut bytes).await.unwrap();
    assert_eq!(Message::from_vec(&bytes[..length]).unwrap().id, good.id, "only the question was answered");
}

#[tokio::test]
async fn other_names_are_asked_of_others_and_remembered() {
    let upstream = Upstream::new().await;
    let world = World::new(&["10.96.0.10", "127.0.0.1"], upstream.port);
    for _ in 0..3 {
        assert_eq!(show(&world.ask("Known.test", RecordType::A).await), "NoError 192.0.2.1");
        let none = world.ask("none.test", RecordType::A).await;
        assert_eq!(show(&none), "NXDomain");
        assert!(matches!(none.authorities[0].data, RData::SOA(_)));
        assert_eq!(show(&world.ask("known.test", RecordType::AAAA).await), "NoError");
        let alias = world.ask("alias.test", RecordType::A).await;
        assert_eq!(show(&alias), "NoError 192.0.2.1 known.test.");
    }
    assert_eq!((upstream.asked("none.test"), upstream.asked("alias.test")), (1, 1));
    assert_eq!(upstream.asked("Known.test") + upstream.asked("known.test"), 2, "A and AAAA");
    assert!(world.ask("known.test", RecordType::A).await.answers[0].ttl <= 30);
    assert_eq!(show(&world.ask("refused.test", RecordType::A).await), "Refused");
    // What does not fit into a datagram comes over TCP.
    let mut request = question("large.test", RecordType::A);
    request.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(1232);
    let large = world.send(&request).await;
    assert!(large.truncation && large.answers.len() > 50, "{}", large.answers.len());
    // A Service that is another name.
    world.service("out", json!({"type": "ExternalName", "externalName": "known.test"}));
    let answer = world.ask("out.ns.svc.cluster.local", RecordType::A).await;
    assert_eq!(show(&answer), "NoError aa 192.0.2.1 known.test.");
    let answer = world.ask("out.ns.svc.cluster.local", RecordType::CNAME).await;
    assert_eq!(show(&answer), "NoError aa known.test.");
    world.service("out", json!({"type": "ExternalName", "externalName": "none.test"}));
    let answer = world.ask("out.ns.svc.cluster.local", RecordType::A).await;
    assert_eq!(show(&answer), "NXDomain aa none.test.");
    world.service("in", json!({"type": "ExternalName", "externalName": "web.ns.svc.cluster.local."}));
    world.service("web", json!({"clusterIP": "10.96.0.7"}));
    let answer = world.ask("in.ns.svc.cluster.local", RecordType::A).await;
    assert_eq!(show(&answer), "NoError aa 10.96.0.7 web.ns.svc.cluster.local.");
    world.service("in", json!({"type": "ExternalName", "externalName": "in.ns.svc.cluster.local"}));
    assert_eq!(
        world.ask("in.ns.svc.cluster.local", RecordType::A).await.response_code,
        ResponseCode::ServFail
    );
}

#[tokio::test]
async fn silent_servers_cost_their_own_names_only() {
    let upstream = Upstream::new().await;
    upstream.set_silent(true);
    let world = World::new(&["127.0.0.1"], upstream.port);
    world.service("web", json!({"clusterIP": "10.96.0.7"}));
    let started = Instant::now();
    let names: Vec<String> = (0..4).map(|n| format!("n{n}.test")).collect();
    let slow = futures::future::join_all(names.iter().map(|name| world.ask(name, RecordType::A)));
    let quick = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let asked = Instant::now();
        let answer = world.ask("web.ns.svc.cluster.local", RecordType::A).await;
        assert_eq!(show(&answer), "NoError aa 10.96.0.7");
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    };
    let (slow, ()) = tokio::join!(slow, quick);
    assert!(slow.iter().all(|answer| answer.response_code == ResponseCode::ServFail));
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    // Now that nobody was heard for a while, other names are not tried; the ones that failed are remembered.
    let asked = Instant::now();
    for name in ["known.test", "n1.test"] {
        assert_eq!(world.ask(name, RecordType::A).await.response_code, ResponseCode::ServFail);
    }
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    assert_eq!(upstream.asked("known.test"), 0);
    // They come back.
    upstream.set_silent(false);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(show(&world.ask("known.test", RecordType::A).await), "NoError 192.0.2.1");
}

#[tokio::test]
async fn resolv_conf_is_followed() {
    let upstream = Upstream::new().await;
    // No server, one that is cluster DNS itself, and one that refuses at once.
    for servers in [&[] as &[&str], &["10.96.0.10"], &["not-an-address"]] {
        let world = World::new(servers, upstream.port);
        let started = Instant::now();
        assert_eq!(world.ask("known.test", RecordType::A).await.response_code, ResponseCode::ServFail);
        assert!(started.elapsed() < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        world.set_servers(&["127.0.0.1"]);
        assert_eq!(show(&world.ask("known.test", RecordType::A).await), "NoError 192.0.2.1");
    }
}

#[tokio::test]
async fn names_of_the_cluster_wait_for_the_first_list() {
    let upstream = Upstream::new().await;
    let world = World::new(&["127.0.0.1"], upstream.port);
    world.complete.send_replace(false);
    let early = world.ask("web.ns.svc.cluster.local", RecordType::A);
    let list = async {
        // Other names need no list.
        assert_eq!(show(&world.ask("known.test", RecordType::A).await), "NoError 192.0.2.1");
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.service("web", json!({"clusterIP": "10.96.0.7"}));
        world.complete.send_replace(true);
    };
    let (early, ()) = tokio::join!(early, list);
    assert_eq!(show(&early), "NoError aa 10.96.0.7", "not that the name does not exist");
    world.complete.send_replace(false);
    let answer = world.ask("web.ns.svc.cluster.local", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::ServFail, "nobody waits for ever");
}

#[test]
fn only_pods_and_the_node_are_answered() {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let ranges = [(address("10.244.0.0"), 16), (address("fd00:10:244::"), 56)];
    let clients = Clients::new(&ranges, &[address("192.0.2.7"), address("2001:db8::7")]);
    for own in
        ["10.244.3.9", "fd00:10:244::9", "192.0.2.7", "2001:db8::7", "127.0.0.1", "::1", "::ffff:127.0.0.1"]
    {
        assert!(clients.admit(address(own)), "{own}");
    }
    for other in ["192.0.2.8", "10.245.0.1", "2001:db8::8", "8.8.8.8", "::ffff:8.8.8.8"] {
        assert!(!clients.admit(address(other)), "{other}");
    }
}

#[tokio::test]
async fn questions_wait_for_the_next_run_in_sockets_that_are_kept() {
    let world = World::new(&[], 53);
    world.service("web", json!({"clusterIP": "10.96.0.7"}));
    let port = world.address.port();
    let first = loop {
        let other = UdpSocket::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
        if let Ok(sockets) = Sockets::open(&[HERE], other, Vec::new()) {
            break sockets;
        }
    };
    assert!(Sockets::open(&[HERE], port, Vec::new()).is_err(), "a port has one server");
    let (address, kept) =
        (first.addresses().unwrap()[0], first.descriptors().map(|fd| fd.try_clone_to_owned().unwrap()));
    let kept: Vec<OwnedFd> = kept.collect();
    drop(first);
    let client = tokio::net::UdpSocket::bind((HERE, 0)).await.unwrap();
    let request = question("web.ns.svc.cluster.local", RecordType::A);
    client.send_to(&request.to_vec().unwrap(), address).await.unwrap();
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    // Of two addresses one is new.
    let second: IpAddr = "127.0.0.2".parse().unwrap();
    let sockets = Sockets::open(&[second, HERE], address.port(), kept).unwrap();
    assert_eq!(sockets.addresses().unwrap(), [SocketAddr::new(second, address.port()), address]);
    let config = Config {
        domain: "cluster.local".into(),
        servers: Vec::new(),
        ranges: Vec::new(),
        clients: Vec::new(),
        resolv_conf: world.dir.path().join("resolv.conf"),
        upstream_port: 53,
    };
    let source = Source { index: world.index.clone(), complete: world.complete.subscribe() };
    let namespaces = futures::stream::pending();
    tokio::spawn(run(config, sockets, source, namespaces, world.shutdown.clone()));
    let mut bytes = vec![0; 512];
    let length = client.recv(&mut bytes).await.unwrap();
    assert_eq!(show(&Message::from_vec(&bytes[..length]).unwrap()), "NoError aa 10.96.0.7");
    let bytes = request.to_vec().unwrap();
    connection.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    connection.write_all(&bytes).await.unwrap();
    assert!(connection.read_u16().await.unwrap() > 12);
}
