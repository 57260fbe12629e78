//! Damages the source in small ways, one after the other, and sees whether the test that must notice does.
//!
//! In a copy of the tree (`target/mutations`). One that no test notices is a failure, and so is one that does not
//! build: then the damage was none.

use clap::Parser;
use phalanx_tests::lab;
use phalanx_tests::mutations::{self, Mutation};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A damaged program may wait for ever.
const TEST_SECONDS: &str = "120";
const BUILD_SECONDS: &str = "1200";

/// Damages the source in small ways, and sees whether the tests notice
#[derive(Debug, Parser)]
struct Args {
    /// So many of them, others each time
    #[arg(long)]
    sample: Option<usize>,
    /// Those of this group, or with this text in their name or row
    #[arg(long)]
    only: Option<String>,
    /// Show what the tests said of those that were not noticed
    #[arg(long)]
    verbose: bool,
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A copy of the sources, with a target directory of its own.
struct Tree {
    dir: PathBuf,
    target: PathBuf,
}

impl Tree {
    /// Brings the copy up to date. What has not changed is not touched: it need not be built again.
    fn new() -> std::io::Result<Tree> {
        let root = lab::root();
        let base = root.join("target/mutations");
        let tree = Tree { dir: base.join("tree"), target: base.join("target") };
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names: BTreeSet<&Path> =
            listed.split('\0').map(Path::new).filter(|it| root.join(it).is_file()).collect();
        for left in files(&tree.dir) {
            if left.strip_prefix(&tree.dir).is_ok_and(|name| !names.contains(name)) {
                fs::remove_file(left)?;
            }
        }
        for name in names {
            let (from, to) = (root.join(name), tree.dir.join(name));
            let content = fs::read(&from)?;
            if fs::read(&to).ok().as_ref() != Some(&content) {
                fs::create_dir_all(to.parent().unwrap_or(&tree.dir))?;
                fs::write(&to, content)?;
            }
        }
        Ok(tree)
    }

    fn cargo(&self, seconds: &str, binary: &str, rest: &[&str]) -> std::io::Result<Output> {
        let mut command = Command::new("timeout");
        command.args([seconds, "cargo", "test", "--quiet"]);
        match binary.split_once("::") {
            Some((package, test)) => command.args(["-p", package, "--test", test]),
            None => command.args(["-p", binary, "--lib"]),
        };
        command
            .args(rest)
            .current_dir(&self.dir)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("PHALANX_LAB", lab::dir())
            .output()
    }

    /// Whether these tests pass; else what they say.
    fn pass(&self, binary: &str, names: &[&str]) -> std::io::Result<Result<(), String>> {
        let output = self.cargo(TEST_SECONDS, binary, &[&["--", "--exact"], names].concat())?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let ran = text.contains(&format!("test result: ok. {} passed", names.len()));
        Ok(if output.status.success() && ran { Ok(()) } else { Err(text) })
    }

    fn builds(&self, binary: &str) -> std::io::Result<bool> {
        Ok(self.cargo(BUILD_SECONDS, binary, &["--no-run"])?.status.success())
    }

    fn attempt(&self, mutation: &Mutation) -> std::io::Result<Result<Seen, String>> {
        let path: &Path = &self.dir.join(&mutation.file);
        let source = fs::read_to_string(path)?;
        let damaged = match mutation.damage(&source) {
            Ok(damaged) => damaged,
            Err(why) => return Ok(Err(why)),
        };
        fs::write(path, damaged)?;
        let (binary, name) = mutation.test.split_once(' ').unwrap_or_default();
        let seen = match self.builds(binary)? {
            false => Seen::NoProgram,
            true => match self.pass(binary, &[name])? {
                Ok(()) => Seen::Nothing,
                Err(_) => Seen::Red,
            },
        };
        fs::write(path, source)?;
        Ok(Ok(seen))
    }
}

enum Seen {
    Red,
    Nothing,
    NoProgram,
}

fn chosen(args: &Args) -> Vec<Mutation> {
    let mut all = mutations::all();
    if let Some(only) = &args.only {
        all.retain(|it| it.group == *only || it.row == *only || it.name.contains(only.as_str()));
    }
    if let Some(count) = args.sample {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs() as usize);
        let step = (all.len() / count.max(1)).max(1);
        let start = now % step;
        all = all.into_iter().skip(start).step_by(step).take(count).collect();
    }
    // What is built from the same files follows one another.
    all.sort_by(|a, b| (&a.test, &a.file).cmp(&(&b.test, &b.file)));
    all
}

fn main() -> std::io::Result<ExitCode> {
    let args = Args::parse();
    let all = chosen(&args);
    let tree = Tree::new()?;
    let mut by_binary: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for it in &all {
        let (binary, name) = it.test.split_once(' ').unwrap_or_default();
        by_binary.entry(binary).or_default().insert(name);
    }
    for (binary, names) in by_binary {
        // BEFORE anything is damaged: what fails by itself notices nothing.
        tree.builds(binary)?;
        let names: Vec<&str> = names.into_iter().collect();
        if let Err(text) = tree.pass(binary, &names)? {
            println!("{text}\n{binary}: its tests fail by themselves");
            return Ok(ExitCode::FAILURE);
        }
    }
    let (mut red, mut bad) = (0, 0);
    for it in &all {
        let begun = Instant::now();
        let seen = tree.attempt(it)?;
        let word = match &seen {
            Ok(Seen::Red) => "red",
            Ok(Seen::Nothing) => "NOT NOTICED",
            Ok(Seen::NoProgram) => "DOES NOT BUILD",
            Err(why) => why.as_str(),
        };
        let is_red = matches!(seen, Ok(Seen::Red));
        (red, bad) = (red + u32::from(is_red), bad + u32::from(!is_red));
        println!("{word:<12} {} ({}, {}; {} s)", it.name, it.row, it.group, begun.elapsed().as_secs());
        if args.verbose && !is_red {
            println!("  {}\n  {}", it.file, it.test);
        }
    }
    println!("{} mutations: {red} red, {bad} not", all.len());
    Ok(if bad == 0 && !all.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
