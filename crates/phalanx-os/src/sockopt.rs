//! The socket options that have no safe wrapper elsewhere.
#![expect(unsafe_code, reason = "getsockopt, setsockopt and ioctl take raw pointers")]

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd};

/// A C struct or integer of which every bit pattern is a value, so that bytes written by the kernel, or
/// zeros where it wrote none, can be read as one.
///
/// # Safety
/// As said: no padding that is read, no invalid values.
unsafe trait Plain: Copy {}

/// `SO_PASSRIGHTS`; libc does not have it yet. All supported architectures but SPARC number it as
/// `asm-generic/socket.h` does.
#[cfg(not(any(target_arch = "sparc", target_arch = "sparc64")))]
const SO_PASSRIGHTS: libc::c_int = 83;
#[cfg(any(target_arch = "sparc", target_arch = "sparc64"))]
const SO_PASSRIGHTS: libc::c_int = 0x5c;

/// The front part of `struct tcp_info` from `linux/tcp.h`, to the last field that is asked for.
///
/// Written out because libc's glibc and musl versions end at different fields. The kernel only ever
/// appends, and copies no more than it is given room for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpInfo {
    pub(crate) state: u8,
    _bytes: [u8; 7],
    _rto_ato_mss: [u32; 4],
    /// On a listener: connections that wait to be accepted.
    pub(crate) unacked: u32,
    /// On a listener: how many may wait.
    pub(crate) sacked: u32,
    _counters: [u32; 18],
    _rates_and_acked: [u64; 3],
    pub(crate) bytes_received: u64,
    _segs: [u32; 2],
    pub(crate) notsent_bytes: u32,
    _more_segs: [u32; 3],
    _times: [u64; 4],
    _delivered: [u32; 2],
    /// Linux 4.19.
    pub(crate) bytes_sent: u64,
}

// SAFETY: integers and arrays of integers; the layout leaves no padding (asserted below).
unsafe impl Plain for TcpInfo {}
// SAFETY: an integer.
unsafe impl Plain for libc::c_int {}
// SAFETY: three integers of equal size.
unsafe impl Plain for libc::ucred {}

const _: () = {
    assert!(mem::offset_of!(TcpInfo, unacked) == 24);
    assert!(mem::offset_of!(TcpInfo, bytes_received) == 128);
    assert!(mem::offset_of!(TcpInfo, notsent_bytes) == 144);
    assert!(mem::offset_of!(TcpInfo, bytes_sent) == 200);
    assert!(size_of::<TcpInfo>() == 208);
};

/// Reads an option; the length is what the kernel has written, the rest is zero.
fn get<T: Plain>(fd: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<(T, usize)> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the fd is borrowed for
    // its duration.
    let rc = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len)
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before, partly overwritten by the kernel, and `Plain`.
    Ok((unsafe { value.assume_init() }, len as usize))
}

/// `TCP_INFO`; `None` when the kernel is older than 4.19 and does not say all that is asked.
pub(crate) fn tcp_info(fd: impl AsFd) -> io::Result<Option<TcpInfo>> {
    let (info, len) = get::<TcpInfo>(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok((len >= size_of::<TcpInfo>()).then_some(info))
}

/// `SIOCINQ`: bytes received and not yet read. A FIN is not counted.
pub(crate) fn unread(fd: impl AsFd) -> io::Result<u64> {
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD, which is SIOCINQ under another name, writes one int through the pointer.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    u64::try_from(unread).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Sets an option.
fn set<T: Copy>(fd: impl AsFd, name: libc::c_int, value: &T) -> io::Result<()> {
    let value: *const T = value;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            value.cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `SO_ATTACH_REUSEPORT_EBPF`: gives the group of `fd` a program.
pub(crate) fn attach_program(fd: impl AsFd, program: impl AsFd) -> io::Result<()> {
    set(fd, libc::SO_ATTACH_REUSEPORT_EBPF, &program.as_fd().as_raw_fd())
}

/// A step of a classic BPF filter: `struct sock_filter`.
pub(crate) use libc::sock_filter as FilterStep;

/// `SO_ATTACH_REUSEPORT_CBPF`: gives the group of `fd` a filter.
pub(crate) fn attach_group_filter(fd: impl AsFd, filter: &[FilterStep]) -> io::Result<()> {
    attach(fd, libc::SO_ATTACH_REUSEPORT_CBPF, filter)
}

/// `SO_ATTACH_FILTER`: gives the socket itself a filter, in place of any that it had.
pub(crate) fn attach_socket_filter(fd: impl AsFd, filter: &[FilterStep]) -> io::Result<()> {
    attach(fd, libc::SO_ATTACH_FILTER, filter)
}

fn attach(fd: impl AsFd, option: libc::c_int, filter: &[FilterStep]) -> io::Result<()> {
    let len = filter.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    // The kernel only reads through the pointer, while `filter` is borrowed.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    set(fd, option, &program)
}

/// Clears `SO_PASSRIGHTS`; `false` when the kernel (before 6.16) does not know it.
pub(crate) fn clear_passrights(fd: impl AsFd) -> io::Result<bool> {
    let off: libc::c_int = 0;
    match set(fd, SO_PASSRIGHTS, &off) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether `SO_PASSRIGHTS` is set; for tests.
#[cfg(test)]
pub(crate) fn passrights(fd: impl AsFd) -> io::Result<bool> {
    Ok(get::<libc::c_int>(fd, libc::SOL_SOCKET, SO_PASSRIGHTS)?.0 != 0)
}

/// `SO_PEERCRED`.
///
/// Not by way of `rustix`, whose pid type has no place for the 0 that the kernel gives for a peer outside of
/// our pid namespace.
pub(crate) fn peer_credentials(fd: impl AsFd) -> io::Result<libc::ucred> {
    Ok(get::<libc::ucred>(fd, libc::SOL_SOCKET, libc::SO_PEERCRED)?.0)
}
