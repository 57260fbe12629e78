//! `docs/conformance.md` says the truth: it holds every behaviour of the list, and the tests that it names exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a row says of its behaviour.
#[derive(Debug, PartialEq)]
enum Shown {
    /// By these tests.
    By(Vec<String>),
    NotApplicable,
    Missing,
}

#[derive(Debug)]
struct Row {
    id: String,
    title: String,
    shown: Shown,
}

/// A row of a table: `| ID | what | in phalanx | shown by |`.
fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [id, title, _ours, shown] = cells[..] else { panic!("a row has four cells: {line}") };
    let (group, number) = id.split_once('-')?;
    if !group.chars().all(|c| c.is_ascii_uppercase()) || !number.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let reasoned = |prefix: &str| {
        shown.strip_prefix(prefix).map(|why| assert!(why.trim().len() > 5, "{id}: say why")).is_some()
    };
    let shown = if reasoned("*n/a*:") {
        Shown::NotApplicable
    } else if reasoned("*missing*:") {
        Shown::Missing
    } else {
        let names: Vec<String> = shown.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(!names.is_empty(), "{id}: name a test, or say `*n/a*: why`");
        Shown::By(names)
    };
    Some(Row { id: id.to_owned(), title: title.to_owned(), shown })
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names of the tests in a source file, as the runners print them; `module` is the file's own.
fn tests_in(source: &str, module: &[&str]) -> Vec<String> {
    let mut path: Vec<(usize, &str)> = module.iter().map(|name| (0, *name)).collect();
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let item = code.strip_prefix("pub ").unwrap_or(code);
        let function = item.strip_prefix("async ").unwrap_or(item).strip_prefix("fn ");
        if code.starts_with("#[test]") || code.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = item.strip_prefix("mod ")
            && let Some(name) = rest.strip_suffix(" {")
        {
            path.push((indent, name));
        } else if code == "}" && path.len() > module.len() && path.last().is_some_and(|last| last.0 == indent)
        {
            path.pop();
        } else if let Some(rest) = function
            && std::mem::take(&mut is_test)
        {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            let modules = path.iter().map(|(_, name)| *name);
            names.push(modules.chain([name]).collect::<Vec<_>>().join("::"));
        }
    }
    names
}

/// Every test of the workspace: the binary's name as nextest has it, a space, the test's name.
fn all_tests() -> BTreeSet<String> {
    let root = root();
    let mut packages: Vec<(String, PathBuf)> = fs::read_dir(root.join("crates"))
        .expect("crates")
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    packages.push(("phalanx-tests".to_owned(), root.join("tests")));
    let mut all = BTreeSet::new();
    for (package, dir) in packages {
        for area in ["src", "tests"] {
            let base = dir.join(area);
            let mut found = Vec::new();
            files(&base, &mut found);
            for file in found {
                let inside = file.strip_prefix(&base).expect("inside").with_extension("");
                let mut module: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
                if matches!(module.last(), Some(&("mod" | "lib" | "main"))) {
                    module.pop();
                }
                let binary = if area == "tests" {
                    format!("{package}::{}", module.remove(0))
                } else {
                    package.clone()
                };
                all.extend(
                    tests_in(&read(&file), &module).into_iter().map(|name| format!("{binary} {name}")),
                );
            }
        }
    }
    all
}

fn table() -> (String, Vec<Row>) {
    let text = read(&root().join("docs/conformance.md"));
    let rows = text.lines().filter_map(row).collect();
    (text, rows)
}

#[test]
fn every_behaviour_is_in_the_table_once() {
    let list = read(&root().join("tests/conformance/ids.txt"));
    let listed: BTreeMap<&str, &str> = list
        .lines()
        .map(|line| line.split_once(' ').unwrap_or_else(|| panic!("`{line}` is no ID and title")))
        .collect();
    assert_eq!(listed.len(), list.lines().count(), "an ID is listed twice");
    let mut seen = BTreeSet::new();
    for row in table().1 {
        assert_eq!(
            listed.get(row.id.as_str()),
            Some(&row.title.as_str()),
            "{}: ids.txt knows it thus",
            row.id
        );
        assert!(seen.insert(row.id.clone()), "{} is in the table twice", row.id);
    }
    let left_out: Vec<_> = listed.keys().filter(|id| !seen.contains(**id)).collect();
    assert!(left_out.is_empty(), "not in the table: {left_out:?}");
}

#[test]
fn every_named_test_exists() {
    let all = all_tests();
    let mut wrong = Vec::new();
    for row in table().1 {
        if let Shown::By(names) = row.shown {
            wrong.extend(
                names.iter().filter(|name| !all.contains(*name)).map(|name| format!("{}: {name}", row.id)),
            );
        }
    }
    assert!(wrong.is_empty(), "there are no such tests:\n{}", wrong.join("\n"));
}

/// What is missing may only become less.
#[test]
fn nothing_more_is_missing_than_was() {
    let (text, rows) = table();
    let allowed: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("Missing: "))
        .and_then(|number| number.parse().ok())
        .expect("the table says `Missing: N`");
    let missing: Vec<_> = rows.iter().filter(|row| row.shown == Shown::Missing).map(|row| &row.id).collect();
    println!("{} rows, {} missing: {missing:?}", rows.len(), missing.len());
    assert_eq!(missing.len(), allowed, "`Missing:` in docs/conformance.md is to say how many rows are");
}

/// A mutation that changes nothing, or that nobody is to notice, proves nothing.
#[test]
fn every_mutation_is_of_the_source_and_its_test_shows_the_row() {
    let rows = table().1;
    let mut wrong = Vec::new();
    let all = phalanx_tests::mutations::all();
    assert!(all.len() >= 60);
    for it in all {
        if let Err(why) = it.damage(&read(&root().join(&it.file))) {
            wrong.push(why);
        }
        let shown = rows.iter().any(|row| {
            row.id == it.row && matches!(&row.shown, Shown::By(names) if names.contains(&it.test))
        });
        if !shown {
            wrong.push(format!("{}: {} does not name {}", it.name, it.row, it.test));
        }
    }
    assert!(wrong.is_empty(), "mutations that are out of date:\n{}", wrong.join("\n"));
}

#[test]
fn tests_are_found_where_they_are() {
    let source = "#[test]\nfn a() {\n}\nfn no_test() {\n}\nmod tests {\n    mod inner {\n        #[test]\n        \
                  fn b() {\n        }\n    }\n    #[tokio::test]\n    async fn c() {\n    }\n}\n#[test]\nfn d() {}\n";
    assert_eq!(tests_in(source, &["m"]), ["m::a", "m::tests::inner::b", "m::tests::c", "m::d"]);
}
