//! The Internet checksum, whole (RFC 1071) and incremental (RFC 1624).

/// Ones'-complement sum of `bytes` in 16-bit words, folded; not yet complemented.
/// An odd last byte counts as the upper half of a word.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total: u64 = 0;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    fold(total)
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The checksum of `bytes`: what goes into a header whose checksum field was zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The ones'-complement sum of two folded sums.
#[must_use]
pub fn add(left: u16, right: u16) -> u16 {
    fold(u64::from(left) + u64::from(right))
}

/// The checksum after one 16-bit word of the covered data changed from `old` to `new`
/// (RFC 1624 §3, equation 3).
#[must_use]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn incremental_equals_whole(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..128),
            at in any::<prop::sample::Index>(),
            new in any::<u16>(),
        ) {
            if bytes.len() % 2 == 1 { bytes.push(0); }
            bytes[0] = 1; // an all-zero packet has two representations of zero
            let at = 2 * at.index(bytes.len() / 2);
            prop_assume!(at != 0);
            let before = checksum(&bytes);
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), checksum(&bytes));
        }
    }
}
