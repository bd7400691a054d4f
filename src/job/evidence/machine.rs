//! Which machine it was, and what time it had.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use jiff::Timestamp;
use nix::time::ClockId;

use super::diary::clock;
use crate::{
    error::Result,
    evidence::{AnyText, Clock, Machine, Suspect, Tool},
    host::{Host, database},
};

/// No machine has a longer name, id or description of its system.
const MAX: u64 = 64 << 10;

/// This program, by the file that is run. It is hashed once.
pub fn tool(host: &Host) -> Tool {
    static DIGEST: OnceLock<Option<String>> = OnceLock::new();
    let digest = || database::open(&host.dewar).and_then(|file| super::digest_of(file, &host.dewar)).ok();
    Tool {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        sha256: DIGEST.get_or_init(|| digest().map(|digest| digest.to_hex())).clone(),
    }
}

/// The machine that we run on.
pub fn machine(host: &Host) -> Machine {
    let told = nix::sys::utsname::uname().ok();
    let text = |field: Option<&std::ffi::OsStr>| field.unwrap_or_default().to_string_lossy().into_owned();
    let told = told.as_ref();
    // Ours, also where another machine's file system is looked at.
    let here = Host { sysroot: None, ..host.clone() };
    Machine {
        hostname: text(told.map(|u| u.nodename())),
        machine_id: line(&here, "/etc/machine-id"),
        kernel_release: text(told.map(|u| u.release())),
        kernel_version: text(told.map(|u| u.version())),
        architecture: text(told.map(|u| u.machine())),
        boot_id: fs::read_to_string(host.proc.join("sys/kernel/random/boot_id")).ok().map(|id| id.trim().to_owned()),
        os: os(&here),
    }
}

/// The machine whose file system is mounted at `--sysroot`.
pub fn suspect(host: &Host) -> Option<Suspect> {
    let sysroot = host.sysroot.as_ref()?;
    Some(Suspect {
        sysroot: AnyText::from(sysroot.as_os_str().as_encoded_bytes().to_vec()),
        hostname: line(host, "/etc/hostname"),
        machine_id: line(host, "/etc/machine-id"),
        os: os(host),
        time_zone: zone(host),
    })
}

/// The clocks, as of now.
pub fn clocks(host: &Host) -> Clock {
    let hardware = fs::read_to_string("/sys/class/rtc/rtc0/since_epoch").ok();
    let synchronised = fs::metadata("/run/systemd/timesync/synchronized").and_then(|meta| meta.modified()).ok();
    Clock {
        utc: Timestamp::now().to_string(),
        monotonic_ns: clock(ClockId::CLOCK_MONOTONIC),
        boottime_ns: clock(ClockId::CLOCK_BOOTTIME),
        hardware_s: hardware.and_then(|text| text.trim().parse().ok()),
        time_zone: zone(&Host { sysroot: None, ..host.clone() }),
        synchronised: synchronised.and_then(|time| Timestamp::try_from(time).ok()).map(|time| time.to_string()),
    }
}

/// A small text of the machine's; what is no regular file is not opened.
fn text(host: &Host, path: &str) -> Option<String> {
    let here = host.inside(Path::new(path)).ok()?;
    fs::metadata(&here).ok().filter(|meta| meta.is_file() && meta.len() <= MAX)?;
    String::from_utf8(database::bounded("machine", &here, MAX).ok()?).ok()
}

fn line(host: &Host, path: &str) -> Option<String> {
    text(host, path)?.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// `PRETTY_NAME` (os-release(5)).
fn os(host: &Host) -> Option<String> {
    let text = text(host, "/etc/os-release")?;
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

/// `/etc/localtime` is a link to the zone's file (localtime(5)); older Debians say its name in `/etc/timezone`.
fn zone(host: &Host) -> Option<String> {
    let linked = || -> Result<PathBuf> {
        let path = host.inside(Path::new("/etc/localtime"))?;
        Ok(path.canonicalize().unwrap_or(path))
    };
    let name = |path: PathBuf| {
        let text = path.to_str()?;
        text.split_once("/zoneinfo/").map(|(_, name)| name.to_owned())
    };
    linked().ok().and_then(name).or_else(|| line(host, "/etc/timezone"))
}
