//! The name of a processor: by default the file name of its program, or of an interpreter's script.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Programs that run a script.
const INTERPRETERS: [&str; 18] = [
    "sh", "bash", "dash", "zsh", "ksh", "fish", "python", "perl", "ruby", "node", "nodejs", "bun",
    "deno", "php", "lua", "Rscript", "pwsh", "tclsh",
];

/// The name of the processor that this program with these arguments is.
///
/// `sh -c LINE` and the like are named after the interpreter, because their line is no name.
pub fn default_name(program: &OsStr, args: &[OsString]) -> String {
    let name = file_name(program);
    if name == "env" {
        // `env NAME=VALUE… PROGRAM ARG…`
        let program = args.iter().position(|arg| !is_option(arg) && !is_assignment(arg));
        return match program.and_then(|at| args.split_at_checked(at)) {
            Some((_, [program, args @ ..])) if file_name(program) != "env" => {
                default_name(program, args)
            }
            _ => name,
        };
    }
    if !is_interpreter(&name) {
        return name;
    }
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if is_code(&name, &text) {
            return name;
        }
        if text == "-m" && name.starts_with("python") {
            return args.next().map_or(name, |module| module.to_string_lossy().into_owned());
        }
        // `deno run SCRIPT`
        let runs_script = matches!(name.as_str(), "deno" | "bun") && text == "run";
        if !is_option(arg) && !runs_script {
            return file_name(arg);
        }
    }
    name
}

/// Whether this option of an interpreter is followed by code in place of a script.
fn is_code(interpreter: &str, option: &str) -> bool {
    let Some(letters) = option.strip_prefix('-') else { return false };
    match letters {
        "-eval" | "-print" | "Command" => true,
        letters if letters.starts_with('-') => false,
        letters if interpreter.starts_with("python") || interpreter.ends_with("sh") => {
            letters.contains('c')
        }
        letters => letters.contains(['e', 'p', 'r', 'E']),
    }
}

/// Whether a program of this name is an interpreter, in any version: `python3.12`.
fn is_interpreter(name: &str) -> bool {
    INTERPRETERS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
}

fn is_option(arg: &OsStr) -> bool {
    arg.as_encoded_bytes().starts_with(b"-")
}

fn is_assignment(arg: &OsStr) -> bool {
    arg.as_encoded_bytes().contains(&b'=')
}

/// The last part of a path.
fn file_name(path: &OsStr) -> String {
    Path::new(path).file_name().unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_after_its_file_and_an_interpreter_after_its_script() {
        for (command, name) in [
            ("./judge --careful", "judge"),
            ("/opt/bin/judge.sh", "judge.sh"),
            ("python3 judge.py --model x", "judge.py"),
            ("python3.12 -u /srv/judge.py", "judge.py"),
            ("python3 -m judges.billing", "judges.billing"),
            ("python3 -c print(1)", "python3"),
            ("env python3 judge.py", "judge.py"),
            ("/usr/bin/env -S LANG=C node judge.js", "judge.js"),
            ("env", "env"),
            ("sh -c true", "sh"),
            ("bash -ec true", "bash"),
            ("sh judge.sh", "judge.sh"),
            ("perl -ne print", "perl"),
            ("perl judge.pl", "judge.pl"),
            ("node --eval 1", "node"),
            ("deno run judge.ts", "judge.ts"),
            ("sh", "sh"),
            ("python3 -u", "python3"),
        ] {
            let words: Vec<OsString> = command.split(' ').map(OsString::from).collect();
            let (program, args) = words.split_first().unwrap();
            assert_eq!(default_name(program, args), name, "{command}");
        }
    }
}
