//! Two whole trees, copied ahead and caught up with: what comes of it is what is written at once, whatever changed since, and
//! what did not is not come by.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use super::*;
use crate::{
    digest::Digest,
    layout::{Blob, Layout},
    snapshotter::Origin,
    tree::Entry,
};

/// Numbers by chance, the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// A container's only process.
struct Sleep(Child);

impl Sleep {
    fn begin() -> Self {
        Self(Command::new("sleep").arg("600").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

/// A tree, and what a container made of a copy of it.
struct Scene {
    temp: tempfile::TempDir,
    staging: Staging,
    task: Task,
    origin: Origin,
}

const DIRS: [&str; 6] = ["a", "a/b", "a/b/c", "d", "d/e", "tmp"];

impl Scene {
    fn new(seed: u64, sleep: &Sleep) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let staging = Layout::open_or_create(&temp.path().join("layout")).unwrap().stage().unwrap();
        let (pid, cgroup) = (sleep.0.id().cast_signed(), temp.path().join("cgroup"));
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), format!("{pid}\n")).unwrap();
        let task = Task::stand_in(pid, &cgroup);
        let origin = [Origin::Copied, Origin::Unknown][seed as usize % 2];
        let scene = Self { temp, staging, task, origin };
        for dir in DIRS {
            fs::create_dir_all(scene.base().join(dir)).unwrap();
            for n in 0..6 {
                fs::write(scene.base().join(dir).join(format!("f{n}")), format!("{dir} {n}")).unwrap();
            }
        }
        for (from, to) in [("a/f1", "d/one"), ("a/f2", "a/b/two"), ("d/f3", "d/e/three")] {
            fs::hard_link(scene.base().join(from), scene.base().join(to)).unwrap();
        }
        symlink("f1", scene.base().join("a/link")).unwrap();
        let copied = Command::new("cp").arg("-a").args([scene.base(), scene.active()]).status().unwrap();
        assert!(copied.success());
        let mut chance = Chance(seed);
        for _ in 0..chance.below(8) {
            change(&scene.active(), &mut chance);
        }
        scene
    }

    fn base(&self) -> PathBuf {
        self.temp.path().join("base")
    }

    fn active(&self) -> PathBuf {
        self.temp.path().join("active")
    }

    fn rw(&self) -> RwLayer {
        RwLayer::Trees { base: self.base().into(), active: self.active().into(), origin: self.origin }
    }

    fn write(&self) -> impl Fn(&mut dyn Sink) -> Result<Summary> {
        let rw = self.rw();
        move |sink| {
            let mut packer = Packer::into_sink(sink, judge);
            pack(&rw, &mut packer)?;
            packer.finish()
        }
    }

    fn draft(&self) -> Draft {
        let watch = Watch { host: &Host::default(), task: &self.task, root: None, everyone: false };
        let write = self.write();
        Draft::make(Compression::Gzip, &self.staging, &watch, |sink| write(sink).map(drop)).unwrap()
    }

    fn catch_up(&self, draft: Draft) -> (Blob, Digest, Summary) {
        let root = Node::open(&self.active()).unwrap();
        let (tar, summary) =
            draft.catch_up(&self.staging, Some(Probe { root: &root, before: None }), self.write()).unwrap();
        let stored = tar.store(&self.staging, "").unwrap();
        (stored.blob, stored.plain, summary)
    }

    fn at_once(&self) -> (Blob, Digest, Summary) {
        let (tar, summary) = ahead::whole(Compression::Gzip, &self.staging, self.write()).unwrap();
        let stored = tar.store(&self.staging, "").unwrap();
        (stored.blob, stored.plain, summary)
    }
}

/// Something that a program may do. What is not possible is not done.
fn change(root: &Path, chance: &mut Chance) {
    let dir = root.join(DIRS[chance.below(DIRS.len())]);
    let file = dir.join(format!("f{}", chance.below(8)));
    let other = root.join(DIRS[chance.below(DIRS.len())]).join(format!("f{}", chance.below(8)));
    let _ = match chance.below(12) {
        0 | 1 => fs::write(&file, format!("new {}", chance.below(1000))),
        2 => fs::remove_file(&file),
        3 => fs::rename(&file, &other),
        4 => fs::hard_link(&file, &other),
        5 => fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)),
        6 => fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)),
        7 => fs::create_dir(&file),
        8 => fs::write(file.join("in"), "below"),
        9 => fs::remove_dir_all(&dir),
        // Other content, and the times that it had.
        10 => fs::File::options().write(true).open(&file).and_then(|open| {
            let before = open.metadata()?.modified()?;
            open.write_all_at(b"!", 0)?;
            open.set_modified(before)
        }),
        // As the image has it.
        _ => {
            let at = file.strip_prefix(root).unwrap();
            fs::remove_file(&file).and_then(|()| {
                let mut copy = Command::new("cp");
                copy.arg("-a").arg(root.parent().unwrap().join("base").join(at)).arg(&file);
                copy.stderr(Stdio::null()).status().map(drop)
            })
        }
    };
}

#[test]
fn two_trees_that_were_copied_ahead_and_caught_up_with_are_as_if_they_were_written_at_once() {
    let sleep = Sleep::begin();
    let seeds = std::env::var("DEWAR_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let scenes: Vec<_> = (0..seeds).map(|seed| Scene::new(seed, &sleep)).collect();
    // What is younger when it is read is read again.
    thread::sleep(Duration::from_millis(1300));
    for (seed, scene) in scenes.iter().enumerate() {
        let (mut chance, draft) = (Chance(seed as u64 + 77), scene.draft());
        for _ in 0..chance.below(5) {
            change(&scene.active(), &mut chance);
        }
        let caught = scene.catch_up(draft);
        assert_eq!(caught, scene.at_once(), "seed {seed}, {:?}", scene.origin);
    }
}

/// The image's tree never changes. If it did, who looks would see it.
#[test]
fn what_rests_in_two_trees_is_not_come_by() {
    let sleep = Sleep::begin();
    let scene = Scene::new(0, &sleep);
    // Below a directory that is as in the image, and below one that comes along; the first in it, and the last.
    fs::write(scene.active().join("d/f2"), "changed").unwrap();
    thread::sleep(Duration::from_millis(1300));
    let draft = scene.draft();
    let right = scene.at_once();
    for path in ["a/f0", "a/b/c/f5", "d/f0", "d/f4", "d/e/f1", "tmp/f3"] {
        fs::write(scene.base().join(path), "never").unwrap();
    }
    assert_ne!(scene.at_once(), right);
    assert_eq!(scene.catch_up(draft), right);
}

/// Does something between the two walks through the trees.
struct Between<'s> {
    sink: &'s mut dyn Sink,
    what: Option<&'s dyn Fn()>,
}

impl Sink for Between<'_> {
    fn has(&mut self, key: &[u8], data: &Meta, body: u64) -> Result<bool> {
        self.sink.has(key, data, body)
    }

    fn reads_all(&self) -> bool {
        self.sink.reads_all()
    }

    fn rests(&mut self, key: &[u8]) -> Result<Option<Summary>> {
        self.what.take().inspect(|what| what());
        self.sink.rests(key)
    }

    fn rests_beforehand(&mut self, key: &[u8]) -> Result<bool> {
        self.sink.rests_beforehand(key)
    }

    fn about_to_read(&mut self) {
        self.sink.about_to_read();
    }

    fn passes(&mut self, path: &[u8], meta: &Meta) -> Result<()> {
        self.sink.passes(path, meta)
    }

    fn odd(&mut self, path: &[u8]) {
        self.sink.odd(path);
    }

    fn begin(&mut self, entry: Entry<'_>) -> Result<()> {
        self.sink.begin(entry)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.bytes(bytes)
    }

    fn zeros(&mut self, len: u64) -> Result<()> {
        self.sink.zeros(len)
    }

    fn distrust(&mut self) {
        self.sink.distrust();
    }
}

/// Whether a file with several names is written is found out on a walk before: what changes after that is found when it is
/// caught up with.
#[test]
fn names_that_come_and_go_while_two_trees_are_copied_ahead_are_right_in_the_end() {
    let old_enough = Duration::from_millis(1300);
    let sleep = Sleep::begin();
    let scene = Scene::new(0, &sleep);
    let at = |path: &str| scene.active().join(path);
    for path in ["a/f4", "a/f5"] {
        let image = scene.base().join(path);
        fs::remove_file(at(path)).unwrap();
        assert!(Command::new("cp").arg("-a").args([&image, &at(path)]).status().unwrap().success());
    }
    // As the image has it, and another name; and as the image has it, with a name that nobody comes by.
    fs::hard_link(at("a/f4"), at("d/other")).unwrap();
    fs::hard_link(at("a/f5"), scene.temp.path().join("outside")).unwrap();
    thread::sleep(old_enough);
    let watch = Watch { host: &Host::default(), task: &scene.task, root: None, everyone: false };
    let between = || {
        fs::remove_file(at("d/other")).unwrap();
        fs::write(scene.temp.path().join("new"), "another").unwrap();
        fs::rename(scene.temp.path().join("new"), at("a/f5")).unwrap();
        thread::sleep(old_enough);
    };
    let write = scene.write();
    let draft = Draft::make(Compression::Gzip, &scene.staging, &watch, |sink| {
        write(&mut Between { sink, what: Some(&between) }).map(drop)
    });
    assert_eq!(scene.catch_up(draft.unwrap()), scene.at_once());
}
