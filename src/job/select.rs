//! From what a user typed to a container's record.

use std::collections::BTreeMap;

use super::store::Store;
use crate::{
    containerd::meta::Container,
    error::{Error, Result},
    id::{ContainerRef, Namespace},
};

/// Finds the container that `wanted` means: an id, a unique prefix of one, a name, `pod/container`, or
/// `namespace/id`.
pub fn find<'s>(stores: &'s [Store], namespace: Option<&Namespace>, wanted: &str) -> Result<(&'s Store, Container)> {
    let mut all = Vec::new();
    for (store, at) in stores.iter().zip(0..) {
        store.for_each_container(|record| {
            let in_scope = |c: &Container| namespace.is_none_or(|ns| *ns == c.name.namespace);
            all.extend(record.ok().filter(in_scope).map(|container| Candidate::of(container, at)));
        })?;
    }
    let chosen = choose(&all, wanted)?;
    let store = &stores[chosen.store];
    let record = store.container(&chosen.record)?;
    let record =
        record.ok_or_else(|| Error::NotFound { what: format!("container {wanted:?}"), hint: String::new() })?;
    Ok((store, record))
}

/// What a container may be called.
struct Candidate {
    record: ContainerRef,
    name: String,
    /// Which of the stores has it.
    store: usize,
}

impl Candidate {
    fn of(container: Container, store: usize) -> Self {
        Self { name: human_name(&container.labels), record: container.name, store }
    }
}

/// The most exact way of meaning a container decides; within it, there must be one.
fn choose<'a>(all: &'a [Candidate], wanted: &str) -> Result<&'a Candidate> {
    let ways: [&dyn Fn(&Candidate) -> bool; 4] = [
        &|c| c.record.id.as_str() == wanted || c.record.to_string() == wanted,
        &|c| !c.name.is_empty() && c.name == wanted,
        &|c| c.record.id.as_str().starts_with(wanted),
        &|c| c.record.to_string().starts_with(wanted),
    ];
    for means in ways.iter().filter(|_| !wanted.is_empty()) {
        let found: Vec<&Candidate> = all.iter().filter(|c| means(c)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(one),
            several => {
                let choices = several.iter().take(20).map(|c| c.record.to_string()).collect();
                return Err(Error::Ambiguous { what: format!("container {wanted:?}"), choices });
            }
        }
    }
    Err(Error::NotFound { what: format!("container {wanted:?}"), hint: suggestion(all, wanted) })
}

/// Names within a few typing errors of what was asked for.
fn suggestion(all: &[Candidate], wanted: &str) -> String {
    let near = |text: &str| strsim::damerau_levenshtein(text, wanted) <= 1 + wanted.chars().count() / 4;
    let mut names: Vec<String> =
        all.iter().filter(|c| near(c.record.id.as_str()) || near(&c.name)).map(|c| c.record.to_string()).collect();
    names.truncate(5);
    match (names.is_empty(), all.is_empty()) {
        (false, _) => format!("did you mean {}?", names.join(" or ")),
        (true, true) => "the store has no containers here; is --root right, and the namespace (-n)?".into(),
        (true, false) => "dewar ls shows what there is".into(),
    }
}

/// The name people know a container by: Kubernetes' `pod/container`, or nerdctl's name; may be empty.
pub fn human_name(labels: &BTreeMap<String, String>) -> String {
    let label = |key: &str| labels.get(key).map(String::as_str);
    match (label("io.kubernetes.pod.name"), label("io.kubernetes.container.name")) {
        (Some(pod), Some(container)) => format!("{pod}/{container}"),
        (Some(pod), None) => pod.to_owned(),
        _ => label("nerdctl/name").unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(namespace: &str, id: &str, name: &str) -> Candidate {
        let record = ContainerRef { namespace: namespace.parse().unwrap(), id: id.parse().unwrap() };
        Candidate { record, name: name.into(), store: 0 }
    }

    #[test]
    fn the_most_exact_way_of_meaning_a_container_decides() {
        let all = [
            candidate("default", "web", ""),
            candidate("default", "web2", "api"),
            candidate("k8s.io", "0123abcd", "shop/web"),
            candidate("k8s.io", "0129ffff", "shop/db"),
            candidate("prod", "web3", "web2"),
            candidate("prod", "api", ""),
        ];
        let cases = [
            ("web", Ok("default/web")),          // an id before a prefix
            ("web2", Ok("default/web2")),        // an id before a name
            ("shop/web", Ok("k8s.io/0123abcd")), // pod/container
            ("0123", Ok("k8s.io/0123abcd")),     // a unique prefix
            ("012", Err("k8s.io/0123abcd, k8s.io/0129ffff")),
            ("prod/api", Ok("prod/api")),
            ("prod/w", Ok("prod/web3")),
            ("api", Ok("prod/api")),
            ("webb", Err("did you mean default/web or default/web2 or prod/web3?")),
            ("0123abce", Err("did you mean k8s.io/0123abcd?")),
            ("nothing-like-it", Err("dewar ls shows what there is")),
            ("", Err("")),
        ];
        for (wanted, right) in cases {
            match (choose(&all, wanted), right) {
                (Ok(found), Ok(right)) => assert_eq!(found.record.to_string(), right, "{wanted:?}"),
                (Err(e), Err(right)) => assert!(e.to_string().ends_with(right), "{wanted:?}: {e}"),
                (found, _) => panic!("{wanted:?}: {:?}", found.map(|c| c.record.to_string())),
            }
        }
        assert!(choose(&[], "web").err().unwrap().to_string().contains("no containers here"));
    }
}
