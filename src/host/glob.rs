//! Patterns of paths, as containerd's `imports` have them (Go `path/filepath`, `Glob` and `Match`).

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::Host;
use crate::error::{At, Result};

/// More files than any directory of settings has.
const MAX_FOUND: usize = 4096;

/// The paths of `host` that `pattern` matches, in order; each as the host's own programs would name it.
pub fn glob(host: &Host, pattern: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.components() {
        let Component::Normal(name) = component else { continue };
        let mut next = Vec::new();
        for dir in found {
            match is_pattern(name) {
                true => next.extend(matching(host, &dir, name)?.into_iter().map(|name| dir.join(name))),
                false => next.push(dir.join(name)),
            }
        }
        next.truncate(MAX_FOUND);
        found = next;
    }
    found.retain(|path| host.inside(path).is_ok_and(|here| here.symlink_metadata().is_ok()));
    Ok(found)
}

/// True if it is more than a name.
fn is_pattern(name: &OsStr) -> bool {
    name.as_bytes().iter().any(|b| b"*?[\\".contains(b))
}

/// The names in `dir` that the pattern matches; none if there is no such directory.
fn matching(host: &Host, dir: &Path, pattern: &OsStr) -> Result<Vec<OsString>> {
    let here = host.inside(dir)?;
    let entries = match here.read_dir() {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(e).at("read", here),
    };
    let names = entries.take(MAX_FOUND).map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let mut names = names.at("read", here)?;
    names.retain(|name| matches(pattern.as_bytes(), name.as_bytes()));
    names.sort_unstable();
    Ok(names)
}

/// True if the whole of `name` is as `pattern` says; a pattern that is none matches nothing.
fn matches(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // Where to go on if the last star took one byte more: no star before it need be tried again.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match (pattern, name) {
            ([b'*', rest @ ..], _) => {
                again = Some((rest, name));
                Some((rest, name))
            }
            ([], []) => return true,
            (_, [byte, after @ ..]) => one(pattern, *byte).map(|rest| (rest, after)),
            (_, []) => None,
        };
        let back = || again.and_then(|(rest, from)| Some((rest, from.get(1..)?)));
        let Some(next) = step.or_else(back) else { return false };
        if step.is_none() {
            again = Some(next);
        }
        (pattern, name) = next;
    }
}

/// What is left of the pattern if its first element takes `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'[', rest @ ..] => class(rest, byte),
        [b'\\', escaped, rest @ ..] => (*escaped == byte).then_some(rest),
        [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// `[a-z]` or `[^a-z]`, behind its bracket.
fn class(set: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut set) = match set {
        [b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let (mut found, mut first) = (false, true);
    loop {
        let (low, rest) = match set {
            [b']', rest @ ..] if !first => return (found != negated).then_some(rest),
            [b'\\', low, rest @ ..] | [low, rest @ ..] => (*low, rest),
            [] => return None,
        };
        let (high, rest) = match rest {
            [b'-', b'\\', high, rest @ ..] | [b'-', high, rest @ ..] if *high != b']' => (*high, rest),
            _ => (low, rest),
        };
        found |= (low..=high).contains(&byte);
        (set, first) = (rest, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of Go's own table (`path/filepath/match_test.go`) that concern one name.
    #[test]
    fn a_pattern_matches_what_gos_would() {
        for (pattern, name, right) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*b*c*d*e*", "axbxcxdxe", true),
            ("a*b*c*d*e*", "axbxcxdxexxx", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("[", "a", false),
            ("*x", "xxx", true),
            ("*.toml", "10-root.toml", true),
            ("*.toml", "10-root.toml.bak", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), right, "{pattern} {name}");
        }
        // A hostile pattern costs no more than length times length.
        assert!(!matches(format!("{}b", "a*".repeat(100)).as_bytes(), "a".repeat(255).as_bytes()));
    }
}
