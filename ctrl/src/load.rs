//! How busy the workers are, from their counters. The main thread samples these once a second;
//! no worker ever waits for it, or knows of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_dataplane::stats::{Counter, WorkerCounters};

use crate::protocol::{LoadPeriod, WorkerLoad};

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);

/// The last two samples of all workers' counters. Written by the main thread, read for the
/// control socket.
#[derive(Debug)]
pub struct Samples(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    /// `None` until a period has passed.
    earlier: Option<Sample>,
    latest: Sample,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    /// One of each worker.
    counts: Vec<Counts>,
}

impl Samples {
    /// Begins the first period.
    #[must_use]
    pub fn start(counters: &[Arc<WorkerCounters>], now: Instant) -> Samples {
        Samples(Mutex::new(Kept { earlier: None, latest: Sample::of(counters, now) }))
    }

    /// Takes a sample, if it is time. Call it more often than once a second.
    pub fn take(&self, counters: &[Arc<WorkerCounters>], now: Instant) {
        let mut kept = self.lock();
        if now.saturating_duration_since(kept.latest.at) >= PERIOD {
            let latest = std::mem::replace(&mut kept.latest, Sample::of(counters, now));
            kept.earlier = Some(latest);
        }
    }

    /// What the workers on `cores` did between the last two samples; `None` before there are two.
    #[must_use]
    pub fn last(&self, cores: &[u16]) -> Option<LoadPeriod> {
        let kept = self.lock();
        let earlier = kept.earlier.as_ref()?;
        let counts = kept.latest.counts.iter().zip(&earlier.counts);
        let counts = counts.map(|(latest, earlier)| latest.since(earlier));
        let duration = kept.latest.at.saturating_duration_since(earlier.at);
        Some(period(cores, counts, duration))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A sample is replaced whole: a panic meanwhile leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    fn of(counters: &[Arc<WorkerCounters>], at: Instant) -> Sample {
        Sample { at, counts: counters.iter().map(|counters| Counts::of(counters)).collect() }
    }
}

/// What the workers on `cores` did since their start, which was `duration` ago.
#[must_use]
pub fn since_start(
    cores: &[u16],
    counters: &[Arc<WorkerCounters>],
    duration: Duration,
) -> LoadPeriod {
    period(cores, counters.iter().map(|counters| Counts::of(counters)), duration)
}

fn period(cores: &[u16], counts: impl Iterator<Item = Counts>, duration: Duration) -> LoadPeriod {
    let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let workers = cores.iter().zip(counts);
    let workers = workers.map(|(core, counts)| counts.load((*core).into(), duration_us));
    LoadPeriod { duration_us, workers: workers.collect() }
}

/// The counters of one worker that say how busy it is, at a point in time or over a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    uplink: u64,
    host: u64,
    drops: u64,
    turns: u64,
    turns_idle: u64,
    cycles_busy: u64,
    cycles_idle: u64,
}

impl Counts {
    /// Read one by one while the worker counts on: they may be a turn apart.
    fn of(counters: &WorkerCounters) -> Counts {
        let drops = Counter::ALL.iter().filter(|counter| counter.is_drop());
        Counts {
            uplink: counters.get(Counter::UplinkReceived),
            host: counters.get(Counter::HostReceived),
            drops: drops.fold(0, |sum, &counter| sum.wrapping_add(counters.get(counter))),
            turns: counters.get(Counter::Turns),
            turns_idle: counters.get(Counter::TurnsIdle),
            cycles_busy: counters.get(Counter::CyclesBusy),
            cycles_idle: counters.get(Counter::CyclesIdle),
        }
    }

    /// What was counted since `earlier`. Counters wrap.
    fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            uplink: self.uplink.wrapping_sub(earlier.uplink),
            host: self.host.wrapping_sub(earlier.host),
            drops: self.drops.wrapping_sub(earlier.drops),
            turns: self.turns.wrapping_sub(earlier.turns),
            turns_idle: self.turns_idle.wrapping_sub(earlier.turns_idle),
            cycles_busy: self.cycles_busy.wrapping_sub(earlier.cycles_busy),
            cycles_idle: self.cycles_idle.wrapping_sub(earlier.cycles_idle),
        }
    }

    /// The figures of a worker on `core` that counted this in `duration_us`.
    fn load(&self, core: u32, duration_us: u64) -> WorkerLoad {
        let [uplink, host, drops] = [self.uplink, self.host, self.drops].map(u128::from);
        let [turns, turns_idle] = [self.turns, self.turns_idle].map(u128::from);
        let [busy, idle] = [self.cycles_busy, self.cycles_idle].map(u128::from);
        WorkerLoad {
            core,
            busy_percent: ratio(100 * busy, busy + idle),
            packets_per_burst: ratio(uplink + host, turns),
            cycles_per_packet: ratio(busy, uplink + host),
            uplink_packets_per_s: per_second(uplink, duration_us),
            host_packets_per_s: per_second(host, duration_us),
            drops: self.drops,
            drops_per_s: per_second(drops, duration_us),
            turns_per_s: per_second(turns + turns_idle, duration_us),
        }
    }
}

/// Rounded to one decimal; `None` when there is nothing to divide by.
fn ratio(numerator: u128, denominator: u128) -> Option<f64> {
    let tenths = |value: f64| (value * 10.0).round() / 10.0;
    (denominator > 0).then(|| tenths(numerator as f64 / denominator as f64))
}

/// Rounded; `None` when no time has passed.
fn per_second(count: u128, duration_us: u64) -> Option<u64> {
    let us = u128::from(duration_us);
    let rate = (count * 1_000_000 + us / 2).checked_div(us)?;
    Some(u64::try_from(rate).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn counters() -> Vec<Arc<WorkerCounters>> {
        vec![Arc::default(), Arc::default()]
    }

    #[test]
    fn figures_are_ratios_of_what_was_counted() {
        let counts = Counts {
            uplink: 1_500_000,
            host: 500_000,
            drops: 7,
            turns: 160_000,
            turns_idle: 640_000,
            cycles_busy: 600_000_000,
            cycles_idle: 1_400_000_000,
        };
        let expected = WorkerLoad {
            core: 3,
            busy_percent: Some(30.0),
            packets_per_burst: Some(12.5),
            cycles_per_packet: Some(300.0),
            uplink_packets_per_s: Some(750_000),
            host_packets_per_s: Some(250_000),
            drops: 7,
            // 3.5, rounded.
            drops_per_s: Some(4),
            turns_per_s: Some(400_000),
        };
        assert_eq!(counts.load(3, 2 * SECOND_US), expected);
    }

    #[test]
    fn ratios_have_one_decimal_and_busy_is_never_above_100() {
        assert_eq!(ratio(1, 3), Some(0.3));
        assert_eq!(ratio(2, 3), Some(0.7));
        assert_eq!(ratio(u128::MAX, u128::MAX), Some(1.0));
        let busy = Counts { cycles_busy: u64::MAX, ..Counts::default() };
        assert_eq!(busy.load(0, SECOND_US).busy_percent, Some(100.0));
    }

    #[test]
    fn nothing_to_divide_by_is_none() {
        let idle = Counts { turns_idle: 9, cycles_idle: 1000, ..Counts::default() };
        let expected = WorkerLoad {
            busy_percent: Some(0.0),
            uplink_packets_per_s: Some(0),
            host_packets_per_s: Some(0),
            drops_per_s: Some(0),
            turns_per_s: Some(9),
            ..WorkerLoad::default()
        };
        assert_eq!(idle.load(0, SECOND_US), expected);
        // No turn has ended, and no time has passed.
        assert_eq!(Counts::default().load(0, 0), WorkerLoad::default());
        // Turns that only found an answer of the DHT core.
        let answers = Counts { turns: 4, cycles_busy: 100, ..Counts::default() };
        let load = answers.load(0, SECOND_US);
        assert_eq!((load.packets_per_burst, load.cycles_per_packet), (Some(0.0), None));
    }

    #[test]
    fn a_rate_that_fits_no_number_is_the_greatest() {
        assert_eq!(per_second(u128::from(u64::MAX), 1), Some(u64::MAX));
        assert_eq!(per_second(1, u64::MAX), Some(0));
        assert_eq!(per_second(3, 2 * SECOND_US), Some(2));
        assert_eq!(per_second(1, 0), None);
    }

    #[test]
    fn counters_wrap() {
        let all = |value| Counts {
            uplink: value,
            host: value,
            drops: value,
            turns: value,
            turns_idle: value,
            cycles_busy: value,
            cycles_idle: value,
        };
        assert_eq!(all(5).since(&all(u64::MAX - 4)), all(10));
        assert_eq!(all(5).since(&all(5)), Counts::default());
    }

    #[test]
    fn all_drops_are_added_up_and_nothing_else() {
        let counters = WorkerCounters::default();
        for &counter in Counter::ALL {
            counters.add(counter, if counter.is_drop() { 10 } else { 1 });
        }
        let drops = Counter::ALL.iter().filter(|counter| counter.is_drop()).count() as u64;
        let expected = Counts {
            uplink: 1,
            host: 1,
            drops: 10 * drops,
            turns: 1,
            turns_idle: 1,
            cycles_busy: 1,
            cycles_idle: 1,
        };
        assert_eq!(Counts::of(&counters), expected);
    }

    #[test]
    fn the_last_second_is_between_the_last_two_samples() {
        let (counters, start) = (counters(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        // What was counted before, as by an earlier life, is not of any second here.
        counters[0].add(Counter::UplinkReceived, 99);
        let samples = Samples::start(&counters, start);
        assert_eq!(samples.last(&[2, 5]), None);

        counters[0].add(Counter::UplinkReceived, 1000);
        counters[1].add(Counter::HostReceived, 10);
        samples.take(&counters, at(999));
        assert_eq!(samples.last(&[2, 5]), None, "not time yet");
        samples.take(&counters, at(1000));
        let period = samples.last(&[2, 5]).expect("two samples");
        assert_eq!(period.duration_us, SECOND_US);
        assert_eq!(period.workers.iter().map(|worker| worker.core).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(period.workers[0].uplink_packets_per_s, Some(1000));
        assert_eq!(period.workers[1].host_packets_per_s, Some(10));

        // The main thread came late: the rate is still right.
        counters[0].add(Counter::UplinkReceived, 500);
        samples.take(&counters, at(1500));
        assert_eq!(samples.last(&[2, 5]), Some(period), "not time yet");
        samples.take(&counters, at(3000));
        let period = samples.last(&[2, 5]).expect("two samples");
        assert_eq!(period.duration_us, 2 * SECOND_US);
        assert_eq!(period.workers[0].uplink_packets_per_s, Some(250));

        // A clock that goes back ends no period.
        samples.take(&counters, at(0));
        assert_eq!(samples.last(&[2, 5]), Some(period));
    }

    #[test]
    fn since_the_start_is_all_that_was_counted() {
        let counters = counters();
        counters[1].add(Counter::HostUnsent, 3);
        let period = since_start(&[2, 5], &counters, Duration::from_secs(3600));
        assert_eq!(period.duration_us, 3600 * SECOND_US);
        assert_eq!((period.workers[0].drops, period.workers[1].drops), (0, 3));
        assert_eq!(period.workers[1].drops_per_s, Some(0));
    }
}
