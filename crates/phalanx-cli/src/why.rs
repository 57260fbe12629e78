//! Why workers ended: what is remembered of each slot, and the paragraph that tells it.

use phalanx::{Cause, Ended, Event, Primary, Slot, Status};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// The last end of each slot.
#[derive(Debug, Default)]
pub(crate) struct Ends(Mutex<BTreeMap<Slot, (SystemTime, Event)>>);

impl Ends {
    pub(crate) fn note(&self, event: &Event) {
        let slot = match event {
            Event::Exit { slot, .. } | Event::ForkFailed { slot, .. } => *slot,
            _ => return,
        };
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.insert(slot, (SystemTime::now(), event.clone()));
    }

    /// What can be said of a slot; `None` if there was never anybody.
    pub(crate) fn why(&self, primary: &Primary, slot: Slot) -> Option<Why> {
        let end = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).cloned();
        let status = primary.status().ok()?;
        let known = status.workers.iter().any(|worker| worker.slot == slot);
        if end.is_none() && !known {
            return None;
        }
        let mut paragraph = match &end {
            None => format!("No worker of slot {slot} has ended.\n"),
            Some((at, event)) => tell(*at, event),
        };
        paragraph.push_str(&present(&status, slot));
        Some(Why { slot, end: end.map(|(_, event)| event), why: paragraph })
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Why {
    slot: Slot,
    end: Option<Event>,
    why: String,
}

fn tell(at: SystemTime, event: &Event) -> String {
    let ago = at.elapsed().unwrap_or_default().as_secs();
    let mut text = String::new();
    match event {
        Event::ForkFailed { slot, error } => {
            let _ = writeln!(text, "Slot {slot}: {ago} s ago no worker could be started: {error}.");
        }
        Event::Exit {
            worker,
            slot,
            ended,
            cause,
            exited_after_disconnect,
            taken,
            unacknowledged,
            last_lines,
        } => {
            let _ = writeln!(text, "Slot {slot}: worker {worker} ended {ago} s ago: {}.", named(*ended));
            let _ = writeln!(
                text,
                "{}",
                match cause {
                    Some(cause) => format!("phalanx ended it: {cause}."),
                    None if *exited_after_disconnect =>
                        "It had been asked to leave, or left by itself.".to_owned(),
                    None => "Nobody had asked it to.".to_owned(),
                }
            );
            if let Some(advice) = advice(*ended, cause.as_ref(), *exited_after_disconnect) {
                let _ = writeln!(text, "{advice}");
            }
            if *taken + *unacknowledged > 0 {
                let _ = writeln!(
                    text,
                    "It had taken {taken} connections; {unacknowledged} that it had not taken went to others."
                );
            }
            if !last_lines.is_empty() {
                text.push_str("It printed last:\n");
                for line in last_lines {
                    let _ = writeln!(text, "  {line}");
                }
            }
        }
        _ => {}
    }
    text
}

fn present(status: &Status, slot: Slot) -> String {
    let mut text = String::new();
    for worker in status.workers.iter().filter(|worker| worker.slot == slot) {
        let ready = if worker.ready { ", ready" } else { "" };
        let _ = write!(
            text,
            "Now: worker {} of generation {}, {}{ready}",
            worker.id, worker.generation, worker.state
        );
        if let Some(cause) = &worker.due {
            let _ = write!(text, "; to be replaced: {cause}");
        }
        if let Some(how) = &worker.hung {
            let _ = write!(text, "; it hangs: {how}");
        }
        if worker.degraded {
            text.push_str("; workers of this slot keep dying before they come up");
        }
        text.push_str(".\n");
    }
    if text.is_empty() {
        text.push_str("Now: nobody; the next one waits to be started.\n");
    }
    text
}

fn named(ended: Ended) -> String {
    let name = match ended {
        Ended::Signal(number, _) => phalanx_os::Signal::from_raw(number).map(|signal| signal.name()),
        _ => None,
    };
    match name {
        Some(name) => format!("{ended} ({name})"),
        None => ended.to_string(),
    }
}

fn advice(ended: Ended, cause: Option<&Cause>, asked: bool) -> Option<&'static str> {
    if asked || cause.is_some() {
        return match cause? {
            Cause::DrainTimeout => Some("Its connections lasted longer than --drain-timeout."),
            Cause::NeverReady(_) | Cause::NeverOnline => {
                Some("If it only needs longer to start, raise --start-timeout.")
            }
            Cause::Hung(_) => {
                Some("If long pauses are normal for it, raise --hang-timeout, or --on-hang report.")
            }
            _ => None,
        };
    }
    Some(match ended {
        Ended::OutOfMemory => {
            "The memory limit of the control group was reached: raise it, run fewer workers, or set --max-rss below it."
        }
        Ended::Signal(9, _) => {
            "SIGKILL comes from outside: from a person, or from the kernel when the machine is out of \
             memory (see dmesg)."
        }
        Ended::Signal(11 | 7 | 4 | 8, _) => {
            "That is a fault in native code: a core dump or a debugger says where."
        }
        Ended::Signal(6, _) => "It ended itself, by abort or a failed assertion: its last lines say why.",
        Ended::Code(0) => "It ended as if its work were done. If that is normal, use --restart on-failure.",
        Ended::Code(126 | 127) => "The program, or its interpreter, could not be run.",
        Ended::Code(_) | Ended::Signal(..) => return None,
    })
}
