//! Feature gates (`featureGates`): which names there are, and which may be set to what.
//!
//! As upstream: a name that nobody knows is an error, as is another value for a gate that is locked; setting one that is
//! generally available or deprecated is told in a warning.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

const TABLE: &str = include_str!("gates.tbl");
/// Gates that turn a stage on or off as a whole.
const GROUPS: [(&str, &str); 2] = [("AllAlpha", "alpha"), ("AllBeta", "beta")];
/// Gates that decide something here.
const DECIDING: [&str; 3] =
    ["GracefulNodeShutdown", "GracefulNodeShutdownBasedOnPodPriority", "RotateKubeletServerCertificate"];

struct Gate {
    name: &'static str,
    stage: &'static str,
    on: bool,
    locked: bool,
}

fn gates() -> impl Iterator<Item = Gate> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let mut words = line.split(' ');
        let (name, stage) = (words.next()?, words.next()?);
        Some(Gate { name, stage, on: words.next() == Some("on"), locked: words.next() == Some("locked") })
    })
}

/// The gates of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gates(BTreeMap<&'static str, bool>);

impl Gates {
    /// Reads `featureGates`, whose values are booleans. What somebody should know is added to `warnings`.
    ///
    /// # Errors
    /// A name is unknown, or a value is not allowed.
    pub fn read(configured: Option<&Map<String, Value>>, warnings: &mut Vec<String>) -> Result<Self, String> {
        let set: BTreeMap<&str, bool> = configured
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_bool()?)))
            .collect();
        let known: BTreeMap<&str, Gate> = gates().map(|gate| (gate.name, gate)).collect();
        let mut errors = Vec::new();
        let mut idle = Vec::new();
        for (name, value) in &set {
            let Some(gate) = known.get(name) else {
                if !GROUPS.iter().any(|(group, _)| group == name) {
                    errors.push(format!("unrecognized feature gate: {name}"));
                }
                continue;
            };
            if gate.locked && gate.on != *value {
                let on = gate.on;
                errors.push(format!("cannot set feature gate {name} to {value}, feature is locked to {on}"));
            }
            match gate.stage {
                "ga" => warnings.push(format!(
                    "setting GA feature gate {name}={value}: it will be removed in a future release"
                )),
                "deprecated" => warnings.push(format!(
                    "setting deprecated feature gate {name}={value}: it will be removed in a future release"
                )),
                _ if gate.on != *value && !DECIDING.contains(name) => idle.push(*name),
                _ => {}
            }
        }
        match errors.as_slice() {
            [] => {}
            [one] => return Err(one.clone()),
            many => return Err(format!("[{}]", many.join(", "))),
        }
        if !idle.is_empty() {
            let list = idle.join(", ");
            warnings.push(format!(
                "the kubelet configuration sets feature gates that change nothing here: {list}"
            ));
        }
        let value = |gate: &Gate| {
            let group = GROUPS.iter().find(|(_, stage)| *stage == gate.stage);
            let group = group.and_then(|(name, _)| set.get(name)).filter(|_| !gate.locked);
            set.get(gate.name).or(group).copied().unwrap_or(gate.on)
        };
        Ok(Self(gates().map(|gate| (gate.name, value(&gate))).collect()))
    }

    /// Whether a gate is on.
    pub fn on(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(gates: Value) -> Result<(Gates, Vec<String>), String> {
        let mut warnings = Vec::new();
        let gates = Gates::read(gates.as_object(), &mut warnings)?;
        Ok((gates, warnings))
    }

    #[test]
    fn the_table_is_whole() {
        let mut names: Vec<&str> = gates().map(|g| g.name).collect();
        assert_eq!(names.len(), TABLE.lines().count() - 1);
        assert!(gates().all(|g| ["alpha", "beta", "ga", "deprecated"].contains(&g.stage)));
        let all = names.clone();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names, all, "sorted, each once");
        assert!(DECIDING.iter().all(|name| names.contains(name)));
    }

    #[test]
    fn names_and_values_are_upstreams() {
        let (gates, warnings) = read(json!({})).unwrap();
        assert!(gates.on("GracefulNodeShutdown") && !gates.on("InPlacePodVerticalScalingExclusiveCPUs"));
        assert!(warnings.is_empty());
        assert_eq!(read(json!({"NoSuch": true})).unwrap_err(), "unrecognized feature gate: NoSuch");
        assert_eq!(
            read(json!({"NodeSwap": false, "NoSuch": false})).unwrap_err(),
            "[unrecognized feature gate: NoSuch, cannot set feature gate NodeSwap to false, feature is locked to true]"
        );
        let (_, warnings) = read(json!({"NodeSwap": true})).unwrap();
        assert_eq!(
            warnings,
            ["setting GA feature gate NodeSwap=true: it will be removed in a future release"]
        );
        let (gates, warnings) = read(json!({"GracefulNodeShutdown": false})).unwrap();
        assert!(!gates.on("GracefulNodeShutdown") && warnings.is_empty());
        let (_, warnings) = read(json!({"CPUManagerPolicyAlphaOptions": true})).unwrap();
        assert!(warnings[0].ends_with("change nothing here: CPUManagerPolicyAlphaOptions"), "{warnings:?}");
    }

    #[test]
    fn a_stage_is_set_as_a_whole() {
        let (gates, _) = read(json!({"AllBeta": false, "GracefulNodeShutdown": true})).unwrap();
        assert!(!gates.on("KubeletCrashLoopBackOffMax") && gates.on("GracefulNodeShutdown"));
        assert!(gates.on("NodeSwap"), "it is no beta any more");
        let (gates, _) = read(json!({"AllAlpha": true})).unwrap();
        assert!(gates.on("CPUManagerPolicyAlphaOptions"));
    }
}
