//! What the screen shows, and how it reacts to keys.

use std::time::{Duration, Instant};

use draftq::{DraftId, DraftState, DraftStore, LibrarianError, OperatorMove, SeenDraft};
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::super::wording::count;
use super::actions::Verdict;
use super::detail::{Detail, View};
use super::entries::Entries;
use super::keys::{self, Command};

/// How often the open draft is read again, to notice that another process changed it.
const REFRESH: Duration = Duration::from_secs(1);

/// A line of input.
pub enum Prompt {
    /// The note of a decision about the draft as it was seen when the note was begun.
    Note {
        verdict: Verdict,
        seen: SeenDraft,
    },
    Search,
}

/// What the caller has to do, because it owns the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Edit,
    Redraw,
    Suspend,
    Quit,
}

/// A finished move, which can be undone.
pub struct Done {
    pub made: OperatorMove,
    pub verdict: Option<Verdict>,
}

pub struct App {
    pub store: DraftStore,
    /// The name that signs.
    pub by: String,
    /// The states of the selection, and the one that alone is shown.
    pub states: Vec<DraftState>,
    pub only: Option<DraftState>,
    pub entries: Entries,
    /// The selection without the filter of a state, to load it again.
    pub query: draftq::DraftQuery,
    pub limit: Option<usize>,
    pub cursor: usize,
    pub detail: Option<Detail>,
    pub view: View,
    /// The first visible line of the view.
    pub scroll: usize,
    /// How many lines of the view are visible; known once it was drawn.
    pub visible: usize,
    pub message: String,
    pub prompt: Option<(Prompt, String)>,
    pub search: String,
    pub shows_help: bool,
    /// Whether the draft cannot be seen. Then no key decides.
    pub is_too_small: bool,
    /// Whether the rest of the list is being loaded, to go to its end.
    pub goes_to_end: bool,
    pub done: Vec<Done>,
    /// A corrected text that could not be submitted, and its draft.
    pub kept_edit: Option<(DraftId, String)>,
    refreshed: Instant,
}

impl App {
    pub fn new(
        store: DraftStore,
        entries: Entries,
        states: Vec<DraftState>,
        by: String,
        query: draftq::DraftQuery,
        limit: Option<usize>,
    ) -> Self {
        let mut app = Self {
            store,
            by,
            states,
            only: None,
            entries,
            query,
            limit,
            cursor: 0,
            detail: None,
            view: View::Text,
            scroll: 0,
            visible: 1,
            message: String::new(),
            prompt: None,
            search: String::new(),
            shows_help: false,
            is_too_small: false,
            goes_to_end: false,
            done: Vec::new(),
            kept_edit: None,
            refreshed: Instant::now(),
        };
        app.open();
        app
    }

    /// React to an event of the terminal.
    pub fn handle(&mut self, event: &Event) -> Option<Request> {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.handle_key(*key),
            Event::Paste(text) => {
                match &mut self.prompt {
                    Some((_, input)) => {
                        input.extend(text.chars().filter(|c| !c.is_control()));
                    }
                    // A pasted text must not be taken for keys that decide.
                    None => self.message = "pasted text was ignored".to_owned(),
                }
                None
            }
            _ => None,
        }
    }

    fn handle_key(&mut self, key: KeyEvent) -> Option<Request> {
        self.goes_to_end = false;
        if self.is_too_small {
            return match keys::command(key) {
                Some(Command::Quit) => Some(Request::Quit),
                _ => None,
            };
        }
        if self.prompt.is_some() {
            self.type_into_prompt(key);
            return None;
        }
        if self.shows_help {
            self.shows_help = false;
            return match keys::command(key) {
                Some(Command::Quit) if key.code != KeyCode::Char('q') => Some(Request::Quit),
                _ => None,
            };
        }
        self.message.clear();
        let command = keys::command(key);
        if command.is_none() {
            self.message = "this key does nothing; press ? for help".to_owned();
        }
        self.act(command?)
    }

    fn act(&mut self, command: Command) -> Option<Request> {
        match command {
            Command::Next => self.go_to(self.cursor + 1),
            Command::Previous => self.go_to(self.cursor.saturating_sub(1)),
            Command::First => self.go_to(0),
            Command::Last => {
                self.goes_to_end = self.entries.has_more();
                self.go_to(self.entries.rows().len());
            }
            Command::ScrollLines(lines) => self.scroll_by(lines),
            Command::ScrollPages(pages) => {
                let page = isize::try_from(self.visible.max(2) - 1).unwrap_or(1);
                self.scroll_by(pages * page);
            }
            Command::NextView => self.show(self.view_after(1)),
            Command::PreviousView => self.show(self.view_after(View::ALL.len() - 1)),
            Command::Show(view) => self.show(view),
            Command::Decide { verdict, with_note } => self.decide_or_ask(verdict, with_note),
            Command::Edit => {
                if self.detail.is_some() && self.is_still_as_seen() {
                    return Some(Request::Edit);
                }
            }
            Command::Undo => self.undo(),
            Command::Filter => self.filter_next_state(),
            Command::Search => self.prompt = Some((Prompt::Search, String::new())),
            Command::NextMatch => self.find(true),
            Command::PreviousMatch => self.find(false),
            Command::Help => self.shows_help = true,
            Command::Cancel => self.search.clear(),
            Command::Redraw => return Some(Request::Redraw),
            Command::Suspend => return Some(Request::Suspend),
            Command::Quit => return Some(Request::Quit),
        }
        None
    }

    fn type_into_prompt(&mut self, key: KeyEvent) {
        let Some((_, input)) = &mut self.prompt else { return };
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        // A terminal sends Alt with a key as Escape before the key.
        let has_escape = key.code == KeyCode::Esc || key.modifiers.contains(KeyModifiers::ALT);
        match key.code {
            _ if has_escape => self.prompt = None,
            KeyCode::Char('c') if control => self.prompt = None,
            KeyCode::Char('u') if control => input.clear(),
            KeyCode::Char('w') if control => {
                let kept = input.trim_end().rfind(' ').map_or(0, |blank| blank + 1);
                input.truncate(kept);
            }
            KeyCode::Backspace => {
                input.pop();
            }
            KeyCode::Char(c) if !control && !c.is_control() => input.push(c),
            KeyCode::Enter => {
                let Some((prompt, input)) = self.prompt.take() else { return };
                match prompt {
                    Prompt::Note { verdict, seen } => {
                        let note = input.trim();
                        self.decide(verdict, seen, Some(note).filter(|note| !note.is_empty()));
                    }
                    Prompt::Search => {
                        self.search = input.to_lowercase();
                        self.find(true);
                    }
                }
            }
            _ => {}
        }
    }

    /// Do what time has come for. Returns whether anything may have changed on the screen.
    pub fn tick(&mut self) -> bool {
        if self.goes_to_end {
            let loaded = self.entries.load_more(&self.store);
            self.report(loaded);
            self.goes_to_end = self.goes_to_end && self.entries.has_more();
            self.go_to(self.entries.rows().len());
            return true;
        }
        if self.refreshed.elapsed() < REFRESH || self.prompt.is_some() {
            return false;
        }
        self.refreshed = Instant::now();
        let Some(detail) = &self.detail else { return false };
        let seen = detail.seen();
        match self.store.record(seen.id) {
            Ok((_, events)) if events.last().is_some_and(|it| it.seq == seen.last_event) => false,
            // An error of this read is shown when a key needs the draft.
            Err(error) if !matches!(error, LibrarianError::UnknownDraft { .. }) => false,
            _ => {
                self.reopen_changed(seen.id);
                true
            }
        }
    }

    /// Open the draft under the cursor.
    pub fn open(&mut self) {
        self.scroll = 0;
        let Some(entry) = self.entries.rows().get(self.cursor) else {
            self.detail = None;
            return;
        };
        let (id, state) = (entry.id, entry.state);
        match Detail::load(&self.store, id) {
            Ok(mut detail) => {
                if detail.state != state {
                    self.say_changed(id, detail.state);
                    detail.has_changed = true;
                    self.set_state(id, detail.state);
                }
                self.detail = Some(detail);
            }
            Err(error) => {
                self.detail = None;
                self.message = error.to_string();
            }
        }
    }

    /// Read the open draft again, because it is not as it was seen.
    pub fn reopen_changed(&mut self, id: DraftId) {
        let scroll = self.scroll;
        match Detail::load(&self.store, id) {
            Ok(mut detail) => {
                self.say_changed(id, detail.state);
                detail.has_changed = true;
                self.set_state(id, detail.state);
                self.detail = Some(detail);
            }
            Err(error) => {
                self.detail = None;
                self.message = error.to_string();
            }
        }
        self.scroll = scroll;
    }

    fn say_changed(&mut self, id: DraftId, state: DraftState) {
        let note = match state {
            DraftState::Processing => "a runner works on it",
            _ => "nothing was overwritten",
        };
        self.message = format!("{id} changed in the meantime: it is {state} now; {note}");
    }

    /// Whether the open draft is as the person saw it. The first key after a change only says so.
    pub fn is_still_as_seen(&mut self) -> bool {
        let Some(detail) = &mut self.detail else { return false };
        if !detail.has_changed {
            return true;
        }
        detail.has_changed = false;
        let (id, state) = (detail.id, detail.state);
        self.message = format!(
            "{id} changed in the meantime: it is {state} now; press the key again to go on"
        );
        false
    }

    pub fn set_state(&mut self, id: DraftId, state: DraftState) {
        if let Some(entry) = self.entries.position(id).and_then(|at| self.entries.at(at)) {
            entry.state = state;
        }
    }

    pub fn go_to(&mut self, index: usize) {
        let loaded = self.entries.load_near(&self.store, index);
        self.report(loaded);
        let index = index.min(self.entries.rows().len().saturating_sub(1));
        if index != self.cursor || self.detail.is_none() {
            self.cursor = index;
            self.open();
        }
    }

    /// Go to the next draft that is not decided yet, if there is one.
    pub fn go_to_next_open(&mut self) {
        let loaded = self.entries.load_near(&self.store, self.cursor + 1);
        self.report(loaded);
        let rows = self.entries.rows();
        let open = |index: &usize| rows.get(*index).is_some_and(|entry| !entry.is_decided());
        let next = (self.cursor + 1..rows.len()).find(open).or_else(|| (0..self.cursor).find(open));
        match next {
            Some(index) => {
                let message = std::mem::take(&mut self.message);
                self.cursor = index;
                self.open();
                // What was done comes first, unless the next draft has changed.
                if self.message.is_empty() {
                    self.message = message;
                }
            }
            None => {
                self.message.push_str("; that was the last one");
                self.reopen();
            }
        }
    }

    /// Read the open draft again after a move of this review.
    pub fn reopen(&mut self) {
        if let Some(id) = self.entries.rows().get(self.cursor).map(|entry| entry.id) {
            match Detail::load(&self.store, id) {
                Ok(detail) => self.detail = Some(detail),
                Err(error) => self.report(Err(error)),
            }
        }
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.scroll = 0;
    }

    fn view_after(&self, steps: usize) -> View {
        let at = View::ALL.iter().position(|view| *view == self.view).unwrap_or_default();
        View::ALL[(at + steps) % View::ALL.len()]
    }

    fn scroll_by(&mut self, lines: isize) {
        // The drawing limits it to the length of the text.
        self.scroll = self.scroll.saturating_add_signed(lines);
    }

    fn find(&mut self, forward: bool) {
        if self.search.is_empty() {
            self.message = "nothing to search for; begin with /".to_owned();
            return;
        }
        let rows = self.entries.rows();
        let total = rows.len();
        let found = (1..=total)
            .map(|step| match forward {
                true => (self.cursor + step) % total,
                false => (self.cursor + total - step % total) % total,
            })
            .find(|index| rows.get(*index).is_some_and(|entry| entry.contains(&self.search)));
        match found {
            Some(index) => self.go_to(index),
            None => self.message = format!("not found in {}", count(total, "loaded draft")),
        }
    }

    fn filter_next_state(&mut self) {
        let next = match self.only {
            None => self.states.first().copied(),
            Some(only) => self
                .states
                .iter()
                .position(|state| *state == only)
                .and_then(|at| self.states.get(at + 1).copied()),
        };
        let states = next.map_or_else(|| self.states.clone(), |state| vec![state]);
        let mut entries = Entries::new(self.query.clone().states(states), self.limit);
        match entries.load(&self.store, super::entries::FIRST_PAGE) {
            Ok(()) => {
                self.only = next;
                self.entries = entries;
                self.cursor = 0;
                self.open();
                if self.entries.is_empty() {
                    self.message = "no drafts in this state; press v for the next".to_owned();
                }
            }
            Err(error) => self.report(Err(error)),
        }
    }

    pub fn report(&mut self, result: Result<(), LibrarianError>) {
        if let Err(error) = result {
            self.message = error.to_string();
        }
    }
}
