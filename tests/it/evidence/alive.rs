//! A live runner is not taken for dead, wherever the process that tests it may run.

use std::process::{Command, Output};

use super::deaths::{Scene, WINDOW};
use super::{Process, json};
use crate::harness::have;

/// `draftq run` on what is pending, behind a wrapper: a program that ends in `"$@"`.
fn run_behind(scene: &Scene, wrapper: &[&str]) -> Output {
    let run = ["run", "--json", "-q", "--stale-processing-secs", "0", "--exit-code", "--", "true"];
    let run = scene.bench.command(run);
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(run.get_program()).args(run.get_args());
    Process::start_piped(&mut command).output()
}

/// The runner still holds the draft, and no crash was counted.
fn assert_held(scene: &Scene, whence: &str) {
    let held: bool = scene
        .bench
        .sql()
        .query_row(
            "SELECT state = 'processing' AND owner IS NOT NULL AND errors = 0 AND claims = 1 \
             FROM drafts ORDER BY seq LIMIT 1",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!(held, "{whence}: the claim of a live runner was taken");
}

#[test]
fn with_few_descriptors_a_live_runner_is_alive() {
    let mut scene = Scene::new();
    let owner = scene.owned("in hand");
    let mut worked = 0;
    for descriptors in 3..40 {
        let script = format!("ulimit -n {descriptors}; exec \"$@\"");
        let output = run_behind(&scene, &["sh", "-c", &script, "sh"]);
        assert_held(&scene, &format!("{descriptors} descriptors: {output:?}"));
        worked += usize::from(output.status.success());
    }
    assert!(worked > 0, "with enough of them it works");
    owner.die();
    assert_eq!(scene.recovered(WINDOW), 1);
}

#[test]
fn in_other_namespaces_and_without_proc_a_live_runner_is_alive() {
    if !rustix::process::geteuid().is_root() || !have("unshare") {
        println!("skipped: this needs root and unshare");
        return;
    }
    let without_proc: &[&str] =
        &["unshare", "-m", "sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"];
    let without_boot_id: &[&str] = &[
        "unshare",
        "-m",
        "sh",
        "-c",
        "mount --bind /dev/null /proc/sys/kernel/random/boot_id && exec \"$@\"",
        "sh",
    ];
    let wrappers = [
        without_proc,
        without_boot_id,
        &["unshare", "--mount", "--"],
        &["unshare", "--pid", "--fork", "--mount-proc", "--"],
        &["unshare", "--net", "--"],
        &["unshare", "--uts", "sh", "-c", "hostname elsewhere 2>&1; exec \"$@\"", "sh"],
        &["unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--"],
    ];
    let mut scene = Scene::new();
    let owner = scene.owned("in hand");
    for wrapper in wrappers {
        let output = run_behind(&scene, wrapper);
        let summary = &json(&output)["summary"];
        assert_eq!(summary["recovered_processing"], 0, "{wrapper:?}: {output:?}");
        assert_held(&scene, &format!("{wrapper:?}"));
    }
    owner.die();
    // Its death is seen from there as well.
    let output = run_behind(&scene, without_proc);
    let summary = &json(&output)["summary"];
    assert_eq!(summary["recovered_processing"], 1, "{output:?}");
}

/// A runner in a place without /proc, tested from a place with it.
#[test]
fn a_runner_without_a_boot_id_is_alive_until_its_lock_is_free() {
    let mut scene = Scene::new();
    let owner = scene.owned("in hand");
    scene.sql("UPDATE runners SET boot_id = ''");
    let output = run_behind(&scene, &["env"]);
    assert_eq!(json(&output)["summary"]["recovered_processing"], 0, "{output:?}");
    assert_held(&scene, "no boot id");
    owner.die();
    assert_eq!(scene.recovered(WINDOW), 1);
}
