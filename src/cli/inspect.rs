//! `dewar inspect`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use dewar::{
    error::Result,
    job::inspect::{self, Checkpoint},
    layout::Layout,
    oci::{account::Account, names},
};

use super::{
    evidence::{self, Part},
    render::{self, safe, size},
};

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// The OCI image layout
    layout: PathBuf,
    /// One checkpoint, by its name or digest [default: all]
    #[arg(value_name = "REF")]
    reference: Option<String>,
    /// Show the acquisition record, or print one part of it byte for byte
    #[arg(long, value_enum, value_name = "PART", num_args = 0..=1, require_equals = true, default_missing_value = "summary")]
    evidence: Option<Part>,
    /// Print JSON; with --evidence: the record's own bytes
    #[arg(long)]
    json: bool,
}

/// Shows the checkpoints of a layout.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let (layout, reference) = (Layout::open(&args.layout)?, args.reference.as_deref());
    if let Some(part) = args.evidence {
        let part = if args.json && part == Part::Summary { Part::Record } else { part };
        return evidence::run(&layout, reference, part, out).map(|()| ExitCode::SUCCESS);
    }
    let all = inspect::inspect(&layout, reference)?;
    if args.json {
        render::json(out, &all)?;
    } else {
        for (i, checkpoint) in all.iter().enumerate() {
            if i > 0 {
                render::print(out, "")?;
            }
            show(checkpoint, out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(c: &Checkpoint, out: &mut dyn Write) -> Result<()> {
    let carried = match c.annotations.get(names::IMAGE_RECREATED) {
        _ if !c.image_carried => " (not in this layout)".to_owned(),
        Some(quality) => format!(" (made again from its snapshots: {quality})"),
        None => String::new(),
    };
    let mut lines = vec![
        ("checkpoint", c.reference.clone()),
        ("digest", c.digest.clone()),
        ("created", c.created.clone()),
        ("container", c.container.clone()),
        ("image", format!("{}{carried}", c.image)),
        ("runtime", c.runtime.clone()),
        ("snapshotter", c.snapshotter.clone()),
        ("command", c.args.join(" ")),
    ];
    lines.push((
        "files",
        c.files.as_ref().map_or("not in this checkpoint".into(), |f| {
            format!(
                "{} entries ({} files, {}), {} deletions, {} opaque directories; {} stored",
                f.entries,
                f.regular,
                size(f.bytes),
                f.whiteouts,
                f.opaque,
                size(f.size)
            )
        }),
    ));
    lines.push((
        "memory",
        c.memory.as_ref().map_or("not in this checkpoint".into(), |m| {
            let raw = if m.restorable { "" } else { "raw, NOT restorable: " };
            format!("{raw}{} processes, {} of pages; {} stored", m.processes.len(), size(m.pages), size(m.size))
        }),
    ));
    for (key, value) in lines {
        render::print(out, safe(&format!("{key:12} {value}")).trim_end())?;
    }
    processes(c, out)?;
    for bind in c.members.iter().filter(|m| m.media_type == names::RESOURCE_TAR) {
        if let Some(destination) = &bind.destination {
            let kind = bind.mount.as_deref().filter(|&kind| kind != "bind").unwrap_or("bind mount");
            render::print(out, &safe(&format!("{kind:12} {destination} ({})", size(bind.size))))?;
        }
    }
    c.account.iter().try_for_each(|account| lacking(account, out))
}

/// What the checkpoint could not hold, so that nobody looks for it in vain.
fn lacking(account: &Account, out: &mut dyn Write) -> Result<()> {
    for lost in &account.left_out {
        let place = if lost.of == "rw layer" { String::new() } else { format!("{}: ", lost.of) };
        let what = lost.kind.as_deref().unwrap_or("unknown");
        let kept = lost.kept.as_ref().map_or(String::new(), |kept| format!("; kept beside as {}", kept.path));
        let line = format!("{:12} {place}{} ({what}): {}{kept}", "left out", lost.path.path, lost.why);
        render::print(out, &safe(&line))?;
    }
    for odd in &account.odd {
        render::print(out, &safe(&format!("{:12} {}: {}: {}", "odd", odd.of, odd.path.path, odd.what)))?;
    }
    if account.unlisted > 0 {
        render::print(out, &format!("{:12} {} more, not listed", "left out", account.unlisted))?;
    }
    account.findings.iter().try_for_each(|what| render::print(out, &safe(&format!("{:12} {what}", "lacking"))))
}

fn processes(c: &Checkpoint, out: &mut dyn Write) -> Result<()> {
    for task in c.memory.iter().flat_map(|m| &m.processes) {
        let line =
            format!("{:12} {} (parent {}, {} threads) {}", "process", task.pid, task.ppid, task.threads, task.command);
        render::print(out, &safe(&line))?;
    }
    Ok(())
}
