//! See `holdfast_dht_fuzz::batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    holdfast_dht_fuzz::batch::run(bytes);
});
