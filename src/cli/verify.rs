//! `dewar verify`.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use dewar::{
    error::{At, Error, Result},
    evidence::sign::Trusted,
    job::verify,
    layout::Layout,
};

use super::{FINDINGS, render};

/// Arguments of `verify`.
#[derive(clap::Args)]
pub struct Args {
    /// The OCI image layout
    layout: PathBuf,
    /// Require of each checkpoint an acquisition record signed by this Ed25519 key (a public key, PEM or OpenSSH); again: by
    /// one of these
    #[arg(long, value_name = "KEY")]
    trust: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Exit status 0: sound; 1: findings; 2: could not look.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let trust = args.trust.iter().map(|path| trusted(path)).collect::<Result<Vec<_>>>()?;
    let verdict = verify::verify_trusting(&Layout::open(&args.layout)?, &trust)?;
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

/// A public key is one line, or three.
const MAX_KEY: u64 = 64 << 10;

fn trusted(path: &Path) -> Result<Trusted> {
    let mut text = String::new();
    File::open(path).at("read the key", path)?.take(MAX_KEY).read_to_string(&mut text).at("read the key", path)?;
    Trusted::parse(&text).map_err(|why| Error::malformed(path, why))
}
