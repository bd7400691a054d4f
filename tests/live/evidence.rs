//! Nothing is touched, proved: the hash of a disk, the times of every file, and every call of the system.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, cannot_run, dewar_json, dewar_ok};

/// The disk of a node: its stores, what is on record of its tasks, and its own name. Then the node is switched off, and its
/// disk lies in a file.
pub fn disk_of_a_node(containerd: Containerd) -> Option<Lab> {
    let lab = Lab::start_with_disks(containerd, Cgroup::V1)?;
    lab.sh("truncate -s 700M /var/lib/disk.img; mkfs.ext4 -q /var/lib/disk.img; mkdir -p /mnt/disk
         mount -o loop /var/lib/disk.img /mnt/disk
         mkdir -p /mnt/disk/var/lib/containerd /var/lib/containerd /mnt/disk/etc/containerd /mnt/disk/run
         mount --bind /mnt/disk/var/lib/containerd /var/lib/containerd
         echo suspect > /mnt/disk/etc/hostname; echo 0123456789abcdef0123456789abcdef > /mnt/disk/etc/machine-id
         ln -s /usr/share/zoneinfo/Europe/Paris /mnt/disk/etc/localtime");
    lab.start_containerd();
    lab.import("busybox");
    lab.run("app", "busybox", &["sh", "-c", "while :; do sleep 1; done"], &[]);
    lab.ask(
        "app",
        &["sh", "-c", "echo planted > /planted; ln -s planted /link; mkdir /dir; echo x > /dir/x; rm /etc/passwd"],
    );
    lab.sh("containerd-kill; cp -a /run/containerd /mnt/disk/run/ 2> /dev/null || true
         rm -rf /mnt/disk/run/containerd/io.containerd.runtime.v2.task/default/app/rootfs/*
         mkdir /tmp/kept; cp -a /mnt/disk/run /tmp/kept; umount /var/lib/containerd; lose-node || true
         umount /mnt/disk; ! mountpoint -q /mnt/disk");
    Some(lab)
}

/// Everything that looks, on the disk at `/mnt/disk`.
fn look_at_everything(lab: &Lab, more: &[&str], out: &str) {
    let dewar = |args: &[&str]| {
        let ran = lab.dewar(&[&["--sysroot", "/mnt/disk"], more, args].concat());
        let said =
            format!("{args:?}: {}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(matches!(ran.status.code(), Some(0 | 1)), "{said}");
        said
    };
    assert!(dewar(&["ls"]).contains("app"));
    dewar(&["fsck"]);
    assert!(dewar(&["diff", "app"]).contains("/planted"));
    dewar(&["whois", "app"]);
    dewar(&["checkpoint", "app", "-o", out, "--case", "1", "--binds"]);
    dewar_ok(lab, &["verify", out]);
    dewar_ok(lab, &["inspect", out]);
    let record = dewar_json(lab, &["inspect", out, "--evidence", "--json"]);
    assert_eq!(record["suspect"]["hostname"], "suspect", "{record:#}");
    assert_eq!(record["suspect"]["time_zone"], "Europe/Paris", "{record:#}");
    assert_eq!(record["changes"], serde_json::json!([]), "{record:#}");
    let sources = dewar_ok(lab, &["inspect", out, "--evidence=sources"]);
    assert!(sources.contains("\"/planted\"") && sources.contains("meta.db"), "{sources}");
}

fn a_disk_keeps_its_hash(containerd: Containerd) {
    let Some(lab) = disk_of_a_node(containerd) else { return };
    let hash = || lab.sh("sha256sum < /var/lib/disk.img");
    let before = hash();
    lab.sh("mount -o loop,ro,noload /var/lib/disk.img /mnt/disk");
    look_at_everything(&lab, &["--write-blocked"], "/tmp/layout");
    let record = dewar_json(&lab, &["inspect", "/tmp/layout", "--evidence", "--json"]);
    let places = record["protection"]["places"].as_array().expect("it is a list");
    let is_blocked = |place: &Value| place["read_only_mount"] == true && place["read_only_device"] == true;
    assert!(places.len() > 2 && places.iter().all(is_blocked), "{places:#?}");
    lab.sh("umount /mnt/disk");
    assert_eq!(hash(), before);

    // What is mounted for writing is refused, by name; and a whole disk's hash tells that it was mounted so.
    lab.sh("mount -o loop /var/lib/disk.img /mnt/disk");
    let ran = lab.dewar(&["--sysroot", "/mnt/disk", "--write-blocked", "checkpoint", "app", "-o", "/tmp/refused"]);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(2) && said.contains("/mnt/disk (ext4 on /dev/loop"), "{said}");
    lab.sh("test ! -e /tmp/refused; umount /mnt/disk");
    assert_ne!(hash(), before, "the hash would have told");
}

#[test]
fn a_read_only_disk_of_a_node_with_1_7_keeps_its_hash() {
    a_disk_keeps_its_hash(Containerd::V1_7);
}

#[test]
fn a_read_only_disk_of_a_node_with_2_1_keeps_its_hash() {
    a_disk_keeps_its_hash(Containerd::V2_1);
}

/// Every path with its three times, told by one that leaves no trace either.
const TIMES: &str = "unshare -m --propagation private sh -c \
    'mount -o remount,bind,noatime /mnt/disk && find /mnt/disk -printf \"%p %A+ %T+ %C+ %l\\n\" | sort'";

fn no_time_moves(containerd: Containerd) {
    let Some(lab) = disk_of_a_node(containerd) else { return };
    lab.sh("mount -o loop,strictatime /var/lib/disk.img /mnt/disk");
    let before = lab.sh(TIMES);
    assert!(before.lines().count() > 100 && before == lab.sh(TIMES), "the witness itself moves none");
    look_at_everything(&lab, &[], "/tmp/layout");
    let after = lab.sh(TIMES);
    let moved: Vec<_> = before.lines().zip(after.lines()).filter(|(then, now)| then != now).collect();
    assert!(moved.is_empty() && before.len() == after.len(), "{moved:#?}");
    // It would have been seen: of a file, a directory, a link.
    for touch in ["cat /mnt/disk/etc/hostname", "ls /mnt/disk/var/lib", "readlink /mnt/disk/etc/localtime"] {
        let before = lab.sh(TIMES);
        lab.sh(touch);
        assert_ne!(before, lab.sh(TIMES), "{touch}");
    }
}

#[test]
fn on_a_strictatime_mount_no_time_moves_1_7() {
    no_time_moves(Containerd::V1_7);
}

#[test]
fn on_a_strictatime_mount_no_time_moves_2_1() {
    no_time_moves(Containerd::V2_1);
}

/// Calls that write, but for those that need a descriptor opened for it; and those that tell who calls.
const CALLS: &str = "execve,clone,clone3,fork,vfork,unshare,open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,\
    link,linkat,symlink,symlinkat,mkdir,mkdirat,rmdir,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,\
    utime,utimes,utimensat,futimesat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,truncate,ftruncate,\
    mount,umount2,move_mount,mount_setattr,pivot_root,swapon,kill,tkill,tgkill";

/// What a process of the trace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// What leads to the subject.
    Before,
    /// The program that is watched, its threads and its watchdog.
    Subject,
    /// A program of somebody else's that it started.
    Other,
}

/// A command inside, traced from outside.
struct Trace {
    dir: tempfile::TempDir,
    said: String,
    code: Option<i32>,
}

fn trace(lab: &Lab, command: &[&str]) -> Trace {
    let dir = tempfile::tempdir().expect("there is room");
    let file = dir.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-y", "-s", "1000", "--decode-pids=pidns", "--quiet=all", "-e", "signal=none"]);
    strace.arg("-e").arg(format!("trace={}", CALLS.replace([' ', '\n'], ""))).arg("-o").arg(&file);
    let inner = lab.command(command[0]);
    strace.arg(inner.get_program()).args(inner.get_args()).args(&command[1..]);
    let ran = strace.stdin(Stdio::null()).output().expect("strace is there");
    let said = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Trace { dir, said, code: ran.status.code() }
}

impl Trace {
    /// The calls of each process or thread, by its number.
    fn calls(&self) -> BTreeMap<u32, Vec<String>> {
        let entries = fs::read_dir(self.dir.path()).expect("it was made");
        entries
            .map(|entry| {
                let path = entry.expect("it can be listed").path();
                let pid = path.extension().and_then(|e| e.to_str()?.parse().ok()).expect("strace -ff names them so");
                let text = String::from_utf8_lossy(&fs::read(&path).expect("it is a file")).into_owned();
                (pid, text.lines().map(str::to_owned).collect())
            })
            .collect()
    }

    /// All writing calls of the subject that `allows` does not allow, each once. It may end what it started, and change the
    /// flags of mounts once it has a namespace of its own.
    fn offences(&self, subject: &str, allows: &dyn Fn(&Call) -> bool) -> Vec<String> {
        let calls = self.calls();
        let (first, mut orphans) = self.first(&calls);
        let (mut found, mut todo, mut family) = (Vec::new(), vec![(first, Role::Before, false)], Vec::new());
        while let Some((pid, mut role, mut is_apart)) = todo.pop() {
            let is_seen = |role| (role != Role::Before).then_some(pid);
            family.extend(is_seen(role));
            for line in calls.get(&pid).into_iter().flatten() {
                let (Some(name), is_done) = (line.split('(').next(), !line.contains(" = -1 ")) else { continue };
                match name {
                    "execve" if is_done => {
                        role = role_of(line, subject, role);
                        family.extend(is_seen(role));
                    }
                    "execve" => {}
                    "unshare" => is_apart |= is_done && line.contains("CLONE_NEWNS"),
                    "clone" | "clone3" | "fork" | "vfork" => {
                        let told = child(line).filter(|child| calls.contains_key(child));
                        let found = told.or_else(|| orphans.range(pid..).next().copied().filter(|_| is_done));
                        orphans.retain(|orphan| Some(*orphan) != found);
                        todo.extend(found.map(|child| (child, role, is_apart)));
                    }
                    _ if role != Role::Subject => {}
                    "mount" if is_apart && is_own_view(line) => {}
                    _ => found.extend(Call::of(line).filter(|call| call.writes() && !allows(call))),
                }
            }
        }
        assert!(!family.is_empty() || !found.is_empty(), "the subject was not seen: {}", self.said);
        assert!(orphans.is_empty(), "whose are {orphans:?}? {}", self.said);
        found.retain(|call| !call.ends_one_of(&family));
        let lines: BTreeSet<_> = found.into_iter().map(|call| call.line).collect();
        lines.into_iter().collect()
    }

    /// Whose child nobody is: the first, and those that ended before strace could tell what they are called outside. Whose
    /// these are, the order of numbers tells: each is the next after its parent.
    fn first(&self, calls: &BTreeMap<u32, Vec<String>>) -> (u32, BTreeSet<u32>) {
        let children: BTreeSet<u32> = calls.values().flatten().filter_map(|line| child(line)).collect();
        let mut orphans: BTreeSet<u32> = calls.keys().copied().filter(|pid| !children.contains(pid)).collect();
        let first = orphans.pop_first().unwrap_or_else(|| panic!("nothing was traced: {}", self.said));
        (first, orphans)
    }
}

fn role_of(line: &str, subject: &str, before: Role) -> Role {
    let program = line.split('"').nth(1).unwrap_or_default();
    let is_it = program == "/proc/self/exe" || Path::new(program).file_name().is_some_and(|name| name == subject);
    match (is_it, before) {
        (true, Role::Before | Role::Subject) => Role::Subject,
        (false, Role::Subject | Role::Other) | (true, Role::Other) => Role::Other,
        (false, Role::Before) => Role::Before,
    }
}

/// `… = 7 /* 12345 in strace's PID NS */`, or `… = 12345`.
fn child(line: &str) -> Option<u32> {
    if !["clone", "fork", "vfork"].iter().any(|name| line.starts_with(name)) {
        return None;
    }
    let result = line.rsplit(" = ").next()?;
    match result.split_once("/* ") {
        Some((_, outer)) => outer.split_whitespace().next()?.parse().ok(),
        None => result.trim().parse().ok(),
    }
}

/// One call that was made.
struct Call {
    name: String,
    line: String,
    /// The paths that it names, whole; of a descriptor, what that is.
    paths: Vec<PathBuf>,
}

impl Call {
    fn of(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once('(')?;
        // `???( <detached ...>`: it had not yet met a call when the trace ended.
        if name == "???" && line.contains("<detached") {
            return None;
        }
        let (mut paths, mut above, mut rest) = (Vec::new(), PathBuf::new(), rest);
        // Texts and descriptors, in their order: a text that is no whole path is below the descriptor before it.
        while let Some(at) = rest.find(['"', '<']) {
            let is_text = rest[at..].starts_with('"');
            let after = &rest[at + 1..];
            let end = after.find(if is_text { '"' } else { '>' })?;
            let path = Path::new(&after[..end]);
            if is_text && (path.is_absolute() || !after[..end].is_empty()) {
                paths.push(if path.is_absolute() { path.to_owned() } else { above.join(path) });
            } else if !is_text {
                above = path.to_owned();
                if !["openat", "openat2", "unlinkat", "mkdirat", "linkat", "renameat", "renameat2"].contains(&name) {
                    paths.push(above.clone());
                }
            }
            rest = &after[end + 1..];
        }
        Some(Self { name: name.to_owned(), line: line.to_owned(), paths })
    }

    fn writes(&self) -> bool {
        let opens = self.name.starts_with("open");
        let for_writing = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"];
        !opens && self.name != "unshare" || opens && for_writing.iter().any(|flag| self.line.contains(flag))
    }

    /// True of a signal to one of these processes.
    fn ends_one_of(&self, family: &[u32]) -> bool {
        let outer = self.line.split("/* ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        self.name.ends_with("kill") && outer.is_some_and(|pid: u32| family.contains(&pid))
    }

    /// True if all its paths lie below one of these.
    fn is_below(&self, places: &[&str]) -> bool {
        !self.paths.is_empty() && self.paths.iter().all(|path| places.iter().any(|place| path.starts_with(place)))
    }
}

/// True if a mount's flags are changed to `noatime`, and perhaps to read-only; or if what others mount is to be seen, and
/// what we change is not.
fn is_own_view(line: &str) -> bool {
    let has = |flag: &str| line.contains(flag);
    has("MS_REMOUNT") && has("MS_BIND") && has("MS_NOATIME")
        || has("MS_SLAVE") && line.starts_with("mount(NULL, \"/\", NULL")
}

/// What a checkpoint may write: its output, its own marker and what the kernel has of itself, the container's freezer.
fn may(call: &Call) -> bool {
    let is_freezer = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        path.starts_with("/sys/fs/cgroup") && ["freezer.state", "cgroup.freeze", "cgroup.kill"].contains(&name)
    };
    let freezer = call.name.starts_with("open") && !call.paths.is_empty() && call.paths.iter().all(is_freezer);
    // Of a call that opens, the last is what was opened: `/proc/self` is `/proc/<pid>` there.
    let named = call.paths.first().is_some_and(|path| path.starts_with("/proc/self"));
    let own = call.name.starts_with("open") && named && ["comm", "oom_score_adj"].iter().any(|f| call.line.contains(f));
    freezer || own || call.is_below(&["/tmp/layout", "/run/dewar", "/dev/null"])
}

fn has_strace() -> bool {
    let is_there = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !is_there {
        cannot_run("strace is not there (apt-get install strace)");
    }
    is_there
}

#[test]
fn no_call_of_the_system_writes_outside_the_output_1_7() {
    no_call_writes(Containerd::V1_7);
}

#[test]
fn no_call_of_the_system_writes_outside_the_output_2_1() {
    no_call_writes(Containerd::V2_1);
}

fn no_call_writes(containerd: Containerd) {
    let Some(lab) = has_strace().then(|| Lab::start(containerd, Cgroup::V1)).flatten() else { return };
    lab.start_containerd();
    lab.import("busybox");
    lab.run("app", "busybox", &["sh", "-c", "while :; do sleep 1; done"], &[]);
    lab.ask("app", &["sh", "-c", "echo planted > /planted; ln -s planted /link; rm /etc/passwd"]);
    lab.kill_containerd();
    // CRIU learns what the kernel can by being traced itself, which it is already here: it remembers from the first time.
    dewar_ok(&lab, &["checkpoint", "app", "-o", "/tmp/layout-before", "--task", "always"]);
    // A live container, its memory too.
    let traced = trace(&lab, &["dewar", "checkpoint", "app", "-o", "/tmp/layout", "--case", "1", "--task", "always"]);
    assert_eq!(traced.code, Some(0), "{}", traced.said);
    assert_eq!(traced.offences("dewar", &may), Vec::<String>::new());
    let record = dewar_json(&lab, &["inspect", "/tmp/layout", "--evidence", "--json"]);
    told_changes(&lab, &record);
    all_that_was_read_is_listed(&lab, &traced);
    for look in [&["ls"][..], &["fsck"], &["diff", "app"], &["whois", "app"]] {
        let traced = trace(&lab, &[&["dewar"], look].concat());
        assert!(matches!(traced.code, Some(0 | 1)), "{look:?}: {}", traced.said);
        assert_eq!(traced.offences("dewar", &may), Vec::<String>::new(), "{look:?}");
    }

    it_would_have_been_seen(&lab);
}

/// The same check of programs that do write.
fn it_would_have_been_seen(lab: &Lab) {
    for (does, call) in [
        ("open('x', 'w')", "openat"),
        ("os.open('x', os.O_RDWR)", "openat"),
        ("os.chmod('x', 0o600)", "chmod"),
        ("os.utime('x')", "utimensat"),
        ("os.setxattr('x', 'user.x', b'1')", "setxattr"),
        ("os.truncate('x', 1)", "truncate"),
        ("os.link('x', 'y')", "link"),
        ("os.rename('y', 'z')", "rename"),
        ("os.unlink('z')", "unlink"),
        ("os.mkdir('d')", "mkdir"),
        ("os.kill(1, 0)", "kill"),
    ] {
        let script = format!("import os; os.chdir('/var/lib/containerd'); {does}");
        let found = trace(lab, &["python3", "-c", &script]).offences("python3", &may);
        assert!(found.len() == 1 && found[0].starts_with(call), "{does}: {found:#?}");
    }
    // In everybody's namespace not even a flag may be changed.
    for args in [["-o", "remount,bind,noatime", "/tmp"], ["--bind", "/tmp", "/mnt"]] {
        let found = trace(lab, &[&["mount"][..], &args].concat()).offences("mount", &may);
        assert!(found.iter().any(|line| line.contains("mount")), "{args:?}: {found:#?}");
    }
}

/// The freeze, what CRIU did, and their times and processes.
fn told_changes(lab: &Lab, record: &Value) {
    let changes = record["changes"].as_array().expect("it is a list");
    let change =
        |what: &str| changes.iter().find(|change| change["what"] == what).unwrap_or_else(|| panic!("{changes:#?}"));
    let pid = lab.pid("app");
    for what in ["freeze", "parasite"] {
        let pids = change(what)["pids"].as_array().expect("it is a list");
        assert!(pids.iter().any(|p| *p == pid), "{what}: {pid} {pids:?}");
        let (from, until) = (change(what)["from_ns"].as_u64(), change(what)["until_ns"].as_u64());
        assert!(from.is_some() && from < until, "{from:?} {until:?}");
    }
    assert!(change("freeze")["how"].as_str().is_some_and(|how| how.contains("freezer.state")), "{changes:#?}");
    assert!(changes.iter().all(|change| change["what"] != "network lock"), "nobody was connected: {changes:#?}");
}

/// What the kernel saw opened in the store's directories stands in the list of sources.
fn all_that_was_read_is_listed(lab: &Lab, traced: &Trace) {
    let sources = dewar_ok(lab, &["inspect", "/tmp/layout", "--evidence=sources"]);
    let listed: Vec<String> = sources
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("each line is JSON"))
        .map(|source| source["path"].as_str().expect("it has a path").to_owned())
        .collect();
    let mut opened = 0;
    for line in traced.calls().values().flatten().filter(|line| line.starts_with("openat(") && !line.contains(" = -1 "))
    {
        // What the descriptor is: `= 7</var/lib/…>`.
        let result = line.rsplit(" = ").next().unwrap_or_default();
        let Some(path) = result.split_once('<').and_then(|(_, rest)| rest.strip_suffix('>')) else { continue };
        let is_read = !line.contains("O_PATH") && !line.contains("O_DIRECTORY");
        let is_stores = ["/var/lib/containerd/", "/run/containerd/"].iter().any(|dir| path.starts_with(dir));
        if is_read && is_stores && lab.try_sh(&format!("test -f '{path}'")).status.success() {
            opened += 1;
            // An entry of the rw layer is listed by its path there.
            let told = path.split_once("/fs/").map_or_else(|| path.to_owned(), |(_, below)| format!("/{below}"));
            assert!(listed.contains(&told), "{path} was read, and is not in\n{}", listed.join("\n"));
        }
    }
    assert!(opened > 5, "{opened}");
}
