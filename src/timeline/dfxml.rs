//! Digital Forensics XML, version 1.2.0 (`dfxml_schema`): one `fileobject` for each name of the container's layer.
//!
//! Text that XML cannot hold (control characters, bytes that are no UTF-8) is escaped as [`names`](super::names) has it. A
//! deletion has `alloc` 0; its `crtime` and `ctime` are those between which it took place. What DFXML has no element for stands
//! in the namespace `dewar:`: `fate`, `finding` (with its `code`), and behind all files the `event`s of the records, where
//! the schema has room for them.

use std::fmt::Write as _;

use super::{Entry, Event, Fate, Format, Head, Record, moment, names};
use crate::pax::Time;

/// This format.
pub const FORMAT: Format = Format { name: "dfxml", begin, record, end: || "</dfxml>\n".to_owned() };

fn begin(head: &Head) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<dfxml version="1.2.0" xmlns="http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dewar="urn:dewar:timeline:1">
  <metadata>
    <dc:type>Container timeline</dc:type>
  </metadata>
  <creator version="1.0">
    <program>dewar</program>
    <version>{}</version>
  </creator>
  <source>
    <image_filename>{}</image_filename>
  </source>
"#,
        text(head.version.as_bytes()),
        text(head.container.as_bytes()),
    )
}

fn record(_: &Head, record: &Record) -> String {
    match record {
        Record::Entry(entry) => fileobject(entry),
        Record::Event(event) => event_element(event),
    }
}

/// Text between tags or in an attribute.
fn text(bytes: &[u8]) -> String {
    // These two are no characters of XML; all others are, save control characters.
    let text = names::escaped(bytes, |c| matches!(c, '\u{fffe}' | '\u{ffff}'));
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

fn element(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "    <{name}>{value}</{name}>");
}

/// The elements in the order of the schema.
fn fileobject(entry: &Entry) -> String {
    let is_there = entry.fate != Fate::Deleted;
    let mut out = "  <fileobject>\n".to_owned();
    // Readers take a name for relative to the root of the volume.
    element(&mut out, "filename", &text(&entry.path));
    element(&mut out, "name_type", &entry.kind.letter().to_string());
    if is_there {
        element(&mut out, "filesize", &entry.size.to_string());
    }
    element(&mut out, "alloc", if is_there { "1" } else { "0" });
    element(&mut out, "inode", &entry.inode.to_string());
    if is_there {
        element(&mut out, "mode", &entry.mode.to_string());
        element(&mut out, "nlink", &entry.links.to_string());
        element(&mut out, "uid", &entry.uid.to_string());
        element(&mut out, "gid", &entry.gid.to_string());
    }
    let times = &entry.times;
    for (name, time) in
        [("mtime", times.modified), ("ctime", times.changed), ("atime", times.accessed), ("crtime", times.born)]
    {
        time.into_iter().for_each(|time| element(&mut out, name, &iso(time)));
    }
    entry.target.iter().for_each(|target| element(&mut out, "link_target", &text(target)));
    for (kind, hash) in [("md5", &entry.md5), ("sha256", &entry.sha256)] {
        if let Some(hash) = hash {
            let _ = writeln!(out, r#"    <hashdigest type="{kind}">{hash}</hashdigest>"#);
        }
    }
    element(&mut out, "dewar:fate", if entry.is_unpacked { "unpacked" } else { entry.fate.name() });
    for finding in &entry.findings {
        let _ = writeln!(
            out,
            r#"    <dewar:finding code="{}">{}</dewar:finding>"#,
            finding.code,
            text(finding.text.as_bytes())
        );
    }
    out + "  </fileobject>\n"
}

fn iso(time: Time) -> String {
    moment::iso(time, 9).0.replace("+00:00", "Z")
}

fn event_element(event: &Event) -> String {
    let Event { time, what, source, message, .. } = event;
    let (time, message) = (iso(*time), text(message.as_bytes()));
    format!("  <dewar:event time=\"{time}\" kind=\"{what}\" source=\"{source}\">{message}</dewar:event>\n")
}
