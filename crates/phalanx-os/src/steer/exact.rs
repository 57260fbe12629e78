//! Steering by the program: every connection to the place that the ring says.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::listener::{self, LocalAddress};
use crate::{conn, sockopt};

use super::asm::{Map, Program};
use super::layout::{self, GROUP_SIZE, MAX_PLACES, MOVED, PARK, PARK_TAG, PLACE_SIZE, RING, UNLIMITED};
use super::map::{self, CLONE, Kind, MMAPABLE, NO_PREALLOC, Numbers, Shape, Words};
use super::program::program;
use super::{Rule, Transport};

/// What is in the maps of one program.
pub(super) mod shape {
    use super::*;

    pub(in crate::steer) const GROUP: Shape = array("phalanx_group", GROUP_SIZE, 1);
    pub(in crate::steer) const RINGS: Shape = array("phalanx_ring", 8, 2 * RING as u32);
    pub(in crate::steer) const PLACES: Shape = array("phalanx_places", PLACE_SIZE, MAX_PLACES + 1);
    pub(in crate::steer) const SOCKETS: Shape = Shape {
        name: "phalanx_sockets",
        kind: Kind::SocketArray,
        key_size: 4,
        value_size: 8,
        entries: MAX_PLACES + 1,
        flags: 0,
    };
    pub(in crate::steer) const TAGS: Shape = Shape {
        name: "phalanx_tags",
        kind: Kind::SocketStorage,
        key_size: 4,
        value_size: 4,
        entries: 0,
        flags: NO_PREALLOC | CLONE,
    };
    pub(in crate::steer) const MOVES: Shape = Shape {
        name: "phalanx_moved",
        kind: Kind::LruHash,
        key_size: 8,
        value_size: 8,
        entries: MOVED,
        flags: 0,
    };

    const fn array(name: &'static str, value_size: u32, entries: u32) -> Shape {
        Shape { name, kind: Kind::Array, key_size: 4, value_size, entries, flags: MMAPABLE }
    }
}

/// The program of one [`Group`](super::Group), and its maps.
///
/// A *place* is a number below [`MAX_PLACES`], of the caller's choice, that a member stands at. A *tag* names
/// what stands there, so that the next one at the same place is another.
///
/// Steering goes on, with the ring as it was last set, when this is dropped or the process dies: the group
/// keeps the program for as long as it has a member.
///
/// `open` to `clear`, `attach` and `cookie` are system calls on fds that exist: they need no privilege from
/// Linux 5.19 on, and CAP_BPF before. The rest reads and writes memory, and never fails.
pub struct Exact {
    group: Words,
    rings: Words,
    places: Words,
    sockets: Numbers<u32, u64>,
    /// On every member, and inherited by its connections: the tag. The key is a socket.
    pub(super) tags: Numbers<i32, u32>,
    /// By the cookie of a connection that has moved: the tag of where it is now.
    pub(super) moves: Numbers<u64, u64>,
    program: OwnedFd,
    pub(super) address: OnceLock<SocketAddr>,
}

/// What a place was given, since it has its tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// SYNs: never less than the connections that were made without SYN cookies, more when handshakes fail,
    /// are repeated because a queue was full, or are finished with cookies. Datagrams, for UDP.
    pub syn: u64,
    /// ACKs that belong to no connection: ends of handshakes with SYN cookies, and stray ones.
    pub ack: u64,
    /// Connections that came from a place that was flushed or closed. Exact.
    pub moved_in: u64,
    /// All three.
    pub given: u64,
}

/// What a program has counted in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that were neither SYN nor ACK.
    pub odd: u64,
    /// Choices that the kernel refused: no socket at the place, or one that does not listen.
    pub failed: u64,
    /// Connections that no place could have, and that the parking socket got.
    pub parked: u64,
}

/// Why [`Exact::load`] did not.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source} ({advice})")]
#[non_exhaustive]
pub struct LoadError {
    /// What was tried.
    pub step: LoadStep,
    /// What the kernel said.
    pub source: io::Error,
    /// What to do about it.
    pub advice: &'static str,
    /// The last words of the kernel's verifier, if it has refused the program.
    pub verifier: Option<String>,
}

/// A step of [`Exact::load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadStep {
    /// Making the map of this name.
    Map(&'static str),
    /// Loading the program.
    Program,
}

impl fmt::Display for LoadStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(name) => write!(f, "make the eBPF map {name}"),
            Self::Program => f.write_str("load the eBPF program"),
        }
    }
}

impl LoadError {
    fn map(shape: &Shape) -> impl Fn(io::Error) -> Self {
        let step = LoadStep::Map(shape.name);
        move |source| Self { advice: advice(step, &source), step, source, verifier: None }
    }
}

/// A sentence on what to do about an error.
fn advice(step: LoadStep, error: &io::Error) -> &'static str {
    match (error.raw_os_error(), step) {
        (Some(libc::EPERM), _) => {
            "it takes CAP_BPF or root, outside of any user namespace, and a seccomp filter that allows bpf(2)"
        }
        (Some(libc::ENOSYS), _) => "this kernel or sandbox has no bpf(2)",
        (Some(libc::EACCES), LoadStep::Program) => "the kernel's verifier refused it; please report this",
        (Some(libc::EINVAL | libc::E2BIG), LoadStep::Program) => "it takes Linux 5.14 or newer",
        (Some(libc::EINVAL), LoadStep::Map(_)) => "the kernel is too old, or was built without it",
        (Some(libc::ENOMEM), _) => "more memory is needed, or a higher RLIMIT_MEMLOCK before Linux 5.11",
        (Some(libc::EMFILE | libc::ENFILE), _) => "raise the limit of open files",
        _ => "no eBPF steering here",
    }
}

impl fmt::Debug for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exact").field("program", &self.program).field("address", &self.address).finish()
    }
}

impl Exact {
    /// Makes the maps and loads the program. The ring is empty: everything would be parked.
    ///
    /// A seccomp filter may *kill* the process for it; [`allows::survey`](super::allows::survey) tries it in a
    /// child.
    ///
    /// # Errors
    /// See [`LoadError`]. It takes CAP_BPF and Linux 5.14.
    pub fn load(transport: Transport, rule: Rule) -> Result<Self, LoadError> {
        use shape::*;
        let group = Words::create(&GROUP).map_err(LoadError::map(&GROUP))?;
        let rings = Words::create(&RINGS).map_err(LoadError::map(&RINGS))?;
        let places = Words::create(&PLACES).map_err(LoadError::map(&PLACES))?;
        let sockets = Numbers::create(&SOCKETS, None).map_err(LoadError::map(&SOCKETS))?;
        let btf = map::load_btf().map_err(LoadError::map(&TAGS))?;
        let tags = Numbers::create(&TAGS, Some(btf.as_fd())).map_err(LoadError::map(&TAGS))?;
        let moves = Numbers::create(&MOVES, None).map_err(LoadError::map(&MOVES))?;
        let mut source = program(transport, rule);
        let program = load(&mut source, |map| match map {
            Map::Group => group.as_fd(),
            Map::Ring => rings.as_fd(),
            Map::Places => places.as_fd(),
            Map::Sockets => sockets.as_fd(),
            Map::Moved => moves.as_fd(),
        })?;
        Ok(Self { group, rings, places, sockets, tags, moves, program, address: OnceLock::new() })
    }

    /// Makes the parking socket known, and attaches the program to the group. For that the group must have a
    /// first member: a socket that was alone when it began to listen has no group. To be repeated after a
    /// flush of the parking socket.
    ///
    /// # Errors
    /// `EINVAL` without such a member.
    pub fn open(&self, park: impl AsFd, first: impl AsFd) -> io::Result<()> {
        self.stand(PARK, PARK_TAG, park.as_fd())?;
        if let LocalAddress::Inet(address) = listener::local_address(park)? {
            self.address.get_or_init(|| address);
        }
        self.attach(first)
    }

    /// Attaches the program to the group of `member`, in place of whatever is attached there. Changes nothing
    /// if it is attached already.
    ///
    /// Any process that holds a member can detach it, whoever it belongs to; so it is good to do this again
    /// now and then.
    ///
    /// # Errors
    /// `EINVAL` when the socket is in no group, or does not listen.
    pub fn attach(&self, member: impl AsFd) -> io::Result<()> {
        sockopt::attach_program(member, &self.program)
    }

    /// `socket`, a listening member, stands at `place`. To be repeated after a [`flush`](super::flush). With
    /// another tag than before, the place's counts begin at 0 and its budget is unlimited.
    ///
    /// # Errors
    /// `InvalidInput` for a place beyond [`MAX_PLACES`]; `EBUSY` for a socket that stands elsewhere already;
    /// `EINVAL` for one that does not listen or is in no group.
    pub fn set(&self, place: u32, tag: u32, socket: impl AsFd) -> io::Result<()> {
        if place >= MAX_PLACES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.stand(place, tag, socket.as_fd())
    }

    fn stand(&self, place: u32, tag: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        use layout::place::*;
        // Tag 0 may be the first: 0 in the memory is "nobody yet".
        let stored = u64::from(tag) + TAGGED;
        if self.word(place, TAG).load(Ordering::Relaxed) != stored {
            for counter in [SYN, ACK, MOVED_IN, GIVEN, BASE, GONE] {
                self.word(place, counter).store(0, Ordering::Relaxed);
            }
            self.word(place, BUDGET).store(UNLIMITED, Ordering::Relaxed);
            self.word(place, TAG).store(stored, Ordering::Relaxed);
        }
        self.tags.set(socket.as_raw_fd(), tag)?;
        // Written over itself a socket would be busy.
        if self.sockets.get(place)? == Some(conn::cookie(socket)?) {
            return Ok(());
        }
        self.sockets.set(place, socket.as_raw_fd().cast_unsigned().into())
    }

    /// Nobody stands at `place`. The kernel does this by itself when a socket is shut down or closed.
    ///
    /// # Errors
    /// `InvalidInput` for a place beyond [`MAX_PLACES`].
    pub fn clear(&self, place: u32) -> io::Result<()> {
        if place >= MAX_PLACES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.sockets.remove(place)
    }

    /// The [cookie](conn::cookie) of the socket that stands at `place` for the kernel; `None` when it has
    /// dropped it, because somebody shut it down.
    ///
    /// # Errors
    /// None is expected for a place below [`MAX_PLACES`]; beyond, there is nobody.
    pub fn cookie(&self, place: u32) -> io::Result<Option<u64>> {
        self.sockets.get(place)
    }

    /// From now on the program goes through these places, in this order; with none it parks. Packets that are
    /// being looked at in this moment may still see the old ring.
    ///
    /// # Panics
    /// With more than [`RING`] entries, or one beyond [`MAX_PLACES`].
    pub fn ring(&mut self, places: &[u32]) {
        assert!(places.len() <= RING, "a ring of {} entries", places.len());
        assert!(places.iter().all(|place| *place < MAX_PLACES), "a place beyond the last");
        let active = &self.group.all()[layout::group::ACTIVE as usize / 8];
        // The one that nobody reads is written, and then both numbers change in one store.
        let generation = 1 - (active.load(Ordering::Relaxed) >> 32 & 1);
        let entries = &self.rings.all()[generation as usize * RING..];
        for (entry, place) in entries.iter().zip(places) {
            entry.store((*place).into(), Ordering::Relaxed);
        }
        active.store(generation << 32 | places.len() as u64, Ordering::Release);
    }

    /// `place` is skipped while it has been [given](Counts::given) more than `base + budget`; `None` is unlimited. When all looked at are over their budgets, the one that is over by least gets it.
    /// Only [`Rule::Rotate`] looks at budgets.
    ///
    /// # Panics
    /// For a place beyond [`MAX_PLACES`].
    pub fn budget(&self, place: u32, base: u64, budget: Option<u64>) {
        use layout::place::{BASE, BUDGET};
        let budget = budget.map_or(UNLIMITED, |budget| budget.min(UNLIMITED));
        self.word(place, BASE).store(base, Ordering::Relaxed);
        self.word(place, BUDGET).store(budget, Ordering::Relaxed);
    }

    /// How many of those given to `place` are not there any more. For [`Rule::Least`], whose load is the
    /// difference; never less than 0.
    ///
    /// # Panics
    /// For a place beyond [`MAX_PLACES`].
    pub fn set_gone(&self, place: u32, gone: u64) {
        self.word(place, layout::place::GONE).store(gone, Ordering::Relaxed);
    }

    /// What `place` was given. The numbers are read one after the other, while they may be growing.
    ///
    /// # Panics
    /// For a place beyond [`MAX_PLACES`].
    #[must_use]
    pub fn counts(&self, place: u32) -> Counts {
        use layout::place::{ACK, GIVEN, MOVED_IN, SYN};
        let read = |at| self.word(place, at).load(Ordering::Relaxed);
        Counts { syn: read(SYN), ack: read(ACK), moved_in: read(MOVED_IN), given: read(GIVEN) }
    }

    /// What the program has counted.
    #[must_use]
    pub fn totals(&self) -> Totals {
        use layout::group::{FAILED, ODD, PARKED};
        let read = |at: i16| self.group.all()[at as usize / 8].load(Ordering::Relaxed);
        Totals { odd: read(ODD), failed: read(FAILED), parked: read(PARKED) }
    }

    /// Whether the program has ever seen a connection that lost its listener.
    pub(super) fn anything_moved(&self) -> bool {
        self.group.all()[layout::group::CURSOR_MOVED as usize / 8].load(Ordering::Relaxed) > 0
    }

    /// A word of a place.
    fn word(&self, place: u32, offset: i16) -> &AtomicU64 {
        assert!(place <= PARK, "place {place}, of {MAX_PLACES}");
        &self.places.all()[place as usize * (PLACE_SIZE as usize / 8) + offset as usize / 8]
    }
}

/// Added to a tag in the memory of its place, so that 0 means that there is none.
pub(super) const TAGGED: u64 = 1 << 32;

/// Links and loads. A refusal by the verifier is repeated to hear its reasons.
fn load<'a>(source: &mut Program, fd: impl Fn(Map) -> BorrowedFd<'a>) -> Result<OwnedFd, LoadError> {
    let insns = source.link(|map| fd(map).as_raw_fd());
    let step = LoadStep::Program;
    map::load(insns, &mut []).map_err(|source| {
        let verifier = matches!(source.raw_os_error(), Some(libc::EACCES | libc::EINVAL | libc::E2BIG))
            .then(|| last_words(insns));
        LoadError { advice: advice(step, &source), step, source, verifier }
    })
}

/// The end of the verifier's log.
fn last_words(insns: &[super::asm::Insn]) -> String {
    let mut log = vec![0; 1 << 24];
    let _ = map::load(insns, &mut log);
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(4)..].join("\n")
}
