//! Names of any bytes as text that every reader takes for one piece, and that can be undone.
//!
//! A backslash stands as `\\`. Bytes of control characters and of those that turn the direction of writing, bytes that are no UTF-8, and what a format cannot have stand as
//! `\x` and two hex digits each. So a name is got back by reading `\\` as `\` and `\xNN` as that byte. Plaso undoes the
//! control characters itself; mactime, which has no escapes but `%NN` (undone without asking: hence no `%` is left), shows
//! them as they stand.

use std::fmt::Write as _;

/// `bytes` as text; characters that `refused` names are written as bytes too.
pub fn escaped(bytes: &[u8], refused: fn(char) -> bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str(r"\\"),
                c if c.is_control() || turns(c) || refused(c) => {
                    push_bytes(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes())
                }
                c => text.push(c),
            }
        }
        push_bytes(&mut text, chunk.invalid());
    }
    text
}

/// Characters that change the direction of what is shown: `exe.txt` would read `txt.exe`.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// What [`escaped`] was given; `None` if no name is written so.
pub fn unescaped(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((plain, after)) = rest.split_once('\\') {
        bytes.extend(plain.as_bytes());
        rest = if let Some(after) = after.strip_prefix('\\') {
            bytes.push(b'\\');
            after
        } else {
            let digits = after.strip_prefix('x')?.get(..2)?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            after.get(3..)?
        };
    }
    bytes.extend(rest.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_comes_back() {
        for (name, text) in [
            (&b"etc/passwd"[..], "etc/passwd"),
            (b"a|b", r"a\x7cb"),
            (b"new\nline\x1b[31m", r"new\x0aline\x1b[31m"),
            (b"back\\slash\\x41", r"back\\slash\\x41"),
            ("grün\u{85}".as_bytes(), r"grün\xc2\x85"),
            (b"\xff\xc3", r"\xff\xc3"),
        ] {
            let written = escaped(name, |c| c == '|');
            assert_eq!(written, text);
            assert_eq!(unescaped(&written).as_deref(), Some(name));
        }
        for byte in 0..=255_u8 {
            let name = [b'a', byte, b'x', b'4', b'1'];
            assert_eq!(unescaped(&escaped(&name, |_| false)).unwrap(), name);
        }
        for bad in [r"\", r"\x", r"\x4", r"\y", r"\xü"] {
            assert_eq!(unescaped(bad), None, "{bad}");
        }
    }
}
