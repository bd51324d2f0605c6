//! Changes an input without breaking the capture that it is: frame by frame, and in ways in which
//! packets and their order go wrong. libFuzzer's own changes are made inside of a frame.

use holdfast_dataplane_fuzz::capture::{Capture, Record};
use holdfast_dataplane_fuzz::world::{CORE_ETHERTYPE, CORE_MAC, HOST_MAC, Order};

/// How libFuzzer changes bytes: in place, from a length to another one, up to a limit.
pub type Inner = fn(&mut [u8], usize, usize) -> usize;

/// Pauses at which something happens, in microseconds.
const PAUSES_US: [u64; 12] =
    [0, 0, 0, 1000, 1000, 1000, 30_000, 200_000, 1_000_000, 6_000_000, 61_000_000, 3_601_000_000];
/// Numbers at which lengths go wrong.
const EDGES: [u16; 10] = [0, 1, 7, 8, 19, 20, 40, 1480, 0x7fff, 0xffff];
/// Bytes that a frame may grow at once.
const GROWTH: usize = 64;

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's MMIX generator; its upper bits are good enough.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// Changes the first `size` of `bytes`, which may become up to `size_max`. Returns how many they
/// are then.
pub fn mutate(bytes: &mut [u8], size: usize, size_max: usize, seed: u32, inner: Inner) -> usize {
    let mut capture = Capture::read(&bytes[..size]);
    let mut dice = Dice(u64::from(seed));
    for _ in 0..=dice.below(3) {
        change(&mut capture, &mut dice, inner);
    }
    let mut written = capture.write();
    while written.len() > size_max && capture.records.pop().is_some() {
        written = capture.write();
    }
    let size = written.len().min(size_max);
    bytes[..size].copy_from_slice(&written[..size]);
    size
}

fn change(capture: &mut Capture, dice: &mut Dice, inner: Inner) {
    let count = capture.records.len();
    if count == 0 {
        return capture.records.push(Record { at_us: 0, frame: command(dice) });
    }
    let place = dice.below(count);
    let record = &mut capture.records[place];
    match dice.below(14) {
        0..=3 => {
            let (length, room) = (record.frame.len(), record.frame.len() + GROWTH);
            record.frame.resize(room, 0);
            let length = inner(&mut record.frame, length, room);
            record.frame.truncate(length);
        }
        4 => record.frame.truncate(dice.below(record.frame.len())),
        5 => {
            let at = 12 + dice.below(120);
            let edge = EDGES[dice.below(EDGES.len())].to_be_bytes();
            if let Some(field) = record.frame.get_mut(at..at + 2) {
                field.copy_from_slice(&edge);
            }
        }
        6 => {
            let copy = record.clone();
            capture.records.insert(dice.below(count + 1), copy);
        }
        7 => {
            capture.records.remove(place);
        }
        8 => {
            // The frames change places, their times do not.
            let other = dice.below(count);
            let (at_us, other_us) = (capture.records[place].at_us, capture.records[other].at_us);
            capture.records.swap(place, other);
            capture.records[place].at_us = at_us;
            capture.records[other].at_us = other_us;
        }
        9 => {
            let pause_us = PAUSES_US[dice.below(PAUSES_US.len())];
            let before_us = place.checked_sub(1).map_or(0, |before| capture.records[before].at_us);
            let wanted_us = before_us + pause_us;
            let now_us = capture.records[place].at_us;
            for record in &mut capture.records[place..] {
                record.at_us = (record.at_us + wanted_us).saturating_sub(now_us);
            }
        }
        10 => {
            if let Some(source) = record.frame.get_mut(6..12) {
                let from_host = source == HOST_MAC;
                source.copy_from_slice(if from_host {
                    &[0x02, 0, 0, 0, 0, 0xaa]
                } else {
                    &HOST_MAC
                });
            }
        }
        11 => capture.shape ^= 1 << dice.below(9),
        _ => {
            let at_us = record.at_us;
            let frame = command(dice);
            capture.records.insert(place + 1, Record { at_us, frame });
        }
    }
}

/// A frame that stands for an order.
fn command(dice: &mut Dice) -> Vec<u8> {
    let order = [dice.below(Order::ALL.len()) as u8, dice.below(4) as u8, dice.below(16) as u8];
    [&[0xff; 6][..], &CORE_MAC, &CORE_ETHERTYPE.to_be_bytes(), &order].concat()
}
