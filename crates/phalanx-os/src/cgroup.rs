//! What the control group of this process says, of version 2 and of version 1.

use std::fs;
use std::io;
use std::path::PathBuf;

/// How many processes of our control group, and of those below it, the kernel has killed because the group was
/// out of memory.
///
/// # Errors
/// `NotFound` where there is no such count: no memory controller, the root group, no `/sys`.
pub fn oom_kills() -> io::Result<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    files(&groups)
        .into_iter()
        .find_map(|file| count(&fs::read_to_string(file).ok()?))
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Where the count may stand. A container may see its group as the root, whatever its name is.
fn files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if number == "0" && controllers.is_empty() {
            for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                files.extend(
                    [PathBuf::from(root).join(path), root.into()].map(|dir| dir.join("memory.events")),
                );
            }
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let root = PathBuf::from("/sys/fs/cgroup/memory");
            files.extend([root.join(path), root].map(|dir| dir.join("memory.oom_control")));
        }
    }
    files
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_understood() {
        assert_eq!(count("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
        let files = files("4:memory:/a/b\n1:cpu:/\n0::/c.slice\n");
        assert_eq!(files[0], PathBuf::from("/sys/fs/cgroup/memory/a/b/memory.oom_control"));
        assert!(files.contains(&PathBuf::from("/sys/fs/cgroup/c.slice/memory.events")));
    }
}
