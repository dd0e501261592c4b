//! The public API names no type of a dependency, so that a dependency can be replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What the public API may name of dependencies.
const ALLOWED: [&str; 5] = [
    // What is shown can be serialized.
    "serde_core::de::Deserialize",
    "serde_core::de::Deserializer",
    "serde_core::ser::Serialize",
    "serde_core::ser::Serializer",
    // In a processor, `?` turns it into a LibrarianError.
    "serde_json::error::Error",
];

/// Rustdoc's description of the library, as JSON. A stable rustdoc writes it only if it is told
/// to accept unstable options, and cargo must not be told: its build scripts would see it as well.
fn rustdoc() -> Value {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let rustdoc = directory.join("rustdoc-json");
    std::fs::write(&rustdoc, "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc \"$@\"\n").unwrap();
    std::fs::set_permissions(&rustdoc, std::fs::Permissions::from_mode(0o755)).unwrap();
    let target = directory.parent().unwrap();
    let status = Command::new(env!("CARGO"))
        .args(["rustdoc", "--quiet", "--offline", "--locked", "--lib", "--target-dir"])
        .arg(target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTDOC", rustdoc)
        .env_remove("RUSTDOCFLAGS")
        .status()
        .unwrap();
    assert!(status.success());
    let json: PathBuf = target.join("doc/draftq.json");
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

/// Call the function with each reference to an item: its id, and its name as it is written.
fn references(value: &Value, found: &mut impl FnMut(&Value, &str)) {
    match value {
        Value::Object(fields) => {
            let name = fields.get("path").or_else(|| fields.get("source"));
            if let (Some(id), Some(Value::String(name))) = (fields.get("id"), name) {
                found(id, name);
            }
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
#[ignore = "builds the documentation; .ci/run runs it"]
fn the_public_api_names_no_type_of_a_dependency() {
    let json = rustdoc();
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for item in json["index"].as_object().unwrap().values() {
        let implementation = &item["inner"]["impl"];
        // Traits that another crate implements for every type, and their methods.
        if item["crate_id"] != 0
            || !implementation["blanket_impl"].is_null()
            || implementation["is_synthetic"] == true
        {
            continue;
        }
        references(&item["inner"], &mut |id, written| {
            let path = match &json["paths"][id.to_string()] {
                Value::Null => written.to_owned(),
                known => {
                    let parts = known["path"].as_array().unwrap().iter();
                    parts.map(|part| part.as_str().unwrap()).collect::<Vec<_>>().join("::")
                }
            };
            let place = item["name"].as_str().unwrap_or("an impl").to_owned();
            named.entry(path).or_default().insert(place);
        });
    }
    let of = |krate: &str| named.keys().any(|path| path.starts_with(krate));
    assert!(
        of("draftq::") && of("std::") && of("core::"),
        "the JSON was not understood: {named:?}"
    );
    named.retain(|path, _| {
        let krate = path.split("::").next().unwrap();
        !["draftq", "std", "core", "alloc"].contains(&krate)
    });
    // All of them, not some: so a description that was not understood is noticed.
    assert_eq!(named.keys().collect::<Vec<_>>(), ALLOWED.iter().collect::<Vec<_>>(), "{named:#?}");
}
