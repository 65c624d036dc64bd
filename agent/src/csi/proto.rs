//! Messages of CSI 1.x (`csi.proto` of the container-storage-interface specification, service `csi.v1.Node`) and of the
//! kubelet's plugin registration (`pluginregistration`), as far as a node needs them.

use prost::Message;
use std::collections::BTreeMap;

/// A map of strings.
pub type Map = BTreeMap<String, String>;

/// Every message without fields.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// `pluginregistration.PluginInfo`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DevicePlugin`, …
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Name of the driver.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Socket that the driver serves at; empty: the one that it registered by.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// Versions of the protocol.
    #[prost(string, repeated, tag = "4")]
    pub versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Registered {
    /// It is used from now on.
    #[prost(bool, tag = "1")]
    pub registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `NodeGetInfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct NodeInfo {
    /// The driver's name of the node.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Most volumes; 0: it does not say.
    #[prost(int64, tag = "2")]
    pub most: i64,
    /// Where the node is.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<Topology>,
}

/// `Topology`.
#[derive(Clone, PartialEq, Message)]
pub struct Topology {
    /// By key.
    #[prost(btree_map = "string, string", tag = "1")]
    pub segments: Map,
}

/// `NodeGetCapabilitiesResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Capabilities {
    /// What the driver can do.
    #[prost(message, repeated, tag = "1")]
    pub all: Vec<Ability>,
}

/// `NodeServiceCapability`.
#[derive(Clone, PartialEq, Message)]
pub struct Ability {
    /// The call.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<Rpc>,
}

/// `NodeServiceCapability.RPC`.
#[derive(Clone, PartialEq, Message)]
pub struct Rpc {
    /// Its kind: [`rpc`].
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

/// Values of `NodeServiceCapability.RPC.Type`.
pub mod rpc {
    /// Volumes are made ready once a node, then for each pod.
    pub const STAGE: i32 = 1;
    /// It tells how full volumes are.
    pub const STATISTICS: i32 = 2;
    /// It makes volumes larger.
    pub const EXPAND: i32 = 3;
    /// It tells uses by one pod and by one node apart.
    pub const SINGLE_NODE_MULTI_WRITER: i32 = 5;
    /// It mounts for a group.
    pub const MOUNT_GROUP: i32 = 6;
}

impl Capabilities {
    /// Of these kinds.
    pub fn of(kinds: &[i32]) -> Self {
        Self { all: kinds.iter().map(|kind| Ability { rpc: Some(Rpc { kind: *kind }) }).collect() }
    }

    /// Whether there is one of this kind.
    pub fn has(&self, kind: i32) -> bool {
        self.all.iter().any(|a| a.rpc.as_ref().is_some_and(|r| r.kind == kind))
    }
}

/// `VolumeCapability`.
#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    /// It is a device.
    #[prost(message, optional, tag = "1")]
    pub block: Option<Empty>,
    /// It is mounted.
    #[prost(message, optional, tag = "2")]
    pub mount: Option<MountVolume>,
    /// How it may be used at once.
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<Mode>,
}

/// `VolumeCapability.MountVolume`.
#[derive(Clone, PartialEq, Message)]
pub struct MountVolume {
    /// File system.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Mount options.
    #[prost(string, repeated, tag = "2")]
    pub flags: Vec<String>,
    /// Group that it is mounted for.
    #[prost(string, tag = "3")]
    pub group: String,
}

/// `VolumeCapability.AccessMode`.
#[derive(Clone, PartialEq, Message)]
pub struct Mode {
    /// Its number.
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

/// `NodeStageVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Stage {
    /// The driver's name of the volume.
    #[prost(string, tag = "1")]
    pub volume: String,
    /// What the attacher left for the node.
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: Map,
    /// Where.
    #[prost(string, tag = "3")]
    pub staging: String,
    /// How it is used.
    #[prost(message, optional, tag = "4")]
    pub capability: Option<Capability>,
    /// Secrets.
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
    /// The volume's attributes.
    #[prost(btree_map = "string, string", tag = "6")]
    pub context: Map,
}

/// `NodePublishVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Publish {
    /// The driver's name of the volume.
    #[prost(string, tag = "1")]
    pub volume: String,
    /// What the attacher left for the node.
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: Map,
    /// Where it is staged; empty: nowhere.
    #[prost(string, tag = "3")]
    pub staging: String,
    /// Where to.
    #[prost(string, tag = "4")]
    pub target: String,
    /// How it is used.
    #[prost(message, optional, tag = "5")]
    pub capability: Option<Capability>,
    /// It is only read.
    #[prost(bool, tag = "6")]
    pub read_only: bool,
    /// Secrets.
    #[prost(btree_map = "string, string", tag = "7")]
    pub secrets: Map,
    /// The volume's attributes.
    #[prost(btree_map = "string, string", tag = "8")]
    pub context: Map,
}

/// `NodeUnpublishVolumeRequest`, `NodeUnstageVolumeRequest` and `NodeGetVolumeStatsRequest`: a volume at a place.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeAt {
    /// The driver's name of the volume.
    #[prost(string, tag = "1")]
    pub volume: String,
    /// Where.
    #[prost(string, tag = "2")]
    pub path: String,
    /// Where it is staged, for statistics.
    #[prost(string, tag = "3")]
    pub staging: String,
}

/// `NodeGetVolumeStatsResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Statistics {
    /// By unit.
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<Usage>,
}

/// `VolumeUsage`.
#[derive(Clone, PartialEq, Message)]
pub struct Usage {
    /// Free.
    #[prost(int64, tag = "1")]
    pub available: i64,
    /// All.
    #[prost(int64, tag = "2")]
    pub total: i64,
    /// Used.
    #[prost(int64, tag = "3")]
    pub used: i64,
    /// 1: bytes, 2: inodes.
    #[prost(int32, tag = "4")]
    pub unit: i32,
}

/// `NodeExpandVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Expand {
    /// The driver's name of the volume.
    #[prost(string, tag = "1")]
    pub volume: String,
    /// Where it is published.
    #[prost(string, tag = "2")]
    pub path: String,
    /// How large it is to be.
    #[prost(message, optional, tag = "3")]
    pub range: Option<Range>,
    /// Where it is staged.
    #[prost(string, tag = "4")]
    pub staging: String,
    /// How it is used.
    #[prost(message, optional, tag = "5")]
    pub capability: Option<Capability>,
    /// Secrets.
    #[prost(btree_map = "string, string", tag = "6")]
    pub secrets: Map,
}

/// `CapacityRange`.
#[derive(Clone, PartialEq, Message)]
pub struct Range {
    /// At least so many bytes.
    #[prost(int64, tag = "1")]
    pub required: i64,
    /// At most; 0: no limit.
    #[prost(int64, tag = "2")]
    pub limit: i64,
}

/// `NodeExpandVolumeResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Expanded {
    /// Bytes.
    #[prost(int64, tag = "1")]
    pub capacity: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as the specification's numbers and types make them, written by hand.
    #[test]
    fn fields_have_the_numbers_of_the_specification() {
        let one = Map::from([("k".to_owned(), "v".to_owned())]);
        let capability = Capability {
            block: None,
            mount: Some(MountVolume { fs_type: "x".into(), ..MountVolume::default() }),
            access_mode: Some(Mode { mode: 7 }),
        };
        let publish = Publish {
            volume: "h".into(),
            target: "t".into(),
            capability: Some(capability),
            read_only: true,
            context: one,
            ..Publish::default()
        };
        let expected =
            b"\x0a\x01h\x22\x01t\x2a\x09\x12\x03\x0a\x01x\x1a\x02\x08\x07\x30\x01\x42\x06\x0a\x01k\x12\x01v";
        assert_eq!(publish.encode_to_vec(), expected);
        let expand = Expand {
            volume: "h".into(),
            path: "p".into(),
            range: Some(Range { required: 5, limit: 0 }),
            staging: "s".into(),
            capability: Some(Capability { block: Some(Empty {}), ..Capability::default() }),
            ..Expand::default()
        };
        assert_eq!(expand.encode_to_vec(), b"\x0a\x01h\x12\x01p\x1a\x02\x08\x05\x22\x01s\x2a\x02\x0a\x00");
    }
}
