//! The parsers that are fuzzed (`fuzz/`), on the inputs that are kept: what was found once stays found. And on some thousand
//! changes of them, the same in every run, for machines without a fuzzer.

use std::{fs, path::Path};

#[path = "../../fuzz/src/parsers.rs"]
pub mod parsers;

/// A parser by its target's name.
type Parser = (&'static str, fn(&[u8]));

const PARSERS: &[Parser] = &[
    ("bolt", parsers::bolt),
    ("criu", parsers::criu),
    ("elf", parsers::elf),
    ("oci", parsers::oci),
    ("idmap", parsers::idmap),
    ("pax", parsers::pax),
    ("procfs", parsers::procfs),
    ("proto", parsers::proto),
    ("record", parsers::record),
];

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<_> = files.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect();
    inputs.sort();
    inputs
}

#[test]
fn every_kept_input_is_parsed_or_refused() {
    for (name, parse) in PARSERS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for (path, input) in inputs {
            std::panic::catch_unwind(|| parse(&input)).unwrap_or_else(|_| panic!("{path}"));
        }
    }
}

#[test]
fn every_parser_has_a_target() {
    let targets = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/targets")).unwrap();
    let mut names: Vec<_> = targets.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut right: Vec<_> = PARSERS.iter().map(|(name, _)| format!("{name}.rs")).collect();
    right.sort();
    assert_eq!(names, right);
}

/// Changes as a fuzzer makes them: bits, bytes, words of interest, pieces moved, cut or doubled.
fn changed(state: &mut u64, input: &[u8]) -> Vec<u8> {
    let mut below = |n: usize| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as usize % n.max(1)
    };
    let mut bytes = input.to_vec();
    for _ in 0..below(4) + 1 {
        let (at, to) = (below(bytes.len()), below(bytes.len()));
        match below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
            2 => {
                let word = [0_u32, 1, 0xffff, u32::MAX, 1 << 31, at as u32][below(6)].to_le_bytes();
                bytes.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
            }
            3 => bytes.truncate(at),
            4 => {
                let piece = bytes[at..(at + 64).min(bytes.len())].to_vec();
                bytes.iter_mut().skip(to).zip(piece).for_each(|(byte, new)| *byte = new);
            }
            _ => bytes.extend_from_within(at..(at + 64).min(bytes.len())),
        }
    }
    bytes
}

#[test]
fn changes_of_kept_inputs_are_parsed_or_refused() {
    let rounds = std::env::var("DEWAR_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for (name, parse) in PARSERS {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for (path, input) in corpus(name) {
            for round in 0..rounds {
                let bytes = changed(&mut state, &input);
                std::panic::catch_unwind(|| parse(&bytes)).unwrap_or_else(|_| {
                    let kept = std::env::temp_dir().join(format!("{name}-{round}"));
                    fs::write(&kept, &bytes).unwrap();
                    panic!("{path}, round {round}: the input is kept as {}", kept.display())
                });
            }
        }
    }
}
