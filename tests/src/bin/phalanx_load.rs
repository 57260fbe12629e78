//! Load on a loopback address or a Unix socket, with an account of every connection.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use phalanx_tests::load::Load;

/// Makes connections and says what became of each: served, refused, reset,
/// closed, hung. Exit status 0 if all were served, 1 if some were not, 3 if the
/// run itself was invalid.
#[derive(Parser)]
#[command(name = "phalanx-load")]
struct Args {
    /// A loopback address (`127.0.0.1:8080`, `[::1]:80`), a port, or the path of a Unix socket.
    target: String,
    /// Closed loop: clients at once.
    #[arg(short = 'c', long, default_value_t = 1)]
    clients: u64,
    /// Connections in total [default: until the duration ends, else 100].
    #[arg(short = 'n', long)]
    connections: Option<u64>,
    /// Requests per connection; more than one keeps it alive.
    #[arg(short = 'k', long, default_value_t = 1)]
    keep_alive: u64,
    /// Open loop: connections begun per second.
    #[arg(short, long)]
    rate: Option<f64>,
    /// Begin no connection after so many seconds.
    #[arg(short, long)]
    duration: Option<f64>,
    /// Use so many loopback source addresses.
    #[arg(short, long, default_value_t = 0)]
    sources: u64,
    /// Seconds of silence after which a connection counts as hung.
    #[arg(long, default_value_t = 10.0)]
    silence: f64,
    /// The path to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// Print the whole ledger as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut load = if args.target.contains('/') {
        Load::unix(&args.target)
    } else if let Ok(port) = args.target.parse() {
        Load::port(port)
    } else {
        match args.target.parse::<SocketAddr>() {
            Ok(addr) if addr.ip().is_loopback() => Load::tcp(addr),
            Ok(addr) => return complain(&format!("{addr} is not a loopback address")),
            Err(_) => return complain(&format!("{}: no address, port or path", args.target)),
        }
    };
    let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or(Duration::ZERO);
    load = load
        .clients(args.clients)
        .requests_per_connection(args.keep_alive)
        .sources(args.sources)
        .silence(seconds(args.silence))
        .path(args.path);
    if let Some(rate) = args.rate {
        load = load.rate(rate);
    }
    if let Some(duration) = args.duration {
        load = load.duration(seconds(duration));
    }
    match args.connections {
        Some(n) => load = load.connections(n),
        None if args.duration.is_none() => load = load.connections(100),
        None => {}
    }
    let ledger = load.run();
    let text = if args.json {
        serde_json::to_string_pretty(&ledger).expect("a ledger is JSON") + "\n"
    } else {
        ledger.to_string()
    };
    // A reader that has gone does not change what was measured.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let wrong = ledger.imbalances();
    if !wrong.is_empty() {
        complain(&wrong.join("\n"));
        return ExitCode::from(3);
    }
    if ledger.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn complain(what: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "phalanx-load: {what}");
    ExitCode::from(2)
}
