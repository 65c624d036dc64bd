//! The compiled tables decide as the reference does, whatever the objects and the order in which they come.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::reference::Cluster;
use super::*;
use crate::service::ObjectName;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const OUTSIDE: [&str; 4] = ["192.0.2.9", "10.0.5.77", "2001:db8::9", "fd00:5::77"];
const CIDRS: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.2/32",
    "10.0.5.0/24",
    "192.0.2.0/25",
    "::/0",
    "fd00::/16",
    "fd00:5::/64",
    "fd00::2/128",
];
const PORTS: [u16; 7] = [1, 79, 80, 81, 443, 8080, 65535];

fn namespace(name: &str, team: u8) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"team": format!("t{team}")}}}))
        .unwrap()
}

/// Pod `p<number>`; its addresses follow from the number.
fn pod(number: u8, namespace: &str, app: u8, named: u16, phase: &str, host: bool) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": format!("p{number}"), "uid": format!("u{number}"),
            "labels": {"app": format!("a{app}"), "odd": (number % 2).to_string()}},
        "spec": {"hostNetwork": host, "containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": named}, {"name": "web", "containerPort": 443, "protocol": "UDP"}]}]},
        "status": {"phase": phase, "podIPs": [
            {"ip": format!("10.0.0.{number}")}, {"ip": format!("fd00::{number}")}]},
    }))
    .unwrap()
}

fn selector() -> BoxedStrategy<Value> {
    prop_oneof![
        2 => Just(json!({})),
        3 => (0..3_u8).prop_map(|app| json!({"matchLabels": {"app": format!("a{app}")}})),
        1 => Just(json!({"matchLabels": {"odd": "1"}})),
        2 => (prop::sample::select(vec!["In", "NotIn"]), prop::collection::btree_set(0..3_u8, 1..3)).prop_map(
            |(operator, apps)| {
                let values: Vec<String> = apps.iter().map(|app| format!("a{app}")).collect();
                json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]})
            }
        ),
        1 => prop::sample::select(vec!["Exists", "DoesNotExist"])
            .prop_map(|operator| json!({"matchExpressions": [{"key": "app", "operator": operator}]})),
    ]
    .boxed()
}

fn peer() -> BoxedStrategy<Value> {
    let namespaces = prop_oneof![
        Just(json!({})),
        (0..2_u8).prop_map(|team| json!({"matchLabels": {"team": format!("t{team}")}})),
    ];
    let block = (
        prop::sample::select(CIDRS.to_vec()),
        prop::collection::vec(prop::sample::select(CIDRS.to_vec()), 0..3),
    );
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        namespaces.clone().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), namespaces).prop_map(|(pods, n)| json!({"podSelector": pods, "namespaceSelector": n})),
        block.prop_map(|(cidr, except)| json!({"ipBlock": {"cidr": cidr, "except": except}})),
    ]
    .boxed()
}

fn port() -> BoxedStrategy<Value> {
    let protocol = prop::sample::select(vec!["TCP", "UDP", "SCTP"]);
    let number = prop::sample::select(PORTS.to_vec());
    (
        protocol,
        prop_oneof![
            Just(json!({})),
            number.clone().prop_map(|port| json!({"port": port})),
            (number.clone(), number).prop_map(|(a, b)| json!({"port": a.min(b), "endPort": a.max(b)})),
            Just(json!({"port": "web"})),
        ],
    )
        .prop_map(|(protocol, mut port)| {
            port["protocol"] = json!(protocol);
            port
        })
        .boxed()
}

fn rules(peers: &'static str) -> BoxedStrategy<Value> {
    let rule = (
        prop::option::of(prop::collection::vec(peer(), 0..3)),
        prop::option::of(prop::collection::vec(port(), 0..3)),
    );
    let rule = rule.prop_map(move |(list, ports)| {
        let mut rule = json!({});
        if let Some(list) = list {
            rule[peers] = json!(list);
        }
        if let Some(ports) = ports {
            rule["ports"] = json!(ports);
        }
        rule
    });
    prop::option::of(prop::collection::vec(rule, 0..3)).prop_map(|rules| json!(rules)).boxed()
}

fn policy() -> BoxedStrategy<NetworkPolicy> {
    let types = prop::sample::select(vec![
        json!(null),
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (0..6_u8, prop::sample::select(NAMESPACES.to_vec()), selector(), types, rules("from"), rules("to"))
        .prop_map(|(number, namespace, selector, types, ingress, egress)| {
            serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": format!("n{number}")},
                "spec": {"podSelector": selector, "policyTypes": types, "ingress": ingress, "egress": egress},
            }))
            .unwrap()
        })
        .boxed()
}

/// Something that happens to a cluster.
#[derive(Debug, Clone)]
enum Step {
    Namespace(Namespace),
    Pod(Box<Pod>),
    NoPod(u8),
    Attach(u8),
    Detach(u8),
    Policy(NetworkPolicy),
    NoPolicy(String, String),
    StartOver,
    Plan,
}

fn step() -> BoxedStrategy<Step> {
    let of = || prop::sample::select(NAMESPACES.to_vec());
    let phase = prop::sample::select(vec!["Running", "Running", "Running", "Succeeded"]);
    let any_pod =
        (1..9_u8, of(), 0..3_u8, prop::sample::select(vec![80_u16, 8080]), phase, prop::bool::weighted(0.1));
    prop_oneof![
        2 => (of(), 0..2_u8).prop_map(|(name, team)| Step::Namespace(namespace(name, team))),
        8 => any_pod.prop_map(|(n, ns, app, named, phase, host)| Step::Pod(Box::new(pod(n, ns, app, named, phase, host)))),
        1 => (1..9_u8).prop_map(Step::NoPod),
        5 => (1..9_u8).prop_map(Step::Attach),
        1 => (1..9_u8).prop_map(Step::Detach),
        8 => policy().prop_map(Step::Policy),
        2 => (of(), 0..6_u8).prop_map(|(ns, n)| Step::NoPolicy(ns.to_owned(), format!("n{n}"))),
        1 => Just(Step::StartOver),
        3 => Just(Step::Plan),
    ]
    .boxed()
}

/// A cluster, the compiler that follows it, and the tables that come of it.
#[derive(Default)]
struct Rig {
    cluster: Cluster,
    compiler: Compiler,
    tables: Tables,
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap()
}

impl Rig {
    fn new() -> Self {
        Self { compiler: Compiler::new(1), ..Self::default() }
    }

    fn remove_pod(&mut self, name: &str) {
        if let Some(at) = self.cluster.pods.iter().position(|pod| name_of(pod) == name) {
            let pod = self.cluster.pods.remove(at);
            self.compiler.delete_pod(&ObjectName::new(&pod.metadata.namespace.unwrap(), name));
        }
    }

    fn detach(&mut self, number: u8) {
        let addresses = [format!("10.0.0.{number}"), format!("fd00::{number}")];
        let addresses = addresses.map(|text| Address::from(text.parse::<IpAddr>().unwrap()));
        self.compiler.detach_addresses(&addresses);
        for address in &addresses {
            self.tables.endpoints.remove(address);
        }
        self.cluster.local.retain(|name| *name != format!("p{number}"));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Namespace(namespace) => {
                let name = namespace.metadata.name.clone().unwrap();
                self.compiler.apply_namespace(&name, namespace.metadata.labels.as_ref().unwrap());
                self.cluster.namespaces.retain(|known| known.metadata.name != namespace.metadata.name);
                self.cluster.namespaces.push(namespace);
            }
            Step::Pod(pod) => {
                let name = name_of(&pod);
                let number: u8 = name[1..].parse().unwrap();
                let known = self.cluster.pods.iter().find(|known| name_of(known) == name);
                // A pod keeps its namespace; one in another is another pod.
                if known.is_some_and(|known| known.metadata.namespace != pod.metadata.namespace) {
                    self.detach(number);
                    self.remove_pod(&name);
                }
                match pod_state(&pod) {
                    Some(state) => self.compiler.apply_pod(state),
                    None => {
                        self.detach(number);
                        let name = ObjectName::new(pod.metadata.namespace.as_deref().unwrap(), &name);
                        self.compiler.delete_pod(&name);
                    }
                }
                self.cluster.pods.retain(|known| name_of(known) != name);
                self.cluster.pods.push(*pod);
            }
            Step::NoPod(number) => {
                self.detach(number);
                self.remove_pod(&format!("p{number}"));
            }
            Step::Attach(number) => {
                let found = self.cluster.pods.iter().find(|pod| name_of(pod) == format!("p{number}"));
                let Some(state) = found.and_then(pod_state) else { return };
                self.compiler.attach(state.facts, state.addresses);
                self.cluster.local.push(format!("p{number}"));
            }
            Step::Detach(number) => self.detach(number),
            Step::Policy(policy) => {
                self.compiler.apply_policy(&policy);
                self.cluster.policies.retain(|known| {
                    (&known.metadata.namespace, &known.metadata.name)
                        != (&policy.metadata.namespace, &policy.metadata.name)
                });
                self.cluster.policies.push(policy);
            }
            Step::NoPolicy(namespace, name) => {
                self.compiler.delete_policy(&ObjectName::new(&namespace, &name));
                self.cluster.policies.retain(|known| {
                    known.metadata.namespace.as_ref() != Some(&namespace)
                        || known.metadata.name.as_ref() != Some(&name)
                });
            }
            Step::StartOver => {
                let space = self.compiler.space() + 1;
                self.compiler.start_over(space);
                self.plan();
                // What the agent does when every pod has moved.
                self.tables.identities.retain(|key, _| key.space == space);
                self.tables.prefixes.retain(|key, _| key.network.space == space);
                self.tables.rules.retain(|key, _| key.space == space);
                self.tables.ports.retain(|key| key.number.space == space);
            }
            Step::Plan => self.plan(),
        }
    }

    fn plan(&mut self) {
        for op in self.compiler.plan() {
            self.tables.apply(&op);
        }
        assert!(self.compiler.plan().is_empty(), "a plan is complete");
    }

    /// What the explanation says, as far as the node of the local pods decides.
    fn explain(&self, (source, destination): (IpAddr, IpAddr), protocol: u8, port: u16) -> bool {
        let namespaces = self.cluster.namespaces.iter().map(|namespace| {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            (namespace.metadata.name.clone().unwrap().into(), labels)
        });
        let end = |address: IpAddr| {
            let address = Address::from(address);
            let mut pods = self.cluster.pods.iter().filter_map(pod_state);
            let pod = pods.find(|pod| pod.addresses.contains(&address)).map(|pod| pod.facts);
            let is_local =
                pod.as_ref().is_some_and(|pod| self.cluster.local.contains(&pod.name.name.to_string()));
            (End { address, pod }, is_local)
        };
        let ((source, source_local), (destination, destination_local)) = (end(source), end(destination));
        let ends = (&source, &destination);
        let found = explain(&self.cluster.policies, &namespaces.collect(), ends, protocol, port);
        (!source_local || found.egress.is_allowed()) && (!destination_local || found.ingress.is_allowed())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let own = (1..9_u8).flat_map(|n| [format!("10.0.0.{n}"), format!("fd00::{n}")]);
        let all: Vec<IpAddr> =
            own.chain(OUTSIDE.map(String::from)).map(|text| text.parse().unwrap()).collect();
        for (turn, source) in all.iter().enumerate() {
            for destination in all.iter().filter(|other| other.is_ipv4() == source.is_ipv4()) {
                for (protocol, number) in [("TCP", 6), ("UDP", 17), ("SCTP", 132)] {
                    for port in PORTS {
                        let expected = self.cluster.admits(*source, *destination, protocol, port);
                        let found = self.tables.admits(
                            &Address::from(*source),
                            &Address::from(*destination),
                            number,
                            port,
                        );
                        // It reads the objects each time: one port a source is enough.
                        if port == PORTS[turn % PORTS.len()] {
                            let explained = self.explain((*source, *destination), number, port);
                            prop_assert_eq!(explained, expected, "{} → {} {}", source, destination, protocol);
                        }
                        prop_assert_eq!(
                            found,
                            expected,
                            "{} → {} {} {}",
                            source,
                            destination,
                            protocol,
                            port
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_decide_as_the_reference(steps in prop::collection::vec(step(), 1..60)) {
        let mut rig = Rig::new();
        for step in steps {
            rig.step(step);
        }
        rig.plan();
        rig.check()?;
        // Nothing is left of what is gone.
        for n in 1..9 {
            rig.detach(n);
        }
        rig.plan();
        let Tables { identities, prefixes, rules, ports, .. } = &rig.tables;
        prop_assert!(identities.is_empty() && prefixes.is_empty() && rules.is_empty() && ports.is_empty(), "{:?}", rig.tables);
    }

    /// In the middle of a plan a flow that was allowed before and is allowed after is allowed, and one that was not and is
    /// not, is not.
    #[test]
    fn no_packet_meets_half_a_plan(before in prop::collection::vec(step(), 10..40), change in step()) {
        let mut rig = Rig::new();
        for step in before {
            rig.step(step);
        }
        rig.plan();
        let old = rig.tables.clone();
        if matches!(change, Step::StartOver) {
            return Ok(());
        }
        rig.step(change);
        let ops = rig.compiler.plan();
        let mut new = rig.tables.clone();
        for op in &ops {
            new.apply(op);
        }
        let addresses: Vec<Address> = rig.tables.endpoints.keys().copied()
            .chain(OUTSIDE.map(|text| Address::from(text.parse::<IpAddr>().unwrap()))).collect();
        let mut between = old.clone();
        // A pod that went takes its address along: that is not a matter of the plan.
        between.endpoints = rig.tables.endpoints.clone();
        for op in &ops {
            between.apply(op);
            for source in &addresses {
                for destination in addresses.iter().filter(|other| other.is_v4() == source.is_v4()) {
                    let verdict = |tables: &Tables| tables.admits(source, destination, 6, 80);
                    if verdict(&old) == verdict(&new) && old.endpoints.keys().eq(rig.tables.endpoints.keys()) {
                        prop_assert_eq!(verdict(&between), verdict(&new), "after {:?}", op);
                    }
                }
            }
        }
    }
}

#[test]
fn a_pod_is_isolated_before_anybody_is_known() {
    let mut compiler = Compiler::new(1);
    let deny = json!({"metadata": {"namespace": "a", "name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}});
    compiler.apply_policy(&serde_json::from_value(deny).unwrap());
    assert!(compiler.plan().is_empty(), "no pod of the node is concerned");
    let pod = pod_state(&pod(1, "a", 0, 80, "Pending", false)).unwrap();
    compiler.attach(pod.facts.clone(), pod.addresses.clone());
    let ops = compiler.plan();
    let policy = compiler.policy_of("u1").unwrap();
    assert!(policy.ingress != 0 && policy.egress != 0 && policy.ingress != policy.egress);
    assert_eq!(ops, [Op::SetEndpoint(policy), Op::Revise]);
}

#[test]
fn a_broken_part_allows_nothing_and_the_rest_holds() {
    let broken = json!({
        "metadata": {"namespace": "a", "name": "broken"},
        "spec": {"podSelector": {}, "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.0.0.999/8"}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["nonsense"]}}]},
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 80}, {"port": 90, "endPort": 80}, {"port": "x", "endPort": 80}]},
            {"from": [{}]},
        ]},
    });
    let mut compiler = Compiler::new(1);
    compiler.apply_policy(&serde_json::from_value(broken).unwrap());
    let messages: Vec<String> = compiler.problems().map(|problem| problem.message).collect();
    assert_eq!(
        messages,
        [
            "spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.999/8\" is not a CIDR such as 10.9.8.0/24 or 2001:db8::/64; the peer matches nothing",
            "spec.ingress[0].from[1].ipBlock.except[0]: \"nonsense\" is not a CIDR such as 10.9.8.0/24 or 2001:db8::/64; the peer matches nothing",
            "spec.ingress[2].from[0]: must specify a peer; the peer matches nothing",
        ]
    );
    let pod = pod_state(&pod(1, "a", 0, 80, "Running", false)).unwrap();
    compiler.attach(pod.facts, pod.addresses);
    let mut tables = Tables::default();
    for op in compiler.plan() {
        tables.apply(&op);
    }
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    let admits = |from: &str, port| tables.admits(&address(from), &address("10.0.0.1"), 6, port);
    assert!(admits("192.0.2.9", 80));
    assert!(!admits("192.0.2.9", 85) && !admits("10.1.1.1", 80) && !admits("10.0.0.2", 80));
    let selector = json!({
        "metadata": {"namespace": "a", "name": "broken"},
        "spec": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}},
    });
    compiler.apply_policy(&serde_json::from_value(selector).unwrap());
    assert_eq!(
        compiler.problems().map(|problem| problem.message).collect::<Vec<_>>(),
        ["spec.podSelector: \"Like\" is not a valid label selector operator; the policy has no effect"]
    );
    compiler.retain_policies(&BTreeSet::new());
    assert_eq!(compiler.problems().count(), 0);
}

/// A thousand policies and five hundred pods: the tables stay small, and a change costs what it changes.
#[test]
fn many_policies_cost_little() {
    let mut compiler = Compiler::new(1);
    for n in 0..1_000 {
        let policy = json!({
            "metadata": {"namespace": "a", "name": format!("n{n}")},
            "spec": {"podSelector": {"matchLabels": {"app": format!("a{}", n % 50)}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": format!("a{}", n * 7 % 50)}}}],
                    "ports": [{"port": 8000 + n % 10}]}]},
        });
        compiler.apply_policy(&serde_json::from_value(policy).unwrap());
    }
    let started = std::time::Instant::now();
    for n in 0..500_u16 {
        let pod = json!({
            "metadata": {"namespace": "a", "name": format!("p{n}"), "uid": format!("u{n}"), "labels": {"app": format!("a{}", n % 50)}},
            "status": {"podIPs": [{"ip": format!("10.0.{}.{}", n / 250, n % 250)}]},
        });
        let state = pod_state(&serde_json::from_value(pod).unwrap()).unwrap();
        compiler.apply_pod(state.clone());
        compiler.attach(state.facts, state.addresses);
    }
    let ops = compiler.plan();
    println!("everything: {} operations, {:?}", ops.len(), started.elapsed());
    let rules = ops.iter().filter(|op| matches!(op, Op::PutRule(..))).count();
    assert!(rules <= 1_000, "{rules} rules");
    // A pod more like others: its identity, its policies, and flows are judged again.
    let one = json!({"metadata": {"namespace": "a", "name": "one", "uid": "one", "labels": {"app": "a3"}},
        "status": {"podIPs": [{"ip": "10.0.9.9"}]}});
    let state = pod_state(&serde_json::from_value(one).unwrap()).unwrap();
    let started = std::time::Instant::now();
    compiler.attach(state.facts, state.addresses);
    let ops = compiler.plan();
    println!("a pod: {} operations, {:?}", ops.len(), started.elapsed());
    assert_eq!(ops.len(), 3, "{ops:?}");
    // A policy changes: the pods it selects get another table.
    let changed = json!({
        "metadata": {"namespace": "a", "name": "n3"},
        "spec": {"podSelector": {"matchLabels": {"app": "a3"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a1"}}}]}]},
    });
    compiler.apply_policy(&serde_json::from_value(changed).unwrap());
    let started = std::time::Instant::now();
    let ops = compiler.plan();
    println!("a policy: {} operations, {:?}", ops.len(), started.elapsed());
    assert!(ops.len() < 100, "{}", ops.len());
}
