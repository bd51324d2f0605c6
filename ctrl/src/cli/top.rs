//! `top`.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::time::SystemTime;

use clap::Args;
use thiserror::Error;

use super::{Daemon, Failure, print};
use crate::client::Connection;
use crate::top::data::Round;
use crate::top::{Screen, Subject, frame, terminal};

/// Columns and lines of a frame, at most.
const SIZE_MAX: u16 = 500;

/// Watch what the daemon does, live: rates, workers, peers, sessions and incidents. ? explains the
/// keys.
#[derive(Debug, Args)]
pub struct Top {
    /// Print one frame as plain text instead, after a second, which rates need.
    #[arg(long)]
    once: bool,
    /// Columns and lines of that frame.
    #[arg(long, value_name = "COLUMNSxLINES", default_value_t = Size { width: 80, height: 24 }, requires = "once")]
    size: Size,
    /// Begin with this table alone: workers, peers, sessions or incidents.
    #[arg(long, value_name = "TABLE")]
    table: Option<Subject>,
    /// Begin with the rows that have this text in them.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,
}

/// Columns and lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    width: u16,
    height: u16,
}

/// Why a text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected columns and lines from 1 to {SIZE_MAX} each, as in 80x24")]
struct SizeError;

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let number = |text: &str| {
            let number = text.parse().ok().filter(|number| (1..=SIZE_MAX).contains(number));
            number.ok_or(SizeError)
        };
        let (width, height) = text.split_once('x').ok_or(SizeError)?;
        Ok(Size { width: number(width)?, height: number(height)? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl Top {
    pub(super) fn run(&self, daemon: &Daemon) -> Result<(), Failure> {
        if daemon.json {
            let message = "top is for people: `show stats` and the others have --json";
            return Err(Failure::Usage(message.to_owned()));
        }
        let mut screen = Screen::new(&daemon.socket);
        if let Some(table) = self.table {
            (screen.focus, screen.is_alone) = (table, true);
        }
        screen.set_filter(&self.filter);
        if self.once {
            return self.print_frame(screen);
        }
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            let message = "top needs a terminal; --once prints one frame without one";
            return Err(Failure::Usage(message.to_owned()));
        }
        Ok(terminal::run(screen)?)
    }

    fn print_frame(&self, mut screen: Screen) -> Result<(), Failure> {
        let mut connection = Connection::new(&screen.socket);
        screen.take(Ok(Round::ask(&mut connection, screen.wants_sessions())?));
        std::thread::sleep(terminal::PAUSE);
        screen.take(Ok(Round::ask(&mut connection, screen.wants_sessions())?));
        let Size { width, height } = self.size;
        print(&frame(&screen, SystemTime::now(), width, height))
    }
}
