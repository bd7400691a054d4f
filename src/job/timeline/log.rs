//! The first and the last time in a container's log, by the forms of CRI and of Docker and nerdctl.
//!
//! ```text
//! 2023-11-14T22:13:20.000000000Z stdout F text                          CRI (logging format, kubernetes/design-proposals)
//! {"log":"text\n","stream":"stdout","time":"2023-11-14T22:13:20Z"}      json-file
//! ```

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use jiff::Timestamp;

use crate::{
    error::{At, Result},
    host::{Host, database},
};

/// No line whose time is asked for is longer than this.
const MAX_LINE: u64 = 64 << 10;

/// The times of the first and of the last line that has one.
pub fn ends(host: &Host, path: &str) -> Result<Option<(Timestamp, Timestamp)>> {
    let place = host.inside(Path::new(path))?;
    if !place.symlink_metadata().at("look at", &place)?.is_file() {
        return Ok(None);
    }
    let mut file = database::open(&place)?;
    let mut piece = |from: SeekFrom| {
        file.seek(from)?;
        let mut bytes = Vec::new();
        file.by_ref().take(MAX_LINE).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    let head = piece(SeekFrom::Start(0)).at("read", &place)?;
    let back = i64::try_from(MAX_LINE.min(place.metadata().at("look at", &place)?.len())).unwrap_or_default();
    let tail = piece(SeekFrom::End(-back)).at("read", &place)?;
    let first = head.split(|&b| b == b'\n').find_map(time_of);
    let last = tail.split(|&b| b == b'\n').rev().find_map(time_of);
    Ok(first.zip(last))
}

fn time_of(line: &[u8]) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    struct Line {
        time: String,
    }
    let line = std::str::from_utf8(line).ok()?;
    if line.starts_with('{') {
        return serde_json::from_str::<Line>(line).ok()?.time.parse().ok();
    }
    line.split_once(' ')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_either_form_has_a_first_and_a_last_time() {
        let cri = "2023-11-14T22:13:20.5Z stdout F a\n2023-11-14T22:13:21+01:00 stderr P b\ncut";
        let json = "{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"2023-11-14T22:13:20Z\"}\n{\"log\":";
        for (text, first, last) in [
            (cri, "2023-11-14T22:13:20.5Z", "2023-11-14T21:13:21Z"),
            (json, "2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let found = ends(&Host::default(), file.path().to_str().unwrap()).unwrap().unwrap();
            assert_eq!(found, (first.parse().unwrap(), last.parse().unwrap()));
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(ends(&Host::default(), file.path().to_str().unwrap()).unwrap(), None);
    }
}
