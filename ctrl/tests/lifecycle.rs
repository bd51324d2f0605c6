//! SIGTERM asks the daemon to end. Alone in its file: signals are the whole process's.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use holdfast::lifecycle::Shutdown;

#[test]
fn sigterm_wakes_all_who_wait() {
    let shutdown = Shutdown::install().unwrap();
    assert!(!shutdown.requested());
    let start = Instant::now();
    assert!(!shutdown.wait(Duration::from_millis(50)));
    assert!(start.elapsed() >= Duration::from_millis(50));

    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let shutdown = shutdown.clone();
                scope.spawn(move || shutdown.wait(Duration::from_secs(10)))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(50));
        signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
        for waiter in waiters {
            assert!(waiter.join().unwrap());
        }
    });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(shutdown.requested());
    assert!(shutdown.wait(Duration::ZERO));
}
