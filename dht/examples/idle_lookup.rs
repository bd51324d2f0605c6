//! Measures what one lookup over the network takes when nothing else happens: two services on
//! loopback addresses, one worker that asks for a flow that nobody owns and waits for the answer.
//! Prints how the times of 3,000 lookups are spread, and what CPU the idle services use.
#![allow(clippy::print_stdout)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_dht::auth::Secret;
use holdfast_dht::{Config, Counter, Handle, Keys, Service};
use holdfast_handoff::{Answer, Clock, Resolution, Resolve, WorkerEnd, rings, unix_us};
use holdfast_net::FlowKey;

const LOOKUPS: usize = 3000;
/// Long enough for both services to fall asleep.
const PAUSE: Duration = Duration::from_micros(700);
const IDLE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut servers = [start(1)?, start(2)?];
    while servers.iter().any(|(handle, _)| handle.stats().is_ok_and(|s| s.gauges.peers < 1)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before_ticks = cpu_ticks()?;
    std::thread::sleep(IDLE);
    let ticks = cpu_ticks()? - before_ticks;
    println!("idle: {:.2} % of a CPU for both services", ticks as f64 / IDLE.as_secs_f64());

    let (handle, worker) = &mut servers[0];
    let mut times_ns = Vec::with_capacity(LOOKUPS);
    for n in 0..LOOKUPS {
        std::thread::sleep(PAUSE);
        let port = u16::try_from(n)?;
        let flow = FlowKey::tcp_v4([20, 1, 1, 1], port, [192, 168, 0, 1], 80);
        let started = Instant::now();
        worker.resolve(Resolve { flow, asked_at_unix_us: unix_us() }).map_err(|_| "full")?;
        worker.ring_doorbell();
        let answer = loop {
            match worker.answer() {
                Some(answer) => break answer,
                None => std::thread::yield_now(),
            }
        };
        times_ns.push(started.elapsed().as_nanos());
        let expected = Answer::Resolved { flow, resolution: Resolution::NotFound, dead: None };
        assert_eq!(answer, expected);
    }
    let asked = handle.stats()?.counters.get(Counter::LookupsNotFound);
    assert_eq!(asked, LOOKUPS as u64, "all went over the network");
    times_ns.sort_unstable();
    let us = |per_mille: usize| times_ns[(LOOKUPS - 1) * per_mille / 1000] as f64 / 1000.0;
    println!("lookup, µs: p50 {:.1}  p90 {:.1}  p99 {:.1}", us(500), us(900), us(990));
    for (handle, _) in &servers {
        handle.stop();
    }
    Ok(())
}

fn start(n: u8) -> Result<(Handle, WorkerEnd), Box<dyn std::error::Error>> {
    let run = 20 + (std::process::id() % 200) as u8;
    let locator = |n| IpAddr::from([127, run, 240, n]);
    let keys = Keys::single(1, Secret([1; 32]));
    let mut config = Config::new(locator(n), (locator(n), 7300).into());
    config.bootstrap = vec![(locator(1), 7300).into()];
    config.members = vec!["127.0.0.0/8".parse()?];
    config.id_key = keys.id_key();
    let service = Service::bind(config, keys, Arc::new(Clock::default()))?;
    let (worker, core) = rings(64, 64, service.doorbell());
    let handle = service.handle();
    std::thread::spawn(move || service.run(vec![core]));
    Ok((handle, worker))
}

/// CPU time that this process has used, in ticks of 10 ms.
fn cpu_ticks() -> Result<u64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("stat")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}
