//! What is told of a process, whoever saved its memory: CRIU ([`super::memory`]) or a raw capture ([`super::raw`]).

use serde::Serialize;

use crate::name::AnyText;

/// The processes of a memory image.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Processes {
    /// `criu` or `raw`.
    pub source: &'static str,
    /// In the order of the image.
    pub processes: Vec<Process>,
    /// What could not be read, or is not all there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Process {
    /// Its pid: of CRIU's images in the container's pid namespace, of a raw capture on the host.
    pub pid: u32,
    /// Its parent's; 0: none that is in the image.
    pub ppid: u32,
    /// Its process group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgid: Option<u32>,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<u32>,
    /// `alive`, `zombie`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// The command's name.
    pub command: AnyText,
    /// Its command line, word by word; `None` if it is not in the image.
    pub args: Option<Vec<AnyText>>,
    /// Its environment, `NAME=value`; `None` if it is not in the image, or was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Vec<AnyText>>,
    /// Its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<AnyText>,
    /// Its working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<AnyText>,
    /// Its effective user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its effective group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Its threads' ids.
    pub threads: Vec<u32>,
    /// Its open files, by number.
    pub files: Vec<OpenFile>,
    /// How many more open files it has than are listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub files_unlisted: u64,
    /// Its mappings, by kind.
    pub memory: Vec<Mapped>,
    /// Bytes of its memory that are in the image.
    pub stored: u64,
    /// What could not be had of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One descriptor.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct OpenFile {
    /// Its number.
    pub fd: u32,
    /// `file`, `pipe`, `socket`, …
    pub kind: String,
    /// A path, or what else it is known by.
    pub target: AnyText,
    /// Where it is read or written next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// The file's length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// It is a file that has no name any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// What kind of socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<Socket>,
}

/// A socket.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Socket {
    /// `tcp`, `udp6`, `unix`, …
    pub protocol: String,
    /// `stream`, `datagram`, `seqpacket`, `raw`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its own address.
    #[serde(skip_serializing_if = "AnyText::is_empty")]
    pub local: AnyText,
    /// The other end's, where there is one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote: String,
    /// `LISTEN`, `ESTABLISHED`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
}

/// Mappings of one kind, summed up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Mapped {
    /// `heap`, `stack`, `anonymous`, `private file`, …
    pub kind: String,
    /// How many.
    pub mappings: u64,
    /// Bytes.
    pub size: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The words of a command line or an environment: each ends with a zero, and the last may be cut.
pub fn words(bytes: &[u8]) -> Vec<AnyText> {
    let whole = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if whole.is_empty() {
        return Vec::new();
    }
    whole.split(|&b| b == 0).map(|word| AnyText::from(word.to_vec())).collect()
}

/// Processes in the order of their tree, each with its depth: children stand below their parents. Whatever an image says,
/// each process is told once: one whose parent is not there stands at depth 0, and so does one of a circle.
pub fn tree<T>(all: &[T], pid: impl Fn(&T) -> u32, parent: impl Fn(&T) -> u32) -> Vec<(usize, &T)> {
    use std::collections::{BTreeMap, HashSet};
    let pids: HashSet<u32> = all.iter().map(&pid).collect();
    let mut children: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let is_root = |one: &T| !pids.contains(&parent(one)) || parent(one) == pid(one);
    for (at, one) in all.iter().enumerate().filter(|(_, one)| !is_root(one)) {
        children.entry(parent(one)).or_default().push(at);
    }
    let mut told = vec![false; all.len()];
    let mut order = Vec::with_capacity(all.len());
    let roots = all.iter().enumerate().filter(|(_, one)| is_root(one)).map(|(at, _)| at);
    // What no root leads to is a circle: it is begun anywhere.
    for root in roots.chain(0..all.len()) {
        let mut todo = vec![(0, root)];
        while let Some((depth, at)) = todo.pop() {
            if std::mem::replace(&mut told[at], true) {
                continue;
            }
            order.push((depth, &all[at]));
            let below = children.remove(&pid(&all[at])).unwrap_or_default();
            todo.extend(below.into_iter().rev().map(|child| (depth + 1, child)));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_is_told_once_whatever_its_parents() {
        let told = |pairs: &[(u32, u32)]| -> Vec<(usize, u32)> {
            tree(pairs, |p| p.0, |p| p.1).into_iter().map(|(depth, p)| (depth, p.0)).collect()
        };
        assert_eq!(told(&[(1, 0), (7, 1), (9, 7), (8, 1)]), [(0, 1), (1, 7), (2, 9), (1, 8)]);
        assert_eq!(told(&[(5, 6), (6, 5), (3, 3)]), [(0, 3), (0, 5), (1, 6)]);
        assert_eq!(told(&[(1, 0), (1, 0), (2, 1)]), [(0, 1), (1, 2), (0, 1)]);
        let long: Vec<(u32, u32)> = (1..100_000).map(|pid| (pid, pid - 1)).collect();
        assert_eq!(told(&long).last(), Some(&(99_998, 99_999)));
    }

    #[test]
    fn words_end_with_zeros() {
        let told = |bytes: &[u8]| words(bytes).into_iter().map(|word| word.text).collect::<Vec<_>>();
        assert_eq!(told(b"a\0\0c\0"), ["a", "", "c"]);
        assert_eq!(told(b"cut"), ["cut"]);
        assert!(told(b"\0").is_empty() && told(b"").is_empty());
    }
}
