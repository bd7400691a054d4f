//! Owners as a container with a user namespace sees them: mapped back from the host's ids that its files carry on disk.
//!
//! Only the upperdir of an idmapped snapshot carries host ids; its lower layers are mounted idmapped and carry the image's
//! (containerd `plugins/snapshots/overlay`, labels `containerd.io/snapshot/{u,g}idmapping`). Three things hold ids: the
//! inode, POSIX ACLs (`system.posix_acl_*`, acl(5)) and file capabilities of version 3 (capabilities(7)).

use std::str::FromStr;

/// What the kernel shows for an id that has no mapping (`/proc/sys/kernel/overflowuid`).
pub const OVERFLOW: u32 = 65_534;

/// How the ids of a tree are to be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap {
    /// Users.
    pub uids: Ranges,
    /// Groups.
    pub gids: Ranges,
}

/// Ranges of ids, `container:host:length` each, comma-separated in text. Empty: every id is itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    container: u32,
    host: u32,
    length: u32,
}

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no id mapping of the form container:host:length");
        let range = |part: &str| {
            let mut numbers = part.split(':').map(|n| n.parse::<u32>().ok());
            let mut next = || numbers.next().flatten().ok_or_else(bad);
            let range = Range { container: next()?, host: next()?, length: next()? };
            if numbers.next().is_none() { Ok(range) } else { Err(bad()) }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

impl Ranges {
    /// The id in the container, [`OVERFLOW`] if it has none there.
    pub fn to_container(&self, host: u32) -> u32 {
        if self.0.is_empty() {
            return host;
        }
        let within = |r: &&Range| host.checked_sub(r.host).is_some_and(|offset| offset < r.length);
        let mapped = self.0.iter().find(within).and_then(|r| r.container.checked_add(host - r.host));
        mapped.unwrap_or(OVERFLOW)
    }

    /// True if `host` is the root of the container.
    fn is_root(&self, host: u32) -> bool {
        !self.0.is_empty() && self.to_container(host) == 0
    }
}

impl IdMap {
    /// The value of an extended attribute as the container would read it.
    pub fn xattr(&self, name: &[u8], mut value: Vec<u8>) -> Vec<u8> {
        match name {
            b"system.posix_acl_access" | b"system.posix_acl_default" => self.acl(&mut value),
            b"security.capability" => return self.capability(value),
            _ => {}
        }
        value
    }

    /// Header of 4 bytes, then entries of `tag u16, perm u16, id u32`, little-endian (Linux, `posix_acl_xattr.h`).
    fn acl(&self, value: &mut [u8]) {
        const USER: [u8; 2] = [0x02, 0];
        const GROUP: [u8; 2] = [0x08, 0];
        for entry in value.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
            let (head, id) = entry.split_at_mut(4);
            let ranges = match head.first_chunk() {
                Some(&USER) => &self.uids,
                Some(&GROUP) => &self.gids,
                _ => continue,
            };
            let host = id.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
            id.copy_from_slice(&ranges.to_container(host).to_le_bytes());
        }
    }

    /// Version 3 names the root user of the namespace it counts in; seen from there it is of version 2
    /// (Linux, `security/commoncap.c`, `cap_inode_getsecurity`). The version is the first word's highest byte.
    fn capability(&self, mut value: Vec<u8>) -> Vec<u8> {
        let root = value.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if value.len() == 24 && value.get(3) == Some(&3) && self.uids.is_root(root) {
            value.truncate(20);
            value.iter_mut().skip(3).take(1).for_each(|version| *version = 2);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> IdMap {
        IdMap { uids: "0:100000:1000,1000:500000:1".parse().unwrap(), gids: "0:200000:10".parse().unwrap() }
    }

    #[test]
    fn an_id_is_told_as_the_container_sees_it() {
        let map = map();
        let cases =
            [(100_000, 0), (100_999, 999), (101_000, OVERFLOW), (500_000, 1000), (0, OVERFLOW), (99_999, OVERFLOW)];
        for (host, container) in cases {
            assert_eq!(map.uids.to_container(host), container, "{host}");
        }
        assert_eq!(Ranges::default().to_container(7), 7);
        assert_eq!("0:4294967290:10".parse::<Ranges>().unwrap().to_container(u32::MAX), 5);
        assert_eq!("4294967290:0:10".parse::<Ranges>().unwrap().to_container(9), OVERFLOW);
        for bad in ["", "1:2", "a:b:c", "0:1:2:3", "0:1:-1", "0:1:2,"] {
            assert!(bad.parse::<Ranges>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn acls_and_capabilities_are_mapped_with_the_owner() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &6_u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let acl =
            |user, group| [vec![2, 0, 0, 0], entry(1, u32::MAX), entry(2, user), entry(8, group), vec![9]].concat();
        for name in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
            assert_eq!(map().xattr(name, acl(100_005, 200_001)), acl(5, 1));
        }
        assert_eq!(map().xattr(b"user.x", acl(100_005, 200_001)), acl(100_005, 200_001));
        let capability = |version: u8, root: &[u8]| [&[1, 0, 0, version][..], &[7; 16], root].concat();
        let ours = capability(3, &100_000_u32.to_le_bytes());
        assert_eq!(map().xattr(b"security.capability", ours), capability(2, &[]));
        let others = capability(3, &7_u32.to_le_bytes());
        assert_eq!(map().xattr(b"security.capability", others.clone()), others);
        assert_eq!(map().xattr(b"security.capability", vec![1]), [1]);
    }
}
