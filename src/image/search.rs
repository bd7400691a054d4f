//! Which writer wrote a layer: its entries are written in every known style until the digest is the recorded one.
//!
//! What unpacking lost is guessed from what is left: a candidate is a style, the owners' names it would have known, and a
//! moment for what has no time any more. Candidates whose headers are alike are one. Contents are read once for several.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, Read, Write},
};

use super::{
    dialect::{Header, Kind as HeaderKind},
    entries::{Entries, Entry, What},
    style::{Links, Names, Order, STYLES, Style},
};
use crate::{
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    interrupt,
    pax::{self, Time, Type},
    shares,
    tree::{FileId, Kind, Node},
};

/// What a layer's tar must sum to.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// This, as the image's config says.
    DiffId(Digest),
    /// This, on the chain below, makes this chain: the key of its snapshot.
    Chain {
        /// The chain id of the layers below.
        below: Option<Digest>,
        /// The chain id with this layer.
        whole: Digest,
    },
    /// Nobody knows.
    Unknown,
}

impl Goal {
    /// True if a tar of this diff id is the layer's.
    pub fn is_met(&self, diff_id: &Digest) -> bool {
        match self {
            Self::DiffId(wanted) => wanted == diff_id,
            Self::Chain { below: None, whole } => whole == diff_id,
            Self::Chain { below: Some(below), whole } => Digest::of(format!("{below} {diff_id}").as_bytes()) == *whole,
            Self::Unknown => false,
        }
    }
}

/// The names that owners had where the layer was made.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Owners {
    /// From the image's `/etc/passwd` and `/etc/group`; `root` at least.
    pub fn of(passwd: &[u8], group: &[u8]) -> Self {
        Self { users: names(passwd), groups: names(group) }
    }
}

/// `name:…:id:…`; the first of an id counts, as for `getpwuid`.
fn names(table: &[u8]) -> BTreeMap<u32, String> {
    let mut all = BTreeMap::new();
    for line in table.split(|&b| b == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
        let mut fields = line.split(':');
        let (name, id) = (fields.next().unwrap_or_default(), fields.nth(1).and_then(|id| id.parse().ok()));
        // The field holds 31 bytes and a NUL.
        if let Some(id) = id.filter(|_| (1..=31).contains(&name.len())) {
            all.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    all.entry(0).or_insert_with(|| "root".to_owned());
    all
}

/// A style with all that it leaves open.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Who wrote it.
    pub style: &'static Style,
    moment: Time,
    owners: &'a Owners,
}

/// How many tars one thread makes at once.
const AT_ONCE: usize = 6;

/// So much is hashed for one layer, half a minute's work; a larger layer is tried in the likeliest styles only.
const MAX_HASHED: u64 = 24 << 30;

/// Finds the candidate that meets `goal`. `size` is the tar's length where it is known; `before` wrote the layer below.
pub fn find<'a>(
    entries: &Entries,
    goal: Goal,
    size: Option<u64>,
    owners: &'a Owners,
    moments: &Moments,
    before: Option<&'static Style>,
) -> Result<Option<Candidate<'a>>> {
    let candidates = candidates(entries, size, owners, moments, before)?;
    let content: u64 = entries.all.iter().map(|e| e.size).sum();
    let threads = shares::cores().min(8);
    let mut hashed = 0_u64;
    for batch in candidates.chunks(AT_ONCE * threads) {
        let parts: Vec<_> = batch.chunks(batch.len().div_ceil(threads)).collect();
        let found: Result<Vec<_>> = shares::of(&parts, |part| attempt(entries, goal, part)).into_iter().collect();
        if let Some(hit) = found?.into_iter().flatten().next() {
            return Ok(Some(hit));
        }
        hashed = hashed.saturating_add(content.saturating_mul(batch.len() as u64));
        if hashed > MAX_HASHED {
            break;
        }
    }
    Ok(None)
}

fn attempt<'a>(entries: &Entries, goal: Goal, candidates: &[Candidate<'a>]) -> Result<Option<Candidate<'a>>> {
    for order in [Order::Walk, Order::Bytes] {
        let ours = candidates.iter().filter(|c| c.style.order == order);
        let mut tracks: Vec<_> = ours.map(|c| Track::new(*c, None)).collect();
        if tracks.is_empty() {
            continue;
        }
        play(entries, order, true, &mut tracks)?;
        if let Some(hit) = tracks.into_iter().find(|t| t.is_able && goal.is_met(&t.hasher.clone().finish())) {
            return Ok(Some(hit.how));
        }
    }
    Ok(None)
}

/// All that differ, the likeliest first. `size` is the tar's length where it is known.
fn candidates<'a>(
    entries: &Entries,
    size: Option<u64>,
    owners: &'a Owners,
    moments: &Moments,
    before: Option<&'static Style>,
) -> Result<Vec<Candidate<'a>>> {
    let all = all(owners, moments, before);
    let mut unlike: Vec<(usize, Digest)> = Vec::new();
    for order in [Order::Walk, Order::Bytes] {
        let ours = all.iter().enumerate().filter(|(_, c)| c.style.order == order);
        let (places, mut tracks): (Vec<_>, Vec<_>) = ours.map(|(i, c)| (i, Track::new(*c, None))).unzip();
        play(entries, order, false, &mut tracks)?;
        let able = places.into_iter().zip(tracks).filter(|(_, t)| t.is_able && size.is_none_or(|size| size == t.len));
        unlike.extend(able.map(|(place, track)| (place, track.hasher.finish())));
    }
    unlike.sort_unstable_by_key(|&(place, _)| place);
    let mut seen = HashSet::new();
    unlike.retain(|(_, headers)| seen.insert(*headers));
    Ok(unlike.into_iter().map(|(place, _)| all[place]).collect())
}

/// Every style at every moment; that of the layer below first, and the unlikely moments last.
fn all<'a>(owners: &'a Owners, moments: &Moments, before: Option<&'static Style>) -> Vec<Candidate<'a>> {
    let mut styles: Vec<&'static Style> = STYLES.iter().collect();
    styles.sort_by_key(|style| !before.is_some_and(|before| std::ptr::eq(before, *style)));
    let with = |style: &'static Style, moment: &Time| Candidate { style, moment: *moment, owners };
    let likely = moments.likely.iter().flat_map(|moment| styles.iter().map(|style| with(style, moment)));
    let timed = || styles.iter().filter(|style| style.marks.timed);
    likely.chain(moments.later.iter().flat_map(|moment| timed().map(|style| with(style, moment)))).collect()
}

/// What may be the time of that which has none any more.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// Most of the layer's files are of one; or its last or first; or one that the image tells.
    likely: Vec<Time>,
    /// After the layer's last change: when it was compared with what lies below.
    later: Vec<Time>,
}

/// So many seconds may pass until a finished layer is packed.
const LATER: i64 = 12;

impl Moments {
    /// Those of a layer, and `more` that the image tells.
    pub fn of(entries: &Entries, more: &[Time]) -> Self {
        let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
        for entry in entries.all.iter().filter(|e| matches!(e.what, What::Inode(_))) {
            *counts.entry(entry.mtime.secs).or_default() += 1;
        }
        let usual = counts.iter().max_by_key(|(secs, count)| (**count, **secs)).map(|(secs, _)| *secs);
        let dirs = entries.all.iter().filter(|e| e.what == What::Inode(Kind::Directory)).map(|e| e.mtime.secs).max();
        let last = counts.keys().next_back().copied();
        let deletion = first_deletion(entries);
        let before = deletion.map(|secs| secs.saturating_sub(1));
        let known = [usual, dirs, last, deletion, counts.keys().next().copied(), before, Some(0)].into_iter().flatten();
        let at = |secs: i64| Time { secs, nanos: 0 };
        let mut likely: Vec<Time> = Vec::new();
        for moment in known.map(at).chain(more.iter().copied()) {
            if !likely.contains(&moment) {
                likely.push(moment);
            }
        }
        let has_whiteouts = entries.all.iter().any(|e| e.what == What::Whiteout);
        let later = last.filter(|_| has_whiteouts).into_iter();
        let later = later.flat_map(|last| (1..=LATER).map(move |after| at(last.saturating_add(after)))).collect();
        Self { likely, later }
    }
}

/// When something was first deleted, to judge by the directories that lost something: it was then or shortly before.
fn first_deletion(entries: &Entries) -> Option<i64> {
    let all = || entries.all.iter();
    let dir_of = |e: &Entry| e.path.iter().rposition(|&b| b == b'/').map(|at| e.path[..at].to_vec());
    let poorer: HashSet<Vec<u8>> = all().filter(|e| e.what == What::Whiteout).filter_map(dir_of).collect();
    let dirs = all().filter(|e| e.what == What::Inode(Kind::Directory) && poorer.contains(&e.path));
    dirs.map(|e| e.mtime.secs).min()
}

/// Writes the layer as `how` says; the digest of what was written.
pub fn write(entries: &Entries, how: Candidate<'_>, out: &mut dyn Write) -> Result<Digest> {
    let mut tracks = [Track::new(how, Some(out))];
    play(entries, how.style.order, true, &mut tracks)?;
    let [track] = tracks;
    Ok(track.hasher.finish())
}

/// One tar being made.
struct Track<'a, 'o> {
    how: Candidate<'a>,
    hasher: Hasher,
    len: u64,
    /// The style can hold all entries so far.
    is_able: bool,
    /// What further whiteouts name as their links' target.
    first_whiteout: Option<Vec<u8>>,
    out: Option<&'o mut dyn Write>,
}

impl<'a, 'o> Track<'a, 'o> {
    fn new(how: Candidate<'a>, out: Option<&'o mut dyn Write>) -> Self {
        Self { how, hasher: Hasher::default(), len: 0, is_able: true, first_whiteout: None, out }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.hasher.update(bytes);
        self.out.as_mut().map_or(Ok(()), |out| out.write_all(bytes)).at("write", "a layer")
    }

    fn header(&mut self, header: &Header) -> Result<()> {
        match self.how.style.dialect.encode(header) {
            Some(bytes) => self.feed(&bytes),
            None => {
                self.is_able = false;
                Ok(())
            }
        }
    }

    fn root(&mut self) -> Result<()> {
        let Some(name) = self.how.style.root else { return Ok(()) };
        let mut header = Header {
            kind: HeaderKind(Type::Directory),
            name: name.into(),
            mode: 0o755,
            mtime: self.how.moment,
            ..Header::default()
        };
        self.owners(&mut header);
        self.header(&header)
    }

    fn entry(&mut self, entry: &Entry, link: Option<&[u8]>) -> Result<()> {
        let mut header = match entry.what {
            What::Inode(kind) => self.inode(entry, kind, link),
            What::Whiteout => self.whiteout(entry),
            What::Opaque => self.opaque(entry),
        };
        self.owners(&mut header);
        self.header(&header)
    }

    fn inode(&self, entry: &Entry, kind: Kind, link: Option<&[u8]>) -> Header {
        let Style { prefix, type_bits, dialect, .. } = self.how.style;
        let (kind, bits) = match kind {
            Kind::Directory => (Type::Directory, 0o040_000),
            Kind::Symlink => (Type::Symlink, 0o120_000),
            Kind::Char => (Type::Char, 0o020_000),
            Kind::Block => (Type::Block, 0o060_000),
            Kind::Fifo => (Type::Fifo, 0o010_000),
            Kind::File | Kind::Socket => (Type::File, 0o100_000),
        };
        let has_xattrs = link.is_none() || dialect.repeats_xattrs();
        Header {
            kind: HeaderKind(if link.is_some() { Type::HardLink } else { kind }),
            name: [prefix.as_bytes(), &entry.path, if kind == Type::Directory { b"/" } else { b"" }].concat(),
            link: link.map_or_else(|| entry.target.clone(), |to| [prefix.as_bytes(), to].concat()),
            mode: entry.mode | if *type_bits { bits } else { 0 },
            uid: entry.uid,
            gid: entry.gid,
            size: if link.is_some() { 0 } else { entry.size },
            mtime: entry.mtime,
            device: entry.device,
            xattrs: if has_xattrs { entry.xattrs.clone() } else { Vec::new() },
            ..Header::default()
        }
    }

    fn whiteout(&mut self, entry: &Entry) -> Header {
        let Style { prefix, marks, .. } = self.how.style;
        let (dir, name) = entry.path.split_at(entry.path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1));
        let mark = [prefix.as_bytes(), dir, b".wh.", name].concat();
        let target = match marks.links {
            Links::None => Vec::new(),
            Links::Mark => mark.clone(),
            Links::Deleted => [prefix.as_bytes(), &entry.path].concat(),
        };
        let link = self.first_whiteout.clone().unwrap_or_default();
        self.first_whiteout.get_or_insert(target);
        Header {
            name: mark,
            link,
            mode: marks.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: if marks.timed { self.how.moment } else { Time::default() },
            ..Header::default()
        }
    }

    fn opaque(&self, entry: &Entry) -> Header {
        let Style { prefix, marks, .. } = self.how.style;
        let name = [prefix.as_bytes(), &entry.path, b"/.wh..wh..opq"].concat();
        let bare = Header { name, ..Header::default() };
        if !marks.opaque_as_dir {
            return bare;
        }
        Header { mode: entry.mode & 0o777, uid: entry.uid, gid: entry.gid, ..bare }
    }

    fn owners(&self, header: &mut Header) {
        let name = |all: &BTreeMap<u32, String>, id: u32| match self.how.style.names {
            Names::Root if id == 0 => "root".to_owned(),
            Names::Image => all.get(&id).cloned().unwrap_or_default(),
            Names::None | Names::Root => String::new(),
        };
        header.root = if self.how.style.names == Names::None { "" } else { "root" };
        header.uname = name(&self.how.owners.users, header.uid);
        header.gname = name(&self.how.owners.groups, header.gid);
    }

    fn end(&mut self) -> Result<()> {
        self.feed(&pax::END)?;
        let record = self.how.style.record;
        let missing = self.len.next_multiple_of(record) - self.len;
        self.feed(&vec![0; usize::try_from(missing).unwrap_or(0)])
    }
}

/// Writes all entries in all tracks; without `contents`, only their headers are hashed, and their lengths counted.
fn play(entries: &Entries, order: Order, contents: bool, tracks: &mut [Track<'_, '_>]) -> Result<()> {
    let order = entries.in_order(order);
    let mut firsts: HashMap<FileId, usize> = HashMap::new();
    let mut reader = Reader { last: None, buffer: vec![0; 1 << 18] };
    for track in tracks.iter_mut() {
        track.root()?;
    }
    for i in order {
        interrupt::check()?;
        let entry = &entries.all[i];
        let first = entry.shared.map_or(i, |inode| *firsts.entry(inode).or_insert(i));
        let link = (first != i).then(|| entries.all[first].path.as_slice());
        for track in tracks.iter_mut().filter(|t| t.is_able) {
            track.entry(entry, link)?;
        }
        let is_file = entry.what == What::Inode(Kind::File) && link.is_none() && entry.size > 0;
        if is_file && contents {
            reader.content(entries, entry, tracks)?;
        } else if is_file {
            tracks.iter_mut().for_each(|t| t.len += entry.size.next_multiple_of(pax::BLOCK as u64));
        }
    }
    tracks.iter_mut().try_for_each(Track::end)
}

struct Reader {
    last: Option<(Vec<u8>, Node)>,
    buffer: Vec<u8>,
}

impl Reader {
    /// Exactly as many bytes as the header says: a committed layer does not change.
    fn content(&mut self, entries: &Entries, entry: &Entry, tracks: &mut [Track<'_, '_>]) -> Result<()> {
        let place = || String::from_utf8_lossy(&entry.path).into_owned();
        let file: File = entries.open(&entry.path, &mut self.last)?;
        let mut file = file.take(entry.size);
        let mut left = entry.size;
        while left > 0 {
            interrupt::check()?;
            let n = match file.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.at("read", place())?,
            };
            let bytes = self.buffer.get(..n).filter(|bytes| !bytes.is_empty());
            let bytes = bytes.ok_or_else(|| Error::malformed(place(), "is shorter than it was a moment ago"))?;
            for track in tracks.iter_mut().filter(|t| t.is_able) {
                track.feed(bytes)?;
            }
            left -= n as u64;
        }
        let padding = vec![0; pax::padding(entry.size)];
        tracks.iter_mut().filter(|t| t.is_able).try_for_each(|track| track.feed(&padding))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command};

    use super::*;
    use crate::{image::entries, snapshotter::RwLayer};

    /// A bit of everything, of whole seconds.
    const TREE: &str = r#"
        n=$(printf 'n%.0s' {1..120}) d=$(printf 'd%.0s' {1..60})
        mkdir -p etc usr/bin a/$d/$d a/$n-dir tmp
        printf 'root:x:0:0::/:\nowner:x:1000:1000::/:\n' > etc/passwd
        printf 'root:x:0:\nowners:x:1001:\n' > etc/group
        ln etc/passwd etc/passwd2; ln -s passwd etc/link; mkfifo a/fifo
        echo x > a/x; echo y > a-b; echo long > a/$n; echo deep > a/$d/$d/file
        ln -s $(printf 't%.0s' {1..130}) a/longlink; head -c 300000 /dev/zero > usr/zeros
        echo own > usr/bin/own; chmod 4755 usr/bin/own; chmod 1777 tmp
        if [ $(id -u) = 0 ]; then
            chown 1000:1001 usr/bin/own; chown 3000000:7 usr/zeros; chmod 4755 usr/bin/own
            mknod a/null c 1 3; mknod a/block b 8 17
        fi
        find . -exec touch -hd 2001-02-03T04:05:06Z {} +
        touch -d 2002-02-03T04:05:06Z a/x
    "#;

    /// Only root unpacks owners and devices; and what another user made belongs to that one, the root's entry too.
    fn is_root() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            eprintln!("skipped: only root can unpack owners");
        }
        is_root
    }

    fn sh(dir: &Path, script: &str) {
        let done = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Packs a tree with `pack` (in the tree, to `../tar`), unpacks it elsewhere, and looks for the writer.
    fn writer_of(tree: &str, pack: &str) -> Option<&'static str> {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        [&from, &to].iter().for_each(|dir| fs::create_dir(dir).unwrap());
        sh(&from, tree);
        sh(&from, pack);
        sh(&to, "tar --xattrs --xattrs-include='*' --delay-directory-restore -xpf ../tar");
        let tar = fs::read(temp.path().join("tar")).unwrap();
        let entries = entries::read(&RwLayer::Tree { dir: to.clone().into() }).unwrap().unwrap();
        let table = |name: &str| fs::read(to.join("etc").join(name)).unwrap_or_default();
        let owners = Owners::of(&table("passwd"), &table("group"));
        let moments = Moments::of(&entries, &[]);
        let goal = Goal::DiffId(Digest::of(&tar));
        let Some(found) = find(&entries, goal, None, &owners, &moments, None).unwrap() else {
            eprintln!("{pack}: the nearest differs at {:?}", nearest(&entries, &owners, &moments, &tar));
            return None;
        };
        let mut again = Vec::new();
        assert_eq!(write(&entries, found, &mut again).unwrap(), Digest::of(&tar));
        assert_eq!(again, tar);
        Some(found.style.writer)
    }

    /// Which style goes along with a tar the longest: how far, who, and what both have there.
    fn nearest(
        entries: &Entries,
        owners: &Owners,
        moments: &Moments,
        tar: &[u8],
    ) -> Option<(usize, &'static str, [String; 2])> {
        let all = candidates(entries, None, owners, moments, None).unwrap();
        let far = all.iter().map(|how| {
            let mut ours = Vec::new();
            write(entries, *how, &mut ours).unwrap();
            let at = ours.iter().zip(tar).take_while(|(a, b)| a == b).count();
            let block = at / 512 * 512;
            let text = |bytes: &[u8]| {
                bytes.iter().skip(block).take(512).filter(|b| **b != 0).map(|b| b.escape_ascii().to_string()).collect()
            };
            (at, how.style.writer, [text(&ours), text(tar)])
        });
        far.max_by_key(|(at, ..)| *at)
    }

    #[test]
    fn gnu_tar_is_hit_in_its_formats() {
        if !is_root() {
            return;
        }
        for how in [
            "--format=gnu --numeric-owner .",
            "--format=gnu --numeric-owner a a-b etc tmp usr",
            "--format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f --numeric-owner .",
            "--format=posix --pax-option=delete=atime,delete=ctime --numeric-owner a a-b etc tmp usr",
            "--format=gnu --owner=root:0 --group=root:0 .",
            "--format=posix --pax-option=delete=atime,delete=ctime --owner=root:0 --group=root:0 .",
        ] {
            let found = writer_of(TREE, &format!("tar --sort=name {how} -cf ../tar"));
            assert!(found.is_some_and(|w| w.starts_with("GNU tar")), "{how}: {found:?}");
        }
    }

    /// Everything that needs records at once: long names of links, large ids, attributes, parts of seconds.
    const RECORDS: &str = r#"
        n=é$(printf 'n%.0s' {1..70}) m=$(printf 'm%.0s' {1..70})
        mkdir -p $n/$m; echo x > $n/$m/file; ln $n/$m/file $n/$m/hard; ln -s $(printf 't%.0s' {1..130}) $n/$m/soft
        echo y > y; setfattr -n user.some -v thing y || true; setfattr -n user.some -v thing $n/$m/file || true
        [ $(id -u) != 0 ] || chown -h 3000000:3000001 $n/$m/*
        find . -exec touch -hd 2001-02-03T04:05:06.789Z {} +; touch -d 2001-02-03T04:05:06Z .
    "#;

    #[test]
    fn records_are_in_the_order_of_each_writer() {
        if !is_root() {
            return;
        }
        let gnu = "tar --sort=name --format=posix --xattrs --numeric-owner --pax-option=delete=atime,delete=ctime -cf ../tar .";
        assert_eq!(writer_of(RECORDS, gnu), Some("GNU tar --format=posix"));
        if Command::new("bsdtar").arg("--version").output().is_ok() {
            // Times with parts of a second are written only where something else needs records, too.
            let tree = format!(
                "{RECORDS}\ntouch -d 2001-02-03T04:05:06Z .; [ -n \"$(getfattr y)\" ] || touch -d 2001-02-03T04:05:06Z y"
            );
            let pack = "find . | LC_ALL=C sort | bsdtar --numeric-owner -cnf ../tar -T -";
            assert_eq!(writer_of(&tree, pack), Some("bsdtar"));
        }
    }

    #[test]
    fn a_chain_id_tells_a_diff_id() {
        let (below, diff_id) = (Digest::of(b"below"), Digest::of(b"tar"));
        let whole = Digest::of(format!("{below} {diff_id}").as_bytes());
        assert!(Goal::Chain { below: Some(below), whole }.is_met(&diff_id));
        assert!(!Goal::Chain { below: Some(below), whole }.is_met(&below));
        assert!(Goal::Chain { below: None, whole: diff_id }.is_met(&diff_id));
        assert!(!Goal::Unknown.is_met(&diff_id));
    }

    #[test]
    fn owners_have_the_names_that_the_image_gives_them() {
        if !is_root() {
            return;
        }
        let tree = "mkdir etc; getent passwd 0 1 > etc/passwd; getent group 0 2 > etc/group; echo > etc/x; echo > y
            chown 1:2 etc/x || true; chown 77777:77777 y || true; find . -exec touch -hd 2001-02-03T04:05:06Z {} +";
        let found = writer_of(tree, "tar --sort=name -cf ../tar .");
        assert_eq!(found, Some("GNU tar"));
    }

    #[test]
    fn what_short_names_need_no_records_for_is_hit_as_ustar() {
        if !is_root() {
            return;
        }
        let tree =
            "mkdir -p etc/a; echo x > etc/a/x; echo > etc/group; find . -exec touch -hd 2001-02-03T04:05:06Z {} +";
        assert_eq!(
            writer_of(tree, "tar --sort=name --format=ustar --numeric-owner -cf ../tar ."),
            Some("GNU tar --format=posix")
        );
    }

    #[test]
    fn bsdtar_is_hit_in_the_order_of_a_sorted_list() {
        if !is_root() {
            return;
        }
        if Command::new("bsdtar").arg("--version").output().is_err() {
            eprintln!("skipped: no bsdtar here");
            return;
        }
        // bsdtar cannot store a name of more than 100 bytes that has no place to split.
        let tree = format!(
            "{TREE}\nrm -r a/nnn*; find . -exec touch -hd 2001-02-03T04:05:06Z {{}} +; touch -d 2001-02-03T04:05:06.5Z a-b"
        );
        for how in ["--numeric-owner", ""] {
            let pack = format!("find . | LC_ALL=C sort | bsdtar {how} -cnf ../tar -T -");
            let tree = if how.is_empty() {
                format!("{tree}; rm usr/bin/own usr/zeros; find . -exec touch -hd 2001-02-03T04:05:06Z {{}} +")
            } else {
                tree.clone()
            };
            assert_eq!(writer_of(&tree, &pack), Some("bsdtar"), "{how}");
        }
    }

    #[test]
    fn python_is_hit_in_its_gnu_format() {
        if !is_root() {
            return;
        }
        let pack = "python3 -c \"import tarfile; t = tarfile.open('../tar', 'w', format=tarfile.GNU_FORMAT); t.add('.'); t.close()\"";
        let tree = format!("{TREE}\nrm usr/bin/own usr/zeros; find . -exec touch -hd 2001-02-03T04:05:06Z {{}} +");
        assert!(writer_of(&tree, pack).is_some_and(|w| w.starts_with("Python")));
    }

    #[test]
    fn a_tar_of_no_known_writer_is_not_hit() {
        assert_eq!(
            writer_of(TREE, "tar --sort=name --format=posix --numeric-owner -cf ../tar ."),
            None,
            "times of access"
        );
        assert_eq!(writer_of(TREE, "find . | sort -r | tar --no-recursion -cf ../tar -T -"), None, "backwards");
    }
}
