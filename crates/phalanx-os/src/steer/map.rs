//! `bpf(2)`: maps, the memory they share with us, and the loading of a program.
#![expect(unsafe_code, reason = "bpf(2) and mmap(2) take addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::asm::Insn;

/// `BPF_MAP_TYPE_*`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Array = 2,
    LruHash = 9,
    SocketArray = 20,
    SocketStorage = 24,
}

/// `BPF_F_NO_PREALLOC`, `BPF_F_CLONE`, `BPF_F_MMAPABLE`.
pub(super) const NO_PREALLOC: u32 = 1;
pub(super) const CLONE: u32 = 1 << 9;
pub(super) const MMAPABLE: u32 = 1 << 10;

/// The commands, `enum bpf_cmd`.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const BTF_LOAD: libc::c_int = 18;

/// `BPF_PROG_TYPE_SK_REUSEPORT`.
const PROGRAM_TYPE: u32 = 21;
/// `BPF_SK_REUSEPORT_SELECT_OR_MIGRATE` (Linux 5.14). With the one below it the program would load and run,
/// and the queue of a closed listener would be reset in silence.
const SELECT_OR_MIGRATE: u32 = 40;
/// What the helpers are asked for does not depend on it; none of those used is for the GPL only.
const LICENSE: &std::ffi::CStr = c"MIT OR Apache-2.0";

/// The forms of `union bpf_attr`, each to the last member that is used. What lies beyond is zero to the
/// kernel.
#[repr(C)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf: u32,
    btf_key: u32,
    btf_value: u32,
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadAttr {
    kind: u32,
    count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

#[repr(C)]
struct BtfAttr {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    _pad: u32,
}

/// One call.
///
/// # Safety
/// Every address in `attr` is that of memory that lives until the call returns and has the size that the
/// command reads or writes there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    let attr: *mut T = attr;
    // SAFETY: the pointer and the size describe `attr`; what it points to is the caller's promise.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(rc as RawFd)
}

/// The fd that a call has made; close-on-exec from birth, as all of bpf(2)'s.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of) as u64
}

/// The first 15 bytes of a name, as the kernel wants it.
const fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    let mut at = 0;
    while at < text.len() && at < 15 {
        name[at] = text.as_bytes()[at];
        at += 1;
    }
    name
}

/// What a map is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) entries: u32,
    pub(super) flags: u32,
}

/// Makes a map. For socket storage the kernel wants to know the types: `btf` has them, see [`load_btf`].
///
/// Allocates nothing.
pub(super) fn create(shape: &Shape, btf: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        kind: shape.kind as u32,
        key_size: shape.key_size,
        value_size: shape.value_size,
        max_entries: shape.entries,
        flags: shape.flags,
        inner: 0,
        numa_node: 0,
        name: name(shape.name),
        ifindex: 0,
        btf: btf.map_or(0, |fd| fd.as_raw_fd().cast_unsigned()),
        btf_key: btf.map_or(0, |_| 1),
        btf_value: btf.map_or(0, |_| 1),
    };
    // SAFETY: no addresses in it.
    unsafe { bpf(MAP_CREATE, &mut attr) }.map(owned)
}

/// Type information with one type, number 1: a 32-bit integer.
///
/// Allocates nothing.
pub(super) fn load_btf() -> io::Result<OwnedFd> {
    /// `struct btf_header`, one `struct btf_type` with the word that an integer has behind it, the strings.
    #[repr(C)]
    struct Btf {
        magic: u16,
        version: u8,
        flags: u8,
        words: [u32; 9],
        strings: [u8; 8],
    }
    const INT: u32 = 1 << 24;
    let btf = Btf {
        magic: 0xeb9f,
        version: 1,
        flags: 0,
        // Header: its length; where the types are and how long; the same of the strings. Type: the offset of
        // its name, its kind, its bytes, its bits.
        words: [24, 0, 16, 16, 5, 1, INT, 4, 32],
        strings: *b"\0u32\0\0\0\0",
    };
    let mut attr = BtfAttr { btf: address(&btf), log: 0, size: 45, log_size: 0, log_level: 0, _pad: 0 };
    // SAFETY: `btf` is longer than the size that is given, and lives.
    unsafe { bpf(BTF_LOAD, &mut attr) }.map(owned)
}

/// Loads the program. What the verifier has to say goes into `log`, unless that is empty; then nothing is
/// allocated.
pub(super) fn load(insns: &[Insn], log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        kind: PROGRAM_TYPE,
        count: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name: name("phalanx_steer"),
        ifindex: 0,
        attach_type: SELECT_OR_MIGRATE,
    };
    // SAFETY: instructions, licence and log are borrowed until the call returns, and their lengths are given.
    unsafe { bpf(PROG_LOAD, &mut attr) }.map(owned)
}

/// A key and a value that are plain numbers of the map's sizes.
fn element<K: Copy, V: Copy>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    key: &K,
    value: Option<&mut V>,
) -> io::Result<()> {
    let mut attr = ElementAttr {
        map: map.as_raw_fd().cast_unsigned(),
        _pad: 0,
        key: address(key),
        value: value.map_or(0, |value| std::ptr::from_mut(value) as u64),
        flags: 0,
    };
    // SAFETY: key and value are borrowed until the call returns. Their sizes are the map's: every map of this
    // module has keys of the type it is asked with, and values of 4 or 8 bytes; see `Numbers`.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

/// A map from `K` to `V`, both plain integers, made with those sizes.
#[derive(Debug)]
pub(super) struct Numbers<K, V> {
    fd: OwnedFd,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K: Copy, V: Copy + Default> Numbers<K, V> {
    pub(super) fn create(shape: &Shape, btf: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        assert_eq!((shape.key_size as usize, shape.value_size as usize), (size_of::<K>(), size_of::<V>()));
        Ok(Self { fd: create(shape, btf)?, types: std::marker::PhantomData })
    }

    /// `None` for a key that is not there.
    pub(super) fn get(&self, key: K) -> io::Result<Option<V>> {
        let mut value = V::default();
        match element(MAP_LOOKUP, self.fd.as_fd(), &key, Some(&mut value)) {
            Ok(()) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn set(&self, key: K, mut value: V) -> io::Result<()> {
        element(MAP_UPDATE, self.fd.as_fd(), &key, Some(&mut value))
    }

    /// Does nothing for a key that is not there.
    pub(super) fn remove(&self, key: K) -> io::Result<()> {
        match element::<K, V>(MAP_DELETE, self.fd.as_fd(), &key, None) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
            _ => Ok(()),
        }
    }
}

impl<K, V> AsFd for Numbers<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An array whose values are 64-bit words, mapped: reading and writing it is reading and writing memory.
#[derive(Debug)]
pub(super) struct Words {
    fd: OwnedFd,
    memory: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory belongs to this value until it is dropped, and is only used through atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    pub(super) fn create(shape: &Shape) -> io::Result<Self> {
        assert!(shape.value_size.is_multiple_of(8), "the kernel pads values to words");
        let fd = create(shape, None)?;
        let words = shape.value_size as usize / 8 * shape.entries as usize;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), words * 8, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { fd, memory, words })
    }

    /// All words, of all values in order.
    pub(super) fn all(&self) -> &[AtomicU64] {
        // SAFETY: mapped for as long as `self` lives, page-aligned, and that long: the kernel refuses to map
        // more than the values take. Everybody writes whole words atomically, the program included.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.words) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped by `create` with this length, and nobody borrows it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.words * 8) };
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
