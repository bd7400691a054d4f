//! README.md's commands work as they stand there.
//!
//! - A block fenced ```` ```sh ```` is run by this test, from a copy of the checkout's fixtures, all blocks in order in one place.
//!   `cargo run [--release] --` is the program under test, `/tmp` is a folder of the test's own. It must exit with 0, or with
//!   what a last line `# exit 1` says.
//! - A block fenced ```` ```text ```` right below is what it prints on stdout; `…` stands for anything within a line, and a line
//!   that is only `…` for any lines.
//! - A block fenced ```` ```console ```` is an example for a live node: the live tests' affair, not run here.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use crate::harness::{DEWAR, Sandbox, copy_tree, fixture};

/// One command block, and what it should print, if that is said.
#[derive(Debug, PartialEq)]
struct Block {
    line: usize,
    script: String,
    output: Option<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut found, mut lines) = (Vec::<Block>::new(), text.lines().enumerate());
    let mut near = false;
    while let Some((at, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            near &= line.trim().is_empty();
            continue;
        };
        let body: Vec<_> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let body = body.join("\n") + "\n";
        match (kind, found.last_mut()) {
            ("sh", _) => found.push(Block { line: at + 1, script: body, output: None }),
            ("text", Some(last)) if near => last.output = Some(body),
            _ => {}
        }
        near = kind == "sh";
    }
    found
}

/// True if `text` is what `pattern` says.
fn fits(pattern: &[&str], text: &[&str]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (["…", rest @ ..], _) => (0..=text.len()).any(|n| fits(rest, &text[n..])),
        ([first, rest @ ..], [line, lines @ ..]) => line_fits(first, line) && fits(rest, lines),
        _ => false,
    }
}

fn line_fits(pattern: &str, line: &str) -> bool {
    let Some((before, after)) = pattern.split_once('…') else { return pattern.trim_end() == line.trim_end() };
    line.strip_prefix(before).is_some_and(|rest| {
        (0..=rest.len()).filter(|n| rest.is_char_boundary(*n)).any(|n| line_fits(after, &rest[n..]))
    })
}

/// A place like a checkout after a build: `cargo run` and `dewar` are the program under test.
fn checkout(sandbox: &Sandbox) -> String {
    let bin = sandbox.path("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(sandbox.path("tmp")).unwrap();
    copy_tree(&fixture(""), &sandbox.path("checkout/fixtures"));
    let program = |name: &str, text: &str| {
        fs::write(bin.join(name), text).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("dewar", &format!("#!/bin/sh\nexec '{DEWAR}' \"$@\"\n"));
    program(
        "cargo",
        "#!/bin/sh\ncase $1 in build) exit 0 ;; run) ;; *) echo \"cargo $1 is nothing a reader is asked to run\" >&2; exit 9 ;; esac\n\
         while [ \"$1\" != -- ]; do shift; done\nshift\nexec dewar \"$@\"\n",
    );
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

fn run(sandbox: &Sandbox, path: &str, block: &Block) {
    let script = block.script.replace("/tmp/", &format!("{}/", sandbox.path("tmp").display()));
    let wanted =
        block.script.trim_end().lines().last().and_then(|line| line.strip_prefix("# exit ")?.parse().ok()).unwrap_or(0);
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &script]).current_dir(sandbox.path("checkout")).env("PATH", path);
    for name in ["CONTAINERD_NAMESPACE", "SOURCE_DATE_EPOCH"] {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(wanted), "README.md:{}\n{}{out}{err}", block.line, block.script);
    if let Some(shown) = &block.output {
        let shown_lines: Vec<_> = shown.lines().collect();
        let shown_paths = out.replace(sandbox.path("tmp").to_str().unwrap(), "/tmp");
        assert!(
            fits(&shown_lines, &shown_paths.lines().collect::<Vec<_>>()),
            "README.md:{} shows\n{shown}\nbut it prints\n{out}",
            block.line
        );
    }
}

#[test]
fn its_commands_work_as_they_stand_there() {
    let Ok(text) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")) else {
        eprintln!("skipped: there is no README.md yet");
        return;
    };
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "README.md has no ```sh block");
    let sandbox = Sandbox::empty();
    let path = checkout(&sandbox);
    blocks.iter().for_each(|block| run(&sandbox, &path, block));
}

#[test]
fn blocks_and_their_outputs_are_told_apart() {
    let text = "# A\n```sh\ncargo run -- ls\n```\n\n```text\na … b\n…\nend\n```\nwords\n```text\nno output\n```\n```console\n$ x\n```\n";
    let found = blocks(text);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].line, found[0].script.as_str()), (2, "cargo run -- ls\n"));
    let output: Vec<_> = found[0].output.as_deref().unwrap().lines().collect();
    assert!(fits(&output, &["a x b", "1", "2", "end"]) && fits(&output, &["a  b", "end"]));
    assert!(!fits(&output, &["a x c", "end"]) && !fits(&output, &["a x b"]));
}

#[test]
fn a_block_is_run_as_a_reader_would() {
    let sandbox = Sandbox::empty();
    let path = checkout(&sandbox);
    let text = "```sh\ncargo build --release\ncargo run --release -- --root fixtures/store/root --state fixtures/store/state checkpoint web -o /tmp/web-checkpoint\ndewar verify /tmp/web-checkpoint\n```\n```text\nsha256:…\nsound: … blobs, …\n```\n```sh\ndewar inspect /tmp/web-checkpoint nothing\n# exit 2\n```\n";
    blocks(text).iter().for_each(|block| run(&sandbox, &path, block));
    assert!(sandbox.path("tmp/web-checkpoint/oci-layout").exists());
}
