//! What `fsck` may find: each kind has a code that scripts can rely on, how grave it is, what follows, and the next step.

use std::collections::BTreeMap;

use serde::Serialize;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is lost, or about to be.
    Error,
    /// Something is not as it should be; nothing is lost by it.
    Warning,
    /// Normal, or rubbish: good to know. Alone it leaves a store sound.
    Note,
}

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// Stable: `blob-missing`.
    pub code: &'static str,
    /// How grave it is.
    pub severity: Severity,
    /// What follows from it.
    pub follows: &'static str,
    /// The next step; may be empty.
    pub next: &'static str,
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// Its kind.
    pub code: &'static str,
    /// What it is about.
    pub thing: String,
    /// Where: a path, or a database's path and the way in it.
    pub place: String,
    /// What was seen there, if the code does not say it all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub seen: String,
    /// What follows from it.
    pub follows: &'static str,
    /// The next step.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub next: &'static str,
    /// How much disk it takes, where that is the point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// More findings of one code than this are only counted.
const MAX_OF_A_CODE: usize = 10_000;

/// Findings as they come.
#[derive(Debug, Default)]
pub struct Findings {
    /// In the order they were found.
    pub all: Vec<Finding>,
    counts: BTreeMap<&'static str, usize>,
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, code: &Code, thing: impl Into<String>, place: impl ToString, seen: impl Into<String>) {
        self.push(code, thing.into(), place.to_string(), seen.into(), None);
    }

    /// Adds one that is about disk taken.
    pub fn add_sized(&mut self, code: &Code, thing: impl Into<String>, place: impl ToString, bytes: u64) {
        self.push(code, thing.into(), place.to_string(), String::new(), Some(bytes));
    }

    /// Adds `more` that are not told one by one.
    pub fn count(&mut self, code: &Code, more: usize) {
        if more > 0 {
            *self.counts.entry(code.code).or_default() += more;
        }
    }

    fn push(&mut self, code: &Code, thing: String, place: String, seen: String, bytes: Option<u64>) {
        let count = self.counts.entry(code.code).or_default();
        *count += 1;
        if *count <= MAX_OF_A_CODE {
            let Code { code, severity, follows, next } = *code;
            self.all.push(Finding { severity, code, thing, place, seen, follows, next, bytes });
        }
    }

    /// How many were counted only, by code.
    pub fn untold(&self) -> BTreeMap<&'static str, usize> {
        let told = |code| self.all.iter().filter(|f| f.code == code).count();
        self.counts.iter().map(|(code, n)| (*code, n - told(*code))).filter(|(_, n)| *n > 0).collect()
    }
}

macro_rules! codes {
    ($($name:ident $code:literal $severity:ident $follows:literal $next:literal;)*) => {
        $(#[doc = $follows] pub const $name: Code =
            Code { code: $code, severity: Severity::$severity, follows: $follows, next: $next };)*
        /// Every code there is.
        pub const CODES: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    DATABASE_DAMAGED "database-damaged" Error
        "records in the damaged pages cannot be read" "copy the file before containerd starts; dewar ls lists what is left";
    RECORD_UNREADABLE "record-unreadable" Error
        "what it says is lost to containerd and to us" "";
    RECORD_SALVAGED "record-salvaged" Warning
        "containerd cannot read it where it stands; dewar can" "";
    DATABASE_UNREADABLE "database-unreadable" Error
        "nothing that only this database knows can be found or checked" "";
    CONTAINER_IMAGE_MISSING "container-image-missing" Warning
        "ctr containers checkpoint refuses it" "dewar checkpoint makes the image again from its snapshots";
    CONTAINER_SNAPSHOT_MISSING "container-snapshot-missing" Error
        "containerd cannot find the container's files" "";
    CONTAINER_SANDBOX_MISSING "container-sandbox-missing" Warning
        "its pod is gone: it cannot be started again" "";
    SNAPSHOT_PARENT_MISSING "snapshot-parent-missing" Error
        "what stands on it cannot be mounted" "";
    SNAPSHOT_CYCLE "snapshot-cycle" Error
        "it stands on itself: what stands on it cannot be mounted" "";
    SNAPSHOT_CHILDREN_WRONG "snapshot-children-wrong" Warning
        "containerd may remove it while it is used, or never" "";
    SNAPSHOT_NOT_IN_BACKEND "snapshot-not-in-backend" Error
        "containerd cannot mount it: a commit was cut in half, or the snapshotter's database is older" "";
    SNAPSHOT_HALF_COMMITTED "snapshot-half-committed" Warning
        "the snapshotter committed it, meta.db still has it active: its files are there, under the other name" "";
    SNAPSHOT_KIND_WRONG "snapshot-kind-wrong" Error
        "containerd refuses to use it" "";
    SNAPSHOT_PARENT_DIFFERS "snapshot-parent-differs" Error
        "the two databases disagree on what it stands on: its files may be another image's" "";
    SNAPSHOT_UNREFERENCED "snapshot-unreferenced" Note
        "no record of containerd's names it: rubbish that the next collection removes" "";
    SNAPSHOT_UNPACK_LEFT "snapshot-unpack-left" Note
        "unpacking an image was cut off here" "";
    BACKEND_PARENT_MISSING "backend-parent-missing" Error
        "what stands on it cannot be mounted" "";
    BACKEND_CYCLE "backend-cycle" Error
        "it stands on itself: what stands on it cannot be mounted" "";
    BACKEND_NUMBER_TWICE "backend-number-twice" Error
        "two snapshots share one directory" "";
    BACKEND_INDEX_WRONG "backend-index-wrong" Warning
        "the snapshotter may remove a snapshot that is used, or never" "";
    SNAPSHOT_DIRECTORY_MISSING "snapshot-directory-missing" Error
        "its files are gone" "";
    SNAPSHOT_DIRECTORY_LEFT "snapshot-directory-left" Note
        "no record names it: half made or half removed, or its record is lost" "";
    IMAGE_TARGET_MISSING "image-target-missing" Error
        "containerd cannot use the image" "pull it again";
    IMAGE_MALFORMED "image-malformed" Error
        "containerd cannot use the image" "pull it again";
    IMAGE_MANIFEST_MISSING "image-manifest-missing" Error
        "containerd cannot use the image on this platform" "pull it again";
    IMAGE_OTHER_PLATFORM "image-other-platform" Note
        "it was pulled for another platform than this machine's" "";
    IMAGE_CONFIG_MISSING "image-config-missing" Error
        "no container can be made of the image" "pull it again";
    IMAGE_LAYER_MISSING "image-layer-missing" Error
        "the image cannot be unpacked or exported" "pull it again";
    IMAGE_LAYERS_DISCARDED "image-layers-discarded" Note
        "normal where unpacked layers are discarded: the files are in the snapshots" "dewar checkpoint makes them again";
    IMAGE_CHAIN_MISSING "image-chain-missing" Error
        "the image counts as unpacked, but is not" "pull it again";
    IMAGE_CHAIN_WRONG "image-chain-wrong" Error
        "containers of the image get other files than the image has" "pull it again, into a store without these snapshots";
    IMAGE_PARTLY_UNPACKED "image-partly-unpacked" Note
        "unpacking it was cut off; the next use goes on" "";
    BLOB_MISSING "blob-missing" Error
        "what needs it cannot be unpacked or exported" "pull its image again; dewar checkpoint makes layers again from snapshots";
    BLOB_TRUNCATED "blob-truncated" Error
        "what needs it cannot be unpacked or exported" "pull its image again; dewar checkpoint makes layers again from snapshots";
    BLOB_DAMAGED "blob-damaged" Error
        "its content is another than its digest says" "pull its image again; dewar checkpoint makes layers again from snapshots";
    BLOB_UNREADABLE "blob-unreadable" Error
        "what needs it cannot be unpacked or exported" "";
    BLOB_UNRECORDED "blob-unrecorded" Note
        "containerd does not see it: rubbish, or its record is lost" "";
    BLOB_UNKNOWN "blob-unknown" Note
        "it is not checked: only sha256 is known" "";
    INGEST_LEFT "ingest-left" Note
        "a download that was begun and not ended" "";
    LAYER_FILE_CHANGED "layer-file-changed" Error
        "every container of the image has it so, and not as its layer says" "take it as evidence (dewar checkpoint), then pull the image into another store";
    LAYER_FILE_EMPTY "layer-file-empty" Error
        "its content is lost: a crash before it was on disk, or somebody's doing" "pull the image again, into a store without these snapshots";
    LAYER_FILE_ADDED "layer-file-added" Error
        "every container of the image has it, and no layer does" "take it as evidence (dewar checkpoint), then pull the image into another store";
    LAYER_FILE_MISSING "layer-file-missing" Error
        "every container of the image lacks it" "pull the image again, into a store without these snapshots";
    LAYER_FILE_UNREADABLE "layer-file-unreadable" Error
        "whether it is as its layer says cannot be told" "";
    LAYER_UNLIKE "layer-unlike" Error
        "the blob is not the layer that the image's config names: nothing can be compared with it" "pull the image again";
    LAYER_NOT_COMPARED "layer-not-compared" Note
        "whether somebody changed its snapshot cannot be told" "";
    LEASE_DANGLING "lease-dangling" Note
        "it keeps what is not there: harmless" "";
    PROCESS_WITHOUT_RECORD "process-without-record" Error
        "it runs, but containerd does not know it, and kills it when it starts" "";
    TASK_WITHOUT_RECORD "task-without-record" Warning
        "left of a container that is gone; containerd removes it when it starts" "";
    TASK_HALF_DELETED "task-half-deleted" Note
        "containerd removes it when it starts" "";
    TASK_ENDED "task-ended" Note
        "a task that has ended, and its shim too; containerd removes it when it starts" "";
    TASK_UNREADABLE "task-unreadable" Warning
        "how its task is cannot be told" "";
    TASK_PAUSED "task-paused" Note
        "somebody paused it (ctr tasks pause); it stands still" "";
    LEFT_FROZEN "left-frozen" Warning
        "a dewar that was killed left it standing still" "dewar thaw";
    SHIM_DEAD "shim-dead" Error
        "its container lives; a containerd that starts kills it" "dewar checkpoint it before containerd starts";
    SHIM_IDLE "shim-idle" Note
        "the task has ended and waits to be deleted (ctr tasks rm)" "";
    SHIM_LEFT "shim-left" Warning
        "a shim whose bundle is gone: containerd does not know it, and nobody ends it" "end the process";
    RUNTIME_STATE_LEFT "runtime-state-left" Note
        "the low-level runtime's state of a container whose bundle is gone" "";
    PROCESS_WITHOUT_BUNDLE "process-without-bundle" Error
        "it runs, but containerd will not find it when it starts" "";
    MOUNT_LEFT "mount-left" Warning
        "a root file system that is still mounted for a container that is gone; its snapshot stays in use" "umount it";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_word_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for code in CODES {
            assert!(seen.insert(code.code), "{} twice", code.code);
            assert!(code.code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", code.code);
        }
    }

    #[test]
    fn what_is_not_told_is_counted() {
        let mut findings = Findings::default();
        (0..MAX_OF_A_CODE + 5).for_each(|i| findings.add(&BLOB_MISSING, "", i, ""));
        findings.count(&BLOB_MISSING, 2);
        assert_eq!(findings.all.len(), MAX_OF_A_CODE);
        assert_eq!(findings.untold().into_iter().collect::<Vec<_>>(), [("blob-missing", 7)]);
    }
}
