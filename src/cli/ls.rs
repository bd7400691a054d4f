//! `dewar ls`.

use std::{borrow::Cow, io::Write, process::ExitCode};

use dewar::{
    containerd::{identity::Kind, meta::Origin},
    error::{Error, Result, with_causes},
    host::Host,
    id::Namespace,
    job::{
        list::{self, Detail, Row, Status, joined},
        select::{Filter, Label},
        store::Store,
    },
};

use super::{
    FINDINGS,
    render::{self, Cells},
};

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
    // What the table of containers does not show is not looked up.
    let is_brief = !args.json && args.pod.is_none();
    let in_pieces = is_brief && !args.deleted && args.labels.is_empty();
    let opened = if in_pieces { super::open_by(hosts, Store::open_in_pieces)? } else { super::open(hosts)? };
    let pods = args.pod.iter().filter(|pod| !pod.is_empty()).cloned().collect();
    let filter = Filter { namespace: namespace.cloned(), pods, labels: args.labels.clone() };
    let detail = if is_brief { Detail::Line } else { Detail::All };
    for store in &opened.stores {
        let listed = match list::list(store, &filter, detail) {
            // A daemon may have come meanwhile. One store does not hide the others.
            Err(e) if opened.stores.len() > 1 && !matches!(e, Error::Interrupted) => (Vec::new(), vec![e]),
            listed => listed?,
        };
        let (found, unreadable) = listed;
        rows = joined(rows, found);
        rows.extend(if args.deleted { list::deleted(store, &filter)? } else { Vec::new() });
        errors.extend(unreadable);
    }
    if args.pod.is_some() {
        rows.retain(|row| row.pod.is_some());
        rows.sort_by(|a, b| (&a.store, &a.pod, &a.id).cmp(&(&b.store, &b.pod, &b.id)));
    }
    // Which store, only where there are several.
    let left_out = usize::from(opened.stores.len() < 2);
    match (args.json, &args.pod) {
        (false, None) => render::table(out, left_out, HEAD, &rows, cells)?,
        (false, Some(_)) => render::table(out, left_out, POD_HEAD, &rows, pod_cells)?,
        (true, _) => render::json(out, &rows)?,
    }
    errors.iter().for_each(|e| render::warn(&with_causes(e)));
    let code = opened.exit(if errors.is_empty() { 0 } else { FINDINGS });
    // The program ends: a hundred thousand rows are not given back one by one.
    std::mem::forget(rows);
    Ok(code)
}

const HEAD: [&str; 8] = ["STORE", "NAMESPACE", "ID", "NAME", "IMAGE", "SNAPSHOTTER", "STATUS", "PID"];
const POD_HEAD: [&str; 8] = ["STORE", "POD", "CONTAINER", "ATTEMPT", "ID", "IMAGE", "STATUS", "PID"];

fn cells(row: &Row) -> Cells<'_, 8> {
    let [status, pid] = state(row);
    let [store, namespace, image, snapshotter] =
        [&row.store, &row.namespace, &row.image, &row.snapshotter].map(|text| filled(text));
    [store, namespace, filled(&row.id), filled(&row.name), image, snapshotter, status, pid]
}

/// A sandbox stands before the containers of its pod. All rows here are of some pod.
fn pod_cells(row: &Row) -> Cells<'_, 8> {
    let [status, pid] = state(row);
    let (name, container, attempt) = row.pod.as_ref().map_or_else(Default::default, |pod| {
        let is_sandbox = pod.kind == Kind::Sandbox;
        let container = if is_sandbox { "(sandbox)".into() } else { filled(&pod.container) };
        let name = render::safe(&format!("{}/{}", pod.namespace, pod.name)).into_owned();
        (name, container, pod.attempt.map_or("-".into(), |n| n.to_string().into()))
    });
    [filled(&row.store), name.into(), container, attempt, filled(&row.id), filled(&row.image), status, pid]
}

fn filled(text: &str) -> Cow<'_, str> {
    if text.is_empty() { "-".into() } else { render::safe(text) }
}

fn state(row: &Row) -> [Cow<'static, str>; 2] {
    let status = match (&row.origin, row.status) {
        (Origin::Deleted(_), _) => "deleted",
        (_, Status::Running) => "running",
        (_, Status::Paused) => "paused",
        (_, Status::Stopped) => "stopped",
        (_, Status::None) => "none",
    };
    [status.into(), row.pid.map_or("-".into(), |pid| pid.to_string().into())]
}
