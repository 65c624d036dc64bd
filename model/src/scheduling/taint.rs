//! Taints and tolerations.

use k8s_openapi::api::core::v1 as api;

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// They are not scheduled.
    NoSchedule,
    /// They are rather not scheduled.
    PreferNoSchedule,
    /// They are not scheduled, and evicted.
    NoExecute,
    /// One this scheduler does not know; it has no effect here.
    Unknown,
}

impl Effect {
    fn parse(text: &str) -> Self {
        match text {
            "NoSchedule" => Self::NoSchedule,
            "PreferNoSchedule" => Self::PreferNoSchedule,
            "NoExecute" => Self::NoExecute,
            _ => Self::Unknown,
        }
    }

    /// Whether it keeps pods away.
    pub fn repels(self) -> bool {
        matches!(self, Self::NoSchedule | Self::NoExecute)
    }
}

/// A taint of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: Box<str>,
    /// Its value, empty for none.
    pub value: Box<str>,
    /// Its effect.
    pub effect: Effect,
}

impl From<&api::Taint> for Taint {
    fn from(taint: &api::Taint) -> Self {
        Self {
            key: taint.key.as_str().into(),
            value: taint.value.as_deref().unwrap_or_default().into(),
            effect: Effect::parse(&taint.effect),
        }
    }
}

/// A toleration of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toleration {
    /// The taint's key; empty for any.
    pub key: Box<str>,
    /// How values are compared.
    pub operator: TolerationOperator,
    /// The taint's value.
    pub value: Box<str>,
    /// The taint's effect; none for any.
    pub effect: Option<Effect>,
}

/// How a toleration compares values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TolerationOperator {
    /// Any value.
    Exists,
    /// The same value.
    Equal,
    /// One this scheduler does not know; it tolerates nothing.
    Unknown,
}

impl From<&api::Toleration> for Toleration {
    fn from(toleration: &api::Toleration) -> Self {
        Self {
            key: toleration.key.as_deref().unwrap_or_default().into(),
            operator: match toleration.operator.as_deref().unwrap_or_default() {
                "Exists" => TolerationOperator::Exists,
                "" | "Equal" => TolerationOperator::Equal,
                _ => TolerationOperator::Unknown,
            },
            value: toleration.value.as_deref().unwrap_or_default().into(),
            effect: toleration.effect.as_deref().filter(|e| !e.is_empty()).map(Effect::parse),
        }
    }
}

impl Toleration {
    /// Whether it tolerates `taint`.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match self.operator {
                TolerationOperator::Exists => true,
                TolerationOperator::Equal => self.value == taint.value,
                TolerationOperator::Unknown => false,
            }
    }
}

/// Whether every taint that repels pods is tolerated.
pub fn tolerated(taints: &[Taint], tolerations: &[Toleration]) -> bool {
    taints.iter().filter(|taint| taint.effect.repels()).all(|t| tolerations.iter().any(|o| o.tolerates(t)))
}

/// Number of `PreferNoSchedule` taints that are not tolerated.
pub fn intolerable_preferences(taints: &[Taint], tolerations: &[Toleration]) -> i64 {
    let unwanted = taints
        .iter()
        .filter(|taint| taint.effect == Effect::PreferNoSchedule)
        .filter(|taint| !tolerations.iter().any(|toleration| toleration.tolerates(taint)));
    unwanted.count() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint { key: key.into(), value: value.into(), effect: Effect::parse(effect) }
    }

    fn toleration(json: serde_json::Value) -> Toleration {
        (&serde_json::from_value::<api::Toleration>(json).expect("toleration")).into()
    }

    #[test]
    fn matching() {
        let t = taint("k", "v", "NoSchedule");
        for (json, want) in [
            (serde_json::json!({"operator": "Exists"}), true),
            (serde_json::json!({"key": "k", "operator": "Exists"}), true),
            (serde_json::json!({"key": "k", "value": "v"}), true),
            (serde_json::json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
            (serde_json::json!({"key": "k", "value": "v", "effect": "NoExecute"}), false),
            (serde_json::json!({"key": "k", "value": "w"}), false),
            (serde_json::json!({"key": "j", "operator": "Exists"}), false),
            (serde_json::json!({"key": "k", "operator": "Near", "value": "v"}), false),
        ] {
            assert_eq!(toleration(json.clone()).tolerates(&t), want, "{json}");
        }
        assert!(tolerated(&[taint("k", "", "PreferNoSchedule"), taint("k", "", "Odd")], &[]));
        assert!(!tolerated(&[taint("k", "", "NoExecute")], &[]));
        assert_eq!(intolerable_preferences(&[taint("k", "", "PreferNoSchedule"), t], &[]), 1);
    }
}
