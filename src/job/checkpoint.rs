//! The main job: a container's spec, image, files and memory, of one moment, into a layout.
//!
//! ```text
//! locate ─ image ─ files ahead ─ CRIU │ freeze ─ dump ─ what changed ─ mounts │ thaw ─ compress ─ index ─ (kill)
//!             running                  │                frozen                 │         running again
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use jiff::Timestamp;

pub use super::report::{Files, Report, Sizes, Stage};
use super::{
    evidence::{self, Diary, Scene, Wanted},
    layers,
    locate::{Target, with_causes},
    memory::{Refusal, Taken},
    report::{Outcome, report},
    space,
    store::Store,
};
use crate::{
    binds::{self, log},
    bundle::{self, Bind, Parts, account},
    containerd::content::Content,
    dump::{self, Criu, Images, Ready},
    error::{Error, Result},
    freeze::{self, After, Still},
    host::ground,
    image::{self, Base, Sources},
    interrupt,
    layout::{Layout, Staging, read},
    oci::{account::Account, image::Descriptor, names},
    proto::{self, CheckpointOptions},
    raw,
    runtime::{self, CgroupVersion, Task},
    rw::{self, Compression, Layer},
    shares::{self, Beside},
    tally,
    tree::{Summary, Why},
    volatile,
};

/// Whether a live task's memory is dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    /// If there is a live task; what CRIU refuses becomes a finding.
    #[default]
    Auto,
    /// Or nothing is written at all.
    Always,
    /// Files only.
    Never,
    /// By the raw capture, which can only be looked at.
    Raw,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether memory is dumped.
    pub memory: Memory,
    /// Stop the container once the bundle is on disk.
    pub exit: bool,
    /// Bind mounts' contents too.
    pub binds: bool,
    /// The base image's blobs too.
    pub image: bool,
    /// The checkpoint's name; `None`: made of namespace, id and time.
    pub reference: Option<String>,
    /// How the rw layer is stored.
    pub compression: Compression,
    /// What CRIU is asked.
    pub dump: dump::Options,
    /// What a raw capture is asked.
    pub raw: raw::Options,
    /// What else is taken of a live task.
    pub volatile: volatile::Wanted,
    /// The time that names and annotations carry.
    pub now: Timestamp,
    /// The acquisition record; `None`: there is none.
    pub evidence: Option<Wanted>,
}

/// Checkpoints one located container into `layout`.
pub fn checkpoint(
    store: &Store,
    target: Target,
    layout: &Layout,
    options: &Options,
    progress: &dyn Fn(Stage),
) -> Result<Report> {
    let started = Instant::now();
    let reference = reference(&target, options);
    let (notes, findings) = (Vec::new(), target.findings.clone());
    let diary = Diary::begin();
    let progress = &|stage| {
        diary.stage(stage);
        progress(stage);
    };
    let places = evidence::places(&store.host, &target, options.binds);
    ground::refuse_writable_if(&store.host, &places)?;
    let mut run = Run { store, options, account: Account::default(), notes, findings, refusal: None, hashed_ahead: 0 };
    let criu = run.prepare(&target)?;
    let staging = layout.stage()?;
    progress(Stage::Image);
    let base = run.base(&target, layout, &staging)?;
    evidence::begin(options.evidence.as_ref(), &staging)?;

    let ahead = run.ahead(&target, &staging, progress)?;
    let ready = run.start(criu.as_ref(), &target, layout, &staging)?;

    progress(Stage::Freeze);
    let still = run.hold(&target)?;
    diary.held(&still, &store.host, &target.container.name);
    let is_asked = ready.is_some();
    let (taken, files) = run.memory_and_files(ready, &still, &target, ahead.files, &staging, progress)?;
    diary.dumped(&still, is_asked, taken.images.as_ref());
    diary.captured(&still, taken.raw.is_some());
    let mounts = run.mounts(&still, &target, taken.images.is_some(), ahead.binds, &staging)?;
    still.is_still()?;
    let after = run.after(&target, &taken, files.is_some());
    let released = still.release(after)?;
    diary.released(after);
    evidence::ahead(options.evidence.as_ref(), &store.host);

    progress(Stage::Seal { held: after == After::Exit });
    let memory = run.memory(&target, &taken);
    let target = run.restorable(target, taken.images.is_some());
    let parts = run.seal(target, base, taken, files, mounts, &staging, &reference)?;
    let mut attach =
        |entries: &[_], within: Option<&_>| run.evidence(&diary, &places, &parts, &staging, (entries, within));
    let bundle = bundle::write(layout, &staging, &parts, bundle::containerd::write, &mut attach)?;
    staging.close()?;
    let frozen = released.frozen;
    let ended = released.finish();
    let exited = after == After::Exit && run.or_note("the container could not be stopped", ended);
    Ok(report(
        &bundle,
        &parts,
        Outcome {
            memory,
            criu,
            hashed_ahead: run.hashed_ahead,
            exited,
            frozen,
            started,
            notes: run.notes,
            findings: run.findings,
        },
    ))
}

/// One run's view: the host, what was asked, and what was found on the way.
pub(super) struct Run<'a> {
    pub(super) store: &'a Store,
    pub(super) options: &'a Options,
    account: Account,
    pub(super) notes: Vec<String>,
    pub(super) findings: Vec<String>,
    /// Why CRIU does not dump, until it is told.
    pub(super) refusal: Option<Refusal>,
    /// Bytes of memory that were hashed before the bundle was put together.
    hashed_ahead: u64,
}

/// What is mounted into the container, and its log.
struct Mounts {
    captured: Vec<binds::Captured>,
    log: Option<log::Held>,
}

impl Run<'_> {
    /// CRIU, if it will be needed; what stands in its way is an error before anything is written, or a finding.
    fn prepare(&mut self, target: &Target) -> Result<Option<Criu>> {
        let live = target.task.live().is_some();
        match (self.options.memory, live) {
            (Memory::Never | Memory::Raw, _) | (Memory::Auto, false) => Ok(None),
            (Memory::Always, false) => Err(Error::NotFound {
                what: format!("a live task of {}", target.container.name),
                hint: "without --task always its files are written all the same".into(),
            }),
            (_, true) => {
                let undumpable = target.task.live().and_then(|task| task.undumpable.clone());
                let ready = match (&target.spec, undumpable) {
                    (_, Some(why)) => Err(Error::Unsupported { what: why, hint: String::new() }),
                    (Some(_), _) => dump::prepare(&self.store.host),
                    (None, _) => Err(Error::malformed(target.container.name.to_string(), "its spec cannot be read")),
                };
                self.or_raw(ready)
            }
        }
    }

    /// The bundle is on disk by now: what fails here is a finding, and true if nothing did.
    fn or_note(&mut self, consequence: &str, result: Result<()>) -> bool {
        let error = result.err();
        self.findings.extend(error.as_ref().map(|e| format!("{consequence}: {}", with_causes(e))));
        error.is_none()
    }

    fn base(&mut self, target: &Target, layout: &Layout, staging: &Staging) -> Result<Option<Base>> {
        let Some(image) = &target.image else { return Ok(None) };
        let known = layout.index()?.manifests.into_iter().find(|entry| entry.name() == Some(&image.name));
        let sources = Sources { known, snapshots: &|chain| layers::of(self.store, target, chain) };
        let base = image::export(&Content::of(&self.store.host), image, staging, self.options.image, &sources)?;
        if base.carried {
            refuse_other_image(&base, layout)?;
        }
        self.note_missing(&base);
        if let (Some(parent), Some(chain)) = (&target.parent, base.chain_id())
            && *parent != chain.to_string()
        {
            self.findings.push(format!(
                "the container stands on snapshot {parent}, but image {} is {chain} now (retagged since, or a remapped \
                 snapshot): restored on that image its files may not fit",
                base.name
            ));
        }
        Ok(Some(base))
    }

    /// What the content store lacks, and what became of it.
    fn note_missing(&mut self, base: &Base) {
        let (name, missing) = (&base.name, &base.missing);
        match &base.recreated {
            Ok(Some(recreated)) => {
                let (notes, findings) = recreated.account(name, missing);
                self.notes.extend(notes);
                self.findings.extend(findings);
                return;
            }
            Ok(None) => {}
            Err(why) => self.findings.push(format!("{name} could not be made again from its snapshots: {why}")),
        }
        self.findings.extend(
            missing
                .iter()
                .map(|blob| format!("not in the content store: {blob} of {name}; the target needs the image itself")),
        );
    }

    fn hold(&self, target: &Target) -> Result<Still> {
        interrupt::check()?;
        match target.task.live() {
            Some(task) => freeze::hold(&self.store.host, &target.container.name, task),
            None => freeze::stopped(&self.store.host, None),
        }
    }

    /// A CRIU that only waits for the freeze, if there is room for what it will write.
    fn start<'a>(
        &mut self,
        criu: Option<&'a Criu>,
        target: &Target,
        layout: &Layout,
        staging: &Staging,
    ) -> Result<Option<Ready<'a>>> {
        let Some(task) = target.task.live().filter(|_| self.options.memory != Memory::Never) else { return Ok(None) };
        let room = space::check(&self.store.host, task, layout.work());
        let Some(note) = self.or_none(room)? else { return Ok(None) };
        self.notes.extend(note);
        let Some(criu) = criu else { return Ok(None) };
        let (images, work) = (staging.folder("criu")?, staging.folder("criu-work")?);
        // What is sealed is hashed as it passes the cipher.
        let follows = staging.recipients().is_none();
        let started = dump::start(criu, task, &images, &work, follows);
        self.or_raw(started)
    }

    pub(super) fn dump(
        &mut self,
        ready: Ready<'_>,
        still: &Still,
        target: &Target,
        progress: &dyn Fn(Stage),
    ) -> Result<Option<Images>> {
        let Some(spec) = &target.spec else { return Ok(None) };
        progress(Stage::Dump);
        tally::watch(Some(ready.images()));
        let dumped = dump::dump(ready, still, spec, &self.options.dump);
        tally::watch(None);
        self.or_raw(dumped)
    }

    /// What is mounted, if that was asked for; and the log, held at the length it has now.
    fn mounts(
        &mut self,
        still: &Still,
        target: &Target,
        is_dumped: bool,
        ahead: binds::Ahead,
        staging: &Staging,
    ) -> Result<Mounts> {
        let mut captured = Vec::new();
        match &target.spec {
            Some(spec) if self.options.binds => {
                let mounts = binds::capture(&self.store.host, still, spec, is_dumped, ahead, staging)?;
                self.notes.extend(mounts.notes);
                self.findings.extend(mounts.findings);
                captured = mounts.captured;
            }
            Some(spec) if !is_dumped && still.task().is_some() => {
                let lost = binds::filled_tmpfs(&self.store.host, still, spec).unwrap_or_default();
                self.notes.extend((!lost.is_empty()).then(|| {
                    format!(
                        "without its memory, what is in {} is not in the bundle; --binds takes it along",
                        lost.join(", ")
                    )
                }));
            }
            _ => {}
        }
        let log = match target.log.as_deref().map(|path| log::hold(&self.store.host, path)) {
            Some(Ok(log)) => Some(log),
            Some(Err(why)) => {
                self.notes.push(format!("the container's log is not in the bundle: {why}"));
                None
            }
            None => None,
        };
        Ok(Mounts { captured, log })
    }

    /// What is not in the bundle must not be killed: memory that was wanted, and files, are what it would take along. A raw
    /// capture brings nothing back; it is enough only for who asked for it and for no dump.
    fn after(&mut self, target: &Target, taken: &Taken, files: bool) -> After {
        let live = target.task.live().is_some();
        let is_memory_safe = match self.options.memory {
            Memory::Never => true,
            Memory::Raw => taken.raw.is_some(),
            Memory::Auto | Memory::Always => taken.images.is_some(),
        };
        let whole = files && is_memory_safe;
        match (self.options.exit && live, whole) {
            (true, true) => After::Exit,
            (true, false) => {
                self.findings.push("the container was left running in spite of --exit: the bundle lacks a part".into());
                After::Resume
            }
            (false, _) => After::Resume,
        }
    }

    /// A restore starts the shim and the program that the record names; with one that cannot restore, nothing would come back.
    fn restorable(&mut self, mut target: Target, dumped: bool) -> Target {
        let Some(runtime) = target.task.live().map(|task| task.runtime).filter(|_| dumped) else { return target };
        let container = &mut target.container;
        if runtime::needs_runc_to_restore(runtime)
            && let Some(options) = proto::without_binary(&container.runtime_options)
        {
            container.runtime_options = options;
            self.notes.push(format!(
                "it ran under {runtime}, which cannot restore as containerd asks it to: the bundle's runtime options name no \
                 program, so that runc restores it"
            ));
        }
        if let Some(shim) = runtime::successor(&container.runtime) {
            let former = std::mem::replace(&mut container.runtime, shim.into());
            // Options of another type than the new shim's.
            container.runtime_options.clear();
            self.notes.push(format!("it ran under the shim {former}, which is no more: the bundle names {shim}"));
        }
        target
    }

    /// The acquisition record. What was acquired comes home without it, too, and that is said.
    fn evidence(
        &mut self,
        diary: &Diary,
        places: &[PathBuf],
        parts: &Parts,
        staging: &Staging,
        (entries, within): (&[Descriptor], Option<&Descriptor>),
    ) -> Result<Option<Descriptor>> {
        let Some(wanted) = &self.options.evidence else { return Ok(None) };
        let scene = Scene { store: self.store, wanted, diary, places, parts, notes: &self.notes };
        let attached = match within {
            Some(within) => evidence::attach_beside(wanted, staging, entries, within),
            None => scene.attach(staging, entries),
        };
        match attached {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(e) => {
                self.findings.push(format!("the acquisition record could not be made: {}", with_causes(&e)));
                Ok(None)
            }
            Ok(entry) => Ok(Some(entry)),
        }
    }

    fn memory(&self, target: &Target, taken: &Taken) -> &'static str {
        match (target.task.live().is_some(), self.options.memory) {
            _ if taken.images.is_some() => "dumped",
            _ if taken.raw.is_some() => "raw",
            (true, Memory::Never) => "skipped",
            (true, _) => "refused",
            (false, _) => "none",
        }
    }

    #[allow(clippy::too_many_arguments, reason = "each is one act's result, and they meet here only")]
    fn seal(
        &mut self,
        target: Target,
        base: Option<Base>,
        taken: Taken,
        files: Option<rw::Captured>,
        mounts: Mounts,
        staging: &Staging,
        reference: &str,
    ) -> Result<Parts> {
        let log = mounts.log.map(|log| self.log(log, staging)).transpose()?;
        let lacking = self.findings.clone();
        // To hash memory takes one core, and so long that the layer is ready meanwhile.
        let Taken { mut images, raw, volatile } = taken;
        let (layer, criu, raw) = thread::scope(|scope| {
            let raw = raw.as_ref().map(|raw| shares::beside(scope, || raw::seal(raw, staging)));
            let criu = images.as_mut().map(|images| shares::beside(scope, || dump::pack::pack(images, staging)));
            let layer = files.map(|files| self.layer(files, staging)).transpose();
            let criu = criu.map(Beside::join).transpose();
            let raw = raw.map(Beside::join).transpose();
            Ok::<_, Error>((layer?, criu?, raw?))
        })?;
        self.hashed_ahead = images.as_ref().map_or(0, |images| images.hashed_ahead);
        let volatile = volatile.map(|v| volatile::seal(v, read::MAX_DOCUMENT, staging)).transpose()?;
        let committed = match &layer {
            Some(layer) if target.image.is_some() || target.parent.is_none() => {
                image::committed(base.as_ref(), layer, staging)?
            }
            _ => None,
        };
        let mut binds: Vec<Bind> =
            mounts.captured.into_iter().map(|mount| self.mount(mount, staging)).collect::<Result<_>>()?;
        binds.extend(log);
        let annotations = annotations(&target, images.as_ref(), target.task.live());
        let Options { dump, exit, .. } = self.options;
        let options = CheckpointOptions {
            exit: *exit,
            open_tcp: dump.tcp_established,
            external_unix_sockets: dump.ext_unix_sk,
            terminal: dump.shell_job,
            file_locks: dump.file_locks,
        };
        let (container, created, reference) = (target.container, self.options.now, reference.to_owned());
        let account = Account { findings: lacking, ..std::mem::take(&mut self.account) };
        Ok(Parts {
            container,
            base,
            committed,
            layer,
            criu,
            raw,
            volatile,
            options,
            binds,
            account,
            annotations,
            created,
            reference,
        })
    }

    fn layer(&mut self, files: rw::Captured, staging: &Staging) -> Result<Layer> {
        let layer = rw::seal(files, staging, evidence::RW_LAYER)?;
        self.note_lost("", "rw layer", &layer.summary);
        Ok(layer)
    }

    fn mount(&mut self, captured: binds::Captured, staging: &Staging) -> Result<Bind> {
        let of = captured.name();
        let blob = binds::seal(captured.tar, staging, &of)?;
        self.note_lost(&format!("{of}: "), &of, &captured.summary);
        Ok(Bind { kind: captured.kind, destination: captured.destination, blob })
    }

    fn log(&mut self, log: log::Held, staging: &Staging) -> Result<Bind> {
        let (destination, left_out) = (log.path.clone(), log.left_out);
        let (blob, findings) = log.seal(staging)?;
        self.findings.extend(findings);
        self.notes
            .extend((left_out > 0).then(|| format!("log {destination}: its {left_out} oldest files are left out")));
        Ok(Bind { kind: log::LOG, destination, blob })
    }

    /// What a tar could not hold, and what was odd, each by name.
    fn note_lost(&mut self, whose: &str, of: &str, summary: &Summary) {
        self.account.left_out.extend(account::left_out(of, summary));
        self.account.odd.extend(account::odd(of, summary));
        self.account.unlisted += summary.unlisted;
        for lost in &summary.left_out {
            // A socket without its process is nothing; with it, CRIU makes it anew.
            let list = if lost.why == Why::Socket { &mut self.notes } else { &mut self.findings };
            list.push(format!("{whose}{lost}"));
        }
        self.findings.extend(summary.warnings.iter().map(|odd| format!("{whose}{odd}")));
        if summary.unlisted > 0 {
            self.findings.push(format!("{whose}{} more that are missing or odd, too many to list", summary.unlisted));
        }
    }
}

/// A restore looks the base image up by name and checks nothing; so one layout never has two of one name.
fn refuse_other_image(base: &Base, layout: &Layout) -> Result<()> {
    let index = layout.index()?;
    let other = index.manifests.iter().find(|d| d.name() == Some(&base.name) && d.digest != base.target.digest);
    match other {
        None => Ok(()),
        Some(other) => Err(Error::Unsupported {
            what: format!(
                "{} already has an image {} with another digest ({}): a restore would take the wrong one",
                layout.dir().display(),
                base.name,
                other.digest
            ),
            hint: "write this checkpoint into a layout of its own".into(),
        }),
    }
}

fn reference(target: &Target, options: &Options) -> String {
    let name = &target.container.name;
    let stamp = options.now.strftime("%Y%m%dT%H%M%SZ");
    match &options.reference {
        Some(given) => given.clone(),
        None => format!("localhost/checkpoint/{}/{}:{stamp}", name.namespace, name.id),
    }
}

fn annotations(target: &Target, images: Option<&Images>, task: Option<&Task>) -> BTreeMap<String, String> {
    let container = &target.container;
    let mut all = BTreeMap::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            all.insert(key.to_owned(), value.to_owned());
        }
    };
    put(names::ENGINE_NAME, "dewar");
    put(names::ENGINE_VERSION, env!("CARGO_PKG_VERSION"));
    put(names::CONTAINER_NAME, container.name.id.as_str());
    put(names::NAMESPACE, container.name.namespace.as_str());
    put(names::ROOTFS_IMAGE_NAME, &container.image);
    put(names::RUNTIME_NAME, &container.runtime);
    put(names::HOST_ARCH, &crate::oci::image::Platform::local().architecture);
    if let Some(images) = images {
        put(names::CRIU_VERSION, &images.version.to_string());
    }
    if task.is_some() {
        put(
            names::HOST_KERNEL,
            nix::sys::utsname::uname()
                .ok()
                .and_then(|u| u.release().to_str().map(str::to_owned))
                .as_deref()
                .unwrap_or_default(),
        );
    }
    if let Some(task) = task {
        put(names::CGROUP_VERSION, if task.cgroup_version == CgroupVersion::V1 { "1" } else { "2" });
    }
    all
}

/// Qualifies a name given by the user: containerd 2.x drops a bare word at import.
pub fn qualified(name: &str) -> Result<String> {
    let legal = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/:@._-".contains(&b));
    if !legal || Path::new(name).is_absolute() {
        return Err(Error::Unsupported {
            what: format!("{name:?} cannot name a checkpoint"),
            hint: "use a full image name such as localhost/checkpoint/web:1".into(),
        });
    }
    let has_host = name.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
    let name = if has_host { name.to_owned() } else { format!("localhost/{name}") };
    let tail = name.rsplit('/').next().unwrap_or(&name);
    Ok(if tail.contains([':', '@']) { name } else { format!("{name}:latest") })
}
