//! The few calls that no safe crate offers; all `unsafe` of the laboratory is here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Lets a socket be bound to a source address without taking a port yet.
///
/// A port is then chosen at `connect`, where it only has to be unique together
/// with the destination; many more connections fit, and none fails with
/// `EADDRNOTAVAIL` because an earlier one is still closing.
///
/// # Errors
/// What `setsockopt` says.
#[expect(unsafe_code, reason = "rustix and socket2 do not know IP_BIND_ADDRESS_NO_PORT")]
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is borrowed and open; the value is a c_int that lives
    // through the call, and its size is passed.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a descriptor that this process inherited under a number it was told.
///
/// To be called once per number, at the start of `main`. A number that is not
/// open, or is one of the three standard streams, is an error.
///
/// # Errors
/// `EBADF` for a number that is not open, `InvalidInput` for a standard stream.
#[expect(unsafe_code, reason = "a number from the environment has no owner yet")]
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {fd} is not for us")));
    }
    // SAFETY: F_SETFD has no memory arguments; on a closed number it fails.
    let rc = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (checked above), came by inheritance and so is owned by
    // nothing in this process; callers take each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts the calling thread, and all that it starts from now on, into a network namespace of its own.
///
/// # Errors
/// `EPERM` without the right to (root, or `CAP_SYS_ADMIN`).
#[expect(unsafe_code, reason = "rustix calls it unsafe for the sake of other flags")]
pub fn leave_network() -> io::Result<()> {
    // SAFETY: no memory is involved, and this flag changes nothing that safe code relies on.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on, and for all that is started from here, `bpf(2)` ends in this way; `None`: in death.
///
/// # Errors
/// What `prctl` says.
#[expect(unsafe_code, reason = "no safe crate installs a seccomp filter")]
pub fn refuse_bpf(errno: Option<u16>) -> io::Result<()> {
    let action =
        errno.map_or(libc::SECCOMP_RET_KILL_PROCESS, |errno| libc::SECCOMP_RET_ERRNO | u32::from(errno));
    let number = u32::try_from(libc::SYS_bpf).expect("a system call");
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call is what comes first.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, action),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let zero: libc::c_ulong = 0;
    // SAFETY: no memory is involved in the first; the second reads a program that lives through the call.
    let rc = unsafe {
        match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, zero, zero, zero) {
            0 => {
                let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
                libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, zero, zero)
            }
            error => error,
        }
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
