//! One word: the user asked us to stop. Long loops ask for it; guards then undo what must be undone.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Asks every long loop to end with [`Error::Interrupted`].
pub fn ask() {
    ASKED.store(true, Ordering::SeqCst);
}

/// `Err(Interrupted)` once [`ask`] was called.
pub fn check() -> Result<()> {
    if ASKED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}
