//! What is fuzzed: every parser of floor 1, each as a function of bytes. Also run over the kept inputs by `tests/it/fuzz.rs`.
#![allow(dead_code)]

use dewar::{
    bolt,
    containerd::meta::{MetaDb, Share},
    criu::{files, image, memory, rpc},
    elf,
    idmap::{IdMap, Ranges},
    oci, pax, procfs, proto, record,
};
use prost::Message;

/// Opens, checks, walks and salvages a database.
pub fn bolt(data: &[u8]) {
    in_pieces(data);
    let findings = bolt::check(data);
    if let Ok(db) = bolt::Db::open(data) {
        walk(&db.root(), 0);
    }
    let Ok(meta) = MetaDb::of("meta.db".into(), data.to_vec()) else { return };
    let mut records = 0;
    meta.for_each_container(|_| records += 1).unwrap_or_default();
    meta.for_each_deleted(|_| records += 1).unwrap_or_default();
    // A record has fields of sixteen bytes at least.
    assert!(records <= data.len() / 16);
    if findings.is_empty() {
        assert!(meta.damage().is_empty(), "damage that no check finds");
    }
}

/// A database that is read in pieces holds what it holds when it is read whole; and if it is not plain to read, that is seen.
pub fn in_pieces(data: &[u8]) {
    let records = |meta: &MetaDb, shares: usize| {
        let (mut records, count) = (Vec::new(), meta.count_containers().unwrap_or_default());
        for share in Share::of(count, shares) {
            meta.for_each_container_of(share, |record| records.push(record.map(|r| format!("{r:?}")))).ok()?;
        }
        records.into_iter().collect::<Result<Vec<_>, _>>().ok()
    };
    let file = data.to_vec();
    let read: bolt::ReadAt = Box::new(move |at, bytes| {
        let from = usize::try_from(at).ok().and_then(|at| file.get(at..)?.get(..bytes.len()));
        from.map(|from| bytes.copy_from_slice(from)).is_some()
    });
    let pieces = bolt::Piecemeal::open(read, data.len() as u64);
    let pieces = pieces.and_then(|pieces| MetaDb::of_pieces("meta.db".into(), pieces).ok());
    let shown = pieces.and_then(|meta| records(&meta, 3).filter(|_| meta.is_sound()));
    let whole = MetaDb::of("meta.db".into(), data.to_vec()).ok().filter(|meta| meta.damage().is_empty());
    let whole = whole.and_then(|meta| records(&meta, 1));
    match shown {
        Some(_) => assert!(shown == whole, "it holds another than when it is read whole, or is damaged"),
        None => {
            let is_plain = data.len() >= 4096 && bolt::transactions(data).iter().all(Option::is_some);
            assert!(whole.is_none() || !is_plain, "it is plain to read");
        }
    }
}

/// What a walk may take is bounded by the file: errors do not multiply.
fn walk(bucket: &bolt::Bucket<'_>, depth: usize) {
    for entry in bucket.iter().take(10_000) {
        if let (Ok((_, bolt::Item::Bucket(below))), true) = (entry, depth < 3) {
            walk(&below, depth + 1);
        }
    }
}

/// CRIU's images and its messages.
pub fn criu(data: &[u8]) {
    use image::Kind::{Core, Fdinfo, Files, Fs, Ids, Inventory, Mm, Pagemap, Pstree, Remaps, Stats};
    for kind in [Inventory, Pstree, Core, Pagemap, Stats, Files, Fdinfo, Mm, Ids, Fs, Remaps] {
        for message in image::entries(kind, data).unwrap_or_default() {
            open_files(message);
            let mut bytes = 0_u64;
            let _ = memory::for_each_mapping(message, |mapping| bytes = bytes.saturating_add(mapping.len()));
        }
    }
    if let Ok(pages) = memory::Pages::read(data) {
        for address in [0, 4096, 1 << 47, u64::MAX] {
            if let Some((at, left)) = pages.find(address, 4096) {
                assert!(left > 0 && at.checked_add(left).is_some());
            }
        }
    }
    drop(image::messages::<image::Inventory>(image::Kind::Inventory, data));
    drop(image::messages::<image::Process>(image::Kind::Pstree, data));
    drop(image::messages::<image::Core>(image::Kind::Core, data));
    drop(image::messages::<image::Stats>(image::Kind::Stats, data));
    drop(proto::decode::<rpc::Response>(data));
    drop(proto::decode::<rpc::Notify>(data));
}

/// Headers and notes of ELF files.
pub fn elf(data: &[u8]) {
    let _ = (elf::class(data), elf::many(data));
    if let Ok(head) = elf::Head::parse(data) {
        let at = usize::try_from(head.programs_at).unwrap_or(usize::MAX);
        for bytes in data.get(at..).unwrap_or_default().chunks(elf::PROGRAM) {
            let _ = elf::Program::parse(bytes).map(|program| program.objection(data.len() as u64));
        }
    }
    // Each note takes twelve bytes at least.
    assert!(elf::notes(data).count() <= data.len() / 12 + 1);
}

/// Texts of procfs.
pub fn procfs(data: &[u8]) {
    let maps = procfs::map::maps(data);
    assert!(maps.iter().all(|map| !map.is_empty()));
    let mut pieces = procfs::map::Maps::default();
    data.chunks(3).for_each(|piece| pieces.push(piece));
    assert_eq!(pieces.finish(), maps);
    drop(procfs::process::Status::parse(data));
    let _ = procfs::process::Stat::parse(data);
    let _ = (procfs::process::Descriptor::parse(data), procfs::process::pointers(data));
    for table in procfs::net::TABLES {
        assert!(procfs::net::sockets(table, data).iter().all(|socket| socket.local.to_bytes().is_some()));
    }
    drop((procfs::net::routes(data), procfs::net::routes6(data), procfs::net::neighbours(data)));
    drop((procfs::net::addresses(data), procfs::net::addresses6(data), procfs::net::interfaces(data)));
}

/// What is open, in whatever message.
fn open_files(message: &[u8]) {
    if let Ok(file) = proto::decode::<files::File>(message) {
        let _ = (files::kind_name(file.kind), file.unix.map(|unix| unix.local()));
        let _ = file.inet.map(|inet| (inet.protocol_name(), inet.local(), inet.remote()));
    }
    let _ = proto::decode::<files::Descriptor>(message);
    let _ = proto::decode::<memory::Mm>(message);
}

/// Documents of OCI images and runtimes.
pub fn oci(data: &[u8]) {
    let host = oci::image::Platform::local();
    if let Ok(index) = serde_json::from_slice::<oci::image::Index>(data) {
        for entry in index.local(&host) {
            let _ = (entry.seal(), entry.name(), entry.is_index(), entry.is_manifest());
        }
    }
    drop(serde_json::from_slice::<oci::image::Manifest>(data));
    drop(serde_json::from_slice::<oci::image::Config>(data));
    drop(serde_json::from_slice::<oci::account::Account>(data));
    drop(serde_json::from_slice::<oci::raw::Processes>(data));
    drop(serde_json::from_slice::<oci::volatile::Volatile>(data));
    if let Ok(spec) = serde_json::from_slice::<oci::runtime::Spec>(data) {
        for mount in &spec.mounts {
            let _ = (mount.is_bind(), mount.is_recursive(), mount.is_tmpfs());
        }
    }
}

/// Mappings of owners.
pub fn idmap(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(ranges) = text.parse::<Ranges>() else { return };
    for id in [0, 1, 65_535, u32::MAX] {
        ranges.to_container(id);
    }
    let map = IdMap { uids: ranges.clone(), gids: ranges };
    for name in [&b"security.capability"[..], b"system.posix_acl_access"] {
        map.xattr(name, data.to_vec());
    }
}

/// Records of a tar's extended header: what is written has the length it says.
pub fn pax(data: &[u8]) {
    let (key, value) = data.split_at(data.len() / 3);
    let mut out = Vec::new();
    pax::record(&mut out, key, value);
    let digits = out.iter().take_while(|b| b.is_ascii_digit()).count();
    let length: usize = String::from_utf8_lossy(&out[..digits]).parse().unwrap_or_default();
    assert_eq!(length, out.len());
    assert_eq!((data.len() + pax::padding(data.len() as u64)) % 512, 0);
}

/// Protobuf messages of containerd's records; what is read can be written.
pub fn proto(data: &[u8]) {
    if let Ok(any) = proto::decode::<proto::Any>(data) {
        assert_eq!(proto::decode::<proto::Any>(&any.encode_to_vec()).ok(), Some(any));
    }
    drop(proto::decode::<proto::RuncOptions>(data));
    drop(proto::decode::<proto::CheckpointOptions>(data));
}

/// Values of containerd's records.
pub fn record(data: &[u8]) {
    let _ = record::time(data);
    let _ = record::varint(data);
    let _ = record::uvarint(data);
}
