//! The command line: what is tested, how hard, and for how long. Never touches DPDK.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::door::is_virtual;
use crate::traffic::RunName;

/// Drives a running holdfastd from both sides and measures what it forwards, loses and how long
/// that takes. scripts/bench load starts the daemons and this.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
pub struct Args {
    /// Our end of the uplink of the daemon under test: a DPDK virtual device or a PCI address
    #[arg(long, value_name = "DEVICE")]
    pub uplink: String,
    /// Our end of its host port: a DPDK virtual device
    #[arg(long, value_name = "DEVICE")]
    pub host: String,
    /// Our end of the host port of the daemon that owns the redirects' sessions
    #[arg(long, value_name = "DEVICE")]
    pub far_host: String,
    /// Control socket of the daemon under test
    #[arg(long, value_name = "PATH")]
    pub near_control: PathBuf,
    /// Control socket of the redirects' owner
    #[arg(long, value_name = "PATH")]
    pub far_control: PathBuf,
    /// Locator of the daemon under test
    #[arg(long, value_name = "ADDRESS")]
    pub near_locator: IpAddr,
    /// Locator of the redirects' owner
    #[arg(long, value_name = "ADDRESS")]
    pub far_locator: IpAddr,
    /// The service, as both daemons have it
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub service: SocketAddr,
    /// UDP port of tunnels
    #[arg(long, default_value_t = 6080)]
    pub tunnel_port: u16,
    /// The program that asks the daemons
    #[arg(long, value_name = "PATH", default_value = "holdfastctl")]
    pub holdfastctl: PathBuf,

    /// Sessions of the daemon under test
    #[arg(long, default_value_t = 1_000_000)]
    pub sessions: u32,
    /// Sessions of the other one, which the daemon under test has redirects for
    #[arg(long, default_value_t = 100_000)]
    pub redirects: u32,
    /// Sessions opened, and as many closed, per second while others are measured
    #[arg(long, default_value_t = 20_000)]
    pub churn: u64,
    /// Sessions installed per second
    #[arg(long, default_value_t = 100_000)]
    pub install_rate: u64,
    /// Redirects learnt per second: each is a lookup in the DHT
    #[arg(long, default_value_t = 10_000)]
    pub learn_rate: u64,

    /// Runs to make, by commas
    #[arg(long, value_delimiter = ',', default_value = "mix,hits,redirects,misses")]
    pub runs: Vec<RunName>,
    /// Packets per second of the mix at a fixed rate
    #[arg(long, default_value_t = 200_000)]
    pub mix_rate: u64,
    /// The same of hits alone
    #[arg(long, default_value_t = 500_000)]
    pub hits_rate: u64,
    /// The same of redirects alone
    #[arg(long, default_value_t = 500_000)]
    pub redirects_rate: u64,
    /// The same of misses alone: each packet is another flow, and two lookups
    #[arg(long, default_value_t = 5_000)]
    pub misses_rate: u64,
    /// Time of a measurement at a fixed rate
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Time of each step of the search for the highest rate
    #[arg(long, default_value_t = 1.0)]
    pub step_seconds: f64,
    /// Steps of that search, at most; 0 leaves it out
    #[arg(long, default_value_t = 10)]
    pub steps: u32,
    /// Loss up to which a rate counts as carried, in percent
    #[arg(long, default_value_t = 0.1)]
    pub loss_percent: f64,
    /// Bytes of a measured frame, the frame check sequence not counted
    #[arg(long, default_value_t = 128)]
    pub frame_bytes: usize,
    /// One packet in so many is time-stamped, and compared byte for byte when it comes back
    #[arg(long, default_value_t = 16)]
    pub sample: u32,

    /// CPU that the generator polls on
    #[arg(long, default_value_t = 0)]
    pub cpu: u16,
    /// DPDK's memory in MiB
    #[arg(long, default_value_t = 160)]
    pub memory_mib: u32,
    /// Do without huge pages
    #[arg(long)]
    pub no_huge: bool,
    /// Tells DPDK processes on one machine apart
    #[arg(long, default_value = "packet-load")]
    pub file_prefix: String,
    /// Print the EAL's arguments and the devices, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl Args {
    /// Looks whether the arguments fit each other.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        let (near, far) = (self.near_locator, self.far_locator);
        ensure!(near != far, "--near-locator and --far-locator are the same");
        ensure!(near.is_ipv4() == far.is_ipv4(), "the locators are of two families");
        for (name, device) in [("--host", &self.host), ("--far-host", &self.far_host)] {
            ensure!(is_virtual(device), "{name} is a DPDK virtual device, not '{device}'");
        }
        ensure!(
            is_virtual(&self.uplink) || is_pci_address(&self.uplink),
            "--uplink is a DPDK virtual device or a PCI address with its domain, not '{}'",
            self.uplink
        );
        ensure!(self.sessions > 0 && self.redirects > 0, "there must be sessions and redirects");
        ensure!(self.sample > 0, "--sample is at least 1");
        ensure!(self.install_rate > 0 && self.learn_rate > 0, "a rate is at least 1 per second");
        for name in &self.runs {
            ensure!(self.rate(*name) > 0, "the rate of {} is at least 1 per second", name.as_str());
        }
        let times = [self.seconds, self.step_seconds];
        ensure!(times.iter().all(|time| (0.1..=600.0).contains(time)), "times are 0.1 to 600 s");
        ensure!((0.0..100.0).contains(&self.loss_percent), "--loss-percent is from 0 to 100");
        Ok(())
    }

    /// The fixed rate of a run, in packets per second.
    pub fn rate(&self, name: RunName) -> u64 {
        match name {
            RunName::Mix => self.mix_rate,
            RunName::Hits => self.hits_rate,
            RunName::Redirects => self.redirects_rate,
            RunName::Misses => self.misses_rate,
        }
    }

    /// Arguments of the EAL.
    pub fn eal(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--file-prefix={}", self.file_prefix),
            format!("--lcores=0@({})", self.cpu),
            "--log-level=*:warning".to_owned(),
            "--no-telemetry".to_owned(),
            "-m".to_owned(),
            self.memory_mib.to_string(),
        ];
        if self.no_huge {
            arguments.extend(["--no-huge".to_owned(), "--no-shconf".to_owned()]);
        } else {
            arguments.push("--in-memory".to_owned());
        }
        arguments.push(match is_virtual(&self.uplink) {
            true => "--no-pci".to_owned(),
            false => format!("--allow={}", self.uplink),
        });
        arguments
    }
}

/// `DDDD:BB:DD.F`, as DPDK names ports.
fn is_pci_address(text: &str) -> bool {
    let shape = b"hhhh:hh:hh.h";
    text.len() == shape.len()
        && text.bytes().zip(shape).all(|(byte, shape)| match shape {
            b'h' => byte.is_ascii_hexdigit(),
            other => byte == *other,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: [&str; 17] = [
        "packet-load",
        "--uplink",
        "net_memif0,role=server,id=0",
        "--host",
        "net_memif1,role=server,id=1",
        "--far-host",
        "net_memif2,role=server,id=2",
        "--near-control",
        "/near.sock",
        "--far-control",
        "/far.sock",
        "--near-locator",
        "10.99.0.1",
        "--far-locator",
        "10.99.0.2",
        "--service",
        "192.168.0.1:80",
    ];

    fn args(more: &[&str]) -> Args {
        // An option that is given twice: the last counts.
        let words = LEAST.iter().chain(more);
        Args::try_parse_from(words).expect("arguments")
    }

    #[test]
    fn the_least_is_enough() {
        let args = args(&[]);
        args.check().expect("sound");
        assert_eq!(args.runs.len(), 4);
        let eal = args.eal().join(" ");
        assert!(eal.contains("--in-memory --no-pci"), "{eal}");
    }

    #[test]
    fn a_nic_is_allowed_alone() {
        let args = args(&["--uplink", "0000:3b:02.0", "--cpu", "3"]);
        args.check().expect("sound");
        let eal = args.eal().join(" ");
        assert!(eal.contains("--lcores=0@(3)"), "{eal}");
        assert!(eal.ends_with("--allow=0000:3b:02.0"), "{eal}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let rows: [&[&str]; 9] = [
            &["--uplink", "eth0"],
            &["--uplink", "3b:02.0"],
            &["--host", "0000:3b:02.0"],
            &["--far-locator", "10.99.0.1"],
            &["--far-locator", "fd00::2"],
            &["--sample", "0"],
            &["--seconds", "0"],
            &["--misses-rate", "0"],
            &["--sessions", "0"],
        ];
        for row in rows {
            assert!(args(row).check().is_err(), "{row:?}");
        }
        assert!(Args::try_parse_from(LEAST.iter().chain(&["--runs", "hits,nothing"])).is_err());
    }
}
