//! `dewar inspect`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use dewar::{
    error::Result,
    job::inspect::{self, Checkpoint},
    layout::Layout,
    oci::names,
};

use super::render::{self, safe, size};

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// The OCI image layout
    layout: PathBuf,
    /// One checkpoint, by its name or digest [default: all]
    #[arg(value_name = "REF")]
    reference: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows the checkpoints of a layout.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode> {
    let all = inspect::inspect(&Layout::open(&args.layout)?, args.reference.as_deref())?;
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
            format!("{} processes, {} of pages; {} stored", m.processes.len(), size(m.pages), size(m.size))
        }),
    ));
    for (key, value) in lines {
        render::print(out, safe(&format!("{key:12} {value}")).trim_end())?;
    }
    processes(c, out)?;
    for bind in c.members.iter().filter(|m| m.media_type == names::RESOURCE_TAR) {
        let destination = bind.destination.as_deref().unwrap_or("?");
        render::print(out, &safe(&format!("{:12} {destination} ({})", "bind mount", size(bind.size))))?;
    }
    Ok(())
}

fn processes(c: &Checkpoint, out: &mut dyn Write) -> Result<()> {
    for task in c.memory.iter().flat_map(|m| &m.processes) {
        let line =
            format!("{:12} {} (parent {}, {} threads) {}", "process", task.pid, task.ppid, task.threads, task.command);
        render::print(out, &safe(&line))?;
    }
    Ok(())
}
