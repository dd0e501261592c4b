//! A terminal of tmux, in which the built binary runs as for a person.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::Sandbox;

/// How long a screen may take to show what is expected.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal. It ends when this is dropped.
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Run this shell command in a terminal of this size, with nothing in its environment but what
    /// a sandbox has, and these variables. Its exit code is shown when it has ended. `None` where
    /// there is no tmux.
    pub fn start(
        sandbox: &Sandbox,
        command: &str,
        size: (u16, u16),
        variables: &[(&str, &str)],
    ) -> Option<Self> {
        let found = Command::new("tmux").arg("-V").stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            println!("skipped: there is no tmux here");
            return None;
        }
        // A socket's path is at most 107 bytes long.
        let terminal =
            Self { socket: sandbox.root().join(format!("{:x}.tmux", fastrand::u32(..))) };
        let mut tmux = sandbox.command_of("tmux");
        tmux.arg("-S").arg(&terminal.socket).args(["-u", "-f", "/dev/null"]);
        // No shell line of the test needs to be quoted.
        tmux.env("COMMAND", command);
        for (name, value) in variables {
            tmux.env(name, value);
        }
        let line = "PS1='$ '; export PS1; PATH=\"$BIN:$PATH\"; eval \"$COMMAND\"; echo \"exit $?\"; \
                    exec sleep 600";
        let bin = std::path::Path::new(env!("CARGO_BIN_EXE_draftq")).parent().unwrap();
        tmux.env("BIN", bin).env("SHELL", "/bin/sh").env("LC_ALL", "C.UTF-8");
        tmux.args(["new-session", "-d", "-x", &size.0.to_string(), "-y", &size.1.to_string()]);
        tmux.arg(line);
        let status = tmux.status().unwrap();
        assert!(status.success());
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("tmux").arg("-S").arg(&self.socket).args(arguments).output().unwrap();
        assert!(output.status.success(), "tmux {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Press keys, in tmux's names.
    pub fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Type a text.
    pub fn type_text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Paste a text, as a terminal with bracketed paste does.
    pub fn paste(&self, text: &str) {
        self.tmux(&["set-buffer", text]);
        self.tmux(&["paste-buffer", "-p"]);
    }

    pub fn resize(&self, width: u16, height: u16) {
        self.tmux(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
    }

    /// The screen, without blanks at the ends of its lines.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen with its escape sequences.
    pub fn coloured(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// A format of tmux, such as `#{alternate_on}`.
    pub fn ask(&self, format: &str) -> String {
        self.tmux(&["display-message", "-p", format]).trim_end().to_owned()
    }

    /// Wait until the screen is as expected, and return it.
    #[track_caller]
    pub fn wait_until(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.screen();
            if is_there(&screen) {
                return screen;
            }
            assert!(begun.elapsed() < PATIENCE, "no {what} on the screen:\n{screen}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Wait until this text is on the screen, in one line or broken at blanks.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |screen| {
            screen.contains(text) || screen.replace('\n', " ").contains(text)
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").status();
    }
}
