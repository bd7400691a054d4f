//! Stores without a meta.db: what else is left tells the same of the containers, and hostile remains harm nobody.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use dewar::{containerd::meta::MetaDb, id::ContainerRef};
use serde_json::Value;

use crate::harness::{META_DB, Sandbox, VERSIONS, blob, document, entry, expected, index};

const TASKS: &str = "io.containerd.runtime.v2.task";
const OPTIONS: &str = "application/vnd.containerd.container.checkpoint.runtime.options+proto";
const SPEC: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn without_meta(sandbox: &Sandbox) {
    fs::remove_file(sandbox.root().join(META_DB)).unwrap();
}

/// What can be known of a container without its record.
fn known(row: &Value) -> [String; 4] {
    ["namespace", "id", "snapshotter", "status"].map(|key| row[key].as_str().unwrap().to_owned())
}

#[test]
fn the_containers_are_found_by_their_tasks_and_their_snapshots() {
    let rich = VERSIONS.iter().filter_map(|version| Sandbox::rich(version));
    for sandbox in std::iter::once(Sandbox::store()).chain(rich) {
        let rows = sandbox.dewar(&["ls", "--json"]).exits(0).json();
        let right: Vec<_> = rows.as_array().unwrap().iter().map(known).filter(|[.., sn, _]| !sn.is_empty()).collect();
        assert!(right.len() >= 3);
        without_meta(&sandbox);
        let ran = sandbox.dewar(&["ls", "--json"]).exits(1);
        assert!(ran.stderr.contains("put together from what is left: there is no "), "{}", ran.stderr);
        let rows = ran.json();
        let found: Vec<_> = rows.as_array().unwrap().iter().map(known).collect();
        assert_eq!(found, right);
        assert!(rows.as_array().unwrap().iter().all(|row| row["record"] == "salvaged"), "{rows:#}");
    }
}

/// `whois` tells of a container by its remains, and says what it goes by.
#[test]
fn whose_a_thing_is_can_be_told_without_a_database() {
    let sandbox = Sandbox::store();
    without_meta(&sandbox);
    let ran = sandbox.dewar(&["whois", "web", "--json"]).exits(0);
    assert!(ran.stderr.contains("put together from what is left: there is no "), "{}", ran.stderr);
    let found = ran.json();
    assert_eq!(found[0]["found"].as_array().map(Vec::len), Some(1), "{found:#}");
    assert!(found.to_string().contains("default/web"), "{found:#}");
    assert!(
        found.to_string().contains("none: there is no "),
        "no place is told of a record that is not there: {found:#}"
    );
}

/// An image's record that lies on a damaged page is as good as none: what the container stands on takes its place, so that
/// the bundle can be restored.
#[test]
fn an_image_record_that_cannot_be_read_costs_no_image() {
    let sandbox = Sandbox::store();
    let (path, host) = (sandbox.root().join(META_DB), sandbox.host());
    let whole = MetaDb::read(&host).unwrap();
    let web = ContainerRef { namespace: "default".parse().unwrap(), id: "web".parse().unwrap() };
    let image = whole.container(&web).unwrap().unwrap().image;
    let file = fs::read(&path).unwrap();
    let lost = (2..file.len() / 4096).find_map(|page| {
        let mut bytes = file.clone();
        bytes[page * 4096..][..4096].fill(0);
        let damaged = MetaDb::of(path.clone(), bytes.clone()).ok()?;
        let is_so = damaged.image(&web.namespace, &image).is_err() && matches!(damaged.container(&web), Ok(Some(_)));
        is_so.then_some(bytes)
    });
    fs::write(&path, lost.expect("a page with the image and without the container")).unwrap();
    let ran = sandbox.dewar(&["checkpoint", "default/web", "-o", "out", "--ref", "localhost/c:1"]).exits(1);
    assert!(ran.stderr.contains("what the container stands on takes its place"), "{}", ran.stderr);
    let entries = index(&sandbox.path("out"));
    assert!(entries.to_string().contains(&format!("\"{image}\"")), "{entries:#}");
    sandbox.dewar(&["verify", "out"]).exits(0);
}

/// The members of the checkpoint of `web` by media type, and the name of its image.
fn bundle(sandbox: &Sandbox, out: &str, exit: i32) -> (Vec<Option<Vec<u8>>>, Value, String) {
    let ran = sandbox.dewar(&["checkpoint", "default/web", "-o", out, "--ref", "localhost/c:1"]).exits(exit);
    let layout = sandbox.path(out);
    let whole = index(&layout);
    let checkpoint = document(&layout, entry(&whole, "localhost/c:1"));
    let member = |kind: &str| {
        let all = checkpoint["manifests"].as_array().unwrap();
        all.iter().find(|m| m["mediaType"] == kind).map(|m| blob(&layout, m))
    };
    let rootfs = document(&layout, entry(&whole, "localhost/c:1-rootfs"));
    let config = document(&layout, &rootfs["config"]);
    (vec![member(SPEC), member(OPTIONS), member(LAYER)], config, ran.stderr)
}

#[test]
fn the_bundle_holds_the_same_but_for_what_it_says() {
    let sandbox = Sandbox::store();
    let (members, config, _) = bundle(&sandbox, "with", 0);
    assert!(members[0].is_some() && members[2].is_some());
    without_meta(&sandbox);
    let (found, again, said) = bundle(&sandbox, "without", 1);
    assert_eq!(found, members, "spec, options and rw layer, byte for byte");
    assert_eq!(again, config, "the image's layers and the container's on top");
    for unknown in ["labels", "the name of its image"] {
        assert!(said.contains(unknown), "{said}");
    }
    // The image is the original, by its chain id, under a name of ours.
    let chain = expected("store/expected.json")["images"][0]["digest"].clone();
    let layout = sandbox.path("without");
    assert!(index(&layout)["manifests"].as_array().unwrap().iter().any(|m| m["digest"] == chain), "{chain}");
    assert!(sandbox.dewar(&["verify", "without"]).exits(0).text().starts_with("sound: "));
}

#[test]
fn without_an_image_in_the_content_store_one_is_made_of_its_snapshots() {
    let sandbox = Sandbox::store();
    without_meta(&sandbox);
    fs::remove_dir_all(sandbox.root().join("io.containerd.content.v1.content")).unwrap();
    let (found, config, said) = bundle(&sandbox, "out", 1);
    assert!(found[2].is_some() && said.contains("an image of its layers' snapshots takes its place"), "{said}");
    assert!(config["rootfs"]["diff_ids"].as_array().unwrap().len() > 1);
    let text = fs::read_to_string(sandbox.path("out/index.json")).unwrap();
    assert!(!text.contains("dewar.image.original"), "which image it was is not known, so none is named: {text}");
    assert!(sandbox.dewar(&["verify", "out"]).exits(0).text().starts_with("sound: "));
}

/// A state directory that an attacker wrote: every file in it a trap. The others are listed, at once, and nothing hangs.
#[test]
fn hostile_remains_hide_no_other_container() {
    let sandbox = Sandbox::store();
    without_meta(&sandbox);
    let tasks = sandbox.state().join(TASKS).join("default");
    let trap = |id: &str, file: &str| {
        fs::create_dir_all(tasks.join(id)).unwrap();
        tasks.join(id).join(file)
    };
    for file in ["config.json", "options.json", "init.pid", "shim-binary-path"] {
        let name = file.replace('.', "-");
        nix::unistd::mkfifo(&trap(&format!("fifo-{name}"), file), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", trap(&format!("zero-{name}"), file)).unwrap();
        fs::File::create(trap(&format!("huge-{name}"), file)).unwrap().set_len(1 << 40).unwrap();
        fs::write(trap(&format!("nonsense-{name}"), file), [0xff; 5000]).unwrap();
        fs::write(trap(&format!("deep-{name}"), file), "[".repeat(100_000)).unwrap();
        fs::create_dir_all(trap(&format!("folder-{name}"), file)).unwrap();
    }
    fs::create_dir_all(tasks.join(".half-deleted")).unwrap();
    fs::create_dir_all(tasks.join("no identifier")).unwrap();
    symlink("web", tasks.join("link")).unwrap();
    symlink("/", sandbox.state().join(TASKS).join("slash")).unwrap();
    let start = Instant::now();
    let rows = sandbox.dewar(&["ls", "--json"]).exits(1).json();
    let ids: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 3 + 24, "{ids:?}");
    assert!(ids.contains(&"web") && ids.contains(&"fifo-config-json"));
    for id in ["fifo-config-json", "zero-config-json", "huge-config-json", "deep-config-json"] {
        let ran = sandbox.dewar(&["checkpoint", id, "-o", "out"]).exits(1);
        assert!(ran.stderr.contains("its spec is not known"), "{}", ran.stderr);
    }
    assert!(start.elapsed() < Duration::from_secs(60));
}

/// A database that is nonsense, in the place of either.
#[test]
fn nonsense_in_the_place_of_a_database_is_as_good_as_none() {
    let sandbox = Sandbox::store();
    let databases =
        [META_DB, "io.containerd.snapshotter.v1.overlayfs/metadata.db"].map(|path| sandbox.root().join(path));
    fs::write(&databases[0], [0x5a; 70_000]).unwrap();
    let rows = sandbox.dewar(&["ls", "--json"]).exits(1).json();
    assert_eq!(rows.as_array().unwrap().len(), 3);
    fs::write(&databases[1], [0x5a; 70_000]).unwrap();
    // The task is left, and it has ended: what was mounted for it is no more.
    let rows = sandbox.dewar(&["ls", "--json"]).exits(1).json();
    assert!(rows.as_array().unwrap().iter().any(|row| row["id"] == "web"), "{rows:#}");
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
    assert!(
        ran.stderr.contains("metadata.db is damaged") && ran.stderr.contains("files are not in the bundle"),
        "{}",
        ran.stderr
    );
    // And where nothing at all is left, the database is what is wrong.
    let sandbox = Sandbox::meta_db(&[0x5a; 70_000]);
    assert!(sandbox.dewar(&["ls"]).exits(2).stderr.contains("meta.db is damaged"));
}

/// No record, no mount, no database: the folders of snapshots, under a name that claims nothing.
#[test]
fn a_folder_of_a_snapshot_brings_its_files_home() {
    let rich = VERSIONS.iter().filter_map(|version| Sandbox::rich(version));
    for sandbox in rich {
        let with = sandbox.dewar(&["checkpoint", "rich", "-o", "with", "--ref", "localhost/c:1"]);
        let right = layer(&sandbox, "with");
        without_meta(&sandbox);
        let dir = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs");
        fs::remove_file(dir.join("metadata.db")).unwrap();
        fs::remove_dir_all(sandbox.state().join(TASKS)).unwrap();
        let rows = sandbox.dewar(&["ls", "--json"]).exits(1).json();
        let ids: Vec<_> = rows.as_array().unwrap().iter().filter(|row| row["namespace"] == "unknown").collect();
        assert!(ids.len() > 4, "{rows:#}");
        let out = |id: &str| format!("out-{id}");
        let found = ids.iter().filter(|row| {
            let id = row["id"].as_str().unwrap();
            let ran = sandbox.dewar(&["checkpoint", id, "-o", &out(id), "--ref", "localhost/c:1"]).exits(1);
            assert!(ran.stderr.contains("whose it was is not known"), "{}", ran.stderr);
            layer(&sandbox, &out(id)) == right
        });
        assert_eq!(found.count(), 1, "one of them is the container's, to the byte ({})", with.code);
    }
}

/// The rw layer of the only checkpoint.
fn layer(sandbox: &Sandbox, out: &str) -> Vec<u8> {
    let layout = sandbox.path(out);
    let checkpoint = document(&layout, entry(&index(&layout), "localhost/c:1"));
    blob(&layout, checkpoint["manifests"].as_array().unwrap().iter().find(|m| m["mediaType"] == LAYER).unwrap())
}
