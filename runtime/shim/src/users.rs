//! The user namespace of a pod, and what is made in it.
//!
//! The shim itself stays in the host's user namespace. A child makes the pod's, with the namespaces that belong to it,
//! and the shim enters the latter before the child ends.

use crate::sys;
use kelp_runtime_protocol::IdRange;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

/// Namespaces that are made, with their names in /proc.
const NAMES: [(libc::c_int, &str); 3] =
    [(libc::CLONE_NEWNET, "net"), (libc::CLONE_NEWUTS, "uts"), (libc::CLONE_NEWIPC, "ipc")];

/// Makes a user namespace whose ids from 0 on are those of `range`, and in it new namespaces of `flags`, which this
/// process enters.
pub fn enter(range: IdRange, flags: libc::c_int) -> io::Result<OwnedFd> {
    let (mut ours, theirs) = sys::stream_pair()?;
    let child = sys::fork_with(move || {
        let mut theirs = File::from(theirs);
        // One word after each step: 0, or the number of the error.
        for step in [libc::CLONE_NEWUSER, flags] {
            let done = sys::unshare(step);
            let word = done.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0);
            let told = theirs.write_all(&word.to_ne_bytes());
            let mut go_on = [0; 1];
            if done.is_err() || told.is_err() || theirs.read_exact(&mut go_on).is_err() {
                return;
            }
        }
    })?;
    let result = guide(child, range, flags, &mut ours);
    // Its work is done or useless; it has not been reaped.
    sys::kill(child, libc::SIGKILL)?;
    sys::wait_for(child)?;
    result
}

fn guide(child: i32, range: IdRange, flags: libc::c_int, ours: &mut File) -> io::Result<OwnedFd> {
    step(ours)?;
    let map = format!("0 {} {}\n", range.host, range.length);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{child}/{file}"), &map)?;
    }
    ours.write_all(&[1])?;
    step(ours)?;
    for (flag, name) in NAMES {
        if flags & flag != 0 {
            sys::enter_namespace(&File::open(format!("/proc/{child}/ns/{name}"))?, flag)?;
        }
    }
    Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
}

fn step(ours: &mut File) -> io::Result<()> {
    let mut word = [0; 4];
    ours.read_exact(&mut word)?;
    match i32::from_ne_bytes(word) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Starts `executable` as the first process of a new PID namespace that belongs to `users`, as a child of this process.
pub fn start_first(users: &OwnedFd, executable: &OwnedFd, name: &CStr, table: &[OwnedFd]) -> io::Result<i32> {
    let (mut ours, theirs) = sys::stream_pair()?;
    // A child enters the user namespace, which cannot be left again, and gives birth to a sibling.
    let between = sys::fork_with(move || {
        let started = sys::enter_namespace(users, libc::CLONE_NEWUSER)
            .and_then(|()| sys::unshare(libc::CLONE_NEWPID))
            .and_then(|()| sys::spawn_sibling(executable, name, table));
        let word = started.unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO));
        let _ = File::from(theirs).write_all(&word.to_ne_bytes());
    })?;
    let mut word = [0; 4];
    let read = ours.read_exact(&mut word);
    sys::wait_for(between)?;
    read?;
    match i32::from_ne_bytes(word) {
        pid if pid > 0 => Ok(pid),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
