//! The control plane: HTTP and JSON on a Unix socket, one for each instance.

use crate::exit::{Code, Failure};
use crate::journal::{self, Journal};
use crate::operation::{Describe, Operation};
use crate::why::Ends;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use phalanx::{Hurry, Primary, Slot, WorkerId, WorkerRef};
use phalanx_os::{Address, SocketFile, listener};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc};

/// Where the sockets of this user's instances are.
pub(crate) fn directory() -> Option<PathBuf> {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Some(Path::new(&dir).join("phalanx")),
        _ => {
            let run = Path::new("/run/phalanx");
            let writable = run.is_dir() || std::fs::DirBuilder::new().mode(0o700).create(run).is_ok();
            writable.then(|| run.to_owned())
        }
    }
}

/// The socket of one instance, bound and private.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) name: String,
    listener: std::os::unix::net::UnixListener,
    /// It goes with us, also when nothing comes of the instance.
    file: Remove,
}

impl Door {
    /// Takes a name. A name that was asked for must be free; one that was made up gets `-2`, `-3` and so on.
    /// `None` when there is no place for sockets: the instance runs without.
    pub(crate) fn open(asked: Option<&str>, made_up: &str) -> Result<Option<Door>, Failure> {
        let Some(dir) = directory() else { return Ok(None) };
        if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "no control socket: the directory cannot be made");
            return Ok(None);
        }
        // It may have been there: nobody else may look in.
        let _ = std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700));
        let wanted = asked.unwrap_or(made_up);
        if wanted.is_empty() || wanted.contains('/') || wanted.starts_with('.') {
            return Err(Failure::new(
                Code::Usage,
                format!("`{wanted}` cannot be a name: use letters and digits"),
            ));
        }
        for n in 1..100 {
            let name = if n == 1 { wanted.to_owned() } else { format!("{wanted}-{n}") };
            let path = dir.join(format!("{name}.sock"));
            match bind(&path) {
                Ok((listener, file)) => return Ok(Some(Door { name, listener, file: Remove(file) })),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && asked.is_none() => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(Failure::new(
                        Code::Instance,
                        format!(
                            "`{name}` runs already: stop it with `phalanx stop -n {name}`, or use another name"
                        ),
                    ));
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "no control socket");
                    return Ok(None);
                }
            }
        }
        Err(Failure::new(
            Code::Instance,
            format!("a hundred instances are called `{wanted}`: give a name with -n"),
        ))
    }

    /// Serves until the process ends.
    pub(crate) async fn serve(self, served: Served) {
        let _file = self.file;
        if self.listener.set_nonblocking(true).is_err() {
            return;
        }
        let Ok(listener) = UnixListener::from_std(self.listener) else { return };
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let served = served.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let served = served.clone();
                    async move { Ok::<_, Infallible>(answer(&served, &request).await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }
}

/// What is behind the door.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) primary: Primary,
    pub(crate) name: String,
    pub(crate) journal: Arc<Journal>,
    pub(crate) ends: Arc<Ends>,
    pub(crate) describe: Describe,
}

#[derive(Debug)]
struct Remove(Option<SocketFile>);

impl Drop for Remove {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            let _ = file.remove();
        }
    }
}

fn bind(path: &Path) -> io::Result<(std::os::unix::net::UnixListener, Option<SocketFile>)> {
    let address = Address::Unix { path: path.to_owned(), mode: Some(0o600) };
    let bound = match listener::bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // A file whose owner is dead refuses; then it is only a file.
            match std::os::unix::net::UnixStream::connect(path) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    listener::bind(&address)?
                }
                _ => return Err(error),
            }
        }
        bound => bound?,
    };
    listener::listen(&bound.fd, 32)?;
    Ok((bound.fd.into(), bound.file))
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(served: &Served, request: &Request<Incoming>) -> Response<Body> {
    let Served { primary, name, journal, ends, describe } = served;
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/status") => match primary.status() {
            Ok(status) => {
                let mut json = serde_json::to_value(&status).unwrap_or_default();
                json["name"] = name.as_str().into();
                json["pid"] = std::process::id().into();
                reply(StatusCode::OK, format!("{json:#}\n"))
            }
            Err(error) => reply(StatusCode::GONE, format!("{error}\n")),
        },
        (&Method::GET, "/v1/events") => {
            let (past, future) = journal.read();
            if request.uri().query() != Some("follow") {
                return reply(StatusCode::OK, past);
            }
            let (to, lines) = mpsc::channel(16);
            tokio::spawn(follow(past, future, to));
            Response::new(BodyExt::boxed(StreamBody::new(Lines(lines))))
        }
        (&Method::POST, "/v1/stop") => {
            let hurry = if request.uri().query() == Some("now") { Hurry::Terminate } else { Hurry::Graceful };
            drop(primary.stop(hurry));
            reply(StatusCode::ACCEPTED, "{\"stopping\":true}\n".to_owned())
        }
        (&Method::GET, "/v1/why") => {
            let slot = request.uri().query().and_then(|query| query.strip_prefix("slot=")?.parse().ok());
            match slot.and_then(|slot| ends.why(primary, Slot(slot))) {
                Some(why) => reply(StatusCode::OK, format!("{}\n", serde_json::json!(why))),
                None => reply(StatusCode::NOT_FOUND, "there was never anybody in that slot\n".to_owned()),
            }
        }
        (&Method::GET, path) if path.starts_with("/v1/curl/") => curl(primary, request).await,
        (&Method::POST, path) if path.starts_with("/v1/") => {
            match Operation::parse(&path["/v1/".len()..], request.uri().query()) {
                Ok(operation) => {
                    let (to, lines) = mpsc::channel(16);
                    tokio::spawn(operation.run(primary.clone(), Arc::clone(describe), to));
                    Response::new(BodyExt::boxed(StreamBody::new(Lines(lines))))
                }
                Err(why) => reply(StatusCode::BAD_REQUEST, format!("{why}\n")),
            }
        }
        _ => reply(
            StatusCode::NOT_FOUND,
            "no such thing; try /v1/status, /v1/events, /v1/why?slot=0, POST /v1/reload, POST /v1/stop\n"
                .to_owned(),
        ),
    }
}

fn reply(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    response
}

/// Gets a page of one worker: `/v1/curl/ID/PATH`.
async fn curl(primary: &Primary, request: &Request<Incoming>) -> Response<Body> {
    let wrong = |why: String| reply(StatusCode::BAD_GATEWAY, format!("{why}\n"));
    let rest = &request.uri().path()["/v1/curl/".len()..];
    let (id, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let Some(worker) = id.parse().ok().and_then(|id| primary.worker(WorkerId(id))) else {
        return wrong(format!("there is no worker {id}: see `phalanx status`"));
    };
    let mut pairs: Vec<&str> = request.uri().query().into_iter().flat_map(|query| query.split('&')).collect();
    let named = pairs.iter().position(|pair| pair.starts_with("phalanx-listener="));
    let listener = match named.map(|at| pairs.remove(at)) {
        Some(pair) => Some(pair["phalanx-listener=".len()..].to_owned()),
        None => held(primary, &worker),
    };
    let Some(listener) = listener else { return wrong(format!("worker {id} holds no listener")) };
    let page = if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) };
    match get(&worker, &listener, &page).await {
        Ok(response) => response,
        Err(error) => wrong(error.to_string()),
    }
}

/// The first listener that a worker holds.
fn held(primary: &Primary, worker: &WorkerRef) -> Option<String> {
    let status = primary.status().ok()?;
    let holds = |listener: &&phalanx::ListenerStatus| {
        listener.slots.iter().any(|slot| slot.worker == Some(worker.id()))
    };
    status.listeners.iter().find(holds).map(|listener| listener.key.clone())
}

async fn get(
    worker: &WorkerRef,
    listener: &str,
    page: &str,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = worker.connect(listener)?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let page = if page.is_empty() { "/" } else { page };
    let request = Request::get(page).header("host", "localhost").body(Full::<Bytes>::default())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut response = reply(head.status, String::new());
    *response.body_mut() = Full::new(body).boxed();
    Ok(response)
}

/// Sends a follower what has happened and what happens, at its own pace.
async fn follow(past: String, mut future: broadcast::Receiver<String>, to: mpsc::Sender<String>) {
    let mut line = past;
    while to.send(line).await.is_ok() {
        line = match future.recv().await {
            Ok(line) => line,
            Err(broadcast::error::RecvError::Lagged(missed)) => journal::lagged(missed),
            Err(broadcast::error::RecvError::Closed) => return,
        };
    }
}

/// Lines as a body; it ends with the instance.
struct Lines(mpsc::Receiver<String>);

impl futures_core::Stream for Lines {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(Bytes::from(line)))))
    }
}

/// Asks an instance, and gives each piece of its answer to `take`.
pub(crate) fn ask(
    name: Option<&str>,
    method: Method,
    path: &str,
    take: impl FnMut(&[u8]),
) -> Result<(), Failure> {
    ask_status(name, method, path, take).map(drop)
}

/// The same, and the status of the answer.
pub(crate) fn ask_status(
    name: Option<&str>,
    method: Method,
    path: &str,
    mut take: impl FnMut(&[u8]),
) -> Result<u16, Failure> {
    let socket = find(name)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Instance, format!("{} does not answer: {error}", socket.display()))
    };
    runtime.block_on(async {
        let stream = UnixStream::connect(&socket).await.map_err(|error| failed(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "phalanx")
            .body(Full::<Bytes>::default())
            .map_err(|error| failed(&error))?;
        let mut response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        while let Some(Ok(frame)) = response.frame().await {
            if let Some(data) = frame.data_ref() {
                take(data);
            }
        }
        Ok(response.status().as_u16())
    })
}

fn find(name: Option<&str>) -> Result<PathBuf, Failure> {
    let none = || Failure::new(Code::Instance, "no instance runs: start one with `phalanx run`");
    let dir = directory().ok_or_else(none)?;
    if let Some(name) = name {
        let path = dir.join(format!("{name}.sock"));
        return if path.exists() {
            Ok(path)
        } else {
            Err(Failure::new(Code::Instance, format!("no instance called `{name}` runs")))
        };
    }
    let mut sockets: Vec<PathBuf> = std::fs::read_dir(&dir)
        .map_err(|_| none())?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .filter(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
        .collect();
    match (sockets.pop(), sockets.is_empty()) {
        (None, _) => Err(none()),
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Failure::new(Code::Usage, "several instances run: say which with -n NAME")),
    }
}
