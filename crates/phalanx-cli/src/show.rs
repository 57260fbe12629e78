//! The commands that talk to a running instance.

use crate::args;
use crate::control::ask;
use crate::exit::{Code, Failure};
use hyper::Method;
use serde_json::Value;
use std::io::Write;

/// Ends with the instance.
const FOLLOW: &str = "/v1/events?follow";

pub(crate) fn status(args: &args::Status) -> Result<Code, Failure> {
    let mut text = Vec::new();
    ask(args.instance.name.as_deref(), Method::GET, "/v1/status", |piece| text.extend_from_slice(piece))?;
    if args.json {
        print(&text);
        return Ok(Code::Ok);
    }
    let status: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(Code::Failed, format!("the answer makes no sense: {error}")))?;
    print(table(&status).as_bytes());
    Ok(Code::Ok)
}

/// Whether new connections should be sent here.
pub(crate) fn ready(args: &args::Ready) -> Result<Code, Failure> {
    let mut text = Vec::new();
    ask(args.instance.name.as_deref(), Method::GET, "/v1/status", |piece| text.extend_from_slice(piece))?;
    let status: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(Code::Failed, format!("the answer makes no sense: {error}")))?;
    let (ready, stopping) = (status["ready"].as_u64().unwrap_or(0), status["stopping"] == true);
    let enough = args.at_least.map(u64::from).or(status["wanted"].as_u64()).unwrap_or(1);
    let is_ready = ready >= enough && !stopping;
    if args.json {
        let answer = serde_json::json!({ "ready": is_ready, "workers": ready, "stopping": stopping });
        print(format!("{answer}\n").as_bytes());
    } else {
        let stops = if stopping { ", and it is about to stop" } else { "" };
        print(format!("{ready} of {enough} workers are ready{stops}\n").as_bytes());
    }
    Ok(if is_ready { Code::Ok } else { Code::Failed })
}

pub(crate) fn events(args: &args::Events) -> Result<Code, Failure> {
    let path = if args.follow { FOLLOW } else { "/v1/events" };
    ask(args.instance.name.as_deref(), Method::GET, path, print)?;
    Ok(Code::Ok)
}

pub(crate) fn stop(args: &args::Stop) -> Result<Code, Failure> {
    let name = args.instance.name.clone();
    let path = if args.now { "/v1/stop?now" } else { "/v1/stop" };
    ask(name.as_deref(), Method::POST, path, |_| {})?;
    // The end of the event stream is the end of the instance; if it is gone already, so much the better.
    let _ = ask(name.as_deref(), Method::GET, FOLLOW, |_| {});
    Ok(Code::Ok)
}

pub(crate) fn print(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        // Nobody reads any more, as after `| head`.
        #[expect(clippy::exit, reason = "a closed pipe ends a command, as it ends others")]
        std::process::exit(0);
    }
}

/// Whether all is well, in few words.
fn summary(status: &Value) -> String {
    let mut text = String::new();
    if let (Some(ready), Some(wanted)) = (status["ready"].as_u64(), status["wanted"].as_u64()) {
        text.push_str(&format!(": {ready} of {wanted} ready, generation {}", status["generation"]));
    }
    if let Some(target) = status["reloading"].as_u64() {
        text.push_str(&format!(", reloading to {target}"));
    }
    if status["workers"].as_array().into_iter().flatten().any(|worker| worker["degraded"] == true) {
        text.push_str(", degraded");
    }
    if status["stopping"] == true {
        text.push_str(", stopping");
    }
    text
}

/// A worker's state, and what else is to be known of it.
fn state(worker: &Value) -> String {
    let mut text = worker["state"].as_str().unwrap_or("?").to_owned();
    let notes = [
        (worker["hung"].is_object(), "hangs"),
        (worker["due"].is_string() || worker["due"].is_object(), "to be replaced"),
        (worker["degraded"] == true, "degraded"),
        (worker["changed"] == true, "file changed"),
    ];
    for (is_so, note) in notes {
        if is_so {
            text.push_str(", ");
            text.push_str(note);
        }
    }
    text
}

/// The tables for people.
fn table(status: &Value) -> String {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut rows = vec![
        ["SLOT", "ID", "PID", "STATE", "GEN", "UPTIME", "RESTARTS", "TAKEN", "RSS", "LAST END"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for worker in status["workers"].as_array().into_iter().flatten() {
        rows.push(vec![
            text(&worker["slot"]),
            text(&worker["id"]),
            text(&worker["pid"]),
            state(worker),
            text(&worker["generation"]),
            uptime(worker["uptime_ms"].as_u64().unwrap_or(0)),
            text(&worker["restarts"]),
            text(&worker["taken"]),
            worker["rss_kib"].as_u64().map_or("-".to_owned(), |kib| format!("{:.1}M", kib as f64 / 1024.0)),
            end(&worker["last_end"]),
        ]);
    }
    let mut out = format!("{} (pid {}){}\n\n", text(&status["name"]), text(&status["pid"]), summary(status));
    align(&rows, &mut out);
    for listener in status["listeners"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "\n{}  {} by {} ({})  pending {}  queued {}\n",
            text(&listener["address"]),
            text(&listener["policy"]),
            text(&listener["mechanism"]),
            text(&listener["why"]),
            text(&listener["pending"]),
            text(&listener["queued"]),
        ));
        let steered = listener["steering"].is_object();
        let mut head = vec!["  SLOT", "WORKER", "ASSIGNED", "QUEUED", "TAKEN"];
        if steered {
            head.extend(["MOVED IN", "MOVED OUT", "OPEN", "WEIGHT", "LAGS", ""]);
        }
        let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for slot in listener["slots"].as_array().into_iter().flatten() {
            let mut row = vec![format!("  {}", text(&slot["slot"]))];
            row.extend(["worker", "assigned", "queued", "taken"].map(|name| text(&slot[name])));
            if steered {
                row.extend(["moved_in", "moved_out", "open", "weight", "lags"].map(|name| text(&slot[name])));
                row.push(if slot["lagging"] == true { "lagging".to_owned() } else { String::new() });
            }
            rows.push(row);
        }
        align(&rows, &mut out);
    }
    let ledger = &status["ledger"];
    out.push_str(&format!(
        "\nledger: accepted {} = pending {} + in flight {} + taken {} + closed {};  refused {}, returned {}\n",
        text(&ledger["accepted"]),
        text(&ledger["pending"]),
        text(&ledger["in_flight"]),
        text(&ledger["taken"]),
        ledger["closed"].as_object().map_or(0, |all| all.values().filter_map(Value::as_u64).sum::<u64>()),
        text(&ledger["refused"]),
        text(&ledger["returned"]),
    ));
    if let Some(dropped) = status["output_dropped"].as_u64().filter(|dropped| *dropped > 0) {
        out.push_str(&format!("output: {dropped} lines of workers lost: not read, or not to be written\n"));
    }
    out
}

fn uptime(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

fn end(last: &Value) -> String {
    let ended = &last["ended"];
    if let Some(code) = ended["code"].as_i64() {
        return format!("exit {code}");
    }
    match ended["signal"][0]
        .as_i64()
        .and_then(|n| i32::try_from(n).ok())
        .and_then(phalanx_os::Signal::from_raw)
    {
        Some(signal) => signal.to_string(),
        None => "-".to_owned(),
    }
}

fn align(rows: &[Vec<String>], out: &mut String) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_and_says_how_the_last_one_ended() {
        let status = serde_json::json!({
            "name": "web", "pid": 1,
            "workers": [{"slot": 0, "id": 2, "pid": 7, "state": "listening", "generation": 1, "uptime_ms": 61000,
                "restarts": 1, "taken": 3, "rss_kib": 2048, "last_end": {"ended": {"signal": [9, false]}}}],
            "listeners": [], "ledger": {},
        });
        let table = table(&status);
        assert!(table.contains("SIGKILL") && table.contains("1m01s") && table.contains("2.0M"), "{table}");
    }
}
