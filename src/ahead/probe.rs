//! What has been touched since it was copied: every inode that was recorded is looked at once more, by its name, and nothing
//! is opened but directories to look names up in. Where nothing was touched nobody has to walk.
//!
//! A directory's inode tells of every name that came or went in it, so an untouched directory has the names it had. What is
//! untouched together with all below it rests; the walk passes it by.

use std::{
    collections::HashSet,
    io,
    sync::{Mutex, PoisonError},
    thread,
};

use super::{
    doubt::Doubt,
    record::{Looks, Recorded, Rest},
};
use crate::{
    error::{At, Result},
    interrupt,
    tree::{Foothold, Meta, Node, sink::END_KEY},
};

/// Where to look, and what was seen there before somebody else came by.
pub struct Probe<'p> {
    /// The root of the tree.
    pub root: &'p Node,
    /// What lay at a path, to be believed in place of what lies there now.
    pub before: Option<(&'p [u8], &'p Meta)>,
}

/// The paths of what may be another than it was, and of all directories above.
#[derive(Debug, Default)]
pub struct Touched {
    paths: HashSet<Vec<u8>>,
    /// Length of all of them.
    len: usize,
    /// Nobody knows.
    all: bool,
}

/// More paths are not kept: then the whole tree is walked.
const MAX_LEN: usize = 16 << 20;

/// So many lines one thread takes at a time.
const AT_ONCE: usize = 256;

/// So many directories one below the other stay open.
const MAX_DEPTH: usize = 64;

/// More threads do not help while CRIU is at work.
const MAX_THREADS: usize = 4;

impl Touched {
    /// Nothing is known.
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Looks at all that was recorded.
    pub fn look(probe: &Probe<'_>, recorded: Recorded, doubt: &Doubt) -> Result<Self> {
        let recorded = Mutex::new(recorded);
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let found = thread::scope(|scope| {
            let look = || match Looker::begin(probe, doubt) {
                Ok(looker) => looker.run(&recorded),
                // Nobody knows, so everything is come by; whoever does says what is wrong with the tree.
                Err(_) => Ok(Self::all()),
            };
            // What threads there are share the work.
            let more = || thread::Builder::new().spawn_scoped(scope, look).ok();
            let others: Vec<_> = (1..threads).filter_map(|_| more()).collect();
            let ours = look();
            // One that panicked has seen nothing.
            let theirs = others.into_iter().map(|other| other.join().unwrap_or_else(|_| Ok(Self::all())));
            std::iter::once(ours).chain(theirs.collect::<Vec<_>>()).collect::<Result<Vec<_>>>()
        })?;
        Ok(found.into_iter().fold(Self::default(), Self::and))
    }

    /// True unless the entry `path` and all below it are as they were.
    pub fn is_about(&self, path: &[u8]) -> bool {
        self.all || self.paths.contains(path)
    }

    fn add(&mut self, mut path: &[u8]) {
        while !self.all && !self.paths.contains(path) {
            self.len += path.len() + size_of::<Vec<u8>>();
            self.all = self.len > MAX_LEN;
            self.paths.insert(path.to_vec());
            path = parent_of(path);
        }
    }

    fn and(mut self, other: Self) -> Self {
        self.all |= other.all;
        self.len += other.len;
        self.paths.extend(other.paths);
        self
    }
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').map_or(b"", |at| &path[..at])
}

/// One thread's way through the tree.
struct Looker<'p> {
    probe: &'p Probe<'p>,
    doubt: &'p Doubt,
    root: Foothold,
    /// The directory that was looked into last.
    path: Vec<u8>,
    /// Those above it and itself, each with the length of its path; `None`: there is no such directory.
    open: Vec<(usize, Option<Foothold>)>,
    touched: Touched,
}

impl<'p> Looker<'p> {
    fn begin(probe: &'p Probe<'p>, doubt: &'p Doubt) -> io::Result<Self> {
        let root = Foothold::of(probe.root)?;
        Ok(Self { probe, doubt, root, path: Vec::new(), open: Vec::new(), touched: Touched::default() })
    }

    fn run(mut self, recorded: &Mutex<Recorded>) -> Result<Touched> {
        let mut looks = Looks::default();
        loop {
            interrupt::check()?;
            let mut shared = recorded.lock().unwrap_or_else(PoisonError::into_inner);
            shared.looks(AT_ONCE, &mut looks).at("read", "the records of a draft")?;
            drop(shared);
            if looks.is_empty() {
                return Ok(self.touched);
            }
            for (path, rest) in looks.iter() {
                if !self.rests(path, rest) {
                    self.touched.add(path);
                }
            }
        }
    }

    fn rests(&mut self, path: &[u8], rest: Option<&Rest>) -> bool {
        // The end of the archive lies nowhere.
        let Some(rest) = rest else { return path == END_KEY };
        if let Some((_, meta)) = self.probe.before.filter(|(before, _)| *before == path) {
            return rest.is_of(meta);
        }
        let root = &self.probe.root.meta;
        self.look_at(path).is_ok_and(|now| {
            // The same inode may have been mounted there since.
            rest.is_of(&now) && now.is_on_mount_of(root) && !(rest.is_file && self.doubt.is_about(&now))
        })
    }

    fn look_at(&mut self, path: &[u8]) -> io::Result<Meta> {
        let parent = parent_of(path);
        let name = path.get(parent.len()..).unwrap_or_default();
        self.go_to(parent)?.look_at(name.strip_prefix(b"/").unwrap_or(name))
    }

    /// The directory `path`, from the one that was looked into last.
    fn go_to(&mut self, path: &[u8]) -> io::Result<&Foothold> {
        if self.path != path {
            let is_on_the_way = |at: usize| {
                let rest = self.path.get(..at).and_then(|above| path.strip_prefix(above));
                rest.is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'/'))
            };
            let common = self.open.iter().take_while(|(at, _)| is_on_the_way(*at)).count();
            self.open.truncate(common);
            let at = self.open.last().map_or(0, |(at, _)| *at);
            let names = path.get(at..).unwrap_or_default().split(|&byte| byte == b'/').filter(|name| !name.is_empty());
            self.path.truncate(at);
            for name in names {
                let below = self.open.last().map_or(Some(&self.root), |(_, open)| open.as_ref());
                let next = below.filter(|_| self.open.len() < MAX_DEPTH).and_then(|dir| dir.below(name).ok());
                if !self.path.is_empty() {
                    self.path.push(b'/');
                }
                self.path.extend(name);
                self.open.push((self.path.len(), next));
            }
        }
        let here = self.open.last().map_or(Some(&self.root), |(_, open)| open.as_ref());
        here.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        ahead::{
            cut::Shape,
            record::{Record, Records, Seen},
        },
        pax::Time,
    };

    #[test]
    fn only_what_was_touched_is_found_however_deep() {
        let temp = tempfile::tempdir().unwrap();
        let deep: Vec<String> = (1..=MAX_DEPTH + 2).map(|n| vec!["d"; n].join("/")).collect();
        let file = |n: usize| format!("{}/f", deep[n]);
        fs::create_dir_all(temp.path().join(deep.last().unwrap())).unwrap();
        fs::create_dir(temp.path().join("e")).unwrap();
        let mut paths: Vec<String> = deep.clone();
        paths.extend([file(MAX_DEPTH - 1), file(9), file(3), "e".into(), "e/a".into(), "e/b".into(), "tmp".into()]);
        for path in paths.iter().filter(|path| path.ends_with(['f', 'a', 'b', 'p'])) {
            fs::write(temp.path().join(path), "").unwrap();
        }
        let root = Node::open(temp.path()).unwrap();
        let meta = |path: &str| Node::open(&temp.path().join(path)).unwrap().meta;
        let (mut records, before) = (Records::begin(tempfile::tempfile().unwrap()), meta("tmp"));
        for path in &paths {
            let seen = Some(Seen::of(&meta(path), false, Time { secs: i64::MAX, nanos: 0 }));
            let (path, shape) = (path.as_bytes().to_vec(), Shape::of(path.as_bytes(), 512, 0));
            records.put(&Record { path, sum: 0, shape, stamp: None, seen }).unwrap();
        }
        let kept = records.finish().unwrap();
        for path in [file(3), "e/a".into(), "tmp".into()] {
            fs::write(temp.path().join(path), "touched").unwrap();
        }
        let probe = Probe { root: &root, before: Some((b"tmp", &before)) };
        let look = |probe| Touched::look(probe, kept.read().unwrap(), &Doubt::default()).unwrap();
        let touched = look(&probe);
        for (path, is_so) in [(file(3), true), (file(9), false), (file(MAX_DEPTH - 1), false)] {
            assert_eq!(touched.is_about(path.as_bytes()), is_so, "{path}");
        }
        for (path, is_so) in [("e", true), ("e/a", true), ("e/b", false), ("tmp", false)] {
            assert_eq!(touched.is_about(path.as_bytes()), is_so, "{path}");
        }
        // Below the deepest that is kept open nobody looks.
        assert!(touched.is_about(deep.last().unwrap().as_bytes()));
        assert!(look(&Probe { before: None, ..probe }).is_about(b"tmp"));
    }

    #[test]
    fn what_is_touched_is_so_with_all_above_it() {
        let mut touched = Touched::default();
        touched.add(b"a/b/c");
        touched.add(b"a/d");
        for (path, is_so) in
            [("", true), ("a", true), ("a/b", true), ("a/b/c", true), ("a/d", true), ("a/e", false), ("b", false)]
        {
            assert_eq!(touched.is_about(path.as_bytes()), is_so, "{path}");
        }
        assert!(Touched::all().is_about(b"b") && touched.and(Touched::all()).is_about(b"b"));
    }
}
