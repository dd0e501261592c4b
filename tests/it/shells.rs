//! Three programs that run SQL: this one, the `sqlite3` shell and Python.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use draftq::{DraftState, DraftStore};
use rusqlite::Connection;

use crate::harness::{draft, have, rows};

/// A program that opens the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shell {
    Linked,
    Sqlite3,
    Python,
}

pub const PYTHON: &str = r#"
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
answers = []
for statement in json.load(sys.stdin):
    try:
        rows = connection.execute(statement).fetchall()
        lines = ["|".join("" if value is None else str(value) for value in row) for row in rows]
        answers.append([True, "\n".join(lines)])
    except sqlite3.Error as error:
        answers.append([False, str(error)])
json.dump(answers, sys.stdout)
"#;

impl Shell {
    pub fn all() -> Vec<Self> {
        let mut shells = vec![Self::Linked];
        if have("sqlite3") {
            shells.push(Self::Sqlite3);
        }
        if have("python3") {
            shells.push(Self::Python);
        }
        shells
    }

    /// Each statement by itself: its rows, values separated by `|`, or the message.
    pub fn each(self, path: &Path, statements: &[String]) -> Vec<Result<String, String>> {
        match self {
            Self::Linked => {
                let connection = Connection::open(path).unwrap();
                let ask = |sql: &String| rows(&connection, sql).map_err(|error| error.to_string());
                statements.iter().map(ask).collect()
            }
            Self::Sqlite3 => statements
                .iter()
                .map(|sql| {
                    let output = Command::new("sqlite3")
                        .args(["-batch", "-bail"])
                        .arg(path)
                        .arg(sql)
                        .stdin(Stdio::null())
                        .output()
                        .unwrap();
                    if output.status.success() {
                        Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
                    } else {
                        Err(String::from_utf8(output.stderr).unwrap())
                    }
                })
                .collect(),
            Self::Python => {
                let mut python = Command::new("python3")
                    .args(["-c", PYTHON])
                    .arg(path)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let question = serde_json::to_vec(statements).unwrap();
                python.stdin.take().unwrap().write_all(&question).unwrap();
                let output = python.wait_with_output().unwrap();
                assert!(output.status.success());
                let answers: Vec<(bool, String)> = serde_json::from_slice(&output.stdout).unwrap();
                let answers = answers.into_iter();
                answers.map(|(ok, text)| if ok { Ok(text) } else { Err(text) }).collect()
            }
        }
    }

    pub fn ask(self, path: &Path, sql: &str) -> Result<String, String> {
        self.each(path, &[sql.to_owned()]).remove(0)
    }
}

/// A draft of this text, brought to this state by the library.
pub fn bring_to(store: &DraftStore, text: &str, state: DraftState) -> String {
    let draft = draft(text);
    store.submit(&draft).unwrap();
    if state != DraftState::Pending {
        store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
    }
    if state.is_terminal() {
        store.transition(draft.id(), DraftState::Processing, state).unwrap();
    }
    draft.id().to_hex()
}
