//! `dewar fsck`.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use dewar::{
    error::Result,
    host::Host,
    id::Namespace,
    job::{
        fsck::{self, Finding, Home, Options, Outcome, Report, Severity},
        locate::with_causes,
    },
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{FINDINGS, render};

/// Arguments of `fsck`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Do not read blobs to take their digests; everything else is checked
    #[arg(long)]
    quick: bool,
    /// Compare the files of each committed snapshot with its layer's blob: content, owner, mode, times, attributes
    #[arg(long)]
    deep: bool,
}

/// Exit status 0: sound (there may be notes); 1: errors or warnings; 2: could not look.
pub fn run(args: &Args, hosts: Vec<Host>, namespace: Option<&Namespace>, out: &mut dyn Write) -> Result<ExitCode> {
    let options = Options { quick: args.quick, deep: args.deep, namespace };
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for host in &hosts {
        match judge(host, options) {
            Ok(report) => reports.push(report),
            Err(e) => failed.push(e),
        }
    }
    // A store that cannot be looked at hides no other.
    if let Some(last) = failed.pop_if(|_| reports.is_empty()) {
        return Err(last);
    }
    failed.iter().for_each(|e| render::warn(&format!("{}: this store is left out", with_causes(e))));
    if args.json {
        render::json(out, &reports)?;
    } else {
        for report in &reports {
            print(out, report, reports.len() > 1)?;
        }
    }
    let is_sound = failed.is_empty() && reports.iter().all(Report::is_sound);
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) })
}

fn judge(host: &Host, options: Options<'_>) -> Result<Report> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} taking digests: {bytes} of {total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    let report = fsck::fsck(host, options, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    report
}

fn print(out: &mut dyn Write, report: &Report, named: bool) -> Result<()> {
    if named {
        render::print(out, &render::safe(&format!("{}:", report.root)))?;
    }
    for finding in &report.findings {
        print_finding(out, finding)?;
    }
    for (code, more) in &report.untold {
        render::print(out, &format!("and {more} more {code}"))?;
    }
    render::print(out, &summary(report))?;
    if report.beside_daemon {
        render::print(
            out,
            "read beside a running daemon: what it changed meanwhile may show as a finding; look again",
        )?;
    }
    print_home(out, &report.home)
}

/// What it is, where, what was seen, what follows, what to do.
fn print_finding(out: &mut dyn Write, finding: &Finding) -> Result<()> {
    let Finding { severity, code, thing, place, seen, follows, next, bytes } = finding;
    let severity = format!("{severity:?}").to_lowercase();
    let bytes = bytes.map(|bytes| format!(", {}", render::size(bytes))).unwrap_or_default();
    let seen = if seen.is_empty() { String::new() } else { format!(": {seen}") };
    let next = if next.is_empty() { String::new() } else { format!("; {next}") };
    render::print(out, &render::safe(&format!("{severity}: {code}: {thing}{bytes}{seen}")))?;
    render::print(out, &render::safe(&format!("    in {place}")))?;
    render::print(out, &render::safe(&format!("    {follows}{next}")))
}

fn summary(report: &Report) -> String {
    let fsck::Looked { containers, images, snapshots, blobs, hashed, compared } = report.looked;
    let compared = compared.map(|n| format!(" ({n} compared with their layers)")).unwrap_or_default();
    let looked = format!(
        "{}, {}, {}{compared}, {} ({} hashed)",
        many(containers, "container"),
        many(images, "image"),
        many(snapshots, "snapshot"),
        many(blobs, "blob"),
        render::size(hashed)
    );
    let of = |severity, word| many(report.count(severity), word);
    let notes = of(Severity::Note, "note");
    match (report.is_sound(), report.findings.is_empty()) {
        (true, true) => format!("sound: {looked}"),
        (true, false) => format!("sound, {notes}: {looked}"),
        _ => format!("{}, {}, {notes}: {looked}", of(Severity::Error, "error"), of(Severity::Warning, "warning")),
    }
}

fn many(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

fn print_home(out: &mut dyn Write, home: &[Home]) -> Result<()> {
    if home.is_empty() {
        return Ok(());
    }
    render::print(out, "\nWhat dewar can bring home:")?;
    for one in home {
        let name = if one.name.is_empty() { String::new() } else { format!(" ({})", one.name) };
        let what = match one.outcome {
            Outcome::Whole => "whole",
            Outcome::ImageRecreated => "image made again from its snapshots",
            Outcome::FilesOnly => "files only",
            Outcome::Nothing => "nothing",
        };
        let memory = if one.lives { ", with its memory" } else { "" };
        let because = match (one.because.is_empty(), one.outcome) {
            (true, _) => String::new(),
            (false, Outcome::Whole) => format!("; {}", one.because.join("; ")),
            (false, _) => format!(", because {}", one.because.join("; ")),
        };
        render::print(out, &render::safe(&format!("{}{name}: {what}{memory}{because}", one.container)))?;
        if !one.command.is_empty() {
            render::print(out, &render::safe(&format!("    {}", one.command)))?;
        }
    }
    Ok(())
}
