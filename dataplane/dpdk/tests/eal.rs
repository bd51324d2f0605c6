//! A failed start of the EAL. It starts once per process, so this file has one test.

#![allow(clippy::unwrap_used)]

use holdfast_dpdk::{Eal, Error};

#[test]
fn a_failed_start_names_the_arguments_and_is_final() {
    let nul = Eal::init(&["-m\0"]).unwrap_err();
    assert!(matches!(nul, Error::NulByte { .. }));

    let arguments = ["--no-huge", "--in-memory", "--log-level=*:critical"];
    let error = Eal::init(&arguments).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("--no-huge --in-memory"), "{text}");
    assert!(text.contains("Invalid argument"), "{text}");

    let again = Eal::init(&["--no-huge"]).unwrap_err();
    assert_eq!(again, Error::AlreadyInitialised);
}
