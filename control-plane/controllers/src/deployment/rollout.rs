//! Executing steps: rolling, recreating, resizing.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use kelp_model::controllers::deployment::{
    DESIRED_REPLICAS, Replicas, Step, active_or_latest, is_saturated, next_rolling_step, proportional_sizes,
    recreate_step, revision, size,
};
use kelp_model::controllers::pods;

use super::{Round, annotation};
use crate::error::Result;
use crate::write;

impl Round<'_> {
    /// One step of a rolling update, then the status.
    pub(super) async fn roll(&mut self) -> Result<()> {
        self.ensure_new_set().await?;
        if let Some(new) = &self.new {
            let old: Vec<Replicas> = self.old.iter().map(|s| Replicas::from(&**s)).collect();
            let step = next_rolling_step(self.bounds, &Replicas::from(&**new), &old);
            let waited = step == Step::Wait;
            self.take(step).await?;
            if waited && self.is_complete() {
                self.clean_up().await?;
            }
        }
        self.write_rollout_status().await
    }

    /// One step of a Recreate rollout, then the status.
    pub(super) async fn recreate(&mut self) -> Result<()> {
        self.sync_revision().await?;
        let old: Vec<Replicas> = self.old.iter().map(|s| Replicas::from(&**s)).collect();
        let running = self.old.iter().any(|set| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            self.c.pods.owned_by(uid).iter().any(|p| !pods::is_terminal(p))
        });
        let step = recreate_step(self.bounds, self.new.as_deref().map(size), &old, running);
        let waited = step == Step::Wait;
        if let Step::ResizeNew(_) = step {
            self.ensure_new_set().await?;
        }
        self.take(step).await?;
        if waited && self.is_complete() {
            self.clean_up().await?;
        }
        self.write_rollout_status().await
    }

    async fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Wait => {}
            Step::ResizeNew(to) => {
                if let Some(new) = self.new.clone()
                    && size(&new) != to
                {
                    self.new = Some(self.write_size(&new, to).await?);
                }
            }
            Step::ShrinkOld(changes) => {
                for (i, to) in changes {
                    if let Some(set) = self.old.get(i).cloned() {
                        let written = self.write_size(&set, to).await?;
                        self.old[i] = written;
                    }
                }
            }
        }
        Ok(())
    }

    /// The deployment was resized, or is paused: sizes follow, templates do not.
    pub(super) async fn resize(&mut self) -> Result<()> {
        self.sync_revision().await?;
        self.resize_sets().await?;
        if self.is_paused() {
            self.clean_up().await?;
        }
        self.write_status().await
    }

    async fn resize_sets(&mut self) -> Result<()> {
        let all: Vec<Arc<ReplicaSet>> = self.sets().cloned().collect();
        let replicas: Vec<Replicas> = all.iter().map(|s| Replicas::from(&**s)).collect();
        // The new set is last; without it the set created last stands in.
        let newest = self.new.as_ref().map(|_| all.len() - 1);
        if let Some(only) = active_or_latest(&replicas, newest) {
            if size(&all[only]) != self.bounds.replicas {
                self.write_sizes(&all, &[(only, self.bounds.replicas)]).await?;
            }
            return Ok(());
        }
        if let Some(new) = &self.new
            && is_saturated(self.bounds, &Replicas::from(&**new), annotation(new, DESIRED_REPLICAS))
        {
            let empty: Vec<_> = (0..self.old.len()).filter(|i| size(&all[*i]) > 0).map(|i| (i, 0)).collect();
            return self.write_sizes(&all, &empty).await;
        }
        if !self.bounds.rolling {
            return Ok(());
        }
        let mut active: Vec<usize> = (0..all.len()).filter(|i| size(&all[*i]) > 0).collect();
        let total: i32 = active.iter().map(|i| size(&all[*i])).sum();
        let growing = self.bounds.max_total() >= total && self.bounds.replicas > 0;
        // The largest set takes the remainder; of equal ones the newer grows and the older shrinks.
        active.sort_by(|a, b| {
            let by_size = size(&all[*b]).cmp(&size(&all[*a]));
            by_size.then_with(|| if growing { b.cmp(a) } else { a.cmp(b) })
        });
        let sized: Vec<Replicas> = active.iter().map(|i| replicas[*i].clone()).collect();
        let current = self.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let sizes = proportional_sizes(self.bounds, &sized, current);
        let changes: Vec<(usize, i32)> = active.into_iter().zip(sizes).collect();
        self.write_sizes(&all, &changes).await
    }

    async fn write_sizes(&mut self, all: &[Arc<ReplicaSet>], changes: &[(usize, i32)]) -> Result<()> {
        for (i, to) in changes {
            let written = self.write_size(&all[*i], *to).await?;
            match self.old.get_mut(*i) {
                Some(old) => *old = written,
                None => self.new = Some(written),
            }
        }
        Ok(())
    }

    /// Deletes the oldest unused sets beyond the history limit.
    async fn clean_up(&mut self) -> Result<()> {
        let Some(limit) = self.deployment.spec.as_ref().and_then(|s| s.revision_history_limit) else {
            return Ok(());
        };
        let mut sets: Vec<&Arc<ReplicaSet>> =
            self.old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
        let surplus = sets.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        sets.sort_by_key(|s| revision(s).unwrap_or(0));
        for set in sets.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let unused = status.replicas == 0
                && size(set) == 0
                && set.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0);
            if unused {
                write::delete(&self.api, &**set, None).await?;
            }
        }
        Ok(())
    }
}
