//! `dewar whois`.

use std::{io::Write, process::ExitCode};

use dewar::{
    error::Result,
    host::Host,
    id::Namespace,
    job::whois::{self, Answer, Found, Layer, Places, What, Who},
};

use super::{FINDINGS, render};

/// Arguments of `whois`.
#[derive(clap::Args)]
pub struct Args {
    /// A pid, a path (of a snapshot, blob, bundle, log, mount point, cgroup, network namespace, or /proc/PID), a snapshot's
    /// number (12 or overlayfs/12) or key, a digest or the first 12 digits of one, an image, or a container
    #[arg(required = true)]
    things: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Exit status 0: something is known of each thing; 1: of some nothing is; 2: could not look.
pub fn run(args: &Args, hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    let opened = super::open(hosts)?;
    let answers = whois::whois(&opened.stores, namespace, &args.things)?;
    if args.json {
        render::json(out, &answers)?;
    } else {
        let mut page = Page { out, several: opened.stores.len() > 1 };
        for answer in &answers {
            page.answer(answer)?;
        }
    }
    let lacks = opened.stores.iter().filter_map(|store| store.lack());
    lacks.for_each(|why| render::warn(&format!("the records are put together from what is left: {why}")));
    let mut unknown = answers.iter().filter(|answer| answer.found.is_empty()).peekable();
    let code = opened.exit(if unknown.peek().is_some() { FINDINGS } else { 0 });
    unknown.for_each(|answer| render::warn(&format!("nothing is known of {}", answer.thing)));
    Ok(code)
}

struct Page<'a> {
    out: &'a mut dyn Write,
    several: bool,
}

impl Page<'_> {
    fn answer(&mut self, answer: &Answer) -> Result<()> {
        for Found { store, what } in &answer.found {
            let store = if self.several { format!(", in {store}") } else { String::new() };
            self.line(&format!("{}: {}{store}", answer.thing, headline(what)))?;
            self.details(what)?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> Result<()> {
        render::print(self.out, &render::safe(text))
    }

    /// One indented line, if there is anything to say.
    fn row(&mut self, label: &str, value: impl AsRef<str>) -> Result<()> {
        match value.as_ref() {
            "" => Ok(()),
            value => self.line(&format!("  {label:<10}  {value}")),
        }
    }

    fn rows(&mut self, label: &str, values: impl IntoIterator<Item = impl AsRef<str>>) -> Result<()> {
        for (i, value) in values.into_iter().enumerate() {
            self.row(if i == 0 { label } else { "" }, value)?;
        }
        Ok(())
    }

    fn details(&mut self, what: &What) -> Result<()> {
        match what {
            What::Process(process) => self.containers(std::slice::from_ref(&process.container)),
            What::Snapshot(snapshot) => {
                self.row("directory", snapshot.directory.as_deref().unwrap_or_default())?;
                self.row("file", snapshot.file.as_deref().unwrap_or_default())?;
                self.rows("record", &snapshot.records)?;
                snapshot.layer.iter().try_for_each(|layer| self.layer(layer))?;
                self.containers(&snapshot.containers)
            }
            What::Blob(blob) => {
                let size = blob.size.map(|size| format!(" ({})", render::size(size))).unwrap_or_default();
                self.row("file", blob.path.as_ref().map(|path| format!("{path}{size}")).unwrap_or("not there".into()))?;
                self.rows("is", &blob.roles)?;
                self.row("namespaces", blob.namespaces.join(", "))?;
                self.containers(&blob.containers)
            }
            What::Image(image) => {
                self.row("digest", &image.digest)?;
                for layer in &image.layers {
                    self.row("layer", format!("{}  {}", layer.position, layer.digest))?;
                }
                self.containers(&image.containers)
            }
            What::Container(places) => self.places(places),
            What::Ingest(ingest) => self.row("file", format!("{} ({})", ingest.path, render::size(ingest.size))),
            What::Place(place) => self.containers(&place.containers),
        }
    }

    fn layer(&mut self, layer: &Layer) -> Result<()> {
        self.row("layer", format!("{} of {}", layer.position, layer.images.join(", ")))?;
        self.row("digest", &layer.digest)?;
        self.row("diff id", &layer.diff_id)?;
        self.row("chain id", &layer.chain_id)
    }

    fn containers(&mut self, all: &[Who]) -> Result<()> {
        self.rows("container", all.iter().map(who))
    }

    fn places(&mut self, places: &Places) -> Result<()> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        self.row("image", &places.image)?;
        self.row("record", &places.at)?;
        for (i, tree) in places.snapshots.iter().enumerate() {
            let layer =
                tree.layer.as_ref().map(|l| format!("  layer {}, {}", l.position, l.digest)).unwrap_or_default();
            let label = if i == 0 { "files" } else { "below" };
            let directory = tree.directory.as_deref().unwrap_or("no directory");
            self.row(label, format!("{}  {directory}{layer}", tree.snapshot))?;
        }
        for blob in &places.blobs {
            self.row(blob.what, blob.path.clone().unwrap_or(format!("{}: not there", blob.digest)))?;
        }
        self.row("bundle", text(&places.bundle))?;
        self.row("runtime", text(&places.runtime_state))?;
        self.row("cgroup", text(&places.cgroup))?;
        self.row("pids", places.pids.iter().map(i32::to_string).collect::<Vec<_>>().join(" "))?;
        if let Some(shim) = &places.shim {
            let pid = shim.pid.map_or("no process".to_owned(), |pid| format!("process {pid}"));
            self.row("shim", format!("{pid}  {}", text(&shim.socket)).trim_end())?;
        }
        self.row("network", text(&places.network))?;
        self.row("log", text(&places.log))
    }
}

fn headline(what: &What) -> String {
    let named = |name: &str| if name.is_empty() { String::new() } else { format!(" ({name})") };
    match what {
        What::Process(process) => format!("process {}, {}", process.pid, process.command),
        What::Snapshot(s) => {
            let kind = s.kind.map_or("unrecorded ".into(), |kind| format!("{kind:?} ").to_lowercase());
            format!("{kind}snapshot {}/{}", s.snapshotter, s.number)
        }
        What::Blob(blob) => format!("blob {}", blob.digest),
        What::Image(image) => format!("image {}", image.name),
        What::Container(places) => {
            let pid = places.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
            let task = if places.task == "none" { "without a task" } else { places.task };
            format!("container {}{}, {task}{pid}", places.container, named(&places.name))
        }
        What::Ingest(ingest) => format!("download {}", ingest.name.as_deref().unwrap_or("of unknown name")),
        What::Place(place) => format!("{} {}", place.place, place.path),
    }
}

fn who(who: &Who) -> String {
    let named = |name: &str, before: &str, after: &str| match name {
        "" => String::new(),
        name => format!("{before}{name}{after}"),
    };
    let (name, image) = (named(&who.name, " (", ")"), named(&who.image, ", image ", ""));
    format!("{}{name}{image}: {}", who.container, who.how)
}
