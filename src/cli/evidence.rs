//! `dewar inspect --evidence`: an acquisition record for people, or one of its blobs byte for byte.

use std::io::Write;

use clap::ValueEnum;
use dewar::{
    error::{At, Error, Result},
    evidence::{self, Change, Place, Record},
    job::records::{self, Attached},
    layout::Layout,
    oci::names,
};

use super::render::{self, safe, size};

/// What is shown of a record.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What it says, for people
    Summary,
    /// Its bytes, JSON
    Record,
    /// All that was read, one JSON document a line
    Sources,
    /// The blobs of the checkpoint, for `sha256sum -c` in the layout's directory
    Sums,
    /// 64 bytes, Ed25519 over the bytes of the record
    Signature,
    /// The public key that the record names, PEM
    Key,
    /// The JSON Schema of the record and of a line of the sources
    Schema,
}

/// Prints `part` of the record of one checkpoint, or a summary of those of all.
pub fn run(layout: &Layout, wanted: Option<&str>, part: Part, out: &mut dyn Write) -> Result<()> {
    if part == Part::Schema {
        return out.write_all(evidence::SCHEMA.as_bytes()).at("write", "stdout");
    }
    let all = records::read(layout, wanted)?;
    if part == Part::Summary {
        return all.iter().enumerate().try_for_each(|(i, attached)| {
            if i > 0 {
                render::print(out, "")?;
            }
            show(layout, attached, out)
        });
    }
    let [attached] = all.as_slice() else {
        return Err(Error::Ambiguous {
            what: "the record".into(),
            choices: all.into_iter().map(|attached| attached.reference).collect(),
        });
    };
    let media_type = match part {
        Part::Record => names::EVIDENCE,
        Part::Sources => names::EVIDENCE_SOURCES,
        Part::Sums => names::EVIDENCE_SUMS,
        Part::Key => {
            let key = attached.record.signer.as_ref().map(|signer| signer.public_key.as_bytes());
            return out.write_all(key.ok_or_else(not_signed)?).at("write", "stdout");
        }
        Part::Signature | Part::Summary | Part::Schema => names::EVIDENCE_SIGNATURE,
    };
    let lacking = || match attached.record.sealed {
        Some(_) if part == Part::Sources => sealed(),
        _ => not_signed(),
    };
    records::copy(layout, attached.part(media_type).ok_or_else(lacking)?, out)
}

fn sealed() -> Error {
    Error::Unsupported {
        what: "the list of sources is sealed".into(),
        hint: "dewar unseal gives the layout with the whole record".into(),
    }
}

fn not_signed() -> Error {
    Error::NotFound { what: "a signature of the record".into(), hint: "dewar checkpoint --sign-key makes one".into() }
}

/// How many lines of a kind are shown; the record has all.
const SHOWN: usize = 40;

fn show(layout: &Layout, attached: &Attached, out: &mut dyn Write) -> Result<()> {
    let record = &attached.record;
    let mut lines = facts(attached);
    lines.extend(record.order.iter().enumerate().map(|(i, what)| ("order", format!("{}. {what}", i + 1))));
    lines.extend(record.steps.iter().map(|step| ("step", format!("{} {}", step.utc, step.what))));
    if record.changes.is_empty() {
        lines.push(("changed", "nothing outside the output".into()));
    }
    lines.extend(record.changes.iter().map(|change| ("changed", changed(record, change))));
    lines.push(("protection", record.protection.how.clone()));
    lines.extend(record.protection.places.iter().take(SHOWN).map(|at| ("place", place(at))));
    lines.extend(record.skipped.findings.iter().take(SHOWN).map(|what| ("lacking", what.clone())));
    lines.extend(record.skipped.notes.iter().take(SHOWN).map(|what| ("note", what.clone())));
    let more = record.skipped.paths;
    lines.extend((more > 0).then(|| ("lacking", format!("{more} paths, listed in the account (dewar inspect)"))));
    let sources = &record.sources;
    lines.push(("sources", format!("{} files, and {} not listed", sources.count, sources.unlisted)));
    lines.extend(sources.limits.iter().map(|what| ("not listed", what.clone())));
    let bytes = record.outputs.iter().fold(0_u64, |sum, output| sum.saturating_add(output.size));
    lines.push(("outputs", format!("{} blobs, {}", record.outputs.len(), size(bytes))));
    for (what, media_type) in [
        ("record", names::EVIDENCE),
        ("sources", names::EVIDENCE_SOURCES),
        ("sums", names::EVIDENCE_SUMS),
        ("signature", names::EVIDENCE_SIGNATURE),
    ] {
        let blob = attached.part(media_type);
        lines.extend(blob.map(|blob| ("file", format!("{} {what}", layout.blob_path(&blob.digest).display()))));
    }
    lines.iter().try_for_each(|(key, value)| render::print(out, safe(&format!("{key:12} {value}")).trim_end()))
}

fn facts(attached: &Attached) -> Vec<(&'static str, String)> {
    let record = &attached.record;
    let (machine, clock) = (&record.machine, &record.clock);
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "not said".into());
    let argv: Vec<_> = record.run.argv.iter().map(|arg| arg.text.escape_default().to_string()).collect();
    let mut lines = vec![
        ("checkpoint", attached.reference.clone()),
        ("digest", record.subject.digest.to_string()),
        ("container", record.subject.container.clone()),
        ("case", text(&record.case.case)),
        ("examiner", text(&record.case.examiner)),
        ("reason", text(&record.case.reason)),
        ("tool", format!("{} {}, sha256 {}", record.tool.name, record.tool.version, text(&record.tool.sha256))),
        ("command", format!("{} (user {})", argv.join(" "), record.run.euid)),
        (
            "machine",
            format!(
                "{} ({}), {} {}, machine id {}, boot id {}",
                machine.hostname,
                machine.architecture,
                text(&machine.os),
                machine.kernel_release,
                text(&machine.machine_id),
                text(&machine.boot_id)
            ),
        ),
        ("clock", format!("{} UTC, {} s since the start", clock.utc, clock.boottime_ns / 1_000_000_000)),
        ("time zone", text(&clock.time_zone)),
        ("set by", clock.synchronised.as_ref().map_or("not known".into(), |at| format!("another machine's, at {at}"))),
    ];
    lines.extend(record.suspect.as_ref().map(|suspect| {
        let (name, id) = (text(&suspect.hostname), text(&suspect.machine_id));
        let (os, zone) = (text(&suspect.os), text(&suspect.time_zone));
        ("suspect", format!("{name} at {}, {os}, machine id {id}, time zone {zone}", suspect.sysroot.text))
    }));
    lines.extend(record.sealed.as_ref().map(|sealed| {
        let whole = "what is about the container stands in the record within, for who can unseal it";
        ("sealed", format!("to {} recipients; {whole}", sealed.recipients))
    }));
    lines.push(match &record.signer {
        Some(signer) => ("signer", format!("{} key {}", signer.algorithm, signer.key_id)),
        None => ("signer", "none".into()),
    });
    lines
}

fn changed(record: &Record, change: &Change) -> String {
    let began = record.steps.first().map_or(0, |step| step.monotonic_ns);
    let at = |ns: u64| format!("{:.3} s", ns.saturating_sub(began) as f64 / 1e9);
    let when = match (change.from_ns, change.until_ns) {
        (Some(from), Some(until)) => format!(" (from {} to {} after the beginning)", at(from), at(until)),
        (Some(from), None) => format!(" (from {} on)", at(from)),
        (None, _) => String::new(),
    };
    let pids: Vec<_> = change.pids.iter().take(SHOWN).map(i32::to_string).collect();
    let pids = if pids.is_empty() { String::new() } else { format!("; processes {}", pids.join(" ")) };
    format!("{}: {}{when}{pids}", change.what, change.how)
}

fn place(at: &Place) -> String {
    let mount = if at.read_only_mount { "read-only" } else { "writable" };
    let device = match at.read_only_device {
        Some(true) => ", the device read-only",
        Some(false) => ", the device writable",
        None => "",
    };
    format!(
        "{} on {} ({} {}): the mount {mount}{device}",
        at.path.path, at.mounted_at.text, at.file_system, at.device.text
    )
}
