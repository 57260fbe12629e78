//! What core's work costs in instructions, against the budgets of `tests/instructions.txt`.

use phalanx_tests::lab;
use std::process::Command;

/// Instructions of one run of `program CASE TIMES` under callgrind.
fn count(program: &str, case: &str, times: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", program, case, &times.to_string()])
        .output()
        .expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{case}: {said}");
    let counted = said.lines().find_map(|line| line.split_once("Collected :")).expect("a count").1;
    counted.trim().parse().expect("a number")
}

#[test]
fn core_stays_within_its_budget_of_instructions() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        lab::skip("valgrind is not installed (Debian: apt-get install valgrind)");
        return;
    }
    // A budget is for what users run.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "-p", "phalanx-core", "--example", "instructions"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(lab::root())
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&built.stdout);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let program = said
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|it| Some(it["executable"].as_str()?.to_owned()))
        .expect("cargo names the program");

    let table = std::fs::read_to_string(lab::root().join("tests/instructions.txt")).expect("the table");
    let mut wrong = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (case, budget) = (words.next().expect("a case"), words.next().expect("a budget"));
        let budget: u64 = budget.parse().expect("a number");
        const TIMES: u64 = 2000;
        let each = (count(&program, case, 2 * TIMES) - count(&program, case, TIMES)) / TIMES;
        println!("{case:20} {each:6} of {budget:6} instructions");
        if each > budget {
            wrong.push(format!("{case}: {each} instructions, the budget is {budget}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
