//! Signatures of records: Ed25519 (RFC 8032) over the very bytes, detached. Keys as others make them: `openssl genpkey
//! -algorithm ed25519` (PKCS#8 PEM, RFC 8410) and `ssh-keygen -t ed25519` (OpenSSH, without a passphrase).

use std::fmt;

use ed25519_dalek::{
    Signature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey, spki::der::pem::LineEnding},
};
use ssh_key::{PrivateKey, PublicKey, private::KeypairData};
use zeroize::Zeroizing;

use super::Signer;
use crate::digest::Digest;

/// A private key; its memory is wiped when it goes.
pub struct Key(SigningKey);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(not told)")
    }
}

/// A public key that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted(VerifyingKey);

const OPENSSH: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";

impl Key {
    /// Of a private key's file; an error says why it is none that can sign, and nothing of the key.
    pub fn parse(text: &Zeroizing<String>) -> Result<Self, String> {
        if text.trim_start().starts_with(OPENSSH) {
            return Self::of_openssh(text);
        }
        let key = SigningKey::from_pkcs8_pem(text.trim());
        let hint = "make one with openssl genpkey -algorithm ed25519, or ssh-keygen -t ed25519 -N ''";
        key.map(Self).map_err(|e| format!("is no Ed25519 private key (PKCS#8 PEM or OpenSSH): {e}; {hint}"))
    }

    fn of_openssh(text: &str) -> Result<Self, String> {
        let key = PrivateKey::from_openssh(text).map_err(|e| format!("is no OpenSSH private key: {e}"))?;
        if key.is_encrypted() {
            return Err("has a passphrase, which nobody can be asked for here: give a key without one".into());
        }
        match key.key_data() {
            KeypairData::Ed25519(pair) => Ok(Self(SigningKey::from_bytes(&pair.private.to_bytes()))),
            _ => Err(format!("is a key for {}, and Ed25519 is wanted", key.algorithm())),
        }
    }

    /// The signature of `bytes`.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }

    /// What a record says of the key.
    pub fn signer(&self) -> Signer {
        let public = self.0.verifying_key();
        Signer {
            algorithm: "Ed25519".into(),
            public_key: public.to_public_key_pem(LineEnding::LF).unwrap_or_default(),
            key_id: Trusted(public).id(),
        }
    }
}

impl Trusted {
    /// Of a public key's file: PEM (SubjectPublicKeyInfo), or one line of OpenSSH's (`ssh-ed25519 AAAA… comment`).
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with("ssh-") {
            let key = PublicKey::from_openssh(text.trim()).map_err(|e| format!("is no OpenSSH public key: {e}"))?;
            let bytes = key.key_data().ed25519().ok_or("is of another algorithm than Ed25519")?.0;
            return VerifyingKey::from_bytes(&bytes).map(Self).map_err(|e| format!("is no Ed25519 key: {e}"));
        }
        let key = VerifyingKey::from_public_key_pem(text.trim());
        key.map(Self).map_err(|e| format!("is no Ed25519 public key (PEM or OpenSSH): {e}"))
    }

    /// SHA-256 of its DER form, in hex: `openssl pkey -pubin -outform DER | sha256sum`.
    pub fn id(&self) -> String {
        let der = self.0.to_public_key_der().map(|der| Digest::of(der.as_bytes()).to_hex());
        der.unwrap_or_default()
    }

    /// Whether `signature` is this key's over `bytes`.
    pub fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        let signature = Signature::from_slice(signature);
        // Strict: no signature is taken that another verifier would refuse, nor one by a key of small order.
        signature.is_ok_and(|signature| self.0.verify_strict(bytes, &signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3, and its public key, section 10.1.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    fn key(text: &str) -> Result<Key, String> {
        Key::parse(&Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn a_signature_is_of_these_bytes_by_this_key() {
        let (key, trusted) = (key(PRIVATE).unwrap(), Trusted::parse(PUBLIC).unwrap());
        let signature = key.sign(b"record");
        assert!(trusted.has_signed(b"record", &signature));
        assert!(!trusted.has_signed(b"recorD", &signature));
        for bit in 0..512 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!trusted.has_signed(b"record", &flipped), "bit {bit}");
        }
        assert!(!trusted.has_signed(b"record", &signature[..63]) && !trusted.has_signed(b"record", b""));
        assert_eq!((key.signer().public_key.as_str(), key.signer().key_id), (PUBLIC, trusted.id()));
    }

    #[test]
    fn what_is_no_key_is_said_without_telling_its_content() {
        let secret = PRIVATE.lines().nth(1).unwrap();
        for text in ["", "x", PUBLIC, &PRIVATE[..60], &PRIVATE.replace("MC4C", "MC4D")] {
            let why = key(text).err().unwrap();
            assert!(!why.contains(&secret[..20]) && why.contains("openssl genpkey"), "{why}");
        }
        for text in ["", "ssh-rsa AAAA", "ssh-ed25519 AAAA", PRIVATE] {
            assert!(Trusted::parse(text).is_err(), "{text}");
        }
    }
}
