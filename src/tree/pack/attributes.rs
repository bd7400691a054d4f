//! Which extended attributes a header holds, and where the others stay.

use std::io;

use super::{Held, Packer};
use crate::{
    error::Result,
    pax::{self, Xattr},
    tree::{
        node::Node,
        summary::{LeftOut, MAX_PATH, Why},
    },
};

impl Packer<'_> {
    /// The attributes to be written; those that are not are noted, once for each inode.
    pub(super) fn xattrs(&mut self, path: &[u8], node: &Node, notes: bool) -> Result<Vec<Xattr>> {
        let (kept, lost) = match self.choose_xattrs(node) {
            Ok(chosen) => chosen,
            Err(e) => {
                self.is_lacking = true;
                self.warn(path, format!("its extended attributes could not be read: {e}"));
                return Ok(Vec::new());
            }
        };
        self.is_lacking = !lost.is_empty();
        for why in lost.into_iter().filter(|_| notes) {
            self.xattr_beside(path, node, why)?;
        }
        Ok(kept)
    }

    /// The attributes that one header can hold, and why the others stay out. Sizes are asked first: the values of one file
    /// may be half a gigabyte.
    fn choose_xattrs(&self, node: &Node) -> io::Result<(Vec<Xattr>, Vec<Why>)> {
        let (mut fit, mut lost) = (Vec::new(), Vec::new());
        for name in node.xattr_names()? {
            match (self.judge)(&name) {
                // The first `=` of a record ends its keyword.
                Held::Kept if !name.contains(&b'=') => fit.push((node.xattr_len(&name), name)),
                Held::Dropped => {}
                Held::Kept | Held::LeftOut => lost.push(Why::XattrName(name)),
            }
        }
        lost.extend(shed(&mut fit).into_iter().map(Why::XattrSize));
        let pair = |(_, name): (usize, Vec<u8>)| Ok(node.xattr(&name)?.map(|value| (name, value)));
        let kept = fit.into_iter().filter_map(|item| pair(item).transpose()).collect::<io::Result<Vec<Xattr>>>()?;
        Ok((kept, lost))
    }

    /// Notes an attribute that has no place in the tar, and keeps its value beside.
    fn xattr_beside(&mut self, path: &[u8], node: &Node, why: Why) -> Result<()> {
        let (Why::XattrName(name) | Why::XattrSize(name)) = &why else { return Ok(()) };
        let mut kept = None;
        if let (Some(beside), Ok(Some(value))) = (&mut self.beside, node.xattr(name)) {
            let at = format!("xattrs/{}", self.values).into_bytes();
            self.values += 1;
            beside.bytes(&at, &value)?;
            kept = Some(at);
        }
        self.left_out(LeftOut { path: path.to_vec(), meta: Some(node.meta.clone()), why, kept });
        Ok(())
    }
}

/// Takes away the largest attributes, given by size of value and name, until the header is one that containerd reads.
fn shed(fit: &mut Vec<(usize, Vec<u8>)>) -> Vec<Vec<u8>> {
    // The other records hold two paths and a few numbers.
    let room = pax::MAX_RECORDS - 2 * MAX_PATH - pax::BLOCK;
    let record = |(len, name): &(usize, Vec<u8>)| pax::xattr_record_len(name, *len);
    let mut total: usize = fit.iter().map(record).sum();
    let mut lost = Vec::new();
    while total > room {
        let Some(at) = (0..fit.len()).max_by_key(|&i| fit[i].0) else { break };
        let xattr = fit.remove(at);
        total -= record(&xattr);
        lost.push(xattr.1);
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_beyond_what_containerd_reads_are_shed_the_largest_first() {
        let xattr = |i: u8, len| (len, vec![b'u', i]);
        let mut kept: Vec<(usize, Vec<u8>)> = (0..20).map(|i| xattr(i, 60_000 + usize::from(i))).collect();
        kept.push(xattr(99, 5));
        let lost = shed(&mut kept);
        assert_eq!(lost[0], [b'u', 19]);
        assert!(kept.contains(&xattr(99, 5)) && kept.len() + lost.len() == 21);
        let records = kept.iter().map(|(len, name)| pax::xattr_record_len(name, *len));
        assert!(records.sum::<usize>() < pax::MAX_RECORDS - 2 * MAX_PATH);
        assert!(shed(&mut kept).is_empty());
    }
}
