//! Classifiers as filters of a `clsact` qdisc: how programs are attached to devices where the kernel has no tcx (before
//! 6.6).
//!
//! A filter holds its program and goes with its device, so nothing is pinned. Ours are told by their name from those of
//! others, which are never touched. A program is replaced in its filter: no packet passes without one of the two.

use std::io;

use parking_lot::Mutex;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::Connection;

/// Whether packets come in or go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// They come in.
    Ingress,
    /// They go out.
    Egress,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The half of the qdisc.
    fn parent(self) -> TcHandle {
        TcHandle { major: 0xffff, minor: if self == Self::Ingress { 0xfff2 } else { 0xfff3 } }
    }
}

/// A filter as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Filters are asked in the order of their priorities.
    pub priority: u16,
    /// Number among those of its priority.
    pub handle: u32,
    /// The Ethernet protocol it is for, in network byte order.
    protocol: u16,
    kind: String,
    /// The name that its owner gave a filter with a program.
    pub name: Option<String>,
    /// Its program's id.
    pub program: Option<u32>,
}

/// What must be done so that a program is attached once.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Priority and handle of the filter to write; handle 0 is a new one.
    write: (u16, u32),
    /// Priorities and handles of filters of ours that are too many.
    delete: Vec<(u16, u32)>,
}

const KIND: &str = "bpf";
/// All protocols, in network byte order.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Of our filters, where nobody has another use for it. Early: a filter that lets a packet pass is the last one.
const PRIORITY: u16 = 1;

/// The name of the filter of one of our programs.
fn name_of(program: &str) -> String {
    format!("kelp-{program}")
}

impl Filter {
    /// Whether it is the filter of one of our programs.
    pub fn is_of(&self, program: &str) -> bool {
        self.kind == KIND && self.name.as_ref().is_some_and(|name| *name == name_of(program))
    }
}

fn plan(there: &[Filter], program: &str) -> Plan {
    let mut own =
        there.iter().filter(|filter| filter.is_of(program)).map(|filter| (filter.priority, filter.handle));
    let write = own.next();
    let delete = own.collect();
    // Filters of one priority are of one kind and protocol.
    let is_free = |priority: &u16| {
        there
            .iter()
            .all(|filter| filter.priority != *priority || (filter.kind == KIND && filter.protocol == ALL))
    };
    let write = write.unwrap_or_else(|| ((PRIORITY..u16::MAX).find(is_free).unwrap_or(PRIORITY), 0));
    Plan { write, delete }
}

/// Speaks to the kernel about filters in the network namespace of the thread that opened it.
pub struct Filters(Mutex<Connection>);

impl Filters {
    /// Opens a connection in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        Connection::open().map(Mutex::new).map(Self)
    }

    /// Attaches a program to a device, or replaces the one that is attached there by its name.
    pub fn attach(&self, ifindex: u32, side: Side, program: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut connection = self.0.lock();
        connection.ensure_qdisc(ifindex)?;
        let plan = plan(&connection.list(ifindex, side)?, program);
        let (priority, handle) = plan.write;
        let mut message = message(ifindex, side, priority, handle);
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(fd.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name_of(program))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let flags = if handle == 0 { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
        connection.ask(RouteNetlinkMessage::NewTrafficFilter(message), flags | NLM_F_ACK, |_| {})?;
        for (priority, handle) in plan.delete {
            connection.delete(ifindex, side, priority, handle)?;
        }
        Ok(())
    }

    /// The filters of a device; none when it is gone or has no such qdisc.
    pub fn list(&self, ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
        self.0.lock().list(ifindex, side)
    }

    /// Removes those filters of a device that are meant; they, or the device, may be gone. A qdisc that has no filters
    /// then does nothing and goes too.
    pub fn detach(&self, ifindex: u32, mut is_meant: impl FnMut(&Filter) -> bool) -> io::Result<()> {
        let mut connection = self.0.lock();
        let mut removed = false;
        for side in Side::BOTH {
            for filter in connection.list(ifindex, side)?.iter().filter(|filter| is_meant(filter)) {
                connection.delete(ifindex, side, filter.priority, filter.handle)?;
                removed = true;
            }
        }
        if !removed {
            return Ok(());
        }
        for side in Side::BOTH {
            if !connection.list(ifindex, side)?.is_empty() {
                return Ok(());
            }
        }
        gone(connection.remove_qdisc(ifindex))
    }
}

/// What is gone already is no error.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {
            Ok(())
        }
        result => result,
    }
}

fn qdisc(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.handle = TcHandle { major: 0xffff, minor: 0 };
    message.header.parent = TcHandle { major: 0xffff, minor: 0xfff1 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

fn message(ifindex: u32, side: Side, priority: u16, handle: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    let TcHeader { handle: number, parent, info, .. } = &mut message.header;
    *number = TcHandle::from(handle);
    *parent = side.parent();
    *info = u32::from(priority) << 16 | u32::from(ALL);
    message.attributes.push(TcAttribute::Kind(KIND.to_owned()));
    message
}

fn filter(message: &TcMessage) -> Filter {
    let mut filter = Filter {
        priority: (message.header.info >> 16) as u16,
        protocol: message.header.info as u16,
        handle: message.header.handle.into(),
        ..Filter::default()
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name.clone()),
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    filter
}

impl Connection {
    fn ensure_qdisc(&mut self, ifindex: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc(ifindex));
        match self.ask(message, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    fn remove_qdisc(&mut self, ifindex: u32) -> io::Result<()> {
        self.ask(RouteNetlinkMessage::DelQueueDiscipline(qdisc(ifindex)), NLM_F_ACK, |_| {})
    }

    fn delete(&mut self, ifindex: u32, side: Side, priority: u16, handle: u32) -> io::Result<()> {
        let message = message(ifindex, side, priority, handle);
        gone(self.ask(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK, |_| {}))
    }

    fn list(&mut self, ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
        let mut list = TcMessage::with_index(ifindex.cast_signed());
        list.header.parent = side.parent();
        let mut filters = Vec::new();
        let result = self.ask(RouteNetlinkMessage::GetTrafficFilter(list), NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewTrafficFilter(message) = message {
                filters.push(filter(&message));
            }
        });
        gone(result)?;
        Ok(filters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(priority: u16, handle: u32, name: Option<&str>) -> Filter {
        let name = name.map(str::to_owned);
        Filter { priority, handle, protocol: ALL, kind: KIND.to_owned(), name, program: None }
    }

    #[test]
    fn a_new_filter_is_the_first_that_is_free() {
        assert_eq!(plan(&[], "from_pod"), Plan { write: (1, 0), delete: vec![] });
        // Others' programs have their own handles.
        let others = [of(1, 1, Some("monitor")), of(1, 2, None), of(1, 3, Some("kelp-to_pod"))];
        assert_eq!(plan(&others, "from_pod"), Plan { write: (1, 0), delete: vec![] });
        let flower = Filter { kind: "flower".to_owned(), ..of(1, 1, None) };
        let arp = Filter { protocol: 0x0608, ..of(2, 1, None) };
        assert_eq!(plan(&[flower, arp], "from_pod").write, (3, 0));
    }

    #[test]
    fn our_filter_is_written_again_and_copies_of_it_go() {
        let there = [
            of(1, 1, Some("monitor")),
            of(1, 2, Some("kelp-from_pod")),
            of(7, 1, Some("kelp-from_pod")),
            Filter { kind: "flower".to_owned(), ..of(9, 1, Some("kelp-from_pod")) },
        ];
        assert_eq!(plan(&there, "from_pod"), Plan { write: (1, 2), delete: vec![(7, 1)] });
    }
}
