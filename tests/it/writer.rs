//! Databases that another writer of bolt files made (`bbolt-rs`): large ones, random ones, one at work while it is read.
//!
//! ```sh
//! DEWAR_RECORDS=100000 cargo test --release --test it writer -- --nocapture   # what ls takes of time and memory
//! DEWAR_SEEDS=2000 cargo test --test it writer                                # a long row of random databases
//! ```

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bbolt_rs::{Bolt, BoltOptions, BucketRwApi, BucketRwImpl, DbRwAPI, TxRwRefApi};
use dewar::{
    bolt::{Bucket, Db, Item, Piecemeal, ReadAt, check},
    containerd::meta::{MetaDb, Share},
    host::{Host, database},
};

use crate::harness::{META_DB, Sandbox};

pub fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Go's binary time for this many seconds since 2026 began.
fn time(seconds: u64) -> Vec<u8> {
    let since_year_one = 62_135_596_800 + 1_767_225_600 + seconds;
    [&[1][..], &since_year_one.to_be_bytes(), &[0, 0, 0, 7], &[0xff, 0xff]].concat()
}

/// A protobuf Any: two fields of the wire type for lengths (typeurl).
fn any(type_url: &str, value: &str) -> Vec<u8> {
    let varint = |n: usize| [(n & 0x7f) as u8 | 0x80, (n >> 7) as u8];
    let field = |tag: u8, text: &str| [&[tag << 3 | 2], &varint(text.len())[..], text.as_bytes()].concat();
    [field(1, type_url), field(2, value)].concat()
}

/// A container's record as containerd writes it, with labels, a spec of usual size and a pod's metadata.
fn put_container(containers: &mut BucketRwImpl<'_, '_>, id: &str, n: u64) -> bbolt_rs::Result<()> {
    let mut record = containers.create_bucket(id)?;
    for (key, value) in [("createdat", time(n)), ("updatedat", time(n))] {
        record.put(key, value)?;
    }
    for (key, value) in
        [("image", "registry.example/shop/web:1"), ("snapshotter", "overlayfs"), ("snapshotKey", id), ("sandboxid", "")]
    {
        record.put(key, value)?;
    }
    let spec =
        format!(r#"{{"ociVersion":"1.1.0","linux":{{"cgroupsPath":"/k8s.io/{id}"}},"x":"{}"}}"#, "x".repeat(1200));
    record.put("spec", any("types.containerd.io/opencontainers/runtime-spec/1/Spec", &spec))?;
    let metadata = format!(
        r#"{{"Version":"v1","Metadata":{{"ID":"{id}","Name":"c","SandboxID":"{n:064x}","Config":{{"metadata":{{"name":"c"}},"image":{{"image":"registry.example/shop/web:1"}},"envs":[{{"key":"A","value":"{}"}}]}},"ImageRef":"sha256:{id}","LogPath":"/var/log/pods/{n}/0.log"}}}}"#,
        "x".repeat(600)
    );
    let mut extensions = record.create_bucket("extensions")?;
    extensions.put(
        "io.cri-containerd.container.metadata",
        any("github.com/containerd/cri/pkg/store/container/Metadata", &metadata),
    )?;
    let mut runtime = record.create_bucket("runtime")?;
    runtime.put("name", "io.containerd.runc.v2")?;
    let mut labels = record.create_bucket("labels")?;
    for (key, value) in
        [("io.kubernetes.pod.name", format!("pod-{}", n / 3)), ("io.kubernetes.container.name", format!("c{}", n % 3))]
    {
        labels.put(key, value)?;
    }
    Ok(())
}

/// A store of this many containers.
pub fn put_store(path: &Path, records: u64) {
    let mut db = BoltOptions::builder().no_sync().build().open(path).unwrap();
    for first in (0..records.max(1)).step_by(20_000) {
        db.update(|mut tx| {
            let mut v1 = tx.create_bucket_if_not_exists("v1")?;
            v1.put("version", [8])?;
            let mut namespace = v1.create_bucket_if_not_exists("k8s.io")?;
            let mut containers = namespace.create_bucket_if_not_exists("containers")?;
            for n in first..records.min(first + 20_000) {
                put_container(&mut containers, &format!("{n:08x}{:056x}", n * 7919), n)?;
            }
            Ok(())
        })
        .unwrap();
    }
}

/// Images, a snapshotter's snapshots and contents beside them, `each` of every kind, none small enough to stand in its list's page.
fn put_others(path: &Path, each: u64) {
    let mut db = BoltOptions::builder().no_sync().build().open(path).unwrap();
    db.update(|mut tx| {
        let mut v1 = tx.create_bucket_if_not_exists("v1")?;
        let mut namespace = v1.create_bucket_if_not_exists("k8s.io")?;
        let put = |list: &mut BucketRwImpl<'_, '_>| {
            (0..each).try_for_each(|n| {
                let mut record = list.create_bucket(format!("{n:08x}"))?;
                record.put("createdat", time(n))?;
                record.create_bucket("labels")?.put("containerd.io/gc.ref", "x".repeat(1200))
            })
        };
        put(&mut namespace.create_bucket_if_not_exists("images")?)?;
        for (kind, list) in [("snapshots", "overlayfs"), ("content", "blob")] {
            put(&mut namespace.create_bucket_if_not_exists(kind)?.create_bucket_if_not_exists(list)?)?;
        }
        Ok(())
    })
    .unwrap();
}

/// `ls` of many records: all of them, in order; in half a second for 100,000 and within twice the file's size of memory
/// (what a program takes in any case apart), if the program is optimised.
#[test]
fn many_records_are_listed_soon_and_in_little_memory() {
    let records = number("DEWAR_RECORDS", 2000);
    let sandbox = Sandbox::empty();
    let path = sandbox.root().join(META_DB);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    put_store(&path, records);
    let size = std::fs::metadata(&path).unwrap().len();
    let listed = sandbox.dewar(&["ls", "--json"]).exits(0).json();
    let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len() as u64, records);
    assert_eq!(listed[0]["pod"]["sandbox"], format!("{:064x}", 0), "the extension is read");
    assert!(ids.is_sorted() && ids.iter().enumerate().all(|(n, id)| id.starts_with(&format!("{n:08x}"))));

    let table = String::from_utf8(sandbox.dewar(&["ls"]).exits(0).stdout.clone()).unwrap();
    let at = table.find("ID").unwrap();
    let shown = table.lines().skip(1).map(|line| line[at..].split(' ').next().unwrap());
    assert!(shown.eq(ids.iter().copied()), "all of them, in order, each in its column");

    // What was just written is not to be written back meanwhile.
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let mut took: Vec<Duration> = (0..RUNS).map(|_| timed_ls(&sandbox, size)).collect();
    took.sort();
    eprintln!("{records} records, {} MiB: ls took {took:?}", size >> 20);
    if !cfg!(debug_assertions) {
        let median = took[RUNS / 2];
        assert!(median < Duration::from_millis(500).max(Duration::from_micros(5 * records)), "{took:?}");
    }
}

/// Read in pieces, no page is read twice, and none is left out.
#[test]
fn in_pieces_each_page_is_read_once() {
    let sandbox = Sandbox::empty();
    let path = sandbox.root().join("meta.db");
    put_store(&path, 700);
    put_others(&path, 100);
    let (file, read) = (std::fs::read(&path).unwrap(), Arc::new(AtomicU64::new(0)));
    let (len, bytes_read) = (file.len() as u64, read.clone());
    let read_at: ReadAt = Box::new(move |at, bytes| {
        bytes_read.fetch_add(bytes.len() as u64, Relaxed);
        let from = file.get(at as usize..).and_then(|from| from.get(..bytes.len()));
        from.map(|from| bytes.copy_from_slice(from)).is_some()
    });
    let meta = MetaDb::of_pieces(path, Piecemeal::open(read_at, len).unwrap()).unwrap();
    assert!(read.load(Relaxed) < len / 20, "only the lists are read first");
    let mut ids = Vec::new();
    for share in Share::of(meta.count_containers().unwrap(), 3) {
        meta.for_each_container_of(share, |record| ids.push(record.unwrap().name.id.to_string())).unwrap();
    }
    assert!(ids.len() == 700 && ids.is_sorted());
    assert!(meta.is_sound());
    // Two for each record, and those of the lists and the meta pages, which are looked at thrice.
    let pages = read.load(Relaxed) / 4096;
    assert!((2000..2080).contains(&pages), "{pages}");
}

/// A page that says that it runs on through a hole as large as no memory: no room is made for it.
#[test]
fn in_pieces_no_room_is_made_for_what_cannot_be_read() {
    let sandbox = Sandbox::empty();
    let path = sandbox.root().join("meta.db");
    put_store(&path, 7);
    let mut file = std::fs::read(&path).unwrap();
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let newest = if word(64) > word(4096 + 64) { 0 } else { 4096 };
    let root = word(newest + 32) as usize * 4096;
    file[root + 12..root + 16].fill(0xff);
    let largest = Arc::new(AtomicU64::new(0));
    let seen = largest.clone();
    let read_at: ReadAt = Box::new(move |at, bytes| {
        seen.fetch_max(bytes.len() as u64, Relaxed);
        let from = file.get(at as usize..).and_then(|from| from.get(..bytes.len()));
        from.map(|from| bytes.copy_from_slice(from)).is_some()
    });
    assert!(Piecemeal::open(read_at, 1 << 46).is_none());
    assert!((4097..=1 << 20).contains(&largest.load(Relaxed)), "{largest:?}");
}

/// How often it is timed.
const RUNS: usize = 5;

/// The time that `ls` takes; it may have no more memory than this.
fn timed_ls(sandbox: &Sandbox, size: u64) -> Duration {
    let started = Instant::now();
    let mut child = sandbox.command(&["ls"]).stdout(Stdio::null()).spawn().unwrap();
    let (_, used) = wait4(&mut child);
    let took = started.elapsed();
    assert!(used < 2 * size + (16 << 20), "{used} bytes for a file of {size}");
    took
}

/// What the table does not show is not looked up for it; it shows no less for that, nor is less of a damaged database told.
#[test]
fn the_table_says_what_the_document_says() {
    let sandbox = Sandbox::empty();
    let path = sandbox.root().join(META_DB);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    put_store(&path, 150);
    let sound = std::fs::read(&path).unwrap();
    let extension = b"io.cri-containerd.container.metadata";
    let pages = sound.chunks(4096).enumerate().filter(|(_, page)| page.windows(36).any(|part| part == extension));
    let pages: Vec<usize> = pages.map(|(n, _)| n).collect();
    assert!(pages.len() >= 150);
    for lost in [&[][..], &pages[20..21], &pages[60..64]] {
        let mut file = sound.clone();
        lost.iter().for_each(|n| file[n * 4096..][..4096].fill(0xff));
        std::fs::write(&path, file).unwrap();
        let (table, document) = (sandbox.dewar(&["ls"]), sandbox.dewar(&["ls", "--json"]));
        assert_eq!((table.code, &table.stderr), (document.code, &document.stderr));
        assert_eq!(table.code, i32::from(!lost.is_empty()));
        let text = String::from_utf8(table.stdout.clone()).unwrap();
        let cells = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let rows = document.json();
        let told = rows.as_array().unwrap().iter().map(|row| {
            let text = |key: &str| row[key].as_str().filter(|text| !text.is_empty()).unwrap_or("-");
            ["namespace", "id", "name", "image", "snapshotter", "status", "pid"].map(text).to_vec()
        });
        assert_eq!(cells.collect::<Vec<_>>(), told.collect::<Vec<_>>());
    }
}

/// Each core looks at a share of the buckets; a page that hangs in two of them is found all the same.
#[test]
fn a_page_in_two_buckets_is_found_whoever_looks_at_them() {
    let sandbox = Sandbox::empty();
    let path = sandbox.root().join("meta.db");
    put_store(&path, 60);
    put_others(&path, 40);
    let sound = std::fs::read(&path).unwrap();
    let word = |at: usize| u64::from_le_bytes(sound[at..at + 8].try_into().unwrap());
    let pages = (sound.len() / 4096) as u64;
    // A bucket's value is its root page and its sequence, which containerd never uses.
    let roots: Vec<usize> =
        (8192..sound.len() - 16).filter(|at| (2..pages).contains(&word(*at)) && word(at + 8) == 0).collect();
    let (mut found, mut across) = (0, 0);
    for (n, at) in roots.iter().enumerate() {
        let mut file = sound.clone();
        let other = roots[(n + roots.len() / 2 + n % 7) % roots.len()];
        file.copy_within(other..other + 8, *at);
        let all = check(&file);
        crate::fuzz::parsers::in_pieces(&file);
        // Which pages are free is no matter of the tree.
        let is_damaged = all.iter().any(|finding| !finding.why.contains("free"));
        // Whole pages under the wrong name are a sound file, and no database of containerd's.
        let Ok(meta) = MetaDb::of(path.clone(), file) else { continue };
        assert_eq!(!meta.damage().is_empty(), is_damaged, "byte {at}");
        let is_twice = all.iter().any(|finding| finding.why == "a page hangs in the tree twice");
        found += usize::from(is_twice);
        across += usize::from(is_twice && n.abs_diff((n + roots.len() / 2 + n % 7) % roots.len()) > roots.len() / 3);
    }
    assert!(found > 50 && across > 50, "{found} damaged, {across} far apart, of {}", roots.len());
}

/// Waits for a program; its exit status, and the most memory it had, in bytes. What wait4(2) tells has that of its parent in it.
pub fn wait4(child: &mut std::process::Child) -> (i32, u64) {
    let status = Path::new("/proc").join(child.id().to_string()).join("status");
    let mut most = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak =
            text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(peak.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code().unwrap_or(-1), most);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A removed container is listed on request, as it was, until its page is used again.
#[test]
fn what_was_removed_is_listed_on_request() {
    let sandbox = Sandbox::empty();
    let path = sandbox.root().join(META_DB);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    put_store(&path, 6);
    let before = sandbox.dewar(&["ls", "--json"]).exits(0).json();
    let gone = before[3].clone();
    let mut db = BoltOptions::builder().no_sync().build().open(&path).unwrap();
    db.update(|mut tx| {
        let mut v1 = tx.bucket_mut("v1").unwrap();
        let mut namespace = v1.bucket_mut("k8s.io").unwrap();
        namespace.bucket_mut("containers").unwrap().delete_bucket(gone["id"].as_str().unwrap())
    })
    .unwrap();
    drop(db);
    let live = sandbox.dewar(&["ls", "--json"]).exits(0).json();
    assert_eq!(live.as_array().unwrap().len(), 5);
    let all = sandbox.dewar(&["ls", "--deleted", "--json"]).exits(0).json();
    let found = &all[5];
    assert_eq!((all.as_array().unwrap().len(), &found["record"]), (6, &serde_json::json!("deleted")));
    for field in ["id", "namespace", "image", "snapshotter", "created", "name"] {
        assert_eq!(found[field], gone[field], "{field}");
    }
}

/// What a bucket should hold.
#[derive(Default)]
struct Model(BTreeMap<Vec<u8>, Node>);

enum Node {
    Value(Vec<u8>),
    Bucket(Model),
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    fn key(&mut self) -> Vec<u8> {
        let length = if self.below(20) == 0 { 300 } else { 12 };
        [format!("{:03}", self.below(400)).into_bytes(), self.bytes(length)[..0].to_vec()].concat()
    }
}

fn change(
    random: &mut Random,
    bucket: &mut BucketRwImpl<'_, '_>,
    model: &mut Model,
    depth: u64,
) -> bbolt_rs::Result<()> {
    for _ in 0..random.below(60 >> depth) + 1 {
        let key = random.key();
        match (random.below(10), model.0.get_mut(&key)) {
            (0..=1, Some(Node::Bucket(below))) => {
                let mut bucket = bucket.bucket_mut(&key).unwrap();
                change(random, &mut bucket, below, depth + 1)?;
            }
            // That writer frees pages of removed buckets twice, so none is removed.
            (_, Some(Node::Bucket(_))) => {}
            (0..=1, None) if depth < 4 => {
                let mut bucket = bucket.create_bucket(&key)?;
                let mut below = Model::default();
                change(random, &mut bucket, &mut below, depth + 1)?;
                model.0.insert(key, Node::Bucket(below));
            }
            (3..=4, Some(Node::Value(_))) => {
                bucket.delete(&key)?;
                model.0.remove(&key);
            }
            _ => {
                let most = if random.below(30) == 0 { 20_000 } else { 80 };
                let value = random.bytes(most);
                bucket.put(&key, &value)?;
                model.0.insert(key, Node::Value(value));
            }
        }
    }
    Ok(())
}

fn same(bucket: &Bucket<'_>, model: &Model) {
    let mut right = model.0.iter();
    for entry in bucket.iter() {
        let (key, item) = entry.unwrap();
        let (right_key, node) = right.next().unwrap();
        assert_eq!(key, right_key);
        match (item, node, bucket.get(key).unwrap().unwrap()) {
            (Item::Value(a), Node::Value(b), Item::Value(c)) => assert!(a == b && a == c),
            (Item::Bucket(below), Node::Bucket(model), Item::Bucket(_)) => same(&below, model),
            _ => panic!("{key:?} is of another kind"),
        }
    }
    assert!(right.next().is_none());
}

#[test]
fn random_databases_are_read_as_they_were_written() {
    for seed in 1..=number("DEWAR_SEEDS", 12) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("random.db");
        let mut model = Model::default();
        let size = [1024, 4096, 4096, 16384][random.below(4) as usize];
        let mut db = BoltOptions::builder().no_sync().page_size(size).build().open(&path).unwrap();
        for _ in 0..random.below(12) + 1 {
            db.update(|mut tx| {
                let mut root = tx.create_bucket_if_not_exists("root")?;
                change(&mut random, &mut root, &mut model, 0)
            })
            .unwrap();
        }
        drop(db);
        let bytes = std::fs::read(&path).unwrap();
        // That writer forgets pages now and then.
        let findings: Vec<_> = check(&bytes).into_iter().filter(|f| !f.why.contains("neither in use nor")).collect();
        assert_eq!(findings, [], "seed {seed}");
        let db = Db::open(&bytes).unwrap();
        same(&db.root().bucket("root").unwrap().unwrap(), &model);
    }
}

/// One commit: everything in it says its number, in pages all over the file.
fn commit(db: &mut Bolt, n: u64) {
    db.update(|mut tx| {
        let mut root = tx.create_bucket_if_not_exists("root")?;
        root.put("n", n.to_string())?;
        for part in 0..8 {
            let mut bucket = root.create_bucket_if_not_exists(format!("part{part}"))?;
            bucket.put("n", n.to_string())?;
            bucket.put(format!("{:04}", n * 31 % 500), vec![n as u8; 700])?;
            bucket.delete(format!("{:04}", n * 17 % 500))?;
        }
        Ok(())
    })
    .unwrap();
}

fn commit_of(bytes: &[u8]) -> u64 {
    let findings: Vec<_> = check(bytes).into_iter().filter(|f| !f.why.contains("neither in use nor")).collect();
    assert_eq!(findings, [], "a copy is of no one moment");
    let db = Db::open(bytes).unwrap();
    let root = db.root().bucket("root").unwrap().unwrap();
    let number = |bucket: &Bucket<'_>| -> u64 {
        std::str::from_utf8(bucket.value("n").unwrap().unwrap()).unwrap().parse().unwrap()
    };
    let n = number(&root);
    for part in 0..8 {
        let bucket = root.bucket(format!("part{part}")).unwrap().unwrap();
        assert_eq!(number(&bucket), n);
        assert!(bucket.iter().all(|entry| entry.is_ok()));
    }
    n
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A writer that holds the lock and commits without end; each of 1,000 copies taken beside it is of one commit.
#[test]
fn a_thousand_copies_beside_a_writer_at_work_are_each_of_one_commit() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("meta.db");
    let mut db = BoltOptions::builder().no_sync().build().open(&path).unwrap();
    commit(&mut db, 0);
    let host = Host { daemon_running: true, ..Host::default() };
    assert!(database::read(&Host::default(), &path).is_err(), "the writer has no lock");
    let done = AtomicBool::new(false);
    let mut seen = std::collections::BTreeSet::new();
    let (mut copies, mut commits) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut random = Random(7);
            for n in 1.. {
                commit(&mut db, n);
                // As a daemon does: bursts, and pauses between them.
                if random.below(4) == 0 {
                    std::thread::sleep(Duration::from_micros(random.below(4000)));
                }
                if done.load(Ordering::Relaxed) {
                    return n;
                }
            }
            0
        });
        // Also when a copy is found to be bad.
        let stop = Stop(&done);
        // On a busy machine the writer may not get far in a thousand copies.
        while copies < 1000 || seen.len() <= 100 && copies < 50_000 {
            let copy = database::read(&host, &path).map(|bytes| commit_of(&bytes));
            seen.insert(copy.unwrap());
            copies += 1;
        }
        drop(stop);
        commits = writer.join().unwrap();
    });
    eprintln!("{copies} copies of {} different ones of {commits} commits", seen.len());
    assert!(seen.len() > 100, "the writer was not at work");
}
