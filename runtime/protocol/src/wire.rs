//! Sending and receiving messages, with descriptors attached, on a `SOCK_SEQPACKET` socket.

use crate::MAX_MESSAGE;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors attached to one message.
const MAX_FDS: usize = 4;

/// Sends `message` with `fds` attached; blocks only when `socket` does.
///
/// # Errors
/// What sendmsg(2) returns, and `InvalidInput` for a message longer than [`MAX_MESSAGE`].
pub fn send<T: Serialize>(socket: RawFd, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("message of {} bytes is longer than {MAX_MESSAGE}", bytes.len()),
        ));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let parts = [IoSlice::new(&bytes)];
    loop {
        match sendmsg::<()>(socket, &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::Error::EINTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Receives one message with its descriptors, which are close-on-exec. `None` when the other side has closed.
///
/// # Errors
/// What recvmsg(2) returns (`WouldBlock` included), and `InvalidData` for something that is not a `T`.
pub fn receive<T: DeserializeOwned>(socket: RawFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // The kernel says how long the message is, so that an idle process keeps no large buffer.
    let mut peek = [0u8; 1];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    let length = nix::sys::socket::recv(socket, &mut peek, flags)?;
    if length == 0 {
        return Ok(None);
    }
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message is too long"));
    }
    let mut bytes = vec![0; length];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else owns them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(Some((serde_json::from_slice(&bytes)?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Request, Response};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{Read, Write};

    #[test]
    fn messages_keep_their_bounds_and_descriptors() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send(a.as_raw_fd(), &Request::Status, &[writer.as_raw_fd()]).unwrap();
        send(a.as_raw_fd(), &Request::Subscribe, &[]).unwrap();
        drop(writer);
        let (request, mut fds) = receive::<Request>(b.as_raw_fd()).unwrap().unwrap();
        assert!(matches!(request, Request::Status));
        let mut file = std::fs::File::from(fds.pop().unwrap());
        file.write_all(b"x").unwrap();
        drop(file);
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        let (request, fds) = receive::<Request>(b.as_raw_fd()).unwrap().unwrap();
        assert!(matches!(request, Request::Subscribe) && fds.is_empty());
        drop(a);
        assert!(receive::<Request>(b.as_raw_fd()).unwrap().is_none());
    }

    #[test]
    fn long_and_malformed_messages_are_errors() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let long = "x".repeat(MAX_MESSAGE);
        let error = send(a.as_raw_fd(), &long, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        send(a.as_raw_fd(), &"not a response", &[]).unwrap();
        assert!(receive::<Response>(b.as_raw_fd()).is_err());
    }
}
