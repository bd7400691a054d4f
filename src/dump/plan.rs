//! What CRIU must be told of a container: exactly what runc tells it, so that `runc restore` finds what it expects.
//!
//! The rules are those of runc's `libcontainer/criu_linux.go` (`Checkpoint`, `addCriuDumpMount`, `addMaskPaths`). A
//! mount that is not dumped is named: the key is its mount point inside the container, the value the name under which
//! runc will say what to mount there, which it computes from `config.json` alone.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
};

use super::{Criu, NetworkLock, Options, masks};
use crate::{
    criu::rpc::{ExtMount, LockMethod, Opts},
    error::{At, Error, Result},
    freeze::netlock,
    host::{Host, mounts},
    oci::runtime::{Mount, Spec},
    runtime::{CgroupVersion, Task},
    shares,
};

/// `CLONE_NEWNET`: runc never has CRIU restore network devices.
const NEWNET: u32 = 0x4000_0000;

/// `CRIU_CG_MODE_DEFAULT` of `criu_cg_mode`, what runc sends when asked for nothing else.
const CG_MODE_DEFAULT: i32 = 6;

/// The annotation that names CRIU's configuration file; empty: none.
const CONFIG_ANNOTATION: &str = "org.criu.config";

/// The file runc names when there is no annotation. CRIU takes its absence without a word.
const CONFIG_DEFAULT: &str = "/etc/criu/runc.conf";

/// The name of CRIU's log in the work directory.
pub const LOG: &str = "dump.log";

/// Devices that runc makes in every container (`specconv`, `AllowedDevices`), besides those of the spec.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/random", "/dev/full", "/dev/tty", "/dev/zero", "/dev/urandom"];

/// Linux follows 40 links; SecureJoin 255.
const MAX_LINKS: usize = 255;

/// The directories CRIU writes to, as descriptors of ours.
#[derive(Debug, Clone, Copy)]
pub struct Dirs {
    /// For the images.
    pub images: i32,
    /// For log and statistics, which are no part of the images.
    pub work: i32,
}

/// What a dump is asked with, all but the [`lock`]. Made while the container is frozen, so that it moves no mounts.
pub fn plan(host: &Host, spec: &Spec, task: &Task, opts: &Options, dirs: Dirs) -> Result<Opts> {
    Ok(Opts {
        images_dir_fd: dirs.images,
        work_dir_fd: Some(dirs.work),
        pid: Some(task.init.pid),
        root: Some(utf8(&task.rootfs)?),
        freeze_cgroup: Some(utf8(&task.cgroup)?),
        // We kill, if at all, when the bundle is safe; and CRIU unlocks the network only for what it leaves running.
        leave_running: Some(true),
        notify_scripts: Some(true),
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(CG_MODE_DEFAULT),
        empty_ns: Some(NEWNET),
        orphan_pts_master: Some(true),
        ext_mnt: external_mounts(host, spec, task)?,
        external: external_namespaces(host, spec, task)?,
        config_file: config_file(spec),
        tcp_established: Some(opts.tcp_established),
        ext_unix_sk: Some(opts.ext_unix_sk),
        file_locks: Some(opts.file_locks),
        shell_job: Some(opts.shell_job),
        log_level: Some(opts.log_level),
        log_file: Some(LOG.into()),
        network_lock: None,
    })
}

/// How the network is locked. To be asked after the freeze: before it, a connection could come in after the look.
pub fn lock(host: &Host, criu: &Criu, task: &Task, choice: NetworkLock) -> LockMethod {
    if !netlock::is_private(host, task.init.pid) {
        // The host's own network: to lock it would cut off the machine.
        return LockMethod::Skip;
    }
    match choice {
        NetworkLock::Skip => LockMethod::Skip,
        NetworkLock::Iptables => LockMethod::Iptables,
        NetworkLock::Nftables => LockMethod::Nftables,
        NetworkLock::Auto if is_quiet(host, task) => LockMethod::Skip,
        NetworkLock::Auto if criu.has_nftables => LockMethod::Nftables,
        NetworkLock::Auto => LockMethod::Iptables,
    }
}

/// True if no TCP socket of the container's network namespace has a peer: then no packet can disturb the dump. The
/// lock costs up to 100 ms of the container's standing still, and this look 6 ms, for the kernel walks its whole table.
fn is_quiet(host: &Host, task: &Task) -> bool {
    let of = |name: &str| host.proc_of(task.init.pid, name);
    if ["net/sockstat", "net/sockstat6"].iter().all(|&name| has_no_tcp(&of(name))) {
        return true;
    }
    let tables = [of("net/tcp"), of("net/tcp6")];
    shares::of(&tables, |table| has_no_peers(table)).into_iter().all(|is_quiet| is_quiet)
}

/// The counters of a namespace: `TCP: inuse 0 …`, `TCP6: inuse 0`.
fn has_no_tcp(sockstat: &Path) -> bool {
    let none = |l: &str| l.starts_with("TCP: inuse 0 ") || l == "TCP6: inuse 0";
    match fs::read_to_string(sockstat) {
        Ok(text) => text.lines().any(none),
        Err(e) => e.kind() == io::ErrorKind::NotFound && sockstat.ends_with("sockstat6"),
    }
}

/// A kernel without IPv6 has no tcp6; what cannot be read is taken to be busy.
fn has_no_peers(table: &Path) -> bool {
    match fs::read_to_string(table) {
        Ok(text) => text.lines().skip(1).all(has_no_peer),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

/// The fourth field is the state (`include/net/tcp_states.h`): 07 CLOSE, 0A LISTEN.
fn has_no_peer(line: &str) -> bool {
    matches!(line.split_ascii_whitespace().nth(3), Some("07" | "0A"))
}

/// The strings for `descriptors.json`: what stdin, stdout and stderr were at the start, by which runc finds the pipes
/// to replace. Init may have put others in their place since, so the recorded ones come first.
pub fn descriptors(host: &Host, task: &Task) -> Vec<String> {
    if !task.external_descriptors.is_empty() {
        return task.external_descriptors.clone();
    }
    let link = |fd: u32| fs::read_link(host.proc_of(task.init.pid, format!("fd/{fd}")));
    (0..3).map(|fd| link(fd).map_or("/dev/null".into(), |l| l.to_string_lossy().into_owned())).collect()
}

fn config_file(spec: &Spec) -> Option<String> {
    match spec.annotations.get(CONFIG_ANNOTATION).map(String::as_str) {
        None => Some(CONFIG_DEFAULT.into()),
        Some("") => None,
        Some(path) => Some(path.into()),
    }
}

/// A namespace is external if the spec joins it by a path: the spec decides, because it decides at restore as well.
fn external_namespaces(host: &Host, spec: &Spec, task: &Task) -> Result<Vec<String>> {
    let known = [("network", "net", "extRootNetNS"), ("pid", "pid", "extRootPidNS")];
    let mut external = Vec::new();
    for (kind, name, key) in known {
        let Some(ns) = spec.linux.namespaces.iter().find(|n| n.kind == kind && !n.path.is_empty()) else { continue };
        // The path may have gone with the process of a sandbox that it was of; the namespace is init's all the same.
        let own = host.proc_of(task.init.pid, format!("ns/{name}"));
        let inode = fs::metadata(&ns.path).or_else(|_| fs::metadata(&own)).at("stat", &own)?.ino();
        external.push(format!("{name}[{inode}]:{key}"));
    }
    Ok(external)
}

fn external_mounts(host: &Host, spec: &Spec, task: &Task) -> Result<Vec<ExtMount>> {
    let view = View::of(host, task)?;
    let binds = spec.mounts.iter().filter(|m| m.is_bind()).map(|m| view.bind(&m.destination));
    let cgroups = cgroup_mounts(host, spec, task)?;
    let masked = spec.linux.masked_paths.iter().filter_map(|path| view.masked(path));
    let of_spec = spec.linux.devices.iter().map(|d| d.path.as_str());
    let devices = DEVICES.into_iter().chain(of_spec).map(|path| ext_mount(path, path));
    Ok(binds.chain(cgroups).chain(masked).chain(devices).collect())
}

fn ext_mount(key: &str, val: &str) -> ExtMount {
    ExtMount { key: key.into(), val: val.into() }
}

/// On v1 without a cgroup namespace, a `cgroup` mount is one bind mount for each controller of the host.
fn cgroup_mounts(host: &Host, spec: &Spec, task: &Task) -> Result<Vec<ExtMount>> {
    let has_namespace = spec.linux.namespaces.iter().any(|n| n.kind == "cgroup");
    if task.cgroup_version == CgroupVersion::V2 || has_namespace {
        return Ok(Vec::new());
    }
    let mounts = mounts::read(&host.proc.join("self/mountinfo"))?;
    let controllers: Vec<_> = mounts.into_iter().filter(|m| m.fs == "cgroup").map(|m| m.at).collect();
    let at = |m: &Mount| {
        let names = controllers.iter().filter_map(|c| Path::new(c).file_name());
        names.map(|name| Path::new(&m.destination).join(name)).collect::<Vec<_>>()
    };
    let paths = spec.mounts.iter().filter(|m| m.kind == "cgroup").flat_map(at);
    paths.map(|p| utf8(&p).map(|p| ext_mount(&p, &p))).collect()
}

/// The container's file system: as the host sees it (what runc computes names from), as the container sees it, and
/// what is mounted where.
struct View {
    rootfs: PathBuf,
    inside: PathBuf,
    mounts: Vec<mounts::Mount>,
}

impl View {
    fn of(host: &Host, task: &Task) -> Result<Self> {
        let mounts = mounts::read(&host.proc_of(task.init.pid, "mountinfo"))?;
        Ok(Self { rootfs: task.rootfs.clone(), inside: host.proc_of(task.init.pid, "root"), mounts })
    }

    /// The value is runc's name for the mount; the key is where it really lies.
    fn bind(&self, destination: &str) -> ExtMount {
        let name = secure_join(&self.rootfs, destination).unwrap_or_else(|| destination.to_owned());
        ExtMount { key: self.mount_point(&name), val: name }
    }

    /// How a runtime hides a path: runc by a mount of its own on a directory, which CRIU dumps, and by the container's
    /// `/dev/null` on a file; crun by an empty directory and a null device that lie outside of the container.
    fn masked(&self, path: &str) -> Option<ExtMount> {
        let real = secure_join(&self.inside, path)?;
        // Nothing is opened, and no link of the container's is followed out of it: the path has none any more.
        let meta = fs::symlink_metadata(under(&self.inside, &real)).ok()?;
        let at = self.mount_point(path);
        match (self.is_foreign(&at), meta.is_dir()) {
            (true, true) => Some(ext_mount(&at, masks::DIRECTORY)),
            (true, false) => Some(ext_mount(&at, masks::FILE)),
            (false, true) => None,
            (false, false) => Some(ext_mount(&at, "/dev/null")),
        }
    }

    /// True if what is mounted there is a part of a file system whose whole is not in the container: CRIU cannot make it.
    fn is_foreign(&self, at: &str) -> bool {
        let last = self.mounts.iter().rev().find(|m| m.at.as_bytes() == at.as_bytes());
        let whole = |dev| self.mounts.iter().any(|m| m.dev == dev && m.root == "/");
        last.is_some_and(|m| !whole(m.dev))
    }

    /// `name` if something is mounted there; else where the container's own links lead from it, if that is one.
    fn mount_point(&self, name: &str) -> String {
        let is_mount = |path: &str| self.mounts.iter().any(|m| m.at.as_bytes() == path.as_bytes());
        if is_mount(name) {
            return name.to_owned();
        }
        secure_join(&self.inside, name).filter(|real| is_mount(real)).unwrap_or_else(|| name.to_owned())
    }
}

/// Follows the links of `path` as if `root` were `/`, whatever they say; what does not exist stays as it is written
/// (the rules of SecureJoin, `cyphar/filepath-securejoin`). The result is absolute, and within `root`.
fn secure_join(root: &Path, path: &str) -> Option<String> {
    let mut todo: Vec<OsString> = parts(Path::new(path));
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        match fs::read_link(under(root, &done).join(&part)) {
            Ok(_) if links == MAX_LINKS => return None,
            Ok(target) => {
                links += 1;
                if target.is_absolute() {
                    done = "/".into();
                }
                todo.extend(parts(&target));
            }
            Err(_) => done.push(part),
        }
    }
    done.into_os_string().into_string().ok()
}

/// Names and `..`, the last first.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}

fn under(root: &Path, absolute: impl AsRef<Path>) -> PathBuf {
    root.join(absolute.as_ref().strip_prefix("/").unwrap_or(absolute.as_ref()))
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::Unsupported {
        what: format!("the path {} is not UTF-8, and CRIU takes no other", path.display()),
        hint: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::id::TaskPid;

    /// A procfs and a rootfs of plain files, with init 7.
    fn scene() -> (tempfile::TempDir, Host, Task) {
        let temp = tempfile::tempdir().unwrap();
        let proc = temp.path().join("proc");
        let rootfs = temp.path().join("rootfs");
        fs::create_dir_all(proc.join("7/ns")).unwrap();
        fs::create_dir_all(proc.join("self/ns")).unwrap();
        fs::create_dir_all(rootfs.join("run")).unwrap();
        fs::create_dir_all(rootfs.join("proc/acpi")).unwrap();
        fs::create_dir_all(rootfs.join("var")).unwrap();
        fs::write(rootfs.join("proc/kcore"), "").unwrap();
        symlink("/run", rootfs.join("var/run")).unwrap();
        symlink("/../../../etc", rootfs.join("out")).unwrap();
        symlink("loop", rootfs.join("loop")).unwrap();
        symlink(&rootfs, proc.join("7/root")).unwrap();
        symlink("net:[4026531840]", proc.join("self/ns/net")).unwrap();
        symlink("net:[4026532000]", proc.join("7/ns/net")).unwrap();
        let info = "1 0 0:1 / / rw - overlay overlay rw\n\
                    2 1 8:1 /x /run/with\\040space rw - ext4 /dev/vda rw\n\
                    3 1 8:1 /r /etc/resolv.conf rw shared:1 - ext4 /dev/vda rw\n";
        fs::write(proc.join("7/mountinfo"), info).unwrap();
        let controllers = "4 1 0:9 / /sys/fs/cgroup/cpu,cpuacct rw shared:2 - cgroup cgroup rw\n\
                           5 1 0:9 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw\n";
        fs::write(proc.join("self/mountinfo"), controllers).unwrap();
        let task = Task {
            runtime: "",
            init: TaskPid { pid: 7, started: 1 },
            cgroup: "/sys/fs/cgroup/freezer/x".into(),
            cgroup_version: CgroupVersion::V1,
            runtime_bundle: temp.path().to_owned(),
            rootfs,
            external_descriptors: vec!["/dev/null".into(), "pipe:[1]".into(), "pipe:[2]".into()],
            undumpable: None,
        };
        (temp, Host { proc, ..Host::default() }, task)
    }

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn pairs(mounts: Vec<ExtMount>) -> Vec<(String, String)> {
        mounts.into_iter().map(|m| (m.key, m.val)).filter(|(key, _)| !DEVICES.contains(&key.as_str())).collect()
    }

    #[test]
    fn a_bind_mount_is_named_by_its_real_place() {
        let (_temp, host, task) = scene();
        let spec = spec(
            r#"{"mounts":[{"destination":"/var/run/with space","type":"bind"},
                {"destination":"/etc/resolv.conf","type":"none","options":["rbind"]},
                {"destination":"/tmp","type":"tmpfs"}]}"#,
        );
        let same = |p: &str| (p.to_owned(), p.to_owned());
        let found = pairs(external_mounts(&host, &spec, &task).unwrap());
        assert_eq!(found, [same("/run/with space"), same("/etc/resolv.conf")]);
    }

    #[test]
    fn no_link_leads_out_of_the_container() {
        let (_temp, _host, task) = scene();
        for (path, real) in [
            ("/out/passwd", Some("/etc/passwd")),
            ("../../x", Some("/x")),
            ("/var/run/../a", Some("/a")),
            ("/not/there", Some("/not/there")),
            ("/loop/x", None),
        ] {
            assert_eq!(secure_join(&task.rootfs, path).as_deref(), real, "{path}");
        }
    }

    #[test]
    fn a_masked_file_is_dev_null_and_a_masked_directory_is_left_to_criu() {
        let (_temp, host, task) = scene();
        let spec = spec(r#"{"linux":{"maskedPaths":["/proc/kcore","/proc/acpi","/proc/absent"]}}"#);
        let found = pairs(external_mounts(&host, &spec, &task).unwrap());
        assert_eq!(found, [("/proc/kcore".to_owned(), "/dev/null".to_owned())]);
    }

    /// crun's: `/run/…/.empty-directory` and `/dev/null`, both of the host's file systems.
    #[test]
    fn what_hides_a_path_and_lies_outside_is_named_to_be_made_again() {
        let (_temp, host, task) = scene();
        let mut info = fs::read_to_string(host.proc_of(7, "mountinfo")).unwrap();
        info += "6 1 0:48 /run/.empty-directory /proc/acpi ro - tmpfs tmpfs rw\n\
                 7 1 0:45 /null /proc/kcore ro - tmpfs tmpfs rw\n";
        fs::write(host.proc_of(7, "mountinfo"), &info).unwrap();
        let spec = spec(r#"{"linux":{"maskedPaths":["/proc/kcore","/proc/acpi","/proc/absent"]}}"#);
        let found = pairs(external_mounts(&host, &spec, &task).unwrap());
        assert_eq!(found, [("/proc/kcore".into(), masks::FILE.into()), ("/proc/acpi".into(), masks::DIRECTORY.into())]);
        // With the container's own /dev there, the file is runc's way.
        fs::write(host.proc_of(7, "mountinfo"), info + "8 1 0:45 / /dev rw - tmpfs tmpfs rw\n").unwrap();
        let found = pairs(external_mounts(&host, &spec, &task).unwrap());
        assert_eq!(found[0].1, "/dev/null");
    }

    #[test]
    fn cgroup_mounts_are_external_on_v1_without_a_namespace_only() {
        let (_temp, host, mut task) = scene();
        let mount = r#""mounts":[{"destination":"/sys/fs/cgroup","type":"cgroup"}]"#;
        let plain = spec(&format!("{{{mount}}}"));
        let with_ns = spec(&format!(r#"{{{mount},"linux":{{"namespaces":[{{"type":"cgroup"}}]}}}}"#));
        let keys = |spec, task: &Task| pairs(cgroup_mounts(&host, spec, task).unwrap()).into_iter().map(|p| p.0);
        assert_eq!(keys(&plain, &task).collect::<Vec<_>>(), ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/freezer"]);
        assert_eq!(keys(&with_ns, &task).count(), 0);
        task.cgroup_version = CgroupVersion::V2;
        assert_eq!(keys(&plain, &task).count(), 0);
    }

    #[test]
    fn a_namespace_is_external_only_if_the_spec_joins_it_by_a_path() {
        let (temp, host, task) = scene();
        let file = temp.path().join("netns");
        fs::write(&file, "").unwrap();
        let inode = fs::metadata(&file).unwrap().ino();
        let joined =
            spec(&format!(r#"{{"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"network","path":{file:?}}}]}}}}"#));
        assert_eq!(external_namespaces(&host, &joined, &task).unwrap(), [format!("net[{inode}]:extRootNetNS")]);
        let new = spec(r#"{"linux":{"namespaces":[{"type":"network"},{"type":"pid"}]}}"#);
        assert!(external_namespaces(&host, &new, &task).unwrap().is_empty());
    }

    #[test]
    fn a_sandbox_that_has_gone_leaves_its_namespace_to_be_found_at_init() {
        let (_temp, host, task) = scene();
        let own = host.proc_of(7, "ns/pid");
        fs::write(&own, "").unwrap();
        let spec = spec(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/gone/ns/pid"}]}}"#);
        let inode = fs::metadata(&own).unwrap().ino();
        assert_eq!(external_namespaces(&host, &spec, &task).unwrap(), [format!("pid[{inode}]:extRootPidNS")]);
    }

    #[test]
    fn the_network_is_locked_when_a_peer_could_disturb_and_never_the_hosts() {
        let (_temp, host, task) = scene();
        let criu = |has_nftables| Criu { has_nftables, ..Criu::stand_in() };
        let table = host.proc_of(7, "net/tcp");
        fs::create_dir(table.parent().unwrap()).unwrap();
        let head = "  sl  local_address rem_address   st tx_queue";
        let line = |state: &&str| format!("   0: 00000000:18EB 00000000:0000 {state} 00000000:00000000 00:00000000");
        for (states, quiet) in
            [(vec![], true), (vec!["0A", "07"], true), (vec!["0A", "01"], false), (vec!["06"], false)]
        {
            let lines: Vec<_> = std::iter::once(head.to_owned()).chain(states.iter().map(line)).collect();
            fs::write(&table, lines.join("\n")).unwrap();
            assert_eq!(is_quiet(&host, &task), quiet, "{states:?}");
        }
        fs::write(host.proc_of(7, "net/sockstat"), "TCP: inuse 0 orphan 0 tw 0 alloc 9 mem 9\n").unwrap();
        assert!(is_quiet(&host, &task));
        fs::write(host.proc_of(7, "net/sockstat6"), "TCP6: inuse 1\n").unwrap();
        assert_eq!(lock(&host, &criu(true), &task, NetworkLock::Auto), LockMethod::Nftables);
        assert_eq!(lock(&host, &criu(false), &task, NetworkLock::Auto), LockMethod::Iptables);
        assert_eq!(lock(&host, &criu(true), &task, NetworkLock::Skip), LockMethod::Skip);
        fs::remove_file(host.proc_of(7, "ns/net")).unwrap();
        symlink("net:[4026531840]", host.proc_of(7, "ns/net")).unwrap();
        assert_eq!(lock(&host, &criu(true), &task, NetworkLock::Iptables), LockMethod::Skip);
    }

    #[test]
    fn runcs_configuration_file_is_named_unless_the_annotation_says_otherwise() {
        let with = |value: &str| spec(&format!(r#"{{"annotations":{{"org.criu.config":"{value}"}}}}"#));
        assert_eq!(config_file(&Spec::default()).as_deref(), Some("/etc/criu/runc.conf"));
        assert_eq!(config_file(&with("/x.conf")).as_deref(), Some("/x.conf"));
        assert_eq!(config_file(&with("")), None);
    }

    #[test]
    fn recorded_descriptors_come_before_those_of_now() {
        let (_temp, host, mut task) = scene();
        assert_eq!(descriptors(&host, &task), task.external_descriptors);
        task.external_descriptors.clear();
        fs::create_dir(host.proc_of(7, "fd")).unwrap();
        symlink("pipe:[5]", host.proc_of(7, "fd/1")).unwrap();
        assert_eq!(descriptors(&host, &task), ["/dev/null", "pipe:[5]", "/dev/null"]);
    }
}
