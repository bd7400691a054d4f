//! From seeds to batches, from differences to their causes, and from a difference without one to the least that shows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use dewar::tree::Summary;

use super::{
    ops::{self, Op},
    view::{Difference, View},
    world::{FLAVOURS, Flavour, Plan, World, alone},
};

/// So many seeds share one overlay, one layer and one unpacking.
pub const BATCH: u64 = 50;

/// Seeds that share a world.
#[derive(Debug, Clone)]
pub struct Batch {
    pub seeds: Range<u64>,
    pub flavour: &'static Flavour,
    layers: usize,
    /// The only seed has the root for its directory, so that root is changed, too.
    is_root: bool,
}

impl Batch {
    fn new(seeds: Range<u64>, n: u64, is_root: bool) -> Self {
        let flavour = &FLAVOURS[n as usize % FLAVOURS.len()];
        Self { seeds, flavour, layers: 2 + (n as usize / FLAVOURS.len()) % 3, is_root }
    }

    /// Each seed in its directory.
    pub fn number(n: u64) -> Self {
        Self::new(n * BATCH..(n + 1) * BATCH, n, false)
    }

    /// The same changes to another overlay.
    pub fn with(self, flavour: &'static Flavour) -> Self {
        Self { flavour, ..self }
    }

    /// The same, of which only this seed is left.
    fn of(seed: u64) -> Self {
        Self::new(seed..seed + 1, seed / BATCH, false)
    }

    /// One seed, at the root.
    fn at_root(seed: u64) -> Self {
        Self::new(seed..seed + 1, seed, true)
    }

    fn plan(&self, keep_below: fn(&Op) -> bool) -> Plan {
        let of_seed = |seed| {
            let mut ops = ops::of_seed(seed, self.layers);
            let lowers = self.layers - 1;
            ops[..lowers].iter_mut().for_each(|layer| layer.retain(keep_below));
            ops
        };
        let top = |seed| if self.is_root { String::new() } else { format!("s{seed:06}") };
        self.seeds.clone().map(|seed| (top(seed), of_seed(seed))).collect()
    }

    /// How to have it again, alone.
    fn again(&self, top: &str) -> String {
        match top.strip_prefix('s') {
            Some(seed) => format!("DEWAR_SEED={}", seed.trim_start_matches('0')),
            None => format!("DEWAR_SEED={} DEWAR_ROOT=1", self.seeds.start),
        }
    }
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// A difference and what is around it.
pub struct Case<'a> {
    pub difference: &'a Difference,
    /// What was to be.
    pub expected: &'a View,
    pub restored: &'a View,
    /// What was there before the layer.
    pub base: &'a View,
}

impl Case<'_> {
    pub fn path(&self) -> &[u8] {
        &self.difference.path
    }

    pub fn is(&self, attribute: &str) -> bool {
        self.difference.attribute == attribute
    }

    pub fn kind(&self) -> &str {
        self.expected.get(self.path(), "kind").unwrap_or("nothing")
    }

    /// The value that was to be, and the one that is.
    pub fn values(&self) -> (Option<&str>, Option<&str>) {
        (self.difference.expected.as_deref(), self.difference.restored.as_deref())
    }

    /// The directories that have it, under any of its names.
    pub fn parents(&self) -> impl Iterator<Item = &[u8]> {
        let names = self.expected.get(self.path(), "names");
        let is_same = move |path: &&Vec<u8>| {
            **path == self.path() || names.is_some() && self.expected.get(path, "names") == names
        };
        let parent = |path: &'_ [u8]| path.iter().rposition(|&b| b == b'/').unwrap_or(0);
        self.expected.entries.keys().filter(is_same).map(move |path| &path[..parent(path)])
    }

    /// What the layers below had there.
    pub fn kind_below(&self) -> &str {
        self.base.get(self.path(), "kind").unwrap_or("nothing")
    }
}

/// A difference that is not ours to mend: its cause, in words that README.md has too, and where it applies.
pub struct Known {
    pub cause: &'static str,
    pub applies: fn(&Case) -> bool,
}

/// A directory of the image was renamed, with a file in it that has another name elsewhere in the image. Overlay shows both as
/// one file until one of them changes; the layer has the one that moved, so they come back as two files of the same content.
pub const SPLIT: Known = Known {
    cause: "a file of the image with several names, one of which moved along with a directory, comes back as two",
    applies: |case| {
        let names = |text: Option<&'_ str>| -> BTreeSet<String> {
            text.unwrap_or_default().split(" = ").filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let (expected, restored) = (names(case.values().0), names(case.values().1));
        let has_been_linked = |name: &String| {
            case.base
                .entries
                .keys()
                .any(|path| path.escape_ascii().to_string() == *name && case.base.get(path, "names").is_some())
        };
        case.is("names") && restored.is_subset(&expected) && expected.iter().any(has_been_linked)
    },
};

/// True for a time of this last hour.
pub fn is_now(mtime: Option<&str>) -> bool {
    let secs = mtime.and_then(|text| text.split('+').next()).and_then(|secs| secs.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    secs.is_some_and(|secs: u64| (now - 3600..=now).contains(&secs))
}

/// Someone who unpacks layers.
pub struct Applier<'a> {
    pub name: &'static str,
    pub apply: &'a (dyn Fn(&World, &[u8]) -> View + Sync),
    pub known: &'a [Known],
}

/// What was looked at, and every difference with a cause.
#[derive(Default)]
pub struct Account {
    pub seeds: BTreeMap<&'static str, u64>,
    pub paths: BTreeMap<&'static str, usize>,
    known: BTreeMap<(&'static str, &'static str), (usize, BTreeSet<String>)>,
    pub tried: usize,
    pub done: usize,
}

impl Account {
    /// A table to be read: what each unpacker was shown, and which differences it made.
    pub fn table(&self) -> String {
        let mut text = format!("{} of {} changes were possible\n", self.done, self.tried);
        for (applier, seeds) in &self.seeds {
            text += &format!("{applier}: {seeds} seeds, {} paths\n", self.paths[applier]);
            for ((by, cause), (times, attributes)) in &self.known {
                if by == applier {
                    text += &format!(
                        "  {times:>7}  {cause} ({})\n",
                        attributes.iter().cloned().collect::<Vec<_>>().join(", ")
                    );
                }
            }
        }
        text
    }
}

/// All a comparison needs of a world; made once.
struct Scene {
    world: World,
    layer: Vec<u8>,
    expected: View,
    base: View,
}

impl Scene {
    fn new(flavour: &'static Flavour, plan: &Plan, write: fn(&World) -> (Vec<u8>, Summary)) -> Self {
        let world = World::new(flavour, plan);
        let (layer, summary) = write(&world);
        let base = View::of(world.base().path());
        let expected = View::of(world.mounted().path()).without(&summary);
        Self { world, layer, expected, base }
    }

    /// What `applier` makes of it: differences with a cause, and without.
    fn differences(&self, applier: &Applier) -> Vec<(Difference, Option<&'static str>)> {
        let restored = (applier.apply)(&self.world, &self.layer);
        let all = self.expected.differences(&restored);
        let cause = |difference: &Difference| {
            let case = Case { difference, expected: &self.expected, restored: &restored, base: &self.base };
            applier.known.iter().find(|known| (known.applies)(&case)).map(|known| known.cause)
        };
        all.into_iter().map(|difference| (difference.clone(), cause(&difference))).collect()
    }

    fn unexplained(&self, applier: &Applier) -> Vec<Difference> {
        let all = self.differences(applier).into_iter();
        all.filter(|(_, cause)| cause.is_none()).map(|(difference, _)| difference).collect()
    }
}

/// What a hunt is for.
pub struct Hunt<'a> {
    pub appliers: &'a [Applier<'a>],
    /// What may be in the layers below.
    pub keep_below: fn(&Op) -> bool,
    pub write: fn(&World) -> (Vec<u8>, Summary),
    /// How many seeds at the root for each batch.
    pub at_root: u64,
    /// How many smaller lists of changes may be tried.
    pub patience: usize,
}

impl Hunt<'_> {
    /// One seed (`DEWAR_SEED`) or so many (`DEWAR_SEEDS`), so many batches at a time, and some at the root.
    pub fn run(&self, usual: u64, at_once: usize, account: &Mutex<Account>) {
        if let Some(seed) = number("DEWAR_SEED") {
            let batch = if number("DEWAR_ROOT").is_some() { Batch::at_root(seed) } else { Batch::of(seed) };
            return alone(|| self.batch(&batch, account));
        }
        let batches = number("DEWAR_SEEDS").unwrap_or(usual).div_ceil(BATCH);
        let at_root = batches * self.at_root;
        let next = AtomicU64::new(0);
        let work = || {
            let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < batches + at_root);
            let batch = |n| if n < batches { Batch::number(n) } else { Batch::at_root(n - batches) };
            std::iter::from_fn(take).for_each(|n| self.batch(&batch(n), account));
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(|| alone(work))).collect();
            for worker in workers {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
    }

    /// Panics with the least that shows it when there is a difference without a cause.
    pub fn batch(&self, batch: &Batch, account: &Mutex<Account>) {
        let plan = batch.plan(self.keep_below);
        let scene = Scene::new(batch.flavour, &plan, self.write);
        {
            let mut account = account.lock().unwrap();
            account.tried += scene.world.tried;
            account.done += scene.world.done;
        }
        for applier in self.appliers {
            let differences = scene.differences(applier);
            let bad: Vec<&Difference> =
                differences.iter().filter(|(_, cause)| cause.is_none()).map(|(d, _)| d).collect();
            assert!(bad.is_empty(), "{}", self.report(batch, &plan, applier, &bad));
            let mut account = account.lock().unwrap();
            *account.seeds.entry(applier.name).or_default() += batch.seeds.end - batch.seeds.start;
            *account.paths.entry(applier.name).or_default() += scene.expected.entries.len();
            for (difference, cause) in differences {
                let (times, attributes) =
                    account.known.entry((applier.name, cause.expect("the others failed above"))).or_default();
                *times += 1;
                attributes.insert(difference.attribute);
            }
        }
    }

    fn report(&self, batch: &Batch, plan: &Plan, applier: &Applier, bad: &[&Difference]) -> String {
        let top_of = |path: &[u8]| match batch.is_root {
            true => Vec::new(),
            false => path.split(|&b| b == b'/').next().unwrap_or_default().to_vec(),
        };
        let seeds: BTreeSet<Vec<u8>> = bad.iter().map(|difference| top_of(&difference.path)).collect();
        let shown: Vec<String> = bad.iter().take(20).map(ToString::to_string).collect();
        let mut text = format!(
            "{}, {}: {} differences without a cause, in {} of the seeds {:?}:\n  {}\n",
            applier.name,
            batch.flavour.name,
            bad.len(),
            seeds.len(),
            batch.seeds,
            shown.join("\n  ")
        );
        let Some((name, ops)) = plan.iter().find(|(name, _)| seeds.contains(name.as_bytes())) else { return text };
        let attribute = bad.iter().find(|d| top_of(&d.path) == name.as_bytes()).map(|d| d.attribute.clone());
        let attribute = attribute.unwrap_or_default();
        let (ops, left) = self.least(batch.flavour, name, ops.clone(), applier, &attribute);
        text += &format!("again: {}; the least that shows it:\n", batch.again(name));
        for (layer, ops) in ops.iter().enumerate() {
            ops.iter().for_each(|op| text += &format!("  layer {layer}: {op:?}\n"));
        }
        left.iter().for_each(|difference| text += &format!("  then {difference}\n"));
        text
    }

    /// Takes changes away as long as the same attribute differs without a cause.
    fn least(
        &self,
        flavour: &'static Flavour,
        top: &str,
        mut ops: Vec<Vec<Op>>,
        applier: &Applier,
        attribute: &str,
    ) -> (Vec<Vec<Op>>, Vec<Difference>) {
        let mut shown = Vec::new();
        let mut patience = self.patience;
        let mut fails = |ops: &Vec<Vec<Op>>| {
            patience = patience.saturating_sub(1);
            let plan = vec![(top.to_owned(), ops.clone())];
            let scene = Scene::new(flavour, &plan, self.write);
            let found = scene.unexplained(applier);
            let is_same = found.iter().any(|difference| difference.attribute == attribute);
            if is_same {
                shown = found;
            }
            (is_same, patience > 0)
        };
        if !fails(&ops).0 {
            return (ops, vec![]);
        }
        let mut step = ops.iter().map(Vec::len).max().unwrap_or(0).div_ceil(2);
        loop {
            let mut has_shrunk = false;
            for layer in (0..ops.len()).rev() {
                let mut at = 0;
                while at < ops[layer].len() {
                    let mut fewer = ops.clone();
                    fewer[layer].drain(at..(at + step).min(ops[layer].len()));
                    match fails(&fewer) {
                        (true, _) => {
                            ops = fewer;
                            has_shrunk = true;
                        }
                        (false, true) => at += step,
                        (false, false) => return (ops, shown),
                    }
                }
            }
            if step == 1 && !has_shrunk {
                return (ops, shown);
            }
            step = if step == 1 { 1 } else { step.div_ceil(2) };
        }
    }
}
