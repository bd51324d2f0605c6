//! The log's level changes while it is written. Alone in its file: a process has one log.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use holdfast::config::LogLevel;
use holdfast::log;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn messages_of_the_level_and_worse_are_logged_from_when_it_is_set() {
    log::set_level(LogLevel::Error); // There is no log yet.
    let lines = Lines::default();
    let writer = lines.clone();
    let lines_of = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let subscriber = lines_of.finish().with(log::level_layer(LogLevel::Info));
    tracing::subscriber::with_default(subscriber, || {
        let say = |number: u32| {
            tracing::info!("info {number}");
            tracing::debug!("debug {number}");
        };
        say(1);
        log::set_level(LogLevel::Debug);
        say(2);
        log::set_level(LogLevel::Warn);
        say(3);
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let said: Vec<&str> = text.lines().map(|line| line.split(": ").last().unwrap()).collect();
    assert_eq!(said, ["info 1", "info 2", "debug 2"], "{text}");
}
