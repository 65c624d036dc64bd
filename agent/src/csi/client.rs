//! The calls to a CSI driver on this node, and to a plugin that registers itself.
//!
//! Field numbers are those of `csi.proto` (CSI 1.x) and of the kubelet's plugin registration API.

use super::grpc::{Failure, call};
use super::wire::{Reader, Writer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for a driver, upstream's.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A map of strings.
pub type Map = BTreeMap<String, String>;

/// What a plugin says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DevicePlugin`, …
    pub kind: String,
    /// Name of the driver.
    pub name: String,
    /// Socket that the driver serves at; empty: the one that it registered by.
    pub endpoint: String,
    /// Versions of the protocol.
    pub versions: Vec<String>,
}

/// Asks the plugin behind a registration socket who it is.
///
/// # Errors
/// It gives no answer.
pub async fn plugin_info(socket: &Path) -> Result<PluginInfo, Failure> {
    let answer = call(socket, "pluginregistration.Registration/GetInfo", b"", TIMEOUT).await?;
    let answer = read(&answer)?;
    Ok(PluginInfo {
        kind: answer.string(1),
        name: answer.string(2),
        endpoint: answer.string(3),
        versions: answer.strings(4).collect(),
    })
}

/// Tells a plugin what came of its registration.
///
/// # Errors
/// It gives no answer.
pub async fn tell_registered(socket: &Path, result: Result<(), &str>) -> Result<(), Failure> {
    let message =
        Writer::default().number(1, u64::from(result.is_ok())).string(2, result.err().unwrap_or_default());
    let method = "pluginregistration.Registration/NotifyRegistrationStatus";
    call(socket, method, &message.finish(), TIMEOUT).await.map(drop)
}

fn read(bytes: &[u8]) -> Result<Reader<'_>, Failure> {
    Reader::new(bytes)
        .ok_or_else(|| Failure { code: 13, message: "the answer is no protobuf message".to_owned() })
}

/// How a volume may be used at once. Values are those of `VolumeCapability.AccessMode.Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessMode {
    /// On one node.
    SingleNodeWriter = 1,
    /// Read on many nodes.
    MultiNodeReaderOnly = 3,
    /// On many nodes.
    MultiNodeMultiWriter = 5,
    /// By one pod.
    SingleNodeSingleWriter = 6,
    /// By several pods on one node.
    SingleNodeMultiWriter = 7,
}

impl AccessMode {
    /// From the access modes of a PersistentVolume. `finely`: the driver tells the kinds of one node apart.
    #[must_use]
    pub fn of(modes: &[String], finely: bool) -> Self {
        let has = |mode: &str| modes.iter().any(|m| m == mode);
        match () {
            () if has("ReadWriteMany") => Self::MultiNodeMultiWriter,
            () if has("ReadOnlyMany") => Self::MultiNodeReaderOnly,
            () if has("ReadWriteOncePod") && finely => Self::SingleNodeSingleWriter,
            () if finely => Self::SingleNodeMultiWriter,
            () => Self::SingleNodeWriter,
        }
    }
}

/// A volume as a driver is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The driver's name of it.
    pub handle: String,
    /// File system.
    pub fs_type: String,
    /// Mount options.
    pub options: Vec<String>,
    /// Group that it is mounted for, when the driver sees to that.
    pub group: Option<u32>,
    /// How it may be used.
    pub mode: AccessMode,
    /// What the attacher left for the node.
    pub publish_context: Map,
    /// The volume's attributes.
    pub context: Map,
}

impl Volume {
    fn capability(&self) -> Writer {
        let group = self.group.map(|g| g.to_string()).unwrap_or_default();
        let mount = Writer::default()
            .string(1, &self.fs_type)
            .strings(2, self.options.iter().map(String::as_str))
            .string(3, &group);
        let mode = Writer::default().number(1, self.mode as u64);
        Writer::default().message(2, mount).message(3, mode)
    }
}

/// What a driver can do on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Volumes are made ready once a node, then for each pod.
    pub stages: bool,
    /// It tells how full volumes are.
    pub statistics: bool,
    /// It tells uses by one pod and by one node apart.
    pub single_writers: bool,
    /// It mounts for a group.
    pub groups: bool,
}

/// What a driver says about the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// The driver's name of the node.
    pub id: String,
    /// Most volumes; 0: it does not say.
    pub most: u64,
    /// Where the node is.
    pub topology: Map,
}

/// How full a volume is; bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Free, all and used bytes.
    pub bytes: [u64; 3],
    /// Free, all and used inodes.
    pub inodes: [u64; 3],
}

/// A driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Name.
    pub name: String,
    /// Socket.
    pub socket: PathBuf,
}

impl Driver {
    async fn node(&self, method: &str, message: Writer) -> Result<Vec<u8>, Failure> {
        call(&self.socket, &format!("csi.v1.Node/{method}"), &message.finish(), TIMEOUT).await
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// It gives no answer.
    pub async fn capabilities(&self) -> Result<Capabilities, Failure> {
        let answer = self.node("NodeGetCapabilities", Writer::default()).await?;
        let kinds: Vec<u64> = read(&answer)?
            .messages(1)
            .flat_map(|c| c.messages(1).collect::<Vec<_>>())
            .map(|r| r.number(1))
            .collect();
        Ok(Capabilities {
            stages: kinds.contains(&1),
            statistics: kinds.contains(&2),
            single_writers: kinds.contains(&5),
            groups: kinds.contains(&6),
        })
    }

    /// What the driver says about this node.
    ///
    /// # Errors
    /// It gives no answer.
    pub async fn info(&self) -> Result<NodeInfo, Failure> {
        let answer = self.node("NodeGetInfo", Writer::default()).await?;
        let answer = read(&answer)?;
        let topology = answer.messages(3).next().map(|t| t.map(1)).unwrap_or_default();
        Ok(NodeInfo { id: answer.string(1), most: answer.number(2), topology })
    }

    /// Makes a volume ready on the node at `staging`.
    ///
    /// # Errors
    /// The driver refused.
    pub async fn stage(&self, volume: &Volume, staging: &Path, secrets: &Map) -> Result<(), Failure> {
        let message = Writer::default()
            .string(1, &volume.handle)
            .map(2, &volume.publish_context)
            .string(3, &staging.to_string_lossy())
            .message(4, volume.capability())
            .map(5, secrets)
            .map(6, &volume.context);
        self.node("NodeStageVolume", message).await.map(drop)
    }

    /// Undoes [`Driver::stage`].
    ///
    /// # Errors
    /// The driver refused.
    pub async fn unstage(&self, handle: &str, staging: &Path) -> Result<(), Failure> {
        let message = Writer::default().string(1, handle).string(2, &staging.to_string_lossy());
        self.node("NodeUnstageVolume", message).await.map(drop)
    }

    /// Makes a volume ready for a pod at `target`.
    ///
    /// # Errors
    /// The driver refused.
    pub async fn publish(
        &self,
        volume: &Volume,
        staging: Option<&Path>,
        target: &Path,
        read_only: bool,
        secrets: &Map,
    ) -> Result<(), Failure> {
        let staging = staging.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let message = Writer::default()
            .string(1, &volume.handle)
            .map(2, &volume.publish_context)
            .string(3, &staging)
            .string(4, &target.to_string_lossy())
            .message(5, volume.capability())
            .number(6, u64::from(read_only))
            .map(7, secrets)
            .map(8, &volume.context);
        self.node("NodePublishVolume", message).await.map(drop)
    }

    /// Undoes [`Driver::publish`].
    ///
    /// # Errors
    /// The driver refused.
    pub async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), Failure> {
        let message = Writer::default().string(1, handle).string(2, &target.to_string_lossy());
        self.node("NodeUnpublishVolume", message).await.map(drop)
    }

    /// How full a volume at `path` is.
    ///
    /// # Errors
    /// The driver refused.
    pub async fn usage(&self, handle: &str, path: &Path) -> Result<Usage, Failure> {
        let message = Writer::default().string(1, handle).string(2, &path.to_string_lossy());
        let answer = self.node("NodeGetVolumeStats", message).await?;
        let mut usage = Usage::default();
        for entry in read(&answer)?.messages(1) {
            let values = [entry.number(1), entry.number(2), entry.number(3)];
            match entry.number(4) {
                2 => usage.inodes = values,
                _ => usage.bytes = values,
            }
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_modes() {
        let of = |modes: &[&str], finely| {
            AccessMode::of(&modes.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>(), finely)
        };
        assert_eq!(of(&["ReadWriteOnce"], false), AccessMode::SingleNodeWriter);
        assert_eq!(of(&["ReadWriteOnce"], true), AccessMode::SingleNodeMultiWriter);
        assert_eq!(of(&["ReadWriteOncePod"], true), AccessMode::SingleNodeSingleWriter);
        assert_eq!(of(&["ReadWriteOncePod"], false), AccessMode::SingleNodeWriter);
        assert_eq!(of(&["ReadOnlyMany"], true), AccessMode::MultiNodeReaderOnly);
        assert_eq!(of(&["ReadWriteOnce", "ReadWriteMany"], true), AccessMode::MultiNodeMultiWriter);
    }
}
