//! `dewar verify`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use dewar::{
    error::{Error, Result},
    evidence::sign::Trusted,
    job::verify,
    layout::Layout,
};

use super::{FINDINGS, keys, render};

/// Arguments of `verify`.
#[derive(clap::Args)]
pub struct Args {
    /// The OCI image layout
    layout: PathBuf,
    /// Require of each checkpoint an acquisition record signed by this Ed25519 key (a public key, PEM or OpenSSH); again: by
    /// one of these
    #[arg(long, value_name = "KEY")]
    trust: Vec<PathBuf>,
    /// Open what is sealed with the secret keys in this file, as age-keygen writes it, and check that too; again: any of these
    #[arg(short, long, value_name = "FILE")]
    identity: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Exit status 0: sound; 1: findings; 2: could not look.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let trust = args.trust.iter().map(|path| trusted(path)).collect::<Result<Vec<_>>>()?;
    let keys = keys::identities(&args.identity)?;
    let verdict = verify::verify_opening(&Layout::open(&args.layout)?, &trust, keys.as_ref())?;
    if args.json {
        render::json(out, &verdict)?;
    } else {
        for finding in &verdict.findings {
            render::print(out, &render::safe(&finding.to_string()))?;
        }
        let looked = format!("{} blobs, {}", verdict.blobs, render::size(verdict.bytes));
        match verdict.findings.len() {
            0 => render::print(out, &format!("sound: {looked}"))?,
            n => render::print(out, &format!("{n} findings: {looked}"))?,
        }
    }
    Ok(if verdict.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) })
}

fn trusted(path: &Path) -> Result<Trusted> {
    Trusted::parse(&keys::text(path)?).map_err(|why| Error::malformed(path, why))
}
