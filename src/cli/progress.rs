//! What is going on, on stderr: a line that moves on a terminal, plain lines elsewhere if asked.

use std::{io::IsTerminal, time::Duration};

use clap::ValueEnum;
use dewar::job::checkpoint::Stage;
use indicatif::{ProgressBar, ProgressStyle};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A live line if stderr is a terminal
    Auto,
    /// One line a stage
    Plain,
    /// Nothing
    None,
}

/// The progress of one container's checkpoint.
pub struct Progress {
    name: String,
    plain: bool,
    line: ProgressBar,
}

impl Progress {
    /// Nothing is shown before the first stage.
    pub fn new(mode: Mode, name: &str) -> Self {
        let live = mode == Mode::Auto && std::io::stderr().is_terminal();
        let line = if live { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})") {
            line.set_style(style);
        }
        line.set_prefix(name.to_owned());
        Self { name: name.to_owned(), plain: mode == Mode::Plain, line }
    }

    /// A stage begins.
    pub fn at(&self, stage: Stage) {
        let text = match stage {
            Stage::Image => "copying the base image (running)",
            Stage::Dump => "holding still: dumping memory",
            Stage::Files => "holding still: copying files",
            Stage::Seal => "let go: compressing and writing",
        };
        if self.plain {
            super::render::warn(&format!("{}: {text}", self.name));
        }
        self.line.set_message(text);
        if !self.line.is_hidden() {
            self.line.enable_steady_tick(Duration::from_millis(120));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}
