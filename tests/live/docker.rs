//! Docker's containers: dockerd and containerd are killed, the container runs on, and comes home with all that it saw.

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, dewar_json, dewar_ok};

/// Counts in memory, and writes down where it is: a line each time, none of which is ever half there.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i >> /count; sleep 0.1; done";

/// An instance with dockerd, and one container of it, `web`, that counts. `None`, said aloud, where there is no dockerd.
fn start(containerd: Containerd, images: &str, own_containerd: bool) -> Option<Lab> {
    let lab = Lab::start(containerd, Cgroup::V1)?;
    if !lab.try_sh("command -v dockerd").status.success() {
        assert!(std::env::var("DEWAR_LIVE").as_deref() != Ok("1"), "DEWAR_LIVE=1, but the lab has no dockerd");
        eprintln!("live test skipped: the lab has no dockerd; tests/live/lab make");
        return None;
    }
    if !own_containerd {
        lab.start_containerd();
    }
    lab.sh(&format!(
        "docker-up {images}
        # Docker's graph drivers read another form of archive.
        skopeo --insecure-policy copy -q oci-archive:/images/busybox.tar docker-archive:/tmp/busybox.tar:localhost/busybox:lab
        docker load -qi /tmp/busybox.tar
        mkdir -p /srv/data
        docker run -d --name web --network none -l tier=front -l com.docker.compose.project=shop \
            -l com.docker.compose.service=front -v /srv/data:/data localhost/busybox:lab sh -c '{COUNTER}'
        docker exec web sh -c 'echo changed > /etc/passwd; mkdir /etc/new; echo x > /etc/new/x; rm -r /prey/delete; rm /bin/true'"
    ));
    Some(lab)
}

/// Both daemons, as a crash would. The container's processes are the shim's.
fn kill_daemons(lab: &Lab) {
    lab.sh("kill-all dockerd containerd");
}

/// The container's root as the kernel shows it: names, types, modes, owners, sizes, links.
fn merged(lab: &Lab) -> String {
    lab.sh(
        "cd \"$(findmnt -rno TARGET -t overlay | grep -E '^/var/lib/docker/' | head -1)\"
        find . -mindepth 1 ! -path ./count -printf '%p %y %m %U:%G %l ' \\( -type f -printf '%s\\n' -o -printf '\\n' \\) | sort",
    )
}

/// The same of the bundle, unpacked by umoci.
fn unpacked(lab: &Lab) -> String {
    lab.sh(
        "umoci unpack --image /tmp/out:localhost/web:1-rootfs /tmp/unpacked > /dev/null 2>&1; cd /tmp/unpacked/rootfs
        find . -mindepth 1 ! -path ./count -printf '%p %y %m %U:%G %l ' \\( -type f -printf '%s\\n' -o -printf '\\n' \\) | sort",
    )
}

#[track_caller]
fn row(lab: &Lab, args: &[&str]) -> Value {
    let rows = dewar_json(lab, &[&["ls", "--json"], args].concat());
    assert_eq!(rows.as_array().expect("rows").len(), 1, "{rows:#}");
    rows[0].clone()
}

#[test]
fn a_container_of_docker_whose_images_are_in_containerd_lives_on_elsewhere() {
    for containerd in [Containerd::V2_1, Containerd::V1_7] {
        let Some(lab) = start(containerd, "image-store", false) else { return };
        let before = merged(&lab);
        assert!(before.contains("./.dockerenv f") && before.contains("./etc/new/x f"), "{before}");
        kill_daemons(&lab);

        let row = row(&lab, &["-l", "tier=front"]);
        assert_eq!((&row["name"], &row["names"][0]), (&"web".into(), &"shop/front".into()), "{row:#}");
        assert_eq!(
            (&row["image"], &row["snapshotter"]),
            (&"localhost/busybox:lab".into(), &"overlayfs".into()),
            "{row:#}"
        );
        assert_eq!((&row["status"], &row["store"]), (&"running".into(), &"/var/lib/containerd".into()), "{row:#}");
        // What is mounted over is made anew with the container; all else that differs from the image is told.
        let changes = dewar_ok(&lab, &["diff", "/web"]);
        for line in ["A /.dockerenv", "A /etc/mtab", "A /etc/new/x", "C /etc/passwd", "D /bin/true", "D /prey/delete"] {
            assert!(changes.lines().any(|l| l == line || l.starts_with(&format!("{line} "))), "{line} in {changes}");
        }

        let report = dewar_json(
            &lab,
            &["checkpoint", "shop/front", "-o", "/tmp/out", "--ref", "localhost/web:1", "--exit", "--json"],
        );
        assert_eq!(
            (&report[0]["memory"], &report[0]["findings"]),
            (&"dumped".into(), &Value::Array(Vec::new())),
            "{report:#}"
        );
        dewar_ok(&lab, &["verify", "/tmp/out"]);
        assert_eq!(unpacked(&lab), before);
        let inspected = dewar_ok(&lab, &["inspect", "/tmp/out"]);
        assert!(inspected.lines().any(|line| line.starts_with("log ") && line.contains("-json.log")), "{inspected}");

        let count = lab.sh("tail -n 1 /tmp/unpacked/rootfs/count").trim().parse::<u64>().expect("a number");
        lab.lose_node();
        lab.start_containerd();
        lab.sh("tar -C /tmp/out -cf - . | ctr images import -");
        lab.restore("web", "localhost/web:1");
        let seen = || lab.ask("web", &["tail", "-n", "1", "/count"]).trim().parse::<u64>().unwrap_or(0);
        crate::harness::until("it counts on", || seen() > count);
        assert!(seen() < count + 1000, "it began anew");
        assert_eq!(lab.ask("web", &["cat", "/etc/passwd", "/etc/new/x"]), "changed\nx\n");
    }
}

#[test]
fn a_container_of_a_graph_driver_comes_home_from_dockers_own_containerd() {
    let Some(lab) = start(Containerd::V2_1, "graph-driver", true) else { return };
    kill_daemons(&lab);
    let row = row(&lab, &[]);
    assert_eq!(
        (&row["name"], &row["status"], &row["snapshotter"]),
        (&"web".into(), &"running".into(), &"overlay2".into())
    );
    assert_eq!(row["store"], "/var/lib/docker/containerd/daemon");
    // Another way to the same store: by its directory.
    dewar_ok(&lab, &["--root", "/var/lib/docker/containerd/daemon", "diff", "web"]);
    let changes = dewar_ok(&lab, &["diff", "web"]);
    for line in ["A /.dockerenv", "A /etc/mtab", "A /etc/new/x", "C /etc/passwd", "D /bin/true", "D /prey/delete"] {
        assert!(changes.lines().any(|l| l == line || l.starts_with(&format!("{line} "))), "{line} in {changes}");
    }
    // Files and memory come home; the image is Docker's own, and that is said.
    let ran = lab.dewar(&["checkpoint", "web", "-o", "/tmp/out", "--ref", "localhost/web:1", "--json"]);
    let report: Value = serde_json::from_slice(&ran.stdout).expect("a report");
    assert_eq!((ran.status.code(), &report[0]["memory"]), (Some(1), &"dumped".into()), "{report:#}");
    let findings = report[0]["findings"].as_array().expect("findings");
    assert!(findings.len() == 1 && findings[0].as_str().is_some_and(|f| f.contains("docker save")), "{report:#}");
    dewar_ok(&lab, &["verify", "/tmp/out"]);
}
