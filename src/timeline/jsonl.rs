//! Timesketch's JSON lines: one event a line, each with `message`, `datetime` (ISO 8601), `timestamp_desc` and `timestamp`
//! (microseconds); the rest are fields to search for (timesketch.org, "Create timeline from JSON/JSONL/CSV file").
//!
//! A path is `path`, as text; where that is not the very path, its bytes stand in `path_hex`. A time that no calendar has is the
//! first or last one; then `epoch_seconds` has it. What was found is in `tag`, and in words in `finding`.

use serde_json::{Map, Value, json};

use super::{Entry, Event, Fate, Format, Head, Record, moment};
use crate::{name::AnyPath, pax::Time};

/// This format.
pub const FORMAT: Format = Format { name: "jsonl", begin: |_| String::new(), record, end: String::new };

fn record(head: &Head, record: &Record) -> String {
    match record {
        Record::Entry(entry) => entry_lines(head, entry),
        Record::Event(event) => event_line(head, event),
    }
}

/// What the four times are called (Plaso `lib/definitions.py`, which Timesketch's views know).
fn described(entry: &Entry) -> [(Option<Time>, &'static str, &'static str); 4] {
    let times = &entry.times;
    if entry.fate == Fate::Deleted {
        return [
            (None, "", ""),
            (None, "", ""),
            (times.changed, "Deletion Time (at the latest)", "deleted at the latest"),
            (times.born, "Deletion Time (at the earliest)", "deleted at the earliest"),
        ];
    }
    [
        (times.modified, "Content Modification Time", "modified"),
        (times.accessed, "Last Access Time", "read"),
        (times.changed, "Metadata Modification Time", "inode changed"),
        (times.born, "Creation Time", "made"),
    ]
}

fn entry_lines(head: &Head, entry: &Entry) -> String {
    let path = AnyPath::from_root(&entry.path);
    let fields = fields(head, entry, &path);
    let mut lines = String::new();
    for (time, what, verb) in described(entry) {
        let Some(time) = time else { continue };
        let found = entry.findings.iter().filter(|_| verb == "modified").map(|f| format!("; {}", f.text));
        let found: String = found.collect();
        let kind = if entry.fate == Fate::Deleted { String::new() } else { format!(" ({})", whole_kind(entry)) };
        let message = format!("{}{kind}: {verb}{found}", path.path);
        lines += &line(&message, time, what, &fields);
    }
    lines
}

/// `added file`.
fn whole_kind(entry: &Entry) -> String {
    format!("{} {}", entry.fate.name(), entry.kind.name())
}

fn fields(head: &Head, entry: &Entry, path: &AnyPath) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    put("data_type", "dewar:file".into());
    put("container", head.container.as_str().into());
    put("path", path.path.as_str().into());
    path.path_hex.iter().for_each(|hex| put("path_hex", hex.as_str().into()));
    put("fate", entry.fate.name().into());
    put("kind", entry.kind.name().into());
    if let Some(target) = &entry.target {
        let target = AnyPath::from(target.clone());
        put("target", target.path.into());
        target.path_hex.into_iter().for_each(|hex| put("target_hex", hex.into()));
    }
    put("inode", entry.inode.into());
    if entry.fate != Fate::Deleted {
        put("mode", format!("{:04o}", entry.mode).into());
        put("uid", entry.uid.into());
        put("gid", entry.gid.into());
        put("links", entry.links.into());
        put("size", entry.size.into());
    }
    entry.md5.iter().for_each(|hash| put("md5", hash.as_str().into()));
    entry.sha256.iter().for_each(|hash| put("sha256", hash.as_str().into()));
    let mut tags: Vec<&str> = entry.findings.iter().map(|finding| finding.code).collect();
    if entry.is_unpacked {
        tags.push("unpacked");
    }
    if !tags.is_empty() {
        put("tag", tags.into());
    }
    if !entry.findings.is_empty() {
        put(
            "finding",
            entry.findings.iter().map(|finding| finding.text.as_str()).collect::<Vec<_>>().join("; ").into(),
        );
    }
    fields
}

fn event_line(head: &Head, event: &Event) -> String {
    let mut fields = Map::new();
    fields.insert("data_type".to_owned(), json!(format!("dewar:{}", event.source)));
    fields.insert("container".to_owned(), json!(head.container));
    fields.extend(event.fields.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    line(&event.message, event.time, event.what, &fields)
}

fn line(message: &str, time: Time, what: &str, fields: &Map<String, Value>) -> String {
    let (datetime, is_exact) = moment::iso(time, 9);
    let mut all = Map::new();
    all.insert("message".to_owned(), json!(message));
    all.insert("datetime".to_owned(), json!(datetime));
    all.insert("timestamp_desc".to_owned(), json!(what));
    all.insert("timestamp".to_owned(), json!(moment::micros(time)));
    if !is_exact {
        all.insert("epoch_seconds".to_owned(), json!(time.secs));
    }
    all.extend(fields.iter().map(|(key, value)| (key.clone(), value.clone())));
    format!("{}\n", Value::Object(all))
}
