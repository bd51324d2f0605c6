//! A failed start of the EAL. It starts once per process, so this file has one test.

#![allow(clippy::unwrap_used)]

use holdfast_dpdk::{Eal, Error};

#[test]
fn a_failed_start_names_the_arguments_and_is_final() {
    let nul = Eal::init(&["-m\0"]).unwrap_err();
    assert!(matches!(nul, Error::NulByte { .. }), "{nul}");

    let arguments = ["--no-huge", "--no-shconf", "-d", "/nonexistent/driver.so"];
    let error = Eal::init(&arguments).unwrap_err();
    let expected = Error::EalInit {
        reason: "Invalid argument".to_owned(),
        arguments: "--no-huge --no-shconf -d /nonexistent/driver.so".to_owned(),
    };
    assert_eq!(error, expected);

    let again = Eal::init(&["--no-huge"]).unwrap_err();
    assert_eq!(again, Error::AlreadyInitialised);
}
