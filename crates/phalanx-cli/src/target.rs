//! What kind of program a command is.

use crate::args::Channel;
use crate::exit::{Code, Failure};
use phalanx::Speaks;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;

/// A command, ready to be run.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) speaks: Speaks,
    /// A name for the instance.
    pub(crate) name: String,
}

/// Looks at a command: scripts of Node get node in front, package managers are refused.
pub(crate) fn target(command: &[OsString], channel: Channel) -> Result<Target, Failure> {
    let Some((first, rest)) = command.split_first() else {
        return Err(Failure::new(Code::Usage, "no command to run: put one after `--`"));
    };
    let stem = stem(first);
    if matches!(stem.as_str(), "npm" | "yarn" | "pnpm") && runs_a_script(rest) {
        return Err(refuse_package_manager(&stem, rest));
    }
    let is_script = is_node_script(first);
    let (program, mut args) = if is_script && !executable_by_itself(first) {
        ("node".into(), command.to_vec())
    } else {
        (first.clone(), rest.to_vec())
    };
    let node = is_script || matches!(stem.as_str(), "node" | "nodejs") || has_node_shebang(first);
    let speaks = match channel {
        Channel::Node => Speaks::Node,
        Channel::Phalanx => Speaks::Phalanx,
        Channel::None => Speaks::Nothing,
        Channel::Auto if node => Speaks::Node,
        Channel::Auto => Speaks::Perhaps,
    };
    if speaks == Speaks::Node && ends_in_code(&args) {
        // Node takes its channel only when there is a second word (`process.argv[1]`), a script or not.
        args.push("[eval]".into());
    }
    let name = match args.iter().find(|arg| is_node_script(arg)) {
        Some(script) => self::stem(script),
        None => stem,
    };
    Ok(Target { program, args, speaks, name })
}

fn stem(program: &OsStr) -> String {
    let name = Path::new(program).file_stem().unwrap_or(program).to_string_lossy().into_owned();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}

fn is_node_script(arg: &OsStr) -> bool {
    Path::new(arg)
        .extension()
        .is_some_and(|extension| ["js", "mjs", "cjs", "ts"].iter().any(|known| extension == *known))
}

/// A script with its own `#!` line and the right to run.
fn executable_by_itself(program: &OsStr) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let path = Path::new(program);
    path.components().count() > 1
        && path.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
        && has_node_shebang(program)
}

fn has_node_shebang(program: &OsStr) -> bool {
    let path = phalanx_os::spawn::resolve(program, std::env::var_os("PATH").as_deref(), Path::new("."));
    let Ok(mut file) = path.and_then(std::fs::File::open) else { return false };
    let mut head = [0u8; 128];
    let Ok(count) = file.read(&mut head) else { return false };
    let line = head[..count].split(|&byte| byte == b'\n').next().unwrap_or(&[]);
    line.starts_with(b"#!")
        && String::from_utf8_lossy(line).split(['/', ' ']).any(|word| word.trim() == "node")
}

/// `node -e CODE` and its like.
fn ends_in_code(args: &[OsString]) -> bool {
    let evaluates = |arg: &OsString| matches!(arg.to_str(), Some("-e" | "--eval" | "-p" | "--print" | "-pe"));
    match args {
        [.., flag, _code] if evaluates(flag) => true,
        [.., last] => {
            last.to_str().is_some_and(|arg| arg.starts_with("--eval=") || arg.starts_with("--print="))
        }
        [] => false,
    }
}

fn runs_a_script(args: &[OsString]) -> bool {
    args.first().is_some_and(|verb| verb == "start" || verb == "run" || verb == "run-script")
}

/// npm itself would take the channel, and its script's program get nothing.
fn refuse_package_manager(manager: &str, args: &[OsString]) -> Failure {
    let script = match args {
        [verb, script, ..] if verb != "start" => script.to_string_lossy().into_owned(),
        _ => "start".to_owned(),
    };
    let own = std::fs::read("package.json")
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .and_then(|package| package["scripts"][&script].as_str().map(str::to_owned));
    let advice = match own {
        Some(own) => format!("run its command itself: phalanx run -- {own}"),
        None => format!("run the command of its script `{script}` itself"),
    };
    Failure::new(
        Code::Usage,
        format!(
            "`{manager}` starts the program as a child of its own, which would get no connections: {advice}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &[&str]) -> Result<Target, Failure> {
        target(&command.iter().map(OsString::from).collect::<Vec<_>>(), Channel::Auto)
    }

    #[test]
    fn a_script_is_run_with_node_and_gives_its_name() {
        let target = of(&["server.js", "x"]).unwrap();
        assert_eq!((target.program.to_str(), target.speaks), (Some("node"), Speaks::Node));
        assert_eq!(target.args, ["server.js", "x"]);
        assert_eq!(target.name, "server");
        assert_eq!(of(&["node", "dir/app.mjs"]).unwrap().name, "app");
        assert_eq!(of(&["uvicorn", "app:app"]).unwrap().speaks, Speaks::Perhaps);
    }

    #[test]
    fn code_on_the_command_line_gets_a_second_word() {
        assert_eq!(of(&["node", "-e", "code"]).unwrap().args, ["-e", "code", "[eval]"]);
        assert_eq!(of(&["node", "--eval=code"]).unwrap().args, ["--eval=code", "[eval]"]);
        assert_eq!(of(&["node", "-e", "code", "word"]).unwrap().args, ["-e", "code", "word"]);
        assert_eq!(of(&["node", "server.js"]).unwrap().args, ["server.js"]);
        assert_eq!(of(&["perl", "-e", "code"]).unwrap().args, ["-e", "code"]);
    }

    #[test]
    fn package_managers_are_refused_with_advice() {
        for command in [&["npm", "start"][..], &["yarn", "run", "serve"], &["pnpm", "run", "x"]] {
            assert!(of(command).unwrap_err().sentence.contains("command"));
        }
        assert!(of(&["npm", "--version"]).is_ok());
    }
}
