//! A byte stream that can be checked from any offset: the bytes of a counter's hash, told apart by a seed.

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
        let word = splitmix(seed ^ (absolute / 8)).to_le_bytes();
        part(at..at + n, &word[inside..inside + n]);
        at += n;
    }
}

/// The output function of SplitMix64.
fn splitmix(x: u64) -> u64 {
    let mut z = x
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
