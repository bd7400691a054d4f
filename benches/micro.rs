//! `cargo bench`: the bolt reader, the layer writer and the digest, each alone, with nothing to wait for but memory.
//! What they come to on a real machine beside other tools is `benches/peers`.
#![forbid(unsafe_code)]

use std::{fs, hint::black_box, io, io::Read, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dewar::{
    bolt::{Bucket, Db, Item},
    digest::Digest,
    rw,
    snapshotter::RwLayer,
};

/// Reads every key and value.
fn walk(bucket: &Bucket<'_>) -> usize {
    bucket
        .iter()
        .map(|entry| match entry.unwrap().1 {
            Item::Value(value) => value.len(),
            Item::Bucket(below) => walk(&below),
        })
        .sum()
}

fn bolt(c: &mut Criterion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bolt/large.db.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    let mut group = c.benchmark_group("bolt");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("walk of a whole database", |b| {
        b.iter(|| walk(&Db::open(black_box(&bytes)).unwrap().root()));
    });
    group.finish();
}

/// A tree of files of this size, in directories of a hundred.
fn tree(files: usize, size: usize) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..size).map(|n| (n / 5) as u8).collect();
    for n in 0..files {
        let dir = temp.path().join((n / 100).to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(n.to_string()), &content).unwrap();
    }
    temp
}

fn layer(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer");
    for (name, files, size) in [("10,000 files of 100 bytes", 10_000, 100), ("64 files of 1 MiB", 64, 1 << 20)] {
        let temp = tree(files, size);
        let layer = RwLayer::Tree { dir: temp.path().to_owned().into() };
        group.sample_size(10).throughput(Throughput::Bytes((files * size) as u64));
        group.bench_function(name, |b| b.iter(|| rw::write_layer(&layer, &mut io::sink()).unwrap()));
    }
    group.finish();
}

fn digest(c: &mut Criterion) {
    let bytes = vec![7; 16 << 20];
    let mut group = c.benchmark_group("digest");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("SHA-256 of 16 MiB", |b| b.iter(|| Digest::of(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, bolt, layer, digest);
criterion_main!(benches);
