//! The fuzzer's bytes as a row of decisions. Never fails: an input that has ended goes on with
//! zeros.

/// Numbers at which arithmetic goes wrong.
const EDGES: [u64; 8] =
    [0, 1, u32::MAX as u64, 1 << 31, u64::MAX, u64::MAX - 1, 1 << 63, i64::MAX as u64];

/// What is left of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A number below `limit`, which is at most 256 and not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// The next 16 bytes.
    pub fn u128(&mut self) -> u128 {
        u128::from_be_bytes(self.array())
    }

    /// A number that may well be `usual`, or near it, or at an edge, or any.
    pub fn number(&mut self, usual: u64) -> u64 {
        match self.byte() {
            0..=99 => usual,
            100..=139 => usual.wrapping_add(1),
            140..=159 => usual.wrapping_sub(1),
            160..=199 => usual.wrapping_add(self.u16().into()),
            edge @ 200..=239 => EDGES[usize::from(edge) % EDGES.len()],
            240.. => self.u64(),
        }
    }

    /// At most the next `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.take(N);
        let mut array = [0; N];
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// Alters a datagram in up to four places. It may come out as it was.
    pub fn alter(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let place = match bytes.len() {
                0 => 0,
                len => usize::from(self.u16()) % len,
            };
            match self.below(6) {
                0 => bytes.truncate(place),
                1 => {
                    let more = self.below(64);
                    bytes.extend_from_slice(self.take(more));
                }
                2 => {
                    let edge = EDGES[self.below(EDGES.len())].to_be_bytes();
                    overwrite(bytes, place, &edge);
                }
                3 => {
                    let len = self.below(32);
                    overwrite(bytes, place, self.take(len));
                }
                4 => {
                    let from = place.min(bytes.len());
                    let copied = bytes[from..].to_vec();
                    overwrite(bytes, usize::from(self.byte()), &copied);
                }
                _ => {
                    let damage = self.byte();
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte ^= damage;
                    }
                }
            }
        }
    }
}

/// Overwrites as much of `bytes` from `place` as there is.
fn overwrite(bytes: &mut [u8], place: usize, with: &[u8]) {
    for (byte, with) in bytes.iter_mut().skip(place).zip(with) {
        *byte = *with;
    }
}
