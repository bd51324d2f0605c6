//! Thread CPU time and the time stamp counter, read together.

use std::arch::x86_64::{_mm_lfence, _rdtsc};

/// A length of time, as both clocks saw it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    pub cpu_ns: u64,
    pub tsc_cycles: u64,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.cpu_ns += other.cpu_ns;
        self.tsc_cycles += other.tsc_cycles;
    }
}

/// When something began.
#[derive(Debug, Clone, Copy)]
pub struct Start(Spent);

impl Start {
    pub fn now() -> Start {
        let cpu_ns = thread_cpu_ns();
        Start(Spent { cpu_ns, tsc_cycles: tsc() })
    }

    pub fn elapsed(self) -> Spent {
        let tsc_cycles = tsc() - self.0.tsc_cycles;
        Spent { cpu_ns: thread_cpu_ns() - self.0.cpu_ns, tsc_cycles }
    }
}

/// What the clocks themselves add to an interval: the least of many empty ones.
pub fn overhead() -> Spent {
    let empty: Vec<Spent> = (0..10_000).map(|_| Start::now().elapsed()).collect();
    Spent {
        cpu_ns: empty.iter().map(|spent| spent.cpu_ns).min().unwrap_or(0),
        tsc_cycles: empty.iter().map(|spent| spent.tsc_cycles).min().unwrap_or(0),
    }
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has both instructions.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable and the clock exists since Linux 2.6.12.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
