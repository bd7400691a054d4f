//! The digest of memory, made while CRIU writes it.
//!
//! ```text
//! CRIU       pages-1.img ══════════════════>│pages-2.img ═════>
//! follower      how long will it be? │header│════════════════>│header│═════>
//! ```
//! In a tar the length stands before the content, so nothing of a file can be hashed until it is known how long it will be.
//! Of a complete one that is known. Of the one that is being written it is reckoned from what its process has; should that be
//! wrong, it costs the time to hash it again, and nothing else.
//!
//! Source: CRIU 4.2. `page-xfer.c`: pages are appended, one file after the other, each opened right after its
//! `pagemap-<pid>.img`; `image.c`: their numbers count from 1; `mem.c`: which pages are written.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::pack::{self, pages_file};
use crate::{
    error::{At, Result},
    freeze::cgroup::Freezer,
    host::Host,
    interrupt,
    layout::assembly::Assembly,
    procfs::{
        map::{Map, maps},
        process::Status,
    },
    runtime::Task,
};

/// Less than this is hashed sooner than anybody who would follow has got going.
const WORTH: u64 = 32 << 20;

/// What is hashed between two looks.
const STRETCH: u64 = 8 << 20;

/// How long CRIU is left alone when it has written nothing new.
const PAUSE: Duration = Duration::from_millis(1);

/// Whoever follows, on a thread of its own. Dropped, it ends soon: nobody waits for that, who may hold a container still.
#[derive(Debug, Default)]
pub struct Follower {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Followed>>,
}

/// What was followed.
#[derive(Debug, Default)]
pub struct Followed {
    /// The beginning of the CRIU tar: the pages files up to the number `files`, hashed as far as time allowed.
    pub tar: Assembly,
    /// How many they are.
    pub files: u32,
}

impl Follower {
    /// Follows the CRIU that is about to write the memory of `task` into `images`. If no thread can be had, nobody follows.
    pub fn start(host: &Host, task: &Task, images: &Path) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let (host, freezer) = (host.clone(), Freezer::of(task));
        let trail = Trail { host, images: images.to_owned(), large: BTreeMap::new(), is_over: is_over.clone() };
        let work = move || trail.follow(&freezer.pids().unwrap_or_default());
        Self { is_over, thread: thread::Builder::new().spawn(work).ok() }
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// CRIU has ended: what there is by now.
    pub fn finish(&mut self) -> Followed {
        self.end();
        // A panic over there would be a mistake of ours, and the work can be done without it.
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end();
    }
}

/// What there is to follow.
struct Trail {
    host: Host,
    images: PathBuf,
    /// The container's large processes whose pages were not met yet, by the pids they have for themselves: images are named by
    /// these.
    large: BTreeMap<i32, i32>,
    is_over: Arc<AtomicBool>,
}

impl Trail {
    fn follow(mut self, pids: &[i32]) -> Followed {
        let mut followed = Followed::default();
        self.large = pids.iter().filter_map(|&pid| self.large(pid)).collect();
        if self.large.is_empty() {
            return followed;
        }
        loop {
            let before = followed.tar.clone();
            // Whatever stands in the way will be met, and told, by who makes the tar.
            let Ok(true) = self.next(&mut followed) else {
                followed.tar = before;
                return followed;
            };
            followed.files += 1;
        }
    }

    /// The process, by the pid that it has for itself, if it has as much memory as is worth it.
    fn large(&self, pid: i32) -> Option<(i32, i32)> {
        let status = Status::parse(&fs::read(self.host.proc_of(pid, "status")).ok()?);
        let inner = status.pids.last().filter(|_| status.own >= WORTH)?;
        Some((*inner, pid))
    }

    /// Takes in one file more; false if there is none, or none that can be.
    fn next(&mut self, followed: &mut Followed) -> Result<bool> {
        let (n, tar) = (followed.files + 1, &mut followed.tar);
        if self.is_over() {
            return Ok(false);
        }
        let file = File { path: self.images.join(pages_file(n)), next: self.images.join(pages_file(n + 1)) };
        if !self.wait(|| file.path.exists())? {
            return Ok(false);
        }
        if let Some((id, size)) = self.reckon() {
            let before = tar.clone();
            pack::push(tar, &file.path, &pages_file(n), size);
            let is_right = self.hash(tar, &file, size)?;
            // Another's file, that was complete, says nothing of this one.
            if is_right || file.len()? > size {
                self.large.remove(&id);
            }
            if is_right {
                return Ok(true);
            }
            *tar = before;
        }
        if !self.wait(|| file.is_complete())? {
            return Ok(false);
        }
        let size = file.len()?;
        pack::push(tar, &file.path, &pages_file(n), size);
        self.hash(tar, &file, size)
    }

    /// Waits until something is so; false if it will not be.
    fn wait(&self, is_so: impl Fn() -> bool) -> Result<bool> {
        loop {
            let is_over = self.is_over();
            match is_so() {
                true => return Ok(true),
                false if is_over => return Ok(false),
                false => self.rest()?,
            }
        }
    }

    fn rest(&self) -> Result<()> {
        thread::sleep(PAUSE);
        interrupt::check()
    }

    /// True once CRIU has ended; what is looked at after that stays as it is.
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Hashes the last of the tar's files while it grows; false if it does not become `size` bytes long.
    fn hash(&self, tar: &mut Assembly, file: &File, size: u64) -> Result<bool> {
        let mut done = 0;
        loop {
            let (is_over, is_complete) = (self.is_over(), file.is_complete());
            let len = file.len()?;
            if len > size || (is_over || is_complete) && len < size {
                return Ok(false);
            }
            let end = len.min(done + STRETCH);
            tar.hash_ahead(end)?;
            // What is left then is for who makes the tar.
            if is_over || is_complete && end == size {
                return Ok(true);
            }
            if end == done {
                self.rest()?;
            }
            done = end;
        }
    }

    /// The process whose pages are being written, if it is a large one, and how many bytes it has.
    fn reckon(&self) -> Option<(i32, u64)> {
        let is_begun = |id: &&i32| self.images.join(format!("pagemap-{id}.img")).exists();
        let mut begun = self.large.keys().filter(is_begun);
        let (Some(&id), None) = (begun.next(), begun.next()) else { return None };
        let smaps = fs::read(self.host.proc_of(*self.large.get(&id)?, "smaps")).ok()?;
        let size = maps(&smaps).iter().map(written).sum();
        (size >= WORTH).then_some((id, size))
    }
}

/// A pages file that is looked at while CRIU writes it.
struct File {
    path: PathBuf,
    /// The one after it.
    next: PathBuf,
}

impl File {
    fn is_complete(&self) -> bool {
        self.next.exists()
    }

    fn len(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path).at("look at", &self.path)?.len())
    }
}

/// How many bytes of a mapping CRIU writes among a process's own pages (`mem.c`: `generate_vma_iovs`, `should_dump_page`).
fn written(map: &Map) -> u64 {
    match map.path.as_slice() {
        _ if map.droppable => 0,
        b"[vdso]" => map.len(),
        // Nobody can open it by that name, so it is called deleted.
        path if path.starts_with(b"/[aio]") => map.len(),
        b"[vvar]" | b"[vvar_vclock]" | b"[vsyscall]" => 0,
        _ if map.shared => 0,
        _ => map.anonymous + map.swap,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Where a CRIU of ours writes; the processes 1 and 2 of a container, 101 and 102 outside, have so many MiB.
    struct Scene {
        temp: tempfile::TempDir,
        host: Host,
    }

    impl Scene {
        fn new(processes: [u64; 2]) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let host = Host { proc: temp.path().join("proc"), ..Host::default() };
            for (id, mib) in (1..).zip(processes) {
                let dir = host.proc_of(100 + id, "");
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join("status"), format!("NSpid:\t{}\t{id}\nRssAnon:\t {} kB\n", 100 + id, mib << 10))
                    .unwrap();
                let own = (mib << 10) - 16;
                let smaps = format!(
                    "10000-20000 rw-p 0 00:00 0 \nAnonymous: {own} kB\nSwap: 4 kB\n\
                     20000-30000 rw-s 0 00:00 0 /x\nAnonymous: 64 kB\n\
                     30000-32000 r-xp 0 00:00 0 [vdso]\nAnonymous: 0 kB\n\
                     31000-32000 rw-s 0 00:00 7 /[aio] (deleted)\nAnonymous: 0 kB\n32000-33000 rw-p 0 00:00 0\nAnonymous: 4 kB\nVmFlags: dp\n"
                );
                fs::write(dir.join("smaps"), smaps).unwrap();
            }
            fs::create_dir(temp.path().join("images")).unwrap();
            Self { temp, host }
        }

        fn images(&self) -> PathBuf {
            self.temp.path().join("images")
        }

        /// What is followed while `files` are written: each of a process, in MiB.
        fn follow(&self, files: &[(i32, u64)], pause: Duration) -> Followed {
            let is_over = Arc::<AtomicBool>::default();
            let trail = Trail {
                host: self.host.clone(),
                images: self.images(),
                large: BTreeMap::new(),
                is_over: is_over.clone(),
            };
            let thread = thread::spawn(move || trail.follow(&[101, 102, i32::MAX]));
            let mut follower = Follower { is_over, thread: Some(thread) };
            for (n, &(id, mib)) in (1..).zip(files) {
                fs::write(self.images().join(format!("pagemap-{id}.img")), "").unwrap();
                let mut file = fs::File::create(self.images().join(pages_file(n))).unwrap();
                for piece in 0..mib * 4 {
                    file.write_all(&vec![piece as u8; 256 << 10]).unwrap();
                    thread::sleep(pause);
                }
            }
            let followed = follower.finish();
            let mut whole = Assembly::default();
            for (n, (_, mib)) in (1..=followed.files).zip(files) {
                pack::push(&mut whole, &self.images().join(pages_file(n)), &pages_file(n), mib * MIB);
            }
            assert_eq!(followed.tar.hash().unwrap(), whole.hash().unwrap(), "{files:?}");
            followed
        }
    }

    #[test]
    fn what_grows_as_reckoned_is_hashed_meanwhile() {
        for files in [&[(1, 40), (2, 33)][..], &[(2, 33), (1, 40)], &[(1, 40)]] {
            // A machine that has no time for the follower is given more.
            let mut found = (0..8).map(|n| Scene::new([40, 33]).follow(files, PAUSE / 5 * (1 << n)));
            assert!(found.any(|followed| followed.files > 0 && followed.tar.hashed() > 8 * MIB), "{files:?}");
        }
    }

    #[test]
    fn a_reckoning_that_is_wrong_leaves_nothing_wrong() {
        // Longer, shorter, of somebody unknown, too small to be followed: at most what is complete is hashed.
        for (files, most) in [
            (&[(1, 45), (2, 33)][..], 2),
            (&[(1, 35), (2, 33)], 2),
            (&[(9, 40), (2, 20)], 1),
            (&[(9, 40)], 0),
            (&[(1, 41)], 0),
            (&[(1, 39)], 0),
        ] {
            let followed = Scene::new([40, 33]).follow(files, PAUSE / 5);
            assert!(followed.files <= most, "{files:?}: {}", followed.files);
        }
    }

    #[test]
    fn nobody_waits_for_a_follower_whose_criu_wrote_nothing() {
        let scene = Scene::new([40, 33]);
        assert_eq!(scene.follow(&[], PAUSE).files, 0);
    }
}
