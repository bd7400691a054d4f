//! `dewar ls`.

use std::{io::Write, process::ExitCode};

use dewar::{
    error::Result,
    host::Host,
    id::Namespace,
    job::{
        list::{self, Row},
        locate::with_causes,
    },
};

use super::{FINDINGS, render};

/// Arguments of `ls`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the containers; records that cannot be read are named on stderr.
pub fn run(args: &Args, hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for store in super::open(hosts)? {
        let (found, unreadable) = list::list(&store, namespace)?;
        rows.extend(found);
        errors.extend(unreadable);
    }
    if args.json {
        render::json(out, &rows)?;
    } else {
        let head = ["NAMESPACE", "ID", "NAME", "IMAGE", "SNAPSHOTTER", "STATUS", "PID"];
        render::table(out, &head, &rows.iter().map(cells).collect::<Vec<_>>())?;
    }
    errors.iter().for_each(|e| render::warn(&with_causes(e)));
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) })
}

fn cells(row: &Row) -> Vec<String> {
    let filled = |text: &str| if text.is_empty() { "-".to_owned() } else { render::safe(text) };
    let status = format!("{:?}", row.status).to_lowercase();
    let pid = row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    [&row.namespace, &row.id, &row.name, &row.image, &row.snapshotter]
        .map(|text| filled(text))
        .into_iter()
        .chain([status, pid])
        .collect()
}
