//! A bump in the wire: joins two DPDK devices for a limited time and forwards every frame
//! unchanged. It shows whether a NIC, a driver and their arguments work before holdfast is
//! configured with them; it knows nothing of services and sessions.
//!
//! ```sh
//! bump [--seconds N] [--queues N] [--mbufs N] [--mtu N] DEVICE DEVICE [-- EAL-ARGUMENT...]
//!
//! ip link add eth9 type veth peer name eth9-far       # or a NIC of yours
//! bump --seconds 30 net_af_xdp0,iface=eth9 net_tap0,iface=tap9,mac=02:00:00:00:00:09 \
//!     -- --no-huge -m 64 --no-shconf --no-pci --no-telemetry
//! ```
//!
//! It prints how both ports were started, and at the end what each of them counted.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its user")]

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use holdfast_dpdk::{
    Device, Eal, Mbuf, Mempool, MempoolConfig, Port, PortConfig, RxQueue, TxQueue,
};

const BURST: usize = 32;
const USAGE: &str = "usage: bump [--seconds N] [--queues N] [--mbufs N] [--mtu N] \
                     DEVICE DEVICE [-- EAL-ARGUMENT...]";

struct Options {
    seconds: u64,
    queues: u16,
    mbufs: u32,
    mtu: Option<u16>,
    devices: [String; 2],
    eal: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bump: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = options(std::env::args().skip(1))?;
    let eal = Eal::init(&options.eal)?;
    let config = MempoolConfig { mbufs: options.mbufs, ..MempoolConfig::default() };
    // One pool for both ports: AF_XDP sends the other port's frames without a copy then.
    let pool = Mempool::new(&eal, "bump", &config)?;

    let [left, right] = &options.devices;
    let (left, mut left_rx, mut left_tx) = start(&eal, left, &pool, &options)?;
    let (right, mut right_rx, mut right_tx) = start(&eal, right, &pool, &options)?;
    println!("running for {} s", options.seconds);

    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut unsent = 0;
    while Instant::now() < end {
        let mut moved = 0;
        for queue in 0..usize::from(options.queues) {
            moved += forward(&mut left_rx[queue], &mut right_tx[queue], &mut unsent);
            moved += forward(&mut right_rx[queue], &mut left_tx[queue], &mut unsent);
        }
        if moved == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    report(&left)?;
    report(&right)?;
    println!("dropped because the other port was full: {unsent}");
    println!("mbufs free: {} of {}", pool.available(), pool.count());
    Ok(())
}

/// Moves one burst and returns its size. A real worker would try again what was not sent.
fn forward(rx: &mut RxQueue, tx: &mut TxQueue, unsent: &mut usize) -> usize {
    let mut burst = ArrayVec::<Mbuf, BURST>::new();
    let received = rx.receive(&mut burst);
    if received > 0 {
        tx.transmit(&mut burst);
        *unsent += burst.len();
    }
    received
}

type Started = (Port, Vec<RxQueue>, Vec<TxQueue>);

fn start(
    eal: &Eal,
    arguments: &str,
    pool: &Mempool,
    options: &Options,
) -> Result<Started, Box<dyn Error>> {
    let mut devices = Device::attach(eal, arguments)?;
    let device = devices.swap_remove(0);
    let config = PortConfig {
        rx_queues: options.queues,
        tx_queues: options.queues,
        mtu: options.mtu,
        ..PortConfig::default()
    };
    let pools = vec![pool.clone(); usize::from(options.queues)];
    let started = device.start(&config, &pools)?;
    println!("{}, link {}", started.0.info(), started.0.link()?);
    Ok(started)
}

fn report(port: &Port) -> Result<(), Box<dyn Error>> {
    println!("{}: {:?}, link {}", port.name(), port.stats()?, port.link()?);
    Ok(())
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
    let (mut seconds, mut queues, mut mbufs, mut mtu) = (10, 1, 8_191, None);
    let mut devices = Vec::new();
    let mut value = String::new();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            break;
        }
        if argument.starts_with("--") {
            value = arguments.next().ok_or(USAGE)?;
        }
        match argument.as_str() {
            "--seconds" => seconds = number(&argument, &value)?,
            "--queues" => queues = number(&argument, &value)?,
            "--mbufs" => mbufs = number(&argument, &value)?,
            "--mtu" => mtu = Some(number(&argument, &value)?),
            option if option.starts_with('-') => return Err(USAGE.into()),
            _ => devices.push(argument),
        }
    }
    Ok(Options {
        seconds,
        queues,
        mbufs,
        mtu,
        devices: devices.try_into().map_err(|_| USAGE)?,
        eal: arguments.collect(),
    })
}

fn number<T>(option: &str, text: &str) -> Result<T, String>
where
    T: std::str::FromStr<Err: Display>,
{
    let parsed = text.parse::<T>();
    parsed.map_err(|error| format!("{option} {text}: {error}\n{USAGE}"))
}
