//! Distributions of times, and what is printed. It judges nothing.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Times in microseconds, exact to three digits.
pub type Times = Histogram<u64>;

/// Longer than anything here may take: a minute.
const TIME_US_MAX: u64 = 60_000_000;

/// A distribution of nothing yet.
pub fn no_times() -> Times {
    Times::new_with_bounds(1, TIME_US_MAX, 3).expect("bounds that hdrhistogram accepts")
}

/// A distribution from values in µs and how many had each.
pub fn times(counts: impl Iterator<Item = (u64, u64)>) -> Times {
    let mut times = no_times();
    for (value_us, count) in counts {
        times.saturating_record_n(value_us.max(1), count);
    }
    times
}

/// Adds a time.
pub fn record(times: &mut Times, time: Duration) {
    let time_us = u64::try_from(time.as_micros()).unwrap_or(TIME_US_MAX);
    times.saturating_record(time_us.max(1));
}

/// `{p50, p99, n}`; without times, nulls.
pub fn quantiles(times: &Times) -> Value {
    let quantile = |q| (!times.is_empty()).then(|| times.value_at_quantile(q));
    json!({ "p50": quantile(0.5), "p99": quantile(0.99), "n": times.len() })
}

/// Progress goes to standard error: standard output is the result's.
#[allow(clippy::print_stderr)]
pub fn say(text: &str) {
    eprintln!("dht-load: {text}");
}
