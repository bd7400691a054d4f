//! Copying ahead: what a container has written is read, compressed and hashed while it runs, so that what is left for the
//! time in which it is held still is to see what has changed since.
//!
//! ```text
//! running   Draft   a whole tar of the files as they happen to be, in segments (`cut`) that are compressed (`press`) into
//!                   the blob, and a record of each entry (`record`); the files that times do not tell of (`doubt`)
//! frozen    catch_up   every inode is looked at once more (`probe`); where one has changed the tree is walked again: an entry is
//!                      as drafted, or it is new; only what may have changed is read
//! running   make    segments without a change serve as they are, the others are made anew; if none is, the draft is the blob
//! ```
//! Whether there was a draft, and how much of it served, is not seen in the result: segments depend on the tar alone.

mod bytes;
mod catch;
mod clock;
mod codec;
mod cut;
mod doubt;
mod draft;
mod make;
mod press;
mod probe;
mod record;

use catch::{Catcher, Caught, Told};
pub use codec::Compression;
use doubt::Watcher;
pub use doubt::{Doubt, Watch};
use draft::{Drafted, Drafter};
use make::Made;
pub use probe::Probe;
use probe::Touched;

use record::Recorded;

use crate::{
    digest::Digest,
    error::{At, Result},
    layout::{Blob, Staging},
    ledger,
    tree::{Meta, Node, Sink},
};

/// File systems on which every way to write to a file moves the time of its inode's last change, but for stores to what is
/// mapped for sharing (statfs(2), `f_type`): ext2 to ext4, XFS, btrfs, F2FS. On tmpfs not even the first such store does;
/// what a network file system says may be old.
const TELLING: [i64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// True if the files of the tree `root` tell when they are written to.
pub fn can_tell(root: &Node) -> bool {
    root.file_system().is_ok_and(|kind| TELLING.contains(&kind))
}

/// A tar that was made while its files could change.
pub struct Draft {
    drafted: Drafted,
    /// Files whose inodes do not tell.
    pub doubt: Doubt,
}

/// A tar of one moment, to be stored.
pub struct Tar(Form);

enum Form {
    Whole(Drafted),
    Caught(Draft, Caught),
}

/// A tar in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// As stored.
    pub blob: Blob,
    /// The digest of the tar.
    pub plain: Digest,
}

/// Makes a tar of what `pack` writes, of files that nobody writes to.
pub fn whole<T>(
    how: Compression,
    staging: &Staging,
    pack: impl FnOnce(&mut dyn Sink) -> Result<T>,
) -> Result<(Tar, T)> {
    let mut drafter = Drafter::begin(how, staging, ledger::takes_entries(), None)?;
    let packed = pack(&mut drafter)?;
    let (drafted, _) = drafter.finish(how)?;
    Ok((Tar(Form::Whole(drafted)), packed))
}

impl Draft {
    /// Makes a tar of what `pack` writes, of the files that `watch` tells of, while they may change.
    pub fn make(
        how: Compression,
        staging: &Staging,
        watch: &Watch,
        pack: impl FnOnce(&mut dyn Sink) -> Result<()>,
    ) -> Result<Self> {
        let mut drafter = Drafter::begin(how, staging, true, Some(Watcher::begin(watch)))?;
        pack(&mut drafter)?;
        let (drafted, doubt) = drafter.finish(how)?;
        Ok(Self { drafted, doubt })
    }

    /// Takes what `pack` writes now that nobody else does; what is as drafted it is not asked to read, nor, where there is a
    /// `probe`, to come by.
    pub fn catch_up<T>(
        self,
        staging: &Staging,
        probe: Option<Probe<'_>>,
        pack: impl FnOnce(&mut dyn Sink) -> Result<T>,
    ) -> Result<(Tar, T)> {
        let touched = match probe {
            Some(probe) => Touched::look(&probe, self.drafted.records()?, &self.doubt)?,
            None => Touched::all(),
        };
        let mut catcher = Catcher::begin(&self.drafted, &self.doubt, touched, staging)?;
        let packed = pack(&mut catcher)?;
        let caught = catcher.finish()?;
        Ok((Tar(Form::Caught(self, caught)), packed))
    }
}

impl Tar {
    /// The draft that it was caught up from, to do so once more.
    pub fn into_draft(self) -> Option<Draft> {
        match self.0 {
            Form::Whole(_) => None,
            Form::Caught(draft, _) => Some(draft),
        }
    }

    /// Stores it as a blob. What was read of the tree, which is called `of`, goes into the ledger.
    pub fn store(self, staging: &Staging, of: &str) -> Result<Stored> {
        ledger::tree(of);
        let is_told = ledger::takes_entries();
        let mut told = |path: &[u8], meta: &Meta| {
            if is_told {
                ledger::entry(path, meta.told());
            }
        };
        let (blob, plain) = match self.0 {
            Form::Whole(drafted) => {
                tell_all(drafted.records_if_any()?, &mut told)?;
                drafted.whole()
            }
            Form::Caught(mut draft, caught) => {
                draft.drafted.with(staging.blob()?);
                match caught.make(&mut draft.drafted, &mut told)? {
                    Made::Same => draft.drafted.whole(),
                    Made::Pressed(pressed) => (pressed.blob, pressed.plain),
                }
            }
        };
        Ok(Stored { blob: blob.complete()?, plain: plain.finish() })
    }
}

fn tell_all(recorded: Option<Recorded>, told: Told<'_>) -> Result<()> {
    let Some(mut recorded) = recorded else { return Ok(()) };
    while let Some(record) = recorded.next().at("read", "the records of a draft")? {
        record.seen.filter(|seen| !seen.is_whiteout).inspect(|seen| told(&record.path, &seen.meta));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{self, Write},
        os::unix::fs::{FileExt, PermissionsExt, symlink},
        path::{Path, PathBuf},
        thread,
        time::Duration,
    };

    use super::*;
    use crate::{
        digest::Hasher,
        host::Host,
        layout::Layout,
        runtime::Task,
        tree::{Held, Packer, Summary, Why, plain},
    };

    fn pack(root: &Path) -> impl Fn(&mut dyn Sink) -> Result<Summary> {
        move |sink| {
            let mut packer = Packer::into_sink(sink, |_| Held::Kept);
            plain::pack(&Node::open(root).unwrap(), &mut packer, refuse)?;
            packer.finish()
        }
    }

    fn refuse(path: &[u8]) -> Option<Why> {
        path.ends_with(b"refused").then_some(Why::WhiteoutName)
    }

    struct Hashing(Hasher);

    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The digest of the tar as it is written without segments.
    fn streamed(root: &Path) -> Digest {
        let mut tar = Hashing(Hasher::default());
        let mut packer = Packer::new(&mut tar, |_| Held::Kept);
        plain::pack(&Node::open(root).unwrap(), &mut packer, refuse).unwrap();
        packer.finish().unwrap();
        tar.0.finish()
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut step = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 60) as u8 + b'a'
        };
        (0..len).map(|_| step()).collect()
    }

    fn fill(root: &Path) {
        for n in 0..400_u32 {
            let dir = root.join(format!("d{}", n % 7));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("f{n}")), noise((n as usize * 977) % 30_000, n.into())).unwrap();
        }
        fs::write(root.join("d3/large"), noise(3_500_000, 1)).unwrap();
        fs::File::create(root.join("d4.sparse")).unwrap().set_len(20 << 20).unwrap();
        fs::hard_link(root.join("d0/f0"), root.join("d5/zero")).unwrap();
        fs::hard_link(root.join("d1/f1"), root.join("d5/one")).unwrap();
        symlink("f2", root.join("d2/link")).unwrap();
        // What is told of and not written must be told of again.
        fs::create_dir_all(root.join("e/deep/er")).unwrap();
        fs::write(root.join("e/deep/refused"), b"").unwrap();
        std::os::unix::net::UnixListener::bind(root.join("e/deep/er/s")).unwrap();
    }

    /// Every way in which a name or a file may be another one since.
    const CHANGES: [fn(&Path); 17] = [
        |_| {},
        |root| fs::write(root.join("d0/a first one"), b"new").unwrap(),
        |root| fs::write(root.join("z last"), noise(2_000_000, 9)).unwrap(),
        |root| fs::remove_dir_all(root.join("d2")).unwrap(),
        |root| fs::remove_file(root.join("d0/f0")).unwrap(),
        |root| fs::rename(root.join("d3"), root.join("d3.moved")).unwrap(),
        |root| fs::rename(root.join("d1/f8"), root.join("d1/f15")).unwrap(),
        |root| fs::set_permissions(root.join("d6/f13"), fs::Permissions::from_mode(0o711)).unwrap(),
        |root| {
            let file = fs::File::options().write(true).open(root.join("d3/large")).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(b"!", 2_000_000).unwrap();
            file.set_modified(before).unwrap();
        },
        |root| fs::File::options().write(true).open(root.join("d3/large")).unwrap().set_len(1_000_000).unwrap(),
        |root| {
            fs::remove_file(root.join("d4/f11")).unwrap();
            fs::hard_link(root.join("d4/f4"), root.join("d4/f11")).unwrap();
        },
        |root| fs::remove_dir_all(root).and_then(|()| fs::create_dir(root)).unwrap(),
        // The header of d5/zero tells of d0/f0, and nothing happens to d5 nor to that file.
        |root| fs::rename(root.join("d0"), root.join("d0.moved")).unwrap(),
        |root| fs::set_permissions(root.join("d6"), fs::Permissions::from_mode(0o711)).unwrap(),
        |root| fs::remove_file(root.join("d2/link")).and_then(|()| symlink("f3", root.join("d2/link"))).unwrap(),
        |root| fs::remove_file(root.join("e/deep/er/s")).unwrap(),
        |root| {
            // Another file with all the same times but one.
            let (old, new) = (root.join("d4/f4"), root.join("new"));
            let times = fs::metadata(&old).unwrap().modified().unwrap();
            fs::write(&new, noise(fs::metadata(&old).unwrap().len() as usize, 77)).unwrap();
            fs::File::options().write(true).open(&new).unwrap().set_modified(times).unwrap();
            fs::rename(new, old).unwrap();
        },
    ];

    struct Scene {
        temp: tempfile::TempDir,
        staging: Staging,
        task: Task,
    }

    impl Scene {
        /// The container's only process is a `sleep`.
        fn new(sleep: &std::process::Child) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let staging = Layout::open_or_create(&temp.path().join("layout")).unwrap().stage().unwrap();
            let (pid, cgroup) = (sleep.id().cast_signed(), temp.path().join("cgroup"));
            fs::create_dir(&cgroup).unwrap();
            fs::write(cgroup.join("cgroup.procs"), format!("{pid}\n")).unwrap();
            let task = Task::stand_in(pid, &cgroup);
            Self { temp, staging, task }
        }

        fn tree(&self, name: impl ToString) -> PathBuf {
            self.temp.path().join(name.to_string())
        }
    }

    /// Looked at twice before its change, and once after: one look can miss what stores to it.
    #[test]
    fn a_file_is_sure_only_if_looks_began_after_its_change() {
        let mut sleep = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (scene, host) = (Scene::new(&sleep), Host::default());
        let watch = Watch { host: &host, task: &scene.task, root: None, everyone: false };
        for (change_first, is_sure) in [(false, false), (true, true)] {
            let root = scene.tree(change_first);
            fs::create_dir(&root).unwrap();
            let change = || {
                fs::write(root.join("file"), "changed").unwrap();
                thread::sleep(Duration::from_millis(if change_first { 1300 } else { 150 }));
            };
            let packed = pack(&root);
            if change_first {
                change();
            }
            let draft = Draft::make(Compression::Gzip, &scene.staging, &watch, |sink| {
                sink.about_to_read();
                if !change_first {
                    change();
                }
                packed(sink).map(drop)
            });
            let mut records = draft.unwrap().drafted.records().unwrap();
            let file = records.next().unwrap().unwrap();
            let rests = file.seen.is_some_and(|seen| seen.may_rest);
            assert_eq!((file.stamp.is_some(), rests), (is_sure, is_sure), "changed first: {change_first}");
        }
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }

    #[test]
    fn what_was_drafted_and_caught_up_with_is_what_is_written_at_once() {
        let mut sleep = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (scene, host) = (Scene::new(&sleep), Host::default());
        for n in 0..CHANGES.len() {
            fill(&scene.tree(n));
        }
        // What is younger when it is read is read again.
        thread::sleep(Duration::from_millis(1300));
        for &how in Compression::ALL {
            for (n, change) in CHANGES.iter().enumerate().filter(|(n, _)| how == Compression::Gzip || n % 4 == 2) {
                let root = scene.tree(n);
                let watch = Watch { host: &host, task: &scene.task, root: None, everyone: false };
                let packed = pack(&root);
                let drafted = |sink: &mut dyn Sink| packed(sink).map(drop);
                let draft = Draft::make(how, &scene.staging, &watch, drafted).unwrap();
                if how == Compression::Gzip {
                    change(&root);
                }
                let node = Node::open(&root).unwrap();
                // Where nobody has looked before, all is come by.
                let probe = || (how != Compression::Zstd).then_some(Probe { root: &node, before: None });
                let (tar, summary) = draft.catch_up(&scene.staging, probe(), &packed).unwrap();
                // Once more, as if the first time did not count.
                let (tar, again) = tar.into_draft().unwrap().catch_up(&scene.staging, probe(), &packed).unwrap();
                let Form::Caught(_, caught) = &tar.0 else { panic!() };
                let read = caught.len();
                assert!(read < 8 << 20, "{n}: {read} bytes were read again");
                assert!(n != 0 || read < 1000, "{n}: {read} bytes were read again, and nothing had changed");
                let caught = tar.store(&scene.staging, "").unwrap();
                let (tar, whole) = super::whole(how, &scene.staging, &packed).unwrap();
                assert_eq!(caught, tar.store(&scene.staging, "").unwrap(), "change {n}, {how:?}");
                assert_eq!(caught.plain, streamed(&root), "change {n}, {how:?}");
                assert_eq!((&summary, &again), (&whole, &whole), "change {n}");
            }
        }
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }
}
