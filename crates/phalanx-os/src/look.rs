//! What a process is doing, as far as the kernel tells: for people who ask why it hangs.

use std::fs;
use std::path::Path;

/// Threads that are told of.
const THREADS: usize = 8;
/// Lines of a stack that are told.
const DEEP: usize = 12;

/// Lines for people: the state, what it waits for in the kernel, the kernel's stack where that may be read
/// (root). Of each thread, up to a few; the first is the main one. Empty when the process is gone, or there is
/// no `/proc`.
#[must_use]
pub fn at(pid: u32) -> Vec<String> {
    let mut threads: Vec<u32> = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    threads.sort_unstable();
    let more = threads.len().saturating_sub(THREADS);
    let mut lines: Vec<String> = threads
        .into_iter()
        .take(THREADS)
        .flat_map(|thread| look(Path::new(&format!("/proc/{pid}/task/{thread}")), thread))
        .collect();
    if more > 0 {
        lines.push(format!("and {more} more threads"));
    }
    lines
}

fn look(directory: &Path, thread: u32) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
    let Some(status) = read("status") else { return Vec::new() };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let name = field("Name:").unwrap_or("?");
    let state = field("State:").unwrap_or("?");
    let mut line = format!("thread {thread} ({name}): {state}");
    if let Some(place) = read("wchan").filter(|place| !matches!(place.trim(), "" | "0")) {
        line.push_str(&format!(", in {}", place.trim()));
    }
    let mut lines = vec![line];
    let stack = read("stack").unwrap_or_default();
    lines.extend(stack.lines().take(DEEP).map(|frame| format!("    {}", frame.trim())));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_stands_still_shows_where() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let lines = at(child.id());
        assert!(lines[0].starts_with(&format!("thread {} (", child.id())), "{lines:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(at(child.id()).is_empty());
    }
}
