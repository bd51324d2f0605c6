//! What carries datagrams between the nodes: delay, loss, copies, damage and cuts, from one seed,
//! and the order in which everything happens. Never looks into a datagram.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// What the network does to datagrams.
#[derive(Debug, Clone)]
pub struct Weather {
    pub loss_percent: u32,
    pub duplicate_percent: u32,
    /// One bit of these is flipped.
    pub damage_percent: u32,
    /// Delay of each datagram by itself, so that it may overtake others.
    pub delay_us: Range<u64>,
    /// Delay of a link on top of that, the same for all its datagrams; drawn once.
    pub link_us: Range<u64>,
}

impl Weather {
    pub fn fair() -> Weather {
        Weather {
            loss_percent: 0,
            duplicate_percent: 0,
            damage_percent: 0,
            delay_us: 50..200,
            link_us: 0..1,
        }
    }

    /// Loses one in ten, duplicates one in ten, and lets any overtake any other.
    pub fn foul() -> Weather {
        Weather { loss_percent: 10, duplicate_percent: 10, delay_us: 50..5000, ..Weather::fair() }
    }

    /// Links of different length that reorder and duplicate, and lose this much.
    pub fn lossy(loss_percent: u32) -> Weather {
        Weather {
            loss_percent,
            duplicate_percent: 2,
            delay_us: 20..400,
            link_us: 10..200,
            ..Weather::fair()
        }
    }

    /// The same time for each datagram, so that times count hops.
    pub fn even(delay_us: u64) -> Weather {
        Weather { delay_us: delay_us..delay_us + 1, ..Weather::fair() }
    }
}

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    /// The datagram in this place reaches its destination.
    Arrives(u32),
    /// This host takes the next datagram that waits for it.
    Takes(u32),
    /// This host may want a tick.
    Wakes(u32),
}

/// A datagram on its way.
#[derive(Debug, Clone, Default)]
pub struct Flight {
    /// Hosts, and which life of the sender it was.
    pub from: u32,
    pub to: u32,
    pub life: u32,
    pub damaged: bool,
    pub bytes: Vec<u8>,
}

/// The air between the hosts; hosts are numbered.
#[derive(Debug, Clone)]
pub struct Air {
    /// When it happens, and the order of what happens at the same time.
    due: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    scheduled: u64,
    flights: Vec<Flight>,
    landed: Vec<u32>,
    /// From whom to whom nothing passes.
    cut: HashSet<(u32, u32)>,
    /// The side that each host is on, and from which side to which nothing passes.
    sides: Vec<u8>,
    walls: [[bool; SIDES]; SIDES],
    links_seed: u64,
    rng: Pcg64,
}

/// Sides of a partition at most.
pub const SIDES: usize = 4;

impl Air {
    pub fn new(seed: u64) -> Air {
        Air {
            due: BinaryHeap::new(),
            scheduled: 0,
            flights: Vec::new(),
            landed: Vec::new(),
            cut: HashSet::new(),
            sides: Vec::new(),
            walls: [[false; SIDES]; SIDES],
            links_seed: mixed(seed),
            rng: Pcg64::seed_from_u64(seed),
        }
    }

    pub fn rng(&mut self) -> &mut Pcg64 {
        &mut self.rng
    }

    pub fn schedule(&mut self, at_us: u64, happening: Happening) {
        self.scheduled += 1;
        self.due.push(Reverse((at_us, self.scheduled, happening)));
    }

    pub fn next_us(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((at_us, ..))| *at_us)
    }

    pub fn next(&mut self) -> Option<(u64, Happening)> {
        self.due.pop().map(|Reverse((at_us, _, happening))| (at_us, happening))
    }

    /// Sends a datagram: none, one or two arrive.
    pub fn send(&mut self, now_us: u64, weather: &Weather, flight: (u32, u32, u32), bytes: &[u8]) {
        let (from, to, life) = flight;
        if self.happens(weather.loss_percent) || !self.passes(from, to) {
            return;
        }
        let copies = 1 + u32::from(self.happens(weather.duplicate_percent));
        for _ in 0..copies {
            let delay_us = self.rng.random_range(weather.delay_us.clone());
            let at_us = now_us + delay_us + self.link_us(weather, from, to);
            let place = self.landed.pop().unwrap_or_else(|| {
                self.flights.push(Flight::default());
                self.flights.len() as u32 - 1
            });
            let damaged = self.happens(weather.damage_percent);
            let flight = &mut self.flights[place as usize];
            (flight.from, flight.to, flight.life, flight.damaged) = (from, to, life, damaged);
            flight.bytes.clear();
            flight.bytes.extend_from_slice(bytes);
            if damaged && !bytes.is_empty() {
                let bit = self.rng.random_range(0..8 * bytes.len());
                flight.bytes[bit / 8] ^= 1 << (bit % 8);
            }
            self.schedule(at_us, Happening::Arrives(place));
        }
    }

    /// The datagram in a place, to be given back to [`Air::landed`].
    pub fn take(&mut self, place: u32) -> Flight {
        std::mem::take(&mut self.flights[place as usize])
    }

    pub fn look(&self, place: u32) -> &Flight {
        &self.flights[place as usize]
    }

    /// Its place, and its buffer, are free again.
    pub fn land(&mut self, place: u32, flight: Flight) {
        self.flights[place as usize] = flight;
        self.landed.push(place);
    }

    fn happens(&mut self, percent: u32) -> bool {
        percent > 0 && self.rng.random_range(0..100) < percent
    }

    fn link_us(&self, weather: &Weather, from: u32, to: u32) -> u64 {
        let Range { start, end } = weather.link_us;
        let link = u64::from(from.min(to)) << 32 | u64::from(from.max(to));
        start + mixed(self.links_seed ^ link) % (end - start).max(1)
    }

    /// Whether a datagram from one host can reach another.
    pub fn passes(&self, from: u32, to: u32) -> bool {
        let side = |host: u32| self.sides.get(host as usize).map_or(0, |side| usize::from(*side));
        !self.walls[side(from)][side(to)] && !self.cut.contains(&(from, to))
    }

    pub fn cut_one_way(&mut self, from: u32, to: u32) {
        self.cut.insert((from, to));
    }

    pub fn mend_one_way(&mut self, from: u32, to: u32) {
        self.cut.remove(&(from, to));
    }

    /// Puts a host on a side.
    pub fn set_side(&mut self, host: u32, side: u8) {
        let host = host as usize;
        self.sides.resize(self.sides.len().max(host + 1), 0);
        self.sides[host] = side;
    }

    /// Nothing passes from one side to the other; the other way has a wall of its own.
    pub fn wall(&mut self, from: u8, to: u8) {
        self.walls[usize::from(from)][usize::from(to)] = true;
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.sides.clear();
        self.walls = [[false; SIDES]; SIDES];
    }
}

/// A number with all its bits mixed (the finaliser of splitmix64).
pub fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
