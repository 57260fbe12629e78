//! Debuggers: a port for each worker, and the flags of a Node program.

use super::driver::Driver;
use super::program::Description;
use phalanx_core::{Slot, Speaks, WorkerId};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Whether workers get a port each for a debugger, on 127.0.0.1: the base and the slot added, or the next that is
/// free. Each finds it in `PHALANX_INSPECT_PORT`. A Node program gets it by the flags of its debugger, any other as
/// `TOKIO_CONSOLE_BIND`, which `console_subscriber` reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inspect {
    /// None, unless the flags of a Node program ask for it: then as `Now`, so that workers do not want the same port.
    #[default]
    Off,
    /// The debugger of a Node worker is open from the start.
    Now {
        /// The port of slot 0. Node's own is [`Inspect::PORT`].
        base: u16,
    },
    /// It opens at [`Primary::open_inspectors`](crate::Primary::open_inspectors).
    OnSignal {
        /// The port of slot 0.
        base: u16,
    },
}

impl Inspect {
    /// Where Node's debugger listens, unless told otherwise.
    pub const PORT: u16 = 9229;

    fn base(self) -> Option<u16> {
        match self {
            Inspect::Off => None,
            Inspect::Now { base } | Inspect::OnSignal { base } => Some(base),
        }
    }

    /// What holds, with the flags of a Node program looked at.
    pub(super) fn settle(self, speaks: Speaks, args: &[OsString]) -> Inspect {
        if self != Inspect::Off || speaks != Speaks::Node {
            return self;
        }
        let asked = node_flags(args).iter().find_map(|flag| Wish::of(flag));
        asked.map_or(Inspect::Off, |wish| Inspect::Now { base: wish.port.unwrap_or(Inspect::PORT) })
    }
}

/// The flags before the script: they are Node's.
fn node_flags(args: &[OsString]) -> &[OsString] {
    let end = args.iter().position(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    &args[..end.unwrap_or(args.len())]
}

/// A flag that opens the debugger, or says where.
#[derive(Debug, PartialEq)]
struct Wish<'a> {
    name: &'a str,
    port: Option<u16>,
}

impl Wish<'_> {
    fn of(flag: &OsStr) -> Option<Wish<'_>> {
        let flag = flag.to_str()?;
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let known = ["--inspect", "--inspect-brk", "--inspect-wait", "--inspect-port", "--debug-port"];
        let port = value.and_then(|value| value.rsplit(':').next()?.parse().ok());
        known.contains(&name).then_some(Wish { name, port })
    }
}

impl Description {
    fn is_node_itself(&self) -> bool {
        let name = Path::new(&self.name).file_name().and_then(OsStr::to_str).unwrap_or_default();
        self.speaks == Speaks::Node && name.starts_with("node")
    }

    /// The arguments of a worker with this port for its debugger.
    pub(super) fn args_with(&self, port: Option<u16>) -> Vec<OsString> {
        if !self.is_node_itself() {
            return self.args.clone();
        }
        let flags = node_flags(&self.args);
        let mut args: Vec<OsString> = Vec::new();
        let mut placed = false;
        for flag in flags {
            match (port, Wish::of(flag)) {
                // The port that was given there is the base of all.
                (Some(port), Some(wish)) => {
                    args.push(format!("{}=127.0.0.1:{port}", wish.name).into());
                    placed = true;
                }
                _ => args.push(flag.clone()),
            }
        }
        if let Some(flag) = port.and_then(|port| self.flag(port)).filter(|_| !placed) {
            args.insert(0, flag.into());
        }
        let has = |start: &[u8]| flags.iter().any(|flag| flag.as_encoded_bytes().starts_with(start));
        if has(b"--prof") && !has(b"--logfile=") {
            // Workers would write into one file.
            args.push("--logfile=v8-%p.log".into());
        }
        args.extend_from_slice(&self.args[flags.len()..]);
        args
    }

    fn flag(&self, port: u16) -> Option<String> {
        match self.inspect {
            Inspect::Off => None,
            Inspect::Now { .. } => Some(format!("--inspect=127.0.0.1:{port}")),
            Inspect::OnSignal { .. } => Some(format!("--inspect-port=127.0.0.1:{port}")),
        }
    }

    /// The variables of a worker with this port, by name; of one that is there already, what is added to it.
    pub(super) fn inspect_env(&self, port: u16) -> Vec<(&'static str, String)> {
        let mut env = vec![("PHALANX_INSPECT_PORT", port.to_string())];
        if self.speaks != Speaks::Node {
            env.push(("TOKIO_CONSOLE_BIND", format!("127.0.0.1:{port}")));
        } else if let Some(flag) = self.flag(port).filter(|_| !self.is_node_itself()) {
            // A script that names its interpreter itself: its arguments are not Node's.
            env.push(("NODE_OPTIONS", flag));
        }
        env
    }
}

/// The ports of living workers.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeMap<WorkerId, u16>);

impl Ports {
    /// The next port from base and slot on that no worker has and that is free.
    fn take(
        &mut self,
        worker: WorkerId,
        slot: Slot,
        base: u16,
        is_free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let after = |n: u32| 1024 + (u32::from(base.max(1024)) - 1024 + slot.0 + n) % 64_512;
        let port = (0..64_512)
            .filter_map(|n| u16::try_from(after(n)).ok())
            .find(|port| !self.0.values().any(|held| held == port) && is_free(*port))?;
        self.0.insert(worker, port);
        Some(port)
    }

    pub(super) fn give_back(&mut self, worker: WorkerId) {
        self.0.remove(&worker);
    }
}

impl Driver {
    pub(super) fn inspect_port(&mut self, inspect: Inspect, worker: WorkerId, slot: Slot) -> Option<u16> {
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        self.ports.take(worker, slot, inspect.base()?, is_free)
    }

    pub(super) fn open_inspectors(&mut self) -> bool {
        let possible = matches!(self.latest.is.inspect, Inspect::OnSignal { .. });
        if possible {
            self.core.relay(phalanx_os::Signal::USR1.as_raw());
            self.drive();
        }
        possible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_port_of_its_own_and_gives_it_back() {
        let mut ports = Ports::default();
        let mut take = |n, slot, base| ports.take(WorkerId(n), Slot(slot), base, |port| port != 9231);
        assert_eq!([take(1, 0, 9229), take(2, 1, 9229)], [Some(9229), Some(9230)]);
        assert_eq!(take(3, 2, 9229), Some(9232), "9231 is somebody else's");
        assert_eq!(take(4, 0, 9229), Some(9233), "the successor, while both live");
        assert_eq!([take(5, 0, 65_535), take(6, 1, 65_535)], [Some(65_535), Some(1024)], "it wraps");
        for n in 7..200_000 {
            ports.give_back(WorkerId(n - 1));
            assert_eq!(
                ports.take(WorkerId(n), Slot(1), 65_535, |_| true),
                Some(1024),
                "however many there were"
            );
        }
    }

    fn described(args: &[&str], inspect: Inspect) -> Description {
        let mut builder =
            crate::Cluster::builder().exec("node").args(args).channel(Speaks::Node).inspect(inspect);
        Description::of(&mut builder).expect("a description")
    }

    fn args(args: &[&str], inspect: Inspect) -> String {
        let args: Vec<String> = described(args, inspect)
            .args_with((described(args, inspect).inspect != Inspect::Off).then_some(7001))
            .iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        args.join(" ")
    }

    #[test]
    fn flags_are_nodes_and_only_on_request() {
        let now = Inspect::Now { base: 7000 };
        for (given, inspect, wanted) in [
            (&["a.js", "--inspect"][..], Inspect::Off, "a.js --inspect"),
            (&["a.js"], now, "--inspect=127.0.0.1:7001 a.js"),
            (&["a.js"], Inspect::OnSignal { base: 7000 }, "--inspect-port=127.0.0.1:7001 a.js"),
            (&["--inspect", "a.js"], Inspect::Off, "--inspect=127.0.0.1:7001 a.js"),
            (&["--x", "--inspect-brk=6000", "a.js"], Inspect::Off, "--x --inspect-brk=127.0.0.1:7001 a.js"),
            (&["--inspect=0.0.0.0:6000", "a.js"], now, "--inspect=127.0.0.1:7001 a.js"),
            (&["--prof", "a.js"], Inspect::Off, "--prof --logfile=v8-%p.log a.js"),
            (&["--prof", "--logfile=mine", "a.js"], Inspect::Off, "--prof --logfile=mine a.js"),
            (&["a.js", "--prof"], Inspect::Off, "a.js --prof"),
        ] {
            assert_eq!(args(given, inspect), wanted);
        }
        assert_eq!(described(&["--inspect=6000", "a.js"], Inspect::Off).inspect, Inspect::Now { base: 6000 });
        assert_eq!(described(&["--inspect", "a.js"], Inspect::Off).inspect, Inspect::Now { base: 9229 });
    }

    #[test]
    fn other_programs_find_it_in_their_environment() {
        let mut script =
            crate::Cluster::builder().exec("./a.js").channel(Speaks::Node).inspect(Inspect::Now { base: 1 });
        let script = Description::of(&mut script).expect("a description");
        assert_eq!(script.args_with(Some(7001)), Vec::<OsString>::new());
        assert!(script.inspect_env(7001).contains(&("NODE_OPTIONS", "--inspect=127.0.0.1:7001".to_owned())));
        let mut rust = crate::Cluster::builder().exec("x").inspect(Inspect::Now { base: 1 });
        let rust = Description::of(&mut rust).expect("a description");
        assert!(rust.inspect_env(7001).contains(&("TOKIO_CONSOLE_BIND", "127.0.0.1:7001".to_owned())));
    }
}
