//! A layout survives: runs killed at any instant, two runs at once, other programs' entries, wrong directories.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Ran, Sandbox, contents, index, json};

/// The upperdir of the store fixture's container `web`.
pub fn upper(sandbox: &Sandbox) -> std::path::PathBuf {
    let right = crate::harness::expected("store/expected.json");
    let web = right["containers"].as_array().unwrap().iter().find(|c| c["id"] == "web").unwrap();
    sandbox.root().join(web["upper"].as_str().unwrap())
}

/// Files that no compression makes small, so that writing takes a while.
fn fill(dir: &Path, files: u32, size: usize) {
    let mut state = 1_u64;
    for i in 0..files {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        fs::write(dir.join(format!("noise{i}")), (0..size).map(|_| next()).collect::<Vec<_>>()).unwrap();
    }
}

fn staging(layout: &Path) -> usize {
    let is_ours = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with(".dewar-");
    fs::read_dir(layout).unwrap().filter(|e| is_ours(e.as_ref().unwrap())).count()
}

fn start(sandbox: &Sandbox, reference: &str) -> Child {
    let args = ["checkpoint", "web", "-o", "out", "--compression", "none", "--ref", reference];
    sandbox.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_run_killed_at_any_instant_leaves_the_layout_as_it_was() {
    let sandbox = Sandbox::store();
    let layout = sandbox.path("out");
    sandbox.dewar(&["checkpoint", "worker", "-o", "out", "--ref", "localhost/first:1"]).exits(0);
    fill(&upper(&sandbox), 4, 1 << 20);
    let started = Instant::now();
    assert!(start(&sandbox, "localhost/measure:1").wait().unwrap().success());
    let mut whole = started.elapsed();

    let (mut killed, mut staged) = (0, 0);
    for i in 0..30_u32 {
        // Spread over the run, and denser where it ends: there it commits.
        let share = f64::from(i % 15) / 15.0;
        let share = if i < 15 { share } else { 0.7 + 0.35 * share };
        // Each run finds other files than the last, so that there is always something to bring in.
        fs::write(upper(&sandbox).join("noise0"), format!("{i}").repeat(300_000)).unwrap();
        let before = index(&layout);
        let mut run = start(&sandbox, &format!("localhost/run{i}:1"));
        // How long a run takes changes with what else the machine does, so the measure is taken again and again.
        let (started, end) = (Instant::now(), whole.mul_f64(share));
        while started.elapsed() < end && run.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        let ended = run.try_wait().unwrap().is_some();
        whole = if ended { started.elapsed() } else { whole.mul_f64(1.02) };
        run.kill().unwrap();
        killed += usize::from(!run.wait().unwrap().success());
        staged += staging(&layout);
        let after = index(&layout);
        let count = |index: &Value| index["manifests"].as_array().unwrap().len();
        assert!(after == before || count(&after) == count(&before) + 2, "{share}: a run is seen whole or not at all");
        assert!(sandbox.dewar(&["verify", "out"]).exits(0).text().starts_with("sound"), "{share}");
    }
    assert!(killed >= 10, "only {killed} of 30 were killed in time");
    assert!(staged >= 5, "only {staged} left anything behind");
    sandbox.dewar(&["checkpoint", "worker", "-o", "out", "--ref", "localhost/last:1"]).exits(0);
    assert_eq!(staging(&layout), 0, "the next run removes what killed ones left");
    unnamed(&layout);
}

/// Every blob is reachable from `index.json`.
fn unnamed(layout: &Path) {
    let all: String = walkdir::WalkDir::new(layout)
        .into_iter()
        .filter_map(|e| fs::read(e.unwrap().path()).ok())
        .filter(|bytes| bytes.starts_with(b"{"))
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .collect();
    for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let name = blob.unwrap().file_name().into_string().unwrap();
        assert!(all.contains(&name), "{name} is named by nothing");
    }
}

/// What a SIGKILL between the first blob's rename and that of `index.json` leaves, made by hand.
#[test]
fn a_commit_that_was_cut_short_is_cleared_away() {
    let sandbox = Sandbox::store();
    let layout = sandbox.path("out");
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/a:1"]).exits(0);
    let before = contents(&layout);
    let (ruin, named) = (b"a blob that no index names", index(&layout)["manifests"][0]["digest"].clone());
    let ruin_digest = dewar::digest::Digest::of(ruin);
    fs::write(layout.join("blobs/sha256").join(ruin_digest.to_hex()), ruin).unwrap();
    fs::create_dir_all(layout.join(".dewar-dead/blobs")).unwrap();
    fs::write(layout.join(".dewar-dead/landing"), format!("{ruin_digest}\n{}\nnonsense\n", named.as_str().unwrap()))
        .unwrap();
    fs::write(layout.join(".dewar-index"), "half an index").unwrap();
    // While a run is busy nothing is touched: it may rely on what the killed one brought in.
    let busy = dewar::layout::Layout::open(&layout).unwrap().stage().unwrap();
    drop(busy);
    let now: Vec<_> = contents(&layout);
    assert_eq!(now, before, "the ruin is gone, and what the index names is not");
}

#[test]
fn a_busy_run_is_left_alone() {
    let sandbox = Sandbox::store();
    let layout = dewar::layout::Layout::open_or_create(&sandbox.path("out")).unwrap();
    let busy = layout.stage().unwrap();
    let blob = busy.blob_of(b"on its way").unwrap();
    fs::create_dir_all(sandbox.path("out/.dewar-dead")).unwrap();
    sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(0);
    assert!(busy.has(&blob.digest, blob.size), "another run's staging was removed");
    assert_eq!(staging(&sandbox.path("out")), 2, "with a run at work nothing is swept");
    drop(busy);
    drop(layout.stage().unwrap());
    assert_eq!(staging(&sandbox.path("out")), 0);
}

#[test]
fn runs_at_once_all_get_in() {
    let sandbox = Sandbox::store();
    let containers = ["web", "worker", "shop-7d9c/web", "web", "worker", "web"];
    let runs: Vec<_> = containers
        .iter()
        .enumerate()
        .map(|(i, container)| {
            let reference = format!("localhost/run{i}:1");
            let args = ["checkpoint", container, "-o", "out", "--ref", &reference];
            sandbox.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for run in runs {
        Ran::of(run.wait_with_output().unwrap()).exits(0);
    }
    assert_eq!(index(&sandbox.path("out"))["manifests"].as_array().unwrap().len(), 2 * containers.len() + 1);
    sandbox.dewar(&["verify", "out"]).exits(0);
    assert_eq!(staging(&sandbox.path("out")), 0);
}

#[test]
fn what_other_programs_wrote_is_kept() {
    let sandbox = Sandbox::store();
    let layout = sandbox.path("out");
    dewar::layout::Layout::open_or_create(&layout).unwrap();
    let blob = b"somebody else's";
    let digest = dewar::digest::Digest::of(blob);
    fs::write(layout.join("blobs/sha256").join(digest.to_hex()), blob).unwrap();
    let foreign = json!({
        "schemaVersion": 2,
        "artifactType": "application/x.whole",
        "manifests": [{
            "mediaType": "application/x.thing", "digest": digest.to_string(), "size": blob.len(),
            "annotations": {"org.example": "kept"}, "platform": {"architecture": "s390x", "os": "linux", "os.features": ["a"]},
            "artifactType": "application/x.artifact", "urls": ["https://example.org/"], "data": "AA==",
        }],
        "annotations": {"org.example.whole": "kept"},
        "x-unknown": {"deep": [1, 2.5, null]},
    });
    fs::write(layout.join("index.json"), foreign.to_string()).unwrap();
    sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(0);
    let mut now = index(&layout);
    let entries = now["manifests"].as_array_mut().unwrap();
    assert_eq!(entries.len(), 4);
    entries.truncate(1);
    assert_eq!(now, foreign);
    assert_eq!(fs::read(layout.join("blobs/sha256").join(digest.to_hex())).unwrap(), blob);
    sandbox.dewar(&["verify", "out"]).exits(0);
}

#[test]
fn a_name_taken_anew_replaces_the_old_entry() {
    let sandbox = Sandbox::store();
    let run = || sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/a:1"]).exits(0).text();
    let first = run();
    fs::write(upper(&sandbox).join("more"), "more").unwrap();
    let second = run();
    assert_ne!(first, second);
    let names: Vec<_> = index(&sandbox.path("out"))["manifests"].as_array().unwrap().clone();
    assert_eq!(names.len(), 3);
    assert_eq!(names[2]["digest"].as_str(), second.strip_suffix('\n'));
    sandbox.dewar(&["verify", "out"]).exits(0);
}

/// A restore looks the base image up by name: two different ones cannot be in one layout.
#[test]
fn an_image_retagged_meanwhile_is_refused() {
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(0);
    let path = sandbox.path("out/index.json");
    let text = fs::read_to_string(&path).unwrap();
    let base = json(text.as_bytes())["manifests"][1]["digest"].as_str().unwrap().to_owned();
    let other = json(text.as_bytes())["manifests"][0]["digest"].as_str().unwrap().to_owned();
    fs::write(&path, text.replace(&base, &other)).unwrap();
    let before = contents(&sandbox.path("out"));
    let ran = sandbox.dewar(&["checkpoint", "worker", "-o", "out"]).exits(2);
    assert!(ran.stderr.contains("already has an image localhost/shop:1 with another digest"), "{}", ran.stderr);
    assert_eq!(contents(&sandbox.path("out")), before);
}

#[test]
fn wrong_directories_are_refused_and_left_alone() {
    let sandbox = Sandbox::store();
    let at = |name: &str| sandbox.path(name);
    fs::create_dir(at("photos")).unwrap();
    fs::write(at("photos/cat.jpg"), "cat").unwrap();
    fs::write(at("file"), "text").unwrap();
    symlink("nowhere/at/all", at("dangling")).unwrap();
    fs::create_dir(at("newer")).unwrap();
    fs::write(at("newer/oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    fs::create_dir(at("broken")).unwrap();
    fs::write(at("broken/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(at("broken/index.json"), "{").unwrap();
    fs::create_dir(at("bare")).unwrap();
    fs::write(at("bare/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::create_dir(at("project")).unwrap();
    fs::write(at("project/index.json"), r#"["pages"]"#).unwrap();
    let names = ["photos", "file", "dangling", "newer", "broken", "bare", "project"];
    let before: Vec<_> = names.iter().map(|name| at(name).exists().then(|| contents(&at(name)))).collect();
    let said: Vec<_> = names
        .iter()
        .map(|name| sandbox.plain(&sandbox.dewar(&["checkpoint", "web", "-o", name]).exits(2).stderr))
        .collect();
    insta::assert_snapshot!(said.concat(), @r#"
    dewar: photos exists and is no OCI image layout (holds "cat.jpg" but no oci-layout); nothing was written; choose a new or empty directory, or an existing layout
    dewar: file exists and is no OCI image layout (is a file); nothing was written; choose a new or empty directory, or an existing layout
    dewar: dangling exists and is no OCI image layout (is a symbolic link to nothing); nothing was written; choose a new or empty directory, or an existing layout
    dewar: newer/oci-layout: is of a layout version other than 1.0.0, the only one there is
    dewar: broken/index.json: EOF while parsing an object at line 1 column 1
    dewar: cannot read bare/index.json: No such file or directory (os error 2)
    dewar: project/index.json: invalid type: sequence, expected struct Index at line 1 column 0
    "#);
    for (name, then) in names.iter().zip(before) {
        assert_eq!(at(name).exists().then(|| contents(&at(name))), then, "{name}");
    }
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "no/such/x.tar"]).exits(2);
    assert!(ran.stderr.contains("cannot write into no/such: No such file"), "{}", ran.stderr);
    // A new folder's parents are made; an empty one is taken.
    fs::create_dir(at("empty")).unwrap();
    for good in ["empty", "new/deep/folder"] {
        sandbox.dewar(&["checkpoint", "web", "-o", good]).exits(0);
        sandbox.dewar(&["verify", good]).exits(0);
    }
}

#[test]
fn a_run_waits_no_longer_than_the_other_commits() {
    let sandbox = Sandbox::store();
    let layout = dewar::layout::Layout::open_or_create(&sandbox.path("out")).unwrap();
    let _busy = layout.stage().unwrap();
    let started = Instant::now();
    sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(0);
    assert!(started.elapsed() < Duration::from_secs(10), "a run at work keeps others out");
}
