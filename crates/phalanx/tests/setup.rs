//! What workers run, said while the cluster lives: `Primary::configure`, as Node's `setupPrimary`.

use phalanx::{
    Cluster, Ended, Error, Event, Hurry, Line, Output, Primary, Ready, Restart, Signal, Speaks, WorkerId,
};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Printed = Arc<Mutex<BTreeMap<WorkerId, Vec<String>>>>;

/// A cluster of shells, and what they print.
fn shells(script: &str) -> (Primary, Printed) {
    let printed = Printed::default();
    let heard = Arc::clone(&printed);
    let hear = move |line: &Line<'_>| {
        heard.lock().expect("lock").entry(line.worker).or_default().push(line.text.to_owned());
        Ok(())
    };
    let primary = Cluster::builder()
        .exec("sh")
        .args(["-c", script, "name"])
        .env("A", "1")
        .channel(Speaks::Nothing)
        .output(Output::Lines(Arc::new(hear)))
        .start()
        .expect("start");
    (primary, printed)
}

fn fork(primary: &Primary) -> WorkerId {
    primary.fork([("B", "own")]).expect("a worker").id()
}

/// Waits until so many workers have ended by themselves, and ends the cluster. When the events are over, all that was
/// printed has been heard.
fn end(primary: &Primary, workers: usize) -> Vec<Event> {
    let mut events = primary.events();
    let mut all = Vec::new();
    while all.iter().filter(|event| matches!(event, Event::Exit { .. })).count() < workers {
        all.push(events.blocking_recv().expect("an event"));
    }
    primary.stop(Hurry::Graceful).wait();
    all.extend(events);
    all
}

fn texts(args: &[OsString]) -> Vec<&str> {
    args.iter().map(|arg| arg.to_str().expect("text")).collect()
}

#[test]
fn settings_accumulate_and_hold_for_later_workers() {
    let (primary, printed) = shells("echo $A $B $1 $PWD");
    let before = primary.settings().expect("settings");
    assert_eq!((before.exec.to_str(), &before.cwd), (Some("sh"), &None));
    let first = fork(&primary);
    let changed = primary.configure(|it| it.args.push("more".into())).expect("settings");
    assert_eq!(texts(&changed.args), ["-c", "echo $A $B $1 $PWD", "name", "more"]);
    primary.configure(|it| it.cwd = Some("/".into())).expect("settings");
    primary.configure(|it| it.env = vec![("A".into(), "2".into())]).expect("settings");
    let same = primary.configure(|_| ()).expect("settings");
    assert_eq!(same, primary.settings().expect("settings"), "what is left out stays");
    assert_eq!(texts(&same.args), texts(&changed.args));
    assert_eq!((before.args.len(), changed.args.len()), (3, 4), "what was handed out never changes");
    let second = fork(&primary);
    end(&primary, 2);
    let here = std::env::current_dir().expect("a directory");
    let printed = printed.lock().expect("lock");
    assert_eq!(printed[&first], [format!("1 own {}", here.display())]);
    assert_eq!(printed[&second], ["2 own more /"]);
}

#[test]
fn each_configuration_and_each_fork_is_told_before_the_worker() {
    let (primary, _) = shells("exit 0");
    primary.configure(|it| it.args.push("one".into())).expect("settings");
    primary.configure(|it| it.args.push("two".into())).expect("settings");
    fork(&primary);
    fork(&primary);
    let told = end(&primary, 2);
    let counts: Vec<usize> = told
        .iter()
        .filter_map(|event| match event {
            Event::Setup { settings } => Some(settings.args.len()),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [4, 5, 5, 5], "each with what it was then");
    let names: Vec<&str> = told
        .iter()
        .filter_map(|event| match event {
            Event::Setup { .. } => Some("setup"),
            Event::Fork { .. } => Some("fork"),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["setup", "setup", "setup", "fork", "setup", "fork"]);
    let json = serde_json::to_string(told.first().expect("an event")).expect("JSON");
    assert!(json.contains(r#""args":["-c","exit 0","name","one"]"#), "{json}");
    assert!(!json.contains("env"), "variables may be secret: {json}");
}

#[test]
fn what_cannot_be_changes_nothing() {
    let (primary, _) = shells("exit 0");
    let before = primary.settings().expect("settings");
    for change in [(|it| it.exec = "no-such-program".into()) as fn(&mut phalanx::Settings), |it| {
        it.args.clear();
        it.user = Some("no-such-user".to_owned());
    }] {
        for _ in 0..2 {
            let error = primary.configure(change).expect_err("it cannot be");
            assert!(matches!(error, Error::Program { .. } | Error::User { .. }), "{error}");
            assert_eq!(primary.settings().expect("settings"), before);
        }
    }
    fork(&primary);
    let told = end(&primary, 1);
    assert_eq!(told.iter().filter(|event| matches!(event, Event::Setup { .. })).count(), 1);
}

#[test]
fn where_a_number_is_wanted_it_is_for_the_next_reload() {
    let primary = Cluster::builder()
        .exec("sleep")
        .args(["1000"])
        .channel(Speaks::Nothing)
        .workers(1)
        .restart(Restart::Always)
        .start()
        .expect("start");
    primary.configure(|it| it.args = vec!["1001".into()]).expect("settings");
    let command = |primary: &Primary| {
        let pid = primary.workers()[0].pid().expect("it lives");
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("its command line");
        String::from_utf8_lossy(&line).replace('\0', " ")
    };
    let events = primary.events();
    assert!(primary.workers()[0].signal(Signal::KILL));
    let mut exits = events.into_iter().filter(|event| matches!(event, Event::Exit { .. }));
    exits.next().expect("an exit");
    assert_eq!(command(&primary), "sleep 1000 ", "a crash does not deploy");
    primary.reload().wait().expect("reloaded");
    assert_eq!(command(&primary), "sleep 1001 ");
    primary.stop(Hurry::Graceful).wait();
}

const KILL: Ended = Ended::Signal(9, false);
const USR2: Ended = Ended::Signal(12, false);
const TERM: Ended = Ended::Signal(15, false);

/// What ends by whatever signal comes.
fn sleeper() -> phalanx::Builder {
    Cluster::builder().exec("sleep").args(["1000"]).channel(Speaks::Nothing)
}

fn next_exit(events: &mut phalanx::Events) -> Ended {
    loop {
        if let Event::Exit { ended, .. } = events.blocking_recv().expect("an event") {
            return ended;
        }
    }
}

#[test]
fn a_reload_changes_how_workers_live_or_nothing() {
    let primary = sleeper().workers(1).start().expect("start");
    let mut events = primary.events();
    let mistake = primary.reload_with(sleeper().max_surge(0).stop_signal(Signal::USR2)).wait();
    let error = mistake.expect_err("none could ever be replaced").to_string();
    assert!(error.contains("max_surge"), "{error}");
    let silent =
        sleeper().ready(Ready::Notify).start_timeout(Duration::from_millis(300)).stop_signal(Signal::USR2);
    let error = primary.reload_with(silent).wait().expect_err("it gives no notice").to_string();
    assert!(error.contains("READY=1"), "{error}");
    assert_eq!(next_exit(&mut events), USR2, "the new one, by its own signal");
    // All is as before: who is killed is replaced by one that is ready without a notice, and ends by SIGTERM.
    assert!(primary.workers()[0].signal(Signal::KILL));
    assert_eq!(next_exit(&mut events), KILL);
    primary.reload_with(sleeper().stop_signal(Signal::USR2)).wait().expect("reloaded");
    assert_eq!(next_exit(&mut events), TERM, "the old one, by its own signal");
    primary.reload().wait().expect("reloaded as described last");
    assert_eq!(next_exit(&mut events), USR2);
    primary.stop(Hurry::Graceful).wait();
    assert_eq!(next_exit(&mut events), USR2);
}

/// Asked at the moment of its end, a cluster answers, or says that it has ended.
#[test]
fn who_asks_a_cluster_that_ends_is_answered() {
    for _ in 0..500 {
        let primary = Cluster::builder().exec("true").start().expect("start");
        let asking: Vec<_> = (0..3)
            .map(|_| {
                let primary = primary.clone();
                std::thread::spawn(move || while primary.status().is_ok() {})
            })
            .collect();
        primary.stop(Hurry::Kill).wait();
        for thread in asking {
            thread.join().expect("an answer");
        }
    }
}
