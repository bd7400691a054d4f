//! `dewar unseal`.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use dewar::{
    error::{Error, Result},
    job::unseal,
    layout::Layout,
};

use super::{keys, output::Output, render};

/// Arguments of `unseal`.
#[derive(clap::Args)]
pub struct Args {
    /// The OCI image layout with what is sealed
    layout: PathBuf,
    /// One checkpoint, by its name or digest, or by the digest of its sealed entry [default: all]
    #[arg(value_name = "REF")]
    reference: Option<String>,
    /// A file with the secret key of a recipient, as age-keygen writes it; again: any of these
    #[arg(short, long, value_name = "FILE", required = true)]
    identity: Vec<PathBuf>,
    /// A layout's directory, made or added to; a file ending in .tar; or - for a tar on stdout
    #[arg(short, long, value_name = "LAYOUT")]
    output: PathBuf,
}

/// Writes the plain layout, and prints the digest of each checkpoint in it.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let layout = Layout::open(&args.layout)?;
    let keys = keys::identities(&args.identity)?;
    let keys = keys.ok_or_else(|| Error::NotFound { what: "an identity".into(), hint: "give one with -i".into() })?;
    let opened = unseal::open(&layout, args.reference.as_deref(), &keys)?;
    let output = Output::whole(&args.output, "dewar unseal …")?;
    let mut digests = Vec::new();
    for opened in &opened {
        digests.push(unseal::unseal(&layout, opened, &keys, output.layout())?.digest.to_string());
    }
    output.finish(out, true)?;
    let mut stderr = io::stderr();
    let told: &mut dyn Write = if args.output == Path::new("-") { &mut stderr } else { out };
    digests.iter().try_for_each(|digest| render::print(told, digest))?;
    Ok(ExitCode::SUCCESS)
}
