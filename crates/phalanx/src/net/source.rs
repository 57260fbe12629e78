//! Where connections come from, whatever they are.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use phalanx_core::wire::{Family, ListenRequest};
use phalanx_os::{AcceptError, Address, LocalAddress, SocketKind, conn, inherit, listener};
use serde_json::Value;
use tokio::io::Interest;
use tokio::sync::oneshot;

use super::ListenOptions;
use super::held::{Held, Unwatched, Watched};
use crate::waiters::Waiters;
use crate::watch::watch;
use crate::worker::driver::{Command, Grant, Ticket};
use crate::worker::queue::Queue;
use crate::worker::{self, Worker};

/// A socket, or the right to be handed connections, or both.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Connections that the primary hands over, and the right to them.
    pub(crate) handed: Option<(Arc<Queue>, Ticket)>,
    /// A listening socket; with `handed` it is shared with other workers.
    pub(crate) socket: Option<OwnedFd>,
    /// The address, of an IP listener.
    pub(crate) address: Option<SocketAddr>,
    /// The path, of a Unix listener.
    pub(crate) path: Option<PathBuf>,
    /// What the first worker brought along; alone, our own.
    pub(crate) data: Option<Value>,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub(crate) enum Wanted<'a> {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(&'a Path),
    /// One of this kind of the configuration, or of a service manager.
    Named(&'a str, SocketKind),
}

impl Wanted<'_> {
    fn request(&self, options: &ListenOptions, socket: bool) -> io::Result<ListenRequest> {
        let mut request = ListenRequest {
            backlog: options.backlog.unwrap_or_default(),
            socket,
            policy: options.policy.as_ref().map(ToString::to_string),
            data: options.data.as_ref().map(serde_json::value::to_raw_value).transpose()?,
            ..ListenRequest::default()
        };
        match *self {
            Self::Tcp(address) | Self::Udp(address) => {
                request.address = Some(address.ip().to_string());
                request.port = Some(i32::from(address.port()));
                request.flags = u32::from(options.ipv6_only && address.is_ipv6());
                let udp = matches!(self, Self::Udp(_));
                request.fd = udp.then_some(-1);
                request.family = Some(match (udp, address.is_ipv6()) {
                    (false, false) => Family::Tcp4,
                    (false, true) => Family::Tcp6,
                    (true, false) => Family::Udp4,
                    (true, true) => Family::Udp6,
                });
            }
            Self::Unix(path) => {
                let path = std::path::absolute(path)?;
                let path = path.to_str().ok_or_else(|| invalid("the path is not UTF-8"))?;
                request.address = Some(path.to_owned());
                request.port = Some(-1);
                request.family = Some(Family::Unix);
                request.mode = options.unix_mode;
            }
            Self::Named(name, kind) => {
                request.name = Some(name.to_owned());
                // Of either version: the family says what kind of socket is wanted.
                (request.port, request.family) = match kind {
                    SocketKind::Udp => (Some(0), Some(Family::Udp4)),
                    SocketKind::UnixListener => (Some(-1), Some(Family::Unix)),
                    _ => (Some(0), Some(Family::Tcp4)),
                };
            }
        }
        Ok(request)
    }

    fn kind(&self) -> SocketKind {
        match self {
            Self::Named(_, kind) => *kind,
            Self::Tcp(_) => SocketKind::TcpListener,
            Self::Udp(_) => SocketKind::Udp,
            Self::Unix(_) => SocketKind::UnixListener,
        }
    }

    fn is(&self, name: &str, fd: &OwnedFd) -> bool {
        let local = || listener::local_address(fd).unwrap_or(LocalAddress::Unnamed);
        match *self {
            Self::Named(wanted, _) => name == wanted,
            Self::Unix(path) => match local() {
                LocalAddress::Unix(found) => std::path::absolute(path).is_ok_and(|path| path == found),
                _ => false,
            },
            Self::Tcp(wanted) | Self::Udp(wanted) => match local() {
                // Port 0 is no wish for this very socket.
                LocalAddress::Inet(found) => {
                    wanted.port() != 0
                        && found.port() == wanted.port()
                        && (found.ip() == wanted.ip() || found.ip().is_unspecified())
                }
                _ => false,
            },
        }
    }

    /// The socket that a service manager passed. It keeps the original: with that the address stays ours.
    fn inherited(&self) -> io::Result<Option<OwnedFd>> {
        static INHERITED: OnceLock<Vec<(String, OwnedFd)>> = OnceLock::new();
        let mut all = INHERITED.get_or_init(inherit::listen_fds).iter();
        let found = all.find(|(name, fd)| conn::kind(fd) == self.kind() && self.is(name, fd));
        let Some((_, fd)) = found else { return Ok(None) };
        let fd = fd.try_clone()?;
        conn::set_nonblocking(&fd, true)?;
        Ok(Some(fd))
    }

    fn bind(&self, options: &ListenOptions) -> io::Result<OwnedFd> {
        let v6only = options.ipv6_only;
        let address = match *self {
            Self::Tcp(addr) => Address::Tcp { addr, v6only },
            Self::Udp(addr) => Address::Udp { addr, v6only, reuse_addr: false },
            Self::Unix(path) => Address::Unix { path: path.to_owned(), mode: options.unix_mode },
            Self::Named(name, _) => return Err(unnamed(name)),
        };
        let bound = listener::bind(&address)?;
        if let Some(file) = bound.file {
            file.keep();
        }
        if self.kind() != SocketKind::Udp {
            listener::listen(&bound.fd, options.backlog.unwrap_or_else(listener::somaxconn))?;
        }
        Ok(bound.fd)
    }
}

/// From the primary, or a service manager, or by ourselves. With `socket`, the socket itself and nothing else
/// will do.
pub(crate) async fn open(wanted: Wanted<'_>, options: &ListenOptions, socket: bool) -> io::Result<Opened> {
    if let Some(worker) = worker::worker()?
        && !options.exclusive
    {
        return ask(&worker, wanted, options, socket).await;
    }
    let socket = match wanted.inherited()? {
        Some(socket) => socket,
        None => wanted.bind(options)?,
    };
    let (address, path) = match listener::local_address(&socket)? {
        LocalAddress::Inet(address) => (Some(address), None),
        LocalAddress::Unix(path) => (None, Some(path)),
        LocalAddress::Unnamed => (None, None),
    };
    Ok(Opened { handed: None, socket: Some(socket), address, path, data: options.data.clone() })
}

async fn ask(
    worker: &Worker,
    wanted: Wanted<'_>,
    options: &ListenOptions,
    socket: bool,
) -> io::Result<Opened> {
    if let (Wanted::Named(name, _), true) = (&wanted, worker.under_node()) {
        return Err(unnamed(name));
    }
    let (reply, answer) = oneshot::channel();
    worker.tell(Command::Listen { request: wanted.request(options, socket)?, reply });
    let grant = answer.await.map_err(|_| io::Error::from(io::ErrorKind::NotConnected))??;
    let Grant { ticket, queue, socket: lent, address, data } = grant;
    let expected = lent.as_ref().is_none_or(|lent| conn::kind(lent) == wanted.kind());
    if !expected || (socket && lent.is_none()) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the primary did not lend the socket itself"));
    }
    let address = address.or(match wanted {
        Wanted::Tcp(address) | Wanted::Udp(address) => Some(address),
        Wanted::Unix(_) | Wanted::Named(..) => None,
    });
    let path = match (&lent, wanted) {
        (_, Wanted::Unix(path)) => Some(path.to_owned()),
        (Some(lent), _) => match listener::local_address(lent)? {
            LocalAddress::Unix(path) => Some(path),
            LocalAddress::Inet(_) | LocalAddress::Unnamed => None,
        },
        (None, _) => None,
    };
    Ok(Opened { handed: Some((queue, ticket)), socket: lent, address, path, data })
}

/// The first address that can be had, as the standard library does it.
pub(crate) async fn open_first(
    addresses: impl IntoIterator<Item = SocketAddr>,
    wanted: fn(SocketAddr) -> Wanted<'static>,
    options: &ListenOptions,
    socket: bool,
) -> io::Result<Opened> {
    let mut last = None;
    for address in addresses {
        match open(wanted(address), options, socket).await {
            Ok(opened) => return Ok(opened),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| invalid("the name has no address")))
}

fn unnamed(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no listener is named {name:?}"))
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[derive(Debug)]
struct Handed {
    queue: Arc<Queue>,
    ticket: Ticket,
}

impl Handed {
    fn poll_take(&self, cx: &Context<'_>) -> Poll<Arrived> {
        self.queue.poll_take(cx).map(|fd| {
            self.ticket.taken();
            Arrived { fd, peer: None }
        })
    }
}

/// A connection, and its peer where the kernel said so in passing.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) fd: OwnedFd,
    pub(crate) peer: Option<SocketAddr>,
}

/// What accepts, whatever the family: what the primary hands over, a socket, or both. A runtime watches its socket, or
/// nobody does. Once draining has begun there is nothing more to accept, and no socket.
#[derive(Debug)]
pub(crate) struct Source<S = Watched> {
    handed: Option<Handed>,
    socket: Option<Arc<Held<S>>>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) data: Option<Value>,
    /// Who waits for the socket.
    waiters: Arc<Waiters>,
}

impl<S: Send + 'static> Source<S> {
    fn with(opened: Opened, watched: impl FnOnce(OwnedFd) -> io::Result<S>) -> io::Result<Self> {
        let handed = opened.handed.map(|(queue, ticket)| Handed { queue, ticket });
        let socket = opened.socket.map(watched).transpose()?.map(Held::new);
        if handed.is_none() && socket.is_none() {
            return Err(invalid("neither a socket nor a primary"));
        }
        let Opened { address, path, data, .. } = opened;
        Ok(Self { handed, socket, address, path, data, waiters: Arc::default() })
    }

    /// What was handed over has waited before.
    fn poll_handed(&self, cx: &Context<'_>) -> Poll<Arrived> {
        self.handed.as_ref().map_or(Poll::Pending, |handed| handed.poll_take(cx))
    }
}

impl Source<Unwatched> {
    /// For those who wait for the socket by themselves.
    pub(crate) fn unwatched(opened: Opened) -> io::Result<Self> {
        Self::with(opened, |socket| Ok(Arc::new(socket)))
    }

    /// The socket to wait for. Who waits for it lets it go when draining begins.
    pub(crate) fn socket(&self) -> Option<Unwatched> {
        self.socket.as_ref()?.socket().clone()
    }

    /// The next connection, blocking; registers only for what is handed over. Pending for ever once draining has
    /// begun.
    pub(crate) fn poll_accept(&self, cx: &Context<'_>) -> Poll<io::Result<Arrived>> {
        if crate::drain::begun() {
            return Poll::Pending;
        }
        if let Poll::Ready(connection) = self.poll_handed(cx) {
            return Poll::Ready(conn::set_nonblocking(&connection.fd, false).map(|()| connection));
        }
        // Not under the lock: several threads may accept.
        match self.socket().and_then(|socket| accept(socket, Blocking::Yes)) {
            Some(accepted) => Poll::Ready(accepted),
            None => Poll::Pending,
        }
    }
}

impl Source {
    /// To be called in a runtime, which will watch the socket.
    pub(crate) fn new(opened: Opened) -> io::Result<Self> {
        let source = Self::with(opened, |socket| watch(socket, Interest::READABLE))?;
        if let Some(handed) = &source.handed {
            handed.ticket.runs_here();
        }
        Ok(source)
    }

    /// The next connection: close-on-exec, non-blocking; for any number of tasks. Pending for ever once draining has
    /// begun.
    pub(crate) fn poll_accept(&self, cx: &Context<'_>) -> Poll<io::Result<Arrived>> {
        if crate::drain::begun() {
            return Poll::Pending;
        }
        if let Poll::Ready(connection) = self.poll_handed(cx) {
            return Poll::Ready(Ok(connection));
        }
        let Some(held) = &self.socket else { return Poll::Pending };
        // The socket remembers one waker: it wakes everybody.
        self.waiters.add(cx.waker());
        let waker = Waker::from(Arc::clone(&self.waiters));
        let mut all = Context::from_waker(&waker);
        let guard = held.socket();
        let Some(socket) = &*guard else { return Poll::Pending };
        loop {
            let mut ready = std::task::ready!(socket.poll_read_ready(&mut all))?;
            match accept(socket, Blocking::No) {
                None => ready.clear_ready(),
                Some(accepted) => return Poll::Ready(accepted),
            }
        }
    }

    /// As [`poll_accept`](Self::poll_accept).
    pub(crate) async fn accept(&self) -> io::Result<Arrived> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

/// What the application wants of a connection.
#[derive(Clone, Copy)]
enum Blocking {
    Yes,
    No,
}

/// `None`: there is none. A connection that broke is passed over.
fn accept(socket: impl AsFd, blocking: Blocking) -> Option<io::Result<Arrived>> {
    loop {
        let accepted = match blocking {
            Blocking::No => listener::accept(&socket),
            Blocking::Yes => listener::accept_blocking(&socket),
        };
        return match accepted {
            Ok((fd, peer)) => Some(Ok(Arrived { fd, peer })),
            Err(AcceptError::WouldBlock) => None,
            Err(AcceptError::Connection(_)) => continue,
            Err(AcceptError::OutOfResources(error) | AcceptError::Listener(error)) => Some(Err(error)),
        };
    }
}
