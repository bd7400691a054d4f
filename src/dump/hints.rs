//! CRIU's errors, in words: what they mean and what may be done, found by what its log says.
//!
//! The texts on the left are CRIU's own (the files named are of CRIU 4.2); a row matches when a line holds all of its
//! texts. The remedies are for somebody whose container must be checkpointed now.

/// One known cause.
struct Row {
    /// All of these stand in one line.
    says: &'static [&'static str],
    /// What it means and what helps.
    hint: &'static str,
}

const fn row(says: &'static [&'static str], hint: &'static str) -> Row {
    Row { says, hint }
}

const TOO_OLD: &str = "this CRIU does not know this kernel's vDSO: Linux 6.13 and later need CRIU 4.1 or later, \
                       Linux 6.16 and later CRIU 4.2; install it beside the old one and name it with --criu PATH";
const IO_URING: &str = "a process uses io_uring, which no CRIU can dump: turn it off in the program \
                        (UV_USE_IO_URING=0 for Node.js) or by the sysctl kernel.io_uring_disabled=2, and restart it";
const NOT_ROOT: &str = "CRIU must be root in the host's pid and mount namespaces, with all capabilities";

/// In the order of asking: the particular before the general.
const ROWS: &[Row] = &[
    row(&["rt vDSO area bounds"], TOO_OLD), // vdso.c
    row(&["vdso: ELF header magic mismatch"], TOO_OLD),
    row(
        &["Can't get 1:", "opt: Operation not supported"], // sockets.c: SO_PASSCRED and its kin on TCP
        "Linux 6.16 and later refuse a socket option that CRIU before 4.2 asks for: it needs CRIU 4.2 or later \
         (--criu PATH)",
    ),
    row(
        &["PAGE_IS_GUARD"],
        "memory with guard pages (glibc 2.42 and later make them) needs CRIU 4.2 and Linux 6.16 or later",
    ),
    row(
        &["has uprobes vma"],
        "a tracer has put uprobes into the process: detach it, or set allow-uprobes in /etc/criu/runc.conf \
         (also where it is restored)",
    ),
    row(&["io_uring"], IO_URING),
    // Linux refuses to pass such a descriptor from one process to another (6.7: `net/core/scm.c`), and nothing else of a dump's.
    row(&["send_fds failed (-22)"], IO_URING),
    row(
        &["Connected TCP socket"], // sk-inet.c
        "live TCP connections are dumped with --tcp-established; the restoring side needs tcp-established in its \
         /etc/criu/runc.conf as well, and the container's address",
    ),
    row(
        &["In-flight connection"],
        "a client was connecting at that very moment: try again, or put tcp-skip-in-flight into /etc/criu/runc.conf",
    ),
    row(
        &["Unsupported proto 262"], // sk-inet.c
        "the program listens by MPTCP, as Go programs do since Go 1.24: start it with GODEBUG=multipathtcp=0",
    ),
    row(
        &["External socket is used"], // sk-unix.c
        "a unix socket is connected to something outside the container: --ext-unix-sk dumps it if it is a datagram \
         socket with a name",
    ),
    row(
        &["half of stream unix connection"],
        "a unix stream connection (the system log, D-Bus, docker.sock, …) leads out of the container: stop that client \
         first",
    ),
    row(
        &["file locks are hold by dumping tasks"], // file-lock.c
        "the program holds file locks: leave --file-locks on",
    ),
    row(
        &["not a session leader"], // pstree.c
        "the container was started from a shell's terminal: use --shell-job",
    ),
    row(&["dangling tty"], "the container uses a terminal of somebody outside: use --shell-job"), // tty.c
    row(
        &["slave external peer is allowed"],
        "the container uses two terminals of somebody outside; CRIU dumps one: end one of them (an exec session?)",
    ),
    row(
        &["session leader of", "outside of its pid namespace"],
        "a process came in from outside (ctr task exec, kubectl exec): end that session",
    ),
    row(
        &["doesn't have a proper root mount"], // mount.c
        "something was mounted into the container after its start, unknown to its config.json: unmount it",
    ),
    row(
        &["FS mnt", "unsupported id"], // mount.c
        "the container has mounted a file system CRIU cannot dump (FUSE, NFS, overlay within, hugetlbfs): unmount it, \
         or name it with enable-fs or skip-mnt in /etc/criu/runc.conf",
    ),
    row(
        &["unreachable sharing"], // mount.c
        "a mount shares its events with the host (rshared, rslave): put enable-external-masters or \
         enable-external-sharing into /etc/criu/runc.conf",
    ),
    row(&["paths are invisible"], "a process has files open below a mount that hides them: CRIU cannot dump that"),
    row(
        &["suitable path for handle"], // fsnotify.c
        "a process watches a file by inotify that CRIU cannot find again: put force-irmap and irmap-scan-path into \
         /etc/criu/runc.conf, or end that watch",
    ),
    row(&["Can't dump that handle"], "a process watches a deleted file by inotify: end that watch"),
    row(
        &["Can't dump ghost file"],
        "a large deleted file is still open: raise ghost-limit in /etc/criu/runc.conf (ghost-limit=64M)",
    ),
    row(
        &["Can't create link remap"],
        "a deleted file that has other names is still open: put link-remap into /etc/criu/runc.conf, or close it",
    ),
    row(&["pidfd", "not a part of process tree"], "a process holds a pidfd of one outside the container"),
    row(
        &["Can't dump nested"], // namespaces.c
        "a process within has made namespaces of its own (a browser's sandbox, docker in docker): CRIU cannot dump those",
    ),
    row(
        &["pid namespace without the process init"],
        "the recorded process is not the first of its pid namespace: CRIU dumps only whole ones",
    ),
    row(
        &["Locking network failed"], // net.c
        "iptables-restore does not work here: install iptables, or use --network-lock nftables or skip",
    ),
    row(&["without libnftables support"], "this CRIU cannot use nftables: use --network-lock iptables or skip"),
    row(
        &["Unable to freeze cgroup"], // seize.c
        "a process waits in the kernel and cannot be frozen (a dead disk, NFS?)",
    ),
    row(
        &["Unable to interrupt task", "Operation not permitted"],
        "another debugger (strace, gdb, a security agent) holds a process: detach it; if there is none, CRIU lacks \
         CAP_SYS_PTRACE",
    ),
    row(&["SEIZE", "Operation not permitted"], "another debugger (strace, gdb) holds a process: detach it"),
    row(&["Zombie thread not supported"], "a thread was just ending: try again"),
    row(&["zombie", "while seizing"], "a process was just ending: try again"),
    row(
        &["don't know how to suspend LSM"],
        "a security module stands in CRIU's way: see that AppArmor or SELinux lets it run unconfined",
    ),
    row(
        &["that type", "chr"], // files-ext.c
        "a device is open (a GPU, /dev/kvm, …) that CRIU cannot dump without a plugin for it",
    ),
    row(&["Can't dump file", "anon_inode"], "a file descriptor is of a kind CRIU cannot dump; the error names it"), // files-ext.c
    row(&["CAP_CHECKPOINT_RESTORE"], NOT_ROOT), // cr-check.c
    row(&["No parent found for mountpoint"], "CRIU runs in a chroot: it needs a real root (pivot_root)"),
    row(&["No space left on device"], "the disk of the layout is full: memory needs as much space as it occupies"),
];

/// What is known of the first of these lines that is known at all.
pub fn find(lines: &[String]) -> Option<&'static str> {
    lines.iter().find_map(|line| ROWS.iter().find(|row| row.says.iter().all(|s| line.contains(s))).map(|row| row.hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_line_gets_its_own_remedy() {
        for (line, word) in [
            ("(00.000059) Error (criu/vdso.c:401): vdso: Unexpected rt vDSO area bounds", "CRIU 4.1"),
            ("Error (criu/sockets.c:700): sockets: Can't get 1:16 opt: Operation not supported", "6.16"),
            ("Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established", "--tcp-est"),
            ("Error (criu/sk-inet.c:188): inet: In-flight connection (l) for a0", "try again"),
            ("Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 9", "multipathtcp"),
            (
                "Error (criu/sk-unix.c:815): unix: External socket is used. Consider using --ext-unix-sk",
                "--ext-unix-sk",
            ),
            ("Error (criu/sk-unix.c:1): unix: Can't dump half of stream unix connection.", "stop that client"),
            ("Error (criu/file-lock.c:109): Some file locks are hold by dumping tasks!", "--file-locks"),
            ("Error (criu/tty.c:1830): tty: Found dangling tty with sid 9 pgid 9 (pts) on peer fd 0.", "--shell-job"),
            ("Error (criu/pstree.c:303): The root process 9 is not a session leader", "--shell-job"),
            ("Error (criu/mount.c:753): mnt: 9:/x doesn't have a proper root mount", "unmount"),
            ("Error (criu/mount.c:724): mnt: FS mnt /x dev 0x1 root / unsupported id 9", "FUSE"),
            (
                "Error (criu/files-ext.c:98): Can't dump file 5 of that type [600] (anon anon_inode:[io_uring])",
                "io_uring",
            ),
            ("pie: 1: Error (criu/pie/parasite.c:588): send_fds failed (-22)", "io_uring"),
            ("Error (criu/files-ext.c:98): Can't dump file 5 of that type [20666] (chr 195:0)", "device"),
            (
                "Error (criu/files-ext.c:98): Can't dump file 5 of that type [600] (anon anon_inode:[perf_event])",
                "kind",
            ),
            ("Error (criu/net.c:3000): net: Locking network failed: iptables-restore returned -1", "--network-lock"),
            ("Error (criu/seize.c:100): Unable to freeze cgroup /x (timeout 10)", "cannot be frozen"),
            ("Error (criu/namespaces.c:460): Can't dump nested uts namespace for 9", "namespaces of its own"),
        ] {
            let hint = find(&[line.to_owned()]).unwrap_or_else(|| panic!("nothing for {line}"));
            assert!(hint.contains(word), "{line}: {hint}");
        }
        assert_eq!(find(&["Error (criu/x.c:1): something new".into()]), None);
    }

    #[test]
    fn the_first_known_line_wins_since_later_errors_follow_from_it() {
        let lines = ["Error: unknown", "Error: Connected TCP socket", "Error: No space left on device"];
        assert!(find(&lines.map(str::to_owned)).unwrap().contains("--tcp-established"));
    }
}
