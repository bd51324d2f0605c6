//! What is on the screen: what the daemon answered, which table has the focus, how each is sorted,
//! and what keys change of that. Never draws, and never asks the daemon.

use std::path::{Path, PathBuf};

use super::data::{Round, Rounds};
use super::table::{Order, Row, Subject};

/// Characters of a filter, at most.
const FILTER_MAX: usize = 64;

/// A key that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Ends what is typed.
    Enter,
    /// Takes it back.
    Escape,
    /// The last character is not meant.
    Backspace,
    /// To the next table, or the one before.
    Next,
    /// The same backwards.
    Previous,
    /// So many rows down, or up.
    Scroll(isize),
    /// To the first row.
    Home,
    /// To the last row.
    End,
    /// To the end, whatever is being typed.
    Quit,
}

/// What is on the screen.
#[derive(Debug)]
pub struct Screen {
    /// The daemon's control socket.
    pub socket: PathBuf,
    /// What it answered.
    pub rounds: Rounds,
    /// Why it does not answer, if it does not.
    pub trouble: Option<String>,
    /// Nothing new is shown.
    pub is_paused: bool,
    /// The table that keys are about.
    pub focus: Subject,
    /// It is shown alone.
    pub is_alone: bool,
    /// What a row has in it that is shown.
    pub filter: String,
    /// That is being typed.
    pub is_typing: bool,
    /// The keys are explained.
    pub is_help: bool,
    orders: [Order; Subject::ALL.len()],
    /// The first row that is shown.
    offsets: [usize; Subject::ALL.len()],
}

impl Screen {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(socket: &Path) -> Screen {
        Screen {
            socket: socket.to_owned(),
            rounds: Rounds::default(),
            trouble: None,
            is_paused: false,
            focus: Subject::Workers,
            is_alone: false,
            filter: String::new(),
            is_typing: false,
            is_help: false,
            orders: Subject::ALL.map(Subject::order),
            offsets: [0; Subject::ALL.len()],
        }
    }

    /// Whether sessions are shown: only then they are to be asked for.
    #[must_use]
    pub fn wants_sessions(&self) -> bool {
        self.focus == Subject::Sessions
    }

    /// Shows the rows that have this in them, as far as it is no longer than one that is typed.
    pub fn set_filter(&mut self, filter: &str) {
        self.filter = filter.chars().filter(|c| !c.is_control()).take(FILTER_MAX).collect();
    }

    /// Takes what the daemon answered, or why it did not.
    pub fn take(&mut self, answered: Result<Round, String>) {
        match answered {
            Ok(round) => {
                self.rounds.push(round);
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// What a table is sorted by.
    #[must_use]
    pub fn order(&self, subject: Subject) -> Order {
        self.orders[subject as usize]
    }

    /// Its rows, from the first that is shown to the last.
    #[must_use]
    pub fn rows(&self, subject: Subject) -> Vec<Row> {
        subject.rows(&self.rounds, self.order(subject), &self.filter)
    }

    /// The first row to be shown of `count`, of which `shown` fit.
    #[must_use]
    pub fn offset(&self, subject: Subject, count: usize, shown: usize) -> usize {
        self.offsets[subject as usize].min(count.saturating_sub(shown))
    }

    /// Does what a key asks for. Returns whether that is the end.
    pub fn press(&mut self, key: Key) -> bool {
        if key == Key::Quit {
            return true;
        }
        if self.is_typing {
            self.type_filter(key);
            return false;
        }
        if self.is_help {
            self.is_help = false;
            return key == Key::Char('q');
        }
        match key {
            Key::Char('q') => return true,
            Key::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            Key::Char('?' | 'h') => self.is_help = true,
            Key::Char('/' | 'f') => self.is_typing = true,
            Key::Char('s') => self.sort_by_next(),
            Key::Char('r') => {
                let order = &mut self.orders[self.focus as usize];
                order.is_descending = !order.is_descending;
            }
            Key::Enter => self.is_alone = !self.is_alone,
            Key::Escape => {
                self.is_alone = false;
                self.filter.clear();
            }
            Key::Next => self.step_focus(1),
            Key::Previous => self.step_focus(Subject::ALL.len() - 1),
            Key::Scroll(rows) => self.scroll(|offset| offset.saturating_add_signed(rows)),
            Key::Home => self.scroll(|_| 0),
            Key::End => self.scroll(|_| usize::MAX),
            Key::Char(_) | Key::Backspace | Key::Quit => {}
        }
        false
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Enter => self.is_typing = false,
            Key::Escape => {
                self.is_typing = false;
                self.filter.clear();
            }
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Char(typed) if self.filter.chars().count() < FILTER_MAX => self.filter.push(typed),
            _ => {}
        }
    }

    fn sort_by_next(&mut self) {
        let order = &mut self.orders[self.focus as usize];
        order.column = (order.column + 1) % self.focus.columns().len();
    }

    fn step_focus(&mut self, by: usize) {
        self.focus = Subject::ALL[(self.focus as usize + by) % Subject::ALL.len()];
    }

    fn scroll(&mut self, to: impl Fn(usize) -> usize) {
        // Beyond the last row it does not go.
        let last = self.rows(self.focus).len().saturating_sub(1);
        let offset = &mut self.offsets[self.focus as usize];
        *offset = to(*offset).min(last);
    }
}
