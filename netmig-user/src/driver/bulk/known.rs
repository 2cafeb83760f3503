//! Pages that the target has, by content.
use std::collections::HashMap;

/// Half of a BLAKE3 hash: no two pages with the same one will be found, by chance or by intent.
type Digest = [u8; 16];

/// Numbers of pages by their content. Bounded.
pub(super) struct Known {
    numbers: HashMap<Digest, u32>,
    limit: usize,
}

/// What is known of a page.
pub(super) enum Page {
    /// The target has it under this number.
    There(u32),
    /// It is new, and may be sent ahead.
    New(Digest),
    /// It is new, and there is no room for it.
    Full,
}

impl Known {
    /// Nothing yet, and at most so many pages.
    pub fn new(limit: usize) -> Self {
        Self {
            numbers: HashMap::new(),
            limit,
        }
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    pub fn look(&self, page: &[u8]) -> Page {
        let digest = digest(page);
        match self.numbers.get(&digest) {
            Some(number) => Page::There(*number),
            None if self.numbers.len() < self.limit => Page::New(digest),
            None => Page::Full,
        }
    }

    /// A page that was sent: its number is the next one.
    pub fn add(&mut self, digest: Digest) {
        let number = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        self.numbers.entry(digest).or_insert(number);
    }
}

fn digest(page: &[u8]) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(&blake3::hash(page).as_bytes()[..size_of::<Digest>()]);
    digest
}
