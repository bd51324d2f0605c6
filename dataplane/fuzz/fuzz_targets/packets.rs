//! See `holdfast_dataplane_fuzz::packets`.
#![no_main]

mod mutate;

use holdfast_dataplane_fuzz::packets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    packets::run(bytes);
});

libfuzzer_sys::fuzz_mutator!(|bytes: &mut [u8], size: usize, size_max: usize, seed: u32| {
    mutate::mutate(bytes, size, size_max, seed, libfuzzer_sys::fuzzer_mutate)
});
