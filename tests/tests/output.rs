//! What workers print, and what happens when nobody reads it.

use phalanx_tests::lab;
use phalanx_tests::load::Load;
use phalanx_tests::process::{
    Phalanx, Process, ProcessId, Signal, children, free_port, kill, wait_answer, wait_for, wait_until,
};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Serves, and prints to both streams without end.
const TALKATIVE: &str = "
    require(process.env.FIXTURE);
    setInterval(() => {
        for (let n = 0; n < 8; n++) {
            console.log('o'.repeat(16000));
            console.error('e'.repeat(16000));
        }
    }, 20);
";

struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn status(runtime: &Path) -> Option<Value> {
    let out = Command::new(lab::binary("phalanx"))
        .args(["status", "--json"])
        .env("XDG_RUNTIME_DIR", runtime)
        .output()
        .expect("phalanx");
    serde_json::from_slice(&out.stdout).ok()
}

#[test]
fn who_does_not_read_its_output_does_not_keep_the_cluster() {
    let Some(node) = lab::node(lab::NODE) else { return };
    let runtime = tempfile::Builder::new().prefix("phx").tempdir_in("/tmp").expect("a directory");
    let script = runtime.path().join("talkative.js");
    std::fs::write(&script, TALKATIVE).expect("a script");
    let port = free_port();
    let mut phalanx = Unread(
        Command::new(lab::binary("phalanx"))
            .args(["run", "-w", "2", "-n", "unread", "--"])
            .args([node, script])
            .env("PORT", port.to_string())
            .env("FIXTURE", lab::fixture("http.js"))
            .env("XDG_RUNTIME_DIR", runtime.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("phalanx"),
    );
    wait_answer(port);
    let full = |status: &Value| status["output_dropped"].as_u64().is_some_and(|dropped| dropped > 100);
    wait_for("both pipes are full", || status(runtime.path()).filter(full));

    for _ in 0..2 {
        Load::port(port).clients(4).connections(200).run().assert_all_served();
        let before: Vec<ProcessId> = children(phalanx.0.id());
        let victim = before.first().copied().expect("a worker");
        kill(victim.pid, Signal::KILL).expect("a kill");
        wait_until("a successor listens", || {
            let up = status(runtime.path());
            let workers = up.as_ref().and_then(|up| up["workers"].as_array());
            workers.is_some_and(|all| {
                all.len() == 2
                    && all.iter().all(|it| it["state"] == "listening" && it["pid"] != u64::from(victim.pid))
            })
        });
    }
    Load::port(port).clients(4).connections(200).run().assert_all_served();

    let left = children(phalanx.0.id());
    kill(phalanx.0.id(), Signal::TERM).expect("a signal");
    assert_eq!(phalanx.0.wait().expect("its end").code(), Some(143));
    assert!(left.iter().all(|it| !it.exists()), "{left:?}");
}

#[test]
fn the_last_words_of_a_worker_are_heard() {
    let phalanx = Phalanx::run("words").workers(1).start(["sh", "-c", "echo first; printf last; exit 3"]);
    phalanx.wait_lines("both, before the end is told", |lines| {
        let at = |text: &str| lines.iter().position(|line| line.text.ends_with(text));
        let died = lines.iter().find(|line| line.text.contains("worker died"))?;
        assert!(died.text.contains("last"), "{}", died.text);
        at(" first").zip(at(" last"))
    });
    phalanx.note_descendants();
    phalanx.finish();
}

/// Nowhere to write to, from the first line on: served, replaced, ended all the same.
#[test]
fn a_full_disk_does_not_stop_the_service() {
    let port = free_port();
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" run -n full -w 2 --channel phalanx -- \"$1\" tcp \"$2\" >/dev/full 2>&1"])
        .args([lab::binary("phalanx"), lab::binary("service")])
        .arg(port.to_string())
        .env("XDG_RUNTIME_DIR", dir.path());
    let mut process = Process::start(&mut command);
    wait_answer(port);
    for _ in 0..2 {
        let victim = children(process.pid())[0];
        kill(victim.pid, Signal::KILL).expect("killed");
        wait_until("it has a successor", || {
            let now = children(process.pid());
            now.len() == 2 && !now.contains(&victim)
        });
    }
    Load::port(port).clients(4).connections(200).run().assert_all_served();
    // Each worker says that it listens.
    wait_until("what was lost is counted", || {
        status(dir.path()).is_some_and(|status| status["output_dropped"].as_u64() >= Some(4))
    });
    process.note_descendants();
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(143));
    assert_eq!(process.left_over(), []);
}

#[test]
fn what_workers_leave_behind_is_reaped() {
    // The one in the middle ends at once, so the last one becomes the primary's child.
    let script = "sh -c 'sleep 600 & echo orphan $!'; exec sleep 600";
    let phalanx = Phalanx::run("orphans").workers(1).start(["sh", "-c", script]);
    let line = phalanx.wait_line("0|1 orphan ");
    let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid");
    let orphan = ProcessId::of(pid).expect("it lives");
    wait_until("it is the primary's child", || children(phalanx.pid()).contains(&orphan));
    kill(pid, Signal::KILL).expect("a kill");
    wait_until("it is no zombie", || !orphan.exists());
    phalanx.finish();
}
