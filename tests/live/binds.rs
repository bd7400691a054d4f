//! What is mounted into a container: bind mounts, tmpfs and the log, of live containers and stopped ones, whatever has
//! become of their sources and whatever lies over them. What comes out of the tars is judged by GNU tar.

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, FrozenState, Lab, dewar_json, dewar_ok, until};
use crate::pod;

/// A lab with busybox imported and containerd running.
fn lab(containerd: Containerd) -> Option<Lab> {
    let lab = Lab::start(containerd, Cgroup::V1)?;
    lab.start_containerd();
    lab.import("busybox");
    Some(lab)
}

/// The `ctr run` flags of mounts, each `source:destination` of a bind mount or one that says its type itself.
fn mounts(all: &[&str]) -> Vec<String> {
    let flag = |mount: &&str| match mount.split_once(':') {
        Some((from, to)) => format!("type=bind,src={from},dst={to},options=rbind:rw"),
        None => format!("type=tmpfs,src=tmpfs,dst={mount},options=rw"),
    };
    all.iter().flat_map(|mount| ["--mount".to_owned(), flag(mount)]).collect()
}

/// Runs a shell script in busybox as container `id`, and waits until it has said that it is ready.
fn run(lab: &Lab, id: &str, script: &str, flags: &[String]) {
    // A sleep ends when it is restored: CRIU turns its interrupted call into EINTR.
    let script = format!("{script}; touch /ready; while :; do sleep 1; done");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    lab.run(id, "busybox", &["sh", "-c", &script], &flags);
    until("it is ready", || lab.inside(id, &["/bin/ls", "/ready"]).status.success());
}

/// The one report of a run that found nothing worse than findings.
#[track_caller]
fn report(lab: &Lab, id: &str, more: &[&str]) -> Value {
    let output = lab.dewar(&[&["checkpoint", id, "-o", "/tmp/layout", "--json"], more].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{stderr}");
    let all: Value = serde_json::from_slice(&output.stdout).expect("--json prints JSON");
    assert!(dewar_ok(lab, &["verify", "/tmp/layout"]).starts_with("sound"));
    all[0].clone()
}

fn texts<'r>(report: &'r Value, key: &str) -> Vec<&'r str> {
    report[key].as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}

fn reference(report: &Value) -> &str {
    report["ref"].as_str().expect("a report has a ref")
}

/// Unpacks all mounts of a checkpoint into folders below `/tmp/out` and yields type and destination of each, in order.
fn unpack(lab: &Lab, report: &Value) -> Vec<String> {
    let shown = dewar_json(lab, &["inspect", "/tmp/layout", reference(report), "--json"]);
    let members = shown[0]["members"].as_array().expect("members").clone();
    let mounts = members.iter().filter(|m| m["destination"].is_string());
    lab.sh("rm -rf /tmp/out");
    mounts
        .map(|m| {
            let (kind, destination) = (m["type"].as_str().expect("a type"), m["destination"].as_str().expect("a text"));
            let blob = m["digest"].as_str().expect("a digest").replace(':', "/");
            let to = format!("/tmp/out/{destination}");
            lab.sh(&format!(
                "mkdir -p {to}; tar -C {to} --xattrs --xattrs-include='*' --acls -xpf /tmp/layout/blobs/{blob}"
            ));
            format!("{kind} {destination}")
        })
        .collect()
}

/// Each `word: path` must be a file below `/tmp/out` that holds the word.
#[track_caller]
fn assert_holds(lab: &Lab, all: &[(&str, &str)]) {
    for (path, text) in all {
        assert_eq!(lab.sh(&format!("cat /tmp/out/{path}")), format!("{text}\n"), "{path}");
    }
}

/// Everything of a mount but what it is called: as GNU tar unpacked it, and as it is at its source.
fn listing(lab: &Lab, dir: &str) -> String {
    lab.sh(&format!(
        "cd {dir}; find . -printf '%p %y %m %U %G %s %T@ %l %n\\n' | sort; \
         find . -type f -exec sha256sum {{}} + | sort; getfattr -Rdhm - . 2>/dev/null || true"
    ))
}

#[test]
fn what_a_live_container_has_mounted_is_taken_whatever_became_of_the_source() {
    let Some(lab) = lab(Containerd::V2_1) else { return };
    lab.sh("cd /srv; for d in data sub over moved file; do mkdir $d; echo $d > $d/f; done; echo conf > conf; echo doomed > doomed
        mkdir -p data/sub; mkfifo pipe; mknod null c 1 3; echo zero > file/zero; mkdir other; mount -t tmpfs other other; echo other > other/f
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/srv/sock\")'");
    let all = [
        "/srv/data:/data",
        "/srv/sub:/data/sub",
        "/srv/conf:/etc/app.conf",
        "/srv/over:/x/../over/",
        "/srv/moved:moved",
        "/srv/doomed:/doomed",
        "/srv/pipe:/pipe",
        "/srv/null:/node",
        "/srv/sock:/sock",
        "/srv/other:/other",
        "/srv/sub:/sbin/linked",
        "/srv/data:/twice",
        "/srv/moved:/twice",
    ];
    run(&lab, "web", "true", &mounts(&all));
    lab.kill_containerd();
    lab.sh("mount -t tmpfs over /srv/over; echo wrong > /srv/over/f; mv /srv/moved /srv/was; mkdir /srv/moved; echo wrong > /srv/moved/f; rm /srv/doomed");
    // The FIFO has no writer: whoever opens it waits for ever.
    let report = report(&lab, "web", &["--binds"]);
    assert_eq!(report["memory"], "dumped", "{report}");
    assert_eq!(texts(&report, "findings"), [""; 0]);
    assert_eq!(
        texts(&report, "notes"),
        [
            "bind mount /sock is a socket, which has no content",
            "bind mount /twice is not in the bundle: the spec mounts bind mount /twice over it",
        ]
    );
    assert_eq!(lab.freezer_state("web"), FrozenState::Thawed);
    let taken = [
        "/data",
        "/data/sub",
        "/etc/app.conf",
        "/x/../over/",
        "moved",
        "/doomed",
        "/pipe",
        "/node",
        "/other",
        "/sbin/linked",
    ];
    let expected: Vec<String> = taken.iter().chain(&["/twice"]).map(|place| format!("bind {place}")).collect();
    assert_eq!(unpack(&lab, &report), expected);
    assert_holds(
        &lab,
        &[
            ("data/f", "data"),
            ("data/sub/f", "sub"),
            ("etc/app.conf/app.conf", "conf"),
            ("over/f", "over"),
            ("moved/f", "moved"),
            ("doomed/doomed", "doomed"),
            ("other/f", "other"),
            ("sbin/linked/f", "sub"),
            ("twice/f", "moved"),
        ],
    );
    assert_eq!(
        lab.sh("stat -c '%F %t %T' /tmp/out/pipe/pipe /tmp/out/node/node"),
        "fifo 0 0\ncharacter special file 1 3\n"
    );
}

/// The container, or somebody in it, has mounted over what the spec mounted, or unmounted it.
#[test]
fn what_lies_over_a_mount_is_not_taken_for_it() {
    for containerd in [Containerd::V1_7, Containerd::V2_1] {
        let Some(lab) = lab(containerd) else { return };
        lab.sh("cd /srv; for d in covered under gone again lost; do mkdir $d; echo $d > $d/f; done; mkdir lost/deep; echo lost > lost/deep/f; \
            mkdir mem; mount -t tmpfs mem mem; echo mem > mem/f");
        let all = [
            "/srv/covered:/covered",
            "/srv/under:/up/under",
            "/srv/gone:/gone",
            "/srv/again:/again",
            "/srv/mem:/mem",
            "/scratch",
        ];
        run(&lab, "web", "echo true > /scratch/f", &mounts(&all));
        lab.kill_containerd();
        // The source moves, so that no path of the spec leads to it; another file system is covered and gone from the host.
        lab.sh("mv /srv/covered /srv/elsewhere; umount -l /srv/mem");
        lab.ask(
            "web",
            &["/bin/sh", "-c", "for d in /covered /up /mem /scratch; do mount -t tmpfs wrong $d; echo wrong > $d/f; done; umount -l /gone; mount --bind /again /again"],
        );
        let report = report(&lab, "web", &["--binds", "--task", "never"]);
        let over = "lies over it in the container";
        assert_eq!(
            texts(&report, "findings"),
            [
                format!("bind mount /covered: another mount (tmpfs at /covered) {over}; stored is what is below"),
                format!("bind mount /up/under: another mount (tmpfs at /up) {over}; stored is what is below"),
                "bind mount /gone: it is not mounted at its place in the container any more; stored is its source /srv/gone as it is now".into(),
                format!("bind mount /mem is not in the bundle: another mount (tmpfs at /mem) {over}, and no path of the host leads below"),
                format!("tmpfs /scratch is not in the bundle: another mount (tmpfs at /scratch) {over}, and no path of the host leads below"),
            ]
        );
        unpack(&lab, &report);
        assert_holds(
            &lab,
            &[("covered/f", "covered"), ("up/under/f", "under"), ("gone/f", "gone"), ("again/f", "again")],
        );
    }
}

#[test]
fn what_is_mounted_inside_a_mount_is_named_once_unless_the_spec_names_it() {
    let Some(lab) = lab(Containerd::V2_1) else { return };
    lab.sh("mkdir -p /srv/all/named /srv/all/unnamed /srv/all/proc /srv/host; for d in named unnamed; do mount -t tmpfs $d /srv/all/$d; echo $d > /srv/all/$d/f; done; \
        mount -t proc proc /srv/all/proc; echo all > /srv/all/f");
    let all = ["/srv/all:/all", "/srv/all/named:/all/named", "/proc:/host/proc"];
    run(&lab, "web", "true", &mounts(&all));
    lab.kill_containerd();
    let live = report(&lab, "web", &["--binds", "--task", "never"]);
    let findings = [
        "bind mount /all: what is mounted inside it is not in the bundle, as the spec does not name it: unnamed; copy it by hand",
        "bind mount /host/proc is not in the bundle: it is a view of the kernel (proc)",
    ];
    assert_eq!(texts(&live, "findings"), findings);
    unpack(&lab, &live);
    assert_holds(&lab, &[("all/f", "all"), ("all/named/f", "named")]);
    assert_eq!(
        lab.sh("ls /tmp/out/all /tmp/out/all/unnamed"),
        "/tmp/out/all:\nf\nnamed\nproc\nunnamed\n\n/tmp/out/all/unnamed:\n"
    );

    lab.sh("kill -9 $(cat /run/containerd/io.containerd.runtime.v2.task/default/web/init.pid)");
    until("it has stopped", || dewar_ok(&lab, &["ls"]).contains("stopped"));
    assert_eq!(texts(&report(&lab, "web", &["--binds"]), "findings"), findings, "stopped, it is the same on the host");
}

/// What its first process takes for the root directory is not where its mounts are.
#[test]
fn a_container_whose_first_process_has_another_root_is_seen_whole() {
    let Some(lab) = lab(Containerd::V2_1) else { return };
    lab.sh("mkdir /srv/data; echo right > /srv/data/f");
    lab.run(
        "jailed",
        "busybox",
        &["sh", "-c", "mkdir -p /jail/bin /jail/data; echo wrong > /jail/data/f; cp /bin/busybox /jail/bin; exec chroot /jail /bin/busybox sleep 1000"],
        &mounts(&["/srv/data:/data"]).iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let pid = lab.pid("jailed");
    until("it is in its jail", || lab.sh(&format!("readlink /proc/{pid}/root")).trim().ends_with("/jail"));
    lab.kill_containerd();
    // By another path the source is no help.
    lab.sh("mv /srv/data /srv/elsewhere");
    let report = report(&lab, "jailed", &["--binds", "--task", "never"]);
    assert_eq!(texts(&report, "findings"), [""; 0]);
    unpack(&lab, &report);
    assert_holds(&lab, &[("data/f", "right")]);
}

#[test]
fn a_stopped_containers_mounts_are_read_from_the_host() {
    for containerd in Containerd::ALL {
        let Some(lab) = lab(containerd) else { return };
        lab.sh("cd /srv; mkdir data gone empty; echo one > data/f; echo conf > conf; ln -s data linked; mkfifo pipe; \
            touch data/plain; ln data/plain data/twin; ln -s /etc/shadow data/away; chown 1234:4321 data/plain; chmod 4750 data/plain; \
            setfattr -n user.key -v value data/plain; touch -h -d '1969-07-20 20:17:40.123456789 UTC' data/away; \
            truncate -s 5M data/holes; echo end >> data/holes; touch data/.wh.odd; chmod 2770 data");
        let all = [
            "/srv/data:/data",
            "/srv/conf:/etc/app.conf",
            "/srv/gone:/gone",
            "/srv/linked:/linked",
            "/srv/pipe:/pipe",
            "/scratch",
        ];
        run(&lab, "web", "echo lost > /scratch/f", &mounts(&all));
        lab.sh("ctr task kill -s KILL web");
        lab.kill_containerd();
        lab.sh("rm -r /srv/gone");
        let report = report(&lab, "web", &["--binds"]);
        assert_eq!(
            texts(&report, "findings"),
            ["bind mount /gone is not in the bundle: its source /srv/gone is gone; if it was moved, copy it by hand"]
        );
        assert_eq!(texts(&report, "notes"), [""; 0], "a tmpfs went with its container");
        assert_eq!(unpack(&lab, &report), ["bind /data", "bind /etc/app.conf", "bind /linked", "bind /pipe"]);
        assert_holds(&lab, &[("data/f", "one"), ("etc/app.conf/app.conf", "conf"), ("linked/f", "one")]);
        assert_eq!(listing(&lab, "/tmp/out/data"), listing(&lab, "/srv/data"));
    }
}

#[test]
fn a_tmpfs_comes_back_with_the_dump_and_is_captured_without_one() {
    for (containerd, cgroup) in [(Containerd::V1_6, Cgroup::V1), (Containerd::V2_1, Cgroup::V2)] {
        let Some(lab) = Lab::start(containerd, cgroup) else { return };
        lab.start_containerd();
        lab.import("busybox");
        let fill = "echo scratch > /scratch/f; echo shm > /dev/shm/f; mkdir /run/app; echo 7 > /run/app/pid; chown 12:34 /run/app";
        lab.sh("mkdir -p /srv/data/sub /srv/sub; echo data > /srv/data/f; echo sub > /srv/sub/f");
        run(&lab, "web", fill, &mounts(&["/scratch", "/srv/data:/data", "/srv/sub:/data/sub"]));
        lab.kill_containerd();

        // Without a dump and without the flag it is told; what is empty is not.
        let without = report(&lab, "web", &["--task", "never"]);
        assert_eq!(
            texts(&without, "notes"),
            ["without its memory, what is in /dev/shm, /run, /scratch is not in the bundle; --binds takes it along"]
        );
        assert_eq!(unpack(&lab, &without), [""; 0]);

        for criu in [&["--task", "never"][..], &["--criu", "/nonexistent/criu"]] {
            let captured = report(&lab, "web", &[&["--binds"], criu].concat());
            assert_eq!(
                unpack(&lab, &captured),
                ["tmpfs /dev/shm", "tmpfs /run", "tmpfs /scratch", "bind /data", "bind /data/sub"]
            );
            assert_holds(&lab, &[("scratch/f", "scratch"), ("dev/shm/f", "shm"), ("run/app/pid", "7")]);
            assert_eq!(lab.sh("stat -c '%u %g' /tmp/out/run/app; stat -c %a /tmp/out/dev/shm"), "12 34\n1777\n");
        }
        let told = dewar_ok(&lab, &["inspect", "/tmp/layout"]);
        assert!(told.contains("tmpfs        /dev/shm ("), "{told}");

        // Something of a program's own in /dev: then that is taken too, without a word about the devices.
        lab.ask("web", &["/bin/sh", "-c", "echo own > /dev/own"]);
        let dev = report(&lab, "web", &["--binds", "--task", "never"]);
        assert_eq!(texts(&dev, "findings"), [""; 0]);
        let before = unpack(&lab, &dev);
        assert_eq!(before[0], "tmpfs /dev");
        assert_holds(&lab, &[("dev/own", "own")]);

        let dumped = report(&lab, "web", &["--binds"]);
        assert_eq!((dumped["memory"].as_str(), texts(&dumped, "notes")), (Some("dumped"), Vec::new()), "{dumped}");
        assert_eq!(unpack(&lab, &dumped), ["bind /data", "bind /data/sub"], "the others are in CRIU's images");
        lab.lose_node();
        lab.start_containerd();
        lab.import_layout("/tmp/layout");
        lab.restore("web", reference(&dumped));
        let back = lab.ask("web", &["/bin/cat", "/scratch/f", "/dev/shm/f", "/run/app/pid", "/dev/own"]);
        assert_eq!(back, "scratch\nshm\n7\nown\n");

        // CRIU has mounted everything anew, in an order of its own.
        lab.kill_containerd();
        let again = report(&lab, "web", &["--binds", "--task", "never"]);
        assert_eq!(texts(&again, "findings"), [""; 0]);
        assert_eq!(unpack(&lab, &again), before);
        assert_holds(&lab, &[("data/f", "data"), ("data/sub/f", "sub"), ("scratch/f", "scratch"), ("dev/own", "own")]);
    }
}

/// The log is the real shim's; the label is where nerdctl says so.
#[test]
fn the_log_goes_along_as_long_as_it_was_when_the_container_stood_still() {
    for containerd in Containerd::ALL {
        let Some(lab) = lab(containerd) else { return };
        lab.sh("mkdir -p /var/log/web");
        let file = "file:///var/log/web/0.log";
        let label = format!("nerdctl/log-uri={file}");
        let say = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done";
        lab.run("web", "busybox", &["sh", "-c", say], &["--log-uri", file, "--label", &label]);
        until("it has spoken", || lab.try_sh("grep -q 'line 20' /var/log/web/0.log").status.success());
        lab.kill_containerd();
        lab.sh("echo old > /var/log/web/0.log.20231114-221320; gzip -c /var/log/web/0.log > /var/log/web/0.log.20231114-221321.gz; \
            ln -s /etc/shadow /var/log/web/0.log.1; echo another > /var/log/web/1.log");
        let told = report(&lab, "web", &["--task", "never"]);
        assert_eq!((texts(&told, "findings"), texts(&told, "notes")), (Vec::new(), Vec::new()));
        assert_eq!(unpack(&lab, &told), ["log /var/log/web/0.log"]);
        assert_eq!(lab.sh("ls /tmp/out/var/log/web/0.log"), "0.log\n0.log.20231114-221320\n0.log.20231114-221321.gz\n");
        let lines = lab.sh("cat /tmp/out/var/log/web/0.log/0.log");
        let right: String = (1..=lines.lines().count()).map(|i| format!("line {i}\n")).collect();
        assert_eq!(lines, right);
        assert!(lines.lines().count() >= 20);
        assert!(dewar_ok(&lab, &["inspect", "/tmp/layout"]).contains("log          /var/log/web/0.log ("));

        lab.sh("rm /var/log/web/0.log");
        let missing = report(&lab, "web", &["--task", "never"]);
        assert_eq!(
            texts(&missing, "notes"),
            ["the container's log is not in the bundle: /var/log/web/0.log: No such file or directory (os error 2)"]
        );
        assert_eq!(texts(&missing, "findings"), [""; 0]);
    }
}

/// The bundle is written into a directory that the container has mounted: it does not hold itself.
#[test]
fn a_mount_that_holds_the_layout_does_not_swallow_it() {
    let Some(lab) = lab(Containerd::V2_1) else { return };
    lab.sh("mkdir /tmp/shared; echo mine > /tmp/shared/f");
    run(&lab, "web", "true", &mounts(&["/tmp:/host"]));
    lab.kill_containerd();
    let report = report(&lab, "web", &["--binds"]);
    assert_eq!(texts(&report, "findings"), [""; 0]);
    unpack(&lab, &report);
    assert_holds(&lab, &[("host/shared/f", "mine")]);
    assert_eq!(lab.sh("find /tmp/out/host/layout -name '*.tar' -o -name 'pages-*'"), "");
}

/// A real pod: CRI's extension names the log; `/dev/shm`, `/etc/hosts` and others are bind mounts of the sandbox.
#[test]
fn a_pods_container_brings_its_log_and_what_the_kubelet_mounted() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    if !pod::start_containerd(&lab) {
        return;
    }
    lab.sh("mkdir -p /srv/volume; echo volume > /srv/volume/f");
    let say = "echo shm > /dev/shm/f; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";
    let id = pod::run(&lab, "shop", "web", say, &[("/srv/volume", "/volume")]);
    until("it has spoken", || lab.try_sh("grep -q 'stdout F line 5' /var/log/pods/shop/web/0.log").status.success());
    lab.kill_containerd();
    lab.sh("echo old > /var/log/pods/shop/web/0.log.20231114-221320");
    let live = report(&lab, &id, &["--binds", "--task", "never"]);
    assert_eq!((texts(&live, "findings"), texts(&live, "notes")), (Vec::new(), Vec::new()));
    let taken = unpack(&lab, &live);
    for mount in ["bind /etc/hosts", "bind /dev/shm", "bind /volume", "log /var/log/pods/shop/web/0.log"] {
        assert!(taken.iter().any(|m| m == mount), "{mount} in {taken:?}");
    }
    assert_holds(&lab, &[("volume/f", "volume"), ("dev/shm/f", "shm")]);
    let log = lab.sh("cd /tmp/out/var/log/pods/shop/web/0.log; ls; grep -c 'stdout F line' 0.log; cat 0.log.2*");
    assert!(log.starts_with("0.log\n0.log.20231114-221320\n") && log.ends_with("old\n"), "{log}");
}

/// Who looks belongs to another user namespace than the mounts, and must see them all the same, owners as they are stored.
#[test]
fn a_container_in_a_user_namespace_is_seen_whole() {
    let Some(lab) = lab(Containerd::V2_1) else { return };
    lab.sh("mkdir /srv/data /srv/two; chmod 777 /srv/data; echo two > /srv/two/f");
    let mut flags = mounts(&["/srv/data:/data", "/srv/two:/two"]);
    flags.extend(["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"].map(str::to_owned));
    run(&lab, "mapped", "echo in > /data/f; echo shm > /dev/shm/f", &flags);
    lab.kill_containerd();
    lab.ask("mapped", &["/bin/mount", "-t", "tmpfs", "wrong", "/two"]);
    let report = report(&lab, "mapped", &["--binds", "--task", "never"]);
    let findings = texts(&report, "findings");
    assert!(findings.iter().any(|f| f.starts_with("bind mount /two: another mount (tmpfs at /two)")), "{findings:?}");
    assert!(!findings.iter().any(|f| f.contains("/data") || f.contains("/dev")), "{findings:?}");
    unpack(&lab, &report);
    assert_holds(&lab, &[("data/f", "in"), ("two/f", "two"), ("dev/shm/f", "shm")]);
    assert_eq!(lab.sh("stat -c %u:%g /tmp/out/data/f /tmp/out/dev/shm/f"), "100000:100000\n100000:100000\n");
}

/// The whole mount namespace got another root: nothing is where the spec says, though something may be called so.
#[test]
fn what_a_new_root_has_at_a_mounts_place_is_not_taken_for_it() {
    let Some(lab) = lab(Containerd::V2_1) else { return };
    lab.sh("mkdir /srv/data; echo right > /srv/data/f");
    let pivot = "mkdir /new; mount -t tmpfs t /new; mkdir /new/old /new/bin /new/data; cp /bin/busybox /new/bin; \
        echo wrong > /new/data/f; pivot_root /new /new/old; while :; do /bin/busybox sleep 1; done";
    let flags = mounts(&["/srv/data:/data"]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--privileged"]).collect();
    lab.run("pivoted", "busybox", &["sh", "-c", pivot], &flags);
    until("it has another root", || lab.inside("pivoted", &["/bin/busybox", "test", "-d", "/old"]).status.success());
    lab.kill_containerd();
    let report = report(&lab, "pivoted", &["--binds", "--task", "never"]);
    let findings = texts(&report, "findings");
    let said = "bind mount /data: it is not mounted at its place in the container any more; stored is its source /srv/data as it is now";
    assert!(findings.contains(&said), "{findings:?}");
    unpack(&lab, &report);
    assert_holds(&lab, &[("data/f", "right")]);
}
