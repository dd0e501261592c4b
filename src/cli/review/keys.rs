//! Which key does what.

use draftq::DraftProcessingDecision as Decision;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::actions::Verdict;
use super::detail::View;

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Next,
    Previous,
    First,
    Last,
    ScrollLines(isize),
    ScrollPages(isize),
    NextView,
    PreviousView,
    Show(View),
    Decide { verdict: Verdict, with_note: bool },
    Edit,
    Undo,
    Filter,
    Search,
    NextMatch,
    PreviousMatch,
    Help,
    Cancel,
    Redraw,
    Suspend,
    Quit,
}

/// The keys and what they do, for the help.
pub const HELP: &[(&str, &str)] = &[
    ("a s f x", "accept, skip, fail, quarantine the draft"),
    ("r", "requeue: back to pending, for a processor"),
    ("A S F X R", "the same, with a note"),
    ("e", "edit the text: a new draft replaces this one"),
    ("u", "undo the last decision of this review"),
    ("", ""),
    ("down up, j k", "next or previous draft"),
    ("Home End, g G", "first or last draft"),
    ("Space b, PgDn PgUp", "scroll the draft by a page"),
    ("J K", "scroll the draft by a line"),
    ("Tab, 1 2 3", "show the text, the details, the history"),
    ("v", "show one state only, then the next, then all"),
    ("/ n N", "search in the list; next or previous match"),
    ("Ctrl-L, Ctrl-Z", "draw the screen again; suspend"),
    ("? q", "this help; quit (Ctrl-C too)"),
];

/// The most important keys, for the last line of the screen.
pub const SHORT_HELP: &str =
    "?:help q:quit  a:accept s:skip f:fail x:quarantine r:requeue e:edit u:undo";

/// What this key does on the main screen.
pub fn command(key: KeyEvent) -> Option<Command> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Some(Command::Quit),
            KeyCode::Char('l') => Some(Command::Redraw),
            KeyCode::Char('z') => Some(Command::Suspend),
            _ => None,
        };
    }
    if key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SUPER | KeyModifiers::META) {
        return None;
    }
    let decide = |verdict, with_note| Command::Decide { verdict, with_note };
    let decision = |decision, with_note| decide(Verdict::Decide(decision), with_note);
    Some(match key.code {
        KeyCode::Char('a') => decision(Decision::Accepted, false),
        KeyCode::Char('A') => decision(Decision::Accepted, true),
        KeyCode::Char('s') => decision(Decision::Skipped, false),
        KeyCode::Char('S') => decision(Decision::Skipped, true),
        KeyCode::Char('f') => decision(Decision::Failed, false),
        KeyCode::Char('F') => decision(Decision::Failed, true),
        KeyCode::Char('x') => decision(Decision::Quarantined, false),
        KeyCode::Char('X') => decision(Decision::Quarantined, true),
        KeyCode::Char('r') => decide(Verdict::Requeue, false),
        KeyCode::Char('R') => decide(Verdict::Requeue, true),
        KeyCode::Char('e') => Command::Edit,
        KeyCode::Char('u') => Command::Undo,
        KeyCode::Char('j') | KeyCode::Down => Command::Next,
        KeyCode::Char('k') | KeyCode::Up => Command::Previous,
        KeyCode::Char('g') | KeyCode::Home => Command::First,
        KeyCode::Char('G') | KeyCode::End => Command::Last,
        KeyCode::Char(' ') | KeyCode::PageDown => Command::ScrollPages(1),
        KeyCode::Char('b') | KeyCode::PageUp => Command::ScrollPages(-1),
        KeyCode::Char('J') => Command::ScrollLines(1),
        KeyCode::Char('K') => Command::ScrollLines(-1),
        KeyCode::Tab => Command::NextView,
        KeyCode::BackTab => Command::PreviousView,
        KeyCode::Char('1') => Command::Show(View::Text),
        KeyCode::Char('2') => Command::Show(View::Details),
        KeyCode::Char('3') => Command::Show(View::History),
        KeyCode::Char('v') => Command::Filter,
        KeyCode::Char('/') => Command::Search,
        KeyCode::Char('n') => Command::NextMatch,
        KeyCode::Char('N') => Command::PreviousMatch,
        KeyCode::Char('?') => Command::Help,
        KeyCode::Char('q') => Command::Quit,
        KeyCode::Esc => Command::Cancel,
        _ => return None,
    })
}
