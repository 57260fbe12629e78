//! `phalanx doctor`: what this machine allows, what is lost without the rest, and what helps.

use crate::args;
use crate::exit::{Code, Failure};
use crate::show::print;
use phalanx_os::Signal;
use phalanx_os::steer::allows::{Allows, Tried, survey};
use serde::Serialize;

/// EPERM and ENOSYS.
const NOT_PERMITTED: i32 = 1;
const NO_SUCH_CALL: i32 = 38;

/// The first kernel that can move what waits for one worker to another.
const OLDEST: (u32, u32) = (5, 14);

const NO_STEERING: &str = "the kernel does not choose: workers with a channel get connections by hand-off, which \
                           costs processor time in the primary, and plain programs share one socket";

const CAPABILITY: [&str; 5] = [
    "a file: setcap cap_bpf+ep $(command -v phalanx)",
    "systemd: AmbientCapabilities=CAP_BPF, with bpf in SystemCallFilter= and AF_NETLINK in \
     RestrictAddressFamilies= if those are set",
    "Docker: --cap-add BPF (as root in the container, or with setcap in the image)",
    "Kubernetes: securityContext: capabilities: add: [\"BPF\"] (the same)",
    "or root",
];
const FILTER: [&str; 3] = [
    "systemd: SystemCallFilter=@system-service bpf, and SystemCallErrorNumber=EPERM so that it refuses instead of \
     killing",
    "Docker: --cap-add BPF, which its default profile goes by; older profiles know CAP_SYS_ADMIN only",
    "Kubernetes: a seccompProfile that allows bpf",
];
const NAMESPACE: [&str; 1] =
    ["outside of user namespaces only: a container without user remapping, or a service of the host"];
const KERNEL: [&str; 1] = ["Linux 5.14 or later"];
const NETLINK: [&str; 1] = ["systemd: AF_NETLINK in RestrictAddressFamilies=; elsewhere: CONFIG_INET_DIAG"];

/// One thing that is there or not.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// What was seen.
    found: String,
    /// What does not work without.
    #[serde(skip_serializing_if = "str::is_empty")]
    lost: &'static str,
    /// What to do about it, in the words of whoever has to be told.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    helps: &'static [&'static str],
}

#[derive(Debug, Serialize)]
struct Report {
    /// `exact` or `even`, as `engine` in `phalanx status`.
    steering: &'static str,
    checks: Vec<Check>,
}

pub(crate) fn doctor(args: &args::Doctor) -> Result<Code, Failure> {
    let report = examine(&survey());
    if args.json {
        let text = serde_json::to_string(&report)
            .map_err(|error| Failure::new(Code::Failed, format!("cannot write JSON: {error}")))?;
        print(format!("{text}\n").as_bytes());
    } else {
        print(report.text().as_bytes());
    }
    Ok(if report.checks.iter().all(|check| check.ok) { Code::Ok } else { Code::Failed })
}

fn examine(allows: &Allows) -> Report {
    let check = |name, ok, found: String, lost, helps: &'static [&'static str]| {
        let (lost, helps) = if ok { ("", &[][..]) } else { (lost, helps) };
        Check { name, ok, found, lost, helps }
    };
    let bpf = allows.capabilities.iter().find(|capability| capability.name == "CAP_BPF");
    let root = allows.capabilities.iter().any(|it| it.name == "CAP_SYS_ADMIN" && it.effective);
    let right = root || bpf.is_some_and(|bpf| bpf.effective);
    let helps = if right { helps(allows) } else { &["see CAP_BPF"] };
    let program = match (allows.maps, allows.program) {
        (Tried::Works, program) => program,
        (maps, _) => maps,
    };
    let checks = vec![
        check("Linux", is_new(&allows.kernel), allows.kernel.clone(), NO_STEERING, &KERNEL),
        check(
            "CAP_BPF",
            right,
            match (right, bpf) {
                (true, _) => "effective",
                (_, Some(bpf)) if bpf.permitted => "permitted, but not effective",
                _ => "not held",
            }
            .to_owned(),
            NO_STEERING,
            &CAPABILITY,
        ),
        check(
            "user namespace",
            !allows.user_namespace,
            if allows.user_namespace {
                "one of its own, where CAP_BPF is worth nothing"
            } else {
                "the first"
            }
            .to_owned(),
            NO_STEERING,
            &NAMESPACE,
        ),
        check("the program", program.works(), told(program, allows), NO_STEERING, helps),
        check(
            "socket lists",
            allows.socket_diag.works(),
            told(allows.socket_diag, allows),
            "open connections are not counted, so `least-connections` goes by what was given out, and strangers \
             on a port are not noticed",
            &NETLINK,
        ),
        check(
            "pidfd",
            allows.pidfd,
            if allows.pidfd { "works" } else { "refused" }.to_owned(),
            "nothing: the end of a worker is learnt by SIGCHLD",
            &["Linux 5.3 or later"],
        ),
    ];
    Report { steering: if program.works() { "exact" } else { "even" }, checks }
}

/// What helps who has the right to load a program, and may not.
fn helps(allows: &Allows) -> &'static [&'static str] {
    let first = if allows.maps.works() { allows.program } else { allows.maps };
    match first {
        _ if allows.user_namespace => &NAMESPACE,
        Tried::Killed(_) | Tried::Refused(NOT_PERMITTED) => &FILTER,
        Tried::Refused(_) | Tried::NotReached | Tried::Works => &KERNEL,
    }
}

fn told(tried: Tried, allows: &Allows) -> String {
    let filtered = if allows.seccomp == Some(2) { "; a seccomp filter is in force" } else { "" };
    match tried {
        Tried::Works => "works".to_owned(),
        Tried::NotReached => "not tried".to_owned(),
        Tried::Refused(NO_SUCH_CALL) => format!("this kernel or sandbox has no such call{filtered}"),
        Tried::Refused(errno) => format!("{}{filtered}", std::io::Error::from_raw_os_error(errno)),
        Tried::Killed(signal) => match Signal::from_raw(signal) {
            Some(signal) => format!("a seccomp filter kills for bpf(2), by {signal}"),
            None => "a seccomp filter kills for bpf(2)".to_owned(),
        },
    }
}

/// Whether a release like `6.1.0-13-amd64` is not older than [`OLDEST`].
fn is_new(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let mark = if check.ok { "ok" } else { "missing" };
            text.push_str(&format!("{mark:8} {:15} {}\n", check.name, check.found));
            if !check.ok {
                text.push_str(&format!("{:8} without it: {}\n", "", check.lost));
                for help in check.helps {
                    text.push_str(&format!("{:8} what helps: {help}\n", ""));
                }
            }
        }
        text.push_str(match self.steering {
            "exact" => "\nThe kernel can give each TCP connection to the worker that it is for.\n",
            _ => {
                "\nThe kernel cannot give each connection to the worker that it is for; at random it can, \
                  for programs with a channel (--mechanism steer).\n"
            }
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(is_new("6.18.44") && is_new("5.14.0-1-amd64") && is_new("10.0"));
        assert!(!is_new("5.4.0") && !is_new("4.19") && !is_new("unknown"));
    }

    #[test]
    fn who_reports_says_of_each_what_was_seen() {
        let report = examine(&survey());
        assert!(report.checks.iter().all(|check| !check.found.is_empty()), "{report:?}");
        assert!(report.checks.iter().all(|check| check.ok == check.lost.is_empty()), "{report:?}");
        let text = report.text();
        assert_eq!(text.contains("missing"), report.checks.iter().any(|check| !check.ok), "{text}");
    }
}
