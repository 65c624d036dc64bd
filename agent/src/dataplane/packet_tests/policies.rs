//! Network policies over single packets.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kelp_common::{ConnectionValue, maps};
use kelp_model::policy::{Compiler, End, Reason, RuleName, Tables, explain, pod_state};
use kelp_model::service::ObjectName;

use super::*;
use crate::dataplane::events::Events;
use crate::dataplane::names::TableNames;
use crate::dataplane::policy::{Policies, PolicyMaps, read};
use crate::dataplane::view::{Listener, Pins, Verdict, decide};

/// A rig whose pods policies select: `client`, `web` (here) and `far` (on another node), all in the namespace `d`.
struct Guarded {
    rig: Rig,
    policies: Arc<Policies>,
}

fn pod(name: &str, addresses: [&str; 2]) -> k8s_openapi::api::core::v1::Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "d", "name": name, "uid": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": addresses[0]}, {"ip": addresses[1]}]},
    }))
    .unwrap()
}

fn policy(name: &str, selector: serde_json::Value, mut spec: serde_json::Value) -> NetworkPolicy {
    spec["podSelector"] = selector;
    serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name}, "spec": spec})).unwrap()
}

fn app(name: &str) -> serde_json::Value {
    json!({"matchLabels": {"app": name}})
}

impl Guarded {
    fn new() -> Self {
        let rig = Rig::new();
        let policies = Policies::open(
            (PolicyMaps::open(&rig.kernel).unwrap(), TableNames::open(&rig.kernel).unwrap()),
            rig.table(maps::ENDPOINTS),
            Events::discarding(),
            true,
        )
        .unwrap();
        let guarded = Self { rig, policies: Arc::new(policies) };
        guarded.change(|compiler| {
            compiler.apply_namespace("d", &[("team".to_owned(), "x".to_owned())].into());
            for (pod, local) in [
                (pod("client", ["10.244.0.2", "fd00:10:244::2"]), true),
                (pod("web", ["10.244.0.3", "fd00:10:244::3"]), true),
                (pod("far", ["10.244.1.5", "fd00:10:244:1::5"]), false),
            ] {
                let state = pod_state(&pod).unwrap();
                if local {
                    compiler.attach(state.facts.clone(), state.addresses.clone());
                }
                compiler.apply_pod(state);
            }
        });
        guarded
    }

    fn change(&self, change: impl FnOnce(&mut Compiler)) {
        let written = self.policies.observe(false, |compiler| {
            change(compiler);
            true
        });
        assert!(written);
    }

    /// Replaces all policies.
    fn set(&self, policies: &[NetworkPolicy]) {
        self.change(|compiler| {
            let name = |policy: &NetworkPolicy| ObjectName::new("d", policy.metadata.name.as_ref().unwrap());
            let keep: BTreeSet<ObjectName> = policies.iter().map(name).collect();
            compiler.retain_policies(&keep);
            for policy in policies {
                compiler.apply_policy(policy);
            }
        });
    }

    fn verdict(&self, program: &str, frame: &Frame) -> i32 {
        self.rig.run(program, &frame.bytes()).0
    }

    fn passes(&self, program: &str, frame: &Frame) -> bool {
        match self.verdict(program, frame) {
            PASS | REDIRECT => true,
            DROP => false,
            other => panic!("{other}"),
        }
    }

    fn connections(&self) -> usize {
        let mut count = 0;
        self.rig.table::<FlowKey, ConnectionValue>(maps::CONNECTIONS).scan(|_, _| count += 1).unwrap();
        count
    }

    /// Pods that are isolated now were so from their start: no flow is older than its policies.
    fn isolated_from_the_start(&self) {
        let table: Table<Address, EndpointValue> = self.rig.table(maps::ENDPOINTS);
        let mut all = Vec::new();
        table.scan(|address, value| all.push((*address, *value))).unwrap();
        for (address, value) in all {
            table.put(&address, &EndpointValue { isolated_since: 0, ..value }).unwrap();
        }
    }
}

/// Client, backend, outside, node and the pod elsewhere of each family, and the service of the backend.
const ENDS: [[&str; 6]; 2] = [
    ["10.244.0.2", "10.244.0.3", "198.51.100.9", "192.0.2.10", "10.244.1.5", "10.96.0.7"],
    [
        "fd00:10:244::2",
        "fd00:10:244::3",
        "2001:db8:9::9",
        "2001:db8::10",
        "fd00:10:244:1::5",
        "fd00:10:96::7",
    ],
];

fn deny(name: &str) -> NetworkPolicy {
    policy(name, json!({}), json!({"policyTypes": ["Ingress", "Egress"]}))
}

#[test]
fn without_policies_nothing_is_tracked() {
    let guarded = Guarded::new();
    for [client, web, ..] in ENDS {
        for frame in packets(&at(client, 40_000), &at(web, 8080)) {
            assert!(guarded.passes("from_pod", &frame));
        }
    }
    assert_eq!(guarded.connections(), 0);
    assert!(read(&guarded.policies).unwrap().rules.is_empty());
}

#[test]
fn a_denied_pod_is_reached_by_its_node_alone() {
    let guarded = Guarded::new();
    guarded.set(&[deny("deny")]);
    let mut dropped = 0;
    for [client, web, outside, node, far, service] in ENDS {
        for frame in packets(&at(client, 40_000), &at(web, 8080))
            .into_iter()
            .chain(packets(&at(client, 40_000), &at(service, 80)))
            .chain(packets(&at(client, 40_000), &at(outside, 80)))
            .chain(packets(&at(client, 40_000), &at(far, 80)))
        {
            assert!(!guarded.passes("from_pod", &frame), "{frame:?}");
            dropped += 1;
        }
        assert_eq!(guarded.rig.counted(counter::POLICY_EGRESS), dropped, "what leaves first is what is told");
        for frame in packets(&at(outside, 40_000), &at(web, 8080))
            .into_iter()
            .chain(packets(&at(far, 40_000), &at(web, 8080)))
            .chain(packets(&at(outside, 40_000), &at(node, 30_007)))
        {
            assert!(!guarded.passes("from_net", &frame), "{frame:?}");
        }
        // A stranger's packet that the host forwards is not the host's.
        assert!(!guarded.passes("to_pod", &Frame::tcp(&at(outside, 40_000), &at(web, 8080), SYN)));
        // Probes, and what the pod answers.
        for probe in packets(&at(node, 40_000), &at(web, 8080)) {
            assert!(guarded.passes("to_pod", &probe));
            assert!(guarded.passes("from_pod", &probe.answer(SYN | ACK)));
        }
        // The node is always reached.
        assert!(guarded.passes("from_pod", &Frame::tcp(&at(web, 40_000), &at(node, 10_250), SYN)));
        // A pod reaches itself through its service.
        let itself = Frame::tcp(&at(web, 40_000), &at(service, 80), SYN);
        let arrived = guarded.rig.redirected("from_pod", &itself);
        assert!(guarded.passes("from_pod", &arrived.answer(SYN | ACK)));
    }
    assert_eq!(guarded.rig.counted(counter::POLICY_INGRESS), 20);
    assert_eq!(guarded.connections(), 0, "what is denied leaves no trace");
}

#[test]
fn what_is_allowed_passes_with_its_answers_and_nothing_else_does() {
    let guarded = Guarded::new();
    guarded.set(&[
        deny("deny"),
        policy("in", app("web"), json!({"ingress": [
            {"from": [{"podSelector": app("client")}], "ports": [
                {"port": "http"}, {"port": 8080, "protocol": "UDP"}, {"port": 8000, "endPort": 8100, "protocol": "SCTP"}]},
            {"from": [{"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.128/25"]}},
                {"ipBlock": {"cidr": "2001:db8:9::/64"}}], "ports": [{"port": 8080}]},
        ]})),
        policy("out", app("client"), json!({"policyTypes": ["Egress"], "egress": [
            {"to": [{"podSelector": app("web")}]},
        ]})),
    ]);
    guarded.isolated_from_the_start();
    for [client, web, outside, node, _, service] in ENDS {
        for sent in packets(&at(client, 40_000), &at(web, 8080)) {
            let flags = |flags| if sent.protocol == UDP { 0 } else { flags };
            let stray = sent.protocol == UDP && guarded.passes("from_pod", &sent.answer(0));
            assert!(!stray, "an answer to nothing: {sent:?}");
            assert!(guarded.passes("from_pod", &sent), "{sent:?}");
            assert!(guarded.passes("from_pod", &sent.answer(flags(SYN | ACK))), "{sent:?}");
            assert!(guarded.passes("from_pod", &Frame { flags: flags(ACK), ..sent.clone() }));
            // The other way is another flow.
            let back = Frame { flags: flags(SYN), ..sent.answer(0) };
            assert_eq!(guarded.passes("from_pod", &back), sent.protocol == UDP, "{sent:?}");
            let other = Frame { destination: at(web, 8101).parse().unwrap(), ..sent.clone() };
            assert!(!guarded.passes("from_pod", &other), "another port");
        }
        for (frame, wanted) in [
            (Frame::tcp(&at(client, 40_001), &at(service, 80), SYN), true),
            (Frame::udp(&at(client, 40_001), &at(service, 80)), true),
            (Frame::tcp(&at(web, 40_001), &at(client, 8080), SYN), false),
        ] {
            assert_eq!(guarded.passes("from_pod", &frame), wanted, "{frame:?}");
        }
        // The answer of a service's backend, translated back.
        let arrived =
            guarded.rig.redirected("from_pod", &Frame::tcp(&at(client, 40_002), &at(service, 80), SYN));
        let answered = guarded.rig.redirected("from_pod", &arrived.answer(SYN | ACK));
        assert_eq!(answered.source.to_string(), at(service, 80));
        // The client of a node port is the one that counts.
        for (program, frame, wanted) in [
            ("from_net", Frame::tcp(&at(outside, 40_000), &at(node, 30_007), SYN), true),
            ("from_net", Frame::udp(&at(outside, 40_000), &at(node, 30_007)), false),
            ("from_net", Frame::tcp(&at(outside, 40_001), &at(web, 8080), SYN), true),
            ("from_pod", Frame::tcp(&at(web, 8080), &at(outside, 40_001), SYN | ACK), true),
            ("from_pod", Frame::tcp(&at(web, 40_005), &at(outside, 80), SYN), false),
        ] {
            assert_eq!(guarded.passes(program, &frame), wanted, "{frame:?}");
        }
    }
    assert!(!guarded.passes("from_net", &Frame::tcp("198.51.100.200:40000", "10.244.0.3:8080", SYN)));
}

#[test]
fn a_flow_is_cut_when_it_is_forbidden_and_goes_on_when_it_is_allowed_again() {
    let guarded = Guarded::new();
    let allow = policy("in", app("web"), json!({"ingress": [{"from": [{"podSelector": app("client")}]}]}));
    let forbid = policy("in", app("web"), json!({"ingress": [{"from": [{"podSelector": app("far")}]}]}));
    for [client, web, ..] in ENDS {
        guarded.set(std::slice::from_ref(&allow));
        guarded.isolated_from_the_start();
        let flows = packets(&at(client, 40_000), &at(web, 8080));
        let established = |sent: &Frame| {
            let flags = if sent.protocol == UDP { 0 } else { ACK };
            let there = guarded.passes("from_pod", &Frame { flags, ..sent.clone() });
            let back = guarded.passes("from_pod", &sent.answer(flags));
            assert!(there == back || sent.protocol == UDP, "{sent:?}");
            there
        };
        for sent in &flows {
            assert!(guarded.passes("from_pod", sent));
            assert!(
                guarded.passes("from_pod", &sent.answer(if sent.protocol == UDP { 0 } else { SYN | ACK }))
            );
        }
        guarded.set(std::slice::from_ref(&forbid));
        assert!(flows.iter().filter(|flow| flow.protocol != UDP).all(|flow| !established(flow)));
        let datagram = Frame::udp(&at(client, 40_000), &at(web, 8080));
        assert!(!guarded.passes("from_pod", &datagram));
        // An unrelated change leaves it cut, the permission brings it back.
        guarded.set(&[forbid.clone(), policy("more", app("client"), json!({"ingress": [{}]}))]);
        assert!(flows.iter().filter(|flow| flow.protocol != UDP).all(|flow| !established(flow)));
        guarded.set(std::slice::from_ref(&allow));
        assert!(flows.iter().all(established));
        guarded.set(&[]);
        assert!(flows.iter().all(established));
    }
}

#[test]
fn connections_older_than_the_policies_are_told_by_their_ports() {
    let guarded = Guarded::new();
    for [client, web, ..] in ENDS {
        let opened = Frame::tcp(&at(client, 40_000), &at(web, 8080), ACK);
        // What the client opened is forbidden: nothing passes, whoever speaks first.
        guarded.set(&[policy("in", app("web"), json!({}))]);
        for first in [true, false] {
            let (a, b) = (opened.clone(), opened.answer(ACK));
            let (a, b) = if first { (a, b) } else { (b, a) };
            assert!(!guarded.passes("from_pod", &a) && !guarded.passes("from_pod", &b));
        }
        // It is allowed, though the server may open nothing itself.
        guarded.set(&[
            policy("in", app("web"), json!({"ingress": [{"from": [{"podSelector": app("client")}]}]})),
            policy("out", app("web"), json!({"policyTypes": ["Egress"]})),
        ]);
        assert!(guarded.passes("from_pod", &opened.answer(ACK)), "the server speaks first");
        assert!(guarded.passes("from_pod", &opened));
        guarded.set(&[]);
    }
}

#[test]
fn datagrams_that_answer_what_is_forbidden_do_not_allow_it() {
    let guarded = Guarded::new();
    let forbid = policy("in", app("web"), json!({}));
    for [client, web, ..] in ENDS {
        guarded.set(std::slice::from_ref(&forbid));
        let question = Frame::udp(&at(client, 40_000), &at(web, 443));
        assert!(!guarded.passes("from_pod", &question));
        // The pod may send, and what it sends may be an answer to the flow that was cut.
        assert!(guarded.passes("from_pod", &question.answer(0)));
        assert!(!guarded.passes("from_pod", &question), "its flow stays cut");
        // A pod that was isolated from its start has no such flows.
        guarded.isolated_from_the_start();
        let own = Frame::udp(&at(web, 443), &at(client, 40_001));
        assert!(guarded.passes("from_pod", &own) && guarded.passes("from_pod", &own.answer(0)));
        guarded.set(&[]);
    }
}

/// An ICMP echo.
fn echo(source: &str, destination: &str, request: bool) -> Vec<u8> {
    let v4 = !source.contains(':');
    let mut packet = Frame::udp(&at(source, 1), &at(destination, 1)).bytes();
    let l4 = if v4 { 34 } else { 54 };
    let kind = match (v4, request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    packet[if v4 { 14 + 9 } else { 14 + 6 }] = if v4 { 1 } else { 58 };
    packet[l4..l4 + 8].copy_from_slice(&[kind, 0, 0, 0, 0, 77, 0, 1]);
    packet
}

#[test]
fn other_protocols_need_a_rule_for_everything_and_errors_pass_with_their_flow() {
    let guarded = Guarded::new();
    let udp = json!({"from": [{"podSelector": app("client")}], "ports": [{"port": 8080, "protocol": "UDP"}]});
    let ports = policy("in", app("web"), json!({"policyTypes": ["Ingress", "Egress"], "ingress": [udp]}));
    let all = policy("all", app("web"), json!({"ingress": [{"from": [{"podSelector": app("client")}]}]}));
    for [client, web, ..] in ENDS {
        guarded.set(std::slice::from_ref(&ports));
        guarded.isolated_from_the_start();
        let run = |packet: &[u8]| guarded.rig.run("from_pod", packet).0;
        assert_eq!(run(&echo(client, web, true)), DROP);
        let unreachable = if client.contains('.') { [3, 3] } else { [1, 4] };
        let question = Frame::udp(&at(client, 40_000), &at(web, 8080));
        let error = icmp_error(web.parse().unwrap(), &question.bytes(), unreachable, 0);
        assert_eq!(run(&error), DROP, "about nothing");
        assert!(guarded.passes("from_pod", &question));
        assert_eq!(run(&error), REDIRECT, "about an allowed flow");
        let other = Frame::udp(&at(client, 40_000), &at(web, 8081));
        assert_eq!(run(&icmp_error(web.parse().unwrap(), &other.bytes(), unreachable, 0)), DROP);
        guarded.set(&[ports.clone(), all.clone()]);
        assert_eq!(run(&echo(web, client, false)), DROP, "an answer to nothing");
        assert_eq!(run(&echo(client, web, true)), REDIRECT);
        assert_eq!(run(&echo(web, client, false)), REDIRECT);
        // Fragments: those behind the first have the ports of it; one that came too early has none.
        let long = Frame { payload: vec![7; 64], ..Frame::udp(&at(client, 40_003), &at(web, 8080)) };
        guarded.set(std::slice::from_ref(&ports));
        let [first, second] = fragments(&long.bytes(), 32);
        assert_eq!(run(&second), DROP);
        assert_eq!((run(&first), run(&second)), (REDIRECT, REDIRECT));
    }
}

/// Policies made at random decide in the kernel as the tables in memory do.
#[test]
fn the_programs_decide_as_the_tables_say() {
    let guarded = Guarded::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let peer = prop_oneof![
        prop::sample::select(vec!["client", "web", "far"]).prop_map(|name| json!({"podSelector": app(name)})),
        Just(json!({"namespaceSelector": {}})),
        prop::sample::select(vec![
            "10.244.0.0/16",
            "198.51.100.0/24",
            "0.0.0.0/0",
            "::/0",
            "2001:db8:9::/64"
        ])
        .prop_map(
            |cidr| json!({"ipBlock": {"cidr": cidr, "except": ["10.244.0.2/31", "2001:db8:9::9/128"]}})
        ),
    ];
    let port = prop_oneof![
        prop::sample::select(vec![80_u16, 8079, 8080]).prop_map(|port| json!({"port": port})),
        (8000_u16..8081, 8078_u16..8200).prop_map(|(a, b)| json!({"port": a.min(b), "endPort": a.max(b)})),
        Just(json!({"port": "http"})),
        Just(json!({"protocol": "UDP"})),
        Just(json!({"protocol": "SCTP", "port": 8080})),
    ];
    let rule = (prop::collection::vec(peer, 0..3), prop::collection::vec(port, 0..3));
    let rules = prop::collection::vec(rule, 0..3);
    let one = (prop::sample::select(vec!["client", "web"]), rules.clone(), prop::option::of(rules));
    runner
        .run(&prop::collection::vec(one, 1..4), |list| {
            let policies: Vec<NetworkPolicy> = list
                .iter()
                .enumerate()
                .map(|(i, (name, ingress, egress))| {
                    let of = |key: &str, rules: &[(Vec<serde_json::Value>, Vec<serde_json::Value>)]| {
                        json!(
                            rules
                                .iter()
                                .map(|(peers, ports)| json!({key: peers, "ports": ports}))
                                .collect::<Vec<_>>()
                        )
                    };
                    let mut spec = json!({"policyTypes": ["Ingress"], "ingress": of("from", ingress)});
                    if let Some(egress) = egress {
                        spec["policyTypes"] = json!(["Ingress", "Egress"]);
                        spec["egress"] = of("to", egress);
                    }
                    policy(&format!("n{i}"), app(name), spec)
                })
                .collect();
            guarded.set(&policies);
            let connections: Table<FlowKey, ConnectionValue> = guarded.rig.table(maps::CONNECTIONS);
            let mut known = Vec::new();
            connections.scan(|key, _| known.push(*key)).unwrap();
            connections.delete_all(&known).unwrap();
            let tables: Tables = read(&guarded.policies).unwrap();
            for [client, web, outside, _, far, _] in ENDS {
                for (program, source, destination) in [
                    ("from_pod", client, web),
                    ("from_pod", web, client),
                    ("from_pod", client, outside),
                    ("from_pod", web, far),
                    ("from_net", outside, web),
                    ("from_net", far, client),
                ] {
                    for port in [80, 8079, 8080, 8150] {
                        for frame in packets(&at(source, 40_000 + port), &at(destination, port)) {
                            let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
                            let (from, to) = (address(source), address(destination));
                            let expected = tables.admits(&from, &to, frame.protocol, port);
                            prop_assert_eq!(guarded.passes(program, &frame), expected, "{:?}", frame);
                        }
                    }
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_trace_decides_as_the_programs_do() {
    let guarded = Guarded::new();
    let pins = Pins::new(&guarded.rig.directory);
    let facts = |name: &str, addresses| pod_state(&pod(name, addresses)).unwrap().facts;
    let namespaces = [(Arc::from("d"), [("team".to_owned(), "x".to_owned())].into())].into();
    let ports = json!([{"port": "http"}, {"port": 53, "protocol": "UDP"}, {"port": 8000, "endPort": 8010, "protocol": "SCTP"}]);
    let sets = [
        vec![],
        vec![deny("deny")],
        vec![
            deny("deny"),
            policy(
                "in",
                app("web"),
                json!({"ingress": [
                    {"from": [{"podSelector": app("far")}]},
                    {"from": [{"podSelector": app("client")}], "ports": ports},
                ]}),
            ),
            policy(
                "out",
                app("client"),
                json!({"policyTypes": ["Egress"], "egress": [{"to": [
                    {"namespaceSelector": {"matchLabels": {"team": "x"}}}, {"ipBlock": {"cidr": "198.51.100.0/28"}},
                ]}]}),
            ),
        ],
        vec![policy(
            "blocks",
            json!({}),
            json!({"policyTypes": ["Ingress", "Egress"], "egress": [{}], "ingress": [
                {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.8/29"]}}]},
                {"from": [{"ipBlock": {"cidr": "2001:db8:9::/64"}}], "ports": ports},
            ]}),
        )],
    ];
    let mut own_port = 20_000;
    let mut counts = [0, 0];
    for policies in &sets {
        guarded.set(policies);
        for [client, web, outside, _, far, _] in ENDS {
            let end = |address: &str| End {
                address: Address::from(address.parse::<IpAddr>().unwrap()),
                pod: [(client, "client"), (web, "web"), (far, "far")]
                    .into_iter()
                    .find(|(own, _)| *own == address)
                    .map(|(own, name)| facts(name, [own, own])),
            };
            let flows = [client, web].into_iter().flat_map(|to| {
                let from_net = [outside, far].map(|from| ("from_net", from, to));
                let from_pod = [client, web, outside, far].map(|other| ("from_pod", to, other));
                from_net.into_iter().chain(from_pod)
            });
            for (program, from, to) in flows.filter(|(_, from, to)| from != to) {
                for port in [53, 80, 8_005, 8_080] {
                    for mut frame in packets(&at(from, 1), &at(to, port)) {
                        own_port += 1;
                        frame.source.set_port(own_port);
                        let (source, destination) = (frame.source.ip(), frame.destination.ip());
                        let decision = decide(&pins, source, destination, frame.protocol, port).unwrap();
                        let passes = guarded.passes(program, &frame);
                        assert_eq!(decision.allowed, passes, "{frame:?} {decision:#?}");
                        counts[usize::from(passes)] += 1;
                        let ends = (&end(from), &end(to));
                        let explained = explain(policies, &namespaces, ends, frame.protocol, port);
                        for (direction, reason) in
                            [(&decision.egress, &explained.egress), (&decision.ingress, &explained.ingress)]
                        {
                            if !direction.decided_here {
                                continue;
                            }
                            assert_eq!(direction.is_allowed(), reason.is_allowed(), "{frame:?}");
                            // The table is of the policies that are about the pod.
                            let names: Vec<String> =
                                direction.policies.iter().map(ToString::to_string).collect();
                            match reason {
                                Reason::NotIsolated => assert!(names.is_empty()),
                                Reason::Allowed { rules } => {
                                    let is_of = |rule: &RuleName| {
                                        names.contains(&format!("{}/{}", rule.namespace, rule.policy))
                                    };
                                    assert!(rules.iter().all(is_of), "{names:?}");
                                }
                                Reason::Denied { policies } => assert_eq!(&names, policies),
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 200), "{counts:?}");
    let node = decide(&pins, "192.0.2.10".parse().unwrap(), "10.244.0.3".parse().unwrap(), 6, 1).unwrap();
    assert!(node.allowed && node.exempt.is_some(), "{node:?}");
}

#[test]
fn what_a_policy_forbids_is_told_with_its_name() {
    let guarded = Guarded::new();
    guarded.set(&[policy("closed", app("web"), json!({})), policy("other", app("client"), json!({}))]);
    let mut listener = Listener::open(&Pins::new(&guarded.rig.directory), 1_000).unwrap();
    for [client, web, .., service] in ENDS {
        for to in [at(web, 8080), at(service, 80)] {
            let frame = Frame::tcp(&at(client, 40_000), &to, SYN);
            assert!(!guarded.passes("from_pod", &frame));
            let told = listener.wait(std::time::Duration::ZERO).unwrap();
            let [flow] = &told[..] else { panic!("{told:#?}") };
            assert_eq!((flow.verdict, flow.reason), (Verdict::Dropped, Some("policy_ingress")));
            assert_eq!(flow.destination, frame.destination);
            let behind = flow.translated_destination.unwrap_or(flow.destination);
            assert_eq!(behind.to_string(), at(web, 8080));
            let names: Vec<String> = flow.policies.iter().map(ToString::to_string).collect();
            assert_eq!(names, ["d/closed"]);
        }
    }
    // The names go with the tables.
    guarded.set(&[]);
    let names =
        Table::<u64, kelp_common::PolicyNames>::open(&guarded.rig.kernel, maps::POLICY_NAMES).unwrap();
    names.scan(|key, _| panic!("{key} is left")).unwrap();
}
