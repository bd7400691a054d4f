//! age files (age-encryption.org/v1): made for some recipients, opened by an identity of one of them.
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 …            one stanza a recipient: the file's key, wrapped for it
//! --- <MAC>
//! nonce, then chunks of 64 KiB, each with a tag of 16 bytes (ChaCha20-Poly1305); the last is marked as such
//! ```
//! The format and its cryptography are the `age` crate's. Ours is what a hostile file may cost: a header is read up to
//! [`MAX_HEADER`], and none of a passphrase is worked on, whose price its author would name.

use std::{
    collections::HashSet,
    fmt,
    io::{self, BufRead, Cursor, Read, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

use age::{
    DecryptError, Decryptor, EncryptError, Encryptor,
    secrecy::ExposeSecret,
    stream::{StreamReader, StreamWriter},
    x25519,
};
use age_core::format::{FileKey, Stanza};
use zeroize::Zeroizing;

use crate::error::Error;

/// A recipient has about a hundred bytes in a header.
pub const MAX_HEADER: u64 = 64 << 10;
/// So many fit into it.
pub const MAX_RECIPIENTS: usize = 256;
/// What each age file begins with.
const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// What stands between the header and the chunks.
const NONCE: u64 = 16;
/// A chunk, and its tag.
const CHUNK: u64 = 64 << 10;
const TAG: u64 = 16;

/// Who may open what is sealed.
#[derive(Clone)]
pub struct Recipients(Vec<x25519::Recipient>);

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} recipients", self.0.len())
    }
}

impl Recipients {
    /// Those of `texts`, each once; at least one.
    pub fn parse<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let (mut seen, mut all) = (HashSet::new(), Vec::new());
        for text in texts {
            let one = recipient(text.trim())?;
            if seen.insert(one.to_string()) {
                all.push(one);
            }
        }
        match all.len() {
            0 => Err("names no recipient".into()),
            1..=MAX_RECIPIENTS => Ok(Self(all)),
            n => Err(format!("names {n} recipients, more than {MAX_RECIPIENTS}")),
        }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

fn recipient(text: &str) -> Result<x25519::Recipient, String> {
    let short: String = text.chars().take(100).collect();
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        // Not repeated: it would stand in a log.
        return Err("a secret key was given in place of a recipient; `age-keygen -y` tells its recipient".into());
    }
    if text.starts_with("ssh-") {
        return Err(format!("{short:?} is an SSH key, and only age's own are taken; `age-keygen` makes one"));
    }
    text.parse().map_err(|why| format!("{short:?} is no age recipient (age1…): {why}"))
}

/// The lines of a file of recipients or identities: without comments and empty ones.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The secret keys of some recipients.
pub struct Identities(Vec<x25519::Identity>);

impl Identities {
    /// Those of the text of an identity file, as `age-keygen` writes it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE") {
            return Err("is itself encrypted; `age -d` gives the identity".into());
        }
        // What stands in a line is a secret, or may be: no error repeats it.
        let one = |line: &str| line.parse().map_err(|_| "holds a line that is no age identity (AGE-SECRET-KEY-1…)");
        match lines(text).map(one).collect::<Result<Vec<_>, _>>()? {
            none if none.is_empty() => Err("holds no identity (AGE-SECRET-KEY-1…)".into()),
            all => Ok(Self(all)),
        }
    }

    /// These and those.
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }
}

/// What opens an age file.
pub trait Opens {
    /// The keys to try.
    fn keys(&self) -> Vec<&dyn age::Identity>;
}

impl Opens for Identities {
    fn keys(&self) -> Vec<&dyn age::Identity> {
        self.0.iter().map(|one| one as _).collect()
    }
}

/// The key of one file: who wrote it can read it again as long as it keeps this. It is wiped when dropped.
pub struct OwnKey(Zeroizing<[u8; 16]>);

impl age::Identity for OwnKey {
    fn unwrap_stanza(&self, _: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        Some(Ok(FileKey::new(Box::new(*self.0))))
    }
}

impl Opens for OwnKey {
    fn keys(&self) -> Vec<&dyn age::Identity> {
        vec![self]
    }
}

/// A recipient that leaves nothing in the file: it only learns the file's key.
#[derive(Default)]
struct Witness(Mutex<Option<OwnKey>>);

impl age::Recipient for Witness {
    fn wrap_file_key(&self, key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let seen = OwnKey(Zeroizing::new(*key.expose_secret()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok((Vec::new(), HashSet::new()))
    }
}

/// Encrypts what is written into it; [`StreamWriter::finish`] ends the file.
pub type Sealer<W> = StreamWriter<W>;

/// Begins an age file in `out` for these recipients; its key is new.
pub fn seal<W: Write>(to: &Recipients, out: W) -> io::Result<(Sealer<W>, OwnKey)> {
    let witness = Witness::default();
    let all = to.0.iter().map(|one| one as &dyn age::Recipient).chain([&witness as _]);
    let sealer = Encryptor::with_recipients(all).map_err(io::Error::other)?.wrap_output(out)?;
    let key = witness.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((sealer, key.ok_or_else(|| io::Error::other("the file's key is not known"))?))
}

/// Why an age file is not opened.
#[derive(Debug, thiserror::Error)]
pub enum Locked {
    /// It is no such file, or one that we do not open.
    #[error("{0}")]
    Header(&'static str),
    /// Its key is not one of those given.
    #[error("none of the identities given opens it: it is sealed to {0}")]
    NoKey(String),
    /// It could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Locked {
    /// The error, with the file's place.
    pub fn at(self, path: &Path) -> Error {
        match self {
            Self::Header(why) => Error::malformed(path, why),
            Self::NoKey(_) => Error::Unsupported {
                what: format!("{}: {self}", path.display()),
                hint: "give the identity file of one of its recipients (-i)".into(),
            },
            Self::Io(source) => Error::Io { verb: "read", path: path.to_owned(), source },
        }
    }
}

/// The head of an age file.
pub struct Header {
    /// With the nonce behind it.
    bytes: Vec<u8>,
    /// The types of its stanzas.
    kinds: Vec<String>,
}

impl Header {
    /// Reads and checks the head of an age file; `from` then stands at the first chunk.
    pub fn read(from: &mut impl BufRead) -> Result<Self, Locked> {
        let (mut bytes, mut kinds, mut room) = (Vec::new(), Vec::new(), MAX_HEADER);
        loop {
            let start = bytes.len();
            let read = from.by_ref().take(room).read_until(b'\n', &mut bytes)? as u64;
            room -= read;
            let line = bytes.get(start..).unwrap_or_default();
            match line {
                _ if start == 0 && line != MAGIC => {
                    return Err(Locked::Header("is no age file (age-encryption.org/v1)"));
                }
                _ if !line.ends_with(b"\n") && room == 0 => {
                    return Err(Locked::Header("its age header is larger than 64 KiB"));
                }
                _ if !line.ends_with(b"\n") => return Err(Locked::Header("ends within its age header")),
                [b'-', b'-', b'-', ..] => break,
                [b'-', b'>', b' ', rest @ ..] => {
                    let kind = rest.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
                    kinds.push(String::from_utf8_lossy(kind).into_owned());
                }
                _ => {}
            }
        }
        if kinds.iter().any(|kind| kind == "scrypt") {
            return Err(Locked::Header("is sealed with a passphrase; only recipients' keys are taken"));
        }
        if from.by_ref().take(NONCE).read_to_end(&mut bytes)? as u64 != NONCE {
            return Err(Locked::Header("ends within its age header"));
        }
        Decryptor::new(&bytes[..]).map_err(|_| Locked::Header("its age header is malformed"))?;
        Ok(Self { bytes, kinds })
    }

    /// To how many X25519 recipients it is.
    pub fn recipients(&self) -> usize {
        self.kinds.iter().filter(|kind| *kind == "X25519").count()
    }

    /// In words, of which kinds its recipients are. age puts a stanza in that means nothing, `…-grease`.
    fn told(&self) -> String {
        let other: HashSet<_> = self.kinds.iter().filter(|k| *k != "X25519" && !k.ends_with("-grease")).collect();
        let mut told = vec![format!("{} X25519 recipients", self.recipients())];
        told.extend(
            other.iter().take(5).map(|kind| format!("others of type {:?}", kind.chars().take(40).collect::<String>())),
        );
        told.join(" and ")
    }

    /// How much plaintext a file of `size` bytes with this header holds; `None`: no file is so long.
    pub fn plain_size(&self, size: u64) -> Option<u64> {
        let payload = size.checked_sub(self.bytes.len() as u64)?;
        let (whole, last) = (payload / (CHUNK + TAG), payload % (CHUNK + TAG));
        match last {
            // Only the single chunk of an empty file is empty.
            0 if whole > 0 => Some(whole * CHUNK),
            TAG if whole == 0 => Some(0),
            _ if last > TAG => Some(whole * CHUNK + last - TAG),
            _ => None,
        }
    }
}

/// The plaintext of an age file. A chunk that was changed, or a file that was cut, is an error where it is met.
pub type Opened<R> = StreamReader<io::Chain<Cursor<Vec<u8>>, R>>;

/// Opens the age file that `from` stands before.
pub fn open<R: BufRead>(mut from: R, with: &dyn Opens) -> Result<Opened<R>, Locked> {
    let header = Header::read(&mut from)?;
    let told = header.told();
    let opened = Decryptor::new_buffered(Cursor::new(header.bytes).chain(from));
    opened.and_then(|file| file.decrypt(with.keys().into_iter())).map_err(|e| match e {
        DecryptError::Io(e) => Locked::Io(e),
        DecryptError::NoMatchingKeys => Locked::NoKey(told),
        DecryptError::InvalidMac => Locked::Header("its age header was changed"),
        DecryptError::DecryptionFailed => Locked::Header("its key cannot be unwrapped: its age header was changed"),
        _ => Locked::Header("its age header is malformed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Recipients, Identities) {
        let key = x25519::Identity::generate();
        (Recipients(vec![key.to_public()]), Identities(vec![key]))
    }

    fn sealed(to: &Recipients, plain: &[u8]) -> (Vec<u8>, OwnKey) {
        let (mut sealer, key) = seal(to, Vec::new()).unwrap();
        sealer.write_all(plain).unwrap();
        (sealer.finish().unwrap(), key)
    }

    fn opened(bytes: &[u8], with: &dyn Opens) -> Result<Vec<u8>, Locked> {
        let mut plain = Vec::new();
        open(bytes, with)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_recipients_and_by_who_wrote_it_and_by_nobody_else() {
        let ((to, key), (_, other)) = (pair(), pair());
        for size in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let plain: Vec<u8> = (0..size).map(|n| (n / 3) as u8).collect();
            let (bytes, own) = sealed(&to, &plain);
            assert!(opened(&bytes, &key).unwrap() == plain && opened(&bytes, &own).unwrap() == plain);
            let why = opened(&bytes, &other).unwrap_err().to_string();
            assert!(why.contains("1 X25519 recipients"), "{why}");
            let header = Header::read(&mut &bytes[..]).unwrap();
            assert_eq!((header.recipients(), header.plain_size(bytes.len() as u64)), (1, Some(size)));
            let (_, none) = sealed(&to, b"");
            assert!(opened(&bytes, &none).is_err(), "the key of another file");
        }
    }

    #[test]
    fn what_is_cut_or_changed_anywhere_is_an_error() {
        let (to, key) = pair();
        let (bytes, _) = sealed(&to, &[7; 70_000]);
        let header = Header::read(&mut &bytes[..]).unwrap().bytes.len();
        for at in (0..header + 40).chain((header + 40..bytes.len()).step_by(977)) {
            assert!(opened(&bytes[..at], &key).is_err(), "cut to {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(opened(&changed, &key).is_err(), "changed at {at}");
        }
        assert!(opened(&[&bytes[..], b"x"].concat(), &key).is_err());
    }

    #[test]
    fn a_hostile_header_costs_little() {
        let (_, key) = pair();
        let why = |bytes: &[u8]| opened(bytes, &key).unwrap_err().to_string();
        let scrypt = b"age-encryption.org/v1\n-> scrypt bBjlhJVYZeE4aqUdmtRHfw 63\n\
            ZV/AhotwSGqaPCU43cepl4WYUouAa17a3xpu4G2yi5k\n--- fgMiVLJHMlg9fW7CVG/hPS5EAU4Zeg19LyCP7SoH5nA\n0123456789abcdef";
        assert!(why(scrypt).contains("passphrase"));
        let long = [MAGIC, b"-> X25519 ", &vec![b'a'; 1 << 20]].concat();
        assert!(why(&long).contains("64 KiB"));
        let many = [MAGIC, &b"-> a b\n\n".repeat(1 << 18)].concat();
        assert!(why(&many).contains("64 KiB"));
        assert!(why(b"").contains("no age file"));
        assert!(why(b"age-encryption.org/v1\n-> X25519 a\n").contains("ends within"));
    }

    #[test]
    fn recipients_and_identities_are_what_age_keygen_writes() {
        let (to, key) = pair();
        let (public, secret) = (to.0[0].to_string(), key.0[0].to_string());
        let file = format!("# created: 2026-11-26\n# public key: {public}\n{}\n", secret.expose_secret());
        let read = Identities::parse(&file).unwrap();
        assert_eq!(read.0[0].to_public().to_string(), public);
        assert_eq!(Recipients::parse([public.as_str(), &public]).unwrap().count(), 1);
        for (text, why) in [
            ("age1abc", "is no age recipient"),
            ("ssh-ed25519 AAAA", "SSH key"),
            (secret.expose_secret(), "secret key was given"),
        ] {
            let told = Recipients::parse([text]).unwrap_err();
            assert!(told.contains(why) && !told.contains("AGE-SECRET"), "{told}");
        }
        assert!(Recipients::parse([]).is_err());
        for (text, why) in
            [("", "holds no identity"), ("AGE-SECRET-KEY-1X", "no age identity"), ("-----BEGIN AGE ENC", "encrypted")]
        {
            let told = Identities::parse(text).err().unwrap();
            assert!(told.contains(why) && !told.contains("KEY-1X"), "{told}");
        }
    }

    #[test]
    fn no_file_has_a_length_that_age_does_not_write() {
        let (to, _) = pair();
        let header = Header::read(&mut &sealed(&to, b"").0[..]).unwrap();
        let head = header.bytes.len() as u64;
        for payload in [0, 1, 15, CHUNK + TAG + 1, CHUNK + 2 * TAG] {
            assert_eq!(header.plain_size(head + payload), None, "{payload}");
        }
        assert_eq!(header.plain_size(head + CHUNK + TAG), Some(CHUNK));
        assert_eq!(header.plain_size(head - 1), None);
    }
}
