//! Arguments, printing and exit codes; nothing here knows how anything is done.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use dewar::{
    error::{Error, Result, with_causes},
    host::{
        Host, ground, shield,
        stores::{self, Wanted},
    },
    id::Namespace,
    job::store::Store,
    ledger,
};

mod checkpoint;
mod diff;
mod evidence;
mod fsck;
mod inspect;
mod keys;
mod ls;
mod output;
mod progress;
mod render;
mod thaw;
mod timeline;
mod unseal;
mod verify;
mod whois;

/// Checkpoints containerd containers offline: from the stores on disk into an OCI image layout.
#[derive(Parser)]
#[command(version, about, propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Where the stores are.
#[derive(Args)]
struct Globals {
    /// containerd's persistent directory: only this store is looked at, and no configuration unless it is of this store
    /// [default: what config.toml says, /var/lib/containerd, and the stores of k3s, RKE2, k0s, MicroK8s and Docker]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// containerd's volatile directory [default: that of the store, /run/containerd]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// containerd's configuration: only its store is looked at [default: /etc/containerd/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Root of another host's file system, mounted here: all paths are looked up below it, and no link leads out
    #[arg(long, global = true, value_name = "DIR")]
    sysroot: Option<PathBuf>,
    /// Only this containerd namespace [default: all]
    #[arg(short, long, global = true, value_name = "NAMESPACE", env = "CONTAINERD_NAMESPACE")]
    namespace: Option<Namespace>,
    /// Read a consistent copy of the databases beside a running daemon
    #[arg(long, global = true)]
    daemon_running: bool,
    /// Refuse to read a store that is not on a read-only mount or device
    #[arg(long, global = true)]
    write_blocked: bool,
}

#[derive(Subcommand)]
enum Command {
    /// List the containers in the stores
    Ls(ls::Args),
    /// Write a container's spec, image, files and memory into an OCI image layout
    Checkpoint(Box<checkpoint::Args>),
    /// Show what a bundle holds
    Inspect(inspect::Args),
    /// Decrypt a sealed bundle: the layout that it would have been
    Unseal(unseal::Args),
    /// Check every digest, tar and image of a layout
    Verify(verify::Args),
    /// List what a container added, changed and deleted in its image
    Diff(diff::Args),
    /// Tell when what happened: files, records, image and processes of a container
    Timeline(timeline::Args),
    /// Check the stores themselves: all that is wrong, and what can still be brought home
    Fsck(fsck::Args),
    /// Say whose a pid, path, snapshot, digest or container is
    Whois(whois::Args),
    /// Let containers run that a killed dewar left frozen
    Thaw(thaw::Args),
    /// Undoes a freeze if the process that began it dies; started by `checkpoint` itself
    #[command(name = "__watchdog", hide = true)]
    Watchdog,
}

/// Says what went wrong, on stderr.
pub fn complain(text: &str) {
    render::warn(text);
}

/// Exit status: looked, and there are findings.
pub const FINDINGS: u8 = 1;
/// Exit status: could not do it.
pub const FAILED: u8 = 2;

impl Globals {
    /// Does `job` on the stores to look into; it writes to `written`. What could not be read on the way to them is a
    /// finding.
    fn look_writing(
        &self,
        written: &[&Path],
        job: impl FnOnce(Vec<Host>, Option<&Namespace>) -> Result<ExitCode>,
    ) -> Result<ExitCode> {
        let Self { root, state, config, sysroot, .. } = self;
        let [root, state, config, sysroot] = [root, state, config, sysroot].map(Clone::clone);
        let mut warnings = Vec::new();
        let hosts = stores::find(&Wanted { root, state, config, sysroot }, &mut warnings);
        warnings.iter().for_each(|warning| render::warn(warning));
        let mut hosts = hosts?;
        for host in &mut hosts {
            host.daemon_running = self.daemon_running;
            host.write_blocked = self.write_blocked;
            ground::refuse_writable_if(host, &host.places())?;
            shield::seal(host, written);
        }
        let done = job(hosts, self.namespace.as_ref())?;
        Ok(if warnings.is_empty() || done != ExitCode::SUCCESS { done } else { ExitCode::from(FINDINGS) })
    }

    /// The same, for what writes nothing.
    fn look(&self, job: impl FnOnce(Vec<Host>, Option<&Namespace>) -> Result<ExitCode>) -> Result<ExitCode> {
        self.look_writing(&[], job)
    }
}

/// The stores that could be opened.
struct Opened {
    stores: Vec<Store>,
    /// Why others could not.
    failed: Vec<Error>,
}

/// Opens each store. One that cannot be opened is named and does not hide the others; unless there are none.
fn open(hosts: Vec<Host>) -> Result<Opened> {
    open_by(hosts, Store::open)
}

/// The same, each opened so.
fn open_by(hosts: Vec<Host>, open: impl Fn(Host) -> Result<Store>) -> Result<Opened> {
    let mut opened = Opened { stores: Vec::new(), failed: Vec::new() };
    for host in hosts {
        match open(host) {
            Ok(store) => opened.stores.push(store),
            Err(e) => opened.failed.push(e),
        }
    }
    if opened.stores.is_empty()
        && let Some(last) = opened.failed.pop()
    {
        opened.failed.iter().for_each(|e| render::warn(&with_causes(e)));
        return Err(last);
    }
    opened.failed.iter().for_each(|e| render::warn(&format!("{}: this store is left out", with_causes(e))));
    Ok(opened)
}

impl Opened {
    /// The exit status of a job that went well, or so: a store that was left out is a finding.
    fn exit(&self, job: u8) -> ExitCode {
        ExitCode::from(job.max(if self.failed.is_empty() { 0 } else { FINDINGS }))
    }
}

impl Cli {
    /// True if it looks into stores: what only serves it, or reads bundles, needs no view of the machine of its own.
    pub fn reads_stores(&self) -> bool {
        !matches!(
            self.command,
            Command::Inspect(_) | Command::Unseal(_) | Command::Verify(_) | Command::Thaw(_) | Command::Watchdog
        )
    }

    /// True if it watches another that freezes.
    pub fn is_watchdog(&self) -> bool {
        matches!(self.command, Command::Watchdog)
    }

    /// Runs the command; its result goes to `out`, everything else to stderr.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let globals = &self.globals;
        match self.command {
            Command::Ls(args) => globals.look(|hosts, ns| ls::run(&args, hosts, ns, out)),
            Command::Checkpoint(args) => {
                if args.wants_evidence() {
                    ledger::open();
                }
                globals.look_writing(&args.written(), |hosts, ns| checkpoint::run(&args, hosts, ns, out))
            }
            Command::Inspect(args) => inspect::run(&args, out),
            Command::Unseal(args) => unseal::run(&args, out),
            Command::Verify(args) => verify::run(&args, out),
            Command::Diff(args) => globals.look(|hosts, ns| diff::run(&args, hosts, ns, out)),
            Command::Timeline(args) => globals.look(|hosts, ns| timeline::run(&args, hosts, ns, out)),
            Command::Fsck(args) => globals.look(|hosts, ns| fsck::run(&args, hosts, ns, out)),
            Command::Whois(args) => globals.look(|hosts, ns| whois::run(&args, hosts, ns, out)),
            Command::Thaw(args) => thaw::run(&args, &Host::default(), out),
            Command::Watchdog => watchdog(),
        }
    }
}

fn watchdog() -> Result<ExitCode> {
    dewar::freeze::watchdog::main(std::io::stdin(), std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}
