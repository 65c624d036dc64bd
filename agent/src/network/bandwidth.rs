//! The rates that pods ask to be held to, by their annotations `kubernetes.io/ingress-bandwidth` and
//! `kubernetes.io/egress-bandwidth`: bits a second, as a quantity from 1k to 1P.
//!
//! Both are token buckets that queue (TBF) in the pod's own network namespace, where every packet passes whichever way the dataplane
//! hands it over: at the egress of `eth0`, and, for what comes in, at the egress of an intermediate device (IFB) that the ingress of
//! `eth0` redirects to. They go with the pod, and stay when the agent goes. A pod without the annotations has neither.

use crate::dataplane::kernel::netlink::Connection;
use crate::network::NetworkError;
use futures::TryStreamExt;
use kelp_model::quantity::Quantity;
use rtnetlink::packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{Handle, LinkIfb, LinkUnspec};
use std::collections::BTreeMap;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// The device that what comes in passes.
const INTERMEDIATE: &str = "kelp-ingress";

/// Rates, bits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Of what the pod receives.
    pub ingress: Option<u64>,
    /// Of what it sends.
    pub egress: Option<u64>,
}

impl Limits {
    /// What a pod's annotations say.
    ///
    /// # Errors
    /// A value is no quantity, or out of range.
    pub fn of(annotations: Option<&BTreeMap<String, String>>) -> Result<Self, NetworkError> {
        let rate = |name: &str| annotations.and_then(|all| all.get(name)).map(|text| parse(text)).transpose();
        let wrong = |why: String| NetworkError::Bandwidth(why);
        Ok(Self { ingress: rate(INGRESS).map_err(wrong)?, egress: rate(EGRESS).map_err(wrong)? })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Texts are those of upstream's runtimes.
fn parse(text: &str) -> Result<u64, String> {
    let rate = Quantity::parse(text).map_err(|error| error.to_string())?.value();
    match u64::try_from(rate) {
        Ok(rate @ 1_000..=1_000_000_000_000_000) => Ok(rate),
        Ok(1_000_000_000_000_001..) => Err("resource is unreasonably large (> 1Pbit)".to_owned()),
        _ => Err("resource is unreasonably small (< 1kbit)".to_owned()),
    }
}

/// What a bucket holds and what may wait for it, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    /// Bytes a second.
    rate: u64,
    /// What passes at once: 10 ms of the rate. (Larger packets are divided; but a whole one must fit.)
    burst: u32,
    /// What waits at most: 25 ms of the rate and the burst, at least a few packets.
    limit: u32,
}

impl Bucket {
    fn of(bits: u64) -> Self {
        const LEAST_BURST: u64 = 4_096;
        const LEAST_QUEUE: u64 = 16_384;
        const MOST: u64 = 1 << 30;
        let rate = bits / 8;
        let burst = (rate / 100).clamp(LEAST_BURST, MOST);
        let limit = (rate / 40).clamp(LEAST_QUEUE, MOST) + burst;
        Self { rate, burst: burst as u32, limit: limit as u32 }
    }

    /// `TCA_OPTIONS` of the qdisc.
    fn options(self) -> Vec<u8> {
        // Numbers of `TCA_TBF_*`, and `TC_LINKLAYER_ETHERNET`: packets take as long as their bytes, without a table.
        const PARAMETERS: u16 = 1;
        const RATE64: u16 = 4;
        const BURST: u16 = 6;
        const ETHERNET: u8 = 1;
        // `struct tc_tbf_qopt`: rate, peak rate (none), limit, and a burst in ticks and an MTU that are not used.
        let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        parameters.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        parameters.extend([0; 12]);
        parameters.extend(self.limit.to_ne_bytes());
        parameters.extend([0; 8]);
        let mut options = Vec::new();
        let fields: [(u16, &[u8]); 3] = [
            (PARAMETERS, &parameters),
            (RATE64, &self.rate.to_ne_bytes()),
            (BURST, &self.burst.to_ne_bytes()),
        ];
        // All are multiples of four bytes, as attributes want it.
        for (number, value) in fields {
            options.extend((value.len() as u16 + 4).to_ne_bytes());
            options.extend(number.to_ne_bytes());
            options.extend(value);
        }
        options
    }
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> NetworkError {
    move |source| NetworkError::Io { action: format!("cannot limit the pod's bandwidth: {action}"), source }
}

fn netlink(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink {
        action: format!("cannot limit the pod's bandwidth: {action}"),
        source,
    }
}

/// Has a device send no faster than this; one that does gets the new rate.
fn shape(ifindex: u32, bits: u64) -> std::io::Result<()> {
    const OPTIONS: u16 = 2;
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
    message.attributes.push(TcAttribute::Other(DefaultNla::new(OPTIONS, Bucket::of(bits).options())));
    let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
    Connection::open()?.ask(RouteNetlinkMessage::NewQueueDiscipline(message), flags, |_| {})
}

fn remove_ingress(ifindex: u32) -> std::io::Result<()> {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle::from(0xffff_0000);
    Connection::open()?.ask(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK, |_| {})
}

/// Holds a pod's device to these rates, in the pod's network namespace.
pub async fn limit(handle: &Handle, ifindex: u32, limits: Limits) -> Result<(), NetworkError> {
    if let Some(bits) = limits.egress {
        shape(ifindex, bits).map_err(io("egress"))?;
    }
    if let Some(bits) = limits.ingress {
        limit_ingress(handle, ifindex, bits).await?;
    }
    Ok(())
}

async fn limit_ingress(handle: &Handle, ifindex: u32, bits: u64) -> Result<(), NetworkError> {
    /// All protocols, in network byte order.
    const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
    let found = find(handle).await?;
    if found.is_none() {
        let device = LinkIfb::new(INTERMEDIATE).build();
        handle.link().add(device).execute().await.map_err(netlink("make the intermediate device"))?;
    }
    let device = match found {
        Some(device) => device,
        None => find(handle)
            .await?
            .ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENODEV))
            .map_err(io("find the intermediate device"))?,
    };
    let intermediate = device.header.index;
    shape(intermediate, bits).map_err(io("ingress"))?;
    // It is up when the rest was done before.
    if device.header.flags.contains(LinkFlags::Up) {
        return Ok(());
    }
    let index = ifindex.cast_signed();
    // What an attempt left that was cut off; or there is none.
    let _ = remove_ingress(ifindex);
    let qdisc = handle.qdisc().add(index).ingress().execute().await;
    qdisc.map_err(netlink("make the ingress of the pod's device"))?;
    let redirect =
        handle.traffic_filter(index).add().parent(0xffff_0000).protocol(ALL).redirect(intermediate);
    let redirect = redirect.map_err(netlink("redirect what comes in"))?;
    redirect.execute().await.map_err(netlink("redirect what comes in"))?;
    let up = LinkUnspec::new_with_index(intermediate).up().build();
    handle.link().set(up).execute().await.map_err(netlink("bring up the intermediate device"))
}

async fn find(handle: &Handle) -> Result<Option<LinkMessage>, NetworkError> {
    match handle.link().get().match_name(INTERMEDIATE).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(rtnetlink::Error::NetlinkError(message)) if -message.raw_code() == libc::ENODEV => Ok(None),
        Err(error) => Err(netlink("look for the intermediate device")(error)),
    }
}

/// [`limit`] in a network namespace, where `eth0` is the pod's device.
#[cfg(test)]
pub async fn limit_in(netns: std::path::PathBuf, limits: Limits) -> Result<(), NetworkError> {
    crate::network::namespace::run(Some(netns), move |handle| async move {
        let device = handle.link().get().match_name("eth0").execute().try_next().await;
        let index = device.map_err(netlink("find eth0"))?.unwrap().header.index;
        limit(&handle, index, limits).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Limits, String> {
        let annotations =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Limits::of(Some(&annotations)).map_err(|error| crate::network::chain(&error))
    }

    #[test]
    fn annotations_are_quantities_within_bounds() {
        assert!(Limits::of(None).unwrap().is_empty());
        assert!(of(&[("kubernetes.io/bandwidth", "1M")]).unwrap().is_empty());
        let both = of(&[(INGRESS, "10M"), (EGRESS, "1k")]).unwrap();
        assert_eq!(both, Limits { ingress: Some(10_000_000), egress: Some(1_000) });
        assert_eq!(of(&[(EGRESS, "1P")]).unwrap().egress, Some(1_000_000_000_000_000));
        assert_eq!(of(&[(EGRESS, "1Mi")]).unwrap().egress, Some(1_048_576));
        for (value, why) in [
            ("999", "resource is unreasonably small (< 1kbit)"),
            ("-1M", "resource is unreasonably small (< 1kbit)"),
            ("0", "resource is unreasonably small (< 1kbit)"),
            ("1001T", "resource is unreasonably large (> 1Pbit)"),
            ("fast", "quantities must match the regular expression"),
            ("", "quantities must"),
        ] {
            for name in [INGRESS, EGRESS] {
                let error = of(&[(name, value)]).unwrap_err();
                assert!(error.starts_with("reading pod bandwidth annotations: "), "{error}");
                assert!(error.contains(why), "{value}: {error}");
            }
        }
    }

    #[test]
    fn buckets_hold_at_least_a_packet_and_no_more_than_the_kernel_counts() {
        let least = Bucket::of(1_000);
        assert_eq!((least.rate, least.burst, least.limit), (125, 4_096, 20_480));
        let usual = Bucket::of(100_000_000);
        assert_eq!((usual.rate, usual.burst, usual.limit), (12_500_000, 125_000, 437_500));
        let most = Bucket::of(1_000_000_000_000_000);
        assert_eq!((most.rate, most.burst, most.limit), (125_000_000_000_000, 1 << 30, 1 << 31));
        assert_eq!(least.options().len(), (36 + 4) + (8 + 4) + (4 + 4));
    }
}
