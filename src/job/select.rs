//! From what a user typed to containers' records.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    str::FromStr,
};

use jiff::Timestamp;

use super::{
    locate,
    store::Store,
    who::{self, Identity},
};
use crate::{
    containerd::{identity::Kind, meta::Container},
    error::{Error, Result},
    id::{ContainerRef, Namespace},
};

/// Which containers are meant, if not one by its name.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of this containerd namespace.
    pub namespace: Option<Namespace>,
    /// Only those of one of these pods, each `pod` or `namespace/pod`; if there are none, all.
    pub pods: Vec<String>,
    /// Only those that have every one of these labels.
    pub labels: Vec<Label>,
}

/// A label that is asked for: `key`, or `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: Option<String>,
}

impl FromStr for Label {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value.to_owned())));
        Ok(Self { key: key.to_owned(), value })
    }
}

impl Filter {
    /// True if it may be one, by what its record says; `pod_labels` are those of its pod.
    pub fn admits(&self, who: &Identity<'_>, pod_labels: Option<&BTreeMap<String, String>>) -> bool {
        let has = |label: &Label| {
            let values =
                [Some(who.labels.as_ref()), pod_labels].into_iter().flatten().filter_map(|all| all.get(&label.key));
            values.into_iter().any(|found| label.value.as_ref().is_none_or(|wanted| wanted == found))
        };
        let is_of_pod = || self.pods.iter().any(|wanted| who.pod.as_ref().is_some_and(|pod| pod.is(wanted)));
        (self.pods.is_empty() || is_of_pod()) && self.labels.iter().all(has)
    }
}

/// Finds the container that `wanted` means: an id, a unique prefix of one, a name, `pod/container` with or without the pod's
/// namespace, compose's `project/service`, or `namespace/id`.
///
/// Of a pod's container that was made several times the one that runs is meant, or the newest.
pub fn find<'s>(stores: &'s [Store], namespace: Option<&Namespace>, wanted: &str) -> Result<(&'s Store, Container)> {
    let all = candidates(stores, namespace, &mut Vec::new())?;
    let found = named(&all, wanted)?;
    let found = newest(stores, found)?;
    let [chosen] = found.as_slice() else { return Err(ambiguous(stores, wanted, &found)) };
    let store = &stores[chosen.store];
    let record = store.container(&chosen.record)?;
    let record =
        record.ok_or_else(|| Error::NotFound { what: format!("container {wanted:?}"), hint: String::new() })?;
    Ok((store, record))
}

/// All that `filter` admits, in the order of the stores; with `pods`, of each only what it is made of now: of a container that
/// was made several times the one that runs, or the newest; and the sandbox last, since it holds what the others share.
pub fn matching<'s>(
    stores: &'s [Store],
    filter: &Filter,
    errors: &mut Vec<Error>,
) -> Result<Vec<(&'s Store, Container)>> {
    let all = candidates(stores, filter.namespace.as_ref(), errors)?;
    let labels = pod_labels(&all);
    let mut found: Vec<&Candidate> = all.iter().filter(|c| filter.admits(&c.who, labels.of(c))).collect();
    if !filter.pods.is_empty() {
        for wanted in &filter.pods {
            if !found.iter().any(|c| c.who.pod.as_ref().is_some_and(|pod| pod.is(wanted))) {
                return Err(Error::NotFound {
                    what: format!("pod {wanted:?}"),
                    hint: "dewar ls --pod shows what there is".into(),
                });
            }
        }
        found = newest(stores, found)?;
        let place = |c: &&Candidate| {
            (
                c.store,
                c.who.pod.as_ref().map(|pod| (pod.namespace.clone(), pod.name.clone(), pod.kind == Kind::Sandbox)),
            )
        };
        found.sort_by_key(place);
    }
    let record = |c: &Candidate| Ok(stores[c.store].container(&c.record)?.map(|record| (&stores[c.store], record)));
    found.into_iter().filter_map(|c| record(c).transpose()).collect()
}

/// What a container may be called, and which store has it.
struct Candidate {
    record: ContainerRef,
    who: Identity<'static>,
    created: Option<Timestamp>,
    store: usize,
}

/// All containers of all stores, or of one namespace; and what could not be read.
fn candidates(stores: &[Store], namespace: Option<&Namespace>, errors: &mut Vec<Error>) -> Result<Vec<Candidate>> {
    let mut all = Vec::new();
    for (at, store) in stores.iter().enumerate() {
        store.for_each_container(|record| match record {
            Ok(record) if namespace.is_none_or(|ns| *ns == record.name.namespace) => {
                let who = who::is(store, &record).unwrap_or_else(|e| {
                    errors.push(e);
                    Identity::default()
                });
                let who = who.into_owned();
                all.push(Candidate { record: record.name, who, created: record.created_at, store: at });
            }
            Ok(_) => {}
            Err(e) => errors.push(e),
        })?;
    }
    Ok(all)
}

/// A pod's labels stand on its sandbox only.
struct PodLabels<'c>(HashMap<(usize, &'c str), &'c BTreeMap<String, String>>);

fn pod_labels(all: &[Candidate]) -> PodLabels<'_> {
    let sandbox = |c: &Candidate| c.who.pod.as_ref().is_some_and(|pod| pod.kind == Kind::Sandbox);
    PodLabels(
        all.iter().filter(|c| sandbox(c)).map(|c| ((c.store, c.record.id.as_str()), c.who.labels.as_ref())).collect(),
    )
}

impl<'c> PodLabels<'c> {
    fn of(&self, candidate: &'c Candidate) -> Option<&'c BTreeMap<String, String>> {
        let sandbox = candidate.who.pod.as_ref()?.sandbox.as_deref()?;
        self.0.get(&(candidate.store, sandbox)).copied()
    }
}

/// The most exact way of meaning a container decides.
fn named<'a>(all: &'a [Candidate], wanted: &str) -> Result<Vec<&'a Candidate>> {
    // Docker's own records have a slash before the name.
    let name = wanted.strip_prefix('/').unwrap_or(wanted);
    let ways: [&dyn Fn(&Candidate) -> bool; 4] = [
        &|c| c.record.id.as_str() == wanted || c.record.to_string() == wanted,
        &|c| c.who.names.iter().any(|known| known == name),
        &|c| c.record.id.as_str().starts_with(wanted),
        &|c| c.record.to_string().starts_with(wanted),
    ];
    for means in ways.iter().filter(|_| !wanted.is_empty()) {
        let found: Vec<&Candidate> = all.iter().filter(|c| means(c)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(Error::NotFound { what: format!("container {wanted:?}"), hint: suggestion(all, wanted) })
}

/// Of those that are the same container of the same pod, the ones that run; if none does, the newest.
fn newest<'a>(stores: &[Store], found: Vec<&'a Candidate>) -> Result<Vec<&'a Candidate>> {
    let place = |c: &'a Candidate| c.who.pod.as_ref().map(|pod| (c.store, &pod.namespace, &pod.name, &pod.container));
    let age = |c: &&Candidate| (c.created, c.who.pod.as_ref().and_then(|pod| pod.attempt));
    let mut kept: Vec<&Candidate> = Vec::new();
    let mut groups: BTreeMap<_, Vec<&'a Candidate>> = BTreeMap::new();
    for candidate in found {
        match place(candidate) {
            Some(place) => groups.entry(place).or_default().push(candidate),
            None => kept.push(candidate),
        }
    }
    for group in groups.into_values() {
        let mut live = Vec::new();
        for candidate in group.iter().filter(|_| group.len() > 1) {
            live.extend(is_live(stores, candidate)?.then_some(*candidate));
        }
        kept.extend(if live.is_empty() { group.into_iter().max_by_key(age).into_iter().collect() } else { live });
    }
    kept.sort_by_cached_key(|c| (c.store, c.record.to_string()));
    Ok(kept)
}

fn is_live(stores: &[Store], candidate: &Candidate) -> Result<bool> {
    let store = &stores[candidate.store];
    let Some(record) = store.container(&candidate.record)? else { return Ok(false) };
    // Who cannot tell must not choose another in its place.
    Ok(locate::task(&store.host, &record).map_or(true, |(task, _)| task.live().is_some()))
}

fn ambiguous(stores: &[Store], wanted: &str, found: &[&Candidate]) -> Error {
    let several = found.iter().any(|c| c.store != found[0].store);
    let choice = |c: &&Candidate| {
        let name = c.who.names.last().map(|name| format!(" ({name})")).unwrap_or_default();
        let store = if several { format!(" in {}", stores[c.store].host.root.display()) } else { String::new() };
        format!("{}{name}{store}", c.record)
    };
    let remedy = if several { ", which several stores have (--root selects one)," } else { "" };
    let choices = found.iter().take(20).map(choice).collect();
    Error::Ambiguous { what: format!("container {wanted:?}{remedy}"), choices }
}

/// Names within a few typing errors of what was asked for.
fn suggestion(all: &[Candidate], wanted: &str) -> String {
    let near = |text: &str| strsim::damerau_levenshtein(text, wanted) <= 1 + wanted.chars().count() / 4;
    let is_near = |c: &&Candidate| near(c.record.id.as_str()) || c.who.names.iter().any(|name| near(name));
    let mut names: Vec<String> = all.iter().filter(is_near).map(|c| c.record.to_string()).collect();
    names.truncate(5);
    match (names.is_empty(), all.is_empty()) {
        (false, _) => format!("did you mean {}?", names.join(" or ")),
        (true, true) => "the store has no containers here; is --root right, and the namespace (-n)?".into(),
        (true, false) => "dewar ls shows what there is".into(),
    }
}

/// The name people know a container by, from its labels alone: `pod/container`, or nerdctl's name; may be empty.
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
        let names = Some(name.to_owned()).filter(|name| !name.is_empty()).into_iter().collect();
        Candidate { record, who: Identity { names, ..Identity::default() }, created: None, store: 0 }
    }

    fn choose<'a>(all: &'a [Candidate], wanted: &str) -> Result<&'a Candidate> {
        let found = newest(&[], named(all, wanted)?)?;
        if let [one] = found.as_slice() { Ok(one) } else { Err(ambiguous(&[], wanted, &found)) }
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
            ("/shop/web", Ok("k8s.io/0123abcd")),
            ("0123", Ok("k8s.io/0123abcd")), // a unique prefix
            ("012", Err("k8s.io/0123abcd (shop/web), k8s.io/0129ffff (shop/db)")),
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
