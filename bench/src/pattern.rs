//! Bytes that both ends of a session can make from a seed, and their pace. A byte's
//! value depends on its place in the stream, so that what is lost, doubled, out of
//! place, or of another session is found. Not for secrets.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

/// A paced stream is written so often.
const TICK: Duration = Duration::from_millis(100);
/// The largest single write.
const PIECE_BYTES: usize = 64 * 1024;
/// Increment of SplitMix64's state.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014): scatters any 64 bits.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Eight bytes of the stream: SplitMix64's output number `index`.
fn word(seed: u64, index: u64) -> [u8; 8] {
    mix(seed.wrapping_add(GAMMA.wrapping_mul(index.wrapping_add(1)))).to_le_bytes()
}

/// Writes the stream's bytes from `offset` on into `out`.
pub fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let (mut at, mut rest) = (offset, out);
    while !rest.is_empty() {
        let word = word(seed, at / 8);
        let part = &word[(at % 8) as usize..];
        let take = part.len().min(rest.len());
        rest[..take].copy_from_slice(&part[..take]);
        rest = &mut rest[take..];
        at += take as u64;
    }
}

/// The first `bytes` of the stream.
pub fn of(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    fill(seed, 0, &mut out);
    out
}

/// Place in the stream of the first of `bytes` that is not the one that belongs
/// there, if `bytes` are to be those from `offset` on.
pub fn first_difference(seed: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let (mut at, mut rest) = (offset, bytes);
    while !rest.is_empty() {
        let word = word(seed, at / 8);
        let part = &word[(at % 8) as usize..];
        let take = part.len().min(rest.len());
        if rest[..take] != part[..take] {
            let same = rest.iter().zip(part).take_while(|(a, b)| a == b).count();
            return Some(at + same as u64);
        }
        rest = &rest[take..];
        at += take as u64;
    }
    None
}

/// Writes the first `bytes` of the stream, spread evenly over `duration`; what a slow
/// peer held up is made up for. Tells `wrote` of every write when it began.
///
/// # Errors
///
/// Those of the writer and of `wrote`, which end it.
pub fn send_paced(
    writer: &mut impl Write,
    seed: u64,
    bytes: u64,
    duration: Duration,
    mut wrote: impl FnMut(Instant) -> io::Result<()>,
) -> io::Result<()> {
    let start = Instant::now();
    let mut piece = Vec::new();
    let mut sent = 0;
    while sent < bytes {
        thread::sleep(TICK.min(duration.saturating_sub(start.elapsed())));
        let due = due(bytes, start.elapsed(), duration);
        while sent < due {
            let take = (due - sent).min(PIECE_BYTES as u64);
            piece.resize(take as usize, 0);
            fill(seed, sent, &mut piece);
            let since = Instant::now();
            writer.write_all(&piece)?;
            wrote(since)?;
            sent += take;
        }
    }
    Ok(())
}

/// How many of `bytes` are to be sent after `elapsed` of `duration`.
fn due(bytes: u64, elapsed: Duration, duration: Duration) -> u64 {
    if elapsed >= duration {
        return bytes;
    }
    let part = u128::from(bytes) * elapsed.as_micros() / duration.as_micros().max(1);
    u64::try_from(part).map_or(bytes, |part| part.min(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_same_wherever_it_is_cut() {
        let whole = of(7, 1000);
        for (from, to) in [(0, 0), (0, 1), (3, 5), (5, 700), (8, 16), (7, 1000), (999, 1000)] {
            let mut part = vec![0; to - from];
            fill(7, from as u64, &mut part);
            assert_eq!(part, whole[from..to], "{from}..{to}");
            assert_eq!(first_difference(7, from as u64, &part), None, "{from}..{to}");
        }
        assert_ne!(of(8, 1000), whole);
    }

    #[test]
    fn any_wrong_byte_is_found_at_its_place() {
        for at in [0, 1, 7, 8, 63, 99] {
            let mut bytes = of(1, 200)[100..].to_vec();
            bytes[at] ^= 1;
            assert_eq!(first_difference(1, 100, &bytes), Some(100 + at as u64));
        }
        assert!(first_difference(1, 101, &of(1, 200)[100..]).is_some());
        assert!(first_difference(2, 100, &of(1, 200)[100..]).is_some());
    }

    #[test]
    fn a_paced_stream_is_whole_and_reports_its_writes() {
        let (mut got, mut writes) = (Vec::new(), 0);
        let count = |_| {
            writes += 1;
            Ok(())
        };
        let duration = Duration::from_millis(1);
        send_paced(&mut got, 5, 100_000, duration, count).expect("a whole stream");
        assert_eq!(got, of(5, 100_000));
        assert!(writes >= 2, "no write is larger than {PIECE_BYTES}");
        let refuse = |_| Err(io::ErrorKind::TimedOut.into());
        assert!(send_paced(&mut Vec::new(), 5, 10, duration, refuse).is_err());
    }

    #[test]
    fn bytes_fall_due_evenly_and_all_of_them() {
        let ms = Duration::from_millis;
        assert_eq!(due(1000, ms(0), ms(100)), 0);
        assert_eq!(due(1000, ms(50), ms(100)), 500);
        assert_eq!(due(1000, ms(100), ms(100)), 1000);
        assert_eq!(due(1000, ms(0), ms(0)), 1000);
        assert_eq!(due(u64::MAX, ms(99), ms(100)), u64::MAX / 100 * 99 + 14);
    }
}
