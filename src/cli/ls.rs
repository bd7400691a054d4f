//! `dewar ls`.

use std::{io::Write, process::ExitCode};

use dewar::{
    containerd::{identity::Kind, meta::Origin},
    error::{Result, with_causes},
    host::Host,
    id::Namespace,
    job::{
        list::{self, Row},
        select::{Filter, Label},
    },
};

use super::{FINDINGS, render};

/// Arguments of `ls`.
#[derive(clap::Args)]
pub struct Args {
    /// Show pods, each with its sandbox and its containers; only this one, if it is named: `pod` or `namespace/pod`
    #[arg(long, value_name = "POD", num_args = 0..=1, default_missing_value = "")]
    pod: Option<String>,
    /// Only those with this label, `key` or `key=value`; a pod's labels count for its containers; again for more
    #[arg(short, long = "label", value_name = "LABEL")]
    labels: Vec<Label>,
    /// Show removed containers too, as far as their records are still found
    #[arg(long)]
    deleted: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the containers; records that cannot be read are named on stderr.
pub fn run(args: &Args, hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    let opened = super::open(hosts)?;
    let pods = args.pod.iter().filter(|pod| !pod.is_empty()).cloned().collect();
    let filter = Filter { namespace: namespace.cloned(), pods, labels: args.labels.clone() };
    for store in &opened.stores {
        let (found, unreadable) = list::list(store, &filter)?;
        rows.extend(found);
        rows.extend(if args.deleted { list::deleted(store, &filter)? } else { Vec::new() });
        errors.extend(unreadable);
    }
    if args.pod.is_some() {
        rows.retain(|row| row.pod.is_some());
        rows.sort_by(|a, b| (&a.store, &a.pod, &a.id).cmp(&(&b.store, &b.pod, &b.id)));
    }
    // Which store, only where there are several.
    let first = usize::from(opened.stores.len() < 2);
    let mut table = |head: &[&str], cells: fn(&Row) -> Vec<String>| {
        let rows: Vec<_> = rows.iter().map(|row| cells(row).split_off(first)).collect();
        render::table(out, &head[first..], &rows)
    };
    match (args.json, &args.pod) {
        (false, None) => table(&["STORE", "NAMESPACE", "ID", "NAME", "IMAGE", "SNAPSHOTTER", "STATUS", "PID"], cells)?,
        (false, Some(_)) => {
            table(&["STORE", "POD", "CONTAINER", "ATTEMPT", "ID", "IMAGE", "STATUS", "PID"], pod_cells)?
        }
        (true, _) => render::json(out, &rows)?,
    }
    errors.iter().for_each(|e| render::warn(&with_causes(e)));
    Ok(opened.exit(if errors.is_empty() { 0 } else { FINDINGS }))
}

fn cells(row: &Row) -> Vec<String> {
    let [status, pid] = state(row);
    let texts = [&row.store, &row.namespace, &row.id, &row.name, &row.image, &row.snapshotter];
    texts.map(|text| filled(text)).into_iter().chain([status, pid]).collect()
}

/// A sandbox stands before the containers of its pod.
fn pod_cells(row: &Row) -> Vec<String> {
    let [status, pid] = state(row);
    let Some(pod) = &row.pod else { return Vec::new() };
    let container = if pod.kind == Kind::Sandbox { "(sandbox)".to_owned() } else { filled(&pod.container) };
    let attempt = pod.attempt.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let name = render::safe(&format!("{}/{}", pod.namespace, pod.name));
    vec![filled(&row.store), name, container, attempt, filled(&row.id), filled(&row.image), status, pid]
}

fn filled(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { render::safe(text) }
}

fn state(row: &Row) -> [String; 2] {
    let status = match row.origin {
        Origin::Deleted(_) => "deleted".to_owned(),
        _ => format!("{:?}", row.status).to_lowercase(),
    };
    [status, row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())]
}
