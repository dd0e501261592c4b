//! Runs the person's editor on a private file.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::screen::Signals;

/// How long an editor that was asked to end may take.
const GRACE: Duration = Duration::from_secs(1);

/// A file (0600) in a directory of its own (0700). Both are removed when this is dropped.
pub struct PrivateFile {
    directory: TempDir,
    path: PathBuf,
}

impl PrivateFile {
    pub fn new(name: &str, content: &str, signals: &Signals) -> io::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("draftq-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()?;
        signals.remove_when_forced(Some(directory.path().to_owned()));
        let path = directory.path().join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content.as_bytes())?;
        Ok(Self { directory, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content, of at most `limit` bytes. An editor may have replaced the file.
    pub fn read(&self, limit: usize) -> Result<String, String> {
        read_text(&self.path, limit)
    }

    /// Leave the file where it is, and return its path.
    pub fn keep(self) -> PathBuf {
        let _ = self.directory.keep();
        self.path
    }

    pub fn remove(self, signals: &Signals) {
        drop(self);
        signals.remove_when_forced(None);
    }
}

/// Read a text file of at most `limit` bytes.
pub fn read_text(path: &Path, limit: usize) -> Result<String, String> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)
        .and_then(|file| file.take(most).read_to_end(&mut bytes))
        .map_err(|error| format!("the file cannot be read: {error}"))?;
    if bytes.len() > limit {
        return Err(format!("the file has more than {limit} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        format!("the file is not UTF-8 (the first bad byte is at offset {offset})")
    })
}

/// Open the file in `$VISUAL`, else `$EDITOR`, else `vi`, and wait until the editor ends. The
/// variable is a shell command, as for other programs.
pub fn run_editor(path: &Path, signals: &Signals) -> Result<(), String> {
    let named = ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|command| !command.trim().is_empty()));
    let command = named.unwrap_or_else(|| "vi".to_owned());
    let editing = signals.editing();
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("{command} \"$@\""))
        .arg("draftq-editor")
        .arg(path)
        .spawn()
        .map_err(|error| format!("the editor cannot be started: {error}"))?;
    let status = wait(&mut child, signals);
    drop(editing);
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the editor {}", ended(status))),
        Err(error) => Err(format!("the editor cannot be waited for: {error}")),
    }
}

/// Wait for the editor. If this program is asked to end, the editor is, too.
fn wait(child: &mut Child, signals: &Signals) -> io::Result<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if signals.ended_by().is_some() {
            match asked {
                None => {
                    let pid =
                        i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
                    if let Some(pid) = pid {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                    }
                    asked = Some(Instant::now());
                }
                Some(since) if since.elapsed() > GRACE => child.kill()?,
                Some(_) => {}
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(127), _) => "was not found (exit status 127)".to_owned(),
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}
