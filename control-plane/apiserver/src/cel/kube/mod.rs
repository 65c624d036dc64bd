//! Kubernetes' own types of values in expressions: addresses, URLs, quantities, versions, formats.

mod address;
mod formats;
mod locator;
mod quantities;
mod versions;

pub(in crate::cel) use address::*;
pub(in crate::cel) use formats::*;
pub(in crate::cel) use locator::*;
pub(in crate::cel) use quantities::*;
pub(in crate::cel) use versions::*;

use super::library::{Args, Out, boolean, fail, int, integer, own, string, text};
use cel::common::types::Type;
use cel::common::value::{CowVal, StaticVal, Val};
use kelp_model::quantity::Quantity;
use std::any::Any;
use std::cmp::Ordering;
use std::net::IpAddr;

pub(in crate::cel) const URL: Type = Type::new_unspecified_type("kubernetes.URL");
pub(in crate::cel) const IP: Type = Type::new_unspecified_type("net.IP");
pub(in crate::cel) const CIDR: Type = Type::new_unspecified_type("net.CIDR");
pub(in crate::cel) const QUANTITY: Type = Type::new_unspecified_type("kubernetes.Quantity");
pub(in crate::cel) const SEMVER: Type = Type::new_unspecified_type("kubernetes.Semver");
pub(in crate::cel) const FORMAT: Type = Type::new_unspecified_type("kubernetes.NamedFormat");

static TYPES: [Type; 6] = [URL, IP, CIDR, QUANTITY, SEMVER, FORMAT];

/// A value of one of the types.
#[derive(Debug, Clone)]
pub(in crate::cel) enum Own {
    Url(Url),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Quantity(Quantity),
    Semver(Semver),
    Format(&'static Format),
}

impl Val for Own {
    fn get_type(&self) -> &Type {
        let [url, ip, cidr, quantity, semver, format] = &TYPES;
        match self {
            Own::Url(_) => url,
            Own::Ip(_) => ip,
            Own::Cidr(..) => cidr,
            Own::Quantity(_) => quantity,
            Own::Semver(_) => semver,
            Own::Format(_) => format,
        }
    }

    fn cel_type() -> &'static Type {
        // No single type is that of all values; overloads name theirs.
        let [url, ..] = &TYPES;
        url
    }

    fn equals(&self, other: &dyn Val) -> bool {
        match (self, other.downcast_ref::<Own>()) {
            (Own::Url(a), Some(Own::Url(b))) => a == b,
            (Own::Ip(a), Some(Own::Ip(b))) => a == b,
            (Own::Cidr(a, n), Some(Own::Cidr(b, m))) => (a, n) == (b, m),
            (Own::Quantity(a), Some(Own::Quantity(b))) => a == b,
            (Own::Semver(a), Some(Own::Semver(b))) => a.order(b) == Ordering::Equal,
            (Own::Format(a), Some(Own::Format(b))) => a.name == b.name,
            _ => false,
        }
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Own {}

fn value<'b, 'v>(own: Own) -> Out<'b, 'v> {
    Ok(CowVal::owned(own))
}
