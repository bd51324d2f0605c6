//! Packets and what became of them: what `trace` and `capture` ask for, and the items that they
//! stream.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use holdfast_net::FlowKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ClientFilter, ServiceFilter, StreamCount, StreamTime, optional_flow_text};

/// How long a trace or a capture lasts when the request does not say, in milliseconds.
pub const PACKETS_MS_DEFAULT: u64 = 30_000;
/// Packets of a trace when the request does not say how many.
pub const TRACE_COUNT_DEFAULT: u64 = 10_000;
/// Packets of a capture when the request does not say how many.
pub const CAPTURE_COUNT_DEFAULT: u64 = 1_000;
/// Bytes of a frame that a capture keeps at least, at most, and when the request does not say.
pub const SNAPLEN_MIN: u64 = 64;
/// See [`SNAPLEN_MIN`].
pub const SNAPLEN_MAX: u64 = 16_384;
/// See [`SNAPLEN_MIN`].
pub const SNAPLEN_DEFAULT: u64 = 256;
/// Bytes of frames that a capture has at most, and when the request does not say.
pub const CAPTURE_BYTES_MAX: u64 = 1 << 30;
/// See [`CAPTURE_BYTES_MAX`].
pub const CAPTURE_BYTES_DEFAULT: u64 = 64 << 20;

pub(super) fn packets_time() -> StreamTime {
    PACKETS_MS_DEFAULT.try_into().unwrap_or_default()
}

pub(super) fn trace_count() -> StreamCount {
    TRACE_COUNT_DEFAULT.try_into().unwrap_or_default()
}

pub(super) fn capture_count() -> StreamCount {
    CAPTURE_COUNT_DEFAULT.try_into().unwrap_or_default()
}

/// Why a number bounds no capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CaptureBoundError {
    /// No length of frames.
    #[error("expected bytes of each frame from {SNAPLEN_MIN} to {SNAPLEN_MAX}")]
    Snaplen,
    /// No number of bytes.
    #[error("expected bytes in all from 1 to {CAPTURE_BYTES_MAX}")]
    Bytes,
}

macro_rules! bounds {
    ($($(#[$doc:meta])* $name:ident: $least:expr, $most:expr, $default:expr, $error:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "u64", into = "u64")]
        #[schemars(extend("minimum" = $least, "maximum" = $most))]
        pub struct $name(u64);

        impl Default for $name {
            fn default() -> $name {
                $name($default)
            }
        }

        impl TryFrom<u64> for $name {
            type Error = CaptureBoundError;

            fn try_from(number: u64) -> Result<$name, CaptureBoundError> {
                let sound = ($least..=$most).contains(&number);
                if sound { Ok($name(number)) } else { Err(CaptureBoundError::$error) }
            }
        }

        impl From<$name> for u64 {
            fn from(bound: $name) -> u64 {
                bound.0
            }
        }

        impl FromStr for $name {
            type Err = CaptureBoundError;

            fn from_str(text: &str) -> Result<$name, CaptureBoundError> {
                text.parse().unwrap_or(0u64).try_into()
            }
        }
    )*};
}

bounds! {
    /// Bytes of each frame that a capture keeps.
    Snaplen: SNAPLEN_MIN, SNAPLEN_MAX, SNAPLEN_DEFAULT, Snaplen;
    /// Bytes of frames that a capture has in all; the packet that goes beyond is the last.
    CaptureBytes: 1, CAPTURE_BYTES_MAX, CAPTURE_BYTES_DEFAULT, Bytes;
}

/// Which packets to capture: those that meet all that is said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureFilter {
    /// Of this kind of traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<TrafficKind>,
    /// With this verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<PacketVerdict>,
    /// Which moved the worker's counter of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<String>,
    /// Of flows of these clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientFilter>,
    /// Of flows whose client has this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// Of flows to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceFilter>,
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CaptureFilterError {
    /// A term that is none.
    #[error(
        "'{0}' is no part of a filter: expected one of all, strays, redirected, tunnelled, \
         dropped, or verdict=V, counter=NAME, client=PREFIX, client_port=PORT, service=SERVICE, \
         with commas between them"
    )]
    Term(String),
    /// A value that is none.
    #[error("{key}={value}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        why: String,
    },
    /// The same twice.
    #[error("'{0}' stands there twice")]
    Twice(&'static str),
}

/// Terms with commas between them: `dropped,client=20.1.0.0/16,service=192.168.0.1:80`.
impl FromStr for CaptureFilter {
    type Err = CaptureFilterError;

    fn from_str(text: &str) -> Result<CaptureFilter, CaptureFilterError> {
        let mut filter = CaptureFilter::default();
        for term in text.split(',') {
            let wrong = || CaptureFilterError::Term(term.to_owned());
            match term.split_once('=') {
                None => {
                    let kind = term.parse().map_err(|_| wrong())?;
                    put(&mut filter.kind, "a kind of traffic", kind)?;
                }
                Some(("verdict", value)) => put_parsed(&mut filter.verdict, "verdict", value)?,
                Some(("counter", value)) => {
                    put(&mut filter.counter, "counter", value.to_owned())?;
                }
                Some(("client", value)) => put_parsed(&mut filter.client, "client", value)?,
                Some(("client_port", value)) => {
                    let port = value.parse().map_err(|_| CaptureFilterError::Value {
                        key: "client_port",
                        value: value.to_owned(),
                        why: "expected a port from 0 to 65535".to_owned(),
                    })?;
                    put(&mut filter.client_port, "client_port", port)?;
                }
                Some(("service", value)) => put_parsed(&mut filter.service, "service", value)?,
                Some(_) => return Err(wrong()),
            }
        }
        Ok(filter)
    }
}

fn put_parsed<T: FromStr<Err: fmt::Display>>(
    place: &mut Option<T>,
    key: &'static str,
    value: &str,
) -> Result<(), CaptureFilterError> {
    let parsed = value.parse().map_err(|error: T::Err| CaptureFilterError::Value {
        key,
        value: value.to_owned(),
        why: error.to_string(),
    })?;
    put(place, key, parsed)
}

fn put<T>(place: &mut Option<T>, key: &'static str, value: T) -> Result<(), CaptureFilterError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(CaptureFilterError::Twice(key)),
    }
}

/// Enumerations whose names are the same in JSON and in text.
macro_rules! named {
    ($($(#[$doc:meta])* $type:ident $error:ident: $($(#[$help:meta])* $variant:ident $name:literal)*;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $type {
            $($(#[$help])* #[serde(rename = $name)] $variant,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &[$type] = &[$($type::$variant,)*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        /// Why a text is none.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $error;

        impl fmt::Display for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "expected one of {}", [$($name,)*].join(", "))
            }
        }

        impl std::error::Error for $error {}

        impl FromStr for $type {
            type Err = $error;

            fn from_str(text: &str) -> Result<$type, $error> {
                $type::ALL.iter().copied().find(|one| one.name() == text).ok_or($error)
            }
        }
    )*};
}

named! {
    /// A kind of traffic.
    TrafficKind TrafficKindError:
        /// All packets.
        All "all"
        /// Strays, when they come and when their wait ends.
        Strays "strays"
        /// What goes to another server because the session is that one's.
        Redirected "redirected"
        /// What went into a tunnel or came out of one.
        Tunnelled "tunnelled"
        /// What was dropped or withheld.
        Dropped "dropped";
    /// Where a packet came from.
    PacketOrigin PacketOriginError:
        /// The uplink.
        Uplink "uplink"
        /// The uplink, in a tunnel.
        Tunnel "tunnel"
        /// The host.
        Host "host"
        /// It had waited in the daemon.
        Waited "waited";
    /// What a packet is.
    PacketKind PacketKindError:
        /// A segment of a service's flow.
        Segment "segment"
        /// An ICMP error about one.
        IcmpError "icmp_error"
        /// A fragment of one.
        Fragment "fragment"
        /// Anything else.
        Other "other";
    /// What became of a packet.
    PacketVerdict PacketVerdictError:
        /// To the host.
        ToHost "to_host"
        /// Out to the network, as the host sent it.
        ToUplink "to_uplink"
        /// Into the tunnel to its owner.
        Tunnelled "tunnelled"
        /// Its sender was told what fits the tunnel.
        Answered "answered"
        /// It waits until its owner is known.
        Parked "parked"
        /// It waits for the first fragment of its datagram.
        Waits "waits"
        /// Dropped.
        Dropped "dropped"
        /// From the host, and must not reach the client.
        Withheld "withheld";
    /// Which way a frame went by which port.
    FramePort FramePortError:
        /// Received from the uplink.
        UplinkIn "uplink_in"
        /// Sent to the uplink.
        UplinkOut "uplink_out"
        /// Received from the host.
        HostIn "host_in"
        /// Sent to the host.
        HostOut "host_out"
        /// As it was when its wait ended.
        Waited "waited";
}

/// A packet and what became of it: an item of `trace` and `capture`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PacketItem {
    /// Its number in the stream; the first is 1.
    pub number: u64,
    /// When, in microseconds since the Unix epoch: the beginning of the worker's turn.
    pub at_unix_us: u64,
    /// CPU of the worker that had it.
    pub core: u16,
    /// Where it came from.
    pub origin: PacketOrigin,
    /// Locator of the server that tunnelled it; `None` when none did, or it does not tell.
    pub sender: Option<IpAddr>,
    /// What it is.
    pub kind: PacketKind,
    /// Its flow; `None` when it is of none of ours, or a fragment that does not tell.
    #[serde(with = "optional_flow_text")]
    #[schemars(with = "Option<String>")]
    pub flow: Option<FlowKey>,
    /// Length of its frame in bytes.
    pub length: u64,
    /// TCP's control bits that are set: `fin`, `syn`, `rst`, `psh`, `ack`, `urg`, `ece`, `cwr`.
    /// `None` when it shows none.
    pub flags: Option<Vec<String>>,
    /// What became of it.
    pub verdict: PacketVerdict,
    /// Locator of the owner that it was sent to.
    pub owner: Option<IpAddr>,
    /// The counter that says why it was dropped or withheld.
    pub counter: Option<String>,
    /// The rules that had a say: `R4`.
    pub rules: Vec<String>,
    /// Counters of the worker that it moved.
    pub counters: Vec<String>,
    /// Frames that left for it.
    pub sent: u64,
    /// Of a capture: its frame as it came, and those that left for it, as they left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<CapturedFrame>,
}

/// A frame of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapturedFrame {
    /// Where it was seen.
    pub port: FramePort,
    /// Its length in bytes.
    pub length: u64,
    /// Its first bytes.
    #[serde(with = "base64_text")]
    #[schemars(with = "String")]
    pub data: Vec<u8>,
}

/// Bytes in base64 (RFC 4648 §4).
mod base64_text {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn filters_as_people_write_them() {
        let rows = [
            ("dropped", r#"{"kind":"dropped"}"#),
            ("verdict=to_host", r#"{"verdict":"to_host"}"#),
            ("counter=park_full", r#"{"counter":"park_full"}"#),
            (
                "strays,client=20.1.0.0/16,client_port=7,service=[2001:db8::80]:443",
                r#"{"kind":"strays","client":"20.1.0.0/16","client_port":7,"service":"[2001:db8::80]:443"}"#,
            ),
        ];
        for (text, json) in rows {
            let filter: CaptureFilter = text.parse().unwrap();
            assert_eq!(serde_json::to_string(&filter).unwrap(), json, "{text}");
            assert_eq!(serde_json::from_str::<CaptureFilter>(json).unwrap(), filter);
        }
    }

    #[test]
    fn what_is_no_filter_says_what_would_be_right() {
        let rows = [
            ("", "'' is no part of a filter: expected one of all, strays,"),
            ("stray", "'stray' is no part of a filter"),
            ("colour=red", "'colour=red' is no part of a filter"),
            ("client=all", "client=all: expected a client's address or a prefix"),
            ("service=80", "service=80: expected a service as ADDRESS or ADDRESS:PORT"),
            ("client_port=70000", "client_port=70000: expected a port from 0 to 65535"),
            ("verdict=lost", "verdict=lost: expected one of to_host, to_uplink, tunnelled,"),
            ("dropped,strays", "'a kind of traffic' stands there twice"),
            ("client=1.1.1.1,client=1.1.1.2", "'client' stands there twice"),
        ];
        for (text, message) in rows {
            let error = text.parse::<CaptureFilter>().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn bounds_of_a_capture() {
        for (text, sound) in [("63", false), ("64", true), ("16384", true), ("16385", false)] {
            assert_eq!(text.parse::<Snaplen>().is_ok(), sound, "{text}");
        }
        for (text, sound) in [("0", false), ("1", true), ("1073741824", true), ("x", false)] {
            assert_eq!(text.parse::<CaptureBytes>().is_ok(), sound, "{text}");
        }
    }
}
