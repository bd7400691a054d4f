//! Names of any bytes in documents: readable, and exact.

use serde::{Deserialize, Serialize};

/// A path as JSON has it. JSON holds Unicode only, and a file's name need not be any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnyPath {
    /// As text; what is no UTF-8 stands there as `\xff`.
    pub path: String,
    /// The bytes in hex, if the text is not the very path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
}

impl AnyPath {
    /// The path `/<relative>`, as a process in the container would say it.
    pub fn from_root(relative: &[u8]) -> Self {
        // The root itself stands in a layer as `.`.
        let below = if relative == b"." { &[] } else { relative };
        Self::from([b"/", below].concat())
    }

    /// The very bytes; `None` if the hex is none.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        self.path_hex.as_ref().map_or_else(|| Some(self.path.clone().into_bytes()), |digits| hex::decode(digits).ok())
    }
}

impl From<Vec<u8>> for AnyPath {
    fn from(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(path) => Self { path, path_hex: None },
            Err(e) => {
                let mut path = String::new();
                for chunk in e.as_bytes().utf8_chunks() {
                    path += chunk.valid();
                    path += &chunk.invalid().escape_ascii().to_string();
                }
                Self { path, path_hex: Some(hex::encode(e.as_bytes())) }
            }
        }
    }
}

/// A text of any bytes as JSON has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AnyText {
    /// As text; what is no UTF-8 stands there as `\xff`.
    pub text: String,
    /// The bytes in hex, if the text is not they.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

impl AnyText {
    /// True of one without any byte.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The very bytes; `None` if the hex is none.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        self.hex.as_ref().map_or_else(|| Some(self.text.clone().into_bytes()), |digits| hex::decode(digits).ok())
    }
}

impl From<Vec<u8>> for AnyText {
    fn from(bytes: Vec<u8>) -> Self {
        let AnyPath { path: text, path_hex: hex } = bytes.into();
        Self { text, hex }
    }
}

impl From<String> for AnyText {
    fn from(text: String) -> Self {
        Self { text, hex: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_bytes_is_readable_and_exact() {
        let told = |path: &str, hex: Option<&str>| AnyPath { path: path.into(), path_hex: hex.map(str::to_owned) };
        assert_eq!(AnyPath::from_root("etc/ü\n".as_bytes()), told("/etc/ü\n", None));
        assert_eq!((AnyPath::from_root(b""), AnyPath::from_root(b".")), (told("/", None), told("/", None)));
        assert_eq!(AnyPath::from_root("ü\u{1}".as_bytes()).path_hex, None);
        assert_eq!(AnyPath::from(b"a\xff".to_vec()).to_bytes().unwrap(), b"a\xff");
        assert_eq!(AnyPath::from(b"a\xff\xc3\xbc".to_vec()), told("a\\xffü", Some("61ffc3bc")));
    }
}
