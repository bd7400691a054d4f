//! The files' part in a checkpoint: what is copied while the container runs, and what is left to do while it is held still.

use std::thread;

use super::{
    checkpoint::Run,
    locate::{Target, with_causes},
    memory::Taken,
    report::Stage,
};
use crate::{
    binds,
    dump::Ready,
    error::{Error, Result},
    freeze::Still,
    layout::Staging,
    runtime::Task,
    rw::{self, Draft},
    shares,
};

/// What was copied while the container ran.
#[derive(Default)]
pub(super) struct Ahead {
    /// Its rw layer.
    pub(super) files: Option<Draft>,
    /// What is mounted into it.
    pub(super) binds: binds::Ahead,
}

impl Run<'_> {
    /// What can be copied of a live container's files before it is held still. Whatever stands in the way, they come home:
    /// then they are read while it is.
    pub(super) fn ahead(&mut self, target: &Target, staging: &Staging, progress: &dyn Fn(Stage)) -> Result<Ahead> {
        let Some(task) = target.task.live() else { return Ok(Ahead::default()) };
        progress(Stage::Ahead);
        match self.copy_ahead(task, target, staging) {
            Err(e) if !matches!(e, Error::Interrupted) => {
                let why = with_causes(&e);
                self.notes
                    .push(format!("files could not be copied ahead, so the container stands still for longer: {why}"));
                Ok(Ahead::default())
            }
            copied => copied,
        }
    }

    fn copy_ahead(&self, task: &Task, target: &Target, staging: &Staging) -> Result<Ahead> {
        let (host, how) = (&self.store.host, self.options.compression);
        let files = target.rw.as_ref().map(|rw| rw::copy_ahead(host, task, rw, how, staging)).transpose()?.flatten();
        let binds = match &target.spec {
            Some(spec) if self.options.binds => binds::copy_ahead(host, task, spec, staging)?,
            _ => binds::Ahead::default(),
        };
        Ok(Ahead { files, binds })
    }

    /// Memory and files at once: while CRIU holds the processes nobody writes to their files, but for a directory that it may
    /// make itself for a moment. If it fails, the files are captured again.
    pub(super) fn memory_and_files(
        &mut self,
        ready: Option<Ready<'_>>,
        still: &Still,
        target: &Target,
        draft: Option<Draft>,
        staging: &Staging,
        progress: &dyn Fn(Stage),
    ) -> Result<(Taken, Option<rw::Captured>)> {
        let (store, how, held) = (self.store, self.options.compression, still.task().is_some());
        let Some(rw) = &target.rw else {
            return Ok((self.take(ready, still, target, staging, progress)?, None));
        };
        let capture = |draft, outset| rw::capture(&store.host, still, draft, (rw, outset), how, staging);
        // Who reads memory without CRIU may let a process run for an instant.
        if ready.is_none() {
            let taken = self.take(ready, still, target, staging, progress)?;
            progress(Stage::Files { held });
            return capture(draft, rw::Outset::of(rw)).map(|files| (taken, Some(files)));
        }
        let outset = rw::Outset::of(rw);
        let (taken, files) = thread::scope(|scope| {
            let files = shares::beside(scope, || capture(draft, outset));
            let taken = self.take(ready, still, target, staging, progress);
            progress(Stage::Files { held });
            (taken, files.join())
        });
        let (taken, files) = (taken?, files?);
        if taken.images.is_some() {
            return Ok((taken, Some(files)));
        }
        // When CRIU fails it lets go of the processes before they are frozen again.
        let draft = files.into_draft(staging)?;
        capture(draft, rw::Outset::of(rw)).map(|files| (taken, Some(files)))
    }
}
