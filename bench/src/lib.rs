//! Load makers and benches for holdfast. This library itself holds nothing: what is
//! here are programs (`src/bin`) and criterion benches. No other crate imports it.

#![forbid(unsafe_code)]
