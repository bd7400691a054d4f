//! `dewar timeline`.

use std::{
    fs::OpenOptions,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::builder::PossibleValuesParser;
use dewar::{
    error::{At, Error, Result},
    host::Host,
    id::Namespace,
    job::{
        select,
        timeline::{self, Options, Outcome},
    },
    timeline::{Format, Head, TABLE, format},
};

use super::{FINDINGS, render};

/// Arguments of `timeline`.
#[derive(clap::Args)]
pub struct Args {
    /// An id, a unique prefix of one, a name, `pod/container`, or `namespace/id`
    container: String,
    /// `bodyfile` for mactime and Plaso, `jsonl` for Timesketch, or `dfxml`
    #[arg(long, value_name = "FORMAT", default_value = "bodyfile", value_parser = PossibleValuesParser::new(TABLE.iter().map(|f| f.name)))]
    format: String,
    /// Write into this new file [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Read all files of the container's own layer, for their MD5 and SHA-256
    #[arg(long)]
    hash: bool,
    /// Only files whose times were set by a program, or cannot be
    #[arg(long)]
    findings: bool,
    /// When removed containers of the same namespace were made, too, as far as their records are still found
    #[arg(long)]
    deleted: bool,
}

/// Writes the timeline; odd times and what could not be looked at are told on stderr, and are findings.
pub fn run(args: &Args, hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    let opened = super::open(hosts)?;
    let (store, container) = select::find(&opened.stores, namespace, &args.container)?;
    let format = format(&args.format).ok_or_else(|| Error::NotFound {
        what: format!("format {:?}", args.format),
        hint: "dewar timeline --help names them".into(),
    })?;
    let options = Options { hash: args.hash, only_findings: args.findings, deleted: args.deleted };
    let head = Head { container: container.name.to_string(), version: env!("CARGO_PKG_VERSION") };
    let write = |place: &Path, out: &mut dyn Write| {
        let mut out = BufWriter::new(out);
        let outcome =
            print(format, &head, &mut out, place, |each| timeline::timeline(store, &container, options, each))?;
        out.flush().at("write", place).map(|()| outcome)
    };
    let outcome = match &args.output {
        None => write("stdout".as_ref(), out)?,
        Some(path) => {
            // What is there already may be evidence.
            let mut file = OpenOptions::new().write(true).create_new(true).open(path).at("create", path)?;
            let outcome = write(path, &mut file)?;
            file.sync_all().at("sync", path)?;
            outcome
        }
    };
    let is_clean = outcome.odd == 0 && outcome.unseen.is_empty();
    tell(&head.container, &outcome);
    Ok(opened.exit(if is_clean { 0 } else { FINDINGS }))
}

/// Tells each record to the second.
type Each<'a> = &'a mut dyn FnMut(&dewar::timeline::Record) -> Result<()>;

fn print(
    format: &Format,
    head: &Head,
    out: &mut dyn Write,
    place: &Path,
    job: impl FnOnce(Each<'_>) -> Result<Outcome>,
) -> Result<Outcome> {
    out.write_all((format.begin)(head).as_bytes()).at("write", place)?;
    let outcome = job(&mut |record| out.write_all((format.record)(head, record).as_bytes()).at("write", place))?;
    out.write_all((format.end)().as_bytes()).at("write", place)?;
    Ok(outcome)
}

fn tell(container: &str, outcome: &Outcome) {
    outcome.unseen.iter().for_each(|what| render::warn(&format!("{container}: {what}")));
    for (path, finding) in &outcome.first {
        render::warn(&format!("{container}: /{}: {}", path.escape_ascii(), finding.text));
    }
    let more = outcome.odd.saturating_sub(outcome.first.len() as u64);
    if more > 0 {
        render::warn(&format!("{container}: {more} more files with such times; --findings lists all"));
    }
}
