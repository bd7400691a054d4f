//! The messages of CRIU's RPC (`images/rpc.proto`, proto2), by hand and only the fields we use.
//!
//! One message is one datagram on a `SOCK_SEQPACKET` socket, with no length and no magic. CRIU skips fields it does
//! not know without a word, so what a field needs of its version is checked before it is sent (`dump::prepare`).

/// What a request asks for (`criu_req_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Only in answers to what CRIU could not read.
    Empty = 0,
    /// Dump a process tree.
    Dump = 1,
    /// The client's answer to a notification, and the notification itself.
    Notify = 6,
    /// What this kernel lets CRIU do.
    FeatureCheck = 9,
    /// Which CRIU this is.
    Version = 10,
}

/// `criu_req`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// `type`.
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// `opts`.
    #[prost(message, optional, tag = "2")]
    pub opts: Option<Opts>,
    /// `notify_success`: our answer to a notification; false aborts the dump.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    /// `keep_open`: another request follows on this socket (not after a dump).
    #[prost(bool, optional, tag = "4")]
    pub keep_open: Option<bool>,
    /// `features`: those to be looked at.
    #[prost(message, optional, tag = "5")]
    pub features: Option<Features>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// `type`.
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// `success`.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// `notify`: CRIU waits for our answer.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    /// `cr_errno`: often 0, "see the log"; 52 (EBADRQC) is a failed setup.
    #[prost(int32, optional, tag = "7")]
    pub cr_errno: Option<i32>,
    /// `features`.
    #[prost(message, optional, tag = "8")]
    pub features: Option<Features>,
    /// `cr_errmsg`: the first error of the log.
    #[prost(string, optional, tag = "9")]
    pub cr_errmsg: Option<String>,
    /// `version`.
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Notify {
    /// `script`: `pre-dump`, `network-lock`, `query-ext-files`, `post-dump`, `network-unlock`, …
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
}

/// `criu_features`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Features {
    /// `mem_track`: the kernel tracks which pages were written (soft-dirty).
    #[prost(bool, optional, tag = "1")]
    pub mem_track: Option<bool>,
}

/// `criu_version`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Version {
    /// `major_number`.
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    /// `minor_number`.
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    /// `gitid`: present in a build from git, which is newer than its number.
    #[prost(string, optional, tag = "3")]
    pub gitid: Option<String>,
    /// `sublevel`.
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

/// `ext_mount_map`: a mount that is not dumped but named.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExtMount {
    /// `key`: the mount point inside the container.
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// `val`: the name under which restore will be told what to mount there.
    #[prost(string, required, tag = "2")]
    pub val: String,
}

/// `criu_network_lock_method` (CRIU 3.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LockMethod {
    /// `iptables-restore` and `ip6tables-restore`.
    Iptables = 1,
    /// libnftables.
    Nftables = 2,
    /// No lock.
    Skip = 3,
}

/// `criu_opts`, the part of it a dump of a container needs; each field says its tag and so its place in `rpc.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Opts {
    /// `images_dir_fd`: a descriptor of the *client*, opened by CRIU as `/proc/<client>/fd/<n>`. Required, even if -1.
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    /// `pid`: unset, CRIU would dump the client.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// `leave_running`.
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    /// `ext_unix_sk`.
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    /// `tcp_established`.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// `shell_job`.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// `file_locks`.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// `log_level`: 1 errors, 2 warnings, 3 information, 4 everything.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// `log_file`: a name without `/`, in the work directory.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// `notify_scripts`.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// `root`.
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    /// `work_dir_fd`: as `images_dir_fd`; where log and statistics go.
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// `ext_mnt`.
    #[prost(message, repeated, tag = "23")]
    pub ext_mnt: Vec<ExtMount>,
    /// `manage_cgroups`.
    #[prost(bool, optional, tag = "24")]
    pub manage_cgroups: Option<bool>,
    /// `manage_cgroups_mode` (`criu_cg_mode`).
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// `external`: `net[<inode>]:<name>`, `pid[<inode>]:<name>`.
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    /// `empty_ns`: clone(2) flags of namespaces whose content is not dumped; only `CLONE_NEWNET` is taken.
    #[prost(uint32, optional, tag = "38")]
    pub empty_ns: Option<u32>,
    /// `freeze_cgroup`.
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    /// `orphan_pts_master`.
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
    /// `config_file`: its values win over ours.
    #[prost(string, optional, tag = "51")]
    pub config_file: Option<String>,
    /// `network_lock`.
    #[prost(enumeration = "LockMethod", optional, tag = "64")]
    pub network_lock: Option<i32>,
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_version_answer_of_criu_4_2_1_is_read_past_fields_we_do_not_know() {
        // type=10, success=1, version{4, 2, sublevel=1, name="x"}, status=0 (tag 11)
        let bytes = b"\x08\x0a\x10\x01\x52\x09\x08\x04\x10\x02\x20\x01\x32\x01x\x58\x00";
        let answer = Response::decode(&bytes[..]).unwrap();
        assert_eq!(answer.kind(), Kind::Version);
        let version = answer.version.unwrap();
        assert_eq!((version.major, version.minor, version.sublevel), (4, 2, Some(1)));
    }

    #[test]
    fn images_dir_fd_is_sent_even_when_it_is_zero_since_it_is_required() {
        let opts = Opts { images_dir_fd: 0, ..Opts::default() };
        assert_eq!(opts.encode_to_vec(), [0x08, 0x00]);
    }
}
