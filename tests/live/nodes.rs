//! Nodes as they are set up: stores where real configurations put them, and pods.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    harness::{Cgroup, Containerd, Lab, dewar_json, dewar_ok},
    pod::{self, Pod},
};

const LOOP: &str = "while :; do sleep 1; done";

/// Each release is given a configuration of its own version, with imports; where it then keeps things, `dewar` finds them.
#[test]
fn a_store_is_where_containerd_was_told_to_keep_it() {
    let overlay = "[plugins.'io.containerd.snapshotter.v1.overlayfs']\n  root_path = '/var/lib/fast'\n";
    for (containerd, version, section) in [
        // Short names, and no version: only 1.6 still takes it.
        (Containerd::V1_6, "", "[plugins.overlayfs]\n  root_path = '/var/lib/fast'\n"),
        (Containerd::V1_6, "version = 2\n", overlay),
        (Containerd::V1_7, "version = 2\n", overlay),
        (Containerd::V2_1, "version = 2\n", overlay),
        (Containerd::V2_1, "version = 3\n", overlay),
    ] {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        // 1.6 looks for a relative pattern in its working directory.
        let pattern = if containerd == Containerd::V1_6 { "/etc/containerd/conf.d/*.toml" } else { "conf.d/*.toml" };
        lab.sh(&format!(
            "mkdir -p /etc/containerd/conf.d; cd /etc/containerd
            printf \"{version}root = '/var/lib/nowhere'\\nimports = ['{pattern}', 'last.toml']\\n\" > config.toml
            printf \"{version}root = '/var/lib/elsewhere'\\n\" > conf.d/10.toml
            printf \"{version}root = '/var/lib/data'\\nstate = '/run/data'\\n\" > conf.d/20.toml
            cat > last.toml <<'END'\n{version}{section}END"
        ));
        lab.start_containerd();
        lab.import("busybox");
        lab.run("web", "busybox", &["sh", "-c", &format!("echo x > /new; {LOOP}")], &[]);
        lab.sh("test -d /var/lib/fast/snapshots -a -d /var/lib/data/io.containerd.metadata.v1.bolt");
        lab.kill_containerd();
        let rows = dewar_json(&lab, &["ls", "--json"]);
        assert_eq!(
            (&rows[0]["store"], &rows[0]["status"]),
            (&"/var/lib/data".into(), &"running".into()),
            "{version}{rows:#}"
        );
        assert!(dewar_ok(&lab, &["diff", "web"]).contains("A /new"), "{containerd:?} {version}");
        let report = dewar_json(&lab, &["checkpoint", "web", "-o", "/tmp/out", "--json"]);
        assert_eq!((&report[0]["memory"], &report[0]["findings"]), (&"dumped".into(), &json!([])), "{report:#}");
    }
}

/// The identity that `ls` tells of a container of a pod.
fn told(rows: &Value, id: &str) -> Value {
    let row = rows.as_array().expect("rows").iter().find(|row| row["id"] == id);
    row.unwrap_or_else(|| panic!("no {id} in {rows:#}"))["pod"].clone()
}

#[test]
fn pods_of_every_release_are_known_and_chosen_by_name() {
    for containerd in Containerd::ALL {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        if !pod::start_containerd(&lab) {
            return;
        }
        let shop = Pod::run(&lab, "prod", "shop", &[("app", "teapots")]);
        let first = shop.container(&lab, "web", 0, LOOP, &[]);
        pod::stop(&lab, &first);
        let web = shop.container(&lab, "web", 1, &format!("echo second > /attempt; {LOOP}"), &[]);
        let side = shop.container(&lab, "side", 0, LOOP, &[]);
        let other = Pod::run(&lab, "test", "shop", &[]);
        let others = other.container(&lab, "web", 0, LOOP, &[]);
        lab.kill_containerd();

        let rows = dewar_json(&lab, &["ls", "--pod", "--json"]);
        assert_eq!(rows.as_array().map(Vec::len), Some(6), "{rows:#}");
        let pod = json!({"namespace": "prod", "name": "shop", "uid": "uid-prod", "kind": "container", "container": "web",
            "attempt": 1, "sandbox": shop.sandbox});
        assert_eq!(told(&rows, &web), pod, "{containerd:?}");
        let sandbox = json!({"namespace": "prod", "name": "shop", "uid": "uid-prod", "kind": "sandbox", "container": "",
            "attempt": 0, "sandbox": shop.sandbox});
        assert_eq!(told(&rows, &shop.sandbox), sandbox, "{containerd:?}");
        let ids = |args: &[&str]| -> Vec<String> {
            let rows = dewar_json(&lab, &[&["ls", "--json"], args].concat());
            rows.as_array().expect("rows").iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
        };
        let mut all = vec![shop.sandbox.clone(), first.clone(), web.clone(), side.clone()];
        all.sort();
        assert_eq!(sorted(ids(&["--pod", "prod/shop"])), all);
        assert_eq!(sorted(ids(&["-l", "app=teapots"])), all, "a pod's labels count for its containers");
        assert_eq!(sorted(ids(&["-l", "app=teapots", "-l", "io.kubernetes.container.name=side"])).join(" "), side);

        // Two pods have that name; of one, the container that runs is meant.
        let twice = lab.dewar(&["diff", "shop/web"]);
        let said = String::from_utf8_lossy(&twice.stderr).into_owned();
        assert!(said.contains(&web) && said.contains(&others) && !said.contains(&first), "{said}");
        assert!(dewar_ok(&lab, &["diff", "prod/shop/web"]).contains("A /attempt"));
        assert!(dewar_ok(&lab, &["-n", "k8s.io", "diff", "prod/shop/web"]).contains("A /attempt"));
        // The whole pod, its sandbox last; what has ended and was replaced is left.
        let reports = dewar_json(&lab, &["checkpoint", "--pod", "prod/shop", "-o", "/tmp/out", "--json"]);
        let done: Vec<&str> =
            reports.as_array().expect("reports").iter().filter_map(|r| r["container"].as_str()).collect();
        let right = |id: &String| format!("k8s.io/{id}");
        assert_eq!(
            sorted(done[..2].iter().map(ToString::to_string).collect()),
            sorted(vec![right(&web), right(&side)])
        );
        assert_eq!(done[2..], [right(&shop.sandbox)]);
        assert!(reports.as_array().expect("reports").iter().all(|r| r["memory"] == "dumped"), "{reports:#}");
        dewar_ok(&lab, &["verify", "/tmp/out"]);
        let nobody = lab.dewar(&["checkpoint", "--pod", "prod/shopp", "-o", "/tmp/none"]);
        assert!(String::from_utf8_lossy(&nobody.stderr).contains("pod \"prod/shopp\" not found"));
    }
}

/// Three clients commit in turn to a living daemon's database while it is read again and again: every copy is of one commit.
///
/// `DEWAR_READS=1000 DEWAR_LIVE=1 cargo test --test live beside_a_daemon` is the long row.
#[test]
fn a_database_is_read_beside_a_daemon_at_work() {
    let reads = std::env::var("DEWAR_READS").ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(100);
    for containerd in Containerd::ALL {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        lab.start_containerd();
        lab.import("busybox");
        // `b` is named after `a`, so no commit has a `b` that is ahead, nor one that is two behind.
        let seen = lab.sh(&format!(
            r#"
            image=$(ctr images ls -q | head -n 1)
            for id in a b c d; do ctr containers create "$image" $id true; done
            ctr containers label a nerdctl/name=0 > /dev/null; ctr containers label b nerdctl/name=0 > /dev/null
            name() {{ ctr containers label $1 nerdctl/name=$2 > /dev/null; }}
            (n=1; while [ ! -e /tmp/stop ]; do name a $n; name b $n; n=$((n + 1)); done) &
            (n=1; while [ ! -e /tmp/stop ]; do name c $n; n=$((n + 1)); done) &
            (n=1; while [ ! -e /tmp/stop ]; do
                ctr containers create "$image" x$n true; ctr containers rm x$n; n=$((n + 1))
            done) &
            for i in $(seq {reads}); do
                dewar ls --daemon-running --json || {{ echo "read $i failed" >&2; touch /tmp/stop; exit 1; }}
            done | jq -c 'map({{(.id): .name}}) | add'
            touch /tmp/stop
            wait
            "#
        ));
        let names: Vec<[i64; 2]> = seen
            .lines()
            .map(|line| {
                let row: Value = serde_json::from_str(line).expect("a line of jq");
                ["a", "b"].map(|id| row[id].as_str().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}")))
            })
            .collect();
        assert_eq!(names.len(), reads);
        assert!(names.iter().all(|[a, b]| (0..=1).contains(&(a - b))), "{names:?}");
        assert!(names.is_sorted(), "{names:?}");
        let commits: BTreeSet<_> = names.iter().collect();
        assert!(commits.len() > 3, "the daemon was not at work: {names:?}");
        eprintln!("{containerd:?}: {reads} reads, {} states seen", commits.len());
    }
}

fn sorted(mut all: Vec<String>) -> Vec<String> {
    all.sort();
    all
}
