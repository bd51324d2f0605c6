//! Answers of many lines: items as they come, bounded in time, count and rate. Never keeps more
//! for a client than one buffer: who does not read makes his own source overflow, and is told how
//! much he missed.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::counters::{ControlCounters, Seat, add};
use super::{TURN, write_line};
use crate::protocol::{
    ErrorCode, ProtocolError, StreamBounds, StreamEnd, StreamReply, item_line, missed_line,
};

/// Streams that are under way at once; one more is told `busy`.
pub const STREAMS_MAX: u64 = 8;
/// Most items in a second of one stream; a source with more waits.
pub const ITEMS_PER_S_MAX: u64 = 20_000;

/// Bytes of items that are gathered before they are sent.
const BUFFER: usize = 32 * 1024;
/// Items may come in bursts of so much time at the greatest rate.
const BURST: Duration = Duration::from_millis(100);
const PER_ITEM: Duration = Duration::from_nanos(1_000_000_000 / ITEMS_PER_S_MAX);

/// What a client who asked is given besides the answer: a stream of items before it, when the
/// command has one.
pub struct Stream<'a> {
    pub(super) client: &'a UnixStream,
    pub(super) stop: &'a AtomicBool,
    pub(super) counters: &'a ControlCounters,
    /// Why nothing can be sent any more.
    pub(super) lost: Option<io::Error>,
}

impl Stream<'_> {
    /// Runs a stream: `source` sends items until it has no more, or is told by an error that the
    /// stream ends, which it passes on. Gives what the last line says.
    ///
    /// # Errors
    /// The refusal to send back when there are too many streams.
    pub fn run(
        &mut self,
        bounds: StreamBounds,
        source: impl FnOnce(&mut Items<'_>) -> Result<(), StreamEnd>,
    ) -> Result<StreamReply, ProtocolError> {
        let counters = self.counters;
        let Some(_seat) = Seat::take(&counters.streams_now, STREAMS_MAX) else {
            add(&counters.streams_refused, 1);
            let message = format!("{STREAMS_MAX} streams are under way; try again");
            return Err(ProtocolError::new(ErrorCode::Busy, message));
        };
        add(&counters.streams, 1);
        let mut items = Items {
            client: self.client,
            stop: self.stop,
            counters,
            buffer: Vec::with_capacity(BUFFER),
            deadline: Instant::now() + bounds.duration(),
            left: bounds.count(),
            next: Instant::now(),
            lost: None,
            reply: StreamReply { items: 0, missed: 0, ended: StreamEnd::Done },
        };
        let ended = source(&mut items).err();
        let flushed = items.flush().err();
        items.reply.ended = ended.or(flushed).unwrap_or(StreamEnd::Done);
        self.lost = items.lost;
        Ok(items.reply)
    }
}

/// Where a source puts its items.
pub struct Items<'a> {
    client: &'a UnixStream,
    stop: &'a AtomicBool,
    counters: &'a ControlCounters,
    /// Lines that are to be sent.
    buffer: Vec<u8>,
    deadline: Instant,
    /// Items that may still be sent.
    left: u64,
    /// When the next item may be sent; in the past when few were.
    next: Instant,
    lost: Option<io::Error>,
    reply: StreamReply,
}

impl Items<'_> {
    /// Sends an item; waits when the client is slow, or items are too many.
    ///
    /// # Errors
    /// Why the stream ends.
    pub fn send<T: Serialize>(&mut self, item: &T) -> Result<(), StreamEnd> {
        let now = Instant::now();
        // Never further back than a burst.
        self.next = self.next.max(now.checked_sub(BURST).unwrap_or(now)) + PER_ITEM;
        while let left = self.next.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            self.wait(left)?;
        }
        self.push(item_line(item))?;
        self.reply.items += 1;
        add(&self.counters.items, 1);
        self.left -= 1;
        if self.left == 0 { Err(StreamEnd::Count) } else { Ok(()) }
    }

    /// Tells the client that the source had `count` more items than could be kept for him; says
    /// nothing of none.
    ///
    /// # Errors
    /// Why the stream ends.
    pub fn missed(&mut self, count: u64) -> Result<(), StreamEnd> {
        if count == 0 {
            return Ok(());
        }
        self.reply.missed += count;
        add(&self.counters.items_missed, count);
        self.push(missed_line(count))
    }

    /// Sends what was gathered, and waits for `pause`, or until the stream ends.
    ///
    /// # Errors
    /// Why the stream ends.
    pub fn wait(&mut self, pause: Duration) -> Result<(), StreamEnd> {
        self.flush()?;
        let end = (Instant::now() + pause).min(self.deadline);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(StreamEnd::Stopped);
            }
            let now = Instant::now();
            if now >= self.deadline {
                return Err(StreamEnd::Time);
            }
            if now >= end {
                return Ok(());
            }
            if self.has_left((end - now).min(TURN)) {
                return Err(self.lost(ErrorKind::BrokenPipe.into()));
            }
        }
    }

    /// Whether the client closes within this time. One that only sends no more is still there.
    fn has_left(&self, within: Duration) -> bool {
        let mut client = [PollFd::new(self.client, PollFlags::empty())];
        let Ok(within) = Timespec::try_from(within) else {
            return false;
        };
        match poll(&mut client, Some(&within)) {
            Ok(_) => client[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
            Err(Errno::INTR) => false,
            Err(_) => true,
        }
    }

    fn push(&mut self, line: String) -> Result<(), StreamEnd> {
        self.buffer.extend_from_slice(line.as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() < BUFFER { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), StreamEnd> {
        if self.lost.is_some() {
            return Err(StreamEnd::Lost);
        }
        let written = write_line(self.client, &self.buffer, self.stop);
        self.buffer.clear();
        written.map_err(|error| self.lost(error))
    }

    fn lost(&mut self, error: io::Error) -> StreamEnd {
        self.lost = Some(error);
        StreamEnd::Lost
    }
}
