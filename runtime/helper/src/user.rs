//! Who a process runs as: the Pod's numbers and the image's /etc/passwd and /etc/group.

use crate::sys;
use anyhow::{Result, bail};
use kelp_runtime_protocol::User;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Longest account file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;

/// Numbers only.
#[derive(Debug, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups, sorted.
    pub groups: Vec<u32>,
    /// Home directory, `/` for a user without an account.
    pub home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves `user` with the account files below `root`.
pub fn resolve(user: &User, root: &impl AsRawFd) -> Result<Ids> {
    let read = |path: &str| {
        let mut text = Vec::new();
        if let Ok(fd) = sys::open_in_root(root, Path::new(path), libc::O_RDONLY | libc::O_NONBLOCK) {
            // An image without accounts, or with something else there, has none.
            let _ = File::from(fd).take(MAX_FILE).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    resolve_in(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve_in(user: &User, passwd: &str, group: &str) -> Result<Ids> {
    let (name, group_name) = match user.name.as_deref().filter(|_| user.uid.is_none()) {
        Some(text) => match text.split_once(':') {
            Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
            None => (text, None),
        },
        None => ("", None),
    };
    let number = user.uid.or_else(|| if name.is_empty() { Some(0) } else { name.parse().ok() });
    let account = match number {
        Some(uid) => accounts(passwd).find(|account| account.uid == uid),
        None => accounts(passwd).find(|account| account.name == name),
    };
    let uid = match (number, &account) {
        (Some(uid), _) => uid,
        (None, Some(account)) => account.uid,
        (None, None) => bail!("user {name:?} is not in the image's /etc/passwd"),
    };
    let gid = match (user.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(name)) => match group_id(group, name) {
            Some(gid) => gid,
            None => bail!("group {name:?} is not in the image's /etc/group"),
        },
        (None, None) => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = user.additional_gids.clone();
    // `user:group` names all groups there are; otherwise the memberships of the user count.
    if let (Some(account), None, false) = (&account, group_name, user.strict) {
        groups.extend(memberships(group, account.name));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = account.map(|a| a.home).filter(|h| !h.is_empty()).unwrap_or("/").to_owned();
    Ok(Ids { uid, gid, groups, home })
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.trim().parse().ok()?;
        let gid = fields.next()?.trim().parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name, uid, gid, home })
    })
}

fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.trim().parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn group_id(group: &str, name: &str) -> Option<u32> {
    let named = group_lines(group).find(|(n, ..)| *n == name).map(|(_, gid, _)| gid);
    named.or_else(|| name.parse().ok())
}

fn memberships<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_lines(group)
        .filter(move |(.., members)| members.split(',').any(|member| member.trim() == user))
        .map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\nbad line\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:200:web,root\nextra:x:201:web\n";

    fn ids(user: &User) -> (u32, u32, Vec<u32>) {
        let ids = resolve_in(user, PASSWD, GROUP).unwrap();
        (ids.uid, ids.gid, ids.groups)
    }

    fn named(name: &str) -> User {
        User { name: Some(name.to_owned()), ..User::default() }
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(ids(&User::default()), (0, 0, vec![200]));
        assert_eq!(ids(&named("")), (0, 0, vec![200]));
        assert_eq!(ids(&named("web")), (101, 102, vec![200, 201]));
        assert_eq!(ids(&named("101")), (101, 102, vec![200, 201]));
        assert_eq!(ids(&named("web:logs")), (101, 200, vec![]));
        assert_eq!(ids(&named("web:77")), (101, 77, vec![]));
        assert_eq!(ids(&named("5000")), (5000, 0, vec![]));
        assert!(resolve_in(&named("nobody"), PASSWD, GROUP).is_err());
        assert!(resolve_in(&named("web:nogroup"), PASSWD, GROUP).is_err());
    }

    #[test]
    fn the_pod_overrides_the_image() {
        let user = User {
            uid: Some(101),
            name: Some("root".to_owned()),
            additional_gids: vec![7, 201],
            ..User::default()
        };
        assert_eq!(ids(&user), (101, 102, vec![7, 200, 201]));
        let strict = User { strict: true, ..user.clone() };
        assert_eq!(ids(&strict), (101, 102, vec![7, 201]));
        let user = User { gid: Some(9), ..user };
        assert_eq!(ids(&user), (101, 9, vec![7, 200, 201]));
        let group_only = User { gid: Some(9), ..named("web") };
        assert_eq!(ids(&group_only), (101, 9, vec![200, 201]));
    }
}
