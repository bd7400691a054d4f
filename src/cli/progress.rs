//! What is going on, on stderr: a line that moves on a terminal, plain lines elsewhere if asked.
//!
//! ```text
//! ⠹ default/redis: frozen for 0.4 s, since 14:03:12Z: dumping memory, 312.4 MiB, 1104.0 MiB/s
//! ```
//! A thread of its own looks at the counters ten times a second; the work itself only counts.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use dewar::{
    job::checkpoint::Stage,
    tally::{self, Tally},
};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

/// How often the line is written anew.
const TICK: Duration = Duration::from_millis(100);

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
    state: Arc<Mutex<State>>,
    /// The thread that shows it, and what ends it when it is dropped.
    shown: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Where the work is, and since when.
#[derive(Debug, Clone, Copy)]
struct State {
    stage: Option<Stage>,
    began: Instant,
    before: Tally,
    frozen: Option<(Instant, Timestamp)>,
}

impl Progress {
    /// Nothing is shown before the first stage.
    pub fn new(mode: Mode, name: &str) -> Self {
        let state = State { stage: None, began: Instant::now(), before: tally::now(), frozen: None };
        let state = Arc::new(Mutex::new(state));
        let live = mode == Mode::Auto && std::io::stderr().is_terminal();
        // On a machine that has no thread to give there is no line.
        let shown = live.then(|| show(name, &state)).and_then(Result::ok);
        Self { name: name.to_owned(), plain: mode == Mode::Plain, state, shown }
    }

    /// A stage begins.
    pub fn at(&self, stage: Stage) {
        if self.plain {
            super::render::warn(&format!(
                "{}: {}{}",
                self.name,
                if stage.is_held() { "frozen: " } else { "" },
                text(stage)
            ));
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).enter(stage);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.shown.take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

fn show(name: &str, state: &Arc<Mutex<State>>) -> std::io::Result<(Sender<()>, JoinHandle<()>)> {
    let (line, state) = (ProgressBar::new_spinner(), state.clone());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {wide_msg}") {
        line.set_style(style);
    }
    line.set_prefix(name.to_owned());
    let (end, ended) = channel();
    let thread = thread::Builder::new().spawn(move || {
        while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            let state = *state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.stage.is_some() {
                line.set_message(state.message(tally::now(), Instant::now()));
                line.tick();
            }
        }
        line.finish_and_clear();
    })?;
    Ok((end, thread))
}

impl State {
    fn enter(&mut self, stage: Stage) {
        *self = Self { stage: Some(stage), began: Instant::now(), before: tally::now(), ..*self };
        if !stage.is_held() {
            self.frozen = None;
        } else if self.frozen.is_none() {
            self.frozen = Some((self.began, Timestamp::now()));
        }
    }

    fn message(&self, tally: Tally, now: Instant) -> String {
        let Some(stage) = self.stage else { return String::new() };
        let frozen = self.frozen.map_or(String::new(), |(since, clock)| {
            format!("frozen for {:.1} s, since {}: ", (now - since).as_secs_f64(), clock.strftime("%H:%M:%SZ"))
        });
        let seconds = (now - self.began).as_secs_f64();
        // CRIU's files are counted while it writes them, and no more when they are packed.
        let (bytes, files) =
            (tally.bytes.saturating_sub(self.before.bytes), tally.files.saturating_sub(self.before.files));
        let files = if files > 0 { format!(", {files} files") } else { String::new() };
        let mib = bytes as f64 / f64::from(1 << 20);
        let rate = if seconds >= 0.2 { format!(", {:.0} MiB/s", mib / seconds) } else { String::new() };
        let bytes = if bytes > 0 { format!(", {mib:.1} MiB{rate}") } else { String::new() };
        format!("{frozen}{}{files}{bytes} ({seconds:.1} s)", text(stage))
    }
}

fn text(stage: Stage) -> &'static str {
    match stage {
        Stage::Image => "copying the base image",
        Stage::Ahead => "copying files ahead",
        Stage::Freeze => "freezing",
        Stage::Dump => "dumping memory",
        Stage::Files { .. } => "copying files",
        Stage::Seal { .. } => "compressing and writing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_frozen_since_when_and_how_much_is_done_in_this_stage() {
        let before = Tally { bytes: 5 << 20, files: 1 };
        let began = Instant::now();
        let mut state = State { stage: None, began, before, frozen: None };
        assert_eq!(state.message(before, began), "");
        state.enter(Stage::Image);
        assert!(state.message(tally::now(), state.began).starts_with("copying the base image"));
        state.enter(Stage::Dump);
        let (since, clock) = state.frozen.unwrap();
        state = State { before, ..state };
        let done = Tally { bytes: 105 << 20, files: 3 };
        let clock = clock.strftime("%H:%M:%SZ");
        assert_eq!(
            state.message(done, since + Duration::from_secs(2)),
            format!("frozen for 2.0 s, since {clock}: dumping memory, 2 files, 100.0 MiB, 50 MiB/s (2.0 s)")
        );
        state.enter(Stage::Files { held: true });
        assert_eq!(state.frozen.unwrap().0, since, "one freeze, two stages");
        state.enter(Stage::Seal { held: false });
        assert!(state.frozen.is_none());
        state.enter(Stage::Seal { held: true });
        assert!(state.frozen.is_some());
    }
}
