//! The failure budget as a table, and as JSON.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use phalanx_tests::budget::{HEAD, Scenario, Size, cells};
use phalanx_tests::lab;

/// Makes all kinds of things go wrong under load, for each mechanism and kind of worker, and prints what was
/// lost. Exit status 1 if a promise was broken.
#[derive(Parser)]
#[command(name = "phalanx-budget")]
struct Args {
    /// Only lines that contain this.
    filter: Option<String>,
    /// Write the lines as JSON to this file, too.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// As small as in the tests.
    #[arg(long)]
    small: bool,
    /// Which Node.
    #[arg(long, value_name = "VERSION", default_value = lab::NODE, value_parser = lab::NODE_VERSIONS)]
    node: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let node = lab::NODE_VERSIONS.into_iter().find(|it| *it == args.node).unwrap_or(lab::NODE);
    let size = Size { node, ..if args.small { Size::SMALL } else { Size::FULL } };
    let Size { workers, clients, times, between, .. } = size;
    println!(
        "{workers} workers, {clients} clients, {times} times with {between} connections between; Node v{node}\n{HEAD}"
    );
    let mut rows = Vec::new();
    for scenario in Scenario::ALL.into_iter().filter(|it| it.possible()) {
        for (mechanism, kind) in cells() {
            let name = format!("{scenario} {} {kind:?}", mechanism.name()).to_lowercase();
            if args.filter.as_ref().is_some_and(|filter| !name.contains(&filter.to_lowercase())) {
                continue;
            }
            let row = scenario.run(mechanism, kind, size);
            println!("{row}");
            let _ = std::io::stdout().flush();
            rows.push(row);
        }
    }
    if let Some(path) = args.json {
        let text = serde_json::to_string_pretty(&rows).expect("rows are JSON");
        if let Err(error) = std::fs::write(&path, text + "\n") {
            eprintln!("phalanx-budget: cannot write {}: {error}", path.display());
            return ExitCode::from(2);
        }
    }
    let broken = rows.iter().filter(|row| !row.broken.is_empty()).count();
    println!("{} lines, {broken} promises broken", rows.len());
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
