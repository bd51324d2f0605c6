//! `capture -w FILE`: writes what the daemon streams into a pcapng file. The daemon writes none.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Daemon, Failure, understood};
use crate::client::{self, StreamLine};
use crate::pcapng::{self, Direction};
use crate::protocol::{
    CaptureBytes, CaptureFilter, CapturedFrame, FramePort, PacketItem, Request, Snaplen,
    StreamCount, StreamTime,
};
use crate::show;

/// Capture packets, as they came and as they left, each with its verdict.
///
/// The file is pcapng: an interface for each port and direction, and the verdict as each packet's
/// comment. Frames of one packet have one packet id. For root and the daemon's own user.
#[derive(Debug, Args)]
pub struct Capture {
    /// Which packets: all, strays, redirected, tunnelled or dropped; verdict=V, counter=NAME,
    /// client=PREFIX, client_port=PORT, service=SERVICE. All that are given, with commas between
    /// them.
    #[arg(long, value_name = "FILTER", default_value = "all")]
    filter: CaptureFilter,
    /// Most packets, 1 to 10000000.
    #[arg(long, value_name = "N", default_value = "1000")]
    count: StreamCount,
    /// How long, 1ms to 1h.
    #[arg(long = "for", value_name = "TIME", default_value = "30s")]
    time: StreamTime,
    /// Bytes of each frame, 64 to 16384.
    #[arg(long, value_name = "BYTES", default_value = "256")]
    snaplen: Snaplen,
    /// Most bytes of frames in all, 1 to 1073741824.
    #[arg(long, value_name = "BYTES", default_value = "67108864")]
    bytes: CaptureBytes,
    /// The file; - is standard output. One that is there is overwritten once the first packet, or
    /// the end, has come.
    #[arg(short, long = "write", value_name = "FILE")]
    write: PathBuf,
}

/// Where a capture goes.
enum Sink {
    File(File),
    Stdout(io::Stdout),
}

impl Sink {
    fn open(path: &Path) -> io::Result<Sink> {
        if path == Path::new("-") {
            return Ok(Sink::Stdout(io::stdout()));
        }
        // It shows what clients send.
        let mut options = OpenOptions::new();
        Ok(Sink::File(options.write(true).create(true).truncate(false).mode(0o600).open(path)?))
    }

    /// Begins anew. What is no plain file has no end to cut.
    fn begin(&mut self) -> io::Result<()> {
        match self {
            Sink::File(file) if file.metadata()?.is_file() => file.set_len(0),
            Sink::File(_) | Sink::Stdout(_) => Ok(()),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File(file) => file.write(bytes),
            Sink::Stdout(stdout) => stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::File(file) => file.flush(),
            Sink::Stdout(stdout) => stdout.flush(),
        }
    }
}

impl Capture {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        let failed = |error| Failure::Write { path: self.write.clone(), error };
        let request = Request::Capture {
            filter: self.filter.clone(),
            snaplen: self.snaplen,
            bytes: self.bytes,
            for_ms: self.time,
            count: self.count,
        };
        let mut sink = Sink::open(&self.write).map_err(failed)?;
        let mut stream = client::stream(&daemon.socket, &request)?;
        let (mut frames, mut bytes) = (0, 0);
        // A daemon that refuses has left the file as it was.
        let mut line = stream.next()?;
        sink.begin().and_then(|()| self.write_header(&mut sink)).map_err(failed)?;
        let stream = loop {
            match line {
                StreamLine::Item(item) => {
                    let item: PacketItem = understood(item)?;
                    for frame in &item.frames {
                        write_frame(&mut sink, &item, frame).map_err(failed)?;
                        frames += 1;
                        bytes += frame.data.len() as u64;
                    }
                    sink.flush().map_err(failed)?;
                }
                // The end says how many in all.
                StreamLine::Missed(_) => {}
                StreamLine::End(reply) => break reply,
            }
            line = stream.next()?;
        };
        let report = show::CaptureReport { file: self.write.clone(), frames, bytes, stream };
        let text = if daemon.json {
            let json = serde_json::to_string(&report).map_err(io::Error::from)?;
            format!("{json}\n")
        } else {
            show::end_of_capture(&report)
        };
        match sink {
            Sink::File(_) => super::print(&text),
            Sink::Stdout(_) => Ok(io::stderr().write_all(text.as_bytes())?),
        }
    }

    fn write_header(&self, out: &mut impl Write) -> io::Result<()> {
        let application = concat!("holdfastctl ", env!("CARGO_PKG_VERSION"));
        let interfaces = FramePort::ALL.iter().map(|port| interface(*port)).collect::<Vec<_>>();
        let snaplen = u64::from(self.snaplen) as u32;
        out.write_all(&pcapng::header(application, snaplen, &interfaces))
    }
}

/// Name and description of what the file has as interface.
fn interface(port: FramePort) -> (&'static str, &'static str) {
    match port {
        FramePort::UplinkIn => ("uplink in", "received from the uplink"),
        FramePort::UplinkOut => ("uplink out", "sent to the uplink"),
        FramePort::HostIn => ("host in", "received from the host"),
        FramePort::HostOut => ("host out", "sent to the host"),
        FramePort::Waited => ("waited", "as it was when its wait ended: parked, or a fragment"),
    }
}

fn write_frame(out: &mut impl Write, item: &PacketItem, frame: &CapturedFrame) -> io::Result<()> {
    let place = FramePort::ALL.iter().position(|port| *port == frame.port).unwrap_or(0);
    let packet = pcapng::Packet {
        interface: place as u32,
        at_unix_us: item.at_unix_us,
        direction: match frame.port {
            FramePort::UplinkIn | FramePort::HostIn => Direction::In,
            FramePort::UplinkOut | FramePort::HostOut => Direction::Out,
            FramePort::Waited => Direction::Unknown,
        },
        id: item.number,
        length: u32::try_from(frame.length).unwrap_or(u32::MAX),
        data: &frame.data,
        comment: &show::packet_comment(item),
    };
    pcapng::write_packet(out, &packet)
}
