//! `draftq review`: a person looks at drafts and decides, on a full screen or in an editor.
//!
//! | file | what it holds |
//! |---|---|
//! | `app.rs` | what the screen shows: the list, the open draft, the message |
//! | `entries.rs` | the list, loaded page by page |
//! | `detail.rs` | the open draft as lines: its text, its details, its history |
//! | `wrap.rs` | breaks lines to the width of the screen |
//! | `keys.rs` | which key does what, and the help about it |
//! | `actions.rs` | decisions, requeues, edits, undos |
//! | `draw.rs` | draws the screen |
//! | `sixteen.rs` | writes colours for terminals that have 16 |
//! | `screen.rs` | takes the terminal and gives it back; signals |
//! | `edit.rs` | runs the editor on a private file |
//! | `verdicts.rs` | `--editor` and `--apply`: the same as a text file |

mod actions;
mod app;
mod detail;
mod draw;
mod edit;
mod entries;
mod keys;
mod screen;
mod sixteen;
mod verdicts;
mod wrap;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use draftq::{DraftQuery, DraftState, DraftStore};

use self::app::App;
use self::entries::Entries;
use super::context::Context;
use super::failure::Failure;
use super::selection::Selection;
use super::signature::Signature;
use super::terminal;

/// The most drafts in the file of --editor, unless --limit says otherwise.
const EDITOR_LIMIT: usize = 50;

/// Look at drafts one by one and decide about them, on a full screen.
///
/// Shows quarantined and failed drafts unless ids or --state say otherwise, in the order of
/// submission, so that the one that has waited longest comes first. Each decision is signed. A
/// draft that changed while you looked at it is not overwritten. Press ? for the keys.
///
/// With --editor, the drafts are written to a text file that opens in $VISUAL or $EDITOR. You write
/// a verdict below each id. What will be done is shown first, and confirmed on a terminal.
#[derive(Debug, Args)]
#[command(mut_arg("oldest", |it| it.hide(true)))]
#[command(after_help = "\
Examples:
  draftq review
  draftq review --state quarantined --project billing
  draftq review --editor --limit 10
  draftq review 5c1d06e9 --by anna

Where there is no terminal, use draftq decide.")]
pub struct Review {
    #[command(flatten)]
    signature: Signature,
    /// Write the drafts to a text file, and open it in an editor.
    #[arg(long)]
    editor: bool,
    /// Do what this file says, which review --editor kept. No editor is started.
    #[arg(long, value_name = "FILE", conflicts_with = "editor")]
    apply: Option<PathBuf>,
    /// With --editor or --apply, do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    selection: Selection,
}

impl Review {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let by = self.signature.name();
        if let Some(path) = &self.apply {
            if self.selection.has_ids() || self.selection.has_filters() {
                return Err(Failure::usage(
                    "--apply takes its drafts from the file; give no others",
                ));
            }
            let store = context.store_to_change()?;
            return verdicts::apply(&store, path, &by, self.yes, context.output());
        }
        if self.editor {
            let store = context.store_to_change()?;
            let (query, _) = self.query(&store)?;
            let limit = self.selection.limit(Some(EDITOR_LIMIT));
            return verdicts::edit(&store, query, limit, &by, self.yes, context.output());
        }
        if self.yes {
            return Err(Failure::usage("--yes is for --editor and --apply"));
        }
        if context.output().is_json() {
            return Err(Failure::usage("the full screen prints no JSON; use draftq list --json"));
        }
        if !can_show_a_screen() {
            return Err(Failure::usage(
                "review needs a terminal for its full screen; use draftq review --editor, or \
                 draftq decide for scripts",
            ));
        }
        let store = context.store_to_change()?;
        let (query, states) = self.query(&store)?;
        let limit = self.selection.limit(None);
        let mut entries = Entries::new(query.clone(), limit);
        entries.load(&store, entries::FIRST_PAGE)?;
        if entries.is_empty() {
            let path = store.path().display().to_string();
            let path = draftq::escape_line(&path);
            context.output().text(&format!("No such drafts in {path}."))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut app = App::new(store, entries, states, by, query, limit);
        let ended_by = screen::run(&mut app)?;
        context.output().text(&app.summary())?;
        Ok(match ended_by {
            Some(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
            None => ExitCode::SUCCESS,
        })
    }

    /// The drafts to review, and their states.
    fn query(&self, store: &DraftStore) -> Result<(DraftQuery, Vec<DraftState>), Failure> {
        let query = self.selection.query(store)?.newest_first(false);
        let states = match self.selection.states() {
            [] if self.selection.has_ids() => DraftState::ALL.to_vec(),
            [] => vec![DraftState::Failed, DraftState::Quarantined],
            states => states.to_vec(),
        };
        Ok((query.states(states.iter().copied()), states))
    }
}

fn can_show_a_screen() -> bool {
    terminal::stdin_is_terminal()
        && terminal::stdout_is_terminal()
        && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}
