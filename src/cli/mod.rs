//! Arguments, printing and exit codes; nothing here knows how anything is done.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use dewar::{error::Result, host::Host, id::Namespace, job::store::Store};

mod checkpoint;
mod diff;
mod inspect;
mod ls;
mod progress;
mod render;
mod thaw;
mod verify;

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
    /// containerd's persistent directory
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/containerd")]
    root: PathBuf,
    /// containerd's volatile directory
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/containerd")]
    state: PathBuf,
    /// Root of another host's file system, mounted here; --root and --state are looked up below it
    #[arg(long, global = true, value_name = "DIR")]
    sysroot: Option<PathBuf>,
    /// Only this containerd namespace [default: all]
    #[arg(short, long, global = true, value_name = "NAMESPACE", env = "CONTAINERD_NAMESPACE")]
    namespace: Option<Namespace>,
    /// Read a consistent copy of the databases beside a running daemon
    #[arg(long, global = true)]
    daemon_running: bool,
}

#[derive(Subcommand)]
enum Command {
    /// List the containers in the stores
    Ls(ls::Args),
    /// Write a container's spec, image, files and memory into an OCI image layout
    Checkpoint(Box<checkpoint::Args>),
    /// Show what a bundle holds
    Inspect(inspect::Args),
    /// Check every digest, tar and image of a layout
    Verify(verify::Args),
    /// List what a container added, changed and deleted in its image
    Diff(diff::Args),
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
    /// The stores to look into.
    fn hosts(&self) -> Vec<Host> {
        let below = |path: &Path| match &self.sysroot {
            Some(sysroot) => sysroot.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        };
        vec![Host {
            root: below(&self.root),
            state: below(&self.state),
            sysroot: self.sysroot.clone(),
            daemon_running: self.daemon_running,
            ..Host::default()
        }]
    }
}

/// Opens each store.
fn open(hosts: Vec<Host>) -> Result<Vec<Store>> {
    hosts.into_iter().map(Store::open).collect()
}

impl Cli {
    /// Runs the command; its result goes to `out`, everything else to stderr.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let (hosts, namespace) = (self.globals.hosts(), self.globals.namespace.as_ref());
        match self.command {
            Command::Ls(args) => ls::run(&args, hosts, namespace, out),
            Command::Checkpoint(args) => checkpoint::run(&args, hosts, namespace, out),
            Command::Inspect(args) => inspect::run(&args, out),
            Command::Verify(args) => verify::run(&args, out),
            Command::Diff(args) => diff::run(&args, hosts, namespace, out),
            Command::Thaw(args) => thaw::run(&args, &Host::default(), out),
            Command::Watchdog => watchdog(),
        }
    }
}

fn watchdog() -> Result<ExitCode> {
    dewar::freeze::watchdog::main(std::io::stdin(), std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}
