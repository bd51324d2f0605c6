//! Latencies of the sampled packets, from ticks to percentiles. Never judges them.

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// A sample above this counts as this: nothing is lost by being too late.
const NS_MAX: u64 = 60_000_000_000;

/// Percentiles of what was recorded, exact to two digits.
pub struct Latencies {
    histogram: Histogram<u64>,
    ticks_per_second: u64,
}

impl Latencies {
    /// None yet, of a clock with `ticks_per_second`.
    pub fn new(ticks_per_second: u64) -> Result<Latencies> {
        let histogram = Histogram::new_with_bounds(1, NS_MAX, 2)
            .map_err(|error| anyhow!("making a histogram: {error}"))?;
        Ok(Latencies { histogram, ticks_per_second })
    }

    /// Records the time from `sent` to `received`.
    pub fn record(&mut self, sent: u64, received: u64) {
        let ticks = u128::from(received.saturating_sub(sent));
        let ns = ticks * 1_000_000_000 / u128::from(self.ticks_per_second.max(1));
        let ns = u64::try_from(ns).unwrap_or(NS_MAX).clamp(1, NS_MAX);
        self.histogram.saturating_record(ns);
    }

    /// All that was recorded in any of these.
    pub fn all(parts: &[Latencies]) -> Result<Latencies> {
        let ticks_per_second = parts.first().map_or(1, |part| part.ticks_per_second);
        let mut all = Latencies::new(ticks_per_second)?;
        for part in parts {
            all.histogram
                .add(&part.histogram)
                .map_err(|error| anyhow!("adding histograms: {error}"))?;
        }
        Ok(all)
    }

    /// In microseconds; `null` where nothing was recorded.
    pub fn to_json(&self) -> Value {
        if self.histogram.is_empty() {
            return json!({"samples": 0, "p50": null, "p90": null, "p99": null, "p99_9": null, "max": null});
        }
        let us = |ns: u64| (ns / 10) as f64 / 100.0;
        let at = |percentile| us(self.histogram.value_at_quantile(percentile));
        json!({
            "samples": self.histogram.len(),
            "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99_9": at(0.999),
            "max": us(self.histogram.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_microseconds() {
        let mut latencies = Latencies::new(2_000_000_000).expect("a histogram");
        for us in 1..=1000 {
            latencies.record(500, 500 + us * 2000);
        }
        let json = latencies.to_json();
        let close = |key: &str, expected: f64| {
            let value = json[key].as_f64().expect("a number");
            assert!((value - expected).abs() <= expected * 0.02, "{key}: {value}");
        };
        close("p50", 500.0);
        close("p90", 900.0);
        close("p99", 990.0);
        close("p99_9", 999.0);
        close("max", 1000.0);
        assert_eq!(json["samples"], 1000);
    }

    #[test]
    fn parts_add_up() {
        let mut parts = [0, 1].map(|_| Latencies::new(1_000_000_000).expect("a histogram"));
        parts[0].record(0, 1_000);
        parts[1].record(0, 9_000_000);
        let json = Latencies::all(&parts).expect("of one kind").to_json();
        assert_eq!(json["samples"], 2);
        assert!(json["max"].as_f64() > Some(8_900.0) && json["p50"].as_f64() < Some(1.1), "{json}");
    }

    #[test]
    fn nothing_recorded_is_no_latency() {
        let latencies = Latencies::new(1_000_000_000).expect("a histogram");
        assert!(latencies.to_json()["p50"].is_null());
    }

    #[test]
    fn absurd_times_are_kept_in_bounds() {
        let mut latencies = Latencies::new(1_000_000_000).expect("a histogram");
        latencies.record(0, u64::MAX);
        latencies.record(10, 0);
        assert_eq!(latencies.to_json()["samples"], 2);
    }
}
