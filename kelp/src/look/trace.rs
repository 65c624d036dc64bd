//! `kelp policy trace`: what network policies decide about a flow, by the kernel's tables and by the objects of the API.

use super::{Output, OutputArgs, PinArgs};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kelp_agent::dataplane::view::{
    Decision, Direction, Grant, Party, Pins, decide, pods_named, protocol_name, protocol_number,
};
use kelp_common::Address;
use kelp_model::policy::{End, Explanation, Labels, PodState, Reason, explain, pod_state};
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// `kelp policy …`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say what network policies decide about a flow, and by which rule.
    Trace(TraceArgs),
}

/// Arguments of `kelp policy trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Who opens the flow: a pod ([NAMESPACE/]NAME) or an address.
    #[arg(long, value_name = "WHO")]
    pub from: Party,
    /// To whom, behind every translation: a pod ([NAMESPACE/]NAME) or an address.
    #[arg(long, value_name = "WHO")]
    pub to: Party,
    /// The port at the receiving side, with its protocol unless it is TCP.
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = port)]
    pub port: (u16, u8),
    /// Kubeconfig with which the NetworkPolicies are read, to say which rules decide
    /// [default: /var/lib/kelp/admin.kubeconfig, if it is there].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub pins: PinArgs,
}

/// The administrator's kubeconfig on a host that runs the control plane.
const ADMIN: &str = "/var/lib/kelp/admin.kubeconfig";

fn port(text: &str) -> Result<(u16, u8), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = port.parse().map_err(|_| format!("{port:?} is no port from 0 to 65535"))?;
    Ok((number, protocol_number(protocol)?))
}

/// One end, as it was found.
#[derive(Debug, Clone, Serialize)]
struct Found {
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({})", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    from: Found,
    to: Found,
    port: u16,
    protocol: String,
    /// By the kernel's tables of this node.
    kernel: Decision,
    /// By the objects; nothing without an API.
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<Explanation>,
    /// Whether both say the same about the pods of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    agree: Option<bool>,
}

/// What the API knows.
struct Objects {
    policies: Vec<NetworkPolicy>,
    namespaces: BTreeMap<Arc<str>, Labels>,
    pods: Vec<PodState>,
}

impl Objects {
    async fn read(client: &Client) -> Result<Self> {
        let all = ListParams::default();
        let policies = Api::<NetworkPolicy>::all(client.clone()).list(&all).await?.items;
        let namespaces = Api::<Namespace>::all(client.clone()).list(&all).await?.items;
        let pods = Api::<Pod>::all(client.clone()).list(&all).await?.items;
        let labels = namespaces.into_iter().filter_map(|namespace| {
            Some((Arc::from(namespace.metadata.name?), namespace.metadata.labels.unwrap_or_default()))
        });
        Ok(Self { policies, namespaces: labels.collect(), pods: pods.iter().filter_map(pod_state).collect() })
    }

    /// The pod at an address: the youngest, if there are several.
    fn end(&self, address: IpAddr) -> End {
        let address = Address::from(address);
        let holders = self.pods.iter().filter(|pod| pod.addresses.contains(&address));
        End { address, pod: holders.max_by_key(|pod| pod.created).map(|pod| pod.facts.clone()) }
    }
}

/// Runs `kelp policy …`.
///
/// # Errors
/// Fails if there is no dataplane, a pod is not known, or the API does not answer.
pub fn run(command: &PolicyCommand) -> Result<()> {
    let PolicyCommand::Trace(args) = command;
    let file = args.kubeconfig.clone().or_else(|| Some(PathBuf::from(ADMIN)).filter(|file| file.exists()));
    let objects = match file {
        Some(file) => {
            let read = async { Objects::read(&crate::run::client_of(&file).await?).await };
            let read = crate::runtime()?.block_on(read);
            Some(read.with_context(|| format!("cannot read the policies with {}", file.display()))?)
        }
        None => None,
    };
    let pins = Pins::new(&args.pins.bpf_dir);
    let from = addresses(&pins, objects.as_ref(), &args.from)?;
    let to = addresses(&pins, objects.as_ref(), &args.to)?;
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (from, to)));
    let pair = pairs.into_iter().find(|(from, to)| from.address.is_ipv4() == to.address.is_ipv4());
    let Some((from, to)) = pair else { bail!("the two have no address of the same family") };
    let trace = trace(&pins, objects.as_ref(), (from, to), args.port)?;
    let mut out = std::io::stdout().lock();
    match args.output.output {
        Output::Table => write!(out, "{}", text(&trace))?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &trace)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// The addresses of somebody, IPv4 first.
fn addresses(pins: &Pins, objects: Option<&Objects>, who: &Party) -> Result<Vec<Found>> {
    let (namespace, name) = match who {
        Party::Range(address, prefix) => {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            if *prefix != whole {
                bail!("{address}/{prefix} is a range; name one address");
            }
            let end = objects.map(|objects| objects.end(*address));
            let pod = end.and_then(|end| end.pod).map(|pod| pod.name.to_string());
            return Ok(vec![Found { address: *address, pod }]);
        }
        Party::Name(namespace, name) => (namespace.as_deref(), name),
    };
    let mut found: BTreeMap<String, Vec<IpAddr>> =
        pods_named(pins, namespace, name)?.into_iter().map(|(pod, all)| (pod.to_string(), all)).collect();
    for pod in objects.iter().flat_map(|objects| &objects.pods) {
        let own = &pod.facts.name;
        if *own.name == **name && namespace.is_none_or(|namespace| *own.namespace == *namespace) {
            let all = pod.addresses.iter().map(|address| IpAddr::from(*address));
            found.insert(own.to_string(), all.collect());
        }
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some((pod, mut all)), None) => {
            all.sort_unstable();
            Ok(all.into_iter().map(|address| Found { address, pod: Some(pod.clone()) }).collect())
        }
        (None, _) if objects.is_none() => {
            bail!("no pod {name} on this node; for pods of other nodes give its address, or --kubeconfig")
        }
        (None, _) => bail!("no pod {name} with an address"),
        (Some((one, _)), Some((other, _))) => bail!("{name} may be {one} or {other}: give its namespace"),
    }
}

fn trace(
    pins: &Pins,
    objects: Option<&Objects>,
    (from, to): (&Found, &Found),
    (port, protocol): (u16, u8),
) -> Result<Trace> {
    let kernel = decide(pins, from.address, to.address, protocol, port)?;
    let explained = objects.map(|objects| {
        let ends = (&objects.end(from.address), &objects.end(to.address));
        explain(&objects.policies, &objects.namespaces, ends, protocol, port)
    });
    let agree = explained.as_ref().map(|objects| {
        // The node of the other pod decides about the other pod.
        let same = |direction: &Direction, reason: &Reason| {
            !direction.decided_here || direction.is_allowed() == reason.is_allowed()
        };
        kernel.exempt.is_some()
            || same(&kernel.egress, &objects.egress) && same(&kernel.ingress, &objects.ingress)
    });
    Ok(Trace {
        from: from.clone(),
        to: to.clone(),
        port,
        protocol: protocol_name(protocol.into()),
        kernel,
        objects: explained,
        agree,
    })
}

/// The answer for people.
fn text(trace: &Trace) -> String {
    let mut text = format!("{} > {}, port {}/{}\n", trace.from, trace.to, trace.port, trace.protocol);
    let objects = trace.objects.as_ref();
    let ends = [
        ("egress", &trace.from, &trace.kernel.egress, objects.map(|all| &all.egress)),
        ("ingress", &trace.to, &trace.kernel.ingress, objects.map(|all| &all.ingress)),
    ];
    for (name, end, direction, reason) in ends {
        text.push_str(&format!("{name} of {end}: {}\n", by_kernel(direction)));
        if let Some(reason) = reason {
            text.push_str(&format!("  {}\n", by_objects(reason)));
        }
    }
    if let Some(exempt) = trace.kernel.exempt {
        text.push_str(&format!("policies are not asked: {exempt}\n"));
    }
    if trace.agree == Some(false) {
        text.push_str(
            "the kernel's tables and the objects disagree: the agent is behind, or a map is full\n",
        );
    }
    text.push_str(if trace.kernel.allowed { "allowed by this node\n" } else { "dropped by this node\n" });
    text
}

fn by_kernel(direction: &Direction) -> String {
    if !direction.decided_here {
        return "decided elsewhere: it is no pod of this node".to_owned();
    }
    let Some(identity) = direction.identity else { return "allowed: no policy is about it".to_owned() };
    let grant = match direction.grant {
        Grant::Everything => "allowed: every port",
        Grant::Port => "allowed: this port",
        Grant::OtherPorts => "denied: other ports only",
        Grant::Nothing => "denied: no rule",
    };
    let mut text = format!("{grant} for identity {identity} in {}", direction.isolation);
    if !direction.policies.is_empty() {
        let names: Vec<String> = direction.policies.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", which is of {}", names.join(", ")));
    }
    text
}

fn by_objects(reason: &Reason) -> String {
    match reason {
        Reason::NotIsolated => "no NetworkPolicy is about it".to_owned(),
        Reason::Allowed { rules } => {
            let all = rules.iter().map(|rule| format!("{}/{} {}", rule.namespace, rule.policy, rule.rule));
            format!("allowed by {}", all.collect::<Vec<_>>().join(", "))
        }
        Reason::Denied { policies } => format!("no rule of {} allows it", policies.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kelp_agent::dataplane::view::{Isolation, Object};
    use kelp_model::policy::RuleName;

    #[test]
    fn ports_have_protocols() {
        assert_eq!(port("80"), Ok((80, 6)));
        assert_eq!(port("53/UDP"), Ok((53, 17)));
        assert!(port("x").is_err() && port("70000").is_err() && port("1/x").is_err());
    }

    #[test]
    fn the_answer_says_who_decides() {
        let end = |address: &str, pod: Option<&str>| Found {
            address: address.parse().expect("an address"),
            pod: pod.map(str::to_owned),
        };
        let free = Direction {
            decided_here: false,
            isolation: Isolation::None,
            identity: None,
            grant: Grant::Everything,
            policies: Vec::new(),
        };
        let denied = Direction {
            decided_here: true,
            isolation: Isolation::Table(3),
            identity: Some(7),
            grant: Grant::OtherPorts,
            policies: vec![Object { namespace: "shop".to_owned(), name: "web".to_owned() }],
        };
        let trace = Trace {
            from: end("10.244.1.5", None),
            to: end("10.244.0.2", Some("shop/web-0")),
            port: 80,
            protocol: "TCP".to_owned(),
            kernel: Decision { allowed: false, egress: free, ingress: denied, exempt: None },
            objects: Some(Explanation {
                egress: Reason::Allowed {
                    rules: vec![RuleName {
                        namespace: "shop".to_owned(),
                        policy: "out".to_owned(),
                        rule: "spec.egress[1]".to_owned(),
                    }],
                },
                ingress: Reason::Denied { policies: vec!["shop/web".to_owned()] },
            }),
            agree: Some(true),
        };
        let expected = "\
10.244.1.5 > shop/web-0 (10.244.0.2), port 80/TCP
egress of 10.244.1.5: decided elsewhere: it is no pod of this node
  allowed by shop/out spec.egress[1]
ingress of shop/web-0 (10.244.0.2): denied: other ports only for identity 7 in table 3, which is of shop/web
  no rule of shop/web allows it
dropped by this node
";
        assert_eq!(text(&trace), expected);
        let json = serde_json::to_value(&trace).expect("JSON");
        assert_eq!(json["objects"]["ingress"]["decision"], "denied");
        assert_eq!(json["kernel"]["ingress"]["grant"], "otherPorts");
        assert_eq!((&json["kernel"]["allowed"], &json["agree"]), (&false.into(), &true.into()));
    }
}
