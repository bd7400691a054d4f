//! `dewar ls`.

use std::{io::Write, process::ExitCode};

use dewar::{
    containerd::meta::Origin,
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
    /// Also the containers that were removed, as far as their records are not overwritten yet
    #[arg(long)]
    deleted: bool,
}

/// Lists the containers; records that cannot be read are named on stderr.
pub fn run(args: &Args, hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for store in super::open(hosts)? {
        let (found, unreadable) = list::list(&store, namespace)?;
        rows.extend(found);
        errors.extend(unreadable);
        if args.deleted {
            rows.extend(list::deleted(&store, namespace)?);
        }
    }
    if args.json {
        render::json(out, &rows)?;
    } else {
        let head = ["NAMESPACE", "ID", "NAME", "IMAGE", "SNAPSHOTTER", "STATUS", "PID", "RECORD"];
        // Where all records are as they should be, nobody needs to be told so.
        let columns = head.len() - usize::from(rows.iter().all(|row| row.origin == Origin::Live));
        let cut = |row: &Row| cells(row).into_iter().take(columns).collect();
        render::table(out, &head[..columns], &rows.iter().map(cut).collect::<Vec<Vec<String>>>())?;
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
        .chain([status, pid, row.origin.doubt().unwrap_or_else(|| "live".into())])
        .collect()
}
