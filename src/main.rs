//! Parse, dispatch, print the error chain, choose the exit code.
#![forbid(unsafe_code)]

use std::{io, process::ExitCode, thread};

use clap::Parser;
use dewar::{
    error::{Error, Result},
    host::shield,
    interrupt,
    job::locate::with_causes,
};
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, getrlimit, setrlimit, umask},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};

mod cli;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // Whatever we or CRIU make holds a container's memory or files; nobody else may read it.
    umask(Mode::from_raw_mode(0o077));
    raise_file_limit();
    if cli.reads_stores() {
        shield::raise();
    }
    // Who watches lets no signal in.
    let listening = if cli.is_watchdog() { Ok(()) } else { listen() };
    let done = listening.and_then(|()| cli.run(&mut io::stdout().lock()));
    done.unwrap_or_else(|error| {
        let error = if interrupt::check().is_err() { Error::Interrupted } else { error };
        // A reader that had enough (`dewar ls | head`) is no error to speak of.
        if !is_closed_pipe(&error) {
            cli::complain(&with_causes(&error));
            if let Error::Criu { log, .. } = &error {
                log.iter().for_each(|line| cli::complain(&format!("  {line}")));
            }
        }
        ExitCode::from(cli::FAILED)
    })
}

/// An image may have hundreds of layers, and a directory of each is held open.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}

/// The first signal asks every loop to end, so that guards undo what must be undone. The second ends us at once;
/// then the watchdog does it.
fn listen() -> Result<()> {
    use dewar::error::At;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT]).at("listen to", "signals")?;
    let waiting = move || {
        let mut asked = false;
        for signal in signals.forever() {
            if asked {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            asked = true;
            interrupt::ask();
        }
    };
    thread::Builder::new().spawn(waiting).at("start", "a thread (is the limit of processes reached?)")?;
    Ok(())
}
