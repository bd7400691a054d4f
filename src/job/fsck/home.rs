//! What a checkpoint would bring home of each container: the search that a checkpoint begins with, and nothing written.

use serde::Serialize;

use super::{content::Checked, images::Images};
use crate::{
    containerd::meta::Container,
    host::Host,
    id::Namespace,
    job::{
        layers,
        locate::{self, Target, with_causes},
        store::Store,
        who,
    },
};

/// What comes home of one container.
#[derive(Debug, Serialize)]
pub struct Home {
    /// `<namespace>/<id>`.
    pub container: String,
    /// `pod/container`, or the name nerdctl gave; may be empty.
    pub name: String,
    /// How much of it.
    pub outcome: Outcome,
    /// True if it lives: then its memory comes too.
    pub lives: bool,
    /// Why it is no more than that; empty for a whole one.
    pub because: Vec<String>,
    /// What brings it home; empty if nothing does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
}

/// How much of a container comes home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Files, image and spec.
    Whole,
    /// The same, the image made again from its snapshots.
    ImageRecreated,
    /// Its files, without an image to stand on or without a spec.
    FilesOnly,
    /// Not even its files.
    Nothing,
}

/// Looks at every container, of one namespace if asked.
pub fn home(store: &Store, namespace: Option<&Namespace>, images: &Images, content: &Checked) -> Vec<Home> {
    let mut all = Vec::new();
    let told = store.for_each_container(|record| {
        // A record that cannot be read has been told.
        if let Ok(container) = record
            && namespace.is_none_or(|ns| *ns == container.name.namespace)
        {
            all.push(one(store, container, images, content));
        }
    });
    drop(told);
    all
}

fn one(store: &Store, container: Container, images: &Images, content: &Checked) -> Home {
    let name = who::is(store, &container).unwrap_or_default().names.into_iter().next().unwrap_or_default();
    let id = container.name.to_string();
    let (outcome, lives, because) = match locate::locate(store, container) {
        Ok(target) => {
            let (outcome, because) = judge(store, &target, images, content);
            (outcome, target.task.live().is_some(), because)
        }
        Err(e) => (Outcome::Nothing, false, vec![with_causes(&e)]),
    };
    let command = match outcome {
        Outcome::Nothing => String::new(),
        _ => format!("dewar {}checkpoint {id} -o LAYOUT", flags(&store.host)),
    };
    Home { container: id, name, outcome, lives, because, command }
}

fn judge(store: &Store, target: &Target, images: &Images, content: &Checked) -> (Outcome, Vec<String>) {
    let mut because = target.findings.clone();
    if target.rw.is_none() {
        return (Outcome::Nothing, because);
    }
    // That is not so if it can be made again, which is still to be seen.
    because.iter_mut().for_each(|why| {
        if let Some(short) = why.strip_suffix(locate::NO_IMAGE) {
            *why = short.trim_end_matches(": ").to_owned();
        }
    });
    let is_specless = target.spec.is_none();
    let lack = match &target.image {
        None => None,
        Some(image) => match lacking(target, &image.name, images, content) {
            None if is_specless => return (Outcome::FilesOnly, because),
            None => return (Outcome::Whole, because),
            lack => lack,
        },
    };
    because.extend(lack);
    match layers::of(store, target, None) {
        Ok(_) if !is_specless => (Outcome::ImageRecreated, because),
        Ok(_) => (Outcome::FilesOnly, because),
        Err(e) => {
            because.push(format!("the image cannot be made again: {}", with_causes(&e)));
            (Outcome::FilesOnly, because)
        }
    }
}

/// Why the image as it is stored is not whole.
fn lacking(target: &Target, name: &str, images: &Images, content: &Checked) -> Option<String> {
    let key = (target.container.name.namespace.to_string(), name.to_owned());
    let Some(image) = images.by_name.get(&key) else { return Some(format!("image {name} could not be judged")) };
    let bad = |(digest, what): &(_, &str)| content.lacks(digest).map(|why| format!("{what} {digest} {why}"));
    image.needs.iter().find_map(bad).or_else(|| image.broken.clone())
}

/// What makes `dewar` look where we looked.
fn flags(host: &Host) -> String {
    let usual = Host::default();
    let mut flags = String::new();
    let mut flag = |name: &str, path: &std::path::Path| flags += &format!("{name} {} ", path.display());
    match &host.sysroot {
        Some(sysroot) => flag("--sysroot", sysroot),
        None => {
            if host.root != usual.root {
                flag("--root", &host.root);
            }
            if host.state != usual.state {
                flag("--state", &host.state);
            }
        }
    }
    if host.daemon_running {
        flags += "--daemon-running ";
    }
    flags
}
