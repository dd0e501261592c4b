//! The name that signs a decision: `--by`.

use clap::Args;

use super::arguments::utf8_argument;

#[derive(Debug, Args)]
pub struct Signature {
    /// The name that signs [default: your user name].
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    by: Option<String>,
}

impl Signature {
    /// The name that was given, or else that of the user.
    pub fn name(&self) -> String {
        self.by.clone().unwrap_or_else(user_name)
    }
}

/// The name of the user that this process runs as: from /etc/passwd, else from the environment,
/// else the number.
fn user_name() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(uid.as_str())).then(|| name.to_owned())
    });
    let of_environment =
        || ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    named
        .or_else(of_environment)
        .filter(|name| !name.trim().is_empty())
        .unwrap_or_else(|| format!("uid {uid}"))
}
