//! The floors of `src/`: a module imports from the floors below it and from its own folder, never up, and from a neighbour
//! only where the table says so. Read from the sources, tests within them excepted.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every module of the library, on its floor.
const FLOORS: [&[&str]; 5] = [
    &["corrupt", "digest", "error", "id", "interrupt", "ledger", "name", "shares", "tally"],
    &["bolt", "criu", "crypt", "elf", "evidence", "idmap", "oci", "pax", "procfs", "proto", "record", "timeline"],
    &["containerd", "host", "layout", "runtime", "snapshotter", "sparse", "tree"],
    &["ahead", "binds", "bundle", "dump", "freeze", "image", "raw", "rw", "volatile"],
    &["job"],
];

/// Who may import a neighbour of the same floor.
const NEIGHBOURS: &[(&str, &[&str])] = &[
    // Words are made of words.
    ("error", &["corrupt"]),
    ("interrupt", &["error"]),
    // What was read is told by name and digest.
    ("ledger", &["digest", "name"]),
    // Formats within formats: containerd's encodings stand in bolt buckets.
    ("record", &["bolt"]),
    ("criu", &["proto"]),
    // What was read of a process stands in documents of our own.
    ("oci", &["procfs"]),
    // Times have one form.
    ("timeline", &["pax"]),
    // Every store is some host's.
    ("containerd", &["host"]),
    ("runtime", &["host"]),
    ("snapshotter", &["host"]),
    // What is copied keeps its holes.
    ("layout", &["sparse"]),
    ("tree", &["sparse"]),
    // Only what is held still may be dumped or copied.
    ("dump", &["freeze"]),
    ("raw", &["freeze"]),
    ("volatile", &["freeze"]),
    // What is copied ahead is caught up with while all is held still.
    ("ahead", &["freeze"]),
    ("rw", &["ahead", "freeze"]),
    ("binds", &["ahead", "freeze"]),
    // The committed image has the rw layer on top.
    ("image", &["rw"]),
    // Where the acts' results meet.
    ("bundle", &["image", "rw"]),
];

/// Lines without tests; above that a file is split by noun.
const MAX_LINES: usize = 600;

/// A source file.
struct Source {
    /// `src/rw/upper.rs`
    path: PathBuf,
    /// Its text up to the tests, without comments.
    code: String,
    whole: String,
}

impl Source {
    /// `rw` for `src/rw/upper.rs`, `binds` for `src/binds.rs`.
    fn module(&self) -> String {
        let below = self.path.strip_prefix("src").unwrap();
        below.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
    }

    /// True where `super` is the crate itself.
    fn is_top(&self) -> bool {
        let depth = self.path.components().count();
        depth == 2 || depth == 3 && self.path.ends_with("mod.rs")
    }

    /// The modules of the crate this file names, by `crate::name` or `use crate::{name, …}`.
    fn names(&self) -> BTreeSet<String> {
        let tops = ["crate::", "super::"];
        let ways = if self.is_top() { &tops[..] } else { &tops[..1] };
        ways.iter().flat_map(|way| self.code.match_indices(way).map(move |(at, _)| at + way.len())).fold(
            BTreeSet::new(),
            |mut names, at| {
                names.extend(firsts(&self.code[at..]));
                names
            },
        )
    }
}

/// The first segments of what follows `crate::`: one name, or those of a group.
fn firsts(rest: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                found.push(name(group[start..i].trim_start()));
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found.into_iter().filter(|name| !name.is_empty()).collect()
}

fn sources() -> Vec<Source> {
    let mut files: Vec<_> = walkdir::WalkDir::new("src")
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect();
    files.sort();
    assert!(files.len() > 40, "src/ is somewhere else");
    files.into_iter().map(|path| source(&path)).collect()
}

fn source(path: &Path) -> Source {
    let whole = fs::read_to_string(path).unwrap();
    let before_tests = whole.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    Source { path: path.to_owned(), code, whole }
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Why `from` may not import `to`, if so.
fn objection(from: &str, to: &str) -> Option<String> {
    let (here, there) = (floor(from)?, floor(to)?);
    let allowed = NEIGHBOURS.iter().any(|(who, whom)| *who == from && whom.contains(&to));
    match there {
        _ if from == to || there < here || there == here && allowed => None,
        _ if there > here => Some(format!("{from} (floor {here}) imports {to} (floor {there}): never up")),
        _ => Some(format!("{from} imports its neighbour {to}, which the table does not allow")),
    }
}

#[test]
fn a_module_imports_from_below_and_from_allowed_neighbours() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources() {
        let module = source.module();
        if matches!(module.as_str(), "lib" | "main" | "cli") {
            continue;
        }
        assert!(floor(&module).is_some(), "{}: {module} has no floor", source.path.display());
        for name in source.names() {
            if floor(&name).is_none() {
                wrong.push(format!("{}: names crate::{name}, which is no module of a floor", source.path.display()));
            }
            wrong.extend(objection(&module, &name).map(|why| format!("{}: {why}", source.path.display())));
            used.insert((module.clone(), name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let pairs = NEIGHBOURS.iter().flat_map(|(who, whom)| whom.iter().map(move |w| (who.to_string(), w.to_string())));
    let idle: Vec<_> = pairs.filter(|pair| !used.contains(pair)).collect();
    assert!(idle.is_empty(), "the table allows what nobody needs: {idle:?}");
}

#[test]
fn the_table_has_every_module_of_the_library_in_the_order_of_lib_rs() {
    let lib = source(Path::new("src/lib.rs"));
    let declared: Vec<_> =
        lib.code.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared, FLOORS.concat());
}

/// The top floor sees the library as any other program would.
#[test]
fn the_commands_use_the_library_from_outside() {
    for source in sources().iter().filter(|s| s.module() == "cli" || s.module() == "main") {
        assert!(!source.code.contains("crate::"), "{}: take it from `super` or `dewar`", source.path.display());
    }
    assert!(!source(Path::new("src/lib.rs")).code.contains("mod cli"));
}

#[test]
fn every_file_says_what_it_is_for_and_is_of_a_size_to_read() {
    for source in sources() {
        let path = source.path.display();
        assert!(source.whole.starts_with("//! "), "{path} has no head");
        let lines = source.whole.split("#[cfg(test)]\nmod tests {").next().unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{path} has {lines} lines without tests: split it");
    }
    for root in ["src/lib.rs", "src/main.rs"] {
        assert!(source(Path::new(root)).code.contains("#![forbid(unsafe_code)]"), "{root} permits unsafe code");
    }
}

#[test]
fn groups_and_nested_groups_are_read() {
    let text = "crate::{\n    a::{b, c::{d}},\n    e,\n    f::g,\n};\nuse crate::h::i; crate::j";
    let source = Source { path: "src/x/y.rs".into(), code: text.into(), whole: String::new() };
    assert_eq!(source.names().into_iter().collect::<Vec<_>>(), ["a", "e", "f", "h", "j"]);
}
