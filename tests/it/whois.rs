//! `whois`: from what is seen on a node to its container, image and layer, and back; the right answers are containerd's own.

use std::fs;

use dewar::{
    digest::Digest,
    host::Host,
    job::{
        store::Store,
        whois::{self, What},
    },
};
use serde_json::Value;

use crate::{
    fsck::Machine,
    harness::{Sandbox, VERSIONS, WORKER, expected},
};

const POD: &str = "425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972";
/// The base layer's blob, and the config of `localhost/shop:1` (`fixtures/scene.py`).
const LAYER: &str = "sha256:537c4f4c89fab8ec303b5aaa4302bd1bafda45f326985a0a019a31c8adc2fdc4";
const CONFIG: &str = "sha256:c71b791fde40a069aa296d040e112cb813882c3b58dadcf7c6e005d75540be97";

/// What is found of one thing.
#[track_caller]
fn ask(sandbox: &Sandbox, thing: &str) -> Vec<Value> {
    sandbox.dewar(&["whois", "--json", thing]).exits(0).json()[0]["found"].as_array().unwrap().clone()
}

/// The only thing it is.
#[track_caller]
fn one(sandbox: &Sandbox, thing: &str) -> Value {
    let found = ask(sandbox, thing);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].clone()
}

/// The containers that are named, and how.
fn containers(found: &Value) -> Vec<(String, String)> {
    let text = |c: &Value, key: &str| c[key].as_str().unwrap().to_owned();
    found["containers"].as_array().unwrap().iter().map(|c| (text(c, "container"), text(c, "how"))).collect()
}

fn record(version: &str, namespace: &str, id: &str) -> Value {
    let all = expected(version)["containers"].as_array().unwrap().clone();
    all.into_iter().find(|c| c["namespace"] == namespace && c["id"] == id).unwrap()
}

#[test]
fn a_container_is_shown_with_all_its_places() {
    let sandbox = Sandbox::store();
    insta::assert_snapshot!(sandbox.plain(&sandbox.dewar(&["whois", "web"]).shown()), @r#"
    exit 0
    web: container default/web, stopped
      image       localhost/shop:1
      record      TEMP/root/io.containerd.metadata.v1.bolt/meta.db: v1/default/containers/web
      files       overlayfs/5  TEMP/root/io.containerd.snapshotter.v1.overlayfs/snapshots/5/fs
      below       overlayfs/2  TEMP/root/io.containerd.snapshotter.v1.overlayfs/snapshots/2/fs  layer 2 of 2, sha256:…
      below       overlayfs/1  TEMP/root/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs  layer 1 of 2, sha256:…
      manifest    TEMP/root/io.containerd.content.v1.content/blobs/sha256/7a035e141ab487d543b869276e17ed4f8c31d9865d97f1843dd5f8da1436f970
      config      TEMP/root/io.containerd.content.v1.content/blobs/sha256/c71b791fde40a069aa296d040e112cb813882c3b58dadcf7c6e005d75540be97
      layer       TEMP/root/io.containerd.content.v1.content/blobs/sha256/537c4f4c89fab8ec303b5aaa4302bd1bafda45f326985a0a019a31c8adc2fdc4
      layer       TEMP/root/io.containerd.content.v1.content/blobs/sha256/06699e22e6369e6413b418d7133ae9834603d0e5714b1a5e895141994ac359ce
      bundle      TEMP/state/io.containerd.runtime.v2.task/default/web
      shim        no process  /run/containerd/s/2cde4450fa38c74f53603e01d2afd903b315a27a596f12a151414cd59897d883
    "#);
    let web = one(&sandbox, "default/web");
    let right = record("store/expected.json", "default", "web");
    let upper = sandbox.root().join(right["upper"].as_str().unwrap());
    assert_eq!(web["snapshots"][0]["directory"], upper.to_str().unwrap());
    assert_eq!(web["snapshots"][1]["key"], right["parent"], "the chain id below is what containerd says");
    assert_eq!(
        (web["is"].as_str(), web["task"].as_str(), web["pid"].as_i64()),
        (Some("container"), Some("stopped"), None)
    );
    assert_eq!(web["snapshots"][2]["layer"]["digest"], LAYER);
    assert_eq!(web["record"], "live");
    // By name, by the beginning of an id, as Kubernetes has it.
    for (thing, id) in [("worker", WORKER), (&WORKER[..8], WORKER), ("shop-7d9c/web", POD), (POD, POD)] {
        assert!(one(&sandbox, thing)["container"].as_str().unwrap().ends_with(id), "{thing}");
    }
}

#[test]
fn a_snapshot_is_told_by_path_number_name_and_key() {
    let sandbox = Sandbox::store();
    let right = record("store/expected.json", "default", "web");
    let upper = right["upper"].as_str().unwrap();
    let number = upper.split('/').nth_back(1).unwrap();
    let path = sandbox.root().join(upper);
    let own = [("default/web".to_owned(), "its own snapshot".to_owned())];
    let things = [
        path.display().to_string(),
        format!("{}/deep/file", path.display()),
        format!("{}/../fs/./file", path.display()),
        format!("snapshots/{number}/fs/file"),
        format!("overlayfs/{number}"),
        number.to_owned(),
    ];
    for thing in &things {
        let found = one(&sandbox, thing);
        assert_eq!((&found["is"], &found["kind"]), (&"snapshot".into(), &"active".into()), "{thing}");
        assert_eq!(found["number"].to_string(), number);
        assert_eq!(containers(&found), own, "{thing}");
        let file = if thing.ends_with("deep/file") {
            "/deep/file".into()
        } else if thing.ends_with("file") {
            "/file".into()
        } else {
            Value::Null
        };
        assert_eq!(found.get("file").unwrap_or(&Value::Null), &file, "{thing}");
    }
    // A layer: by its chain id, every container that stands on it.
    let chain = right["parent"].as_str().unwrap();
    let found = ask(&sandbox, chain);
    let snapshots: Vec<_> = found.iter().filter(|f| f["is"] == "snapshot").collect();
    assert_eq!(snapshots.len(), 2, "one a namespace");
    let all: Vec<_> = snapshots.iter().flat_map(|f| containers(f)).collect();
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|(_, how)| how == "layer 2 of 2 below it"), "{all:?}");
    let images = snapshots[0]["layer"]["images"].as_array().unwrap();
    assert!(images.contains(&"default/localhost/shop:1".into()), "{images:?}");
    insta::assert_snapshot!(sandbox.plain(&sandbox.dewar(&["whois", &things[1]]).shown()), @r#"
    exit 0
    TEMP/root/io.containerd.snapshotter.v1.overlayfs/snapshots/5/fs/deep/file: active snapshot overlayfs/5
      directory   TEMP/root/io.containerd.snapshotter.v1.overlayfs/snapshots/5/fs
      file        /deep/file
      record      default web
      container   default/web, image localhost/shop:1: its own snapshot
    "#);
}

#[test]
fn a_directory_without_a_record_is_told_as_one() {
    let sandbox = Sandbox::store();
    let dir = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots/813/fs");
    fs::create_dir_all(&dir).unwrap();
    let found = one(&sandbox, dir.to_str().unwrap());
    assert_eq!((&found["number"], &found["kind"]), (&813.into(), &Value::Null));
    assert_eq!(containers(&found), []);
}

#[test]
fn a_digest_is_told_by_what_it_is_of() {
    let sandbox = Sandbox::store();
    let users = |found: &Value| containers(found).into_iter().map(|(c, _)| c).collect::<Vec<_>>();
    let everybody = [format!("default/{WORKER}"), "default/web".into(), format!("k8s.io/{POD}")];
    let layer = one(&sandbox, LAYER);
    assert_eq!(layer["path"], sandbox.blob(LAYER).to_str().unwrap());
    assert_eq!(layer["roles"][0], "layer 1 of 2 of default/localhost/shop:1");
    assert_eq!(users(&layer), everybody);
    // By path, by hex alone, by its beginning.
    for thing in [sandbox.blob(LAYER).to_str().unwrap(), &LAYER[7..], &LAYER[..24]] {
        assert_eq!(one(&sandbox, thing), layer, "{thing}");
    }
    let config: Value = serde_json::from_slice(&fs::read(sandbox.blob(CONFIG)).unwrap()).unwrap();
    let diff_ids: Vec<&str> =
        config["rootfs"]["diff_ids"].as_array().unwrap().iter().map(|d| d.as_str().unwrap()).collect();
    let top = one(&sandbox, diff_ids[1]);
    assert!(top["roles"][0].as_str().unwrap().starts_with("diff id of layer 2 of 2 of"), "{top:#}");
    assert_eq!((top["path"].clone(), users(&top)), (Value::Null, everybody.to_vec()), "no blob has it");
    let chain = Digest::of(format!("{} {}", diff_ids[0], diff_ids[1]).as_bytes()).to_string();
    let found = ask(&sandbox, &chain);
    assert!(
        found.iter().any(|f| f["roles"][0].as_str().is_some_and(|r| r.starts_with("chain id of layers 1 to 2 of 2")))
    );
    // A config's digest is also the name that Kubernetes has for an image.
    let found = ask(&sandbox, CONFIG);
    assert!(found.iter().any(|f| f["is"] == "blob" && f["roles"][0].as_str().unwrap().starts_with("config of")));
    let image = ask(&sandbox, "localhost/shop:1");
    assert_eq!(image.iter().filter(|f| f["is"] == "image").count(), 2, "one a namespace");
    assert_eq!(image[0]["layers"][0]["digest"], LAYER);
    // Lost blobs are still known by name.
    fs::remove_file(sandbox.blob(LAYER)).unwrap();
    let lost = one(&sandbox, LAYER);
    assert_eq!((lost["path"].clone(), users(&lost)), (Value::Null, everybody.to_vec()));
}

#[test]
fn an_image_that_lost_its_record_still_has_its_containers() {
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        let found = one(&sandbox, LAYER);
        let all = containers(&found);
        let imageless = all.iter().find(|(c, _)| c == "default/imageless").unwrap();
        assert_eq!(imageless.1, "layer 1 of 1 below it", "{version}");
        // Two of the name, in two namespaces.
        assert_eq!(ask(&sandbox, "web").iter().filter(|f| f["is"] == "container").count(), 2);
        let scoped = sandbox.dewar(&["-n", "k8s.io", "whois", "--json", "web"]).exits(0).json();
        assert_eq!(scoped[0]["found"].as_array().unwrap().len(), 1);
        // A number that two snapshotters have.
        let found = ask(&sandbox, "1");
        let kinds: Vec<_> = found.iter().filter(|f| f["is"] == "snapshot").map(|f| f["snapshotter"].clone()).collect();
        assert_eq!(kinds, ["native", "overlayfs"], "{version}");
        let flat = record(&format!("containerd/{version}.expected.json"), "default", "flat");
        let own = ask(&sandbox, "flat");
        assert_eq!(own[0]["snapshots"][1]["key"], flat["parent"]);
    }
}

#[test]
fn what_nobody_knows_is_said_and_hides_nothing() {
    let sandbox = Sandbox::store();
    let ran = sandbox.dewar(&["whois", "nobody", "default/web", "/etc/passwd", "sha256:00", ""]).exits(1);
    assert!(ran.text().contains("container default/web"), "{}", ran.text());
    for thing in ["nobody", "/etc/passwd", "sha256:00"] {
        assert!(ran.stderr.contains(&format!("nothing is known of {thing}\n")), "{}", ran.stderr);
    }
    assert!(Sandbox::empty().dewar(&["whois", "web"]).exits(2).stderr.contains("--root"));
    sandbox.dewar(&["whois"]).exits(2);
}

/// What a machine of our own says of a thing: kind, and each container with how.
fn live(machine: &Machine, host: &Host, thing: &str) -> Vec<String> {
    let store = [Store::open(host.clone()).unwrap()];
    let answers =
        whois::whois(&store, None, &[thing.replace("TEMP", machine.sandbox.path("").to_str().unwrap())]).unwrap();
    let tell = |what: &What| match what {
        What::Process(p) => format!("process of {}: {}", p.container.container, p.container.how),
        What::Place(p) => format!("{} of {}", p.place, p.containers.iter().map(|c| &*c.container).collect::<String>()),
        What::Container(p) => {
            format!("container {} {:?} {:?}", p.container, p.pids, p.shim.as_ref().and_then(|s| s.pid))
        }
        other => serde_json::to_value(other).unwrap()["is"].as_str().unwrap().to_owned(),
    };
    answers[0].found.iter().map(|found| tell(&found.what)).collect()
}

#[test]
fn a_process_is_told_by_cgroup_ancestors_and_namespace() {
    let machine = Machine::new();
    machine.task("web", 77);
    machine.write("cgroup/default/web/cgroup.procs", "77\n91\n");
    machine.write("cgroup/default/web/below/cgroup.procs", "92\n");
    machine.process(
        50,
        1,
        "/usr/bin/containerd-shim-runc-v2 -namespace default -id web -address /run/c.sock",
        "/system.slice",
    );
    machine.process(91, 50, "/bin/sh", "/default/web");
    machine.process(92, 91, "sleep 1", "/default/web/below");
    machine.process(93, 92, "moved out", "/elsewhere");
    machine.process(94, 1, "stranger", "/elsewhere");
    machine.process(95, 1, "likewise", "/default/web2");
    machine.process(96, 1, "pod", &format!("/kubepods.slice/cri-containerd-{POD}.scope"));
    machine.process(97, 77, "grandchild", "/elsewhere");
    machine.process(98, 1, "same namespace", "/elsewhere");
    for (pid, namespace) in [("self", "1"), ("77", "2"), ("98", "2"), ("94", "1")] {
        fs::create_dir_all(machine.sandbox.path(&format!("proc/{pid}/ns"))).unwrap();
        let link = machine.sandbox.path(&format!("proc/{pid}/ns/pid"));
        std::os::unix::fs::symlink(format!("pid:[{namespace}]"), link).unwrap();
    }
    let pod = format!("process of k8s.io/{POD}: in its cgroup");
    let web = "process of default/web";
    for (thing, right) in [
        ("77", format!("{web}: its first process")),
        ("91", format!("{web}: in its cgroup")),
        ("92", format!("{web}: in its cgroup")),
        ("97", format!("{web}: below its first process 77")),
        ("98", format!("{web}: in its pid namespace")),
        ("50", format!("{web}: its shim")),
        ("96", pod.clone()),
        ("TEMP/proc/92/root/etc", format!("{web}: in its cgroup")),
        ("TEMP/cgroup/default/web/below", "cgroup of default/web".into()),
        ("/default/web", "cgroup of default/web".into()),
        ("TEMP/state/io.containerd.runtime.v2.task/default/web/rootfs/x", "bundle of default/web".into()),
        ("TEMP/runc/default/web/state.json", "runtime state of default/web".into()),
        ("web", "container default/web [77, 91, 92] Some(50)".into()),
    ] {
        assert_eq!(live(&machine, &machine.host, thing), [right], "{thing}");
    }
    for nobody in ["94", "95", "93", "4711", "-1", "0", "/elsewhere", "/", "TEMP/proc", "TEMP/cgroup"] {
        assert_eq!(live(&machine, &machine.host, nobody), [""; 0], "{nobody}");
    }
    // Another machine's file system: no process here is of it.
    let other = Host { sysroot: Some(machine.sandbox.path("")), ..machine.host.clone() };
    assert_eq!(live(&machine, &other, "77"), [""; 0]);
    assert_eq!(live(&machine, &other, "/root/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/bin"), ["snapshot"]);
}

#[test]
fn a_mount_point_tells_its_snapshot() {
    let machine = Machine::new();
    let upper = machine.sandbox.root().join(record("store/expected.json", "default", "web")["upper"].as_str().unwrap());
    let line =
        format!("40 1 0:50 / /mnt/x rw - overlay overlay rw,lowerdir=/a:/b,upperdir={},workdir=/w\n", upper.display());
    machine.write("proc/self/mountinfo", &format!("20 1 8:1 / / rw - ext4 /dev/sda rw\n{line}"));
    assert_eq!(live(&machine, &machine.host, "/mnt/x/etc/passwd"), ["snapshot"]);
    assert_eq!(live(&machine, &machine.host, "/mnt/y"), [""; 0]);
}
