//! The terminal: what is typed there and what is drawn, until the end, when it is as it was.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::data::Round;
use super::screen::{Key, Screen};
use super::view::render;
use crate::client::Connection;

/// Pause between two rounds of requests, at least: the daemon is not to be busy with them.
pub const PAUSE: Duration = Duration::from_secs(1);
/// Longest time until what is not typed is noticed.
const TURN: Duration = Duration::from_millis(100);
/// Rows of a page.
const PAGE: isize = 10;

/// Draws `screen` again and again, with what the daemon answers, until a key or a signal ends that.
///
/// # Errors
/// When the terminal is none that can be drawn on.
pub fn run(screen: Screen) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(&stop))?;
    }
    // A panic restores the terminal before it is reported.
    let terminal = ratatui::try_init()?;
    let outcome = follow(screen, terminal, &stop);
    let restored = ratatui::try_restore();
    outcome.and(restored)
}

/// What is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    rounds: bool,
    sessions: bool,
}

impl Wanted {
    fn by(screen: &Screen) -> Wanted {
        Wanted { rounds: !screen.is_paused, sessions: screen.wants_sessions() }
    }
}

fn follow(mut screen: Screen, mut terminal: DefaultTerminal, stop: &AtomicBool) -> io::Result<()> {
    let mut wanted = Wanted::by(&screen);
    let (to_poller, orders) = mpsc::channel();
    let (answers, from_poller) = mpsc::sync_channel(1);
    let connection = Connection::new(&screen.socket);
    // A thread of its own, for a daemon may take its time. It is left behind at the end.
    std::thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || poll(connection, wanted, &orders, &answers))?;
    let mut drawn: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        // The age of what is shown changes by itself.
        if drawn.is_none_or(|at| at.elapsed() >= PAUSE) {
            terminal.draw(|frame| {
                render(&screen, SystemTime::now(), frame.area(), frame.buffer_mut());
            })?;
            drawn = Some(Instant::now());
        }
        if event::poll(TURN)? {
            // Of another size, too, it is drawn anew.
            drawn = None;
            if meant(event::read()?).is_some_and(|key| screen.press(key)) {
                break;
            }
        }
        match from_poller.try_recv() {
            // What was asked before the pause does not come in it.
            Ok(_) if screen.is_paused => {}
            Ok(answered) => {
                screen.take(answered);
                drawn = None;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break,
        }
        let wants = Wanted::by(&screen);
        if wants != wanted {
            wanted = wants;
            // Without it there is the end above.
            let _ = to_poller.send(wants);
        }
    }
    Ok(())
}

type Answered = Result<Round, String>;

/// Asks for rounds until nobody takes them any more. Between two of them passes [`PAUSE`], or as
/// much time as the last one took; with other wishes it asks at once.
fn poll(
    mut connection: Connection,
    mut wanted: Wanted,
    orders: &Receiver<Wanted>,
    answers: &SyncSender<Answered>,
) {
    loop {
        let mut pause = PAUSE;
        if wanted.rounds {
            let began = Instant::now();
            let round = Round::ask(&mut connection, wanted.sessions);
            if answers.send(round.map_err(|error| error.to_string())).is_err() {
                return;
            }
            pause = pause.max(began.elapsed());
        }
        match orders.recv_timeout(pause) {
            Ok(order) => wanted = order,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What a key means; `None` when it means nothing.
fn meant(event: Event) -> Option<Key> {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
        return None;
    };
    Some(match code {
        // The terminal makes no signal of it.
        KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char(_) if modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => {
            return None;
        }
        KeyCode::Char(typed) => Key::Char(typed),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab | KeyCode::Right => Key::Next,
        KeyCode::BackTab | KeyCode::Left => Key::Previous,
        KeyCode::Up => Key::Scroll(-1),
        KeyCode::Down => Key::Scroll(1),
        KeyCode::PageUp => Key::Scroll(-PAGE),
        KeyCode::PageDown => Key::Scroll(PAGE),
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}
