//! A byte stream that can be checked from any offset: the bytes of a counter's hash, told apart by a seed.
use crate::random::Random;

/// Fills `buf` with the bytes of stream `seed` from `offset` (bytes) on.
pub fn fill(seed: u64, offset: u64, buf: &mut [u8]) {
    walk(seed, offset, buf.len(), |range, word| {
        buf[range].copy_from_slice(word)
    });
}

/// How many bytes of `buf` are not those of stream `seed` at `offset`.
#[must_use]
pub fn wrong(seed: u64, offset: u64, buf: &[u8]) -> u64 {
    let mut wrong = 0;
    walk(seed, offset, buf.len(), |range, word| {
        let part = &buf[range];
        if part != word {
            wrong += part.iter().zip(word).filter(|(a, b)| a != b).count() as u64;
        }
    });
    wrong
}

fn walk(seed: u64, offset: u64, len: usize, mut part: impl FnMut(std::ops::Range<usize>, &[u8])) {
    let mut at = 0;
    while at < len {
        let absolute = offset + at as u64;
        let inside = (absolute % 8) as usize;
        let n = (8 - inside).min(len - at);
        let word = Random::new(seed ^ (absolute / 8)).next().to_le_bytes();
        part(at..at + n, &word[inside..inside + n]);
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_checks() {
        let mut whole = vec![0; 1000];
        fill(7, 0, &mut whole);
        for (from, to) in [(0, 1000), (1, 2), (3, 777), (8, 16), (995, 1000)] {
            let mut cut = vec![0; to - from];
            fill(7, from as u64, &mut cut);
            assert_eq!(cut, whole[from..to]);
            assert_eq!(wrong(7, from as u64, &whole[from..to]), 0);
        }
    }

    #[test]
    fn a_flipped_byte_and_another_seed_are_seen() {
        let mut bytes = vec![0; 100];
        fill(7, 5, &mut bytes);
        bytes[50] ^= 1;
        assert_eq!(wrong(7, 5, &bytes), 1);
        assert!(wrong(8, 5, &bytes) > 90);
        assert!(
            wrong(7, 6, &bytes) > 90,
            "a byte lost in the stream shifts the rest"
        );
    }
}
