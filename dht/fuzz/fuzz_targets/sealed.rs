//! See `holdfast_dht_fuzz::sealed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    holdfast_dht_fuzz::sealed::run(bytes);
});
