//! `phalanx demo`: the main job, working at once.

use crate::args;
use crate::control::Door;
use crate::exit::{Code, Failure};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use phalanx::{Cluster, Event, Output, Primary, Speaks};
use std::convert::Infallible;

/// The address is taken from the environment that the primary gives.
const ADDRESS: &str = "PHALANX_DEMO_ADDRESS";

/// Four workers of a tiny service.
pub(crate) fn demo(args: args::Demo) -> Result<Code, Failure> {
    let failed = |error: std::io::Error| Failure::new(Code::Failed, error.to_string());
    let own = std::env::current_exe().map_err(failed)?;
    let door = Door::open(None, "demo")?;
    let _ = phalanx_os::host::become_subreaper();
    let signals = crate::run::Signals::hear()?;
    let (primary, address) = start(&own, &args)?;
    let name = door.as_ref().map_or("demo".to_owned(), |door| door.name.clone());
    println!("{} workers serve http://{address}/\n", args.workers);
    for worker in primary.workers() {
        if let Some(view) = worker.view() {
            println!("  worker {} in slot {}, pid {}", view.id, view.slot, view.pid);
        }
    }
    println!(
        "\nTry, in another terminal:\n\
         \x20 curl http://{address}/         again and again: each worker in turn\n\
         \x20 phalanx status -n {name}       what each worker has had\n\
         \x20 kill -9 PID                    of a worker: it is replaced, nothing is refused\n\
         Ctrl-C stops.\n"
    );
    crate::run::supervise(signals, &primary, door, &name, std::sync::Arc::new(|| Ok(None)), tell)
}

/// On the port that was asked for, or the next free one.
fn start(own: &std::path::Path, args: &args::Demo) -> Result<(Primary, String), Failure> {
    let mut port = args.port;
    loop {
        let address = format!("127.0.0.1:{port}");
        let started = Cluster::builder()
            .exec(own)
            .args(["demo-worker"])
            .env(ADDRESS, &address)
            .workers(args.workers)
            .channel(Speaks::Phalanx)
            .listen("http", &address)
            .reap_strangers(true)
            .output(Output::Inherit)
            .start();
        match started {
            Ok(primary) => {
                let address = primary.address("http").map_or(address, |bound| bound.to_string());
                return Ok((primary, address));
            }
            Err(phalanx::Error::Listen { source, .. })
                if source.kind() == std::io::ErrorKind::AddrInUse && port < args.port.saturating_add(100) =>
            {
                port += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell(_: &Primary, event: &Event) {
    match event {
        Event::Message { worker, message, .. } => {
            let path = message["path"].as_str().unwrap_or("?");
            println!("worker {worker} (pid {}) served {path}", message["pid"]);
        }
        Event::Exit { worker, slot, ended, exited_after_disconnect: false, .. } => {
            println!("worker {worker} in slot {slot} died: {ended}; a new one comes");
        }
        Event::Fork { worker, slot, pid } => println!("worker {worker} in slot {slot} started, pid {pid}"),
        Event::ForkFailed { slot, error } => println!("slot {slot}: {error}"),
        _ => {}
    }
}

/// The tiny service, as anybody would write it.
pub(crate) fn worker() -> Result<Code, Failure> {
    let worker = phalanx::worker()
        .map_err(|error| Failure::new(Code::Usage, error.to_string()))?
        .ok_or_else(|| Failure::new(Code::Usage, "this is a worker of `phalanx demo`: run that instead"))?;
    let failed = |error: std::io::Error| Failure::new(Code::Failed, error.to_string());
    let address = std::env::var(ADDRESS).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let listener = phalanx::net::TcpListener::bind(address).await.map_err(failed)?;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = phalanx::draining() => return Ok(Code::Ok),
            };
            let Ok((stream, _)) = accepted else { continue };
            let worker = worker.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request: Request<Incoming>| {
                    let worker = worker.clone();
                    async move { Ok::<_, Infallible>(hello(&worker, &request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.await;
            });
        }
    })
}

async fn hello(worker: &phalanx::Worker, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let pid = std::process::id();
    let told = serde_json::json!({ "path": request.uri().path(), "pid": pid });
    let _ = worker.send(&told).await;
    let text = format!("Hello from worker {} (pid {pid})\n", worker.id());
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if let Ok(name) = format!("w{}", worker.id()).parse() {
        response.headers_mut().insert("x-worker", name);
    }
    response
}
