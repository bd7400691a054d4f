//! `dewar checkpoint`.

use std::{
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::ValueEnum;
use dewar::{
    containerd::meta::Container,
    dump,
    error::{At, Error, Result},
    evidence::{Case, sign::Key},
    host::Host,
    id::Namespace,
    interrupt,
    job::{
        checkpoint::{self, Memory, Options, Report},
        evidence::Wanted,
        locate::{self, with_causes},
        select::{self, Filter, Label},
        store::Store,
    },
    raw, rw, volatile,
};
use jiff::Timestamp;

use super::{
    FAILED, FINDINGS,
    keys::{self, Seal},
    output::Output,
    progress::{self, Progress},
    render,
};

/// Arguments of `checkpoint`.
#[derive(clap::Args)]
pub struct Args {
    /// An id, a unique prefix of one, a name, `pod/container`, `namespace/pod/container`, compose's `project/service`, or
    /// `namespace/id`
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["all", "pods", "labels"])]
    containers: Vec<String>,
    /// All containers of the stores (or of the namespace)
    #[arg(long, conflicts_with = "containers")]
    all: bool,
    /// All containers of this pod, `pod` or `namespace/pod`, its sandbox last; again for more
    #[arg(long = "pod", value_name = "POD", conflicts_with = "containers")]
    pods: Vec<String>,
    /// All containers with this label, `key` or `key=value`; a pod's labels count for its containers; again: with all of these
    #[arg(short, long = "label", value_name = "LABEL", conflicts_with = "containers")]
    labels: Vec<Label>,
    /// A layout's directory, made or added to; a file ending in .tar; or - for a tar on stdout
    #[arg(short, long, value_name = "LAYOUT")]
    output: PathBuf,
    /// Stop the container once the bundle is safely on disk [default: leave it as it is]
    #[arg(long)]
    exit: bool,
    /// Take the contents of bind mounts too; without a dump of memory, those of tmpfs as well
    #[arg(long)]
    binds: bool,
    /// Dump a live task's memory
    #[arg(long, value_enum, default_value = "auto")]
    task: Task,
    /// Only reference the base image; the target must have it
    #[arg(long)]
    no_image: bool,
    /// The checkpoint's name [default: localhost/checkpoint/NAMESPACE/ID:TIME]
    #[arg(long = "ref", value_name = "NAME")]
    reference: Option<String>,
    /// How the rw layer is stored; `ctr containers restore --rw` takes gzip only
    #[arg(long, value_enum, default_value = "gzip")]
    compression: Compression,
    /// Print a report in place of the digests
    #[arg(long)]
    json: bool,
    /// Show the stages on stderr
    #[arg(long, value_enum, default_value = "auto")]
    progress: progress::Mode,
    #[command(flatten)]
    criu: Criu,
    #[command(flatten)]
    capture: Capture,
    #[command(flatten)]
    evidence: Evidence,
    #[command(flatten)]
    seal: Seal,
}

/// What is taken to be looked at.
#[derive(clap::Args)]
#[command(next_help_heading = "Evidence")]
struct Capture {
    /// Of a live task, what else is volatile: all, none, or some of sockets,routes,neighbours,interfaces,processes,
    /// namespaces,mounts,cgroups
    #[arg(long, value_name = "LIST", default_value = "all")]
    volatile: volatile::Wanted,
    /// How much of each file without a name a raw capture saves, in bytes or with K, M, G, T
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    deleted_files_max: u64,
}

/// What goes into the acquisition record. Any of these has it list the container's files one by one.
#[derive(clap::Args)]
#[command(next_help_heading = "Evidence")]
struct Evidence {
    /// The case's number or name
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Who examines
    #[arg(long, value_name = "TEXT")]
    examiner: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Sign the record with this Ed25519 key (PKCS#8 PEM or OpenSSH, readable by its owner only)
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Make no acquisition record
    #[arg(long, conflicts_with_all = ["case", "examiner", "reason", "sign_key"])]
    no_evidence: bool,
}

impl Evidence {
    fn is_asked(&self) -> bool {
        self.case.is_some() || self.examiner.is_some() || self.reason.is_some() || self.sign_key.is_some()
    }

    /// A record tells of one run, so there is none where the same bytes are wanted from each run, unless it is asked for.
    fn is_wanted(&self) -> bool {
        self.is_asked() || !self.no_evidence && !is_reproducible()
    }

    fn wanted(&self) -> Result<Option<Wanted>> {
        if !self.is_wanted() {
            return Ok(None);
        }
        let Self { case, examiner, reason, .. } = self;
        let [case, examiner, reason] = [case, examiner, reason].map(Clone::clone);
        let key = self.sign_key.as_deref().map(sign_key).transpose()?.map(Arc::new);
        Ok(Some(Wanted { case: Case { case, examiner, reason }, key, files: self.is_asked() }))
    }
}

/// Reads the examiner's key, which nobody else may know.
fn sign_key(path: &Path) -> Result<Key> {
    let file = keys::open(path)?;
    let mode = file.metadata().at("look at", path)?.mode();
    if mode & 0o077 != 0 {
        return Err(Error::Unsupported {
            what: format!(
                "the key {} can be read by others (mode {:04o}), so anybody may have signed with it",
                path.display(),
                mode & 0o7777
            ),
            hint: "make a new one, or, if nobody else was on this machine, close it: chmod 600".into(),
        });
    }
    Key::parse(&keys::text_of(file, path)?).map_err(|why| Error::malformed(path, why))
}

impl Args {
    /// True if what is read has to be accounted for.
    pub fn wants_evidence(&self) -> bool {
        self.evidence.is_wanted()
    }

    /// Where it writes.
    pub fn written(&self) -> Vec<&Path> {
        std::iter::once(self.output.as_path()).chain(self.seal.staging.as_deref()).collect()
    }
}

/// What CRIU is asked.
#[derive(clap::Args)]
#[command(next_help_heading = "CRIU")]
struct Criu {
    /// The CRIU program
    #[arg(long = "criu", value_name = "PATH", default_value = "criu")]
    program: PathBuf,
    /// Dump established TCP connections (a restore must allow them too)
    #[arg(long)]
    tcp_established: bool,
    /// Dump unix sockets whose other end is outside the container
    #[arg(long)]
    ext_unix_sk: bool,
    /// Dump file locks
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    file_locks: bool,
    /// The container's session or terminal belongs to a shell outside
    #[arg(long)]
    shell_job: bool,
    /// How the network is held while connections are dumped
    #[arg(long, value_enum, default_value = "auto", value_name = "METHOD")]
    network_lock: NetworkLock,
}

#[derive(Clone, Copy, ValueEnum)]
enum Task {
    /// If there is a live task; what CRIU refuses is captured raw, not to be restored
    Auto,
    /// Or write nothing at all
    Always,
    /// Files only
    Never,
    /// An ELF core of each process, without CRIU: to be looked at, never to be restored
    Raw,
}

#[derive(Clone, Copy, ValueEnum)]
enum Compression {
    Gzip,
    Zstd,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
enum NetworkLock {
    /// None when no connection is open; else nftables or iptables
    Auto,
    Skip,
    Nftables,
    Iptables,
}

/// Checkpoints each container; one that fails does not keep the others back.
pub fn run(args: &Args, mut hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    hosts.iter_mut().for_each(|host| host.criu.clone_from(&args.criu.program));
    let options = options(args)?;
    // Before anything is read: nobody can be asked again when a container stands still.
    args.seal.recipients()?;
    args.seal.staging()?;
    let opened = super::open(hosts)?;
    let mut unreadable = Vec::new();
    let containers = containers(args, &opened.stores, namespace, &mut unreadable)?;
    let output = Output::open(&args.output, "dewar checkpoint …")?;
    let output = match args.seal.recipients()? {
        Some(recipients) => output.sealed_to(recipients, args.seal.staging()?),
        None => output,
    };
    let mut reports = Vec::new();
    let mut worst = if unreadable.is_empty() { 0 } else { FINDINGS };
    for (store, container) in containers {
        let name = container.name.clone();
        match one(store, container, &output, &options, args.progress) {
            Ok(report) => {
                report.notes.iter().chain(&report.findings).for_each(|f| render::warn(&format!("{name}: {f}")));
                worst = worst.max(if report.findings.is_empty() { 0 } else { FINDINGS });
                reports.push(report);
            }
            Err(e) if interrupt::check().is_err() => {
                return Err(if reports.is_empty() { e } else { Error::Interrupted });
            }
            Err(e) => {
                render::warn(&format!("{name}: {}", with_causes(&e)));
                if let Error::Criu { log, .. } = &e {
                    log.iter().for_each(|line| render::warn(&format!("  {line}")));
                }
                worst = FAILED;
            }
        }
    }
    // The result is told only once it is where the user wants it.
    output.finish(out, !reports.is_empty())?;
    match args.output == Path::new("-") {
        true => tell(args, &reports, &mut io::stderr())?,
        false => tell(args, &reports, out)?,
    }
    Ok(opened.exit(worst))
}

fn one(
    store: &Store,
    container: Container,
    output: &Output,
    options: &Options,
    mode: progress::Mode,
) -> Result<Report> {
    let progress = Progress::new(mode, &container.name.to_string());
    let target = locate::locate(store, container)?;
    checkpoint::checkpoint(store, target, output.layout(), options, &|stage| progress.at(stage))
}

fn tell(args: &Args, reports: &[Report], out: &mut dyn Write) -> Result<()> {
    if args.json {
        return render::json(out, &reports);
    }
    reports.iter().try_for_each(|report| render::print(out, &report.digest))
}

/// What was asked for, each with the store that has it.
fn containers<'s>(
    args: &Args,
    stores: &'s [Store],
    namespace: Option<&Namespace>,
    unreadable: &mut Vec<Error>,
) -> Result<Vec<(&'s Store, Container)>> {
    if !args.containers.is_empty() {
        return args.containers.iter().map(|wanted| select::find(stores, namespace, wanted)).collect();
    }
    let filter = Filter { namespace: namespace.cloned(), pods: args.pods.clone(), labels: args.labels.clone() };
    let found = select::matching(stores, &filter, unreadable)?;
    unreadable.iter().for_each(|e| render::warn(&with_causes(e)));
    if found.is_empty() && !args.all {
        return Err(Error::NotFound {
            what: "a container with these labels".into(),
            hint: "dewar ls -l LABEL shows who has one".into(),
        });
    }
    Ok(found)
}

fn options(args: &Args) -> Result<Options> {
    if args.reference.is_some() && args.containers.len() != 1 {
        return Err(Error::Unsupported {
            what: "--ref names one checkpoint, and several containers were asked for".into(),
            hint: "leave --ref out, or checkpoint them one by one into the same layout".into(),
        });
    }
    let criu = &args.criu;
    Ok(Options {
        memory: match args.task {
            Task::Auto => Memory::Auto,
            Task::Always => Memory::Always,
            Task::Never => Memory::Never,
            Task::Raw => Memory::Raw,
        },
        exit: args.exit,
        binds: args.binds,
        image: !args.no_image,
        reference: args.reference.as_deref().map(checkpoint::qualified).transpose()?,
        compression: match args.compression {
            Compression::Gzip => rw::Compression::gzip(is_reproducible()),
            Compression::Zstd => rw::Compression::Zstd,
            Compression::None => rw::Compression::None,
        },
        dump: dump::Options {
            tcp_established: criu.tcp_established,
            ext_unix_sk: criu.ext_unix_sk,
            file_locks: criu.file_locks,
            shell_job: criu.shell_job,
            log_level: dump::Options::default().log_level,
            network_lock: match criu.network_lock {
                NetworkLock::Auto => dump::NetworkLock::Auto,
                NetworkLock::Skip => dump::NetworkLock::Skip,
                NetworkLock::Nftables => dump::NetworkLock::Nftables,
                NetworkLock::Iptables => dump::NetworkLock::Iptables,
            },
        },
        raw: raw::Options { deleted_max: args.capture.deleted_files_max },
        volatile: args.capture.volatile.clone(),
        now: now()?,
        evidence: args.evidence.wanted()?,
    })
}

/// `1048576`, `1024K`, `1M`.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("a number of bytes, or one with K, M, G or T behind it".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "no number of bytes".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more bytes than there can be".into())
}

/// The same bytes are wanted from each run.
fn is_reproducible() -> bool {
    std::env::var_os("SOURCE_DATE_EPOCH").is_some()
}

/// `SOURCE_DATE_EPOCH` where it is set (reproducible-builds.org): same stores, same time, same bytes.
fn now() -> Result<Timestamp> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(Timestamp::now()) };
    let seconds = text.to_str().and_then(|t| t.trim().parse().ok());
    seconds.and_then(|s| Timestamp::from_second(s).ok()).ok_or_else(|| Error::Unsupported {
        what: format!("SOURCE_DATE_EPOCH is {text:?}, which is no number of seconds since 1970"),
        hint: "unset it or set it to such a number".into(),
    })
}
