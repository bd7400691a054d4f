//! What a bundle's memory image tells of its processes is what procfs told while they lived.

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, dewar_json, dewar_ok, until};

/// The first process of the container's newest checkpoint.
fn first(told: &Value) -> &Value {
    &told[0]["processes"]["processes"][0]
}

/// The texts of a list, each ended by a zero, as procfs has them.
fn zeroed(list: &Value) -> String {
    list.as_array().expect("it is told").iter().map(|word| format!("{}\0", word["text"].as_str().unwrap())).collect()
}

fn files(process: &Value) -> Vec<(u64, String)> {
    let told = process["files"].as_array().expect("a list");
    let line = |file: &Value| {
        let socket = &file["socket"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let gone = if file["deleted"] == true { " (deleted)" } else { "" };
        match socket.is_null() {
            true => format!("{} {}{gone}", text(&file["kind"]), text(&file["target"]["text"])),
            false => {
                format!("{} {} {}", text(&socket["protocol"]), text(&socket["local"]["text"]), text(&socket["state"]))
            }
        }
    };
    told.iter().map(|file| (file["fd"].as_u64().unwrap(), line(file))).collect()
}

#[test]
fn processes_are_told_as_procfs_told_them() {
    for containerd in [Containerd::V1_7, Containerd::V2_1] {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        lab.start_containerd();
        lab.import("programs");
        lab.import("redis");
        let args = ["/bin/many", "established"];
        lab.run("m", "programs", &args, &["--env", "SECRET=hunter2\nwith a line", "--cwd", "/tmp"]);
        let redis = ["/usr/bin/redis-server", "--save", "", "--unixsocket", "/tmp/r.sock"];
        lab.run("redis", "redis", &redis, &[]);
        until("many answers", || lab.inside("m", &["/bin/many", "check"]).status.success());
        until("redis answers", || lab.inside("redis", &["/usr/bin/redis-cli", "ping"]).status.success());
        let of = |id: &str, name: &str| lab.sh(&format!("cat /proc/{}/{name}", lab.pid(id)));
        let (cmdline, environ) = (of("m", "cmdline"), of("m", "environ"));
        let fds = |id: &str| lab.sh(&format!("ls /proc/{}/fd | sort -n", lab.pid(id)));
        let (many_fds, redis_fds) = (fds("m"), fds("redis"));
        lab.kill_containerd();
        dewar_ok(&lab, &["checkpoint", "m", "redis", "-o", "/tmp/layout", "--tcp-established"]);
        let told = dewar_json(&lab, &["inspect", "/tmp/layout", "--env", "--json"]);

        let many = first(&told);
        assert_eq!((zeroed(&many["args"]), zeroed(&many["environment"])), (cmdline, environ), "{containerd:?}");
        assert_eq!((&many["exe"]["text"], &many["cwd"]["text"]), (&"/bin/many".into(), &"/tmp".into()));
        assert_eq!((&many["uid"], &many["state"]), (&0.into(), &"alive".into()));
        let open = files(many);
        let numbers: String = open.iter().map(|(fd, _)| format!("{fd}\n")).collect();
        assert_eq!(numbers, many_fds);
        for right in [
            "file /var/lib/many.map",
            "file /var/lib/many.unlinked (deleted)",
            "tcp 127.0.0.1:7777 LISTEN",
            "unix /run/many.sock LISTEN",
        ] {
            assert!(open.iter().any(|(_, line)| line == right), "{right}: {open:?}");
        }
        assert!(open.iter().filter(|(_, line)| line.ends_with("ESTABLISHED")).count() >= 2, "{open:?}");
        let child = &told[0]["processes"]["processes"][1];
        assert_eq!((&child["ppid"], zeroed(&child["args"])), (&1.into(), zeroed(&many["args"])));
        let kinds: Vec<_> =
            many["memory"].as_array().unwrap().iter().map(|sum| sum["kind"].as_str().unwrap()).collect();
        for kind in ["heap", "stack", "anonymous", "private file", "shared file"] {
            assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
        }

        let redis = &told[1]["processes"]["processes"][0];
        assert!(zeroed(&redis["args"]).starts_with("/usr/bin/redis-server *:6379\0"), "it renames itself");
        let open = files(redis);
        let numbers: String = open.iter().map(|(fd, _)| format!("{fd}\n")).collect();
        assert_eq!(numbers, redis_fds);
        for right in ["tcp 0.0.0.0:6379 LISTEN", "tcp6 [::]:6379 LISTEN", "unix /tmp/r.sock LISTEN"] {
            assert!(open.iter().any(|(_, line)| line == right), "{right}: {open:?}");
        }

        let shown = dewar_ok(&lab, &["inspect", "/tmp/layout", "--processes"]);
        assert!(!shown.contains("hunter2") && shown.contains("command line: /bin/many established"), "{shown}");
        let shown = dewar_ok(&lab, &["inspect", "/tmp/layout", "--env"]);
        assert!(shown.contains(r"environment: SECRET=hunter2\nwith a line"), "{shown}");
    }
}

#[test]
fn the_layer_is_listed_with_the_digests_that_sha256sum_finds() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.run("c", "programs", &["/bin/witness", "16", "/var/lib/witness", "1000"], &[]);
    until("the witness answers", || lab.inside("c", &["/bin/witness", "ask"]).status.success());
    let script = r#"echo one > /usr/one; rm /etc/group; echo > "$(printf '/usr/x\033y')"; rm -r /home; mkdir /home"#;
    lab.ask("c", &["/bin/sh", "-ec", script]);
    let sum = lab.ask("c", &["/bin/sha256sum", "/usr/one"]);
    lab.kill_containerd();
    dewar_ok(&lab, &["checkpoint", "c", "-o", "/tmp/layout", "--task", "never"]);
    let told = dewar_json(&lab, &["inspect", "/tmp/layout", "--files", "--json"]);
    let of = |path: &str| told.as_array().unwrap().iter().find(|entry| entry["path"] == path).cloned();
    assert_eq!(of("/usr/one").expect("it is there")["sha256"].as_str(), sum.split(' ').next());
    assert_eq!(of("/etc/group").expect("it is told")["kind"], "deleted");
    assert!(of("/usr/x\u{1b}y").is_some(), "exact in JSON");
    let shown = dewar_ok(&lab, &["inspect", "/tmp/layout", "--files"]);
    assert!(shown.contains(r"/usr/x\u{1b}y  (file, 1 B)"), "{shown}");
}
