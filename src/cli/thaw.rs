//! `dewar thaw`.

use std::{io::Write, process::ExitCode};

use dewar::{
    error::Result,
    host::Host,
    job::{
        locate::with_causes,
        thaw::{self, Outcome},
    },
};

use super::{FAILED, render};

/// Arguments of `thaw`.
#[derive(clap::Args)]
pub struct Args {}

/// Says what became of each freeze that was left behind.
pub fn run(_: &Args, host: &Host, out: &mut dyn Write) -> Result<ExitCode> {
    let all = thaw::thaw(host)?;
    if all.is_empty() {
        render::print(out, "nothing was left frozen")?;
    }
    let mut worst = ExitCode::SUCCESS;
    for one in &all {
        let what = match &one.outcome {
            Outcome::Restored => "runs again".to_owned(),
            Outcome::InProgress(pid) => format!("is being checkpointed by process {pid}; left alone"),
            Outcome::Stale => "was frozen before the last boot; nothing to undo".to_owned(),
            Outcome::Failed(e) => {
                worst = ExitCode::from(FAILED);
                format!("could not be thawed: {}", with_causes(e))
            }
        };
        render::print(out, &render::safe(&format!("{}: {what}", one.container)))?;
    }
    Ok(worst)
}
