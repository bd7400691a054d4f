//! `dewar verify`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use dewar::{error::Result, job::verify, layout::Layout};

use super::{FINDINGS, render};

/// Arguments of `verify`.
#[derive(clap::Args)]
pub struct Args {
    /// The OCI image layout
    layout: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Exit status 0: sound; 1: findings; 2: could not look.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let verdict = verify::verify(&Layout::open(&args.layout)?)?;
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
