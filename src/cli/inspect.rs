//! `dewar inspect`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use dewar::{
    error::{At, Error, Result},
    job::{
        inspect::{self, Checkpoint, Depth, layer::LayerEntry, process},
        sealed::{self, Outside},
    },
    layout::Layout,
    name::AnyText,
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
    /// Tell of each process what the memory image has: command line, user, open files, sockets, mappings
    #[arg(long)]
    processes: bool,
    /// Tell the environments too, which may hold secrets
    #[arg(long)]
    env: bool,
    /// List the container's own layer instead, with the SHA-256 of each file
    #[arg(long, conflicts_with_all = ["processes", "env"])]
    files: bool,
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
    let closed = sealed::outside(&layout, reference)?;
    if args.files {
        list(args, &layout, &closed, out)?;
        if !closed.is_empty() {
            render::warn("files of sealed checkpoints are not listed: dewar unseal -i IDENTITY -o LAYOUT opens them");
        }
        return Ok(ExitCode::from(if closed.is_empty() { 0 } else { super::FINDINGS }));
    }
    let depth = match (args.env, args.processes) {
        (true, _) => Depth::Environments,
        (false, true) => Depth::Processes,
        (false, false) => Depth::Short,
    };
    let all = match reference {
        Some(_) if !closed.is_empty() => Vec::new(),
        _ => inspect::inspect(&layout, reference, depth)?,
    };
    if args.json {
        let told = |e: serde_json::Error| Error::malformed("what was found", e);
        let open = all.iter().map(serde_json::to_value).collect::<std::result::Result<Vec<_>, _>>().map_err(told)?;
        let closed =
            closed.iter().map(serde_json::to_value).collect::<std::result::Result<Vec<_>, _>>().map_err(told)?;
        render::json(out, &[open, closed].concat())?;
    } else {
        for (i, checkpoint) in all.iter().enumerate() {
            if i > 0 {
                render::print(out, "")?;
            }
            show(checkpoint, out)?;
        }
        for (i, outside) in closed.iter().enumerate() {
            if i > 0 || !all.is_empty() {
                render::print(out, "")?;
            }
            show_sealed(outside, out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be told of what cannot be read.
fn show_sealed(c: &Outside, out: &mut dyn Write) -> Result<()> {
    let recipients = c.recipients.map_or("nobody knows how many".into(), |n| n.to_string());
    let readable = c.readable.iter().map(String::as_str).chain(c.evidence.then_some("its acquisition record"));
    let readable: Vec<_> = readable.collect();
    let lines = [
        ("sealed", format!("to {recipients} recipients: dewar unseal -i IDENTITY -o LAYOUT opens it")),
        ("digest", c.digest.clone()),
        ("created", c.created.clone()),
        ("stored", format!("{} in {} age files", size(c.size), c.blobs)),
        ("readable", if readable.is_empty() { "nothing".into() } else { readable.join(", ") }),
    ];
    lines.iter().try_for_each(|(key, value)| render::print(out, safe(&format!("{key:12} {value}")).trim_end()))
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
    if let Some(found) = &c.processes {
        return details(found, out);
    }
    let all = c.memory.as_ref().map_or(&[][..], |memory| &memory.processes);
    for (depth, task) in process::tree(all, |task| task.pid, |task| task.ppid) {
        let indent = indent(depth);
        let line = format!(
            "{:12} {indent}{} (parent {}, {} threads) {}",
            "process", task.pid, task.ppid, task.threads, task.command
        );
        render::print(out, &safe(&line))?;
    }
    Ok(())
}

/// No terminal shows a deeper tree.
fn indent(depth: usize) -> String {
    "  ".repeat(depth.min(40))
}

/// All that is told of each process, in the order of their tree.
fn details(found: &process::Processes, out: &mut dyn Write) -> Result<()> {
    let mut print = |key: &str, text: &str| render::print(out, safe(&format!("{key:12} {text}")).trim_end());
    for (depth, p) in process::tree(&found.processes, |p| p.pid, |p| p.ppid) {
        let indent = indent(depth);
        let user = p.uid.map_or(String::new(), |uid| format!(", user {uid}"));
        let state = if p.state.is_empty() { String::new() } else { format!(", {}", p.state) };
        let command = &p.command.text;
        let threads = p.threads.len();
        print("process", &format!("{indent}{} (parent {}, {threads} threads{user}{state}) {command}", p.pid, p.ppid))?;
        let indent = format!("{indent}  ");
        p.args.iter().try_for_each(|args| print("", &format!("{indent}command line: {}", command_line(args))))?;
        p.exe.iter().try_for_each(|exe| print("", &format!("{indent}program: {}", exe.text)))?;
        p.cwd.iter().try_for_each(|cwd| print("", &format!("{indent}directory: {}", cwd.text)))?;
        // What a program has overwritten with zeros is no variable.
        for variable in p.environment.iter().flatten().filter(|variable| !variable.is_empty()) {
            print("", &format!("{indent}environment: {}", variable.text))?;
        }
        p.files.iter().try_for_each(|file| print("", &format!("{indent}{}", open_file(file))))?;
        if p.files_unlisted > 0 {
            print("", &format!("{indent}{} more open files, not listed", p.files_unlisted))?;
        }
        let sums: Vec<_> = p.memory.iter().map(|m| format!("{} {} ({})", m.kind, size(m.size), m.mappings)).collect();
        print("", &format!("{indent}memory: {}; {} in the image", sums.join(", "), size(p.stored)))?;
        p.notes.iter().try_for_each(|note| print("", &format!("{indent}not told: {note}")))?;
    }
    found.notes.iter().try_for_each(|note| print("not told", note))
}

/// Words behind the last that says something are zeros with which a program has overwritten its own (setproctitle).
fn command_line(args: &[AnyText]) -> String {
    let end = args.iter().rposition(|word| !word.is_empty()).map_or(0, |last| last + 1);
    args.iter().take(end).map(|word| quoted(&word.text)).collect::<Vec<_>>().join(" ")
}

/// A word of a command line: quoted where its ends could not be seen.
fn quoted(word: &str) -> String {
    let is_plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == '\'' || c == '"');
    if is_plain { word.to_owned() } else { format!("{word:?}") }
}

fn open_file(file: &process::OpenFile) -> String {
    let gone = if file.deleted { " (deleted)" } else { "" };
    let what = match &file.socket {
        Some(socket) => {
            let remote = if socket.remote.is_empty() { String::new() } else { format!(" to {}", socket.remote) };
            let parts = [socket.protocol.as_str(), &socket.kind, &socket.local.text, &socket.state];
            let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            format!("{}{remote}", parts.join(" "))
        }
        None => file.target.text.clone(),
    };
    format!("fd {}: {} {what}{gone}", file.fd, file.kind).trim_end().to_owned()
}

/// The layer, line by line, or as one JSON array, whose entries are written as they come.
fn list(args: &Args, layout: &Layout, closed: &[Outside], out: &mut dyn Write) -> Result<()> {
    let mut written = 0_u64;
    let mut each = |name: &str, entry: LayerEntry| {
        written += 1;
        if !args.json {
            return render::print(out, &line(&entry));
        }
        let text = serde_json::to_string(&Listed { reference: name, entry }).map_err(std::io::Error::from);
        let before = if written == 1 { "[" } else { "," };
        render::print(out, &format!("{before}\n  {}", text.at("write", "stdout")?))
    };
    // One that was asked for by name and is sealed is no other's.
    if args.reference.is_none() || closed.is_empty() {
        inspect::files_of(layout, args.reference.as_deref(), &mut each)?;
    }
    if args.json {
        render::print(out, if written == 0 { "[]" } else { "]" })?;
    }
    Ok(())
}

/// An entry, and whose it is.
#[derive(serde::Serialize)]
struct Listed<'a> {
    #[serde(rename = "ref")]
    reference: &'a str,
    #[serde(flatten)]
    entry: LayerEntry,
}

/// As `sha256sum` has it, where there is a content.
fn line(entry: &LayerEntry) -> String {
    let digest = entry.sha256.as_deref().unwrap_or("-");
    let bytes = if entry.sha256.is_some() { format!(", {}", size(entry.size)) } else { String::new() };
    safe(&format!("{digest:64}  {}  ({}{bytes})", entry.path.path, entry.kind)).into_owned()
}
