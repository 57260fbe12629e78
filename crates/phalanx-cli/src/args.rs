//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::filter::Targets;

/// Run a network service as several processes behind the same listening sockets.
#[derive(Debug, Parser)]
#[command(name = "phalanx", version, after_help = crate::exit::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show what phalanx does, with four workers of a tiny built-in service
    Demo(Demo),
    /// Run a program with several workers
    Run(Box<Run>),
    /// Show workers, listeners and the ledger of a running instance
    Status(Status),
    /// Print what has happened lately in a running instance, one JSON line an event
    Events(Events),
    /// Replace all workers by new ones with the program read anew; what serves goes on until they are ready
    Reload(Operation),
    /// Replace workers by new ones that run the same program
    Restart(Restart),
    /// Change the number of workers
    Scale(Scale),
    /// End the worker of a slot; it is replaced
    Kill(Kill),
    /// Say why the last worker of a slot ended, and what it printed last
    Why(Why),
    /// Get a page of one worker
    Curl(Curl),
    /// Succeed if all wanted workers are ready and nothing is about to stop: a probe for load balancers
    Ready(Ready),
    /// Say what this machine allows, what is lost without the rest, and what helps
    Doctor(Doctor),
    /// Stop a running instance: drain, then signal, then kill
    Stop(Stop),
    #[command(hide = true, name = "demo-worker")]
    DemoWorker,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// How many workers
    #[arg(short, long, default_value_t = 4)]
    pub(crate) workers: u32,
    /// First port to try on 127.0.0.1; the next free one is used if it is taken
    #[arg(short, long, default_value_t = 8080)]
    pub(crate) port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Channel {
    /// Node's for a Node program; else ours is offered, and sockets by LISTEN_FDS
    Auto,
    /// Node's IPC, by Node's variables
    Node,
    /// The same wire, by PHALANX_CHANNEL: for programs that use the phalanx crate
    Phalanx,
    /// None: a plain program, which gets its sockets by LISTEN_FDS
    None,
}

const EXAMPLES: &str = "\
Examples:
  phalanx run -w 4 -- node server.js
  phalanx run -l 8000 -- uvicorn app:app --fd 3
  phalanx run -p sticky server.js

Sockets of a service manager (LISTEN_FDS, as of systemd) become listeners under their names there. A program gets
them by LISTEN_FDS too; a Node program takes the first one with `listen({ fd: 3 })`, the next with 4, and then
those of -l.";

#[derive(Debug, Args)]
#[command(after_long_help = format!("{}\n\n{}", EXAMPLES, crate::env_file::SYNTAX), after_help = EXAMPLES)]
pub(crate) struct Run {
    /// Workers: a number, or `auto` for one a processor (cgroup limits and affinity respected)
    #[arg(short, long, default_value = "auto", value_name = "N|auto")]
    pub(crate) workers: String,
    /// Listen here, always: a port, HOST:PORT or [IPv6]:PORT, with `udp:` before it for UDP, or the path of a Unix
    /// socket. May be repeated
    #[arg(short, long, value_name = "[NAME=]ADDR")]
    pub(crate) listen: Vec<String>,
    /// What phalanx itself logs: off, error, warn, info, debug or trace, also for a part: `warn,phalanx::run=debug`
    #[arg(long, value_name = "LEVEL", env = "PHALANX_LOG", default_value = "info", hide_env_values = true)]
    pub(crate) log: Targets,
    /// Name of this instance [default: the program's name]
    #[arg(short, long)]
    pub(crate) name: Option<String>,
    /// Who gets the next connection: round-robin, least-connections, sticky (client address), or none (the
    /// operating system decides)
    #[arg(short, long)]
    pub(crate) policy: Option<phalanx::Policy>,
    /// How it gets there: auto, steer (the kernel chooses), handoff or share
    #[arg(long, default_value = "auto", value_name = "M")]
    pub(crate) mechanism: phalanx::Mechanism,
    /// Shares of slots 0, 1, ... in proportion [default: 1 each]; 0 gets nothing
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    pub(crate) weights: Vec<u32>,
    /// A steered worker that takes nothing for so long while connections wait is passed over
    #[arg(long, default_value = "10ms", value_name = "TIME", value_parser = crate::units::duration)]
    pub(crate) lag_after: Duration,
    /// What workers are given to speak on
    #[arg(long, default_value = "auto", value_enum)]
    pub(crate) channel: Channel,
    /// How messages of Node workers are written: json, or advanced for programs that send maps, dates and the like
    #[arg(long, default_value = "json", value_name = "S")]
    pub(crate) serialization: phalanx::Serialization,
    /// Connections a worker may hold unacknowledged [default: 4 for Node, else 16]; 1 for work that keeps a
    /// processor busy
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<u32>,
    /// A variable for the workers. May be repeated
    #[arg(short, long, value_name = "K=V")]
    pub(crate) env: Vec<String>,
    /// A file of variables for the workers, before those of -e. May be repeated; see below
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Run workers as this user: NAME, UID, or either with :GROUP. Listeners are bound before
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Directory that workers start in
    #[arg(short = 'C', long = "cwd", value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Open the debugger of each Node worker, on a port of its own from BASE on; others find theirs in
    /// PHALANX_INSPECT_PORT and TOKIO_CONSOLE_BIND
    #[arg(long, value_name = "BASE", num_args = 0..=1, require_equals = true, default_missing_value = "9229")]
    pub(crate) inspect: Option<u16>,
    /// The same, but they open when SIGUSR1 comes
    #[arg(
        long,
        value_name = "BASE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "9229",
        conflicts_with = "inspect"
    )]
    pub(crate) inspect_on_signal: Option<u16>,
    #[command(flatten)]
    pub(crate) lives: crate::lives::Lives,
    /// The program and its arguments; a .js, .mjs or .cjs file is run with node
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// For scripts
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Instance {
    /// Which instance [default: the only one]
    #[arg(short, long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// For scripts
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// Go on with what happens next, until the instance ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// Signal at once instead of draining first
    #[arg(long)]
    pub(crate) now: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Operation {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// For scripts: a line for each event, and a last one with `done` or `failed`
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) operation: Operation,
    /// Of this slot only
    pub(crate) slot: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Scale {
    #[command(flatten)]
    pub(crate) operation: Operation,
    /// A number, or a change
    #[arg(value_name = "N|+N|-N", allow_hyphen_values = true)]
    pub(crate) workers: String,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    pub(crate) operation: Operation,
    /// Its slot, as in `phalanx status`
    pub(crate) slot: u32,
    /// Signal at once instead of draining first
    #[arg(long)]
    pub(crate) now: bool,
    /// SIGKILL
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// For scripts
    #[arg(long)]
    pub(crate) json: bool,
    /// Its slot, as in `phalanx status`
    pub(crate) slot: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Curl {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// Which: its ID in `phalanx status`
    #[arg(short, long, value_name = "ID")]
    pub(crate) worker: u32,
    /// The name or key of a listener that it holds [default: its first]
    #[arg(short, long)]
    pub(crate) listener: Option<String>,
    /// What to get
    pub(crate) path: String,
}

#[derive(Debug, Args)]
pub(crate) struct Ready {
    #[command(flatten)]
    pub(crate) instance: Instance,
    /// For scripts
    #[arg(long)]
    pub(crate) json: bool,
    /// So many ready workers are enough [default: all that are wanted]
    #[arg(long, value_name = "N")]
    pub(crate) at_least: Option<u32>,
}
