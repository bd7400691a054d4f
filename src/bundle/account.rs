//! From what became of each tree to the account that goes along.

use crate::{
    name::AnyPath,
    oci::account::{Account, LeftOut, Odd},
    pax,
    tree::{self, Summary},
};

/// What `summary` says is missing from the tree called `of`.
pub fn left_out(of: &str, summary: &Summary) -> Vec<LeftOut> {
    summary.left_out.iter().map(|lost| one(of, lost)).collect()
}

/// What `summary` says is odd in the tree called `of`.
pub fn odd(of: &str, summary: &Summary) -> Vec<Odd> {
    let odd = |w: &tree::Warning| Odd { of: of.into(), path: AnyPath::from_root(&w.path), what: w.what.clone() };
    summary.warnings.iter().map(odd).collect()
}

/// The account as a document of at most `max` bytes: what does not fit is counted, not listed.
pub fn document(mut account: Account, max: u64) -> serde_json::Result<Vec<u8>> {
    loop {
        let bytes = serde_json::to_vec(&account)?;
        let listed = account.left_out.len() + account.odd.len();
        if bytes.len() as u64 <= max || listed == 0 {
            return Ok(bytes);
        }
        account.left_out.truncate(account.left_out.len() / 2);
        account.odd.truncate(account.odd.len() / 2);
        account.unlisted += (listed - account.left_out.len() - account.odd.len()) as u64;
    }
}

fn one(of: &str, lost: &tree::LeftOut) -> LeftOut {
    let meta = lost.meta.as_ref();
    LeftOut {
        of: of.into(),
        path: AnyPath::from_root(&lost.path),
        why: lost.why.to_string(),
        kind: meta.map(|meta| meta.kind.name().into()),
        mode: meta.map(|meta| format!("{:04o}", meta.mode)),
        uid: meta.map(|meta| meta.uid),
        gid: meta.map(|meta| meta.gid),
        size: meta.filter(|meta| meta.kind == tree::Kind::File).map(|meta| meta.size),
        mtime: meta.map(|meta| pax::decimal(meta.mtime)),
        kept: lost.kept.clone().map(AnyPath::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_too_long_for_a_document_counts_what_it_does_not_list() {
        let odd = Odd { of: "rw layer".into(), path: AnyPath::from_root(b"x"), what: "odd".into() };
        let account = Account { odd: vec![odd; 1000], unlisted: 7, ..Account::default() };
        let whole = document(account.clone(), 1 << 20).unwrap();
        assert_eq!(serde_json::from_slice::<Account>(&whole).unwrap(), account);
        let fitted: Account = serde_json::from_slice(&document(account, 10_000).unwrap()).unwrap();
        assert!(fitted.odd.len() > 50, "{}", fitted.odd.len());
        assert_eq!(fitted.odd.len() as u64 + fitted.unlisted, 1007);
    }
}
