//! Clocks around slices of work, and percentiles over rounds. Never averages: one disturbed
//! round must not move a result.

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// What a slice took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// CPU time of this thread, nanoseconds.
    pub cpu_ns: f64,
    /// Ticks of the time stamp counter, which goes on while others run.
    pub cycles: f64,
}

impl Taken {
    /// Nanoseconds per operation.
    #[must_use]
    pub fn ns_per(self, operations: usize) -> f64 {
        self.cpu_ns / operations as f64
    }

    /// Million operations per second of CPU time.
    #[must_use]
    pub fn millions_per_second(self, operations: usize) -> f64 {
        operations as f64 * 1000.0 / self.cpu_ns
    }
}

/// CPU time of this thread so far, nanoseconds.
#[must_use]
pub fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Measures `work`.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    let (cpu, cycles) = (cpu_ns(), holdfast_dpdk::tsc());
    let result = work();
    let cycles = holdfast_dpdk::tsc() - cycles;
    let cpu = cpu_ns() - cpu;
    (result, Taken { cpu_ns: cpu as f64, cycles: cycles as f64 })
}

/// What reading the clocks costs itself: to be taken off slices of microseconds.
#[must_use]
pub fn overhead() -> Taken {
    let mut all: Vec<Taken> = (0..2001).map(|_| measure(|| ()).1).collect();
    let mut middle = |field: fn(&Taken) -> f64| {
        all.sort_by(|a, b| field(a).total_cmp(&field(b)));
        field(&all[all.len() / 2])
    };
    Taken { cpu_ns: middle(|t| t.cpu_ns), cycles: middle(|t| t.cycles) }
}

/// The tenth percentile, the median and the ninetieth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Tenth percentile.
    pub p10: f64,
    /// Median.
    pub median: f64,
    /// Ninetieth percentile.
    pub p90: f64,
}

impl Spread {
    /// Of the values of all rounds; `None` when there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| values[(last as f64 * share).round() as usize];
        Some(Spread { p10: at(0.1), median: at(0.5), p90: at(0.9) })
    }

    /// Of `a / b`, round by round.
    #[must_use]
    pub fn of_ratio(a: &[f64], b: &[f64]) -> Option<Spread> {
        Spread::of(a.iter().zip(b).map(|(a, b)| a / b))
    }

    /// As results keep it.
    #[must_use]
    pub fn json(self) -> Value {
        json!({ "p10": round(self.p10), "median": round(self.median), "p90": round(self.p90) })
    }
}

/// Four significant digits: more were never measured.
#[must_use]
pub fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        let spread = Spread::of((0..=100).map(f64::from)).expect("values");
        assert_eq!(spread, Spread { p10: 10.0, median: 50.0, p90: 90.0 });
        assert_eq!(Spread::of([]), None);
        assert_eq!(round(123_456.0), 123_500.0);
        assert_eq!(round(0.012_345_6), 0.01235);
    }
}
