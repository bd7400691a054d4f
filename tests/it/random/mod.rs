//! Random changes to a real overlay: the layer, unpacked by others, shows what the kernel showed.
//!
//! Each seed makes a list of changes for each layer ([`ops`]); many seeds share one overlay, each in a directory of its own
//! ([`world`]). What the kernel shows of it and what others make of the layer are compared path for path, attribute for attribute
//! ([`view`]); a difference that has no known cause fails, with the least list of changes that shows it ([`hunt`]).
//!
//! ```sh
//! cargo test --test it random                      # some hundred seeds
//! DEWAR_SEEDS=100000 cargo test --test it random   # a long hunt
//! DEWAR_SEED=4711 cargo test --test it random      # one seed again, alone
//! ```

mod hunt;
mod ops;
mod view;
mod world;

use std::{io::Write, sync::Mutex};

use hunt::{Account, Applier, Hunt, Known, SPLIT, is_now};
use world::{BSD_TAR, GNU_TAR, World};

use dewar::tree::Summary;

use crate::overlay::can_mount;

const GNU: &[Known] = &[SPLIT];

const BSD: &[Known] = &[
    SPLIT,
    Known {
        cause: "bsdtar misreads a time before 1970 that has a fraction",
        applies: |case| case.is("mtime") && case.difference.restored == mirrored(case.difference.expected.as_deref()),
    },
    Known {
        cause: "bsdtar leaves a directory that was there with the time of the unpacking",
        applies: |case| {
            case.is("mtime")
                && case.kind() == "directory"
                && case.kind_below() == "directory"
                && is_now(case.values().1)
        },
    },
    Known {
        cause: "bsdtar does not restore access control lists that come as `system.*` attributes",
        applies: |case| case.difference.attribute.starts_with("xattr system.posix_acl_") && case.values().1.is_none(),
    },
];

/// `-3+750000000`, which is -2.25 seconds, read as -2 seconds and 0.25 more.
fn mirrored(time: Option<&str>) -> Option<String> {
    let (secs, nanos) = time?.split_once('+')?;
    let (secs, nanos): (i64, i64) = (secs.parse().ok()?, nanos.parse().ok()?);
    (secs < 0 && nanos > 0).then(|| format!("{}+{:09}", secs + 1, 1_000_000_000 - nanos))
}

/// Hunts, and prints the account past the test runner, which keeps to itself what a passing test prints.
fn hunt(write: fn(&World) -> (Vec<u8>, Summary), seeds: u64) {
    if !can_mount() {
        return;
    }
    let appliers = [
        Applier { name: "GNU tar into an upperdir", apply: &|world, layer| world.overlaid(layer), known: GNU },
        Applier { name: "GNU tar over a copy", apply: &|world, layer| world.unpacked(&GNU_TAR, layer), known: GNU },
        Applier { name: "bsdtar over a copy", apply: &|world, layer| world.unpacked(&BSD_TAR, layer), known: BSD },
    ];
    // A name that a layer cannot hold is in no image either.
    let keep_below = |op: &ops::Op| !op.makes_layers_mark();
    let hunt = Hunt { appliers: &appliers, keep_below, write, patience: 400 };
    let account = Mutex::new(Account::default());
    hunt.run(seeds, 2, &account);
    let _ = write!(std::io::stderr(), "{}", account.lock().unwrap().table());
}

#[test]
fn what_an_upperdir_holds_comes_back() {
    hunt(World::write, 800);
}

#[test]
fn what_two_trees_tell_comes_back() {
    hunt(World::write_by_trees, 400);
}
