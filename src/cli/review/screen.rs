//! Takes the terminal for the full screen, and gives it back on every way out.

use std::io::{self, Stdout, stdout};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use draftq::LibrarianError;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, DisableBracketedPaste, EnableBracketedPaste};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

use super::super::failure::Failure;
use super::super::terminal::uses_colour;
use super::app::{App, Request};
use super::draw::{Colours, draw};
use super::edit::{PrivateFile, run_editor};
use super::sixteen::Sixteen;

/// How often signals and the open draft are looked at while no key is pressed.
const WAIT: Duration = Duration::from_millis(200);

/// How long the program may take to end after a signal, before it is ended by force.
const FORCE_AFTER: Duration = Duration::from_secs(2);

/// The signals that end a review.
#[derive(Clone, Default)]
pub struct Signals {
    ended_by: Arc<AtomicI32>,
    is_editing: Arc<AtomicBool>,
    /// A directory to remove if the program is ended by force.
    private: Arc<Mutex<Option<PathBuf>>>,
}

impl Signals {
    /// Listen for the signals from now on.
    pub fn listen() -> Result<Self, Failure> {
        let listening = Self::default();
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP])
            .map_err(LibrarianError::from)?;
        let own = listening.clone();
        let wait = move || {
            for signal in signals.forever() {
                // A key in the editor sends these to this program, too.
                let is_key = signal == SIGINT || signal == SIGQUIT;
                if is_key && own.is_editing.load(Ordering::SeqCst) {
                    continue;
                }
                own.ended_by.store(signal, Ordering::SeqCst);
                let own = own.clone();
                thread::spawn(move || own.end_by_force(signal));
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)
            .map_err(LibrarianError::from)?;
        Ok(listening)
    }

    /// The signal that asked this program to end.
    pub fn ended_by(&self) -> Option<i32> {
        Some(self.ended_by.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// As long as the result lives, an editor has the terminal.
    pub fn editing(&self) -> impl Drop + use<> {
        struct Editing(Arc<AtomicBool>);
        impl Drop for Editing {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        self.is_editing.store(true, Ordering::SeqCst);
        Editing(Arc::clone(&self.is_editing))
    }

    /// Remove this directory if the program is ended by force.
    pub fn remove_when_forced(&self, directory: Option<PathBuf>) {
        *self.private.lock().unwrap_or_else(PoisonError::into_inner) = directory;
    }

    /// End the program if it has not ended by itself: a terminal that is gone may block it.
    fn end_by_force(&self, signal: i32) {
        thread::sleep(FORCE_AFTER);
        restore();
        if let Some(path) = self.private.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = std::fs::remove_dir_all(path);
        }
        std::process::exit(128 + signal);
    }
}

type Screen = Terminal<CrosstermBackend<Sixteen<Stdout>>>;

/// The terminal with the full screen. It is given back when this is dropped.
struct Full(Screen);

impl Full {
    fn enter() -> io::Result<Self> {
        enable_raw_mode()?;
        let entered = execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste)
            .and_then(|()| Terminal::new(CrosstermBackend::new(Sixteen::new(stdout()))));
        match entered {
            Ok(mut terminal) => {
                terminal.clear()?;
                Ok(Self(terminal))
            }
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        restore();
    }
}

/// Give the terminal back. Errors cannot be reported: the terminal may be gone.
fn restore() {
    let _ = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// Give the terminal back before the message of a panic is written.
fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

/// Show the screen until the person quits, or a signal ends it. Returns the signal.
pub fn run(app: &mut App) -> Result<Option<i32>, Failure> {
    let signals = Signals::listen()?;
    restore_on_panic();
    let colours = Colours { used: uses_colour(&stdout()) };
    let mut full = Full::enter()?;
    let mut is_dirty = true;
    loop {
        if let Some(signal) = signals.ended_by() {
            return Ok(Some(signal));
        }
        if is_dirty {
            full.0.draw(|frame| draw(frame, app, colours))?;
        }
        let wait = if app.goes_to_end { Duration::ZERO } else { WAIT };
        if !event::poll(wait)? {
            is_dirty = app.tick();
            continue;
        }
        is_dirty = true;
        match app.handle(&event::read()?) {
            None => {}
            Some(Request::Quit) => return Ok(None),
            Some(Request::Redraw) => full.0.clear()?,
            Some(Request::Suspend) => {
                drop(full);
                signal_hook::low_level::emulate_default_handler(SIGTSTP)?;
                full = Full::enter()?;
            }
            Some(Request::Edit) => {
                drop(full);
                edit(app, &signals);
                full = Full::enter()?;
            }
        }
    }
}

/// Open the draft in the editor, and replace it by what the person wrote.
fn edit(app: &mut App, signals: &Signals) {
    let (seen, old, text) = match app.text_to_edit() {
        Ok(Some(open)) => open,
        Ok(None) => return,
        Err(error) => return app.report(Err(error)),
    };
    let name = format!("draft-{}.md", seen.id);
    let file = match PrivateFile::new(&name, &text, signals) {
        Ok(file) => file,
        Err(error) => {
            app.message = format!("cannot create a file for the editor: {error}");
            return;
        }
    };
    let edited = run_editor(file.path(), signals)
        .and_then(|()| file.read(app.store.max_text_bytes().saturating_add(1)));
    file.remove(signals);
    match edited {
        Ok(edited) => app.replace(seen, &old, edited),
        Err(problem) => app.message = format!("{problem}; nothing was made"),
    }
}
