//! The paths that take turns: each takes a batch out of its ring and puts it where it belongs.
//! Only what a lane does inside `meter.time` counts.

use anyhow::{Result, ensure};
use holdfast_bench_packets::meter::{Taken, measure};
use holdfast_bench_packets::ours::STAMP_SHIFT;
use holdfast_bench_packets::path_peer::{PathPeer, QueuePair};
use holdfast_dataplane::port::{BURST, DpdkPort};
use holdfast_dataplane::time::{Now, TscClock};
use holdfast_dataplane::worker::Worker;
use holdfast_dpdk::tsc;
use holdfast_handoff::{Answer, CoreEnd, Resolution, Resolve};

use crate::feed::{BATCH, Feed, Frames};

/// Turns that take a batch.
const TURNS: usize = BATCH / BURST;
/// Turns until answers to all of a batch must have been taken.
const TURNS_MAX: usize = 4096;
/// More than the time between two turns of housekeeping.
const HOUSEKEEPING_US: u64 = 1001;

/// Sums up the timed parts of a slice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    /// What they took.
    pub taken: Taken,
    overhead: Taken,
}

impl Meter {
    /// Without what the clocks cost themselves.
    pub fn new(overhead: Taken) -> Meter {
        Meter { taken: Taken::default(), overhead }
    }

    /// Measures `work`.
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (result, taken) = measure(work);
        self.taken.cpu_ns += taken.cpu_ns - self.overhead.cpu_ns;
        self.taken.cycles += taken.cycles - self.overhead.cycles;
        result
    }
}

/// What takes the frames of a batch through.
pub enum Engine {
    /// testpmd's macswap.
    Macswap(QueuePair),
    /// The path in C around rte_hash.
    Peer(PathPeer, TscClock),
    /// Our worker, for packets whose session is known.
    Ours(Box<OurWorker>),
    /// Our worker, when it has to ask and nobody owns the flow.
    OursAsking(Box<OurWorker>),
}

/// Our worker and the DHT core beside it.
pub struct OurWorker {
    pub worker: Worker<DpdkPort, DpdkPort>,
    pub core: CoreEnd,
    pub clock: TscClock,
    /// How far the worker's clock was put forward, so that it need not wait.
    pub ahead_us: u64,
    /// Keeps the doorbell whole.
    pub _poll: mio::Poll,
}

impl OurWorker {
    fn now(&self) -> Now {
        Now::from_us(self.clock.at(tsc()).us + self.ahead_us)
    }

    fn turn(&mut self) -> bool {
        let now = self.now();
        self.worker.turn(now)
    }

    /// The DHT core's part: nobody owns any of the flows. How many it was asked.
    fn answer_nobody(&mut self) -> Result<usize> {
        let mut asked = 0;
        while let Ok(Resolve { flow, .. }) = self.core.resolves.pop() {
            let answer = Answer::Resolved { flow, resolution: Resolution::NotFound, dead: None };
            let pushed = self.core.answers.push(answer);
            ensure!(pushed.is_ok(), "no room for an answer");
            asked += 1;
        }
        Ok(asked)
    }
}

impl Engine {
    /// Takes the batch in the ring through.
    fn run(&mut self, meter: &mut Meter) -> Result<()> {
        match self {
            Engine::Macswap(queues) => {
                let frames = meter.time(|| (0..TURNS).map(|_| queues.macswap_turn()).sum());
                all_came(frames)
            }
            Engine::Peer(path, clock) => {
                let frames = meter.time(|| {
                    (0..TURNS)
                        .map(|_| {
                            path.set_tick(clock.at(tsc()).tick().0 >> STAMP_SHIFT);
                            path.turn()
                        })
                        .sum()
                });
                all_came(frames)
            }
            Engine::Ours(ours) => {
                let busy = meter.time(|| (0..TURNS).filter(|_| ours.turn()).count());
                all_came(busy * BURST)
            }
            Engine::OursAsking(ours) => {
                let busy = meter.time(|| (0..TURNS).filter(|_| ours.turn()).count());
                all_came(busy * BURST)?;
                ours.answer_all(meter)
            }
        }
    }
}

impl OurWorker {
    /// Every flow is asked for twice (R5), the second time by the housekeeping.
    fn answer_all(&mut self, meter: &mut Meter) -> Result<()> {
        let mut asked = 0;
        for _ in 0..TURNS_MAX {
            asked += self.answer_nobody()?;
            if meter.time(|| self.turn()) {
                continue;
            }
            if asked == 2 * BATCH {
                return Ok(());
            }
            self.ahead_us += HOUSEKEEPING_US;
        }
        anyhow::bail!("asked for {asked} flows, not twice for each of {BATCH}")
    }
}

fn all_came(frames: usize) -> Result<()> {
    ensure!(frames == BATCH, "{frames} of {BATCH} frames came in");
    Ok(())
}

/// An engine and its frames.
pub struct Lane {
    /// The path's name in results.
    pub name: String,
    pub engine: Engine,
    /// `None` for a port that makes its own frames.
    pub feed: Option<Feed>,
}

impl Lane {
    /// Takes `batches` through, and returns what that took.
    pub fn slice(&mut self, frames: &mut Frames, batches: usize, overhead: Taken) -> Result<Taken> {
        let mut meter = Meter::new(overhead);
        for _ in 0..batches {
            let Some(feed) = &mut self.feed else {
                self.engine.run(&mut meter)?;
                continue;
            };
            feed.put(frames)?;
            self.engine.run(&mut meter)?;
            while frames.len() < BATCH && feed.take(frames) > 0 {}
            feed.check(frames)?;
        }
        Ok(meter.taken)
    }
}
