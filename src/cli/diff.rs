//! `dewar diff`.

use std::{io::Write, process::ExitCode};

use dewar::{
    error::Result,
    host::Host,
    id::Namespace,
    job::{
        diff::{self, Change},
        select,
    },
};

use super::{FINDINGS, render};

/// Arguments of `diff`.
#[derive(clap::Args)]
pub struct Args {
    /// An id, a unique prefix of one, a name, `pod/container`, or `namespace/id`
    container: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints one line a change: `A`, `C` or `D`, the path, and what is there.
pub fn run(args: &Args, hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    let opened = super::open(hosts)?;
    let (store, container) = select::find(&opened.stores, namespace, &args.container)?;
    let mut all = Vec::new();
    let findings = diff::diff(store, &container, &mut |change| {
        if args.json {
            all.push(change);
            return Ok(());
        }
        render::print(out, &line(&change))
    })?;
    if args.json {
        render::json(out, &all)?;
    }
    findings.iter().for_each(|finding| render::warn(&format!("{}: {finding}", container.name)));
    Ok(opened.exit(if findings.is_empty() { 0 } else { FINDINGS }))
}

fn line(change: &Change) -> String {
    let mut line = format!("{} {}", change.change, change.path.path);
    let size = change.size.map(|bytes| format!(", {}", render::size(bytes))).unwrap_or_default();
    let left_out = change.left_out.as_ref().map(|why| format!(", not in a layer: {why}")).unwrap_or_default();
    if let Some(kind) = change.kind {
        line += &format!("  ({kind}{size}{left_out})");
    }
    render::safe(&line).into_owned()
}
