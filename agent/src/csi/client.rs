//! The calls to a CSI driver on this node, and to a plugin that registers itself.

use super::proto::{self, Empty, Map, PluginInfo, Registered, rpc};
use crate::grpc::{Client, Code, Status, text};
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for a driver, upstream's.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A call that failed; shown as Go's clients print it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", text(.0))]
pub struct Failure(Status);

impl Failure {
    /// The driver does not know the volume.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.0.code() == Code::NotFound
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

/// One call on a connection of its own: a driver that is replaced while nothing is asked of it is never missed.
async fn call<Q, A>(socket: &Path, method: &'static str, message: Q) -> Result<A, Failure>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    Ok(Client::connect(socket).await?.unary(method, message, TIMEOUT).await?)
}

/// Asks the plugin behind a registration socket who it is.
///
/// # Errors
/// It gives no answer.
pub async fn plugin_info(socket: &Path) -> Result<PluginInfo, Failure> {
    call(socket, "/pluginregistration.Registration/GetInfo", Empty {}).await
}

/// Tells a plugin what came of its registration.
///
/// # Errors
/// It gives no answer.
pub async fn tell_registered(socket: &Path, result: Result<(), &str>) -> Result<(), Failure> {
    let message =
        Registered { registered: result.is_ok(), error: result.err().unwrap_or_default().to_owned() };
    let method = "/pluginregistration.Registration/NotifyRegistrationStatus";
    call::<_, Empty>(socket, method, message).await.map(drop)
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
    /// It is a device.
    pub block: bool,
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
    /// How it is used.
    fn capability(&self) -> Option<proto::Capability> {
        let mount = proto::MountVolume {
            fs_type: self.fs_type.clone(),
            flags: self.options.clone(),
            group: self.group.map(|g| g.to_string()).unwrap_or_default(),
        };
        Some(proto::Capability {
            block: self.block.then_some(Empty {}),
            mount: (!self.block).then_some(mount),
            access_mode: Some(proto::Mode { mode: self.mode as i32 }),
        })
    }
}

/// What a driver can do on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Volumes are made ready once a node, then for each pod.
    pub stages: bool,
    /// It tells how full volumes are.
    pub statistics: bool,
    /// It makes volumes larger.
    pub expands: bool,
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
    pub most: i64,
    /// Where the node is.
    pub topology: Map,
}

/// How full a volume is; bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Free, all and used bytes.
    pub bytes: [i64; 3],
    /// Free, all and used inodes.
    pub inodes: [i64; 3],
}

/// A driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Name.
    pub name: String,
    /// Socket.
    pub socket: PathBuf,
}

fn utf8(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Driver {
    async fn node<Q, A>(&self, method: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        call(&self.socket, method, message).await
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// It gives no answer.
    pub async fn capabilities(&self) -> Result<Capabilities, Failure> {
        let all: proto::Capabilities = self.node("/csi.v1.Node/NodeGetCapabilities", Empty {}).await?;
        Ok(Capabilities {
            stages: all.has(rpc::STAGE),
            statistics: all.has(rpc::STATISTICS),
            expands: all.has(rpc::EXPAND),
            single_writers: all.has(rpc::SINGLE_NODE_MULTI_WRITER),
            groups: all.has(rpc::MOUNT_GROUP),
        })
    }

    /// What the driver says about this node.
    ///
    /// # Errors
    /// It gives no answer.
    pub async fn info(&self) -> Result<NodeInfo, Failure> {
        let found: proto::NodeInfo = self.node("/csi.v1.Node/NodeGetInfo", Empty {}).await?;
        let topology = found.topology.map(|t| t.segments).unwrap_or_default();
        Ok(NodeInfo { id: found.id, most: found.most, topology })
    }

    /// Makes a volume ready on the node at `staging`.
    ///
    /// # Errors
    /// The driver refused.
    pub async fn stage(&self, volume: &Volume, staging: &Path, secrets: &Map) -> Result<(), Failure> {
        let message = proto::Stage {
            volume: volume.handle.clone(),
            publish_context: volume.publish_context.clone(),
            staging: utf8(staging),
            capability: volume.capability(),
            secrets: secrets.clone(),
            context: volume.context.clone(),
        };
        self.node::<_, Empty>("/csi.v1.Node/NodeStageVolume", message).await.map(drop)
    }

    /// Undoes [`Driver::stage`].
    ///
    /// # Errors
    /// The driver refused.
    pub async fn unstage(&self, handle: &str, staging: &Path) -> Result<(), Failure> {
        let message =
            proto::VolumeAt { volume: handle.to_owned(), path: utf8(staging), staging: String::new() };
        self.node::<_, Empty>("/csi.v1.Node/NodeUnstageVolume", message).await.map(drop)
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
        let message = proto::Publish {
            volume: volume.handle.clone(),
            publish_context: volume.publish_context.clone(),
            staging: staging.map(utf8).unwrap_or_default(),
            target: utf8(target),
            capability: volume.capability(),
            read_only,
            secrets: secrets.clone(),
            context: volume.context.clone(),
        };
        self.node::<_, Empty>("/csi.v1.Node/NodePublishVolume", message).await.map(drop)
    }

    /// Undoes [`Driver::publish`].
    ///
    /// # Errors
    /// The driver refused.
    pub async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), Failure> {
        let message =
            proto::VolumeAt { volume: handle.to_owned(), path: utf8(target), staging: String::new() };
        self.node::<_, Empty>("/csi.v1.Node/NodeUnpublishVolume", message).await.map(drop)
    }

    /// How full a volume at `path` is.
    ///
    /// # Errors
    /// The driver refused.
    pub async fn usage(&self, handle: &str, path: &Path, staging: &Path) -> Result<Usage, Failure> {
        let message = proto::VolumeAt { volume: handle.to_owned(), path: utf8(path), staging: utf8(staging) };
        let answer: proto::Statistics = self.node("/csi.v1.Node/NodeGetVolumeStats", message).await?;
        let mut usage = Usage::default();
        for entry in answer.usage {
            let values = [entry.available, entry.total, entry.used];
            match entry.unit {
                2 => usage.inodes = values,
                _ => usage.bytes = values,
            }
        }
        Ok(usage)
    }

    /// Makes what is on a volume at `path` as large as the volume is by now: `bytes`.
    ///
    /// # Errors
    /// The driver refused.
    pub async fn expand(
        &self,
        volume: &Volume,
        path: &Path,
        staging: &Path,
        bytes: i64,
        secrets: &Map,
    ) -> Result<i64, Failure> {
        let message = proto::Expand {
            volume: volume.handle.clone(),
            path: utf8(path),
            range: Some(proto::Range { required: bytes, limit: 0 }),
            staging: utf8(staging),
            capability: volume.capability(),
            secrets: secrets.clone(),
        };
        let answer: proto::Expanded = self.node("/csi.v1.Node/NodeExpandVolume", message).await?;
        Ok(answer.capacity)
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
