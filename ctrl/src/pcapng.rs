//! Writes captures as pcapng (draft-ietf-opsawg-pcapng), which wireshark, tshark and capinfos open.
//! Only writes, and only what a capture of ours needs: interfaces with names, and packets with a
//! comment, a direction and a number that those of one packet share.

use std::io::{self, Write};

/// Section Header Block, and its byte-order magic.
const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Interface Description Block.
const INTERFACE: u32 = 1;
/// Enhanced Packet Block.
const PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u16 = 1;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const PACKET_FLAGS: u16 = 2;
const PACKET_ID: u16 = 5;

/// Which way a packet went at its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It does not say.
    Unknown,
    /// Received.
    In,
    /// Sent.
    Out,
}

/// A packet as it is written.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Its interface, by its place among those of the file.
    pub interface: u32,
    /// When it was seen, in microseconds since the Unix epoch.
    pub at_unix_us: u64,
    /// Which way it went.
    pub direction: Direction,
    /// What packets that are one and the same at several interfaces have in common.
    pub id: u64,
    /// Its length in bytes.
    pub length: u32,
    /// Its first bytes.
    pub data: &'a [u8],
    /// What people read with it.
    pub comment: &'a str,
}

/// What a file begins with: the program that writes it and its interfaces, each a name and a
/// description. `snaplen` is how many bytes of a packet there are at most.
#[must_use]
pub fn header(application: &str, snaplen: u32, interfaces: &[(&str, &str)]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut body =
        [BYTE_ORDER.to_le_bytes().as_slice(), &1u16.to_le_bytes(), &0u16.to_le_bytes()].concat();
    // How long the section is need not be said.
    body.extend((-1i64).to_le_bytes());
    option(&mut body, SECTION_APPLICATION, application.as_bytes());
    end_options(&mut body);
    block(&mut file, SECTION, &body);
    for (name, description) in interfaces {
        let mut body = [LINKTYPE_ETHERNET, 0].map(u16::to_le_bytes).concat();
        body.extend(snaplen.to_le_bytes());
        option(&mut body, INTERFACE_NAME, name.as_bytes());
        option(&mut body, INTERFACE_DESCRIPTION, description.as_bytes());
        end_options(&mut body);
        block(&mut file, INTERFACE, &body);
    }
    file
}

/// Writes a packet.
///
/// # Errors
/// Those of `out`.
pub fn write_packet(out: &mut impl Write, packet: &Packet<'_>) -> io::Result<()> {
    let Packet { interface, at_unix_us, direction, id, length, data, comment } = *packet;
    let mut body = Vec::with_capacity(data.len() + comment.len() + 64);
    // Microseconds are what an interface counts in unless it says otherwise.
    for word in [
        interface,
        (at_unix_us >> 32) as u32,
        at_unix_us as u32,
        u32::try_from(data.len()).map_err(io::Error::other)?,
        length,
    ] {
        body.extend(word.to_le_bytes());
    }
    body.extend(data);
    pad(&mut body);
    option(&mut body, OPTION_COMMENT, comment.as_bytes());
    option(&mut body, PACKET_FLAGS, &(direction as u32).to_le_bytes());
    option(&mut body, PACKET_ID, &id.to_le_bytes());
    end_options(&mut body);
    let mut whole = Vec::with_capacity(body.len() + 12);
    block(&mut whole, PACKET, &body);
    out.write_all(&whole)
}

fn block(file: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let length = (body.len() + 12) as u32;
    file.extend(kind.to_le_bytes());
    file.extend(length.to_le_bytes());
    file.extend(body);
    file.extend(length.to_le_bytes());
}

/// An option; what is too long for one is cut.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    body.extend(code.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(&value[..usize::from(length)]);
    pad(body);
}

fn end_options(body: &mut Vec<u8>) {
    body.extend([OPTION_END, 0].map(u16::to_le_bytes).concat());
}

/// Fills up to a multiple of 4 bytes, counted from the beginning of the body.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Blocks of a file: their types and their bodies.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let word =
            |bytes: &[u8], at: usize| u32::from_le_bytes(*bytes[at..].first_chunk::<4>().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let length = word(file, 4) as usize;
            assert!(length.is_multiple_of(4));
            assert_eq!(word(file, length - 4) as usize, length, "said twice");
            blocks.push((word(file, 0), &file[8..length - 4]));
            file = &file[length..];
        }
        blocks
    }

    #[test]
    fn a_file_is_a_section_with_interfaces_and_packets() {
        let mut file = header("holdfastctl 1", 256, &[("uplink in", "received"), ("x", "")]);
        let packet = Packet {
            interface: 1,
            at_unix_us: 0x1_0000_0002,
            direction: Direction::Out,
            id: 7,
            length: 60,
            data: &[1, 2, 3, 4, 5],
            comment: "parked",
        };
        write_packet(&mut file, &packet).unwrap();
        let blocks = blocks(&file);
        let types: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(types, [SECTION, INTERFACE, INTERFACE, PACKET]);
        let expected = [
            [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 60, 0, 0, 0].as_slice(),
            &[1, 2, 3, 4, 5, 0, 0, 0],
            &[1, 0, 6, 0, b'p', b'a', b'r', b'k', b'e', b'd', 0, 0],
            &[2, 0, 4, 0, 2, 0, 0, 0],
            &[5, 0, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0],
        ];
        assert_eq!(blocks[3].1, expected.concat());
    }

    #[test]
    fn a_comment_that_is_too_long_is_cut() {
        let mut body = Vec::new();
        option(&mut body, OPTION_COMMENT, &vec![b'x'; 70_000]);
        assert_eq!(body.len(), 4 + 65_536);
        assert_eq!(body[2..4], [0xff, 0xff]);
    }
}
