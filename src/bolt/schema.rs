//! What the buckets of a database look like, so that a page can be told for what it is when what led to it is gone.
//!
//! A bucket that holds a bucket has a page of its own (bbolt `bucket.go`, `inlineable`), and that page does not carry
//! the bucket's name. A schema says which keys such a page has, and how its name may be read from what it holds.

use super::Bucket;

/// Keys from the root to a bucket; an empty one is not known.
pub type Place = Vec<Vec<u8>>;

/// Reads from a bucket where it belongs.
pub type PlaceOf = fn(&Bucket<'_>) -> Option<Place>;
/// Reads from a bucket whether it may be the one under a key; `None` if it says nothing.
pub type IsNamed = fn(&[u8], &Bucket<'_>) -> Option<bool>;

/// A kind of bucket.
pub struct Kind {
    /// What it is called in messages.
    pub name: &'static str,
    /// One thing with fields, which are of one moment; else a list, or a bucket of lists.
    pub is_record: bool,
    /// Keys with a meaning of their own.
    pub fields: &'static [(&'static str, Field)],
    /// Those of them that are never missing.
    pub required: &'static [&'static str],
    /// What stands under other keys.
    pub others: Others,
    /// Where such a bucket belongs, by what it holds.
    pub place: Option<PlaceOf>,
    /// Whether it may be the one under this key, by what it holds; `None` if that says nothing.
    pub is_named: Option<IsNamed>,
}

/// What stands under a known key.
#[derive(Clone, Copy)]
pub enum Field {
    /// Plain bytes.
    Value,
    /// A time: newer records have a greater one, compared as bytes.
    Time,
    /// A bucket.
    Bucket(&'static Kind),
}

/// What stands under keys that are names.
#[derive(Clone, Copy)]
pub enum Others {
    /// Nothing that we know; newer writers may have added something.
    Unknown,
    /// Nothing.
    Nothing,
    /// Plain bytes.
    Values,
    /// A bucket each.
    Buckets(&'static Kind),
}

/// Plain keys and values: nothing tells one such bucket from another.
pub static VALUES: Kind = Kind {
    name: "values",
    is_record: true,
    fields: &[],
    required: &[],
    others: Others::Values,
    place: None,
    is_named: None,
};

impl Kind {
    /// A record with these fields.
    pub const fn record(
        name: &'static str,
        fields: &'static [(&'static str, Field)],
        required: &'static [&'static str],
    ) -> Self {
        Self { name, is_record: true, fields, required, others: Others::Unknown, place: None, is_named: None }
    }

    /// A bucket of these lists, and nothing else.
    pub const fn parts(name: &'static str, fields: &'static [(&'static str, Field)]) -> Self {
        Self { name, is_record: false, fields, required: &[], others: Others::Nothing, place: None, is_named: None }
    }

    /// Buckets of one kind, by name.
    pub const fn map(name: &'static str, of: &'static Kind) -> Self {
        Self {
            name,
            is_record: false,
            fields: &[],
            required: &[],
            others: Others::Buckets(of),
            place: None,
            is_named: None,
        }
    }

    /// What stands under `key`, if that is known.
    pub(super) fn field(&self, key: &[u8]) -> Option<Field> {
        self.fields.iter().find(|(name, _)| name.as_bytes() == key).map(|(_, field)| *field)
    }

    /// The kind of the bucket under `key`, if that is known.
    pub(super) fn below(&self, key: &[u8]) -> Option<&'static Kind> {
        match (self.field(key), self.others) {
            (Some(Field::Bucket(kind)), _) | (None, Others::Buckets(kind)) => Some(kind),
            _ => None,
        }
    }

    /// True if its pages can be told from others.
    pub(super) fn is_telling(&self) -> bool {
        !self.required.is_empty() || !self.fields.is_empty() || matches!(self.others, Others::Buckets(_))
    }

    /// This kind and all below it, each with the way to it as far as it has no names in it.
    pub(super) fn all(&'static self) -> Vec<(&'static Kind, Option<Place>)> {
        let mut found: Vec<(&'static Kind, Option<Place>)> = vec![(self, Some(Vec::new()))];
        let mut next = 0;
        while let Some((kind, way)) = found.get(next).cloned() {
            next += 1;
            let named = kind.fields.iter().filter_map(|(key, field)| match field {
                Field::Bucket(below) => Some((*below, Some(key.as_bytes().to_vec()))),
                _ => None,
            });
            let others = match kind.others {
                Others::Buckets(below) => Some((below, None)),
                _ => None,
            };
            for (below, key) in named.chain(others).collect::<Vec<_>>() {
                if !found.iter().any(|(kind, _)| std::ptr::eq(*kind, below)) {
                    let way = way.clone().zip(key).map(|(way, key)| [way, vec![key]].concat());
                    found.push((below, way));
                }
            }
        }
        found
    }
}
