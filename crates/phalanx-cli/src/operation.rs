//! What takes a while: reload, restart, scale, kill. Each answers with a line of JSON for every event of the cluster
//! meanwhile, and a last one, `{"done": …}` or `{"failed": "why", "last_lines": […]}`.

use crate::exit::Failure;
use phalanx::{Builder, Event, Events, Hurry, Primary, ReloadError, Slot, Status, WorkerId};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Describes the program anew for a reload; `None`: as it was described before.
pub(crate) type Describe = Arc<dyn Fn() -> Result<Option<Builder>, Failure> + Send + Sync>;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Reload,
    /// One slot, or all.
    Restart(Option<Slot>),
    Scale(Scale),
    Kill(Slot, Hurry),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    To(u32),
    By(i32),
}

/// `4`, `+2`, `-1`.
pub(crate) fn scale(text: &str) -> Result<Scale, String> {
    let wrong = || format!("`{text}` is no number of workers: write 4, +1 or -1");
    if text.starts_with(['+', '-']) {
        return text.parse().map(Scale::By).map_err(|_| wrong());
    }
    match text.parse() {
        Ok(0) => Err("0 workers serve nobody: use `phalanx stop`".to_owned()),
        Ok(number) => Ok(Scale::To(number)),
        Err(_) => Err(wrong()),
    }
}

impl Operation {
    /// From `POST /v1/NAME?key=value`.
    pub(crate) fn parse(name: &str, query: Option<&str>) -> Result<Operation, String> {
        let value = |key: &str| {
            query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name == key).then(|| value.to_owned())
            })
        };
        let slot = |text: String| {
            text.parse().map(Slot).map_err(|_| format!("`{text}` is no slot: see `phalanx status`"))
        };
        match name {
            "reload" => Ok(Operation::Reload),
            "restart" => Ok(Operation::Restart(value("slot").map(slot).transpose()?)),
            "scale" => scale(&value("workers").unwrap_or_default().replace("%2B", "+")).map(Operation::Scale),
            "kill" => {
                let hurry = match value("hurry").as_deref() {
                    None => Hurry::Graceful,
                    Some("now") => Hurry::Terminate,
                    Some("kill") => Hurry::Kill,
                    Some(other) => return Err(format!("`{other}` is no hurry: use now or kill")),
                };
                Ok(Operation::Kill(slot(value("slot").unwrap_or_default())?, hurry))
            }
            _ => Err(format!("there is no operation `{name}`")),
        }
    }

    /// Does it, and tells how it goes.
    pub(crate) async fn run(self, primary: Primary, describe: Describe, to: mpsc::Sender<String>) {
        let events = primary.events();
        let end = match self {
            Operation::Reload => reload(&primary, &describe, events, &to).await,
            Operation::Restart(slot) => restart(&primary, slot, events, &to).await,
            Operation::Scale(scale) => rescale(&primary, scale, events, &to).await,
            Operation::Kill(slot, hurry) => kill(&primary, slot, hurry, events, &to).await,
        };
        let last = match end {
            Ok(done) => json!({ "done": done }),
            Err(failed) => failed,
        };
        tell(&to, &last).await;
    }
}

async fn tell(to: &mpsc::Sender<String>, line: &Value) {
    // Whoever asked may have gone; what was begun goes on.
    let _ = to.send(format!("{line}\n")).await;
}

fn failed(why: impl ToString, last_lines: &[String]) -> Value {
    json!({ "failed": why.to_string(), "last_lines": last_lines })
}

type End = Result<Value, Value>;

async fn reload(
    primary: &Primary,
    describe: &Describe,
    mut events: Events,
    to: &mpsc::Sender<String>,
) -> End {
    let described = describe().map_err(|failure| failed(failure, &[]))?;
    let mut reload = match described {
        Some(builder) => primary.reload_with(builder),
        None => primary.reload(),
    };
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => tell(to, &json!(event)).await,
                None => return Err(failed("the cluster has ended", &[])),
            },
            outcome = &mut reload => return match outcome {
                Ok(generation) => Ok(json!({ "generation": generation })),
                Err(ReloadError::Aborted { why, last_lines, .. }) => Err(failed(why, &last_lines)),
                Err(error) => Err(failed(error, &[])),
            },
        }
    }
}

/// Waits until a fact is true. Fails when a worker fails that is none of `old`.
async fn until(
    primary: &Primary,
    mut events: Events,
    to: &mpsc::Sender<String>,
    old: &BTreeSet<WorkerId>,
    fact: impl Fn(&Status) -> bool,
) -> Result<(), Value> {
    loop {
        let ended = || failed("the cluster has ended", &[]);
        if fact(&primary.status().map_err(|_| ended())?) {
            return Ok(());
        }
        let event = events.recv().await.ok_or_else(ended)?;
        tell(to, &json!(event)).await;
        match event {
            Event::ForkFailed { error, .. } => return Err(failed(error, &[])),
            Event::Exit { worker, slot, ended, cause, exited_after_disconnect, last_lines, .. }
                if !old.contains(&worker) && (!exited_after_disconnect || cause.is_some()) =>
            {
                let cause = cause.map(|cause| format!("; {cause}")).unwrap_or_default();
                let why = format!("a new worker of slot {slot} ended: {ended}{cause}; it is tried again");
                return Err(failed(why, &last_lines));
            }
            _ => {}
        }
    }
}

async fn restart(primary: &Primary, slot: Option<Slot>, events: Events, to: &mpsc::Sender<String>) -> End {
    let status = primary.status().map_err(|error| failed(error, &[]))?;
    let slots: BTreeSet<Slot> = match (slot, status.wanted) {
        (Some(slot), _) => BTreeSet::from([slot]),
        (None, Some(wanted)) => (0..wanted).map(Slot).collect(),
        (None, None) => BTreeSet::new(),
    };
    let old: BTreeSet<WorkerId> =
        status.workers.iter().filter(|worker| slots.contains(&worker.slot)).map(|worker| worker.id).collect();
    let begun = slots.iter().filter(|slot| primary.restart(**slot)).count();
    if begun == 0 {
        return Err(failed("there is nobody to restart there, or it is being replaced already", &[]));
    }
    let changed = |status: &Status| {
        let ready =
            |slot: &Slot| status.workers.iter().any(|w| w.slot == *slot && w.ready && !old.contains(&w.id));
        slots.iter().all(ready) && !status.workers.iter().any(|worker| old.contains(&worker.id))
    };
    until(primary, events, to, &old, changed).await?;
    Ok(json!({ "restarted": slots }))
}

async fn rescale(primary: &Primary, scale: Scale, events: Events, to: &mpsc::Sender<String>) -> End {
    let before = primary.status().map_err(|error| failed(error, &[]))?;
    let old = before.workers.iter().map(|worker| worker.id).collect();
    let wanted = match scale {
        Scale::To(number) => primary.scale(number),
        Scale::By(change) => primary.scale_by(change),
    };
    let wanted = wanted.map_err(|error| failed(error, &[]))?;
    let reached = |status: &Status| {
        status.ready >= wanted && !status.workers.iter().any(|worker| worker.slot.0 >= wanted)
    };
    until(primary, events, to, &old, reached).await?;
    Ok(json!({ "workers": wanted }))
}

async fn kill(
    primary: &Primary,
    slot: Slot,
    hurry: Hurry,
    mut events: Events,
    to: &mpsc::Sender<String>,
) -> End {
    let status = primary.status().map_err(|error| failed(error, &[]))?;
    let in_slot = |worker: &&phalanx::WorkerStatus| worker.slot == slot && worker.state.is_alive();
    let found = status.workers.iter().find(in_slot).and_then(|worker| primary.worker(worker.id));
    let Some(worker) = found else {
        return Err(failed(format!("nobody is in slot {slot}"), &[]));
    };
    let mut progress = worker.end(hurry);
    loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => tell(to, &json!(event)).await,
                None => break,
            },
            () = &mut progress => break,
        }
    }
    Ok(json!({ "ended": worker.id() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_understood_or_explained() {
        let parse = Operation::parse;
        assert_eq!(parse("reload", None), Ok(Operation::Reload));
        assert_eq!(parse("restart", Some("slot=2")), Ok(Operation::Restart(Some(Slot(2)))));
        assert_eq!(parse("scale", Some("workers=4")), Ok(Operation::Scale(Scale::To(4))));
        assert_eq!(parse("scale", Some("workers=%2B2")), Ok(Operation::Scale(Scale::By(2))));
        assert_eq!(parse("scale", Some("workers=-1")), Ok(Operation::Scale(Scale::By(-1))));
        assert_eq!(parse("kill", Some("slot=0&hurry=kill")), Ok(Operation::Kill(Slot(0), Hurry::Kill)));
        for (name, query) in [
            ("fly", None),
            ("scale", None),
            ("scale", Some("workers=0")),
            ("kill", None),
            ("kill", Some("slot=0&hurry=very")),
            ("restart", Some("slot=x")),
        ] {
            assert!(parse(name, query).is_err(), "{name} {query:?}");
        }
    }
}
