//! Garbage collection of images when the disk fills up (the kubelet's image garbage collection).

use super::{Image, ImageStore};
use crate::kubelet_config::Settings;
use jiff::{SignedDuration, Timestamp};
use kelp_model::duration::GoDuration;
use nix::sys::statvfs::statvfs;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When images are removed, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Use of the disk, percent, from which on images are removed.
    pub high: u64,
    /// Use of the disk, percent, down to which they are.
    pub low: u64,
    /// Images that were imported or used so recently stay.
    pub min_age: SignedDuration,
    /// Images that nobody uses for so long go, however much room there is.
    pub max_age: Option<SignedDuration>,
}

impl Default for Policy {
    /// The kubelet's defaults.
    fn default() -> Self {
        Self { high: 85, low: 80, min_age: SignedDuration::from_secs(120), max_age: None }
    }
}

impl Policy {
    /// That of a KubeletConfiguration.
    pub fn of(settings: &Settings) -> Self {
        let percent = |value: i32| u64::try_from(value).unwrap_or(0);
        let age = |duration: GoDuration| SignedDuration::from_nanos(duration.0);
        Self {
            high: percent(settings.image_gc_high_threshold_percent),
            low: percent(settings.image_gc_low_threshold_percent),
            min_age: age(settings.image_minimum_gc_age),
            max_age: (settings.image_maximum_gc_age.0 > 0).then(|| age(settings.image_maximum_gc_age)),
        }
    }
}

/// How often the disk is looked at: nothing tells that it fills up. The kubelet's interval.
const INTERVAL: Duration = Duration::from_secs(300);

/// A disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    capacity: u64,
    available: u64,
}

/// Bytes that must be freed.
fn to_free(disk: Disk, policy: Policy) -> Option<u64> {
    if disk.capacity == 0 {
        return None;
    }
    let share = |percent: u64| u64::try_from(u128::from(disk.capacity) * u128::from(percent) / 100).ok();
    let used = disk.capacity.saturating_sub(disk.available);
    (used >= share(policy.high)?).then_some(used.saturating_sub(share(policy.low)?)).filter(|n| *n > 0)
}

/// The images to be removed, those that were used longest ago first. `in_use` and young ones stay.
fn victims(
    mut images: Vec<(Image, Timestamp)>,
    in_use: impl Fn(&Image) -> bool,
    now: Timestamp,
    policy: Policy,
    mut bytes: u64,
) -> Vec<String> {
    images.sort_by_key(|(image, used)| (*used, image.imported_at));
    let mut chosen = Vec::new();
    for (image, used) in images {
        if bytes == 0 {
            break;
        }
        let age = now.duration_since(used.max(image.imported_at));
        if in_use(&image) || age < policy.min_age {
            continue;
        }
        bytes = bytes.saturating_sub(image.size);
        chosen.push(image.id);
    }
    chosen
}

/// Images that nobody uses, and has not for longer than they may stay. An image whose last use was before `since` is
/// counted from then: it was not seen unused before.
fn outdated(
    images: &[(Image, Timestamp)],
    in_use: impl Fn(&Image) -> bool,
    since: Timestamp,
    now: Timestamp,
    policy: Policy,
) -> Vec<String> {
    let Some(most) = policy.max_age else { return Vec::new() };
    let is_old = |(image, used): &&(Image, Timestamp)| {
        !in_use(image) && now.duration_since((*used).max(image.imported_at).max(since)) > most
    };
    images.iter().filter(is_old).map(|(image, _)| image.id.clone()).collect()
}

/// One look. Returns the ids of removed images, or why too little could be freed.
fn collect(store: &ImageStore, policy: Policy, since: Timestamp) -> Result<Vec<String>, String> {
    let stat = statvfs(store.dir()).map_err(|e| format!("cannot read the file system's state: {e}"))?;
    let size = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let disk = Disk { capacity: size(stat.blocks()), available: size(stat.blocks_available()) };
    let dated = || -> Result<Vec<(Image, Timestamp)>, String> {
        let dated = |i: Image| {
            let used = store.last_used(&i.id).unwrap_or(i.imported_at);
            (i, used)
        };
        Ok(store.list().map_err(|e| e.to_string())?.into_iter().map(dated).collect())
    };
    let now = Timestamp::now();
    if policy.max_age.is_some() {
        let old = outdated(&dated()?, |i| store.is_in_use(&i.id), since, now, policy);
        store.prune(|image| !old.contains(&image.id)).map_err(|e| e.to_string())?;
    }
    // 100: never for want of room.
    let Some(bytes) = to_free(disk, policy).filter(|_| policy.high < 100) else { return Ok(Vec::new()) };
    let chosen = victims(dated()?, |i| store.is_in_use(&i.id), now, policy, bytes);
    let removed = store.prune(|image| !chosen.contains(&image.id)).map_err(|e| e.to_string())?;
    if removed.is_empty() {
        return Err(format!(
            "Failed to garbage collect required amount of images. Attempted to free {bytes} bytes, but only found 0 bytes eligible to free."
        ));
    }
    Ok(removed)
}

/// Reads: the disk, the store. Writes: the store; tells `report` what it could not free.
pub async fn run(
    store: ImageStore,
    policy: Policy,
    report: impl Fn(String) + Send + 'static,
    shutdown: CancellationToken,
) {
    let since = Timestamp::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let store = store.clone();
        match tokio::task::spawn_blocking(move || collect(&store, policy, since)).await {
            Ok(Ok(removed)) if !removed.is_empty() => {
                tracing::info!(?removed, "images removed: the disk fills up")
            }
            Ok(Ok(_)) => {}
            Ok(Err(message)) => report(message),
            Err(error) => tracing::error!(%error, "image garbage collection failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageConfig;
    use proptest::prelude::*;

    fn image(id: &str, size: u64) -> Image {
        Image {
            id: id.into(),
            names: vec![],
            digests: vec![],
            size,
            imported_at: Timestamp::UNIX_EPOCH,
            config: ImageConfig::default(),
            layers: vec![],
        }
    }

    #[test]
    fn thresholds() {
        let policy = Policy::default();
        let disk = |available| Disk { capacity: 1000, available };
        assert_eq!(to_free(disk(151), policy), None);
        assert_eq!(to_free(disk(150), policy), Some(50));
        assert_eq!(to_free(disk(0), policy), Some(200));
        assert_eq!(to_free(Disk { capacity: 0, available: 0 }, policy), None);
    }

    #[test]
    fn the_longest_unused_go_first() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let images = vec![
            (image("new", 10), at(990)),
            (image("old", 10), at(1)),
            (image("used", 10), at(2)),
            (image("mid", 10), at(500)),
        ];
        let now = at(1000);
        let chosen = victims(images.clone(), |i| i.id == "used", now, Policy::default(), 5);
        assert_eq!(chosen, ["old"]);
        let chosen = victims(images, |i| i.id == "used", now, Policy::default(), 1000);
        assert_eq!(chosen, ["old", "mid"], "what is in use or young stays");
    }

    #[test]
    fn old_images_go_when_that_is_asked_for() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let images = [(image("old", 1), at(1)), (image("used", 1), at(1)), (image("new", 1), at(900))];
        let policy = Policy { max_age: Some(SignedDuration::from_secs(500)), ..Policy::default() };
        let of = |since, policy| outdated(&images, |i| i.id == "used", since, at(1000), policy);
        assert_eq!(of(at(0), policy), ["old"]);
        assert!(of(at(600), policy).is_empty(), "not yet seen unused for so long");
        assert!(of(at(0), Policy::default()).is_empty());
    }

    proptest! {
        #[test]
        fn enough_is_chosen_or_everything_that_may_go(sizes in proptest::collection::vec(1u64..100, 0..20), bytes in 0u64..500) {
            let images: Vec<_> = sizes.iter().enumerate().map(|(i, s)| (image(&i.to_string(), *s), Timestamp::UNIX_EPOCH)).collect();
            let chosen = victims(images, |_| false, Timestamp::from_second(1000).unwrap(), Policy::default(), bytes);
            let freed: u64 = chosen.iter().map(|id| sizes[id.parse::<usize>().unwrap()]).sum();
            prop_assert!(freed >= bytes || chosen.len() == sizes.len());
        }
    }
}
