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

#[allow(dead_code, reason = "shared with tests/live")]
mod hunt;
#[allow(dead_code, reason = "shared with tests/live")]
mod ops;
mod view;
#[allow(dead_code, reason = "shared with tests/live")]
mod world;

use std::{io::Write, sync::Mutex};

use hunt::{Account, Applier, Batch, Hunt, Known, SPLIT, is_now};
use world::{BSD_TAR, GNU_TAR, UNMARKED, World, alone};

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

fn hunt_with(write: fn(&World) -> (Vec<u8>, Summary), act: impl FnOnce(&Hunt, &Mutex<Account>)) {
    let appliers = [
        Applier { name: "GNU tar into an upperdir", apply: &|world, layer| world.overlaid(layer), known: GNU },
        Applier { name: "GNU tar over a copy", apply: &|world, layer| world.unpacked(&GNU_TAR, layer), known: GNU },
        Applier { name: "bsdtar over a copy", apply: &|world, layer| world.unpacked(&BSD_TAR, layer), known: BSD },
    ];
    hunt_for(&appliers, write, act);
}

fn hunt_for(appliers: &[Applier], write: fn(&World) -> (Vec<u8>, Summary), act: impl FnOnce(&Hunt, &Mutex<Account>)) {
    if !can_mount() {
        return;
    }
    let keep_below = |op: &ops::Op| !op.is_beyond_layers();
    let account = Mutex::new(Account::default());
    act(&Hunt { appliers, keep_below, write, at_root: 4, patience: 400 }, &account);
    // Past the test runner, which keeps to itself what a passing test prints.
    let _ = write!(std::io::stderr(), "{}", account.lock().unwrap().table());
}

#[test]
fn what_an_upperdir_holds_comes_back() {
    hunt_with(World::write, |hunt, account| hunt.run(600, 2, account));
}

#[test]
fn what_two_trees_tell_comes_back() {
    hunt_with(World::write_by_trees, |hunt, account| hunt.run(200, 2, account));
}

/// As between Docker's images and its containers.
#[test]
fn what_an_upperdir_and_the_layer_below_it_hold_comes_back_as_one() {
    let appliers = [
        Applier {
            name: "two layers, into an upperdir",
            apply: &|world, layer| world.overlaid_on_image(layer),
            known: GNU,
        },
        Applier {
            name: "two layers, over a copy",
            apply: &|world, layer| world.unpacked_on_image(&GNU_TAR, layer),
            known: GNU,
        },
    ];
    hunt_for(&appliers, World::write_two, |hunt, account| hunt.run(300, 2, account));
}

#[test]
fn an_attribute_whiteout_in_an_unmarked_directory_deletes() {
    hunt_with(World::write, |hunt, account| {
        (0..4).for_each(|n| alone(|| hunt.batch(&Batch::number(n).with(&UNMARKED), account)));
    });
}
