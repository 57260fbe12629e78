//! The commands that change a running instance, and those that ask about one worker.

use crate::args::{self, Instance};
use crate::control::{ask, ask_status};
use crate::exit::{Code, Failure};
use crate::operation::{Scale, scale};
use crate::show::print;
use hyper::Method;
use serde_json::Value;

pub(crate) fn reload(args: &args::Operation) -> Result<Code, Failure> {
    operate(args, "/v1/reload")
}

pub(crate) fn restart(args: &args::Restart) -> Result<Code, Failure> {
    match args.slot {
        Some(slot) => operate(&args.operation, &format!("/v1/restart?slot={slot}")),
        None => operate(&args.operation, "/v1/restart"),
    }
}

pub(crate) fn rescale(args: &args::Scale) -> Result<Code, Failure> {
    let workers = match scale(&args.workers).map_err(|why| Failure::new(Code::Usage, why))? {
        Scale::To(number) => number.to_string(),
        Scale::By(change @ ..0) => change.to_string(),
        Scale::By(change) => format!("%2B{change}"),
    };
    operate(&args.operation, &format!("/v1/scale?workers={workers}"))
}

pub(crate) fn kill(args: &args::Kill) -> Result<Code, Failure> {
    let hurry = match (args.now, args.force) {
        (false, false) => "",
        (true, false) => "&hurry=now",
        (_, true) => "&hurry=kill",
    };
    operate(&args.operation, &format!("/v1/kill?slot={}{hurry}", args.slot))
}

pub(crate) fn why(args: &args::Why) -> Result<Code, Failure> {
    let (status, text) = collect(&args.instance, &format!("/v1/why?slot={}", args.slot))?;
    if status != 200 {
        return Err(Failure::new(Code::Failed, String::from_utf8_lossy(&text).trim()));
    }
    if args.json {
        print(&text);
    } else {
        let answer: Value = serde_json::from_slice(&text).unwrap_or_default();
        print(answer["why"].as_str().unwrap_or_default().as_bytes());
    }
    Ok(Code::Ok)
}

pub(crate) fn curl(args: &args::Curl) -> Result<Code, Failure> {
    let path = if args.path.starts_with('/') { args.path.clone() } else { format!("/{}", args.path) };
    let mut ask = format!("/v1/curl/{}{path}", args.worker);
    if let Some(listener) = &args.listener {
        ask.push_str(if ask.contains('?') { "&" } else { "?" });
        ask.push_str(&format!("phalanx-listener={listener}"));
    }
    let (status, body) = collect(&args.instance, &ask)?;
    print(&body);
    Ok(if status < 400 { Code::Ok } else { Code::Failed })
}

fn collect(instance: &Instance, path: &str) -> Result<(u16, Vec<u8>), Failure> {
    let mut text = Vec::new();
    let status =
        ask_status(instance.name.as_deref(), Method::GET, path, |piece| text.extend_from_slice(piece))?;
    Ok((status, text))
}

/// Begins something, shows how it goes, and ends as it ended.
fn operate(args: &args::Operation, path: &str) -> Result<Code, Failure> {
    let mut rest = Vec::new();
    let mut end = None;
    ask(args.instance.name.as_deref(), Method::POST, path, |piece| {
        rest.extend_from_slice(piece);
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=at).collect();
            if args.json {
                print(&line);
            }
            let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
            if value["done"].is_object() || value["failed"].is_string() {
                end = Some(value);
            } else if !args.json
                && let Some(step) = step(&value)
            {
                eprintln!("{step}");
            }
        }
    })?;
    match end {
        Some(end) if end["done"].is_object() => {
            if !args.json {
                print(done(&end["done"]).as_bytes());
            }
            Ok(Code::Ok)
        }
        Some(end) => {
            let why = end["failed"].as_str().unwrap_or_default();
            let lines: Vec<&str> =
                end["last_lines"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let mut sentence = why.to_owned();
            if !lines.is_empty() {
                sentence.push_str("\nit printed last:\n  ");
                sentence.push_str(&lines.join("\n  "));
            }
            Err(Failure::new(Code::Failed, sentence))
        }
        None => {
            let said = String::from_utf8_lossy(&rest);
            let said = said.trim();
            Err(Failure::new(Code::Instance, if said.is_empty() { "the instance has ended" } else { said }))
        }
    }
}

/// An event, for whoever waits.
fn step(event: &Value) -> Option<String> {
    let (worker, slot, generation) = (&event["worker"], &event["slot"], &event["generation"]);
    Some(match event["event"].as_str()? {
        "reloading" => format!("to generation {generation}"),
        "fork" => format!("slot {slot}: worker {worker} started"),
        "fork-failed" => format!("slot {slot}: {}", event["error"].as_str().unwrap_or_default()),
        "ready" => format!("worker {worker} is ready"),
        "draining" => format!("worker {worker} drains"),
        "exit" => format!("slot {slot}: worker {worker} ended"),
        _ => return None,
    })
}

fn done(done: &Value) -> String {
    if let Some(generation) = done["generation"].as_u64() {
        return format!("all workers are of generation {generation}\n");
    }
    if let Some(workers) = done["workers"].as_u64() {
        return format!("{workers} workers are ready\n");
    }
    if let Some(slots) = done["restarted"].as_array() {
        return format!("{} restarted\n", slots.len());
    }
    "done\n".to_owned()
}
