//! Pages that the target has, by content.
use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128_with_secret;

/// A key that nobody outside of this move knows, so that nobody can write two pages that look the same. By chance they do not; if they did, the
/// checksum of the file would tell ([`netmig_core::frame::FileEnd`]), and the move would end before its release.
pub type Secret = [u8; 192];

/// Numbers of pages by their content. Bounded.
pub(super) struct Known {
    secret: Secret,
    numbers: HashMap<u128, u32>,
    limit: usize,
}

/// What is known of a page.
pub(super) enum Page {
    /// The target has it under this number.
    There(u32),
    /// It is new, and may be sent ahead.
    New(u128),
    /// It is new, and there is no room for it.
    Full,
}

impl Known {
    /// Nothing yet, and at most so many pages.
    pub fn new(secret: Secret, limit: usize) -> Self {
        Self {
            secret,
            numbers: HashMap::new(),
            limit,
        }
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    pub fn look(&self, page: &[u8]) -> Page {
        let digest = xxh3_128_with_secret(page, &self.secret);
        match self.numbers.get(&digest) {
            Some(number) => Page::There(*number),
            None if self.numbers.len() < self.limit => Page::New(digest),
            None => Page::Full,
        }
    }

    /// A page that was sent: its number is the next one.
    pub fn add(&mut self, digest: u128) {
        let number = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        self.numbers.entry(digest).or_insert(number);
    }
}
