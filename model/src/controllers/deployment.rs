//! The maths of deployments: how many replicas each ReplicaSet gets next.
//!
//! Every function looks at the sizes asked for (`spec.replicas`) of all ReplicaSets and at what their status says is
//! available, and never at pods: a step is taken again and again until nothing changes.

mod revision;
mod rollout;
mod scale;

pub use revision::{
    CHANGE_CAUSE, DESIRED_REPLICAS, MAX_REPLICAS, REVISION, REVISION_HISTORY, max_revision, next_annotations,
    revision,
};
pub use rollout::{Step, next_rolling_step, recreate_step};
pub use scale::{active_or_latest, is_saturated, proportional_sizes};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The part of a ReplicaSet that deployment maths needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicas {
    /// Replicas asked for.
    pub size: i32,
    /// Available replicas, from the status.
    pub available: i32,
    /// `deployment.kubernetes.io/max-replicas`: the deployment's size and surge when this set was last sized.
    pub max_replicas: Option<i32>,
}

impl From<&ReplicaSet> for Replicas {
    fn from(rs: &ReplicaSet) -> Self {
        let annotation = |key: &str| rs.metadata.annotations.as_ref()?.get(key)?.parse().ok();
        Self {
            size: size(rs),
            available: rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0),
            max_replicas: annotation(MAX_REPLICAS),
        }
    }
}

/// The replicas a ReplicaSet asks for.
#[must_use]
pub fn size(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The bounds a deployment keeps to while it rolls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Replicas wanted.
    pub replicas: i32,
    /// Replicas allowed beyond that.
    pub surge: i32,
    /// Replicas that may be unavailable.
    pub unavailable: i32,
    /// Whether old and new replicas may run side by side.
    pub rolling: bool,
}

impl Bounds {
    /// The bounds of a deployment. Percentages of the surge are rounded up, those of unavailability down; when both
    /// come out as 0, one replica may be unavailable, or nothing could ever move.
    #[must_use]
    pub fn of(deployment: &Deployment) -> Self {
        let Some(spec) = &deployment.spec else {
            return Self { replicas: 1, surge: 0, unavailable: 0, rolling: false };
        };
        let replicas = spec.replicas.unwrap_or(1).max(0);
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
            return Self { replicas, surge: 0, unavailable: 0, rolling: false };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
        let surge = scaled_value(surge, replicas, true);
        let mut unavailable = scaled_value(unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self { replicas, surge, unavailable: unavailable.min(replicas), rolling: true }
    }

    /// The most replicas all sets together may ask for.
    #[must_use]
    pub fn max_total(self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    /// The fewest replicas that must stay available.
    #[must_use]
    pub fn min_available(self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// A count, or a percentage of `total`; what cannot be read counts as 0.
#[must_use]
pub fn scaled_value(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
            let product = i64::from(percent) * i64::from(total.max(0));
            let scaled = if round_up { (product + 99) / 100 } else { product / 100 };
            i32::try_from(scaled).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests;
