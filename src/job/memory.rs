//! What is taken of a held task: a dump by CRIU, or where that cannot be had, the raw capture; and what else is volatile.

use std::thread;

use super::{
    checkpoint::{Memory, Run},
    locate::{Target, with_causes},
    report::Stage,
};
use crate::{
    dump::{Images, Ready},
    error::{Error, Result},
    freeze::Still,
    layout::Staging,
    oci::volatile::Volatile,
    raw, shares, volatile,
};

/// What was taken of the task.
#[derive(Default)]
pub(super) struct Taken {
    /// The dump.
    pub(super) images: Option<Images>,
    /// The raw capture in place of one.
    pub(super) raw: Option<raw::Captured>,
    /// What else is volatile.
    pub(super) volatile: Option<Volatile>,
}

/// Why there is no dump.
pub(super) struct Refusal {
    why: String,
    /// A raw capture would fail for the same reason.
    is_final: bool,
}

impl Run<'_> {
    /// With `--task always` a failed dump is an error; otherwise it is told once it is known what comes in its place.
    pub(super) fn or_raw<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        self.or_refusal(result, false)
    }

    /// The same of what stands in the way of any capture.
    pub(super) fn or_none<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        self.or_refusal(result, true)
    }

    fn or_refusal<T>(&mut self, result: Result<T>, is_final: bool) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(e) if self.options.memory == Memory::Always || matches!(e, Error::Interrupted) => Err(e),
            Err(e) => {
                self.refusal = Some(Refusal { why: with_causes(&e), is_final });
                Ok(None)
            }
        }
    }

    /// Takes what is to be taken of the task. What is volatile is read beside the dump: the container does not wait for it.
    pub(super) fn take(
        &mut self,
        ready: Option<Ready<'_>>,
        still: &Still,
        target: &Target,
        staging: &Staging,
        progress: &dyn Fn(Stage),
    ) -> Result<Taken> {
        let (host, wanted) = (&self.store.host, &self.options.volatile);
        thread::scope(|scope| {
            let beside = shares::beside(scope, move || volatile::capture(host, still, wanted));
            let images = ready.map(|ready| self.dump(ready, still, target, progress)).transpose()?.flatten();
            let raw = if images.is_none() { self.raw(still, staging, progress)? } else { None };
            let volatile = beside.join();
            Ok(Taken { images, raw, volatile })
        })
    }

    /// The raw capture, if it was asked for or CRIU refused; and the word about memory.
    fn raw(&mut self, still: &Still, staging: &Staging, progress: &dyn Fn(Stage)) -> Result<Option<raw::Captured>> {
        let refusal = self.refusal.take();
        let is_asked = self.options.memory == Memory::Raw;
        let is_lost = refusal.as_ref().is_some_and(|refusal| refusal.is_final);
        if still.task().is_none() || is_lost || !is_asked && refusal.is_none() {
            let why = refusal.map(|refusal| format!("memory is not in the bundle: {}", refusal.why));
            self.findings.extend(why);
            return Ok(None);
        }
        progress(Stage::Dump);
        let why = refusal.map(|refusal| refusal.why);
        match raw::capture(&self.store.host, still, self.options.raw, staging) {
            Ok(captured) => {
                let text = "memory was captured raw, for analysis, and is NOT restorable";
                match why {
                    Some(why) => self.findings.push(format!("{text}: {why}")),
                    None => self.notes.push(format!("{text}, as --task raw asks for")),
                }
                self.notes.extend(captured.notes.iter().cloned());
                self.findings.extend(captured.findings.iter().cloned());
                Ok(Some(captured))
            }
            Err(e @ Error::Interrupted) => Err(e),
            Err(e) => {
                // Whatever happened, nobody may write while the files are taken.
                still.frozen().map_or(Ok(()), crate::freeze::Frozen::refreeze)?;
                let first = why.map(|why| format!("{why}; and ")).unwrap_or_default();
                let failed = format!("memory is not in the bundle: {first}the raw capture failed: {}", with_causes(&e));
                self.findings.push(failed);
                Ok(None)
            }
        }
    }
}
