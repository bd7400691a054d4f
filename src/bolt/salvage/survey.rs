//! A first walk through the tree: which pages it uses, what it misses, which list leads to which page.

use std::collections::HashMap;

use super::orphans::root_of;
use crate::bolt::{
    page::Page,
    schema::{Field, Kind, Others, Place},
    walk::{MAX_NEST, Pages, Set},
};

/// What a tree uses and misses.
pub(super) struct Survey<'a> {
    /// Its pages.
    pub used: Set,
    /// Pages to which two of its places lead.
    pub contested: Vec<u64>,
    /// How many buckets of each kind miss something.
    wounded: Vec<(&'static Kind, usize)>,
    /// Under which key which of `lists` leads to a page.
    leads: HashMap<u64, (usize, &'a [u8])>,
    lists: Vec<Place>,
}

impl<'a> Survey<'a> {
    /// Walks the tree below page `root`.
    pub fn of(mut pages: Pages<'a>, root: u64, schema: &'static Kind) -> Self {
        let (used, contested) = (Set::default(), Vec::new());
        let mut survey = Self { used, contested, wounded: Vec::new(), leads: HashMap::new(), lists: Vec::new() };
        survey.bucket(&mut pages, root, Some(schema), &mut Vec::new());
        survey.used = pages.claimed;
        survey.contested = pages.contested;
        survey
    }

    fn bucket(&mut self, pages: &mut Pages<'a>, root: u64, kind: Option<&'static Kind>, place: &mut Place) {
        if place.len() > MAX_NEST {
            return;
        }
        let leaves = pages.leaves(root);
        if let Some(kind) = kind.filter(|_| !leaves.wounds.is_empty()) {
            match self.wounded.iter_mut().find(|(known, _)| std::ptr::eq(*known, kind)) {
                Some((_, count)) => *count += 1,
                None => self.wounded.push((kind, 1)),
            }
        }
        let is_list = kind.is_some_and(|kind| matches!(kind.others, Others::Buckets(below) if below.is_record));
        if is_list {
            self.lists.push(place.clone());
        }
        for page in leaves.pages {
            let is_whole = page.defect().is_none();
            (0..page.count)
                .filter(|i| is_whole || page.is_sound(*i))
                .for_each(|i| self.element(pages, &page, i, (kind, is_list), place));
        }
    }

    fn element(
        &mut self,
        pages: &mut Pages<'a>,
        page: &Page<'a>,
        i: usize,
        (kind, is_list): (Option<&'static Kind>, bool),
        place: &mut Place,
    ) {
        let Ok(leaf) = page.leaf(i) else { return };
        let Some(root) = root_of(&leaf) else { return };
        if is_list {
            self.leads.insert(root, (self.lists.len() - 1, leaf.key));
        }
        place.push(leaf.key.to_vec());
        self.bucket(pages, root, kind.and_then(|kind| kind.below(leaf.key)), place);
        place.pop();
    }

    /// The list of the tree that has page `root` under `key`.
    pub fn list_with(&self, root: u64, key: &[u8]) -> Option<&Place> {
        let (list, _) = self.leads.get(&root).filter(|(_, known)| *known == key)?;
        self.lists.get(*list)
    }

    /// True if the tree misses only one bucket of which one of this kind is a part, and that is at no other name.
    pub fn is_only(&self, kind: &'static Kind) -> bool {
        let places: usize =
            self.wounded.iter().filter(|(above, _)| leads_to(above, kind)).map(|(_, count)| count).sum();
        // What is lost above may be of any number of names.
        let above: usize =
            self.wounded.iter().filter(|(above, _)| above.all().iter().any(|(k, _)| std::ptr::eq(*k, kind))).count();
        places == 1 && above == 1
    }
}

/// True if `kind` is `above` or stands below it under keys that are no names.
fn leads_to(above: &'static Kind, kind: &'static Kind) -> bool {
    let below = |field: &Field| matches!(field, Field::Bucket(below) if leads_to(below, kind));
    std::ptr::eq(above, kind) || above.fields.iter().any(|(_, field)| below(field))
}
