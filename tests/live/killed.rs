//! Never left frozen: `dewar` is killed at any instant, and the container runs again within 3 seconds, its network
//! unlocked, the layout sound.

use std::{
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    carry::assert_no_network_lock,
    harness::{Cgroup, Containerd, FrozenState, Lab, dewar_ok, until},
};

/// How many instants: enough to hit every stage; `DEWAR_KILLS` asks for more.
fn rounds() -> u32 {
    std::env::var("DEWAR_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(25)
}

/// Kills a checkpoint with `signal` at instants spread over its whole length, and looks after each.
fn kill_at_many_instants(cgroup: Cgroup, signal: &str, rounds: u32, more: &[&str]) {
    let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.run("many", "programs", &["/bin/many", "established"], &[]);
    lab.run("witness", "programs", &["/bin/witness", "96", "/var/lib/witness", "5"], &[]);
    until("both answer", || {
        lab.inside("many", &["/bin/many", "check"]).status.success()
            && lab.inside("witness", &["/bin/witness", "ask"]).status.success()
    });
    lab.kill_containerd();
    let args = [&["checkpoint", "many", "witness", "-o", "/tmp/layout", "--tcp-established"], more].concat();
    let start = Instant::now();
    dewar_ok(&lab, &args);
    let whole = start.elapsed();

    let mut held = 0;
    for round in 0..rounds {
        let instant = whole.mul_f64((f64::from(round) + 0.5) / f64::from(rounds));
        let mut child = lab
            .command("dewar")
            .args(&args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash runs the lab script");
        let begun = Instant::now();
        // A marker stands from just before a freeze until the thaw; seen from here, since a command inside takes longer.
        let markers = format!("/proc/{}/root/run/dewar/frozen", lab.init());
        let is_held = || std::fs::read_dir(&markers).is_ok_and(|mut all| all.next().is_some());
        // Every other instant is one at which a container is held, a little later each time.
        if round % 2 == 0 {
            sleep(instant);
        } else {
            while !is_held() && begun.elapsed() < whole {
                sleep(Duration::from_micros(200));
            }
            sleep(Duration::from_millis(u64::from(round * 7 % 150)));
        }
        held += u32::from(is_held());
        lab.signal(&child, signal);
        let killed = Instant::now();
        child.wait().expect("a child can be waited for");
        for (id, question) in [("many", ["/bin/many", "check"]), ("witness", ["/bin/witness", "ask"])] {
            until("it is thawed", || lab.freezer_state(id) == FrozenState::Thawed);
            assert!(
                killed.elapsed() < Duration::from_secs(3),
                "round {round}: {id} stood still for {:?}",
                killed.elapsed()
            );
            // CRIU may hold its tasks by ptrace a moment longer; an answer proves that they run.
            lab.ask(id, &question);
            assert!(
                killed.elapsed() < Duration::from_secs(3),
                "round {round}: {id} answered after {:?}",
                killed.elapsed()
            );
        }
        // Whoever was held by us at that instant is let go by the kernel.
        let traced = lab.sh("grep -h TracerPid /proc/[0-9]*/task/*/status 2>/dev/null | grep -v '\\s0$' || true");
        assert_eq!(traced, "", "round {round}: somebody is left traced");
        until("the network is free", || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| assert_no_network_lock(&lab, "many"))).is_ok()
        });
        assert!(dewar_ok(&lab, &["verify", "/tmp/layout"]).starts_with("sound"), "round {round}");
    }
    eprintln!("{rounds} {signal} on cgroup {cgroup:?}: {held} hit a held container; a whole run takes {whole:?}");
    assert!(held > 0, "no instant hit a held container: the test proves nothing");
    // The next run removes what the killed ones left.
    dewar_ok(&lab, &args);
    assert_eq!(lab.sh("find /tmp/layout -name '.dewar-*'"), "");
    assert_eq!(lab.sh("ls -A /run/dewar/frozen 2>/dev/null || true"), "");
}

#[test]
fn killed_at_any_instant_the_container_runs_again_on_cgroup_v1() {
    kill_at_many_instants(Cgroup::V1, "KILL", rounds(), &[]);
}

#[test]
fn killed_at_any_instant_the_container_runs_again_on_cgroup_v2() {
    kill_at_many_instants(Cgroup::V2, "KILL", rounds(), &[]);
}

#[test]
fn killed_at_any_instant_of_a_raw_capture_the_container_runs_again_on_cgroup_v1() {
    kill_at_many_instants(Cgroup::V1, "KILL", rounds(), &["--task", "raw"]);
}

#[test]
fn killed_at_any_instant_of_a_raw_capture_the_container_runs_again_on_cgroup_v2() {
    kill_at_many_instants(Cgroup::V2, "KILL", rounds(), &["--task", "raw"]);
}

#[test]
fn interrupted_at_any_instant_the_container_runs_again() {
    kill_at_many_instants(Cgroup::V1, "INT", rounds().div_ceil(2), &[]);
}

/// The last resort: watchdog and `dewar` both killed, the container stays frozen until `dewar thaw`.
#[test]
fn thaw_undoes_a_freeze_whose_watchdog_was_killed_too() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("programs");
        lab.run("witness", "programs", &["/bin/witness", "8", "/var/lib/witness", "5"], &[]);
        until("the witness answers", || lab.inside("witness", &["/bin/witness", "ask"]).status.success());
        lab.kill_containerd();
        // A CRIU that never answers the second time it is asked: the container is held while we look.
        lab.sh(
            r#"printf '#!/bin/bash\nif [[ $1 == swrk ]]; then [[ ! -e /tmp/asked ]] || exec sleep 1000; touch /tmp/asked; fi\nexec criu "$@"\n' > /tmp/slow-criu; chmod +x /tmp/slow-criu"#,
        );
        let mut child = lab
            .command("dewar")
            .args(["checkpoint", "witness", "-o", "/tmp/layout", "--criu", "/tmp/slow-criu"])
            .stderr(Stdio::null())
            .spawn()
            .expect("bash runs the lab script");
        until("it is frozen", || lab.freezer_state("witness") == FrozenState::Frozen);
        let said = dewar_ok(&lab, &["thaw"]);
        assert!(said.contains("left alone"), "a run that lives is left alone: {said}");
        lab.sh("kill -KILL $(jq .watchdog.pid /run/dewar/frozen/*.json)");
        lab.signal(&child, "KILL");
        child.wait().expect("a child can be waited for");
        sleep(Duration::from_millis(300));
        assert_eq!(lab.freezer_state("witness"), FrozenState::Frozen, "nobody is left to thaw it");
        let said = dewar_ok(&lab, &["thaw"]);
        assert!(said.contains("runs again"), "{said}");
        lab.ask("witness", &["/bin/witness", "ask"]);
        assert!(dewar_ok(&lab, &["thaw"]).contains("nothing"));
    }
}
