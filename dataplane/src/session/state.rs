//! The states of a local session and what moves it from one to the next: the segments of both
//! directions, seen from the middle. Never judges a segment; the kernel does.

use holdfast_net::headers::TcpFlags;

/// Where the life of a local session has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// The host has answered SYN-ACK (R3).
    HalfOpen = 1,
    /// The handshake is complete.
    Established = 2,
    /// The host has sent FIN.
    HostClosed = 3,
    /// The client has sent FIN.
    ClientClosed = 4,
    /// FIN went both ways: lingering (R8).
    Closed = 5,
    /// RST was seen: lingering, unless the host shows that it did not count (R8).
    Reset = 6,
}

/// What a segment means to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// From the client: neither FIN nor RST.
    ClientAck,
    /// From the client: FIN.
    ClientFin,
    /// From the client: RST.
    ClientRst,
    /// From the host: neither FIN nor RST.
    HostAck,
    /// From the host: FIN.
    HostFin,
    /// From the host: RST.
    HostRst,
}

impl State {
    /// All states.
    pub const ALL: [State; 6] = [
        State::HalfOpen,
        State::Established,
        State::HostClosed,
        State::ClientClosed,
        State::Closed,
        State::Reset,
    ];

    /// The state with this number, as the table keeps it.
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<State> {
        match number {
            1 => Some(State::HalfOpen),
            2 => Some(State::Established),
            3 => Some(State::HostClosed),
            4 => Some(State::ClientClosed),
            5 => Some(State::Closed),
            6 => Some(State::Reset),
            _ => None,
        }
    }

    /// Whether the session is over and only lingers.
    #[must_use]
    pub const fn is_lingering(self) -> bool {
        matches!(self, State::Closed | State::Reset)
    }

    /// The name in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            State::HalfOpen => "half_open",
            State::Established => "established",
            State::HostClosed => "host_closed",
            State::ClientClosed => "client_closed",
            State::Closed => "closed",
            State::Reset => "reset",
        }
    }

    /// The state after `event`.
    #[must_use]
    pub const fn after(self, event: Event) -> State {
        use Event::{ClientAck, ClientFin, ClientRst, HostAck, HostFin, HostRst};
        use State::{ClientClosed, Closed, Established, HalfOpen, HostClosed, Reset};
        match (self, event) {
            (_, HostRst) => Reset,
            // Forged RSTs are outside the window more often than not, and the kernel ignores
            // them; if it goes on sending, the session lives (R7).
            (_, ClientRst) => Reset,
            (Reset, HostAck) => Established,
            (Reset, HostFin) => HostClosed,
            // A host sends anything but SYN-ACKs only when the handshake is complete for it.
            (HalfOpen, ClientAck | HostAck) => Established,
            (HalfOpen | Established, ClientFin) => ClientClosed,
            (HalfOpen | Established, HostFin) => HostClosed,
            (HostClosed, ClientFin) | (ClientClosed, HostFin) => Closed,
            (state, _) => state,
        }
    }
}

impl Event {
    /// All events.
    pub const ALL: [Event; 6] = [
        Event::ClientAck,
        Event::ClientFin,
        Event::ClientRst,
        Event::HostAck,
        Event::HostFin,
        Event::HostRst,
    ];

    /// What a client's segment with these control bits means.
    #[must_use]
    pub const fn from_client(flags: TcpFlags) -> Event {
        if flags.contains(TcpFlags::RST) {
            Event::ClientRst
        } else if flags.contains(TcpFlags::FIN) {
            Event::ClientFin
        } else {
            Event::ClientAck
        }
    }

    /// What a host's segment with these control bits means.
    #[must_use]
    pub const fn from_host(flags: TcpFlags) -> Event {
        if flags.contains(TcpFlags::RST) {
            Event::HostRst
        } else if flags.contains(TcpFlags::FIN) {
            Event::HostFin
        } else {
            Event::HostAck
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole machine, so that a change of it is seen in review.
    #[test]
    fn r8_table_of_transitions() {
        let mut table = String::new();
        for state in State::ALL {
            table += &format!("{:>13}:", state.name());
            for event in Event::ALL {
                table += &format!(" {event:?}->{}", state.after(event).name());
            }
            table += "\n";
        }
        let expected = "    half_open: ClientAck->established ClientFin->client_closed ClientRst->reset HostAck->established HostFin->host_closed HostRst->reset
  established: ClientAck->established ClientFin->client_closed ClientRst->reset HostAck->established HostFin->host_closed HostRst->reset
  host_closed: ClientAck->host_closed ClientFin->closed ClientRst->reset HostAck->host_closed HostFin->host_closed HostRst->reset
client_closed: ClientAck->client_closed ClientFin->client_closed ClientRst->reset HostAck->client_closed HostFin->closed HostRst->reset
       closed: ClientAck->closed ClientFin->closed ClientRst->reset HostAck->closed HostFin->closed HostRst->reset
        reset: ClientAck->reset ClientFin->reset ClientRst->reset HostAck->established HostFin->host_closed HostRst->reset
";
        assert_eq!(table, expected, "\n{table}");
    }

    #[test]
    fn numbers_and_states_agree() {
        for state in State::ALL {
            assert_eq!(State::from_u8(state as u8), Some(state));
        }
        assert_eq!(State::from_u8(0), None);
    }
}
